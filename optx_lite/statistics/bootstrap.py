r"""The bootstrap of a fit: as many fits to data made from it, as lanes of one `vmap`.

parametric  y* = f(x; p) + sigma s z, z normal; where x has errors, x* = x^ + sigma_x s z', too, and
            f is taken at x^, the estimated x
residual    y* = f(x; p) + sigma r*, r* drawn with replacement from -f_i / sqrt(1 - h_i), centred

with s² the variance of unit weight (1 where sigma is absolute), h_i the leverages, which make up
for what the fit took out of the residuals (Davison & Hinkley, "Bootstrap Methods and their
Application", 1997, section 6.3). For a covariance in place of sigma, its Cholesky factor.

Intervals. Percentiles; or bias-corrected and accelerated ones (Efron, "Better bootstrap confidence
intervals", 1987): of the parameter's distribution the quantiles

    Phi(b + (b + z) / (1 - a (b + z))),   b = Phi^-1(part below the estimate),              (1)
    a = sum_i l_i³ / (6 (sum_i l_i²)^3/2),   l_i = -F F^T J_i^T f_i / (1 - h_i)            (2)

at z = -+ Phi^-1((1 + level) / 2), with l_i what datum i does to the parameter.

Fits that fail are left out, and counted: if they are many, what is left is no fair sample.
"""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from ..driver.adjoint import ImplicitAdjoint
from ..driver.unknown import nan_unless
from ..jax_support.types import Number
from ..linalg import safe_sqrt
from ..problem.losses import check_loss
from ..problem.pytrees import Unravel, is_concrete
from ..problem.random_keys import as_key
from ..solvers.traced import traced
from .curve import CurveFit, Data, check_one, problem_of
from .influence import free_jacobian, leverages
from .quantiles import probability

KINDS = ("parametric", "residual")
INTERVALS = ("percentile", "bca")


class Bootstrap(eqx.Module):
    """Parameters of fits to resampled data.

    Attributes
    ----------
    x : array, shape (samples, n)
        The parameters, flat; NaN where a fit failed.
    success : array, shape (samples,), bool
    estimate : array, shape (n,)
        Those of the fit itself.
    acceleration : array, shape (n,)
        a of the module, for 'bca'.
    names : tuple of str, static
    restore : callable, static
        From a flat vector to the parameters' own structure.
    """

    x: Float[Array, "samples n"]
    success: Bool[Array, " samples"]
    estimate: Float[Array, " n"]
    acceleration: Float[Array, " n"]
    names: tuple[str, ...] = eqx.field(static=True)
    restore: Unravel = eqx.field(static=True)

    @property
    def failed(self) -> Int[Array, ""]:
        """How many fits failed and are left out, ()."""
        return jnp.sum(~self.success)

    @property
    def covariance(self) -> Float[Array, "n n"]:
        """Of the parameters, (n, n)."""
        count = jnp.sum(self.success).astype(self.x.dtype)
        there = jnp.where(self.success[:, None], self.x, 0)
        away = jnp.where(self.success[:, None], there - (jnp.sum(there, 0) / count)[None], 0)
        return away.T @ away / (count - 1)

    @property
    def stderr(self) -> PyTree[Array]:
        """The standard errors, in the structure of the parameters."""
        return self.restore(jnp.sqrt(jnp.diagonal(self.covariance)))

    def intervals(
        self, level: Number = 0.95, kind: str = "percentile"
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """Lower and upper ends, each in the structure of the parameters.

        Parameters
        ----------
        level : float
            Probability, between 0 and 1.
        kind : {'percentile', 'bca'}
            The latter corrects for bias and skewness.

        Returns
        -------
        lower, upper : pytrees like the parameters
            NaN if no fit succeeded.

        Raises
        ------
        ValueError
            For another ``kind``, and a ``level`` out of range.
        """
        if kind not in INTERVALS:
            raise ValueError(f"`kind` must be one of {INTERVALS}, got {kind!r}.")
        half = probability(level, self.x.dtype) / 2
        tails = jnp.stack([0.5 - half, 0.5 + half])[:, None]
        tails = jnp.broadcast_to(tails, (2, self.estimate.size))
        if kind == "bca":
            tails = self._corrected(tails)
        x = jnp.where(self.success[:, None], self.x, jnp.nan)
        low, high = jax.vmap(jnp.nanquantile, in_axes=(1, 1), out_axes=1)(x, tails)
        return self.restore(low), self.restore(high)

    def _corrected(self, tails: Float[Array, "2 1"]) -> Float[Array, "2 n"]:
        """(1), (2, n)."""
        below = jnp.where(self.success[:, None], self.x < self.estimate[None], False)
        ties = jnp.where(self.success[:, None], self.x == self.estimate[None], False)
        count = jnp.sum(self.success).astype(tails.dtype)
        part = jnp.sum(below, 0).astype(tails.dtype) + 0.5 * jnp.sum(ties, 0).astype(tails.dtype)
        # A part of 0 or 1 would put both ends beyond all samples.
        bias = ndtri(jnp.clip(part / count, 0.5 / count, 1 - 0.5 / count))[None]
        shifted = bias + ndtri(tails)
        return ndtr(bias + shifted / (1 - self.acceleration[None] * shifted))

    def __repr__(self) -> str:
        if not is_concrete(self) or jnp.ndim(self.x) != 2:
            return eqx.tree_pformat(self)
        errors = np.sqrt(np.diagonal(np.asarray(self.covariance)))
        lines = [
            f"{name} = {value:.6g} ± {error:.2g}"
            for name, value, error in zip(
                self.names, np.asarray(self.estimate), errors, strict=True
            )
        ]
        if int(self.failed):
            lines.append(f"{int(self.failed)} of {len(self.success)} fits failed: left out.")
        return "\n".join(lines)


def bootstrap(
    fit: CurveFit,
    key: int | Key[Array, ""] | None,
    *,
    samples: int = 1000,
    kind: str = "parametric",
) -> Bootstrap:
    """Fit resampled data, all in one `vmap`.

    Unlike standard errors, what comes out does not take the model for linear, and shows what bounds
    and a robust loss do.

    Parameters
    ----------
    fit : CurveFit
        Each sample is fitted from its parameters, with its bounds, loss, method, derivative and
        tolerances.
    key : int, key of jax.random, or whatever SciPy takes for ``rng``
        Of the random numbers: the same gives the same samples, None others each time.
    samples : int
        How many fits.
    kind : {'parametric', 'residual'}
        Normal errors of the fit's standard deviations; or the fit's own residuals, drawn with
        replacement. With a robust loss only the latter, unless sigma is absolute; with errors in
        x only the former.

    Returns
    -------
    Bootstrap
        With ``x``, ``stderr``, ``covariance``, ``intervals(level, kind)`` and ``failed``.

    Raises
    ------
    TypeError
        If ``fit`` does not come from `curve_fit`, or ``key`` is no key.
    ValueError
        For other bad arguments, and where ``kind`` does not suit the fit.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> t = jnp.linspace(0.0, 3.0, 12)
    >>> y = 2.0 * jnp.exp(-t) + 0.1 * jnp.cos(40 * t)
    >>> fit = ox.curve_fit(lambda t, a, b: a * jnp.exp(-b * t), t, y)
    >>> many = ox.bootstrap(fit, 0, samples=200)
    >>> low, high = many.intervals(0.9)
    >>> many.x.shape, int(many.failed), bool((low < fit.popt).all() & (fit.popt < high).all())
    ((200, 2), 0, True)
    """
    _check(fit, samples, kind)
    keys = jax.random.split(as_key(key, "key"), samples)
    draw = functools.partial(_parametric if kind == "parametric" else _residual, fit)
    x, success = jax.vmap(lambda key: _refit(fit, draw(key)))(keys)
    x = nan_unless(success[:, None], x)
    estimate = fit.covariance
    return Bootstrap(x, success, estimate.x, _acceleration(fit), estimate.names, estimate.restore)


def _check(fit: PyTree, samples: object, kind: object) -> None:
    if not isinstance(fit, CurveFit):
        raise TypeError(f"`fit` must come from `curve_fit`, got {type(fit).__name__}.")
    check_one(fit)
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}, got {kind!r}.")
    if not isinstance(samples, (int, np.integer)) or samples < 2:
        raise ValueError(f"`samples` must be an integer of at least 2, got {samples!r}.")
    if kind == "residual" and fit.data.sigma_x is not None:
        raise ValueError("`kind` must be 'parametric' for a fit with errors in x.")
    if kind == "parametric" and fit.loss != "linear" and not fit.absolute_sigma:
        raise ValueError(
            "`kind` must be 'residual' for a fit with a robust loss: the standard deviation of "
            "its data is not estimated. Or give the fit an absolute `sigma`."
        )


def _refit(fit: CurveFit, data: Data) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """The parameters of other data, flat, and whether the fit succeeded."""
    problem, x = problem_of(fit, data)
    result: PyTree = ImplicitAdjoint().solve(traced(fit.solver, problem, x), problem, x)
    return result.x, result.success


def _parametric(fit: CurveFit, key: Array) -> Data:
    data, variance = fit.data, fit.covariance.variance
    s = jnp.ones_like(variance) if fit.absolute_sigma else safe_sqrt(variance)
    in_x, in_y = jax.random.split(key)
    f = fit.result.fun
    if data.sigma_x is None:
        return _with_errors(fit, data.x, s * jax.random.normal(in_y, f.shape, f.dtype))
    delta = fit.delta
    assert delta is not None
    true = data.x + delta
    moved = true + s * data.sigma_x * jax.random.normal(in_x, true.shape, true.dtype)
    return eqx.tree_at(
        lambda d: d.x,
        _with_errors(fit, true, s * jax.random.normal(in_y, f.shape, f.dtype)),
        moved,
    )


def _residual(fit: CurveFit, key: Array) -> Data:
    f, count = fit.result.fun, fit.data.counted(fit.result.fun.shape[0])
    part = count.astype(f.dtype)
    modified = jnp.where(count, -f / jnp.sqrt(_rest(fit)), 0)
    centred = modified - jnp.sum(modified) / jnp.sum(part)
    drawn = jax.random.choice(key, f.shape[0], f.shape, p=part / jnp.sum(part))
    return _with_errors(fit, fit.data.x, centred[drawn])


def _with_errors(fit: CurveFit, x: PyTree, errors: Array) -> Data:
    """The curve at x, with errors in units of sigma."""
    curve = jnp.ravel(fit.predict(x)).astype(errors.dtype)
    return eqx.tree_at(lambda d: d.y, fit.data, curve + fit.data.colour(errors))


def _acceleration(fit: CurveFit) -> Float[Array, " n"]:
    """(2), (n,)."""
    factor = fit.covariance.factor
    # Under a robust loss each row of the Jacobian has a weight, so that J^T f is not the gradient.
    loss = check_loss(fit.loss, fit.f_scale, fit.result.fun)
    jac, score = free_jacobian(fit), fit.result.fun / _rest(fit)
    if not loss.is_linear:
        jac = jac / loss.weights(fit.result.fun)[0][:, None]
        score = loss.slope(fit.result.fun)
    effect = -(jac * score[:, None]) @ factor @ factor.T
    size = jnp.sum(effect**2, axis=0) ** 1.5
    return jnp.where(size > 0, jnp.sum(effect**3, axis=0) / (6 * jnp.where(size > 0, size, 1)), 0)


def _rest(fit: CurveFit) -> Float[Array, " m"]:
    """1 - h, (m,); 1 under a robust loss, which has no leverages."""
    f = fit.result.fun
    if fit.loss != "linear":
        return jnp.ones_like(f)
    return jnp.maximum(1 - leverages(fit), jnp.finfo(f.dtype).eps ** 0.5)
