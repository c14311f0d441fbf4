"""Orbax folders in every layout, whole and damaged."""

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gru_jax.weights.checkpoint import open_checkpoint
from gru_jax.weights.containers.orbax import open_orbax, write_orbax

CELL = {"weight_ih": np.ones((12, 5), np.float32), "weight_hh": np.ones((12, 4), np.float32)}


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
    _, tensors, config = open_orbax(orbax(tmp_path / "a", tree, **options))
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
    with pytest.raises(ValueError, match="claims to unpack to 24,000,000,000"):
        open_checkpoint(path)


def test_an_array_of_orbax_that_has_lost_its_numbers_is_not_taken_for_zeros(tmp_path):
    path = orbax(tmp_path / "a", {"a": np.ones((2, 3), np.float32)}, use_ocdbt=False)
    (path / "a" / "0.0").unlink()
    with pytest.raises(ValueError, match="damaged, no valid Orbax checkpoint: .*missing"):
        open_orbax(path).by_name["a"].read()


def test_an_array_of_orbax_cannot_lie_elsewhere(tmp_path):
    path = orbax(tmp_path / "a", {"a": np.ones((2, 3), np.float32)}, use_ocdbt=False)
    for name in ("../b", "/b"):
        (path / "_METADATA").write_text((path / "_METADATA").read_text().replace('"key": "a"', f'"key": "{name}"'))
        with pytest.raises(ValueError, match="escapes from the folder"):
            open_orbax(path)


@pytest.mark.parametrize("name", ["_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"])
def test_a_damaged_folder_of_orbax_is_refused(tmp_path, name):
    write_orbax(tmp_path / "gru", CELL, {"gru_jax": {}})
    (tmp_path / "gru" / name).write_bytes(b"[")
    with pytest.raises(ValueError, match="damaged, no valid"):
        open_checkpoint(tmp_path / "gru")
    (tmp_path / "gru" / name).unlink()
    if name != "_CHECKPOINT_METADATA":
        with pytest.raises(ValueError, match="damaged, no valid|an Orbax checkpoint without a tree of arrays"):
            open_checkpoint(tmp_path / "gru")
