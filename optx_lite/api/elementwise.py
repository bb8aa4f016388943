"""SciPy's ``scipy.optimize.elementwise``: many scalar problems at once, element by element.

Brackets and minima, brackets and roots of functions of one variable, for as many elements as all
inputs broadcast to. The calls may stand inside ``jit``, ``vmap`` and ``grad``; minimisers, minima
and roots are differentiable in whatever the function depends on.

Examples
--------
>>> import jax.numpy as jnp, optx_lite as ox
>>> f = lambda x, c: (x - c) ** 2 + 2
>>> c = jnp.array([1.0, 1.5, 2.0])
>>> bracket = ox.elementwise.bracket_minimum(f, 0.0, args=(c,)).bracket
>>> res = ox.elementwise.find_minimum(f, bracket, args=(c,))
>>> print(res.x.round(2), res.f_x)
[1.  1.5 2. ] [2. 2. 2.]
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import ArrayLike, PyTree

from ..driver.callbacks import AbstractListener, watched
from ..driver.elementwise import Finder, Polished, Search, solve
from ..jax_support.types import Args, Number, Options
from ..problem.arguments import as_tuple
from ..problem.elementwise import ElementwiseProblem, elementwise_problem
from ..results.elementwise import BracketResult, ElementwiseResult
from ..solvers.elementwise.bracket_minimum import BracketMinimum
from ..solvers.elementwise.bracket_root import BracketRoot
from .elementwise_arguments import (
    check_bracket,
    check_points,
    check_search,
    count,
    limits_of,
    minimum_finder,
    root_finder,
)


def find_minimum(
    f: Callable[..., PyTree],
    init: tuple[ArrayLike, ArrayLike, ArrayLike],
    /,
    *,
    args: Args = (),
    kwargs: Options | None = None,
    tolerances: Options | None = None,
    maxiter: int = 100,
    callback: Callable | None = None,
    polish: bool = False,
) -> ElementwiseResult:
    """Find the minimum of a function of one variable, for each element.

    Chandrupatla's method of 1998: quadratic fits and golden sections inside a bracket.

    Parameters
    ----------
    f : callable
        ``f(x, *args, **kwargs)``, elementwise: entry i of its value depends on entries i alone.
        It gets whole arrays, all of the common shape, and is traced by JAX.
    init : (x1, x2, x3) of arrays
        A bracket, in any order: f is no larger at the middle point than at the outer ones. Their
        dtypes, with that of f's values, make the dtype of the search: float16, bfloat16, float32
        and float64 stay what they are, integers become floats.
    args : tuple of arrays, or one array
        Further arguments of ``f``. They carry derivatives, and so does what ``f`` closes over.
    kwargs : dict of arrays, optional
        Further arguments of ``f`` by name.
    tolerances : dict, optional
        The end is where half of the larger side of the bracket, ``|x3 - x2| / 2``, is at most
        ``xrtol |x2| + xatol``, or the curvature f1/2 - f2 + f3/2 at most ``frtol |f2| + fatol``.
        Default: xrtol the root of the dtype's eps, the others its smallest normal number.
    maxiter : int
        Most iterations.
    callback : callable, optional
        ``callback(res)``, before the first iteration and after each. Raise StopIteration to end
        the search.
    polish : bool
        Then take Newton's steps on f', inside the bracket. Values alone give a minimiser to about
        the root of eps, f' gives it to eps. They count in neither ``nit`` nor ``nfev``.

    Returns
    -------
    ElementwiseResult
        The derivative of ``x`` is NaN where there is none: at a kink, a plateau, a minimum like
        that of x^4, and where the search did not converge.

    Raises
    ------
    ValueError
        For bad arguments, with SciPy's message.
    TypeError
        If ``f`` cannot be traced, or ``tolerances`` has another key; if a derivative is asked for
        and ``f`` lacks the second one, in either mode of JAX.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optx_lite as ox
    >>> f = lambda x, c: jnp.cosh(x - c) + x
    >>> find = lambda c: ox.elementwise.find_minimum(f, (-9.0, 0.0, 9.0), args=c)
    >>> slope = jax.grad(lambda c: find(c).f_x)(2.0)
    >>> print(find(jnp.array([0.0, 1.0])).x.round(2), f"{slope:.2f}")
    [-0.88  0.12] 1.00
    """
    x1, x2, x3 = check_points(init, 3)
    chosen = check_search(f, tolerances, maxiter, callback)
    problem = elementwise_problem(f, (x1, x2, x3), as_tuple(args), kwargs)
    search: Finder = Search(minimum_finder(problem, chosen, maxiter))
    if polish:
        search = Polished(search)
    return _solve(search, problem, callback)


def find_root(
    f: Callable[..., PyTree],
    init: tuple[ArrayLike, ArrayLike],
    /,
    *,
    args: Args = (),
    kwargs: Options | None = None,
    tolerances: Options | None = None,
    maxiter: int | None = None,
    callback: Callable | None = None,
) -> ElementwiseResult:
    """Find the root of a function of one variable, for each element.

    Chandrupatla's method of 1997: inverse quadratic interpolation and bisection.

    Parameters
    ----------
    f, args, kwargs, callback
        As for `find_minimum`.
    init : (xl, xr) of arrays
        A bracket, in any order: the signs of f at its ends differ.
    tolerances : dict, optional
        The end is where the bracket is narrower than ``xatol + xrtol |x|``, or ``|f|`` at its
        better end at most ``fatol`` plus ``frtol`` times the smaller ``|f|`` of the first two.
        Default: 4 times the smallest normal number, 4 eps, the smallest normal number, 0.
    maxiter : int, optional
        Most iterations. Default: as many bisections as there are powers of 2 in the dtype.

    Returns
    -------
    ElementwiseResult
        A change of sign counts as a root, be it a jump or a pole: look at ``f_x``. Its derivative
        is then NaN, as at a kink, at a multiple root, and where the search did not converge. A NaN
        met on the way is no sign: status -3.

    Raises
    ------
    ValueError, TypeError
        As `find_minimum`; one derivative of ``f`` is enough.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optx_lite as ox
    >>> f = lambda x, c: x**3 - 2 * x - c
    >>> find = lambda c: ox.elementwise.find_root(f, (0.0, 3.0), args=(c,)).x
    >>> print(find(jnp.array([0.375, 4.0, 10.625])).round(1), f"{jax.grad(find)(4.0):.2f}")
    [1.5 2.  2.5] 0.10
    """
    xl, xr = check_points(init, 2)
    chosen = check_search(f, tolerances, maxiter, callback)
    problem = elementwise_problem(f, (xl, xr), as_tuple(args), kwargs)
    return _solve(Search(root_finder(problem, chosen, maxiter)), problem, callback)


def bracket_minimum(
    f: Callable[..., PyTree],
    xm0: ArrayLike,
    *,
    xl0: ArrayLike | None = None,
    xr0: ArrayLike | None = None,
    xmin: ArrayLike | None = None,
    xmax: ArrayLike | None = None,
    factor: Number | None = None,
    args: Args = (),
    kwargs: Options | None = None,
    maxiter: int = 1000,
) -> BracketResult:
    """Bracket the minimum of a function of one variable, for each element.

    Parameters
    ----------
    f, args, kwargs
        As for `find_minimum`.
    xm0 : array
        First middle point.
    xl0, xr0 : array, optional
        First outer points. Default: 0.5 to the left and to the right, or a sixteenth of the way
        to the limit if that is less.
    xmin, xmax : array, optional
        Limits, which the bracket may reach and does not cross.
    factor : array, optional
        By which the steps grow, or, towards a limit, shrink. Default: 2.
    maxiter : int
        Most iterations.

    Returns
    -------
    BracketResult
        Its numbers carry no derivative.

    Raises
    ------
    ValueError
        For bad arguments, with SciPy's message.
    TypeError
        If ``f`` cannot be traced.

    Examples
    --------
    >>> import optx_lite as ox
    >>> res = ox.elementwise.bracket_minimum(lambda x: (x - 1) ** 2 + 2, 0.0)
    >>> print(*res.bracket, *res.f_bracket, res.success)
    0.0 0.5 1.5 3.0 2.25 2.25 True
    """
    limits = limits_of(xmin, xmax, factor)
    check_bracket(f, maxiter, limits, xm0=xm0, xl0=xl0, xr0=xr0)
    problem = elementwise_problem(f, (xl0, xm0, xr0, *limits.values()), as_tuple(args), kwargs)
    return solve(Search(BracketMinimum(count(maxiter))), problem)


def bracket_root(
    f: Callable[..., PyTree],
    xl0: ArrayLike,
    xr0: ArrayLike | None = None,
    *,
    xmin: ArrayLike | None = None,
    xmax: ArrayLike | None = None,
    factor: Number | None = None,
    args: Args = (),
    kwargs: Options | None = None,
    maxiter: int = 1000,
) -> BracketResult:
    """Bracket the root of a function of one variable, for each element.

    Parameters
    ----------
    f, args, kwargs, xmin, xmax, factor, maxiter
        As for `bracket_minimum`.
    xl0, xr0 : array
        First interval. Default of ``xr0``: ``xl0 + 1``, or an eighth of the way to the limit if
        that is less.

    Returns
    -------
    BracketResult
        Its numbers carry no derivative.

    Raises
    ------
    ValueError, TypeError
        As `bracket_minimum`.

    Examples
    --------
    >>> import optx_lite as ox
    >>> res = ox.elementwise.bracket_root(lambda x: x**3 - 2 * x - 5, 0.0)
    >>> print(*res.bracket, *res.f_bracket, res.nfev)
    2.0 4.0 -1.0 51.0 6
    """
    limits = limits_of(xmin, xmax, factor)
    check_bracket(f, maxiter, limits, xl0=xl0, xr0=xr0)
    problem = elementwise_problem(f, (xl0, xr0, *limits.values()), as_tuple(args), kwargs)
    return solve(Search(BracketRoot(count(maxiter))), problem)


def _solve(
    search: Finder, problem: ElementwiseProblem, callback: Callable | None
) -> ElementwiseResult:
    if callback is None:
        return solve(search, problem)
    return watched(lambda watch: solve(search, problem, watch), _Caller(callback))


class _Caller(AbstractListener):
    """Hands each iteration's result to the callback, whose answer does not count."""

    def __init__(self, callback: Callable):
        super().__init__()
        self.callback = callback

    def step(self, report: ElementwiseResult, moved: bool, lane: int) -> bool:
        """After an iteration; True asks for the end."""

        def call() -> None:
            self.callback(jax.tree.map(np.asarray, report))

        return self.ask(call)
