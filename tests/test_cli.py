"""gru-jax: what it prints, what it writes, how it refuses."""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import random_params
from published import packaged_file

import gru_jax
from gru_jax import GRUConfig, cli, verify
from gru_jax.weights.writers import FORMATS

CONFIG = GRUConfig(3, 4, num_layers=2, bidirectional=True)


@pytest.fixture
def model(tmp_path):
    """A whole model in a training checkpoint: one GRU, one linear layer, an optimizer's state."""
    torch.manual_seed(0)
    encoder = torch.nn.GRU(3, 4, 2, bidirectional=True)
    net = torch.nn.ModuleDict({"encoder": encoder, "head": torch.nn.Linear(8, 5)})
    optimizer = torch.optim.Adam(net.parameters())
    path = tmp_path / "model.pt"
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, path)
    return path


def run(capsys, *arguments):
    """The exit code, stdout and stderr of one command, run in this process."""
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def refused(capsys, *arguments):
    """The one line that a refusal prints."""
    code, _, err = run(capsys, *arguments)
    lines = err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


def test_inspect_lists_each_gru_and_what_else_is_in_the_file(model, capsys):
    code, out, err = run(capsys, "inspect", model)
    assert (code, err) == (0, "")
    assert "model.encoder." in out
    assert "torch.nn.GRU" in out
    assert "model.head.weight: float32 [5, 8]" in out


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=[pytest.mark.slow] * (form in ("keras", "flax", "orbax"))) for form in FORMATS]
)
def test_convert_writes_what_verify_then_proves(form, model, tmp_path, capsys):
    suffix = {"orbax": "", "flax": ".msgpack", "nnx": ".msgpack"}.get(form) or FORMATS[form].suffixes[0]
    out = tmp_path / f"made{suffix}"
    if form == "nnx":  # which has no b_hn
        assert "b_hn" in refused(capsys, "convert", model, out, "--to", form)
        assert not out.exists()
        return
    code, printed, err = run(capsys, "convert", model, out, "--to", form)
    assert (code, err) == (0, "")
    assert FORMATS[form].title in printed.replace("\n", " ")
    prefixes = list(gru_jax.weights.checkpoint.open_checkpoint(out).grus)
    for prefix in prefixes:
        assert run(capsys, "verify", out, *(["--prefix", prefix] if len(prefixes) > 1 else []))[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["model.pt", out.name])  # nothing left behind


def test_verify_prints_a_verdict_on_every_array_and_draws_the_error(model, tmp_path, capsys):
    plot, inputs = tmp_path / "error.png", tmp_path / "x.npy"
    np.save(inputs, np.random.default_rng(0).standard_normal((verify.STEPS, verify.BATCH, 3)))
    code, out, err = run(capsys, "verify", model, "--inputs", inputs, "--plot", plot)
    assert (code, err) == (0, "")
    for name in ("float32", "float64", "output", "h_n", "d_x", "d_h_0", "d_l1_reverse/kernel_hh", "PASS"):
        assert name in out
    assert "FAIL" not in out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_verify_fails_a_gru_that_computes_something_else(model, capsys, monkeypatch):
    right = verify.run_here
    wrong = lambda *arguments: {name: 1.001 * array for name, array in right(*arguments).items()}
    monkeypatch.setattr(verify, "run_here", wrong)
    code, out, _ = run(capsys, "verify", model)
    assert code == 1
    assert "FAIL" in out


def test_an_original_that_its_own_framework_refuses_is_an_error_of_one_line(model, capsys, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such operator")

    opened = cli.open_checkpoint(model)
    grus = {prefix: found._replace(original=refuse) for prefix, found in opened.grus.items()}
    monkeypatch.setattr(cli, "open_checkpoint", lambda *_: opened._replace(grus=grus))
    assert "torch.nn.GRU does not run it: no such operator" in refused(capsys, "verify", model)


def test_a_published_npz_is_read_under_the_names_it_is_given(capsys):
    path = packaged_file("g2p-en", "g2p_en/checkpoint20.npz")
    names = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    pairs = [f"enc_{theirs}=encoder.{ours}" for theirs, ours in names.items()]
    assert "no GRU" in run(capsys, "inspect", path)[2]
    code, out, err = run(capsys, "inspect", path, "--map", *pairs)
    assert (code, err) == (0, "")
    assert "encoder." in out
    assert run(capsys, "verify", path, "--map", *pairs)[0] == 0


@pytest.mark.slow
def test_a_published_stack_is_proven(capsys):
    assert run(capsys, "verify", packaged_file("uzmorph-bigru", "uzmorph_bigru/data/morph_bigru.pth"))[0] == 0


def test_of_several_grus_a_prefix_picks_one_and_its_absence_lists_them(tmp_path, capsys):
    torch.manual_seed(0)
    net = torch.nn.ModuleDict({name: torch.nn.GRU(3, 4, 2, bidirectional=True) for name in ("encoder", "decoder")})
    path = tmp_path / "two.pt"
    torch.save(net.state_dict(), path)
    line = refused(capsys, "verify", path)
    assert "encoder." in line
    assert "decoder." in line
    assert "'encoder.'" in refused(capsys, "verify", path, "--prefix", "encodr")
    assert run(capsys, "verify", path, "--prefix", "decoder")[0] == 0


def test_what_exists_is_not_overwritten_without_force(model, tmp_path, capsys):
    out = tmp_path / "made.safetensors"
    out.write_text("mine")
    assert "--force" in refused(capsys, "convert", model, out)
    assert out.read_text() == "mine"
    assert run(capsys, "convert", model, out, "--force")[0] == 0
    assert gru_jax.load(out)[0] == CONFIG


def test_a_write_that_fails_leaves_the_old_file_whole(model, tmp_path, capsys, monkeypatch):
    out = tmp_path / "made.safetensors"
    out.write_text("mine")

    def break_off(path, *_):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setitem(FORMATS, "safetensors", FORMATS["safetensors"]._replace(save=break_off))
    assert "No space left" in refused(capsys, "convert", model, out, "--force")
    assert out.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_that_are_not_finite_are_accepted_with_a_warning_that_names_them(tmp_path, capsys):
    params = random_params(GRUConfig(2, 3))
    params["l0"]["bias_hh"] = params["l0"]["bias_hh"].at[1].set(jnp.nan)
    path = tmp_path / "nan.safetensors"
    gru_jax.save(path, GRUConfig(2, 3), params)
    code, _, err = run(capsys, "convert", path, tmp_path / "out.pt")
    assert code == 0
    assert "l0/bias_hh" in err
    assert "NaN" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "absent.pt"], "absent.pt"),
        (["convert", "model.pt", "made.xyz"], "suffix"),
        (["convert", "model.pt", "absent/made.pt"], "absent"),
        (["verify", "model.pt", "--inputs", "absent.npy"], "absent.npy"),
        (["verify", "model.pt", "--inputs", "model.pt"], "model.pt"),
        (["verify", "model.pt", "--plot", "absent/error.png"], "absent"),
        (["inspect", "model.pt", "--map", "nothing=weight_ih"], "nothing"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(arguments, message, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [((5, 2, 4), r"I = 3, got [5, 2, 4]"), ((3,), "got [3]"), ((5, 2, 3), "finite"), ((0, 2, 3), "finite")],
)
def test_inputs_of_another_shape_are_refused(shape, message, model, tmp_path, capsys):
    inputs = tmp_path / "x.npy"
    np.save(inputs, np.full(shape, np.nan))
    assert message in refused(capsys, "verify", model, "--inputs", inputs)


@pytest.mark.parametrize("program", [[Path(sys.executable).with_name("gru-jax")], [sys.executable, "-m", "gru_jax"]])
def test_the_program_exits_with_2_and_no_traceback(program, tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 and nothing else")
    done = subprocess.run([*program, "inspect", tmp_path / "broken.pt"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("gru-jax: error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
