"""safetensors: tensors by name, read one at a time; several files beside an index; and the file that `save` writes."""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gru_jax.params import GRUConfig, GRUParams, check_declared, check_params
from gru_jax.weights.found import Tensor, require
from gru_jax.weights.replacing import replacing

QUANTIZED_KEY = "gru_jax.quantized"  # of the metadata; a float GRU's config stands at "gru_jax"
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool"}
_DTYPES |= {
    f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
}


def open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a file, not read yet, and its metadata. Raises ValueError where it is damaged."""
    tensors = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            part = file.get_slice(name)
            dtype = _DTYPES.get(str(part.get_dtype()), str(part.get_dtype()))
            tensors[name] = Tensor(tuple(part.get_shape()), dtype, functools.partial(_read, path, name, dtype))
        return tensors, file.metadata() or {}


def open_index(
    path: Path, weight_map: Mapping[str, Any], open_shard: Callable[[Path], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Returns the tensors of all files that an index names.

    Args:
      path: of the index.
      weight_map: what it holds: tensor -> file.
      open_shard: opens one of the files.

    Raises:
      ValueError: if a file is not directly beside the index, or does not hold what the index says.
      FileNotFoundError: if files are missing.
    """
    shards = list(dict.fromkeys(weight_map.values())) if all(isinstance(s, str) for s in weight_map.values()) else []
    escaping = [shard for shard in shards if not _is_beside(path, shard)]
    if escaping or not shards:
        raise ValueError(f"{path}: expected the names of files beside it, got {escaping[:5] or 'none'}.")
    missing = [shard for shard in shards if not (path.parent / shard).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path}: of its {len(shards)} files these are missing beside it: {', '.join(missing)}."
        )
    held = {shard: open_shard(path.parent / shard) for shard in shards}
    lost = [name for name, shard in weight_map.items() if name not in held[shard]]
    twice = sum(map(len, held.values())) - len(set().union(*held.values()))
    if lost or twice:
        what = f"{lost[0]} is not in {weight_map[lost[0]]}" if lost else "a tensor is in two of its files"
        raise ValueError(f"{path}: its files do not hold what it says: {what}.")
    return {name: tensor for shard in held.values() for name, tensor in shard.items()}


def save(path: str | os.PathLike[str], config: GRUConfig, params: GRUParams) -> None:
    """Writes a GRU to a safetensors file, from which `load` gives back the same config and parameters.

    The file is written under a temporary name and then renamed: a crash leaves whatever was at `path` before.

    Args:
      path: of the file. One that exists is replaced.
      config: the GRU's, in full: it stands in the file's metadata.
      params: GRUParams, under the names "l0.kernel_ih", "l0.kernel_hh", ... in their own dtypes.

    Raises:
      TypeError: if the arguments are of the wrong kind.
      ValueError: if `params` are not those of a GRU of `config`.
      ImportError: if safetensors is not installed.

    Example:
      >>> import jax, tempfile
      >>> from gru_jax import init_params, load
      >>> config = GRUConfig(10, 20, batch_first=True)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/gru.safetensors", config, init_params(jax.random.key(0), config))
      ...     loaded, params = load(f"{folder}/gru.safetensors")
      >>> loaded == config, params["l0"]["kernel_ih"].shape
      (True, (10, 60))
    """
    declared = json.dumps(plain_config("save", config, params))
    write(path, params, {"format": "flax", "gru_jax": declared})


def write(path: str | os.PathLike[str], params: GRUParams, metadata: dict[str, str]) -> None:
    """Writes a tree of arrays under joined names, whole or not at all."""
    arrays = {f"{cell}.{key}": np.asarray(a, order="C") for cell, keys in params.items() for key, a in keys.items()}
    library = require("safetensors.numpy", "safetensors")
    try:
        data = library.save(arrays, metadata)
    except (KeyError, require("safetensors", "safetensors").SafetensorError) as error:
        dtypes = sorted({str(a.dtype) for a in arrays.values()})
        raise TypeError(f"save: safetensors can't hold these dtypes: {', '.join(dtypes)}. {error}") from error
    with replacing(path) as made:
        made.write_bytes(data)


def plain_config(function: str, config: GRUConfig, params: GRUParams) -> dict[str, Any]:
    """Returns `plain` of the config. Raises unless `params` are exactly those of a GRU of it."""
    declared = plain(function, config)
    check_params(function, params)
    check_declared(function, config, params)
    return declared


def plain(function: str, config: GRUConfig) -> dict[str, Any]:
    """Returns a config in Python's own numbers, as JSON and msgpack have them."""
    if not isinstance(config, GRUConfig):
        raise TypeError(f"{function}: expected a GRUConfig, got {type(config).__name__}.")
    return {key: getattr(value, "item", lambda value=value: value)() for key, value in vars(config).items()}


def is_config(entry: Any) -> bool:
    """Whether this is what `plain` returns, or that with one name damaged."""
    fields = {field.name for field in dataclasses.fields(GRUConfig)}
    return isinstance(entry, Mapping) and len(entry) == len(fields) and len(fields - entry.keys()) <= 1


def refuse_lost_config(path: Path, entries: Mapping[str, Any], key: str) -> None:
    """Raises ValueError where a config stands at another key: without it the GRU might be another function."""
    lost = [name for name, entry in entries.items() if name != key and is_config(entry)]
    if lost:
        raise ValueError(f"{path}: the config of a GRU stands at {lost[0]!r}, where {key!r} is its place.")


def _is_beside(path: Path, name: str) -> bool:
    """Whether a name is that of a file in the folder of `path`, or in the one that `path` itself is a link into."""
    if name != Path(name).name or name in ("", "..") or "\\" in name or "\0" in name:
        return False
    try:  # The Hugging Face cache links an index and its files into one folder of blobs.
        return (path.parent / name).resolve().parent in {path.parent.resolve(), path.resolve().parent}
    except (OSError, RuntimeError):  # a link to itself
        return False


def _read(path: Path, name: str, dtype: str) -> np.ndarray:
    # To the library's NumPy, bfloat16 is unknown; Flax has it.
    with _opened(path, "flax" if dtype == "bfloat16" else "numpy") as file:
        try:
            array = np.asarray(file.get_tensor(name))
        except (TypeError, AttributeError) as error:
            raise TypeError(f"{path}: {name} is of dtype {dtype}, which NumPy does not have.") from error
    if array.dtype.name != dtype:
        raise TypeError(f"{path}: {name} is of dtype {dtype}, but was read as {array.dtype.name}.")
    return array


@contextlib.contextmanager
def _opened(path: Path, framework: str = "numpy") -> Iterator[Any]:
    library = require("safetensors", "safetensors")
    try:
        with library.safe_open(path, framework=framework) as file:
            yield file
    except library.SafetensorError as error:
        raise ValueError(f"{path}: damaged or truncated, no valid safetensors file: {error}.") from error
