r"""Dogleg in a rectangular trust region, for least squares with bounds.

C. Voglis, I. E. Lagaris, "A Rectangular Trust Region Dogleg Approach for Unconstrained and
Bound Constrained Nonlinear Optimization", WSEAS (2004); the dogleg path is in Nocedal &
Wright, "Numerical Optimization", chapter 4.

The region |p_j| <= Delta s_j is a box, and so is its intersection with lower <= x + p <= upper.
Variables which rest on a bound with the antigradient pointing outward are held; in the others
the model is minimised along the path

    0  ->  p_C = -t g, the minimum along -g inside the box                          (1)
       ->  p_N, the Gauss-Newton step                                               (2)

up to the point where the path leaves the box. Where variables lie near their bounds that point
comes soon, so the step

       ->  p_F, Gauss-Newton with the variables which would overshoot their bounds put on them,
           clipped to the box                                                        (3)

is taken instead if the model promises more there.

Different from SciPy: the step (3); a rank-deficient Gauss-Newton step leaves the dependent
variables where they are; lb == ub fixes a variable; the end (`_convergence`), the correction and
the fallback (`_trust_region`).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from .._bounds import coleman_li, onto_bounds, step_to_bound, within
from .._problem import LeastSquaresProblem
from ..linalg import safe_divide, solve_transposed, solve_upper, triangularize
from ._convergence import Outlook
from ._state import Correction, State, Trial
from ._trust_region import (
    TrustRegionSolver,
    cauchy_factor,
    evaluate_model,
    scipy_radius,
    starting_radius,
)

NEAR = 0.1  # of the step that a variable would take alone


class Dogbox(TrustRegionSolver):
    """``method='dogbox'``; see the module for the mathematics."""

    PATIENCE = 10

    def first_radius(self, problem: LeastSquaresProblem, state: State) -> Array:
        """The largest |x0_j| / s_j, or of the Cauchy step if x0 is nothing beside it."""
        down = state.model.grad
        if problem.bounded:
            down = jnp.where(_held(problem, state)[0], 0, down)
        cauchy = cauchy_factor(state.model.upper, down) * _length(down, state)
        return starting_radius(_length(state.x, state), cauchy)

    def next_radius(self, before: State, cost: Array, ratio: Array, finite: Array) -> Array:
        """SciPy's rule."""
        return scipy_radius(before, ratio, finite)

    def optimality(self, problem: LeastSquaresProblem, state: State) -> Array:
        """The largest gradient entry among the variables that are not held."""
        grad = state.model.grad * state.unit**2
        if problem.bounded:
            on_bound = coleman_li(state.x, grad, problem.lower, problem.upper)[0] <= 0
            grad = jnp.where(on_bound | (problem.lower == problem.upper), 0, grad)
        return jnp.max(jnp.abs(grad))

    def propose(
        self,
        problem: LeastSquaresProblem,
        state: State,
        outlook: Outlook,
        damping: Array,
        correction: Correction,
    ) -> Trial:
        """Along the path (1), (2) as far as it stays in the intersection of the boxes."""
        x, grad, upper, qtf = state.x, state.model.grad, state.model.upper, state.model.qtf
        missed = correction.grad
        low = jnp.full_like(x, -1) * state.radius * state.scale
        high = -low
        onto = jnp.zeros_like(x)
        if problem.bounded:
            low = jnp.maximum(problem.lower - x, low)
            high = jnp.minimum(problem.upper - x, high)
            held, onto = _held(problem, state)
            moved = upper @ onto
            grad = jnp.where(held, 0, grad + upper.T @ moved)
            missed = jnp.where(held, 0, missed)
            upper, qtf = triangularize(jnp.where(held, 0, upper).T, qtf + moved)
        newton = -solve_upper(upper, qtf)
        zero = jnp.zeros_like(x)
        down, _ = step_to_bound(zero, -grad, low, high)
        along = upper @ grad
        best = safe_divide(jnp.sum(grad * grad), jnp.sum(along * along))
        cauchy = -jnp.where(best > 0, jnp.minimum(best, down), down) * grad
        cauchy = jnp.where(jnp.isfinite(cauchy), cauchy, 0)
        part, stopped = step_to_bound(cauchy, newton - cauchy, low, high)
        inside = within(newton, low, high)
        end = jnp.where(newton > cauchy, high, low)  # met exactly, not but for rounding
        step = cauchy + jnp.minimum(part, 1) * (newton - cauchy)
        step = jnp.where(stopped, end, jnp.clip(step, low, high))
        step = jnp.where(inside, newton, step)
        step = step + onto
        predicted = evaluate_model(state.model.upper, state.model.qtf, step)
        if problem.bounded:
            aside = jnp.clip(outlook.x - x, low, high)  # (3)
            promised = evaluate_model(state.model.upper, state.model.qtf, aside)
            better = promised > predicted
            whole = jnp.all(jnp.abs(aside) >= 0.9 * jnp.abs(outlook.step))
            step, inside = jnp.where(better, aside, step), jnp.where(better, whole, inside)
            predicted = jnp.maximum(promised, predicted)

        bend = -solve_upper(upper, solve_transposed(upper, missed))
        short = _length(bend, state) <= correction.longest
        corrected = correction.wanted & short
        start, step = jnp.where(corrected, correction.start, x), jnp.where(corrected, bend, step)
        moved = start + step
        if problem.bounded:
            moved = onto_bounds(moved, start, problem.lower, problem.upper)
        return Trial(
            x=moved,
            length=_length(step, state),
            predicted=predicted,
            limited=~inside,
            damping=damping,
            radius=state.radius,
            corrected=corrected,
        )


def _length(step: Array, state: State) -> Array:
    """The largest entry, in the metric."""
    return jnp.max(jnp.abs(step / state.scale))


def _held(problem: LeastSquaresProblem, state: State) -> tuple[Array, Array]:
    """Variables that rest on their bound in this step, and the rest of the way to it, (n,).

    They lie on a bound with the antigradient pointing outward, or so near that it has but a
    small part of the way along this variable alone: without that, a step which is cut where it
    first meets a bound would creep towards one. Fixed ones rest, too.
    """
    x, grad = state.x, state.model.grad
    distance, side = coleman_li(x, grad, problem.lower, problem.upper)
    near = distance * state.model.columns <= NEAR * jnp.abs(grad)
    near = near & (distance <= state.radius * state.scale)
    held = (side != 0) & ((distance <= 0) | near)
    onto = jnp.where(held, -side * distance, 0)
    fixed = problem.lower == problem.upper
    return held | fixed, jnp.where(fixed, 0, onto)
