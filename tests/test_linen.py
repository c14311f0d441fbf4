"""The Linen modules, against live PyTorch and inside Flax's own RNN."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import random_params

from gru_jax import GRUConfig, from_torch, gru, linen
from gru_jax.params import infer_config

X = jax.random.normal(jax.random.key(1), (6, 3, 5))
close = lambda a, b: chex.assert_trees_all_close(a, b, rtol=0, atol=1e-6)


def detached(results):
    return tuple(a.detach().numpy() for a in results)


def test_gru_holds_gru_params_and_computes_torch_gru():
    module = torch.nn.GRU(5, 4, 2, bidirectional=True, batch_first=True)
    config, params = from_torch(module)
    ours = linen.GRU.from_config(config, precision="highest")
    assert ours == linen.GRU(5, 4, 2, True, True, 0.0, True, precision="highest")
    drawn = jax.eval_shape(ours.init, jax.random.key(0), jnp.swapaxes(X, 0, 1))["params"]
    assert infer_config(drawn) == GRUConfig(5, 4, 2, bidirectional=True)
    chex.assert_trees_all_equal_shapes_and_dtypes(drawn, params)
    x, h_0 = np.array(jnp.swapaxes(X, 0, 1)), np.random.default_rng(0).standard_normal((4, 3, 4), np.float32)
    theirs = detached(module(torch.tensor(x), torch.tensor(h_0)))
    close(ours.apply({"params": params}, x, h_0), theirs)


def test_lengths_unbatched_input_and_the_papers_form_go_through():
    params = random_params(GRUConfig(5, 4))
    lengths = jnp.array([2, 6, 0])
    close(linen.GRU(5, 4).apply({"params": params}, X, seq_lengths=lengths), gru(params, X, seq_lengths=lengths))
    close(linen.GRU(5, 4).apply({"params": params}, X[:, 0]), gru(params, X[:, 0]))
    close(linen.GRU(5, 4, reset_after=False).apply({"params": params}, X), gru(params, X, reset_after=False))
    close(linen.GRU(5, 4, remat=True, unroll=2).apply({"params": params}, X), gru(params, X))


def test_the_default_initializers_are_pytorchs_and_others_reach_their_arrays():
    drawn = jax.jit(linen.GRU(5, 25, num_layers=2).init)(jax.random.key(0), X)["params"]
    for array in jax.tree.leaves(drawn):
        assert 0.1 < np.abs(array).max() <= 0.2
    inits = {
        "kernel_init": nn.initializers.constant(1.0),
        "recurrent_kernel_init": nn.initializers.constant(2.0),
        "bias_init": nn.initializers.constant(3.0),
    }
    for module, args in ((linen.GRU(5, 4, **inits), (X,)), (linen.GRUCell(5, 4, **inits), (jnp.zeros((3, 4)), X[0]))):
        drawn = module.init(jax.random.key(0), *args)["params"]
        cell = drawn.get("l0", drawn)
        values = {key: set(np.asarray(array).ravel().tolist()) for key, array in cell.items()}
        assert values == {"kernel_ih": {1.0}, "kernel_hh": {2.0}, "bias_ih": {3.0}, "bias_hh": {3.0}}


def test_partitioned_initializers_keep_their_metadata():
    init = nn.with_partitioning(nn.initializers.ones, (None, "hidden"))
    module = linen.GRU(5, 4, kernel_init=init)
    variables = module.init(jax.random.key(0), X)
    assert nn.get_partition_spec(variables)["params"]["l0"]["kernel_ih"] == jax.sharding.PartitionSpec(None, "hidden")
    close(module.apply(variables, X), gru(nn.meta.unbox(variables)["params"], X))


def test_dtype_sets_the_computation_and_param_dtype_the_parameters():
    module = linen.GRU(5, 4, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    results, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), X)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert {a.dtype for a in results} == {jnp.dtype("bfloat16")}
    half = jax.eval_shape(linen.GRU(5, 4, param_dtype=jnp.float16).init, jax.random.key(0), X)
    assert {a.dtype for a in jax.tree.leaves(half)} == {jnp.dtype("float16")}


def test_dropout_needs_deterministic_and_draws_from_the_dropout_collection():
    module = linen.GRU(5, 4, num_layers=2, dropout=0.5)
    with pytest.raises(ValueError, match='Parameter "deterministic" must be passed'):
        module.init(jax.random.key(0), X)
    params = random_params(GRUConfig(5, 4, num_layers=2))
    run = lambda **options: module.apply({"params": params}, X, **options)
    close(run(deterministic=True), gru(params, X))
    rngs = {"dropout": jax.random.key(7)}
    chex.assert_trees_all_equal(run(deterministic=False, rngs=rngs), run(deterministic=False, rngs=rngs))
    assert jnp.abs(run(deterministic=False, rngs=rngs)[0] - run(deterministic=True)[0]).max() > 1e-3
    silent = linen.GRU(5, 4, num_layers=2, dropout=0.5, deterministic=True)
    close(silent.apply({"params": params}, X), gru(params, X))


def test_parameters_that_the_module_does_not_declare_are_refused_not_dropped():
    params = random_params(GRUConfig(5, 4, num_layers=2))
    with pytest.raises(ValueError, match=r"(?s)linen.GRU: .*unexpected: l0/bias_ih \[12\].*unexpected: l1/bias_hh"):
        linen.GRU(5, 4, num_layers=2, bias=False).apply({"params": params}, X)
    with pytest.raises(ValueError, match=r"(?s)linen.GRU: .*unexpected: l1/kernel_ih \[4, 12\]"):
        linen.GRU(5, 4).apply({"params": params}, X)
    with pytest.raises(ValueError, match=r"(?s)linen.GRUCell: .*unexpected: l0/bias_ih \[12\]"):
        linen.GRUCell(5, 4, bias=False).apply({"params": params["l0"]}, jnp.zeros((3, 4)), X[0])


def test_wrong_arguments_are_refused_where_the_module_is_made():
    with pytest.raises(ValueError, match="expected hidden_size to be at least 1, got -1"):
        linen.GRUCell(5, -1)
    with pytest.raises(TypeError, match="expected reset_after to be a bool, got str"):
        linen.GRUCell(5, 4, True, "x")
    with pytest.raises(ValueError, match="GRUConfig: expected hidden_size to be at least 1, got 0"):
        linen.GRU(5, 0)
    with pytest.raises(TypeError, match="expected bias to be a bool, got float"):
        linen.GRU(5, 4, 2, 0.5)


@pytest.mark.parametrize("bias", [True, False])
def test_the_cell_inside_flaxs_rnn_is_torch_gru(bias):
    module = torch.nn.GRU(5, 4, bias=bias, batch_first=True)
    x = np.array(jnp.swapaxes(X, 0, 1))
    output, h_n = detached(module(torch.tensor(x)))
    cell = from_torch(module)[1]["l0"]
    rnn = nn.RNN(linen.GRUCell(5, 4, bias, precision="highest"), return_carry=True)
    assert jax.eval_shape(rnn.init, jax.random.key(0), x)["params"]["cell"].keys() == cell.keys()
    close(rnn.apply({"params": {"cell": cell}}, x), (h_n[0], output))


def test_two_cells_inside_flaxs_bidirectional_are_a_bidirectional_torch_gru():
    module = torch.nn.GRU(5, 4, bidirectional=True, batch_first=True)
    x = np.array(jnp.swapaxes(X, 0, 1))
    both = nn.Bidirectional(nn.RNN(linen.GRUCell(5, 4)), nn.RNN(linen.GRUCell(5, 4)))
    params = from_torch(module)[1]
    variables = {"params": {"forward_rnn": {"cell": params["l0"]}, "backward_rnn": {"cell": params["l0_reverse"]}}}
    chex.assert_trees_all_equal_shapes(jax.eval_shape(both.init, jax.random.key(0), x), variables)
    close(both.apply(variables, x), detached(module(torch.tensor(x)))[0])


def test_the_cell_keeps_the_dtype_of_its_carry():
    for options in ({"dtype": jnp.bfloat16}, {"param_dtype": jnp.bfloat16}):
        rnn = nn.RNN(linen.GRUCell(5, 4, **options))
        jax.eval_shape(rnn.init_with_output, jax.random.key(0), X)  # where a scan's carry changes its dtype, JAX raises


def test_one_step_of_adam_lowers_the_loss():
    module, params = linen.GRU(5, 4), random_params(GRUConfig(5, 4))
    optimizer = optax.adam(1e-2)
    loss = lambda params: jnp.mean((module.apply({"params": params}, X)[0] - 0.3) ** 2)

    @jax.jit
    def train_step(params, state):
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    params, _, before = train_step(params, optimizer.init(params))
    assert loss(params) < before
