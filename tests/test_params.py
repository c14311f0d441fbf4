"""Sizes, drawn parameters, and what infer_config reads off a tree."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import random_params

from gru_jax import GRUConfig, infer_config, init_params
from gru_jax.params import check_cell


def test_config_has_the_arguments_of_torch_gru_in_the_same_order_with_the_same_defaults():
    # torch.nn.GRU takes *args; the base class that it hands them to has the names.
    theirs = list(inspect.signature(torch.nn.RNNBase).parameters.values())[1:8]
    ours = dataclasses.fields(GRUConfig)
    assert [field.name for field in ours] == [p.name for p in theirs] + ["reset_after"]
    for field, parameter in zip(ours[2:], theirs[2:], strict=False):
        assert field.default == parameter.default


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3, 11])
def test_infer_config_reads_back_what_init_params_drew(num_layers, bidirectional, bias):
    config = GRUConfig(5, 4, num_layers, bias, bidirectional=bidirectional)
    assert infer_config(jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))) == config


def test_init_params_draws_pytorchs_uniform_distribution_with_a_key_of_its_own_for_each_array():
    config = GRUConfig(30, 25, num_layers=2, bidirectional=True)
    params = init_params(jax.random.key(0), config)
    assert infer_config(params) == config
    arrays = [np.asarray(a).ravel() for a in jax.tree.leaves(params)]
    for array in arrays:
        assert np.abs(array).max() <= 0.2  # 1 / sqrt(25)
        assert np.abs(array).max() > 0.18
        assert abs(array.std() - 0.2 / np.sqrt(3)) < 0.02
    assert len({a[0] for a in arrays}) == len(arrays)


def test_init_params_takes_a_dtype():
    drawn = jax.eval_shape(lambda key: init_params(key, GRUConfig(2, 3), jnp.bfloat16), jax.random.key(0))
    assert {a.dtype for a in jax.tree.leaves(drawn)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_size": 0}, ValueError, "expected input_size to be at least 1, got 0"),
        ({"hidden_size": -1}, ValueError, "expected hidden_size to be at least 1, got -1"),
        ({"num_layers": 0}, ValueError, "expected num_layers to be at least 1, got 0"),
        ({"num_layers": 1.0}, TypeError, "expected num_layers to be an integer, got float"),
        ({"num_layers": True}, TypeError, "expected num_layers to be an integer, got bool"),
        ({"bias": 1}, TypeError, "expected bias to be a bool, got int"),
        ({"batch_first": "no"}, TypeError, "expected batch_first to be a bool, got str"),
        ({"dropout": -0.1}, ValueError, "expected dropout within 0..1"),
        ({"dropout": float("nan")}, ValueError, "expected dropout within 0..1"),
        ({"dropout": "0.5"}, TypeError, "expected dropout to be a Python number, got str"),
    ],
)
def test_config_refuses_what_torch_gru_would(arguments, error, message):
    with pytest.raises(error, match=f"^GRUConfig: {message}"):
        GRUConfig(**({"input_size": 5, "hidden_size": 4} | arguments))


def test_config_warns_of_dropout_with_one_layer_as_pytorch_does():
    with pytest.warns(UserWarning, match="dropout=0.5 has no effect with num_layers=1"):
        GRUConfig(5, 4, dropout=0.5)
    with pytest.warns(UserWarning, match="num_layers=1"):
        torch.nn.GRU(5, 4, dropout=0.5)


def broken(change):
    params = random_params(GRUConfig(5, 4, num_layers=3, bidirectional=True))
    change(params)
    return params


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda p: p.pop("l1"), ["missing: l1/kernel_ih [8, 12]", "missing: l1/bias_hh [12]"]),
        (lambda p: p["l2"].pop("bias_hh"), ["missing: l2/bias_hh [12]"]),
        (lambda p: p.update(l0_backward=p["l0"]), ["unexpected: l0_backward/kernel_ih [5, 12]"]),
        (lambda p: p["l1"].update(weight=jnp.ones(3)), ["unexpected: l1/weight [3]"]),
        (
            lambda p: p["l1"].update(kernel_ih=jnp.ones((5, 12))),
            ["wrong shape: l1/kernel_ih, expected [8, 12], got [5, 12]"],
        ),
        (
            lambda p: (p["l0"].update(bias_ih=jnp.ones(4)), p["l2"].pop("kernel_hh"), p.update(l9=p["l0"])),
            ["wrong shape: l0/bias_ih, expected [12], got [4]", "missing: l2/kernel_hh [4, 12]", "missing: l3/"],
        ),
        (lambda p: p.update({"l999999": p["l1"]}), ["missing: l3/kernel_ih", "unexpected: l999999/"]),
        (lambda p: p.update({"l" + "9" * 5000: p["l1"], 7: p["l1"]}), ["unexpected: l99999", "unexpected: 7/"]),
        (lambda p: p.pop("l0"), ["with l0/kernel_ih of shape [I, 3H]"]),
        (lambda p: p.clear(), ["found nothing"]),
    ],
)
def test_infer_config_lists_everything_that_is_wrong_in_one_message(change, messages):
    with pytest.raises(ValueError, match=r"^infer_config: ") as error:
        infer_config(broken(change))
    for message in messages:
        assert message in str(error.value)


def test_infer_config_refuses_what_is_no_float():
    params = random_params(GRUConfig(5, 4))
    with pytest.raises(TypeError, match="expected l0/kernel_ih to be a floating array, got int32"):
        infer_config({"l0": dict(params["l0"], kernel_ih=jnp.ones((5, 12), int))})
    with pytest.raises(TypeError, match="expected l0/kernel_ih to be a floating array, got list"):
        infer_config({"l0": dict(params["l0"], kernel_ih=[1.0])})


def test_check_cell_lists_everything_that_is_wrong():
    cell = dict(random_params(GRUConfig(5, 4))["l0"])
    assert check_cell("f", cell) == (5, 4)
    cell.pop("bias_hh")
    cell["kernel_ih"] = jnp.ones((5, 13))
    with pytest.raises(ValueError, match=r"(?s)f: params of one cell.*missing: bias_hh.*kernel_ih, expected \[5, 12\]"):
        check_cell("f", cell)
