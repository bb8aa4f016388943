"""Whether a minimum is found, and at what price: ``python -m benchmarks.cutest``.

CUTEst problems of the package sif2jax, bounded and free, ours beside SciPy's L-BFGS-B, with the
default options or ``--tight``, asked for all the accuracy there is. A run has solved its problem
when it comes to within 1e-6 |f*| + 1e-9 (f0 - f*) of the lowest value f* that any run reached,
the tight ones included. A claim is false when the run says success and has not. Some ends are
local minima, where no local method is to blame; they count as well, for both.
"""

import argparse
import importlib
import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .table import Column, Table, heading, waiting

BOUNDED = [
    "hs1", "hs2", "hs3", "hs4", "hs5", "hs25", "hs38", "hs45", "hs110", "hs3mod", "biggs3",
    "biggs5", "box2", "camel6", "hart6", "hatflda", "hatfldb", "hatfldc", "himmelp1", "eg1",
    "exp2b", "explin", "logros", "maxlika", "palmer1", "palmer1a", "palmer1b", "palmer2",
    "palmer3", "palmer3a", "palmer4", "palmer5a", "palmer5b", "palmer6a", "palmer7a",
    "palmer8a", "pfit1ls", "pfit2ls", "s368", "santals", "linverse", "nonscomp",
]  # fmt: skip
FREE = [
    "akiva", "allinitu", "bard", "beale", "biggs6", "box3", "brownal", "brownbs", "brownden",
    "chnrosnb", "cliff", "cube", "denschna", "denschnc", "denschnf", "dixmaana1", "engval2",
    "errinros", "extrosnb", "genrose", "growthls", "gulf", "hatfldd", "heart6ls", "helix",
    "himmelbf", "kowosb", "liarwhd", "mancino", "nondquar", "osbornea", "osborneb", "palmer1c",
    "palmer5c", "penalty1", "powellsg", "rosenbr", "tointgss", "vardim", "vibrbeam", "watson",
    "woods",
]  # fmt: skip
MOST = 15_000
TIGHT = {"ftol": 1e-16, "gtol": 1e-12}


@dataclass
class Run:
    """What became of one solve."""

    value: float
    nfev: int
    success: bool


@dataclass
class Case:
    """A problem on flat vectors."""

    fun: Any
    x0: np.ndarray
    bounds: np.ndarray | None


def load(name: str, bounded: bool) -> Case:
    folder = "bounded" if bounded else "unconstrained"
    module = importlib.import_module(f"sif2jax.cutest._{folder}_minimisation.{name}")
    kinds = [
        kind for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__
        and hasattr(kind, "objective") and not getattr(kind, "__abstractmethods__", None)
    ]  # fmt: skip
    problem = kinds[0]()
    x0, restore = ravel_pytree(problem.y0)
    x0 = x0.astype(float)

    def fun(x):
        return jnp.asarray(problem.objective(restore(x), problem.args)).reshape(())

    if not bounded:
        return Case(fun, np.asarray(x0), None)
    sides = [np.broadcast_to(ravel_pytree(side)[0], x0.shape) for side in problem.bounds]
    return Case(fun, np.clip(x0, *sides), np.stack(sides, axis=1).astype(float))


def by_optx_lite(case: Case, options: dict[str, float]) -> Run:
    import optx_lite as ox

    limits = {"maxfun": MOST, "maxiter": MOST}
    res = ox.minimize(case.fun, case.x0, bounds=case.bounds, options=limits | options)
    return Run(float(res.fun), res.nfev, res.success)


def by_scipy(case: Case, options: dict[str, float]) -> Run:
    from scipy import optimize

    both = jax.jit(jax.value_and_grad(case.fun))

    def numbers(x):
        value, gradient = both(x)
        return float(value), np.asarray(gradient, float)

    res = optimize.minimize(
        numbers, case.x0, jac=True, method="L-BFGS-B", bounds=case.bounds,
        options={"maxfun": MOST, "maxiter": MOST} | options,
    )  # fmt: skip
    return Run(float(res.fun), int(res.nfev), bool(res.success))


SOLVERS = {"optx_lite": by_optx_lite, "SciPy": by_scipy}


def measure(names: list[tuple[str, bool]], options: dict[str, float]) -> None:
    table = Table(
        Column("problem", 12, "<"), Column("n", 5), Column("evaluations", 11), Column("SciPy", 6),
        Column("f", 14), Column("SciPy", 14), Column("", 30, "<"),
    )  # fmt: skip
    table.header()
    solved, false, ratios = dict.fromkeys(SOLVERS, 0), dict.fromkeys(SOLVERS, 0), []
    for name, bounded in names:
        waiting(name)
        case = load(name, bounded)
        start = float(case.fun(jnp.asarray(case.x0)))
        runs = {solver: solve(case, options) for solver, solve in SOLVERS.items()}
        further = [solve(case, TIGHT) for solve in SOLVERS.values()] if not options else []
        best = min(run.value for run in [*runs.values(), *further] if np.isfinite(run.value))
        notes, there = [], {}
        for solver, run in runs.items():
            there[solver] = run.value - best <= 1e-6 * abs(best) + 1e-9 * (start - best)
            solved[solver] += there[solver]
            false[solver] += run.success and not there[solver]
            if not there[solver]:
                notes.append(f"{solver} {'false' if run.success else 'gives up'}")
        ours, theirs = runs.values()
        if all(there.values()):
            ratios.append(ours.nfev / theirs.nfev)
        table.row(
            name, case.x0.size, ours.nfev, theirs.nfev, f"{ours.value:.7g}", f"{theirs.value:.7g}",
            ", ".join(notes),
        )  # fmt: skip
    heading("In short")
    for solver in SOLVERS:
        print(f"{solver:10s} solved {solved[solver]} of {len(names)}, false claims {false[solver]}")
    print(
        f"evaluations beside SciPy's where both solved it: median {np.median(ratios):.2f}, "
        f"above twice in {sum(ratio > 2 for ratio in ratios)} of {len(ratios)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tight", action="store_true", help="ask for all the accuracy there is")
    parser.add_argument("--only", nargs="+", help="some of the problems")
    chosen = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    names = [(name, True) for name in BOUNDED] + [(name, False) for name in FREE]
    names = [pair for pair in names if not chosen.only or pair[0] in chosen.only]
    measure(names, TIGHT if chosen.tight else {})


if __name__ == "__main__":
    main()
