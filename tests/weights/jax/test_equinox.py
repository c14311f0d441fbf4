"""from_equinox, to_equinox and what is found of Equinox's cells, against live Equinox."""

import functools

import chex
import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stock_cells import H, I, assert_original_is, assert_same_function, cast, flat, own_cell, random_like, run_stock

from gru_jax import GRUConfig, find_grus
from gru_jax.weights.jax.equinox import find, from_equinox, to_equinox

ARRAYS = ("weight_ih", "weight_hh", "bias", "bias_n")
both_biases = pytest.mark.parametrize("bias", [True, False])


def arrays_of(cell):
    return {name: getattr(cell, name) for name in ARRAYS if getattr(cell, name) is not None}


def abstract(kind, *arguments):
    """A cell without numbers: drawing them would compile a program for each shape."""
    return equinox.filter_eval_shape(kind, *arguments, key=jax.random.key(0))


def tree_of(dtype="float32", bias=True):
    return cast(random_like(arrays_of(abstract(equinox.nn.GRUCell, I, H, bias))), dtype)


def live(tree):
    cell = abstract(equinox.nn.GRUCell, I, H, "bias" in tree)
    return equinox.tree_at(lambda cell: [getattr(cell, name) for name in tree], cell, list(tree.values()))


def step(tree, h, x):
    return jax.vmap(live(tree))(x, h)


def gradients(tree):
    names = {"kernel_ih": "weight_ih", "kernel_hh": "weight_hh", "bias_ih": "bias"}
    return {key: tree[name].T for key, name in names.items() if name in tree}


stock = functools.partial(run_stock, step, gradients)


@both_biases
def test_a_stock_cell_computes_the_same_here(bias, dtype):
    tree = tree_of(dtype, bias)
    config, params = from_equinox(live(tree))
    assert config == GRUConfig(I, H, bias=bias)
    assert {str(a.dtype) for a in jax.tree.leaves(params)} == {dtype}
    assert_same_function(dtype, config, params, functools.partial(stock, tree))


@both_biases
def test_a_cell_and_the_dict_of_its_arrays_import_alike_and_go_back_bit_for_bit(bias):
    tree = tree_of(bias=bias)
    expected = from_equinox(live(jax.tree.map(jnp.asarray, tree)))
    chex.assert_trees_all_equal(from_equinox(tree), expected)
    chex.assert_trees_all_equal(from_equinox(dict.fromkeys(ARRAYS) | tree), expected)
    chex.assert_trees_all_equal(to_equinox(expected[1]["l0"]), tree)


def test_the_original_of_a_found_cell_is_the_stock_cell():
    tree = tree_of()
    grus, refused = find(flat({"model": {"cell": tree, "linear": {"weight": np.ones((3, 4)), "bias": np.ones(3)}}}))
    assert (list(grus), refused) == (["model.cell."], {})
    found = grus["model.cell."]
    assert found.framework == "equinox.nn.GRUCell"
    assert set(found.names) == {f"model.cell.{name}" for name in ARRAYS}
    chex.assert_trees_all_equal((found.config, found.read()), from_equinox(tree))
    assert_original_is(found, functools.partial(stock, tree))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_keeps_its_dtype_and_its_original_runs_on_the_widened_numbers(half):
    tree = tree_of(jnp.dtype(half))
    found = find(flat(tree))[0][""]
    assert {str(a.dtype) for a in jax.tree.leaves(found.read())} == {half}
    assert_original_is(found, functools.partial(stock, tree))


def test_a_cell_without_bias_is_left_to_pytorch_which_reads_the_same_names_alike():
    tree = tree_of(bias=False)
    assert find(flat(tree)) == ({}, {})
    assert find_grus(tree) == {"": from_equinox(tree)[0]}


def test_pytorch_names_are_left_alone():
    shapes = {"weight_ih": (12, 5), "weight_hh": (12, 4), "bias_ih": (12,), "bias_hh": (12,)}
    arrays = {name: np.ones(shape) for name, shape in shapes.items()}
    assert find(flat({"cell": arrays, "rnn": {f"{name}_l0": a for name, a in arrays.items()}})) == ({}, {})


@both_biases
@pytest.mark.parametrize("input_size", [I, H, 3 * H])
def test_an_lstm_is_refused_by_name(input_size, bias):
    cell = abstract(equinox.nn.LSTMCell, input_size, H, bias)
    tree = random_like({name: getattr(cell, name) for name in ARRAYS[:3] if getattr(cell, name) is not None})
    with pytest.raises(ValueError, match="from_equinox: expected the arrays of an equinox.nn.GRUCell, got an LSTM"):
        from_equinox(tree)
    with pytest.raises(TypeError, match="expected an equinox.nn.GRUCell or a dict .*got equinox.nn._rnn.LSTMCell"):
        from_equinox(cell)
    grus, refused = find(flat({"cell": tree}))
    assert not grus
    assert [reason.startswith("an LSTM, not a GRU") for reason in refused.values()] == [True] * bias


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("bias", None, "missing: bias [12]."),
        ("bias_n", None, "missing: bias_n [4]."),
        ("weight_ih", None, "missing: weight_ih [12, 0]."),
        ("bias_n", np.ones(12, np.float32), "wrong shape: bias_n, expected [4], got [12]."),
        ("weight_hh", np.ones((9, 4), np.float32), "wrong shape: weight_hh, expected [12, 4], got [9, 4]."),
        ("norm", np.ones(4, np.float32), "unexpected: norm [4]."),
        ("bias", np.ones(12, np.float16), "expected one dtype in all of a GRU"),
        ("bias", np.ones(12, np.int32), "expected cell.bias of dtype float16, bfloat16, float32, float64, got int32."),
    ],
)
def test_a_cell_that_does_not_fit_exactly_is_refused_in_one_line(name, array, reason):
    tree = {key: a for key, a in tree_of().items() if key != name} | ({} if array is None else {name: array})
    grus, refused = find(flat({"cell": tree}))
    assert (grus, list(refused)) == ({}, ["cell."])
    assert reason in refused["cell."]
    assert "\n" not in refused["cell."]
    with pytest.raises((ValueError, TypeError), match="equinox.nn.GRUCell"):
        from_equinox(tree)


def test_what_is_no_cell_is_refused():
    for wrong in (3, None, [1], abstract(equinox.nn.Linear, 3, 4)):
        with pytest.raises(
            TypeError, match="from_equinox: expected an equinox.nn.GRUCell or a dict of its arrays, got"
        ):
            from_equinox(wrong)
    with pytest.raises(ValueError, match=r"missing: weight_ih \[0, 0\]"):
        from_equinox({})


@both_biases
def test_a_cell_of_ours_computes_the_same_in_a_stock_cell(bias, dtype):
    cell = own_cell(dtype, bias)
    if bias:
        # Sums of these biases are exact, so that folding them changes no number in float32 either.
        cell |= {name: np.round(cell[name] * 256) / 256 for name in ("bias_ih", "bias_hh")}
    tree = to_equinox(cell)
    assert set(tree) == set(ARRAYS if bias else ARRAYS[:2])
    assert {str(a.dtype) for a in jax.tree.leaves(tree)} == {dtype}
    params = {"l0": jax.tree.map(jnp.asarray, cell)}
    config = GRUConfig(I, H, bias=bias)
    assert_same_function(dtype, config, params, functools.partial(stock, tree))


def test_the_biases_of_r_and_z_are_added_in_float64_and_rounded_once():
    cell = own_cell("float32")
    tree = to_equinox(cell)
    exact = np.float64(cell["bias_ih"]) + np.float64(cell["bias_hh"])
    np.testing.assert_array_equal(tree["bias"][: 2 * H], np.float32(exact)[: 2 * H])
    np.testing.assert_array_equal(tree["bias"][2 * H :], cell["bias_ih"][2 * H :])
    np.testing.assert_array_equal(tree["bias_n"], cell["bias_hh"][2 * H :])


def test_the_other_form_of_the_new_gate_is_refused():
    with pytest.raises(ValueError, match="to_equinox: expected a GRU with reset_after=True, as equinox.nn.GRUCell has"):
        to_equinox(own_cell("float32"), reset_after=False)
