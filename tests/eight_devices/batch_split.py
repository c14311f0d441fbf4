"""A batch over eight devices; `test_sharding.py` runs this file where there are eight."""

import jax
import jax.numpy as jnp
import pytest
from eight_devices.exchanges import (
    close,
    collectives,
    compiled,
    exchanged,
    forward,
    inputs,
    loss,
    mesh_of,
    put,
    shapes_of,
)
from jax.sharding import AxisType

from gru_jax import GRUConfig, gru, init_params
from gru_jax.strategy import Strategy, choose

OVER_BATCH = jax.P(None, "data")

# L, N, I, H: one of each way to compute a gradient. All but the first sum over more than one block of rows.
SIZES = {
    "short": (5, 8, 5, 8),
    "hoisted": (40, 8, 5, 8),
    "stored": (20, 16, 5, 8),
    "stored, many rows": (6, 72, 5, 512),
    "recomputed": (70, 64, 5, 8),
    "remat": (128, 56, 5, 128),
}


def with_batch_split(mesh, params, x, lengths, h_0):
    return (
        put(mesh, params, jax.P()),
        put(mesh, x, OVER_BATCH),
        put(mesh, lengths, jax.P("data")),
        put(mesh, h_0, OVER_BATCH),
    )


@pytest.mark.parametrize(
    ("size", "deep", "kind"),
    [
        *((size, False, AxisType.Auto) for size in SIZES),
        *((size, True, AxisType.Auto) for size in ("stored", "recomputed")),
        ("short", False, AxisType.Explicit),
        ("stored", True, AxisType.Explicit),
    ],
)
def test_a_forward_exchanges_nothing_and_its_results_stay_split(size, deep, kind):
    args = inputs(SIZES[size], deep)
    split = with_batch_split(mesh_of(kind, data=8), *args)
    run = compiled(forward, *split)
    assert collectives(run) == []
    output, h_n = run(*split)
    for array in (output, h_n):
        assert array.sharding.is_equivalent_to(jax.NamedSharding(array.sharding.mesh, OVER_BATCH), array.ndim)
    close((output, h_n), jax.jit(forward)(*args))


def test_a_forward_with_its_time_split_does_not_pass_for_one_that_exchanges_nothing():
    params, x, *_ = inputs((8, 8, 5, 8))
    assert collectives(compiled(forward, params, put(mesh_of(data=8), x, jax.P("data"))))


@pytest.mark.parametrize(
    ("size", "deep", "kind"),
    [
        ("short", False, AxisType.Auto),
        ("short", False, AxisType.Explicit),
        ("short", True, AxisType.Explicit),
        ("stored, many rows", False, AxisType.Auto),
        ("hoisted", False, AxisType.Explicit),
        ("stored", True, AxisType.Explicit),
        ("remat", False, AxisType.Explicit),
        ("recomputed", False, AxisType.Auto),
        ("recomputed", True, AxisType.Explicit),
    ],
)
def test_a_gradient_sums_gradients_of_parameters_and_exchanges_nothing_else(size, deep, kind):
    args = inputs(SIZES[size], deep)
    split = with_batch_split(mesh_of(kind, data=8), *args)
    run = compiled(jax.grad(loss), *split)
    found = collectives(run)
    assert {collective.kind for collective in found} == {"all-reduce"}
    assert set(exchanged(found)) == set(shapes_of(args[0]))
    close(run(*split), jax.jit(jax.grad(loss))(*args))


@pytest.mark.parametrize("size", ["hoisted", "stored"])
def test_on_a_mesh_of_auto_axes_a_gradient_of_few_rows_over_many_steps_gathers_rows_and_is_right(size):
    args = inputs(SIZES[size], deep=True)
    split = with_batch_split(mesh_of(data=8), *args)
    run = compiled(jax.grad(loss), *split)
    assert "all-gather" in {collective.kind for collective in collectives(run)}
    close(run(*split), jax.jit(jax.grad(loss))(*args))


@pytest.mark.parametrize("size", SIZES)
def test_under_shard_map_a_gradient_is_summed_once_after_all_loops(size):
    steps, batch, input_size, hidden_size = SIZES[size]
    mesh, (params, x, *_) = mesh_of(data=8), inputs((steps, 8 * batch, input_size, hidden_size))

    def mean_loss(params, x):
        return jax.lax.pmean(loss(params, x), "data")

    gradient = jax.grad(jax.shard_map(mean_loss, mesh=mesh, in_specs=(jax.P(), OVER_BATCH), out_specs=jax.P()))
    split = put(mesh, params, jax.P()), put(mesh, x, OVER_BATCH)
    run = compiled(gradient, *split)
    found = collectives(run)
    assert {(collective.kind, collective.in_loop) for collective in found} == {("all-reduce", False)}
    assert exchanged(found) == shapes_of(params)
    close(run(*split), jax.jit(jax.grad(loss))(params, x))


def test_under_shard_map_each_device_runs_a_gru_of_its_own_on_the_same_input():
    mesh, (_, x, *_) = mesh_of(data=8), inputs((6, 3, 5, 4))
    ensemble = jax.vmap(lambda key: init_params(key, GRUConfig(5, 4)))(jax.random.split(jax.random.key(0), 8))
    one = lambda params, x: gru(jax.tree.map(lambda a: a[0], params), x)[0][None]
    run = jax.shard_map(one, mesh=mesh, in_specs=(jax.P("data"), jax.P()), out_specs=jax.P("data"))
    close(run(ensemble, x), jax.vmap(lambda params: gru(params, x)[0])(ensemble))


def test_the_sizes_above_take_every_way():
    ways = {size: choose(jnp.empty((steps, n, i)), jnp.empty((n, h))) for size, (steps, n, i, h) in SIZES.items()}
    stored = Strategy(hoist=False, barrier=False, recompute=False, remat=False)
    assert ways == {
        "short": stored._replace(hoist=True),
        "hoisted": stored._replace(hoist=True),
        "stored": stored,
        "stored, many rows": stored,
        "recomputed": stored._replace(recompute=True),
        "remat": stored._replace(remat=True),
    }
