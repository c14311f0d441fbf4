"""The GRUs that a Python user could pick, each as its own documentation says to use it.

A contender is a function (case, weights) -> (parameters, forward), where forward(parameters, x, lengths) -> output
is traceable and time-major: x [L, N, I], output [L, N, D*H]. `torch_gru` and `onnxruntime_gru` run by themselves.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import Case

import gru_jax
from gru_jax import quantized

os.environ["KERAS_BACKEND"] = "jax"

Weights = dict[str, np.ndarray]
Forward = Callable[[Any, jax.Array, jax.Array | None], jax.Array]


def gru_jax_gru(case: Case, weights: Weights, **options: Any) -> tuple[Any, Forward]:
    """gru_jax.gru."""
    del case
    _, params = gru_jax.from_torch(weights)
    return params, lambda params, x, lengths: gru_jax.gru(params, x, seq_lengths=lengths, **options)[0]


def quantized_gru(case: Case, weights: Weights, dtype: str) -> tuple[Any, Forward]:
    """gru_jax.quantized.gru."""
    del case
    qparams = quantized.quantize_dynamic(gru_jax.from_torch(weights)[1], dtype)
    return qparams, lambda qparams, x, lengths: quantized.gru(qparams, x, seq_lengths=lengths)[0]


def bfloat16_gru(case: Case, weights: Weights) -> tuple[Any, Forward]:
    """gru_jax.gru in bfloat16 throughout."""
    params, forward = gru_jax_gru(case, weights)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    return half, lambda params, x, lengths: forward(params, x.astype(jnp.bfloat16), lengths).astype(jnp.float32)


def stacked(case: Case, cells: dict[str, Any], layer: Callable[..., jax.Array]) -> tuple[Any, Forward]:
    """Composes layers of one direction; layer(cell's parameters, x, lengths, reverse) -> states [L, N, H]."""

    def forward(cells: dict[str, Any], x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        for names in case.cells:
            x = jnp.concatenate([layer(cells[n], x, lengths, n.endswith("reverse")) for n in names], axis=-1)
        return x

    return cells, forward


def halves(case: Case, weights: Weights) -> dict[str, tuple[np.ndarray, ...]]:
    """Each cell's (kernel_ih [I, 3H], kernel_hh [H, 3H], bias_ih [3H]), the gates in the order r, z, n."""
    return {
        name: (weights[f"weight_ih_{name}"].T, weights[f"weight_hh_{name}"].T, weights[f"bias_ih_{name}"])
        for names in case.cells
        for name in names
    }


def linen_gru(case: Case, weights: Weights) -> tuple[Any, Forward]:
    """flax.linen.RNN(GRUCell)."""
    from flax import linen

    hidden_size = case.size[3]
    cells = {}
    for name, (kernel_ih, kernel_hh, bias) in halves(case, weights).items():
        parts = [np.split(a, 3, axis=-1) for a in (kernel_ih, kernel_hh, bias)]
        cell = {f"i{g}": {"kernel": w, "bias": b} for g, w, b in zip("rzn", parts[0], parts[2], strict=True)}
        cell |= {f"h{g}": {"kernel": w} for g, w in zip("rzn", parts[1], strict=True)}
        cell["hn"]["bias"] = np.zeros(hidden_size, np.float32)
        cells[name] = cell

    def layer(cell: Any, x: jax.Array, lengths: jax.Array | None, reverse: bool) -> jax.Array:
        rnn = linen.RNN(linen.GRUCell(hidden_size, parent=None), time_major=True, reverse=reverse, keep_order=True)
        return rnn.apply({"params": {"cell": cell}}, x, seq_lengths=lengths)  # pyright: ignore[reportReturnType]

    return stacked(case, cells, layer)


def nnx_gru(case: Case, weights: Weights) -> tuple[Any, Forward]:
    """flax.nnx.RNN(GRUCell), with the zero carry that it would otherwise draw a random key for."""
    from flax import nnx

    hidden_size, cells, others = case.size[3], {}, {}
    for name, (kernel_ih, kernel_hh, bias) in halves(case, weights).items():
        cell = nnx.GRUCell(kernel_ih.shape[0], hidden_size, rngs=nnx.Rngs(0))
        cell.dense_i.kernel[...] = jnp.asarray(kernel_ih)
        cell.dense_i.bias[...] = jnp.asarray(bias)  # pyright: ignore[reportOptionalSubscript]
        cell.dense_h.kernel[...] = jnp.asarray(kernel_hh)
        rnn = nnx.RNN(cell, time_major=True, reverse=name.endswith("reverse"), keep_order=True)
        graph, cells[name], rest = nnx.split(rnn, nnx.Param, ...)
        others[kernel_ih.shape[0], rnn.reverse] = graph, rest

    def layer(cell: Any, x: jax.Array, lengths: jax.Array | None, reverse: bool) -> jax.Array:
        graph, rest = others[x.shape[-1], reverse]
        rnn = nnx.merge(graph, cell, rest)
        return rnn(x, initial_carry=jnp.zeros((x.shape[1], hidden_size)), seq_lengths=lengths)

    return stacked(case, cells, layer)


def equinox_gru(case: Case, weights: Weights) -> tuple[Any, Forward]:
    """equinox.nn.GRUCell, mapped over the batch and scanned over time."""
    import equinox

    cells = {}
    for name, (kernel_ih, kernel_hh, bias) in halves(case, weights).items():
        empty = equinox.nn.GRUCell(kernel_ih.shape[0], case.size[3], key=jax.random.key(0))
        leaves = (kernel_ih.T, kernel_hh.T, bias, np.zeros(case.size[3], np.float32))
        where = lambda cell: (cell.weight_ih, cell.weight_hh, cell.bias, cell.bias_n)
        cells[name] = equinox.tree_at(where, empty, tuple(map(jnp.asarray, leaves)))

    def layer(cell: Any, x: jax.Array, lengths: None, reverse: bool) -> jax.Array:
        del lengths

        def step(h: jax.Array, x_t: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = jax.vmap(cell)(x_t, h)
            return h, h

        return jax.lax.scan(step, jnp.zeros((x.shape[1], case.size[3])), x, reverse=reverse)[1]

    return stacked(case, cells, layer)


def haiku_gru(case: Case, weights: Weights) -> tuple[Any, Forward]:
    """haiku.GRU under dynamic_unroll: the original formula, the reset gate before the product; gates z, r, a.

    Its z is the complement of PyTorch's, 1 - sigmoid(a) = sigmoid(-a), so the weights of z change their sign.
    """
    import haiku

    hidden_size, cells = case.size[3], {}
    for name, arrays in halves(case, weights).items():
        parts = [np.split(a, 3, axis=-1) for a in arrays]
        cells[name] = {
            "gru": {k: np.concatenate([-z, r, n], -1) for k, (r, z, n) in zip(("w_i", "w_h", "b"), parts, strict=True)}
        }

    def unroll(x: jax.Array, reverse: bool) -> Any:
        core = haiku.GRU(hidden_size)
        return haiku.dynamic_unroll(core, x, core.initial_state(x.shape[1]), reverse=reverse)[0]

    apply = haiku.without_apply_rng(haiku.transform(unroll)).apply
    return stacked(case, cells, lambda cell, x, _, reverse: apply(cell, x, reverse))


def keras_gru(case: Case, weights: Weights) -> tuple[Any, Forward]:
    """keras.layers.GRU on the JAX backend. Keras is batch-major: it gets, and gives, a transposed view."""
    import keras

    layers, cells = {}, {}
    for name, arrays in halves(case, weights).items():
        layer = keras.layers.GRU(case.size[3], return_sequences=True, go_backwards=name.endswith("reverse"))
        layer.build((case.size[1], case.size[0], arrays[0].shape[0]))
        swapped = [np.concatenate([z, r, n], -1) for r, z, n in (np.split(a, 3, axis=-1) for a in arrays)]
        layers[name] = layer
        cells[name] = [*map(jnp.asarray, swapped[:2]), jnp.stack([swapped[2], np.zeros_like(swapped[2])])]

    def forward(cells: dict[str, Any], x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        x, mask = x.swapaxes(0, 1), None
        if lengths is not None:
            mask = jnp.arange(x.shape[1]) < lengths[:, None]
        for names in case.cells:
            states = [
                layers[n].stateless_call(cells[n], layers[n].non_trainable_variables, x, mask=mask)[0] for n in names
            ]
            x = jnp.concatenate([states[0], *(jnp.flip(s, 1) for s in states[1:])], axis=-1)
        return x.swapaxes(0, 1)

    return cells, forward


def two_matmuls(case: Case, weights: Weights) -> tuple[Any, Forward]:
    """No GRU: a scan that does a layer's two matmuls and nothing else."""
    cells = {name: (kernel_ih, kernel_hh / 3) for name, (kernel_ih, kernel_hh, _) in halves(case, weights).items()}

    def layer(cell: Any, x: jax.Array, lengths: None, reverse: bool) -> jax.Array:
        del lengths

        def step(h: jax.Array, x_t: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = functools.reduce(jnp.add, jnp.split(x_t @ cell[0] + h @ cell[1], 3, axis=-1))
            return h, h

        return jax.lax.scan(step, jnp.zeros((x.shape[1], case.size[3])), x, reverse=reverse)[1]

    return stacked(case, cells, layer)


def gru_jax_step(case: Case, weights: Weights) -> tuple[Any, Callable[..., jax.Array]]:
    """gru_jax.gru_step."""
    del case
    return gru_jax.from_torch(weights)[1]["l0"], gru_jax.gru_step


def linen_step(case: Case, weights: Weights) -> tuple[Any, Callable[..., jax.Array]]:
    """flax.linen.GRUCell."""
    from flax import linen

    cells, _ = linen_gru(case, weights)
    return cells["l0"], lambda cell, h, x: linen.GRUCell(case.size[3]).apply({"params": cell}, h, x)[0]


def equinox_step(case: Case, weights: Weights) -> tuple[Any, Callable[..., jax.Array]]:
    """equinox.nn.GRUCell."""
    cells, _ = equinox_gru(case, weights)
    return cells["l0"], lambda cell, h, x: jax.vmap(cell)(x, h)


SEQUENCES = {
    "gru_jax": gru_jax_gru,
    "flax.linen": linen_gru,
    "flax.nnx": nnx_gru,
    "equinox": equinox_gru,
    "dm-haiku": haiku_gru,
    "keras": keras_gru,
    "two matmuls": two_matmuls,
}
RECOMPUTING = {"gru_jax remat": functools.partial(gru_jax_gru, remat=True)}
QUANTIZED = {
    "gru_jax": functools.partial(quantized_gru, dtype="int8"),
    "gru_jax float16": functools.partial(quantized_gru, dtype="float16"),
    "gru_jax bfloat16": bfloat16_gru,
    "gru_jax float32": gru_jax_gru,
}
STEPS = {"gru_jax": gru_jax_step, "flax.linen": linen_step, "equinox": equinox_step}
OTHER_FORMULA = {"dm-haiku", "two matmuls"}
NO_LENGTHS = {"equinox", "dm-haiku", "two matmuls"}
