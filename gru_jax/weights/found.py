"""What reading a file gives: its tensors by name, the GRUs among them, and how to run each in its own framework."""

import contextlib
import difflib
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gru_jax.params import GRUConfig

Params = dict[str, dict[str, jax.Array]]
_LISTED, _PROBLEMS = 20, 8  # how many names, and how many problems, an error message lists


class Tensor(NamedTuple):
    """A tensor that is not read yet.

    Attributes:
      shape: its shape.
      dtype: the name of its dtype, "float32", "bfloat16", "int64", ...
      read: returns its numbers, in that dtype.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class Tensors(NamedTuple):
    """What a container holds. A container is a file of named tensors.

    Attributes:
      format: what kind of file it is, "PyTorch, zip".
      by_name: its tensors.
      config: what is stored, unchecked, where gru_jax writes a GRU's config; None if nothing is.
    """

    format: str
    by_name: Mapping[str, Tensor]
    config: Any = None


class Found(NamedTuple):
    """One GRU in a file.

    Attributes:
      config: its sizes and its form of the new gate.
      read: returns its parameters. Raises ValueError or TypeError if they turn out not to be a GRU's.
      original: runs it in the framework that it comes from, on the weights of the file, not on what `read` returns:
        (dtype, x [L, N, I], h_0 [num_layers*D, N, H], d_output [L, N, D*H], d_h_n like h_0) -> {"output", "h_n"} and,
        if that framework has gradients, those of vdot(output, d_output) + vdot(h_n, d_h_n): {"d_x", "d_h_0",
        "d_l0/kernel_ih", ...}. dtype is "float32" or "float64". All arrays are NumPy's, time-major.
      framework: what `original` runs, "torch.nn.GRU".
      names: the tensors or nodes of the file that it is made of.
      notes: one sentence for each thing to do besides `gru(params, x)` to get the original's numbers.
      backwards: whether it has only one direction, and reads x from the end. Its output keeps x's order of time.
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


Search = tuple[dict[str, Found], dict[str, str]]  # GRUs by prefix; and the reasons by prefix why others are refused


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
      format: what kind of file it is, "PyTorch, zip".
      grus: the GRUs that can be imported, by prefix or by the name of a layer or node.
      refused: what looks like a recurrent layer but can't be imported: its name -> the reason, "an LSTM, ...".
      others: everything else: its name -> what it is, "float32 [3, 4]".
    """

    format: str
    grus: Mapping[str, Found]
    refused: Mapping[str, str]
    others: Mapping[str, str]


def choose(contents: Contents, name: str | None) -> tuple[str, Found]:
    """Returns the full name of a GRU, and the GRU. Raises ValueError if there is no such GRU.

    Args:
      contents: what a file holds.
      name: a prefix, whose last dot may be left out, or the name of a layer or node; None for the only GRU.
    """
    grus = contents.grus
    if name is None:
        if len(grus) == 1:
            return next(iter(grus.items()))
        if grus:
            raise ValueError(f"it holds {len(grus)} GRUs: name one, {listed(grus)}.")
        reasons = "".join(f" {key or 'At its top'}: {why}" for key, why in contents.refused.items())
        raise ValueError(f"no GRU in this file ({contents.format}).{reasons}")
    for key in (name, f"{name}."):
        if key in grus:
            return key, grus[key]
        if key in contents.refused:
            raise ValueError(f"{key}: {contents.refused[key]}")
    near = difflib.get_close_matches(name, list(grus), 5, 0.4) or list(grus)
    there = f"The nearest: {listed(near)}." if near else "It holds none."
    raise ValueError(f"no GRU named {name!r}. {there}")


def listed(names: Iterable[str]) -> str:
    """Returns the names as text, and of many names only the first."""
    shown = list(map(repr, names))
    return ", ".join(shown[:_LISTED]) + (f" and {len(shown) - _LISTED} more" if len(shown) > _LISTED else "")


@contextlib.contextmanager
def naming(what: str | Path) -> Iterator[None]:
    """Puts a file's or a function's name in front of the message of an error that is raised inside.

    >>> with naming("model.pt"):
    ...     raise ValueError("damaged.")
    Traceback (most recent call last):
    ValueError: model.pt: damaged.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        error.args = (f"{what}: {error}",)
        raise


def with_names(what: str | Path, contents: Contents) -> Contents:
    """Returns the same contents; if reading one of its GRUs fails later, the error names the file, too."""

    def named(read: Callable[[], Params]) -> Params:
        with naming(what):
            return read()

    grus = {key: gru._replace(read=functools.partial(named, gru.read)) for key, gru in contents.grus.items()}
    return contents._replace(grus=grus)


def one_line(error: Exception) -> str:
    """Returns the message of an error on one line, with a few of its problems at most."""
    head, *problems = str(error).split("\n  ")
    more = f"; and {len(problems) - _PROBLEMS} more" if len(problems) > _PROBLEMS else ""
    return f"{head[:-1]}: {'; '.join(problems[:_PROBLEMS])}{more}." if problems else head


def require(package: str, extra: str) -> Any:
    """Imports an optional package. Raises ImportError that names the extra to install."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        message = f"This needs {package.partition('.')[0]}, which is not installed: pip install 'gru_jax[{extra}]'."
        raise ImportError(message) from error
