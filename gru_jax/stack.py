"""The GRU as it is called: `gru` over a whole sequence, `stacked_step` over one time step."""

import functools

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from gru_jax import _shapes
from gru_jax.cell import step
from gru_jax.gradients import Remat, check_remat, scan_layer
from gru_jax.layers import Scan, Sequence, compose
from gru_jax.params import GRUParams, check_params


def gru(
    params: GRUParams,
    x: Sequence,
    h_0: jax.Array | None = None,
    *,
    seq_lengths: ArrayLike | None = None,
    resets: jax.Array | None = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
    reset_after: bool = True,
    precision: PrecisionLike = None,
    remat: Remat = None,
    unroll: int = 1,
) -> tuple[Sequence, jax.Array]:
    """A stack of GRU layers over a sequence: `torch.nn.GRU`.

        r_t = sigmoid(W_ir x_t + b_ir + W_hr h_(t-1) + b_hr)
        z_t = sigmoid(W_iz x_t + b_iz + W_hz h_(t-1) + b_hz)
        n_t = tanh(W_in x_t + b_in + r_t * (W_hn h_(t-1) + b_hn))
        h_t = (1 - z_t) * n_t + z_t * h_(t-1)

    x_t of a layer above the first is the output of the layer below, its two directions side by side. The number of
    layers and directions is read off `params`. Arrays of different dtypes are promoted to one, as everywhere in JAX.

    Args:
      params: GRUParams, as from `init_params` or `from_torch`.
      x: [L, N, I], or [N, L, I] with `batch_first`, or one unbatched sequence [L, I], or a PackedSequence.
      h_0: [num_layers*D, N, H] ([num_layers*D, H] unbatched), whatever `batch_first` says; zeros by default.
      seq_lengths: [N] integers within 0..L, traced or not; by default every sequence has L steps. Padding gives zeros
        in output, and no influence on anything else. Traced lengths can't be checked: one beyond L counts as L.
      resets: [L, N] bools ([N, L] with `batch_first`, [L] unbatched), traced or not: True where a sequence begins anew,
        as an episode in reinforcement learning does. The state is zeroed before that step, so the result is that of
        the pieces run apart, each but the first from zeros: the reverse direction reads each piece from its own end,
        and h_n is the state after the piece that a direction reads last. Resets in padding count for nothing.
      batch_first: whether the batch axis of x, resets and output comes first.
      dropout: probability of a zero, elementwise, in what each layer but the last hands up; the rest is scaled by
        1 / (1 - dropout). h_n is taken before it.
      dropout_key: a JAX random key; required where dropout > 0.
      reset_after: False for the original paper's new gate, n = tanh(W_in x + b_in + W_hn (r * h) + b_hn).
      precision: of every matmul, as in `jax.lax.dot`. On a GPU or TPU only "highest" computes float32 as PyTorch does.
      remat: what the gradient computes again instead of storing it. None: what is fastest for these shapes on a CPU.
        False: nothing. An integer C: all but one state every C steps. True: C = sqrt(L), which takes the least memory.
      unroll: time steps in one iteration of the compiled loop.

    Returns:
      (output, h_n). output is [L, N, D*H], the last layer's h_t for each t ([N, L, D*H], [L, D*H] or a PackedSequence,
      as x is). h_n is [num_layers*D, N, H] ([num_layers*D, H] unbatched), each layer's and direction's state after its
      own last step; `h_n.reshape(num_layers, D, N, H)` separates them.

    Raises:
      TypeError: if an argument is of the wrong kind.
      ValueError: if shapes do not fit together, a known length is outside 0..L, or dropout has no key.

    Example:
      >>> from gru_jax import GRUConfig, init_params
      >>> params = init_params(jax.random.key(0), GRUConfig(10, 20, num_layers=2, bidirectional=True))
      >>> output, h_n = gru(params, jnp.ones((5, 3, 10)))
      >>> output.shape, h_n.shape
      ((5, 3, 40), (4, 3, 20))

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html
    """
    config = check_params("gru", params)
    _shapes.check_flags("gru", batch_first=batch_first, reset_after=reset_after)
    _shapes.check_dropout("gru", dropout, config.num_layers)
    if dropout > 0 and dropout_key is None:
        raise ValueError(f"gru: expected a dropout_key with dropout={dropout}, got None.")
    _shapes.check_positive("gru", unroll=unroll)
    check_remat("gru", remat)
    scan = _float_scan(reset_after, precision, remat, unroll)
    return compose(
        "gru",
        scan,
        config,
        params,
        x,
        h_0,
        seq_lengths=seq_lengths,
        resets=resets,
        batch_first=batch_first,
        dropout=float(dropout),
        dropout_key=dropout_key,
    )


@functools.lru_cache(typed=True)
def _float_scan(reset_after: bool, precision: PrecisionLike, remat: Remat, unroll: int) -> Scan:
    """Returns `scan_layer` with its options: the same function for the same options, so that they compile once."""

    def scan(params, x, h_0, marks):
        if remat and not isinstance(x.shape[0], int):
            raise ValueError(
                f"gru: expected remat=None with a symbolic number of steps, L = {x.shape[0]}, got {remat}."
            )
        return scan_layer(
            params, x, h_0, marks, reset_after=reset_after, precision=precision, remat=remat, unroll=unroll
        )

    return scan


def stacked_step(
    params: GRUParams, h: jax.Array, x: jax.Array, *, reset_after: bool = True, precision: PrecisionLike = None
) -> tuple[jax.Array, jax.Array]:
    """One time step through all layers, for streaming and for decoding one token at a time.

    Scanned over time it gives what `gru` gives layer by layer; where the whole sequence is known `gru` is the faster
    way, for a gradient and for few rows. A reverse direction begins at the sequence's end, so it can't be stepped: one
    direction only.

    Args:
      params: GRUParams of one direction.
      h: [num_layers, ..., H], every layer's state before the step.
      x: [..., I], the input, with the same leading axes.
      reset_after: as in `gru`.
      precision: as in `gru`.

    Returns:
      (y, h). y is [..., H], the last layer's new state: this step's output. h is [num_layers, ..., H], every layer's
      new state.

    Raises:
      TypeError: if an array is no floating array.
      ValueError: if shapes do not fit together, or params are bidirectional.

    Example:
      >>> from gru_jax import GRUConfig, init_params
      >>> params = init_params(jax.random.key(0), GRUConfig(10, 20, num_layers=2))
      >>> y, h = stacked_step(params, jnp.zeros((2, 3, 20)), jnp.ones((3, 10)))
      >>> y.shape, h.shape
      ((3, 20), (2, 3, 20))
      >>> h_n, output = jax.lax.scan(lambda h, x: stacked_step(params, h, x)[::-1], h, jnp.ones((5, 3, 10)))
      >>> output.shape
      (5, 3, 20)
    """
    config = check_params("stacked_step", params)
    _shapes.check_flags("stacked_step", reset_after=reset_after)
    if config.bidirectional:
        raise ValueError(
            "stacked_step: expected params of one direction, got l0_reverse. The reverse direction begins at the "
            "sequence's end: use gru."
        )
    _shapes.check_array("stacked_step", "h", h)
    _shapes.check_array("stacked_step", "x", x)
    batch = x.shape[:-1]
    _shapes.check_shape("stacked_step", "x", x, "..., I", (*batch, config.input_size), "I is read off kernel_ih.")
    state_shape = (config.num_layers, *batch, config.hidden_size)
    _shapes.check_shape("stacked_step", "h", h, "num_layers, ..., H", state_shape, "h and x share their batch axes.")
    states = []
    for layer in range(config.num_layers):
        x = step(params[f"l{layer}"], h[layer], x, reset_after=reset_after, precision=precision)
        states.append(x)
    return x, jnp.stack(states)
