"""How the scan over time is differentiated.

The derivative of a scan is a scan of derivatives. Taken as it comes, it adds up the weights' gradient step by step
inside the loop: L small, slow matmuls, and a float32 sum of L terms that strays several times further from the truth
than PyTorch's. But the loop is needed only for what one state hands to the next,

    dh_t = A_t dh_(t-1) + b_t         A_t = dh_t / dh_(t-1)         b_t: by way of the parameters and of x_t

so `b` is computed for many steps at once, before the loop, and its transpose, the weights' gradient, in large matmuls
after the loop that runs backwards. It is written as the rule of a `jax.custom_jvp`, which JAX transposes by itself, so
forward mode, reverse mode and their compositions all work.

    remat=None    stores what A and b need at every step: fastest to differentiate.
    remat=C       keeps one state every C steps and computes each block of C steps again when its gradient is due, so
                  that memory grows with L/C + C.
    remat=True    C = sqrt(L), where that is least.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike

from gru_jax import _shapes
from gru_jax.cell import gates, new_state, step
from gru_jax.params import CellParams
from gru_jax.scan import scan_time
from gru_jax.tangent import RESET_AFTER, RESET_BEFORE, Slopes, input_gates_tangent

Remat = bool | int | None


def check_remat(function: str, remat: Remat) -> None:
    """Raises unless `remat` is None, a bool, or an integer of at least 1."""
    if remat is not None and not isinstance(remat, bool):
        _shapes.check_positive(function, remat=remat)


def scan_layer(
    params: CellParams,
    x: jax.Array,
    h_0: jax.Array,
    mask: jax.Array | None,
    *,
    reset_after: bool,
    precision: PrecisionLike,
    remat: Remat,
    unroll: int,
) -> tuple[jax.Array, jax.Array]:
    """One layer, one direction, over x [L, ..., I]. Returns (states [L, ..., H], h_n [..., H])."""
    scan = functools.partial(_scan_stored, reset_after, precision, unroll)
    if remat is None or remat is False or x.shape[0] == 0:
        return scan(params, x, h_0, mask)
    size = math.isqrt(x.shape[0]) if remat is True else remat

    @functools.partial(jax.checkpoint, prevent_cse=False)  # Needed outside loops only; it would hinder fusion in one.
    def scan_block(h: jax.Array, block: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        states, h_n = scan(params, block[0], h, block[1])
        return h_n, states

    count = x.shape[0] // size
    whole = count * size
    blocks = jax.tree.map(lambda a: a[:whole].reshape(count, size, *a.shape[1:]), (x, mask))
    h, states = jax.lax.scan(scan_block, h_0, blocks)
    states = states.reshape(whole, *h_0.shape)
    if whole == x.shape[0]:
        return states, h
    h, rest = scan_block(h, jax.tree.map(lambda a: a[whole:], (x, mask)))
    return jnp.concatenate([states, rest]), h


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _scan_stored(reset_after, precision, unroll, params, x, h_0, mask):
    """The plain scan of one step, and what it computes outside of any differentiation."""

    def advance(h: jax.Array, x_t: jax.Array) -> tuple[jax.Array, None]:
        return step(params, h, x_t, reset_after=reset_after, precision=precision), None

    states, _, h_n = scan_time(advance, h_0, x, mask, unroll=unroll)
    return states, h_n


@_scan_stored.defjvp
def _scan_stored_jvp(reset_after, precision, unroll, primals, tangents):
    params, x, h_0, mask = primals
    dparams, dx, dh_0, _ = tangents
    tangent = RESET_AFTER if reset_after else RESET_BEFORE
    kernel_hh = params["kernel_hh"]

    def advance(h: jax.Array, x_t: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        r, z, n, scaled = gates(params, h, x_t, reset_after=reset_after, precision=precision)
        return new_state(h, z, n), (r, z, n, scaled)

    states, stored, h_n = scan_time(advance, h_0, x, mask, unroll=unroll)
    before = jnp.concatenate([h_0[None], states])[:-1]  # the state before each step
    slopes = tangent.slopes(before, *stored)
    di = input_gates_tangent(params, x, dparams, dx, precision)
    b = tangent.through_rest(before, di, kernel_hh, dparams, precision, *slopes)

    def advance_tangent(dh: jax.Array, at_t: tuple[Slopes, jax.Array]) -> tuple[jax.Array, None]:
        slopes_t, b_t = at_t
        return tangent.through_state(dh, kernel_hh, precision, *slopes_t) + b_t, None

    dstates, _, dh_n = scan_time(advance_tangent, dh_0, (slopes, b), mask, unroll=unroll)
    return (states, h_n), (dstates, dh_n)
