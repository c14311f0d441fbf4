"""safetensors files: tensors by name, read one at a time."""

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gru_jax.params import GRUParams
from gru_jax.weights.declared import KEY, QUANTIZED_KEY, refuse_lost_config
from gru_jax.weights.found import Tensor, Tensors, require
from gru_jax.weights.replacing import replacing

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool"}
_DTYPES |= {
    f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
}


def open_safetensors(path: Path) -> Tensors:
    """Returns the tensors of a file, not read yet, and the config that `saving.save` wrote into its metadata.

    Raises:
      ValueError: if it is damaged, or holds quantized parameters.
    """
    tensors, metadata = open_with_metadata(path)
    if QUANTIZED_KEY in metadata:
        raise ValueError("quantized parameters, which quantized.load loads.")
    others = {}
    for name in metadata.keys() - {KEY}:
        with contextlib.suppress(ValueError):  # Metadata that others wrote need not be JSON.
            others[name] = _json(metadata[name])
    refuse_lost_config(others, KEY)
    return Tensors("safetensors", tensors, _json(metadata[KEY]) if KEY in metadata else None)


def open_with_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a file, not read yet, and its metadata. Raises ValueError where it is damaged."""
    tensors = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            part = file.get_slice(name)
            dtype = _DTYPES.get(str(part.get_dtype()), str(part.get_dtype()))
            tensors[name] = Tensor(tuple(part.get_shape()), dtype, functools.partial(_read, path, name, dtype))
        return tensors, file.metadata() or {}


def write_safetensors(path: str | os.PathLike[str], params: GRUParams, metadata: dict[str, str]) -> None:
    """Writes a tree of arrays under joined names. If that fails, whatever was at `path` before stays."""
    arrays = {f"{cell}.{key}": np.asarray(a, order="C") for cell, keys in params.items() for key, a in keys.items()}
    library = require("safetensors.numpy", "safetensors")
    try:
        data = library.save(arrays, metadata)
    except (KeyError, require("safetensors", "safetensors").SafetensorError) as error:
        dtypes = sorted({str(a.dtype) for a in arrays.values()})
        raise TypeError(f"save: safetensors can't hold these dtypes: {', '.join(dtypes)}. {error}") from error
    with replacing(path) as made:
        made.write_bytes(data)


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"damaged, no valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"damaged: expected a JSON object, got {type(value).__name__}.")
    return value


def _read(path: Path, name: str, dtype: str) -> np.ndarray:
    # With framework="numpy" safetensors can't read bfloat16; with "flax" it can.
    with _opened(path, "flax" if dtype == "bfloat16" else "numpy") as file:
        try:
            array = np.asarray(file.get_tensor(name))
        except (TypeError, AttributeError) as error:
            raise TypeError(f"{name} is of dtype {dtype}, which NumPy does not have.") from error
    if array.dtype.name != dtype:
        raise TypeError(f"{name} is of dtype {dtype}, but was read as {array.dtype.name}.")
    return array


@contextlib.contextmanager
def _opened(path: Path, framework: str = "numpy") -> Iterator[Any]:
    library = require("safetensors", "safetensors")
    try:
        with library.safe_open(path, framework=framework) as file:
            yield file
    except library.SafetensorError as error:
        raise ValueError(f"damaged or truncated, no valid safetensors file: {error}.") from error
