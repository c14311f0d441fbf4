"""What a GRU is made of: its sizes (`GRUConfig`) and its parameters, a dict of dicts of arrays.

    CellParams  {"kernel_ih": [I, 3H], "kernel_hh": [H, 3H], "bias_ih": [3H], "bias_hh": [3H]}
    GRUParams   {"l0": CellParams, "l0_reverse": CellParams, "l1": CellParams, ...}

The last axis holds PyTorch's gates in PyTorch's order: reset r, update z, new n. A kernel is a PyTorch weight
transposed, (in, out) as everywhere in Flax; on CPU, XLA contracts a batch of one with it six times faster than with
the (3H, H) layout. Where `bias=False` the bias_* keys are absent.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gru_jax import _shapes

CellParams = Mapping[str, jax.Array]
GRUParams = Mapping[str, CellParams]
Tree = TypeVar("Tree")

_LEGEND = (
    'GRUParams is {"l0": CellParams, "l0_reverse": ...}, CellParams {"kernel_ih": array, "kernel_hh": array, ...}.'
)


@dataclass(frozen=True)
class GRUConfig:
    """The arguments of `torch.nn.GRU`, in its order, and `reset_after`.

    Attributes:
      input_size: I, the features of x.
      hidden_size: H, the features of h.
      num_layers: how many layers are stacked.
      bias: whether there are bias_ih and bias_hh.
      batch_first: whether x and output are [N, L, ...] in place of [L, N, ...]; h_0 and h_n never are.
      dropout: probability of a zero after every layer but the last, while training.
      bidirectional: whether each layer also reads its input backwards.
      reset_after: True for PyTorch's and cuDNN's new gate, tanh(W_in x + b_in + r * (W_hn h + b_hn)); False for
        that of the original paper (Cho et al. 2014, arXiv:1406.1078), tanh(W_in x + b_in + W_hn (r * h) + b_hn).

    Raises:
      TypeError: if an argument is of the wrong kind.
      ValueError: if a size is below 1 or dropout is outside 0..1.

    Example:
      >>> GRUConfig(8, 50, num_layers=3, bidirectional=True).num_directions
      2
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    reset_after: bool = True

    def __post_init__(self) -> None:
        """Checks every argument."""
        name = "GRUConfig"
        sizes = {"input_size": self.input_size, "hidden_size": self.hidden_size, "num_layers": self.num_layers}
        _shapes.check_positive(name, **sizes)
        flags = {"bias": self.bias, "batch_first": self.batch_first, "bidirectional": self.bidirectional}
        _shapes.check_flags(name, **flags, reset_after=self.reset_after)
        _shapes.check_dropout(name, self.dropout, self.num_layers)

    @property
    def num_directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1


def cell_names(num_layers: int, bidirectional: bool) -> list[list[str]]:
    """Returns the names of the cells, a list a layer: [["l0", "l0_reverse"], ["l1", "l1_reverse"], ...]."""
    suffixes = ["", "_reverse"] if bidirectional else [""]
    return [[f"l{layer}{suffix}" for suffix in suffixes] for layer in range(num_layers)]


def cell_shapes(input_size: int, hidden_size: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array of one cell.

    >>> cell_shapes(10, 20, bias=False)
    {'kernel_ih': (10, 60), 'kernel_hh': (20, 60)}
    """
    gates = 3 * hidden_size
    shapes = {"kernel_ih": (input_size, gates), "kernel_hh": (hidden_size, gates)}
    return shapes | {"bias_ih": (gates,), "bias_hh": (gates,)} if bias else shapes


def input_sizes(config: GRUConfig) -> dict[str, int]:
    """Returns each cell's name and its number of input features: I in the first layer, D*H above it.

    >>> input_sizes(GRUConfig(10, 20, num_layers=2))
    {'l0': 10, 'l1': 20}
    """
    return {name: shapes["kernel_ih"][0] for name, shapes in param_shapes(config).items()}


def param_shapes(config: GRUConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Returns the shape of each array of a GRU, in the structure of GRUParams."""
    return stack_shapes(config.input_size, config.hidden_size, config.num_layers, config.bias, config.bidirectional)


def stack_shapes(
    input_size: int, hidden_size: int, num_layers: int, bias: bool, bidirectional: bool
) -> dict[str, dict[str, tuple[int, ...]]]:
    """`param_shapes` for sizes that come from a file and have not been checked yet."""
    names = cell_names(num_layers, bidirectional)
    sizes = [input_size] + [len(names[0]) * hidden_size] * (num_layers - 1)
    return {name: cell_shapes(size, hidden_size, bias) for size, row in zip(sizes, names, strict=True) for name in row}


def pytorch_uniform(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """PyTorch's initializer: U(-1/sqrt(H), 1/sqrt(H)), where the last axis is 3H, for kernels and biases alike.

    Source: `RNNBase.reset_parameters` in torch/nn/modules/rnn.py.
    """
    bound = 1 / math.sqrt(shape[-1] // 3)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def init_params(key: jax.Array, config: GRUConfig, dtype: DTypeLike = jnp.float32) -> dict[str, dict[str, jax.Array]]:
    """Draws parameters as `torch.nn.GRU` does: U(-1/sqrt(H), 1/sqrt(H)), biases included.

    Args:
      key: a JAX random key.
      config: the sizes.
      dtype: of the parameters.

    Returns:
      GRUParams.

    Example:
      >>> params = init_params(jax.random.key(0), GRUConfig(10, 20, num_layers=2))
      >>> params["l1"]["kernel_ih"].shape
      (20, 60)
    """
    is_shape = lambda node: isinstance(node, tuple)
    shapes, tree = jax.tree.flatten(param_shapes(config), is_leaf=is_shape)
    keys = jax.random.split(key, len(shapes))
    return tree.unflatten([pytorch_uniform(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True)])


def infer_config(params: GRUParams) -> GRUConfig:
    """Reads the sizes off a parameter tree, and checks that the tree holds together.

    What no shape shows keeps its default: `batch_first`, `dropout`, `reset_after`.

    Args:
      params: GRUParams; the leaves need only a shape and a dtype.

    Raises:
      TypeError: if params is not a dict of dicts of floating arrays.
      ValueError: if keys are missing, unexpected, or of a shape that fits no GRU: all of them in one message.

    Example:
      >>> infer_config(init_params(jax.random.key(0), GRUConfig(10, 20, bias=False)))
      GRUConfig(input_size=10, hidden_size=20, num_layers=1, bias=False, batch_first=False, dropout=0.0, \
bidirectional=False, reset_after=True)
    """
    return check_params("infer_config", params)


def check_params(function: str, params: GRUParams) -> GRUConfig:
    """Does what `infer_config` does; its error messages name the public `function` that calls it."""
    actual = {}
    for name, cell in params.items() if isinstance(params, Mapping) else [("params", params)]:
        actual |= {f"{name}/{key}": shape for key, shape in _checked_shapes(function, name, cell).items()}
    kernel_ih, kernel_hh = actual.get("l0/kernel_ih", ()), actual.get("l0/kernel_hh", ())
    if len(kernel_ih) != 2 or len(kernel_hh) != 2:
        found = ", ".join(f"{key} {list(shape)}" for key, shape in actual.items()) or "nothing"
        raise ValueError(
            f"{function}: expected params of a GRU, with l0/kernel_ih of shape [I, 3H] and l0/kernel_hh of shape "
            f'[H, 3H], found {found}. A single cell goes in as {{"l0": cell}}.'
        )
    layers = [int(name[1:]) for name in map(str, params) if re.fullmatch(r"l[0-9]{1,6}", name)]
    config = GRUConfig(
        input_size=kernel_ih[0],
        hidden_size=kernel_hh[0],
        num_layers=min(max(layers), len(actual)) + 1,
        bias=any(key.split("/")[1].startswith("bias") for key in actual),
        bidirectional=any(str(name).endswith("_reverse") for name in params),
    )
    _shapes.check_keys(function, "params", _flat_shapes(param_shapes(config)), actual)
    return config


def check_cell(function: str, params: CellParams) -> tuple[int, int]:
    """Checks the CellParams that a user has passed to `function`, and returns (I, H)."""
    actual = _checked_shapes(function, "params", params)
    kernel_ih, kernel_hh = actual.get("kernel_ih", ()), actual.get("kernel_hh", ())
    input_size, hidden_size = (kernel[0] if len(kernel) == 2 else 0 for kernel in (kernel_ih, kernel_hh))
    bias = any(key.startswith("bias") for key in actual)
    _shapes.check_keys(function, "params of one cell", cell_shapes(input_size, hidden_size, bias), actual)
    return input_size, hidden_size


def check_declared(function: str, config: GRUConfig, params: GRUParams) -> None:
    """Raises ValueError unless `params` are exactly those of a module of `config`.

    Flax ignores parameters that a module does not declare, and NNX takes any shape. Either way a bias or a layer could
    be dropped in silence.
    """
    _shapes.check_keys(function, "params", _flat_shapes(param_shapes(config)), _flat_shapes(params))


def _flat_shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{"l0/kernel_ih": shape, ...} of a tree of arrays, or of shapes."""
    cells = {name: cell if isinstance(cell, Mapping) else {"": cell} for name, cell in tree.items()}
    return {f"{name}/{key}": tuple(getattr(a, "shape", a)) for name, cell in cells.items() for key, a in cell.items()}


def cast(tree: Tree, dtype: DTypeLike | None) -> Tree:
    """Returns the tree with its floating arrays in `dtype`, or as it is where `dtype` is None."""
    is_float = lambda leaf: hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    return tree if dtype is None else jax.tree.map(lambda a: a.astype(dtype) if is_float(a) else a, tree)


def _checked_shapes(function: str, name: str, cell: CellParams) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of one cell's arrays, each checked to be a floating array."""
    if not isinstance(cell, Mapping):
        kind = type(cell).__name__
        raise TypeError(f"{function}: expected {name} to be a dict of arrays, got {kind}. {_LEGEND}")
    for key, array in cell.items():
        if not hasattr(array, "shape") or not jnp.issubdtype(array.dtype, jnp.floating):
            kind = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"{function}: expected {name}/{key} to be a floating array, got {kind}. {_LEGEND}")
    return {key: tuple(array.shape) for key, array in cell.items()}
