"""Runs a GRU here and in the framework that it comes from, and gives a verdict on every array.

A fixed tolerance would be too loose for small weights and too strict for large ones: over 1,000 steps of trained
weights PyTorch's float32 can stray 1e-4 from its own float64. So the original itself sets the measure.

    float64   within 1e-10 of the original in float64
    others    at most twice as far from the original's float64 as the original in the same dtype is, on the same input;
              8 units in the last place of the largest number are always allowed, because over a few numbers the
              original may be exact by chance

One input is not always enough. Where trained weights amplify rounding, one of two equally accurate computations is
often more than twice as far off as the other, and on the next input it is the other way round. So over several inputs
`typical` lets the median decide. Nothing else is forgiven: in float64 such errors stay far below 1e-10, and of 256
inputs to a published stack none was further off than 10 times its bound. So an input that is beyond 16 times its bound,
or not finite, decides by itself.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from gru_jax.params import GRUParams
from gru_jax.stack import gru
from gru_jax.weights.found import Found

FLOAT64_BOUND = 1e-10
FEW_ULP = 8
LUCK = 16
SEEDS = 9  # inputs that `compare` tries where the first one misses
STEPS, BATCH = 100, 4  # of its random inputs

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, repr=False)
class Verdict:
    """How far one array is from the original's float64.

    Attributes:
      name: of the array.
      distance: largest absolute difference between ours and the original's float64.
      own: largest absolute difference between the original and its own float64.
      bound: what `distance` may be at most.

    Example:
      >>> Verdict("h_n", 1e-7, 8e-8, 1.6e-7)
      Verdict(h_n: 1.0e-07, the original's own 8.0e-08, allowed 1.6e-07, PASS)
    """

    name: str
    distance: float
    own: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the distance is within the bound; no distance is where the original strays infinitely far itself."""
        return self.distance <= self.bound < np.inf

    def __repr__(self) -> str:
        numbers = f"{self.distance:.1e}, the original's own {self.own:.1e}, allowed {self.bound:.1e}"
        return f"Verdict({self.name}: {numbers}, {'PASS' if self.passed else 'FAIL'})"


def distance(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the largest absolute difference; inf where one is NaN or infinite and the other is not the same.

    Raises:
      ValueError: if the shapes differ.

    >>> distance(np.array([1.0, np.nan]), np.array([1.5, np.nan]))
    0.5
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"distance: expected two arrays of one shape, got {list(a.shape)} and {list(b.shape)}.")
    with np.errstate(invalid="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0))


def judge(name: str, ours: ArrayLike, original: ArrayLike, reference: ArrayLike) -> Verdict:
    """Applies the rule above.

    Args:
      name: of the array, for the verdict.
      ours: in the dtype under test.
      original: the original framework's, in the same dtype.
      reference: the original framework's in float64, on the same input.

    Example:
      >>> judge("h_n", np.float32([0.1]), np.float32([0.1]), np.float64([0.1])).passed
      True
    """
    ours, reference = np.asarray(ours), np.asarray(reference)
    own = distance(original, reference)
    if ours.dtype == np.float64:
        bound = FLOAT64_BOUND
    else:
        finite = reference[np.isfinite(reference)]
        ulp = float(jnp.finfo(ours.dtype).eps) * float(np.abs(finite).max(initial=0))
        bound = max(2 * own, FEW_ULP * ulp)
    return Verdict(name, distance(ours, reference), own, bound)


def typical(verdicts: Sequence[Verdict]) -> Verdict:
    """Returns the verdict of one array over several inputs: the median, of the share of its bound that each used up.

    It is the worst instead where that is beyond 16 times its bound, not finite, or of float64.

    Example:
      >>> good, bad = Verdict("h_n", 1e-7, 1e-7, 2e-7), Verdict("h_n", 9e-7, 1e-7, 2e-7)
      >>> typical([good, bad, good]).passed, typical([good, bad, bad]).passed
      (True, False)
    """
    by_share = sorted(verdicts, key=lambda v: (not v.passed, v.distance / v.bound if v.bound else v.distance))
    worst = by_share[-1]
    lucky = worst.bound != FLOAT64_BOUND and worst.distance <= LUCK * worst.bound < np.inf
    return by_share[len(verdicts) // 2] if lucky else worst


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare` found.

    Attributes:
      verdicts: dtype -> a verdict on each array: output, h_n, and the gradients that the original has.
      errors: "gru_jax" and the original's name -> [L], the largest error of the float32 output at each time step.

    Example:
      >>> Comparison({"float32": [Verdict("h_n", 1e-7, 8e-8, 1.6e-7)]}, {}).passed
      True
    """

    verdicts: Mapping[str, Sequence[Verdict]]
    errors: Mapping[str, np.ndarray]

    @property
    def passed(self) -> bool:
        """Whether every verdict is a pass."""
        return all(verdict.passed for verdicts in self.verdicts.values() for verdict in verdicts)

    def __repr__(self) -> str:
        rows = [
            f"{dtype:10}{v.name:22}{v.distance:>12.1e}{v.own:>12.1e}{v.bound:>12.1e}  {'PASS' if v.passed else 'FAIL'}"
            for dtype, verdicts in self.verdicts.items()
            for v in verdicts
        ]
        return "\n".join([f"{'':32}{'gru_jax':>12}{'original':>12}{'allowed':>12}", *rows])


def compare(found: Found, x: ArrayLike | None = None) -> Comparison:
    """Runs a GRU of a file here and in its own framework, in float32 and in float64, and judges every array.

    Where an array misses the bound of float32 on the first input, the median of nine decides, see `typical`.

    Args:
      found: what `weights.checkpoint.open_checkpoint` found in a file.
      x: real inputs [L, N, I] or [L, I] in place of random ones. h_0 and the cotangents of both results are random.

    Raises:
      ValueError: if x has another shape, or is empty, or its numbers are not all finite, or if the original's framework
        refuses to run its own GRU.
      ImportError: if the original's framework is not installed.

    Example:
      >>> import tempfile
      >>> from gru_jax import GRUConfig, init_params, save
      >>> from gru_jax.weights.checkpoint import open_checkpoint
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/gru.safetensors", GRUConfig(2, 3), init_params(jax.random.key(0), GRUConfig(2, 3)))
      ...     found = open_checkpoint(f"{folder}/gru.safetensors").grus[""]
      ...     compare(found).passed
      True
    """
    x = None if x is None else _checked(x, found.config.input_size)
    with jax.enable_x64(True):
        params = jax.tree.map(np.asarray, found.read())
    verdicts, errors = {}, {}
    for dtype in ("float32", "float64"):
        trials: list[list[Verdict]] = []
        for seed in range(SEEDS):
            inputs = random_inputs(found, x, seed)
            ours, original = run_here(found, params, dtype, inputs), _run_original(found, dtype, inputs)
            reference = original if dtype == "float64" else _run_original(found, "float64", inputs)
            trials.append([judge(name, ours[name], original[name], reference[name]) for name in reference])
            if seed == 0 and dtype == "float32":
                results = {"gru_jax": ours, found.framework: original}
                error = lambda result, reference=reference: np.abs(result["output"] - reference["output"])
                errors = {name: error(result).max(axis=(1, 2), initial=0) for name, result in results.items()}
            if dtype == "float64" or all(verdict.passed for verdict in trials[0]):
                break
        verdicts[dtype] = [typical(of_one_array) for of_one_array in zip(*trials, strict=True)]
    return Comparison(verdicts, errors)


def _run_original(found: Found, dtype: str, inputs: Sequence[np.ndarray]) -> Arrays:
    try:
        return found.original(dtype, *inputs)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # Each framework has exceptions of its own.
        raise ValueError(f"verify: {found.framework} does not run it: {error}") from error


def _checked(x: ArrayLike, input_size: int) -> np.ndarray:
    """Returns x as [L, N, I], float64."""
    given = np.asarray(x)
    array = given[:, None] if given.ndim == 2 else given
    if array.ndim != 3 or array.shape[-1] != input_size:
        raise ValueError(f"verify: expected x of shape [L, N, I] or [L, I], I = {input_size}, got {list(given.shape)}.")
    if array.dtype.kind not in "fiu" or not array.size or not np.isfinite(array).all():
        raise ValueError(
            f"verify: expected x of finite numbers, got {array.dtype} {list(given.shape)} with none or others."
        )
    return array.astype(np.float64)


def random_inputs(found: Found, x: np.ndarray | None, seed: int) -> tuple[np.ndarray, ...]:
    """Returns x, h_0, d_output and d_h_n: numbers that float32 holds exactly."""
    rng, config = np.random.default_rng(seed), found.config
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    x = normal(STEPS, BATCH, config.input_size) if x is None else x.astype(np.float32)
    steps, batch = x.shape[:2]
    states = (config.num_layers * config.num_directions, batch, config.hidden_size)
    return x, normal(*states), normal(steps, batch, config.num_directions * config.hidden_size), normal(*states)


def run_here(found: Found, params: GRUParams, dtype: str, inputs: Sequence[np.ndarray]) -> Arrays:
    """Runs `gru` in place of `found.original`: the same arguments and results, and the parameters."""
    with jax.enable_x64(dtype == "float64"):
        cast = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, *inputs))
        results = _differentiate(found.config.reset_after, found.backwards, *cast)
        return {name: np.asarray(a) for name, a in results.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _differentiate(
    reset_after: bool, backwards: bool, params: GRUParams, x: jax.Array, h_0: jax.Array, *cotangents: jax.Array
) -> dict[str, jax.Array]:
    """Returns output, h_n and, for the cotangents of both, the gradients of x, h_0 and every parameter."""
    time = (lambda a: jnp.flip(a, 0)) if backwards else (lambda a: a)

    def forward(params: GRUParams, x: jax.Array, h_0: jax.Array) -> tuple[jax.Array, jax.Array]:
        output, h_n = gru(params, time(x), h_0, reset_after=reset_after, precision="highest")
        return time(output), h_n

    (output, h_n), pull_back = jax.vjp(forward, params, x, h_0)
    d_params, d_x, d_h_0 = pull_back(cotangents)
    flat = {f"d_{cell}/{key}": a for cell, arrays in d_params.items() for key, a in arrays.items()}
    return {"output": output, "h_n": h_n, "d_x": d_x, "d_h_0": d_h_0, **flat}
