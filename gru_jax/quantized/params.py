"""Quantized parameters: what they hold, how float parameters become quantized ones, and the way back.

    QuantizedParams  {"l0": cell, "l0_reverse": cell, ...}, where a cell is
    int8      {"kernel_ih": int8 [I, 3H], "kernel_hh": int8 [H, 3H], "bias_ih": [3H], "bias_hh": [3H],
               "scale_ih": [] or [3H], "scale_hh": [] or [3H], "reduce_range": bool []}
    float16   {"kernel_ih": float16 [I, 3H], "kernel_hh": float16 [H, 3H], "bias_ih": [3H], "bias_hh": [3H]}

`reduce_range` is one of the parameters, as in PyTorch, because the same weights with another `reduce_range` give
another output. Everything not marked is float32.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gru_jax import _shapes
from gru_jax.params import GRUConfig, GRUParams, check_params
from gru_jax.quantized.numbers import quantize_weights

QuantizedCell = Mapping[str, jax.Array]
QuantizedParams = Mapping[str, QuantizedCell]

FLOAT16_MAX = 65504
_EXTRAS = {"scale_ih": jnp.float32, "scale_hh": jnp.float32, "reduce_range": jnp.bool}


def quantize_dynamic(
    params: GRUParams, dtype: str = "int8", *, reduce_range: bool = True
) -> dict[str, dict[str, jax.Array]]:
    """Quantizes a float GRU, as `torch.ao.quantization.quantize_dynamic(model, {torch.nn.GRU}, dtype=...)` does.

    Biases stay float32. PyTorch does not quantize a GRU without biases; this function does.

    Args:
      params: GRUParams of the PyTorch form of the new gate (`reset_after=True`).
      dtype: "int8", for a quarter of float32's bytes: w = scale * q with scale = max|w| / 127.5. Or "float16", for half
        of them: the kernels are rounded, and cut to +-65504.
      reduce_range: for int8: True for activations of 7 bits, as in PyTorch's engines x86 and fbgemm; False for 8 bits,
        as in its engine qnnpack, which ignores `reduce_range`.

    Returns:
      QuantizedParams, for `quantized.gru`.

    Raises:
      TypeError: if params are not GRUParams.
      ValueError: if the arrays of params do not fit together, or dtype is something else.

    Example:
      >>> from gru_jax import GRUConfig, init_params
      >>> qparams = quantize_dynamic(init_params(jax.random.key(0), GRUConfig(10, 20)))
      >>> [(key, str(array.dtype)) for key, array in qparams["l0"].items() if key.endswith("hh")]
      [('kernel_hh', 'int8'), ('bias_hh', 'float32'), ('scale_hh', 'float32')]
    """
    check_params("quantize_dynamic", params)
    _shapes.check_flags("quantize_dynamic", reduce_range=reduce_range)
    forms = {"int8": functools.partial(_to_int8, reduce_range), "float16": _to_float16}
    if dtype not in forms:
        raise ValueError(f"quantize_dynamic: expected dtype 'int8' or 'float16', got {dtype!r}.")
    return {name: forms[dtype](cell) for name, cell in params.items()}


def to_float(qparams: QuantizedParams) -> dict[str, dict[str, jax.Array]]:
    """Returns the float32 GRUParams that quantized weights stand for, w = scale * q; `gru_jax.gru` takes them.

    Raises:
      TypeError: if qparams are not QuantizedParams.
      ValueError: if their arrays do not fit together.

    Example:
      >>> from gru_jax import GRUConfig, init_params
      >>> params = init_params(jax.random.key(0), GRUConfig(10, 20))
      >>> floats = to_float(quantize_dynamic(params))
      >>> bool(jnp.abs(floats["l0"]["kernel_hh"] - params["l0"]["kernel_hh"]).max() < 0.001)
      True
    """
    check_quantized("to_float", qparams)
    return {name: _to_float(cell) for name, cell in qparams.items()}


def check_quantized(function: str, qparams: QuantizedParams) -> GRUConfig:
    """Reads the sizes off quantized parameters, and checks that their arrays fit together."""
    is_dict = isinstance(qparams, Mapping)
    config = check_params(function, without_scales(qparams) if is_dict else qparams)
    kinds = {str(cell[key].dtype) for cell in qparams.values() for key in ("kernel_ih", "kernel_hh")}
    if kinds not in ({"int8"}, {"float16"}):
        raise TypeError(
            f"{function}: expected every kernel in int8, or every one in float16, got {' and '.join(sorted(kinds))}. "
            "quantize_dynamic makes them of float parameters."
        )
    extras = _EXTRAS if kinds == {"int8"} else {}
    expected, actual = {}, {}
    for name, cell in qparams.items():
        held = {key: getattr(cell[key], "shape", ()) for key in cell if key in _EXTRAS}
        columns = (3 * config.hidden_size,)
        actual |= {f"{name}/{key}": shape for key, shape in held.items()}
        expected |= {
            f"{name}/{key}": columns if key.startswith("scale") and held.get(key) == columns else () for key in extras
        }
        dtypes = {key: jnp.float32 for key in cell if key.startswith("bias")} | extras
        for key, dtype in dtypes.items():
            if key in cell and getattr(cell[key], "dtype", None) != dtype:
                kind = getattr(cell[key], "dtype", type(cell[key]).__name__)
                raise TypeError(f"{function}: expected {name}/{key} of dtype {jnp.dtype(dtype)}, got {kind}.")
    _shapes.check_keys(function, "params", expected, actual)
    return config


def without_scales(qparams: QuantizedParams) -> dict[str, Any]:
    """Returns only the kernels and biases, as `check_params` takes them: float shapes stand in for int8 kernels."""
    return {
        name: {key: _float_shape(a) for key, a in cell.items() if key not in _EXTRAS}
        if isinstance(cell, Mapping)
        else cell
        for name, cell in qparams.items()
    }


def _float_shape(array: jax.Array) -> jax.Array | jax.ShapeDtypeStruct:
    is_int8 = hasattr(array, "shape") and array.dtype == jnp.int8
    return jax.ShapeDtypeStruct(array.shape, jnp.float16) if is_int8 else array


def _to_int8(reduce_range: bool, cell: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    (kernel_ih, scale_ih), (kernel_hh, scale_hh) = (quantize_weights(cell[f"kernel_{half}"]) for half in ("ih", "hh"))
    scales = {"scale_ih": scale_ih, "scale_hh": scale_hh, "reduce_range": jnp.array(reduce_range)}
    return {"kernel_ih": kernel_ih, "kernel_hh": kernel_hh, **_biases(cell), **scales}


def _to_float16(cell: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    kernels = {key: cell[key].astype(jnp.float32) for key in ("kernel_ih", "kernel_hh")}
    rounded = {key: jnp.clip(a, -FLOAT16_MAX, FLOAT16_MAX).astype(jnp.float16) for key, a in kernels.items()}
    return {**rounded, **_biases(cell)}


def _to_float(cell: QuantizedCell) -> dict[str, jax.Array]:
    scale = {half: cell.get(f"scale_{half}", 1.0) for half in ("ih", "hh")}
    kernels = {f"kernel_{half}": cell[f"kernel_{half}"].astype(jnp.float32) * scale[half] for half in scale}
    return {**kernels, **_biases(cell)}


def _biases(cell: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {key: a.astype(jnp.float32) for key, a in cell.items() if key.startswith("bias")}
