"""What is refused of a GRU node, and which nodes are one stack."""

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import (
    FEATURES,
    FLAGS,
    HIDDEN,
    graph_model,
    gru_node,
    gru_weights,
    one_gru,
    random_inputs,
    run_onnxruntime,
)

from gru_jax import GRUConfig
from gru_jax.weights.onnx.importer import from_onnx, open_onnx

RESHAPE = {"merged": np.array([0, 0, -1]), "axis": np.array([1]), "last": np.array([-1]), "two": np.array([2])}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 3.0}, "its gates are clipped, at 3, and gru's are not"),
        ({"clip": 0.0}, "its gates are clipped, at 0"),
        ({"activations": ["HardSigmoid", "Tanh"]}, r"its activations are \['HardSigmoid', 'Tanh'\]; gru's are Sigmoid"),
        ({"activations": ["Sigmoid"]}, r"its activations are \['Sigmoid'\]"),
        ({"activations": ["Tanh", "Sigmoid"]}, r"its activations are \['Tanh', 'Sigmoid'\]"),
        ({"direction": "sideways"}, "its direction 'sideways' is not known"),
        ({"direction": "bidirectional"}, r"W \[2, 12, 5\] is \[1, 12, 5\]"),
        ({"linear_before_reset": 2}, "its linear_before_reset 2 or its layout 0 is neither 0 nor 1"),
        ({"layout": 2}, "or its layout 2 is neither 0 nor 1"),
        ({"hidden_size": 5}, "its hidden_size is 5, but its weights are of I = 5, H = 4"),
        ({"hidden_size": 4.0}, "its attribute hidden_size is not of the kind"),
        ({"direction": 1}, "its attribute direction is not of the kind"),
        ({"momentum": 1}, r"its attributes \['momentum'\] are not known"),
        ({"weights": ("W", "R", "W")}, r"B \[1, 24\] is \[1, 12, 5\]"),
        ({"weights": ("R", "W", "B")}, "its weights have other shapes than a GRU's"),
        ({"weights": ("W", "", "B")}, "no ''"),
        ({"x": ""}, "it has no input X"),
    ],
)
def test_a_node_that_gru_does_not_compute_is_refused(options, message):
    model = graph_model([gru_node(**options)], gru_weights())
    with pytest.raises(ValueError, match=message):
        from_onnx(model)


def test_a_node_of_too_few_inputs_or_an_attribute_given_twice_is_refused():
    model = one_gru()
    del model.graph.node[0].input[2:]
    with pytest.raises(ValueError, match="it has 2 inputs and 2 outputs; a GRU has 3 to 6 and 1 or 2"):
        from_onnx(model)
    model = one_gru()
    model.graph.node[0].attribute.append(helper.make_attribute("hidden_size", HIDDEN))
    with pytest.raises(ValueError, match="its attribute hidden_size is not of the kind"):
        from_onnx(model)


def test_weights_of_two_dtypes_or_of_integers_are_refused():
    weights = gru_weights()
    with pytest.raises(ValueError, match="its weights are float16 and float32"):
        from_onnx(graph_model([gru_node()], weights | {"R": weights["R"].astype(np.float16)}))
    with pytest.raises(ValueError, match="its weights are int32; expected one of float16"):
        from_onnx(graph_model([gru_node()], {name: array.astype(np.int32) for name, array in weights.items()}))


def test_activations_that_are_the_default_and_parameters_they_lack_are_taken():
    model = one_gru(activations=["Sigmoid", "Tanh"], activation_alpha=[0.2], activation_beta=[0.5])
    with pytest.warns(UserWarning, match="initial_h"):
        assert from_onnx(model)[0] == GRUConfig(FEATURES, HIDDEN)


ZEROS = {
    "absent": ([], {}, ""),
    "initializer": ([], {"h": np.zeros((1, 3, HIDDEN), np.float32)}, "h"),
    "ConstantOfShape": ([helper.make_node("ConstantOfShape", ["size"], ["h"])], {"size": np.array([1, 3, 4])}, "h"),
    "Expand": (
        [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Expand", ["zero", "s"], ["h"])],
        {"zero": np.zeros(1, np.float32)},
        "h",
    ),
}
OTHERS = {
    "input": ([], {}, "h_0"),
    "initializer": ([], {"h": np.ones((1, 3, HIDDEN), np.float32)}, "h"),
    "ConstantOfShape": (
        [helper.make_node("ConstantOfShape", ["size"], ["h"], value=onnx.numpy_helper.from_array(np.float32([1])))],
        {"size": np.array([1, 3, 4])},
        "h",
    ),
    "computed": ([helper.make_node("Relu", ["h_0"], ["h"])], {}, "h"),
}


@pytest.mark.parametrize("given", ZEROS.values(), ids=ZEROS)
def test_an_initial_h_of_zeros_needs_no_note(tmp_path, given):
    nodes, constants, name = given
    onnx.save(graph_model([*nodes, gru_node(h_0=name)], gru_weights() | constants), tmp_path / "gru.onnx")
    assert open_onnx(tmp_path / "gru.onnx").grus["gru"].notes == ()


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("given", OTHERS.values(), ids=OTHERS)
def test_any_other_initial_h_is_said(tmp_path, given, layout):
    nodes, constants, name = given
    onnx.save(
        graph_model([*nodes, gru_node(h_0=name, layout=layout)], gru_weights() | constants), tmp_path / "gru.onnx"
    )
    axes = ", with the axes [N, D, H] there" if layout else ""
    notes = (f"the graph gives it initial_h, the tensors l0: '{name}'{axes}: pass them as h_0",)
    assert open_onnx(tmp_path / "gru.onnx").grus["gru"].notes == notes


def two(between, bidirectional=False, opset=17, outputs=("y2",), lower=(), upper=(), sizes=(), **constants):
    """Two GRU nodes with other nodes between: from y1 to x2."""
    directions = 2 if bidirectional else 1
    options = {"direction": "bidirectional" if bidirectional else "forward", "h_0": ""}
    weights = gru_weights(directions, suffix="1") | gru_weights(directions, directions * HIDDEN, 1, "2")
    nodes = [
        gru_node("first", "x", "y1", **({"weights": ("W1", "R1", "B1")} | options | dict(lower))),
        *between,
        gru_node("second", "x2", "y2", **({"weights": ("W2", "R2", "B2")} | options | dict(upper))),
    ]
    model = graph_model(nodes, weights | RESHAPE | constants, inputs=("x",), outputs=outputs, opset=opset)
    if sizes:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [*sizes, FEATURES]))
    return model


def node(kind, inputs, output, **options):
    return helper.make_node(kind, inputs, [output], **options)


SQUEEZE = [node("Squeeze", ["y1", "axis"], "x2")]
MERGE = [node("Transpose", ["y1"], "t", perm=[0, 2, 1, 3]), node("Reshape", ["t", "merged"], "x2")]
COMPUTED_SHAPE = [
    node("Transpose", ["y1"], "t", perm=[0, 2, 1, 3]),
    node("Shape", ["t"], "s"),
    node("Slice", ["s", "zero", "axis"], "s0"),
    node("Slice", ["s", "axis", "two"], "s1"),
    node("Concat", ["s0", "s1", "last"], "target", axis=0),
    node("Reshape", ["t", "target"], "x2"),
]
STACKS = {
    "squeezed": two(SQUEEZE),
    "negative axis": two([node("Squeeze", ["y1", "axis"], "x2")], axis=np.array([-3])),
    "opset 12": two([node("Squeeze", ["y1"], "x2", axes=[1])], opset=12),
    "identity and dropout": two(
        [node("Identity", ["y1"], "a"), node("Squeeze", ["a", "axis"], "b"), node("Dropout", ["b"], "x2")]
    ),
    "reshaped": two([node("Reshape", ["y1", "target"], "x2")], target=np.array([0, -1, HIDDEN])),
    "both directions": two(MERGE, bidirectional=True),
    "one, transposed": two(MERGE),
    "a computed shape": two(COMPUTED_SHAPE, bidirectional=True, zero=np.array([0])),
    "a computed product": two(
        [
            *COMPUTED_SHAPE[:4],
            node("Slice", ["s", "two", "three"], "s2"),
            node("Slice", ["s", "three", "four"], "s3"),
            node("Mul", ["s2", "s3"], "features"),
            node("Concat", ["s0", "s1", "features"], "target", axis=0),
            COMPUTED_SHAPE[-1],
        ],
        bidirectional=True,
        zero=np.array([0]),
        three=np.array([3]),
        four=np.array([4]),
    ),
    "fixed sizes": two(MERGE, bidirectional=True, sizes=(7, 3), merged=np.array([7, 3, 2 * HIDDEN])),
    "h_n is read, too": two(SQUEEZE, outputs=("y2", "y1_h")),
}
APART = {
    "read twice": two(SQUEEZE, outputs=("y2", "x2")),
    "Y is read": two(SQUEEZE, outputs=("y2", "y1")),
    "something between": two([node("Squeeze", ["y1", "axis"], "a"), node("Relu", ["a"], "x2")]),
    "trained dropout": two(
        [node("Squeeze", ["y1", "axis"], "a"), node("Dropout", ["a", "half", "yes"], "x2")],
        half=np.float32(0.5),
        yes=np.array(True),
    ),
    "another axis": two([node("Squeeze", ["y1", "two"], "x2")]),
    "not transposed": two([node("Reshape", ["y1", "merged"], "x2")], bidirectional=True),
    "transposed otherwise": two(
        [node("Transpose", ["y1"], "t", perm=[2, 0, 1, 3]), node("Reshape", ["t", "merged"], "x2")]
    ),
    "sizes of an unknown input": two(MERGE, bidirectional=True, merged=np.array([7, 3, -1])),
    "sizes of another input": two(MERGE, bidirectional=True, sizes=(7, 3), merged=np.array([3, 7, -1])),
    "as many directions as sequences": two(
        [node("Reshape", ["y1", "merged"], "x2")], bidirectional=True, sizes=(7, 2), merged=np.array([7, 2, -1])
    ),
    "L and N swapped": two([MERGE[0], node("Reshape", ["t", "target"], "x2")], target=np.array([-1, 7, HIDDEN])),
    "another form": two(SQUEEZE, upper={"linear_before_reset": 0}),
    "another bias": two(SQUEEZE, upper={"weights": ("W2", "R2", "")}),
    "reverse": two(SQUEEZE, lower={"direction": "reverse"}, upper={"direction": "reverse"}),
    "another direction": two(SQUEEZE, upper={"direction": "reverse"}),
    "other lengths": two(SQUEEZE, upper={"lengths": "axis"}),
}


@pytest.mark.parametrize("model", STACKS.values(), ids=STACKS)
def test_nodes_that_read_only_each_other_are_one_gru(tmp_path, model):
    onnx.save(model, tmp_path / "gru.onnx")
    ((name, found),) = open_onnx(tmp_path / "gru.onnx").grus.items()
    assert (name, found.names, found.config.num_layers) == ("first", ("first", "second"), 2)
    x, _ = random_inputs(found.config)
    h_0 = np.zeros((2 * found.config.num_directions, x.shape[1], HIDDEN), np.float32)
    ran = found.original("float32", x, h_0, np.zeros(1), np.zeros(1))
    whole = run_onnxruntime(model, {"x": x})[0].transpose(0, 2, 1, 3).reshape(ran["output"].shape)
    np.testing.assert_array_equal(ran["output"], whole)


@pytest.mark.parametrize("model", APART.values(), ids=APART)
def test_nodes_that_may_not_be_one_gru_are_left_apart(tmp_path, model):
    onnx.save(model, tmp_path / "gru.onnx")
    contents = open_onnx(tmp_path / "gru.onnx")
    assert not contents.refused
    assert [found.config.num_layers for found in contents.grus.values()] == [1, 1]


@pytest.mark.parametrize("bidirectional", FLAGS)
def test_layers_of_layout_1_are_one_gru(tmp_path, bidirectional):
    squeeze, reshape = node("Squeeze", ["y1", "two"], "x2"), node("Reshape", ["y1", "merged"], "x2")
    layout = {"layout": 1}
    onnx.save(
        two([reshape if bidirectional else squeeze], bidirectional, lower=layout, upper=layout), tmp_path / "gru.onnx"
    )
    (found,) = open_onnx(tmp_path / "gru.onnx").grus.values()
    assert (found.config.num_layers, found.config.batch_first) == (2, True)


def test_a_node_without_an_output_leads_nowhere(tmp_path):
    model = two([helper.make_node("Squeeze", ["y1", "axis"], [])])
    onnx.save(model, tmp_path / "gru.onnx")
    assert list(open_onnx(tmp_path / "gru.onnx").grus) == ["first", "second"]


def test_a_behind_node_that_cannot_be_read_is_named():
    model = two([node("Transpose", ["y1"], "t", perm=1.5), *MERGE[1:]])
    with pytest.raises(ValueError, match="from_onnx: a node behind a GRU can't be read: its attribute perm is not"):
        from_onnx(model)
