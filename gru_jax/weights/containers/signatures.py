"""Tells the kind of a file or folder by its first bytes and its structure, and by its suffix only if those do not."""

import gzip
import re
import zipfile
import zlib
from pathlib import Path

from gru_jax.weights.found import listed

FORMATS = (
    "PyTorch, safetensors, ONNX, Keras (.keras, .h5), NumPy (.npz), Flax (msgpack), Orbax (a folder), and a .tar, "
    ".tar.gz or .zip around them"
)
# PyTorch's format before 1.6 begins with the opcode for the protocol, and then this number of 10 bytes, pickled.
LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ARCHIVES = ("zip", "tar", "tar.gz", "gz")
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
_UNPACK = "{} archive, which gru_jax does not unpack. Unpack it first."
_FOREIGN = (  # offset, the bytes there, what a file with them is
    (0, b"GGUF", "a GGUF file of llama.cpp, which has no layout for a GRU. Take the model that it was made from."),
    (4, b"TFL3", "a TensorFlow Lite model. Take the Keras model that it was made from."),
    (4, b"ORTM", "an ORT model of onnxruntime. Take the .onnx file that it was made from."),
    (0, b"MATLAB 5.0", "a MATLAB file. Load it with scipy.io.loadmat and write its arrays with numpy.savez."),
    (0, b"\x93NUMPY", "a single NumPy array. A GRU has several: write them with numpy.savez."),
    (0, b"version https://git-lfs", "a Git LFS pointer in place of the file itself. Fetch it: git lfs pull."),
    (0, b"<!DOCTYPE", "a web page, not the file itself. Download it again."),
    (0, b"<html", "a web page, not the file itself. Download it again."),
    (0, b"BZh", _UNPACK.format("a bzip2")),
    (0, b"\xfd7zXZ", _UNPACK.format("an xz")),
    (0, b"\x28\xb5\x2f\xfd", _UNPACK.format("a zstd")),
    (0, b"7z\xbc\xaf", _UNPACK.format("a 7z")),
    (0, b"Rar!", _UNPACK.format("a RAR")),
)
_PICKLE = (
    "a Python pickle, which runs code when it is read. Where you trust it, load it where it was made and write it with "
    "torch.save(model.state_dict(), ...) or numpy.savez."
)
_TENSORFLOW = "a TensorFlow SavedModel or checkpoint. Write the model as .keras: keras.Model.save."


def identify(path: Path) -> tuple[Path, str]:
    """Returns the path and its kind. For a folder that is no checkpoint itself: the one file of weights in it.

    Raises:
      FileNotFoundError: if there is nothing at the path.
      ValueError: if it is of no known kind, or a folder that holds no file of weights, or several.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder.")
    if not (path.is_file() or path.is_dir()):
        raise ValueError("neither a file nor a folder.")
    kind = kind_of(path)
    if kind:
        return path, kind
    if path.is_file():
        raise ValueError(f"of no known format. Known are {FORMATS}.")
    inside = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    files = [child for child in inside if child.name.endswith(".index.json")]
    files = files or [child for child in inside if _is_known(child)]
    if len(files) == 1:
        return files[0], kind_of(files[0]) or "index"
    held = [f"{child.name}/" if child.is_dir() else child.name for child in files or inside]
    which = "Name one of them." if files else f"Known are {FORMATS}."
    raise ValueError(f"expected one file of weights in this folder, found {listed(held) or 'nothing'}. {which}")


def _is_known(path: Path) -> bool:
    """Whether something in a folder is a file of weights. JSON files do not count, since few of them are an index."""
    try:
        return (path.is_dir() or path.is_file()) and kind_of(path) not in (None, "index")
    except ValueError:
        return False


def kind_of(path: Path) -> str | None:
    """Returns what kind of weights, or of archive, a file or a folder holds.

    Returns:
      "torch", "safetensors", "index", "npz", "msgpack", "orbax", "keras", "onnx", or one of `ARCHIVES`; None for
      anything else.

    Raises:
      ValueError: if the file is empty, or of a known kind that gru_jax can't open.
    """
    if path.is_dir():
        if (path / "saved_model.pb").exists() or any(path.glob("*.data-?????-of-?????")):
            raise ValueError(_TENSORFLOW)
        return "orbax" if any((path / name).exists() for name in _ORBAX) else None
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError("the file is empty.")
    for offset, magic, what in _FOREIGN:
        if head[offset:].startswith(magic):
            raise ValueError(what)
    return _by_magic(path, head) or _by_suffix(path, head)


def _by_magic(path: Path, head: bytes) -> str | None:
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _kind_of_zip(path)
    if head.startswith(b"\x1f\x8b"):
        return _kind_of_gzip(path)
    if _is_tar(head):
        return "tar"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and len(head) > 1:
        if head[2:].startswith(LEGACY_TORCH):
            return "torch"
        raise ValueError(_PICKLE)
    if head[4:9] == b"\0\0\0\0{":  # a length below 4 GiB, then JSON
        return "safetensors"
    return None


def _by_suffix(path: Path, head: bytes) -> str | None:
    """Returns the kind of a file without magic bytes, or of one that has lost them."""
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return "safetensors"
    if suffix in (".pkl", ".pickle", ".joblib"):
        raise ValueError(_PICKLE)
    if suffix in (".pb", ".index") or re.fullmatch(r"\.data-\d{5}-of-\d{5}", suffix):
        raise ValueError(_TENSORFLOW)
    if suffix == ".onnx" or re.match(rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a\x42]", head):  # ModelProto.ir_version
        return "onnx"
    if head.lstrip()[:1] == b"{" and suffix == ".json":
        return "index"
    if suffix == ".msgpack" or 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):  # a map that is not empty
        return "msgpack"
    return None


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OverflowError, OSError) as error:
        raise ValueError(f"a damaged or truncated zip archive: {error}.") from error
    if {"config.json", "model.weights.h5"} <= names:
        return "keras"
    if any(re.fullmatch(r"([^/]+/)?data\.pkl", name) for name in names):
        return "torch"
    return "npz" if any(name.endswith(".npy") for name in names) else "zip"


def _kind_of_gzip(path: Path) -> str:
    try:
        with gzip.open(path) as file:
            return "tar.gz" if _is_tar(file.read(512)) else "gz"
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"a damaged or truncated gzip file: {error}.") from error


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"
