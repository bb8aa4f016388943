r"""Chandrupatla's root finder: inverse quadratic interpolation where it is safe, else bisection.

T. R. Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of a
nonlinear function without using derivatives", Adv. Eng. Software 28 (1997).

The root lies between x1, the latest point, and x2; x3 is the point before. With

    xi = (x1 - x2) / (x3 - x2),    phi = (f1 - f2) / (f3 - f2)                   (1)

the inverse of the quadratic through the three is monotonic if

    1 - sqrt(1 - xi) < phi < sqrt(xi)                                            (2)

and the next point is x1 + t (x2 - x1), t from that quadratic or, without (2), 1/2; at least half
of the tolerance away from both ends. The end is where one of

    |f(xmin)| <= fatol + frtol min(|f(a)|, |f(b)|)                               (3)
    |x2 - x1| < xatol + xrtol |xmin|                                             (4)

holds, xmin the end with the smaller value and (a, b) the first bracket. As in SciPy, also where
the paper has another factor in (4). But where SciPy takes a NaN for a change of sign, or an
infinite value for a root, the search ends without an answer.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from ...jax_support.types import Count, Number
from ...jax_support.xla import computed_once, rounded
from ...results.elementwise import (
    BAD_INPUT,
    CONVERGED,
    INVALID,
    NONFINITE,
    RUNNING,
    ElementwiseResult,
)
from .base import (
    AbstractElementwiseSolver,
    AbstractElementwiseState,
    Function,
    has_no_answer,
    kept,
    not_valid,
    swapped,
)


class RootState(AbstractElementwiseState):
    """The bracket between two evaluations, one array (n,) each."""

    x1: Array
    f1: Array
    x2: Array
    f2: Array
    x3: Array
    f3: Array
    ftol: Array  # the right side of (3)
    status: Array
    nit: Array


class ChandrupatlaRoot(AbstractElementwiseSolver[RootState]):
    """The solver of `elementwise.find_root`; its points are the ends of a bracket."""

    FINDS_ROOT = True
    EVALUATED = 2

    xatol: Number
    xrtol: Number
    fatol: Number
    frtol: Number
    maxiter: Count

    def init(self, points: tuple[Array, ...], values: tuple[Array, ...]) -> RootState:
        """Judge the bracket."""
        (x1, x2), (f1, f2) = points, values
        usual = jnp.isfinite(x1)
        ftol = self.fatol + rounded(self.frtol * jnp.fmin(jnp.abs(f1), jnp.abs(f2)), usual)
        invalid = jnp.sign(f1) == jnp.sign(f2)
        status = self._judge((x1, x2), (f1, f2), ftol, usual, invalid)
        bad = not_valid(self.xatol, self.xrtol, self.fatol, self.frtol)
        status = jnp.where(bad, BAD_INPUT, status).astype(jnp.int32)
        # With x3 = x2 there is no quadratic, and the first step a bisection.
        return RootState(
            x1=x1, f1=f1, x2=x2, f2=f2, x3=x2, f3=f2,
            ftol=ftol,
            status=status,
            nit=jnp.zeros_like(status),
        )  # fmt: skip

    def step(self, fun: Function, state: RootState) -> RootState:
        """Put one more point into the bracket."""
        active = self.active(state)
        forward = rounded(self._fraction(state, active) * (state.x2 - state.x1), active)
        x = computed_once(state.x1 + forward)
        f = computed_once(fun(x))
        same = jnp.sign(f) == jnp.sign(state.f1)
        x1, x2, x3 = kept(
            active,
            (x, jnp.where(same, state.x2, state.x1), jnp.where(same, state.x1, state.x2)),
            (state.x1, state.x2, state.x3),
        )
        f1, f2, f3 = kept(
            active,
            (f, jnp.where(same, state.f2, state.f1), jnp.where(same, state.f1, state.f2)),
            (state.f1, state.f2, state.f3),
        )
        x1, f1, x2, f2, x3, f3 = computed_once((x1, f1, x2, f2, x3, f3))
        # The ends have opposite signs by construction. Looked at once more they may not, where f
        # is its rounding: XLA may compute f anew for that, and round it otherwise.
        status = self._judge((x1, x2), (f1, f2), state.ftol, active, invalid=False)
        return RootState(
            x1=x1, f1=f1, x2=x2, f2=f2, x3=x3, f3=f3,
            ftol=state.ftol,
            status=jnp.where(active, status, state.status),
            nit=state.nit + active.astype(jnp.int32),
        )  # fmt: skip

    def finish(self, state: RootState) -> ElementwiseResult:
        """The bracket from left to right, and the end with the smaller value as the root."""
        lost = has_no_answer(state.status)
        x, f_x = (jnp.where(lost, jnp.nan, v) for v in _smaller(state))
        turned = ~(state.x1 < state.x2)
        return ElementwiseResult(
            status=state.status,
            x=x,
            f_x=f_x,
            nfev=state.nit + self.EVALUATED,
            nit=state.nit,
            bracket=swapped(turned, state.x1, state.x2),
            f_bracket=swapped(turned, state.f1, state.f2),
        )

    def _fraction(self, state: RootState, active: Array) -> Array:
        """How far from x1 to x2 the next point lies."""
        x1, x2, x3 = state.x1, state.x2, state.x3
        f1, f2, f3 = state.f1, state.f2, state.f3
        xi, phi = (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2)  # (1)
        safe = (1 - jnp.sqrt(1 - xi) < phi) & (phi < jnp.sqrt(xi))  # (2)
        alpha = (x3 - x1) / (x2 - x1)
        t = f1 / (f1 - f2) * f3 / (f3 - f2) - alpha * f1 / (f3 - f1) * f2 / (f2 - f3)
        # "Adjust T away from the interval boundary"
        least = 0.5 * self._xtol(_smaller(state)[0], active) / jnp.abs(x2 - x1)
        return jnp.clip(jnp.where(safe, t, 0.5), least, 1 - least)

    def _xtol(self, xmin: Array, active: Array) -> Array:
        return rounded(jnp.abs(xmin) * self.xrtol, active) + self.xatol  # (4)

    def _judge(
        self,
        points: tuple[Array, ...],
        values: tuple[Array, ...],
        ftol: Array,
        active: Array,
        invalid: Array | bool,
    ) -> Array:
        (x1, x2), (f1, f2) = points, values
        xmin, fmin = _smaller_of(x1, f1, x2, f2)
        finite = jnp.isfinite(x1) & jnp.isfinite(x2) & ~jnp.isnan(f1) & ~jnp.isnan(f2)
        narrow = jnp.abs(x2 - x1) < self._xtol(xmin, active)  # (4)
        # Infinite values have signs, so that a search may begin with them; it may not end there.
        status = jnp.where(narrow, jnp.where(jnp.isinf(fmin), NONFINITE, CONVERGED), RUNNING)
        status = jnp.where(finite, status, NONFINITE)
        status = jnp.where(invalid, INVALID, status)
        return jnp.where(jnp.abs(fmin) <= ftol, CONVERGED, status).astype(jnp.int32)  # (3)


def _smaller(state: RootState) -> tuple[Array, Array]:
    return _smaller_of(state.x1, state.f1, state.x2, state.f2)


def _smaller_of(x1: Array, f1: Array, x2: Array, f2: Array) -> tuple[Array, Array]:
    """xmin, the end with the smaller value, and that value."""
    first = (jnp.abs(f1) < jnp.abs(f2)) | jnp.isnan(f2)
    return jnp.where(first, x1, x2), jnp.where(first, f1, f2)
