"""The model that is cut out of a graph is the graph's own GRU."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import FEATURES, HIDDEN, graph_model, gru_node, gru_weights, one_gru, run_onnxruntime

from gru_jax.weights.onnx.importer import open_onnx

X, H_0 = np.ones((2, 1, FEATURES), np.float32), np.ones((1, 1, HIDDEN), np.float32)


def original(path):
    (found,) = open_onnx(path).grus.values()
    return found.original("float32", X, H_0, np.zeros(1), np.zeros(1))


def test_weights_are_rearranged_by_onnxruntime_itself(tmp_path):
    weights = gru_weights()
    weights["W"] = weights["W"].swapaxes(1, 2).astype(np.float64)
    nodes = [
        helper.make_node("Transpose", ["W"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Cast", ["t"], ["W_f"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["x"], ["a"]),
        gru_node(x="a", weights=("W_f", "R", "B"), name=""),
    ]
    model = graph_model(nodes, weights)
    onnx.save(model, tmp_path / "gru.onnx")
    y, y_h = run_onnxruntime(model, {"x": X, "h_0": H_0})
    results = original(tmp_path / "gru.onnx")
    np.testing.assert_array_equal(results["output"], y[:, 0])
    np.testing.assert_array_equal(results["h_n"], y_h)


@pytest.mark.parametrize("output", ["Y", "Y_h"])
def test_a_node_may_leave_out_either_output(tmp_path, output):
    model = one_gru()
    whole = run_onnxruntime(model, {"x": X, "h_0": H_0})
    del model.graph.output[:]
    if output == "Y":
        model.graph.node[0].output[0] = ""
    else:
        del model.graph.node[0].output[1:]
    onnx.save(model, tmp_path / "gru.onnx")
    results = original(tmp_path / "gru.onnx")
    np.testing.assert_array_equal(results["output"], whole[0][:, 0])
    np.testing.assert_array_equal(results["h_n"], whole[1])


def test_what_onnxruntime_refuses_is_a_value_error(tmp_path):
    model = one_gru()
    model.opset_import[0].version = 1000
    onnx.save(model, tmp_path / "gru.onnx")
    with pytest.raises(ValueError, match="'gru' does not run in its own framework: "):
        original(tmp_path / "gru.onnx")
