"""Every JAX transformation of gru, against a plain scan of gru_step, and the recomputing gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import equations, random_params

from gru_jax import (
    GRUConfig,
    from_torch,
    gradients,
    gru,
    gru_step,
    layers,
    pack_padded_sequence,
    pad_packed_sequence,
)
from gru_jax.strategy import Strategy

pytestmark = pytest.mark.usefixtures("x64")

CONFIG = GRUConfig(3, 4, num_layers=2, bidirectional=True)
ONE, BOTH, STACK = GRUConfig(3, 4), GRUConfig(3, 4, bidirectional=True), CONFIG
LENGTHS = np.array([5, 2])
close = functools.partial(chex.assert_trees_all_close, rtol=0, atol=1e-11)
OPTIONS = [{}, {"remat": True}, {"remat": 2, "unroll": 3}]


def slow(*values):
    """One case that only the slow tests run, since it compiles for long and differs little from a quick one."""
    return pytest.param(*values, marks=pytest.mark.slow)


slow_for_both_forms = pytest.mark.parametrize("reset_after", [True, slow(False)])

STORED = Strategy(hoist=False, barrier=False, recompute=False, remat=False)
STRATEGIES = {
    "stored": STORED,
    "hoisted": STORED._replace(hoist=True, barrier=True),
    "recomputed": STORED._replace(recompute=True),
    "remat": STORED._replace(remat=True),
}


@pytest.fixture(params=STRATEGIES)
def strategy(request, monkeypatch):
    """Runs a test under every strategy, whatever its sizes would choose."""
    asked = []
    monkeypatch.setattr(gradients, "choose", lambda x, h_0: asked.append(h_0) or STRATEGIES[request.param])
    layers._layers.clear_cache()  # It knows shapes, not strategies.
    yield
    layers._layers.clear_cache()
    assert asked


every_strategy = pytest.mark.usefixtures("strategy")


def the_two_ways(test):
    """Stored gates and recomputed ones have a derivative each; the other strategies are orders of these two."""
    ways = ["stored", slow("hoisted"), "recomputed", slow("remat")]
    return every_strategy(pytest.mark.parametrize("strategy", ways, indirect=True)(test))


def make_data(config=STACK, steps=5, rows=2):
    """Parameters, x and h_0 in float64."""
    rng, states = np.random.default_rng(0), config.num_layers * config.num_directions
    x, h_0 = rng.standard_normal((steps, rows, 3)), rng.standard_normal((states, rows, 4))
    return random_params(config, jnp.float64), jnp.asarray(x), jnp.asarray(h_0)


@pytest.fixture
def data(x64):
    """Parameters, x and h_0 of the STACK."""
    return make_data()


def plain_gru(params, x, h_0, *, reset_after, seq_lengths=None):
    """The definition: a scan of gru_step for each layer and direction, differentiated as JAX finds it."""
    steps, states, h_n = jnp.arange(len(x)), iter(h_0), []
    ends = jnp.full(x.shape[1], len(x)) if seq_lengths is None else jnp.asarray(seq_lengths)
    for layer in range(sum(not name.endswith("reverse") for name in params)):
        outputs = []
        for name in (name for name in params if name.split("_")[0] == f"l{layer}"):

            def advance(h, at_t, cell=params[name]):
                t, x_t = at_t
                h = jnp.where((t < ends)[:, None], gru_step(cell, h, x_t, reset_after=reset_after), h)
                return h, jnp.where((t < ends)[:, None], h, 0)

            h, output = jax.lax.scan(advance, next(states), (steps, x), reverse=name.endswith("reverse"))
            outputs.append(output)
            h_n.append(h)
        x = jnp.concatenate(outputs, axis=-1)
    return x, jnp.stack(h_n)


def scalar(function, **options):
    """A loss that depends on output and h_n, and on each of their elements differently."""

    def loss(params, x, h_0):
        output, h_n = function(params, x, h_0, **options)
        return jnp.sum(jnp.sin(jnp.arange(output.size)).reshape(output.shape) * output**2) + jnp.sum(h_n**3)

    return loss


def tangents_of(data):
    """A direction in which every number of the data moves by an amount of its own."""
    return jax.tree.map(lambda a: np.cos(np.arange(a.size)).reshape(a.shape), data)


def first_derivatives(loss, data):
    """Value and gradient by reverse mode, and a tangent by forward mode."""
    both = lambda data, tangents: (jax.value_and_grad(loss, argnums=(0, 1, 2))(*data), jax.jvp(loss, data, tangents))
    return jax.jit(both)(data, tangents_of(data))


def second_derivatives(loss, data):
    """The Hessian times a vector: forward over reverse, and reverse over reverse."""
    gradient = lambda *data: jax.grad(loss, argnums=(0, 1, 2))(*data)
    both = lambda data, vector: (jax.jvp(gradient, data, vector)[1], jax.vjp(gradient, *data)[1](vector))
    return jax.jit(both)(data, tangents_of(data))


@functools.cache
def expected(derive, sizes, reset_after, ragged=False):
    """What `derive` makes of the plain scan: the same under every strategy, so once is enough."""
    lengths = LENGTHS if ragged else None
    return derive(scalar(plain_gru, reset_after=reset_after, seq_lengths=lengths), make_data(*sizes))


@every_strategy
@pytest.mark.parametrize("ragged", [slow(False), True], ids=["dense", "lengths"])
def test_values_gradients_and_tangents_are_those_of_the_plain_scan(ragged):
    ours = scalar(gru, reset_after=True, seq_lengths=LENGTHS if ragged else None)
    close(first_derivatives(ours, make_data(ONE)), expected(first_derivatives, (ONE,), True, ragged))


@the_two_ways
@pytest.mark.parametrize("ragged", [slow(False), True], ids=["dense", "lengths"])
def test_those_of_the_papers_form_are_too(ragged):
    ours = scalar(gru, reset_after=False, seq_lengths=LENGTHS if ragged else None)
    close(first_derivatives(ours, make_data(ONE)), expected(first_derivatives, (ONE,), False, ragged))


@pytest.mark.slow
def test_derivatives_of_a_stack_are_those_of_the_plain_scan():
    ours = scalar(gru, reset_after=True, seq_lengths=LENGTHS)
    close(first_derivatives(ours, make_data(STACK)), expected(first_derivatives, (STACK,), True, ragged=True))


@the_two_ways
@slow_for_both_forms
def test_second_derivatives_are_those_of_the_plain_scan(reset_after):
    ours = second_derivatives(scalar(gru, reset_after=reset_after), make_data(ONE))
    close(ours, expected(second_derivatives, (ONE,), reset_after))


@pytest.mark.slow
@every_strategy
def test_second_derivatives_of_two_directions_are_those_of_the_plain_scan():
    ours = second_derivatives(scalar(gru, reset_after=True), make_data(BOTH))
    close(ours, expected(second_derivatives, (BOTH,), True))


@slow_for_both_forms
@pytest.mark.parametrize("options", [slow(OPTIONS[1]), OPTIONS[2]], ids=str)
@pytest.mark.parametrize("derive", [first_derivatives, slow(second_derivatives)])
def test_derivatives_with_remat_are_those_of_the_plain_scan(reset_after, options, derive):
    ours = scalar(gru, reset_after=reset_after, seq_lengths=LENGTHS, **options)
    close(derive(ours, make_data(ONE)), expected(derive, (ONE,), reset_after, ragged=True))


@the_two_ways
@slow_for_both_forms
@pytest.mark.parametrize("derive", [first_derivatives, slow(second_derivatives)])
def test_derivatives_summed_in_blocks_of_time_are_those_of_the_plain_scan(reset_after, derive):
    sizes = (ONE, 131, 4)  # blocks of rows and of time, and a rest
    ours, theirs = scalar(gru, reset_after=reset_after), expected(derive, sizes, reset_after)
    chex.assert_trees_all_close(derive(ours, make_data(*sizes)), theirs, rtol=1e-11, atol=1e-10)


@the_two_ways
@slow_for_both_forms
def test_jacfwd_and_jacrev_agree_with_the_plain_scan(reset_after):
    params, x, h_0 = make_data(ONE)
    run = lambda function: lambda x: function(params, x, h_0, reset_after=reset_after)
    both = lambda x: (jax.jacfwd(run(gru))(x), jax.jacrev(run(gru))(x))
    plain = jax.jit(jax.jacrev(run(plain_gru)))(x)
    close(jax.jit(both)(x), (plain, plain))


@every_strategy
@pytest.mark.parametrize("options", [OPTIONS[0], *map(slow, OPTIONS[1:])], ids=str)
def test_vmap_over_the_batch_is_the_batch(options):
    params, x, h_0 = make_data(ONE)
    one = jax.jit(lambda x, h_0, lengths: gru(params, x, h_0, seq_lengths=lengths, **options))
    many = jax.jit(jax.vmap(one, (1, 1, 0), 1))
    close(many(x, h_0, LENGTHS), one(x, h_0, LENGTHS))


@the_two_ways
def test_vmap_over_parameters_is_an_ensemble():
    _, x, h_0 = make_data(ONE)
    members = [random_params(ONE, jnp.float64, seed) for seed in range(3)]
    ensemble = jax.tree.map(lambda *arrays: np.stack(arrays), *members)
    run = jax.jit(jax.value_and_grad(scalar(gru)))
    together = jax.jit(jax.vmap(run, in_axes=(0, None, None)))(ensemble, x, h_0)
    for i, member in enumerate(members):
        close(jax.tree.map(lambda a: a[i], together), run(member, x, h_0))  # noqa: B023


def test_per_example_gradients_are_pytorchs():
    torch.manual_seed(0)
    module = torch.nn.GRU(3, 4, 2, bidirectional=True).double()
    x = np.random.default_rng(0).standard_normal((5, 2, 3))
    _, params = from_torch(module)
    loss = lambda params, x: jnp.sum(gru(params, x)[0] ** 2)
    ours = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 1)))(params, x)
    for i in range(2):
        theirs = torch.autograd.grad((module(torch.tensor(x[:, i]))[0] ** 2).sum(), list(module.parameters()))
        for (name, _), gradient in zip(module.named_parameters(), theirs, strict=True):
            kind, half, cell = name.split("_", 2)
            ours_here = ours[cell][f"{kind}_{half}".replace("weight", "kernel")][i]
            np.testing.assert_allclose(ours_here.T, gradient.numpy(), rtol=0, atol=1e-10)


def test_the_tangent_of_a_stack_is_pytorchs():
    torch.manual_seed(0)
    module = torch.nn.GRU(3, 4, 2, bidirectional=True).double()
    _, params = from_torch(module)
    at = tuple(np.random.default_rng(0).standard_normal(shape) for shape in ((5, 2, 3), (4, 2, 4)))
    theirs = torch.autograd.functional.jvp(module, *(tuple(map(torch.tensor, a)) for a in (at, tangents_of(at))))
    ours = jax.jit(lambda *ats: jax.jvp(lambda x, h_0: gru(params, x, h_0), *ats))(at, tangents_of(at))
    close(ours, jax.tree.map(lambda a: a.numpy(), theirs))


def test_inside_a_scan_over_chunks_it_carries_its_state():
    params, x, h_0 = make_data(ONE, steps=12)

    def chunked(params, x, h_0):
        advance = lambda h, chunk: gru(params, chunk, h)[::-1]
        h_n, output = jax.lax.scan(advance, h_0, x.reshape(4, 3, 2, 3))
        return output.reshape(12, 2, 4), h_n

    run = lambda function: jax.jit(jax.value_and_grad(scalar(function), argnums=(0, 1, 2)))(params, x, h_0)
    close(run(chunked), run(gru))


def test_checkpoint_around_it_changes_nothing():
    run = lambda loss: jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*make_data(ONE))
    close(run(jax.checkpoint(scalar(gru))), run(scalar(gru)))


def test_eval_shape_runs_nothing_and_knows_the_shapes(data):
    output, h_n = jax.eval_shape(gru, *data)
    assert (output.shape, h_n.shape) == ((5, 2, 8), (4, 2, 4))
    assert output.dtype == h_n.dtype == jnp.float64


def test_a_gradient_with_respect_to_a_packed_sequence_is_a_packed_sequence():
    params, x, h_0 = make_data(ONE)

    @jax.jit
    def both(x):
        packed = pack_padded_sequence(x, LENGTHS)
        through_pack = jax.grad(lambda packed: jnp.sum(gru(params, packed, h_0)[0].data ** 2))(packed)
        through_lengths = jax.grad(lambda x: jnp.sum(gru(params, x, h_0, seq_lengths=LENGTHS)[0] ** 2))(x)
        return pad_packed_sequence(through_pack)[0], through_lengths

    close(*both(x))


def test_recomputing_takes_less_memory_and_grows_with_the_square_root_of_the_steps():
    params = random_params(GRUConfig(8, 16))

    def lowered(steps, remat):
        gradient = jax.grad(lambda params, x: jnp.sum(gru(params, x, remat=remat)[1] ** 2))
        return jax.jit(gradient).lower(params, jax.ShapeDtypeStruct((steps, 32, 8), jnp.float32))

    @functools.cache
    def temporaries(steps, remat):
        return lowered(steps, remat).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(1024, True) < temporaries(1024, False) / 3
    assert temporaries(4096, True) < 2.5 * temporaries(1024, True)
    assert temporaries(4096, False) > 3.5 * temporaries(1024, False)
    # The choice, since the gates would outgrow the cache.
    assert lowered(4096, None).as_text() == lowered(4096, True).as_text()


@pytest.mark.parametrize(("rows", "remat"), [(2, None), (64, False)])
def test_the_weights_gradient_of_stored_gates_is_no_sum_inside_the_loop(rows, remat):
    """What makes float32 gradients over 1,000 steps PyTorch's: the loop that runs backwards carries the state alone."""
    params = random_params(GRUConfig(8, 16))
    gradient = jax.make_jaxpr(jax.grad(lambda params, x: jnp.sum(gru(params, x, remat=remat)[0] ** 2)))
    scans = [e for e in equations(gradient(params, jnp.ones((5, rows, 8))).jaxpr) if e.primitive.name == "scan"]
    over_time = [e for e in scans if e.params["length"] == 5 and any(v.aval.shape == (rows, 16) for v in e.outvars)]
    assert len(over_time) == 2
    for loop in over_time:  # What a loop gives is an array over the five steps, or what it carries.
        assert {v.aval.shape for v in loop.outvars if v.aval.shape[:1] != (5,)} == {(rows, 16)}
