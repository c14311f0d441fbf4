"""One step of one cell: the four equations of the GRU, in both forms of the new gate.

r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)              reset
z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)              update
n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))           new, reset after the product: PyTorch, cuDNN
n  = tanh(W_in x + b_in + W_hn (r * h) + b_hn)           new, reset before it: Cho et al. 2014, arXiv:1406.1078
h' = (1 - z) * n + z * h
"""

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike

from gru_jax import _shapes
from gru_jax.params import CellParams, check_cell

Gates = tuple[jax.Array, jax.Array, jax.Array]  # r, z, n


def gru_step(
    params: CellParams,
    h: jax.Array,
    x: jax.Array,
    *,
    reset_after: bool = True,
    precision: PrecisionLike = None,
) -> jax.Array:
    """One time step: `torch.nn.GRUCell`.

        r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Args:
      params: CellParams, the gates r, z, n along the last axis.
      h: [..., H], the state before the step.
      x: [..., I], the input, with the same leading axes.
      reset_after: False for the original paper's n = tanh(W_in x + b_in + W_hn (r * h) + b_hn).
      precision: of both matmuls, as in `jax.lax.dot`. On a GPU or TPU only "highest" computes float32 as PyTorch does.

    Returns:
      h' of shape [..., H], in the dtype that params, h and x promote to.

    Raises:
      TypeError: if an array is no floating array.
      ValueError: if shapes do not fit together.

    Example:
      >>> from gru_jax import GRUConfig, init_params
      >>> params = init_params(jax.random.key(0), GRUConfig(10, 20))
      >>> gru_step(params["l0"], jnp.zeros((3, 20)), jnp.ones((3, 10))).shape
      (3, 20)
    """
    input_size, hidden_size = check_cell("gru_step", params)
    _shapes.check_flags("gru_step", reset_after=reset_after)
    _shapes.check_array("gru_step", "h", h)
    _shapes.check_array("gru_step", "x", x)
    batch = x.shape[:-1]
    _shapes.check_shape("gru_step", "x", x, "..., I", (*batch, input_size), "I is read off kernel_ih.")
    _shapes.check_shape("gru_step", "h", h, "..., H", (*batch, hidden_size), "h and x share their leading axes.")
    return step(params, h, x, reset_after=reset_after, precision=precision)


def step(params: CellParams, h: jax.Array, x: jax.Array, *, reset_after: bool, precision: PrecisionLike) -> jax.Array:
    """`gru_step` without its checks."""
    igates = input_gates(params, x, precision)
    _, z, n, _ = gates(params, h, igates, reset_after=reset_after, precision=precision)
    return new_state(h, z, n)


def input_gates(params: CellParams, x: jax.Array, precision: PrecisionLike) -> Gates:
    """The part of r, z and n that does not depend on the state: W_i x + b_i, each [..., H].

    It is three arrays, because a loop that slices one array [L, N, 3H] and then splits it takes twice as long.
    """
    r, z, n = jnp.split(_affine(x, params["kernel_ih"], params.get("bias_ih"), precision), 3, axis=-1)
    return r, z, n


def gates(
    params: CellParams, h: jax.Array, igates: Gates, *, reset_after: bool, precision: PrecisionLike
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns r, z, n and the array that r multiplies: W_hn h + b_hn with `reset_after`, else h."""
    form = _reset_after if reset_after else _reset_before
    return form(params, h, igates, precision)


def new_state(h: jax.Array, z: jax.Array, n: jax.Array) -> jax.Array:
    """(1 - z) * n + z * h, as PyTorch computes it: aten/src/ATen/native/RNN.cpp."""
    return n + z * (h - n)


def _reset_after(
    params: CellParams, h: jax.Array, igates: Gates, precision: PrecisionLike
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    i_r, i_z, i_n = igates
    h_r, h_z, h_n = jnp.split(_affine(h, params["kernel_hh"], params.get("bias_hh"), precision), 3, axis=-1)
    r, z = jax.nn.sigmoid(i_r + h_r), jax.nn.sigmoid(i_z + h_z)
    return r, z, jnp.tanh(i_n + r * h_n), h_n


def _reset_before(
    params: CellParams, h: jax.Array, igates: Gates, precision: PrecisionLike
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    i_r, i_z, i_n = igates
    rz = 2 * h.shape[-1]
    kernel_rz, kernel_n = jnp.split(params["kernel_hh"], [rz], axis=-1)
    bias_rz, bias_n = jnp.split(params["bias_hh"], [rz]) if "bias_hh" in params else (None, None)
    h_r, h_z = jnp.split(_affine(h, kernel_rz, bias_rz, precision), 2, axis=-1)
    r, z = jax.nn.sigmoid(i_r + h_r), jax.nn.sigmoid(i_z + h_z)
    return r, z, jnp.tanh(i_n + _affine(r * h, kernel_n, bias_n, precision)), h


def _affine(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, precision: PrecisionLike) -> jax.Array:
    product = _matmul(x, kernel, precision)
    return product if bias is None else product + bias


def _matmul(x: jax.Array, kernel: jax.Array, precision: PrecisionLike) -> jax.Array:
    """The product x @ kernel, where a single row is summed in several parts.

    XLA on CPU adds the K terms of a matrix-vector product one after the other, PyTorch in several sums side by side,
    which on trained weights (K = 256) stays five times closer to the truth. Eight sums are as close as PyTorch's. As
    one batched product they cost little: 1.8, 14.6 and 44.5 microseconds for K = 96, 256 and 512, against 1.8, 11.1
    and 49.7 in one sum. From two rows on it would be several times slower, and PyTorch's nn.GRU is no closer either.
    A vmap over single rows can't be seen from here and pays that price: a batch is faster than a vmap over sequences.
    """
    size = kernel.shape[0]
    parts = next(d for d in range(8, 0, -1) if size % d == 0)
    if x.size != size or parts == 1:
        return jnp.matmul(x, kernel, precision=precision)
    rows = x.reshape(*x.shape[:-1], parts, size // parts)
    blocks = kernel.reshape(parts, size // parts, -1)
    return jnp.einsum("...pk,pkh->...ph", rows, blocks, precision=precision).sum(axis=-2)
