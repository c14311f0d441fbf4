"""Keras files that are damaged or out to do harm: an error of the right type, or the right answer."""

import io
import json
import os
import warnings
import zipfile

import h5py
import numpy as np
import pytest

from gru_jax.weights.keras.importer import from_keras, open_keras

os.environ.setdefault("KERAS_BACKEND", "jax")
import keras
from keras.layers import GRU, Bidirectional, Input

SUFFIXES = [".keras", ".h5"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Suffix -> the bytes of one small model with two GRUs, "one" and "two"."""
    folder = tmp_path_factory.mktemp("keras")
    two = Bidirectional(GRU(2), name="two")
    model = keras.Sequential([Input((None, 2)), GRU(2, return_sequences=True, name="one"), two])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for suffix in (*SUFFIXES, ".weights.h5"):
            (model.save_weights if "weights" in suffix else model.save)(folder / f"model{suffix}")
    return {suffix: (folder / f"model{suffix}").read_bytes() for suffix in (*SUFFIXES, ".weights.h5")}


@pytest.fixture
def file(tmp_path):
    """Writes bytes to a file and gives its path."""

    def write(content):
        (tmp_path / "model").write_bytes(content)
        return tmp_path / "model"

    return write


def with_hdf5(saved, suffix, change):
    """The bytes of a saved model after `change` of its open HDF5 file."""
    members = unzipped(saved[".keras"]) if suffix == ".keras" else {"model.weights.h5": saved[suffix]}
    buffer = io.BytesIO(members["model.weights.h5"])
    with h5py.File(buffer, "r+") as opened:
        change(opened)
    return zipped(members | {"model.weights.h5": buffer.getvalue()}) if suffix == ".keras" else buffer.getvalue()


def with_config(saved, change):
    """The bytes of the .keras file after `change` of its config; the first GRU's is handed over, too."""
    members = unzipped(saved[".keras"])
    config = json.loads(members["config.json"])
    change(config, config["config"]["layers"][1]["config"])
    return zipped(members | {"config.json": json.dumps(config).encode()})


def kernel(opened):
    """Where the first GRU's kernel lies."""
    if "layers" in opened:
        return "layers/gru/cell/vars/0"
    group = opened["model_weights/one"]
    return f"{group.name}/{group.attrs['weight_names'][0]}".lstrip("/")


def unzipped(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "The file is empty"),
        (b"\0" * 4096, "neither a zip archive"),
        (b"PK\x03\x04" + b"?" * 100, "The zip archive can't be read"),
        (b"\x89HDF\r\n\x1a\n" + b"?" * 4096, "The HDF5 file can't be read"),
        (zipped({"a": b"b"}), "holds no config.json"),
        (zipped({"config.json": b"{}"}), "holds no model.weights.h5"),
        (zipped({"config.json": b"{", "model.weights.h5": b""}), "The model's config is no JSON"),
        (zipped({"config.json": b"[" * 100_000, "model.weights.h5": b""}), "The model's config is no JSON"),
        (zipped({"config.json": b"{}", "model.weights.h5": b""}), "The HDF5 file can't be read"),
    ],
)
def test_what_is_no_keras_file_is_said_to_be_none(file, content, message):
    with pytest.raises(ValueError, match=message):
        open_keras(file(content))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_files_are_refused_wherever_they_end(file, saved, suffix):
    for size in np.linspace(1, len(saved[suffix]) - 1, 12).astype(int):
        with pytest.raises(ValueError, match="The file is|can't be read|claims"):
            open_keras(file(saved[suffix][:size]))


def test_a_file_that_is_not_there_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        from_keras(tmp_path / "missing.keras")


def test_weights_alone_are_refused_with_the_way_out(file, saved):
    contents = open_keras(file(saved[".weights.h5"]))
    assert not contents.grus
    assert len(contents.refused) == 3
    assert "tells neither its activations nor its direction" in contents.refused["layers/gru/cell/vars"]


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_a_zip_bomb_is_not_unpacked(file, saved, name):
    bomb = zipped(unzipped(saved[".keras"]) | {name: bytes(101_000_000)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 200_000
    with pytest.raises(ValueError, match=f"{name} .*101,000,000"):
        open_keras(file(bomb))


def replace(dataset):
    """Returns a change that puts something else in the place of the first kernel."""

    def change(opened, path):
        shape = opened[path].shape
        del opened[path]
        dataset(opened, path, shape)

    return change


def virtual(opened, path, shape):
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape)
    opened.create_virtual_dataset(path, layout)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            lambda f, path, shape: f.__setitem__(path, h5py.ExternalLink("other.h5", "/x")),
            "an? ExternalLink, which is not",
        ),
        (lambda f, path, shape: f.__setitem__(path, h5py.SoftLink("/")), "a SoftLink, which is not followed"),
        (
            lambda f, path, shape: f.create_dataset(path, shape, "f4", external=[("/etc/passwd", 0, 48)]),
            "in another file",
        ),
        (virtual, "in another file"),
        (lambda f, path, shape: f.create_dataset(path, shape, "f4"), "in 0 bytes: it is not read"),
        (lambda f, path, shape: f.create_dataset(path, shape, "i4"), "is int32 .*floating \\[I, 6\\]"),
        (lambda f, path, shape: f.create_dataset(path, (2, 9), "f4"), "is float32 \\[2, 9\\], where its config asks"),
        (lambda f, path, shape: f.create_group(path), "can't be read"),
        (
            lambda f, path, shape: f.create_dataset(path, (2**40, 6), "f4", chunks=(1024, 6), compression="gzip"),
            "claims to unpack to 26,388,279,066,624, as a zip bomb does",
        ),
        (lambda f, path, shape: None, "is missing|should hold 3 arrays"),
    ],
)
def test_datasets_that_are_not_what_they_claim_are_not_read(file, saved, suffix, dataset, message):
    content = with_hdf5(saved, suffix, lambda f: replace(dataset)(f, kernel(f)))
    contents = open_keras(file(content))
    assert list(contents.grus) == ["two"]
    with pytest.raises(ValueError, match=f"one: .*({message})"):
        from_keras(file(content), "one")


def test_groups_that_name_another_layer_are_refused(file, saved):
    def change(opened):
        opened["layers/gru/vars"].attrs["name"] = "other"

    contents = open_keras(file(with_hdf5(saved, ".keras", change)))
    assert "said to belong to the layer 'other', not to 'one'" in contents.refused["one"]


def test_attributes_that_claim_more_than_the_file_holds_are_refused(file, saved):
    def change(opened):
        opened.attrs["model_config"] = np.void(b"x")

    with pytest.raises(ValueError, match="the file holds void: it is damaged"):
        open_keras(file(with_hdf5(saved, ".h5", change)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model, gru: gru.update(units=True), "units True, which is no size"),
        (
            lambda model, gru: gru.update(units=3),
            "is float32 \\[2, 6\\], where its config asks for floating \\[I, 9\\]",
        ),
        (lambda model, gru: gru.pop("reset_after"), "reset_after is None, not True or False"),
        (lambda model, gru: gru.update(use_bias=1), "use_bias is 1, not True or False"),
        (lambda model, gru: gru.update(use_bias=False), "should hold 2 arrays"),
        (lambda model, gru: gru.update(reset_after=False), "is float32 \\[2, 6\\].*floating \\[6\\]"),
        (lambda model, gru: gru.update(swap_gates=True), "arguments \\['swap_gates'\\], which are not known here"),
        (lambda model, gru: gru.update(activation={"class_name": "function", "config": "tanh"}), "with activation {"),
    ],
)
def test_configs_that_are_not_understood_are_refused(file, saved, change, reason):
    with pytest.raises(ValueError, match=f"one: .*{reason}"):
        from_keras(file(with_config(saved, change)), "one")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model, gru: gru.update(name="two"), "gives two layers one name: \\['two'\\]"),
        (lambda model, gru: gru.update(name=3), "a layer without a name or a class"),
        (lambda model, gru: model.update(class_name="Mine"), "holds a Mine: only Sequential and Functional models"),
        (lambda model, gru: model.update(module="mine"), "only Sequential and Functional models"),
        (lambda model, gru: model.update(config=3), "only Sequential and Functional models"),
    ],
)
def test_models_whose_layers_are_not_known_are_refused(file, saved, change, message):
    with pytest.raises(ValueError, match=message):
        open_keras(file(with_config(saved, change)))


def test_code_in_a_config_does_not_run(file, saved, tmp_path):
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    layer = {"class_name": "Lambda", "module": "keras.layers", "config": {"name": "evil", "function": code}}
    contents = open_keras(file(with_config(saved, lambda model, gru: model["config"]["layers"].append(layer))))
    assert contents.others["evil"] == "Lambda"
    assert list(contents.grus) == ["one", "two"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", [16, 24])  # the number of the first object, and its length
def test_a_heap_that_hdf5_would_go_round_forever_is_refused(file, saved, place):
    content = bytearray(saved[".h5"])
    heap = content.index(b"GCOL\1")
    content[heap + place : heap + place + 8] = bytes(8) if place == 16 else b"\xff" * 8
    content[heap + 24 : heap + 32] = bytes(8) if place == 16 else b"\xff" * 8
    with pytest.raises(ValueError, match=f"its global heap at byte {heap} doesn't add up"):
        open_keras(file(bytes(content)))


def test_hdf5_of_other_widths_than_kerass_is_refused(file):
    properties = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    properties.set_sizes(4, 4)
    path = file(b"")
    h5py.h5f.create(bytes(path), fcpl=properties).close()
    with pytest.raises(ValueError, match=r"addresses and lengths of \(4, 4\) bytes"):
        open_keras(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_mutated_files_give_an_error_or_parameters(file, saved, suffix):
    used = np.flatnonzero(np.frombuffer(saved[suffix], np.uint8))  # most of a small HDF5 file is empty
    for seed in range(200):
        rng = np.random.default_rng(seed)
        content = np.frombuffer(saved[suffix], np.uint8).copy()
        places = rng.choice(used, rng.integers(1, 6))
        content[places] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)], len(places))
        try:
            contents = open_keras(file(content.tobytes()))
        except (ValueError, OSError):
            continue
        for found in contents.grus.values():
            shapes = {key: array.shape for key, array in found.read()["l0"].items()}
            assert shapes["kernel_ih"] == (found.config.input_size, 3 * found.config.hidden_size)
