"""Zips whose claims are false."""

import struct
import zipfile

import pytest

from gru_jax.weights.containers import zips


def packed(path, *names, data=b"0123456789" * 10, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(name, data)
    return path


def patched(path, entry, offset, value):
    """Overwrites four bytes of an entry's record in the central directory."""
    data = bytearray(path.read_bytes())
    start = -1
    for _ in range(entry + 1):
        start = data.index(b"PK\x01\x02", start + 1)
    struct.pack_into("<I", data, start + offset, value)
    path.write_bytes(data)
    return path


CRC, COMPRESSED, SIZE, HEADER = 16, 20, 24, 42


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_honest_zip_is_read(method, tmp_path):
    path = packed(tmp_path / "a.zip", "a", "b", method=method)
    assert {name: info.file_size for name, info in zips.entries(path).items()} == {"a": 100, "b": 100}
    assert zips.read(path, "b") == b"0123456789" * 10
    zips.check_crcs(path)


@pytest.mark.parametrize(
    ("entry", "offset", "value", "message"),
    [
        (1, COMPRESSED, 10**6, "b reaches into the next entry or beyond the file"),
        (0, COMPRESSED, 200, "a reaches into the next entry or beyond the file"),
        (1, HEADER, 0, "b reaches into the next entry"),
        (0, SIZE, 50, "a is not compressed, but claims another size"),
    ],
)
def test_false_sizes_are_refused(entry, offset, value, message, tmp_path):
    path = patched(packed(tmp_path / "a.zip", "a", "b"), entry, offset, value)
    with pytest.raises(ValueError, match=f"damaged zip: {message}"):
        zips.entries(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = packed(tmp_path / "a.zip", "a", data=bytes(150_000_000), method=zipfile.ZIP_DEFLATED)
    with pytest.raises(
        ValueError, match="not opened: a has .* bytes and claims to unpack to 150,000,000, as a zip bomb does"
    ):
        zips.entries(path)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_two_entries_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two entries of one name"):
        zips.entries(packed(tmp_path / "a.zip", "a", "a"))


def test_a_wrong_crc_is_noticed_and_a_crc_of_zero_is_none(tmp_path):
    path = patched(packed(tmp_path / "a.zip", "a", "b"), 1, CRC, 7)
    with pytest.raises(ValueError, match="the CRC of b does not match"):
        zips.check_crcs(path)
    with pytest.raises(ValueError, match="damaged zip: Bad CRC-32"):
        zips.read(path, "b")
    patched(path, 1, CRC, 0)
    zips.check_crcs(path)
    assert zips.read(path, "b") == b"0123456789" * 10


def test_what_is_no_zip_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK\x03\x04 and no more")
    for call in (zips.entries, zips.check_crcs, lambda path: zips.read(path, "a")):
        with pytest.raises(ValueError, match="damaged zip"):
            call(path)
    with pytest.raises(ValueError, match="damaged zip"):
        zips.read(packed(path, "a"), "b")
