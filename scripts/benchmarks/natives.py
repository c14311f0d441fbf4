"""The contenders that are not JAX: PyTorch and onnxruntime."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cases import Case


def torch_gru(case: Case, data: dict[str, Any], gradient: bool) -> Callable[[], np.ndarray]:
    """torch.nn.GRU with its default threads: its output, or the gradient of x."""
    module = torch.nn.GRU(case.size[2], case.size[3], case.layers, bidirectional=case.bidirectional)
    module.load_state_dict({name: torch.tensor(w) for name, w in data["weights"].items()})
    x, d_output = torch.tensor(data["x"]), torch.tensor(data["d_output"])
    if data["lengths"] is not None:
        pack = torch.nn.utils.rnn.pack_padded_sequence
        lengths = torch.tensor(data["lengths"])
        x, d_output = pack(x, lengths, enforce_sorted=False), pack(d_output, lengths, enforce_sorted=False).data
        leaf = x.data.requires_grad_(gradient)
        x = x._replace(data=leaf)
        unpack = lambda data: torch.nn.utils.rnn.pad_packed_sequence(x._replace(data=data))[0]
        output = lambda: module(x)[0].data
    else:
        leaf = x.requires_grad_(gradient)
        unpack = lambda data: data
        output = lambda: module(x)[0]

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return unpack(output()).numpy()

    def backward() -> np.ndarray:
        loss = torch.vdot(output().flatten(), d_output.flatten())
        return unpack(torch.autograd.grad(loss, [leaf, *module.parameters()])[0]).numpy()

    return backward if gradient else forward


def torch_quantized(case: Case, data: dict[str, Any]) -> Callable[[], np.ndarray]:
    """torch.nn.GRU dynamically quantized to int8: its output."""
    module = torch.nn.GRU(*case.size[2:])
    module.load_state_dict({name: torch.tensor(w) for name, w in data["weights"].items()})
    with warnings.catch_warnings(action="ignore"):  # PyTorch is retiring torch.ao, and says so.
        small = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(module), {torch.nn.GRU})[0]
    x = torch.tensor(data["x"])

    def run() -> np.ndarray:
        with torch.inference_mode():
            return small(x)[0].numpy()

    return run


def torch_stream(case: Case, data: dict[str, Any]) -> Callable[[], np.ndarray]:
    """torch.nn.GRUCell, one step a call: the last state."""
    cell = torch.nn.GRUCell(*case.size[2:])
    cell.load_state_dict({name.removesuffix("_l0"): torch.tensor(w) for name, w in data["weights"].items()})
    frames = list(torch.tensor(data["x"]))

    def run() -> np.ndarray:
        with torch.inference_mode():
            h = torch.zeros(case.size[1], case.size[3])
            for x in frames:
                h = cell(x, h)
            return h.numpy()

    return run


def onnxruntime_gru(case: Case, data: dict[str, Any]) -> Callable[[], np.ndarray]:
    """The GRU operator of onnxruntime (linear_before_reset=1), a node a layer, with its default threads: its output."""
    session = onnx_session(case, data["weights"], case.size[0])
    feed = {"x": data["x"]}
    if data["lengths"] is not None:
        feed["lengths"] = data["lengths"]
    return lambda: session.run(["output"], feed)[0]


def onnxruntime_stream(case: Case, data: dict[str, Any]) -> Callable[[], np.ndarray]:
    """The GRU operator of onnxruntime on one step a call: the last state."""
    session = onnx_session(case, data["weights"], 1)
    frames = list(data["x"][:, None])

    def run() -> np.ndarray:
        h = np.zeros((1, case.size[1], case.size[3]), np.float32)
        for x in frames:
            h = session.run(["h_n0"], {"x": x, "h_0": h})[0]
        return h[0]

    return run


def onnx_session(case: Case, weights: dict[str, np.ndarray], steps: int) -> Any:
    """A graph of GRU nodes; between them [L, D, N, H] becomes [L, N, D*H]. One step takes h_0 and gives h_n."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    zrn = lambda w: np.concatenate([np.split(w, 3)[i] for i in (1, 0, 2)])
    nodes, constants = [], [numpy_helper.from_array(np.array([0, 0, -1]), "shape")]
    source, hidden_size = "x", case.size[3]
    for layer, names in enumerate(case.cells):
        parts = {"w": ["weight_ih"], "r": ["weight_hh"], "b": ["bias_ih", "bias_hh"]}
        for key, kinds in parts.items():
            array = np.stack([np.concatenate([zrn(weights[f"{kind}_{name}"]) for kind in kinds]) for name in names])
            constants.append(numpy_helper.from_array(array, f"{key}{layer}"))
        inputs = [source, f"w{layer}", f"r{layer}", f"b{layer}", "lengths" if case.ragged else ""]
        inputs += ["h_0"] if steps == 1 else []
        node = helper.make_node("GRU", inputs, [f"y{layer}", f"h_n{layer}"], hidden_size=hidden_size)
        node.attribute.append(helper.make_attribute("linear_before_reset", 1))
        node.attribute.append(helper.make_attribute("direction", "bidirectional" if len(names) == 2 else "forward"))
        source = "output" if layer == case.layers - 1 else f"z{layer}"
        nodes += [
            node,
            helper.make_node("Transpose", [f"y{layer}"], [f"t{layer}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"t{layer}", "shape"], [source]),
        ]
    floats = lambda name, *shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    inputs = [floats("x", steps, *case.size[1:3])]
    inputs += [floats("h_0", 1, case.size[1], hidden_size)] if steps == 1 else []
    inputs += [helper.make_tensor_value_info("lengths", TensorProto.INT32, [case.size[1]])] if case.ragged else []
    outputs = [floats("output", None, None, None), floats("h_n0", None, None, None)]
    graph = helper.make_graph(nodes, "gru", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
