"""The GRU nodes of an ONNX graph: what each computes, and which of them are the layers of one stack.

    W  [D, 3H, I]   gates z, r, n     R  [D, 3H, H]     B  [D, 6H], the bias of W, then the bias of R; or absent
    X  [L, N, I] -> Y [L, D, N, H] and Y_h [D, N, H]; with layout 1 the batch axis comes first in each

Source: https://onnx.ai/onnx/operators/onnx__GRU.html
"""

import math
from typing import Any, NamedTuple

import numpy as np

from gru_jax.weights.arrays import FLOATING
from gru_jax.weights.gate_order import to_ours
from gru_jax.weights.onnx.file import attribute, operator
from gru_jax.weights.onnx.graph import Graph

# Sigmoid and Tanh have no parameters, so activation_alpha and activation_beta have no effect.
_ATTRIBUTES = {
    *("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout"),
    "linear_before_reset",
}


class Layer(NamedTuple):
    """One GRU node.

    Attributes:
      position: the node's index in the graph.
      node: the NodeProto.
      weights: W, R and, where the node has it, B.
      direction: "forward", "reverse" or "bidirectional".
      reset_after: whether its linear_before_reset is 1.
      batch_first: whether its layout is 1.
      lengths: the name of its sequence_lens, or "".
      h_0: the name of its initial_h, or "" where there is none or it holds zeros.
    """

    position: int
    node: Any
    weights: dict[str, np.ndarray]
    direction: str
    reset_after: bool
    batch_first: bool
    lengths: str
    h_0: str

    @property
    def directions(self) -> int:
        """The number of directions, D."""
        return self.weights["W"].shape[0]

    @property
    def input_size(self) -> int:
        """The number of features of X, I."""
        return self.weights["W"].shape[2]

    @property
    def hidden_size(self) -> int:
        """The number of features of the state, H."""
        return self.weights["R"].shape[2]

    def cells(self, dtype: Any = None) -> list[dict[str, np.ndarray]]:
        """Returns W [3H, I], R [3H, H], b_W [3H] and b_R [3H] of each direction, gates r, z, n."""
        arrays = {key: array if dtype is None else array.astype(dtype) for key, array in self.weights.items()}
        if "B" in arrays:
            arrays["b_W"], arrays["b_R"] = np.split(arrays.pop("B"), 2, axis=1)
        return [
            {key: to_ours(array[d], "onnx", axis=0) for key, array in arrays.items()} for d in range(self.directions)
        ]


def read_layer(graph: Graph, index: int) -> Layer:
    """Reads a GRU node. Raises ValueError with the reason if it is not what `gru` computes."""
    node = graph.nodes[index]
    unknown = sorted({a.name for a in node.attribute} - _ATTRIBUTES)
    if unknown:
        raise ValueError(f"its attributes {unknown} are not known")
    if attribute(node, "clip", "f") is not None:
        raise ValueError(f"its gates are clipped, at {attribute(node, 'clip', 'f'):g}, and gru's are not")
    direction = attribute(node, "direction", "s", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ValueError(f"its direction {direction!r} is not known")
    directions = 2 if direction == "bidirectional" else 1
    activations = attribute(node, "activations", "strings", ["Sigmoid", "Tanh"] * directions)
    if activations != ["Sigmoid", "Tanh"] * directions:
        raise ValueError(f"its activations are {activations}; gru's are Sigmoid and Tanh, in each direction")
    form, layout = attribute(node, "linear_before_reset", "i", 0), attribute(node, "layout", "i", 0)
    if form not in (0, 1) or layout not in (0, 1):
        raise ValueError(f"its linear_before_reset {form} or its layout {layout} is neither 0 nor 1")
    if not 3 <= len(node.input) <= 6 or not 1 <= len(node.output) <= 2:
        raise ValueError(f"it has {len(node.input)} inputs and {len(node.output)} outputs; a GRU has 3 to 6 and 1 or 2")
    x, w, r, b, lengths, h_0 = [*node.input, "", "", ""][:6]
    weights = {key: graph.constant(name) for key, name in {"W": w, "R": r, "B": b}.items() if name or key != "B"}
    _check_weights(weights, directions, attribute(node, "hidden_size", "i"))
    if not x:
        raise ValueError("it has no input X")
    h_0 = "" if not h_0 or graph.is_zero(h_0) else h_0
    return Layer(index, node, weights, direction, bool(form), bool(layout), lengths, h_0)


def _check_weights(weights: dict[str, np.ndarray], directions: int, hidden_size: int | None) -> None:
    r = weights["R"].shape
    hidden = r[2] if len(r) == 3 else hidden_size or 0
    inputs = weights["W"].shape[2] if weights["W"].ndim == 3 else "I"
    shapes = {
        "W": (directions, 3 * hidden, inputs),
        "R": (directions, 3 * hidden, hidden),
        "B": (directions, 6 * hidden),
    }
    wrong = [
        f"{key} {list(shapes[key])} is {list(array.shape)}"
        for key, array in weights.items()
        if array.shape != shapes[key]
    ]
    if wrong:
        raise ValueError(f"its weights have other shapes than a GRU's: {', '.join(wrong)}")
    if hidden_size not in (None, hidden) or not hidden or not inputs:
        raise ValueError(f"its hidden_size is {hidden_size}, but its weights are of I = {inputs}, H = {hidden}")
    dtypes = {array.dtype.name for array in weights.values()}
    if len(dtypes) > 1 or not dtypes <= set(FLOATING):
        raise ValueError(f"its weights are {' and '.join(sorted(dtypes))}; expected one of {', '.join(FLOATING)}")


def stack(graph: Graph, layers: list[Layer]) -> list[tuple[list[Layer], list[int]]]:
    """Puts two nodes into one stack if the upper one reads the lower one's output, and nothing else reads it.

    Returns:
      For each stack its layers, and the indices of the nodes between them.
    """
    by_index = {layer.position: layer for layer in layers}
    above = {}
    for layer in layers:
        index, between = _follow(graph, layer)
        if index in by_index and index > layer.position and _alike(layer, by_index[index]):
            above[layer.position] = (by_index[index], between)
    upper = {layer.position for layer, _ in above.values()}
    stacks = []
    for layer in layers:
        if layer.position not in upper:
            stacked, nodes = [layer], []
            while stacked[-1].position in above:
                following, between = above[stacked[-1].position]
                stacked.append(following)
                nodes += between
            stacks.append((stacked, nodes))
    return stacks


def _alike(lower: Layer, upper: Layer) -> bool:
    """Whether one GRUConfig describes both, and the upper layer's input has the size of the lower layer's output."""
    traits = lambda a: (a.hidden_size, a.direction, a.reset_after, a.batch_first, a.lengths, sorted(a.weights))
    dtypes = [layer.weights["W"].dtype for layer in (lower, upper)]
    fits = upper.input_size == lower.directions * lower.hidden_size
    return traits(lower) == traits(upper) and lower.direction != "reverse" and dtypes[0] == dtypes[1] and fits


def _follow(graph: Graph, layer: Layer) -> tuple[int, list[int]]:
    """Returns the index of the only GRU node that reads a layer's Y, or -1, and the nodes between the two."""
    # First with sizes L and N that occur nowhere else: a Reshape that is right for them computes its shape from them.
    # Otherwise it may have the graph's own sizes as constants.
    for sizes in ((9973, 9967), graph.fixed_shapes.get(layer.node.input[0], ())[:2]):
        found = _walk_up(graph, layer, sizes) if len(sizes) == 2 else (-1, [])
        if found[0] >= 0:
            return found
    return -1, []


def _walk_up(graph: Graph, layer: Layer, sizes: tuple[int, ...]) -> tuple[int, list[int]]:
    """Walks from Y through the nodes that make [L, N, D*H] of it. The first two axes of X have these `sizes`."""
    directions, hidden = layer.directions, layer.hidden_size
    merged, apart = (*sizes, directions * hidden), (*sizes, directions, hidden)
    axis = 2 if layer.batch_first else 1  # the axis of D; 0 once D and H are merged
    name, between = layer.node.output[0], []
    shapes: dict[str, tuple[int, ...]] = {layer.node.input[0]: (*sizes, layer.input_size)}
    shapes[name] = apart if layer.batch_first else tuple(apart[i] for i in (0, 2, 1, 3))
    while name:
        users = [i for i in graph.users.get(name, []) if i is None or operator(graph.nodes[i]) != "Shape"]
        if len(users) != 1 or users[0] is None or graph.nodes[users[0]].input[0] != name:
            return -1, []
        node, shape = graph.nodes[users[0]], shapes[name]
        kind = operator(node)
        if kind == "GRU" and not axis:
            return users[0], between
        if kind == "Transpose" and axis == 1 and attribute(node, "perm", "ints") == [0, 2, 1, 3]:
            axis, shape = 2, apart
        elif kind == "Squeeze" and axis and directions == 1 and _axes(graph, node) in ([axis], [axis - 4]):
            axis, shape = 0, merged
        elif kind == "Reshape" and (axis == 2 or (axis and directions == 1)):
            axis, shape = 0, _reshaped(graph, node, shapes, shape)
            if shape != merged:
                return -1, []
        elif kind != "Identity" and not (kind == "Dropout" and graph.opset >= 7 and len(node.input) < 3):
            return -1, []
        name = next(iter(node.output), "")
        shapes[name] = shape
        between.append(users[0])
    return -1, []


def _axes(graph: Graph, node: Any) -> list[int]:
    """Returns the axes of a Squeeze: an attribute up to opset 12, an input from opset 13."""
    if len(node.input) < 2:
        return list(attribute(node, "axes", "ints", []))
    try:
        return graph.constant(node.input[1]).ravel().tolist()
    except ValueError:
        return []


def _reshaped(graph: Graph, node: Any, shapes: dict[str, tuple[int, ...]], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that a Reshape gives to its input of `shape`; () if it is not known."""
    try:
        target = graph.shape_constant(node.input[1], shapes).ravel().tolist()
    except (ValueError, IndexError):
        return ()
    if attribute(node, "allowzero", "i", 0) or len(target) != 3:
        return ()
    target = [shape[i] if size == 0 else size for i, size in enumerate(target)]
    rest = math.prod(shape) // max(math.prod(size for size in target if size != -1), 1)
    return tuple(rest if size == -1 else size for size in target)
