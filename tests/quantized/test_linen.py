"""linen.QuantizedGRU: the same numbers as quantized.gru, its params exactly QuantizedParams."""

import chex
import jax
import jax.numpy as jnp
import pytest
from conftest import random_params

from gru_jax import GRUConfig, linen, quantized
from gru_jax.quantized.linen import QuantizedGRU

CONFIG = GRUConfig(5, 4, 2, batch_first=True, bidirectional=True, dropout=0.5)
QPARAMS = quantized.quantize_dynamic(random_params(CONFIG))
X = jax.random.normal(jax.random.key(1), (3, 6, 5))


def test_it_applies_quantized_gru_to_what_a_float_module_holds():
    module = linen.GRU.from_config(CONFIG)
    params = module.init(jax.random.key(0), X, deterministic=True)["params"]
    qparams = quantized.quantize_dynamic(params)
    small = QuantizedGRU.from_config(module.config, per_example=True)
    ours = small.apply({"params": qparams}, X, seq_lengths=jnp.array([6, 2, 3]))
    expected = quantized.gru(qparams, X, seq_lengths=jnp.array([6, 2, 3]), batch_first=True, per_example=True)
    chex.assert_trees_all_close(ours, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_init_gives_the_structure_of_quantized_parameters(dtype):
    params = QuantizedGRU.from_config(CONFIG, weight_dtype=dtype).init(jax.random.key(0), X)["params"]
    expected = quantized.quantize_dynamic(random_params(CONFIG), dtype)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, expected)


def test_jit_gives_the_same_numbers():
    module = QuantizedGRU.from_config(CONFIG)
    plain = module.apply({"params": QPARAMS}, X)
    chex.assert_trees_all_close(jax.jit(module.apply)({"params": QPARAMS}, X), plain, atol=1e-6)


def test_params_of_another_module_are_refused():
    with pytest.raises(ValueError, match=r"(?s)linen.QuantizedGRU: .*unexpected: l1/kernel_ih"):
        QuantizedGRU(5, 4, bidirectional=True).apply({"params": QPARAMS}, X)
    with pytest.raises(TypeError, match="linen.QuantizedGRU: expected every kernel in int8, or every one in float16"):
        QuantizedGRU.from_config(CONFIG).apply({"params": random_params(CONFIG)}, X)
    with pytest.raises(ValueError, match="linen.QuantizedGRU: expected params of a GRU"):
        QuantizedGRU.from_config(CONFIG).apply({}, X)


def test_the_original_form_of_the_new_gate_is_refused():
    with pytest.raises(ValueError, match="linen.QuantizedGRU: expected a config with reset_after=True"):
        QuantizedGRU.from_config(GRUConfig(5, 4, reset_after=False))
    with pytest.raises(ValueError, match="expected hidden_size to be at least 1"):
        QuantizedGRU(5, 0)
