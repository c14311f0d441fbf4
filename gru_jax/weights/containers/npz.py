"""NumPy's .npz files: each array is read by itself. Arrays of Python objects, which could run code, are not read."""

import functools
import math
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import NoReturn

import numpy as np

from gru_jax.weights.containers.zips import listed_entries, refuse_bomb
from gru_jax.weights.found import Tensor, Tensors

_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# What zipfile and NumPy raise on a damaged archive.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, KeyError, OverflowError, OSError)


def open_npz(path: Path) -> Tensors:
    """Returns the arrays of an .npz file, not read yet.

    Raises:
      ValueError: if it is damaged, or claims to unpack to far more than it can hold.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in listed_entries(archive) if info.filename.endswith(".npy")]
            refuse_bomb(sum(info.file_size for info in members), sum(info.compress_size for info in members))
            tensors = {info.filename.removesuffix(".npy"): _npy(path, archive, info) for info in members}
    except _ZIP_ERRORS as error:
        raise ValueError(f"damaged, no valid .npz file: {error}.") from error
    if len(tensors) < len(members):
        raise ValueError("two of its arrays have the same name.")
    return Tensors("NumPy, npz", tensors)


def _npy(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    """Reads the header of one array."""
    try:
        # NumPy warns of headers that Python 2 wrote.
        with archive.open(info) as file, warnings.catch_warnings(action="ignore"):
            version = np.lib.format.read_magic(file)
            if version not in _NPY_HEADERS:
                return _unreadable(info.filename, f"of version {version} of the .npy format")
            shape, _, dtype = _NPY_HEADERS[version](file)
            start = file.tell()
    except ValueError as error:
        raise ValueError(f"{info.filename} is damaged, no valid .npy file: {error}.") from error
    if dtype.hasobject:
        return _unreadable(info.filename, "an array of Python objects, which may run code when read")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != info.file_size - start:
        raise ValueError(
            f"damaged: {info.filename} says {dtype.name} {list(shape)} and has {info.file_size - start} bytes."
        )
    return Tensor(shape, dtype.name, functools.partial(_read_npy, path, info))


def _read_npy(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(info) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except _ZIP_ERRORS as error:
        raise ValueError(f"{info.filename} is damaged: {error}.") from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _unreadable(name: str, what: str) -> Tensor:
    def read() -> NoReturn:
        raise TypeError(f"{name} is {what}; it is not read.")

    return Tensor((), "object", read)
