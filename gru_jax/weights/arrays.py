"""What all importers and exporters do with numbers: check their dtypes, copy them into JAX, add two biases."""

import inspect
import warnings
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax.weights.found import Params, Tensor

FLOATING = ("float16", "bfloat16", "float32", "float64")


def check_dtypes(framework: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises TypeError unless all tensors are floating, ValueError unless they have one dtype."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{framework}: expected {name} of dtype {', '.join(FLOATING)}, got {tensor.dtype}.")
    if len(dtypes) > 1:
        held = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise ValueError(f"{framework}: expected one dtype in all of a GRU, got {held}. Cast them to one.")


def to_jax(source: str, cells: Mapping[str, Mapping[str, np.ndarray]]) -> Params:
    """Copies the arrays of each cell into JAX. Warns if float64 becomes float32; the warning begins with `source`.

    It is a copy, so that a later change of the original arrays does not change the parameters.
    """
    wide = [f"{cell}/{key}" for cell, arrays in cells.items() for key, a in arrays.items() if a.dtype == np.float64]
    if wide and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        warnings.warn(
            f"{source}: {wide[0]} is float64 and becomes float32, the widest that JAX computes in without "
            'jax.config.update("jax_enable_x64", True).',
            stacklevel=_levels_to_the_caller(),
        )
    return {cell: {key: jnp.array(array) for key, array in arrays.items()} for cell, arrays in cells.items()}


def _levels_to_the_caller() -> int:
    """Returns the `stacklevel` with which a warning points to the code that called gru_jax."""
    level, frame = 0, inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").startswith("gru_jax"):
        level, frame = level + 1, frame.f_back
    return level


def fold(function: str, b_ih: np.ndarray, b_hh: np.ndarray) -> np.ndarray:
    """Adds two biases in float64 and rounds once, to within half a unit in the last place."""
    with np.errstate(over="ignore", invalid="ignore"):
        bias = (b_ih.astype(np.float64) + b_hh.astype(np.float64)).astype(b_ih.dtype)
    if np.any(np.isinf(bias) & np.isfinite(b_ih) & np.isfinite(b_hh)):
        raise ValueError(f"{function}: bias_ih + bias_hh overflows {b_ih.dtype}. Cast the parameters to a wider one.")
    return bias


def fold_gates(function: str, b_ih: np.ndarray, b_hh: np.ndarray) -> np.ndarray:
    """Returns b_ih with the r and z parts of b_hh added: for cells that have no b_hr and no b_hz."""
    gates = len(b_ih) // 3 * 2
    return np.concatenate([fold(function, b_ih[:gates], b_hh[:gates]), b_ih[gates:]])


def not_finite(params: Params) -> list[str]:
    """Returns the names of the parameters that hold NaN or infinity: "l0/kernel_ih"."""
    flat = [(f"{cell}/{key}", array) for cell, ours in params.items() for key, array in ours.items()]
    return [name for name, array in flat if not np.isfinite(np.asarray(array, np.float32)).all()]
