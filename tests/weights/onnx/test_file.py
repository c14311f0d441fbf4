"""What a file claims of its tensors is checked before it is believed, and none is read outside the model's folder."""

import os
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_models import gru_weights, one_gru

from gru_jax.weights.onnx.importer import from_onnx, open_onnx


def external(folder, **changes):
    """A model in `folder` whose R lies beside it; `changes` are made to what the file says of it."""
    model = one_gru()
    onnx.save(model, folder / "gru.onnx", save_as_external_data=True, location="beside.bin", size_threshold=100)
    model = onnx.load(folder / "gru.onnx", load_external_data=False)
    (tensor,) = (t for t in model.graph.initializer if t.name == "R")
    entries = {entry.key: entry.value for entry in tensor.external_data} | changes
    del tensor.external_data[:]
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    (folder / "gru.onnx").write_bytes(model.SerializeToString())
    return folder / "gru.onnx"


def refusal(path):
    contents = open_onnx(path)
    assert not contents.grus
    return contents.refused["gru"]


def test_weights_beside_the_file_are_read_and_run(tmp_path):
    (found,) = open_onnx(external(tmp_path)).grus.values()
    kernel = np.asarray(found.read()["l0"]["kernel_hh"])
    z, r, n = np.split(gru_weights()["R"][0].T, 3, axis=1)
    np.testing.assert_array_equal(kernel, np.concatenate([r, z, n], axis=1))
    zeros = np.zeros((1, 1, 4), np.float32)
    assert found.original("float32", np.ones((2, 1, 5), np.float32), zeros, zeros, zeros)["output"].shape == (2, 1, 4)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../beside.bin", "a/../../b", "C:\\beside.bin", "..\\b", "", "a\0b"]
)
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    assert "which is not a path within the model's folder" in refusal(external(tmp_path, location=location))


def test_external_data_behind_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    path = external(tmp_path / "model")
    os.rename(tmp_path / "model/beside.bin", tmp_path / "outside.bin")
    (tmp_path / "model/beside.bin").symlink_to(tmp_path / "outside.bin")
    assert "a link out of the model's folder" in refusal(path)


def test_missing_external_data_is_refused(tmp_path):
    path = external(tmp_path)
    (tmp_path / "beside.bin").unlink()
    assert "'beside.bin', which is missing" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": "999999999"}, "of [0-9]+ bytes, at 999999999"),
        ({"length": "999999999"}, "999999999 long: its shape needs 192"),
        ({"length": "8"}, "8 long: its shape needs 192"),
        ({"length": None, "offset": "8"}, "all long: its shape needs 192"),
        ({"offset": "-1"}, "at an offset or of a length that is no number"),
        ({"length": "1e3"}, "at an offset or of a length that is no number"),
        ({"length": "9" * 30}, "at an offset or of a length that is no number"),
    ],
)
def test_an_external_size_that_is_not_there_is_refused(tmp_path, changes, message):
    assert re.search(message, refusal(external(tmp_path, **changes)))


def test_a_model_without_its_path_has_no_external_data(tmp_path):
    with pytest.raises(ValueError, match="beside the model's: pass the path of the model"):
        from_onnx(onnx.load(external(tmp_path), load_external_data=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.ClearField("raw_data"), "'R' can't be read"),
        (lambda t: setattr(t, "raw_data", t.raw_data[:-4]), r"'R' of shape \[1, 12, 4\] needs 192 bytes, has 188"),
        (lambda t: t.dims.__setitem__(0, 2**40), "needs 211106232532992 bytes, has 192"),
        (lambda t: t.dims.__setitem__(0, -1), "has a negative size"),
        (lambda t: setattr(t, "data_type", TensorProto.STRING), "is neither of a floating dtype nor"),
        (lambda t: setattr(t, "data_type", 99), "is neither of a floating dtype nor"),
        (lambda t: t.segment.MergeFrom(TensorProto.Segment(begin=0, end=1)), "is a segment of a tensor"),
        (lambda t: setattr(t, "name", "other"), "no 'R'"),
    ],
)
def test_a_tensor_that_is_not_what_it_claims_is_refused(change, message):
    model = one_gru()
    change(model.graph.initializer[1])
    with pytest.raises(ValueError, match=message):
        from_onnx(model)


@pytest.mark.parametrize("content", [b"", b"\0", bytes(range(256)), b"PK\x03\x04", b"\x08\x08"])
def test_what_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "gru.onnx").write_bytes(content)
    with pytest.raises(ValueError, match="expected an ONNX model; it "):
        open_onnx(tmp_path / "gru.onnx")


def test_a_truncated_model_is_refused(tmp_path):
    whole = one_gru().SerializeToString()
    for size in range(0, len(whole), 97):
        (tmp_path / "gru.onnx").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="expected an ONNX model; it "):
            open_onnx(tmp_path / "gru.onnx")


def test_a_file_larger_than_any_model_is_refused_unread(tmp_path):
    with (tmp_path / "gru.onnx").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(ValueError, match="it is larger than 2 GiB"):
        open_onnx(tmp_path / "gru.onnx")


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(TypeError, match="from_onnx: expected a path or an onnx.ModelProto, got list"):
        from_onnx([])
    with pytest.raises(FileNotFoundError):
        open_onnx(tmp_path / "missing.onnx")
    with pytest.raises(IsADirectoryError):
        open_onnx(tmp_path)
