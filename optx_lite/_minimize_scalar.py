"""The front door `minimize_scalar`: bracket and minimum in one call, for arrays of problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._elementwise import BracketAndSearch, Polished, Search, solve
from ._elementwise_inputs import (
    TOLERANCES,
    check_bracket,
    check_search,
    count,
    limits_of,
    minimum_finder,
)
from ._elementwise_problem import elementwise_problem
from ._elementwise_result import ScalarResult
from ._inputs import as_tuple
from ._tree import is_concrete
from .solvers.bracket_minimum import BracketMinimum

BRACKET_STEPS = 1000


def minimize_scalar(
    fun: Callable[..., Any],
    bracket: Any = None,
    bounds: Any = None,
    args: Any = (),
    method: str | None = None,
    tol: float | None = None,
    options: dict[str, Any] | None = None,
) -> ScalarResult:
    """Minimise functions of one variable, as many at once as all inputs broadcast to.

    The signature is that of ``scipy.optimize.minimize_scalar``, with arrays in the place of
    numbers: a bracket is sought downhill, then Chandrupatla's method finds the minimum in it (see
    `elementwise.bracket_minimum` and `elementwise.find_minimum`). The minimum is a local one.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)``, elementwise: entry i of its value depends on entries i alone.
    bracket : (xa, xb) or (xa, xb, xc) of arrays, optional
        Two points, where the search downhill begins; or three, f no larger at the middle one.
        Default: (0, 1).
    bounds : (lower, upper) of arrays, optional
        The minimum is sought between them, and may lie on one; infinite ones are none. In the
        place of a bracket.
    args : tuple of arrays, or one array
        Further arguments of ``fun``.
    method : 'chandrupatla', optional
        There is one so far.
    tol : float, optional
        Sets ``xrtol``.
    options : dict, optional
        xatol, xrtol, fatol, frtol : float
            As the ``tolerances`` of `elementwise.find_minimum`.
        maxiter : int, 100
            Most iterations, once a bracket is found.
        polish : bool, True
            Newton's steps on the derivative at the end, which tell x to eps rather than to the
            root of eps.

    Returns
    -------
    ScalarResult
        ``x`` and ``fun`` are differentiable in args, in what ``fun`` closes over and, where the
        minimum lies on a bound, in the bound.

    Raises
    ------
    ValueError
        For bad arguments; the message names the argument.
    TypeError
        If ``fun`` cannot be traced.

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
    if method not in (None, "chandrupatla"):
        raise ValueError(f"`method` must be None or 'chandrupatla', got {method!r}.")
    if bracket is not None and bounds is not None:
        raise ValueError("`bracket` and `bounds` must not both be given.")
    chosen = dict(options or {}) if tol is None else {"xrtol": tol, **(options or {})}
    unknown = set(chosen) - {*TOLERANCES, "maxiter", "polish"}
    if unknown:
        raise ValueError(f"`options`: unknown key {sorted(unknown)}.")
    maxiter, polish = chosen.pop("maxiter", 100), chosen.pop("polish", True)
    chosen = check_search(fun, chosen, maxiter)
    points, limits = _first_points(bracket, bounds)
    check_bracket(fun, BRACKET_STEPS, limits, **dict(zip(("xl", "xm", "xr"), points, strict=True)))
    problem = elementwise_problem(fun, (*points, *limits.values()), as_tuple(args), None)
    search: Any = Search(minimum_finder(problem, chosen, maxiter))
    search = Polished(search) if polish else search
    return solve(BracketAndSearch(Search(BracketMinimum(count(BRACKET_STEPS))), search), problem)


def _first_points(bracket: Any, bounds: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Three points in order, None where `BracketMinimum` has a default, and the limits."""
    if bounds is not None:
        lower, upper = bounds
        if is_concrete((lower, upper)) and np.any(np.asarray(lower) > np.asarray(upper)):
            raise ValueError(
                f"The lower bound exceeds the upper bound: `bounds` is ({lower}, {upper})."
            )
        return (None, _middle(lower, upper), None), limits_of(lower, upper, None)
    points = (0.0, 1.0) if bracket is None else tuple(bracket)
    if len(points) not in (2, 3):
        raise ValueError(f"`bracket` must have two or three points, got {len(points)}.")
    points = tuple(map(jnp.asarray, points))
    low, high = jnp.minimum(points[0], points[-1]), jnp.maximum(points[0], points[-1])
    middle = points[1] if len(points) == 3 else low + (high - low) / 2
    return (low, middle, high), limits_of(None, None, None)


def _middle(lower: Any, upper: Any) -> Any:
    """A point between the bounds: one unit from the only finite one, 0 if there is none."""
    lower, upper = jnp.asarray(lower), jnp.asarray(upper)
    both = jnp.where(jnp.isinf(lower), upper - 1, lower + (upper - lower) / 2)
    one = jnp.where(jnp.isinf(lower), both, jnp.where(jnp.isinf(upper), lower + 1, both))
    return jnp.where(jnp.isinf(lower) & jnp.isinf(upper), 0, one)
