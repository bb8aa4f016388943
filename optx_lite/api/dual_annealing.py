"""The front door of dual annealing, with SciPy's signature."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, PyTree

from ..driver.callbacks import check_callback
from ..driver.chain import Chain, ChainListener
from ..jax_support.types import Args, Bounds, Number, Options
from ..problem.arguments import check_callable
from ..problem.base import AbstractProblem
from ..problem.global_search import read_box
from ..problem.pytrees import is_concrete
from ..problem.random_keys import as_key
from ..results.base import to_host
from ..results.global_search import NONFINITE, TEMPERATURES_DONE, DualAnnealingResult
from ..results.minimize import MinimizeResult
from ..solvers.global_search.dual_annealing import DualAnnealing, State
from ..solvers.minimize.base import AbstractMinimizer
from .minimize import minimize
from .search_arguments import arguments_of_minimize, count, number


def dual_annealing(
    func: Callable[..., PyTree],
    bounds: Bounds,
    args: Args = (),
    maxiter: int = 1000,
    minimizer_kwargs: Options | None = None,
    initial_temp: Number = 5230.0,
    restart_temp_ratio: Number = 2e-5,
    visit: Number = 2.62,
    accept: Number = -5.0,
    maxfun: Number = 1e7,
    rng: int | Array | None = None,
    no_local_search: bool = False,
    callback: Callable | None = None,
    x0: PyTree = None,
) -> DualAnnealingResult:
    """Find the lowest of many minima in a box by annealing and local solves.

    The signature is that of ``scipy.optimize.dual_annealing``; a chain is one compiled loop, and
    `jax.vmap` over keys, ``x0`` or what ``func`` closes over runs many of them side by side, which
    wait for each other at each temperature.

    Parameters
    ----------
    func : callable
        ``func(x, *args)`` gives a scalar, x of shape (n,), or like ``x0``. It is traced by JAX. NaN
        counts as infinite. With ``no_local_search`` no gradient is asked for, and the values may
        be integers.
    bounds : sequence of n pairs (min, max), or object with ``lb`` and ``ub``
        All finite; ``min == max`` fixes a variable (SciPy: an error). For a pytree ``x0``:
        (lower, upper).
    args : tuple
        Further arguments of ``func``; they carry derivatives.
    maxiter : int
        Temperatures, of 2 n trials each.
    minimizer_kwargs : dict, optional
        Arguments of `minimize` for the local solves: method, jac, tol, options, and ``bounds`` if
        they are the same: the solves are in the box, whatever is given. None: L-BFGS-B with at
        most 6 n iterations, but 100 to 1000. (SciPy ignores ``args``, which are an error here.)
    initial_temp : float
        The first temperature, in units of ``func``; the length of the moves goes by it, too.
    restart_temp_ratio : float
        In (0, 1): below this share of ``initial_temp`` cooling begins anew.
    visit : float
        In (1, 3): the larger, the more of the moves are long.
    accept : float
        Below 1: the lower, the fewer higher trials are accepted.
    maxfun : int
        Most values of ``func``; gradients are not counted. A soft limit, as SciPy's: a local solve
        goes on to its end, and one follows the last trial that was the lowest.
    rng : key, int, numpy.random.Generator, optional
        The same gives the same answer. Inside ``jit`` use a key: the others are read when the
        function is traced.
    no_local_search : bool
        Whether there are no local solves: generalised simulated annealing alone.
    callback : callable, optional
        ``callback(x, f, context)`` after each temperature at which a lower point was found, with
        the lowest: context 0 if it is a trial, 1 if it is where the local solve from that trial
        ended, 2 for one from where the chain was. A true value or StopIteration ends the search.
        (SciPy: for trials and solves by themselves.)
    x0 : array_like (n,), or pytree of arrays, optional
        The first point, moved into the box. Its floating dtype is that of the search; without one,
        JAX's default. None: a point drawn in the box, of the dtype of ``bounds``.

    Returns
    -------
    DualAnnealingResult
        x and fun have the derivative of the minimum, where a local solve has succeeded there; else
        NaN.

    Raises
    ------
    ValueError, TypeError
        For bad arguments; and as `minimize`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optx_lite as ox
    >>> def rastrigin(x, center):
    ...     return jnp.sum((x - center) ** 2 - 10 * jnp.cos(2 * jnp.pi * (x - center)) + 10)
    >>> def lowest(center):
    ...     return ox.dual_annealing(rastrigin, [(-5.12, 5.12)] * 4, (center,), maxiter=200, rng=0)
    >>> print(lowest(0.5).x.round(4))
    [0.5 0.5 0.5 0.5]
    >>> print(jax.jacobian(lambda center: lowest(center).x)(0.5).round(4))
    [1. 1. 1. 1.]
    """
    check_callable(func, "`func`")
    check_callback(callback)
    if not isinstance(no_local_search, (bool, np.bool_)):
        raise TypeError(f"`no_local_search` must be a bool, got {no_local_search!r}.")
    kwargs = arguments_of_minimize(minimizer_kwargs, ("args",))
    _check_same_box(bounds, kwargs.pop("bounds", bounds))
    counts = {"maxiter": count("maxiter", maxiter), "maxfun": count("maxfun", maxfun)}

    def numbers(dtype: DTypeLike) -> Options:
        return {
            "temperature": number("initial_temp", initial_temp, dtype, inside=True),
            "restart": number("restart_temp_ratio", restart_temp_ratio, dtype, 0, 1, inside=True),
            "visit": number("visit", visit, dtype, 1, 3, inside=True),
            "accept": number("accept", accept, dtype, -np.inf, 1, inside=True),
        }

    numbers(float)  # what is wrong with them shows before what is wrong with ``func``
    start = read_box(bounds)[0] if x0 is None else x0
    if no_local_search:
        # Another `jac` stays: True says that ``func`` returns a pair.
        func, kwargs = _of_values(func), {"jac": _no_gradient, **kwargs}
    if not minimizer_kwargs:
        n = sum(np.size(leaf) for leaf in jax.tree.leaves(start))
        kwargs["options"] = {"maxiter": min(max(6 * n, 100), 1000)}

    def make(solver: AbstractMinimizer, problem: AbstractProblem, x: Array) -> DualAnnealing:
        _check_finite("bounds", (problem.lower, problem.upper))
        _check_finite("x0", x)
        return DualAnnealing(
            solver=solver, local_search=not no_local_search, draws_start=x0 is None,
            **numbers(x.dtype), **counts,
        )  # fmt: skip

    listener = _Listener(callback) if callback is not None else None
    found: Options = {}
    chain = Chain("nan", make, as_key(rng), listener, found)
    lowest = minimize(func, start, args, bounds=bounds, adjoint=chain, **kwargs)
    return _result(lowest, found["state"])


def _of_values(func: Callable) -> Callable:
    """``func``, whose values may be integers or bools."""

    def fun(x: PyTree, *args: PyTree) -> PyTree:
        return jax.tree.map(_floating, func(x, *args))

    return fun


def _floating(value: PyTree) -> Array:
    value = jnp.asarray(value)
    return value if jnp.issubdtype(value.dtype, jnp.inexact) else value.astype(float)


def _no_gradient(x: PyTree, *args: PyTree) -> PyTree:
    """In a gradient's place where none is asked for."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), x)


def _check_same_box(bounds: Bounds, of_solves: Bounds) -> None:
    if of_solves is not bounds and not (
        _equal_leaves(bounds, of_solves) or _equal_boxes(bounds, of_solves)
    ):
        raise ValueError(
            "`minimizer_kwargs` must not have other `bounds` than the search itself (traced "
            f"ones must be the same objects), got {of_solves!r} beside {bounds!r}."
        )


def _equal_leaves(one: PyTree, other: PyTree) -> bool:
    """Whether they are the same pytree of the same numbers."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    return all(a is b or (is_concrete((a, b)) and np.array_equal(a, b)) for a, b in pairs)


def _equal_boxes(one: Bounds, other: Bounds) -> bool:
    """Whether they are the same box, however it is written."""
    try:
        sides = list(zip(read_box(one), read_box(other), strict=True))
    except (TypeError, ValueError):
        return False
    return is_concrete(sides) and all(np.array_equal(a, b) for a, b in sides)


def _check_finite(name: str, values: PyTree) -> None:
    if is_concrete(values) and not np.all(np.isfinite(values)):
        raise ValueError(f"`{name}` must be finite, got {values}.")


def _result(lowest: MinimizeResult, state: State) -> DualAnnealingResult:
    """From the local solver's result at the lowest point, and the last state of the chain."""
    nothing = (state.status == TEMPERATURES_DONE) & (state.lowest.value == jnp.inf)
    status = jnp.where(nothing, NONFINITE, state.status)
    return to_host(
        DualAnnealingResult(
            x=lowest.x,
            fun=lowest.fun,
            lowest_optimization_result=lowest,
            nfev=state.nfev,
            njev=state.njev,
            nit=state.nit,
            status=status.astype(jnp.int32),
        )
    )


class _Listener(ChainListener):
    """Calls the user's callback for each lowest point so far."""

    def step(self, report: PyTree, moved: bool, lane: int) -> bool:
        """After a step; ``moved`` if that found a lower point."""
        return moved and self.call(report, int(report.context))
