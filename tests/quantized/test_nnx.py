"""nnx.QuantizedGRU: the same numbers as quantized.gru, its state exactly QuantizedParams."""

import chex
import jax
import jax.numpy as jnp
import pytest
from conftest import random_params
from flax import nnx

from gru_jax import GRUConfig, quantized
from gru_jax.nnx import GRU
from gru_jax.quantized.nnx import QuantizedGRU, QuantizedParam

CONFIG = GRUConfig(5, 4, 2, batch_first=True, bidirectional=True)
QPARAMS = quantized.quantize_dynamic(random_params(CONFIG))
X = jax.random.normal(jax.random.key(1), (3, 6, 5))


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_it_applies_quantized_gru_to_what_a_float_module_holds(dtype):
    module = GRU.from_config(CONFIG, nnx.Rngs(0))
    small = QuantizedGRU.from_float(module, dtype, per_example=True)
    qparams = quantized.quantize_dynamic(nnx.to_pure_dict(nnx.state(module, nnx.Param)), dtype)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(small)), qparams)
    ours = small(X, seq_lengths=jnp.array([6, 2, 3]))
    expected = quantized.gru(qparams, X, seq_lengths=jnp.array([6, 2, 3]), batch_first=True, per_example=True)
    chex.assert_trees_all_close(ours, expected, atol=1e-6)


def test_update_loads_quantized_parameters_and_jit_gives_their_numbers():
    module = QuantizedGRU(jax.tree.map(jnp.zeros_like, QPARAMS), batch_first=True)
    nnx.update(module, QPARAMS)
    expected = quantized.gru(QPARAMS, X, batch_first=True)
    chex.assert_trees_all_close(nnx.jit(lambda m, x: m(x))(module, X), expected, atol=1e-6)


def test_its_numbers_are_no_trainable_parameters():
    module = QuantizedGRU(QPARAMS)
    assert not jax.tree.leaves(nnx.state(module, nnx.Param))
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(module, QuantizedParam)), QPARAMS)


def test_what_can_not_be_quantized_is_refused():
    with pytest.raises(TypeError, match="nnx.QuantizedGRU: expected every kernel in int8, or every one in float16"):
        QuantizedGRU(random_params(CONFIG))
    module = GRU(5, 4, reset_after=False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="nnx.QuantizedGRU: expected a module with reset_after=True"):
        QuantizedGRU.from_float(module)
