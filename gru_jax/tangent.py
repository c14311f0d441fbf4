"""The derivative of one step, h' = f(params, h, x), at every time step at once.

Given the gates that the step computed, h' depends linearly on small changes of h, x and the parameters:

    dh' = z dh + s_z dz + s_n dn        s_z = (h - n) z (1 - z)     slopes of h' to what enters the
                                        s_n = (1 - z) (1 - n^2)     sigmoid of z and the tanh of n

where dz, dr and dn are the changes of the arguments of the two sigmoids and the tanh. Each form of the new gate is
given by three functions: `slopes`, computed from the gates; `through_state`, the part of dh' that comes through h, for
one step; and `through_rest`, the part that comes through x and the parameters, for all steps at once.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike

from gru_jax.params import CellParams

Slopes = tuple[jax.Array, ...]
Affine = Callable[[jax.Array, CellParams, str, PrecisionLike], jax.Array]
ROWS = 128


class Tangent(NamedTuple):
    """The derivative of one form of the step.

    Attributes:
      slopes: (h, r, z, n, scaled) -> the slopes, each of h's shape; r multiplies `scaled`, see `cell.gates`.
      through_state: (dh, kernel_hh, precision, *slopes) -> the part of dh' that comes through h.
      through_rest: (affine, h, di, kernel_hh, dparams, precision, *slopes) -> the part that comes through di, the
        change of the input gates, and through the hidden weights, which `affine` or `affine_in_blocks` applies.
    """

    slopes: Callable[..., Slopes]
    through_state: Callable[..., jax.Array]
    through_rest: Callable[..., jax.Array]


def input_gates_tangent(
    affine: Affine, params: CellParams, x: jax.Array, dparams: CellParams, dx: jax.Array, precision: PrecisionLike
) -> jax.Array:
    """The change of the input gates W_i x + b_i."""
    return _product(dx, params["kernel_ih"], precision) + affine(x, dparams, "ih", precision)


def _slopes_after(h, r, z, n, scaled):
    s_n = (1 - z) * (1 - n * n)
    return z, s_n * scaled * r * (1 - r), (h - n) * z * (1 - z), s_n, s_n * r


def _state_after(dh, kernel_hh, precision, by_h, by_r, by_z, _, by_hn):
    d_r, d_z, d_n = jnp.split(_product(dh, kernel_hh, precision), 3, axis=-1)
    return by_h * dh + by_r * d_r + by_z * d_z + by_hn * d_n


def _rest_after(affine, h, di, _, dparams, precision, by_h, by_r, by_z, by_n, by_hn):
    i_r, i_z, i_n = jnp.split(di, 3, axis=-1)
    d_r, d_z, d_n = jnp.split(affine(h, dparams, "hh", precision), 3, axis=-1)
    return by_r * (i_r + d_r) + by_z * (i_z + d_z) + by_n * i_n + by_hn * d_n


RESET_AFTER = Tangent(_slopes_after, _state_after, _rest_after)


def _slopes_before(h, r, z, n, scaled):
    return z, scaled * r * (1 - r), (h - n) * z * (1 - z), (1 - z) * (1 - n * n), r


def _state_before(dh, kernel_hh, precision, by_h, by_r, by_z, by_n, r):
    kernel_rz, kernel_n = jnp.split(kernel_hh, [2 * dh.shape[-1]], axis=-1)
    d_r, d_z = jnp.split(_product(dh, kernel_rz, precision), 2, axis=-1)
    return by_h * dh + by_z * d_z + by_n * _product(r * dh + by_r * d_r, kernel_n, precision)


def _rest_before(affine, h, di, kernel_hh, dparams, precision, by_h, by_r, by_z, by_n, r):
    rz = 2 * h.shape[-1]
    dparams_rz = {key: array[..., :rz] for key, array in dparams.items()}
    dparams_n = {key: array[..., rz:] for key, array in dparams.items()}
    d_r, d_z = jnp.split(di[..., :rz] + affine(h, dparams_rz, "hh", precision), 2, axis=-1)
    d_n = di[..., rz:] + _product(by_r * d_r, kernel_hh[:, rz:], precision) + affine(r * h, dparams_n, "hh", precision)
    return by_z * d_z + by_n * d_n


RESET_BEFORE = Tangent(_slopes_before, _state_before, _rest_before)


def affine(x: jax.Array, params: CellParams, half: str, precision: PrecisionLike) -> jax.Array:
    """Multiplies x [..., K] by the kernel of one half, "ih" or "hh", and adds the bias."""
    return _add_bias(_product(x, params[f"kernel_{half}"], precision), params, half)


def affine_in_blocks(x: jax.Array, params: CellParams, half: str, precision: PrecisionLike) -> jax.Array:
    """Multiplies x [L, ..., K] by the kernel of one half, in blocks of rows, and adds the bias.

    The blocks are there for the transpose, the gradient of the kernel, which is a sum over all L x N rows. In float32
    one matmul over thousands of rows is up to four times further from the truth than PyTorch, which sums step by step.
    A sum of matmuls over blocks of whole steps, up to 128 rows or those of one step, is closer than PyTorch, and about
    as fast as one matmul.

    A block of several steps is flattened to [rows, K], because the gradient of a product over two axes copies both
    operands, a tenth of the time of the whole gradient. Flattening gathers a batch that is split over devices. It is
    not flattened where a block is one step, as with more than 64 rows, or where its type says that it is split, as on
    an explicit mesh.
    """
    steps, rows = x.shape[0], math.prod(x.shape[1:-1])
    if not isinstance(steps * rows, int) or steps * rows < 2 * ROWS:  # symbolic sizes, in an export, are one block
        return affine(x, params, half, precision)
    kernel, size = params[f"kernel_{half}"], max(1, ROWS // rows)
    count = steps // size
    whole = count * size
    split = any(axis is not None for axis in jax.typeof(x).sharding.spec)
    blocks = x[:whole].reshape(count, *((size, *x.shape[1:-1]) if split else (size * rows,)), -1)
    # XLA drops the factor 1. JAX 0.12 needs it: when it transposes a loop, it forgets the mesh of an array that comes
    # from outside the loop, and then can't tell how the gradient of that array is summed over the devices.
    head = jax.lax.map(lambda block: _product(block, 1 * kernel, precision), blocks)
    rest = _product(x[whole:], kernel, precision)
    product = jnp.concatenate([head.reshape(*x[:whole].shape[:-1], -1), rest])
    return _add_bias(product, params, half)


def _add_bias(product: jax.Array, params: CellParams, half: str) -> jax.Array:
    return product + params[f"bias_{half}"] if f"bias_{half}" in params else product


def _product(x: jax.Array, kernel: jax.Array, precision: PrecisionLike) -> jax.Array:
    return jnp.matmul(x, kernel, precision=precision)
