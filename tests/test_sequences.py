"""Packing and padding against live torch.nn.utils.rnn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gru_jax import PackedSequence, pack_padded_sequence, pad_packed_sequence
from gru_jax.sequences import length_mask, repack

LENGTHS = [[4, 3, 3, 1], [1, 4, 2, 4], [2, 2, 2, 2], [1, 1, 1, 1]]
FIELDS = ("data", "batch_sizes", "sorted_indices", "unsorted_indices")


def both(lengths, batch_first, enforce_sorted, trailing=(3,)):
    """The same padded batch packed by PyTorch and by us."""
    shape = (4, len(lengths)) if not batch_first else (len(lengths), 4)
    x = np.random.default_rng(0).standard_normal((*shape, *trailing), np.float32)
    theirs = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(x), torch.tensor(lengths), batch_first, enforce_sorted
    )
    return theirs, pack_padded_sequence(jnp.asarray(x), lengths, batch_first, enforce_sorted)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("trailing", [(), (2, 3)])
def test_a_pack_pads_back_to_what_pytorch_gives(lengths, batch_first, trailing):
    theirs, ours = both(lengths, batch_first, enforce_sorted=False, trailing=trailing)
    np.testing.assert_array_equal(ours.batch_sizes, theirs.batch_sizes)
    for total_length in (None, 4, 6):
        options = {"batch_first": batch_first, "padding_value": -1.5, "total_length": total_length}
        their_padded, their_lengths = torch.nn.utils.rnn.pad_packed_sequence(theirs, **options)
        padded, our_lengths = pad_packed_sequence(ours, **options)
        np.testing.assert_array_equal(padded, their_padded)
        np.testing.assert_array_equal(our_lengths, their_lengths)


def test_a_sorted_batch_is_packed_as_in_pytorch_field_by_field():
    for lengths in ([4, 3, 2, 1], [4, 4, 2, 2]):
        theirs, ours = both(lengths, batch_first=False, enforce_sorted=True)
        for field in FIELDS:
            expected = getattr(theirs, field)
            np.testing.assert_equal(getattr(ours, field), None if expected is None else expected.numpy())


def test_an_unsorted_batch_is_packed_as_in_pytorch_field_by_field():
    theirs, ours = both(
        [2, 4, 1, 3], batch_first=True, enforce_sorted=False
    )  # No ties, which PyTorch may order freely.
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field).numpy())


def test_length_zero_survives_the_round_trip():
    x = jnp.arange(12.0).reshape(3, 4)
    for lengths, enforce_sorted in (([3, 1, 0, 0], True), ([0, 2, 0, 3], False), ([0, 0, 0, 0], True)):
        packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
        padded, back = pad_packed_sequence(packed, total_length=3)
        np.testing.assert_array_equal(back, lengths)
        np.testing.assert_array_equal(padded, np.where(np.arange(3)[:, None] < np.array(lengths), x, 0))


def test_repack_keeps_the_layout_of_unsorted_sequences():
    _, packed = both([1, 4, 2, 4], batch_first=False, enforce_sorted=False)
    again = repack(packed, pad_packed_sequence(packed)[0] * 2)
    np.testing.assert_array_equal(again.data, packed.data * 2)


def test_to_jax_a_pack_is_its_data():
    _, packed = both([1, 4, 2, 4], batch_first=False, enforce_sorted=False)
    assert len(jax.tree.leaves(packed)) == 1
    doubled = jax.jit(lambda pack: jax.tree.map(lambda a: 2 * a, pack))(packed)
    assert isinstance(doubled, PackedSequence)
    gradient = jax.grad(lambda pack: jnp.sum(pad_packed_sequence(pack)[0] ** 2))(packed)
    np.testing.assert_array_equal(gradient.data, 2 * packed.data)
    for field in FIELDS[1:]:
        np.testing.assert_array_equal(getattr(doubled, field), getattr(packed, field))
    data, batch_sizes, *_ = packed  # A named tuple, as in PyTorch.
    assert data is packed.data
    assert batch_sizes is packed.batch_sizes


def test_a_pack_made_by_hand_needs_only_data_and_batch_sizes():
    padded, lengths = pad_packed_sequence(PackedSequence(jnp.array([1.0, 3.0, 2.0]), np.array([2, 1])))
    np.testing.assert_array_equal(padded, [[1, 3], [2, 0]])
    np.testing.assert_array_equal(lengths, [2, 1])


def test_the_mask_is_true_before_each_end():
    np.testing.assert_array_equal(length_mask(jnp.array([0, 2]), 3)[..., 0], [[0, 1], [0, 1], [0, 0]])
    assert length_mask(jnp.array(2), 3).shape == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([3, 5],), ValueError, r"within 0..L = 0..4, got \[5\]"),
        (([3, -1],), ValueError, r"within 0..L = 0..4, got \[-1\]"),
        (([3],), ValueError, r"of shape \[N\] = \[2\], got \[1\]"),
        (([1.0, 2.0],), TypeError, "integers, got float64"),
        (([1, 2],), ValueError, r"lengths in descending order, got \[1, 2\]. Pass enforce_sorted=False"),
        ((jnp.array([2.0, 1.0]),), TypeError, "integers, got float32"),
    ],
)
def test_pack_padded_sequence_refuses_wrong_lengths(arguments, error, message):
    with pytest.raises(error, match=f"^pack_padded_sequence: .*{message}"):
        pack_padded_sequence(jnp.ones((4, 2)), *arguments)


def test_pack_padded_sequence_refuses_what_is_no_batch():
    for wrong in (jnp.ones(3), [[1.0]]):
        with pytest.raises(TypeError, match="expected input to be an array of at least two axes"):
            pack_padded_sequence(wrong, [1])


def test_traced_lengths_cant_be_packed_and_the_error_says_what_to_do():
    with pytest.raises(TypeError, match=r"expected known lengths, got traced ones.*give gru the padded batch"):
        jax.jit(lambda lengths: pack_padded_sequence(jnp.ones((4, 2)), lengths))(jnp.array([2, 1]))


def test_pad_packed_sequence_refuses_what_does_not_hold_together():
    packed = pack_padded_sequence(jnp.ones((4, 2)), [4, 2])
    with pytest.raises(ValueError, match="total_length of at least the longest length, 4, got 3"):
        pad_packed_sequence(packed, total_length=3)
    with pytest.raises(ValueError, match=r"data with sum\(batch_sizes\) = 6 rows, got 5"):
        pad_packed_sequence(packed._replace(data=packed.data[1:]))
    with pytest.raises(TypeError, match="expected a gru_jax.PackedSequence, got <class 'tuple'>"):
        pad_packed_sequence(tuple(packed))
