"""NumPy's .npz files, whole, damaged and hostile."""

import io
import zipfile

import numpy as np
import pytest

from gru_jax.weights.checkpoint import open_checkpoint
from gru_jax.weights.containers.npz import open_npz

CELL = {"weight_ih": np.ones((12, 5), np.float32), "weight_hh": np.ones((12, 4), np.float32)}


def npy(array):
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


def npz(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_is_read_one_array_at_a_time(tmp_path, compressed):
    arrays = CELL | {"deep/name": np.arange(6).reshape(2, 3), "scalar": np.float64(3), "none": np.zeros((0, 3))}
    arrays |= {"fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "big": np.arange(3, dtype=">f4")}
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", **arrays)
    tensors = open_npz(tmp_path / "a.npz").by_name
    assert list(tensors) == list(arrays)
    for name, array in arrays.items():
        assert tensors[name][:2] == (array.shape, array.dtype.name)
        np.testing.assert_array_equal(tensors[name].read(), array)
        assert tensors[name].read().dtype == array.dtype.newbyteorder("=")
    assert list(open_checkpoint(tmp_path / "a.npz").grus) == [""]


def test_an_array_of_python_objects_is_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    np.savez(tmp_path / "a.npz", **CELL, b=np.array([Bomb()], object))
    contents = open_checkpoint(tmp_path / "a.npz")
    assert list(contents.grus) == [""]
    assert contents.others == {"b": "object []"}
    with pytest.raises(TypeError, match="b.npy is an array of Python objects, which may run code when read"):
        open_npz(tmp_path / "a.npz").by_name["b"].read()
    assert not (tmp_path / "exploded").exists()


def test_a_version_of_npy_that_is_not_known_is_refused_for_its_array_alone(tmp_path):
    data = bytearray(npy(np.ones(3)))
    data[6] = 3
    tensors = open_npz(npz(tmp_path / "a.npz", a=bytes(data), b=npy(np.ones(2)))).by_name
    np.testing.assert_array_equal(tensors["b"].read(), np.ones(2))
    with pytest.raises(TypeError, match=r"a.npy is of version \(3, 0\) of the .npy format"):
        tensors["a"].read()


def test_a_header_that_claims_another_size_is_refused(tmp_path):
    for old, new in ((b"(3,)", b"(9,)"), (b"(3,)", b"(1,)"), (b"(3,), ", b"(-3,),"), (b"(3,), }", b"(9**9**9,)}")):
        data = npy(np.ones(3)).replace(old, new)
        with pytest.raises(ValueError, match=r"^damaged: a\.npy says|^a\.npy is damaged, no valid \.npy file"):
            open_npz(npz(tmp_path / "a.npz", a=data))
    data = npy(np.ones((2, 3))).replace(b"(2, 3), ", b"(-2,-3),")
    with pytest.raises(ValueError, match=r"damaged: a.npy says float64 \[-2, -3\] and has 48 bytes"):
        open_npz(npz(tmp_path / "a.npz", a=data))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **CELL, zeros=np.zeros(25_000_000))
    assert (tmp_path / "a.npz").stat().st_size < 1_000_000
    with pytest.raises(ValueError, match="not opened: the file has .* and claims to unpack to 200,.*, as a zip bomb"):
        open_checkpoint(tmp_path / "a.npz")


def test_two_arrays_of_one_name_are_refused(tmp_path):
    npz(tmp_path / "a.npz", a=npy(np.ones(3)), b=npy(np.ones(3)))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes().replace(b"b.npy", b"a.npy"))
    with pytest.raises(ValueError, match="two of its arrays have the same name"):
        open_checkpoint(tmp_path / "a.npz")


@pytest.mark.parametrize("field", [28, 32], ids=["name", "comment"])
def test_a_directory_one_of_whose_lengths_swallows_the_entries_after_it_is_refused(tmp_path, field):
    """Without its last arrays a GRU is another GRU, of fewer layers or without biases."""
    npz(tmp_path / "a.npz", **{name: npy(np.ones(3)) for name in "abc"})
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[data.index(b"PK\x01\x02") + field + 1] = 2  # 512 bytes more, which reach beyond the directory
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        open_npz(tmp_path / "a.npz")


def test_an_array_damaged_inside_is_refused_when_it_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(1000))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[4000] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match="a.npy is damaged: Bad CRC-32"):
        open_npz(tmp_path / "a.npz").by_name["a"].read()


def test_a_locked_npz_is_refused(tmp_path):
    data = bytearray(npz(tmp_path / "a.npz", a=npy(np.ones(3))).read_bytes())
    data[6] |= 1  # the flag of encryption, in the member's header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and in the directory's
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match="damaged, no valid .npz file: .*encrypted"):
        open_npz(tmp_path / "a.npz")
