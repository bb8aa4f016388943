"""A fit whose data are spread over the devices of two processes: SciPy's answer, J not gathered."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize

from tests import on_two_processes as program

FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of the two processes found."""
    path = Path(program.__file__)
    environment = {
        **os.environ, "XLA_FLAGS": FLAGS, "PYTHONPATH": str(path.parent.parent),
        "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    answers = [tmp_path_factory.mktemp("rank") / "answer.json" for _ in range(2)]
    errors = [answer.with_suffix(".txt") for answer in answers]
    both = []
    for rank, (answer, error) in enumerate(zip(answers, errors, strict=True)):
        call = [sys.executable, str(path), str(rank), port, str(answer)]
        with error.open("w") as out:
            both.append(subprocess.Popen(call, env=environment, stdout=out, stderr=out))
    try:
        for one, error in zip(both, errors, strict=True):
            assert one.wait(timeout=300) == 0, error.read_text()[-3000:]
    finally:
        for one in both:
            one.kill()
            one.wait()
    return [json.loads(answer.read_text()) for answer in answers]


def test_the_answer(found):
    exact = scipy.optimize.least_squares(
        lambda p: np.asarray(program.residuals(p, program.T, program.Y)), np.zeros(program.N),
        jac="3-point", x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14,
    )  # fmt: skip
    fit = lambda x: np.sum(np.asarray(program.residuals(np.asarray(x), program.T, program.Y)) ** 2)
    for one in found:
        assert fit(one["x"]) <= fit(exact.x) * (1 + 1e-8)
    assert found[0]["x"] == found[1]["x"]


def test_the_jacobian_is_not_gathered(found):
    # Eight triangles of n + 1 columns are, and the rows that are left.
    triangles = 8 * (program.N + 1) * (program.N + 2)
    assert all(size <= triangles for one in found for size in one["gathered"])
    assert 4 * triangles < program.M * program.N
