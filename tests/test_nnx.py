"""The NNX modules, against live PyTorch and inside Flax's own RNN."""

import chex
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import random_params
from flax import nnx

from gru_jax import GRUConfig, from_torch, gru
from gru_jax.nnx import GRU, GRUCell
from gru_jax.params import infer_config

X = jax.random.normal(jax.random.key(1), (6, 3, 5))
close = lambda a, b: chex.assert_trees_all_close(a, b, rtol=0, atol=1e-6)


def detached(results):
    return tuple(a.detach().numpy() for a in results)


def loaded(params, *args, **options):
    module = GRU(*args, **options, rngs=nnx.Rngs(0))
    nnx.update(module, params)
    return module


def test_gru_holds_gru_params_and_computes_torch_gru():
    module = torch.nn.GRU(5, 4, 2, bidirectional=True, batch_first=True)
    config, params = from_torch(module)
    ours = GRU.from_config(config, nnx.Rngs(0), precision="highest")
    state = nnx.to_pure_dict(nnx.state(ours))  # The whole state: parameters and nothing else.
    assert infer_config(state) == GRUConfig(5, 4, 2, bidirectional=True)
    nnx.update(ours, params)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(ours, nnx.Param)), params)
    x, h_0 = np.array(jnp.swapaxes(X, 0, 1)), np.random.default_rng(0).standard_normal((4, 3, 4), np.float32)
    close(ours(x, h_0), detached(module(torch.tensor(x), torch.tensor(h_0))))


def test_positional_arguments_are_in_torchs_order():
    assert GRU(5, 4, 2, False, True, 0.5, True, False, rngs=nnx.Rngs(0)).config == GRUConfig(
        5, 4, 2, False, True, 0.5, True, False
    )


def test_lengths_unbatched_input_and_the_papers_form_go_through():
    params = random_params(GRUConfig(5, 4))
    lengths = jnp.array([2, 6, 0])
    close(loaded(params, 5, 4)(X, seq_lengths=lengths), gru(params, X, seq_lengths=lengths))
    close(loaded(params, 5, 4)(X[:, 0]), gru(params, X[:, 0]))
    close(loaded(params, 5, 4, reset_after=False)(X), gru(params, X, reset_after=False))
    close(loaded(params, 5, 4, remat=True, unroll=2)(X), gru(params, X))


def test_the_default_initializers_are_pytorchs_and_others_reach_their_arrays():
    arrays = jax.tree.leaves(nnx.state(GRU(5, 25, num_layers=2, rngs=nnx.Rngs(0))))
    for array in arrays:
        assert 0.1 < jnp.abs(array).max() <= 0.2
    assert len({float(a.ravel()[0]) for a in arrays}) == len(arrays)  # Each drawn with a key of its own.
    constant = jax.nn.initializers.constant
    inits = {"kernel_init": constant(1.0), "recurrent_kernel_init": constant(2.0), "bias_init": constant(3.0)}
    for cell in (GRU(5, 4, **inits, rngs=nnx.Rngs(0)).l0, GRUCell(5, 4, **inits, rngs=nnx.Rngs(0))):
        values = {key: set(np.asarray(array).ravel().tolist()) for key, array in cell.params().items()}
        assert values == {"kernel_ih": {1.0}, "kernel_hh": {2.0}, "bias_ih": {3.0}, "bias_hh": {3.0}}


def test_dtype_sets_the_computation_and_param_dtype_the_parameters():
    module = GRU(5, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert {a.dtype for a in jax.tree.leaves(nnx.state(module))} == {jnp.dtype("float32")}
    assert {a.dtype for a in nnx.eval_shape(lambda module: module(X), module)} == {jnp.dtype("bfloat16")}
    half = GRU(5, 4, param_dtype=jnp.float16, rngs=nnx.Rngs(0))
    assert {a.dtype for a in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float16")}


def test_train_and_eval_switch_dropout():
    module = GRU(5, 4, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0, dropout=1))
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    plain = gru(params, X)
    module.train()
    assert jnp.abs(module(X)[0] - module(X)[0]).max() > 1e-3  # Each call draws anew.
    assert jnp.abs(module(X)[0] - plain[0]).max() > 1e-3
    close(module(X, deterministic=True), plain)
    chex.assert_trees_all_equal(module(X, rngs=nnx.Rngs(7)), module(X, rngs=nnx.Rngs(7)))
    module.eval()
    close(module(X), plain)
    assert jnp.abs(module(X, deterministic=False)[0] - plain[0]).max() > 1e-3


def test_dropout_of_one_layer_warns_and_does_nothing():
    with pytest.warns(UserWarning, match="no effect with num_layers=1"):
        module = GRU(5, 4, dropout=0.5, rngs=nnx.Rngs(0))
    close(module(X), gru(nnx.to_pure_dict(nnx.state(module, nnx.Param)), X))


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_nnx_jit_grad_and_vmap_take_the_module(dropout):
    module = GRU(5, 4, num_layers=2, dropout=dropout, rngs=nnx.Rngs(0))
    module.eval()
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    loss = lambda module: jnp.sum(module(X)[0] ** 2)
    expected = jax.jit(jax.grad(lambda params: jnp.sum(gru(params, X)[0] ** 2)))(params)
    close(nnx.jit(lambda module: module(X))(module), gru(params, X))
    close(nnx.to_pure_dict(nnx.jit(nnx.grad(loss))(module)), expected)
    rows = nnx.vmap(lambda module, x: module(x)[0], in_axes=(None, 1), out_axes=1)(module, X)
    close(rows, gru(params, X)[0])


def test_nnx_vmap_makes_an_ensemble():
    make = nnx.jit(nnx.vmap(lambda key: GRU(5, 4, rngs=nnx.Rngs(key))))
    ensemble = make(jax.random.split(jax.random.key(0), 3))
    outputs = nnx.vmap(lambda module, x: module(x)[0], in_axes=(0, None))(ensemble, X)
    params = nnx.to_pure_dict(nnx.state(ensemble, nnx.Param))
    for i in range(3):
        close(outputs[i], gru(jax.tree.map(lambda a: np.asarray(a)[i], params), X)[0])  # noqa: B023


def test_split_and_merge_are_the_functional_form():
    module = GRU(5, 4, num_layers=2, rngs=nnx.Rngs(0))
    graph, params = nnx.split(module, nnx.Param)
    run = jax.jit(lambda params: nnx.merge(graph, params)(X))
    close(run(params), module(X))


def test_a_module_closed_over_by_grad_works():
    """Flax's own RNN raises TraceContextError here: it draws a random number for a carry of zeros."""
    module = GRU(5, 4, rngs=nnx.Rngs(0))
    ours = jax.jit(jax.grad(lambda x: jnp.sum(module(x)[0] ** 2)))(X)
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    close(ours, jax.jit(jax.grad(lambda x: jnp.sum(gru(params, x)[0] ** 2)))(X))
    stock = nnx.RNN(nnx.GRUCell(5, 4, rngs=nnx.Rngs(0)))
    with pytest.raises(flax.errors.TraceContextError):
        jax.grad(lambda x: jnp.sum(stock(x) ** 2))(X)


def test_a_training_module_with_dropout_closed_over_by_grad_takes_rngs_in_the_call():
    module = GRU(5, 4, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0))
    loss = lambda x: jnp.sum(module(x, rngs=nnx.Rngs(7))[0] ** 2)
    assert np.isfinite(jax.jit(jax.grad(loss))(X)).all()


@pytest.mark.parametrize("bias", [True, False])
def test_the_cell_inside_flaxs_rnn_is_torch_gru(bias):
    module = torch.nn.GRU(5, 4, bias=bias, batch_first=True)
    x = np.array(jnp.swapaxes(X, 0, 1))
    output, h_n = detached(module(torch.tensor(x)))
    cell = GRUCell(5, 4, bias, precision="highest", rngs=nnx.Rngs(0))
    nnx.update(cell, from_torch(module)[1]["l0"])
    rnn = nnx.RNN(cell, return_carry=True)
    close(rnn(x), (h_n[0], output))


def test_two_cells_inside_flaxs_bidirectional_are_a_bidirectional_torch_gru():
    module = torch.nn.GRU(5, 4, bidirectional=True, batch_first=True)
    x = np.array(jnp.swapaxes(X, 0, 1))
    cells = [GRUCell(5, 4, rngs=nnx.Rngs(i)) for i in range(2)]
    for cell, name in zip(cells, ("l0", "l0_reverse"), strict=True):
        nnx.update(cell, from_torch(module)[1][name])
    both = nnx.Bidirectional(nnx.RNN(cells[0]), nnx.RNN(cells[1]))
    close(both(x), detached(module(torch.tensor(x)))[0])


def test_the_cell_keeps_the_dtype_of_its_carry_and_draws_nothing():
    for options in ({"dtype": jnp.bfloat16}, {"param_dtype": jnp.bfloat16}):
        rnn = nnx.RNN(GRUCell(5, 4, **options, rngs=nnx.Rngs(0)))
        nnx.eval_shape(lambda rnn: rnn(X), rnn)  # where a scan's carry changes its dtype, JAX raises
    cell = GRUCell(5, 4, rngs=nnx.Rngs(0))
    chex.assert_trees_all_equal(cell.initialize_carry((3, 5)), jnp.zeros((3, 4)))
    normal = jax.nn.initializers.normal()
    for rngs in (nnx.Rngs(0), nnx.Rngs(0).carry):
        assert cell.initialize_carry((3, 5), rngs, normal).std() > 0


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="GRUConfig: expected hidden_size to be at least 1, got 0"):
        GRU(5, 0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"gru: expected x of shape \[L, N, I\] = \[any, any, 5\]"):
        GRU(5, 4, rngs=nnx.Rngs(0))(jnp.ones((6, 3, 7)))


def test_parameters_of_another_shape_are_refused_not_broadcast():
    params = random_params(GRUConfig(5, 6))
    module = GRU(5, 4, rngs=nnx.Rngs(0))
    nnx.update(module, params)  # Flax checks no shapes here.
    with pytest.raises(
        ValueError, match=r"(?s)nnx.GRU: .*wrong shape: l0/kernel_hh, expected \[4, 12\], got \[6, 18\]"
    ):
        module(X)


def test_parameters_that_the_module_does_not_declare_are_refused_not_dropped():
    params = random_params(GRUConfig(5, 4))
    module = GRU(5, 4, bias=False, rngs=nnx.Rngs(0))
    nnx.update(module, params)
    with pytest.raises(ValueError, match=r"(?s)nnx.GRU: .*unexpected: l0/bias_hh \[12\]"):
        module(X)
    module = GRU(5, 4, rngs=nnx.Rngs(0))
    nnx.update(module, params["l0"])
    with pytest.raises(ValueError, match=r"(?s)nnx.GRU: .*unexpected: kernel_ih/"):
        module(X)
    cell = GRUCell(5, 4, bias=False, rngs=nnx.Rngs(0))
    nnx.update(cell, params["l0"])
    with pytest.raises(ValueError, match=r"(?s)nnx.GRUCell: .*unexpected: l0/bias_hh \[12\]"):
        cell(jnp.zeros((3, 4)), X[0])


def test_one_step_of_adam_lowers_the_loss():
    module = GRU(5, 4, num_layers=2, dropout=0.1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(module, optax.adam(1e-2), wrt=nnx.Param)
    loss = lambda module: jnp.mean((module(X)[0] - 0.3) ** 2)

    @nnx.jit
    def train_step(module, optimizer):
        value, gradients = nnx.value_and_grad(loss)(module)
        optimizer.update(module, gradients)
        return value

    evaluated = lambda: loss(nnx.view(module, deterministic=True))
    before = evaluated()
    train_step(module, optimizer)
    assert evaluated() < before
