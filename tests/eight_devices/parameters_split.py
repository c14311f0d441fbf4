"""Parameters over eight devices, by hand and by Flax's metadata; run by `test_sharding.py`, where there are eight."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from eight_devices.exchanges import close, collectives, compiled, exchanged, inputs, loss, mesh_of, put, shapes_of
from flax import nnx
from jax.sharding import NamedSharding

import gru_jax
from gru_jax import gru
from gru_jax.params import pytorch_uniform

SIZE = 20, 16, 16, 32  # L, N, I, H, each array's every axis a multiple of 8
BY_AXIS = {"first": jax.P("model"), "last": jax.P(None, "model")}


def split_on(axis, mesh, params):
    """Both kernels on one axis; each bias where the last axis is split."""
    bias = jax.P("model") if axis == "last" else jax.P()
    return jax.tree.map(lambda array: put(mesh, array, BY_AXIS[axis] if array.ndim == 2 else bias), params)


def shardings(tree):
    return jax.tree.map(lambda array: array.sharding, tree)


def gathered(mesh, params):
    return jax.lax.with_sharding_constraint(params, NamedSharding(mesh, jax.P()))


# By hand


@pytest.mark.parametrize("axis", BY_AXIS)
def test_kernels_split_on_either_axis_give_the_same_numbers_but_exchange_in_every_step(axis):
    params, x, *_ = inputs(SIZE)
    split = split_on(axis, mesh_of(model=8), params)
    run = compiled(jax.value_and_grad(loss), split, x)
    assert sum(collective.in_loop for collective in collectives(run)) > 1
    close(run(split, x), jax.jit(jax.value_and_grad(loss))(params, x))


@pytest.mark.parametrize("axis", BY_AXIS)
def test_kernels_gathered_before_the_loop_leave_nothing_to_exchange_in_it(axis):
    params, x, *_ = inputs(SIZE)
    mesh = mesh_of(model=8)
    split = split_on(axis, mesh, params)
    gathered_loss = lambda params, x: loss(gathered(mesh, params), x)
    run = compiled(jax.value_and_grad(gathered_loss), split, x, out_shardings=(None, shardings(split)))
    found = collectives(run)
    assert {(collective.kind, collective.in_loop) for collective in found} == {("all-gather", False)}
    assert exchanged(found) == shapes_of(
        params if axis == "last" else [a for a in params["l0"].values() if a.ndim == 2]
    )
    value, gradient = run(split, x)
    assert shardings(gradient) == shardings(split)
    close((value, gradient), jax.jit(jax.value_and_grad(loss))(params, x))


def test_parameters_split_over_the_batchs_own_devices_are_gathered_and_their_gradient_scattered_once_a_call():
    params, x, *_ = inputs(SIZE)
    mesh, spec = mesh_of(data=8), (jax.P("data"), jax.P(None, "data"))

    def mean_loss(params, x):
        whole = jax.tree.map(lambda array: jax.lax.all_gather(array, "data", tiled=True), params)
        return jax.lax.pmean(loss(whole, x), "data")

    split = put(mesh, params, spec[0]), put(mesh, x, spec[1])
    gradient = jax.grad(jax.shard_map(mean_loss, mesh=mesh, in_specs=spec, out_specs=jax.P()))
    run = compiled(gradient, *split)
    found = collectives(run)
    assert not any(collective.in_loop for collective in found)
    assert exchanged(c for c in found if c.kind == "all-gather") == shapes_of(params)
    parts = jax.tree.map(lambda array: array.addressable_shards[0].data, split[0])
    assert exchanged(c for c in found if c.kind != "all-gather") == shapes_of(parts)
    assert {c.kind for c in found} == {"all-gather", "reduce-scatter"}
    close(run(*split), jax.jit(jax.grad(loss))(params, x))


def test_training_on_a_mesh_of_data_and_model_has_the_losses_of_one_device():
    params, x, *_ = inputs(SIZE)
    optimizer = optax.adam(1e-2)
    mesh = mesh_of(data=4, model=2)
    split, split_x = split_on("first", mesh, params), put(mesh, x, jax.P(None, "data"))

    def train(params, x, whole):
        def step(state, _):
            params, moments = state
            value, gradient = jax.value_and_grad(lambda params: loss(whole(params), x))(params)
            updates, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(params, updates), moments), value

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=5)
        return params, losses

    expected = jax.jit(lambda params: train(params, x, lambda params: params))(params)
    on_mesh = jax.jit(
        lambda params: train(params, split_x, lambda params: gathered(mesh, params)),
        out_shardings=(shardings(split), None),
    )(split)
    assert expected[1][-1] < 0.9 * expected[1][0]
    close(on_mesh, expected)


# By Flax's metadata

X = np.linspace(-1, 1, 6 * 8 * 5, dtype=np.float32).reshape(6, 8, 5)
SHARES = {"kernel_ih": (5, 12), "kernel_hh": (4, 24), "bias_ih": (12,), "bias_hh": (12,)}  # of 2 devices, H = 8
RULES = [("wide", "model")]


def partitioned(wrap, axis):
    """The initializers of a module, with their arrays' axes named."""
    return {
        "kernel_init": wrap(pytorch_uniform, (None, axis)),
        "recurrent_kernel_init": wrap(pytorch_uniform, (axis, None)),
        "bias_init": wrap(pytorch_uniform, (axis,)),
    }


def shares(cell):
    return {key: array.sharding.shard_shape(array.shape) for key, array in cell.items()}


def sum_of_squares(results):
    return sum(jnp.sum(array**2) for array in results)


def on_one_device(params):
    return jax.jit(jax.value_and_grad(lambda params: sum_of_squares(gru(params, X))))(jax.device_get(params))


@pytest.mark.parametrize("logical", [False, True])
def test_linens_parameters_lie_as_their_initializers_declare(logical):
    mesh = mesh_of(data=4, model=2)
    names = (nn.with_logical_partitioning, "wide") if logical else (nn.with_partitioning, "model")
    module = gru_jax.linen.GRU(5, 8, num_layers=2, **partitioned(*names))
    boxed = jax.eval_shape(module.init, jax.random.key(0), X)
    specs = nn.get_partition_spec(boxed)
    declared = nn.logical_to_mesh_sharding(specs, mesh, RULES) if logical else nn.get_sharding(boxed, mesh)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        variables = jax.jit(module.init, out_shardings=declared)(jax.random.key(0), X)
        run = jax.value_and_grad(lambda variables, x: sum_of_squares(module.apply(variables, x)))
        value, gradient = jax.jit(run)(variables, put(mesh, X, jax.P(None, "data")))
    params, gradient = nn.meta.unbox(variables)["params"], nn.meta.unbox(gradient)["params"]
    assert [shares(cell) for cell in params.values()] == [SHARES, SHARES | {"kernel_ih": (8, 12)}]
    close((value, gradient), on_one_device(params))


@pytest.mark.parametrize("construct", [lambda make: make(), lambda make: nnx.jit(make)()], ids=["eager", "jit"])
def test_nnxs_parameters_lie_as_their_initializers_declare(construct):
    mesh = mesh_of(data=4, model=2)
    options = partitioned(nnx.with_partitioning, "model")
    with jax.set_mesh(mesh):
        module = construct(lambda: gru_jax.nnx.GRU(5, 8, num_layers=2, **options, rngs=nnx.Rngs(0)))
        run = nnx.value_and_grad(lambda module, x: sum_of_squares(module(x)))
        value, gradient = nnx.jit(run)(module, put(mesh, X, jax.P(None, "data")))
    params, gradient = nnx.to_pure_dict(nnx.state(module)), nnx.to_pure_dict(gradient)
    declared = nnx.to_pure_dict(nnx.get_named_sharding(nnx.state(module), mesh))
    assert jax.tree.all(jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), params, declared))
    assert [shares(cell) for cell in params.values()] == [SHARES, SHARES | {"kernel_ih": (8, 12)}]
    close((value, gradient), on_one_device(params))
