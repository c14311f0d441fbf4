"""from_torch, to_torch and find_grus against live PyTorch."""

import collections

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import random_params

from gru_jax import GRUConfig, find_grus, from_torch, gru, to_torch
from gru_jax.params import infer_config
from gru_jax.weights.found import Tensor
from gru_jax.weights.pytorch.importer import find

FLAGS = (True, False)


class Tagger(torch.nn.Module):
    """A whole model: GRUs, an LSTM, a plain RNN and cells of each, under nested prefixes."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(7, 5)
        self.encoder = torch.nn.ModuleDict(
            {
                "rnn": torch.nn.GRU(5, 4, 2, bidirectional=True, batch_first=True, dropout=0.25),
                "lstm": torch.nn.LSTM(5, 4),
                "projected": torch.nn.LSTM(5, 4, proj_size=2),
                "plain": torch.nn.RNN(5, 4),
            }
        )
        self.cells = torch.nn.ModuleList(
            [torch.nn.GRUCell(5, 4, bias=False), torch.nn.LSTMCell(5, 4), torch.nn.RNNCell(5, 4)]
        )
        self.out = torch.nn.Linear(8, 3)


@pytest.mark.parametrize("bias", FLAGS)
@pytest.mark.parametrize("bidirectional", FLAGS)
@pytest.mark.parametrize("num_layers", [1, 3, 12])
def test_a_module_and_its_state_dict_import_alike_and_go_back_strictly(num_layers, bidirectional, bias):
    module = torch.nn.GRU(5, 4, num_layers, bias, bidirectional=bidirectional)
    config, params = from_torch(module)
    assert config == infer_config(params) == GRUConfig(5, 4, num_layers, bias, bidirectional=bidirectional)
    arrays = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    for source in (module.state_dict(), arrays, collections.OrderedDict(arrays)):
        chex.assert_trees_all_equal(from_torch(source), (config, params))

    back = to_torch(params)
    assert list(back) == list(module.state_dict())
    fresh = torch.nn.GRU(5, 4, num_layers, bias, bidirectional=bidirectional)
    fresh.load_state_dict({name: torch.from_numpy(array) for name, array in back.items()}, strict=True)
    x = torch.randn(6, 3, 5)
    assert torch.equal(fresh(x)[0], module(x)[0])


@pytest.mark.parametrize("bias", FLAGS)
def test_a_gru_cell_is_a_gru_of_one_layer(bias):
    module = torch.nn.GRUCell(5, 4, bias)
    config, params = from_torch(module)
    assert config == GRUConfig(5, 4, bias=bias)
    chex.assert_trees_all_equal(from_torch(module.state_dict()), (config, params))
    fresh = torch.nn.GRUCell(5, 4, bias)
    fresh.load_state_dict(
        {name: torch.from_numpy(array) for name, array in to_torch(params["l0"]).items()}, strict=True
    )
    x = torch.randn(3, 5)
    assert torch.equal(fresh(x), module(x))


def test_a_module_tells_what_a_state_dict_does_not():
    module = torch.nn.GRU(5, 4, 2, batch_first=True, dropout=0.25)
    assert from_torch(module)[0] == GRUConfig(5, 4, 2, batch_first=True, dropout=0.25)
    assert from_torch(module.state_dict())[0] == GRUConfig(5, 4, 2)


def test_find_grus_finds_grus_and_gru_cells_and_nothing_else():
    found = find_grus(Tagger().state_dict())
    assert found == {
        "encoder.rnn.": GRUConfig(5, 4, 2, bidirectional=True),
        "cells.0.": GRUConfig(5, 4, bias=False),
    }
    parallel = torch.nn.DataParallel(Tagger()).state_dict()
    assert list(find_grus(parallel)) == ["module.encoder.rnn.", "module.cells.0."]
    assert find_grus(torch.nn.GRU(5, 4).state_dict()) == {"": GRUConfig(5, 4)}
    assert find_grus({}) == {}
    assert find_grus({"epoch": 3, "optimizer": {"weight_hh": 1}, "conv.weight_hh": np.zeros((3, 1, 2))}) == {}


@pytest.mark.parametrize(("input_size", "hidden_size"), [(1, 1), (3, 1), (4, 3), (12, 4), (1, 2)])
def test_sizes_that_could_be_mistaken_for_one_another_are_not(input_size, hidden_size):
    for kind, is_gru in ((torch.nn.GRU, True), (torch.nn.LSTM, False), (torch.nn.RNN, False)):
        found = find_grus(kind(input_size, hidden_size, 2).state_dict())
        assert found == ({"": GRUConfig(input_size, hidden_size, 2)} if is_gru else {})


@pytest.mark.parametrize("prefix", ["encoder.rnn.", "encoder.rnn"])
def test_a_prefix_picks_a_gru_out_of_a_whole_model(prefix):
    model = Tagger()
    config, params = from_torch(model.state_dict(), prefix)
    expected = from_torch(model.encoder["rnn"])
    chex.assert_trees_all_equal(params, expected[1])
    assert config == GRUConfig(5, 4, 2, bidirectional=True)
    from_module = from_torch(model, prefix)
    chex.assert_trees_all_equal(from_module, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype_and_every_bit(dtype):
    module = torch.nn.GRU(5, 4).to(dtype)
    _, params = from_torch(module)
    assert {str(a.dtype) for a in jax.tree.leaves(params)} == {str(dtype).removeprefix("torch.")}
    fresh = torch.nn.GRU(5, 4).to(dtype)
    fresh.load_state_dict({name: torch.from_numpy(array) for name, array in to_torch(params).items()}, strict=True)
    for name, tensor in module.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)


def test_tensors_that_need_grad_or_are_not_contiguous_are_read_and_left_alone():
    module = torch.nn.GRU(5, 4)
    leaves = dict(module.named_parameters())
    strided = {name: torch.stack([t.detach()] * 2, dim=-1)[..., 0].requires_grad_() for name, t in leaves.items()}
    assert not strided["weight_ih_l0"].is_contiguous()
    before = {name: tensor.detach().clone() for name, tensor in strided.items()}
    config_and_params = from_torch(strided)
    chex.assert_trees_all_equal(config_and_params, from_torch(module))
    for name, tensor in strided.items():
        assert tensor.requires_grad
        assert tensor.grad is None
        assert torch.equal(tensor, before[name])


def test_training_the_torch_model_further_does_not_reach_the_imported_parameters():
    module = torch.nn.GRU(5, 4)
    arrays = {name: tensor.numpy() for name, tensor in module.state_dict().items()}  # These share its memory.
    imports = [from_torch(module)[1], from_torch(arrays)[1]]
    before = jax.tree.map(np.array, imports)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    chex.assert_trees_all_equal(imports, before)


def test_nan_weights_come_through_as_they_are():
    arrays = {name: tensor.numpy() for name, tensor in torch.nn.GRU(5, 4).state_dict().items()}
    arrays["bias_ih_l0"][3] = np.nan
    _, params = from_torch(arrays)
    assert np.isnan(params["l0"]["bias_ih"]).tolist() == [False] * 3 + [True] + [False] * 8
    assert jnp.isnan(gru(params, jnp.ones((2, 1, 5)))[0]).any()


def changed(change, *args, **options):
    state_dict = dict(torch.nn.GRU(5, 4, *args, **options).state_dict())
    change(state_dict)
    return state_dict


@pytest.mark.parametrize(
    ("state_dict", "messages"),
    [
        (changed(lambda s: s.pop("weight_hh_l0")), ["missing: weight_hh_l0 [12, 4]"]),
        (changed(lambda s: s.pop("weight_ih_l0")), ["missing: weight_ih_l0 [12, I]"]),
        (changed(lambda s: s.pop("bias_hh_l1"), 2), ["missing: bias_hh_l1 [12]"]),
        (
            changed(lambda s: [s.pop(f"bias_{half}_l1") for half in ("ih", "hh")], 2),
            ["missing: bias_ih_l1 [12]", "missing: bias_hh_l1 [12]"],
        ),
        (
            changed(lambda s: [s.pop(key) for key in list(s) if key.endswith("_l1")], 3),
            ["missing: weight_ih_l1 [12, 4]", "missing: weight_hh_l1 [12, 4]", "missing: bias_hh_l1 [12]"],
        ),
        (
            changed(lambda s: s.pop("weight_hh_l0_reverse"), bidirectional=True),
            ["missing: weight_hh_l0_reverse [12, 4]"],
        ),
        (changed(lambda s: s.update(gain=torch.ones(3))), ["unexpected: gain [3]"]),
        (changed(lambda s: s.update({"fc.weight": torch.ones(3, 4)})), ["unexpected: fc.weight [3, 4]"]),
        (changed(lambda s: s.update(weight_ih=s["weight_ih_l0"])), ["unexpected: weight_ih [12, 5]"]),
        (
            changed(lambda s: s.update(weight_hh_l0=torch.ones(12, 5))),
            ["wrong shape: weight_hh_l0, expected [12, 4], got [12, 5]"],
        ),
        (
            changed(lambda s: s.update(weight_ih_l1=torch.ones(12, 5)), 2),
            ["wrong shape: weight_ih_l1, expected [12, 4], got [12, 5]"],
        ),
        (changed(lambda s: s.update(bias_ih_l0=torch.ones(1))), ["wrong shape: bias_ih_l0, expected [12], got [1]"]),
        (changed(lambda s: s.update(bias_ih_l0=torch.tensor(1.0))), ["bias_ih_l0, expected [12], got []"]),
        (
            changed(lambda s: (s.pop("bias_ih_l0"), s.update(x=torch.ones(2), bias_hh_l0=torch.ones(9)))),
            ["missing: bias_ih_l0 [12]", "unexpected: x [2]", "wrong shape: bias_hh_l0, expected [12], got [9]"],
        ),
        (
            changed(lambda s: s.update(weight_hh_l999999999=s["weight_hh_l0"])),
            ["unexpected: weight_hh_l999999999 [12, 4]"],
        ),
        (changed(lambda s: s.clear()), ["expected a GRU at prefix '', found none. Prefixes that hold one: none"]),
    ],
)
def test_everything_that_is_wrong_is_listed_in_one_message(state_dict, messages):
    with pytest.raises(ValueError, match=r"^from_torch: ") as error:
        from_torch(state_dict)
    for message in messages:
        assert message in str(error.value)


def test_find_grus_says_what_is_wrong_with_a_broken_gru():
    broken = {f"rnn.{name}": tensor for name, tensor in changed(lambda s: s.pop("bias_ih_l0")).items()}
    with pytest.raises(ValueError, match=r"(?s)find_grus: the state_dict at prefix 'rnn.'.*missing: bias_ih_l0 \[12\]"):
        find_grus(broken)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (torch.nn.LSTM(5, 4), r"got an LSTM: a GRU's weight_hh has shape \[3H, H\], this one's is \[16, 4\]"),
        (torch.nn.LSTM(5, 4, proj_size=2), "got an LSTM"),
        (torch.nn.LSTMCell(5, 4), "got an LSTM"),
        (torch.nn.RNN(5, 4), r"got a plain RNN: .*this one's is \[4, 4\]"),
        (torch.nn.RNNCell(5, 4), "got a plain RNN"),
    ],
)
def test_other_recurrent_layers_are_refused_by_name(module, message):
    with pytest.raises(ValueError, match=message):
        from_torch(module.state_dict())
    with pytest.raises(
        TypeError,
        match=f"expected a torch.nn.GRU or GRUCell at prefix '', got torch.nn.modules.rnn.{type(module).__name__}",
    ):
        from_torch(module)


def test_a_wrong_prefix_is_answered_with_the_right_ones():
    state_dict = Tagger().state_dict()
    for prefix in ("", "encoder", "decoder."):
        with pytest.raises(ValueError, match=r"Prefixes that hold one: 'encoder.rnn.', 'cells.0.'"):
            from_torch(state_dict, prefix)
    with pytest.raises(ValueError, match="at prefix 'encoder.lstm.', got an LSTM"):
        from_torch(state_dict, "encoder.lstm")
    for prefix, kind in (("", ".*Tagger"), ("encoder.lstm", ".*LSTM"), ("nowhere", "no module")):
        with pytest.raises(TypeError, match=f"got {kind}. Prefixes that hold one: 'encoder.rnn.', 'cells.0.'"):
            from_torch(Tagger(), prefix)


def test_a_quantized_gru_is_not_taken_for_a_float_one():
    kind = type("GRU", (torch.nn.Module,), {"__module__": "torch.ao.nn.quantized.dynamic.modules.rnn"})
    with pytest.raises(TypeError, match="expected a torch.nn.GRU or GRUCell"):
        from_torch(kind())


def test_what_is_no_state_dict_or_no_tensor_is_refused():
    for wrong in (3, "model.pt", [torch.ones(3)], None):
        with pytest.raises(TypeError, match="expected a PyTorch module or a state_dict"):
            from_torch(wrong)
        with pytest.raises(TypeError, match="find_grus: expected a state_dict"):
            find_grus(wrong)
    with pytest.raises(
        TypeError,
        match="expected weight_ih_l0 to be a dense tensor of a floating dtype of at most 64 bits, got torch.int8",
    ):
        from_torch(changed(lambda s: s.update(weight_ih_l0=torch.ones(12, 5, dtype=torch.int8))))
    with pytest.raises(ValueError, match=r"bias_ih_l0, expected \[12\], got \[\]"):
        from_torch(changed(lambda s: s.update(bias_ih_l0=[0.0] * 12)))


@pytest.mark.parametrize(
    "wrong",
    [
        torch.empty(12, 5, device="meta"),
        torch.ones(12, 5).to_sparse(),
        torch.ones(12, 5).to(torch.float8_e4m3fn),
        np.ones((12, 5), np.longdouble),
    ],
    ids=["meta", "sparse", "float8", "longdouble"],
)
def test_tensors_that_hold_no_plain_floats_are_refused_by_name(wrong):
    with pytest.raises(TypeError, match="from_torch: expected weight_ih_l0 to be a dense tensor of a floating dtype"):
        from_torch(changed(lambda s: s.update(weight_ih_l0=wrong)))


def test_big_endian_arrays_are_read():
    arrays = {name: tensor.numpy() for name, tensor in torch.nn.GRU(5, 4).state_dict().items()}
    swapped = {name: array.astype(">f4") for name, array in arrays.items()}
    chex.assert_trees_all_equal(from_torch(swapped), from_torch(arrays))


def test_common_mistakes_are_answered_with_what_to_do():
    module = torch.nn.GRU(5, 4)
    with pytest.raises(ValueError, match=r"It holds dicts, at \['state_dict'\]: pass one of them"):
        from_torch({"state_dict": module.state_dict(), "epoch": 3})
    with pytest.raises(TypeError, match="expected prefix to be a str, got NoneType"):
        from_torch(module.state_dict(), None)
    with pytest.raises(TypeError, match="expected a PyTorch module or a state_dict, got type"):
        from_torch(torch.nn.GRU)


def test_to_torch_refuses_what_does_not_hold_together():
    params = random_params(GRUConfig(5, 4))
    with pytest.raises(ValueError, match=r"(?s)to_torch: .*missing: l0/bias_hh"):
        to_torch({"l0": {key: a for key, a in params["l0"].items() if key != "bias_hh"}})
    with pytest.raises(ValueError, match=r"(?s)to_torch: .*missing: bias_hh"):
        to_torch({key: a for key, a in params["l0"].items() if key != "bias_hh"})
    with pytest.raises(TypeError, match="to_torch: expected params to be a dict of arrays, got list"):
        to_torch([params])


def test_exported_arrays_are_writable_contiguous_and_no_view_of_the_parameters():
    params = random_params(GRUConfig(5, 4))
    before = jax.tree.map(np.array, params)
    for array in to_torch(params).values():
        assert array.flags.c_contiguous
        array += 1
    chex.assert_trees_all_equal(params, before)


def lazy(state_dict):
    """Tensors of a state_dict that must not be read."""

    def read():
        raise AssertionError("shapes alone are looked at")

    return {name: Tensor(tuple(a.shape), str(a.dtype).removeprefix("torch."), read) for name, a in state_dict.items()}


def test_find_finds_the_grus_of_a_whole_model_and_says_what_the_others_are():
    grus, refused = find(lazy(Tagger().state_dict()))
    assert {prefix: gru.config for prefix, gru in grus.items()} == {
        "encoder.rnn.": GRUConfig(5, 4, 2, bidirectional=True),
        "cells.0.": GRUConfig(5, 4, bias=False),
    }
    assert grus["cells.0."].names == ("cells.0.weight_ih", "cells.0.weight_hh")
    assert [gru.framework for gru in grus.values()] == ["torch.nn.GRU", "torch.nn.GRUCell"]
    because = "whose weight_hh has shape {}, a GRU's has [3H, H]."
    assert refused == {
        "encoder.lstm.": "an LSTM, " + because.format([16, 4]),
        "encoder.projected.": "an LSTM, " + because.format([16, 2]),
        "encoder.plain.": "a plain RNN, " + because.format([4, 4]),
        "cells.1.": "an LSTM, " + because.format([16, 4]),
        "cells.2.": "a plain RNN, " + because.format([4, 4]),
    }


def test_one_bad_group_does_not_hide_the_others():
    good, odd = torch.nn.GRU(5, 4).state_dict(), torch.ones(12, 4)
    bad = {
        "missing": changed(lambda s: s.pop("bias_ih_l0")),
        "neighbour": good | {"weight_hx_l0": odd},
        "projected": good | {"weight_hr_l0": odd},
        "suffix": good | {"weight_hh_l0_scale": odd},
        "integers": good | {"bias_hh_l0": torch.ones(12, dtype=torch.int64)},
        "convolution": {"weight_ih": torch.ones(12, 4, 3, 3), "weight_hh": torch.ones(12, 4, 3, 3)},
        "forged": good | {"weight_hh_l999999": odd},
        "empty": {"weight_ih": torch.ones(0, 0), "weight_hh": torch.ones(0, 0)},
        "half": {"weight_ih_l0": odd},
    }
    everything = {f"{name}.{key}": a for name, group in (bad | {"good": good}).items() for key, a in group.items()}
    grus, refused = find(lazy(everything | {"fc.weight": odd, "attention.bias_k": odd, "weight_v": odd}))
    assert list(grus) == ["good."]
    for name, message in {
        "missing": "missing: bias_ih_l0 [12]",
        "neighbour": "unexpected: weight_hx_l0 [12, 4]",
        "projected": "an LSTM, ",
        "suffix": "what they make is not in the file",
        "integers": "bias_hh_l0 is int64",
        "convolution": "wrong shape: weight_hh, expected [12, 4], got [12, 4, 3, 3]",
        "forged": "unexpected: weight_hh_l999999 [12, 4]",
        "empty": "expected input_size to be at least 1, got 0",
        "half": "missing: weight_hh_l0 [12, 4]",
    }.items():
        assert message in refused.pop(f"{name}.")
    assert not refused


def test_other_tensors_beside_a_gru_at_the_top_do_not_matter():
    state_dict = torch.nn.GRU(5, 4).state_dict() | {"fc.weight": torch.ones(3, 4), "gain": torch.ones(3)}
    grus, refused = find(lazy(state_dict))
    assert grus[""].config == GRUConfig(5, 4)
    assert grus[""].names == tuple(state_dict)[:4]
    assert not refused
