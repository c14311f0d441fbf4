"""The shape legend, and every check of an argument at a public door.

    L   time steps                      N   batch
    I   input_size, features of x       H   hidden_size, features of h
    D   directions: 2 if bidirectional, else 1

The checks read only what is known before anything runs: shapes, dtypes and Python numbers. So they cost nothing in
compiled code. The values of lengths are checked too, but only where they are known, which they are not inside `jit`.

A message reads `{function}: expected {name} of shape {symbols} = {numbers}, got {actual}. {cause or fix}`.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Shape = tuple[int, ...]


def check_array(function: str, name: str, array: Any) -> None:
    """Raises TypeError unless `array` is a JAX or NumPy array of a real floating dtype."""
    if not isinstance(array, jax.Array | np.ndarray):
        raise TypeError(f"{function}: expected {name} to be a JAX or NumPy array, got {type(array).__name__}.")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{function}: expected {name} of a floating dtype, got {array.dtype}.")


def check_shape(function: str, name: str, array: Any, symbols: str, sizes: Sequence[int | None], fix: str) -> None:
    """Raises ValueError unless `array.shape` is `sizes`, where None stands for any size and `symbols` names each."""
    actual = tuple(array.shape)
    if len(actual) == len(sizes) and all(want in (None, got) for want, got in zip(sizes, actual, strict=True)):
        return
    numbers = _show("any" if size is None else size for size in sizes)
    raise ValueError(f"{function}: expected {name} of shape [{symbols}] = {numbers}, got {_show(actual)}. {fix}")


def check_input(function: str, x: Any, input_size: int, *, batch_first: bool) -> None:
    """Raises unless `x` is a floating [L, N, I], [N, L, I] with `batch_first`, or unbatched [L, I]."""
    check_array(function, "x", x)
    if x.ndim == 2:
        check_shape(function, "x", x, "L, I", (None, input_size), "I is read off kernel_ih of layer l0.")
    else:
        symbols = "N, L, I" if batch_first else "L, N, I"
        fix = f"I is read off kernel_ih of layer l0; batch_first={batch_first}; [L, I] is one unbatched sequence."
        check_shape(function, "x", x, symbols, (None, None, input_size), fix)


def check_lengths(function: str, name: str, lengths: Any, batch: Shape, steps: int) -> jax.Array | np.ndarray:
    """Returns `lengths` as an int32 array of shape `batch`, its values within 0..`steps` where they are known.

    Raises:
      TypeError: if they are not integers.
      ValueError: if the shape is wrong, or a known length is negative or beyond `steps`.
    """
    lengths = lengths if isinstance(lengths, jax.Array) else np.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer) and lengths.size:
        raise TypeError(f"{function}: expected {name} to be integers, got {lengths.dtype}.")
    check_shape(function, name, lengths, "N" if batch else "", batch, "There is one length a sequence.")
    if not isinstance(lengths, Tracer):
        known = np.asarray(lengths)
        wrong = known[(known < 0) | (known > steps)]
        if wrong.size:
            raise ValueError(
                f"{function}: expected {name} within 0..L = 0..{steps}, got {wrong.tolist()}. "
                "A sequence can't be longer than the padded input."
            )
    return lengths.astype(np.int32)


def check_resets(function: str, resets: Any, sizes: Shape, *, batch_first: bool) -> jax.Array:
    """Returns `resets` as bools of shape `sizes`, [L, N] or [L]; with `batch_first` they come as [N, L].

    Raises:
      TypeError: if they are no array of bools.
      ValueError: if the shape is wrong.
    """
    if getattr(resets, "dtype", None) != np.dtype(bool):
        kind = getattr(resets, "dtype", type(resets).__name__)
        raise TypeError(f"{function}: expected resets to be an array of bools, got {kind}. Try resets > 0.")
    symbols = ("N, L" if batch_first else "L, N") if len(sizes) > 1 else "L"
    given = sizes[::-1] if batch_first else sizes
    check_shape(function, "resets", resets, symbols, given, "There is one for each step of each sequence.")
    return jnp.asarray(resets.T if batch_first else resets)


def check_dropout(function: str, dropout: Any, num_layers: int) -> None:
    """Raises unless `dropout` is a number within 0..1; warns, as PyTorch does, where one layer leaves it no effect."""
    if isinstance(dropout, bool) or not isinstance(dropout, int | float | np.floating):
        raise TypeError(f"{function}: expected dropout to be a Python number, got {type(dropout).__name__}.")
    if not 0 <= dropout <= 1:
        raise ValueError(f"{function}: expected dropout within 0..1, the probability of a zero, got {dropout}.")
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            f"{function}: dropout={dropout} has no effect with num_layers=1: it is applied after every layer but the "
            "last.",
            stacklevel=3,
        )


def check_positive(function: str, **sizes: Any) -> None:
    """Raises unless each of `sizes` is a Python integer of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer):
            raise TypeError(f"{function}: expected {name} to be an integer, got {type(size).__name__}.")
        if size < 1:
            raise ValueError(f"{function}: expected {name} to be at least 1, got {size}.")


def check_flags(function: str, **flags: Any) -> None:
    """Raises TypeError unless each of `flags` is a bool; this also catches positional arguments that slipped by one."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{function}: expected {name} to be a bool, got {type(flag).__name__}.")


def check_keys(function: str, what: str, expected: Mapping[str, Shape], actual: Mapping[str, Shape]) -> None:
    """Raises one ValueError that lists all missing, unexpected and wrongly shaped keys of `what` at once."""
    problems = [f"missing: {key} {_show(shape)}" for key, shape in expected.items() if key not in actual]
    problems += [f"unexpected: {key} {_show(shape)}" for key, shape in actual.items() if key not in expected]
    problems += [
        f"wrong shape: {key}, expected {_show(shape)}, got {_show(actual[key])}"
        for key, shape in expected.items()
        if key in actual and tuple(actual[key]) != tuple(shape)
    ]
    if problems:
        raise ValueError(f"{function}: {what} is not that of one GRU.\n  " + "\n  ".join(problems))


def _show(shape: Iterable[object]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
