"""What the front doors of elementwise searches take: tolerances, limits, counts, first points.

The messages are SciPy's, where it has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike, PyTree

from ..jax_support.types import Count, Number, Options
from ..problem.arguments import check_callable
from ..problem.elementwise import ElementwiseProblem
from ..problem.pytrees import as_dtype, is_concrete
from ..solvers.elementwise.chandrupatla_minimum import ChandrupatlaMinimum
from ..solvers.elementwise.chandrupatla_root import ChandrupatlaRoot

TOLERANCES = ("xatol", "xrtol", "fatol", "frtol")


def check_search(
    f: object, tolerances: Options | None, maxiter: Count | None, callback: Callable | None = None
) -> Options:
    """Check what both searches take; the tolerances that are given."""
    check_callable(f, "`func`", ValueError)
    unknown = set(tolerances or {}) - set(TOLERANCES)
    if unknown:
        raise TypeError(f"`tolerances` may have the keys {TOLERANCES}, got {sorted(unknown)}.")
    chosen = {name: tol for name, tol in (tolerances or {}).items() if tol is not None}
    if not all(map(_is_tolerance, chosen.values())):
        raise ValueError(f"Tolerances must be non-negative scalars, got {chosen}.")
    if maxiter is not None:
        check_maxiter(maxiter)
    if callback is not None:
        check_callable(callback, "`callback`", ValueError)
    return chosen


def _is_tolerance(tol: Number) -> bool:
    if isinstance(tol, Tracer):
        return tol.ndim == 0
    number = np.asarray(tol)
    return number.dtype.kind in "iuf" and number.ndim == 0 and bool(number >= 0)


def check_maxiter(maxiter: Count | None) -> None:
    """Raise unless it is a count."""
    if isinstance(maxiter, Tracer):
        return
    number = np.asarray(maxiter)
    if number.dtype.kind not in "iuf" or number.ndim or not number >= 0 or number % 1:
        raise ValueError(f"`maxiter` must be a non-negative integer, got {maxiter!r}.")


def count(maxiter: PyTree) -> PyTree:
    """A count as an array: another one then compiles nothing anew."""
    if isinstance(maxiter, Tracer):
        return maxiter.astype(jnp.int32)
    return np.asarray(min(maxiter, np.iinfo(np.int32).max), np.int32)


def limits_of(xmin: ArrayLike | None, xmax: ArrayLike | None, factor: Number | None) -> Options:
    """The limits and the factor of a bracket, with SciPy's defaults."""
    return {
        "xmin": -math.inf if xmin is None else xmin,
        "xmax": math.inf if xmax is None else xmax,
        "factor": 2.0 if factor is None else factor,
    }


def check_bracket(f: object, maxiter: Count | None, limits: Options, **points: PyTree) -> None:
    """Check what both brackets take."""
    check_callable(f, "`func`", ValueError)
    for name, value in {**points, **limits}.items():
        if value is not None and jnp.iscomplexobj(np.asarray(value) if _is_list(value) else value):
            raise ValueError(f"`{name}` must be numeric and real, got {value!r}.")
    factor = limits["factor"]
    if is_concrete(factor) and not np.all(np.asarray(factor) > 1):
        raise ValueError(f"All elements of `factor` must be greater than 1, got {factor}.")
    check_maxiter(maxiter)


def check_points(init: PyTree, count: int) -> tuple[PyTree, ...]:
    """The first points, if there are so many."""
    try:
        points = tuple(init)
    except TypeError:
        points = ()
    if len(points) != count or isinstance(init, (dict, str)):
        raise ValueError(f"`init` must hold {count} points, got {init!r}.")
    return points


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


def minimum_finder(
    problem: ElementwiseProblem, chosen: Options, maxiter: Count | None
) -> ChandrupatlaMinimum:
    """The solver with these tolerances, and SciPy's where none is given."""
    tiny, eps = _precision(problem)
    default = {"xatol": tiny, "xrtol": math.sqrt(eps), "fatol": tiny, "frtol": tiny}
    return ChandrupatlaMinimum(**_in_dtype(default | chosen, problem), maxiter=count(maxiter))


def root_finder(
    problem: ElementwiseProblem, chosen: Options, maxiter: Count | None
) -> ChandrupatlaRoot:
    """The solver with these tolerances, and SciPy's where none is given."""
    tiny, eps = _precision(problem)
    if maxiter is None:
        maxiter = math.ceil(math.log2(float(jnp.finfo(problem.dtype).max)) - math.log2(tiny))
    default = {"xatol": 4 * tiny, "xrtol": 4 * eps, "fatol": tiny, "frtol": 0.0}
    return ChandrupatlaRoot(**_in_dtype(default | chosen, problem), maxiter=count(maxiter))


def _precision(problem: ElementwiseProblem) -> tuple[float, float]:
    """The smallest normal number of the dtype, and its eps."""
    info = jnp.finfo(problem.dtype)
    return float(info.smallest_normal), float(info.eps)


def _in_dtype(tolerances: Options, problem: ElementwiseProblem) -> Options:
    return {
        name: tol if tol is None else as_dtype(tol, problem.dtype)
        for name, tol in tolerances.items()
    }
