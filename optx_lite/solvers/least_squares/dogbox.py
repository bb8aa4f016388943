r"""Dogleg in a rectangular trust region, for least squares with bounds.

C. Voglis, I. E. Lagaris, "A Rectangular Trust Region Dogleg Approach for Unconstrained and
Bound Constrained Nonlinear Optimization", WSEAS (2004); the dogleg path is in Nocedal &
Wright, "Numerical Optimization", chapter 4.

The region |p_j| <= Delta s_j is a box, and so is its intersection with lower <= x + p <= upper.
Without bounds the model is minimised along the path

    0  ->  p_C = -t D^-2 g, the minimum along -D^-2 g inside the region             (1)
       ->  p_N, the Gauss-Newton step                                               (2)

up to the point where it leaves the region. With bounds,

    p = argmin 0.5 || J p + f ||^2   in both boxes,                                 (3)

exactly, by active sets (`linalg.box`): where variables lie near their bounds the path ends at
the first of them, and in a narrow valley the iterates would creep from one to the next.

Different from SciPy: D in (1); (3); a rank-deficient Gauss-Newton step leaves the dependent
variables where they are; lb == ub fixes a variable; the end (`convergence`), the correction and
the fallback (`trust_region`).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...linalg import unit_of
from ...problem.bounds import coleman_li, onto_bounds, step_to_bound, within
from ...problem.least_squares import LeastSquaresProblem
from .prediction import Prediction
from .radius import scipy_radius, starting_radius
from .state import State, Trial
from .trust_region import StepInputs, TrustRegionSolver


class Dogbox(TrustRegionSolver):
    """``method='dogbox'``; see the module for the mathematics."""

    PATIENCE = 10

    def first_radius(self, problem: LeastSquaresProblem, state: State) -> Float[Array, ""]:
        """The largest ``|x0_j| / s_j``, or of the Cauchy step if x0 is nothing beside it."""
        metric, slope = _metric(state)
        if problem.bounded:
            slope = jnp.where(_resting(problem, state), 0, slope)
        cauchy = state.model.cauchy_factor(metric, slope)
        return starting_radius(_length(state.x, state), cauchy * _length(metric * slope, state))

    def next_radius(
        self,
        before: State,
        cost: Float[Array, ""],
        ratio: Float[Array, ""],
        finite: Bool[Array, ""],
    ) -> Float[Array, ""]:
        """SciPy's rule."""
        return scipy_radius(before, ratio, finite)

    def optimality(self, problem: LeastSquaresProblem, state: State) -> Float[Array, ""]:
        """The largest gradient entry among the variables that are not held."""
        grad = state.gradient
        if problem.bounded:
            grad = jnp.where(_resting(problem, state), 0, grad)
        return jnp.max(jnp.abs(grad))

    def propose(self, inputs: StepInputs) -> Trial:
        """To the minimum in both boxes, or along the path if there is but one."""
        problem, state, prediction, damping, correction = inputs
        step, inside = _step(problem, state, prediction)
        bend = state.model.solve_free(prediction.newton, correction.gradient)
        corrected = correction.wanted & (_length(bend, state) <= correction.longest)
        predicted = state.model.predicted_reduction(step)
        start = jnp.where(corrected, correction.start, state.x)
        step = jnp.where(corrected, bend, step)
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


def _length(step: Float[Array, " n"], state: State) -> Float[Array, ""]:
    """The largest entry, in the metric."""
    return jnp.max(jnp.abs(step / state.scale))


def _metric(state: State) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """D^-1, with a largest entry of about 1, and D^-1 g."""
    metric = state.scale / unit_of(state.scale)
    return metric, metric * state.model.gradient


def _resting(problem: LeastSquaresProblem, state: State) -> Bool[Array, " n"]:
    """Variables on a bound with the antigradient pointing outward."""
    x, lower, upper = state.x, problem.lower, problem.upper
    return (coleman_li(x, state.model.gradient, lower, upper)[0] <= 0) | (lower == upper)


def _step(
    problem: LeastSquaresProblem, state: State, prediction: Prediction
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """The step within the region, and whether it is the Gauss-Newton step."""
    high = state.radius * state.scale
    newton = prediction.x - state.x
    if not problem.bounded:
        return _dogleg(state, newton, -high, high), within(newton, -high, high)
    low = jnp.maximum(problem.lower - state.x, -high)
    high = jnp.minimum(problem.upper - state.x, high)
    inside = within(newton, low, high)
    best = state.model.gauss_newton((low, high), newton)
    return jnp.where(inside, newton, jnp.where(best.found, best.step, 0)), inside


def _dogleg(
    state: State, newton: Float[Array, " n"], low: Float[Array, " n"], high: Float[Array, " n"]
) -> Float[Array, " n"]:
    """Along the path (1), (2) as far as it stays in the box; the whole of it if that is all."""
    metric, slope = _metric(state)
    down = -metric * slope
    room, _ = step_to_bound(jnp.zeros_like(newton), down, low, high)
    best = state.model.cauchy_factor(metric, slope)
    cauchy = jnp.where(best > 0, jnp.minimum(best, room), room) * down
    cauchy = jnp.where(jnp.isfinite(cauchy), cauchy, 0)
    part, stopped = step_to_bound(cauchy, newton - cauchy, low, high)
    end = jnp.where(newton > cauchy, high, low)  # met exactly, not but for rounding
    step = cauchy + jnp.minimum(part, 1) * (newton - cauchy)
    step = jnp.where(stopped, end, jnp.clip(step, low, high))
    return jnp.where(within(newton, low, high), newton, step)
