"""Finds gru_jax's own parameters among a file's tensors.

A file holds their arrays under joined names: "encoder.rnn.l0.kernel_ih", or "cell.kernel_ih" for a single cell. A file
that `saving` wrote holds one GRU, "l0.kernel_ih", with its config beside it.
"""

import dataclasses
import functools
import re
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax.params import GRUConfig, check_params
from gru_jax.weights import reference
from gru_jax.weights.arrays import check_dtypes, to_jax
from gru_jax.weights.found import Found, Search, Tensor, one_line
from gru_jax.weights.pytorch.names import torch_name
from gru_jax.weights.pytorch.original import run as run_torch


def find(tensors: Mapping[str, Tensor]) -> Search:
    """Finds every GRUParams and CellParams. Their names do not show `reset_after`, which keeps its default."""
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
            refused[prefix] = one_line(error)
    return grus, refused


def _found(prefix: str, held: Mapping[str, Mapping[str, Tensor]]) -> Found:
    """Returns the GRU under `prefix`, after checking its tensors; `held` has them by cell, "" for a single cell."""
    names = {f"{prefix}{cell}{'.' if cell else ''}{key}": t for cell, keys in held.items() for key, t in keys.items()}
    check_dtypes("gru_jax", names)
    cells = {"l0": held[""]} if list(held) == [""] else held
    abstract = lambda tensor: jax.ShapeDtypeStruct(tensor.shape, jnp.dtype(tensor.dtype))
    shapes: Any = {cell: {key: abstract(tensor) for key, tensor in keys.items()} for cell, keys in cells.items()}
    config = check_params("gru_jax", shapes)
    read = lambda: {cell: {key: tensor.read() for key, tensor in keys.items()} for cell, keys in cells.items()}
    return Found(
        config,
        read=lambda: to_jax("gru_jax", read()),
        original=functools.partial(run_torch, config, _in_torch(cells)),
        framework="torch.nn.GRU",
        names=tuple(names),
    )


def _in_torch(cells: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the same numbers under the names and in the layout of a torch.nn.GRU."""
    turned = lambda tensor: Tensor(tensor.shape[::-1], tensor.dtype, lambda: tensor.read().T)
    return {torch_name(cell, key): turned(tensor) for cell, keys in cells.items() for key, tensor in keys.items()}


def with_config(
    tensors: Mapping[str, Tensor], found: dict[str, Found], refused: dict[str, str], declared: Any
) -> Search:
    """Gives the GRU in a file of `saving` the config that is stored beside it."""
    try:
        config = GRUConfig(**declared)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the config in its metadata is none of this version of gru_jax: {error}") from error
    if found.keys() != {""}:
        return {}, refused | {"": f"its metadata says {config}, but its tensors are not that GRU's."}
    gru = found[""]
    told = {name: getattr(config, name) for name in ("batch_first", "dropout", "reset_after")}
    with warnings.catch_warnings(action="ignore"):  # GRUConfig above has already warned of a dropout without effect
        inferred = dataclasses.replace(gru.config, **told)
    if inferred != config:
        return {}, {"": f"its metadata says {config}, its tensors are those of {inferred}."}
    gru = gru._replace(config=config)
    if not config.reset_after:
        original = functools.partial(_run_paper, {name: tensors[name] for name in gru.names})
        gru = gru._replace(original=original, framework="NumPy formula (Cho et al. 2014)")
    return {"": gru}, refused


def _run_paper(
    tensors: Mapping[str, Tensor], dtype: str, x: np.ndarray, h_0: np.ndarray, *cotangents: np.ndarray
) -> dict[str, np.ndarray]:
    """Runs the original paper's formula in NumPy, since no other framework has it with this package's layout."""
    arguments = {"kernel_ih": "W", "kernel_hh": "R", "bias_ih": "b_W", "bias_hh": "b_R"}
    cells: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        cell, _, key = name.partition(".")
        array = tensor.read().astype(dtype).T
        cells.setdefault(cell, {})[arguments[key]] = array.reshape(3, -1, *array.shape[1:])
    for cell in cells.values():
        zeros = np.zeros(cell["R"].shape[:2], dtype)
        cell |= {key: cell.get(key, zeros) for key in ("b_W", "b_R")}
    return reference.run(cells, x.astype(dtype), h_0.astype(dtype), reset_after=False)
