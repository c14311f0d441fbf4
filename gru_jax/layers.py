"""Composes a scan over one layer into layers and directions, with the arguments that users give and their checks."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from gru_jax import _shapes
from gru_jax.params import CellParams, GRUConfig, cell_names
from gru_jax.scan import Masks
from gru_jax.sequences import PackedSequence, length_mask, pad_packed_sequence, repack

Sequence = TypeVar("Sequence", jax.Array, PackedSequence)
Scan = Callable[[CellParams, jax.Array, jax.Array, Masks], tuple[jax.Array, jax.Array]]


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
    """Runs a stack of layers, given the `scan` of one layer: `gru` gives the float one, `quantized.gru` its own.

    Args:
      function: the public function that is called, for its error messages.
      scan: one layer and direction, (params, x, h_0, masks) -> (states, h_n). It must be the same object from call to
        call, since what is compiled is kept by it.
      config: the sizes of `params`.
      params: what `scan` takes, by cell: "l0", "l0_reverse", ...
      x: as in `gru`, like all further arguments but one.
      h_0: as in `gru`.
      seq_lengths: as in `gru`.
      batch_first: as in `gru`.
      resets: as in `gru`.
      dtype: what x and h_0 are cast to; by default the dtype that they and the params promote to.
      dropout: as in `gru`.
      dropout_key: as in `gru`.
    """
    options = {"dtype": dtype, "dropout": dropout, "dropout_key": dropout_key}
    run = functools.partial(_run_padded, function, scan, config, params, **options)
    if isinstance(x, PackedSequence):
        if seq_lengths is not None:
            raise ValueError(
                f"{function}: expected no seq_lengths beside a PackedSequence, which holds its own lengths."
            )
        if resets is not None:
            raise ValueError(f"{function}: expected no resets beside a PackedSequence. Give padded x and seq_lengths.")
        padded, lengths = pad_packed_sequence(x)
        output, h_n = run(padded, h_0, seq_lengths=lengths, batch_first=False, resets=None)
        return repack(x, output), h_n
    return run(x, h_0, seq_lengths=seq_lengths, batch_first=batch_first, resets=resets)


def _run_padded(
    function: str,
    scan: Scan,
    config: GRUConfig,
    params: Mapping[str, Mapping[str, jax.Array]],
    x: jax.Array,
    h_0: jax.Array | None,
    *,
    seq_lengths: ArrayLike | None,
    batch_first: bool,
    resets: jax.Array | None,
    dtype: DTypeLike | None,
    dropout: float,
    dropout_key: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """`compose` of a padded batch: checks the arguments and puts the time axis first."""
    _shapes.check_input(function, x, config.input_size, batch_first=batch_first)
    batch_first = batch_first and x.ndim == 3
    time_major = jnp.swapaxes(x, 0, 1) if batch_first else jnp.asarray(x)
    steps, *batch, _ = time_major.shape
    state_shape = (config.num_layers * config.num_directions, *batch, config.hidden_size)
    if h_0 is None:
        h_0 = jnp.zeros(state_shape, time_major.dtype)
    _shapes.check_array(function, "h_0", h_0)
    symbols = "num_layers*D, N, H" if batch else "num_layers*D, H"
    _shapes.check_shape(function, "h_0", h_0, symbols, state_shape, "h_0 is never batch-first.")
    if seq_lengths is not None:
        seq_lengths = _shapes.check_lengths(function, "seq_lengths", seq_lengths, tuple(batch), steps)
    if resets is not None:
        resets = _shapes.check_resets(function, resets, (steps, *batch), batch_first=batch_first)

    dtype = jnp.result_type(time_major, h_0, *jax.tree.leaves(params)) if dtype is None else dtype
    output, h_n = _layers(
        {name: dict(cell) for name, cell in params.items()},
        time_major.astype(dtype),
        jnp.asarray(h_0, dtype),
        seq_lengths,
        resets,
        dropout_key,
        scan=scan,
        bidirectional=config.bidirectional,
        dropout=dropout,
    )
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
    """Runs the layers on checked, time-major arrays: each reads the output of the layer below."""
    directions = [scan, _backward(scan)] if bidirectional else [scan]
    # The state of a scan keeps its type from step to step. On a mesh the type says how an array is sharded and, under
    # shard_map, over which axes it varies. So h_0 is given x's sharding, and all arrays are made to vary alike. The
    # parameters vary before the scan begins: their gradient is summed over the mesh once, not at every step.
    h_0 = h_0 + _zero_like(x.sum(axis=(0, -1)))[..., None]
    params, x, h_0 = _vary_alike((params, x, h_0))
    present = None
    resets = None if resets is None else resets[..., None]
    if seq_lengths is not None:
        present = length_mask(seq_lengths, x.shape[0])
        x = jnp.where(present, x, 0)  # A NaN in the padding would reach the gradients, as 0 * NaN.
        resets = None if resets is None else resets & present
    masks = Masks(present, resets)

    states, h_n = iter(h_0), []
    for layer, names in enumerate(cell_names(len(params) // len(directions), bidirectional)):
        if layer > 0 and dropout > 0:
            x = _dropout(jax.random.fold_in(dropout_key, layer), dropout, x)
        results = [run(params[name], x, next(states), masks) for run, name in zip(directions, names, strict=True)]
        x = jnp.concatenate([states for states, _ in results], axis=-1)
        x = x if present is None else jnp.where(present, x, 0)
        h_n += [h for _, h in results]
    return x, jnp.stack(h_n)


def _vary_alike(arrays: Any) -> Any:
    """Under shard_map, makes all arrays vary over every axis of the mesh that any of them varies over.

    To each a zero is added that depends on all of them.
    """
    zero = sum(_zero_like(a.sum()) for a in jax.tree.leaves(arrays))
    return jax.tree.map(lambda a: a + jnp.asarray(zero, a.dtype), arrays)


def _zero_like(array: jax.Array) -> jax.Array:
    """Zeros that are sharded as `array` is and vary over the mesh as it does; XLA makes a constant of them.

    `jnp.zeros_like` is no help: since JAX 0.12 its result is not sharded.
    """
    return jnp.where(False, jax.lax.stop_gradient(array), 0)


def _backward(scan: Scan) -> Scan:
    """Returns the scan that reads x from the last step to the first; its output is in the order of x."""

    def scan_backward(params, x, h_0, masks):
        states, h_n = scan(params, jnp.flip(x, axis=0), h_0, masks.flip())
        return jnp.flip(states, axis=0), h_n

    return scan_backward


def _dropout(key: jax.Array, rate: float, x: jax.Array) -> jax.Array:
    """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate); rate 1 gives zeros."""
    if rate == 1:
        return jnp.zeros_like(x)
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
