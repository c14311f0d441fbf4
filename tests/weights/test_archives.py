"""Archives around files of weights."""

import gc
import gzip
import io
import os
import tarfile
import tempfile
import zipfile

import chex
import numpy as np
import pytest
import torch

from gru_jax import GRUConfig, from_torch
from gru_jax.weights.checkpoint import load, open_checkpoint
from gru_jax.weights.containers import bundles

MODULE = torch.nn.GRU(5, 4)


def torched(state_dict):
    data = io.BytesIO()
    torch.save(state_dict, data)
    return data.getvalue()


def npz(**arrays):
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


MODEL = torched(MODULE.state_dict())
CELL = npz(weight_ih=np.ones((12, 5), np.float32), weight_hh=np.ones((12, 4), np.float32))
EMBED = npz(embed=np.ones((7, 5), np.float32))


def tarred(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


WAYS = {
    "tar": lambda path, members: tarred(path, members, "w"),
    "tar.gz": tarred,
    "zip": zipped,
}


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder of temporary files that must be empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    if list(folder.iterdir()):  # a folder goes with the last GRU that could still read from it
        gc.collect()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("kind", WAYS)
def test_the_one_file_of_weights_in_an_archive_is_opened(tmp_path, kind, temporary):
    members = [("model/model.pt", MODEL), ("model/README.md", b"# A model"), ("model/config.json", b"{}")]
    path = WAYS[kind](tmp_path / "bundle", members)
    contents = open_checkpoint(path)
    assert contents.format.startswith("PyTorch")
    assert contents.format.endswith(f" in {kind}")
    assert list(contents.grus) == [""]
    assert contents.others == {"model/README.md": "a file of 9 bytes", "model/config.json": "a file of 2 bytes"}
    assert not contents.refused
    config, params = load(path)
    assert config == GRUConfig(5, 4)
    chex.assert_trees_all_equal(params, from_torch(MODULE)[1])


def test_the_copy_lives_as_long_as_something_can_read_it(tmp_path, temporary):
    found = open_checkpoint(tarred(tmp_path / "a.tar.gz", [("a.npz", CELL), ("b.txt", b"x")])).grus[""]
    gc.collect()
    assert len([file for file in temporary.rglob("*") if file.is_file()]) == 1
    assert found.read()["l0"]["kernel_ih"].shape == (5, 12)
    del found
    gc.collect()
    assert not list(temporary.iterdir())


def test_one_file_in_gzip_is_opened(tmp_path):
    (tmp_path / "model.npz.gz").write_bytes(gzip.compress(CELL))
    contents = open_checkpoint(tmp_path / "model.npz.gz")
    assert contents.format == "NumPy, npz in gz"
    assert load(tmp_path / "model.npz.gz")[0].hidden_size == 4


def test_several_files_with_grus_are_told_apart_by_their_names(tmp_path):
    path = tarred(tmp_path / "a.tar.gz", [("enc.npz", CELL), ("x/dec.pt", MODEL), ("embed.npz", EMBED)])
    contents = open_checkpoint(path)
    assert list(contents.grus) == ["enc.npz:", "x/dec.pt:"]
    assert contents.others == {"embed.npz:embed": "float32 [7, 5]"}
    assert load(path, "x/dec.pt:")[0] == GRUConfig(5, 4)
    assert load(path, "enc.npz:")[0] == GRUConfig(5, 4, bias=False)


def test_one_file_with_a_gru_beside_others_without_keeps_its_prefixes(tmp_path):
    contents = open_checkpoint(tarred(tmp_path / "a.tar.gz", [("embed.npz", EMBED), ("enc.npz", CELL)]))
    assert list(contents.grus) == [""]
    assert contents.others == {"embed.npz:embed": "float32 [7, 5]"}
    assert contents.format == "NumPy, npz in tar.gz"


def test_a_bundle_without_a_gru_says_what_it_holds(tmp_path):
    path = zipped(tmp_path / "a.zip", [("embed.npz", EMBED)])
    assert open_checkpoint(path).others == {"embed": "float32 [7, 5]"}
    for members, message in (
        ([("a.txt", b"text")], "expected a file of weights in this zip, found a.txt"),
        ([], "expected a file of weights in this zip, found nothing"),
        ([("a.pt", b"\x80\x04K\x01.")], "in this zip, found a.pt: a Python pickle, which runs code"),
        ([("a.zip", b"PK\x05\x06" + b"\0" * 18)], "found a.zip: an archive inside an archive"),
    ):
        with pytest.raises(ValueError, match=message):
            open_checkpoint(zipped(tmp_path / "b.zip", members))


def test_a_damaged_member_is_refused_by_its_name(tmp_path):
    contents = open_checkpoint(tarred(tmp_path / "a.tar.gz", [("a.npz", CELL), ("b.safetensors", b"x"), ("c", b"")]))
    assert list(contents.grus) == [""]
    assert contents.refused["b.safetensors"].startswith("b.safetensors: damaged or truncated")
    assert contents.refused["c"] == "c: the file is empty."


@pytest.mark.parametrize("name", ["../a.npz", "/a.npz", "x/../../a.npz", "..", "..\\a.npz", "C:\\a.npz", "\\a.npz"])
@pytest.mark.parametrize("kind", WAYS)
def test_a_path_that_escapes_is_refused(tmp_path, kind, name):
    path = WAYS[kind](tmp_path / "bundle", [("b.npz", CELL), (name, CELL)])
    with pytest.raises(ValueError, match="not opened: the path of its member '.*' escapes from the archive"):
        open_checkpoint(path)
    assert sorted(os.listdir(tmp_path)) == ["bundle", "temporary"]


def test_links_and_devices_are_not_followed(tmp_path):
    secret = tmp_path / "secret.npz"
    secret.write_bytes(CELL)
    members = []
    for kind, name in ((tarfile.SYMTYPE, "a.npz"), (tarfile.LNKTYPE, "b.npz"), (tarfile.FIFOTYPE, "c.npz")):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, str(secret)
        members.append((info, b""))
    with pytest.raises(ValueError, match="expected a file of weights in this tar.gz, found nothing"):
        open_checkpoint(tarred(tmp_path / "a.tar.gz", members))
    link = zipfile.ZipInfo("a.npz")
    link.external_attr = 0o120777 << 16
    with pytest.raises(ValueError, match="expected a file of weights in this zip, found nothing"):
        open_checkpoint(zipped(tmp_path / "a.zip", [(link, str(secret).encode())]))


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "gz"])
def test_a_bomb_is_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(bundles, "LIMIT", 10**7)  # a real one would take seconds to make
    zeros = bytes(2 * 10**7)
    path = tmp_path / "bomb"
    if kind == "gz":
        path.write_bytes(gzip.compress(zeros))
    else:
        WAYS[kind](path, [("zeros.bin", zeros), ("a.npz", CELL)])
    with pytest.raises(ValueError, match="not opened: the file has .* and claims to unpack to .*, as a zip bomb does"):
        open_checkpoint(path)


def test_an_extended_header_may_not_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "LIMIT", 10**7)
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    with pytest.raises(ValueError, match="as a zip bomb does"):
        open_checkpoint(tarred(tmp_path / "a.tar.gz", [(info, bytes(2 * 10**7))]))


def test_two_members_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two of its members have the same name, 'a.npz'"):
        open_checkpoint(tarred(tmp_path / "a.tar.gz", [("a.npz", CELL), ("a.npz", CELL)]))


@pytest.mark.parametrize("kind", WAYS)
def test_an_archive_cut_short_is_refused(tmp_path, kind):
    whole = WAYS[kind](tmp_path / "bundle", [("a.npz", CELL), ("model.pt", MODEL)]).read_bytes()
    for length in range(600, len(whole) - 10240, 501):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            open_checkpoint(tmp_path / "cut")


def test_a_damaged_header_in_the_middle_is_no_end(tmp_path):
    data = bytearray(tarred(tmp_path / "a", [("a.npz", CELL), ("model.pt", MODEL)], "w").read_bytes())
    data[data.index(b"model.pt")] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match="a damaged tar archive: a header is damaged"):
        open_checkpoint(tmp_path / "a")


def test_a_locked_zip_is_refused(tmp_path):
    data = bytearray(zipped(tmp_path / "a.zip", [("a.npz", CELL)]).read_bytes())
    data[6] |= 1
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ValueError, match="a damaged zip archive: .*encrypted"):
        open_checkpoint(tmp_path / "a.zip")


def test_names_that_are_no_text_are_shown_all_the_same(tmp_path):
    contents = open_checkpoint(tarred(tmp_path / "a.tar.gz", [("a.npz", CELL), ("b\udcff\n.txt", b"x")]))
    assert list(contents.others) == ["b??.txt"]
