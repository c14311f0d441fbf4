"""The table of formats to write."""

import pytest
from conftest import random_params

from gru_jax import GRUConfig
from gru_jax.weights import writers


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.pt", "torch"), ("a.PTH", "torch"), ("a.onnx", "onnx"), ("a.keras", "keras"), ("a", "orbax")],
)
def test_the_suffix_names_the_format(name, form, tmp_path):
    assert writers.format_of(tmp_path / name) == form


def test_a_suffix_of_no_format_is_refused_and_the_known_ones_are_listed(tmp_path):
    with pytest.raises(ValueError, match=r"a\.txt: expected a suffix of \.safetensors, \.msgpack, \.pt.*--to"):
        writers.format_of(tmp_path / "a.txt")


def test_a_folder_is_replaced_by_the_new_one(tmp_path):
    config = GRUConfig(2, 3)
    for seed in range(2):
        writers.write("orbax", tmp_path / "made", config, random_params(config, seed=seed))
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
