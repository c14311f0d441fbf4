"""A GRU as a PyTorch state_dict, in memory and in a file."""

import os

import chex
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import random_params

from gru_jax import GRUConfig, from_torch, to_torch
from gru_jax.weights.containers.pytorch import save_torch
from gru_jax.weights.pytorch.exporter import save


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_a_saved_gru_is_loaded_strictly_by_pytorch_and_keeps_its_dtype(dtype, tmp_path):
    config = GRUConfig(5, 4, 2, bidirectional=True)
    params = random_params(config, dtype)
    save(tmp_path / "gru.pt", config, params)
    state_dict = torch.load(tmp_path / "gru.pt", weights_only=True)
    kind = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[jnp.dtype(dtype).name]
    module = torch.nn.GRU(5, 4, 2, bidirectional=True, dtype=kind)
    assert {a.dtype for a in state_dict.values()} == {kind}
    module.load_state_dict(state_dict, strict=True)
    chex.assert_trees_all_equal(from_torch(module)[1], params)
    assert os.listdir(tmp_path) == ["gru.pt"]


def test_what_cannot_be_saved_leaves_the_old_file_as_it_was(tmp_path):
    path = tmp_path / "gru.pt"
    path.write_bytes(b"old")
    config = GRUConfig(5, 4, reset_after=False)
    with pytest.raises(ValueError, match="torch.nn.GRU has reset_after=True alone"):
        save(path, config, random_params(config))
    with pytest.raises(ValueError, match="missing: l1/kernel_ih"):
        save(path, GRUConfig(5, 4, 2), random_params(GRUConfig(5, 4)))
    with pytest.raises(FileNotFoundError):
        save_torch(tmp_path / "none" / "gru.pt", {"a": np.ones(1)})
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["gru.pt"]


def test_to_torch_widens_bfloat16_which_numpy_lacks():
    params = random_params(GRUConfig(5, 4), jnp.bfloat16)
    state_dict = to_torch(params)
    assert {array.dtype for array in state_dict.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(state_dict["weight_hh_l0"], np.asarray(params["l0"]["kernel_hh"], np.float32).T)
