"""How the package is built: its floors, what it imports, what its wheel holds."""

import ast
import importlib.util
import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "gru_jax"
# The floors of each folder, the ground floor first. Where two modules part, at the folder that holds them both, the one
# that imports stands on a higher floor of that folder than the one that it imports.
FLOORS = {
    "": [
        {"_shapes"},
        {"params", "sequences"},
        {"cell"},
        {"scan", "strategy", "tangent"},
        {"gradients", "layers"},
        {"stack"},
        {"weights"},
        {"quantized"},
        {"linen", "nnx"},
        {"verify"},
        {"cli"},
        {"__main__"},
    ],
    "quantized": [{"numbers"}, {"params"}, {"files", "gru", "pytorch"}, {"linen", "nnx"}],
    "weights": [
        {"declared", "found", "gate_order", "reference", "replacing"},
        {"arrays"},
        {"containers"},
        {"jax", "keras", "onnx", "pytorch", "saving"},
        {"own", "writers"},
        {"search"},
        {"files"},
        {"archives"},
        {"checkpoint"},
    ],
    "weights.containers": [
        {"signatures", "torchscript", "zips"},
        {"bundles", "msgpack", "npz", "orbax", "pytorch", "safetensors"},
        {"index"},
    ],
    "weights.jax": [{"trees"}, {"equinox", "flax_cells", "haiku"}, {"flax"}],
    "weights.keras": [{"config", "hdf5"}, {"files", "live"}, {"exporter", "importer"}],
    "weights.onnx": [{"file"}, {"graph"}, {"layers"}, {"original"}, {"exporter", "importer"}],
    "weights.pytorch": [{"names", "parametrizations"}, {"original"}, {"exporter", "importer"}],
}
# Modules that are tested through another, which stands on them.
SEEN_THROUGH = {
    "_shapes": "stack",
    "__main__": "cli",
    "layers": "stack",
    "tangent": "gradients",
    "quantized.params": "quantized.gru",
    "weights.declared": "weights.saving",
    "weights.files": "weights.checkpoint",
    "weights.gate_order": "weights.onnx.importer",
    "weights.reference": "weights.onnx.original",
    "weights.replacing": "weights.writers",
    "weights.containers.bundles": "weights.archives",
    "weights.jax.flax_cells": "weights.jax.flax",
    "weights.jax.trees": "weights.jax.flax",
    "weights.keras.config": "weights.keras.importer",
    "weights.keras.hdf5": "weights.keras.files",
    "weights.keras.live": "weights.keras.importer",
    "weights.pytorch.names": "weights.pytorch.importer",
}
OPTIONAL = {"torch", "onnx", "onnxruntime", "keras", "h5py", "safetensors", "tensorflow", "equinox", "haiku"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
FACES = sorted(PACKAGE.rglob("__init__.py"))


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def is_module(name):
    path = PACKAGE.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports_of(path):
    """The modules of this package that a file imports."""
    ours = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in (name.removeprefix("gru_jax.") for name in names if name.startswith("gru_jax.")):
            ours.add(name if is_module(name) else name.rpartition(".")[0])
    return ours - {""}


def where_they_part(one, other):
    """The folder that holds two modules, and the names in it of the file or the folder where each of them is."""
    one, other = one.split("."), other.split(".")
    depth = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    assert depth is not None, f"{'.'.join(one)} imports the folder that it is in"
    return ".".join(one[:depth]), one[depth], other[depth]


def test_every_module_has_a_floor_and_every_floor_its_modules():
    for folder, floors in FLOORS.items():
        place = PACKAGE.joinpath(*folder.split(".")) if folder else PACKAGE
        held = {child.stem for child in place.iterdir() if child.suffix == ".py" or (child / "__init__.py").exists()}
        assert held - {"__init__"} == set().union(*floors), folder
    assert {name_of(face.parent) if face.parent != PACKAGE else "" for face in FACES} == set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_lower_floors_only(path):
    for imported in imports_of(path):
        folder, mine, other = where_they_part(name_of(path), imported)
        height = lambda name, floors=FLOORS[folder]: next(i for i, floor in enumerate(floors) if name in floor)
        assert height(mine) > height(other), f"{name_of(path)} imports {imported}, which stands no lower"


@pytest.mark.parametrize("path", FACES, ids=name_of)
def test_a_folders_face_only_hands_names_on(path):
    docstring, *rest = ast.parse(path.read_text()).body
    assert isinstance(docstring, ast.Expr)
    kinds = ast.Import | ast.ImportFrom | ast.Assign
    assert all(isinstance(node, kinds) for node in rest)
    assert [node.targets[0].id for node in rest if isinstance(node, ast.Assign)] == ["__all__"] * bool(rest)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_no_optional_package_when_it_is_loaded(path):
    top = ast.Module([node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.FunctionDef)], [])
    found = {alias.name.split(".")[0] for node in ast.walk(top) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module.split(".")[0] for node in ast.walk(top) if isinstance(node, ast.ImportFrom) and node.module}
    assert not found & OPTIONAL


def test_importing_gru_jax_loads_no_optional_package():
    code = f"import sys, gru_jax; print(sorted({OPTIONAL!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_module_has_its_test_file():
    for path in MODULES:
        *folders, name = SEEN_THROUGH.get(name_of(path), name_of(path)).split(".")
        assert ROOT.joinpath("tests", *folders, f"test_{name}.py").exists(), path


def test_the_public_names_are_those_of_the_documentation():
    import gru_jax

    assert set(gru_jax.__all__) == {
        *("GRUConfig", "init_params", "infer_config", "gru_step", "gru", "stacked_step"),
        *("PackedSequence", "pack_padded_sequence", "pad_packed_sequence"),
        *("from_torch", "to_torch", "find_grus", "load", "save", "quantized"),
    }
    for name in gru_jax.__all__:
        public = getattr(gru_jax, name)
        if callable(public):
            assert public.__doc__, name
            assert ">>>" in public.__doc__, f"{name} has no example"


def test_a_star_import_leaves_flaxs_linen_and_nnx_alone():
    names = {}
    exec("from flax import linen, nnx\nfrom gru_jax import *", names)
    assert names["linen"].__name__ == "flax.linen"
    assert names["nnx"].__name__ == "flax.nnx"
    assert names["gru"].__module__ == "gru_jax.stack"


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_installs(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("gru_jax-*-py3-none-any.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in held if ".dist-info/" not in name} == {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"gru_jax/py.typed", "gru_jax/weights/pytorch/importer.py"} <= held
    assert any(name.endswith("LICENSE") for name in held)

    target = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "-t", str(target), str(wheel)], check=True)
    code = f"import sys; sys.path.insert(0, {str(target)!r}); import gru_jax; print(gru_jax.__file__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert pathlib.Path(ran.stdout.strip()).is_relative_to(target)


def test_no_optional_package_is_missing_from_this_run():
    """The suite compares with live PyTorch; without it there would be nothing to compare with."""
    assert importlib.util.find_spec("torch")
