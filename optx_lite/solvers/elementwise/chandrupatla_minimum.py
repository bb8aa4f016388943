r"""Chandrupatla's minimiser: quadratic fits in a bracket, and golden sections where they fail.

T. R. Chandrupatla, "An efficient quadratic fit-sectioning algorithm for minimization without
derivatives", Comput. Methods Appl. Mech. Engrg. 152 (1998).

Three points with f1 >= f2 <= f3 hold a minimum, x2 between x1 and x3; x1 and x3 are exchanged so
that (x2, x3) is the larger interval. The parabola through them has its minimum at

    Q1 = C (x1 + x2)/2 + (1 - C) (x2 + x3)/2,    C = A / (A + B),                (5)
    A = (x2 - x1)(f3 - f2),    B = (x3 - x2)(f1 - f2)                            (6)

and is trusted if it moved little since the last iteration:

    |Q1 - Q0| < |x2 - x1| / 2                                                    (7)

If not, the larger interval is cut in the golden ratio. Within xtol of x2, the new point keeps
that distance. The end is where, with

    xtol = |x2| xrtol + xatol                                                    (8)
    ftol = |f2| frtol + fatol                                                    (10)

    |x3 - x2| <= 2 xtol    or    f1/2 - f2 + f3/2 <= ftol.                       (9), (11)

As in SciPy, to the last digit; but values so large that SciPy's sums of them overflow are values
like others.
"""

from __future__ import annotations

import functools as ft
import operator
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

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

GOLDEN_RATIO = 0.5 + 0.5 * 5**0.5


class MinimumState(AbstractElementwiseState):
    """The bracket between two evaluations, one array (n,) each."""

    x1: Array
    f1: Array
    x2: Array  # the best point
    f2: Array
    x3: Array  # the far end of the larger interval
    f3: Array
    q0: Array  # minimum of the last parabola
    status: Array
    nit: Array


class ChandrupatlaMinimum(AbstractElementwiseSolver[MinimumState]):
    """The solver of `elementwise.find_minimum`; its points are those of a bracket."""

    EVALUATED = 3

    xatol: Any  # a number; None until the width of the bracket is known
    xrtol: Number
    fatol: Number
    frtol: Number
    maxiter: Count

    def init(self, points: tuple[Array, ...], values: tuple[Array, ...]) -> MinimumState:
        """Sort the bracket and judge it."""
        (x1, x2, x3), (f1, f2, f3) = points, values
        (x1, f1), (x2, f2) = _in_order((x1, f1), (x2, f2))
        (x2, f2), (x3, f3) = _in_order((x2, f2), (x3, f3))
        (x1, f1), (x2, f2) = _in_order((x1, f1), (x2, f2))
        status = self._judge((x1, x2, x3), (f1, f2, f3), jnp.isfinite(x2))
        bad = not_valid(self.xatol, self.xrtol, self.fatol, self.frtol)
        status = jnp.where(bad, BAD_INPUT, status).astype(jnp.int32)
        q0 = x3  # after (7): "At the start, Q0 is set at x3"
        smaller = jnp.abs(x3 - x2) < jnp.abs(x2 - x1)
        x1, x3 = swapped(smaller, x1, x3)
        f1, f3 = swapped(smaller, f1, f3)
        return MinimumState(
            x1=x1, f1=f1, x2=x2, f2=f2, x3=x3, f3=f3,
            q0=q0,
            status=status,
            nit=jnp.zeros_like(status),
        )  # fmt: skip

    def step(self, fun: Function, state: MinimumState) -> MinimumState:
        """Cut the larger interval once more."""
        x1, x2, x3 = state.x1, state.x2, state.x3
        active = self.active(state)
        x, q1 = self._propose(state, active)
        # Each barrier keeps XLA from computing what is before it once for each array after it.
        f = computed_once(fun(x))

        same_side = jnp.sign(x - x2) == jnp.sign(x3 - x2)
        worse = f > state.f2
        at_first = same_side != worse  # x1 goes, and x3 stays; or else the other way round
        middle, edge = swapped(~worse, x2, x)
        kept_end = jnp.where(at_first, x3, x1)
        # Section 3: "Points 1 and 3 are interchanged if necessary".
        ends = swapped(~at_first, edge, kept_end)
        smaller = jnp.abs(ends[1] - middle) < jnp.abs(middle - ends[0])
        choice = _pack(worse, at_first, at_first != smaller, active)

        x1, x2, x3 = _choose(choice, x, x1, x2, x3)
        f1, f2, f3 = _choose(choice, f, state.f1, state.f2, state.f3)
        status = self._judge((x1, x2, x3), (f1, f2, f3), active)
        return MinimumState(
            x1=x1, f1=f1, x2=x2, f2=f2, x3=x3, f3=f3,
            q0=jnp.where(active, q1, state.q0),
            status=jnp.where(active, status, state.status),
            nit=state.nit + active.astype(jnp.int32),
        )  # fmt: skip

    def finish(self, state: MinimumState) -> ElementwiseResult:
        """The bracket from left to right, and its middle as the minimiser."""
        lost = has_no_answer(state.status)
        x, f_x = (jnp.where(lost, jnp.nan, v) for v in (state.x2, state.f2))
        turned = state.x1 >= state.x3
        xl, xr = swapped(turned, state.x1, state.x3)
        fl, fr = swapped(turned, state.f1, state.f3)
        return ElementwiseResult(
            status=state.status,
            x=x,
            f_x=f_x,
            nfev=state.nit + self.EVALUATED,
            nit=state.nit,
            bracket=(xl, x, xr),
            f_bracket=(fl, f_x, fr),
        )

    def _propose(self, state: MinimumState, active: Array) -> tuple[Array, Array]:
        """The next point, and Q1."""
        x1, x2, x3 = state.x1, state.x2, state.x3
        x21, x32 = x2 - x1, x3 - x2
        a = rounded(x21 * (state.f3 - state.f2), active)  # (6)
        b = rounded(x32 * (state.f1 - state.f2), active)
        weighted = rounded(a / (a + b) * (x1 - x3), active)
        q1 = computed_once(0.5 * (weighted + x2 + x3))  # (5)
        fits = jnp.abs(q1 - state.q0) < 0.5 * jnp.abs(x21)  # (7)
        xtol = rounded(jnp.abs(x2) * self.xrtol, active) + self.xatol  # (8)
        close = jnp.abs(q1 - x2) <= xtol
        by_fit = jnp.where(close, x2 + jnp.sign(x32) * xtol, q1)
        section = 2 - jnp.asarray(GOLDEN_RATIO, x2.dtype)  # rounded first, as in SciPy
        x = jnp.where(fits, by_fit, x2 + rounded(section * x32, active))
        return computed_once(x), q1

    def _judge(self, points: tuple[Array, ...], values: tuple[Array, ...], active: Array) -> Array:
        """The status of a bracket, whichever of its ends comes first."""
        (x1, x2, x3), (f1, f2, f3) = points, values
        xtol = rounded(jnp.abs(x2) * self.xrtol, active) + self.xatol  # (8)
        ftol = rounded(jnp.abs(f2) * self.frtol, active) + self.fatol  # (10)
        larger = jnp.maximum(jnp.abs(x3 - x2), jnp.abs(x2 - x1))
        # Equality lets tolerances of zero end.
        done = (larger <= 2 * xtol) | (0.5 * f1 - f2 + 0.5 * f3 <= ftol)  # (9), (11)
        finite = ft.reduce(operator.and_, map(jnp.isfinite, (*points, *values)))
        status = jnp.where(done, CONVERGED, RUNNING)
        status = jnp.where(finite, status, NONFINITE)
        return jnp.where((f2 > f1) | (f2 > f3), INVALID, status).astype(jnp.int32)


def _in_order(a: tuple[Array, Array], b: tuple[Array, Array]) -> PyTree:
    """Two points with their values, sorted; NaN is last."""
    later = (a[0] > b[0]) | (jnp.isnan(a[0]) & ~jnp.isnan(b[0]))
    (xa, xb), (fa, fb) = swapped(later, a[0], b[0]), swapped(later, a[1], b[1])
    return (xa, fa), (xb, fb)


def _pack(*bits: Array) -> Array:
    """Several decisions in one array, which is read for each of the six that are updated."""
    packed = [bit.astype(jnp.int8) << k for k, bit in enumerate(bits)]
    return computed_once(ft.reduce(operator.or_, packed))


def _choose(choice: Array, new: Array, x1: Array, x2: Array, x3: Array) -> tuple[Array, ...]:
    """The three points after ``new`` has come in: x1 and x3 such that the larger side is last."""
    worse, at_first, edge_first, active = ((choice >> k) & 1 == 1 for k in range(4))
    edge = jnp.where(worse, new, x2)
    end = jnp.where(at_first, x3, x1)
    after = (
        jnp.where(edge_first, edge, end),
        jnp.where(worse, x2, new),
        jnp.where(edge_first, end, edge),
    )
    return computed_once(kept(active, after, (x1, x2, x3)))
