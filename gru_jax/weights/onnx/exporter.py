"""Converts our parameters to an ONNX model with one GRU node per layer, arranged as in models that PyTorch exports."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax.params import GRUConfig, GRUParams, cell_names, check_declared, check_params
from gru_jax.weights.found import require
from gru_jax.weights.gate_order import from_ours

_OPSET, _IR_VERSION = 17, 8  # onnx 1.12, onnxruntime 1.12 and all later versions know these


def to_onnx(config: GRUConfig, params: GRUParams) -> Any:
    """Writes a GRU as an ONNX model, with one GRU node per layer.

    Args:
      config: the GRU's config; its `dropout` is left out, as in evaluation.
      params: GRUParams. float16 and bfloat16, for which onnxruntime has no GRU on the CPU, are widened to float32,
        exactly. float64 is kept: ONNX has a GRU of float64, onnxruntime has none.

    Returns:
      An onnx.ModelProto of opset 17, for any L and N. Its inputs are x [L, N, I] and h_0 [num_layers*D, N, H], its
      outputs are output [L, N, D*H] and h_n [num_layers*D, N, H]. With `batch_first`, x is [N, L, I] and output
      [N, L, D*H]. `onnx.save` writes it to a file.

    Raises:
      ImportError: if onnx is not installed.
      TypeError: if params are not floating arrays.
      ValueError: if params are not those of config.

    Example:
      >>> from gru_jax import init_params
      >>> config = GRUConfig(3, 4, num_layers=2)
      >>> [node.op_type for node in to_onnx(config, init_params(jax.random.key(0), config)).graph.node]
      ['Split', 'GRU', 'Squeeze', 'GRU', 'Squeeze', 'Concat']
    """
    helper = require("onnx", "onnx").helper
    check_params("to_onnx", params)
    check_declared("to_onnx", config, params)
    wide = jnp.promote_types(jnp.result_type(*jax.tree.leaves(params)), jnp.float32)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(wide))
    layers, directions = config.num_layers, config.num_directions
    split, last = ([f"{name}_l{k}" for k in range(layers)] if layers > 1 else [name] for name in ("h_0", "h_n"))
    constants = {"axis": np.array([1]), "merged": np.array([0, 0, -1]), "split": np.full(layers, directions)}
    first = [helper.make_node("Split", ["h_0", "split"], split, axis=0)] if layers > 1 else []
    nodes = [helper.make_node("Concat", last, ["h_n"], axis=0)] if layers > 1 else []
    edges = [f"x_l{layer}" for layer in range(layers + 1)]
    if config.batch_first:
        first.append(helper.make_node("Transpose", ["x"], edges[:1], perm=[1, 0, 2]))
        nodes.append(helper.make_node("Transpose", edges[-1:], ["output"], perm=[1, 0, 2]))
    else:
        edges[0], edges[-1] = "x", "output"
    for layer, names in reversed(list(enumerate(cell_names(layers, config.bidirectional)))):
        weights = _weights(layer, [{key: np.asarray(a, wide) for key, a in params[name].items()} for name in names])
        nodes = _layer_nodes(config, layer, list(weights), edges[layer : layer + 2], split[layer], last[layer]) + nodes
        constants |= weights
    nodes = first + nodes

    used = {name for node in nodes for name in node.input}
    tensors = [
        helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape, a.tobytes(), raw=True)
        for name, a in constants.items()
        if name in used
    ]
    value = lambda name, *shape: helper.make_tensor_value_info(name, kind, shape)
    sequence = ("N", "L") if config.batch_first else ("L", "N")
    state = (layers * directions, "N", config.hidden_size)
    inputs = [value("x", *sequence, config.input_size), value("h_0", *state)]
    outputs = [value("output", *sequence, directions * config.hidden_size), value("h_n", *state)]
    graph = helper.make_graph(nodes, "gru", inputs, outputs, tensors)
    opset = helper.make_opsetid("", _OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name="gru_jax")


def _weights(layer: int, cells: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns W, R and, if there are biases, B of one node."""
    stacked = {key: np.stack([from_ours(cell[key].T, "onnx", axis=0) for cell in cells]) for key in cells[0]}
    weights = {f"W_l{layer}": stacked["kernel_ih"], f"R_l{layer}": stacked["kernel_hh"]}
    bias = [stacked[key] for key in ("bias_ih", "bias_hh") if key in stacked]
    return weights | ({f"B_l{layer}": np.concatenate(bias, axis=1)} if bias else {})


def _layer_nodes(config: GRUConfig, layer: int, weights: list[str], edges: list[str], h_0: str, h_n: str) -> list[Any]:
    """Returns a GRU node, and the nodes that make [L, N, D*H] of its [L, D, N, H], as PyTorch's exporter does."""
    make = require("onnx", "onnx").helper.make_node
    inputs, y = [edges[0], *weights, *[""] * (4 - len(weights)), h_0], f"Y_l{layer}"
    direction = "bidirectional" if config.bidirectional else "forward"
    options = {"hidden_size": config.hidden_size, "linear_before_reset": int(config.reset_after)}
    nodes = [make("GRU", inputs, [y, h_n], name=f"l{layer}", direction=direction, **options)]
    if not config.bidirectional:
        return [*nodes, make("Squeeze", [y, "axis"], edges[1:])]
    transposed = f"Y_transposed_l{layer}"
    nodes.append(make("Transpose", [y], [transposed], perm=[0, 2, 1, 3]))
    return [*nodes, make("Reshape", [transposed, "merged"], edges[1:])]


def save_onnx(path: str | os.PathLike[str], config: GRUConfig, params: GRUParams) -> None:
    """Writes the model that `to_onnx` makes to a file."""
    model = to_onnx(config, params)
    require("onnx", "onnx").save(model, os.fspath(path))
