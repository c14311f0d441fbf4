"""Opens one file of weights, whose kind is known, and finds the GRUs in it."""

from collections.abc import Mapping
from pathlib import Path

from gru_jax.weights.containers.index import open_index
from gru_jax.weights.containers.msgpack import open_msgpack
from gru_jax.weights.containers.npz import open_npz
from gru_jax.weights.containers.orbax import open_orbax
from gru_jax.weights.containers.pytorch import open_torch
from gru_jax.weights.containers.safetensors import open_safetensors
from gru_jax.weights.found import Contents
from gru_jax.weights.keras.importer import open_keras
from gru_jax.weights.onnx.importer import open_onnx
from gru_jax.weights.search import search

_TENSORS = {
    "index": open_index,
    "msgpack": open_msgpack,
    "npz": open_npz,
    "orbax": open_orbax,
    "safetensors": open_safetensors,
    "torch": open_torch,
}
_MODELS = {"keras": open_keras, "onnx": open_onnx}  # they describe their layers: tensors' names do not count


def open_file(path: Path, kind: str, names: Mapping[str, str] | None) -> Contents:
    """Opens a file, or an Orbax folder, of the `kind` that `signatures.kind_of` returned. Tensors are not read yet.

    Raises:
      ValueError: if it is damaged or hostile, or `names` are given for a format that has none.
    """
    if kind not in _MODELS:
        return search(_TENSORS[kind](path), names or {})
    if names:
        raise ValueError("the GRUs of this format are found by their layers: it has no names to map.")
    return _MODELS[kind](path)
