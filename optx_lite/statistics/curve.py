"""A model with its data, and what came of fitting it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..derivatives import AbstractJacobian
from ..jax_support.types import Count, Number, Options
from ..problem.least_squares import LeastSquaresProblem, least_squares_problem
from ..problem.pytrees import is_concrete
from ..solvers import AbstractLeastSquaresSolver
from .covariance import Covariance, check_no_batch, per_lane
from .orthogonal import at_the_feet, distances, foot, points_of
from .report import fit_report


@dataclasses.dataclass(frozen=True)
class Model:
    """The user's function of the independent variable and the parameters.

    Attributes
    ----------
    fun : callable
    style : {'positional', 'keyword', 'whole'}
        ``fun(x, *p)``, ``fun(x, **p)`` or ``fun(x, p)``.
    """

    fun: Callable[..., PyTree]
    style: str

    def __call__(self, x: PyTree, p: PyTree) -> PyTree:
        """The curve at x."""
        if self.style == "positional":
            return self.fun(x, *p)
        return self.fun(x, **p) if self.style == "keyword" else self.fun(x, p)


class Data(eqx.Module):
    """What was measured, with the weights of the residuals.

    Attributes
    ----------
    x : pytree
        The independent variable, as the model takes it.
    y : array, shape (m,) or ()
    weight : array, shape (), (m,) or (m, m), or None
        1 / sigma, or the lower Cholesky factor of the covariance of y.
    mask : array, shape (m,), bool, or None
        Where there is a datum.
    sigma_x : array of x's shape, or None
        The standard deviations of x, where it has errors too.
    """

    x: PyTree
    y: PyTree
    weight: PyTree
    mask: PyTree
    sigma_x: PyTree = None

    def whiten(self, difference: Array) -> Array:
        """A difference of curve and data, (m,) or (m, n), in standard deviations of y."""
        column = (slice(None),) + (None,) * (difference.ndim - 1)
        if self.mask is not None:
            difference = jnp.where(self.mask[column], difference, 0)
        if self.weight is None:
            return difference
        if self.weight.ndim == 2:
            matrix = difference.reshape(difference.shape[0], -1)
            white = lax.linalg.triangular_solve(self.weight, matrix, left_side=True, lower=True)
            return white.reshape(difference.shape)
        return difference * (self.weight[column] if self.weight.ndim else self.weight)

    def colour(self, white: Float[Array, " m"]) -> Float[Array, " m"]:
        """The inverse of `whiten`, of (m,): 0 where there is no datum."""
        if self.weight is None:
            return white
        if self.weight.ndim == 2:
            return self.weight @ white
        weight = jnp.asarray(self.weight)
        return jnp.where(weight == 0, 0, white / jnp.where(weight == 0, 1, weight))

    def counted(self, m: int) -> Bool[Array, " m"]:
        """Which of m residuals stand for a datum, (m,): those with a weight."""
        counts = jnp.ones((m,), bool) if self.mask is None else jnp.asarray(self.mask)
        if self.weight is not None and self.weight.ndim == 1:
            counts = counts & (self.weight != 0)
        return counts

    def count(self, m: int) -> PyTree:
        """How many of m residuals stand for a datum."""
        if self.mask is None and (self.weight is None or self.weight.ndim != 1):
            return m
        return jnp.sum(self.counted(m))


def residuals(model: Model, p: PyTree, data: Data) -> Array:
    """The residuals of the model, (m,), in standard deviations where these are given.

    Where x has errors they are the signed distances from the curve.
    """
    if data.sigma_x is not None:
        return distances(points_of(model, p, data))
    curve = jnp.ravel(jnp.asarray(model(data.x, p)))
    if not jnp.issubdtype(curve.dtype, jnp.inexact):
        curve = curve.astype(data.y.dtype)
    return data.whiten(curve - data.y.astype(curve.dtype))


class Derivative(eqx.Module):
    """How the Jacobian of a fit was computed.

    Attributes
    ----------
    jac : str, callable or None, static
        The name of a scheme, the user's Jacobian of the curve, or None for the default.
    scheme : AbstractJacobian or None
        In place of ``jac``.
    transposed : bool, static
        Whether ``jac`` gives (n, m).
    diff_step : scalar, array, or None
    """

    scheme: AbstractJacobian | None
    diff_step: PyTree
    jac: str | Callable | None = eqx.field(static=True)
    transposed: bool = eqx.field(static=True)

    @classmethod
    def of(cls, jac: PyTree, transposed: bool, options: Options) -> Derivative:
        """Of the arguments of `curve_fit`."""
        own = isinstance(jac, AbstractJacobian)
        scheme, named = (jac, None) if own else (None, jac)
        return cls(scheme, options.get("diff_step"), named, transposed)

    def options(self, model: Model) -> Options:
        """Arguments for a least-squares problem of the residuals of the model."""
        jac = self.jac if self.scheme is None else self.scheme
        if jac is None:
            return {"diff_step": self.diff_step}
        if self.scheme is None and callable(jac):
            jac = functools.partial(jacobian, jac, model, self.transposed)
        return {"jac": jac, "diff_step": self.diff_step}


def jacobian(jac: Callable, model: Model, transposed: bool, p: PyTree, data: Data) -> PyTree:
    """The user's Jacobian of the curve as that of the residuals."""
    x, white = data.x, data.whiten
    if data.sigma_x is not None:
        x, white = at_the_feet(model, p, data)
    rows = Model(jac, model.style)(x, p)
    whole = jax.tree.map(jnp.asarray, rows)
    if not jax.tree_util.all_leaves([whole]) and jax.tree_util.all_leaves([p]):
        whole = jnp.stack([jnp.asarray(row) for row in rows])
    if transposed:
        whole = jax.tree.map(jnp.transpose, whole)
    return jax.tree.map(white, whole)


class CurveFit(eqx.Module):
    """The answer of `curve_fit`: unpacks as SciPy's, and knows more.

    ``popt, pcov = fit``, or the five values of ``full_output=True``. A pytree; printed it is a
    report (see `fit_report`).

    Attributes
    ----------
    popt : pytree like ``p0``
        The parameters; NaN inside of ``jit`` where the fit did not succeed.
    pcov : array, shape (n, n)
        Their covariance, in the order of ``covariance.names``; inf if it is singular.
    result : Result
        That of `least_squares`.
    covariance : Covariance
        Says which parameters have an error, and why others have none.
    data : Data
        As the model was given it.
    model : Model, static
        The function that was fitted.
    nobs : int
        The number of data.
    factors : tuple of arrays, or None
        MINPACK's, for ``infodict``.
    box : bounds, or None
        Those of the fit, what is fixed included.
    loss, f_scale
        Those of the fit; ``loss`` static.
    solver, derivative
        By which it was solved, and how its Jacobian was computed.
    """

    popt: PyTree
    pcov: PyTree
    result: PyTree
    covariance: Covariance
    data: Data
    nobs: Count
    factors: PyTree
    box: PyTree
    f_scale: Number
    solver: AbstractLeastSquaresSolver
    derivative: Derivative
    loss: str | Callable = eqx.field(static=True)
    model: Model = eqx.field(static=True)
    absolute_sigma: bool = eqx.field(static=True)
    full_output: bool = eqx.field(static=True)
    minpack_codes: bool = eqx.field(static=True)

    @property
    def perr(self) -> PyTree:
        """The standard errors, in the structure of the parameters."""
        return self.covariance.stderr

    @property
    def infodict(self) -> Options:
        """SciPy's: nfev, fvec, and by 'lm' the factors of the Jacobian."""
        info = {"nfev": self.result.nfev, "fvec": self.result.fun}
        if self.factors is not None:
            info |= dict(zip(("fjac", "ipvt", "qtf"), self.factors, strict=True))
        return info

    @property
    def ier(self) -> PyTree:
        """Why it ended: 1 to 4 for success."""
        status = self.result.status
        return minpack_code(status) if self.minpack_codes else status

    @property
    def mesg(self) -> str | None:
        """The same in words; None inside of ``jit``."""
        return self.result.message if is_concrete(self.result.status) else None

    @per_lane
    def r_squared(self) -> Array:
        """1 - chi² / chi²_0, the latter of the best constant with the same weights."""
        f = self.result.fun
        y = jnp.broadcast_to(self.data.y, f.shape)
        one, y = self.data.whiten(jnp.ones_like(f)), self.data.whiten(y.astype(f.dtype))
        from_constant = y - one * ((one @ y) / (one @ one))
        return 1 - (f @ f) / (from_constant @ from_constant)

    def predict(self, x: PyTree = None) -> Array:
        """The fitted curve at x, by default at the data; of a batch that of each lane."""
        if _is_batch(self):
            return jax.vmap(lambda fit: fit.predict(x))(self)
        return self.model(self.data.x if x is None else x, self.popt)

    @per_lane
    def delta(self) -> Array | None:
        """The estimated errors of x, of its shape; None where it was taken to have none."""
        if self.data.sigma_x is None:
            return None
        points = points_of(self.model, self.popt, self.data)
        return points.at(foot(points)) - points.x

    def unchanged(self, flat: np.ndarray) -> bool:
        """Whether other parameters, (n,), give the same residuals; on the host."""
        p = self.covariance.restore(jnp.asarray(flat, self.covariance.x.dtype))
        other, here = np.asarray(residuals(self.model, p, self.data)), np.asarray(self.result.fun)
        span = np.ptp(np.asarray(self.data.whiten(jnp.ravel(self.predict()))))
        return bool(np.max(np.abs(other - here)) <= np.finfo(here.dtype).eps ** 0.5 * span)

    def explain(self) -> list[str]:
        """Sentences on the parameters that have no error, and why."""
        return self.covariance.explain(self.unchanged)

    def __repr__(self) -> str:
        return str(fit_report(self)) if _has_report(self) else eqx.tree_pformat(self)

    def _repr_html_(self) -> str | None:
        return fit_report(self)._repr_html_() if _has_report(self) else None

    def _values(self) -> tuple:
        if not self.full_output:
            return self.popt, self.pcov
        return self.popt, self.pcov, self.infodict, self.mesg, self.ier

    def __iter__(self) -> Iterator[PyTree]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def __getitem__(self, index: PyTree) -> PyTree:
        return self._values()[index]


def problem_of(fit: CurveFit, data: Data) -> tuple[LeastSquaresProblem, Float[Array, " n"]]:
    """The problem of a fit with these data, and the parameters of the fit, flat."""
    problem, x = least_squares_problem(
        functools.partial(residuals, fit.model), fit.result.x, args=(data,), bounds=fit.box,
        loss=fit.loss, f_scale=fit.f_scale, **fit.derivative.options(fit.model),
    )  # fmt: skip
    return problem, jnp.asarray(x)


def _is_batch(fit: CurveFit) -> bool:
    return jnp.ndim(fit.covariance.x) != 1


def _has_report(fit: CurveFit) -> bool:
    return is_concrete(fit) and not _is_batch(fit)


def check_one(fit: CurveFit | Covariance) -> None:
    """Raise for a batch of fits, and for what is none."""
    if not isinstance(fit, (CurveFit, Covariance)):
        raise TypeError(
            f"`fit` must be that of `curve_fit`, or a covariance, got {type(fit).__name__}."
        )
    estimate = fit if isinstance(fit, Covariance) else fit.covariance
    check_no_batch("fit", estimate.rank)


def minpack_code(status: int | Array) -> PyTree:
    """MINPACK's number for a status: 1 ftol, 2 xtol, 3 both, 4 gtol, 5 spent, 7 stuck, 0 wrong."""
    if isinstance(status, int):
        return {0: 5, 1: 4, 2: 1, 3: 2, 4: 3, -1: 0}.get(status, 7)
    codes = jnp.array([5, 4, 1, 2, 3])[jnp.clip(status, 0, 4)]
    return jnp.where(status >= 0, codes, jnp.where(status == -1, 0, 7))


def pivoted_factors(
    jac: Float[Array, "m n"], f: Float[Array, " m"]
) -> tuple[Float[Array, "n m"], Int[Array, " n"], Float[Array, " n"]]:
    """MINPACK's fjac (n, m), ipvt (n,) and qtf (n,); the rest of fjac is 0."""
    q, r, ipvt = jax.scipy.linalg.qr(jac, mode="economic", pivoting=True)  # type: ignore[misc]
    fjac = jnp.zeros_like(jac.T).at[:, : r.shape[0]].set(r.T)
    return fjac, ipvt, q.T @ f
