"""Opens a model in several files by its index, model.safetensors.index.json: which file holds which tensor."""

import json
from pathlib import Path

from gru_jax.weights.containers.pytorch import open_torch
from gru_jax.weights.containers.safetensors import open_safetensors
from gru_jax.weights.containers.signatures import kind_of
from gru_jax.weights.found import Tensors, naming

_OPEN = {"safetensors": open_safetensors, "torch": open_torch}


def open_index(path: Path) -> Tensors:
    """Returns the tensors of all files that an index names.

    Raises:
      ValueError: if it is no index, or a file is not directly beside it, or does not hold what the index says.
      FileNotFoundError: if files are missing.
    """
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8", errors="replace"))["weight_map"]
        shards = list(dict.fromkeys(weight_map.values()))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ValueError("expected the index of several files of weights, a JSON object with weight_map.") from error
    escaping = [shard for shard in shards if not _is_beside(path, shard)]
    if escaping or not shards:
        raise ValueError(f"expected the names of files beside it, got {escaping[:5] or 'none'}.")
    missing = [shard for shard in shards if not (path.parent / shard).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path}: of its {len(shards)} files these are missing beside it: {', '.join(missing)}."
        )
    held = {shard: _open_shard(path.parent / shard).by_name for shard in shards}
    lost = [name for name, shard in weight_map.items() if name not in held[shard]]
    twice = sum(map(len, held.values())) - len(set().union(*held.values()))
    if lost or twice:
        what = f"{lost[0]} is not in {weight_map[lost[0]]}" if lost else "a tensor is in two of its files"
        raise ValueError(f"its files do not hold what it says: {what}.")
    tensors = {name: tensor for shard in held.values() for name, tensor in shard.items()}
    return Tensors(f"an index of {len(shards)} files", tensors)


def _open_shard(path: Path) -> Tensors:
    with naming(path.name):
        kind = kind_of(path)
        if kind not in _OPEN:
            raise ValueError("expected a safetensors or PyTorch file, as the index beside it says.")
        tensors = _OPEN[kind](path)
        if tensors.config is not None:
            raise ValueError("a file of save, with a config of its own: open it by itself, not by an index.")
        return tensors


def _is_beside(path: Path, name: object) -> bool:
    """Whether a name is that of a file in the folder of `path` or, if `path` is a link, in the folder of its target."""
    if not isinstance(name, str) or name != Path(name).name or name in ("", "..") or "\\" in name or "\0" in name:
        return False
    try:  # The Hugging Face cache links an index and its files into one folder of blobs.
        return (path.parent / name).resolve(strict=True).parent in {path.parent.resolve(), path.resolve().parent}
    except FileNotFoundError:  # `open_index` lists all missing files in one error.
        return True
    except (OSError, RuntimeError):  # a link to itself
        return False
