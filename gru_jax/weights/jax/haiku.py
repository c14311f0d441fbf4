"""Converts dm-haiku's GRU to our parameters and back.

    w_i [I, 3H]   w_h [H, 3H]   b [3H]     gates z, r, a

    z  = sigmoid(W_iz x + W_hz h + b_z)
    r  = sigmoid(W_ir x + W_hr h + b_r)
    a  = tanh(W_ia x + W_ha (r * h) + b_a)
    h' = (1 - z) * h + z * a

Its reset gate is applied before the product. Its z weighs the new state and PyTorch's z the old one, so each is 1 minus
the other. 1 - sigmoid(s) = sigmoid(-s), so the weights and bias of z change their sign, which loses no bit.
Source: haiku/_src/recurrent.py, dm-haiku 0.0.17.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax.params import CellParams, GRUConfig
from gru_jax.weights.arrays import fold
from gru_jax.weights.found import Params, Search, Tensor, require
from gru_jax.weights.gate_order import OURS, from_ours, to_ours
from gru_jax.weights.jax import trees


def from_haiku(tree: Mapping[str, Any]) -> tuple[GRUConfig, Params]:
    """Takes the parameters out of a `haiku.GRU`.

    Args:
      tree: {"w_i", "w_h", "b"}, params["gru"] of a transformed function. It is neither changed nor aliased.

    Returns:
      (config, params), a GRU of one layer with reset_after False; b becomes bias_ih, and bias_hh is zero. Dtypes are
      kept, but float64 becomes float32, with a warning, unless jax_enable_x64 is set.

    Raises:
      TypeError: if it is no dict of arrays, or an array is not floating.
      ValueError: if an array is missing, unexpected or of the wrong shape, or dtypes are mixed.

    Example:
      >>> tree = {"w_i": jnp.ones((10, 60)), "w_h": jnp.ones((20, 60)), "b": jnp.ones(60)}
      >>> config, params = from_haiku(tree)
      >>> config.hidden_size, config.reset_after, params["l0"]["bias_ih"][19:22].tolist()
      (20, False, [1.0, -1.0, -1.0])
    """
    if not isinstance(tree, Mapping):
        raise TypeError(f"from_haiku: expected a dict of arrays, got {type(tree).__name__}.")
    found = trees.only("from_haiku", find(trees.flatten("from_haiku", tree)))
    return found.config, found.read()


def to_haiku(cell: CellParams, *, reset_after: bool = True) -> dict[str, jax.Array]:
    """Writes one cell as the parameters of a `haiku.GRU`.

    Haiku has one bias per gate. bias_ih and bias_hh are added in float64 and rounded once: the same function in real
    arithmetic, and each bias within half a unit in the last place.

    Args:
      cell: CellParams, `params["l0"]` of a GRU.
      reset_after: that GRU's form of the new gate; Haiku has only False.

    Raises:
      TypeError: if `cell` is no dict of floating arrays.
      ValueError: if its arrays do not fit together, reset_after is True, or a sum overflows.

    Example:
      >>> from gru_jax import init_params
      >>> cell = init_params(jax.random.key(0), GRUConfig(10, 20, reset_after=False))["l0"]
      >>> {name: array.shape for name, array in to_haiku(cell, reset_after=False).items()}
      {'w_i': (10, 60), 'w_h': (20, 60), 'b': (60,)}
    """
    kernel_ih, kernel_hh, b_ih, b_hh = trees.leaving("to_haiku", cell, reset_after, _LAYOUT)
    arrays = {"w_i": kernel_ih, "w_h": kernel_hh, "b": fold("to_haiku", b_ih, b_hh)}
    return {name: jnp.array(from_ours(_negate_z(array), "haiku")) for name, array in arrays.items()}


def find(tensors: Mapping[str, Tensor]) -> Search:
    """Finds every haiku.GRU under joined names, "encoder/gru.w_i", and refuses an LSTM that has its default name."""
    return trees.find(_LAYOUT, tensors)


def _kind(prefix: str, shapes: trees.Shapes) -> str | None:
    if {"w_i", "w_h"} <= shapes.keys():
        return "a GRU"
    # Haiku's LSTM is one Linear to 4H gates. Only its name shows that it is not just any Linear.
    is_lstm = re.search(r"(^|[./~])lstm(_[0-9]+)?/linear\.$", prefix) and shapes.keys() <= {"w", "b"}
    return "an LSTM, not a GRU: Haiku's LSTM." if is_lstm else None


def _shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    gates = 3 * hidden_size
    return {"w_i": (input_size, gates), "w_h": (hidden_size, gates), "b": (gates,)}


def _negate_z(array: np.ndarray) -> np.ndarray:
    """Changes the sign of z, in our order of gates."""
    parts = zip(OURS, np.split(array, 3, axis=-1), strict=True)
    return np.concatenate([-part if gate == "z" else part for gate, part in parts], axis=-1)


def _to_ours(cell: trees.Arrays) -> trees.Arrays:
    names = {"kernel_ih": "w_i", "kernel_hh": "w_h", "bias_ih": "b"}
    ours = {key: _negate_z(to_ours(cell[name], "haiku")) for key, name in names.items()}
    return ours | {"bias_hh": np.zeros_like(ours["bias_ih"])}


def _step(cell: dict[str, jax.Array], h: jax.Array, x: jax.Array) -> jax.Array:
    haiku = require("haiku", "haiku")
    stock = haiku.without_apply_rng(haiku.transform(lambda x, h: haiku.GRU(h.shape[-1])(x, h)[0]))
    return stock.apply({"gru": cell}, x, h)


_LAYOUT = trees.Layout(
    framework="haiku.GRU",
    kind=_kind,
    anchors=("w_h", "w"),
    sizes=((("w_i",), 0), (("w_h",), 0)),
    shapes=_shapes,
    biases=(),
    to_ours=_to_ours,
    step=_step,
    reset_after=False,
)
