"""safetensors: reading lazily, several files beside an index, and the file of `save`."""

import json
import os
import resource
import struct

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from gru_jax import GRUConfig, from_torch, init_params
from gru_jax.weights import safetensors as ours
from gru_jax.weights.checkpoint import load, open_checkpoint
from gru_jax.weights.containers.safetensors import open_safetensors, save

CONFIG = GRUConfig(5, 4, num_layers=2, bidirectional=True, batch_first=True, dropout=0.25)


def params_of(config, dtype=jnp.float32):
    return init_params(jax.random.key(0), config, dtype)


def header(tensors, data=b""):
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "float32"),
        (torch.float64, "float64"),
        (torch.float16, "float16"),
        (torch.bfloat16, "bfloat16"),
        (torch.int64, "int64"),
        (torch.uint8, "uint8"),
        (torch.bool, "bool"),
    ],
)
def test_every_dtype_is_read_as_it_is(tmp_path, dtype, name):
    tensor = torch.tensor([[0.0, 1.0, 3.0], [2.0, 5.0, 100.0]]).to(dtype)
    safetensors.torch.save_file({"a": tensor}, tmp_path / "a.safetensors", {"by": "torch"})
    tensors, metadata = open_safetensors(tmp_path / "a.safetensors")
    assert tensors["a"][:2] == ((2, 3), name)
    array = tensors["a"].read()
    assert array.dtype.name == name
    np.testing.assert_array_equal(array.astype(np.float64), tensor.double().numpy())
    assert metadata == {"by": "torch"}


def test_a_dtype_that_numpy_lacks_is_refused_when_it_is_read(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(3).to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    tensor = open_safetensors(tmp_path / "a.safetensors")[0]["a"]
    with pytest.raises(TypeError, match="a.safetensors: a is of dtype F8_E4M3, "):
        tensor.read()


@pytest.mark.parametrize(
    "data",
    [
        b"\x10",
        b"\x02\0\0\0\0\0\0\0{",
        b"\x02\0\0\0\0\0\0\0{]",
        struct.pack("<Q", 10**9) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        header({"a": {"dtype": "F32", "shape": [250_000_000], "data_offsets": [0, 1_000_000_000]}}),
        header({"a": {"dtype": "F32", "shape": [250_000_000], "data_offsets": [0, 4]}}, b"\0" * 4),
        header({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, b"\0" * 4),
        header({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 9),
    ],
)
def test_a_file_that_claims_what_it_does_not_hold_is_refused(tmp_path, data):
    (tmp_path / "a.safetensors").write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="a.safetensors: damaged or truncated, no valid safetensors file: "):
        open_checkpoint(tmp_path / "a.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    save(tmp_path / "gru.safetensors", CONFIG, params_of(CONFIG))
    whole = (tmp_path / "gru.safetensors").read_bytes()
    for length in range(1, len(whole), 97):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged or truncated"):
            load(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        GRUConfig(5, 4),
        GRUConfig(5, 4, bias=False),
        GRUConfig(5, 4, 3, reset_after=False),
        GRUConfig(1, 1, bidirectional=True, batch_first=True, reset_after=False),
    ],
    ids=["all", "least", "no bias", "reset before", "smallest"],
)
def test_what_save_writes_load_gives_back(tmp_path, config, dtype):
    params = params_of(config, dtype)
    save(tmp_path / "gru", config, params)
    loaded, back = load(tmp_path / "gru")
    assert loaded == config
    chex.assert_trees_all_equal(back, params)
    chex.assert_trees_all_equal_dtypes(back, params)


def test_a_config_under_another_name_is_not_lost_in_silence(tmp_path):
    save(tmp_path / "gru", CONFIG, params_of(CONFIG))
    whole = (tmp_path / "gru").read_bytes()
    (tmp_path / "gru").write_bytes(whole.replace(b'"gru_jax"', b'"gru-jax"'))
    with pytest.raises(ValueError, match=r"the config of a GRU stands at 'gru-jax', where 'gru_jax' is its place"):
        load(tmp_path / "gru")


def test_metadata_of_other_programs_is_no_obstacle(tmp_path):
    tensors = {"rnn.weight_ih": np.ones((12, 5), np.float32), "rnn.weight_hh": np.ones((12, 4), np.float32)}
    for note in ("reset_after, tuned", '["reset_after"]', '{"reset_after": true}', "[" * 10_000):
        safetensors.numpy.save_file(tensors, tmp_path / "a", {"note": note})
        assert load(tmp_path / "a")[0] == GRUConfig(5, 4, bias=False)


def test_an_index_does_not_drop_the_config_of_a_saved_file(tmp_path):
    save(tmp_path / "gru.safetensors", CONFIG, params_of(CONFIG))
    names = dict.fromkeys(safetensors.numpy.load_file(tmp_path / "gru.safetensors"), "gru.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ValueError, match=r"gru\.safetensors: a file of save, with a config of its own"):
        load(tmp_path / "model.safetensors.index.json")


def test_other_programs_read_the_saved_file_by_its_names(tmp_path):
    save(str(tmp_path / "gru.safetensors"), CONFIG, params_of(CONFIG))
    held = safetensors.torch.load_file(tmp_path / "gru.safetensors")
    assert held["l1_reverse.kernel_ih"].shape == (8, 12)
    np.testing.assert_array_equal(held["l0.bias_hh"], params_of(CONFIG)["l0"]["bias_hh"])


def test_a_file_that_exists_is_replaced_and_one_that_fails_leaves_it_whole(tmp_path, monkeypatch):
    path = tmp_path / "gru.safetensors"
    for size in (4, 6):
        config = GRUConfig(5, size)
        save(path, config, params_of(config))
        assert load(path)[0] == config

    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(ours.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, CONFIG, params_of(CONFIG))
    monkeypatch.undo()
    assert load(path)[0] == config
    assert os.listdir(tmp_path) == ["gru.safetensors"]


def test_save_refuses_what_is_no_gru_of_the_config(tmp_path):
    path = tmp_path / "gru.safetensors"
    with pytest.raises(TypeError, match="save: expected a GRUConfig, got dict"):
        save(path, {}, params_of(CONFIG))
    with pytest.raises(TypeError, match="save: expected params to be a dict of arrays, got list"):
        save(path, CONFIG, [])
    with pytest.raises(ValueError, match=r"(?s)save: .*missing: l1/kernel_ih \[8, 12\]"):
        save(path, CONFIG, params_of(GRUConfig(5, 4, bidirectional=True)))
    with pytest.raises(TypeError, match="save: safetensors can't hold these dtypes: float8_e4m3b11fnuz"):
        save(path, GRUConfig(5, 4), params_of(GRUConfig(5, 4), jnp.float8_e4m3b11fnuz))
    assert not os.listdir(tmp_path)


def sharded(folder, **changes):
    """A GRU and an embedding in two files beside an index."""
    module = torch.nn.GRU(5, 4)
    state = {f"rnn.{name}": tensor for name, tensor in module.state_dict().items()} | {"embed": torch.ones(7, 5)}
    shards = {"a.safetensors": list(state)[:2], "b.safetensors": list(state)[2:]}
    for shard, names in shards.items():
        safetensors.torch.save_file({name: state[name] for name in names}, folder / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names} | changes
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index, module


def test_a_gru_in_several_files_is_found_through_their_index(tmp_path):
    index, module = sharded(tmp_path)
    contents = open_checkpoint(index)
    assert contents.format == "an index of 2 files"
    assert contents.others == {"embed": "float32 [7, 5]"}
    for path in (index, tmp_path):
        config, params = load(path)
        assert config == GRUConfig(5, 4)
        chex.assert_trees_all_equal(params, from_torch(module)[1])


def test_an_index_of_pytorch_files_is_opened_too(tmp_path):
    state = torch.nn.GRU(5, 4).state_dict()
    weight_map = {}
    for number, names in enumerate((list(state)[:1], list(state)[1:])):
        torch.save({name: state[name] for name in names}, tmp_path / f"pytorch_model-{number}.bin")
        weight_map |= dict.fromkeys(names, f"pytorch_model-{number}.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    chex.assert_trees_all_equal(load(tmp_path)[1], from_torch(state)[1])


@pytest.mark.parametrize(
    "shard", ["../b.safetensors", "/etc/passwd", "x/../b.safetensors", "..", "", "x\\b", "a\0", "./a.safetensors", 3]
)
def test_an_index_cannot_name_a_file_elsewhere(tmp_path, shard):
    index, _ = sharded(tmp_path, embed=shard)
    with pytest.raises(ValueError, match="expected the names of files beside it, got"):
        open_checkpoint(index)


def test_a_link_out_of_the_folder_is_refused_and_one_within_a_cache_is_not(tmp_path):
    snapshot, blobs = tmp_path / "snapshots", tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    sharded(blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../blobs/{file.name}")
    assert list(open_checkpoint(snapshot).grus) == ["rnn."]

    index, _ = sharded(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    (tmp_path / "b.safetensors").symlink_to("blobs/b.safetensors")
    with pytest.raises(ValueError, match=r"expected the names of files beside it, got \['b.safetensors'\]"):
        open_checkpoint(index)
    (tmp_path / "b.safetensors").unlink()
    (tmp_path / "b.safetensors").symlink_to("b.safetensors")
    with pytest.raises(ValueError, match="expected the names of files beside it"):
        open_checkpoint(index)


def test_missing_files_of_an_index_are_named(tmp_path):
    index, _ = sharded(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="of its 2 files these are missing beside it: b.safetensors"):
        open_checkpoint(index)


def test_an_index_that_its_files_contradict_is_refused(tmp_path):
    index, _ = sharded(tmp_path, embed="a.safetensors")
    with pytest.raises(ValueError, match="its files do not hold what it says: embed is not in a.safetensors"):
        open_checkpoint(index)
    index, _ = sharded(tmp_path)
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes())
    index.write_text(json.dumps({"weight_map": {"embed": "a.safetensors", "rnn.bias_ih_l0": "b.safetensors"}}))
    with pytest.raises(ValueError, match="a tensor is in two of its files"):
        open_checkpoint(index)
    (tmp_path / "a.safetensors").write_bytes(b"text")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.txt")
    index.write_text(json.dumps({"weight_map": {"embed": "a.txt"}}))
    with pytest.raises(ValueError, match="a.txt: expected a safetensors or PyTorch file, as the index beside it says"):
        open_checkpoint(index)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged, no valid JSON"),
        ('{"a": 1}', "expected the index of several files of weights"),
        ('{"weight_map": []}', "expected the index of several files of weights"),
        ('{"weight_map": {}}', "expected the names of files beside it, got none"),
        ('{"weight_map": ' + '{"a": ' * 100_000, "damaged, no valid JSON"),
    ],
)
def test_what_is_no_index_is_refused(tmp_path, text, message):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path / "model.safetensors.index.json")
