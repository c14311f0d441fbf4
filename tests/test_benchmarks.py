"""scripts/bench, without its environment: the smallest case of all contenders, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # it starts processes, or takes long

BENCHMARKS = Path(__file__).parent.parent / "scripts" / "benchmarks"


def bench(*arguments):
    return subprocess.run([sys.executable, str(BENCHMARKS), *arguments], capture_output=True, text=True, check=False)


def test_the_smallest_case_times_every_contender_and_writes_numbers_and_chart(tmp_path):
    files = tmp_path / "numbers.json", tmp_path / "chart.png"
    done = bench("--cases", "5,3,10,20", "--rounds", "1", "--json", str(files[0]), "--chart", str(files[1]))
    assert done.returncode == 0, done.stderr
    numbers = json.loads(files[0].read_text())
    everyone = {"gru_jax", "torch.nn.GRU", "flax.linen", "flax.nnx", "equinox", "dm-haiku", "keras", "two matmuls"}
    for kind, others in (("forward", {"onnxruntime"}), ("gradient", {"gru_jax remat"})):
        (row,) = numbers[kind]
        assert row["seconds"].keys() == everyone | others
        assert all(0 < of["minimum"] <= of["median"] for of in row["seconds"].values())
        assert f"{kind}: milliseconds" in done.stdout
    assert files[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--rounds", "0"], "expected at least 1, got 0"), (["--cases", "nothing"], "no case's name holds nothing")],
)
def test_what_it_cannot_do_is_refused_in_one_line(arguments, message):
    done = bench(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_contender_with_other_numbers_is_no_contender(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import contenders
    import measure
    from cases import Case

    wrong = lambda case, weights: contenders.gru_jax_gru(case, {k: 1.01 * w for k, w in weights.items()})
    monkeypatch.setitem(contenders.SEQUENCES, "gru_jax", wrong)
    with pytest.raises(AssertionError, match=r"gru_jax is .* from torch\.nn\.GRU: not the same numbers"):
        measure.sequence_runs(Case((4, 3, 2, 5), 2, bidirectional=True), gradient=False)


@pytest.mark.parametrize("gradient", [False, True])
def test_ragged_and_stacked_contenders_compute_the_same_numbers(gradient, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure
    from cases import Case

    for case in (Case((7, 4, 3, 5), ragged=True), Case((4, 3, 2, 5), 2, bidirectional=True)):
        assert measure.sequence_runs(case, gradient)
    assert measure.stream_runs(Case((3, 1, 2, 5)))


def test_quantized_contenders_compute_the_same_numbers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure
    from cases import Case

    runs = measure.quantized_runs(Case((4, 3, 5, 6)))
    assert runs.keys() >= {"gru_jax", "gru_jax bfloat16", "torch.nn.GRU", "torch float32"}
    assert all(run().shape == (4, 3, 6) for run in runs.values())
