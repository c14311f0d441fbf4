"""from_haiku, to_haiku and what is found of Haiku's GRUs, against live dm-haiku."""

import functools

import chex
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stock_cells import (
    H,
    I,
    L,
    N,
    assert_original_is,
    assert_same_function,
    cast,
    flat,
    own_cell,
    random_like,
    run_stock,
)

from gru_jax import GRUConfig, gru
from gru_jax.weights.jax.haiku import find, from_haiku, to_haiku

CELL = haiku.without_apply_rng(haiku.transform(lambda x, h: haiku.GRU(H)(x, h)[0]))


def tree_of(dtype="float32"):
    params = jax.eval_shape(CELL.init, jax.random.key(0), jnp.zeros((N, I)), jnp.zeros((N, H)))
    return cast(random_like(params["gru"]), dtype)


def step(tree, h, x):
    return CELL.apply({"gru": tree}, x, h)


def gradients(tree):
    """z, r, a to r, z, n; a gradient of -w is minus that of w."""
    ours = {"kernel_ih": tree["w_i"], "kernel_hh": tree["w_h"], "bias_ih": tree["b"]}
    parts = {key: jnp.split(a, 3, -1) for key, a in ours.items()}
    return {key: jnp.concatenate([r, -z, a], -1) for key, (z, r, a) in parts.items()}


stock = functools.partial(run_stock, step, gradients)


def test_the_stock_cell_with_its_complementary_update_gate_computes_the_same_here(dtype):
    tree = tree_of(dtype)
    config, params = from_haiku(tree)
    assert config == GRUConfig(I, H, reset_after=False)
    assert {str(a.dtype) for a in jax.tree.leaves(params)} == {dtype}
    assert_same_function(dtype, config, params, functools.partial(stock, tree))


def test_the_original_of_a_found_cell_is_the_stock_cell():
    tree = tree_of()
    grus, refused = find(flat({"encoder/gru": tree, "encoder/linear": {"w": np.ones((3, 4)), "b": np.ones(4)}}))
    assert (list(grus), refused) == (["encoder/gru."], {})
    found = grus["encoder/gru."]
    assert found.framework == "haiku.GRU"
    assert set(found.names) == {"encoder/gru.w_i", "encoder/gru.w_h", "encoder/gru.b"}
    chex.assert_trees_all_equal((found.config, found.read()), from_haiku(tree))
    assert_original_is(found, functools.partial(stock, tree))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_keeps_its_dtype_and_its_original_runs_on_the_widened_numbers(half):
    tree = tree_of(jnp.dtype(half))
    found = find(flat(tree))[0][""]
    assert {str(a.dtype) for a in jax.tree.leaves(found.read())} == {half}
    assert_original_is(found, functools.partial(stock, tree))


def model(x):
    """Two GRUs, an LSTM, a plain RNN and a Linear."""
    cores = [haiku.GRU(H), haiku.GRU(H), haiku.LSTM(H), haiku.VanillaRNN(H), haiku.Linear(4 * H)]
    return haiku.DeepRNN(cores)(x, haiku.DeepRNN(cores).initial_state(x.shape[0]))[0]


def test_every_gru_of_a_whole_model_is_found_and_the_rest_left_alone():
    shapes = jax.eval_shape(haiku.transform(model).init, jax.random.key(0), jnp.zeros((N, I)))
    params = cast(random_like(shapes), "float32")
    grus, refused = find(flat({"params": params}))
    assert set(grus) == {f"params.{name}." for name in params if name.split("/")[-1].startswith("gru")}
    assert len(grus) == 2
    assert list(refused) == ["params.lstm/linear."]
    assert refused["params.lstm/linear."].startswith("an LSTM, not a GRU")
    for prefix, found in grus.items():
        tree = params[prefix.removeprefix("params.").removesuffix(".")]
        chex.assert_trees_all_equal((found.config, found.read()), from_haiku(tree))


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("b", None, "missing: b [12]."),
        ("b", np.ones(4, np.float32), "wrong shape: b, expected [12], got [4]."),
        ("w_h", np.ones((4, 16), np.float32), "wrong shape: w_h, expected [4, 12], got [4, 16]."),
        ("scale", np.ones(4, np.float32), "unexpected: scale [4]."),
        ("b", np.ones(12, np.float16), "expected one dtype in all of a GRU"),
        ("b", np.ones(12, np.int32), "expected gru.b of dtype float16, bfloat16, float32, float64, got int32."),
    ],
)
def test_a_cell_that_does_not_fit_exactly_is_refused_in_one_line(name, array, reason):
    tree = {key: a for key, a in tree_of().items() if key != name} | ({} if array is None else {name: array})
    grus, refused = find(flat({"gru": tree}))
    assert (grus, list(refused)) == ({}, ["gru."])
    assert reason in refused["gru."]
    assert "\n" not in refused["gru."]
    with pytest.raises(ValueError, match="from_haiku: expected the parameters of one GRU cell, got: haiku.GRU"):
        from_haiku(tree)


def test_what_is_no_tree_of_one_cell_is_answered_with_what_to_do():
    with pytest.raises(TypeError, match="from_haiku: expected a dict of arrays, got int"):
        from_haiku(3)
    with pytest.raises(ValueError, match=r"It holds them at 'gru\.'"):
        from_haiku({"gru": tree_of()})
    with pytest.raises(TypeError, match="from_haiku: expected w_i to be a JAX or NumPy array, got list"):
        from_haiku({"w_i": [1.0]})


@pytest.mark.parametrize("bias", [True, False])
def test_a_cell_of_ours_computes_the_same_in_the_stock_cell(bias, dtype):
    cell = own_cell(dtype, bias)
    if bias:
        # Sums of these biases are exact, so that folding them changes no number in float32 either.
        cell |= {name: np.round(cell[name] * 256) / 256 for name in ("bias_ih", "bias_hh")}
    tree = to_haiku(cell, reset_after=False)
    assert {str(a.dtype) for a in jax.tree.leaves(tree)} == {dtype}

    def run(*args):
        return {n: a for n, a in stock(tree, *args).items() if n.removeprefix("d_l0/") in cell or "/" not in n}

    config = GRUConfig(I, H, bias=bias, reset_after=False)
    assert_same_function(dtype, config, {"l0": jax.tree.map(jnp.asarray, cell)}, run)


def test_what_comes_from_haiku_goes_back_bit_for_bit_and_sums_are_rounded_once():
    tree = tree_of()
    chex.assert_trees_all_equal(to_haiku(from_haiku(tree)[1]["l0"], reset_after=False), tree)
    cell = own_cell("float32")
    r, z, n = np.split(np.float32(np.float64(cell["bias_ih"]) + np.float64(cell["bias_hh"])), 3)
    np.testing.assert_array_equal(to_haiku(cell, reset_after=False)["b"], np.concatenate([-z, r, n]))


def test_pytorchs_form_of_the_new_gate_is_refused():
    with pytest.raises(
        ValueError, match="to_haiku: expected a GRU with reset_after=False, as haiku.GRU has it, got reset_a"
    ):
        to_haiku(own_cell("float32"))
    with pytest.raises(ValueError, match=r"to_haiku: (?s:.*)missing: bias_hh"):
        to_haiku({k: a for k, a in own_cell("float32").items() if k != "bias_hh"}, reset_after=False)


def test_a_sequence_over_haikus_own_unroll_is_the_same():
    tree = tree_of()
    config, params = from_haiku(tree)
    x = np.random.default_rng(0).standard_normal((L, N, I), np.float32)
    unroll = haiku.without_apply_rng(
        haiku.transform(lambda x: haiku.dynamic_unroll(haiku.GRU(H), x, jnp.zeros((N, H)))[0])
    )
    output, _ = gru(params, x, reset_after=config.reset_after)
    np.testing.assert_allclose(unroll.apply({"gru": tree}, x), output, rtol=0, atol=1e-6)
