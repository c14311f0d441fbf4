"""Which tensors of a graph are constants, and what their numbers are."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import graph_model, gru_node, gru_weights, one_gru

from gru_jax.weights.onnx.importer import from_onnx, open_onnx


def test_weights_that_the_graph_computes_are_refused():
    constants = gru_weights() | {"half": np.float32([0.5])}
    weights = ("W", "scaled", "B")
    model = graph_model([helper.make_node("Mul", ["R", "half"], ["scaled"]), gru_node(weights=weights)], constants)
    with pytest.raises(ValueError, match="'scaled' is computed by Mul, not stored"):
        from_onnx(model)
    with pytest.raises(ValueError, match="'R' is an input of the graph, not a constant"):
        from_onnx(graph_model([gru_node()], {k: gru_weights()[k] for k in "WB"}, inputs=("x", "h_0", "R")))


def test_rearranged_constants_are_read():
    """The weights as PyTorch's exporter leaves them where it folds no constants."""
    weights = gru_weights()
    z, r, n = np.split(weights["R"][0], 3)
    axis = {"zero": np.array([0]), "first": np.array([4]), "second": np.array([8])}
    constants = {"W": weights["W"][0].T.astype(np.float64), "torch_R": np.concatenate([r, z, n]), **axis}
    constants |= {"ends": np.array([12])}
    nodes = [
        helper.make_node("Slice", ["torch_R", "zero", "first", "zero"], ["r"]),
        helper.make_node("Slice", ["torch_R", "first", "second", "zero"], ["z"]),
        helper.make_node("Slice", ["torch_R", "second", "ends", "zero"], ["n"]),
        helper.make_node("Concat", ["z", "r", "n"], ["zrn"], axis=0),
        helper.make_node("Unsqueeze", ["zrn", "zero"], ["R_3d"]),
        helper.make_node("Transpose", ["W"], ["W_t"]),
        helper.make_node("Cast", ["W_t"], ["W_f"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["W_f", "zero"], ["W_3d"]),
        helper.make_node("Constant", [], ["B_c"], value=numpy_helper.from_array(weights["B"])),
        helper.make_node("Identity", ["B_c"], ["B_i"]),
        gru_node(weights=("W_3d", "R_3d", "B_i"), h_0=""),
    ]
    _, params = from_onnx(graph_model(nodes, constants, inputs=("x",)))
    _, expected = from_onnx(graph_model([gru_node(h_0="")], weights, inputs=("x",)))
    for key, array in expected["l0"].items():
        np.testing.assert_array_equal(params["l0"][key], array)


def test_constants_that_grow_without_end_are_refused():
    nodes = [helper.make_node("Concat", [f"R{i}" if i else "R"] * 2, [f"R{i + 1}"], axis=0) for i in range(40)]
    model = graph_model([*nodes, gru_node(weights=("W", "R40", "B"))], gru_weights())
    with pytest.raises(ValueError, match="would be larger than all that is stored"):
        from_onnx(model)
    nodes = [helper.make_node("Identity", [f"R{i}" if i else "R"], [f"R{i + 1}"]) for i in range(3000)]
    model = graph_model([*nodes, gru_node(weights=("W", "R3000", "B"))], gru_weights())
    with pytest.raises(ValueError, match="'R2950' is computed by Identity"):
        from_onnx(model)


def test_a_node_that_fails_on_its_constants_is_refused():
    model = graph_model(
        [helper.make_node("Transpose", ["R"], ["t"], perm=[7]), gru_node(weights=("W", "t", "B"))], gru_weights()
    )
    with pytest.raises(ValueError, match="'t' can't be computed: Transpose failed"):
        from_onnx(model)


def test_a_constant_without_numbers_is_refused():
    model = graph_model(
        [helper.make_node("Constant", [], ["c"], value_string="a"), gru_node(weights=("W", "c", "B"))], gru_weights()
    )
    with pytest.raises(ValueError, match="'c' is a Constant without numbers"):
        from_onnx(model)


def test_a_tensor_given_twice_is_refused():
    model = one_gru()
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(
        ValueError, match="expected every tensor of a graph to have a name of its own, found 'W' given twice"
    ):
        from_onnx(model)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "gru.onnx").write_bytes(
        one_gru().SerializeToString().replace(b"hidden_size", b"hidden_\xff\xff\xff\xff")
    )
    with pytest.raises(ValueError, match="expected the names of a graph to be UTF-8"):
        open_onnx(tmp_path / "gru.onnx")
