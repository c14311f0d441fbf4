"""Converts Equinox's GRUCell to our parameters and back.

    weight_ih [3H, I]   weight_hh [3H, H]   bias [3H]   bias_n [H]

    r  = sigmoid(W_ir x + b_r + W_hr h)
    z  = sigmoid(W_iz x + b_z + W_hz h)
    n  = tanh(W_in x + b_n + r * (W_hn h + bias_n))
    h' = n + z * (h - n)

It is PyTorch's function with b_hr = b_hz = 0, in PyTorch's order of gates.
Source: equinox/nn/_rnn.py, equinox 0.13.8.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax.params import CellParams, GRUConfig
from gru_jax.weights.arrays import fold_gates
from gru_jax.weights.found import Params, Search, Tensor, require
from gru_jax.weights.gate_order import OURS, from_ours, to_ours
from gru_jax.weights.jax import trees

_NAMES = ("weight_ih", "weight_hh", "bias", "bias_n")


def from_equinox(cell: Any) -> tuple[GRUConfig, Params]:
    """Takes the parameters out of an `equinox.nn.GRUCell`.

    Args:
      cell: the cell, or a dict of its arrays, "weight_ih", "weight_hh", "bias" and "bias_n"; the last two are left out
        or None for use_bias=False. It is neither changed nor aliased.

    Returns:
      (config, params), a GRU of one layer, with zeros for the biases that the cell lacks. Dtypes are kept, but float64
      becomes float32, with a warning, unless jax_enable_x64 is set.

    Raises:
      TypeError: if it is something else, or an array is not floating.
      ValueError: if it is an LSTM, an array is missing, unexpected or of the wrong shape, or dtypes are mixed.

    Example:
      >>> arrays = {"weight_ih": jnp.ones((60, 10)), "weight_hh": jnp.ones((60, 20))}
      >>> config, params = from_equinox(arrays | {"bias": jnp.ones(60), "bias_n": jnp.ones(20)})
      >>> config.input_size, config.hidden_size, params["l0"]["kernel_ih"].shape
      (10, 20, (10, 60))
    """
    if not isinstance(cell, Mapping):
        kind = f"{type(cell).__module__}.{type(cell).__name__}"
        if kind != "equinox.nn._rnn.GRUCell":
            raise TypeError(f"from_equinox: expected an equinox.nn.GRUCell or a dict of its arrays, got {kind}.")
        cell = {name: getattr(cell, name) for name in _NAMES}
    tensors = trees.flatten("from_equinox", cell)
    kind = _kind("", {"bias": ()} | {name: tensor.shape for name, tensor in tensors.items()})
    if kind and kind != "a GRU":
        raise ValueError(f"from_equinox: expected the arrays of an equinox.nn.GRUCell, got {kind}")
    found = trees.found_cell(_LAYOUT, "", tensors)
    return found.config, found.read()


def to_equinox(cell: CellParams, *, reset_after: bool = True) -> dict[str, jax.Array]:
    """Writes one cell as the arrays of an `equinox.nn.GRUCell`.

    Equinox has one bias for r and one for z. b_ir + b_hr and b_iz + b_hz are added in float64 and rounded once: the
    same function in real arithmetic, and each bias within half a unit in the last place.

    Args:
      cell: CellParams, `params["l0"]` of a GRU.
      reset_after: that GRU's form of the new gate.

    Returns:
      A dict `arrays` of "weight_ih", "weight_hh" and, if there are biases, "bias" and "bias_n", for
      `eqx.tree_at(lambda cell: [getattr(cell, name) for name in arrays], cell, list(arrays.values()))`.

    Raises:
      TypeError: if `cell` is no dict of floating arrays.
      ValueError: if its arrays do not fit together, reset_after is False, which Equinox lacks, or a sum overflows.

    Example:
      >>> from gru_jax import init_params
      >>> arrays = to_equinox(init_params(jax.random.key(0), GRUConfig(10, 20))["l0"])
      >>> {name: array.shape for name, array in arrays.items()}
      {'weight_ih': (60, 10), 'weight_hh': (60, 20), 'bias': (60,), 'bias_n': (20,)}
    """
    kernel_ih, kernel_hh, b_ih, b_hh = trees.leaving("to_equinox", cell, reset_after, _LAYOUT)
    arrays = {name: from_ours(a, "equinox").T for name, a in (("weight_ih", kernel_ih), ("weight_hh", kernel_hh))}
    if "bias_ih" in cell:
        bias = fold_gates("to_equinox", b_ih, b_hh)
        arrays |= {"bias": from_ours(bias, "equinox"), "bias_n": np.split(b_hh, 3)[OURS.index("n")]}
    return {name: jnp.array(array) for name, array in arrays.items()}


def find(tensors: Mapping[str, Tensor]) -> Search:
    """Finds every GRUCell that has biases. Without them it is stored exactly as PyTorch's GRUCell without biases is."""
    return trees.find(_LAYOUT, tensors)


def _kind(prefix: str, shapes: trees.Shapes) -> str | None:
    if "weight_hh" not in shapes or not {"bias", "bias_n"} & shapes.keys():
        return None
    rows, columns = (*shapes["weight_hh"], 0, 0)[:2]
    return "an LSTM, not a GRU: Equinox's LSTMCell." if rows == 4 * columns > 0 else "a GRU"


def _shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    gates = 3 * hidden_size
    kernels = {"weight_ih": (gates, input_size), "weight_hh": (gates, hidden_size)}
    return kernels | {"bias": (gates,), "bias_n": (hidden_size,)}


def _to_ours(cell: trees.Arrays) -> trees.Arrays:
    names = {"kernel_ih": "weight_ih", "kernel_hh": "weight_hh", "bias_ih": "bias"}
    ours = {key: to_ours(cell[name].T, "equinox") for key, name in names.items() if name in cell}
    if "bias_n" not in cell:
        return ours
    zeros = np.zeros_like(cell["bias_n"])
    return ours | {"bias_hh": np.concatenate([zeros, zeros, cell["bias_n"]])}


def _step(cell: dict[str, jax.Array], h: jax.Array, x: jax.Array) -> jax.Array:
    equinox = require("equinox", "equinox")
    stock = equinox.nn.GRUCell(x.shape[-1], h.shape[-1], "bias" in cell, key=jax.random.key(0))
    stock = equinox.tree_at(lambda stock: [getattr(stock, name) for name in cell], stock, list(cell.values()))
    return jax.vmap(stock)(x, h)


_LAYOUT = trees.Layout(
    framework="equinox.nn.GRUCell",
    kind=_kind,
    anchors=("weight_hh",),
    sizes=((("weight_ih",), 1), (("weight_hh",), 1)),
    shapes=_shapes,
    biases=("bias", "bias_n"),
    to_ours=_to_ours,
    step=_step,
)
