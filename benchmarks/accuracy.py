"""Digits of agreement with NIST's certified values, ours beside SciPy's.

``python -m benchmarks.accuracy``, with ``--tight`` for all the accuracy there is. SciPy has the
same functions and the same exact Jacobians. Both sides' standard deviations are computed here,
by QR, from the Jacobian which the solver handed back: they judge where it stopped. ``--curve-fit``
adds ours through `curve_fit`, with the standard deviations which that gives.
"""

import argparse
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from scipy import optimize

import optx_lite as ox

from .problems import nist
from .table import Column, Table, put, style

TIGHT = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)
FALSE = 4  # a claim of success with fewer digits than this is a false one


@dataclass
class Score:
    """One solver's results over all runs."""

    name: str
    lre: list[float] = field(default_factory=list)
    deviations: list[float] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)
    nfev: list[int] = field(default_factory=list)

    def add(self, problem: nist.Problem, result: Any) -> str:
        """Take in one result; its cell of the table."""
        self.lre.append(nist.lre(result.x, problem.certified))
        self.deviations.append(nist.lre(standard_deviations(problem, result), problem.certified_sd))
        self.success.append(bool(result.success))
        self.nfev.append(int(result.nfev))
        false = self.success[-1] and self.lre[-1] < FALSE
        mark = "!" if false else " " if self.success[-1] else "f"
        return f"{style(f'{self.lre[-1]:.1f}', 'green' if self.lre[-1] >= 6 else 'red')}{mark}"

    def summary(self) -> list[Any]:
        lre = np.array(self.lre)
        false = int(np.sum(np.array(self.success) & (lre < FALSE)))
        deviations = int(np.sum(np.array(self.deviations) >= 6))
        counts = [int(np.sum(lre >= least)) for least in (6, 8, 10)]
        return [self.name, len(lre), *counts, deviations, false, f"{np.median(self.nfev):.0f}"]


def standard_deviations(problem: nist.Problem, result: Any) -> np.ndarray:
    """sqrt of the diagonal of (JᵀJ)⁻¹ s², by QR of J with columns of length 1."""
    if isinstance(result, Curve):
        return result.perr
    jacobian, f = np.asarray(result.jac, float), np.asarray(result.fun, float)
    lengths = np.linalg.norm(jacobian, axis=0)
    if not (np.isfinite(jacobian).all() and lengths.all()):
        return np.full(jacobian.shape[1], np.nan)
    upper = np.linalg.qr(jacobian / lengths, mode="r")
    try:
        inverse = np.linalg.inv(upper)
    except np.linalg.LinAlgError:
        return np.full(jacobian.shape[1], np.nan)
    return np.linalg.norm(inverse, axis=1) / lengths * np.sqrt(f @ f / problem.dof)


@functools.cache
def compiled(residuals: Callable) -> tuple[Callable, Callable]:
    return jax.jit(residuals), jax.jit(jax.jacfwd(residuals))


def by_scipy(problem: nist.Problem, start: np.ndarray, **options: Any) -> Any:
    function, jacobian = compiled(problem.residuals)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # far starts overflow, and SciPy says so
        return optimize.least_squares(
            lambda b: np.asarray(function(b, problem.x, problem.y)),
            start,
            jac=lambda b: np.asarray(jacobian(b, problem.x, problem.y)),
            **options,
        )


def by_us(problem: nist.Problem, start: np.ndarray, **options: Any) -> ox.Result:
    args = (problem.x, problem.y)
    return ox.least_squares(problem.residuals, start, args=args, **options)


@dataclass
class Curve:
    """What `curve_fit` gives."""

    x: np.ndarray
    perr: np.ndarray
    success: bool
    nfev: int


def by_curve_fit(problem: nist.Problem, start: np.ndarray, **options: Any) -> Curve:
    model = nist.MODELS[problem.name]
    try:
        fit = ox.curve_fit(model, problem.x, problem.y, start, **options)
    except RuntimeError:
        return Curve(np.full(start.size, np.nan), np.full(start.size, np.nan), False, 0)
    return Curve(np.asarray(fit.popt), np.asarray(fit.perr), True, fit.result.nfev)


def compare(
    methods: list[str], folder: Any, options: dict[str, float], curves: bool = False
) -> list[Score]:
    """Print the digits of every run; the scores, ours and SciPy's for each method."""
    solvers = {"optx_lite": by_us, "SciPy": by_scipy}
    solvers |= {"curve_fit": by_curve_fit} if curves else {}
    scores = {(m, s): Score(f"{s} {m}") for m in methods for s in solvers}
    columns = [Column(f"{method} {name}", len(method) + 10) for method, name in scores]
    table = Table(Column("problem", 9, "<"), Column("start", 5, "<"), *columns)
    table.header()
    for name in nist.names(folder):
        problem = nist.load(name, folder)
        for start, label in zip(problem.starts, ("far", "near"), strict=True):
            cells = [
                score.add(problem, solvers[solver](problem, start, method=method, **options))
                for (method, solver), score in scores.items()
            ]
            table.row(name if label == "far" else "", label, *cells)
    return list(scores.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["trf", "lm", "dogbox"])
    parser.add_argument("--tight", action="store_true", help="all the accuracy there is")
    parser.add_argument("--curve-fit", action="store_true", help="through `curve_fit`, too")
    parser.add_argument("--data", default=nist.DATA, help="a folder with more of NIST's files")
    parser.add_argument("--write", metavar="FILE", help="put the summary into this Markdown file")
    chosen = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    options = TIGHT if chosen.tight else {}
    scores = compare(chosen.methods, chosen.data, options, chosen.curve_fit)
    print("\nDigits (LRE): f ended without success, ! success claimed with fewer than four.\n")
    table = Table(
        Column("solver", 16, "<"), Column("runs", 4), Column("≥ 6", 5), Column("≥ 8", 5),
        Column("≥ 10", 5), Column("sd ≥ 6", 6), Column("false success", 13),
        Column("evaluations", 11),
    )  # fmt: skip
    table.header()
    for score in scores:
        table.row(*score.summary())
    if chosen.write:
        put(table.markdown(), "accuracy", chosen.write)


if __name__ == "__main__":
    main()
