"""What the tests of ONNX share: models of GRU nodes, and how they are run."""

import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from gru_jax import gru
from gru_jax.verify import judge

STEPS, BATCH, FEATURES, HIDDEN = 7, 3, 5, 4
FLAGS = (False, True)
DIRECTIONS = ("forward", "reverse", "bidirectional")


def gru_node(name="gru", x="x", y="y", lengths="", h_0="h_0", weights=("W", "R", "B"), **options):
    options = {"hidden_size": HIDDEN, "linear_before_reset": 1} | options
    return helper.make_node("GRU", [x, *weights, lengths, h_0], [y, f"{y}_h"], name=name, **options)


def gru_weights(directions=1, features=FEATURES, seed=0, suffix="", dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = {
        "W": (directions, 3 * HIDDEN, features),
        "R": (directions, 3 * HIDDEN, HIDDEN),
        "B": (directions, 6 * HIDDEN),
    }
    return {f"{key}{suffix}": rng.uniform(-0.7, 0.7, shape).astype(dtype) for key, shape in shapes.items()}


def graph_model(nodes, constants, inputs=("x", "h_0"), outputs=("y", "y_h"), opset=17, kind=TensorProto.FLOAT):
    values = [[helper.make_tensor_value_info(name, kind, None) for name in names] for names in (inputs, outputs)]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", *values, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def one_gru(direction="forward", **options):
    """A model of one node, with x and h_0 as its inputs."""
    weights = gru_weights(2 if direction == "bidirectional" else 1)
    return graph_model([gru_node(direction=direction, **options)], weights)


def as_double(model):
    """The same graph in float64, which onnx's reference implementation runs."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    for tensor in double.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    return double


def run_reference(model, feed):
    return ReferenceEvaluator(as_double(model)).run(None, {name: a.astype(np.float64) for name, a in feed.items()})


def run_onnxruntime(model, feed):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def random_inputs(config, seed=0):
    rng = np.random.default_rng(seed)
    rows = config.num_layers * config.num_directions
    x = rng.standard_normal((STEPS, BATCH, config.input_size), np.float32)
    return x, rng.standard_normal((rows, BATCH, config.hidden_size), np.float32)


def run_ours(config, params, x, h_0, backwards=False, **options):
    flip = (lambda a: jnp.flip(a, 0)) if backwards else (lambda a: a)
    output, h_n = gru(params, flip(jnp.asarray(x)), h_0, reset_after=config.reset_after, precision="highest", **options)
    return {"output": flip(output), "h_n": h_n}


def from_y(y):
    """[L, D, N, H] to [L, N, D*H]."""
    steps, _, batch, _ = y.shape
    return y.transpose(0, 2, 1, 3).reshape(steps, batch, -1)


def assert_within(ours, original, truth):
    for name in ("output", "h_n"):
        verdict = judge(name, ours[name], original[name], truth[name])
        assert verdict.passed, verdict
