"""Files of flax.serialization, whole and damaged."""

import msgpack
import numpy as np
import pytest
from flax import serialization

from gru_jax.weights.checkpoint import load, open_checkpoint
from gru_jax.weights.containers.msgpack import flatten, open_msgpack

CELL = {"weight_ih": np.ones((12, 5), np.float32), "weight_hh": np.ones((12, 4), np.float32)}


def test_the_leaves_of_any_msgpack_tree_get_dotted_names(tmp_path):
    tree = {"params": {"rnn": CELL, "list": {"0": np.ones(2, np.int8)}}, "step": 3, "name": "model", "none": None}
    (tmp_path / "a").write_bytes(serialization.msgpack_serialize(tree))
    _, tensors, config = open_msgpack(tmp_path / "a")
    assert {name: tensor[:2] for name, tensor in tensors.items()} == {
        "params.rnn.weight_ih": ((12, 5), "float32"),
        "params.rnn.weight_hh": ((12, 4), "float32"),
        "params.list.0": ((2,), "int8"),
        "step": ((), "int64"),
    }
    assert config is None
    assert list(open_checkpoint(tmp_path / "a").grus) == ["params.rnn."]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x81\xa1a", "damaged, no valid msgpack file of Flax"),
        (msgpack.packb([1, 2]), "expected a msgpack file of Flax to hold a dict of arrays, got list"),
        (b"\x81\xa1a" * 5000 + b"\x01", "damaged, no valid msgpack file"),
        (b"\x81\xa1a" * 900 + b"\x01", "no GRU in this file|damaged"),
        (msgpack.packb({"a": {"b": 1}, "a.b": 2}), "two of its arrays have the same name, a.b"),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((10**9,), "float32", b"1234")))}), "damaged"),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "O", b"12345678")))}), "damaged"),
        (msgpack.packb({"a": msgpack.ExtType(1, b"\xc1")}), "damaged"),
        (msgpack.packb({"a": {"__msgpack_chunked_array__": True}}), "damaged"),
        (msgpack.packb({"config": 3, "params": {"l0": 1}}), "the config in its metadata is none of this version"),
    ],
)
def test_damaged_or_foreign_msgpack_is_refused(tmp_path, data, message):
    (tmp_path / "a.msgpack").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.msgpack")


def test_names_are_flattened_without_recursion():
    tree = leaf = {}
    for _ in range(5000):
        leaf["a"] = {}
        leaf = leaf["a"]
    leaf["b"] = 3
    assert list(flatten(tree).values()) == [3]
    assert flatten({"a": [1, (2, 3)], 4: {"b": None}}) == {"a.0": 1, "a.1.0": 2, "a.1.1": 3, "4.b": None}
