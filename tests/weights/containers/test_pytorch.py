"""PyTorch's files, written by PyTorch itself, by an attacker, and by accident."""

import collections
import functools
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import zipfile

import chex
import numpy as np
import pytest
import torch
from published import packaged_file

from gru_jax import GRUConfig, from_torch
from gru_jax.weights.containers.pytorch import open_torch
from gru_jax.weights.pytorch import importer as pytorch

FORMATS = {"PyTorch, zip": True, "PyTorch, legacy pickle": False}
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")


def written(tmp_path, value, new=True):
    path = tmp_path / "model.pt"
    torch.save(value, path, _use_new_zipfile_serialization=new)
    return path


def assert_same(tensors, state_dict, prefix=""):
    assert list(tensors) == [prefix + name for name in state_dict]
    for name, expected in state_dict.items():
        tensor = tensors[prefix + name]
        assert tensor.shape == tuple(expected.shape)
        assert f"torch.{tensor.dtype}" == str(expected.dtype)
        array = tensor.read()
        assert array.dtype.name == tensor.dtype
        np.testing.assert_array_equal(array.astype(np.float64), expected.detach().double().numpy())


@pytest.mark.parametrize(("kind", "new"), FORMATS.items())
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_state_dict_is_read_in_every_dtype_and_both_formats(kind, new, dtype, tmp_path):
    state_dict = torch.nn.GRU(5, 4, 2, bidirectional=True).to(getattr(torch, dtype)).state_dict()
    form, tensors, _ = open_torch(written(tmp_path, state_dict, new))
    assert form == kind
    assert_same(tensors, state_dict)


@pytest.mark.parametrize("new", FORMATS.values())
def test_a_training_checkpoint_is_flattened_and_what_is_no_tensor_is_left_out(new, tmp_path):
    module = torch.nn.DataParallel(torch.nn.GRU(5, 4))
    optimizer = torch.optim.Adam(module.parameters())
    sum(p.sum() for p in module.parameters()).backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "state_dict": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": [None, collections.OrderedDict(loss=torch.tensor(0.5)), "x", (torch.ones(2, dtype=torch.int64),)],
        "hyper": {"lr": 0.1, (1, 2): torch.ones(1), "parameter": torch.nn.Parameter(torch.zeros(3))},
    }
    tensors = open_torch(written(tmp_path, checkpoint, new)).by_name
    expected = {f"state_dict.{name}": a for name, a in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        expected |= {f"optimizer.state.{index}.{key}": a for key, a in state.items()}
    expected["best.1.loss"], expected["best.3.0"] = torch.tensor(0.5), torch.ones(2, dtype=torch.int64)
    assert_same(tensors, expected | {"hyper.parameter": torch.zeros(3)})
    assert list(pytorch.find(tensors)[0]) == ["state_dict.module."]


@pytest.mark.parametrize("new", FORMATS.values())
def test_what_was_saved_on_a_gpu_is_read_without_one(new, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    state_dict = torch.nn.GRU(5, 4).state_dict()
    path = written(tmp_path, state_dict, new)
    assert b"cuda:0" in path.read_bytes()
    assert_same(open_torch(path).by_name, state_dict)


@pytest.mark.parametrize("new", FORMATS.values())
def test_views_shared_and_expanded_tensors_have_their_own_numbers(new, tmp_path):
    base = torch.randn(6, 4)
    state_dict = {"t": base.T, "a": base[2:], "b": base, "e": torch.randn(1).expand(5, 7), "0": torch.ones(0, 3)}
    assert_same(open_torch(written(tmp_path, state_dict, new)).by_name, state_dict)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_tensors_that_hold_no_plain_numbers_have_a_shape_and_no_more(tmp_path):
    wrong = {
        "meta": torch.empty(12, 5, device="meta"),
        "sparse": torch.ones(12, 5).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(12, 5), 0.1, 0, torch.qint8),
    }
    tensors = open_torch(written(tmp_path, wrong)).by_name
    assert {tensor.shape for tensor in tensors.values()} == {(12, 5)}
    for tensor in tensors.values():
        with pytest.raises(TypeError):
            tensor.read()


def test_a_small_file_that_claims_ten_terabytes_is_refused_before_they_are_allocated(tmp_path):
    huge = torch.ones(1).expand(3 * 10**6, 10**6)
    tensors = open_torch(written(tmp_path, {"weight_hh_l0": huge})).by_name
    with pytest.raises(ValueError, match=r"A tensor \[3000000, 1000000\] of only 4 bytes"):
        tensors["weight_hh_l0"].read()

    data = written(tmp_path, {"a": torch.ones(7)}, new=False).read_bytes()
    assert data.count(b"K\x07") == 2
    (tmp_path / "legacy.pt").write_bytes(data.replace(b"K\x07", b"\x8a\x06" + (10**13).to_bytes(6, "little")))
    with pytest.raises(ValueError, match="damaged: RuntimeError"):
        open_torch(tmp_path / "legacy.pt")


def test_a_file_without_crcs_is_read_and_one_with_a_wrong_crc_is_not(tmp_path):
    state_dict = torch.nn.GRU(5, 4).state_dict()
    torch.serialization.set_crc32_options(False)
    try:
        path = written(tmp_path, state_dict)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(open_torch(path).by_name, state_dict)

    path = written(tmp_path, state_dict)
    number = state_dict["weight_hh_l0"].numpy()[1:2].tobytes()
    data = path.read_bytes()
    assert data.count(number) == 1
    path.write_bytes(data.replace(number, number[:-1] + bytes([number[-1] ^ 1])))
    tensors = open_torch(path).by_name
    with pytest.raises(ValueError, match="damaged zip: the CRC of model/data/1 does not match"):
        tensors["weight_hh_l0"].read()


def test_a_zip_that_was_packed_again_and_compressed_is_read(tmp_path):
    state_dict = torch.nn.GRU(5, 4).state_dict()
    path, packed = written(tmp_path, state_dict), tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert_same(open_torch(tmp_path / "packed.pt").by_name, state_dict)


class Model(torch.nn.Module):
    """A GRU, a GRUCell and a buffer."""

    def __init__(self):
        super().__init__()
        self.rnn, self.cell = torch.nn.GRU(5, 4), torch.nn.GRUCell(4, 3)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x):
        """Runs all of it."""
        return self.cell(self.rnn(x)[0][-1] * self.scale)


def script(tmp_path, module):
    path = tmp_path / "script.pt"
    torch.jit.save(module, path)
    return path


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torchscript_holds_the_names_and_numbers_of_the_state_dict(tmp_path):
    model = Model()
    for made in (torch.jit.script(model), torch.jit.trace(model, torch.randn(3, 2, 5))):
        form, tensors, _ = open_torch(script(tmp_path, made))
        assert form == "TorchScript"
        assert {name: t.shape for name, t in tensors.items()} == {
            n: tuple(a.shape) for n, a in made.state_dict().items()
        }
        assert_same({name: tensors[name] for name in model.state_dict()}, model.state_dict())
        grus, refused = pytorch.find(tensors)
        assert {prefix: gru.config for prefix, gru in grus.items()} == {
            "rnn.": GRUConfig(5, 4),
            "cell.": GRUConfig(4, 3),
        }
        assert not refused
        chex.assert_trees_all_equal(grus["rnn."].read(), from_torch(model.rnn)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_torchscript_is_read_in_every_dtype_and_from_views(dtype, tmp_path):
    model = Model().to(dtype)
    model.rnn.weight_hh_l0 = torch.nn.Parameter(torch.randn(4, 13, dtype=dtype)[:, 1:].T)
    made = torch.jit.script(model)
    tensors = open_torch(script(tmp_path, made)).by_name
    state_dict = made.state_dict()
    assert_same({name: tensors[name] for name in state_dict}, state_dict)


@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning"
)
def test_quantized_models_are_refused_as_such(tmp_path):
    quantize = torch.ao.quantization.quantize_dynamic
    model = quantize(Model(), {torch.nn.GRU, torch.nn.GRUCell}, torch.qint8)
    with pytest.raises(ValueError, match="torch.ScriptObject.*, as a dynamically quantized model"):
        open_torch(written(tmp_path, model.state_dict()))
    grus, refused = pytorch.find(open_torch(script(tmp_path, torch.jit.script(model))).by_name)
    assert not grus
    assert refused.keys() == {"rnn.", "cell."}
    assert "dynamically quantized (torch.ao): save the model as it was before" in refused["rnn."]


class Attack:
    """Unpickled by pickle itself, this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@functools.cache
def scripted():
    """The bytes of an honest TorchScript archive."""
    data = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.GRU(5, 4)), data)
    return data.getvalue()


def attacked_script(tmp_path, attack):
    """A TorchScript archive whose pickle is somebody else's."""
    with zipfile.ZipFile(io.BytesIO(scripted())) as archive, zipfile.ZipFile(tmp_path / "attack.pt", "w") as changed:
        for name in archive.namelist():
            changed.writestr(name, attack if name.endswith("/data.pkl") else archive.read(name))
    return tmp_path / "attack.pt"


def test_a_pickle_that_would_run_code_does_not_run(tmp_path):
    ran = tmp_path / "ran"
    pickle.loads(pickle.dumps(Attack(ran)))
    assert ran.exists(), "the attack works"
    ran.unlink()
    paths = [written(tmp_path, {"a": Attack(ran)})]
    torch.save({"a": Attack(ran)}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    paths.append(tmp_path / "legacy.pt")
    paths.append(attacked_script(tmp_path, pickle.dumps({"a": Attack(ran)}, protocol=2)))
    (tmp_path / "tar.pt").write_bytes(tar_of_torch(pickle.dumps(Attack(ran), protocol=2)))
    paths.append(tmp_path / "tar.pt")
    messages = ["asks for posix.system, which could run code"] * 2 + ["names posix.system", "a tar archive"]
    for path, message in zip(paths, messages, strict=True):
        with pytest.raises(ValueError, match=message):
            open_torch(path)
        assert not ran.exists()


def tar_of_torch(attack):
    """A tar of PyTorch before 0.1.10; its first name begins like the later format."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(attack)
            archive.addfile(info, io.BytesIO(attack))
    return made.getvalue()


@pytest.mark.parametrize("new", FORMATS.values())
def test_a_whole_pickled_module_is_refused_with_what_to_do(new, tmp_path):
    with pytest.raises(ValueError, match=r"asks for torch.nn.modules.rnn.GRU, .* save model.state_dict\(\) instead"):
        open_torch(written(tmp_path, torch.nn.GRU(5, 4), new))


def nested(depth):
    value = [torch.ones(1)]
    for _ in range(depth):
        value = [value] * 10
    return value


def looped():
    value = {}
    value["a"] = value
    return value


def entries(path, **changes):
    """A zip with these entries and their bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in changes.items():
            archive.writestr(f"m/{name.replace('_pkl', '.pkl')}", data)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: written(p, nested(12)), "nests lists or dicts so often"),
        (lambda p: written(p, looped()), "nests lists or dicts so often"),
        (lambda p: written(p, {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}), "holds two tensors of the name a.b"),
        (lambda p: entries(p / "a.pt", data=b"x"), r"a zip, but no PyTorch file: it has 0 entries \*/data.pkl"),
        (lambda p: entries(p / "a.pt", archive_format=b"pt2"), r"an archive of torch.export. Save .*state_dict\(\)"),
        (lambda p: entries(p / "a.pt", data_pkl=b"\x80\x02x."), "damaged"),
        (lambda p: attacked_script(p, b"\x80\x02}q\x00q"), "data.pkl is broken|not enough data|pickle exhausted"),
        (lambda p: attacked_script(p, b"\x80\x02a."), "data.pkl is broken"),
        (lambda p: attacked_script(p, b"\x80\x02]\x94."), "an instruction that TorchScript does not write, MEMOIZE"),
    ],
)
def test_hostile_files_are_refused(make, message, tmp_path, monkeypatch):
    monkeypatch.setattr("gru_jax.weights.containers.pytorch._MOST_NAMES", 10**5)
    with pytest.raises(ValueError, match=message):
        open_torch(make(tmp_path))


def test_a_torchscript_tensor_beyond_its_storage_is_refused(tmp_path):
    def with_shape(shape, strides, numel=0, offset=0, kind="FloatStorage"):
        text = lambda value: b"X" + struct.pack("<i", len(value)) + value.encode()
        ints = lambda *numbers: b"".join(b"J" + struct.pack("<i", n) for n in numbers)
        storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("0") + text("cpu") + ints(numel) + b"tQ"
        arguments = storage + ints(offset) + b"".join(b"(" + ints(*n) + b"t" for n in (shape, strides)) + b"NN"
        tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
        return attacked_script(tmp_path, b"\x80\x02c__torch__\nM\n)R}(" + text("a") + tensor + b"ub.")

    def size(path):
        with zipfile.ZipFile(path) as archive:
            return archive.getinfo(next(name for name in archive.namelist() if name.endswith("/data/0"))).file_size // 4

    numel = size(with_shape((1,), (1,)))
    assert open_torch(with_shape((2, 3), (3, 1), numel)).by_name["a"].read().shape == (2, 3)
    for arguments, message in [
        (((2, 3), (3, 1), numel + 1), r"a: data.pkl describes a tensor \[2, 3\] beyond its storage 0"),
        (((numel, 2), (1, 1), numel), "beyond its storage"),
        (((1,), (1,), numel, numel), "beyond its storage"),
        (((1,), (-1,), numel), "which are no sizes"),
        (((1, 2), (1,), numel), "which are no sizes"),
        (((10**7, 10**7), (0, 0), numel), "over a storage of only"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_torch(with_shape(*arguments))
    quantized = open_torch(with_shape((2, 2), (2, 1), numel, kind="QInt8Storage")).by_name["a"]
    with pytest.raises(TypeError, match="expected plain numbers, got qint8"):
        quantized.read()


@pytest.mark.parametrize(
    "make", [lambda p: written(p, {"a": torch.ones(9)}), lambda p: written(p, {"a": torch.ones(9)}, False)]
)
def test_truncated_files_are_refused_wherever_they_end(make, tmp_path):
    path = make(tmp_path)
    data = path.read_bytes()
    for length in range(0, len(data) - 1, max(1, len(data) // 60)):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="no PyTorch file|damaged|it asks for "):
            open_torch(path).by_name["a"].read()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: written(p, torch.nn.GRU(2, 2).state_dict()),
        lambda p: written(p, torch.nn.GRU(2, 2).state_dict(), new=False),
        lambda p: script(p, torch.jit.script(torch.nn.GRU(2, 2))),
    ],
    ids=["zip", "legacy", "torchscript"],
)
def test_a_file_with_any_bytes_changed_gives_an_error_or_arrays_of_the_declared_kind(make, tmp_path):
    path = make(tmp_path)
    data, draw = path.read_bytes(), random.Random(0)
    before = {name: tensor.read().tobytes() for name, tensor in open_torch(path).by_name.items()}
    for _ in range(200):
        changed = bytearray(data)
        for _ in range(draw.choice([1, 1, 1, 8])):
            changed[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            kind, tensors, _ = open_torch(path)
            grus, _ = pytorch.find(tensors)
            for gru in grus.values():
                gru.read()
            arrays = {name: tensor.read() for name, tensor in tensors.items()}
        except (ValueError, TypeError, OSError):
            continue
        for name, array in arrays.items():
            assert (array.shape, array.dtype.name) == (tensors[name].shape, tensors[name].dtype)
            assert kind == "PyTorch, legacy pickle" or array.tobytes() in before.values(), "no CRC caught it"


@pytest.mark.slow
def test_inspecting_a_large_file_reads_its_pickle_alone(tmp_path):
    state_dict = torch.nn.GRU(5, 4).state_dict() | {"embed": torch.zeros(25_000_000)}
    path = written(tmp_path, state_dict)
    code = f"""
import resource, torch
from gru_jax.weights.containers.pytorch import open_torch
from gru_jax.weights.pytorch import importer as pytorch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tensors = open_torch({str(path)!r}).by_name
assert tensors["embed"].shape == (25_000_000,) and list(pytorch.find(tensors)[0]) == [""]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 50_000, "kilobytes, of a file of 100 MB"


def test_what_is_no_pytorch_file_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    for data, message in [(b"", "it is empty"), (b"hello", "neither a zip"), (pickle.dumps({"a": 1}), "neither a zip")]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            open_torch(path)
    with pytest.raises(FileNotFoundError):
        open_torch(tmp_path / "none.pt")


def test_published_files_are_opened_and_their_lstms_refused_as_lstms():
    for package, file, prefix in [
        ("khmer-ocr-ocm", "khmer_ocr_ocm/assets/model.pth", "model_state_dict.rnn."),
        ("nano-ocr", "nano_ocr/model/nano_ocr_ftr.pth", "rnn."),
    ]:
        grus, refused = pytorch.find(open_torch(packaged_file(package, file)).by_name)
        assert not grus
        assert refused == {prefix: "an LSTM, whose weight_hh has shape [1024, 256], a GRU's has [3H, H]."}
    path = packaged_file("uzmorph-bigru", "uzmorph_bigru/data/morph_bigru.pth")
    grus, refused = pytorch.find(open_torch(path).by_name)
    assert not refused
    assert {prefix: gru.config for prefix, gru in grus.items()} == {"gru.": GRUConfig(64, 64, 2, bidirectional=True)}
    chex.assert_trees_all_equal(grus["gru."].read(), from_torch(torch.load(path, weights_only=True), "gru.")[1])
