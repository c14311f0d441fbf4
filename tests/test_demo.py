"""The demo, and the rule of exactness on the trained weights that it carries across."""

import demo
import numpy as np
import pytest
import torch
from conftest import HIGHEST, Case, assert_exact, compare, record_verdicts
from published import g2p_en, letter_ids, packaged_file

from gru_jax import from_torch, gru_step
from gru_jax.verify import judge, typical

pytestmark = pytest.mark.slow  # it starts processes, or takes long


def test_the_demo_pronounces_the_words_and_passes(capsys):
    assert demo.main(["hello", "gated"]) == 0
    printed = capsys.readouterr().out
    for expected in ("HH EH1 L OW0", "G EY1 T IH0 D", "kitob", "uzmorph-bigru", "g2p-en", "PASS"):
        assert expected in printed
    assert "FAIL" not in printed


def test_the_demo_fails_where_the_weights_are_not_pytorchs(capsys, monkeypatch):
    step = demo.gru_step
    monkeypatch.setattr(demo, "gru_step", lambda params, h, x, **options: step(params, h, x, **options) * 1.001)
    assert demo.main(["hello"]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.fixture(scope="module")
def speller():
    """The published encoder as a torch.nn.GRU, and the embedding of its characters."""
    published, module = g2p_en(), torch.nn.GRU(256, 256)
    module.load_state_dict({f"{name}_l0": torch.from_numpy(array) for name, array in published.encoder.items()})
    return module, published.letters


def test_a_trained_gru_reading_single_words_is_pytorchs(speller, dtype, record_property):
    module, embedding = speller
    words = ["hello", "gated", "unite", "fires", "words", "write", "plain", "score", "tests", "known"]
    xs = [embedding[letter_ids(word)][:, None] for word in words]
    verdicts = compare(Case((6, 1, 256, 256), h_0=False), dtype, module, xs)
    record_verdicts(record_property, dtype, verdicts)
    assert_exact(verdicts)


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_a_trained_cell_stepping_through_few_rows_is_pytorchs(rows, speller):
    module, embedding = speller
    weights = {name.removesuffix("_l0"): tensor for name, tensor in module.float().state_dict().items()}
    original, reference = torch.nn.GRUCell(256, 256), torch.nn.GRUCell(256, 256).double()
    original.load_state_dict(weights)
    reference.load_state_dict(weights)
    cell, verdicts = from_torch(weights)[1]["l0"], []
    for seed in range(9):
        h, ours, exact = torch.zeros(rows, 256), np.zeros((rows, 256), np.float32), torch.zeros(rows, 256).double()
        for x in embedding[np.random.default_rng(seed).integers(3, 29, (6, rows))]:
            ours = gru_step(cell, ours, x, precision=HIGHEST)
            h, exact = original(torch.from_numpy(x), h), reference(torch.from_numpy(x).double(), exact)
        verdicts.append(judge("h", ours, h.detach().numpy(), exact.detach().numpy()))
    assert_exact([typical(verdicts)])


@pytest.mark.parametrize("lengths", ["dense", "lengths"])
@pytest.mark.parametrize("batch", [4, 16])
def test_a_trained_gru_reading_a_batch_is_pytorchs(batch, lengths, speller, dtype, record_property):
    module, embedding = speller
    xs = [embedding[np.random.default_rng(seed).integers(3, 29, (12, batch))] for seed in range(4)]
    verdicts = compare(Case((12, batch, 256, 256), lengths=lengths), dtype, module, xs)
    record_verdicts(record_property, dtype, verdicts)
    assert_exact(verdicts)


@pytest.mark.parametrize("batch", [1, 16])
def test_a_trained_bidirectional_stack_is_pytorchs(batch, dtype, record_property):
    path = packaged_file("uzmorph-bigru", "uzmorph_bigru/data/morph_bigru.pth")
    state_dict = torch.load(path, weights_only=True)
    module = torch.nn.GRU(64, 64, 2, bidirectional=True)
    module.load_state_dict({k.removeprefix("gru."): v for k, v in state_dict.items() if k.startswith("gru.")})
    embedding = state_dict["char_embeddings.weight"].numpy()
    xs = [embedding[np.random.default_rng(seed).integers(22, 47, (30, batch))] for seed in range(8)]
    case = Case((30, batch, 64, 64), 2, bidirectional=True, lengths="lengths")
    verdicts = compare(case, dtype, module, xs)
    record_verdicts(record_property, dtype, verdicts)
    assert_exact(verdicts)
