"""What the linear model says of the way that is left, in the numbers that `convergence` tests.

The Gauss-Newton step p leads to the minimiser of the model within the bounds. By how much F falls
with it, relative to F, is the square of the relative offset of Bates & Watts; how long it is
relative to x, and by what rate it shrinks from step to step, gives the error in x.

Rounding. f_i is known to eps sum_j |J_ij x_j|, or to its own size where that is less. F is known to
the root of the sum of squares of that times its derivative by f_i, as each f_i is rounded for
itself; and to eps F.
"""

from __future__ import annotations

from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ...linalg import norm, reciprocal, safe_divide, safe_sqrt, unit_of
from ...problem.bounds import coleman_li
from ...problem.least_squares import LeastSquaresProblem
from ...problem.losses import LEAST_BEND
from .model import GaussNewtonStep
from .state import State

NOISE = 8  # times epsilon: by so much a cost may be wrong
LEFT_OUT = 0.01  # part of f that need not be rounding where all the rest is
NEARLY = 2 / 3  # power of eps: f that is nearly rounding is below this part of its terms
SLOWEST = 0.99  # rate at which steps shrink, for the sum of those to come


class Prediction(eqx.Module):
    """From a point on, within the bounds."""

    newton: GaussNewtonStep
    x: Float[Array, " n"]  # where that step leads
    size: Float[Array, ""]  # its largest |dx_j| / |x_j|
    left: Float[Array, ""]  # the same for all the steps that are to come, by their rate so far
    offset: Float[Array, ""]  # relative offset: sine of the angle between f and the complement of J
    by_loss: Float[Array, ""]  # the same where the loss is robust, else 0
    cosine: Float[Array, ""]  # largest between f and a free column of J
    steepest: Float[Array, ""]  # the same with the curvature of f in the norm of the column
    reach: Float[Array, ""]  # by what F changes, to first order, if all x_j change by |x_j|
    nothing: Bool[Array, ""]  # f is rounding, or 0
    small: Bool[Array, ""]  # f is nearly so
    noise: Float[Array, ""]  # of the cost


def predict(problem: LeastSquaresProblem, before: State, state: State) -> Prediction:
    """The prediction from ``state.x``, where the trial of ``before`` led."""
    model, x, fnorm, eps = state.model, state.x, state.fnorm, problem.precision
    curvatures = model.curvatures()
    slope = jnp.where(curvatures > 0, jnp.abs(model.gradient), 0)  # of those with an effect
    newton, goal, room = _newton(problem, before, state, slope, curvatures)
    if not problem.loss.is_linear:
        newton = replace(newton, gain=_gain_by_loss(problem, state, newton))
    offset = safe_divide(safe_sqrt(2 * newton.gain), fnorm)
    size = jnp.max(safe_divide(jnp.abs(goal - x), jnp.maximum(jnp.abs(x), jnp.abs(goal))))
    scatter, pull = _scatter(problem, state)
    f = jnp.abs(state.f) / state.unit

    # Row by row: an entry of J that is huge, beside a root at its zero for one, does not speak
    # for the other residuals.
    unit = unit_of(f)
    f, scatter = f * reciprocal(unit), scatter * reciprocal(unit)
    levels = np.asarray([eps, 2 * eps, 2 * eps**NEARLY], f.dtype)
    hidden = jnp.minimum(levels[:, None] * scatter[None, :], f[None, :])
    size_of_f, sizes = safe_sqrt(f @ f), safe_sqrt(jnp.sum(hidden * hidden, axis=1))
    nothing, small = (
        size_of_f <= (1 + LEFT_OUT) * sizes[1],
        size_of_f <= (1 + LEFT_OUT) * sizes[2],
    )

    def steepest(norms: Float[Array, " n"]) -> Float[Array, ""]:
        # Root of twice what the best of the variables gains alone, as far as its bound.
        whole = safe_divide(slope, norms)
        as_far = jnp.minimum(whole, room * norms)
        return safe_divide(safe_sqrt(jnp.max((2 * whole - as_far) * as_far)), fnorm)

    return Prediction(
        newton=newton,
        x=goal,
        size=size,
        left=_left(before, size),
        offset=offset,
        by_loss=jnp.zeros_like(offset) if problem.loss.is_linear else offset,
        cosine=steepest(model.column_norms),
        steepest=steepest(safe_sqrt(curvatures)),
        # At x_j = 0 nothing is known of the size of x_j.
        reach=jnp.where(jnp.any((x == 0) & (slope > 0)), jnp.inf, slope @ jnp.abs(x)),
        nothing=nothing,
        small=small,
        noise=NOISE * (eps * fnorm * fnorm + norm(pull * hidden[0]) * unit),
    )


def _newton(
    problem: LeastSquaresProblem, before: State, state: State, slope: Array, curvatures: Array
) -> tuple[GaussNewtonStep, Array, Array]:
    """The Gauss-Newton step, where it leads, and each variable's room on the way down."""
    model, x = state.model, state.x
    if not problem.bounded:
        newton = model.gauss_newton()
        return newton, x + newton.step, jnp.asarray(jnp.finfo(x.dtype).max, x.dtype)
    distance, side = coleman_li(x, model.gradient, problem.lower, problem.upper)
    room = jnp.where(side == 0, jnp.finfo(x.dtype).max, distance)
    low, high = problem.lower - x, problem.upper - x
    # A guess: on its bound if the minimiser along this variable alone lies beyond.
    active = (side != 0) & (slope >= room * curvatures)
    start = jnp.where(active, jnp.where(side < 0, high, low), 0)
    if state.goal is not None:
        start = jnp.where(before.nfev > 0, state.goal - x, start)
    newton = model.gauss_newton((low, high), start)
    goal = jnp.where(newton.step <= low, problem.lower, x + newton.step)
    return newton, jnp.where(newton.step >= high, problem.upper, goal), room


def _gain_by_loss(problem: LeastSquaresProblem, state: State, newton: GaussNewtonStep) -> Array:
    """What the step's direction promises by the curvature that the loss has, if that is more.

    The model gives outliers the curvature which makes good steps. If all others lie on one side
    of x, as beside a margin far below the residuals, next to nothing curves that direction.
    """
    model, step = state.model, newton.step
    steps, losses = (problem.loss.weights(state.f, least)[0] for least in (LEAST_BEND, 0.0))
    curved = safe_divide(losses, steps) * model.rows_product(step)
    slope = model.gradient @ step
    return jnp.maximum(newton.gain, 0.5 * safe_divide(slope * slope, curved @ curved))


def _left(before: State, size: Float[Array, ""]) -> Float[Array, ""]:
    """The sum of the sizes to come, where steps shrink geometrically."""
    free = (before.pending > 0) | ~before.trial.limited
    # Over two steps as well: with w they do not shrink evenly.
    rate = safe_divide(size, before.size)
    rate = jnp.maximum(rate, safe_sqrt(safe_divide(size, before.last_size)))
    rate = jnp.where(free, rate, 0)
    return jnp.where(rate < 1, size / (1 - jnp.minimum(rate, SLOWEST)), jnp.inf)


def _scatter(
    problem: LeastSquaresProblem, state: State
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Size of the terms of each residual, (m,), and the derivative of F by each, (m,)."""
    scatter = state.model.absolute_product(state.x)
    if problem.loss.is_linear:
        return scatter, state.f / state.unit
    weight, f_weight = problem.loss.weights(state.f, LEAST_BEND)
    return safe_divide(scatter, weight), (state.f / state.unit) * weight * f_weight
