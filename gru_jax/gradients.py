"""How the scan over time is differentiated.

The derivative of a scan is a scan of derivatives. The one that JAX derives adds up the weights' gradient inside the
loop, step by step. That is L small, slow matmuls, and a float32 sum of L terms whose error is several times PyTorch's.
But a loop is needed only where one state depends on the state before it:

    dh_t = A_t dh_(t-1) + b_t         A_t = dh_t / dh_(t-1)         b_t: the part through the parameters and x_t

So b can be computed for many steps at once, before the loop. Transposed, this is the weights' gradient in large
matmuls, after the loop that runs backwards. It needs the gates of every step: r, z, n and the array that r multiplies.
With many rows these are larger than the cache. Then A and b are computed step by step instead, from gates that are
computed again from x and the states.

Both ways are the rule of a `jax.custom_jvp`, which JAX can transpose and differentiate again. So forward mode, reverse
mode and their compositions all work.

    remat=False   stores the gates of all steps.
    remat=C       stores one state every C steps, and runs a block of C steps again for its gradient. Memory grows with
                  L/C + C.
    remat=True    C = sqrt(L), which takes the least memory.
    remat=None    what is fastest for these shapes, see `strategy.choose`.
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
from gru_jax.scan import Masks, scan_blocks, scan_time
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
BLOCK = 64  # steps in a block whose weight gradients are summed by themselves, see `_tangent_of_recomputed`


def check_remat(function: str, remat: Remat) -> None:
    """Raises unless `remat` is None, a bool, or an integer of at least 1."""
    if remat is not None and not isinstance(remat, bool):
        _shapes.check_positive(function, remat=remat)


def scan_layer(
    params: CellParams,
    x: jax.Array,
    h_0: jax.Array,
    masks: Masks,
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
    scan = functools.partial(_scan, Options(reset_after, precision, unroll, recompute), params)
    if not remat or x.shape[0] == 0:
        return scan(x, h_0, masks)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # Needed outside loops only; it would hinder fusion in one.
    def scan_block(h: jax.Array, block: tuple[jax.Array, Masks]) -> tuple[jax.Array, jax.Array]:
        return scan(block[0], h, block[1])

    return scan_blocks(scan_block, _near_root(x.shape[0]) if remat is True else remat, h_0, (x, masks))


def _near_root(steps: int) -> int:
    """The largest divisor of `steps` up to its square root, since a rest costs a copy; the root where none is near."""
    root = math.isqrt(steps)
    divisor = next(d for d in range(root, 0, -1) if steps % d == 0)
    return divisor if 2 * divisor >= root else root


class Options(NamedTuple):
    """The options of a scan, which are fixed when it is compiled."""

    reset_after: bool
    precision: PrecisionLike
    unroll: int
    recompute: bool


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _scan(
    options: Options, params: CellParams, x: jax.Array, h_0: jax.Array, masks: Masks
) -> tuple[jax.Array, jax.Array]:
    """Scans one step over time. `_scan_jvp` is its derivative."""
    states, _, h_n = _scan_gates(options, params, x, h_0, masks, keep=False)
    return states, h_n


def _scan_gates(options, params, x, h_0, masks, *, keep):
    """Scans one step over time; with `keep` it also returns the gates of every step."""
    strategy = choose(x, h_0)  # for this x, which may be one block of the sequence

    def input_gates_of(at_t: Any) -> Gates:
        if not strategy.hoist:
            return input_gates(params, at_t, options.precision)
        return jax.lax.optimization_barrier(at_t) if strategy.barrier else at_t

    def advance(h: jax.Array, at_t: Any) -> tuple[jax.Array, tuple[jax.Array, ...] | None]:
        r, z, n, scaled = gates(
            params, h, input_gates_of(at_t), reset_after=options.reset_after, precision=options.precision
        )
        return new_state(h, z, n), (r, z, n, scaled) if keep else None

    inputs = input_gates(params, x, options.precision) if strategy.hoist else x
    return scan_time(advance, h_0, inputs, masks, unroll=options.unroll)


@_scan.defjvp
def _scan_jvp(options, primals, tangents):
    params, x, h_0, masks = primals
    keep = not options.recompute
    states, stored, h_n = _scan_gates(options, params, x, h_0, masks, keep=keep)
    before = masks.begin(jnp.concatenate([h_0[None], states])[:-1])  # the state before each step
    if keep:
        return (states, h_n), _tangent_of_stored(options, primals, tangents, before, stored)
    return (states, h_n), _tangent_of_recomputed(options, primals, tangents, before)


def _tangent_of_stored(options, primals, tangents, before, stored):
    """Computes A and b of all steps at once, from the stored gates; the loop computes A dh + b and nothing else."""
    params, x, _, masks = primals
    dparams, dx, dh_0, _ = tangents
    tangent, kernel_hh = _tangent(options), params["kernel_hh"]
    slopes = tangent.slopes(before, *stored)
    di = input_gates_tangent(affine_in_blocks, params, x, dparams, dx, options.precision)
    b = tangent.through_rest(affine_in_blocks, before, di, kernel_hh, dparams, options.precision, *slopes)

    def advance(dh: jax.Array, at_t: tuple[Slopes, jax.Array]) -> tuple[jax.Array, None]:
        slopes_t, b_t = at_t
        return tangent.through_state(dh, kernel_hh, options.precision, *slopes_t) + b_t, None

    dstates, _, dh_n = scan_time(advance, dh_0, (slopes, b), masks, unroll=options.unroll)
    return dstates, dh_n


def _tangent_of_recomputed(options, primals, tangents, before):
    """Computes A and b step by step, from gates that are computed again; `jax.checkpoint` keeps them from being stored.

    Transposed, the loop sums the kernels' gradients of its steps, each a matmul over many rows. In float32 the sum of
    up to 128 steps is as close to the truth as PyTorch's, so longer loops are summed in blocks. The gradient of a bias
    has many more terms. It leaves the loop step by step, because each step has the bias among its inputs here, and is
    summed after the loop.
    """
    params, x, _, masks = primals
    dparams, dx, dh_0, _ = tangents
    tangent, kernel_hh = _tangent(options), params["kernel_hh"]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def advance(dh: jax.Array, at_t: tuple[Any, ...]) -> tuple[jax.Array, None]:
        x_t, h, dx_t, dbiases_t = at_t
        igates = input_gates(params, x_t, options.precision)
        stored = gates(params, h, igates, reset_after=options.reset_after, precision=options.precision)
        slopes = tangent.slopes(h, *stored)
        dparams_t = {**dparams, **dbiases_t}
        di = input_gates_tangent(affine, params, x_t, dparams_t, dx_t, options.precision)
        b = tangent.through_rest(affine, h, di, kernel_hh, dparams_t, options.precision, *slopes)
        return tangent.through_state(dh, kernel_hh, options.precision, *slopes) + b, None

    def scan_block(dh: jax.Array, block: Any) -> tuple[jax.Array, jax.Array]:
        dstates, _, dh = scan_time(advance, dh, block[0], block[1], unroll=options.unroll)
        return dstates, dh

    dbiases = {k: jnp.broadcast_to(v, (x.shape[0], *v.shape)) for k, v in dparams.items() if k.startswith("bias")}
    return scan_blocks(scan_block, BLOCK, dh_0, ((x, before, dx, dbiases), masks))


def _tangent(options: Options) -> Tangent:
    return RESET_AFTER if options.reset_after else RESET_BEFORE
