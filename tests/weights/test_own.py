"""What is found of gru_jax's own trees, against live PyTorch."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import random_params
from flax import nnx
from stock_cells import H, I, cast, flat, inputs, own_cell, random_like, run_ours

import gru_jax
from gru_jax import GRUConfig, from_torch
from gru_jax.verify import judge
from gru_jax.weights.jax import equinox, flax, haiku
from gru_jax.weights.own import find

CONFIG = GRUConfig(I, H, num_layers=2, bidirectional=True)


def params_of(config=CONFIG, dtype="float32"):
    return cast(random_params(config), dtype)


def random_inputs(config, dtype):
    return [array.astype(dtype) for array in inputs(config).values()]


@pytest.mark.parametrize(
    "config",
    [CONFIG, GRUConfig(I, H), GRUConfig(I, H, 2, bias=False), GRUConfig(1, 1)],
    ids=["stack", "one", "no bias", "tiny"],
)
def test_a_tree_is_found_and_its_original_is_pytorchs_gru(config, dtype):
    params = params_of(config, dtype)
    grus, refused = find(flat({"params": {"rnn": params, "out": {"kernel": np.ones((3, 4))}}}))
    assert (list(grus), refused) == (["params.rnn."], {})
    found = grus["params.rnn."]
    assert (found.config, found.framework) == (config, "torch.nn.GRU")
    assert set(found.names) == {f"params.rnn.{name}" for name in flat(params)}
    chex.assert_trees_all_equal(found.read(), params)

    given = random_inputs(config, dtype)
    reference, original = found.original("float64", *given), found.original(dtype, *given)
    ours = run_ours(config, found.read(), *map(jnp.asarray, given))
    assert ours.keys() == reference.keys() == original.keys()
    for name, array in ours.items():
        assert original[name].dtype == dtype
        verdict = judge(name, array, original[name], reference[name])
        assert verdict.passed, verdict


def test_the_original_is_the_module_that_the_parameters_came_from():
    module = torch.nn.GRU(I, H, 2, bidirectional=True)
    _, params = from_torch(module)
    x, h_0, *cotangents = random_inputs(CONFIG, np.float32)
    results = find(flat(params))[0][""].original("float32", x, h_0, *cotangents)
    output, h_n = module(torch.tensor(x), torch.tensor(h_0))
    np.testing.assert_allclose(results["output"], output.detach().numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(results["h_n"], h_n.detach().numpy(), rtol=0, atol=1e-6)


def test_a_single_cell_is_a_gru_of_one_layer():
    cell = own_cell("float32")
    grus, refused = find(flat({"cell": cell}))
    assert (list(grus), refused) == (["cell."], {})
    assert grus["cell."].config == GRUConfig(I, H)
    chex.assert_trees_all_equal(grus["cell."].read(), {"l0": cell})
    assert list(find(flat(cell))[0]) == [""]


def test_the_modules_of_gru_jax_are_found_and_no_other_format_takes_them():
    module = nnx.eval_shape(lambda: gru_jax.nnx.GRU(I, H, 2, bidirectional=True, rngs=nnx.Rngs(0)))
    tree = flat({"rnn": random_like(nnx.to_pure_dict(nnx.state(module, nnx.Param)))})
    assert find(tree)[0]["rnn."].config == CONFIG
    for other in (flax, equinox, haiku):
        assert other.find(tree) == ({}, {})


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_keeps_its_dtype_and_its_original_runs_on_the_widened_numbers(half):
    params = params_of(dtype=jnp.dtype(half))
    found, wide = find(flat(params))[0][""], find(flat(cast(params, np.float32)))[0][""]
    assert {str(a.dtype) for a in jax.tree.leaves(found.read())} == {half}
    given = random_inputs(CONFIG, np.float32)
    chex.assert_trees_all_equal(found.original("float32", *given), wide.original("float32", *given))


ONES = np.ones(12, np.float32)


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("l1.bias_hh", None, "missing: l1/bias_hh [12]."),
        ("l0.kernel_hh", None, "expected params of a GRU"),
        ("l1_reverse.kernel_ih", ONES, "wrong shape: l1_reverse/kernel_ih, expected [8, 12], got [12]."),
        ("l999999.bias_ih", ONES, "missing: l2/kernel_ih"),
        ("kernel_ih", ONES, "unexpected: /kernel_ih [12]."),
        ("l0.bias_ih", np.ones(12, np.float16), "expected one dtype in all of a GRU"),
        ("l0.bias_ih", np.ones(12, np.int8), "expected rnn.l0.bias_ih of dtype float16"),
    ],
)
def test_a_tree_that_does_not_hold_together_is_refused_in_one_line(name, array, reason):
    tensors = {key: tensor for key, tensor in flat(params_of()).items() if key != name}
    tensors |= {} if array is None else flat({name: array})
    grus, refused = find({f"rnn.{key}": tensor for key, tensor in tensors.items()})
    assert (grus, list(refused)) == ({}, ["rnn."])
    assert reason in refused["rnn."]
    assert "\n" not in refused["rnn."]
