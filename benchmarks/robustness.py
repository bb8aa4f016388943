"""Which minima are found from near and far starts: ``python -m benchmarks.robustness``.

All problems of Moré, Garbow and Hillstrom and of NIST, free from 1, 10 and 100 times the
standard start (NIST: from its two), and the former in two boxes as well, which cut the solution
off in every second variable; ours beside SciPy with the same functions and exact Jacobians. A run
has found its problem's best minimum when its cost is within 1e-6 relative of the lowest that any
run reached, plus 1e-12 of the start's. It is local if a second-order look (a projected gradient
small beside its terms, no direction of negative curvature) finds nothing below; and false if it
says success and is neither.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

import optx_lite as ox

from .problems import mgh, nist
from .table import Column, Table

METHODS = ("trf", "dogbox", "lm")


@dataclass(frozen=True)
class Case:
    """One problem from one start, in a box or free."""

    name: str
    residuals: Callable
    x0: np.ndarray
    bounds: tuple[Any, Any] | None

    @property
    def group(self) -> str:
        return "free" if self.bounds is None else "bounded"


def cases() -> Iterator[Case]:
    """All of them, always in the same order."""
    for problem in mgh.by_name.values():
        for factor in (1, 10, 100):
            yield Case(f"{problem.name} x{factor}", problem.residuals, problem.start(factor), None)
        for k in (0, 1):
            x0 = problem.start(1)
            yield Case(f"{problem.name} box{k}", problem.residuals, x0, _box(problem, x0, k))
    for problem in map(nist.load, nist.names()):
        for k, x0 in enumerate(problem.starts):
            fun = _on_data(problem)
            yield Case(f"{problem.name} start{k + 1}", fun, x0, None)


def _on_data(problem: Any) -> Callable:
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
    return lambda b: problem.residuals(b, x, y)


def _box(problem: Any, x0: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Around the start; every second variable may not go to where a free solve takes it."""
    fun = jax.jit(problem.residuals)
    jac = jax.jit(jax.jacfwd(problem.residuals))
    free = optimize.least_squares(
        lambda x: np.asarray(fun(x)), x0, lambda x: np.asarray(jac(x)), max_nfev=500
    ).x
    size = 0.1 + np.abs(x0) + np.abs(free)
    low, high = np.minimum(x0, free) - 2 * size, np.maximum(x0, free) + 2 * size
    cut = np.arange(len(x0)) % 2 == k
    middle = 0.5 * (x0 + free)
    high = np.where(cut & (free > x0), middle, high)
    low = np.where(cut & (free < x0), middle, low)
    return low, high


def ours(case: Case, method: str) -> dict[str, Any]:
    bounds = {} if case.bounds is None else {"bounds": case.bounds}
    result = ox.least_squares(case.residuals, case.x0, method=method, **bounds)
    return _row(case, np.asarray(result.x), result)


def scipys(case: Case, method: str, **options: Any) -> dict[str, Any]:
    fun, jac = jax.jit(case.residuals), jax.jit(jax.jacfwd(case.residuals))
    bounds = {} if case.bounds is None else {"bounds": case.bounds}
    if case.bounds is not None and not np.all(case.bounds[0] < case.bounds[1]):
        return {"cost": np.inf, "x": [], "nfev": 0, "success": False, "status": -1}
    try:
        result = optimize.least_squares(
            lambda x: np.asarray(fun(x)), case.x0, lambda x: np.asarray(jac(x)),
            method=method, **bounds, **options,
        )  # fmt: skip
    except (ValueError, np.linalg.LinAlgError):
        return {"cost": np.inf, "x": [], "nfev": 0, "success": False, "status": -1}
    return _row(case, result.x, result)


def _row(case: Case, x: np.ndarray, result: Any) -> dict[str, Any]:
    f = np.asarray(case.residuals(jnp.asarray(x)), np.longdouble)
    return {
        "cost": float(0.5 * f @ f),
        "x": [float(v) for v in x],
        "nfev": int(result.nfev),
        "success": bool(result.success),
        "status": int(result.status),
    }


def start_cost(case: Case) -> float:
    f = np.asarray(case.residuals(jnp.asarray(case.x0)), np.longdouble)
    return float(0.5 * f @ f)


def is_local(case: Case, x: np.ndarray) -> bool:
    """Whether a long tight solve from there, by SciPy, finds next to nothing."""
    case = Case(case.name, case.residuals, np.asarray(x), case.bounds)
    before = start_cost(case)
    after = min(
        scipys(case, method, ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=2000, x_scale=scale)[
            "cost"
        ]
        for method in ("trf", "dogbox")
        for scale in (1.0, "jac")
    )
    return after >= before * (1 - 1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.robustness")
    parser.add_argument("--json", help="write every run into this file")
    parser.add_argument("--against", help="compare with a file written before")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", True)
    before = json.loads(Path(options.against).read_text()) if options.against else {}
    chosen = [case for case in cases() if options.only in case.name]
    runs: dict[str, dict[str, Any]] = {}
    for number, case in enumerate(chosen):
        old = before.get(case.name, {})
        runs[case.name] = {"start": start_cost(case)}
        for method in METHODS:
            if case.bounds is not None and method == "lm":
                continue
            kept = old.get(f"scipy {method}")
            runs[case.name][f"scipy {method}"] = kept or scipys(case, method)
            if method in options.methods:
                runs[case.name][f"ours {method}"] = ours(case, method)
        if number % 10 == 9:
            jax.clear_caches()
    if options.json:
        Path(options.json).write_text(json.dumps(runs))
    judge(chosen, runs, before)


def judge(chosen: list[Case], runs: dict[str, Any], before: dict[str, Any]) -> None:
    """Print who found what, and each run whose fate has changed."""
    columns = ("solver", "group", "runs", "best", "local", "failed", "false", "nfev")
    table = Table(Column("solver", 12, "<"), Column("group", 8, "<"), *(
        Column(name, 7) for name in columns[2:]
    ))  # fmt: skip
    counts: dict[tuple[str, str], dict[str, float]] = {}
    for case in chosen:
        row = runs[case.name]
        older = before.get(case.name, {})
        every = [run for r in (row, older) for key, run in r.items() if key != "start"]
        best = min(run["cost"] for run in every)
        for who in [key for key in row if key != "start"]:
            fate = _fate(case, row[who], best, row["start"])
            count = counts.setdefault((who, case.group), dict.fromkeys(columns[2:], 0))
            count["runs"] += 1
            count[fate] += 1
            count["nfev"] += row[who]["nfev"]
            if who.startswith("ours"):
                _tell(case, who, fate, row[who], older.get(who), best)
    table.header()
    for (who, group), count in sorted(counts.items()):
        table.row(who, group, *(count[name] for name in columns[2:]))


def _fate(case: Case, run: dict[str, Any], best: float, start: float) -> str:
    if run["cost"] <= best * (1 + 1e-6) + 1e-12 * start:
        return "best" if run["success"] else "failed"
    if not run["success"]:
        return "failed"
    return "local" if is_local(case, np.array(run["x"])) else "false"


def _tell(case: Case, who: str, fate: str, run: Any, old: Any, best: float) -> None:
    changed = old is not None and (
        old["success"] != run["success"]
        or not old["cost"] * (1 - 1e-6) <= run["cost"] <= old["cost"] * (1 + 1e-6)
        or not 0.8 * old["nfev"] <= run["nfev"] <= 1.25 * old["nfev"]
    )
    if fate == "false" or changed:
        was = f"  was {old['cost']:.9g} status {old['status']} nfev {old['nfev']}" if old else ""
        print(
            f"{case.name:34} {who:12} {fate:7} {run['cost']:.9g} (best {best:.9g}) "
            f"status {run['status']} nfev {run['nfev']}{was}"
        )


if __name__ == "__main__":
    main()
