"""What the tests share: live PyTorch runs, ours beside them, and the rule of exactness."""

import dataclasses
import functools
from collections import defaultdict

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gru_jax import from_torch, gru, pack_padded_sequence, pad_packed_sequence
from gru_jax.params import param_shapes
from gru_jax.verify import judge, typical

torch.set_num_threads(1)  # one test process a core

# On a GPU or TPU nothing less than the highest precision computes float32 as PyTorch does; on CPU it changes nothing.
HIGHEST = jax.lax.Precision.HIGHEST


@pytest.fixture
def x64():
    """Lets JAX compute in float64 during one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Runs a test in both dtypes, with JAX able to compute in it."""
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield request.param
    jax.config.update("jax_enable_x64", False)


@dataclasses.dataclass(frozen=True)
class Case:
    """One point of the grid: sizes, the module's arguments, and how lengths are given."""

    size: tuple[int, int, int, int]  # L, N, I, H
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    h_0: bool = True
    lengths: str = "dense"  # or "lengths" or "packed"

    def __str__(self):
        flags = [name for name in ("bidirectional", "bias", "batch_first", "h_0") if getattr(self, name)]
        return "-".join(["x".join(map(str, self.size)), f"{self.layers}layers", self.lengths, *flags])


def torch_gru(case, seed=0):
    """A PyTorch GRU in float32 with PyTorch's own random weights, biases included."""
    torch.manual_seed(seed)
    _, _, input_size, hidden_size = case.size
    return torch.nn.GRU(
        input_size, hidden_size, case.layers, case.bias, case.batch_first, bidirectional=case.bidirectional
    )


def random_inputs(case, seed=0):
    """float32 inputs of a case, and the cotangents of its outputs, as NumPy arrays. x is [L, N, I] or [N, L, I]."""
    rng = np.random.default_rng(seed)
    steps, batch, input_size, hidden_size = case.size
    directions = 2 if case.bidirectional else 1
    sequence = (batch, steps) if case.batch_first else (steps, batch)
    shapes = {
        "x": (*sequence, input_size),
        "h_0": (case.layers * directions, batch, hidden_size),
        "d_output": (*sequence, directions * hidden_size),
        "d_h_n": (case.layers * directions, batch, hidden_size),
    }
    lengths = np.random.default_rng(0).integers(1, steps + 1, batch)
    return {"lengths": lengths} | {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def random_params(config, dtype=np.float32, seed=0):
    """GRUParams of a config as `init_params` draws them, but by NumPy: JAX would compile a program for each shape."""
    rng, bound = np.random.default_rng(seed), config.hidden_size**-0.5
    draw = lambda shape: jnp.asarray(rng.uniform(-bound, bound, shape).astype(np.float32), dtype)
    return {name: {key: draw(shape) for key, shape in cell.items()} for name, cell in param_shapes(config).items()}


def run_torch(case, module, inputs, dtype):
    """PyTorch's output, h_n and the gradients of x, h_0 and every parameter, under their names in the module."""
    module = module.to(getattr(torch, dtype))
    tensor = lambda name: torch.tensor(inputs[name]).to(getattr(torch, dtype))
    x, h_0 = tensor("x").requires_grad_(), tensor("h_0").requires_grad_()
    hidden = h_0 if case.h_0 else None
    if case.lengths == "dense":
        output, h_n = module(x, hidden)
    else:
        lengths = torch.tensor(inputs["lengths"])
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, case.batch_first, enforce_sorted=False)
        packed, h_n = module(packed, hidden)
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, case.batch_first, total_length=case.size[0])
    wanted = {"x": x, **({"h_0": h_0} if case.h_0 else {}), **dict(module.named_parameters())}
    loss = (output * tensor("d_output")).sum() + (h_n * tensor("d_h_n")).sum()
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    results = {"output": output, "h_n": h_n, **{f"d_{k}": g for k, g in zip(wanted, gradients, strict=True)}}
    return {name: value.detach().to(torch.float64).numpy().copy() for name, value in results.items()}


def our_runner(case, lengths, **options):
    """Returns (params, inputs) -> the same from gru_jax, under the same names."""

    def forward(params, x, h_0):
        call = functools.partial(gru, params, h_0=h_0 if case.h_0 else None, precision=HIGHEST, **options)
        if case.lengths == "dense":
            return call(x, batch_first=case.batch_first)
        if case.lengths == "lengths":
            return call(x, batch_first=case.batch_first, seq_lengths=lengths)
        packed, h_n = call(pack_padded_sequence(x, lengths, case.batch_first, enforce_sorted=False))
        return pad_packed_sequence(packed, case.batch_first, total_length=case.size[0])[0], h_n

    @jax.jit
    def run(params, inputs):
        (output, h_n), pull_back = jax.vjp(forward, params, inputs["x"], inputs["h_0"])
        d_params, d_x, d_h_0 = pull_back((inputs["d_output"], inputs["d_h_n"]))
        results = {"output": output, "h_n": h_n, "d_x": d_x, **({"d_h_0": d_h_0} if case.h_0 else {})}
        for cell, gradients in d_params.items():
            for key, gradient in gradients.items():
                results[f"d_{key.replace('kernel', 'weight')}_{cell}"] = gradient.T
        return results

    return run


def compare(case, dtype, module=None, xs=None, **options):
    """Runs one case in both and returns a verdict on every array.

    On one input either side may be unlucky by chance. So where an array misses its bound on the first input, the
    median of nine inputs decides; of real inputs, the median of all.

    Args:
      case: what to run.
      dtype: of the run.
      module: a trained torch.nn.GRU of the case's sizes in place of a random one.
      xs: real inputs in place of random ones.
      options: for gru.
    """
    module = module or torch_gru(case)
    # The float32 weights, widened where the dtype is wider: the same numbers everywhere.
    _, params = from_torch({name: w.detach().numpy().astype(dtype) for name, w in module.state_dict().items()})
    run = our_runner(case, random_inputs(case)["lengths"], **options)

    def judge_input(seed):
        inputs = random_inputs(case, seed) | ({} if xs is None else {"x": xs[seed]})
        reference = run_torch(case, module, inputs, "float64")
        original = reference if dtype == "float64" else run_torch(case, module, inputs, "float32")
        ours = run(params, {name: jnp.asarray(a, dtype) for name, a in inputs.items() if name != "lengths"})
        assert ours.keys() == reference.keys()
        return [judge(name, ours[name], original[name], reference[name]) for name in reference]

    verdicts = judge_input(0)
    if xs is None and all(verdict.passed for verdict in verdicts):
        return verdicts
    rest = [judge_input(seed) for seed in range(1, 9 if xs is None else len(xs))]
    return [typical(of_one_array) for of_one_array in zip(verdicts, *rest, strict=True)]


def assert_exact(verdicts):
    """Fails with a table of every array that is outside the rule."""
    failed = [v for v in verdicts if not v.passed]
    lines = [
        f"{v.name}: {v.distance:.2e} from PyTorch's float64; PyTorch {v.own:.2e}, bound {v.bound:.2e}" for v in failed
    ]
    assert not failed, "\n" + "\n".join(lines)


def record_verdicts(record_property, dtype, verdicts):
    """Keeps the verdicts for the summary at the end of the run."""
    record_property(f"verdicts {dtype}", [dataclasses.astuple(verdict) for verdict in verdicts])


def equations(jaxpr):
    """Every equation of a jaxpr, those inside other equations too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if isinstance(value, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr):
                yield from equations(getattr(value, "jaxpr", value))


def pytest_terminal_summary(terminalreporter):
    """Prints the worst distances of the run beside PyTorch's own."""
    worst = defaultdict(list)
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, verdicts in getattr(report, "user_properties", []):
            if name.startswith("verdicts"):
                worst[name.removeprefix("verdicts ")] += verdicts
    for dtype, verdicts in sorted(worst.items()):
        terminalreporter.section(f"distances to PyTorch's float64, {dtype}: the worst of {len(verdicts)} arrays")
        for kind in ("output", "h_n", "d_x", "d_h_0", "d_weight", "d_bias"):
            rows = [row for row in verdicts if row[0].startswith(kind)]
            if rows:
                name, distance, own, bound = max(rows, key=lambda row: row[1] / max(row[3], 1e-300))
                line = f"{kind:9} {distance:.1e}   PyTorch's own {own:.1e}   allowed {bound:.1e}   ({len(rows)} arrays)"
                terminalreporter.write_line(line)
