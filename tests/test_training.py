"""The training run: its data, its numbers, and that nothing that happens to it loses more than a few steps."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from flax import nnx
from published import END, MOST_PHONEMES, START, g2p_en, letter_ids
from training import __main__ as command
from training import data, model
from training.metrics import read

pytestmark = pytest.mark.slow  # it starts processes, or takes long

SCRIPTS = Path(__file__).parent.parent / "scripts"
# With the short words below there is one bucket, so that one step is compiled.
SMALL = {"words": 150, "hidden": 8, "embedding": 8, "batch-size": 32, "checkpoint": 10, "learning-rate": 0.01}


@pytest.fixture(scope="module")
def words():
    return data.read_dictionary()


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory):
    """A dictionary of 400 short words."""
    path = tmp_path_factory.mktemp("dictionary") / "short.dict"
    lines = [f"{w.spelling} {model_names(w.pronunciations[0])}" for w in data.read_dictionary() if len(w.spelling) < 6]
    short = [line for line in lines if len(line.split()) < 7]
    path.write_text("\n".join(short[::30][:400]) + "\n")
    return str(path)


def model_names(phonemes):
    return " ".join(data.PHONEMES[p] for p in phonemes)


def arguments(folder, dictionary, epochs, *more):
    return [
        "--out",
        str(folder),
        "--dictionary",
        dictionary,
        "--epochs",
        str(epochs),
        *(f"--{name}={value}" for name, value in SMALL.items()),
        *more,
    ]


def start(arguments, by=(), **options):
    """The run in a process of its own, which `by` starts."""
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([*by, sys.executable, "-m", "training", *arguments], env=environment, **options)


def final_state(folder):
    """The newest step, and every array of its state, optimizer and all."""
    newest = max((folder / "states").iterdir(), key=lambda path: int(path.name))
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(newest / "default").item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return int(newest.name), checkpointer.restore(newest / "default", restore_args=as_numpy)


# The dictionary and its batches


def test_every_word_is_on_one_side_and_stays_there(words):
    sides = data.split(words)
    spellings = [word.spelling for side in sides.values() for word in side]
    assert sorted(spellings) == sorted(word.spelling for word in words)
    assert len(set(spellings)) == len(spellings)
    fewer = data.split(words[::7])
    assert {w.spelling for w in fewer["test"]} <= {w.spelling for w in sides["test"]}
    assert 0.04 < len(sides["test"]) / len(words) < 0.06


def test_an_epoch_holds_every_pair_once_and_goes_on_where_it_is_told(words):
    some = words[::200]
    pairs = data.Pairs(some, 32)
    batches = [batch for _, batch in zip(range(pairs.batches_per_epoch), pairs.batches(seed=0), strict=False)]
    seen = []
    for batch in batches:
        for n in range(32):
            letters, phonemes = batch.letter_lengths[n], batch.phoneme_lengths[n]
            if letters:
                assert batch.spoken[0, n] == START
                assert batch.expected[phonemes - 1, n] == END
                assert (batch.spoken[1:phonemes, n] == batch.expected[: phonemes - 1, n]).all()
                seen.append((tuple(batch.letters[:letters, n]), tuple(batch.expected[: phonemes - 1, n])))
    assert sorted(seen) == sorted((tuple(letter_ids(w.spelling)), tuple(p)) for w in some for p in w.pronunciations)
    later = next(pairs.batches(seed=0, first=5))
    assert all((a == b).all() for a, b in zip(later, batches[5], strict=True))
    second_epoch = next(pairs.batches(seed=0, first=pairs.batches_per_epoch))
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(second_epoch, batches[0], strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"hello HH AH0 QQ\n", "line 1 is no entry of a pronouncing dictionary; no phonemes: QQ."),
        (b"hello\n", "line 1 is no entry"),
        (b"\xff\xfe\n", "the dictionary can't be read"),
        (b"", "the dictionary holds no words."),
        (b"hello HH AH0 L OW1\n", "the dictionary has too few words: none for"),
    ],
)
def test_what_is_no_dictionary_is_an_error_of_one_line(text, message, tmp_path, capsys):
    (tmp_path / "x.dict").write_bytes(text)
    assert command.main(arguments(tmp_path / "run", str(tmp_path / "x.dict"), 1)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(5))
def test_the_edit_distance_is_that_of_its_definition(seed):
    def by_definition(a, b):
        if not a or not b:
            return len(a) + len(b)
        cost = by_definition(a[:-1], b[:-1]) + (a[-1] != b[-1])
        return min(cost, by_definition(a[:-1], b) + 1, by_definition(a, b[:-1]) + 1)

    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 3, rng.integers(0, 6)).tolist() for _ in range(2))
    assert model.edit_distance(a, b) == by_definition(a, b)


def test_a_word_is_right_where_it_is_said_as_one_of_its_pronunciations():
    said = np.array([[5, 7], [END, END], [9, 9]])
    words = [data.Word("a", [[4], [5]]), data.Word("b", [[7, 8, 9]])]
    rates = model.error_rates(lambda *_: said, words, 2)
    assert rates == {"words": 2, "word_error_rate": 0.5, "phoneme_error_rate": 2 / 4}


# Its numbers


def test_the_published_model_scores_at_once_what_it_scores_in_pytorch(words):
    arrays, some = g2p_en(), data.split(words)["validation"][:300]
    reader, writer = torch.nn.GRUCell(256, 256), torch.nn.GRUCell(256, 256)
    for module, cell in ((reader, arrays.encoder), (writer, arrays.decoder)):
        module.load_state_dict({name: torch.from_numpy(array) for name, array in cell.items()})
    letters, phonemes, weight, bias = map(torch.from_numpy, arrays[2:])

    @torch.no_grad()
    def in_pytorch(ids, lengths):
        rows = []
        for n, length in enumerate(lengths):
            h, said = torch.zeros(256), [START]
            for i in ids[:length, n]:
                h = reader(letters[i], h)
            for _ in range(MOST_PHONEMES):
                h = writer(phonemes[said[-1]], h)
                said.append(int((weight @ h + bias).argmax()))
            rows.append(said[1:])
        return np.array(rows).T

    speller = model.published(0.1, nnx.Rngs(0))
    ours = jax.jit(speller.spell_out)
    expected = model.error_rates(in_pytorch, some, 100)
    assert model.error_rates(lambda *batch: np.asarray(ours(*batch)), some, 100) == expected
    assert 0.2 < expected["word_error_rate"] < 0.4


def test_training_learns_and_hands_its_grus_over_to_pytorch(dictionary, tmp_path, capsys):
    assert command.main(arguments(tmp_path / "run", dictionary, 30)) == 0
    losses = [line["loss"] for line in read(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert capsys.readouterr().out.count("PASS") == 2
    state_dict = torch.load(tmp_path / "run" / "grus.pt", weights_only=True)
    for side in ("encoder", "decoder"):
        weights = {k.removeprefix(f"{side}."): w for k, w in state_dict.items() if k.startswith(side)}
        torch.nn.GRU(8, 8).load_state_dict(weights, strict=True)
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_dropout_between_layers_and_two_layers_train(dictionary, tmp_path):
    assert command.main(arguments(tmp_path / "run", dictionary, 2, "--layers", "2", "--dropout", "0.5")) == 0


def test_two_processes_compute_the_losses_of_one(dictionary, tmp_path):
    runs = {k: start(arguments(tmp_path / str(k), dictionary, 6, "--processes", str(k))) for k in (1, 2)}
    assert [run.wait(timeout=300) for run in runs.values()] == [0, 0]
    one, two = ([(x["step"], x["loss"]) for x in read(tmp_path / str(k)) if "loss" in x] for k in runs)
    assert len(one) > 1
    np.testing.assert_allclose(one, two, rtol=1e-4)
    states = [final_state(tmp_path / str(k))[1]["params"] for k in runs]
    chex.assert_trees_all_close(*states, atol=1e-3)


# What may happen to it


def test_a_run_killed_twice_and_resumed_reaches_the_same_weights_bit_for_bit(dictionary, tmp_path):
    epochs, whole, killed = 60, tmp_path / "whole", tmp_path / "killed"
    assert command.main(arguments(whole, dictionary, epochs)) == 0
    more = arguments(killed, dictionary, epochs)
    for step in (30, 170):
        process = start(more, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 200
        while not any(int(p.name) >= step for p in killed.glob("states/*") if p.name.isdigit()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        more = ["--resume", "--out", str(killed)]
    assert command.main(more) == 0
    (step, expected), (same_step, state) = final_state(whole), final_state(killed)
    assert step == same_step > 170
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    values = [[(x["step"], x.get("loss")) for x in read(folder)] for folder in (whole, killed)]
    assert values[0] == values[1]


@pytest.fixture(scope="module")
def finished(dictionary, tmp_path_factory):
    """A finished run of some 25 steps."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert command.main(arguments(folder, dictionary, 5)) == 0
    return folder


@pytest.mark.parametrize("damage", ["cut", "deleted"])
def test_a_damaged_state_is_named_and_the_one_before_it_still_resumes(damage, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    newest, older = sorted((int(p.name) for p in (folder / "states").iterdir()), reverse=True)
    for path in (folder / "states" / str(newest) / "default").rglob("*"):
        if path.is_file() and damage == "deleted":
            path.unlink()
        elif path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert command.main(["--resume", "--out", str(folder)]) == 1
    error = capsys.readouterr().err
    assert f"{folder}/states/{newest}: damaged" in error
    assert f"Delete it to resume from step {older}." in error
    shutil.rmtree(folder / "states" / str(newest))
    assert command.main(["--resume", "--out", str(folder)]) == 0
    assert final_state(folder)[0] == newest


def test_a_full_disk_is_an_error_that_leaves_the_last_good_state(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    newest, good = sorted((int(p.name) for p in (folder / "states").iterdir()), reverse=True)
    shutil.rmtree(folder / "states" / str(newest))
    no_room = ["bash", "-c", 'ulimit -f 4 && exec "$@"', "bash"]  # no file beyond 4 KB
    process = start(["--resume", "--out", str(folder)], no_room, stderr=subprocess.PIPE, text=True)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 1
    assert f"the state of step {newest} can't be written" in error
    assert f"That of step {good} is the last good one." in error
    assert command.main(["--resume", "--out", str(folder)]) == 0
    jax.tree.map(np.testing.assert_array_equal, final_state(folder), final_state(finished))


def test_a_loss_that_is_no_number_stops_the_run_with_its_last_good_state(dictionary, tmp_path, capsys):
    assert command.main(arguments(tmp_path / "run", dictionary, 5, "--learning-rate", "1e38", "--clip", "1e38")) == 1
    assert "Try a lower learning rate." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resume"], "not the folder of a run, its settings.json can't be read"),
        (["--epochs", "-1"], "expected epochs of at least 0."),
        (["--words", "0"], "expected words of at least 1."),
        (["--dropout", "1", "--clip", "0"], "expected clip above 0, dropout within 0 and 1."),
        (["--from", "g2p-en", "--hidden", "9"], "g2p-en has its sizes"),
        (["--resume", "--seed", "1"], "--resume goes on as the run was begun: leave out seed."),
        (["--coordinator", "127.0.0.1:1"], "go together"),
        (["--processes", "0"], "--processes of at least 1"),
        (["--dictionary", "nowhere.dict"], "nowhere.dict: the dictionary can't be read"),
    ],
)
def test_what_can_not_begin_is_an_error_of_one_line(more, message, tmp_path, capsys):
    assert command.main([*more, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_that_is_there_is_not_written_into(tmp_path, capsys):
    (tmp_path / "kept.txt").write_text("")
    assert command.main(["--out", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_line_of_metrics_that_a_crash_cut_short_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read(tmp_path) == [{"step": 1}]
