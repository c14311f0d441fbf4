"""What a file is read into: tensors by name, the GRUs among them, and each one's way back to its own framework."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from gru_jax.params import GRUConfig

Params = dict[str, dict[str, jax.Array]]


class Tensor(NamedTuple):
    """A tensor that is not read yet.

    Attributes:
      shape: of it.
      dtype: its name, "float32", "bfloat16", "int64", ...
      read: gives its numbers, in that dtype.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class Found(NamedTuple):
    """One GRU in a file.

    Attributes:
      config: its sizes and its form of the new gate.
      read: gives its parameters. Raises ValueError or TypeError where they turn out not to be a GRU's.
      original: runs it in the framework that it comes from, on weights which that framework, not this package, has
        read or arranged: (dtype, x [L, N, I], h_0 [num_layers*D, N, H], d_output [L, N, D*H], d_h_n like h_0) ->
        {"output", "h_n"} and, where that framework has gradients, those of vdot(output, d_output) + vdot(h_n, d_h_n):
        {"d_x", "d_h_0", "d_l0/kernel_ih", ...}. dtype is "float32" or "float64"; all is NumPy, time-major.
      framework: what `original` runs, "torch.nn.GRU".
      names: the tensors or nodes of the file that it is made of.
      notes: what must be done besides `gru(params, x)` to get the original's numbers, a sentence each.
      backwards: whether it has one direction, which reads x from the end; its output stands in x's order of time.
    """

    config: GRUConfig
    read: Callable[[], Params]
    original: Callable[[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]]
    framework: str
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    backwards: bool = False

    def __repr__(self) -> str:
        return f"Found({self.framework}, {self.config})"


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
      format: what kind of file it is, "PyTorch, zip".
      grus: those that can be imported, by prefix or node name.
      refused: what looks like a recurrent layer and can't be: its name, and why, "an LSTM, ...".
      others: everything else: its name, and what it is, "float32 [3, 4]".
    """

    format: str
    grus: Mapping[str, Found]
    refused: Mapping[str, str]
    others: Mapping[str, str]


def require(package: str, extra: str) -> Any:
    """Imports an optional package. Raises ImportError that names the extra to install."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        message = f"This needs {package.partition('.')[0]}, which is not installed: pip install 'gru_jax[{extra}]'."
        raise ImportError(message) from error
