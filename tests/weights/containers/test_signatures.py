"""What kind of file a file is."""

import gzip
import io
import itertools
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from gru_jax.weights.containers.signatures import kind_of


def zipped(*names):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return data.getvalue()


def tarred():
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return data.getvalue()


def torched(**options):
    data = io.BytesIO()
    torch.save({"a": torch.ones(3)}, data, **options)
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89HDF\r\n\x1a\n", "keras"),
        (zipped("metadata.json", "config.json", "model.weights.h5"), "keras"),
        (torched(), "torch"),
        (torched(_use_new_zipfile_serialization=False), "torch"),
        (zipped("a.npy", "b.npy"), "npz"),
        (zipped("folder/model.pt"), "zip"),
        (zipped(), "zip"),
        (tarred(), "tar"),
        (gzip.compress(tarred()), "tar.gz"),
        (gzip.compress(b"x"), "gz"),
        (b"\x02\0\0\0\0\0\0\0{}", "safetensors"),
        (b"\x08\x08\x12\x07pytorch", "onnx"),
        (b"\x82\xa1a\x01\xa1b\x02", "msgpack"),
        (b"\xde\x00\x10", "msgpack"),
        (b"The quick brown fox", None),
        (b"\0" * 600, None),
        (b"\x80", None),
    ],
    ids=itertools.count(),
)
@pytest.mark.parametrize("suffix", ["", ".pt", ".npz", ".tar", ".h5", ".bin"])
def test_content_tells_the_kind_whatever_the_suffix(tmp_path, data, kind, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(data)
    assert kind_of(path) == kind


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.onnx", b"\x3a\x00", "onnx"),
        ("a.json", b' {"weight_map": {}}', "index"),
        ("a.safetensors", b"\xff" * 20, "safetensors"),
        ("a.msgpack", b"\x01", "msgpack"),
    ],
)
def test_the_suffix_tells_where_no_magic_bytes_do(tmp_path, name, data, kind):
    (tmp_path / name).write_bytes(data)
    assert kind_of(tmp_path / name) == kind


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a", b"", "the file is empty"),
        ("a.gguf", b"GGUF\x03\0\0\0", "a GGUF file of llama.cpp"),
        ("a.tflite", b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
        ("a.ort", b"\x1c\0\0\0ORTM", "an ORT model of onnxruntime"),
        ("a.mat", b"MATLAB 5.0 MAT-file", "a MATLAB file"),
        ("a.npy", b"\x93NUMPY\x01\0", "a single NumPy array"),
        ("a.pt", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer in place of the file itself"),
        ("a.pt", b"<!DOCTYPE html>", "a web page, not the file itself"),
        ("a.tar.bz2", b"BZh91AY", "a bzip2 archive, which gru_jax does not unpack. Unpack it first"),
        ("a.tar.xz", b"\xfd7zXZ\0", "an xz archive"),
        ("a.pt", pickle.dumps({"a": np.ones(3)}), "a Python pickle, which runs code when it is read"),
        ("a.pkl", b"(dp0\n", "a Python pickle"),
        ("saved_model.pb", b"\x08\x01\x12", "a TensorFlow SavedModel"),
        ("model.ckpt.index", b"\0\0\x01", "a TensorFlow SavedModel or checkpoint"),
        ("a.pt", b"PK\x03\x04 and no more", "a damaged or truncated zip archive"),
        ("a.gz", b"\x1f\x8b\x08 and no more", "a damaged or truncated gzip file"),
    ],
)
def test_what_cannot_be_opened_is_refused_by_its_name(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        kind_of(tmp_path / name)


def test_a_zip_whose_directory_lies_before_the_file_is_refused(tmp_path):
    data = bytearray(zipped("a.npy"))
    data[-10:-6] = b"\xff\xff\xff\x7f"  # the size of the directory
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match="a damaged or truncated zip archive"):
        kind_of(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["saved_model.pb", "model.ckpt.data-00000-of-00001"])
def test_a_folder_of_tensorflow_is_refused_by_its_name(tmp_path, name):
    assert kind_of(tmp_path) is None
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match="a TensorFlow SavedModel or checkpoint. Write the model as .keras"):
        kind_of(tmp_path)
