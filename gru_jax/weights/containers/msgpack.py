"""Files of flax.serialization: msgpack, a tree of arrays. An array's name is its path, joined by dots."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gru_jax.weights.declared import is_config, refuse_lost_config
from gru_jax.weights.found import Tensor, Tensors


def open_msgpack(path: Path) -> Tensors:
    """Returns the arrays of a file of flax.serialization, and the config that `saving.save_msgpack` wrote there."""
    from flax import serialization

    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # Flax lets through whatever msgpack, NumPy and Python raise on a damaged file.
        raise ValueError(f"damaged, no valid msgpack file of Flax: {error}.") from error
    if not isinstance(tree, Mapping):
        raise ValueError(f"expected a msgpack file of Flax to hold a dict of arrays, got {type(tree).__name__}.")
    refuse_lost_config(tree, "config")
    pair = tree.keys() == {"config", "params"}
    if is_config(tree.get("config")) and not pair:
        raise ValueError(
            f"expected params beside the config of a GRU, and no more, as save writes them, got {list(tree)}."
        )
    # The config of a later version may have more fields. It counts as ours, so that it is refused and not overlooked.
    ours = pair and (is_config(tree["config"]) or (isinstance(tree["params"], Mapping) and "l0" in tree["params"]))
    leaves = flatten(tree["params"] if ours else tree)
    kinds = np.ndarray | np.generic | bool | int | float
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items() if isinstance(leaf, kinds)}
    tensors = {name: Tensor(a.shape, a.dtype.name, functools.partial(np.asarray, a)) for name, a in arrays.items()}
    return Tensors("Flax, msgpack", tensors, tree["config"] if ours else None)


def write_msgpack(path: Path, tree: Any) -> None:
    """Writes a tree of NumPy arrays and plain values with flax.serialization."""
    from flax import serialization

    path.write_bytes(serialization.msgpack_serialize(tree))


def flatten(tree: Any) -> dict[str, Any]:
    """Returns the leaves of dicts and lists under dotted names. It does not recurse, since a file may nest too deep."""
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
            raise ValueError(f"two of its arrays have the same name, {name}.")
        else:
            leaves[name] = node
    return leaves
