"""load and open_checkpoint on files of every format, whole, real, damaged and foreign."""

import contextlib
import os
import random
import tarfile
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import random_params
from flax import linen, serialization
from published import packaged_file
from stock_cells import cast, inputs, random_like, run_ours

from gru_jax import GRUConfig, from_torch
from gru_jax.verify import judge
from gru_jax.weights import files, found
from gru_jax.weights.arrays import not_finite
from gru_jax.weights.checkpoint import load, open_checkpoint
from gru_jax.weights.containers.orbax import write_orbax
from gru_jax.weights.found import Contents, choose
from gru_jax.weights.jax import from_flax
from gru_jax.weights.saving import save, save_msgpack, save_orbax

STACK = GRUConfig(5, 4, num_layers=2, bidirectional=True)
BEFORE = GRUConfig(5, 4, num_layers=2, bidirectional=True, batch_first=True, reset_after=False)


def params_of(config, dtype=jnp.float32):
    return random_params(config, dtype)


def verdicts(config, params, original, dtype):
    """Ours beside the original of a Found: outputs, and the gradients that the original has."""
    given = [array.astype(dtype) for array in inputs(config).values()]
    reference, theirs = original("float64", *given), original(dtype, *given)
    ours = run_ours(config, jax.tree.map(lambda a: a.astype(dtype), params), *map(jnp.asarray, given))
    return [judge(name, ours[name], theirs[name], reference[name]) for name in reference]


def written(folder, kind):
    """The path of one GRU's file in a format."""
    path = folder / f"model.{kind}"
    module = torch.nn.GRU(5, 4, 2, bidirectional=True)
    state_dict = module.state_dict()
    if kind == "safetensors of PyTorch":
        safetensors.torch.save_file(state_dict, path)
    elif kind == "pt":
        torch.save(state_dict, path)
    elif kind == "npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in state_dict.items()})
    elif kind == "tar.gz":
        with tarfile.open(path, "w:gz") as archive:
            archive.add(written(folder, "npz"), "model.npz")
    else:
        {"safetensors": save, "msgpack": save_msgpack, "orbax": save_orbax}[kind](path, STACK, params_of(STACK))
    return path


KINDS = ["safetensors", "msgpack", "orbax", "safetensors of PyTorch", "pt", "npz", "tar.gz"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_gru_from_any_format_runs_as_pytorch_runs_it(tmp_path, dtype, kind):
    contents = open_checkpoint(written(tmp_path, kind))
    assert not contents.refused
    assert not contents.others
    ((prefix, gru_here),) = contents.grus.items()
    assert (prefix, gru_here.framework) == ("", "torch.nn.GRU")
    assert len(gru_here.names) == 16
    rows = verdicts(gru_here.config, gru_here.read(), gru_here.original, dtype)
    assert len(rows) == 4 + 16
    assert not [row for row in rows if not row.passed]


@pytest.mark.parametrize("save_as", [save, save_msgpack, save_orbax])
@pytest.mark.parametrize("config", [BEFORE, GRUConfig(5, 4, bias=False, reset_after=False)], ids=["stack", "no bias"])
def test_a_saved_gru_with_the_reset_before_runs_as_the_formula_does(tmp_path, dtype, save_as, config):
    save_as(tmp_path / "gru", config, params_of(config))
    gru_here = open_checkpoint(tmp_path / "gru").grus[""]
    assert gru_here.config == config
    assert gru_here.framework == "NumPy formula (Cho et al. 2014)"
    rows = verdicts(config, gru_here.read(), gru_here.original, dtype)
    assert [row.name for row in rows] == ["output", "h_n"]
    assert not [row for row in rows if not row.passed]


def test_the_published_g2p_cells_are_found_under_the_names_given_to_them():
    path = packaged_file("g2p-en", "g2p_en/checkpoint20.npz")
    kinds = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    names = {f"{side}_{short}": f"{side}.{name}" for side in ("enc", "dec") for short, name in kinds.items()}
    assert not open_checkpoint(path).grus
    contents = open_checkpoint(path, names)
    assert list(contents.grus) == ["enc.", "dec."]
    assert contents.others.keys() == {"enc_emb", "dec_emb", "fc_w", "fc_b"}
    published = np.load(path)
    for side in ("enc", "dec"):
        config, params = load(path, side, names)
        assert config == GRUConfig(256, 256)
        cell = {name: published[f"{side}_{short}"] for short, name in kinds.items()}
        chex.assert_trees_all_equal(params, from_torch(cell)[1])
        assert all(row.passed for row in verdicts(config, params, contents.grus[f"{side}."].original, "float32"))


def test_a_flax_cell_in_a_trained_model_is_found_in_msgpack_and_orbax(tmp_path):
    shapes = jax.eval_shape(linen.RNN(linen.GRUCell(4)).init, jax.random.key(0), jnp.ones((2, 3, 5)))
    variables = cast(random_like(shapes), "float32")
    (tmp_path / "msgpack").write_bytes(serialization.to_bytes(variables))
    write_orbax(tmp_path / "orbax", variables, {})
    for name in ("msgpack", "orbax"):
        assert list(open_checkpoint(tmp_path / name).grus) == ["params.cell."]
        # What these parameters compute is proven with the importer.
        chex.assert_trees_all_equal(load(tmp_path / name), from_flax(variables["params"]["cell"]))


def model_of_two(path):
    cell = {"weight_ih": np.ones((12, 5), np.float32), "weight_hh": np.ones((12, 4), np.float32)}
    lstm = {"weight_ih_l0": np.ones((16, 5), np.float32), "weight_hh_l0": np.ones((16, 4), np.float32)}
    arrays = {f"encoder.{name}": a for name, a in cell.items()} | {f"decoder.rnn.{name}": a for name, a in cell.items()}
    np.savez(path, **arrays, **{f"lstm.{name}": a for name, a in lstm.items()})
    return path


def test_of_two_grus_the_prefix_says_which(tmp_path):
    path = model_of_two(tmp_path / "model.npz")
    with pytest.raises(ValueError, match="it holds 2 GRUs: name one, 'encoder.', 'decoder.rnn.'"):
        load(path)
    for prefix in ("encoder", "encoder."):
        assert load(path, prefix)[0] == GRUConfig(5, 4, bias=False)
        assert choose(open_checkpoint(path), prefix)[0] == "encoder."
    with pytest.raises(ValueError, match="no GRU named 'decoder'. The nearest: .*'decoder.rnn.'"):
        load(path, "decoder")
    with pytest.raises(ValueError, match="no GRU named '000'. The nearest: 'encoder.', 'decoder.rnn.'"):
        load(path, "000")
    with pytest.raises(ValueError, match=r"model.npz: lstm.: .*LSTM"):
        load(path, "lstm")


def test_a_file_without_a_gru_says_why(tmp_path):
    torch.save(torch.nn.LSTM(5, 4).state_dict(), tmp_path / "lstm.pt")
    with pytest.raises(ValueError, match=r"no GRU in this file \(PyTorch.*\). At its top: .*LSTM"):
        load(tmp_path / "lstm.pt")
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    with pytest.raises(ValueError, match=r"a.npz: no GRU in this file \(NumPy, npz\)\.$"):
        load(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="no GRU named 'a'. It holds none."):
        load(tmp_path / "a.npz", "a")


def test_what_must_be_done_besides_is_a_warning(tmp_path, monkeypatch):
    path = written(tmp_path, "npz")
    contents = open_checkpoint(path)
    noted = {"": contents.grus[""]._replace(notes=("reverse the output.",))}
    monkeypatch.setattr("gru_jax.weights.checkpoint.open_checkpoint", lambda *_: contents._replace(grus=noted))
    with pytest.warns(UserWarning, match="model.npz: reverse the output."):
        load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_loaded_with_a_warning_that_names_them(tmp_path, value):
    params = params_of(STACK, jnp.bfloat16)
    params["l1"]["bias_hh"] = params["l1"]["bias_hh"].at[3].set(value)
    save(tmp_path / "gru", STACK, params)
    with pytest.warns(UserWarning, match="gru: l1/bias_hh holds NaN or infinity."):
        _, loaded = load(tmp_path / "gru")
    chex.assert_trees_all_equal(loaded, params)
    assert not_finite(loaded) == ["l1/bias_hh"]


def test_what_is_no_file_is_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt: no such file or folder"):
        load(tmp_path / "nowhere.pt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: neither a file nor a folder"):
        load(tmp_path / "pipe")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(ValueError, match="empty.pt: the file is empty"):
        load(tmp_path / "empty.pt")
    (tmp_path / "text").write_text("The quick brown fox jumps over the lazy dog.")
    with pytest.raises(ValueError, match="text: of no known format. Known are PyTorch, safetensors, ONNX, Keras"):
        load(tmp_path / "text")


def test_a_folder_is_its_one_file_of_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("# A model")
    with pytest.raises(
        ValueError, match="expected one file of weights in this folder, found 'README.md', 'config.json'"
    ):
        load(tmp_path)
    first = written(tmp_path, "npz")
    assert open_checkpoint(tmp_path).format == "NumPy, npz"
    written(tmp_path, "pt")
    with pytest.raises(ValueError, match="found 'model.npz', 'model.pt'. Name one of them"):
        load(tmp_path)
    first.unlink()
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ValueError, match="a TensorFlow SavedModel"):
        load(tmp_path)


def test_names_are_for_tensors_alone(tmp_path, monkeypatch):
    (tmp_path / "a.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    for name in ("a.onnx", "a.h5"):
        with pytest.raises(ValueError, match="are found by their layers: it has no names to map"):
            open_checkpoint(tmp_path / name, {"a": "b"})
    monkeypatch.setitem(files._MODELS, "onnx", lambda path: Contents("ONNX", {}, {}, {}))
    assert open_checkpoint(tmp_path / "a.onnx").format == "ONNX"


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    path = written(tmp_path, "safetensors")

    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(found.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"This needs safetensors, .*pip install 'gru_jax\[safetensors\]'"):
        load(path)


def with_damaged_number(path):
    """The path of a .npz file with one wrong byte at the end of its first array, where opening it does not look."""
    np.savez(path, weight_ih=np.ones((96, 32), np.float32), weight_hh=np.ones((96, 32), np.float32))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\3\4", 1) - 1] ^= 1
    path.write_bytes(data)
    return path


def test_numbers_that_turn_out_damaged_are_refused_by_their_file_once(tmp_path):
    path = with_damaged_number(tmp_path / "a.npz")
    ((_, gru_here),) = open_checkpoint(path).grus.items()
    for read in (gru_here.read, lambda: load(path)):
        with pytest.raises(ValueError, match=rf"^{path}: weight_ih\.npy is damaged: Bad CRC-32[^/]*$"):
            read()


def test_numbers_that_turn_out_damaged_in_an_archive_are_refused_by_the_archive_and_its_member(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(with_damaged_number(tmp_path / "a.npz"), "inside/a.npz")
    ((_, gru_here),) = open_checkpoint(path).grus.items()
    for read in (gru_here.read, lambda: load(path)):
        with pytest.raises(ValueError, match=rf"^{path}: inside/a\.npz: weight_ih\.npy is damaged: Bad CRC-32[^/]*$"):
            read()


def mutated(data, rng):
    """The bytes with a few of them changed, cut out, doubled or cut off."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data))
        change = rng.choice(("set", "set", "flip", "cut", "double", "end", "many"))
        if change == "set":
            data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif change == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif change == "cut":
            del data[at : at + rng.randrange(1, 9)]
        elif change == "double":
            data[at:at] = data[at : at + rng.randrange(1, 9)]
        elif change == "end":
            del data[max(at, 1) :]
        else:
            data[at : at + 8] = bytes(rng.randrange(256) for _ in range(8))
        data = data or bytearray(b"\0")
    return bytes(data)


@pytest.mark.parametrize("kind", ["safetensors", "npz", "msgpack", "tar.gz"])
def test_a_mutated_file_is_refused_or_read(tmp_path, kind):
    whole = written(tmp_path, kind).read_bytes()
    path, rng, refused = tmp_path / f"mutated.{kind}", random.Random(0), 0
    for _ in range(200):
        # Headers are where a mutation can mislead; in the numbers it only makes other numbers.
        at = rng.randrange(0, len(whole), 256) if rng.random() < 0.5 else 0
        path.write_bytes(whole[:at] + mutated(whole[at : at + 512], rng) + whole[at + 512 :])
        try:
            with warnings.catch_warnings(action="ignore"):
                config, params = load(path)
        except (ValueError, TypeError, OSError, ImportError):
            refused += 1
        else:
            kernel = params["l0"]["kernel_ih"]
            assert kernel.shape == (config.input_size, 3 * config.hidden_size)
    assert refused > 50


def test_a_mutated_orbax_folder_is_refused_or_read(tmp_path):
    folder, rng = written(tmp_path, "orbax"), random.Random(0)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.stat().st_size]
    for _ in range(60):
        file = rng.choice(files)
        whole = file.read_bytes()
        file.write_bytes(mutated(whole, rng))
        with contextlib.suppress(ValueError, TypeError, OSError), warnings.catch_warnings(action="ignore"):
            load(folder)
        file.write_bytes(whole)
    assert load(folder)[0] == STACK
