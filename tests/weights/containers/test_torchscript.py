"""The reader of TorchScript's pickle, beside pickle itself. Whole archives are in test_pytorch.py."""

import collections
import pickle
import pickletools

import pytest

from gru_jax.weights.containers.torchscript import Made, members, parse


@pytest.mark.parametrize(
    "value",
    [
        None,
        [True, False, 3, 300, 70_000, -1, 2**40, 1.5, "text"],
        {"a": (), "b": (1,), "c": (1, 2), "d": (1, 2, 3), "e": (1, 2, 3, 4), "f": [], "g": {}, "h": [1], "i": {1: 2}},
        [["shared"]] * 3,
    ],
)
def test_plain_values_are_read_as_pickle_reads_them(value):
    assert parse(pickle.dumps(value, protocol=2)) == value


def test_what_would_be_called_is_only_described():
    made = parse(pickle.dumps(collections.OrderedDict(), protocol=2))
    assert (made.kind, made.arguments) == ("collections.OrderedDict", ())


@pytest.mark.parametrize(
    "name", ["os system", "builtins eval", "torch.nn.modules.rnn GRU", "torch load", "torch.x Storage"]
)
def test_every_global_but_torchscripts_own_is_refused_by_name(name):
    text = name.replace(" ", "\n")
    with pytest.raises(ValueError, match=f"names {name.replace(' ', '.')}, which is no class of TorchScript's"):
        parse(f"c{text}\n.".encode())


@pytest.mark.parametrize(
    "data", [b"", b".", b"\x80\x02", b"(", b"}]s.", b"]}s.", b"K\x01K\x02R.", b"}K\x01b.", b"h\x01."]
)
def test_a_broken_pickle_is_one_value_error(data):
    with pytest.raises(ValueError, match="data.pkl|pickle|exhausted"):
        parse(data)


def test_an_index_of_two_billion_costs_no_memory():
    """The memo of pickle's own reader is an array as long as the largest index."""
    data = b"K\x05r\xff\xff\xff\x7f."
    assert [op.name for op, _, _ in pickletools.genops(data)] == ["BININT1", "LONG_BINPUT", "STOP"]
    assert parse(data) == 5


def test_a_module_gives_its_attributes_and_a_list_nothing():
    module = Made("__torch__.M", ())
    module.state = {"a": 1}
    assert members(module, {}, bytes) == {"a": 1}
    for node in ([1], (1,), 3, Made("__torch__.M", ())):
        assert members(node, {}, bytes) is None


def test_a_tensor_that_is_none_is_refused():
    for arguments in ((), 3, (1, 2, 3, 4), (Made("storage", ()), 0, (), ())):
        with pytest.raises(ValueError, match="describes a tensor that is none"):
            members(Made("torch._utils._rebuild_tensor_v2", arguments), {}, bytes)
    sparse = members(Made("torch._utils._rebuild_sparse_tensor", (1, 2)), {}, bytes)
    with pytest.raises(TypeError, match="expected plain numbers, got sparse"):
        sparse.read()
