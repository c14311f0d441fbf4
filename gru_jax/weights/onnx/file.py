"""Reads an ONNX file: the model, the attributes of its nodes, and its tensors, which may be in a file beside it."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gru_jax.weights.found import require

# The values of TensorProto.DataType that weights, shapes and axes have.
_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 10: np.float16, 11: np.float64, 16: jnp.bfloat16}
_EXTERNAL = 1  # TensorProto.DataLocation
_LARGEST = 2**31  # bytes; a protobuf has fewer
# The fields of AttributeProto, and the AttributeType of each.
_FIELDS = {"f": 1, "i": 2, "s": 3, "t": 4, "floats": 6, "ints": 7, "strings": 8}


def read_model(source: Any) -> tuple[Any, Path | None]:
    """Returns a ModelProto without its external data, and the folder where that data would be, None if unknown.

    Raises:
      TypeError: if the source is neither a path nor an onnx.ModelProto.
      OSError: if the file can't be read.
      ValueError: if it is no ONNX model.
    """
    onnx, decode_error = require("onnx", "onnx"), require("google.protobuf.message", "onnx").DecodeError
    if isinstance(source, onnx.ModelProto):
        model, folder = source, None
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        folder = path.parent
        if path.stat().st_size >= _LARGEST:
            raise ValueError("expected an ONNX model; it is larger than 2 GiB, the most one has.")
        try:
            model = onnx.ModelProto.FromString(path.read_bytes())
        except decode_error as error:
            raise ValueError("expected an ONNX model; it is truncated, or none.") from error
    else:
        raise TypeError(f"expected a path or an onnx.ModelProto, got {type(source).__name__}.")
    if not model.HasField("graph") or not model.opset_import:
        raise ValueError("expected an ONNX model; it has no graph or no opset.")
    return model, folder


def read_tensor(tensor: Any, folder: Path | None) -> np.ndarray:
    """Returns the numbers of a TensorProto, after checking that it has as many as its shape claims.

    Raises ValueError if it has not, if weights, shapes and axes never have its dtype, or if it is kept in a file
    outside `folder`.
    """
    onnx, name, shape = require("onnx", "onnx"), tensor.name, list(tensor.dims)
    if tensor.data_type not in _DTYPES:
        raise ValueError(f"{name!r} is neither of a floating dtype nor of int32 or int64")
    if min(shape, default=0) < 0 or tensor.HasField("segment"):
        raise ValueError(f"{name!r} has a negative size, or is a segment of a tensor")
    size = math.prod(shape) * np.dtype(_DTYPES[tensor.data_type]).itemsize
    if tensor.data_location == _EXTERNAL:
        raw = _read_external(tensor, folder, size)
        tensor = onnx.TensorProto(name=name, dims=shape, data_type=tensor.data_type, raw_data=raw)
    if tensor.HasField("raw_data") and len(tensor.raw_data) != size:
        raise ValueError(f"{name!r} of shape {shape} needs {size} bytes, has {len(tensor.raw_data)}")
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise ValueError(f"{name!r} can't be read: {error}") from error


def _read_external(tensor: Any, folder: Path | None, size: int) -> bytes:
    """Reads the bytes of a tensor from a file in the model's folder. A file anywhere else is refused."""
    entries = {str(entry.key): str(entry.value) for entry in tensor.external_data}
    location, start, length = (entries.get(key, "") for key in ("location", "offset", "length"))
    told = f"{tensor.name!r} is kept in the file {location!r}"
    if folder is None:
        raise ValueError(f"{told} beside the model's: pass the path of the model")
    # Refuses "/etc/passwd", "a/../../b", "C:\\b" and "..\\b" on every operating system.
    parts = re.split(r"[/\\]", location)
    if not parts[0] or ".." in parts or ":" in location or "\0" in location:
        raise ValueError(f"{told}, which is not a path within the model's folder")
    path = (folder / location).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{told}, a link out of the model's folder")
    if not path.is_file():
        raise ValueError(f"{told}, which is missing")
    if not all(re.fullmatch(r"[0-9]{0,18}", text) for text in (start, length)):
        raise ValueError(f"{told}, at an offset or of a length that is no number")
    offset, held = int(start or 0), path.stat().st_size
    if int(length or max(held - offset, 0)) != size or offset + size > held:
        raise ValueError(f"{told} of {held} bytes, at {offset}, {length or 'all'} long: its shape needs {size}")
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def attribute(node: Any, name: str, kind: str, default: Any = None) -> Any:
    """Returns an attribute of a node. Its kind is "i", "f", "s", "t", "ints", "floats" or "strings"."""
    found = [a for a in node.attribute if a.name == name]
    if not found:
        return default
    if len(found) > 1 or found[0].type != _FIELDS[kind] or found[0].ref_attr_name:
        raise ValueError(f"its attribute {name} is not of the kind that the operator has")
    value = getattr(found[0], kind)
    text = lambda v: v.decode("utf-8", "replace") if isinstance(v, bytes) else v
    return [text(v) for v in value] if len(kind) > 1 else text(value)


def operator(node: Any) -> str:
    """Returns the name of a node's operator, with its domain in front unless it is one of ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def subgraphs(node: Any) -> Iterator[Any]:
    """Yields the graphs in a node's attributes: the bodies of If, Loop and Scan."""
    for a in node.attribute:
        if a.type == 5:  # GRAPH
            yield a.g
        yield from a.graphs


def walk(graph: Any) -> Iterator[Any]:
    """Yields every node of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from walk(inner)
