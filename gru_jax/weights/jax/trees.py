"""What the formats of the JAX libraries share: a cell is a tree of arrays, and runs over time by `lax.scan`.

A tree is flattened first, its names joined by dots: {"cell": {"hr": {"kernel": a}}} becomes {"cell.hr.kernel": a}.
"""

import bisect
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core.meta import AxisMetadata

from gru_jax import _shapes
from gru_jax.params import CellParams, GRUConfig, check_cell
from gru_jax.weights.arrays import check_dtypes, to_jax
from gru_jax.weights.found import Found, Search, Tensor, one_line

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


class Layout(NamedTuple):
    """How a library keeps the arrays of one GRU cell.

    Attributes:
      framework: the library's own cell, "flax.linen.GRUCell".
      kind: (prefix, shapes under it) -> "a GRU"; or what else it is and why that can't be read; or None if it is no
        recurrent layer at all.
      anchors: names of arrays; every cell has at least one of them.
      sizes: where to read I and H: (names, axis) for each. The first of the names that is there counts.
      shapes: (I, H) -> name -> shape.
      biases: the names that are all absent if the cell has no bias.
      to_ours: the arrays by name -> CellParams in NumPy. It only permutes, negates and adds zeros for biases that the
        library lacks, so it converts gradients, too.
      step: (arrays, h, x) -> h, by the library's own cell.
      reset_after: the form of its new gate.
    """

    framework: str
    kind: Callable[[str, Shapes], str | None]
    anchors: tuple[str, ...]
    sizes: tuple[tuple[tuple[str, ...], int], tuple[tuple[str, ...], int]]
    shapes: Callable[[int, int], dict[str, tuple[int, ...]]]
    biases: tuple[str, ...]
    to_ours: Callable[[Arrays], Arrays]
    step: Callable[[dict[str, jax.Array], jax.Array, jax.Array], jax.Array]
    reset_after: bool = True


def find(layout: Layout, tensors: Mapping[str, Tensor]) -> Search:
    """Returns the cells of one layout by prefix; and by prefix, why another recurrent layer is not imported."""
    grus, refused = {}, {}
    for prefix, cell in _groups(tensors, layout.anchors):
        kind = layout.kind(prefix, {name: tensor.shape for name, tensor in cell.items()})
        try:
            if kind == "a GRU":
                grus[prefix] = found_cell(layout, prefix, cell)
            elif kind:
                refused[prefix] = kind
        except (ValueError, TypeError) as error:
            refused[prefix] = str(error)
    return grus, refused


def found_cell(layout: Layout, prefix: str, cell: Mapping[str, Tensor]) -> Found:
    """Returns the cell under `prefix`. Raises ValueError or TypeError, on one line, unless its tensors are a cell's."""
    shapes = {name: tensor.shape for name, tensor in cell.items()}
    input_size, hidden_size = (_size(layout.framework, shapes, *where) for where in layout.sizes)
    bias = not layout.biases or any(name in shapes for name in layout.biases)
    expected = layout.shapes(input_size, hidden_size)
    expected = {name: shape for name, shape in expected.items() if bias or name not in layout.biases}
    try:
        _shapes.check_keys(layout.framework, f"the tree at prefix {prefix!r}", expected, shapes)
    except ValueError as error:
        raise ValueError(one_line(error)) from None
    check_dtypes(layout.framework, {prefix + name: tensor for name, tensor in cell.items()})
    config = GRUConfig(input_size, hidden_size, bias=bias, reset_after=layout.reset_after)
    arrays = lambda: {name: cell[name].read() for name in expected}
    return Found(
        config,
        read=lambda: to_jax(layout.framework, {"l0": layout.to_ours(arrays())}),
        original=lambda *run: _run(layout, arrays(), *run),
        framework=layout.framework,
        names=tuple(prefix + name for name in expected),
    )


def only(function: str, search: Search) -> Found:
    """Returns the cell at the top of a tree. Raises ValueError if there is none."""
    grus, refused = search
    if "" in refused:
        raise ValueError(f"{function}: expected the parameters of one GRU cell, got: {refused['']}")
    if "" not in grus:
        inside = f"It holds them at {', '.join(map(repr, grus))}: pass that part." if grus else "It holds none inside."
        raise ValueError(f"{function}: expected the parameters of one GRU cell at the top of the tree. {inside}")
    return grus[""]


def flatten(function: str, tree: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Returns the arrays of a nested dict under joined names. Entries that are None are left out."""
    try:
        return {name: _tensor(function, name, leaf) for name, leaf in _leaves(tree, "") if leaf is not None}
    except RecursionError:
        raise ValueError(f"{function}: expected the parameters of one GRU cell, got a tree without end.") from None


def leaving(function: str, cell: CellParams, reset_after: bool, layout: Layout) -> list[np.ndarray]:
    """Returns kernel_ih, kernel_hh, bias_ih and bias_hh (zeros if it has none) of a cell that the library can run."""
    check_cell(function, cell)
    if reset_after != layout.reset_after:
        raise ValueError(
            f"{function}: expected a GRU with reset_after={layout.reset_after}, as {layout.framework} has it, got "
            f"reset_after={reset_after}. No weights make one form of the new gate compute the other."
        )
    kernels = [np.asarray(cell[key]) for key in ("kernel_ih", "kernel_hh")]
    zeros = np.zeros(kernels[1].shape[1], kernels[1].dtype)
    return kernels + [np.asarray(cell.get(key, zeros)) for key in ("bias_ih", "bias_hh")]


def _groups(tensors: Mapping[str, Tensor], anchors: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields every prefix that has an anchor, and all tensors under it."""
    prefixes = {
        name[: -len(anchor)]: None
        for name in tensors
        for anchor in anchors
        if name == anchor or name.endswith(f".{anchor}")
    }
    names = sorted(tensors)
    for prefix in prefixes:
        inside = names[bisect.bisect_left(names, prefix) : bisect.bisect_left(names, f"{prefix}\U0010ffff")]
        yield prefix, {name[len(prefix) :]: tensors[name] for name in inside}


def _size(framework: str, shapes: Shapes, names: tuple[str, ...], axis: int) -> int:
    """Returns the size along `axis` of the first of `names` that is there; 0 if none is."""
    held = {name: shapes[name] for name in names if name in shapes}
    for name, shape in held.items():
        if len(shape) != 2:
            raise ValueError(f"{framework}: expected {name} to be a matrix, got shape {list(shape)}.")
    return next((shape[axis] for shape in held.values()), 0)


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, branch in tree.items():
            yield from _leaves(branch, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _tensor(function: str, name: str, leaf: Any) -> Tensor:
    leaf = leaf.unbox() if isinstance(leaf, AxisMetadata) else leaf
    if not isinstance(leaf, jax.Array | np.ndarray):
        raise TypeError(f"{function}: expected {name} to be a JAX or NumPy array, got {type(leaf).__name__}.")
    native = lambda: np.asarray(leaf, np.dtype(leaf.dtype).newbyteorder("="))
    return Tensor(tuple(leaf.shape), str(leaf.dtype.name), native)


def _run(layout: Layout, arrays: Arrays, dtype: str, *inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Runs the library's own cell over time. bias_hh gets no gradient, since no library has all of it."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        weights, *rest = jax.tree.map(functools.partial(jnp.asarray, dtype=dtype), (arrays, *inputs))
        output, h_n, d_weights, d_x, d_h_0 = jax.tree.map(np.asarray, _scan(layout.step, weights, *rest))
    gradients = {f"d_l0/{key}": array for key, array in layout.to_ours(d_weights).items() if key != "bias_hh"}
    return {"output": output, "h_n": h_n, "d_x": d_x, "d_h_0": d_h_0, **gradients}


@functools.partial(jax.jit, static_argnums=0)
def _scan(step: Any, weights: Any, x: Any, h_0: Any, d_output: Any, d_h_n: Any) -> tuple[Any, ...]:
    def forward(weights: Any, x: Any, h_0: Any) -> tuple[jax.Array, jax.Array]:
        def advance(h: jax.Array, x_t: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = step(weights, h, x_t)
            return h, h

        h_n, output = jax.lax.scan(advance, h_0[0], x)
        return output, h_n[None]

    (output, h_n), pull_back = jax.vjp(forward, weights, x, h_0)
    return output, h_n, *pull_back((d_output, d_h_n))
