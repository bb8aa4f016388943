r"""The covariance of fitted parameters, for least squares and for maximum likelihood.

At the minimum x of 0.5 sum_i C^2 rho((f_i / C)^2), with psi_i = f_i rho' and psi'_i = rho' +
2 rho'' z_i its derivative, the parameters that may move (neither fixed nor on a bound) have

    linear loss        s^2 (J^T J)^-1,     s^2 = sum f_i^2 / (m - rank)                     (1)
    robust loss        s^2 A^-1,           s^2 = K sum psi_i^2 / (m - rank) / mean(psi')    (2)
    likelihood         H^-1                                                                 (3)

with A = J^T diag(psi') J, to which the exact form adds sum_i psi_i Hess(f_i), as it does to J^T J
in (1). (2) is Huber's sandwich A^-1 (J^T diag(psi^2) J) A^-1, with the psi_i^2 of data of one
distribution pooled, as (1) does with f_i^2, to which it reduces; K = 1 + rank / m var(psi') /
mean(psi')^2 is his correction (Huber & Ronchetti, "Robust Statistics", 2nd ed., section 7.6, the
second of its three forms). Not pooled, each psi_i^2 by itself, 92 % of the intervals of a parameter
that hangs on few data hold the truth where 95 % should (MacKinnon & White's HC1, 1985), and HC3 has
72 for 68 % (`benchmarks/coverage.py`). Under a robust loss J^T J is no measure of what the data
tell. psi' is taken as it is, negative for outliers of cauchy, where a solver has a floor.

Numbers. J D = Q R with columns of unit length (`factors`), F = D R^-1, and then

    A^-1 = F K^-1 F^T,     K = Q^T diag(psi') Q + F^T (sum_i psi_i Hess(f_i)) F             (4)

so that K is near the identity, and a Hessian has the digits of J rather than half of them.

Different from SciPy's `curve_fit`: a parameter on its bound has no variance, and the others that
of a fit in which it is fixed (SciPy's have neither, and differ between methods at a singular J);
nothing depends on the units of the parameters, and a parameter may be 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..driver.unknown import nan_unless
from ..linalg import norm, safe_sqrt
from ..problem.arguments import check_bounds
from ..problem.least_squares import least_squares_problem
from ..problem.losses import Loss, check_loss
from ..problem.minimization import minimization_problem
from ..problem.pytrees import Unravel, is_concrete, ravel, widest
from ..results.least_squares import Result
from ..results.minimize import MinimizeResult
from .factors import default_rcond, inverse_of_gram, inverse_of_hessian
from .large import column_lengths, factor_of, inverse_block, positions, written_out
from .names import names_of
from .singular import describe_null

HESSIANS = ("gauss-newton", "exact")
FIXED = 2  # in `active_mask`
ORTHOGONAL = 1 / 3  # power of eps: a cosine between f and a column of J that is none
NOT_AT_MINIMUM = 0.1  # of a standard deviation: a minimum of a likelihood is told more exactly


def per_lane(compute: Callable[[Any], Any]) -> Any:
    """A property of one fit or covariance, which of a batch is that of each lane."""

    @functools.wraps(compute)
    def of(self: Any) -> Any:
        x = self.x if isinstance(self, Covariance) else self.covariance.x
        return jax.vmap(of)(self) if jnp.ndim(x) > 1 else compute(self)

    return property(of)


def check_no_batch(argument: str, scalar: Any) -> None:
    """Raise where what is a scalar in one answer is not one."""
    if jnp.ndim(scalar):
        raise ValueError(
            f"`{argument}` must be one, not a batch: use jax.vmap, or take one, "
            "jax.tree.map(lambda leaf: leaf[0], batch)."
        )


class Covariance(eqx.Module):
    """The covariance of the parameters of a fit.

    A pytree. ``np.asarray`` of it is the matrix; printed it says which parameters have no error,
    and why.

    Attributes
    ----------
    x : array, shape (n,)
        The parameters, flat.
    factor : array, shape (n, n)
        F with ``variance * F @ F.T`` the covariance among what is determined.
    deviation : array, shape ()
        s, the standard deviation of unit weight; 1 where sigma is absolute.
    null : array, shape (n, n)
        Its columns that are not 0 are directions in which nothing is known.
    active_mask : array, shape (n,), int
        -1 and 1 for a parameter on its lower and upper bound, 2 for one that is fixed: these have
        no error.
    rank, dof : array, shape (), int
        Directions that are determined; data less that number.
    known : array, shape (), bool
        False where the fit did not succeed, or did not end at a minimum: then all is NaN.
    names : tuple of str, static
        Of the parameters, in the order of x.
    restore : callable, static
        From a flat vector to the parameters' own structure.
    """

    x: Float[Array, " n"]
    factor: Float[Array, "n n"]
    deviation: Float[Array, ""]
    null: Float[Array, "n n"]
    active_mask: Int[Array, " n"]
    rank: Int[Array, ""]
    dof: Int[Array, ""]
    known: Bool[Array, ""]
    names: tuple[str, ...] = eqx.field(static=True)
    restore: Unravel = eqx.field(static=True)

    @property
    def held(self) -> Array:
        """Which parameters are on a bound, or fixed: (n,), bool."""
        return self.active_mask != 0

    @property
    def variance(self) -> Array:
        """s², the variance of unit weight; it may be out of range where s is not."""
        return self.deviation**2

    @per_lane
    def undetermined(self) -> Array:
        """Which parameters have no finite error: (n,), bool."""
        lost = jnp.any(self.null != 0, axis=1) | ~jnp.isfinite(self.deviation)
        return lost & ~self.held

    @per_lane
    def matrix(self) -> Array:
        """The covariance, (n, n): inf and NaN in place of what is not determined."""
        factor = self.scaled_factor
        among = factor @ factor.T
        lost = self.undetermined
        off = jnp.where(lost[:, None] | lost[None, :], jnp.nan, among)
        eye = jnp.eye(among.shape[0], dtype=bool)
        held = self.held[:, None] | self.held[None, :]
        filled = jnp.where(held, 0, jnp.where(eye & lost[:, None], jnp.inf, off))
        return nan_unless(self.known, jnp.where(self.known, filled, among))

    @per_lane
    def scaled_factor(self) -> Array:
        """F with F F^T the covariance among what is determined; shape (n, n)."""
        return jnp.where(jnp.isfinite(self.deviation), self.deviation, 0) * self.factor

    @per_lane
    def flat_stderr(self) -> Array:
        """The standard errors, (n,)."""
        length = jax.vmap(norm)(self.scaled_factor)
        filled = jnp.where(self.undetermined, jnp.inf, jnp.where(self.held, 0, length))
        return nan_unless(self.known, jnp.where(self.known, filled, length))

    @per_lane
    def stderr(self) -> Any:
        """The standard errors, in the structure of the parameters."""
        return self.restore(self.flat_stderr)

    @per_lane
    def correlation(self) -> Array:
        """The correlations, (n, n): 1 on the diagonal, NaN beside it where an error is missing."""
        factor = self.scaled_factor
        length = jax.vmap(norm)(factor)
        unit = factor / jnp.where(length > 0, length, jnp.nan)[:, None]
        lost = self.undetermined | self.held | ~self.known
        among = jnp.where(lost[:, None] | lost[None, :], jnp.nan, unit @ unit.T)
        return jnp.where(jnp.eye(self.x.shape[0], dtype=bool), 1, nan_unless(self.known, among))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.matrix, dtype)

    def explain(self, unchanged: Callable[[np.ndarray], bool] | None = None) -> list[str]:
        """Sentences on the parameters that have no error, and why; made on the host.

        ``unchanged`` tells of another (n,) whether the data would be fitted as at x.
        """
        if not bool(self.known):
            return ["The fit did not end at a minimum, so nothing is known of its errors."]
        sides = {-1: "is on its lower bound", 1: "is on its upper bound", FIXED: "is fixed"}
        notes = [
            f"{name} {sides[int(side)]}: its error is 0, and the others' are those of a fit in "
            "which it does not move."
            for name, side in zip(self.names, np.asarray(self.active_mask), strict=True)
            if side
        ]
        if not np.isfinite(np.asarray(self.deviation)):
            return [*notes, "There are no more data than parameters: no errors can be estimated."]
        null, x = np.asarray(self.null), np.asarray(self.x)
        return [*notes, *describe_null(null, x, self.names, unchanged)]

    def __repr__(self) -> str:
        if not is_concrete(self) or jnp.ndim(self.x) > 1:
            return eqx.tree_pformat(self)
        errors = zip(self.names, np.asarray(self.x), np.asarray(self.flat_stderr), strict=True)
        lines = [f"{name} = {value:.6g} ± {error:.2g}" for name, value, error in errors]
        return "\n".join([*lines, *self.explain()])


def covariance(
    result: Result | MinimizeResult,
    fun: Callable[..., Any] | None = None,
    *,
    args: Any = (),
    kwargs: dict[str, Any] | None = None,
    bounds: Any = None,
    loss: Any = "linear",
    f_scale: Any = 1.0,
    absolute_sigma: bool = False,
    hessian: str = "gauss-newton",
    nobs: Any = None,
    rcond: float | None = None,
    names: Any = None,
    parameters: Sequence[Any] | None = None,
) -> Covariance:
    """Estimate the covariance of the parameters of a fit.

    Parameters
    ----------
    result : Result or MinimizeResult
        Of `least_squares`, by any method, or of `minimize`, where ``fun`` was a negative
        log-likelihood (half of a chi²).
    fun : callable, optional
        The function that was minimised, called ``fun(x, *args, **kwargs)``: needed for the exact
        Hessian, that is for ``hessian='exact'`` and for results of `minimize`.
    args, kwargs : tuple and dict, optional
        Its further arguments.
    bounds : optional
        Those of the fit. For `minimize` they are needed if there were any; a result of
        `least_squares` has its ``active_mask``, and they only distinguish parameters that are fixed
        from those on a bound.
    loss, f_scale : optional
        Those of the fit.
    absolute_sigma : bool
        Whether residuals are in units of their true standard deviations. If not, their variance is
        estimated from the fit. Without effect under a robust loss, which estimates it anyway, and
        for likelihoods.
    hessian : {'gauss-newton', 'exact'}
        Whether the second derivatives of the residuals count.
    nobs : int, optional
        The number of data, if it is not that of residuals: where some have weight 0.
    rcond : float, optional
        The relative error of the Jacobian, below which a direction counts as not determined; a
        hundred roundings if not given, ``eps ** 0.5`` for ``jac='2-point'``.
    names : sequence of str, optional
        Of the parameters; by default their paths in the structure of x.
    parameters : sequence of str or int, optional
        Names or positions of those that are looked at; by default all. For results of
        `least_squares` with a sparse or matrix-free Jacobian and many parameters, without a robust
        loss: then by conjugate gradients, NaN where these find nothing.

    Returns
    -------
    Covariance
        With ``matrix``, ``stderr``, ``correlation``; printed, with an explanation of what has no
        error. Differentiable, where it is not singular; else the derivative is NaN.

    Raises
    ------
    ValueError
        If ``fun`` is missing, or ``loss`` is not that of the result; for bad arguments. Inside
        ``jit`` the covariance of a loss that is not that of the result is NaN.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> t = jnp.linspace(0.0, 3.0, 12)
    >>> y = 2.0 * jnp.exp(-t) + 0.1 * jnp.cos(40 * t)
    >>> res = ox.least_squares(lambda p: p["a"] * jnp.exp(-p["b"] * t) - y, {"a": 1.0, "b": 1.0})
    >>> cov = ox.covariance(res)
    >>> print(f"{cov.stderr['a']:.2f} {cov.correlation[0, 1]:.1f}")
    0.06 0.6

    Where two parameters cannot be told apart there is no error, and it says which:

    >>> res = ox.least_squares(lambda p: p["a"] * p["c"] * jnp.exp(-t) - y, {"a": 1.0, "c": 2.0})
    >>> ox.covariance(res).explain()
    ['a and c are not determined: along a*(1 + s), c*(1 - s) the residuals do not change.']
    """
    if hessian not in HESSIANS:
        raise ValueError(f"`hessian` must be one of {HESSIANS}, got {hessian!r}.")
    check_no_batch("result", getattr(result, "status", None))
    if isinstance(result, MinimizeResult):
        return _of_likelihood(result, fun, args, kwargs, bounds, rcond, names)
    if not isinstance(result, Result):
        raise TypeError(
            f"`result` must come from `least_squares` or `minimize`, got {type(result).__name__}."
        )
    if hessian == "exact" and fun is None:
        raise ValueError("`fun` is missing: the exact Hessian needs the residuals.")
    names, restore, x = _layout(result.x, names)
    f = ravel(result.fun, x.dtype)
    if parameters is not None and (loss != "linear" or hessian != "gauss-newton"):
        raise ValueError("`parameters` takes loss='linear' and hessian='gauss-newton'.")
    mask, gradient = ravel(result.active_mask, jnp.int32), ravel(result.grad, x.dtype)
    closed = np.zeros(x.shape, bool)
    if bounds is not None:
        lower, upper, _ = check_bounds(bounds, result.x, x)
        closed = lower == upper
    if parameters is not None:
        mask = _pressed(mask, closed, gradient, column_lengths(result.jac), result.cost)
        at = positions(parameters, names)
        count = f.shape[0] if nobs is None else nobs
        chosen = _of_chosen(absolute_sigma, result, x, mask, jnp.array(at), count)
        names, few = tuple(names[i] for i in at), Unravel.like(jnp.zeros(len(at), x.dtype))
        return Covariance(x=x[jnp.array(at)], **chosen, names=names, restore=few)
    jac = written_out(result.jac)
    residuals = None
    if hessian == "exact":
        problem, _ = least_squares_problem(fun, result.x, args=args, kwargs=kwargs)  # type: ignore[arg-type]
        residuals = problem.residuals
    rho = check_loss(loss, f_scale, jax.ShapeDtypeStruct(f.shape, f.dtype))
    cutoff = default_rcond(max(jac.shape), x.dtype) if rcond is None else float(rcond)
    estimate, consistent = _of_least_squares(
        (absolute_sigma, cutoff), x, f, jac, gradient, result.cost, (mask, closed), result.success,
        rho, f.shape[0] if nobs is None else nobs, residuals,
    )  # fmt: skip
    if is_concrete(consistent) and np.ndim(consistent) == 0 and not bool(consistent):
        raise ValueError(
            "`loss` and `f_scale` must be those of the fit: the cost of `result` is "
            f"{float(result.cost):.6g}, which is not that of its residuals under them."
        )
    return Covariance(x=x, **estimate, names=names, restore=restore)


def _of_chosen(
    absolute: bool, result: Result, x: Array, mask: Array, at: Array, nobs: Any
) -> dict[str, Array]:
    """The fields of a `Covariance` of some parameters; all others count as determined."""
    held = mask != 0
    factor = factor_of(inverse_block(result.jac, held, at), held[at])
    rank = held.shape[0] - jnp.sum(held)
    dof = jnp.asarray(nobs - rank, jnp.int32)
    f = ravel(result.fun, x.dtype)
    deviation = jnp.ones_like(result.cost) if absolute else _deviation(norm(f), dof)
    known = result.success & jnp.all(jnp.isfinite(factor))
    return _fields(factor, deviation, jnp.zeros_like(factor), mask[at], rank, dof, known)


def _layout(x: Any, names: Any) -> tuple[tuple[str, ...], Unravel, Array]:
    """Names, the way back from a flat vector, and that vector."""
    dtype = widest(leaf.dtype for leaf in jax.tree.leaves(x))
    flat = jnp.asarray(ravel(x, dtype))
    names = names_of(x) if names is None else tuple(map(str, names))
    if len(names) != flat.shape[0]:
        raise ValueError(f"`names` must be {flat.shape[0]} names, got {len(names)}.")
    return names, Unravel.like(x), flat


def _pressed(mask: Array, closed: Any, gradient: Array, lengths: Array, cost: Array) -> Array:
    """The active mask without the variables that their bound does not hold; 2 where lb = ub.

    SciPy's mask has those near a bound in the metric of the solve: also one that is small beside
    the others. Of such a one f does not depend to first order, as at any minimum.
    """
    noise = jnp.finfo(gradient.dtype).eps ** ORTHOGONAL
    free = jnp.abs(gradient) <= noise * lengths * jnp.sqrt(2 * cost)
    return jnp.where(closed, FIXED, jnp.where(free & (lengths > 0), 0, mask)).astype(jnp.int32)


def _on_bounds(x: Array, lower: Array, upper: Array) -> Array:
    side = jnp.where(x == lower, -1, jnp.where(x == upper, 1, 0))
    return jnp.where(lower == upper, FIXED, side).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def _of_least_squares(
    static: tuple[bool, float],
    x: Array,
    f: Array,
    jac: Array,
    gradient: Array,
    cost: Array,
    at_bounds: tuple[Array, Any],
    success: Array,
    loss: Loss,
    nobs: Array,
    residuals: Callable | None,
) -> tuple[dict[str, Array], Array]:
    """The fields of a `Covariance`, and whether the loss is that of the result."""
    absolute_sigma, rcond = static
    mask = _pressed(*at_bounds, gradient, column_lengths(jac), cost)
    held = mask != 0
    size = norm(f)
    expected = 0.5 * size**2 if loss.is_linear else loss.cost(f)
    consistent = jnp.abs(cost - expected) <= jnp.finfo(x.dtype).eps ** 0.5 * jnp.abs(expected)
    in_range = jnp.isfinite(expected) & (expected >= jnp.finfo(x.dtype).smallest_normal)
    consistent = consistent | ~in_range | ~success
    if not loss.is_linear:
        jac = jac / loss.weights(f)[0][:, None]
    factor, null = inverse_of_gram(jac, held, rcond)
    curvature = None if residuals is None else _curvature(residuals, x, loss.slope(f))
    if not loss.is_linear or curvature is not None:
        factor, null = _of_hessian(factor, null, jac, loss, f, curvature, held)
    rank = held.shape[0] - jnp.sum(held) - jnp.sum(jnp.any(null != 0, axis=0))
    dof = jnp.asarray(nobs - rank, jnp.int32)
    if not loss.is_linear:
        deviation = safe_sqrt(_pooled(loss, f, jnp.asarray(nobs).astype(x.dtype), rank, dof))
    elif absolute_sigma:
        deviation = jnp.ones_like(cost)
    else:  # (1)
        deviation = _deviation(size, dof)
    known = success & consistent & jnp.all(jnp.isfinite(factor))
    return _fields(factor, deviation, null, mask, rank, dof, known), consistent


def _deviation(size: Array, dof: Array) -> Array:
    """s of (1) from the norm of f, whose square may be out of range."""
    return jnp.where(dof > 0, size / jnp.sqrt(jnp.maximum(dof, 1).astype(size.dtype)), jnp.inf)


def _per_dof(total: Array, dof: Array) -> Array:
    return jnp.where(dof > 0, total / jnp.maximum(dof, 1).astype(total.dtype), jnp.inf)


def _pooled(loss: Loss, f: Array, nobs: Array, rank: Array, dof: Array) -> Array:
    """s² of (2); residuals that stand for no datum are 0."""
    slope = _slope_of_psi(loss, f)
    no_data = f.shape[0] - nobs
    at_zero = _slope_of_psi(loss, jnp.zeros_like(f))[0]
    mean = (jnp.sum(slope) - no_data * at_zero) / nobs
    squares = jnp.sum((slope - mean) ** 2) - no_data * (at_zero - mean) ** 2
    correction = 1 + rank.astype(f.dtype) / nobs * (squares / nobs) / mean**2
    return correction * _per_dof(jnp.sum(loss.slope(f) ** 2), dof) / mean


def _slope_of_psi(loss: Loss, f: Array) -> Array:
    """psi' = rho' + 2 rho'' z, (m,)."""
    return jax.jvp(loss.slope, (f,), (jnp.ones_like(f),))[1]


def _curvature(residuals: Callable, x: Array, psi: Array) -> Array:
    """Sum of psi_i Hess(f_i), (n, n)."""
    return jax.hessian(lambda x: residuals(x).astype(psi.dtype) @ psi)(x)


def _of_hessian(
    factor: Array, null: Array, jac: Array, loss: Loss, f: Array, curvature: Any, held: Array
) -> tuple[Array, Array]:
    """The factor of A^-1, by (4)."""
    q = jnp.where(held[None, :], 0, jac) @ factor
    k = q.T @ (_slope_of_psi(loss, f)[:, None] * q)
    if curvature is not None:
        k = k + factor.T @ curvature @ factor
    empty = jnp.all(q == 0, axis=0)  # of what is held or has no effect
    of_k, null_of_k = inverse_of_hessian(k, empty, 0.0)
    more = factor @ null_of_k
    return factor @ of_k, jnp.where(jnp.any(null != 0, axis=0)[None, :], null, more)


def _of_likelihood(
    result: MinimizeResult, fun: Any, args: Any, kwargs: Any, bounds: Any, rcond: Any, names: Any
) -> Covariance:
    if fun is None:
        raise ValueError(
            "`fun` is missing: the covariance of a result of `minimize` is the inverse of the "
            "exact Hessian (`hess_inv` is an approximation that served the search)."
        )
    names, restore, x = _layout(result.x, names)
    lower, upper, _ = check_bounds(bounds, result.x, x)
    problem, _ = minimization_problem(fun, result.x, args=args, kwargs=kwargs)
    cutoff = default_rcond(x.shape[0], x.dtype) ** 0.5 if rcond is None else float(rcond)
    success = result.success
    estimate, at_minimum = _of_objective(cutoff, problem, x, _on_bounds(x, lower, upper), success)
    if is_concrete(at_minimum) and np.ndim(at_minimum) == 0 and not bool(at_minimum):
        raise ValueError(
            "`result` is no minimum of `fun`: its gradient promises a parameter that is more than "
            f"{NOT_AT_MINIMUM} of its standard error away. `fun` and `bounds` must be those of the "
            "fit, and `fun` a negative log-likelihood; else minimize with a smaller `gtol`."
        )
    return Covariance(x=x, **estimate, names=names, restore=restore)


@functools.partial(jax.jit, static_argnums=0)
def _of_objective(
    rcond: float, problem: Any, x: Array, mask: Array, success: Array
) -> tuple[dict[str, Array], Array]:
    """The fields of a `Covariance` by (3), and whether x is a minimum."""
    held = mask != 0
    gradient = jnp.where(held, 0, problem.gradient(x))
    factor, null = inverse_of_hessian(jax.jacfwd(problem.gradient)(x), held, rcond)
    away = jnp.sum((factor.T @ gradient) ** 2)  # squared, in standard deviations
    at_minimum = ~(away > NOT_AT_MINIMUM**2) | ~success
    rank = held.shape[0] - jnp.sum(held) - jnp.sum(jnp.any(null != 0, axis=0))
    known = success & at_minimum & jnp.all(jnp.isfinite(factor))
    one, no_dof = jnp.ones_like(x[0]), jnp.zeros_like(rank)
    return _fields(factor, one, null, mask, rank, no_dof, known), at_minimum


def _fields(
    factor: Array, deviation: Array, null: Array, mask: Array, rank: Array, dof: Array, known: Array
) -> dict[str, Array]:
    """Those of a `Covariance` which are computed."""
    return {
        "factor": factor,
        "deviation": deviation,
        "null": null,
        "active_mask": mask,
        "rank": rank.astype(jnp.int32),
        "dof": dof.astype(jnp.int32),
        "known": known,
    }
