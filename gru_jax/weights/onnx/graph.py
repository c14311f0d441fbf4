"""The graph of an ONNX model, and the numbers of its constant tensors.

A constant is an initializer or a Constant node, or is made of constants by nodes that only rearrange them. onnx's
reference implementation runs those nodes.
"""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gru_jax.weights.found import require
from gru_jax.weights.onnx.file import attribute, operator, read_tensor, subgraphs, walk

_REARRANGE = ("Identity", "Cast", "Concat", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_OF_ZEROS = (*_REARRANGE, "Expand", "Tile", "ConstantOfShape")
_DEPTH = 50  # the most nodes between a constant and its use; exporters write up to five

Values = dict[str, np.ndarray]


class Graph:
    """The main graph of a model.

    Attributes:
      model: the ModelProto.
      nodes: its nodes.
      opset: the version of the standard's operators.
      initializers: by name, the tensors that are stored in the model.
      producers: by a tensor's name, the index of the node that computes it.
      inputs: the names of the graph's inputs.
      fixed_shapes: by name, the shapes of the tensors whose sizes the graph gives as numbers.
      users: by a tensor's name, the index of each node that reads it; None for a node within a subgraph, and if the
        tensor is an output of the graph.
    """

    def __init__(self, model: Any, folder: Path | None) -> None:
        """Indexes the names of a model, whose external data lies within `folder`."""
        self.model = model
        self.nodes = list(model.graph.node)
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.inputs = {value.name for value in model.graph.input}
        self.fixed_shapes = {}
        for value in [*model.graph.input, *model.graph.value_info]:
            sizes = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            if min(sizes, default=0) > 0:
                self.fixed_shapes[value.name] = sizes
        self._folder = folder
        self._values: Values = {}
        self._budget = 1 << 16  # the most numbers that one node may make; every tensor that is read adds its size
        self.users: dict[str, list[int | None]] = {value.name: [None] for value in model.graph.output}
        for i, node in enumerate(self.nodes):
            for name in node.input:
                self.users.setdefault(name, []).append(i)
            for graph in subgraphs(node):
                inner = [name for node in walk(graph) for name in node.input] + [value.name for value in graph.output]
                for name in inner:
                    self.users.setdefault(name, []).append(None)
        self._check_names()

    def _check_names(self) -> None:
        """Raises ValueError if two tensors have the same name, or if a name is no text."""
        nodes = [
            inner for node in self.nodes for inner in [node, *(n for graph in subgraphs(node) for n in walk(graph))]
        ]
        texts = [text for node in nodes for text in (node.name, node.op_type, node.domain, *node.input, *node.output)]
        texts += [a.name for node in nodes for a in node.attribute] + [*self.initializers, *self.inputs, *self.users]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("expected the names of a graph to be UTF-8, found one that is not.")
        given = [tensor.name for tensor in self.model.graph.initializer]
        given += [name for node in self.nodes for name in node.output if name] + list(self.inputs - set(given))
        twice = [name for name, count in Counter(given).items() if count > 1]
        if twice:
            raise ValueError(
                f"expected every tensor of a graph to have a name of its own, found {twice[0]!r} given twice."
            )

    def constant(self, name: str) -> np.ndarray:
        """Returns the numbers of a constant tensor. Raises ValueError if it is none, or can't be read."""
        return self._evaluate(name, self._values, {}, 0)

    def shape_constant(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
        """`constant` for a tensor that may depend on the shapes of others: its numbers if they have these `shapes`."""
        return self._evaluate(name, {}, shapes, 0)

    def is_zero(self, name: str) -> bool:
        """Whether a tensor is known to hold only zeros, whatever its shape, since all its constants hold only zeros."""
        seen, names = set(), [name]
        while names:
            name = names.pop()
            index = self.producers.get(name, -1)
            node = self.nodes[index] if index >= 0 else None
            if name in seen:
                continue
            seen.add(name)
            if node is None or operator(node) == "Constant":
                if (node is None and name not in self.initializers) or self.constant(name).any():
                    return False
                continue
            sources = node.input if operator(node) == "Concat" else node.input[:1]
            in_order = all(self.producers.get(source, -1) < index for source in sources)
            if operator(node) not in _OF_ZEROS or not sources or not in_order:
                return False
            if operator(node) == "ConstantOfShape":
                value = attribute(node, "value", "t")
                if value is not None and self._array(value).any():
                    return False
            else:
                names += sources
        return True

    def _evaluate(self, name: str, values: Values, shapes: Mapping[str, tuple[int, ...]], depth: int) -> np.ndarray:
        if name in values:
            return values[name]
        if name in self.initializers:
            values[name] = self._array(self.initializers[name])
            return values[name]
        if name not in self.producers:
            raise ValueError(
                f"{name!r} is an input of the graph, not a constant" if name in self.inputs else f"no {name!r}"
            )
        node = self.nodes[self.producers[name]]
        kind = operator(node)
        if kind == "Constant":
            values[name] = self._constant_node(node)
        elif kind == "Shape" and len(node.input) == 1 and node.input[0] in shapes:
            shape = shapes[node.input[0]]
            values[name] = np.array(shape[attribute(node, "start", "i", 0) : attribute(node, "end", "i", len(shape))])
        elif (kind in _REARRANGE or (kind == "Mul" and shapes)) and depth < _DEPTH:
            inputs = {key: self._evaluate(key, values, shapes, depth + 1) for key in node.input if key}
            values.update(self._rearrange(node, inputs))
        else:
            raise ValueError(f"{name!r} is computed by {kind}, not stored")
        return values[name]

    def _rearrange(self, node: Any, inputs: Values) -> Values:
        """Runs one node in onnx's reference implementation."""
        sizes = [array.size for array in inputs.values()]
        most = (
            math.prod(sizes)
            if node.op_type in ("Gather", "Mul")
            else sum(inputs[key].size for key in node.input if key)
        )
        if most > self._budget:
            raise ValueError(f"{node.output[0]!r} would be larger than all that is stored")
        evaluator, onnx = require("onnx.reference", "onnx").ReferenceEvaluator, require("onnx", "onnx")
        outputs = [name for name in node.output if name]
        named = [[onnx.ValueInfoProto(name=name) for name in names] for names in (inputs, outputs)]
        try:
            with np.errstate(all="ignore"):
                graph = onnx.helper.make_graph([node], "rearrange", *named)
                arrays = evaluator(graph, opsets={"": self.opset}).run(None, inputs)
        except Exception as error:  # depending on the file, NumPy may raise anything there
            raise ValueError(f"{outputs[0]!r} can't be computed: {node.op_type} failed, {error}") from error
        return dict(zip(outputs, map(np.asarray, arrays), strict=True))

    def _constant_node(self, node: Any) -> np.ndarray:
        tensor = attribute(node, "value", "t")
        if tensor is not None:
            return self._array(tensor)
        kinds = {"value_float": "f", "value_floats": "floats", "value_int": "i", "value_ints": "ints"}
        for key, kind in kinds.items():
            value = attribute(node, key, kind)
            if value is not None:
                return np.array(value, np.float32 if kind[0] == "f" else np.int64)
        raise ValueError(f"{node.output[0]!r} is a Constant without numbers")

    def _array(self, tensor: Any) -> np.ndarray:
        array = read_tensor(tensor, self._folder)
        self._budget += array.size
        return array
