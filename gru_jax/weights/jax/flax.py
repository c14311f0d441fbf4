"""Converts Flax's own GRU cells, Linen's and NNX's, to our parameters and back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

from gru_jax.params import CellParams, GRUConfig, GRUParams, check_params
from gru_jax.weights.arrays import fold_gates
from gru_jax.weights.found import Params, Search, Tensor
from gru_jax.weights.gate_order import OURS, from_ours
from gru_jax.weights.jax import trees
from gru_jax.weights.jax.flax_cells import LINEN, NNX


def from_flax(cell: Any) -> tuple[GRUConfig, Params]:
    """Takes the parameters out of a `flax.linen.GRUCell` or a `flax.nnx.GRUCell`.

    A tree of arrays does not show `gate_fn` and `activation_fn`: they are assumed to be sigmoid and tanh.

    Args:
      cell: the parameters of one Linen GRUCell: variables["params"], or the cell's part of it ("cell" in an RNN). Or a
        flax.nnx.GRUCell, its state, or its state as a dict. It is neither changed nor aliased.

    Returns:
      (config, params), a GRU of one layer, with zeros for the biases that the cell lacks. Dtypes are kept, but float64
      becomes float32, with a warning, unless jax_enable_x64 is set.

    Raises:
      TypeError: if it is no tree of arrays, if an array is not floating, or if an NNX cell has other activations.
      ValueError: if it is another cell, an array is missing, unexpected or of the wrong shape, or dtypes are mixed.

    Example:
      >>> from flax import linen
      >>> cell = linen.GRUCell(features=20)
      >>> variables = cell.init(jax.random.key(0), jnp.zeros((5, 20)), jnp.zeros((5, 10)))
      >>> config, params = from_flax(variables["params"])
      >>> config.input_size, config.hidden_size, params["l0"]["kernel_ih"].shape
      (10, 20, (10, 60))
    """
    found = trees.only("from_flax", find(trees.flatten("from_flax", _tree(cell))))
    return found.config, found.read()


def to_linen(cell: CellParams, *, reset_after: bool = True) -> dict[str, dict[str, jax.Array]]:
    """Writes one cell as the parameters of a `flax.linen.GRUCell`.

    Linen has one bias for r and one for z. b_ir + b_hr and b_iz + b_hz are added in float64 and rounded once: the
    same function in real arithmetic, and each bias within half a unit in the last place.

    Args:
      cell: CellParams, `params["l0"]` of a GRU.
      reset_after: that GRU's form of the new gate.

    Raises:
      TypeError: if `cell` is no dict of floating arrays.
      ValueError: if its arrays do not fit together, reset_after is False, which Linen lacks, or a sum overflows.

    Example:
      >>> from flax import linen
      >>> from gru_jax import init_params
      >>> cell = to_linen(init_params(jax.random.key(0), GRUConfig(10, 20))["l0"])
      >>> h, _ = linen.GRUCell(features=20).apply({"params": cell}, jnp.zeros((5, 20)), jnp.ones((5, 10)))
      >>> h.shape
      (5, 20)
    """
    kernel_ih, kernel_hh, b_ih, b_hh = trees.leaving("to_linen", cell, reset_after, LINEN)
    split = lambda array: zip(OURS, np.split(array, 3, axis=-1), strict=True)
    flat = {f"i{gate}.kernel": part for gate, part in split(kernel_ih)}
    flat |= {f"h{gate}.kernel": part for gate, part in split(kernel_hh)}
    flat |= {f"i{gate}.bias": part for gate, part in split(fold_gates("to_linen", b_ih, b_hh))}
    flat |= {f"h{gate}.bias": part for gate, part in split(b_hh) if gate == "n"}
    return jax.tree.map(jnp.array, unflatten_dict(flat, sep="."))


def to_nnx(cell: CellParams, *, reset_after: bool = True) -> dict[str, dict[str, jax.Array]]:
    """Writes one cell as the state of a `flax.nnx.GRUCell`, which `nnx.update(cell, ...)` takes.

    NNX's cell has no b_hn, and no other weight can stand for it. The biases of r and z are added as by `to_linen`.

    Args:
      cell: CellParams, `params["l0"]` of a GRU.
      reset_after: that GRU's form of the new gate.

    Raises:
      TypeError: if `cell` is no dict of floating arrays.
      ValueError: if its arrays do not fit together, b_hn is not zero, reset_after is False, or a sum overflows.

    Example:
      >>> from gru_jax import init_params
      >>> stock = nnx.GRUCell(10, 20, rngs=nnx.Rngs(0))
      >>> nnx.update(stock, to_nnx(init_params(jax.random.key(0), GRUConfig(10, 20, bias=False))["l0"]))
      >>> stock(jnp.zeros((5, 20)), jnp.ones((5, 10)))[0].shape
      (5, 20)
    """
    kernel_ih, kernel_hh, b_ih, b_hh = trees.leaving("to_nnx", cell, reset_after, NNX)
    if np.any(np.split(b_hh, 3)[OURS.index("n")] != 0):
        raise ValueError(
            "to_nnx: expected b_hn, the last third of bias_hh, to be zero: flax.nnx.GRUCell has no such bias, and "
            "without it the function is another. flax.linen.GRUCell (to_linen) and gru_jax.nnx.GRUCell have it."
        )
    bias = fold_gates("to_nnx", b_ih, b_hh)
    halves = {"dense_i": {"kernel": kernel_ih, "bias": bias}, "dense_h": {"kernel": kernel_hh}}
    return jax.tree.map(lambda array: jnp.array(from_ours(array, "nnx")), halves)


def save_linen(path: Path, config: GRUConfig, params: GRUParams) -> None:
    """Writes {"l0": parameters of a flax.linen.GRUCell, "l0_reverse": ...} with flax.serialization."""
    _save(path, config, params, to_linen)


def save_nnx(path: Path, config: GRUConfig, params: GRUParams) -> None:
    """Writes {"l0": state of a flax.nnx.GRUCell, "l0_reverse": ...} with flax.serialization."""
    _save(path, config, params, to_nnx)


def find(tensors: Mapping[str, Tensor]) -> Search:
    """Finds every GRUCell of Linen and NNX under joined names, and refuses Flax's other recurrent cells."""
    # Orbax and other writers of pytrees add ".value": the attribute in which a Variable or a box keeps its array.
    bare = {name.removesuffix(".value"): name for name in tensors}
    if len(bare) < len(tensors):
        bare = {name: name for name in tensors}
    flat = {name: tensors[written] for name, written in bare.items()}
    grus, refused = {}, {}
    for layout in (LINEN, NNX):
        more, reasons = trees.find(layout, flat)
        grus |= {at: cell._replace(names=tuple(bare[name] for name in cell.names)) for at, cell in more.items()}
        refused |= reasons
    return {at: cell for at, cell in grus.items() if at not in refused}, refused


def _tree(cell: Any) -> Mapping[Any, Any]:
    """Returns the plain tree of a dict, an NNX cell or its state."""
    if isinstance(cell, nnx.Module):
        if type(cell) is not nnx.GRUCell:
            kind = f"{type(cell).__module__}.{type(cell).__name__}"
            raise TypeError(f"from_flax: expected a flax.nnx.GRUCell, got {kind}. The cell of an nnx.RNN is its .cell.")
        if cell.gate_fn is not nnx.sigmoid or cell.activation_fn is not nnx.tanh:
            raise TypeError("from_flax: expected a flax.nnx.GRUCell with sigmoid and tanh, got other activations.")
        cell = nnx.state(cell, nnx.Param)
    if isinstance(cell, nnx.State):
        cell = nnx.to_pure_dict(cell)
    if not isinstance(cell, Mapping):
        kind = type(cell).__name__
        raise TypeError(f"from_flax: expected a dict of arrays, a flax.nnx.GRUCell or its state, got {kind}.")
    return cell


def _save(path: Path, config: GRUConfig, params: GRUParams, to_stock: Callable[..., Any]) -> None:
    from flax import serialization

    check_params(to_stock.__name__, params)
    cells = {name: to_stock(cell, reset_after=config.reset_after) for name, cell in params.items()}
    path.write_bytes(serialization.msgpack_serialize(jax.tree.map(np.asarray, cells)))
