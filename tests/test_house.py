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
FLOORS = [
    {"_shapes"},
    {"params", "sequences"},
    {"cell"},
    {"scan", "strategy", "tangent", "quantize"},
    {"gradients", "layers", "quantized_params"},
    {"stack"},
    # weights/, from what all formats share, by what their files are made of, to the GRUs in them.
    {
        f"weights.{name}"
        for name in (
            "found",
            "gate_order",
            "reference",
            "signatures",
            "zips",
            "replacing",
            "keras_config",
            "pytorch_names",
        )
    },
    {
        *(f"weights.{name}" for name in ("pytorch_original", "reparametrized", "torchscript", "quantized_pytorch")),
        *(f"weights.{name}" for name in ("trees", "keras_hdf5", "keras_live", "onnx_file", "safetensors")),
    },
    {f"weights.{name}" for name in ("flax_cells", "keras_files", "onnx_graph", "arrays", "quantized_files")},
    {"weights.bundles", "weights.onnx_layers", "quantized"},
    {"weights.onnx_original", "quantized_linen", "quantized_nnx"},
    {"linen", "nnx"},
    {
        *(f"weights.{name}" for name in ("pytorch", "flax", "own", "equinox", "haiku", "keras")),
        *(f"weights.{name}" for name in ("onnx", "onnx_export")),
    },
    # Any file: its tensors, the GRUs among them, and the way out.
    {"weights.torch_files", "weights.search"},
    {"weights.checkpoint", "weights.writers"},
    {"verify"},
    {"cli"},
    {"__main__"},
]
# Modules that are tested through what stands on them.
SEEN_THROUGH = {
    "_shapes": "stack",
    "__main__": "cli",
    "layers": "stack",
    "quantized_params": "quantized",
    "tangent": "gradients",
    "found": "checkpoint",
    "gate_order": "onnx",
    "reference": "onnx_original",
    "trees": "flax",
    "flax_cells": "flax",
    "replacing": "writers",
    "pytorch_names": "pytorch",
    "keras_config": "keras",
    "keras_live": "keras",
    "keras_hdf5": "keras_files",
}
OPTIONAL = {"torch", "onnx", "onnxruntime", "keras", "h5py", "safetensors", "tensorflow", "equinox", "haiku"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def floor_of(module):
    return next(floor for floor, modules in enumerate(FLOORS) if module in modules)


def imports_of(path):
    """The modules of this package that a file imports, and the names of the other packages."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            inside = node.module in ("gru_jax", "gru_jax.weights")
            names = [f"{node.module}.{alias.name}" for alias in node.names] if inside else [node.module]
        for name in names:
            package, _, module = name.partition(".")
            if package == "gru_jax":
                ours.add(module)
            else:
                others.add(package)
    return ours, others


def test_every_module_has_a_floor_and_every_floor_its_modules():
    assert {name_of(path) for path in MODULES} == set().union(*FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_lower_floors_only(path):
    above = {module for module in imports_of(path)[0] if floor_of(module) >= floor_of(name_of(path))}
    assert not above, f"{name_of(path)} on floor {floor_of(name_of(path))} imports {above}"


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
        folder = ROOT / "tests" / path.parent.relative_to(PACKAGE)
        assert (folder / f"test_{SEEN_THROUGH.get(path.stem, path.stem)}.py").exists(), path


def test_the_public_names_are_those_of_the_documentation():
    import gru_jax

    names = {name for name in vars(gru_jax) if not name.startswith("_")}
    assert names >= {
        *("GRUConfig", "init_params", "infer_config", "gru_step", "gru", "stacked_step"),
        *("PackedSequence", "pack_padded_sequence", "pad_packed_sequence"),
        *("from_torch", "to_torch", "find_grus", "load", "save", "linen", "nnx", "quantized"),
    }
    for name in names:
        public = getattr(gru_jax, name)
        if callable(public):
            assert public.__doc__, name
            assert ">>>" in public.__doc__, f"{name} has no example"


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
    assert {"gru_jax/py.typed", "gru_jax/weights/pytorch.py"} <= held
    assert any(name.endswith("LICENSE") for name in held)

    target = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "-t", str(target), str(wheel)], check=True)
    code = f"import sys; sys.path.insert(0, {str(target)!r}); import gru_jax; print(gru_jax.__file__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert pathlib.Path(ran.stdout.strip()).is_relative_to(target)


def test_no_optional_package_is_missing_from_this_run():
    """The suite compares with live PyTorch; without it there would be nothing to compare with."""
    assert importlib.util.find_spec("torch")
