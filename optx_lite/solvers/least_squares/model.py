r"""The linear model of a least-squares problem at a point, by which a trust-region solver steps.

    0.5 || J p + f ||^2 + 0.5 (w . p)^2                                                (1)

with the loss in J and f, in units of s and u (see `units`). w is one more row, of what J^T J
lacks: sum_i f_i f_i'' is all there is where a column of J vanishes at the minimum and f does not.
Without it the Gauss-Newton step points to infinity there, and where f is large it makes the last
digits dear. The change of J along the last step shows it in one direction, by the structured
secant condition of J. E. Dennis, D. M. Gay and R. E. Welsch ("An adaptive nonlinear least-squares
algorithm", ACM TOMS 7, 1981),

    S p = y,    y = (J_+ - J)^T f_+,    S = y y^T / y.p = w w^T                        (2)

the symmetric matrix of rank one, if it is positive beyond its rounding.

The solvers and the tests of convergence ask a `LinearModel` and know none of its forms: a form
that keeps J as products, or sparse, answers the same questions.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, PyTree

from ...linalg import (
    CorrectionStep,
    diagonal,
    evaluate_model,
    norm,
    reciprocal,
    safe_divide,
    safe_sqrt,
    solve_in_box,
    solve_transposed,
    solve_trust_region,
    solve_upper,
    triangularize,
)
from ...linalg.jacobians import Jacobian


class GaussNewtonStep(eqx.Module):
    """The minimiser of (1), within bounds or without."""

    step: Float[Array, " n"]
    gain: Float[Array, ""]  # reduction of (1); inf if the step was not found
    found: Bool[Array, ""]
    factor: PyTree  # of the model's Hessian in the free variables, for `LinearModel.solve_free`


class TrustRegionStep(eqx.Module):
    """The minimiser of (1) in a ball, or a correction."""

    step: Float[Array, " n"]  # in the variables of the ball
    damping: Float[Array, ""]  # its Levenberg-Marquardt parameter
    limited: Bool[Array, ""]  # the ball's boundary stopped it
    corrected: Bool[Array, ""]  # it is the correction


class Correction(eqx.Module):
    """The step c that a failed trial asks for, see `correction`."""

    wanted: Bool[Array, ""]
    start: Float[Array, " n"]  # the failed trial, from which c goes
    gradient: Float[Array, " n"]  # J^T r, r what the linear model missed there
    damping: Float[Array, ""]  # alpha of the failed step
    longest: Float[Array, ""]  # c may be, in the metric


class LinearModel(eqx.Module):
    """What a solver asks of (1). A parameter without effect rests: no step moves it.

    Attributes
    ----------
    units : array (n,)
        u.
    jacobian : array (n, m) or operator (m, n)
        J, in the form that the problem gives it.
    gradient : array (n,)
        J^T f.
    column_norms : array (n,)
        Of J.
    secant : array (n,) or ()
        w; 0 for none.
    """

    BEGINS_AT_LAST: ClassVar[bool] = False  # the search in a box, where the last one ended

    units: eqx.AbstractVar[Array]
    jacobian: eqx.AbstractVar[Jacobian]
    gradient: eqx.AbstractVar[Array]
    column_norms: eqx.AbstractVar[Array]
    secant: eqx.AbstractVar[Array]

    @abc.abstractmethod
    def relinearized(
        self,
        jacobian: Jacobian,
        f: Float[Array, " m"],
        units: Float[Array, " n"],
        rescale: Float[Array, ""],
        step: Float[Array, " n"],
        rounding: Float[Array, ""],
        with_secant: Bool[Array, ""],
        rests: Callable[[Array, Array], Array],
    ) -> LinearModel:
        """The model at a next point, ``step`` from here.

        Parameters
        ----------
        jacobian, f
            Weighted, in units; J as the problem gives it.
        units : array (n,)
            Of the variables.
        rescale : array ()
            By which the old model's residuals are multiplied to be in the new one's unit.
        step : array (n,)
        rounding : array ()
            Of f, relative.
        with_secant : array () bool
            Whether w takes part.
        rests : callable
            Of column norms and w: which parameters have no effect, (n,).
        """

    @abc.abstractmethod
    def is_finite(self) -> Bool[Array, ""]:
        """Whether all that the model is made of is finite, ()."""

    @abc.abstractmethod
    def product(self, v: Float[Array, " n"]) -> Float[Array, " k"]:
        """J v with w . v below it, (k,), or their image under an isometry: see `residual`."""

    @abc.abstractmethod
    def rows_product(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """J v, (m,)."""

    @property
    @abc.abstractmethod
    def residual(self) -> Float[Array, " k"]:
        """f with 0 below it, (k,), under the isometry of `product`, but for a constant part."""

    @abc.abstractmethod
    def transposed_product(self, v: Float[Array, " m"]) -> Float[Array, " n"]:
        """J^T v, (n,), of v (m,)."""

    @abc.abstractmethod
    def hessian_product(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """(J^T J + w w^T) v, (n,)."""

    @abc.abstractmethod
    def absolute_product(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """|J| |v|, (m,): of what size the terms are whose sum f changes by."""

    @abc.abstractmethod
    def curvatures(self) -> Float[Array, " n"]:
        """Diagonal of the Hessian of (1), (n,)."""

    def pivots(self) -> Float[Array, " n"]:
        """What part of each column those before it do not make, (n,); 1 where that is unknown."""
        return jnp.ones_like(self.gradient)

    @abc.abstractmethod
    def gauss_newton(
        self, box: tuple[Array, Array] | None = None, start: Float[Array, " n"] | None = None
    ) -> GaussNewtonStep:
        """The minimiser of (1), in a box (low, high) of p, begun at ``start``, where it counts."""

    @abc.abstractmethod
    def solve_free(
        self, newton: GaussNewtonStep, gradient: Float[Array, " n"]
    ) -> Float[Array, " n"]:
        """-H^-1 gradient in the variables that are free at the Gauss-Newton step, (n,)."""

    @abc.abstractmethod
    def trust_region_step(
        self,
        metric: Float[Array, " n"],
        diagonal: Float[Array, " n"] | None,
        newton: Float[Array, " n"] | None,
        radius: Float[Array, ""],
        damping: Float[Array, ""],
        correction: Correction,
    ) -> TrustRegionStep:
        """In the variables z = p / metric, the minimiser of (1) + 0.5 z^T C z in a ball.

        ``diagonal`` is C's, ``newton`` z of the Gauss-Newton step, ``damping`` a first guess. A
        correction that is wanted, and short, is the answer.
        """

    def predicted_reduction(self, step: Float[Array, " n"]) -> Float[Array, ""]:
        """By what (1) falls along a step, ()."""
        moved = self.product(step)
        return -jnp.sum((self.residual + 0.5 * moved) * moved)

    def cauchy_factor(
        self, metric: Float[Array, " n"], slope: Float[Array, " n"]
    ) -> Float[Array, ""]:
        """t at which (1) is least along -t metric^2 gradient, ``slope`` being metric gradient."""
        moved = self.product(metric * slope)
        return safe_divide(slope @ slope, moved @ moved)


class DenseModel(LinearModel):
    """By the triangular factor R of J with w as one more row, and Q^T f."""

    units: Float[Array, " n"]
    jacobian: Float[Array, "n m"]  # J^T: columns of J are contiguous
    secant: Float[Array, " n"]
    column_norms: Float[Array, " n"]
    r_factor: Float[Array, "n n"]  # ; the column of a parameter that rests is 0
    qtf: Float[Array, " n"]
    gradient: Float[Array, " n"]

    @classmethod
    def empty(cls, n: int, m: int, dtype: DTypeLike) -> DenseModel:
        """Before anything has been evaluated; of NumPy arrays."""
        zeros = np.zeros(n, dtype)
        return cls(
            units=np.ones(n, dtype),  # type: ignore[arg-type]
            jacobian=np.zeros((n, m), dtype),  # type: ignore[arg-type]
            secant=zeros,  # type: ignore[arg-type]
            column_norms=zeros,  # type: ignore[arg-type]
            r_factor=np.zeros((n, n), dtype),  # type: ignore[arg-type]
            qtf=zeros,  # type: ignore[arg-type]
            gradient=zeros,  # type: ignore[arg-type]
        )

    def relinearized(
        self,
        jacobian: Array,
        f: Float[Array, " m"],
        units: Float[Array, " n"],
        rescale: Float[Array, ""],
        step: Float[Array, " n"],
        rounding: Float[Array, ""],
        with_secant: Bool[Array, ""],
        rests: Callable[[Array, Array], Array],
    ) -> DenseModel:
        """One triangular factorisation."""
        norms, gradient = safe_sqrt(jnp.sum(jacobian * jacobian, axis=1)), jacobian @ f
        rounding = rounding * norm(f) * (norms @ jnp.abs(step))
        change = jacobian - self.jacobian * rescale
        secant = jnp.where(with_secant, _secant(change @ f, step, rounding), 0)
        # By padding: to join it to rows that are spread over devices would gather these.
        rows = jnp.pad(jacobian, ((0, 0), (0, 1)))
        last = jnp.arange(rows.shape[1]) == f.size
        rows = jnp.where(last[None], secant[:, None], rows)
        rows = jnp.where(rests(norms, secant)[:, None], 0, rows)
        r_factor, qtf = triangularize(rows, jnp.pad(f, (0, 1)))
        return DenseModel(
            units=units,
            jacobian=jacobian,
            secant=secant,
            column_norms=norms,
            r_factor=r_factor,
            qtf=qtf,
            gradient=gradient,
        )

    def is_finite(self) -> Bool[Array, ""]:
        """By sums, which no finite parts hide."""
        sums = jnp.sum(self.column_norms) + jnp.sum(self.qtf) + jnp.sum(self.gradient)
        return jnp.isfinite(sums)

    def product(self, v: Float[Array, " n"]) -> Float[Array, " k"]:
        """R v."""
        return self.r_factor @ v

    def rows_product(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """J v."""
        return v @ self.jacobian

    @property
    def residual(self) -> Float[Array, " k"]:
        """Q^T f."""
        return self.qtf

    def transposed_product(self, v: Float[Array, " m"]) -> Float[Array, " n"]:
        """J^T v."""
        return self.jacobian @ v

    def hessian_product(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """R^T R v."""
        return self.r_factor.T @ (self.r_factor @ v)

    def absolute_product(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """|J| |v|."""
        return jnp.abs(v) @ jnp.abs(self.jacobian)

    def curvatures(self) -> Float[Array, " n"]:
        """Squared norms of the columns of R."""
        return jnp.sum(self.r_factor * self.r_factor, axis=0)

    def pivots(self) -> Float[Array, " n"]:
        """By the diagonal of R."""
        norms = safe_sqrt(self.curvatures())
        return jnp.where(norms > 0, safe_divide(jnp.abs(diagonal(self.r_factor)), norms), 1)

    @property
    def singular(self) -> Bool[Array, ""]:
        """Whether columns of J depend on each other, ()."""
        return jnp.any((diagonal(self.r_factor) == 0) & (self.curvatures() > 0))

    def gauss_newton(
        self, box: tuple[Array, Array] | None = None, start: Float[Array, " n"] | None = None
    ) -> GaussNewtonStep:
        """By substitution, or by active sets."""
        r_factor, qtf = self.r_factor, self.qtf
        if box is None:
            step = -solve_upper(r_factor, qtf)
            return GaussNewtonStep(step, 0.5 * (qtf @ qtf), jnp.array(True), r_factor)
        start = jnp.zeros_like(qtf) if start is None else start
        step, factor, found = solve_in_box(r_factor, qtf, *box, start)
        gain = jnp.where(found, jnp.maximum(evaluate_model(r_factor, qtf, step), 0), jnp.inf)
        return GaussNewtonStep(step, gain, found, factor)

    def solve_free(
        self, newton: GaussNewtonStep, gradient: Float[Array, " n"]
    ) -> Float[Array, " n"]:
        """By the factor of the free columns."""
        return -solve_upper(newton.factor, solve_transposed(newton.factor, gradient))

    def trust_region_step(
        self,
        metric: Float[Array, " n"],
        diagonal: Float[Array, " n"] | None,
        newton: Float[Array, " n"] | None,
        radius: Float[Array, ""],
        damping: Float[Array, ""],
        correction: Correction,
    ) -> TrustRegionStep:
        """By the Levenberg-Marquardt parameter."""
        first = CorrectionStep(
            wanted=correction.wanted,
            qtf=solve_transposed(self.r_factor, correction.gradient),  # J^T r = R^T q
            alpha=correction.damping,
            longest=correction.longest,
        )
        scaled = self.r_factor * metric[None, :]
        answer = solve_trust_region(
            scaled, self.qtf, diagonal, newton, self.singular, radius, damping, first
        )
        return TrustRegionStep(answer.step, answer.alpha, answer.limited, answer.corrected)


def _secant(
    change: Float[Array, " n"], step: Float[Array, " n"], rounding: Float[Array, ""]
) -> Float[Array, " n"]:
    """w of (2), from y, (n,); 0 where y.p is not above its rounding."""
    along = change @ step
    positive = along > rounding
    return jnp.where(positive, change / jnp.sqrt(jnp.where(positive, along, 1)), 0)


def gradient_in(model: LinearModel, unit: Float[Array, ""]) -> Float[Array, " n"]:
    """Of the cost, (n,), in the user's units."""
    return model.gradient * unit * reciprocal(model.units) * unit
