"""A model in several files beside an index."""

import json

import chex
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from conftest import random_params

from gru_jax import GRUConfig, from_torch, save
from gru_jax.weights.checkpoint import load, open_checkpoint

CONFIG = GRUConfig(5, 4, batch_first=True)


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


def test_an_index_does_not_drop_the_config_of_a_saved_file(tmp_path):
    save(tmp_path / "gru.safetensors", CONFIG, random_params(CONFIG))
    names = dict.fromkeys(safetensors.numpy.load_file(tmp_path / "gru.safetensors"), "gru.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ValueError, match=r"gru\.safetensors: a file of save, with a config of its own"):
        load(tmp_path / "model.safetensors.index.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected the index of several files of weights"),
        ('{"a": 1}', "expected the index of several files of weights"),
        ('{"weight_map": []}', "expected the index of several files of weights"),
        ('{"weight_map": {}}', "expected the names of files beside it, got none"),
        ('{"weight_map": ' + '{"a": ' * 100_000, "expected the index of several files of weights"),
    ],
)
def test_what_is_no_index_is_refused(tmp_path, text, message):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path / "model.safetensors.index.json")
