"""The functions that run a quantized GRU: `gru` over a whole sequence, `gru_step` over one time step."""

import functools

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from gru_jax import _shapes
from gru_jax.cell import Gates, new_state
from gru_jax.gradients import scan_layer
from gru_jax.layers import Scan, Sequence, compose
from gru_jax.quantized.numbers import Activations, matmul, quantize_activations
from gru_jax.quantized.params import QuantizedCell, QuantizedParams, check_quantized
from gru_jax.scan import Masks, scan_time
from gru_jax.strategy import choose


def gru(
    qparams: QuantizedParams,
    x: Sequence,
    h_0: jax.Array | None = None,
    *,
    seq_lengths: ArrayLike | None = None,
    batch_first: bool = False,
    per_example: bool = False,
    precision: PrecisionLike = None,
    unroll: int = 1,
) -> tuple[Sequence, jax.Array]:
    """`gru_jax.gru` with quantized weights; it computes what `torch.ao.nn.quantized.dynamic.GRU` does.

    With int8 weights, the input of a layer is quantized once, by its range over all sequences and steps (padding does
    not count). The state is quantized at every step, by its range over all sequences that have that step. So a
    sequence's output depends on the other sequences in the batch, as it does in PyTorch. With `per_example` every
    sequence is quantized by itself, as if it ran alone, and no batch, order or `jax.vmap` changes its numbers.

        q(v) = clip(rint(v / s + z), 0, 255) - z          s, z from min and max of v, 0 included
        W v  = (q(W) q(v)) * (s_W * s)                    the integer product is exact; biases and gates are float32

    With float16 weights the arithmetic is in float32, on the rounded weights.

    x and h_0 are cast to float32, and the result is float32. It is for inference only: with int8 weights a gradient
    raises TypeError, and there is no argument `dropout`, which PyTorch's module keeps but never applies.

    Args:
      qparams: QuantizedParams, as from `quantize_dynamic` or `quantized.from_torch`.
      x: [L, N, I], or [N, L, I] with `batch_first`; or one unbatched sequence [L, I], which PyTorch's quantized GRU
        does not take; or a PackedSequence.
      h_0: [num_layers*D, N, H] ([num_layers*D, H] unbatched); zeros by default.
      seq_lengths: as in `gru_jax.gru`; the results are those of a PackedSequence with these lengths.
      batch_first: whether the batch axis of x and output comes first.
      per_example: whether each sequence is quantized by itself.
      precision: that of matmuls with float16 weights, as in `jax.lax.dot`. Those with int8 weights are always exact.
      unroll: time steps in one iteration of the compiled loop.

    Returns:
      output and h_n, as `gru_jax.gru` does.

    Raises:
      TypeError: if an argument is of the wrong kind.
      ValueError: if shapes do not fit together, or a known length is outside 0..L.

    Example:
      >>> from gru_jax import GRUConfig, init_params
      >>> from gru_jax.quantized import quantize_dynamic
      >>> qparams = quantize_dynamic(init_params(jax.random.key(0), GRUConfig(10, 20, num_layers=2)))
      >>> output, h_n = gru(qparams, jnp.ones((5, 3, 10)))
      >>> output.shape, h_n.shape
      ((5, 3, 20), (2, 3, 20))

    Source: aten/src/ATen/native/RNN.cpp and aten/src/ATen/native/quantized/cpu/qlinear_dynamic.cpp of PyTorch.
    """
    config = check_quantized("quantized.gru", qparams)
    _shapes.check_flags("quantized.gru", batch_first=batch_first, per_example=per_example)
    _shapes.check_positive("quantized.gru", unroll=unroll)
    scan = _scan(per_example, precision, unroll)
    return compose(
        "quantized.gru",
        scan,
        config,
        qparams,
        x,
        h_0,
        seq_lengths=seq_lengths,
        batch_first=batch_first,
        dtype=jnp.float32,
    )


def gru_step(
    qparams: QuantizedCell,
    h: jax.Array,
    x: jax.Array,
    *,
    per_example: bool = False,
    precision: PrecisionLike = None,
) -> jax.Array:
    """Runs one time step, as `torch.ao.nn.quantized.dynamic.GRUCell` does. It is for inference only.

    Args:
      qparams: one cell of QuantizedParams: `qparams["l0"]`.
      h: [..., H], the state before the step.
      x: [..., I], the input, with the same leading axes.
      per_example: whether each row is quantized by itself; by default all are quantized together, as in PyTorch.
      precision: as in `quantized.gru`.

    Returns:
      h' of shape [..., H], in float32.

    Raises:
      TypeError: if an array is of the wrong kind.
      ValueError: if shapes do not fit together.

    Example:
      >>> from gru_jax import GRUConfig, init_params
      >>> from gru_jax.quantized import quantize_dynamic
      >>> qparams = quantize_dynamic(init_params(jax.random.key(0), GRUConfig(10, 20)))
      >>> gru_step(qparams["l0"], jnp.zeros((3, 20)), jnp.ones((3, 10))).shape
      (3, 20)
    """
    name = "quantized.gru_step"
    config = check_quantized(name, {"l0": qparams})
    _shapes.check_flags(name, per_example=per_example)
    _shapes.check_array(name, "h", h)
    _shapes.check_array(name, "x", x)
    batch = x.shape[:-1]
    _shapes.check_shape(name, "x", x, "..., I", (*batch, config.input_size), "I is read off kernel_ih.")
    _shapes.check_shape(name, "h", h, "..., H", (*batch, config.hidden_size), "h and x share their leading axes.")
    x, h = jnp.asarray(x, jnp.float32), jnp.asarray(h, jnp.float32)
    return _one_step(_scan(per_example, precision, 1), dict(qparams), h, x)


# Compiled even outside jit, since XLA then fuses a product and the sum after it, which rounds once, as in PyTorch.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _one_step(scan: Scan, cell: QuantizedCell, h: jax.Array, x: jax.Array) -> jax.Array:
    return scan(cell, x[None], h, Masks())[1]


@functools.lru_cache(typed=True)
def _scan(per_example: bool, precision: PrecisionLike, unroll: int) -> Scan:
    """Returns the scan of one layer and direction: the same object for the same options, which `compose` requires."""

    def scan(cell, x, h_0, masks):
        if cell["kernel_hh"].dtype == jnp.int8:
            return _scan_int8(cell, x, h_0, masks, per_example, unroll)
        # Widened before the loop, which would otherwise do it at every step.
        widened = {key: array.astype(jnp.float32) for key, array in cell.items()}
        options = {"reset_after": True, "precision": precision, "remat": None, "unroll": unroll}
        return scan_layer(widened, x, h_0, masks, **options)

    return scan


def _scan_int8(
    cell: QuantizedCell, x: jax.Array, h_0: jax.Array, masks: Masks, per_example: bool, unroll: int
) -> tuple[jax.Array, jax.Array]:
    """`scan_layer` with int8 kernels. The padding of x is zero, which every range includes, so it widens none."""
    from_input, from_state = (functools.partial(_gates, *_half(cell, half)) for half in ("ih", "hh"))
    integers, offset, scale = quantize_activations(x, cell["reduce_range"], (0, -1) if per_example else None)
    at_each = lambda integers_t: from_input(Activations(integers_t, offset[0], scale[0]))
    hoist = choose(x, h_0).hoist  # whether the input's product is computed before the loop, for all steps at once

    def advance(h, at_t):
        input_t, present = at_t
        i_r, i_z, i_n = input_t if hoist else at_each(input_t)
        active = h if present is None else jnp.where(present, h, 0)  # a sequence that has ended must widen no range
        states = quantize_activations(active, cell["reduce_range"], (-1,) if per_example else None)
        h_r, h_z, h_n = from_state(states)
        r, z = jax.nn.sigmoid(i_r + h_r), jax.nn.sigmoid(i_z + h_z)
        return new_state(h, z, jnp.tanh(i_n + r * h_n)), None

    inputs = at_each(integers) if hoist else integers
    states, _, h_n = scan_time(advance, h_0, (inputs, masks.present), masks, unroll=unroll)
    return states, h_n


def _half(cell: QuantizedCell, half: str) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | float]:
    """Returns the kernel of one half of the gates, "ih" or "hh", the sums of its columns, its scale and its bias."""
    kernel = cell[f"kernel_{half}"]
    return kernel, kernel.sum(axis=0, dtype=jnp.int32), cell[f"scale_{half}"], cell.get(f"bias_{half}", 0.0)


def _gates(kernel, sums, scale, bias, activations: Activations) -> Gates:
    r, z, n = jnp.split(matmul(activations, kernel, sums, scale) + bias, 3, axis=-1)
    return r, z, n
