r"""Levenberg-Marquardt as in MINPACK.

J. J. More, "The Levenberg-Marquardt Algorithm: Implementation and Theory", in Numerical
Analysis, Lecture Notes in Mathematics 630, 105-116 (1977).

    minimise  || J p + f ||   subject to   || D p || <= Delta                        (1)

with D_j the largest norm that column j of J has had (x_scale='jac'): the region is an
ellipsoid in x and a ball in D x, so the algorithm is invariant under a change of the units of
x. The Levenberg-Marquardt parameter follows from Delta and is never set by hand; see
`linalg.trust_region_step`. The radius (section 4 of the paper): after a step with
ratio = actual / predicted reduction,

    ratio <= 1/4:              Delta = t min(Delta, 10 ||D p||),  0.1 <= t <= 0.5     (2)
    ratio >= 3/4 or alpha = 0: Delta = 2 ||D p||                                      (3)

t being the minimiser of the parabola through the two costs and the slope.

Different from SciPy and MINPACK: robust losses; variables with lb == ub are held; the first
radius is ||D x0||, not a hundred times that; ends as in `convergence`.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...linalg import norm
from ...problem.least_squares import LeastSquaresProblem
from ...results import least_squares as codes
from .radius import starting_radius
from .state import State, Trial
from .trust_region import StepInputs, TrustRegionSolver


class LevenbergMarquardt(TrustRegionSolver):
    """``method='lm'``; see the module for the mathematics."""

    TAKES_BOUNDS = False
    COUNTS_DIFFERENCES = False
    PATIENCE = 40
    JACOBIAN_FIRST = True

    def init(self, problem: LeastSquaresProblem, x0: Float[Array, " n"]) -> State:
        """As every solver's; a variable that is bounded and not fixed is bad input."""
        state = super().init(problem, x0)
        if not problem.bounded:
            return state
        fixed = problem.lower == problem.upper
        finite = jnp.isfinite(problem.lower) | jnp.isfinite(problem.upper)
        bad = jnp.any(finite & ~fixed)
        status = jnp.where(bad, codes.BAD_INPUT, state.status).astype(jnp.int32)
        return eqx.tree_at(lambda s: s.status, state, status)

    def first_radius(self, problem: LeastSquaresProblem, state: State) -> Float[Array, ""]:
        """||D x0||, or of the Cauchy step if x0 is nothing beside it."""
        down = state.scale * state.model.gradient
        cauchy = state.model.cauchy_factor(state.scale, down) * norm(down)
        return starting_radius(norm(state.x / state.scale), cauchy)

    def next_radius(
        self,
        before: State,
        cost: Float[Array, ""],
        ratio: Float[Array, ""],
        finite: Bool[Array, ""],
    ) -> Float[Array, ""]:
        """Equations (2) and (3)."""
        trial = before.trial
        # Along p the model falls with slope -(2 predicted + alpha-terms) < 0; the parabola
        # through both costs with the slope -2 predicted has its minimum at t.
        rise = cost - before.cost
        slope = 2 * trial.predicted
        t = jnp.clip(0.5 * slope / jnp.where(rise + slope > 0, rise + slope, 1), 0.1, 0.5)
        t = jnp.where(rise <= 0, 0.5, jnp.where(finite & jnp.isfinite(cost), t, 0.1))
        shrunk = t * jnp.minimum(before.radius, 10 * trial.length)
        grown = jnp.where((ratio >= 0.75) | ~trial.limited, 2 * trial.length, before.radius)
        return jnp.where(finite & (ratio > 0.25), grown, shrunk)

    def acceptable(self, reduction: Float[Array, ""], ratio: Float[Array, ""]) -> Bool[Array, ""]:
        """MINPACK's p0001: some of the promise has to be kept."""
        return (reduction > 0) & (ratio >= 1e-4)

    def propose(self, inputs: StepInputs) -> Trial:
        """The solution of (1), in the variables D x."""
        _, state, prediction, damping, correction = inputs
        model, scale = state.model, state.scale
        newton = prediction.newton.step / scale
        answer = model.trust_region_step(scale, None, newton, state.radius, damping, correction)
        step = scale * answer.step
        return Trial(
            x=jnp.where(answer.corrected, correction.start, state.x) + step,
            length=norm(answer.step),
            predicted=model.predicted_reduction(step),
            limited=answer.limited,
            damping=answer.damping,
            radius=state.radius,
            corrected=answer.corrected,
        )
