"""Converts the GRU nodes of an ONNX model to our parameters.

    W [D, 3H, I]  params["l{k}"]["kernel_ih"] and, for D = 2, params["l{k}_reverse"]["kernel_ih"], transposed
    R [D, 3H, H]  ...["kernel_hh"], transposed
    B [D, 6H]     ...["bias_ih"], then ...["bias_hh"]

ONNX orders the gates z, r, h, and has one node per layer; `linear_before_reset` is our `reset_after`.
"""

import functools
import os
import warnings
from collections import Counter
from typing import Any

import numpy as np

from gru_jax.params import GRUConfig, cell_names
from gru_jax.weights.arrays import to_jax
from gru_jax.weights.found import Contents, Found, Params, choose, naming
from gru_jax.weights.onnx.file import operator, read_model, subgraphs, walk
from gru_jax.weights.onnx.graph import Graph
from gru_jax.weights.onnx.layers import Layer, read_layer, stack
from gru_jax.weights.onnx.original import run_original

_RECURRENT = {"GRU": "a GRU", "LSTM": "an LSTM", "RNN": "a plain RNN"}


def open_onnx(source: Any) -> Contents:
    """Finds every GRU in an ONNX model.

    Args:
      source: a path, or an onnx.ModelProto. Weights in other files are read from the folder of the path only.

    Returns:
      The GRUs by the name of their (first) node or, if it has none of its own, of that node's first output. If the
      output of a GRU node is read by another one only, the two are layers of one GRU.

    Raises:
      ImportError: if onnx is not installed.
      TypeError: if `source` is neither a path nor an onnx.ModelProto.
      OSError: if the file can't be read.
      ValueError: if it is no ONNX model.

    Example:
      >>> import jax, onnx, os, tempfile
      >>> from gru_jax import init_params
      >>> from gru_jax.weights.onnx import to_onnx
      >>> config = GRUConfig(3, 4, num_layers=2)
      >>> path = os.path.join(tempfile.mkdtemp(), "gru.onnx")
      >>> onnx.save(to_onnx(config, init_params(jax.random.key(0), config)), path)
      >>> [found.config == config for found in open_onnx(path).grus.values()]
      [True]
    """
    model, folder = read_model(source)
    return _contents(Graph(model, folder))


def from_onnx(source: Any, name: str | None = None) -> tuple[GRUConfig, Params]:
    """Takes a trained GRU out of an ONNX model.

    Args:
      source: a path, or an onnx.ModelProto that holds its weights itself.
      name: the GRU's name, as `open_onnx` gives it; needed if there are several.

    Returns:
      (config, params). A node of layout 1 gives batch_first=True. Dtypes are kept, but float64 becomes float32, with a
      warning, unless jax_enable_x64 is set. A warning says what else must be done to get the graph's numbers.

    Raises:
      ImportError: if onnx is not installed.
      TypeError: if the source is something else.
      OSError: if the file can't be read.
      ValueError: if it is no ONNX model, or holds no such GRU, or one that is not what `gru` computes.

    Example:
      >>> import jax
      >>> from gru_jax import init_params
      >>> from gru_jax.weights.onnx import to_onnx
      >>> config = GRUConfig(3, 4, bidirectional=True)
      >>> model = to_onnx(config, init_params(jax.random.key(0), config))
      >>> with warnings.catch_warnings(action="ignore"):  # for h_0 is an input of this graph
      ...     from_onnx(model)[0] == config
      True
    """
    is_path = isinstance(source, str | os.PathLike)
    with naming(f"from_onnx: {os.fspath(source)}" if is_path else "from_onnx"):
        name, found = choose(open_onnx(source), name)
    for note in found.notes:
        warnings.warn(f"from_onnx: {name}: {note}", stacklevel=2)
    return found.config, found.read()


def _contents(graph: Graph) -> Contents:
    layers, refused, names = [], {}, _names(graph)
    for index, node in enumerate(graph.nodes):
        kind = operator(node)
        try:
            if kind == "GRU":
                layers.append(read_layer(graph, index))
            elif kind in _RECURRENT or (kind != node.op_type and any(name in node.op_type for name in _RECURRENT)):
                refused[names[index]] = _RECURRENT.get(kind, f"an operator of its own, {kind}, not the standard's GRU")
        except ValueError as error:
            refused[names[index]] = str(error)
    with naming("a node behind a GRU can't be read"):
        stacks = stack(graph, layers)
    grus = {names[layers[0].position]: _found(graph, layers, between, names) for layers, between in stacks}
    bodies = [node for outer in graph.nodes for body in subgraphs(outer) for node in walk(body)]
    functions = [node for function in graph.model.functions for node in function.node]
    for where, nodes in {"a subgraph": bodies, "a function of the model": functions}.items():
        for number, node in enumerate(nodes):
            if any(name in node.op_type for name in _RECURRENT):
                kind = _RECURRENT.get(operator(node), operator(node))
                refused[f"{node.name or node.op_type} (in {where}, node {number})"] = (
                    f"{kind} inside {where}; only nodes of the main graph are read"
                )
    counts = Counter(operator(node) for node in graph.nodes)
    others = {kind: f"{n} node{'s' * (n > 1)}" for kind, n in sorted(counts.items()) if kind not in _RECURRENT}
    return Contents("ONNX", grus, refused, others)


def _names(graph: Graph) -> list[str]:
    """Returns a name for every node: its own or, if that is empty or another node has it, too, its first output's."""
    own = Counter(node.name for node in graph.nodes)
    names: dict[str, None] = {}
    for index, node in enumerate(graph.nodes):
        name = node.name if node.name and own[node.name] == 1 else next(filter(None, node.output), f"node {index}")
        names[name if name not in names else f"{name} (node {index})"] = None
    return list(names)


def _found(graph: Graph, layers: list[Layer], between: list[int], names: list[str]) -> Found:
    first = layers[0]
    config = GRUConfig(
        first.input_size,
        first.hidden_size,
        num_layers=len(layers),
        bias="B" in first.weights,
        batch_first=first.batch_first,
        bidirectional=first.directions == 2,
        reset_after=first.reset_after,
    )
    backwards = first.direction == "reverse"
    notes = []
    if backwards:
        notes.append("it reads x from its end: flip x along the time axis for gru, and then output")
    if first.lengths:
        notes.append(f"the graph gives it sequence_lens, the tensor {first.lengths!r}: pass them as seq_lengths")
    given = [f"l{k}: {layer.h_0!r}" for k, layer in enumerate(layers) if layer.h_0]
    if given:
        axes = ", with the axes [N, D, H] there" if first.batch_first else ""
        notes.append(f"the graph gives it initial_h, the tensors {', '.join(given)}{axes}: pass them as h_0")
    return Found(
        config,
        functools.partial(_read, config, layers),
        functools.partial(run_original, graph, layers, between),
        "onnx.reference" if first.batch_first else "onnxruntime",
        tuple(names[layer.position] for layer in layers),
        tuple(notes),
        backwards,
    )


def _read(config: GRUConfig, layers: list[Layer]) -> Params:
    cells: dict[str, dict[str, np.ndarray]] = {}
    ours = {"W": "kernel_ih", "R": "kernel_hh", "b_W": "bias_ih", "b_R": "bias_hh"}
    for names, layer in zip(cell_names(config.num_layers, config.bidirectional), layers, strict=True):
        for name, cell in zip(names, layer.cells(), strict=True):
            cells[name] = {ours[key]: array.T for key, array in cell.items()}
    return to_jax("ONNX", cells)
