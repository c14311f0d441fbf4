"""Trees of arrays: .npz, msgpack of Flax, Orbax."""

import io
import zipfile

import chex
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from gru_jax.weights.containers.arrays import flatten, open_msgpack, open_npz, open_orbax, save_msgpack, save_orbax

from gru_jax import GRUConfig, init_params
from gru_jax.weights.checkpoint import load, open_checkpoint

CONFIG = GRUConfig(5, 4, num_layers=2, bidirectional=True, batch_first=True, dropout=0.25, reset_after=False)
CELL = {"weight_ih": np.ones((12, 5), np.float32), "weight_hh": np.ones((12, 4), np.float32)}


def params_of(config, dtype=jnp.float32):
    return init_params(jax.random.key(0), config, dtype)


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
    tensors = open_npz(tmp_path / "a.npz")
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
        open_npz(tmp_path / "a.npz")["b"].read()
    assert not (tmp_path / "exploded").exists()


def test_a_version_of_npy_that_is_not_known_is_refused_for_its_array_alone(tmp_path):
    data = bytearray(npy(np.ones(3)))
    data[6] = 3
    tensors = open_npz(npz(tmp_path / "a.npz", a=bytes(data), b=npy(np.ones(2))))
    np.testing.assert_array_equal(tensors["b"].read(), np.ones(2))
    with pytest.raises(TypeError, match=r"a.npy is of version \(3, 0\) of the .npy format"):
        tensors["a"].read()


def test_a_header_that_claims_another_size_is_refused(tmp_path):
    for old, new in ((b"(3,)", b"(9,)"), (b"(3,)", b"(1,)"), (b"(3,), ", b"(-3,),"), (b"(3,), }", b"(9**9**9,)}")):
        data = npy(np.ones(3)).replace(old, new)
        with pytest.raises(ValueError, match=r"a.npz"):
            open_checkpoint(npz(tmp_path / "a.npz", a=data))
    data = npy(np.ones((2, 3))).replace(b"(2, 3), ", b"(-2,-3),")
    with pytest.raises(ValueError, match=r"damaged: a.npy says float64 \[-2, -3\] and has 48 bytes"):
        open_npz(npz(tmp_path / "a.npz", a=data))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **CELL, zeros=np.zeros(25_000_000))
    assert (tmp_path / "a.npz").stat().st_size < 1_000_000
    with pytest.raises(
        ValueError, match=r"not opened: its .* bytes claim to unpack to 200,.*as those of a zip bomb do"
    ):
        open_checkpoint(tmp_path / "a.npz")


def test_two_arrays_of_one_name_are_refused(tmp_path):
    npz(tmp_path / "a.npz", a=npy(np.ones(3)), b=npy(np.ones(3)))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes().replace(b"b.npy", b"a.npy"))
    with pytest.raises(ValueError, match="two of its arrays have the same name"):
        open_checkpoint(tmp_path / "a.npz")


def test_an_array_damaged_inside_is_refused_when_it_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(1000))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[4000] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match="a.npy is damaged: Bad CRC-32"):
        open_npz(tmp_path / "a.npz")["a"].read()


def test_a_locked_npz_is_refused(tmp_path):
    data = bytearray(npz(tmp_path / "a.npz", a=npy(np.ones(3))).read_bytes())
    data[6] |= 1  # the flag of encryption, in the member's header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and in the directory's
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match="damaged, no valid .npz file: .*encrypted"):
        open_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("save", [save_msgpack, save_orbax])
def test_the_whole_config_and_the_dtypes_come_back(tmp_path, save, dtype):
    for number, config in enumerate((CONFIG, GRUConfig(1, 1), GRUConfig(5, 4, bias=False, batch_first=True))):
        params = params_of(config, dtype)
        save(tmp_path / f"gru{number}", config, params)
        loaded, back = load(tmp_path / f"gru{number}")
        assert loaded == config
        chex.assert_trees_all_equal(back, params)
        chex.assert_trees_all_equal_dtypes(back, params)


def test_flax_and_orbax_read_what_is_saved_without_this_package(tmp_path):
    params = params_of(CONFIG)
    save_msgpack(tmp_path / "gru.msgpack", CONFIG, params)
    chex.assert_trees_all_equal(
        serialization.msgpack_restore((tmp_path / "gru.msgpack").read_bytes())["params"], jax.tree.map(np.array, params)
    )
    save_orbax(tmp_path / "gru", CONFIG, params)
    with ocp.StandardCheckpointer() as checkpointer:
        chex.assert_trees_all_equal(checkpointer.restore(tmp_path / "gru", params), params)


@pytest.mark.parametrize("save", [save_msgpack, save_orbax])
def test_only_a_gru_of_the_config_is_saved(tmp_path, save):
    with pytest.raises(ValueError, match=rf"(?s){save.__name__}: .*missing: l1/kernel_ih"):
        save(tmp_path / "gru", CONFIG, params_of(GRUConfig(5, 4, bidirectional=True)))
    with pytest.raises(TypeError, match=f"{save.__name__}: expected a GRUConfig, got NoneType"):
        save(tmp_path / "gru", None, params_of(CONFIG))
    assert not (tmp_path / "gru").exists()


def test_a_file_that_is_in_the_way_of_an_orbax_folder_is_left_alone(tmp_path):
    (tmp_path / "gru").write_text("mine")
    with pytest.raises(FileExistsError, match="gru: exists; Orbax writes a new folder"):
        save_orbax(tmp_path / "gru", CONFIG, params_of(CONFIG))
    assert (tmp_path / "gru").read_text() == "mine"


def test_the_leaves_of_any_msgpack_tree_get_dotted_names(tmp_path):
    tree = {"params": {"rnn": CELL, "list": {"0": np.ones(2, np.int8)}}, "step": 3, "name": "model", "none": None}
    (tmp_path / "a").write_bytes(serialization.msgpack_serialize(tree))
    tensors, config = open_msgpack(tmp_path / "a")
    assert {name: tensor[:2] for name, tensor in tensors.items()} == {
        "params.rnn.weight_ih": ((12, 5), "float32"),
        "params.rnn.weight_hh": ((12, 4), "float32"),
        "params.list.0": ((2,), "int8"),
        "step": ((), "int64"),
    }
    assert config is None
    assert list(open_checkpoint(tmp_path / "a").grus) == ["params.rnn."]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x81\xa1a", "damaged, no valid msgpack file of Flax"),
        (msgpack.packb([1, 2]), "expected a msgpack file of Flax to hold a dict of arrays, got list"),
        (b"\x81\xa1a" * 5000 + b"\x01", "damaged, no valid msgpack file"),
        (b"\x81\xa1a" * 900 + b"\x01", "no GRU in this file|damaged"),
        (msgpack.packb({"a": {"b": 1}, "a.b": 2}), "two of its arrays have the same name, a.b"),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((10**9,), "float32", b"1234")))}), "damaged"),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "O", b"12345678")))}), "damaged"),
        (msgpack.packb({"a": msgpack.ExtType(1, b"\xc1")}), "damaged"),
        (msgpack.packb({"a": {"__msgpack_chunked_array__": True}}), "damaged"),
        (msgpack.packb({"config": 3, "params": {"l0": 1}}), "the config in its metadata is none of this version"),
    ],
)
def test_damaged_or_foreign_msgpack_is_refused(tmp_path, data, message):
    (tmp_path / "a.msgpack").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.msgpack")


def test_a_config_is_never_lost_in_silence(tmp_path):
    config, params = vars(CONFIG), jax.tree.map(np.asarray, params_of(CONFIG))
    for tree, message in (
        ({"konfig": config, "params": params}, "the config of a GRU stands at 'konfig', where 'config' is its place"),
        ({"config": config, "parans": params}, "expected params beside the config of a GRU, and no more"),
        ({"config": config, "params": {"L0": params["l0"]}}, "its metadata says GRUConfig.*but its tensors are not"),
    ):
        (tmp_path / "a.msgpack").write_bytes(serialization.msgpack_serialize(tree))
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "a.msgpack")


def test_an_orbax_folder_does_not_lose_its_config_in_silence(tmp_path):
    save_orbax(tmp_path / "a", CONFIG, params_of(CONFIG))
    metadata = tmp_path / "a" / "_CHECKPOINT_METADATA"
    metadata.write_bytes(metadata.read_bytes().replace(b'"gru_jax"', b'"gru-jax"'))
    with pytest.raises(ValueError, match="the config of a GRU stands at 'gru-jax', where 'gru_jax' is its place"):
        load(tmp_path / "a")


def orbax(path, tree, **options):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
    return path


@pytest.mark.parametrize(
    "options",
    [{}, {"use_ocdbt": False}, {"use_zarr3": True}, {"use_ocdbt": False, "use_zarr3": True}],
    ids=["ocdbt", "folders", "zarr3", "zarr3 folders"],
)
def test_every_layout_of_orbax_is_read_one_array_at_a_time(tmp_path, options):
    tree = {"rnn": {name: jnp.asarray(a) for name, a in CELL.items()}, "step": 3, "list": [np.ones(2), jnp.ones(3)]}
    tree |= {"half": jnp.ones(3, jnp.bfloat16), "empty": {}, "none": None, "text": "a"}
    (tmp_path / "with # and %20").mkdir()
    tmp_path /= "with # and %20"
    tensors, config = open_orbax(orbax(tmp_path / "a", tree, **options))
    assert config is None
    shapes = {name: tensor[:2] for name, tensor in tensors.items()}
    assert shapes["rnn.weight_ih"] == ((12, 5), "float32")
    assert shapes["half"] == ((3,), "bfloat16")
    assert shapes["list.1"] == ((3,), "float32")
    for name, array in (("rnn.weight_ih", CELL["weight_ih"]), ("half", np.ones(3)), ("list.0", np.ones(2))):
        back = tensors[name].read()
        assert back.dtype.name == tensors[name].dtype
        np.testing.assert_array_equal(back.astype(np.float64), array)
    assert list(open_checkpoint(tmp_path / "a").grus) == ["rnn."]


def test_the_steps_of_a_checkpoint_manager_are_opened_by_their_folder(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (0, 7):
            items = {"state": ocp.args.StandardSave({"rnn": CELL}), "data": ocp.args.JsonSave({"a": 1})}
            manager.save(step, args=ocp.args.Composite(**items))
    assert list(open_checkpoint(tmp_path / "run/7").grus) == ["state.rnn."]
    with pytest.raises(ValueError, match="expected one file of weights in this folder, found '0/', '7/'. Name one"):
        open_checkpoint(tmp_path / "run")


def test_a_folder_of_orbax_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = orbax(tmp_path / "a", {"a": np.ones((2, 3), np.float32)}, use_ocdbt=False)
    array = path / "a" / ".zarray"
    array.write_text(array.read_text().replace('"shape":[2,3]', '"shape":[20000,300000]'))
    with pytest.raises(ValueError, match="claim to unpack to 24,000,000,000"):
        open_checkpoint(path)


def test_an_array_of_orbax_that_has_lost_its_numbers_is_not_taken_for_zeros(tmp_path):
    path = orbax(tmp_path / "a", {"a": np.ones((2, 3), np.float32)}, use_ocdbt=False)
    (path / "a" / "0.0").unlink()
    with pytest.raises(ValueError, match="a: damaged, no valid Orbax checkpoint: .*missing"):
        open_orbax(path)[0]["a"].read()


def test_an_array_of_orbax_cannot_lie_elsewhere(tmp_path):
    path = orbax(tmp_path / "a", {"a": np.ones((2, 3), np.float32)}, use_ocdbt=False)
    for name in ("../b", "/b"):
        (path / "_METADATA").write_text((path / "_METADATA").read_text().replace('"key": "a"', f'"key": "{name}"'))
        with pytest.raises(ValueError, match="escapes from the folder"):
            open_orbax(path)


@pytest.mark.parametrize("name", ["_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"])
def test_a_damaged_folder_of_orbax_is_refused(tmp_path, name):
    save_orbax(tmp_path / "gru", CONFIG, params_of(CONFIG))
    (tmp_path / "gru" / name).write_bytes(b"[")
    with pytest.raises(ValueError, match="damaged, no valid"):
        open_checkpoint(tmp_path / "gru")
    (tmp_path / "gru" / name).unlink()
    if name != "_CHECKPOINT_METADATA":
        with pytest.raises(ValueError, match="damaged, no valid|an Orbax checkpoint without a tree of arrays"):
            open_checkpoint(tmp_path / "gru")


def test_names_are_flattened_without_recursion():
    tree = leaf = {}
    for _ in range(5000):
        leaf["a"] = {}
        leaf = leaf["a"]
    leaf["b"] = 3
    assert list(flatten("file", tree).values()) == [3]
    assert flatten("file", {"a": [1, (2, 3)], 4: {"b": None}}) == {"a.0": 1, "a.1.0": 2, "a.1.1": 3, "4.b": None}
