"""How the scan over time is differentiated.

The derivative of a scan is a scan of derivatives. Taken as it comes, it adds up the weights' gradient step by step
inside the loop: L small, slow matmuls, and a float32 sum of L terms that strays several times further from the truth
than PyTorch's. But the loop is needed only for what one state hands to the next,

    dh_t = A_t dh_(t-1) + b_t         A_t = dh_t / dh_(t-1)         b_t: by way of the parameters and of x_t

so `b` is computed for all steps at once, before the loop, and its transpose, the weights' gradient, in one large
matmul after the loop that runs backwards. It is written as the rule of a `jax.custom_jvp`, which JAX transposes by
itself, so forward mode, reverse mode and their compositions all work.

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
from gru_jax.cell import gates, step
from gru_jax.params import CellParams
from gru_jax.scan import scan_time

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

    whole = x.shape[0] // size * size
    blocks = jax.tree.map(lambda a: a[:whole].reshape(-1, size, *a.shape[1:]), (x, mask))
    h, states = jax.lax.scan(scan_block, h_0, blocks)
    states = states.reshape(whole, *h_0.shape)
    if whole == x.shape[0]:
        return states, h
    h, rest = scan_block(h, jax.tree.map(lambda a: a[whole:], (x, mask)))
    return jnp.concatenate([states, rest]), h


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _scan_stored(reset_after, precision, unroll, params, x, h_0, mask):
    """The plain scan of `step`, and what it computes outside of any differentiation."""

    def advance(h: jax.Array, x_t: jax.Array) -> jax.Array:
        return step(params, h, x_t, reset_after=reset_after, precision=precision)

    return scan_time(advance, h_0, x, mask, unroll=unroll)


@_scan_stored.defjvp
def _scan_stored_jvp(reset_after, precision, unroll, primals, tangents):
    params, x, h_0, mask = primals
    dparams, dx, dh_0, _ = tangents
    states, h_n = _scan_stored(reset_after, precision, unroll, params, x, h_0, mask)
    before = jnp.concatenate([h_0[None], states])[:-1]  # the state before each step

    every_step = functools.partial(step, reset_after=reset_after, precision=precision)
    _, b = jax.jvp(lambda params, x: every_step(params, before, x), (params, x), (dparams, dx))
    rzn = gates(params, before, x, reset_after=reset_after, precision=precision)
    coefficients, apply = (_reset_after if reset_after else _reset_before)(before, *rzn)

    def advance(dh: jax.Array, at_t: tuple[tuple[jax.Array, ...], jax.Array]) -> jax.Array:
        return apply(dh, params["kernel_hh"], precision, *at_t[0]) + at_t[1]

    return (states, h_n), scan_time(advance, dh_0, (coefficients, b), mask, unroll=unroll)


def _reset_after(h, r, z, n, scaled):
    """A of h' = n + z (h - n), n = tanh(i_n + r * scaled), scaled = W_hn h + b_hn: its coefficients, and A dh."""
    through_n = (1 - z) * (1 - n * n)

    def apply(dh, kernel_hh, precision, by_h, by_r, by_z, by_n):
        dh_r, dh_z, dh_n = jnp.split(jnp.matmul(dh, kernel_hh, precision=precision), 3, axis=-1)
        return by_h * dh + by_r * dh_r + by_z * dh_z + by_n * dh_n

    return (z, through_n * scaled * r * (1 - r), (h - n) * z * (1 - z), through_n * r), apply


def _reset_before(h, r, z, n, scaled):
    """A of h' = n + z (h - n), n = tanh(i_n + W_hn (r * h) + b_hn): its coefficients, and A dh."""

    def apply(dh, kernel_hh, precision, by_h, by_r, by_z, by_n, r):
        kernel_rz, kernel_n = jnp.split(kernel_hh, [2 * dh.shape[-1]], axis=-1)
        dh_r, dh_z = jnp.split(jnp.matmul(dh, kernel_rz, precision=precision), 2, axis=-1)
        dh_n = jnp.matmul(r * dh + by_r * dh_r, kernel_n, precision=precision)
        return by_h * dh + by_z * dh_z + by_n * dh_n

    return (z, scaled * r * (1 - r), (h - n) * z * (1 - z), (1 - z) * (1 - n * n), r), apply
