"""to_keras and save_keras, read back by live Keras."""

import os

import chex
import numpy as np
import pytest
from conftest import random_params

from gru_jax import GRUConfig, gru
from gru_jax.weights.keras.exporter import save_keras, to_keras
from gru_jax.weights.keras.importer import from_keras

os.environ.setdefault("KERAS_BACKEND", "jax")
import keras

FEATURES, UNITS = 3, 4


@pytest.mark.parametrize(
    ("reset_after", "bias", "bidirectional"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, True)],  # all pairs
)
def test_saved_models_load_in_keras_and_compute_the_same(tmp_path, reset_after, bias, bidirectional):
    config = GRUConfig(FEATURES, UNITS, 2, bias, bidirectional=bidirectional, reset_after=reset_after, dropout=0.25)
    params = random_params(config)
    path = tmp_path / "gru.keras"
    path.write_text("the old file")
    save_keras(path, config, params)
    assert [file.name for file in tmp_path.iterdir()] == ["gru.keras"]
    model = keras.saving.load_model(path, safe_mode=True)
    x = np.random.default_rng(0).standard_normal((6, 2, FEATURES), np.float32)
    output, _ = gru(params, x, reset_after=reset_after)
    np.testing.assert_allclose(model(x.swapaxes(0, 1)), np.swapaxes(output, 0, 1), rtol=0, atol=1e-6)
    for name, weights in to_keras(config, params).items():
        for mine, theirs in zip(weights, model.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    back = from_keras(path, "l1")[1]
    expected = {"l0": params["l1"]} | ({"l0_reverse": params["l1_reverse"]} if bidirectional else {})
    if bias and not reset_after:  # the two biases are one
        back, expected = ({name: cell["kernel_hh"] for name, cell in cells.items()} for cells in (back, expected))
    chex.assert_trees_all_equal(back, expected)


def test_without_reset_after_the_two_biases_become_their_sum_rounded_once():
    config = GRUConfig(FEATURES, UNITS, reset_after=False)
    params = random_params(config)
    exact = sum(np.asarray(params["l0"][key], np.float64) for key in ("bias_ih", "bias_hh"))
    (_, _, bias) = to_keras(config, params)["l0"]
    assert bias.dtype == np.float32
    r, z, n = np.split(exact.astype(np.float32), 3)
    np.testing.assert_array_equal(bias, np.concatenate([z, r, n]))


def test_a_failure_while_saving_leaves_the_old_file_whole(tmp_path, monkeypatch):
    def fail(self, path):
        path.write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setattr(keras.Sequential, "save", fail)
    path, config = tmp_path / "gru.keras", GRUConfig(2, 2)
    path.write_text("the old file")
    with pytest.raises(OSError, match="disk is full"):
        save_keras(path, config, random_params(config))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("gru.keras", "the old file")]


def test_what_cannot_be_written_is_refused(tmp_path):
    config = GRUConfig(2, 2)
    params = random_params(config)
    with pytest.raises(ValueError, match="ends in .keras"):
        save_keras(tmp_path / "gru.h5", config, params)
    with pytest.raises(ValueError, match="(?s)to_keras: .*missing: l1/kernel_ih"):
        to_keras(GRUConfig(2, 2, num_layers=2), params)
    with pytest.raises(TypeError, match="to_keras: expected params"):
        to_keras(config, [1])
