"""The trees of gru_jax itself under joined names: "encoder.rnn.l0.kernel_ih", or "cell.kernel_ih" for a single cell."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gru_jax.params import check_params
from gru_jax.weights import pytorch_original, trees
from gru_jax.weights.found import Found, Tensor
from gru_jax.weights.pytorch_names import torch_name


def find(tensors: Mapping[str, Tensor]) -> trees.Search:
    """Finds every GRUParams and CellParams. Their names don't tell reset_after, which keeps its default."""
    groups: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        path, _, key = name.rpartition(".")
        prefix, dot, cell = path.rpartition(".")
        if re.fullmatch(r"(kernel|bias)_(ih|hh)", key):
            in_layer = re.fullmatch(r"l[0-9]{1,6}(_reverse)?", cell)
            prefix, cell = (prefix + dot, cell) if in_layer else (name.removesuffix(key), "")
            groups.setdefault(prefix, {}).setdefault(cell, {})[key] = tensor
    grus, refused = {}, {}
    for prefix, cells in groups.items():
        try:
            if any("kernel_hh" in keys and keys["kernel_hh"].dtype == "int8" for keys in cells.values()):
                raise TypeError("its kernels are int8: quantized parameters, which quantized.load loads.")
            grus[prefix] = _found(prefix, cells)
        except (ValueError, TypeError) as error:
            refused[prefix] = trees.one_line(error)
    return grus, refused


def _found(prefix: str, held: Mapping[str, Mapping[str, Tensor]]) -> Found:
    """Checks that the tensors under `prefix` make one GRU, by cell, where "" is a single one."""
    names = {f"{prefix}{cell}{'.' if cell else ''}{key}": t for cell, keys in held.items() for key, t in keys.items()}
    trees.check_dtypes("gru_jax", names)
    cells = {"l0": held[""]} if list(held) == [""] else held
    abstract = lambda tensor: jax.ShapeDtypeStruct(tensor.shape, jnp.dtype(tensor.dtype))
    shapes: Any = {cell: {key: abstract(tensor) for key, tensor in keys.items()} for cell, keys in cells.items()}
    config = check_params("gru_jax", shapes)
    read = lambda: {cell: {key: tensor.read() for key, tensor in keys.items()} for cell, keys in cells.items()}
    return Found(
        config,
        read=lambda: trees.to_jax("gru_jax", read()),
        original=functools.partial(pytorch_original.run, config, _in_torch(cells)),
        framework="torch.nn.GRU",
        names=tuple(names),
    )


def _in_torch(cells: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The same numbers under the names and in the layout of a torch.nn.GRU."""
    turned = lambda tensor: Tensor(tensor.shape[::-1], tensor.dtype, lambda: tensor.read().T)
    return {torch_name(cell, key): turned(tensor) for cell, keys in cells.items() for key, tensor in keys.items()}
