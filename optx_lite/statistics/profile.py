r"""Profile-likelihood intervals (MINUIT's MINOS) and contours, as one batched solve.

The profile of a parameter is the least cost S(v) that the others reach where it is held at v; with
s² the variance of unit weight (1 for absolute sigma),

    tau(v) = sqrt((S(v) - S(x)) / s²)                                                      (1)

is compared with the quantile q of |t| (Bates & Watts, "Nonlinear Regression Analysis", 1988,
section 6.1): the interval ends where tau = q. For q = 1 and absolute sigma that is MINOS; with
q² = F(1, dof) it is lmfit's `conf_interval`. A contour of two parameters is the same along rays
from the minimum, with q² = 2 F(2, dof) or chi²(2).

tau is nearly linear in the distance d along a ray, in units of the standard error: so each ray
starts at d = q, is extended until tau passes q, and then divided by the secant with Illinois'
correction. Every trial is a whole solve for the other parameters, from the last one of the ray;
all rays of all parameters are lanes of one `vmap`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..driver.adjoint import ImplicitAdjoint
from ..driver.unknown import nan_unless
from ..jax_support.control_flow import while_loop
from ..jax_support.types import Number
from ..linalg import safe_divide, safe_sqrt
from ..problem.bounds import step_to_bound
from ..problem.least_squares import LeastSquaresProblem
from ..problem.pytrees import is_concrete
from ..results.least_squares import Result
from ..solvers import LevenbergMarquardt, TrustRegionReflective
from ..solvers.least_squares.base import AbstractLeastSquaresSolver
from .covariance import Covariance
from .curve import CurveFit, check_one, problem_of
from .large import column_lengths
from .propagation import freedom
from .quantiles import half_width, probability, radius

FOUND, OPEN, BOUND, LOWER, FAILED = range(5)
ONE_SIGMA = 0.6826894921370859  # the probability of one standard deviation
TOLERANCE = 1e-10  # of the fits: their costs are subtracted
MOST_TRIALS = 40
FURTHEST = 1e3  # standard errors in units of q: beyond it a ray is open
REASONS = {
    FOUND: "found",
    OPEN: "open: the cost does not rise so far",
    BOUND: "ends at the bound",
    LOWER: "the fit is not the minimum: a lower cost was found",
    FAILED: "a fit with this parameter held did not converge",
}


class ProfileIntervals(eqx.Module):
    """Where the profiles reach a level: arrays of shape (k,) for k parameters.

    Attributes
    ----------
    value, lower, upper : arrays, shape (k,)
        The parameters and the ends of their intervals: infinite where the cost never rises so far,
        the bound where that comes first, NaN where it could not be found.
    status : array, shape (k, 2), int
        Of the lower and the upper end: 0 found, 1 open, 2 at the bound, 3 a lower cost was found,
        4 no convergence.
    names : tuple of str, static
    level : float
        The probability of the intervals.
    """

    value: Float[Array, " k"]
    lower: Float[Array, " k"]
    upper: Float[Array, " k"]
    status: Int[Array, "k 2"]
    names: tuple[str, ...] = eqx.field(static=True)
    level: Number = ONE_SIGMA

    def __repr__(self) -> str:
        if not is_concrete(self) or jnp.ndim(self.value) != 1:
            return eqx.tree_pformat(self)
        lines = []
        for i, name in enumerate(self.names):
            x, low, high = (float(v[i]) for v in (self.value, self.lower, self.upper))
            notes = {REASONS[int(s)] for s in self.status[i] if int(s)}
            line = f"{name} = {x:.6g} {low - x:+.3g} {high - x:+.3g}"
            lines.append(f"{line}  {'; '.join(sorted(notes))}".rstrip())
        return "\n".join(lines)


def profile_intervals(
    fit: CurveFit, names: Sequence[str] | None = None, *, level: Number = ONE_SIGMA
) -> ProfileIntervals:
    """Compute profile-likelihood intervals of parameters: MINOS's errors.

    Unlike standard errors they do not take the model for linear, do not depend on how it is
    parametrised, and end at bounds.

    Parameters
    ----------
    fit : CurveFit
        Without a robust loss.
    names : sequence of str, optional
        Which parameters, by their names in ``fit.covariance.names``; by default all.
    level : float
        Probability; by default that of one standard deviation.

    Returns
    -------
    ProfileIntervals

    Raises
    ------
    ValueError
        For an unknown name, or a robust loss.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> t = jnp.linspace(0.0, 3.0, 12)
    >>> y = 2.0 * jnp.exp(-t) + 0.1 * jnp.cos(40 * t)
    >>> fit = ox.curve_fit(lambda t, a, b: a * jnp.exp(-b * t), t, y)
    >>> ends = ox.profile_intervals(fit, ["b"])
    >>> print(f"{ends.lower[0]:.2f} {ends.upper[0]:.2f}")
    0.98 1.09
    """
    rows = tuple(_rows(fit, names))
    problem, solver, x, variance = _held_problem(fit)
    dtype = fit.covariance.x.dtype
    value, ends, status = _intervals(
        rows, problem, solver, x, variance, fit.result.cost, fit.result.jac, fit.covariance,
        probability(level, dtype), freedom(fit, dtype),
    )  # fmt: skip
    names = tuple(fit.covariance.names[i] for i in rows)
    return ProfileIntervals(value, ends[:, 0], ends[:, 1], status, names, level)


@functools.partial(jax.jit, static_argnums=0)
def _intervals(
    rows: tuple[int, ...], problem: LeastSquaresProblem, solver: AbstractLeastSquaresSolver,
    x: Array, variance: Array, cost: Array, jac: PyTree, estimate: Covariance, within: Array,
    dof: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
    at, n, k = jnp.array(rows), x.shape[0], len(rows)
    size = _sizes(estimate, jac, problem)
    eye = jnp.eye(n, dtype=x.dtype)[at]
    ray = eye * size[None, :]
    rays = jnp.stack([-ray, ray], axis=1).reshape(2 * k, n)
    held = jnp.repeat(eye != 0, 2, axis=0)
    q = half_width(within, dof)
    distance, status = _search(problem, solver, x, cost, variance, rays, held, q)
    away = distance.reshape(k, 2) * size[at][:, None] * jnp.array([[-1.0, 1.0]], x.dtype)
    return x[at], x[at][:, None] + away, status.reshape(k, 2)


@jax.jit
def _sizes(estimate: Covariance, jac: PyTree, box: LeastSquaresProblem) -> Float[Array, " n"]:
    """Where a search starts, in each parameter's own units.

    The standard error; where there is none that of a fit with all others held; where the curve does
    not depend on the parameter its own size, or that of the box.
    """
    length = column_lengths(jac)
    size = jnp.ones_like(length)
    for better in (
        box.upper - box.lower,
        jnp.abs(estimate.x),
        safe_divide(safe_sqrt(estimate.variance), length),
        estimate.flat_stderr,
    ):
        size = jnp.where(jnp.isfinite(better) & (better > 0), better, size)
    return size


def contour(
    fit: CurveFit, first: str, second: str, *, level: Number = ONE_SIGMA, points: int = 32
) -> tuple[Array, Array]:
    """Compute the contour of two parameters at which the profile reaches a level.

    Parameters
    ----------
    fit : CurveFit
        Without a robust loss.
    first, second : str
        Names of the parameters.
    level : float
        Probability that both lie inside (MINUIT's ``mncontour`` with ``cl``).
    points : int
        How many points of the contour.

    Returns
    -------
    curve : array, shape (points, 2)
        Values of both; NaN or infinite where the contour is not closed.
    status : array, shape (points,)
        As for `profile_intervals`.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> t = jnp.linspace(0.0, 3.0, 12)
    >>> y = 2.0 * jnp.exp(-t) + 0.1 * jnp.cos(40 * t)
    >>> fit = ox.curve_fit(lambda t, a, b: a * jnp.exp(-b * t), t, y)
    >>> curve, status = ox.contour(fit, "a", "b", points=8)
    >>> curve.shape, bool((status == 0).all())
    ((8, 2), True)
    """
    rows = jnp.array(_rows(fit, [first, second]))
    x = fit.covariance.x
    pair = fit.covariance.matrix[rows][:, rows]
    root = jnp.linalg.cholesky(pair)
    angle = jnp.linspace(0, 2 * jnp.pi, points, endpoint=False, dtype=x.dtype)
    circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    rays = jnp.zeros((points, x.shape[0]), x.dtype).at[:, rows].set(circle @ root.T)
    held = jnp.zeros(x.shape[0], bool).at[rows].set(True)
    q = radius(probability(level, x.dtype), freedom(fit, x.dtype))
    held = jnp.broadcast_to(held[None, :], rays.shape)
    distance, status = _distances(fit, rays, held, q)
    return (x[None, :] + distance[:, None] * rays)[:, rows], status


def profile_curves(
    fit: CurveFit, ends: ProfileIntervals, points: int = 25
) -> tuple[Array, Array, Array]:
    """Profiles of parameters, from beyond one end of their intervals to beyond the other.

    Parameters
    ----------
    fit : CurveFit
        Without a robust loss.
    ends : ProfileIntervals
        Of the fit.
    points : int
        How many of each profile.

    Returns
    -------
    grid : array, shape (k, points)
        Values of each parameter: those of the interval and half as far again, within bounds. In
        place of an end that is missing, three standard errors.
    rise : array, shape (k, points)
        tau² of (1); NaN where the fit with this parameter held failed.
    quantile : array, shape ()
        tau at the ends.
    """
    rows = _rows(fit, ends.names)
    x, at = fit.covariance.x, jnp.array(rows)
    problem, solver, start, variance = _held_problem(fit)
    sigma = _sizes(fit.covariance, fit.result.jac, problem)[at]
    below, above = (
        1.5 * jnp.where(jnp.isfinite(side), jnp.abs(side - ends.value), 3 * sigma)
        for side in (ends.lower, ends.upper)
    )
    part = jnp.linspace(0, 1, points, dtype=x.dtype)[None, :]
    grid = (ends.value - below)[:, None] + part * (below + above)[:, None]
    grid = jnp.clip(grid, problem.lower[at][:, None], problem.upper[at][:, None])
    held = jnp.eye(x.shape[0], dtype=bool)[at]
    rise = _rises(problem, solver, start, fit.result.cost, variance, held, grid)
    return grid, rise, _quantile(ends.level, fit)


def _quantile(level: Number, fit: CurveFit) -> Array:
    dtype = fit.covariance.x.dtype
    return half_width(probability(level, dtype), freedom(fit, dtype))


@jax.jit
def _rises(
    problem: LeastSquaresProblem,
    solver: AbstractLeastSquaresSolver,
    x: Array,
    cost: Array,
    variance: Array,
    held: Array,
    grid: Array,
) -> Array:
    def rise(held: Array, value: Array) -> Array:
        res = _fit_held(problem, solver, held, jnp.where(held, value, x), x)
        return nan_unless(res.success, 2 * (res.cost - cost) / variance)

    return jax.vmap(jax.vmap(rise, (None, 0)))(held, grid)


def _fit_held(
    problem: LeastSquaresProblem,
    solver: AbstractLeastSquaresSolver,
    held: Bool[Array, " n"],
    at: Float[Array, " n"],
    start: Float[Array, " n"],
) -> PyTree:
    """The fit in which some parameters are held."""
    lower, upper = (jnp.where(held, at, side) for side in (problem.lower, problem.upper))
    there = eqx.tree_at(lambda p: (p.lower, p.upper), problem, (lower, upper))
    return ImplicitAdjoint().solve(solver, there, jnp.where(held, at, start))


def _rows(fit: CurveFit, names: Sequence[str] | None) -> list[int]:
    check_one(fit)
    if fit.loss != "linear":
        raise ValueError(f"`fit` must be one without a robust loss, got loss={fit.loss!r}.")
    known = fit.covariance.names
    names = known if names is None else names
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"`names` must be among {known}, got {missing}.")
    return [known.index(name) for name in names]


def _distances(
    fit: CurveFit, rays: Float[Array, "L n"], held: Bool[Array, "L n"], q: Float[Array, ""]
) -> tuple[Float[Array, " L"], Int[Array, " L"]]:
    """How far along each ray, (L, n), the profile reaches q; and why not, if it does not."""
    problem, solver, x, variance = _held_problem(fit)
    return _search(problem, solver, x, fit.result.cost, variance, rays, held, q)


def _held_problem(
    fit: CurveFit,
) -> tuple[LeastSquaresProblem, AbstractLeastSquaresSolver, Array, Array]:
    """The problem with bounds which may be closed, its solver, its x and s²."""
    problem, x = problem_of(fit, fit.data)
    kind = TrustRegionReflective if problem.bounded else LevenbergMarquardt
    solver = kind(TOLERANCE, TOLERANCE, TOLERANCE)
    problem = dataclasses.replace(problem, bounded=True)
    variance = jnp.where(jnp.isfinite(fit.covariance.variance), fit.covariance.variance, jnp.nan)
    return problem, solver, x, variance


class _Ray(eqx.Module):
    """A search along a ray: tau < q at ``low``, tau >= q at ``high`` once ``passed``."""

    trial: Array
    low: Array
    high: Array
    g_low: Array
    g_high: Array
    passed: Array
    x: Array
    count: Array
    status: Array


SEARCHING = -1


@jax.jit
def _search(
    problem: LeastSquaresProblem, solver: AbstractLeastSquaresSolver, x: Array,
    cost: Array, variance: Array, rays: Array, held: Array, q: Array,
) -> tuple[Array, Array]:  # fmt: skip
    def along(ray: Array, held: Array) -> tuple[Array, Array]:
        return _along(problem, solver, x, cost, variance, ray, held, q)

    return jax.vmap(along)(rays, held)


def _along(
    problem: LeastSquaresProblem, solver: AbstractLeastSquaresSolver, x: Float[Array, " n"],
    cost: Float[Array, ""], variance: Float[Array, ""], ray: Float[Array, " n"],
    held: Bool[Array, " n"], q: Float[Array, ""],
) -> tuple[Float[Array, ""], Int[Array, ""]]:  # fmt: skip
    eps = jnp.finfo(x.dtype).eps
    longest, _ = step_to_bound(x, ray, problem.lower, problem.upper)
    accuracy = eps**0.4

    def tau_at(d: Array, start: Array) -> tuple[Array, Array, Array]:
        at = jnp.clip(x + d * ray, problem.lower, problem.upper)
        res = _fit_held(problem, solver, held, at, start)
        rise = 2 * (res.cost - cost) / variance
        return jnp.sqrt(jnp.maximum(rise, 0)), res.x, _verdict(res, rise, q, eps)

    def turn(s: _Ray) -> _Ray:
        tau, found, status = tau_at(s.trial, s.x)
        g = tau - q
        beyond = g >= 0
        # Illinois: the end that stays a second time counts half.
        stays_low = s.passed & beyond & (s.g_high >= 0)
        g_low = jnp.where(beyond, jnp.where(stays_low, 0.5, 1) * s.g_low, g)
        g_high = jnp.where(beyond, g, jnp.where(s.passed, 0.5, 1) * s.g_high)
        low, high = jnp.where(beyond, s.low, s.trial), jnp.where(beyond, s.trial, s.high)
        passed = s.passed | beyond
        slope = q / jnp.maximum(tau, 0.1 * q)
        further = jnp.minimum(s.trial * jnp.clip(1.1 * slope, 1.2, 3), longest)
        inside = low + (high - low) * jnp.clip(-g_low / (g_high - g_low), 0.01, 0.99)
        trial = jnp.where(passed, inside, further)
        done = (jnp.abs(g) <= accuracy * q) | (passed & (high - low <= accuracy * high))
        status = jnp.where(status == FAILED, status, jnp.where(done, FOUND, status))
        at_bound = ~passed & (s.trial >= longest)
        too_far = ~passed & (s.trial > FURTHEST * q)
        ends = jnp.where(at_bound, BOUND, jnp.where(too_far, OPEN, SEARCHING))
        status = jnp.where(status == SEARCHING, ends, status)
        status = jnp.where((s.count >= MOST_TRIALS) & (status == SEARCHING), FAILED, status)
        final = jnp.where(status == SEARCHING, trial, s.trial)
        return _Ray(final, low, high, g_low, g_high, passed, found, s.count + 1, status)

    zero = jnp.zeros_like(q)
    start = _Ray(
        jnp.minimum(q, longest), zero, zero + longest, -q, zero, zero > 0, x,
        jnp.zeros_like(held[0], jnp.int32), jnp.full_like(held[0], SEARCHING, jnp.int32),
    )  # fmt: skip
    end: _Ray = while_loop(lambda s: s.status == SEARCHING, turn, start)
    bad = (end.status == LOWER) | (end.status == FAILED)
    distance = jnp.where(end.status == OPEN, jnp.inf, end.trial)
    return jnp.where(bad, jnp.nan, distance), end.status


def _verdict(
    res: Result, rise: Float[Array, ""], q: Float[Array, ""], eps: Number
) -> Int[Array, ""]:
    """Whether a trial ends the search."""
    lower = rise < -(eps**0.5) * q * q
    failed = ~res.success | jnp.isnan(rise)
    return jnp.where(failed, FAILED, jnp.where(lower, LOWER, SEARCHING)).astype(jnp.int32)
