"""Opens any file of trained weights and finds the GRUs in it."""

import contextlib
import difflib
import functools
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gru_jax.params import GRUConfig
from gru_jax.weights import arrays, bundles, keras, onnx, torch_files
from gru_jax.weights.found import Contents, Found, Params, Tensor
from gru_jax.weights.safetensors import QUANTIZED_KEY, open_index, open_safetensors, refuse_lost_config
from gru_jax.weights.search import listed, search
from gru_jax.weights.signatures import FORMATS, kind_of, refuse_tensorflow


def load(
    path: str | os.PathLike[str], prefix: str | None = None, names: Mapping[str, str] | None = None
) -> tuple[GRUConfig, Params]:
    """Loads a trained GRU from a file of any known format.

    Args:
      path: a file of `save`; of PyTorch, safetensors or the index of several, ONNX, Keras, NumPy (.npz) or Flax
        (msgpack); an Orbax folder; or a .tar, .tar.gz or .zip around one of them.
      prefix: where the GRU is in the file, "encoder.rnn."; the last dot may be left out. None for the only one.
      names: other names for tensors, {"enc_w_ih": "encoder.weight_ih"}, where they do not follow a known convention.

    Returns:
      (config, params). A file of `save` gives back its whole config. In others `batch_first` and `dropout` are mostly
      not written, and keep their defaults.

    Raises:
      ValueError: if the file is damaged or hostile, or of no known format; if it holds no GRU, or several and no
        prefix is given, or none at the prefix; if what is there can't be imported, and why.
      TypeError: if tensors are not floating.
      OSError: if the file can't be read.
      ImportError: if the package that reads the format is not installed.

    Warns:
      UserWarning: for each thing that must be done besides `gru(params, x)` to get the original's numbers, and for
        parameters that are NaN or infinite.

    Example:
      >>> import tempfile
      >>> cell = {"weight_ih": np.zeros((60, 10), np.float32), "weight_hh": np.zeros((60, 20), np.float32)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(f"{folder}/model.npz", **{f"encoder.{name}": array for name, array in cell.items()})
      ...     config, params = load(f"{folder}/model.npz")
      >>> config.hidden_size, params["l0"]["kernel_hh"].shape
      (20, (20, 60))
    """
    found = choose(path, open_checkpoint(path, names), prefix)[1]
    params = found.read()
    for note in found.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    for name in not_finite(params):
        warnings.warn(f"{path}: {name} holds NaN or infinity.", stacklevel=2)
    return found.config, params


def open_checkpoint(path: str | os.PathLike[str], names: Mapping[str, str] | None = None) -> Contents:
    """Opens a file or folder of weights. The arguments and errors are those of `load`; tensors are not read yet."""
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, names)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder.")
    if not path.is_file():
        raise ValueError(f"{path}: neither a file nor a folder.")
    kind = kind_of(path)
    if kind is None:
        raise ValueError(f"{path}: of no known format. Known are {FORMATS}.")
    if kind in ("zip", "tar", "tar.gz", "gz"):
        return bundles.open_bundle(path, kind, functools.partial(_open_member, names=names))
    return _open_file(path, kind, names)


def choose(path: str | os.PathLike[str], contents: Contents, prefix: str | None) -> tuple[str, Found]:
    """Returns the GRU at a prefix, or the only one, with its full prefix. Raises ValueError where that is none."""
    grus = contents.grus
    if prefix is None:
        if len(grus) == 1:
            return next(iter(grus.items()))
        if grus:
            raise ValueError(f"{path}: it holds {len(grus)} GRUs: name one by its prefix, {listed(grus)}.")
        reasons = "".join(f" {name or 'At its top'}: {why}" for name, why in contents.refused.items())
        raise ValueError(f"{path}: no GRU in this file ({contents.format}).{reasons}")
    for key in (prefix, f"{prefix}."):
        if key in grus:
            return key, grus[key]
        if key in contents.refused:
            raise ValueError(f"{path}: {key}: {contents.refused[key]}")
    near = difflib.get_close_matches(prefix, list(grus), 5, 0.4) or list(grus)
    there = f"The nearest: {listed(near)}." if near else "It holds none."
    raise ValueError(f"{path}: no GRU at prefix {prefix!r}. {there}")


def not_finite(params: Params) -> list[str]:
    """Returns the names of the parameters that hold NaN or infinity: "l0/kernel_ih"."""
    flat = [(f"{cell}/{key}", array) for cell, ours in params.items() for key, array in ours.items()]
    return [name for name, array in flat if not np.isfinite(np.asarray(array, np.float32)).all()]


def _open_folder(path: Path, names: Mapping[str, str] | None) -> Contents:
    refuse_tensorflow(path)
    inside = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    if any(child.name in arrays.ORBAX_FILES for child in inside):
        return search(path, "Orbax", *arrays.open_orbax(path), names)
    files = [child for child in inside if child.name.endswith(".index.json")]
    files = files or [child for child in inside if _is_known(child)]
    if len(files) == 1:
        return open_checkpoint(files[0], names)
    held = [f"{child.name}/" if child.is_dir() else child.name for child in files or inside]
    which = "Name one of them." if files else f"Known are {FORMATS}."
    raise ValueError(f"{path}: expected one file of weights in this folder, found {listed(held) or 'nothing'}. {which}")


def _is_known(path: Path) -> bool:
    """Whether something in a folder may be meant by the folder's name."""
    try:
        if path.is_dir():
            return any((path / name).exists() for name in arrays.ORBAX_FILES)
        return path.is_file() and kind_of(path) not in (None, "index")
    except ValueError:
        return False


def _open_member(path: Path, names: Mapping[str, str] | None) -> Contents | None:
    """Opens a file out of an archive; None where it is no file of weights."""
    kind = kind_of(path)
    if kind in ("zip", "tar", "tar.gz", "gz"):
        raise ValueError(f"{path}: an archive inside an archive. Unpack the outer one first.")
    return None if kind in (None, "index") else _open_file(path, kind, names)


def _open_file(path: Path, kind: str, names: Mapping[str, str] | None) -> Contents:
    if kind in ("keras", "onnx"):
        if names:
            raise ValueError(f"{path}: the GRUs of this format are found by their layers: it has no names to map.")
        return keras.open_keras(path) if kind == "keras" else onnx.open_onnx(path)
    return search(path, *_open_tensors(path, kind), names)


def _open_tensors(path: Path, kind: str) -> tuple[str, dict[str, Tensor], Any]:
    """Returns the format, the tensors, and the config where gru_jax has written one."""
    if kind == "torch":
        return *torch_files.open_torch(path), None
    if kind == "npz":
        return "NumPy, npz", arrays.open_npz(path), None
    if kind == "msgpack":
        return "Flax, msgpack", *arrays.open_msgpack(path)
    if kind == "index":
        weight_map = _json(path, path.read_text(encoding="utf-8", errors="replace")).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{path}: expected the index of several files of weights, a JSON object with weight_map.")
        tensors = open_index(path, weight_map, _open_shard)
        return f"an index of {len(set(weight_map.values()))} files", tensors, None
    tensors, metadata = open_safetensors(path)
    if QUANTIZED_KEY in metadata:
        raise ValueError(f"{path}: quantized parameters, which quantized.load loads.")
    others = {}
    for name in metadata.keys() - {"gru_jax"}:
        with contextlib.suppress(ValueError):  # Metadata of others need not be JSON.
            others[name] = _json(path, metadata[name])
    refuse_lost_config(path, others, "gru_jax")
    return "safetensors", tensors, _json(path, metadata["gru_jax"]) if "gru_jax" in metadata else None


def _open_shard(path: Path) -> dict[str, Tensor]:
    kind = kind_of(path)
    if kind not in ("safetensors", "torch"):
        raise ValueError(f"{path}: expected a safetensors or PyTorch file, as the index beside it says.")
    _, tensors, config = _open_tensors(path, kind)
    if config is not None:
        raise ValueError(f"{path}: a file of save, with a config of its own: open it by itself, not by an index.")
    return tensors


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, no valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: damaged: expected a JSON object, got {type(value).__name__}.")
    return value
