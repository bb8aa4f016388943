r"""Roots, extrema and the global minimum of a function itself, differentiable.

The proxy says where they are, and that there are no others; Newton's steps on the function take
them to its own precision; the rule of the implicit function gives the derivative (see `implicit`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, DTypeLike, PyTree

from ..driver.batching import in_chunks
from ..functions.traced import Lifted, lift
from ..jax_support.types import Args
from ..problem.arguments import as_tuple
from ..problem.elementwise import value_and_slope
from ..problem.pytrees import is_concrete
from .cells import LEAST
from .implicit import polished
from .proxy import PIECES, Proxy, adaptive, as_values, check_count, fixed, interval_of
from .results import MinimumResult, PointsResult


def roots(
    f: Callable[..., PyTree],
    a: ArrayLike,
    b: ArrayLike,
    args: Args = (),
    *,
    size: int | None = None,
    tol: float | None = None,
    degree: int | None = None,
    pieces: int | None = None,
) -> PointsResult:
    """Find all roots of a function on an interval, and differentiate them.

    Parameters
    ----------
    f, a, b, args, tol, degree, pieces
        As for `proxy`. ``f`` is a function of JAX.
    size : int, optional
        Room for so many, in arrays of fixed size; with ``degree`` it must be given.

    Returns
    -------
    PointsResult
        ``x`` is differentiable in ``args`` and in what ``f`` closes over, to any order; its
        derivative is NaN where a root is not simple.

    Raises
    ------
    ValueError, TypeError
        As `proxy`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optx_lite as ox
    >>> f = lambda x, c: jnp.cos(x) - c
    >>> print(ox.chebyshev.roots(f, 0.0, 12.0, args=0.5).x.round(2))
    [ 1.05  5.24  7.33 11.52]
    >>> first = lambda c: ox.chebyshev.roots(f, 0.0, 12.0, args=c).x[0]
    >>> print(f"{jax.grad(first)(0.5):.3f}")
    -1.155
    """
    return _points(f, a, b, args, 0, size, tol, degree, pieces)


def extrema(
    f: Callable[..., PyTree],
    a: ArrayLike,
    b: ArrayLike,
    args: Args = (),
    *,
    size: int | None = None,
    tol: float | None = None,
    degree: int | None = None,
    pieces: int | None = None,
) -> PointsResult:
    """Find all local minima and maxima of a function within an interval, and differentiate them.

    Parameters
    ----------
    f, a, b, args, size, tol, degree, pieces
        As for `roots`.

    Returns
    -------
    PointsResult
        A kink counts where the slope changes its sign; the derivative of ``x`` is NaN there.

    Raises
    ------
    ValueError, TypeError
        As `proxy`.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> res = ox.chebyshev.extrema(lambda x: jnp.sin(x) / x, 1.0, 12.0)
    >>> print(res.x.round(2), res.fun.round(2))
    [ 4.49  7.73 10.9 ] [-0.22  0.13 -0.09]
    """
    return _points(f, a, b, args, 1, size, tol, degree, pieces)


def minimum(
    f: Callable[..., PyTree],
    a: ArrayLike,
    b: ArrayLike,
    args: Args = (),
    *,
    tol: float | None = None,
    degree: int | None = None,
    pieces: int | None = None,
) -> MinimumResult:
    """Find the global minimum of a smooth function on an interval, and differentiate it.

    No other point of the proxy is lower, by bounds on all of it, and the proxy is the function to
    its accuracy. Newton's steps then take x to where the function's own derivative is 0.

    Parameters
    ----------
    f, a, b, args, tol, degree, pieces
        As for `proxy`. ``f`` is a function of JAX. With ``degree`` the call works under ``jit``
        and ``vmap``.

    Returns
    -------
    MinimumResult
        ``x`` and ``fun`` are differentiable in ``args``, in what ``f`` closes over, and, where the
        minimum lies at an end of the interval, in that end. NaN where the second derivative is 0.

    Raises
    ------
    ValueError, TypeError
        As `proxy`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optx_lite as ox
    >>> f = lambda x, c: jnp.cos(3 * x) + (x - c) ** 2 / 9
    >>> find = lambda c: ox.chebyshev.minimum(f, -5.0, 5.0, args=c, degree=16)
    >>> c = jnp.array([-2.0, 0.3, 3.0])
    >>> print(*(f"{x:.2f}" for x in jax.jit(jax.vmap(find))(c).x))
    -1.07 1.03 3.14
    >>> print(f"{jax.grad(lambda c: find(c).x)(0.3):.4f}")
    0.0241
    """
    located, function = _located(f, a, b, args, _Wanted("minimum", None, tol, degree, pieces))
    a, b = interval_of(a, b)
    lifted = lift(function, jax.ShapeDtypeStruct((1,), a.dtype), label="`f`")
    x, side = located.x, located.active_mask
    usable = located.status > -3
    ends = lax.stop_gradient((a, b))
    # A minimum rests on an end that the function falls towards; else it is one within, close by.
    falls = -value_and_slope(lax.stop_gradient(lifted), jnp.where(usable, x, ends[0])[None])[1][0]
    at_end = ((side < 0) & (falls < 0)) | ((side > 0) & (falls > 0))
    side = jnp.where(at_end, side, 0)
    inner = jnp.where(usable & ~at_end, x, (ends[0] + ends[1]) / 2)
    inner = _polish(lifted, inner[None], (usable & ~at_end)[None], ends, 1)[0]
    x = jnp.where(at_end, jnp.where(side < 0, a, b), inner)
    fun = lifted(x[None])[0].astype(x.dtype)
    nan = jnp.where(usable, 0, jnp.nan).astype(x.dtype)  # added: the derivative remains NaN
    return MinimumResult(located.status, x + nan, fun + nan, side)


def _points(
    f: Callable,
    a: ArrayLike,
    b: ArrayLike,
    args: Args,
    order: int,
    size: int | None,
    tol: float | None,
    degree: int | None,
    pieces: int | None,
) -> PointsResult:
    if size is not None:
        check_count("size", size, 1)
    elif degree is not None:
        raise ValueError("With `degree` give `size`, room for so many points.")

    wanted = _Wanted("extrema" if order else "roots", size, tol, degree, pieces)
    located, function = _located(f, a, b, args, wanted)
    a, b = interval_of(a, b)
    count = located.x.shape[0]
    if count == 0:
        return located
    lifted = lift(function, jax.ShapeDtypeStruct((count,), a.dtype), label="`f`")
    ends = lax.stop_gradient((a, b))
    inside = jnp.where(located.mask, located.x, (ends[0] + ends[1]) / 2)
    x = _polish(lifted, inside, located.mask, ends, order)
    failed = located.status < -2
    nan = jnp.where(failed, jnp.nan, 0).astype(x.dtype)  # added: the derivative remains NaN
    there = located.mask | failed
    fun = jnp.where(there, lifted(jnp.where(there, x, inside)).astype(x.dtype), jnp.nan)
    x = jnp.where(there, x, jnp.nan)
    return PointsResult(located.status, x + nan, fun + nan, located.mask, located.crossing)


_polish = eqx.filter_jit(polished)


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What is sought of a proxy, and the proxy's size; a static argument."""

    name: str
    size: int | None
    tol: float | None
    degree: PyTree
    pieces: PyTree

    def of(self, proxy: Proxy) -> PyTree:
        """The points, or the minimum."""
        if self.name == "minimum":
            return proxy.minimum()
        return proxy.roots(self.size) if self.name == "roots" else proxy.extrema(self.size)


def _located(
    f: Callable, a: ArrayLike, b: ArrayLike, args: Args, wanted: _Wanted
) -> tuple[PyTree, Callable]:
    """What is found of the proxy, without derivatives; and the function of x alone."""
    a, b = lax.stop_gradient(interval_of(a, b))
    args = as_tuple(args)

    def function(x: Array) -> Array:
        return f(x, *args)

    if wanted.degree is None:
        proxy = adaptive(_fixed_values(function, a.dtype), a, b, wanted.tol)
        return wanted.of(proxy), function
    pieces = PIECES if wanted.pieces is None else wanted.pieces
    check_count("degree", wanted.degree, 8)
    check_count("pieces", pieces, 1)
    shape = jax.ShapeDtypeStruct((pieces * (wanted.degree + 1),), a.dtype)
    lifted = lax.stop_gradient(lift(function, shape, label="`f`"))
    return _in_fixed_size(lifted, a, b, dataclasses.replace(wanted, pieces=pieces)), function


@eqx.filter_jit
def _in_fixed_size(lifted: Lifted, a: Array, b: Array, wanted: _Wanted) -> PyTree:
    """Under `vmap` in chunks of lanes that fit into the cache."""
    leaves, tree = jax.tree.flatten((lifted, a, b))

    def search(_: object, *leaves: PyTree) -> PyTree:
        lifted, a, b = jax.tree.unflatten(tree, leaves)
        return wanted.of(fixed(lifted, a, b, wanted.tol, wanted.degree, wanted.pieces))

    cells = max(LEAST, wanted.pieces, 4 * (wanted.size or 0))
    lane_bytes = 4 * cells * (wanted.degree + 1) * np.dtype(a.dtype).itemsize
    return in_chunks(search, lane_bytes)(*leaves)


def _fixed_values(function: Callable, dtype: DTypeLike) -> Callable[[np.ndarray], np.ndarray]:
    """The function at its present parameters, which may be traced by `grad`, on the host."""
    of_size: dict[int, Lifted] = {}

    def evaluate(x: np.ndarray) -> np.ndarray:
        if x.size not in of_size:
            shape = jax.ShapeDtypeStruct(x.shape, dtype)
            of_size[x.size] = lax.stop_gradient(lift(function, shape, label="`f`"))
        lifted = of_size[x.size]
        if not is_concrete(lifted):
            raise TypeError(
                "What `f` depends on is traced by `jit` or `vmap`: give `degree` (and `pieces`), "
                "since the size of an adaptive proxy depends on values."
            )
        return as_values(_values(lifted, jnp.asarray(x, dtype)), x.shape)

    return evaluate


_values = eqx.filter_jit(lambda lifted, x: lifted(x))
