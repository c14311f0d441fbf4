"""PyTorch's files: what torch.save writes, as a zip or as a bare pickle, and what torch.jit.save writes.

torch.load reads the first two, always with weights_only=True: it makes only tensors and plain containers, and its error
names anything else that a pickle asks for. torch.jit.load would run a TorchScript archive, so torchscript.py reads it.
"""

import os
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gru_jax.weights.containers import torchscript, zips
from gru_jax.weights.containers.signatures import LEGACY_TORCH
from gru_jax.weights.found import Tensor, Tensors, require
from gru_jax.weights.replacing import replacing

_ZIP = b"PK\x03\x04"
_MOST_NAMES = 10_000_000  # characters in names plus entries of dicts and lists: a large checkpoint has a tenth of it


def open_torch(path: str | os.PathLike[str]) -> Tensors:
    """Opens a file of torch.save or torch.jit.save; no tensor is read and no code in it is run.

    Args:
      path: the file; its suffix does not matter.

    Returns:
      Its tensors by name. The names of nested dicts and lists are joined by dots:
      {"state_dict": {"rnn.bias_ih_l0": ...}} gives "state_dict.rnn.bias_ih_l0". Anything but tensors is left out.

    Raises:
      ValueError: if the file is truncated, corrupt, no PyTorch file, or asks for more than tensors.
      OSError: if it cannot be opened.
      ImportError: if torch is not installed.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_torch(f"{folder}/gru.pt", {"rnn.bias_ih_l0": np.zeros(60, np.float32)})
      ...     tensors = open_torch(f"{folder}/gru.pt")
      >>> tensors.format, tensors.by_name["rnn.bias_ih_l0"].shape
      ('PyTorch, zip', (60,))
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(_ZIP):
        return _open_zip(path)
    if _is_tar(path):
        raise ValueError("a tar archive. If a PyTorch before 0.1.10 wrote it, save it again with one before 2.6.")
    if LEGACY_TORCH not in start:
        raise ValueError(f"no PyTorch file: {'it is empty' if not start else 'neither a zip nor its pickle'}.")
    return Tensors("PyTorch, legacy pickle", _flatten(_load(path, mmap=False), _torch_members))


def save_torch(path: str | os.PathLike[str], state_dict: Mapping[str, Any]) -> None:
    """Writes arrays as a state_dict that torch.load reads. If that fails, whatever was at `path` before stays.

    Args:
      path: the file to write.
      state_dict: NumPy or JAX arrays by name; bfloat16 becomes torch.bfloat16.

    Raises:
      OSError: if the file cannot be written.
      ImportError: if torch is not installed.
    """
    torch = require("torch", "torch")

    def tensor(array: Any) -> Any:
        array = np.array(array, order="C")  # a copy: torch warns of arrays that it may not write to
        # torch does not take bfloat16 from NumPy, so it gets the bits.
        half = array.dtype.name == "bfloat16"
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if half else torch.from_numpy(array)

    tensors = {name: tensor(array) for name, array in state_dict.items()}
    with replacing(path) as made, made.open("wb") as file:
        torch.save(tensors, file)


def to_numpy(tensor: Any) -> np.ndarray:
    """Returns a torch tensor's numbers. The tensor is not changed. bfloat16 goes through float32, which loses nothing.

    Raises:
      TypeError: if it is sparse, quantized, on the meta device, or of a dtype that NumPy lacks.
    """
    try:
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
        half = str(tensor.dtype) == "torch.bfloat16"
        return tensor.float().numpy().astype(jnp.bfloat16) if half else tensor.numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise TypeError(str(error)) from error


def _open_zip(path: Path) -> Tensors:
    entries = zips.entries(path)
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if any(name.endswith("/archive_format") for name in entries):
        raise ValueError("an archive of torch.export. Save the model's state_dict() with torch.save instead.")
    if len(pickles) != 1:
        raise ValueError(f"a zip, but no PyTorch file: it has {len(pickles)} entries */data.pkl, not one.")
    root = pickles[0].removesuffix("data.pkl")
    data = zips.read(path, pickles[0])  # checks its CRC, which torch does not
    if f"{root}constants.pkl" not in entries:
        # With mmap=True torch.load would take the bytes of a compressed entry for numbers.
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in entries.values())
        members = partial(_torch_members, check=cache(partial(zips.check_crcs, path)))
        return Tensors("PyTorch, zip", _flatten(_load(path, mmap=stored), members))
    if f"{root}byteorder" in entries and zips.read(path, f"{root}byteorder") != b"little":
        raise ValueError("written on a big-endian machine. Save it again on a little-endian one.")
    sizes = {name.removeprefix(f"{root}data/"): info.file_size for name, info in entries.items()}
    members = partial(torchscript.members, sizes=sizes, read=lambda key: zips.read(path, f"{root}data/{key}"))
    return Tensors("TorchScript", _flatten(torchscript.parse(data), members))


def _is_tar(path: Path) -> bool:
    """Whether torch.load would take the file for a tar of PyTorch before 0.1.10; torch before 2.6 runs code in one."""
    try:
        with tarfile.open(path, "r:"):
            return True
    except OSError:
        raise
    except Exception:  # on a corrupt header tarfile raises more than TarError
        return False


def _load(path: Path, mmap: bool) -> Any:
    """Calls torch.load. Its errors, of any kind but OSError, become ValueError; its warnings are silenced."""
    torch = require("torch", "torch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:
        refused = re.search(r"GLOBAL `?([\w.]+)", str(error))
        if refused and refused[1] == "torch.ScriptObject":
            raise ValueError(
                "it holds packed objects (torch.ScriptObject), as a dynamically quantized model does: "
                "save the model as it was before quantize_dynamic."
            ) from error
        if refused:
            raise ValueError(
                f"it holds more than tensors: it asks for {refused[1]}, which could run code. "
                "Where you trust the file, load it there and save model.state_dict() instead."
            ) from error
        raise ValueError(f"damaged: {type(error).__name__}: {str(error)[:200]}") from error


def _torch_members(node: Any, check: Callable[[], None] = lambda: None) -> Tensor | Mapping[Any, Any] | None:
    """Returns a tensor, the members of a dict or list, or None for the rest. Reading a tensor calls `check` first."""
    if isinstance(node, require("torch", "torch").Tensor):
        shape = () if node.is_nested else tuple(node.shape)
        return Tensor(shape, str(node.dtype).removeprefix("torch."), partial(_read_tensor, node, check))
    if isinstance(node, list | tuple):
        return dict(enumerate(node))
    return node if isinstance(node, Mapping) else None


def _read_tensor(tensor: Any, check: Callable[[], None]) -> np.ndarray:
    check()
    array = to_numpy(tensor)  # a view, which may claim more memory than there is
    if array.size > max(tensor.untyped_storage().nbytes(), torchscript.MOST_REPEATED):
        raise ValueError(f"A tensor {list(array.shape)} of only {tensor.untyped_storage().nbytes()} bytes.")
    return array


def _flatten(root: Any, members: Callable[[Any], Tensor | Mapping[Any, Any] | None]) -> dict[str, Tensor]:
    """Joins the names of nested members by dots. It does not recurse, since a file may nest too deep."""
    found: dict[str, Tensor] = {}
    todo, budget = [("", root)], _MOST_NAMES
    while todo:
        name, node = todo.pop()
        try:
            node = members(node)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if isinstance(node, Tensor):
            if name in found:
                raise ValueError(f"it holds two tensors of the name {name}.")
            found[name] = node
        elif node is not None:
            # Without a budget, the walk of a list within itself, or within many others, would not end.
            budget -= 1 + len(node)
            named = [] if budget < 0 else [pair for pair in node.items() if _is_named(*pair)]
            budget -= len(named) * len(name)
            if budget < 0:
                raise ValueError("it nests lists or dicts so often that their names would fill the memory.")
            todo += [(f"{name}.{key}" if name else str(key), value) for key, value in reversed(named)]
    return found


def _is_named(key: Any, value: Any) -> bool:
    return isinstance(key, str | int) and not isinstance(value, str | bytes | float | int | None)
