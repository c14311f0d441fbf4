"""The examples run, and what they say of the numbers holds."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import ensemble, export, long_sequences, serve, stream
from examples._models import Model
from examples._ways import show_ways
from rich.console import Console

from gru_jax import GRUConfig, gru, init_params

pytestmark = pytest.mark.slow  # it starts processes, or takes long

SCRIPTS = Path(__file__).parent.parent / "scripts"
NAMES = {path.stem: path for path in (SCRIPTS / "examples").glob("[a-z]*.py")}


def assert_few_ulp(a, b):
    """Within 8 units in the last place of the largest number."""
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_allclose(a, b, rtol=0, atol=8 * np.spacing(np.abs(b).max()))


def error_of(main, arguments, capsys):
    """The one line that a main refuses its arguments with."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


# The launcher


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["--help"], 0), (["nothing"], 2), (["../demo"], 2)])
def test_without_the_name_of_an_example_all_are_listed_with_what_they_do(arguments, status):
    ran = subprocess.run([SCRIPTS / "example", *arguments], capture_output=True, text=True)
    assert ran.returncode == status
    listed = ran.stderr if status else ran.stdout
    assert (f"there is no example {''.join(arguments)}." in listed) == bool(status)
    lines = dict(line.split(maxsplit=1) for line in listed.splitlines() if line.startswith("  "))
    assert lines == {
        name: ast.get_docstring(ast.parse(path.read_text())).splitlines()[0] for name, path in NAMES.items()
    }
    assert lines.keys() >= {"stream", "export", "serve", "long_sequences", "ensemble"}


# stream


@pytest.fixture(scope="module", params=[1, 2, 3])
def streamed(request):
    """Random weights of as many layers, frames, and the whole sequence's output."""
    params = init_params(jax.random.key(request.param), GRUConfig(6, 6, num_layers=request.param))
    frames = np.random.default_rng(0).standard_normal((50, 6), np.float32)
    return params, frames, np.asarray(gru(params, frames)[0])


@pytest.mark.parametrize("size", [1, 7, 10, 50, 64])
def test_chunk_by_chunk_is_the_whole_sequence(size, streamed):
    params, frames, whole = streamed
    assert_few_ulp(stream.chunk_by_chunk(params, frames, size), whole)


@pytest.mark.parametrize("step", [stream.step, stream.donating_step], ids=["kept", "donated"])
def test_frame_by_frame_is_the_whole_sequence(step, streamed):
    params, frames, whole = streamed
    outputs, seconds = stream.frame_by_frame(step, params, frames)
    assert_few_ulp(outputs, whole)
    assert seconds.shape == (50,)


def test_a_donated_state_is_written_over(streamed):
    params, frames, _ = streamed
    for step, deleted in ((stream.step, False), (stream.donating_step, True)):
        h = stream.first_state(params)
        step(params, h, frames[0])
        assert h.is_deleted() == deleted
        memory = step.lower(params, stream.first_state(params), frames[0]).compile().memory_analysis()
        assert memory.alias_size_in_bytes == (4 * 6 * len(params) if deleted else 0)


def test_a_published_model_is_streamed_as_exactly_as_it_reads_whole_sequences(capsys):
    assert stream.main(["--frames", "300"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("PASS") == 4
    assert "FAIL" not in printed
    for text in ("jit, donated", "ahead, donated", "sync: median"):
        assert text in printed


def test_a_chunk_that_forgets_the_state_fails(capsys, monkeypatch):
    def forgetting(params, frames, size):
        return np.concatenate([gru(params, frames[i : i + size])[0] for i in range(0, len(frames), size)])

    monkeypatch.setattr(stream, "chunk_by_chunk", forgetting)
    monkeypatch.setattr(stream, "show_latencies", lambda arguments, console: None)
    assert stream.main(["--hidden", "4", "--frames", "20"]) == 1
    assert capsys.readouterr().out.count("FAIL") == 2  # of chunks of 1, 10 and 64 the last is the whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "uzmorph"], "expected params of one direction, got l0_reverse. The reverse direction begins at"),
        (["--frames", "0"], "expected --frames of at least 1, got 0."),
        (["--hidden", "0"], "expected input_size to be at least 1, got 0."),
        (["--hidden", "4", "--layers", "0"], "expected num_layers to be at least 1, got 0."),
        (["--layers", "2"], "g2p-en has its layers: --layers goes with --hidden."),
    ],
)
def test_what_can_not_be_streamed_is_refused_in_one_line(arguments, message, capsys):
    line = error_of(stream.main, arguments, capsys)
    assert line.startswith("scripts/example stream: ")
    assert message in line


# export and serve


@pytest.fixture(scope="module")
def model():
    config = GRUConfig(5, 8, bidirectional=True)
    embedding = np.random.default_rng(1).standard_normal((11, 5), np.float32)
    return Model(config, init_params(jax.random.key(0), config), embedding)


@pytest.fixture(scope="module")
def inside(model, tmp_path_factory):
    return export.export(model, tmp_path_factory.mktemp("inside"))


@pytest.mark.parametrize("beside", [False, True])
def test_a_process_without_gru_jax_answers_what_gru_jax_does_for_any_batch_and_length(beside, model, tmp_path):
    files = export.export(model, tmp_path, beside=beside)
    assert [path.name for path in files] == ["gru.jax", "weights.npz"][: 1 + beside]
    requests = export.make_requests(model, [(2, 7), (16, 4)])
    assert requests["seq_lengths_0"].tolist() == [7, 0]
    answers, ours = export.ask(files, requests), export.compute(model.params, requests)
    assert answers.keys() == ours.keys()
    for name in ours:
        assert_few_ulp(answers[name], ours[name])
    # With more than 8 rows gru orders the computation alike for known and unknown sizes.
    np.testing.assert_array_equal(answers["output_1"], ours["output_1"])


@pytest.mark.parametrize("statement", ["import gru_jax", "from gru_jax import gru", "import gru_jax.stack"])
def test_the_servers_process_can_not_import_gru_jax(statement, tmp_path):
    (tmp_path / "attempt.py").write_text(statement)
    command = [sys.executable, "-I", "-c", export.WITHOUT_US, str(tmp_path / "attempt.py")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "gru_jax" in ran.stderr.splitlines()[-1]
    assert ran.stderr.splitlines()[-1].startswith("ModuleNotFoundError")


def test_a_server_needs_jax_and_numpy_alone():
    nodes = list(ast.walk(ast.parse(NAMES["serve"].read_text())))
    imported = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported - set(sys.stdlib_module_names) == {"jax", "numpy"}


def test_a_published_bidirectional_model_is_exported_and_answers_as_exactly(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "SHAPES", [(12, 5)])
    assert export.main(["--out", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert "PASS" in printed
    for text in ("bit for bit", "compiled ahead", "MB of arguments"):
        assert text in printed


def test_answers_of_other_weights_fail(model, inside, monkeypatch):
    other = Model(model.config, init_params(jax.random.key(1), model.config), model.embedding)
    monkeypatch.setattr(export, "ask", lambda files, requests: serve.answer(serve.read(*files), requests))
    assert export.show_answers(model, inside, [(2, 3)], Console(quiet=True))
    assert not export.show_answers(other, inside, [(2, 3)], Console(quiet=True))


def test_all_ways_to_serve_give_the_numbers_of_gru_jax_and_the_compiled_one_takes_one_shape(model, inside):
    requests = export.make_requests(model, [(3, 6)])
    requests["seq_lengths_0"][:] = 6
    exact = export.compute(model.params, requests, "float64")["output_0"]
    distances = show_ways(export.forward, model, inside, requests["x_0"], exact, Console(quiet=True))
    assert distances.keys() == {"the exported file", "compiled ahead", "ONNX, in onnxruntime"}
    assert max(distances.values()) <= 8 * np.spacing(np.float32(np.abs(exact).max()))


def test_a_file_for_several_platforms_can_be_written_here(model, tmp_path):
    platforms = ["cpu", "cuda", "tpu"]
    (path,) = export.export(model, tmp_path, platforms=platforms)
    assert jax.export.deserialize(bytearray(path.read_bytes())).platforms == tuple(platforms)


def test_where_nothing_can_be_written_export_says_so_in_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = error_of(export.main, ["--model", "g2p-en", "--out", str(tmp_path / "file")], capsys)
    assert line.startswith("scripts/example export: ")


def test_serve_writes_its_answers_or_says_in_one_line_why_not(model, inside, capsys, tmp_path):
    good, bad, answers = tmp_path / "good.npz", tmp_path / "bad", tmp_path / "answers.npz"
    requests = export.make_requests(model, [(2, 3)])
    np.savez(good, **requests)
    bad.write_bytes(b"\x00" * 64)
    exported = str(inside[0])
    assert serve.main([exported, str(good), str(answers)]) == 0
    assert serve.read_arrays(answers)["output_0"].shape == (2, 3, 16)
    np.savez(tmp_path / "wide.npz", x_0=np.zeros((2, 3, 6), np.float32), seq_lengths_0=np.zeros(2, np.int32))
    np.save(tmp_path / "single.npy", np.zeros(3))
    for arguments, message in [
        ([str(bad), str(good)], "is no exported function"),
        ([str(tmp_path / "none"), str(good)], "No such file"),
        ([exported, str(bad)], "is no .npz file"),
        ([exported, str(tmp_path / "single.npy")], "is no .npz file"),
        ([exported, str(tmp_path / "wide.npz")], "Shape mismatch for args[0].shape[2]"),
        ([exported, str(good), "--weights", str(good)], "the same pytree structure"),
    ]:
        line = error_of(serve.main, [*arguments[:2], str(tmp_path / "no.npz"), *arguments[2:]], capsys)
        assert line.startswith("scripts/example serve: ")
        assert message in line
    assert not (tmp_path / "no.npz").exists()


# long_sequences


STEPS = 20


@pytest.fixture(scope="module")
def long():
    """(params, h, x) of 20 steps, and the whole gradient."""
    params = long_sequences.remembering(init_params(jax.random.key(0), GRUConfig(8, 6)), 20)
    rng = np.random.default_rng(1)
    h, x = (jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((1, 2, 6), (STEPS, 2, 8)))
    args = params, h, x
    return args, jax.jit(jax.grad(lambda *args: long_sequences.square_loss(*args)[0]))(*args)


def truncated(size):
    return jax.jit(functools.partial(long_sequences.truncated_gradient, long_sequences.square_loss, size=size))


def test_truncated_to_the_whole_length_it_is_the_whole_gradient(long):
    args, whole = long
    chex.assert_trees_all_close(truncated(STEPS)(*args), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [7, 10])
def test_the_truncated_gradient_is_that_of_states_which_count_as_given(size, long):
    (params, h, x), whole = long

    def loss(params, h):
        total = 0.0
        for first in range(0, STEPS, size):
            output, h = gru(params, x[first : first + size], jax.lax.stop_gradient(h))
            total += jnp.sum(output**2)
        return total

    gradient = truncated(size)(params, h, x)
    chex.assert_trees_all_close(gradient, jax.jit(jax.grad(loss))(params, h), rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(gradient, whole, rtol=1e-2)


@pytest.mark.parametrize("size", [1, 7, STEPS])
def test_chunk_by_chunk_the_loss_and_its_whole_gradient_are_the_same(size, long):
    args, whole = long
    loss = functools.partial(long_sequences.loss_by_chunks, long_sequences.square_loss, size=size)
    value, gradient = jax.jit(jax.value_and_grad(loss))(*args)
    np.testing.assert_allclose(value, long_sequences.square_loss(*args)[0], rtol=1e-6)
    chex.assert_trees_all_close(gradient, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [0, -1, STEPS + 1])
def test_a_chunk_has_between_one_step_and_all(size, long):
    with pytest.raises(ValueError, match=f"expected chunks of 1 to L = 20 steps, got {size}"):
        long_sequences.truncated_gradient(long_sequences.square_loss, *long[0], size)


def test_each_way_to_keep_less_takes_less_memory():
    args = init_params(jax.random.key(0), GRUConfig(8, 16)), jnp.zeros((1, 2, 16)), jnp.ones((10_000, 2, 8))
    loss = long_sequences.square_loss
    ways = {
        "truncated": lambda *args: long_sequences.truncated_gradient(loss, *args, 100),
        "by chunks": jax.grad(lambda *args: long_sequences.loss_by_chunks(loss, *args, 100)),
        "recomputed": jax.grad(lambda *args: loss(*args, remat=True)[0]),
        "stored": jax.grad(lambda *args: loss(*args, remat=False)[0]),
    }
    sizes = []
    for way in ways.values():
        size, _, gradient = long_sequences.measure(way, args, limit=0.0)
        assert gradient is None
        sizes.append(size)
    assert 0 < 2 * sizes[0] < 4 * sizes[1] < sizes[2]
    assert 4 * sizes[2] < sizes[3]


def test_the_longer_the_chunks_the_nearer_the_truncated_gradient(capsys):
    arguments = ["--steps", "400", "--batch", "2", "--hidden", "8", "--memory", "50", "--chunks", "4", "40"]
    assert long_sequences.main([*arguments, "--limit", "0"]) == 0
    printed = capsys.readouterr().out
    assert "not run" in printed
    rows = [line.split()[-2:] for line in printed.splitlines() if "truncated to" in line]
    cosines, norms = np.array(rows, float).T
    assert 0 < cosines[0] < cosines[1] < 1
    assert 0 < norms[0] < norms[1] < 1


@pytest.mark.parametrize(("factor", "status"), [(1.00001, 0), (1.001, 1)])
def test_whole_gradients_that_differ_fail(factor, status, monkeypatch):
    gradients = iter([np.ones(3), np.ones(3), np.full(3, factor), np.zeros(3) + 0.1])
    monkeypatch.setattr(long_sequences, "measure", lambda *args: (1.0, 1.0, next(gradients)))
    assert long_sequences.main(["--steps", "20"]) == status


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "expected --steps of at least 1, got 0."),
        (["--batch", "0"], "expected --batch of at least 1, got 0."),
        (["--memory", "1"], "expected --memory of at least 2, got 1."),
        (["--steps", "50", "--chunks", "10", "100"], "expected chunks of 1 to L = 50 steps, got 100."),
        (["--steps", "50", "--chunks", "0"], "expected chunks of 1 to L = 50 steps, got 0."),
    ],
)
def test_long_sequences_refuses_sizes_that_do_not_fit_in_one_line(arguments, message, capsys):
    assert error_of(long_sequences.main, arguments, capsys) == f"scripts/example long_sequences: {message}"


# ensemble


def test_of_each_sequence_two_numbers_are_marked_and_their_sum_is_wanted():
    x, y = ensemble.adding_problem(np.random.default_rng(0), 3, 5, 40)
    assert x.shape == (3, 5, 40, 2)
    numbers, marks = np.moveaxis(x, -1, 0)
    assert set(np.unique(marks)) == {0, 1}
    assert (marks.sum(1) == 2).all()
    np.testing.assert_allclose((numbers * marks).sum(1), y, rtol=1e-6)
    assert (marks.sum((0, 2)) > 0).all()


def test_an_ensemble_trained_at_once_has_the_losses_and_weights_of_its_members_trained_alone():
    batches = ensemble.adding_problem(np.random.default_rng(0), 60, 6, 8)
    keys = jax.random.split(jax.random.key(0), 3)
    learners = jax.jit(jax.vmap(functools.partial(ensemble.begin, hidden=8)))(keys)
    together, losses = jax.jit(ensemble.train_together)(learners, batches)
    assert losses.shape == (60, 3)
    assert np.ptp(losses[0]) > 0.01  # members of their own
    assert (losses[-10:].mean(0) < losses[:3].mean(0) / 2).all()  # that learn
    one = jax.jit(ensemble.train_one)
    for i in range(3):
        alone, of_one = one(jax.tree.map(lambda a, i=i: a[i], learners), batches)
        np.testing.assert_allclose(losses[:, i], of_one, rtol=1e-4, atol=1e-6)
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], together), alone, rtol=1e-3, atol=1e-4)


def test_the_ensemble_reports_the_time_and_the_losses_of_both_ways(capsys):
    small = ["--members", "2", "--hidden", "4", "--updates", "3", "--steps", "5", "--batch", "4"]
    assert ensemble.main(small) == 0
    printed = capsys.readouterr().out
    for text in ("2 GRUs, 3 updates", "vmap", "a loop", "compiled, s", "Largest difference of losses"):
        assert text in printed


def test_an_ensemble_whose_losses_are_not_those_of_its_members_fails(capsys, monkeypatch):
    together = lambda learners, batches: (learners, jnp.ones((len(batches.x), 2)))
    alone = lambda learner, batches: (learner, jnp.full(len(batches.x), 1.001))
    monkeypatch.setattr(ensemble, "train_together", together)
    monkeypatch.setattr(ensemble, "train_one", alone)
    assert ensemble.main(["--members", "2", "--hidden", "4", "--updates", "3"]) == 1
    assert "Largest difference of losses, vmap and loop: 1.0e-03" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "least"), [("members", 1), ("hidden", 1), ("updates", 1), ("steps", 2), ("batch", 1)])
def test_the_ensemble_refuses_sizes_that_are_none_in_one_line(name, least, capsys):
    line = error_of(ensemble.main, [f"--{name}", str(least - 1)], capsys)
    assert line == f"scripts/example ensemble: expected --{name} of at least {least}, got {least - 1}."
