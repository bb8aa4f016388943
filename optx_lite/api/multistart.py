"""The front door of many starts through one local solver."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from ..driver.adjoint import ImplicitAdjoint
from ..driver.many_starts import Census, ManyStarts, flat, take_census, what_is_unseen
from ..jax_support.types import Number, Options
from ..problem.arguments import real_array
from ..problem.pytrees import as_array_or_tree, is_concrete
from ..results.base import to_host
from ..results.global_search import MultistartResult
from .search_arguments import number, whole


def multistart(
    solve: Callable[..., PyTree],
    starts: PyTree,
    *,
    batch: int | None = None,
    rtol: Number = 1e-3,
) -> MultistartResult:
    """Solve from many starts; list the minima, and estimate how many were not found.

    Parameters
    ----------
    solve : callable
        ``solve(x0)`` gives the result of `minimize`, `least_squares` or any other solver of ours:
        ``functools.partial(ox.minimize, fun, bounds=bounds)``. If it takes ``adjoint=``, as that
        one does, a start costs its own steps only; ``lambda x0: ox.minimize(fun, x0)`` is right,
        too, but all starts of a chunk wait for its slowest. Without callback.
    starts : array (k, n), or pytree of arrays (k, ...)
        From where, e.g. by `sample_starts`.
    batch : int, optional
        Stop when, after so many starts or a multiple of it, by Boender & Rinnooy Kan's estimate
        less than half a minimum is missing; k is a multiple of it. The estimate is about random
        starts: each batch must fill the box, as draws and sequences do, and a grid in its order
        does not. None: try them all.
    rtol : float
        Two solutions are one minimum if no variable differs by more than this share of the range
        that the variable has over all starts and solutions.

    Returns
    -------
    MultistartResult
        ``best`` has the derivative of its minimum by the problem's data, and only that: those of
        the lists are NaN where ``solve`` takes ``adjoint=``. A solve that failed never wins; if all
        have, ``success`` is False and ``best`` the lowest of them.

    Raises
    ------
    TypeError
        For a ``solve`` that is not callable, or gives no result of a solver.
    ValueError
        For other bad arguments; and whatever ``solve`` raises.

    Examples
    --------
    >>> import functools as ft, jax.numpy as jnp, optx_lite as ox
    >>> def himmelblau(x):
    ...     return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2
    >>> starts = ox.sample_starts([(-5, 5)] * 2, 64, "latinhypercube", 0)
    >>> res = ox.multistart(ft.partial(ox.minimize, himmelblau), starts)
    >>> print(res.n_minima, res.basin.sum(), bool(res.expected_minima < 4.5))
    4 64 True
    """
    if not callable(solve):
        raise TypeError(f"`solve` must be callable, got {solve!r}.")
    starts, count = _check_starts(starts)
    batch = batch if batch is None else whole("batch", batch)
    if batch is not None and count % batch:
        raise ValueError(f"`batch` must divide the number of starts, {count}, got {batch!r}.")
    rtol = number("rtol", rtol, float)
    unconverged = _replaceable_adjoint(solve)
    if unconverged is not None:
        record: Options = {}
        many = ManyStarts(unconverged, starts, rtol, batch or count, record)
        best = solve(jax.tree.map(lambda leaf: leaf[0], starts), adjoint=many)
        tried, nfev, census = (record[name] for name in ("tried", "nfev", "census"))
        x, value = record["lists"]
        x = jax.vmap(record["restore"])(x)
    elif batch is not None:
        raise ValueError("`batch` needs a `solve` that takes `adjoint=`, an ImplicitAdjoint.")
    else:
        results = jax.vmap(solve)(lax.stop_gradient(starts))
        _check_result(results)
        tried, nfev, x, value = count, results.nfev, results.x, results.value
        census = _census(results, starts, rtol)
        best = jax.tree.map(lambda leaf: leaf[census.first[0]], results)
    fields = _fields(x, value, nfev, tried, census)
    return _trim(MultistartResult(best=best, status=best.status, **fields))


def _check_starts(starts: PyTree) -> tuple[PyTree, int]:
    starts = jax.tree.map(_as_float, as_array_or_tree(starts))
    counts = {leaf.shape[:1] for leaf in jax.tree.leaves(starts)}
    flat_array = isinstance(starts, jax.Array)
    if (
        len(counts) != 1
        or counts == {()}
        or 0 in next(iter(counts))
        or (flat_array and starts.ndim != 2)
    ):
        shapes = [leaf.shape for leaf in jax.tree.leaves(starts)]
        raise ValueError(
            f"`starts` must be an array (k, n) or a pytree of arrays (k, ...), got shapes {shapes}."
        )
    return starts, next(iter(counts))[0]


def _as_float(leaf: PyTree) -> Array:
    leaf = jnp.asarray(real_array(leaf, np.nan, "`starts`"))
    return leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.astype(jnp.result_type(float))


def _check_result(results: PyTree) -> None:
    missing = [name for name in ("x", "value", "success", "nfev") if not hasattr(results, name)]
    if missing:
        raise TypeError(
            "`solve` must give the result of a solver such as `minimize`, got one without "
            f"{missing}: {type(results).__name__}."
        )


def _replaceable_adjoint(solve: Callable) -> str | None:
    """How ``solve`` treats failures, if its adjoint is an implicit one that may be replaced."""
    try:
        parameter = inspect.signature(solve).parameters.get("adjoint")
    except (TypeError, ValueError):
        return None
    own = parameter and parameter.default
    return own.unconverged if isinstance(own, ImplicitAdjoint) else None


def _census(results: PyTree, starts: PyTree, rtol: Number) -> Census:
    x, begun = flat(results.x), flat(starts)
    inputs = lax.stop_gradient((x, results.value, results.success, begun.astype(x.dtype)))
    return jax.jit(take_census)(*inputs, jnp.asarray(rtol, x.dtype))


@jax.jit
def _fields(x: PyTree, value: Array, nfev: Array, tried: PyTree, census: Census) -> Options:
    """All of a result but for the best one."""
    used = census.basin > 0
    value = value.astype(flat(x).dtype)
    failed = (jnp.arange(census.label.shape[0], dtype=jnp.int32) < tried) & (census.label < 0)

    def of_minima(leaf: Array) -> Array:
        there = used.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(there, leaf[jnp.maximum(census.first, 0)], jnp.nan)

    unseen = what_is_unseen(census.basin, value.dtype)
    lowest = jnp.min(jnp.where(failed & ~jnp.isnan(value), value, jnp.inf))
    return {
        "x": jax.tree.map(of_minima, x),
        "fun": of_minima(value),
        "basin": census.basin,
        "label": census.label,
        "n_minima": jnp.sum(used),
        "n_failed": jnp.sum(failed),
        "n_starts": tried,
        "expected_minima": unseen.expected_minima,
        "all_found": unseen.all_found,
        "missed_share": unseen.missed_share,
        "lowest_failed": lowest,
        "nfev": jnp.sum(nfev),
    }


def _trim(result: MultistartResult) -> MultistartResult:
    """With the minima that were found alone, where their number is concrete."""
    if not is_concrete(result) or jnp.ndim(result.n_minima) > 0:
        return result
    result = to_host(result)

    def found(leaf: Array) -> Array:  # by NumPy: each length of a slice of JAX's compiles
        return jnp.asarray(np.asarray(leaf)[: result.n_minima])

    x, fun, basin = jax.tree.map(found, (result.x, result.fun, result.basin))
    return dataclasses.replace(result, x=x, fun=fun, basin=basin)
