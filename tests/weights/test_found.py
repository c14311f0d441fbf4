"""What every format gives: how a GRU is chosen among several, and how an error names its file."""

import pytest

from gru_jax import GRUConfig
from gru_jax.weights.found import Contents, Found, choose, listed, naming, one_line, with_names

CONFIG = GRUConfig(5, 4)


def contents(*prefixes, **refused):
    grus = {prefix: Found(CONFIG, dict, lambda *_: {}, "torch.nn.GRU", ()) for prefix in prefixes}
    return Contents("PyTorch, zip", grus, refused, {})


def test_the_only_gru_needs_no_name_and_a_prefix_no_last_dot():
    assert choose(contents("enc."), None)[0] == "enc."
    assert choose(contents("enc.", "dec."), "dec")[0] == "dec."
    assert choose(contents("gru", "gru_1"), "gru_1")[0] == "gru_1"


@pytest.mark.parametrize(
    ("held", "name", "message"),
    [
        (contents("enc.", "dec."), None, "^it holds 2 GRUs: name one, 'enc.', 'dec.'.$"),
        (contents(rnn="an LSTM."), None, r"^no GRU in this file \(PyTorch, zip\). rnn: an LSTM.$"),
        (contents("enc.", rnn="an LSTM."), "rnn", "^rnn: an LSTM.$"),
        (contents("encoder.", "dec."), "encodr", "^no GRU named 'encodr'. The nearest: 'encoder.'.$"),
        (contents(), "rnn", "^no GRU named 'rnn'. It holds none.$"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(held, name, message):
    with pytest.raises(ValueError, match=message):
        choose(held, name)


@pytest.mark.parametrize("kind", [ValueError, TypeError])
def test_an_error_gets_the_name_of_its_file_once_and_keeps_its_kind(kind):
    def read():
        raise kind("damaged.")

    with pytest.raises(kind, match="^model.pt: damaged.$"), naming("model.pt"):
        read()
    named = with_names("model.pt", Contents("npz", {"": contents("").grus[""]._replace(read=read)}, {}, {}))
    with pytest.raises(kind, match="^model.pt: damaged.$"):
        named.grus[""].read()


def test_other_errors_are_left_as_they_are():
    with pytest.raises(FileNotFoundError, match="^gone$"), naming("model.pt"):
        raise FileNotFoundError("gone")


def test_many_names_and_many_problems_are_listed_in_part():
    assert listed(map(str, range(22))).endswith("'19' and 2 more")
    assert listed(["a"]) == "'a'"
    assert one_line(ValueError("wrong.\n  a\n  b")) == "wrong: a; b."
    assert one_line(ValueError("wrong.\n  " + "\n  ".join("x" * 11))).endswith("x; and 3 more.")


def test_a_gru_shows_what_runs_it_and_its_config():
    assert repr(contents("").grus[""]) == f"Found(torch.nn.GRU, {CONFIG})"
