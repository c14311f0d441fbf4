"""Which tensors of a file are GRUs, by which convention."""

import numpy as np
import pytest

from gru_jax import GRUConfig
from gru_jax.weights.found import Found, Tensor, Tensors
from gru_jax.weights.jax import equinox, haiku
from gru_jax.weights.search import search


def tensors(**shapes):
    return {
        name: Tensor(shape, "float32", lambda shape=shape: np.ones(shape, np.float32)) for name, shape in shapes.items()
    }


def searched(held, config=None, names=None):
    return search(Tensors("npz", held, config), names or {})


CELL = {"weight_ih": (12, 5), "weight_hh": (12, 4)}
CONFIG = {"input_size": 5, "hidden_size": 4, "bias": False}
OURS = tensors(**{"l0.kernel_ih": (5, 12), "l0.kernel_hh": (4, 12)})


def test_what_no_gru_claims_is_listed_with_its_dtype_and_shape():
    whole = tensors(**CELL, **{f"decoder.{name}": shape for name, shape in CELL.items()}, scale=(), embed=(7, 5))
    contents = search(Tensors("NumPy, npz", whole), {})
    assert list(contents.grus) == ["", "decoder."]
    assert contents.others == {"scale": "float32 []", "embed": "float32 [7, 5]"}
    assert contents.format == "NumPy, npz"


def test_tensors_are_found_under_the_names_that_they_are_given():
    held = tensors(enc_w_ih=(12, 5), enc_w_hh=(12, 4))
    assert not searched(held).grus
    names = {"enc_w_ih": "enc.weight_ih", "enc_w_hh": "enc.weight_hh"}
    assert list(searched(held, None, names).grus) == ["enc."]


def test_a_name_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no tensor 'wieght_ih' to give another name. The nearest: 'weight_ih'"):
        searched(tensors(**CELL), None, {"wieght_ih": "a"})
    with pytest.raises(
        ValueError, match=r"no tensor '000' to give another name. The nearest: 'weight_ih', 'weight_hh'"
    ):
        searched(tensors(**CELL), None, {"000": "a"})


def test_two_tensors_cannot_get_one_name():
    with pytest.raises(ValueError, match=r"two of its tensors would have the same name: 'weight_hh'"):
        searched(tensors(**CELL), None, {"weight_ih": "weight_hh"})
    with pytest.raises(ValueError, match=r"the same name: 'a'"):
        searched(tensors(**CELL), None, {"weight_ih": "a", "weight_hh": "a"})


def test_names_can_be_exchanged():
    held = tensors(weight_hh=(12, 5), weight_ih=(12, 4))
    names = {"weight_hh": "weight_ih", "weight_ih": "weight_hh"}
    assert searched(held, None, names).grus[""].config == GRUConfig(**CONFIG)


def claiming(framework, prefix, *names):
    original = lambda *arguments: {}
    return {prefix: Found(GRUConfig(5, 4), dict, original, framework, names)}, {}


def test_what_two_conventions_claim_is_refused(monkeypatch):
    monkeypatch.setattr(equinox, "find", lambda held: claiming("A", "", "a"))
    monkeypatch.setattr(haiku, "find", lambda held: claiming("B", "", "b"))
    contents = searched(tensors(a=(1,), b=(1,)))
    assert not contents.grus
    assert contents.refused == {
        "": "its names fit more than one convention (A and B), so what computes it is not known."
    }


def test_a_tensor_that_two_prefixes_claim_is_refused_at_both(monkeypatch):
    monkeypatch.setattr(equinox, "find", lambda held: claiming("A", "", "a", "b"))
    monkeypatch.setattr(haiku, "find", lambda held: claiming("B", "rnn.", "b"))
    assert list(searched(tensors(a=(1,), b=(1,))).refused) == ["", "rnn."]


def test_what_one_convention_finds_no_other_refuses(monkeypatch):
    monkeypatch.setattr(equinox, "find", lambda held: claiming("A", "", "a"))
    monkeypatch.setattr(haiku, "find", lambda held: ({}, {"": "no GRU of mine", "lstm.": "an LSTM"}))
    contents = searched(tensors(a=(1,)))
    assert list(contents.grus) == [""]
    assert contents.refused == {"lstm.": "an LSTM"}


def test_the_config_beside_the_tensors_tells_what_they_do_not():
    told = {"batch_first": True, "reset_after": False}
    assert searched(OURS, CONFIG | told).grus[""].config == GRUConfig(**CONFIG, **told)


@pytest.mark.parametrize("wrong", [{"hidden_size": 8}, {"bias": True}, {"num_layers": 2}, {"bidirectional": True}])
def test_a_config_that_contradicts_the_tensors_is_refused(wrong):
    contents = searched(OURS, CONFIG | wrong)
    assert not contents.grus
    assert "its metadata says GRUConfig(" in contents.refused[""]


def test_a_config_beside_other_tensors_is_refused():
    contents = searched(tensors(a=(1,)), CONFIG, None)
    assert "its tensors are not that GRU's" in contents.refused[""]


@pytest.mark.parametrize(
    "config",
    [
        *({**CONFIG, "gate": "new"}, {**CONFIG, "hidden_size": 0}, {**CONFIG, "hidden_size": "4"}),
        *({**CONFIG, "reset_after": 1}, {**CONFIG, "dropout": 2.0}),
        *([], 3, "config", {}),
    ],
    ids=str,
)
def test_a_config_of_no_known_kind_is_refused(config):
    with pytest.raises(ValueError, match="the config in its metadata is none of this version of gru_jax"):
        searched(OURS, config)


def test_a_cell_whose_tensors_are_a_part_of_anothers_is_that_other():
    """An Equinox cell's weights alone have the names of a PyTorch cell without biases."""
    cell = tensors(**CELL, bias=(12,), bias_n=(4,))
    (found,) = searched(cell).grus.values()
    assert (found.framework, set(found.names)) == ("equinox.nn.GRUCell", set(cell))
    (bare,) = searched(tensors(**CELL)).grus.values()
    assert bare.framework == "torch.nn.GRUCell"
