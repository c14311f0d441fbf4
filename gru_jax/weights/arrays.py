"""Trees of NumPy arrays in files: .npz of NumPy, msgpack of Flax, folders of Orbax; and `save` for the last two.

A leaf is named by its path, joined with dots: "params.GRUCell_0.hn.kernel".
"""

import contextlib
import functools
import json
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from gru_jax.params import GRUConfig, GRUParams
from gru_jax.weights.found import Tensor
from gru_jax.weights.safetensors import is_config, plain_config, refuse_lost_config
from gru_jax.weights.zips import BOMB_BYTES, is_bomb

ORBAX_FILES = {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"}
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# What zipfile and NumPy raise on a damaged archive.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, KeyError, OverflowError, OSError)


def open_npz(path: Path) -> dict[str, Tensor]:
    """Returns the arrays of an .npz file, not read yet.

    Raises:
      ValueError: if it is damaged, or claims to unpack to far more than it can hold.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            refuse_bomb(path, sum(info.file_size for info in members), sum(info.compress_size for info in members))
            tensors = {info.filename.removesuffix(".npy"): _npy(path, archive, info) for info in members}
    except _ZIP_ERRORS as error:
        raise ValueError(f"{path}: damaged, no valid .npz file: {error}.") from error
    if len(tensors) < len(members):
        raise ValueError(f"{path}: two of its arrays have the same name.")
    return tensors


def open_msgpack(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Returns the arrays of a file of flax.serialization, and the config if `save_msgpack` wrote it, else None."""
    from flax import serialization

    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # Flax lets through whatever msgpack, NumPy and Python raise on a damaged file.
        raise ValueError(f"{path}: damaged, no valid msgpack file of Flax: {error}.") from error
    if not isinstance(tree, Mapping):
        raise ValueError(
            f"{path}: expected a msgpack file of Flax to hold a dict of arrays, got {type(tree).__name__}."
        )
    refuse_lost_config(path, tree, "config")
    pair = tree.keys() == {"config", "params"}
    if is_config(tree.get("config")) and not pair:
        raise ValueError(
            f"{path}: expected params beside the config of a GRU, and no more, as save writes them, got {list(tree)}."
        )
    # A later version's config may have more fields, and is refused for them.
    ours = pair and (is_config(tree["config"]) or (isinstance(tree["params"], Mapping) and "l0" in tree["params"]))
    leaves = flatten(path, tree["params"] if ours else tree)
    kinds = np.ndarray | np.generic | bool | int | float
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items() if isinstance(leaf, kinds)}
    tensors = {name: Tensor(a.shape, a.dtype.name, functools.partial(np.asarray, a)) for name, a in arrays.items()}
    return tensors, tree["config"] if ours else None


def open_orbax(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Returns the arrays of an Orbax checkpoint, not read yet, and the config if `save_orbax` wrote it, else None.

    A step that a CheckpointManager wrote holds one folder an item, whose name then begins the arrays' names.
    """
    items = [path] if (path / "_METADATA").is_file() else sorted(item.parent for item in path.glob("*/_METADATA"))
    if not items:
        raise ValueError(f"{path}: an Orbax checkpoint without a tree of arrays: it has no file _METADATA.")
    tensors = {}
    for item in items:
        start = "" if item == path else f"{item.name}."
        tensors |= {f"{start}{name}": tensor for name, tensor in _orbax_item(item).items()}
    has_config = (path / "_CHECKPOINT_METADATA").is_file()
    with _orbax_errors(path):
        written = json.loads((path / "_CHECKPOINT_METADATA").read_bytes())["custom_metadata"] if has_config else None
    refuse_lost_config(path, written or {}, "gru_jax")
    return tensors, (written or {}).get("gru_jax")


def save_msgpack(path: Path, config: GRUConfig, params: GRUParams) -> None:
    """Writes {"config": ..., "params": ...} with flax.serialization."""
    from flax import serialization

    declared = plain_config("save_msgpack", config, params)
    tree = {"config": declared, "params": jax.tree.map(np.asarray, _plain(params))}
    path.write_bytes(serialization.msgpack_serialize(tree))


def save_orbax(path: Path, config: GRUConfig, params: GRUParams) -> None:
    """Writes an Orbax folder of the parameters, with the config in its custom metadata."""
    import orbax.checkpoint as ocp

    declared = plain_config("save_orbax", config, params)
    if path.exists():
        raise FileExistsError(f"{path}: exists; Orbax writes a new folder.")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), _plain(params), custom_metadata={"gru_jax": declared})


def flatten(path: Path, tree: Any) -> dict[str, Any]:
    """Returns the leaves of dicts and lists under their dotted names. It does not recurse: a file may nest deeply."""
    leaves, nodes = {}, [("", tree)]
    while nodes:
        name, node = nodes.pop()
        children: Iterable | None = None
        if isinstance(node, Mapping):
            children = node.items()
        elif isinstance(node, list | tuple):
            children = enumerate(node)
        if children is not None:
            nodes += reversed([(f"{name}.{key}" if name else str(key), child) for key, child in children])
        elif name in leaves:
            raise ValueError(f"{path}: two of its arrays have the same name, {name}.")
        else:
            leaves[name] = node
    return leaves


def refuse_bomb(path: Path, claimed: int, held: int, limit: int = BOMB_BYTES) -> None:
    """Raises ValueError where the contents are a bomb by `zips.is_bomb`."""
    if is_bomb(claimed, held, limit):
        raise ValueError(
            f"{path}: not opened: its {held:,} bytes claim to unpack to {claimed:,}, as those of a zip bomb do."
        )


def _npy(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    """Reads the header of one array."""
    try:
        with archive.open(info) as file, warnings.catch_warnings(action="ignore"):  # of headers by Python 2
            version = np.lib.format.read_magic(file)
            if version not in _NPY_HEADERS:
                return _unreadable(path, info.filename, f"of version {version} of the .npy format")
            shape, _, dtype = _NPY_HEADERS[version](file)
            start = file.tell()
    except ValueError as error:
        raise ValueError(f"{path}: {info.filename} is damaged, no valid .npy file: {error}.") from error
    if dtype.hasobject:
        return _unreadable(path, info.filename, "an array of Python objects, which may run code when read")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != info.file_size - start:
        raise ValueError(
            f"{path}: damaged: {info.filename} says {dtype.name} {list(shape)} and has {info.file_size - start} bytes."
        )
    return Tensor(shape, dtype.name, functools.partial(_read_npy, path, info))


def _read_npy(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(info) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except _ZIP_ERRORS as error:
        raise ValueError(f"{path}: {info.filename} is damaged: {error}.") from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _unreadable(path: Path, name: str, what: str) -> Tensor:
    def read() -> NoReturn:
        raise TypeError(f"{path}: {name} is {what}; it is not read.")

    return Tensor((), "object", read)


def _plain(params: GRUParams) -> dict[str, dict[str, jax.Array]]:
    return {cell: dict(arrays) for cell, arrays in params.items()}


def _orbax_item(path: Path) -> dict[str, Tensor]:
    """Reads the shapes of the arrays of one tree. TensorStore does it; Orbax would read all arrays or log to stderr."""
    import tensorstore

    with _orbax_errors(path):
        metadata = json.loads((path / "_METADATA").read_bytes())
        kinds = ("jax.Array", "np.ndarray", "scalar")
        leaves = [leaf for leaf in metadata["tree_metadata"].values() if leaf["value_metadata"]["value_type"] in kinds]
        names = [".".join(str(key["key"]) for key in leaf["key_metadata"]) for leaf in leaves]
        # Where zeros are stored like other numbers, an array without data has lost it.
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
        raise ValueError(f"{path}: two of its arrays have the same name.")
    claimed = sum(store.size * store.dtype.numpy_dtype.itemsize for store in stores.values())
    refuse_bomb(path, claimed, sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))

    def read(store: Any) -> np.ndarray:
        with _orbax_errors(path):
            return store.read().result()

    return {
        name: Tensor(store.shape, store.dtype.name, functools.partial(read, store)) for name, store in stores.items()
    }


@contextlib.contextmanager
def _orbax_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # TensorStore and json let through many kinds
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path}: damaged, no valid Orbax checkpoint: {said}") from error
