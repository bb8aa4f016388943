r"""What the errors of the parameters do to a function of them, and to the curve.

To first order g(x) has the variance ||G F||², G the derivative of g and F the factor of the
covariance. Where g does not see the directions in which nothing is known, that is so whatever they
are: the curve of a * c * exp(-t) has errors, though a and c have none. Else it is infinite.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PyTree

from ..driver.unknown import nan_unless
from ..jax_support.types import Number
from ..linalg import norm, safe_sqrt
from ..problem.pytrees import Unravel, ravel, widest
from .covariance import Covariance
from .curve import CurveFit, check_one
from .quantiles import half_width, probability

KINDS = ("confidence", "prediction")


class Band(eqx.Module):
    """A curve with the interval about it.

    Attributes
    ----------
    curve, stderr, lower, upper : arrays, all of the curve's shape
    """

    curve: Float[Array, "..."]
    stderr: Float[Array, "..."]
    lower: Float[Array, "..."]
    upper: Float[Array, "..."]


def propagate(
    fun: Callable[..., PyTree], fit: PyTree, covariance: PyTree = None
) -> tuple[PyTree, PyTree]:
    """Propagate the errors of parameters through a function, to first order.

    Parameters
    ----------
    fun : callable
        ``fun(p)`` of the parameters in their structure; gives an array or a pytree.
    fit : CurveFit, Covariance, or pytree of parameters
        A fit, or its covariance; or parameters with their ``covariance``.
    covariance : array, shape (n, n), optional
        With parameters only: in the order of their leaves.

    Returns
    -------
    value, stderr : both like what ``fun`` gives
        ``fun`` at the parameters, and its standard errors: inf where it depends on what is not
        determined.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> t = jnp.linspace(0.0, 3.0, 12)
    >>> y = 2.0 * jnp.exp(-t) + 0.1 * jnp.cos(40 * t)
    >>> fit = ox.curve_fit(lambda t, a, b: a * jnp.exp(-b * t), t, y)
    >>> half_life, error = ox.propagate(lambda p: jnp.log(2.0) / p[1], fit)
    >>> print(f"{half_life:.2f} {error:.2f}")
    0.67 0.03
    """
    if isinstance(fit, CurveFit):
        fit = fit.covariance
    if isinstance(fit, Covariance):
        check_one(fit)
        x, restore = fit.x, fit.restore
    else:
        dtype = widest(jnp.result_type(leaf) for leaf in jax.tree.leaves(fit))
        x, restore = ravel(fit, dtype), Unravel.like(fit)
    shapes = jax.eval_shape(lambda x: fun(restore(x)), x)

    def flat(x: Array) -> Array:
        return ravel(fun(restore(x)), x.dtype)

    value, jac = flat(x), jax.jacfwd(flat)(x)
    if isinstance(fit, Covariance):
        error = _errors(jac, fit)
    else:
        matrix = jnp.asarray(covariance, x.dtype)
        error = safe_sqrt(jnp.maximum(jnp.sum((jac @ matrix) * jac, axis=1), 0))
    back = Unravel.like(shapes)
    return back(value), back(error)


def _errors(jac: Float[Array, "k n"], estimate: Covariance) -> Float[Array, " k"]:
    """Standard errors of what has this derivative, (k, n) -> (k,)."""
    error = jax.vmap(norm)(jac @ estimate.scaled_factor)
    moved = jnp.where(estimate.held[None, :], 0, jac)
    along = jnp.max(jnp.abs(moved @ estimate.null), axis=1)
    size = jnp.max(jnp.abs(moved) @ jnp.abs(estimate.null), axis=1)
    lost = along > jnp.finfo(jac.dtype).eps ** 0.5 * size
    lost = lost | (jnp.any(moved != 0, axis=1) & ~jnp.isfinite(estimate.deviation))
    return nan_unless(estimate.known, jnp.where(lost, jnp.inf, error))


def band(
    fit: CurveFit,
    x: PyTree = None,
    *,
    level: Number = 0.95,
    kind: str = "confidence",
    sigma: PyTree = None,
) -> Band:
    """Confidence or prediction band of a fitted curve.

    Parameters
    ----------
    fit : CurveFit
    x : optional
        Where; by default at the data.
    level : float
        Probability, at each x by itself.
    kind : {'confidence', 'prediction'}
        Of the curve, or of a new datum (its y, at an x without error).
    sigma : scalar or array, optional
        For predictions, the standard deviation of a new datum in the units of the fit's ``sigma``.
        By default that of the fit, if it was a scalar or ``x`` is not given. Needed, in the units
        of the data, after a robust loss, which does not estimate it.

    Returns
    -------
    Band
        With ``curve``, ``stderr``, ``lower``, ``upper``. By Student's t with the fit's degrees of
        freedom, or normal quantiles where its sigma is absolute.

    Raises
    ------
    ValueError
        For another ``kind``, and where ``sigma`` is needed.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> t = jnp.linspace(0.0, 3.0, 12)
    >>> y = 2.0 * jnp.exp(-t) + 0.1 * jnp.cos(40 * t)
    >>> fit = ox.curve_fit(lambda t, a, b: a * jnp.exp(-b * t), t, y)
    >>> b = ox.band(fit, jnp.array([0.0, 1.0]))
    >>> print([f"{low:.2f} to {high:.2f}" for low, high in zip(b.lower, b.upper)])
    ['1.91 to 2.19', '0.66 to 0.80']
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}, got {kind!r}.")
    curve, error = propagate(functools.partial(_curve_at, fit, x), fit)
    if kind == "prediction":
        error = safe_sqrt(error**2 + _variance_of(fit, sigma) * _sigma_of(fit, x, sigma) ** 2)
    q = half_width(probability(level, curve.dtype), freedom(fit, curve.dtype))
    return Band(curve, error, curve - q * error, curve + q * error)


def _curve_at(fit: CurveFit, x: PyTree, p: PyTree) -> Array:
    return jnp.asarray(fit.model(fit.data.x if x is None else x, p))


def freedom(fit: CurveFit, dtype: DTypeLike) -> Float[Array, ""]:
    """Degrees of freedom of the errors' distribution; inf for absolute sigma."""
    if fit.absolute_sigma:
        return jnp.asarray(jnp.inf, dtype)
    return fit.covariance.dof.astype(dtype)


def _variance_of(fit: CurveFit, sigma: PyTree) -> PyTree:
    """That of unit weight, of new data."""
    if fit.loss == "linear":
        return fit.covariance.variance
    if sigma is None and not fit.absolute_sigma:
        raise ValueError("`sigma` is missing: a robust loss does not estimate that of new data.")
    return 1


def _sigma_of(fit: CurveFit, x: PyTree, sigma: PyTree) -> PyTree:
    if sigma is not None:
        return jnp.asarray(sigma, fit.covariance.x.dtype)
    weight = fit.data.weight
    if weight is None:
        return 1
    if weight.ndim == 0 or (x is None and weight.ndim == 1):
        return 1 / weight
    raise ValueError("`sigma` is missing: that of new data, for it differed between data.")
