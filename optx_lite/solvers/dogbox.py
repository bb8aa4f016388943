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

from .._bounds import onto_bounds, step_to_bound, within
from .._problem import LeastSquaresProblem
from ..linalg import safe_divide, solve_transposed, solve_upper, triangularize
from ._convergence import Outlook
from ._state import Correction, State, Trial
from ._trust_region import TrustRegionSolver, evaluate_model, scipy_radius


class Dogbox(TrustRegionSolver):
    """``method='dogbox'``; see the module for the mathematics."""

    PATIENCE = 10

    def first_radius(self, problem: LeastSquaresProblem, state: State) -> Array:
        """The largest |x0_j| / s_j, 1 for x0 = 0."""
        size = jnp.max(jnp.abs(state.x / state.scale))
        return jnp.where(size > 0, size, 1)

    def next_radius(self, before: State, cost: Array, ratio: Array, finite: Array) -> Array:
        """SciPy's rule."""
        return scipy_radius(before, ratio, finite)

    def optimality(self, problem: LeastSquaresProblem, state: State) -> Array:
        """The largest gradient entry among the variables that are not held."""
        grad = state.model.grad * state.unit**2
        if problem.bounded:
            grad = jnp.where(_held(problem, state), 0, grad)
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
        if problem.bounded:
            held = _held(problem, state)
            grad, missed = jnp.where(held, 0, grad), jnp.where(held, 0, missed)
            upper, qtf = triangularize(jnp.where(held, 0, upper).T, qtf)
            low = jnp.maximum(problem.lower - x, low)
            high = jnp.minimum(problem.upper - x, high)
        newton = -solve_upper(upper, qtf)
        zero = jnp.zeros_like(x)
        down, _ = step_to_bound(zero, -grad, low, high)
        along = upper @ grad
        best = safe_divide(jnp.sum(grad * grad), jnp.sum(along * along))
        cauchy = -jnp.where(best > 0, jnp.minimum(best, down), down) * grad
        cauchy = jnp.where(jnp.isfinite(cauchy), cauchy, 0)
        part, _ = step_to_bound(cauchy, newton - cauchy, low, high)
        inside = within(newton, low, high)
        step = jnp.where(inside, newton, cauchy + jnp.minimum(part, 1) * (newton - cauchy))
        step = jnp.clip(step, low, high)
        predicted = evaluate_model(upper, qtf, step)
        if problem.bounded:
            aside = jnp.clip(outlook.x - x, low, high)  # (3)
            promised = evaluate_model(state.model.upper, state.model.qtf, aside)
            better = promised > predicted
            whole = jnp.all(jnp.abs(aside) >= 0.9 * jnp.abs(outlook.step))
            step, inside = jnp.where(better, aside, step), jnp.where(better, whole, inside)
            predicted = jnp.maximum(promised, predicted)

        bend = -solve_upper(upper, solve_transposed(upper, missed))
        short = jnp.max(jnp.abs(bend / state.scale)) <= correction.longest
        corrected = correction.wanted & short
        start, step = jnp.where(corrected, correction.start, x), jnp.where(corrected, bend, step)
        moved = start + step
        if problem.bounded:
            moved = onto_bounds(moved, start, problem.lower, problem.upper)
        return Trial(
            x=moved,
            length=jnp.max(jnp.abs(step / state.scale)),
            predicted=predicted,
            limited=~inside,
            damping=damping,
            radius=state.radius,
            corrected=corrected,
        )


def _held(problem: LeastSquaresProblem, state: State) -> Array:
    """Variables on a bound with the antigradient pointing outward, and fixed ones."""
    x, grad = state.x, state.model.grad
    outward = ((x <= problem.lower) & (grad > 0)) | ((x >= problem.upper) & (grad < 0))
    return outward | (problem.lower == problem.upper)
