"""Reads HDF5 files that are not trusted: groups, attributes and datasets, with h5py.

Claimed sizes are compared with the file's own size before anything is allocated. Only hard links are followed: soft and
external links, external storage and virtual datasets can lead to other files.
"""

import contextlib
import math
import mmap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gru_jax.weights.containers.zips import refuse_bomb
from gru_jax.weights.found import require


class Root(NamedTuple):
    """An open file's root group.

    Attributes:
      group: the h5py group.
      size: the size of the file, in bytes.
    """

    group: Any
    size: int


@contextlib.contextmanager
def opened(source: Any, content: bytes | mmap.mmap) -> Iterator[Root]:
    """Opens a binary file, whose bytes are `content`. Raises ValueError, or ImportError if h5py is not installed."""
    h5py = require("h5py", "keras")
    _check_heaps(content)
    with guard("The HDF5 file"):
        file = h5py.File(source, "r")
    try:
        with guard("The HDF5 file"):
            widths = file.id.get_create_plist().get_sizes()
        if widths != (8, 8):
            raise ValueError(f"The HDF5 file has addresses and lengths of {widths} bytes, where Keras writes (8, 8).")
        yield Root(file, len(content))
    finally:
        with contextlib.suppress(Exception):  # closing a damaged file can fail, too
            file.close()


def _check_heaps(content: bytes | mmap.mmap) -> None:
    """Raises ValueError if the objects of a global heap, where HDF5 keeps texts, don't fill it exactly.

    The HDF5 library would walk through such a heap forever, and nothing in Python can stop it. A heap is a header of 16
    bytes and then objects, each with a header of 16 bytes, too: HDF5 File Format Specification 3.0, III.E.
    """
    number = lambda start, width: int.from_bytes(content[start : start + width], "little")
    heap = content.find(b"GCOL\1")
    while heap >= 0:
        size, place = number(heap + 8, 8), 16
        while size <= len(content) - heap and place + 16 <= size:
            length = number(heap + place + 8, 8)
            length = 16 + (length + 7) // 8 * 8 if number(heap + place, 2) else length  # object 0 is the free space
            if not 16 <= length <= size - place:
                raise ValueError(f"The HDF5 file is damaged: its global heap at byte {heap} doesn't add up.")
            place += length
        heap = content.find(b"GCOL\1", heap + 1)


def child(root: Root, path: str) -> Any:
    """Returns the group or dataset at a path."""
    h5py = require("h5py", "keras")
    node = root.group
    for name in path.split("/"):
        with guard(path):
            link = node.get(name, getlink=True)
            node = node[name] if isinstance(link, h5py.HardLink) else None
        if node is None:
            kind = type(link).__name__
            raise ValueError(f"{path} is {'missing' if link is None else f'a {kind}, which is not followed'}.")
    return node


def attribute(root: Root, path: str, name: str) -> Any:
    """Returns an attribute of the group or dataset at a path, or of the root at ""; None where there is none."""
    node = child(root, path) if path else root.group
    with guard(f"The attribute {name}"):
        if name not in node.attrs:
            return None
        kind = node.attrs.get_id(name)
        claimed = math.prod(kind.shape or ()) * kind.dtype.itemsize
    if claimed > root.size:
        raise ValueError(f"The attribute {name} claims {claimed} bytes, in a file of {root.size}: it is damaged.")
    with guard(f"The attribute {name}"):
        return node.attrs[name]


def text(value: Any) -> str:
    """Returns a string that HDF5 holds as bytes or text."""
    if not isinstance(value, str | bytes):
        raise ValueError(f"Text is expected where the file holds {type(value).__name__}: it is damaged.")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def array(root: Root, path: str, shape: Sequence[int | None]) -> np.ndarray:
    """Reads a dataset of `shape`, where None is any size, after checking shape, dtype and that it is in this file."""
    dataset = child(root, path)
    with guard(path):
        actual, dtype = dataset.shape or (), dataset.dtype
        elsewhere = dataset.external or dataset.is_virtual
        stored = min(dataset.id.get_storage_size(), root.size)
    if dtype.kind == "V" and dtype.itemsize == 2:  # HDF5 has no bfloat16; Keras marks it
        mark = attribute(root, path, "dtype")
        dtype = np.dtype(jnp.bfloat16) if mark is not None and text(mark) == "bfloat16" else dtype
    check(path, actual, dtype, shape)
    claimed = math.prod(actual) * dtype.itemsize
    refuse_bomb(claimed, stored, what=path)
    if elsewhere or not stored:
        where = "in another file" if elsewhere else f"in {stored} bytes"
        raise ValueError(f"{path} claims {claimed} bytes that would lie {where}: it is not read.")
    with guard(path):
        numbers = np.asarray(dataset[()])
        return numbers.view(dtype) if numbers.dtype.kind == "V" else numbers.astype(dtype.newbyteorder("="))


def check(name: str, actual: Sequence[int], dtype: Any, shape: Sequence[int | None]) -> None:
    """Raises ValueError unless an array is floating and of `shape`, where None is any size above 0."""
    fits = len(actual) == len(shape) and all(
        a == s or (s is None and a > 0) for a, s in zip(actual, shape, strict=True)
    )
    if not fits or not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize > 8:
        wanted = ", ".join("I" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} is {dtype} {list(actual)}, where its config asks for floating [{wanted}].")


def datasets(root: Root) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns the shape and dtype of every dataset."""
    held: dict[str, tuple[tuple[int, ...], str]] = {}

    def keep(name: str, node: Any) -> None:
        if hasattr(node, "shape"):
            held[name] = node.shape or (), str(node.dtype)

    with guard("The list of its datasets"):
        root.group.visititems(keep)  # follows only hard links, and visits each object once
    return held


@contextlib.contextmanager
def guard(what: str) -> Iterator[None]:
    """Turns what h5py raises on a damaged file, which is anything from KeyError to SystemError, into ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} can't be read: {error}") from error
