"""The front door `minimize_scalar`: bracket and minimum in one call, for arrays of problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..driver.elementwise import BracketAndSearch, Search, solve
from ..jax_support.types import Args, Bounds, Number, Options
from ..problem.arguments import LOWER, UPPER, as_pair, as_tuple, check_order, real_array
from ..problem.elementwise import elementwise_problem
from ..problem.pytrees import is_concrete
from ..results.elementwise import ScalarResult
from ..solvers.elementwise.bracket_minimum import BracketMinimum
from .elementwise_arguments import (
    TOLERANCES,
    check_bracket,
    check_search,
    count,
    limits_of,
    minimum_finder,
)

BRACKET_STEPS = 1000
METHODS = ("chandrupatla", "brent", "golden", "bounded")


def minimize_scalar(
    fun: Callable[..., PyTree],
    bracket: PyTree = None,
    bounds: Bounds = None,
    args: Args = (),
    method: str | None = None,
    tol: float | None = None,
    options: Options | None = None,
) -> ScalarResult:
    """Minimise functions of one variable, as many at once as all inputs broadcast to.

    The signature is that of ``scipy.optimize.minimize_scalar``, with arrays in the place of
    numbers: a bracket is sought downhill, then Chandrupatla's method finds the minimum in it (see
    `elementwise.bracket_minimum` and `elementwise.find_minimum`). The minimum is a local one; the
    global one between two bounds is found by `chebyshev.minimum`.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)``, elementwise: entry i of its value depends on entries i alone.
    bracket : (xa, xb) or (xa, xb, xc) of arrays, optional
        Two points, where the search downhill begins; or three, f no larger at the middle one.
        Default: (0, 1).
    bounds : (lower, upper) of arrays, or object with ``lb`` and ``ub``, optional
        The minimum is sought between them, and may lie on one; infinite ones are none. In the
        place of a bracket.
    args : tuple of arrays, or one array
        Further arguments of ``fun``.
    method : {'chandrupatla', 'brent', 'golden', 'bounded'}, optional
        One algorithm runs for all of these names, Chandrupatla's, which fits parabolas and falls
        back on golden sections as Brent's does. SciPy's names ask for what they do in SciPy:
        'bounded' for bounds, 'brent' and 'golden' for none.
    tol : float, optional
        Sets ``xatol`` if there are bounds, else ``xrtol``, as in SciPy.
    options : dict, optional
        xrtol (or xtol) : float
            Relative tolerance of x: the root of eps.
        xatol : float
            Absolute tolerance of x: eps times the width of the bracket that is found first, so
            that 0 is an answer like others.
        fatol, frtol : float
            As the ``tolerances`` of `elementwise.find_minimum`.
        maxiter : int, 500
            Most iterations, once a bracket is found.
        polish : bool, True
            Newton's steps on the derivative at the end, which give x to eps rather than to the
            root of eps; for a function that has two derivatives.
        disp : bool, False
            Print why the search ended (not inside a trace).

    Returns
    -------
    ScalarResult
        ``x`` and ``fun`` are differentiable in args, in what ``fun`` closes over and, where the
        minimum lies on a bound, in the bound. Between equal bounds x follows the one that ``fun``
        falls towards, the lower one if it does so to neither: so says ``active_mask``.

    Raises
    ------
    ValueError
        For bad arguments; the message names the argument. Inside ``jit`` the status is -5.
    TypeError
        If ``fun`` cannot be traced; if a derivative is asked for and ``fun`` has none.

    Notes
    -----
    Where ``fun`` is NaN or infinite the search turns away, as from a wall. Functions without a
    derivative will do (`jax.pure_callback`), or with one in a single mode (`jax.custom_vjp`,
    `jax.lax.while_loop`). x is known to eps times the distance between the bounds at best: one
    that is closer to a bound may not be distinguished from it.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optx_lite as ox
    >>> f = lambda x, c: jnp.cosh(x - c)
    >>> c = jnp.array([0.5, 2.0, 7.0])
    >>> print(ox.minimize_scalar(f, args=c).x.round(2))
    [0.5 2.  7. ]
    >>> res = ox.minimize_scalar(f, bounds=(0.0, 3.0), args=c)
    >>> print(res.x.round(2), res.active_mask)
    [0.5 2.  3. ] [0 0 1]
    >>> print(jax.grad(lambda top: ox.minimize_scalar(f, bounds=(0.0, top), args=7.0).x)(3.0))
    1.0
    """
    _check_method(method, bracket, bounds)
    chosen = _options(options, tol, "xatol" if bounds is not None else "xrtol")
    maxiter, polish = chosen.pop("maxiter", 500), chosen.pop("polish", True)
    disp = chosen.pop("disp", False)
    chosen = check_search(fun, chosen, maxiter)
    points, limits = _first_points(bracket, bounds)
    check_bracket(fun, BRACKET_STEPS, limits, **dict(zip(("xl", "xm", "xr"), points, strict=True)))
    problem = elementwise_problem(fun, (*points, *limits.values()), as_tuple(args), None)
    resolution = float(jnp.finfo(problem.dtype).eps)
    search = BracketAndSearch(
        Search(BracketMinimum(count(BRACKET_STEPS), resolution)),
        Search(minimum_finder(problem, {"xatol": None, **chosen}, maxiter)),
        bounded=bounds is not None,
        polish=bool(polish),
    )
    result = solve(search, problem)
    if disp and is_concrete(result):
        print(*np.unique(result.message), sep="\n")
    return result


def _check_method(method: Any, bracket: PyTree, bounds: Bounds) -> None:
    """SciPy's rules for its names."""
    if str(method).lower() == "chebyshev":
        raise ValueError(
            "`method` 'chebyshev' is a search for the global minimum of one function: use "
            "`chebyshev.minimum(fun, lower, upper, args)`."
        )
    if method is not None and str(method).lower() not in METHODS:
        raise ValueError(f"`method` must be None or one of {METHODS}, got {method!r}.")
    if bracket is not None and bounds is not None:
        raise ValueError("`bracket` and `bounds` must not both be given.")
    name = str(method).lower()
    if bounds is not None and name in ("brent", "golden"):
        raise ValueError(f"Use of `bounds` is incompatible with 'method={method}'.")
    if bounds is None and name == "bounded":
        raise ValueError("The `bounds` parameter is mandatory for method `bounded`.")


def _options(options: Options | None, tol: Number | None, sets: str) -> Options:
    """The options that are given, under our names."""
    chosen = {name: value for name, value in (options or {}).items() if value is not None}
    unknown = set(chosen) - {*TOLERANCES, "xtol", "maxiter", "polish", "disp"}
    if unknown:
        raise ValueError(f"`options`: unknown key {sorted(unknown)}.")
    if "xtol" in chosen:
        if "xrtol" in chosen:
            raise ValueError("`options`: 'xtol' is another name of 'xrtol'; give one of them.")
        chosen["xrtol"] = chosen.pop("xtol")
    return chosen if tol is None else {sets: tol, **chosen}


def _first_points(bracket: PyTree, bounds: Bounds) -> tuple[tuple[PyTree, ...], Options]:
    """Three points in order, and the limits."""
    if bounds is not None:
        return _points_within(bounds)
    points = (0.0, 1.0) if bracket is None else tuple(bracket)
    if len(points) not in (2, 3):
        raise ValueError(f"`bracket` must have two or three points, got {len(points)}.")
    points = tuple(map(jnp.asarray, points))
    low, high = jnp.minimum(points[0], points[-1]), jnp.maximum(points[0], points[-1])
    middle = points[1] if len(points) == 3 else low + (high - low) / 2
    ordered = (low < middle) & (middle < high) & (high - low < jnp.inf)
    if is_concrete(ordered) and not np.all(ordered):
        raise ValueError(
            "`bracket` must be two different numbers, or three in rising or falling order, all "
            f"finite, got {bracket}."
        )
    return (low, middle, high), limits_of(None, None, None)


def _points_within(bounds: Bounds) -> tuple[tuple[PyTree, ...], Options]:
    """The middle of the bounds and a sixteenth of the way to both.

    With a single finite one, a unit from it, or its own size if that is more.
    """
    low, high = as_pair(bounds)
    lower = jnp.asarray(real_array(low, -np.inf, LOWER))
    upper = jnp.asarray(real_array(high, np.inf, UPPER))
    check_order(lower, upper)
    open_below, open_above = jnp.isinf(lower), jnp.isinf(upper)
    middle = lower / 2 + upper / 2
    middle = jnp.where(open_above, lower + jnp.maximum(jnp.abs(lower), 1), middle)
    middle = jnp.where(open_below, upper - jnp.maximum(jnp.abs(upper), 1), middle)
    middle = jnp.where(open_below & open_above, 0, middle)
    free = jnp.maximum(jnp.abs(middle) / 16, 0.5)
    left = middle - jnp.where(open_below, free, middle / 16 - lower / 16)
    right = middle + jnp.where(open_above, free, upper / 16 - middle / 16)
    return (left, middle, right), limits_of(lower, upper, None)
