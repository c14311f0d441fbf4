"""What a file is read into: tensors by name, the GRUs among them, and how to run each in its own framework."""

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
_LISTED, _PROBLEMS = 20, 8  # names, and problems, that an error message lists


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


class Tensors(NamedTuple):
    """What a container, a file of named tensors, holds.

    Attributes:
      format: what kind of file it is, "PyTorch, zip".
      by_name: its tensors.
      config: what stands where gru_jax writes a GRU's config; None where nothing does.
    """

    format: str
    by_name: Mapping[str, Tensor]
    config: Any = None


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


Search = tuple[dict[str, Found], dict[str, str]]  # GRUs by prefix; and by prefix, why a recurrent layer is refused


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


def choose(contents: Contents, name: str | None) -> tuple[str, Found]:
    """Returns the GRU of a name, or the only one, with its full name. Raises ValueError where that is none.

    Args:
      contents: of a file.
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
    """The names, the first of them where they are many."""
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
    """The same contents, where an error of a GRU that is read later names the file, too."""

    def named(read: Callable[[], Params]) -> Params:
        with naming(what):
            return read()

    grus = {key: gru._replace(read=functools.partial(named, gru.read)) for key, gru in contents.grus.items()}
    return contents._replace(grus=grus)


def one_line(error: Exception) -> str:
    """The message of an error on one line, of a few problems at most."""
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
