"""gru_jax's own files: what is written comes back, and a config is never lost."""

import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.torch
from conftest import random_params
from flax import serialization

from gru_jax import GRUConfig, load, save
from gru_jax.weights.saving import save_msgpack, save_orbax

CONFIG = GRUConfig(5, 4, num_layers=2, bidirectional=True, batch_first=True, dropout=0.25, reset_after=False)


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
    params = random_params(config, dtype)
    save(tmp_path / "gru", config, params)
    loaded, back = load(tmp_path / "gru")
    assert loaded == config
    chex.assert_trees_all_equal(back, params)
    chex.assert_trees_all_equal_dtypes(back, params)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("save", [save_msgpack, save_orbax])
def test_the_whole_config_and_the_dtypes_come_back(tmp_path, save, dtype):
    for number, config in enumerate((CONFIG, GRUConfig(1, 1), GRUConfig(5, 4, bias=False, batch_first=True))):
        params = random_params(config, dtype)
        save(tmp_path / f"gru{number}", config, params)
        loaded, back = load(tmp_path / f"gru{number}")
        assert loaded == config
        chex.assert_trees_all_equal(back, params)
        chex.assert_trees_all_equal_dtypes(back, params)


def test_other_programs_read_the_saved_file_by_its_names(tmp_path):
    save(str(tmp_path / "gru.safetensors"), CONFIG, random_params(CONFIG))
    held = safetensors.torch.load_file(tmp_path / "gru.safetensors")
    assert held["l1_reverse.kernel_ih"].shape == (8, 12)
    np.testing.assert_array_equal(held["l0.bias_hh"], random_params(CONFIG)["l0"]["bias_hh"])


def test_flax_and_orbax_read_what_is_saved_without_this_package(tmp_path):
    params = random_params(CONFIG)
    save_msgpack(tmp_path / "gru.msgpack", CONFIG, params)
    chex.assert_trees_all_equal(
        serialization.msgpack_restore((tmp_path / "gru.msgpack").read_bytes())["params"], jax.tree.map(np.array, params)
    )
    save_orbax(tmp_path / "gru", CONFIG, params)
    with ocp.StandardCheckpointer() as checkpointer:
        chex.assert_trees_all_equal(checkpointer.restore(tmp_path / "gru", params), params)


def test_a_file_that_exists_is_replaced_and_one_that_fails_leaves_it_whole(tmp_path, monkeypatch):
    path = tmp_path / "gru.safetensors"
    for size in (4, 6):
        config = GRUConfig(5, size)
        save(path, config, random_params(config))
        assert load(path)[0] == config

    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, CONFIG, random_params(CONFIG))
    monkeypatch.undo()
    assert load(path)[0] == config
    assert os.listdir(tmp_path) == ["gru.safetensors"]


def test_save_refuses_what_is_no_gru_of_the_config(tmp_path):
    path = tmp_path / "gru.safetensors"
    with pytest.raises(TypeError, match="save: expected a GRUConfig, got dict"):
        save(path, {}, random_params(CONFIG))
    with pytest.raises(TypeError, match="save: expected params to be a dict of arrays, got list"):
        save(path, CONFIG, [])
    with pytest.raises(ValueError, match=r"(?s)save: .*missing: l1/kernel_ih \[8, 12\]"):
        save(path, CONFIG, random_params(GRUConfig(5, 4, bidirectional=True)))
    with pytest.raises(TypeError, match="save: safetensors can't hold these dtypes: float8_e4m3b11fnuz"):
        save(path, GRUConfig(5, 4), random_params(GRUConfig(5, 4), jnp.float8_e4m3b11fnuz))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("save", [save_msgpack, save_orbax])
def test_only_a_gru_of_the_config_is_saved(tmp_path, save):
    with pytest.raises(ValueError, match=rf"(?s){save.__name__}: .*missing: l1/kernel_ih"):
        save(tmp_path / "gru", CONFIG, random_params(GRUConfig(5, 4, bidirectional=True)))
    with pytest.raises(TypeError, match=f"{save.__name__}: expected a GRUConfig, got NoneType"):
        save(tmp_path / "gru", None, random_params(CONFIG))
    assert not (tmp_path / "gru").exists()


def test_a_file_that_is_in_the_way_of_an_orbax_folder_is_left_alone(tmp_path):
    (tmp_path / "gru").write_text("mine")
    with pytest.raises(FileExistsError, match="gru: exists; Orbax writes a new folder"):
        save_orbax(tmp_path / "gru", CONFIG, random_params(CONFIG))
    assert (tmp_path / "gru").read_text() == "mine"


def test_a_config_under_another_name_is_not_lost_in_silence(tmp_path):
    save(tmp_path / "gru", CONFIG, random_params(CONFIG))
    whole = (tmp_path / "gru").read_bytes()
    (tmp_path / "gru").write_bytes(whole.replace(b'"gru_jax"', b'"gru-jax"'))
    with pytest.raises(ValueError, match=r"the config of a GRU stands at 'gru-jax', where 'gru_jax' is its place"):
        load(tmp_path / "gru")


def test_a_config_is_never_lost_in_silence(tmp_path):
    config, params = vars(CONFIG), jax.tree.map(np.asarray, random_params(CONFIG))
    for tree, message in (
        ({"konfig": config, "params": params}, "the config of a GRU stands at 'konfig', where 'config' is its place"),
        ({"config": config, "parans": params}, "expected params beside the config of a GRU, and no more"),
        ({"config": config, "params": {"L0": params["l0"]}}, "its metadata says GRUConfig.*but its tensors are not"),
    ):
        (tmp_path / "a.msgpack").write_bytes(serialization.msgpack_serialize(tree))
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "a.msgpack")


def test_an_orbax_folder_does_not_lose_its_config_in_silence(tmp_path):
    save_orbax(tmp_path / "a", CONFIG, random_params(CONFIG))
    metadata = tmp_path / "a" / "_CHECKPOINT_METADATA"
    metadata.write_bytes(metadata.read_bytes().replace(b'"gru_jax"', b'"gru-jax"'))
    with pytest.raises(ValueError, match="the config of a GRU stands at 'gru-jax', where 'gru_jax' is its place"):
        load(tmp_path / "a")
