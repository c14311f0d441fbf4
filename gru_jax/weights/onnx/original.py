"""Runs GRU nodes in onnxruntime, as a model that is cut out of the one that they come from."""

from typing import Any

import numpy as np

from gru_jax.weights import reference
from gru_jax.weights.found import require
from gru_jax.weights.onnx.graph import Graph
from gru_jax.weights.onnx.layers import Layer


def run_original(
    graph: Graph,
    layers: list[Layer],
    between: list[int],
    dtype: str,
    x: np.ndarray,
    h_0: np.ndarray,
    d_output: np.ndarray,
    d_h_n: np.ndarray,
) -> dict[str, np.ndarray]:
    """`Found.original` for a stack. float32 runs in onnxruntime; float64, which onnxruntime lacks, in `reference`.

    onnxruntime has no layout 1 on the CPU, so onnx's own reference implementation runs those nodes.
    """
    lower = layers[0]
    if dtype == "float64":
        cells = {
            f"l{k}{'_reverse' * d}": _by_gate(cell)
            for k, layer in enumerate(layers)
            for d, cell in enumerate(layer.cells(np.float64))
        }
        backwards = lower.direction == "reverse"
        return reference.run(cells, x, h_0, reset_after=lower.reset_after, backwards=backwards)
    swap = (lambda a: a.swapaxes(0, 1)) if lower.batch_first else (lambda a: a)
    model = _cut(graph, layers, between)
    feed = {model.graph.input[0].name: swap(x)}
    for value, states in zip(model.graph.input[1:], np.split(h_0, len(layers)), strict=True):
        feed[value.name] = swap(states)
    try:
        if lower.batch_first:
            with np.errstate(over="ignore"):
                results = require("onnx.reference", "onnx").ReferenceEvaluator(model).run(None, feed)
        else:
            runtime = require("onnxruntime", "onnx")
            options = runtime.SessionOptions()
            options.log_severity_level = 4  # it also raises what it would log
            session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            results = session.run(None, feed)
    except Exception as error:  # onnxruntime's errors have no narrower base class
        raise ValueError(f"{lower.node.name!r} does not run in its own framework: {error}") from error
    y, *last = map(swap, results)
    # Y is [L, D, N, H]; with layout 1 it is [L, N, D, H] after the swap.
    y = y if lower.batch_first else y.transpose(0, 2, 1, 3)
    return {"output": y.reshape(*x.shape[:2], -1), "h_n": np.concatenate(last)}


def _by_gate(cell: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays split by gate, as `reference` takes them, with zeros if there is no bias."""
    zeros = np.zeros(len(cell["R"]))
    return {key: np.stack(np.split(array, 3)) for key, array in ({"b_W": zeros, "b_R": zeros} | cell).items()}


def _cut(graph: Graph, layers: list[Layer], between: list[int]) -> Any:
    """Returns a model of a stack's nodes and all that makes their weights. It takes X and each layer's initial_h."""
    onnx = require("onnx", "onnx")
    floats = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    nodes, tensors = {index: graph.nodes[index] for index in between}, {}
    for layer in layers:
        own = f"gru_jax/{layer.position}/"
        weights = list(layer.node.input[1:4])
        if layer.weights["W"].dtype != np.float32:  # onnxruntime has a GRU of float32 only
            weights = [f"{own}{key}" if key in layer.weights else "" for key in "WRB"]
            wide = [array.astype(np.float32) for array in layer.weights.values()]
            tensors |= {key: onnx.numpy_helper.from_array(a, key) for key, a in zip(weights, wide, strict=False)}
        node = nodes[layer.position] = onnx.NodeProto()
        node.CopyFrom(layer.node)
        del node.input[1:], node.output[1:]
        node.input.extend([*weights, *[""] * (4 - len(weights)), f"{own}h_0"])
        node.output[0] = node.output[0] or f"{own}y"
        node.output.append(f"{own}h_n")
    rows = [nodes[layer.position] for layer in layers]
    inputs = [rows[0].input[0], *(row.input[5] for row in rows)]
    outputs = [rows[-1].output[0], *(row.output[1] for row in rows)]
    needed = [name for node in nodes.values() for name in node.input]
    while needed:
        name = needed.pop()
        tensor, index = graph.initializers.get(name), graph.producers.get(name)
        if name in tensors or name in inputs:
            continue
        if tensor is not None:
            tensors[name] = (
                tensor if tensor.data_location == 0 else onnx.numpy_helper.from_array(graph.constant(name), name)
            )
        elif index is not None and graph.nodes[index].op_type == "Constant":
            tensors[name] = onnx.numpy_helper.from_array(graph.constant(name), name)
        elif index is not None and index not in nodes:
            nodes[index] = graph.nodes[index]
            needed += graph.nodes[index].input
    values = [list(map(floats, names)) for names in (inputs, outputs)]
    cut = onnx.helper.make_graph([nodes[i] for i in sorted(nodes)], "cut", *values, list(tensors.values()))
    return onnx.helper.make_model(cut, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
