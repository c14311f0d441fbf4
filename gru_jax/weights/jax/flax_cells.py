"""How Flax's own GRU cells, Linen's and NNX's, keep their arrays, and how these differ from Flax's other cells.

    linen   {"ir": {"kernel": [I, H], "bias": [H]}, "iz", "in": alike,
             "hr": {"kernel": [H, H]}, "hz": alike, "hn": {"kernel": [H, H], "bias": [H]}}     no b_hr, no b_hz
    nnx     {"dense_i": {"kernel": [I, 3H], "bias": [3H]}, "dense_h": {"kernel": [H, 3H]}}     no b_hr, b_hz, b_hn

Both compute PyTorch's function, with zeros for the biases that they lack.
Source: flax/linen/recurrent.py and flax/nnx/nn/recurrent.py, flax 0.12.8.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.traverse_util import unflatten_dict

from gru_jax.weights.gate_order import OURS, to_ours
from gru_jax.weights.jax.trees import Arrays, Layout, Shapes

_LINEN_BIASES = ("ir.bias", "iz.bias", "in.bias", "hn.bias")
_OTHERS: dict[frozenset[str], str] = {
    frozenset({"ii", "if", "ig", "io", "hi", "hf", "hg", "ho"}): "an LSTM, not a GRU: Flax's LSTMCell.",
    frozenset({"if", "in", "hf", "hn"}): "a minimal gated unit, not a GRU: Flax's MGUCell.",
    frozenset({"i", "h"}): "a plain RNN, not a GRU: Flax's SimpleCell.",
    frozenset({"ih", "hh"}): "a convolutional LSTM, not a GRU: Flax's ConvLSTMCell.",
}


def _linen_kind(prefix: str, shapes: Shapes) -> str | None:
    # NNX's LSTMCell has the names of Linen's, except for `if_`, since `if` is a keyword of Python.
    gates = {name.removesuffix(".kernel").removesuffix("_") for name in shapes if name.endswith(".kernel")}
    if gates & {"ir", "iz"} and gates & {"hr", "hz"}:
        return "a GRU"
    return _OTHERS.get(frozenset(gates))


def _linen_shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"i{gate}.kernel": (input_size, hidden_size) for gate in OURS}
    shapes |= {f"h{gate}.kernel": (hidden_size, hidden_size) for gate in OURS}
    return shapes | dict.fromkeys(_LINEN_BIASES, (hidden_size,))


def _linen_to_ours(cell: Arrays) -> Arrays:
    join = lambda half, kind: np.concatenate([cell[f"{half}{gate}.{kind}"] for gate in OURS], axis=-1)
    ours = {"kernel_ih": join("i", "kernel"), "kernel_hh": join("h", "kernel")}
    if "hn.bias" not in cell:
        return ours
    zeros = np.zeros_like(cell["hn.bias"])
    return ours | {"bias_ih": join("i", "bias"), "bias_hh": np.concatenate([zeros, zeros, cell["hn.bias"]])}


def _linen_step(cell: dict[str, jax.Array], h: jax.Array, x: jax.Array) -> jax.Array:
    whole = dict.fromkeys(_LINEN_BIASES, jnp.zeros_like(h[0])) | cell
    return linen.GRUCell(features=h.shape[-1]).apply({"params": unflatten_dict(whole, sep=".")}, h, x)[0]


def _nnx_kind(prefix: str, shapes: Shapes) -> str | None:
    if not {"dense_i.kernel", "dense_h.kernel"} <= shapes.keys():
        return None
    rows, columns = (*shapes["dense_h.kernel"], 0, 0)[:2]
    others = {4: "an LSTM, not a GRU: Flax's OptimizedLSTMCell.", 1: "a plain RNN, not a GRU: Flax's SimpleCell."}
    return next((kind for gates, kind in others.items() if columns == gates * rows > 0), "a GRU")


def _nnx_shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    gates = 3 * hidden_size
    return {"dense_i.kernel": (input_size, gates), "dense_h.kernel": (hidden_size, gates), "dense_i.bias": (gates,)}


def _nnx_to_ours(cell: Arrays) -> Arrays:
    names = {"kernel_ih": "dense_i.kernel", "kernel_hh": "dense_h.kernel", "bias_ih": "dense_i.bias"}
    ours = {key: to_ours(cell[name], "nnx") for key, name in names.items() if name in cell}
    return ours | ({"bias_hh": np.zeros_like(ours["bias_ih"])} if "bias_ih" in ours else {})


def _nnx_step(cell: dict[str, jax.Array], h: jax.Array, x: jax.Array) -> jax.Array:
    stock = nnx.GRUCell(x.shape[-1], h.shape[-1], rngs=nnx.Rngs(0))
    bias = {"dense_i.bias": jnp.zeros(3 * h.shape[-1], h.dtype)}
    nnx.update(stock, unflatten_dict(bias | cell, sep="."))
    return stock(h, x)[0]


LINEN = Layout(
    framework="flax.linen.GRUCell",
    kind=_linen_kind,
    anchors=tuple(f"{half}.kernel" for half in ("hr", "hz", "hf", "h", "hh")),
    sizes=((tuple(f"i{gate}.kernel" for gate in OURS), 0), (tuple(f"h{gate}.kernel" for gate in OURS), 0)),
    shapes=_linen_shapes,
    biases=_LINEN_BIASES,
    to_ours=_linen_to_ours,
    step=_linen_step,
)
NNX = Layout(
    framework="flax.nnx.GRUCell",
    kind=_nnx_kind,
    anchors=("dense_h.kernel",),
    sizes=((("dense_i.kernel",), 0), (("dense_h.kernel",), 0)),
    shapes=_nnx_shapes,
    biases=("dense_i.bias",),
    to_ours=_nnx_to_ours,
    step=_nnx_step,
)
