r"""Trust Region Reflective, for least squares with bounds.

M. A. Branch, T. F. Coleman, Y. Li, "A Subspace, Interior, and Conjugate Gradient Method for
Large-Scale Bound-Constrained Minimization Problems", SIAM J. Sci. Comput. 21, 1-23 (1999).

Let v_j be the distance from x_j to the bound that -g_j points to (1 where there is none). The
first-order conditions are v_j g_j = 0, and Newton's method on them is

    (V H + diag|g_j v'_j|) p = -V g                                                   (1)

In the variables x = D z, D = V^1/2, this is the symmetric system of the quadratic

    0.5 || J D z + f ||^2 + 0.5 z^T C z,    C = diag|g_j v'_j|                        (2)

which is minimised in the ball ||z|| <= Delta: a region that is thin towards a near bound. If
the step p = D z leaves the box, the best, by (2), of these is taken:

- p cut just short of the bound, by the factor theta,
- p up to the bound, then reflected by it, to the minimum along that line,
- the minimum along -D^2 g, the scaled Cauchy step,                                      (3)
- p projected onto the box,
- the minimiser of 0.5 || J p + f ||^2 in the box, if it lies in the ball.

Without bounds V = I and C = 0, and this is Levenberg-Marquardt with SciPy's radius rule.

Different from SciPy: the last two candidates, by which a bound that is active at the solution is
reached exactly, and a convex problem is solved however narrow its valley; iterates may lie on
bounds (where v_j = 0 the variable rests); lb == ub fixes a variable; x0 is not moved away from a
bound; ends as in `convergence`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...jax_support.control_flow import where_or_cond
from ...linalg import norm, safe_divide, safe_sqrt
from ...problem.bounds import coleman_li, onto_bounds, step_to_bound, within
from ...problem.least_squares import LeastSquaresProblem
from .model import LinearModel
from .prediction import Prediction
from .radius import scipy_radius, starting_radius
from .state import State, Trial
from .trust_region import StepInputs, TrustRegionSolver

THETA = 0.995


class TrustRegionReflective(TrustRegionSolver):
    """``method='trf'``; see the module for the mathematics."""

    def first_radius(self, problem: LeastSquaresProblem, state: State) -> Float[Array, ""]:
        """||D^-1 x0||, or of the Cauchy step if x0 is nothing beside it."""
        metric, _ = self.metric(problem, state)
        down = metric * state.model.gradient
        cauchy = state.model.cauchy_factor(metric, down) * norm(down)
        return starting_radius(norm(safe_divide(state.x, metric)), cauchy)

    def next_radius(
        self,
        before: State,
        cost: Float[Array, ""],
        ratio: Float[Array, ""],
        finite: Bool[Array, ""],
    ) -> Float[Array, ""]:
        """SciPy's rule."""
        return scipy_radius(before, ratio, finite)

    def propose(self, inputs: StepInputs) -> Trial:
        """The minimiser of (2) in the ball, brought into the box."""
        problem, state, prediction, damping, correction = inputs
        model = state.model
        metric, diag = self.metric(problem, state)
        newton = prediction.newton.step / metric if diag is None else None
        answer = model.trust_region_step(metric, diag, newton, state.radius, damping, correction)
        start = jnp.where(answer.corrected, correction.start, state.x)
        step = answer.step
        if diag is not None:
            leaves = ~within(state.x + metric * step, problem.lower, problem.upper)
            step = where_or_cond(
                leaves & ~answer.corrected,
                lambda: _best_inside(problem, state, prediction, answer.step, metric, diag),
                step,
                state.f.size,
            )
        length = norm(step)
        x = start + metric * step
        if problem.bounded:
            x = onto_bounds(x, start, problem.lower, problem.upper)
        return Trial(
            x=x,
            length=length,
            predicted=_reduction(model, metric, diag, step),
            limited=answer.limited | (length > 0.95 * state.radius),
            damping=answer.damping,
            radius=state.radius,
            corrected=answer.corrected,
        )

    def metric(
        self, problem: LeastSquaresProblem, state: State
    ) -> tuple[Float[Array, " n"], Float[Array, " n"] | None]:
        """D, with the scale of x in it, and the diagonal of C (None without bounds)."""
        if not problem.bounded:
            return state.scale, None
        grad = state.model.gradient
        distance, side = coleman_li(state.x, grad, problem.lower, problem.upper)
        distance = jnp.where(side != 0, distance / state.scale, distance)
        return safe_sqrt(distance) * state.scale, grad * side * state.scale


def _reduction(
    model: LinearModel,
    metric: Float[Array, " n"],
    diag: Float[Array, " n"] | None,
    step: Float[Array, " n"],
) -> Float[Array, ""]:
    """What (2) promises for a step."""
    promised = model.predicted_reduction(metric * step)
    return promised if diag is None else promised - 0.5 * jnp.sum(diag * step * step)


def _best_inside(
    problem: LeastSquaresProblem,
    state: State,
    prediction: Prediction,
    step: Float[Array, " n"],
    metric: Float[Array, " n"],
    diag: Float[Array, " n"],
) -> Float[Array, " n"]:
    """The best of the candidates (3) for a step that leaves the box."""
    x, model = state.x, state.model
    lower_bound, upper_bound = problem.lower, problem.upper
    to_bound, hits = step_to_bound(x, metric * step, lower_bound, upper_bound)
    to_bound = jnp.minimum(to_bound, 1)
    touching = to_bound * step

    # Reflected: from the bound on, with the entries that hit it turned round.
    mirrored = jnp.where(hits, -step, step)
    on_bound = jnp.clip(x + metric * touching, lower_bound, upper_bound)
    room, _ = step_to_bound(on_bound, metric * mirrored, lower_bound, upper_bound)
    to_edge = _to_sphere(touching, mirrored, state.radius)
    longest = jnp.minimum(THETA * room, to_edge)
    shortest = safe_divide((1 - THETA) * to_bound, jnp.minimum(room, to_edge))
    t = _line_minimum(model, metric, diag, touching, mirrored, shortest, longest)
    reflected = jnp.where(shortest <= longest, touching + t * mirrored, 0)

    # Cauchy: down the scaled gradient.
    down = -metric * model.gradient
    room, _ = step_to_bound(x, metric * down, lower_bound, upper_bound)
    to_edge = safe_divide(state.radius, norm(down))
    farthest = jnp.where(room < to_edge, THETA * room, to_edge)
    zero = jnp.zeros_like(step)
    nearest = jnp.zeros_like(room)
    cauchy = _line_minimum(model, metric, diag, zero, down, nearest, farthest) * down

    projected = jnp.clip(x + metric * step, lower_bound, upper_bound) - x
    newton = safe_divide(prediction.x - x, metric)
    newton = jnp.where(norm(newton) <= state.radius, newton, 0)
    projected = safe_divide(projected, metric)
    candidates = jnp.stack([THETA * touching, reflected, cauchy, projected, newton])
    promised = jax.vmap(lambda step: _reduction(model, metric, diag, step))(candidates)
    promised = jnp.where(jnp.isfinite(promised), promised, -jnp.inf)
    return candidates[jnp.argmax(promised)]


def _to_sphere(
    start: Float[Array, " n"], direction: Float[Array, " n"], radius: Float[Array, ""]
) -> Float[Array, ""]:
    """t >= 0 with ||start + t direction|| = radius, start inside."""
    a = jnp.sum(direction * direction)
    b = jnp.sum(start * direction)
    c = jnp.minimum(jnp.sum(start * start) - radius**2, 0)
    root = safe_sqrt(b * b - a * c)
    # The form without cancellation.
    return jnp.where(b > 0, safe_divide(-c, b + root), safe_divide(root - b, a))


def _line_minimum(
    model: LinearModel,
    metric: Float[Array, " n"],
    diag: Float[Array, " n"],
    start: Float[Array, " n"],
    direction: Float[Array, " n"],
    shortest: Float[Array, ""],
    longest: Float[Array, ""],
) -> Float[Array, ""]:
    """t in [shortest, longest] that minimises (2) at start + t * direction."""
    along, at = model.product(metric * direction), model.product(metric * start)
    curvature = jnp.sum(along * along) + jnp.sum(diag * direction * direction)
    slope = jnp.sum((model.residual + at) * along) + jnp.sum(diag * start * direction)
    best = jnp.where(curvature > 0, safe_divide(-slope, curvature), longest)
    return jnp.clip(best, shortest, longest)
