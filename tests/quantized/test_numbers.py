"""The number formats of the quantized GRU beside PyTorch's, run live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gru_jax.quantized.numbers import matmul, quantize_activations, quantize_weights

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning")

activations = jax.jit(quantize_activations, static_argnums=2)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e6])
def test_weights_become_pytorchs_integers(scale):
    kernel = (np.random.default_rng(0).standard_normal((20, 30)) * scale).astype(np.float32)
    observer = torch.ao.quantization.default_dynamic_qconfig.weight()
    observer(torch.tensor(kernel))
    theirs = torch.quantize_per_tensor(torch.tensor(kernel), float(observer.calculate_qparams()[0]), 0, torch.qint8)
    integers, ours = quantize_weights(jnp.array(kernel))
    np.testing.assert_array_equal(integers, theirs.int_repr())
    assert float(ours) == theirs.q_scale()


@pytest.mark.parametrize("reduce_range", [True, False])
def test_activations_become_pytorchs_integers(reduce_range):
    """A diagonal of 1 / 64, an exact 64 of its scale, hands the integers through PyTorch's product unchanged."""
    size = 32
    identity = torch.quantize_per_tensor(torch.eye(size) / 64, 1 / 64, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(identity, None)
    rng = np.random.default_rng(0)
    values = [[-1, 1], [-3, 0, 3], [-0.7, 0.7], [0, 1], [-2, 0], [-1e-6, 2e-6], [-5, 1e-3]]
    inputs = [rng.choice(np.array(v, np.float32), (3, size)) for v in values]
    inputs += [rng.standard_normal((3, size), np.float32) * np.float32(10.0**power) for power in range(-8, 8)]
    for x in inputs:
        ours = activations(jnp.array(x), jnp.array(reduce_range), None)
        theirs = torch.ops.quantized.linear_dynamic(torch.tensor(x), packed, reduce_range).numpy()
        integers = np.asarray(ours.integers, np.int32) + np.asarray(ours.offset)
        np.testing.assert_allclose(integers * np.asarray(ours.scale) / 64, theirs, rtol=3e-7, atol=0)


def test_zero_stays_zero_and_each_row_may_have_its_own_range():
    x = jnp.array([[0.0, 1.0, -3.0], [0.0, 100.0, 7.0]])
    together, apart = (activations(x, jnp.array(True), axes) for axes in (None, (-1,)))
    assert together.scale.shape == (1, 1)
    assert apart.scale.shape == (2, 1)
    for rounded in (together, apart):
        values = (rounded.integers + rounded.offset) * rounded.scale
        assert not values[:, 0].any()
        assert (jnp.abs(values - x) <= rounded.scale * 0.51).all()


def test_the_product_is_exact_where_float32_is_not():
    rng = np.random.default_rng(0)
    x = jnp.array(rng.uniform(90, 100, (2, 4096)), jnp.float32)
    kernel = rng.integers(100, 128, (4096, 3)).astype(np.int8)
    rounded = activations(x, jnp.array(False), None)
    integers = np.asarray(rounded.integers, np.int64) + np.asarray(rounded.offset)
    exact = integers @ kernel.astype(np.int64)
    assert exact.min() > 2**24
    ours = matmul(rounded._replace(scale=jnp.ones((1, 1))), jnp.array(kernel), kernel.sum(0, np.int32), jnp.ones(()))
    np.testing.assert_array_equal(ours, exact.astype(np.float32))


def test_not_a_number_is_not_hidden_by_rounding():
    rounded = activations(jnp.array([[1.0, jnp.nan]]), jnp.array(True), None)
    assert jnp.isnan(rounded.scale).all()
