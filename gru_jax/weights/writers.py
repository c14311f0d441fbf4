"""Every format that a GRU can be written in: the table behind `gru-jax convert`."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gru_jax.params import GRUConfig, GRUParams
from gru_jax.weights import saving
from gru_jax.weights.jax.flax import save_linen, save_nnx
from gru_jax.weights.keras.exporter import save_keras
from gru_jax.weights.onnx.exporter import save_onnx
from gru_jax.weights.pytorch.exporter import save as save_torch
from gru_jax.weights.replacing import replacing


class Format(NamedTuple):
    """A format to write.

    Attributes:
      title: what it is, for messages: "an ONNX model".
      suffixes: the suffixes of a path that choose this format; "" for a folder.
      save: writes a GRU, given (path, config, params).
    """

    title: str
    suffixes: tuple[str, ...]
    save: Callable[[Path, GRUConfig, GRUParams], None]


FORMATS = {
    "safetensors": Format("Flax parameters, safetensors", (".safetensors",), saving.save),
    "msgpack": Format("Flax parameters, msgpack", (".msgpack",), saving.save_msgpack),
    "orbax": Format("Flax parameters, an Orbax folder", ("",), saving.save_orbax),
    "torch": Format("a state_dict of torch.nn.GRU", (".pt", ".pth", ".bin", ".ckpt"), save_torch),
    "onnx": Format("an ONNX model", (".onnx",), save_onnx),
    "keras": Format("a Keras model", (".keras",), save_keras),
    "flax": Format("flax.linen.GRUCell parameters, msgpack", (), save_linen),
    "nnx": Format("flax.nnx.GRUCell parameters, msgpack", (), save_nnx),
}


def format_of(path: Path) -> str:
    """Returns the format that a path's suffix names. Raises ValueError where it names none."""
    for name, form in FORMATS.items():
        if path.suffix.lower() in form.suffixes:
            return name
    known = ", ".join(suffix for form in FORMATS.values() for suffix in form.suffixes if suffix)
    raise ValueError(f"{path}: expected a suffix of {known}, or none for an Orbax folder; or name the format: --to.")


def write(name: str, path: Path, config: GRUConfig, params: GRUParams) -> None:
    """Writes a GRU in the format `name`. If that fails, whatever was at `path` before stays."""
    with replacing(path) as made:
        FORMATS[name].save(made, config, params)
