"""Files of every format with one byte changed, or cut short: refused, or still the same GRU."""

import contextlib
import dataclasses
import functools
import math
import os
import warnings

import jax
import numpy as np
import onnx
import pytest
import torch
from conftest import random_params
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gru_jax
from gru_jax import GRUConfig
from gru_jax.weights.checkpoint import open_checkpoint
from gru_jax.weights.keras import to_keras
from gru_jax.weights.onnx import to_onnx
from gru_jax.weights.writers import write

os.environ.setdefault("KERAS_BACKEND", "jax")
import keras

CONFIG = GRUConfig(2, 3, num_layers=2)
PAPER = dataclasses.replace(CONFIG, reset_after=False)
REFUSALS = (ValueError, TypeError, OSError, ImportError)


def to_state_dict(params):
    return {name: torch.from_numpy(array) for name, array in gru_jax.to_torch(params).items()}


def write_scripted(path, params):
    module = torch.nn.GRU(2, 3, 2)
    module.load_state_dict(to_state_dict(params))
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(module), path)


def write_keras_h5(path, params):
    model = keras.Sequential([keras.layers.Input((None, 2)), keras.layers.GRU(3)])
    model.set_weights(to_keras(GRUConfig(2, 3), {"l0": params["l0"]})["l0"])
    with warnings.catch_warnings(action="ignore"):
        model.save(path)


WRITERS = {
    "zip.pt": lambda path, params: torch.save({"model": to_state_dict(params), "epoch": 1}, path),
    "legacy.pt": lambda path, params: torch.save(to_state_dict(params), path, _use_new_zipfile_serialization=False),
    "script.pt": write_scripted,
    "npz.npz": lambda path, params: np.savez(path, **gru_jax.to_torch(params)),
    "ours.safetensors": lambda path, params: write("safetensors", path, PAPER, params),
    "ours.msgpack": lambda path, params: write("msgpack", path, PAPER, params),
    "linen.msgpack": lambda path, params: write("flax", path, CONFIG, params),
    "model.onnx": lambda path, params: onnx.save(to_onnx(CONFIG, params), path),
    "model.keras": lambda path, params: write("keras", path, CONFIG, params),
    "model.h5": write_keras_h5,
}


def read_all(path):
    """Every GRU of a file: its config, without what no number depends on, and its parameters."""
    with warnings.catch_warnings(action="ignore"):
        contents = open_checkpoint(path)
        return {
            prefix: (dataclasses.replace(found.config, dropout=0.0, batch_first=False), found.read())
            for prefix, found in contents.grus.items()
        }


@functools.cache
def original(name, folder):
    path = folder / name
    WRITERS[name](path, random_params(CONFIG))
    return path.read_bytes(), read_all(path)


def differing(mine, theirs):
    """How many numbers differ between two trees; a NaN is equal to itself."""
    if jax.tree.map(np.shape, mine) != jax.tree.map(np.shape, theirs):
        return math.inf
    pairs = zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True)
    return sum(int((~((a == b) | (np.isnan(a) & np.isnan(b)))).sum()) for a, b in pairs)


QUICK = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", WRITERS)
@QUICK
@given(data=st.data())
def test_one_changed_byte_is_refused_or_changes_one_number_at_most(name, data, tmp_path_factory):
    check_one_changed_byte(name, data, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
@settings(QUICK, max_examples=1000)
@given(data=st.data())
def test_one_changed_byte_at_many_more_places_is_refused_or_changes_one_number_at_most(name, data, tmp_path_factory):
    check_one_changed_byte(name, data, tmp_path_factory.getbasetemp())


def check_one_changed_byte(name, data, folder):
    whole, expected = original(name, folder)
    assert expected
    at = data.draw(st.integers(0, len(whole) - 1), label="at")
    byte = data.draw(st.integers(0, 255), label="byte")
    cut = data.draw(st.booleans() if byte % 8 == 0 else st.just(False), label="cut")
    path = folder / f"mutated-{name}"
    path.write_bytes(whole[:at] if cut else whole[:at] + bytes([byte]) + whole[at + 1 :])
    found = {}
    with contextlib.suppress(*REFUSALS):
        found = read_all(path)
    if name == "ours.msgpack" and at == whole.index(b"reset_after") + len("reset_after") and byte == 0xC3:
        # The one number is that boolean: its byte, 0xC2 for False, became the one for True. No other may differ.
        found = {where: (dataclasses.replace(was, reset_after=False), params) for where, (was, params) in found.items()}
    cells = [cell for _, were in expected.values() for cell in were.values()]
    for config, params in found.values():
        # In ONNX an attribute is one byte, and the layers are nodes, of which one alone may be refused.
        assert name == "model.onnx" or config in [was for was, _ in expected.values()]
        assert sum(min(differing(cell, was) for was in cells) for cell in params.values()) <= 1
