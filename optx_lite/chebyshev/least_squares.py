r"""A Chebyshev series through data at arbitrary points, its degree chosen by the data.

With A_ik = T_k(t_i), weighted, and A = Q R, the residual sum of squares of every degree at once is

    RSS_d = |y|^2 - sum_{k <= d} (q_k . y)^2,    GCV(d) = m RSS_d / (m - d - 1)^2,           (1)

so that one factorisation decides between all degrees. To RSS_d the rounding of y is added: without
noise a lower degree is then taken over higher ones that fit rounding errors. sigma^2 is
RSS_d / (m - d - 1), and the covariance of the coefficients sigma^2 (R^T R)^-1 of the chosen degree.

Reference: Golub, Heath & Wahba, *Generalized cross-validation*, Technometrics 21, 215 (1979).
"""

from __future__ import annotations

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtri
from jaxtyping import Array, ArrayLike

from ..problem.pytrees import is_concrete
from .proxy import Proxy, check_count, check_order
from .results import BAD_INPUT, COMPLETE

MOST = 50  # degrees by default


class Fit(eqx.Module):
    """A Chebyshev series fitted to data; a pytree. Call it for values.

    Attributes
    ----------
    interval : (2,) array
        On which the polynomials live.
    coefficients : (n + 1,) array
        0 above the degree.
    degree : int32
        As chosen.
    sigma : array, ()
        The standard deviation of the noise (of weight 1), as estimated.
    dof : int32
        Degrees of freedom: samples less coefficients.
    gcv : (n + 1,) array
        The criterion (1) of each degree; infinite where the samples are too few for it.
    inverse_factor : (n + 1, n + 1) array
        sigma^2 times it, times its transpose, is the covariance of the coefficients.
    status : int32
        0, or -5 where there are fewer than three samples, or a number is none (inside ``jit``).
    """

    interval: Array
    coefficients: Array
    degree: Array
    sigma: Array
    dof: Array
    gcv: Array
    inverse_factor: Array
    status: int | Array

    def __call__(self, x: ArrayLike) -> Array:
        """Values at x, of any shape; NaN outside of the interval."""
        return self.proxy(x)

    @property
    def proxy(self) -> Proxy:
        """The series as a `Proxy`, with its derivatives, integral, roots and extrema."""
        eps = float(jnp.finfo(self.coefficients.dtype).eps)
        accuracy = 4 * eps * jnp.sum(jnp.abs(self.coefficients))
        return Proxy(self.interval, self.coefficients[None], accuracy[None], self.status)

    def derivative(self, x: ArrayLike, order: int = 1) -> Array:
        """The derivative of this order at x."""
        return self.proxy.derivative(order)(x)

    def standard_error(self, x: ArrayLike, order: int = 0) -> Array:
        """Of the value, or of the derivative of this order, at x."""
        check_order(order)
        rows = jax.vmap(lambda c: Proxy(self.interval, c[None], self.sigma[None], 0))(
            self.inverse_factor.T
        )
        x = jnp.asarray(x, self.coefficients.dtype)
        values = jax.vmap(lambda row: row.derivative(order)(x))(rows)
        return self.sigma * jnp.sqrt(jnp.sum(values**2, axis=0))

    def band(self, x: ArrayLike, order: int = 0, level: float = 0.95) -> tuple[Array, Array]:
        """The pointwise confidence band of the value, or of a derivative, at x."""
        middle = self.proxy.derivative(order)(x)
        reach = student_quantile(level, self.dof) * self.standard_error(x, order)
        return middle - reach, middle + reach


def fit(
    x: ArrayLike,
    y: ArrayLike,
    *,
    interval: tuple[ArrayLike, ArrayLike] | None = None,
    degree: int | None = None,
    most: int | None = None,
    sigma: ArrayLike | None = None,
) -> Fit:
    """Fit a Chebyshev series to data by least squares, of a degree that the data choose.

    Parameters
    ----------
    x, y : (m,) arrays
        Samples, in any order, at any points. NaN in ``y`` is a missing sample. For many series use
        `jax.vmap`.
    interval : (a, b), optional
        On which the polynomials live; all x lie in it. Default: from the least x to the largest.
    degree : int, optional
        Take this one. Default: that of the least generalised cross-validation.
    most : int, optional
        The largest degree that is tried. Default: half of the samples, at most 50.
    sigma : (m,) array, optional
        Standard deviations of the samples, up to a common factor. Default: all the same.

    Returns
    -------
    Fit
        Differentiable in x, y and sigma, at the degree that is chosen.

    Raises
    ------
    ValueError
        If shapes do not fit, x is not finite or lies outside of the interval, there are fewer than
        three samples, or a degree is too high for them. Inside ``jit`` NaN and a status of -5.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> x = jnp.linspace(0.0, 3.0, 60)
    >>> curve = ox.chebyshev.fit(x, jnp.sin(x))
    >>> print(curve.derivative(jnp.array([1.0, 2.0]), 2).round(2), -jnp.sin(1.0).round(2))
    [-0.84 -0.91] -0.84
    """
    x, y, sigma = samples(x, y, sigma)
    count = x.shape[0]
    top = _top_degree(count, degree, most)
    there = jnp.isfinite(y)
    low, high = (jnp.min(x), jnp.max(x)) if interval is None else interval
    low, high = jnp.asarray(low, x.dtype), jnp.asarray(high, x.dtype)
    valid = (low < high) & jnp.all((x >= low) & (x <= high)) & jnp.all(sigma > 0)
    if is_concrete(valid) and not valid:
        raise ValueError(
            "`x` must be finite and lie in `interval`, and `sigma` be positive, got x from "
            f"{jnp.min(x)} to {jnp.max(x)}, interval {(float(low), float(high))}."
        )
    least = 3 if degree is None else degree + 2
    enough = jnp.sum(there) >= least
    if is_concrete(enough) and not enough:
        raise ValueError(f"`y` must have at least {least} samples that are finite.")
    return _fitted(
        x, jnp.where(there, y, 0), there, sigma, (low, high), valid & enough, top, degree
    )


def samples(x: ArrayLike, y: ArrayLike, sigma: ArrayLike | None) -> tuple[Array, Array, Array]:
    """The data in their common dtype, of one shape."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(x, y)
        if not jnp.issubdtype(dtype, jnp.floating):
            dtype = jnp.result_type(float)
    for name, value in (("x", x), ("y", y)):
        if jnp.iscomplexobj(value):
            raise ValueError(f"`{name}` must be real.")
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"`x` and `y` must be of one shape, (m,), got {x.shape} and {y.shape}.")
    if x.shape[0] < 3:
        raise ValueError(f"At least 3 samples are needed, got {x.shape[0]}.")
    sigma = jnp.ones_like(x) if sigma is None else jnp.asarray(sigma, dtype)
    if sigma.shape != x.shape:
        raise ValueError(f"`sigma` must have the shape of x, {x.shape}, got {sigma.shape}.")
    return x, y, sigma


def _top_degree(count: int, degree: int | None, most: int | None) -> int:
    if degree is not None:
        check_count("degree", degree, 0)
        if degree > count - 2:
            raise ValueError(f"`degree` must be at most {count - 2} for {count} samples.")
        return degree
    if most is None:
        return min(max(count // 2, 1), MOST, count - 2)
    check_count("most", most, 1)
    return min(most, count - 2)


@ft.partial(jax.jit, static_argnums=(6, 7))
def _fitted(
    x: Array, y: Array, there: Array, sigma: Array, interval: tuple, valid: Array, top: int,
    degree: int | None,
) -> Fit:  # fmt: skip
    low, high = interval
    width = jnp.where(valid, high - low, 1)
    t = ((x - low) - (high - x)) / width
    weight = jnp.where(there, 1 / jnp.where(sigma > 0, sigma, 1), 0)
    matrix = _vandermonde(jnp.where(valid, t, 0), top) * weight[:, None]
    scaled = y * weight
    orthogonal, factor = jnp.linalg.qr(matrix)
    projections = jnp.matmul(orthogonal.T, scaled, precision=lax.Precision.HIGHEST)
    count = jnp.sum(there)
    eps = float(jnp.finfo(x.dtype).eps)
    rounding = count.astype(x.dtype) * (eps / 4 * jnp.max(jnp.abs(scaled))) ** 2
    # What is left of y, degree by degree, as a sum of squares: no difference of large numbers.
    left = scaled - jnp.matmul(orthogonal, projections, precision=lax.Precision.HIGHEST)
    above = jnp.cumsum((projections**2)[::-1])[::-1]
    rss = jnp.sum(left**2) + jnp.concatenate([above[1:], above[:1] * 0])
    dof = count - 1 - jnp.arange(top + 1)
    gcv = count.astype(x.dtype) * (rss + rounding) / jnp.maximum(dof, 1).astype(x.dtype) ** 2
    gcv = jnp.where(dof > 0, gcv, jnp.inf)
    chosen = jnp.argmin(lax.stop_gradient(gcv)) if degree is None else jnp.asarray(degree)
    kept = jnp.arange(top + 1) <= chosen
    # The triangle of a lower degree is the leading part of that of a higher one.
    triangle = jnp.where(kept[:, None] & kept[None], factor, jnp.eye(top + 1, dtype=x.dtype))
    inverse = jax.scipy.linalg.solve_triangular(triangle, jnp.diag(kept.astype(x.dtype)))
    coefficients = jnp.matmul(inverse, projections, precision=lax.Precision.HIGHEST)
    noise = jnp.sqrt(rss[chosen] / jnp.maximum(dof[chosen], 1).astype(x.dtype))
    good = valid & jnp.all(jnp.isfinite(coefficients))
    nan = jnp.where(good, 0, jnp.nan).astype(x.dtype)
    status = jnp.where(good, COMPLETE, BAD_INPUT).astype(jnp.int32)
    return Fit(
        jnp.stack([low, high]), coefficients + nan, chosen.astype(jnp.int32), noise + nan,
        dof[chosen].astype(jnp.int32), gcv, inverse + nan, status,
    )  # fmt: skip


def _vandermonde(t: Array, top: int) -> Array:
    """T_0 to T_top at t, (m, top + 1), by the recurrence."""

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        before, last = carry
        return (last, 2 * t * last - before), before

    return lax.scan(step, (jnp.ones_like(t), t), None, length=top + 1)[1].T


def student_quantile(level: float, dof: Array) -> Array:
    """The two-sided quantile of Student's t; its expansion by 1 / dof to the fourth order.

    Reference: Abramowitz & Stegun, 26.7.5.
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie between 0 and 1, got {level}.")
    dtype = jnp.result_type(float)
    z = ndtri(jnp.asarray((1 + level) / 2, dtype))
    n = jnp.maximum(dof, 1).astype(dtype)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n ** (k + 1) for k, term in enumerate(terms))
