"""Orbax checkpoints: folders of arrays, which TensorStore reads. An array's name is its path, joined by dots."""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gru_jax.weights.containers.zips import refuse_bomb
from gru_jax.weights.declared import KEY, refuse_lost_config
from gru_jax.weights.found import Tensor, Tensors


def open_orbax(path: Path) -> Tensors:
    """Returns the arrays of an Orbax checkpoint, not read yet, and the config that `saving.save_orbax` wrote there.

    A step that a CheckpointManager wrote has one folder per item. The names of the arrays then begin with the item's.
    """
    items = [path] if (path / "_METADATA").is_file() else sorted(item.parent for item in path.glob("*/_METADATA"))
    if not items:
        raise ValueError("an Orbax checkpoint without a tree of arrays: it has no file _METADATA.")
    tensors = {}
    for item in items:
        start = "" if item == path else f"{item.name}."
        tensors |= {f"{start}{name}": tensor for name, tensor in _orbax_item(item).items()}
    has_config = (path / "_CHECKPOINT_METADATA").is_file()
    with _orbax_errors():
        written = json.loads((path / "_CHECKPOINT_METADATA").read_bytes())["custom_metadata"] if has_config else None
    refuse_lost_config(written or {}, KEY)
    return Tensors("Orbax", tensors, (written or {}).get(KEY))


def write_orbax(path: Path, tree: Any, metadata: Mapping[str, Any]) -> None:
    """Writes a tree of arrays as a new folder, with custom metadata."""
    import orbax.checkpoint as ocp

    if path.exists():
        raise FileExistsError(f"{path}: exists; Orbax writes a new folder.")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree, custom_metadata=dict(metadata))


def _orbax_item(path: Path) -> dict[str, Tensor]:
    """Returns the arrays of one tree, not read yet. It uses TensorStore: Orbax would read them all or log to stderr."""
    import tensorstore

    with _orbax_errors():
        metadata = json.loads((path / "_METADATA").read_bytes())
        kinds = ("jax.Array", "np.ndarray", "scalar")
        leaves = [leaf for leaf in metadata["tree_metadata"].values() if leaf["value_metadata"]["value_type"] in kinds]
        names = [".".join(str(key["key"]) for key in leaf["key_metadata"]) for leaf in leaves]
        # Missing data means zeros, unless the checkpoint stores zeros, too: then the data is lost.
        zeros = not metadata.get("store_array_data_equal_to_fill_value", False)
        driver = {"driver": "zarr3" if metadata.get("use_zarr3") else "zarr", "fill_missing_data_reads": zeros}
        is_ocdbt = (path / "manifest.ocdbt").exists()
        folder = {"driver": "file", "path": f"{path.absolute()}/"}
        stores = {}
        for name in names:
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"the path of its array {name!r} escapes from the folder")
            at = {"driver": "ocdbt", "base": folder} if is_ocdbt else folder
            spec = driver | {"kvstore": at | {"path": at.get("path", "") + f"{name}/"}}
            stores[name] = tensorstore.open(spec, open=True, read=True).result()
    if len(stores) < len(names):
        raise ValueError("two of its arrays have the same name.")
    claimed = sum(store.size * store.dtype.numpy_dtype.itemsize for store in stores.values())
    refuse_bomb(claimed, sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))

    def read(store: Any) -> np.ndarray:
        with _orbax_errors():
            return store.read().result()

    return {
        name: Tensor(store.shape, store.dtype.name, functools.partial(read, store)) for name, store in stores.items()
    }


@contextlib.contextmanager
def _orbax_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # TensorStore and json raise errors of many kinds
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"damaged, no valid Orbax checkpoint: {said}") from error
