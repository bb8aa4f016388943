r"""A function of one variable as piecewise Chebyshev series, with which all else is easy.

`proxy` finds the pieces by itself, to the precision of the dtype (see `pieces`), or, where
``degree`` is given, takes so many equal ones, which has a fixed size and works under ``jit`` and
``vmap``.

References: Battles & Trefethen, *An extension of MATLAB to continuous functions and operators*,
SIAM J. Sci. Comput. 25, 1743 (2004); Pachón, Platte & Trefethen, *Piecewise-smooth chebfuns*,
IMA J. Numer. Anal. 30, 898 (2010).
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, DTypeLike, PyTree

from ..jax_support.types import Args
from ..problem.arguments import as_tuple
from ..problem.pytrees import is_concrete
from . import series
from .cells import all_roots, global_minimum
from .isolate import PiecewisePolynomial, real_roots
from .pieces import adaptive_pieces
from .results import NONFINITE, MinimumResult, PointsResult, status_of

PIECES = 8


class Proxy(eqx.Module):
    """Piecewise Chebyshev series; a pytree. Call it for values.

    Attributes
    ----------
    breaks : (p + 1,) array
        The ends of the pieces.
    coefficients : (p, n + 1) array
        Of T_0 to T_n on each piece.
    accuracy : (p,) array
        An estimate of the largest error on each piece.
    status : int32
        0 the function is resolved, -2 it is not (with ``degree``: the error is above ``tol``), -3
        a value was not finite, -5 the interval is none.
    """

    breaks: Array
    coefficients: Array
    accuracy: Array
    status: int | Array

    @property
    def success(self) -> Array | bool:
        """Whether the function is resolved."""
        return self.status == 0

    def __call__(self, x: ArrayLike) -> Array:
        """Values at x, of any shape; NaN outside of the interval."""
        return _value(self.breaks, self.coefficients, jnp.asarray(x, self.breaks.dtype))

    def derivative(self, order: int = 1) -> Proxy:
        """The derivative of this order, as a proxy.

        Each differentiation multiplies errors by up to the square of the degree over the width.
        """
        check_order(order)
        breaks, coefficients, accuracy = self.breaks, self.coefficients, self.accuracy
        for _ in range(order):
            degree = coefficients.shape[1] - 1
            coefficients = series.derivative(breaks, coefficients)
            accuracy = accuracy * max(degree, 1) ** 2 * 2 / jnp.diff(breaks)
        overflow = ~jnp.all(jnp.isfinite(coefficients))
        status = jnp.where(overflow, jnp.minimum(self.status, NONFINITE), self.status)
        return Proxy(breaks, coefficients, accuracy, status)

    def antiderivative(self) -> Proxy:
        """The integral from the lower end of the interval to x, as a proxy."""
        coefficients = series.antiderivative(self.breaks, self.coefficients)
        accuracy = jnp.cumsum(self.accuracy * jnp.diff(self.breaks))
        return Proxy(self.breaks, coefficients, accuracy, self.status)

    def integral(self) -> Array:
        """The integral over the interval."""
        return jnp.sum(series.antiderivative(self.breaks, self.coefficients)[-1])

    def roots(self, size: int | None = None) -> PointsResult:
        """All roots of the proxy in the interval.

        Parameters
        ----------
        size : int, optional
            Room for so many, in arrays of fixed size, as is needed inside ``jit``. Default: as
            many as there are.
        """
        return self._points(self, size, crossing=False)

    def extrema(self, size: int | None = None) -> PointsResult:
        """All local minima and maxima within the interval: where the derivative changes its sign.

        Parameters
        ----------
        size : int, optional
            As for `roots`.
        """
        return self._points(self.derivative(), size, crossing=True)

    def minimum(self) -> MinimumResult:
        """The lowest point of the interval, its ends included."""
        if is_concrete(self):
            return self._minimum_on_host()
        usable = self.usable
        coefficients = jnp.where(usable, self.coefficients, 0)
        piece, t, value, complete = _minimum(coefficients, self.accuracy)
        left, right = self.breaks[piece], self.breaks[piece + 1]
        half = (right - left) / 2
        x = jnp.where(t < 0, left + (t + 1) * half, right - (1 - t) * half)
        return MinimumResult(
            jnp.where(complete | ~usable, self.status, jnp.minimum(self.status, -2)),
            jnp.where(usable, x, jnp.nan),
            jnp.where(usable, value, jnp.nan),
            jnp.where(x <= self.breaks[0], -1, jnp.where(x >= self.breaks[-1], 1, 0)),
        )

    def _minimum_on_host(self) -> MinimumResult:
        """The same by all stationary points, and the ends of pieces from both sides."""
        slope = self.derivative()
        slope._check_usable()
        dtype = self.breaks.dtype
        polynomial = PiecewisePolynomial(*_on_host(self))
        x, value = polynomial.lowest(real_roots(*_on_host(slope))[0])
        side = -1 if x <= polynomial.breaks[0] else 1 if x >= polynomial.breaks[-1] else 0
        return MinimumResult(
            self.status, jnp.asarray(x, dtype), jnp.asarray(value, dtype), jnp.int32(side)
        )

    def _check_usable(self) -> None:
        if not self.usable:
            raise ValueError(
                "The proxy has no numbers: a value or a derivative was not finite, or a < b is "
                "false."
            )

    @property
    def usable(self) -> Array | bool:
        """Whether there are numbers in it."""
        return self.status > -3

    def _points(self, function: Proxy, size: int | None, crossing: bool) -> PointsResult:
        """Roots of a function as points of this one; those where its sign changes, or all."""
        if size is None:
            return self._as_many_as_there_are(function, crossing)
        usable = function.usable
        coefficients = jnp.where(usable, function.coefficients, 0)
        coefficients = coefficients.at[:, 0].add(jnp.where(usable, 0, 1))
        found = _roots(function.breaks, coefficients, function.accuracy, size)
        there = found.there & usable
        if crossing:
            there = there & found.crossing & function._strictly_within(found.x)
        order = jnp.argsort(~there, stable=True)
        there, changes = there[order], (found.crossing & there)[order]
        x = jnp.where(there, found.x[order], jnp.nan)
        status = function.status
        status = jnp.where(found.complete | ~usable, status, jnp.minimum(status, -2))
        return PointsResult(status, x, self(x), there, changes)

    def _strictly_within(self, x: ArrayLike) -> Array | np.ndarray:
        """Whether roots are told from the ends of the interval: from a root there, by rounding."""
        ends = jnp.stack([self.breaks[0], self.breaks[-1]])
        info = jnp.finfo(ends.dtype)
        slope = jnp.abs(self.derivative()(ends)) + float(info.smallest_normal)
        accuracy = jnp.stack([self.accuracy[0], self.accuracy[-1]])
        far = float(info.eps) ** 0.5 * (ends[1] - ends[0])
        doubt = jnp.minimum(4 * accuracy / slope, far)
        doubt = doubt + 64 * float(info.eps) * jnp.max(jnp.abs(ends))
        return (x - ends[0] > doubt[0]) & (ends[1] - x > doubt[1])

    def _as_many_as_there_are(self, function: Proxy, crossing: bool) -> PointsResult:
        if not is_concrete(function):
            raise ValueError("Inside `jit` and `vmap` give `size`, room for so many points.")
        function._check_usable()
        x, changes = real_roots(*_on_host(function))
        if crossing:
            within = changes & np.asarray(function._strictly_within(x))
            x, changes = x[within], changes[within]
        polynomial = PiecewisePolynomial(*_on_host(self))
        fun = polynomial.at(*polynomial.locate(x))
        x, fun = (jnp.asarray(part, self.breaks.dtype) for part in (x, fun))
        return PointsResult(self.status, x, fun, jnp.ones(x.shape, bool), jnp.asarray(changes))


def _on_host(proxy: Proxy) -> tuple[np.ndarray, ...]:
    numbers = (proxy.breaks, proxy.coefficients, proxy.accuracy)
    return tuple(np.asarray(part, np.float64) for part in numbers)


_value = jax.jit(series.value)
_minimum = jax.jit(global_minimum)
_roots = jax.jit(all_roots, static_argnums=3)


def proxy(
    f: Callable[..., PyTree],
    a: ArrayLike,
    b: ArrayLike,
    args: Args = (),
    *,
    tol: float | None = None,
    degree: int | None = None,
    pieces: int | None = None,
) -> Proxy:
    """Represent a function on an interval by Chebyshev series, to machine precision.

    Parameters
    ----------
    f : callable
        ``f(x, *args)``: gets an array of points, (k,), and gives the values there, of its shape.
        A NumPy function will do outside of ``jit``.
    a, b : float
        The interval, a < b. They make the dtype, float32 or float64.
    args : tuple, or one array
        Further arguments of ``f``, of any shapes.
    tol : float, optional
        Wanted relative to the largest value. Default: eps; with ``degree``, its root.
    degree : int, optional
        Take equal pieces of this degree, at least 8, and say in ``status`` whether they resolve
        the function: a form of fixed size, for ``jit`` and ``vmap``. It is differentiable in what
        ``f`` depends on, and in a and b. Default: as many pieces as it takes.
    pieces : int, optional
        Their number, with ``degree``. Default: 8.

    Returns
    -------
    Proxy

    Raises
    ------
    ValueError
        If the interval is none, a value is not finite, or the function is not resolved to ``tol``:
        noise, a pole, oscillations without end. Kinks and jumps are found and become breaks. With
        ``degree`` there is a ``status`` instead.
    TypeError
        If ``degree`` is None inside ``jit``, where the size of the proxy may not depend on values.

    Notes
    -----
    A function is known at its sample points only: a peak that is much narrower than the spacing
    of 80 points on the interval can be missed.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> p = ox.chebyshev.proxy(lambda x: jnp.sin(x) + x / 8, 0.5, 10.0)
    >>> print(*(f"{x:.2f}" for x in (*p.roots().x, *p.extrema().x)))
    3.61 5.52 1.70 4.59 7.98
    >>> print(f"{p.minimum().x:.2f} {p.derivative()(1.0):.2f} {p.integral():.2f}")
    4.59 0.67 7.95
    """
    a, b = interval_of(a, b)
    args = as_tuple(args)
    if degree is None:
        if pieces is not None:
            raise ValueError("`pieces` goes with `degree`, which is not given.")
        return adaptive(_values_on_host(f, args, a.dtype), a, b, tol)
    return fixed(lambda x: f(x, *args), a, b, tol, degree, pieces)


def interval_of(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    """Both ends in their common dtype, checked where they have values.

    Raises
    ------
    ValueError
    """
    for name, end in (("a", a), ("b", b)):
        if jnp.ndim(end) or jnp.iscomplexobj(end):
            raise ValueError(f"`{name}` must be a real number, got {end!r}.")
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(a, b)
        if not jnp.issubdtype(dtype, jnp.floating):
            dtype = jnp.result_type(float)
    a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    if is_concrete((a, b)):
        # By NumPy: inside `jit` any operation of JAX, of constants too, is traced.
        low, high = np.asarray(a), np.asarray(b)
        with np.errstate(over="ignore", invalid="ignore"):
            width = high - low
        if not 0 < width < np.inf:
            raise ValueError(f"`a` and `b` must be finite, a < b, and so b - a, got {low}, {high}.")
    return a, b


def _values_on_host(
    f: Callable, args: tuple, dtype: DTypeLike
) -> Callable[[np.ndarray], np.ndarray]:
    """The function of float64 points, computed in the dtype."""

    def evaluate(x: np.ndarray) -> np.ndarray:
        values = f(jnp.asarray(x, dtype), *args)
        if isinstance(values, Tracer):
            raise TypeError(_NEEDS_DEGREE)
        return as_values(values, x.shape)

    return evaluate


_NEEDS_DEGREE = (
    "The size of an adaptive proxy depends on values, which inside `jit`, `vmap` or `grad` are not "
    "known. Give `degree` (and `pieces`)."
)


def as_values(values: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """What a function gave, as real numbers of this shape.

    Raises
    ------
    ValueError
    """
    if np.shape(values) != shape:
        raise ValueError(
            f"`f` must give an array of the shape of x, {shape}, got shape {np.shape(values)}."
        )
    if jnp.iscomplexobj(values):
        raise ValueError("The values of `f` must be real, got complex ones.")
    return np.asarray(values).astype(np.float64)


def adaptive(evaluate: Callable, a: Array, b: Array, tol: float | None) -> Proxy:
    """As many pieces as it takes; ``evaluate`` as for `adaptive_pieces`."""
    if not is_concrete((a, b)):
        raise TypeError(_NEEDS_DEGREE)
    eps = float(jnp.finfo(a.dtype).eps)
    found = adaptive_pieces(evaluate, float(a), float(b), eps, _tolerance(tol, eps))
    return Proxy(*(jnp.asarray(part, a.dtype) for part in found), status=jnp.int32(0))


def _tolerance(tol: float | None, default: float) -> float:
    if tol is None:
        return default
    if not 0 < tol < 1:
        raise ValueError(f"`tol` must lie between 0 and 1, got {tol}.")
    return max(tol, default) if default < 1e-6 else tol


def fixed(
    f: Callable, a: Array, b: Array, tol: float | None, degree: int, pieces: int | None
) -> Proxy:
    """Equal pieces of one degree; see `proxy`."""
    check_count("degree", degree, 8)
    pieces = PIECES if pieces is None else pieces
    check_count("pieces", pieces, 1)
    eps = float(jnp.finfo(a.dtype).eps)
    tol = _tolerance(tol, eps**0.5)
    valid = (a < b) & (b - a < jnp.inf)
    breaks, x = series.sample_points(jnp.where(valid, a, 0), jnp.where(valid, b, 1), degree, pieces)
    values = f(x.reshape(-1))
    if jnp.shape(values) != (x.size,) or jnp.iscomplexobj(values):
        raise ValueError(
            f"`f` must give real numbers, of the shape of x, {(x.size,)}, got "
            f"{jnp.result_type(values)} of shape {jnp.shape(values)}."
        )
    values = jnp.asarray(values).astype(a.dtype).reshape(x.shape)
    finite = jnp.all(jnp.isfinite(values))
    values = jnp.where(finite, values, 0)
    coefficients, accuracy = series.interpolate(values)
    resolved = jnp.max(accuracy) <= tol * jnp.max(jnp.abs(values))
    status = status_of(valid, finite, resolved)
    nan = jnp.where(status > -3, 0, jnp.nan).astype(a.dtype)
    return Proxy(breaks + nan, coefficients + nan, lax.stop_gradient(accuracy), status)


def check_count(name: str, value: object, least: int) -> None:
    """Raise ValueError unless it is an integer of at least so much."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")


def check_order(order: object) -> None:
    """Raise ValueError unless it may be the order of a derivative."""
    if not isinstance(order, (int, np.integer)) or isinstance(order, bool) or order < 0:
        raise ValueError(f"`order` must be an integer of at least 0, got {order!r}.")
