"""Solves whose lanes or data are spread over devices: the same answers, sharded as the input."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("on_eight_devices.py")
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the program found, by case; it runs once, for all workers of pytest-xdist."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / "on_eight_devices.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        written = shared / "on_eight_devices.json"
        if not written.exists():
            written.write_text(run_program())
        return json.loads(written.read_text())


def run_program():
    root = str(PROGRAM.parent.parent)
    environment = {**os.environ, "XLA_FLAGS": FLAGS, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


LANES = (
    "trf", "trf, bounds", "dogbox, 2-point", "lm, loss", "chunks", "gradient", "minimize",
    "minimize, bounds", "find_root",
)  # fmt: skip


@pytest.mark.parametrize("name", LANES)
@pytest.mark.parametrize("how", ["shard_map", "Explicit", "Auto"])
def test_lanes_on_many_devices(found, how, name):
    case = found[f"{how}: {name}"]
    assert case["difference"] < 1e-7
    assert all(case["sharded"])


@pytest.mark.parametrize("name", ["trf, bounds", "minimize"])
def test_a_solve_on_each_device(found, name):
    case = found[f"shard_map, single: {name}"]
    assert case["difference"] < 1e-7
    assert all(case["sharded"])


@pytest.mark.parametrize("name", ["trf", "lm, closure", "gradient", "minimize"])
@pytest.mark.parametrize("how", ["Explicit", "Auto"])
def test_data_on_many_devices(found, how, name):
    case = found[f"{how}, m: {name}"]
    assert case["difference"] < 1e-7
    if name == "trf":  # the residuals and their Jacobian
        assert any(case["sharded"])


@pytest.mark.parametrize(
    "name", ["gradient", "minimize, gradient", "find_root", "find_root, gradient"]
)
def test_explicit_sharding_outside_of_set_mesh(found, name):
    case = found[f"outside: {name}"]
    assert case["difference"] < 1e-7
    assert all(case["sharded"])


def test_a_sum_over_all_devices_has_one_minimum(found):
    assert found["same on all"]["difference"] < 1e-6


def test_the_derivative_of_a_sum_over_devices_is_refused(found):
    assert all("psum" in text for text in found["refusals"])


def test_devices_do_not_wait_for_each_other(found):
    assert found["waits"] is False
