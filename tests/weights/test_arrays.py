"""What all importers do with numbers: float64 is narrowed with a warning, and biases are added."""

import tarfile

import numpy as np
import onnx
import pytest
import torch
from onnx_models import graph_model, gru_node, gru_weights

from gru_jax import from_torch, load
from gru_jax.weights.arrays import check_dtypes, fold, fold_gates
from gru_jax.weights.found import Tensor
from gru_jax.weights.jax import from_equinox, from_flax, from_haiku
from gru_jax.weights.keras import from_keras, live
from gru_jax.weights.onnx import from_onnx

WEIGHT = 0.1  # of every array: a number that float32 can't hold


def full(*shape):
    return np.full(shape, WEIGHT)


def torch_module(folder):
    module = torch.nn.GRU(5, 4).double()
    module.load_state_dict({name: torch.full_like(a, WEIGHT) for name, a in module.state_dict().items()})
    return module


def keras_layer(folder):
    keras = live.require_keras()
    with live.precision(keras, "float64"):
        layer = keras.layers.GRU(4, recurrent_initializer="zeros", dtype="float64")
        layer.build((None, None, 5))
        layer.set_weights([full(*array.shape) for array in layer.get_weights()])
    return layer


def onnx_model(folder):
    weights = {name: full(*array.shape) for name, array in gru_weights().items()}
    return graph_model([gru_node(h_0="")], weights, inputs=("x",))


def onnx_file(folder):
    onnx.save(onnx_model(folder), folder / "a.onnx")
    return folder / "a.onnx"


def npz(folder, **arrays):
    np.savez(folder / "a.npz", **(arrays or CELL))
    return folder / "a.npz"


def tar(folder):
    with tarfile.open(folder / "a.tar", "w") as archive:
        archive.add(npz(folder), "a.npz")
    return folder / "a.tar"


CELL = {"weight_ih": full(12, 5), "weight_hh": full(12, 4)}
OURS = {"l0.kernel_ih": full(5, 12), "l0.kernel_hh": full(4, 12)}
FLAX = {"dense_i": {"kernel": full(5, 12)}, "dense_h": {"kernel": full(4, 12)}}
HAIKU = {"w_i": full(5, 12), "w_h": full(4, 12), "b": full(12)}
READERS = {
    "a PyTorch module": (from_torch, "from_torch", torch_module),
    "an ONNX model": (from_onnx, "ONNX", onnx_model),
    "a Keras layer": (from_keras, "Keras", keras_layer),
    "a Flax cell": (from_flax, "flax.nnx.GRUCell", lambda folder: FLAX),
    "an Equinox cell": (from_equinox, "equinox.nn.GRUCell", lambda folder: CELL),
    "a Haiku cell": (from_haiku, "haiku.GRU", lambda folder: HAIKU),
    "a file": (load, "from_torch", npz),
    "a file in an archive": (load, "from_torch", tar),
    "a file of ONNX": (load, "ONNX", onnx_file),
    "a file of our own names": (load, "gru_jax", lambda folder: npz(folder, **OURS)),
}


@pytest.mark.parametrize("kind", READERS)
def test_float64_becomes_float32_with_one_warning_that_points_to_the_callers_line(kind, tmp_path):
    read, source, make = READERS[kind]
    made = make(tmp_path)
    with pytest.warns(UserWarning, match=rf"^{source}: l0/kernel_ih is float64 and becomes float32") as caught:
        _, params = read(made)
    assert [warning.filename for warning in caught] == [__file__]
    kernel = np.abs(params["l0"]["kernel_ih"])  # Haiku's z is 1 - z of ours, so the sign of its weights changes
    np.testing.assert_array_equal(kernel, np.full(kernel.shape, WEIGHT, np.float32), strict=True)


@pytest.mark.parametrize("kind", READERS)
def test_float64_is_kept_bit_for_bit_where_jax_has_it(kind, tmp_path, x64):
    read, _, make = READERS[kind]
    _, params = read(make(tmp_path))
    kernel = np.abs(params["l0"]["kernel_ih"])  # Haiku's z is 1 - z of ours, so the sign of its weights changes
    np.testing.assert_array_equal(kernel, full(*kernel.shape), strict=True)


def test_two_biases_are_added_in_float64_and_rounded_once():
    b_ih, b_hh = np.float16([2048, 0.1, 0.2]), np.float16([1, 0.3, 0.7])
    exact = b_ih.astype(np.float64) + b_hh.astype(np.float64)
    np.testing.assert_array_equal(fold("f", b_ih, b_hh), exact.astype(np.float16))
    np.testing.assert_array_equal(fold_gates("f", b_ih, b_hh), np.float16([*exact[:2], 0.2]))


def test_a_sum_of_biases_that_overflows_is_refused_and_an_infinity_that_was_there_is_not():
    with pytest.raises(ValueError, match=r"^f: bias_ih \+ bias_hh overflows float16. Cast the parameters"):
        fold("f", np.float16([4e4]), np.float16([4e4]))
    assert fold("f", np.float16([np.inf]), np.float16([1])) == np.inf


def test_tensors_of_two_dtypes_or_of_integers_are_refused_by_their_names():
    def held(**dtypes):
        return {name: Tensor((3,), dtype, lambda: None) for name, dtype in dtypes.items()}

    check_dtypes("X", held(a="bfloat16", b="bfloat16"))
    with pytest.raises(ValueError, match="X: expected one dtype in all of a GRU, got a float16, b float32. Cast them"):
        check_dtypes("X", held(a="float16", b="float32"))
    with pytest.raises(TypeError, match="X: expected b of dtype float16, bfloat16, float32, float64, got int8"):
        check_dtypes("X", held(a="float16", b="int8"))
