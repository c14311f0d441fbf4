"""Any scan over one layer, composed over layers and directions, behind the checks and the layouts that users see."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from gru_jax import _shapes
from gru_jax.params import CellParams, GRUConfig, cell_names
from gru_jax.scan import Marks
from gru_jax.sequences import PackedSequence, length_mask, pad_packed_sequence, repack

Sequence = TypeVar("Sequence", jax.Array, PackedSequence)
Scan = Callable[[CellParams, jax.Array, jax.Array, Marks], tuple[jax.Array, jax.Array]]


def compose(
    function: str,
    scan: Scan,
    config: GRUConfig,
    params: Mapping[str, Mapping[str, jax.Array]],
    x: Sequence,
    h_0: jax.Array | None,
    *,
    seq_lengths: ArrayLike | None,
    batch_first: bool,
    resets: jax.Array | None = None,
    dtype: DTypeLike | None = None,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> tuple[Sequence, jax.Array]:
    """Layers and directions of any `scan` over one layer: `gru` with the float one, `quantized.gru` with its own.

    `function` is named in the errors; `scan` must be the same object from call to call; `dtype` is what all is
    computed in, the promoted one by default.
    """
    if isinstance(x, PackedSequence):
        if seq_lengths is not None:
            raise ValueError(
                f"{function}: expected no seq_lengths beside a PackedSequence, which holds its own lengths."
            )
        if resets is not None:
            raise ValueError(f"{function}: expected no resets beside a PackedSequence. Give padded x and seq_lengths.")
        dense, seq_lengths = pad_packed_sequence(x)
        batch_first = False
    else:
        dense = x
    _shapes.check_input(function, dense, config.input_size, batch_first=batch_first)
    batch_first = batch_first and dense.ndim == 3
    dense = jnp.swapaxes(dense, 0, 1) if batch_first else jnp.asarray(dense)

    steps, *batch, _ = dense.shape
    state_shape = (config.num_layers * config.num_directions, *batch, config.hidden_size)
    if h_0 is None:
        h_0 = jnp.zeros(state_shape, dense.dtype)
    _shapes.check_array(function, "h_0", h_0)
    symbols = "num_layers*D, N, H" if batch else "num_layers*D, H"
    _shapes.check_shape(function, "h_0", h_0, symbols, state_shape, "h_0 is never batch-first.")
    if seq_lengths is not None:
        seq_lengths = _shapes.check_lengths(function, "seq_lengths", seq_lengths, tuple(batch), steps)

    if resets is not None:
        resets = _shapes.check_resets(function, resets, (steps, *batch), batch_first=batch_first)

    dtype = jnp.result_type(dense, h_0, *jax.tree.leaves(params)) if dtype is None else dtype
    output, h_n = _layers(
        {name: dict(cell) for name, cell in params.items()},
        dense.astype(dtype),
        jnp.asarray(h_0, dtype),
        seq_lengths,
        resets,
        dropout_key,
        scan=scan,
        bidirectional=config.bidirectional,
        dropout=dropout,
    )
    if isinstance(x, PackedSequence):
        return repack(x, output), h_n
    return jnp.swapaxes(output, 0, 1) if batch_first else output, h_n


# Compiled here so that a call outside jit compiles once, not at every call; inside jit it is inlined.
@functools.partial(
    jax.jit,
    static_argnames=("scan", "bidirectional", "dropout"),
    inline=True,
)
def _layers(
    params: dict[str, dict[str, jax.Array]],
    x: jax.Array,
    h_0: jax.Array,
    seq_lengths: jax.Array | None,
    resets: jax.Array | None,
    dropout_key: Any,
    *,
    scan: Scan,
    bidirectional: bool,
    dropout: float,
) -> tuple[jax.Array, jax.Array]:
    """`compose` on checked, time-major arrays: each layer reads what the one below it wrote."""
    directions = [scan, _backward(scan)] if bidirectional else [scan]
    # A scan must begin as it goes on: with zeros sharded as x is, and under shard_map with arrays that vary alike.
    # Where parameters vary before the scan, not in each step, their gradient is summed over the mesh only once.
    h_0 = h_0 + _zero_like(x.sum(axis=(0, -1)))[..., None]
    params, x, h_0 = _vary_alike((params, x, h_0))
    mask = None
    resets = None if resets is None else resets[..., None]
    if seq_lengths is not None:
        mask = length_mask(seq_lengths, x.shape[0])
        x = jnp.where(mask, x, 0)  # What stands in the padding, a NaN even, must not reach a gradient as 0 * NaN.
        resets = None if resets is None else resets & mask
    marks = Marks(mask, resets)

    states, h_n = iter(h_0), []
    for layer, names in enumerate(cell_names(len(params) // len(directions), bidirectional)):
        if layer > 0 and dropout > 0:
            x = _dropout(jax.random.fold_in(dropout_key, layer), dropout, x)
        results = [run(params[name], x, next(states), marks) for run, name in zip(directions, names, strict=True)]
        x = jnp.concatenate([states for states, _ in results], axis=-1)
        x = x if mask is None else jnp.where(mask, x, 0)
        h_n += [h for _, h in results]
    return x, jnp.stack(h_n)


def _vary_alike(arrays: Any) -> Any:
    """The same arrays, under shard_map varying over every axis of the mesh that one of them varies over.

    Each gets it by adding a zero that was made of all of them.
    """
    zero = sum(_zero_like(a.sum()) for a in jax.tree.leaves(arrays))
    return jax.tree.map(lambda a: a + jnp.asarray(zero, a.dtype), arrays)


def _zero_like(array: jax.Array) -> jax.Array:
    """Zeros that are sharded as `array` is and vary over the mesh as it does; XLA makes a constant of them.

    `jnp.zeros_like` is no help: since JAX 0.12 its result is not sharded.
    """
    return jnp.where(False, jax.lax.stop_gradient(array), 0)


def _backward(scan: Scan) -> Scan:
    """The scan that reads its input from the last step to the first, its output in the input's order."""

    def scan_backward(params, x, h_0, marks):
        states, h_n = scan(params, jnp.flip(x, axis=0), h_0, marks.flip())
        return jnp.flip(states, axis=0), h_n

    return scan_backward


def _dropout(key: jax.Array, rate: float, x: jax.Array) -> jax.Array:
    """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate); rate 1 gives zeros."""
    if rate == 1:
        return jnp.zeros_like(x)
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
