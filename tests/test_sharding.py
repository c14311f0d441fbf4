"""More than one device: the tests in `eight_devices/`, in a process that is given eight before JAX starts."""

import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # it starts processes, or takes long

FOLDER = pathlib.Path(__file__).parent / "eight_devices"
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"  # the latter compiles faster


@pytest.mark.parametrize("name", ["batch_split", "parameters_split"])
def test_on_eight_devices(name):
    environment = os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "pytest", str(FOLDER / f"{name}.py"), "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=FOLDER.parent.parent)
    assert ran.returncode == 0, ran.stdout
