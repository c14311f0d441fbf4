"""Quantized parameters in files."""

import chex
import numpy as np
import pytest
from conftest import random_params

import gru_jax
from gru_jax import GRUConfig, quantized

CONFIG = GRUConfig(64, 128, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5)


def qparams_of(config, dtype):
    return quantized.quantize_dynamic(random_params(config), dtype)


@pytest.mark.parametrize(("dtype", "share"), [("int8", 0.26), ("float16", 0.51)])
def test_a_file_gives_back_every_bit_in_a_share_of_the_bytes(dtype, share, tmp_path):
    qparams = qparams_of(CONFIG, dtype)
    quantized.save(tmp_path / "small.safetensors", CONFIG, qparams)
    gru_jax.save(tmp_path / "whole.safetensors", CONFIG, random_params(CONFIG))
    config, again = quantized.load(tmp_path / "small.safetensors")
    assert config == CONFIG
    chex.assert_trees_all_equal(again, qparams)
    chex.assert_trees_all_equal_shapes_and_dtypes(again, qparams)
    small, whole = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("small", "whole"))
    assert small < share * whole


def test_a_float_file_and_a_quantized_one_are_not_taken_for_each_other(tmp_path):
    config = GRUConfig(2, 3)
    gru_jax.save(tmp_path / "float.safetensors", config, random_params(config))
    with pytest.raises(ValueError, match=r"expected a file of quantized\.save. Float parameters are loaded by gru_jax"):
        quantized.load(tmp_path / "float.safetensors")
    for dtype in ("int8", "float16"):
        quantized.save(tmp_path / f"{dtype}.safetensors", config, qparams_of(config, dtype))
        with pytest.raises(ValueError, match=r"quantized parameters, which quantized\.load loads"):
            gru_jax.load(tmp_path / f"{dtype}.safetensors")


def test_parameters_of_another_config_are_neither_written_nor_read(tmp_path):
    path, qparams = tmp_path / "a.safetensors", qparams_of(GRUConfig(2, 3), "int8")
    with pytest.raises(ValueError, match=r"quantized\.save: expected the parameters of GRUConfig\(input_size=2"):
        quantized.save(path, GRUConfig(2, 4), qparams)
    with pytest.raises(TypeError, match="expected a GRUConfig, got dict"):
        quantized.save(path, {}, qparams)
    with pytest.raises(TypeError, match="expected every kernel in int8"):
        quantized.save(path, GRUConfig(2, 3), random_params(GRUConfig(2, 3)))
    assert not path.exists()
    quantized.save(path, GRUConfig(2, 3), qparams)
    path.write_bytes(path.read_bytes().replace(rb"hidden_size\": 3", rb"hidden_size\": 4"))
    with pytest.raises(ValueError, match=r"a\.safetensors: damaged: quantized\.load: expected the parameters"):
        quantized.load(path)


def test_a_loaded_gru_computes_the_same(tmp_path):
    config = GRUConfig(5, 4)
    qparams = qparams_of(config, "int8")
    quantized.save(tmp_path / "a.safetensors", config, qparams)
    x = np.ones((3, 2, 5), np.float32)
    chex.assert_trees_all_equal(
        quantized.gru(quantized.load(tmp_path / "a.safetensors")[1], x), quantized.gru(qparams, x)
    )
