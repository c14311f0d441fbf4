"""to_onnx against onnxruntime and onnx's reference implementation."""

import chex
import jax
import numpy as np
import onnx
import pytest
from conftest import random_params
from onnx_models import FEATURES, FLAGS, HIDDEN, assert_within, random_inputs, run_onnxruntime, run_ours, run_reference

from gru_jax import GRUConfig
from gru_jax.weights.onnx.exporter import to_onnx
from gru_jax.weights.onnx.importer import from_onnx


@pytest.mark.parametrize("batch_first", FLAGS)
@pytest.mark.parametrize(
    ("num_layers", "bidirectional", "bias", "reset_after"),
    [
        (1, False, False, True),
        (1, True, True, False),
        (3, False, True, False),
        (2, True, False, True),
        (2, True, True, True),
    ],
)
def test_to_onnx_gives_onnxruntime_the_same_numbers(num_layers, bidirectional, bias, batch_first, reset_after):
    config = GRUConfig(FEATURES, HIDDEN, num_layers, bias, batch_first, 0.0, bidirectional, reset_after)
    params = random_params(config)
    model = to_onnx(config, params)
    onnx.checker.check_model(model, full_check=True)
    x, h_0 = random_inputs(config)
    swap = (lambda a: a.swapaxes(0, 1)) if batch_first else (lambda a: a)
    feed = {"x": swap(x), "h_0": h_0}
    truth, original = (
        {"output": swap(o), "h_n": h} for o, h in (run_reference(model, feed), run_onnxruntime(model, feed))
    )
    ours = run_ours(config, params, x, h_0)
    assert_within(original, ours, truth)
    assert_within(ours, original, truth)

    with pytest.warns(UserWarning, match="initial_h"):
        back = from_onnx(model)
    assert back[0] == GRUConfig(FEATURES, HIDDEN, num_layers, bias, False, 0.0, bidirectional, reset_after)
    chex.assert_trees_all_equal(back[1], params)


@pytest.mark.parametrize(
    ("dtype", "written"), [("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64")]
)
def test_to_onnx_widens_what_onnxruntime_lacks(dtype, written, x64):
    config = GRUConfig(FEATURES, HIDDEN)
    params = random_params(config, dtype)
    model = to_onnx(config, params)
    onnx.checker.check_model(model, full_check=True)
    with pytest.warns(UserWarning, match="initial_h"):
        _, back = from_onnx(model)
    chex.assert_trees_all_equal(back, jax.tree.map(lambda a: a.astype(written), params))


def test_params_that_are_not_those_of_the_config_are_refused():
    params = random_params(GRUConfig(3, 4))
    with pytest.raises(ValueError, match=r"to_onnx: params is not.*\n  missing: l1/kernel_ih"):
        to_onnx(GRUConfig(3, 4, num_layers=2), params)
    with pytest.raises(TypeError, match="to_onnx: expected l0/kernel_ih to be a floating array"):
        to_onnx(GRUConfig(3, 4), {"l0": {"kernel_ih": np.ones((3, 12), int)}})
