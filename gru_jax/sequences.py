"""Sequences of different lengths in one batch: masks, and PyTorch's PackedSequence.

A PackedSequence holds the real steps of a padded batch and no padding, longest sequence first: all first steps, then
all second steps, and so on. Its row count is the sum of the lengths, so it can be built only where lengths are known;
inside `jit`, give `gru` the padded batch and `seq_lengths`, which may be traced.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gru_jax import _shapes


def length_mask(seq_lengths: jax.Array | np.ndarray, steps: int) -> jax.Array:
    """Returns [L, ..., 1], True where t < length, for lengths of shape [...].

    >>> length_mask(jnp.array([1, 3]), 3)[..., 0].astype(int)
    Array([[1, 1],
           [0, 1],
           [0, 1]], dtype=int32)
    """
    time = jnp.arange(steps).reshape(-1, *[1] * (jnp.ndim(seq_lengths) + 1))
    return time < seq_lengths[..., None]


class PackedSequence(NamedTuple):
    """A batch of sequences without its padding, as `torch.nn.utils.rnn.PackedSequence`.

    To JAX it is a pytree with one leaf, `data`: `jax.grad`, `jax.tree.map` and the rest see the numbers alone. The
    other fields are NumPy arrays that describe the layout, so they are static under `jit`, which compiles anew for
    each layout.

    Attributes:
      data: [sum of lengths, ...], every step of every sequence, ordered by time, then by descending length.
      batch_sizes: [longest length], how many sequences have a step t.
      sorted_indices: [N], the original index of each sequence in descending order of length; None if already sorted.
      unsorted_indices: [N], the inverse permutation.

    Example:
      >>> packed = PackedSequence(data=jnp.array([[1.0], [3.0], [2.0]]), batch_sizes=np.array([2, 1]))
      >>> jax.tree.map(jnp.shape, packed).data  # two sequences: 1, 2 and 3
      (3, 1)
    """

    data: jax.Array
    batch_sizes: np.ndarray
    sorted_indices: np.ndarray | None = None
    unsorted_indices: np.ndarray | None = None


def _flatten(packed: PackedSequence) -> tuple[tuple[jax.Array], tuple]:
    return (packed.data,), tuple(None if field is None else tuple(map(int, field)) for field in packed[1:])


def _unflatten(layout: tuple, leaves: tuple[jax.Array]) -> PackedSequence:
    fields: list[Any] = [None if field is None else np.array(field, np.int64) for field in layout]
    return PackedSequence(leaves[0], *fields)


jax.tree_util.register_pytree_node(PackedSequence, _flatten, _unflatten)


def pack_padded_sequence(
    input: jax.Array, lengths: object, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Packs a padded batch, as `torch.nn.utils.rnn.pack_padded_sequence`.

    Two differences, both deliberate: length 0 is allowed, and a length beyond L is refused (PyTorch makes an
    inconsistent pack of it).

    Args:
      input: [L, N, ...], or [N, L, ...] with `batch_first`.
      lengths: [N] integers within 0..L, known (not traced).
      batch_first: whether the batch axis of `input` comes first.
      enforce_sorted: True requires lengths in descending order; False sorts them, and remembers the order.

    Returns:
      PackedSequence.

    Raises:
      TypeError: if lengths are traced or not integers.
      ValueError: if a length is outside 0..L, there are not N of them, or they are unsorted with `enforce_sorted`.

    Example:
      >>> x = jnp.array([[1, 2, 0], [3, 0, 0], [4, 5, 6]])
      >>> packed = pack_padded_sequence(x, [2, 1, 3], batch_first=True, enforce_sorted=False)
      >>> packed.data
      Array([4, 1, 3, 5, 2, 6], dtype=int32)
      >>> packed.batch_sizes
      array([3, 2, 1])
    """
    name = "pack_padded_sequence"
    if isinstance(lengths, Tracer):
        raise TypeError(
            f"{name}: expected known lengths, got traced ones: the size of a pack depends on their values. "
            "Inside jit, give gru the padded batch and seq_lengths=lengths."
        )
    if not isinstance(input, jax.Array | np.ndarray) or input.ndim < 2:
        raise TypeError(f"{name}: expected input to be an array of at least two axes, got {_described(input)}.")
    padded = jnp.swapaxes(input, 0, 1) if batch_first else jnp.asarray(input)
    steps, batch = padded.shape[:2]
    known = np.asarray(_shapes.check_lengths(name, "lengths", lengths, (batch,), steps), np.int64)
    descending = bool(np.all(known[:-1] >= known[1:]))
    if enforce_sorted and not descending:
        raise ValueError(
            f"{name}: expected lengths in descending order, got {known.tolist()}. Pass enforce_sorted=False."
        )
    order = None
    if not enforce_sorted:
        order = np.argsort(-known, kind="stable")
    elif np.any(known == 0):
        order = np.arange(batch)  # batch_sizes[0] does not count sequences of length 0; the order's length does.
    longest = int(known.max(initial=0))
    batch_sizes = (np.arange(longest)[:, None] < known).sum(axis=1)
    packed = PackedSequence(padded[:0, 0], batch_sizes, order, None if order is None else np.argsort(order))
    return packed._replace(data=padded[_positions(packed)])


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[jax.Array, np.ndarray]:
    """Undoes `pack_padded_sequence`, as `torch.nn.utils.rnn.pad_packed_sequence`.

    Args:
      sequence: the pack.
      batch_first: whether the batch axis of the result comes first.
      padding_value: what stands after the end of each sequence.
      total_length: L of the result, at least the longest length; the longest length by default.

    Returns:
      (padded [L, N, ...], or [N, L, ...] with `batch_first`; lengths [N]), in the original order of the sequences.

    Raises:
      TypeError: if `sequence` is no PackedSequence.
      ValueError: if total_length is less than the longest length, or the pack does not hold together.

    Example:
      >>> packed = pack_padded_sequence(jnp.array([[1, 2], [3, 0]]), [2, 1], batch_first=True)
      >>> padded, lengths = pad_packed_sequence(packed, batch_first=True, padding_value=-1)
      >>> padded
      Array([[ 1,  2],
             [ 3, -1]], dtype=int32)
      >>> lengths
      array([2, 1])
    """
    name = "pad_packed_sequence"
    if not isinstance(sequence, PackedSequence):
        raise TypeError(f"{name}: expected a gru_jax.PackedSequence, got {type(sequence)}.")
    rows, (longest, batch) = int(np.sum(sequence.batch_sizes)), _padded_shape(sequence)
    if sequence.data.shape[0] != rows:
        raise ValueError(
            f"{name}: expected data with sum(batch_sizes) = {rows} rows, got {sequence.data.shape[0]}. "
            "A pack is made by pack_padded_sequence, not by hand."
        )
    steps = longest if total_length is None else total_length
    if steps < longest:
        raise ValueError(f"{name}: expected total_length of at least the longest length, {longest}, got {steps}.")
    # A table of row numbers, made in NumPy, where an end row of padding stands for what is missing: one gather.
    row_of = np.full((steps, batch), rows)
    row_of[_positions(sequence)] = np.arange(rows)
    padding = jnp.full((1, *sequence.data.shape[1:]), padding_value, sequence.data.dtype)
    padded = jnp.concatenate([sequence.data, padding])[row_of]
    lengths = (row_of < rows).sum(axis=0)
    return (jnp.swapaxes(padded, 0, 1) if batch_first else padded), lengths


def repack(like: PackedSequence, padded: jax.Array) -> PackedSequence:
    """Packs `padded` [L, N, ...] in the layout of the pack `like`."""
    return like._replace(data=padded[_positions(like)])


def _padded_shape(packed: PackedSequence) -> tuple[int, int]:
    """Returns the longest length and N."""
    sizes = np.asarray(packed.batch_sizes)
    if packed.sorted_indices is not None:
        return len(sizes), len(packed.sorted_indices)
    return len(sizes), int(sizes[0]) if len(sizes) else 0


def _positions(packed: PackedSequence) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each row of data, its time step and the original index of its sequence."""
    sizes = np.asarray(packed.batch_sizes)
    step = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.arange(len(step)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return step, rank if packed.sorted_indices is None else np.asarray(packed.sorted_indices)[rank]


def _described(value: object) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"shape {list(shape)}"
