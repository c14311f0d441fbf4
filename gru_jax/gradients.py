"""How the scan over time is differentiated.

The derivative of a scan is a scan of derivatives. Taken as it comes, it adds up the weights' gradient step by step
inside the loop: L small, slow matmuls, and a float32 sum of L terms that strays several times further from the truth
than PyTorch's. But the loop is needed only for what one state hands to the next,

    dh_t = A_t dh_(t-1) + b_t         A_t = dh_t / dh_(t-1)         b_t: by way of the parameters and of x_t

so `b` can be computed for many steps at once, before the loop, and its transpose, the weights' gradient, in large
matmuls after the loop that runs backwards. That needs the gates of every step, r, z, n and what r scales. Where many
rows make those larger than the cache, A and b are computed step by step instead, from gates that are computed again
from x and the states.

Both are written as the rule of a `jax.custom_jvp`, which JAX transposes by itself, so forward mode, reverse mode and
their compositions all work.

    remat=False   stores the gates of all steps.
    remat=C       keeps one state every C steps and runs each block of C steps again when its gradient is due, so that
                  memory grows with L/C + C.
    remat=True    C = sqrt(L), where that is least.
    remat=None    what is fastest for these shapes: `strategy.choose`.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike

from gru_jax import _shapes
from gru_jax.cell import Gates, gates, input_gates, new_state
from gru_jax.params import CellParams
from gru_jax.scan import Marks, scan_blocks, scan_time
from gru_jax.strategy import choose
from gru_jax.tangent import (
    RESET_AFTER,
    RESET_BEFORE,
    Slopes,
    Tangent,
    affine,
    affine_in_blocks,
    input_gates_tangent,
)

Remat = bool | int | None
BLOCK = 64  # steps whose weight gradients are summed before they are added to the rest, see `_tangent_of_recomputed`


def check_remat(function: str, remat: Remat) -> None:
    """Raises unless `remat` is None, a bool, or an integer of at least 1."""
    if remat is not None and not isinstance(remat, bool):
        _shapes.check_positive(function, remat=remat)


def scan_layer(
    params: CellParams,
    x: jax.Array,
    h_0: jax.Array,
    marks: Marks,
    *,
    reset_after: bool,
    precision: PrecisionLike,
    remat: Remat,
    unroll: int,
) -> tuple[jax.Array, jax.Array]:
    """One layer, one direction, over x [L, ..., I]. Returns (states [L, ..., H], h_n [..., H])."""
    strategy = choose(x, h_0)
    recompute = strategy.recompute and remat is not False
    remat = strategy.remat if remat is None else remat
    scan = functools.partial(_scan, How(reset_after, precision, unroll, recompute), params)
    if not remat or x.shape[0] == 0:
        return scan(x, h_0, marks)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # Needed outside loops only; it would hinder fusion in one.
    def scan_block(h: jax.Array, block: tuple[jax.Array, Marks]) -> tuple[jax.Array, jax.Array]:
        return scan(block[0], h, block[1])

    return scan_blocks(scan_block, _near_root(x.shape[0]) if remat is True else remat, h_0, (x, marks))


def _near_root(steps: int) -> int:
    """The largest divisor of `steps` up to its square root, since a rest costs a copy; the root where none is near."""
    root = math.isqrt(steps)
    divisor = next(d for d in range(root, 0, -1) if steps % d == 0)
    return divisor if 2 * divisor >= root else root


class How(NamedTuple):
    """What is static about one scan."""

    reset_after: bool
    precision: PrecisionLike
    unroll: int
    recompute: bool


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _scan(how: How, params: CellParams, x: jax.Array, h_0: jax.Array, marks: Marks) -> tuple[jax.Array, jax.Array]:
    """The scan of one step, and what it computes outside of any differentiation."""
    states, _, h_n = _scan_gates(how, params, x, h_0, marks, keep=False)
    return states, h_n


def _scan_gates(how, params, x, h_0, marks, *, keep):
    """The scan of one step; where told to keep them, the gates of every step are stored."""
    strategy = choose(x, h_0)  # Asked here, where x may be one block of the sequence.

    def input_gates_of(at_t: Any) -> Gates:
        if not strategy.hoist:
            return input_gates(params, at_t, how.precision)
        return jax.lax.optimization_barrier(at_t) if strategy.barrier else at_t

    def advance(h: jax.Array, at_t: Any) -> tuple[jax.Array, tuple[jax.Array, ...] | None]:
        r, z, n, scaled = gates(params, h, input_gates_of(at_t), reset_after=how.reset_after, precision=how.precision)
        return new_state(h, z, n), (r, z, n, scaled) if keep else None

    inputs = input_gates(params, x, how.precision) if strategy.hoist else x
    return scan_time(advance, h_0, inputs, marks, unroll=how.unroll)


@_scan.defjvp
def _scan_jvp(how, primals, tangents):
    params, x, h_0, marks = primals
    keep = not how.recompute
    states, stored, h_n = _scan_gates(how, params, x, h_0, marks, keep=keep)
    before = marks.begin(jnp.concatenate([h_0[None], states])[:-1])  # the state before each step
    if keep:
        return (states, h_n), _tangent_of_stored(how, primals, tangents, before, stored)
    return (states, h_n), _tangent_of_recomputed(how, primals, tangents, before)


def _tangent_of_stored(how, primals, tangents, before, stored):
    """A and b of all steps at once, from the stored gates; the loop does A dh + b alone."""
    params, x, _, marks = primals
    dparams, dx, dh_0, _ = tangents
    tangent, kernel_hh = _tangent(how), params["kernel_hh"]
    slopes = tangent.slopes(before, *stored)
    di = input_gates_tangent(affine_in_blocks, params, x, dparams, dx, how.precision)
    b = tangent.through_rest(affine_in_blocks, before, di, kernel_hh, dparams, how.precision, *slopes)

    def advance(dh: jax.Array, at_t: tuple[Slopes, jax.Array]) -> tuple[jax.Array, None]:
        slopes_t, b_t = at_t
        return tangent.through_state(dh, kernel_hh, how.precision, *slopes_t) + b_t, None

    dstates, _, dh_n = scan_time(advance, dh_0, (slopes, b), marks, unroll=how.unroll)
    return dstates, dh_n


def _tangent_of_recomputed(how, primals, tangents, before):
    """A and b of one step after the other, from its gates, which `jax.checkpoint` keeps from being stored.

    Transposed, the loop adds each step's gradient of the kernels, a matmul over many rows, to a sum. In float32 a sum
    of up to 128 steps is as close as PyTorch's; longer ones are summed in blocks. The biases' gradients, whose terms
    are many more, leave the loop step by step (as inputs of each step here) and are summed after it.
    """
    params, x, _, marks = primals
    dparams, dx, dh_0, _ = tangents
    tangent, kernel_hh = _tangent(how), params["kernel_hh"]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def advance(dh: jax.Array, at_t: tuple[Any, ...]) -> tuple[jax.Array, None]:
        x_t, h, dx_t, dbiases_t = at_t
        igates = input_gates(params, x_t, how.precision)
        stored = gates(params, h, igates, reset_after=how.reset_after, precision=how.precision)
        slopes = tangent.slopes(h, *stored)
        dparams_t = {**dparams, **dbiases_t}
        di = input_gates_tangent(affine, params, x_t, dparams_t, dx_t, how.precision)
        b = tangent.through_rest(affine, h, di, kernel_hh, dparams_t, how.precision, *slopes)
        return tangent.through_state(dh, kernel_hh, how.precision, *slopes) + b, None

    def scan_block(dh: jax.Array, block: Any) -> tuple[jax.Array, jax.Array]:
        dstates, _, dh = scan_time(advance, dh, block[0], block[1], unroll=how.unroll)
        return dstates, dh

    dbiases = {k: jnp.broadcast_to(v, (x.shape[0], *v.shape)) for k, v in dparams.items() if k.startswith("bias")}
    return scan_blocks(scan_block, BLOCK, dh_0, ((x, before, dx, dbiases), marks))


def _tangent(how: How) -> Tangent:
    return RESET_AFTER if how.reset_after else RESET_BEFORE
