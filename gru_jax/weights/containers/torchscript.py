"""TorchScript archives, whose pickle is read as a list of instructions: nothing in it is called or imported.

archive/data.pkl    the modules, each an object of a class __torch__.*, its attributes by name
archive/data/0 ...  one entry per storage
archive/code/       the model's code, which is not looked at
"""

import math
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gru_jax.weights.found import Tensor

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GLOBAL = re.compile(
    r"__torch__\..+|torch\.jit\._pickle\.\w+|torch\._utils\._rebuild_\w+|torch\.\w+Storage|torch\.per_\w+|collections\.OrderedDict"
)
_STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
MOST_REPEATED = 2**28  # numbers that strides of 0 may make of a smaller storage: 1 GiB of float32


class Made:
    """An object that a pickle asks for: its kind, its arguments, and the state that it is then given."""

    def __init__(self, kind: str, arguments: Any) -> None:
        self.kind, self.arguments, self.state = kind, arguments, None


def parse(pickle: bytes) -> Any:
    """Returns what a pickle describes, with a `Made` wherever it asks for a call.

    Raises:
      ValueError: if it is broken, or names anything but TorchScript's own classes.

    >>> import pickle
    >>> parse(pickle.dumps({"a": (1, [2.5])}, protocol=2))
    {'a': (1, [2.5])}
    """
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[Any, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "MARK":
                marks.append(stack)
                stack = []
            elif opcode.name in ("TUPLE", "APPENDS", "SETITEMS"):
                items, stack = stack, marks.pop()
                _gather(opcode.name, stack, items)
            elif opcode.name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif opcode.name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif opcode.name not in ("PROTO", "STOP"):
                _execute(opcode.name, argument, stack)
        return stack.pop()
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"data.pkl is broken ({type(error).__name__}: {error}).") from error


def _gather(name: str, stack: list[Any], items: list[Any]) -> None:
    if name == "TUPLE":
        stack.append(tuple(items))
    elif name == "APPENDS":
        stack[-1].extend(items)
    else:
        stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _execute(name: str, argument: Any, stack: list[Any]) -> None:
    """Executes an instruction that needs only the stack."""
    if name in _LITERALS:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _EMPTY:
        stack.append(_EMPTY[name]())
    elif name in _TUPLES:
        stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
    elif name == "GLOBAL":
        kind = argument.replace(" ", ".")
        if not _GLOBAL.fullmatch(kind):
            raise ValueError(f"data.pkl names {kind}, which is no class of TorchScript's and could run code.")
        stack.append(Made(kind, ()))
    elif name in ("REDUCE", "NEWOBJ"):
        arguments = stack.pop()
        stack.append(Made(stack.pop().kind, arguments))
    elif name == "BUILD":
        state = stack.pop()
        stack[-1].state = state
    elif name == "BINPERSID":
        stack.append(Made("storage", stack.pop()))
    elif name in ("APPEND", "SETITEM"):
        items = [stack.pop() for _ in range(1 if name == "APPEND" else 2)]
        _gather(f"{name}S", stack, items[::-1])
    else:
        raise ValueError(f"data.pkl has an instruction that TorchScript does not write, {name}.")


def members(node: Any, sizes: Mapping[str, int], read: Callable[[str], bytes]) -> Tensor | Mapping[Any, Any] | None:
    """Returns a module's attributes, or the tensor that a node describes, or None for anything else.

    Lists are passed over: an nn.GRU keeps its weights a second time in a list of tensors.

    Args:
      node: a part of what `parse` gives.
      sizes: how many bytes each storage has, by its key.
      read: gives the bytes of a storage.
    """
    if not isinstance(node, Made):
        return None
    if node.kind.startswith("torch._utils._rebuild_"):
        return _tensor(node, sizes, read)
    if node.kind.startswith("__torch__.torch.classes."):  # packed weights of torch.ao
        return _unreadable(node.kind.removeprefix("__torch__."))
    return node.state if isinstance(node.state, dict) else None


def _tensor(node: Made, sizes: Mapping[str, int], read: Callable[[str], bytes]) -> Tensor:
    """Returns the tensor that a node describes, after checking its claims against the size of its storage."""
    try:
        storage, offset, shape, strides, *_ = node.arguments
        _, storage_type, key, _, numel = storage.arguments
        kind, held, numbers = storage_type.kind, sizes[key], (numel, offset, *shape, *strides)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        if node.kind == "torch._utils._rebuild_sparse_tensor":
            return _unreadable("sparse")
        raise ValueError(f"data.pkl describes a tensor that is none ({type(error).__name__}: {error}).") from error
    if any(type(number) is not int or number < 0 for number in numbers) or len(shape) != len(strides):
        raise ValueError(f"data.pkl describes a tensor of storage {key} by {numbers}, which are no sizes.")
    if node.kind != "torch._utils._rebuild_tensor_v2" or kind not in _STORAGES:
        return _unreadable(kind.removeprefix("torch.").removesuffix("Storage").lower(), shape)
    dtype = np.dtype(jnp.dtype(_STORAGES[kind]))
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if held != numel * dtype.itemsize or (0 not in shape and last >= numel):
        raise ValueError(f"data.pkl describes a tensor {list(shape)} beyond its storage {key} of {held} bytes.")
    if math.prod(shape) > max(numel, MOST_REPEATED):
        raise ValueError(f"data.pkl describes a tensor {list(shape)} over a storage of only {held} bytes.")

    def numbers_of_tensor() -> np.ndarray:
        flat = np.frombuffer(read(key), dtype)[offset:]
        steps = [stride * dtype.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(flat, shape, steps).copy() if 0 not in shape else np.empty(shape, dtype)

    return Tensor(tuple(shape), _STORAGES[kind], numbers_of_tensor)


def _unreadable(dtype: str, shape: tuple[int, ...] = ()) -> Tensor:
    def read() -> np.ndarray:
        raise TypeError(f"expected plain numbers, got {dtype}.")

    return Tensor(tuple(shape), dtype, read)
