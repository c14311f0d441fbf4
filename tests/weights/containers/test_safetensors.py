"""safetensors: tensors that are read one at a time, and damaged files."""

import json
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from conftest import random_params

from gru_jax import GRUConfig, save
from gru_jax.weights.checkpoint import load, open_checkpoint
from gru_jax.weights.containers.safetensors import open_safetensors, open_with_metadata


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
    tensors, metadata = open_with_metadata(tmp_path / "a.safetensors")
    assert tensors["a"][:2] == ((2, 3), name)
    array = tensors["a"].read()
    assert array.dtype.name == name
    np.testing.assert_array_equal(array.astype(np.float64), tensor.double().numpy())
    assert metadata == {"by": "torch"}


def test_a_dtype_that_numpy_lacks_is_refused_when_it_is_read(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(3).to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    tensor = open_safetensors(tmp_path / "a.safetensors").by_name["a"]
    with pytest.raises(TypeError, match="a is of dtype F8_E4M3, "):
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
    tracemalloc.start()
    with pytest.raises(ValueError, match="damaged or truncated, no valid safetensors file: "):
        open_checkpoint(tmp_path / "a.safetensors")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000_000, "bytes, of which it claims up to a billion"


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    save(tmp_path / "gru.safetensors", GRUConfig(5, 4), random_params(GRUConfig(5, 4)))
    whole = (tmp_path / "gru.safetensors").read_bytes()
    for length in range(1, len(whole), 97):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged or truncated"):
            load(tmp_path / "cut.safetensors")


def test_metadata_of_other_programs_is_no_obstacle(tmp_path):
    tensors = {"rnn.weight_ih": np.ones((12, 5), np.float32), "rnn.weight_hh": np.ones((12, 4), np.float32)}
    for note in ("reset_after, tuned", '["reset_after"]', '{"reset_after": true}', "[" * 10_000):
        safetensors.numpy.save_file(tensors, tmp_path / "a", {"note": note})
        assert load(tmp_path / "a")[0] == GRUConfig(5, 4, bias=False)
