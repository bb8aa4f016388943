r"""When a trust-region machine has arrived.

R, q are the triangular factor and Q^T f of the weighted Jacobian, restricted to the free
variables, and p = -R^{-1} q is the Gauss-Newton step.

    gtol   ||q|| <= gtol ||f||                                                      (1)
    ftol   dF <= ftol F, both as it was and as the model said, with 1/4 < ratio     (2)
    xtol   ||D dx|| <= xtol ||D x||                                                 (3)

(1) is the relative offset of Bates & Watts ("A relative offset orthogonality convergence
criterion for nonlinear least squares", Technometrics 23, 1981): the cosine of the angle
between f and the tangent plane. Where J is nearly singular that plane holds directions which
lead nowhere, and MINPACK's measure counts instead: the largest cosine between f and a single
column. SciPy compares ||g||_inf with gtol, which is met anywhere if f is small enough; here
that sets only the status code of a solve that has ended. (2) and (3) do not count when the
trust region cut the step short, since a step is not small because it was kept small; (2) does
if the square of the largest cosine, what one variable alone could still gain, is below ftol.

The polish. dF < 1e-8 F leaves an error of 1e-4 in x, and a Gauss-Newton iteration that is
within its domain of convergence pays ten further digits with a handful of evaluations. So a
test that is met only opens the last phase: undamped steps p on the free variables, with the
active ones put on their bounds exactly, for as long as they shrink, the cost does not rise
above its rounding, and p is not yet below the tolerance relative to x. The last phase ends
with the status that opened it.

A radius that collapses with the gradient still there is not convergence: status -4. Nor is a
point far out on a plateau, where a parameter that had an effect on f has none: status -5.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .. import _result as codes
from .._bounds import coleman_li
from .._problem import LeastSquaresProblem
from ..linalg import norm, safe_divide, safe_sqrt, solve_upper, triangularize
from ._state import State

SHRINK = 0.9  # a polishing step must be this much shorter than the one before
MARGIN = 0.1  # error that may be left in x, relative to the tolerance


class Outlook(eqx.Module):
    """What undamped Gauss-Newton on the free variables promises from the current point."""

    step: Array  # (n,) the Gauss-Newton step
    x: Array  # (n,) where it leads, active variables on their bounds
    size: Array  # () largest |dx_j| / |x_j|
    left: Array  # () the same for all the steps that are still to come, by their rate so far
    offset: Array  # () the relative offset (1), bounds included
    steepest: Array  # () largest cosine between f and a free column of J
    scatter: Array  # () |J| |x|, x here or one step before: f is known to eps of this


def look_ahead(problem: LeastSquaresProblem, before: State, state: State) -> Outlook:
    """The outlook from ``state.x``, where the trial of ``before`` led."""
    model, x, fnorm = state.model, state.x, state.fnorm
    upper, qtf, slope, columns = model.upper, model.qtf, jnp.abs(model.grad), model.columns
    if problem.bounded:
        distance, side = coleman_li(x, model.grad, problem.lower, problem.upper)
        # Active: the minimiser along this variable alone lies beyond its bound.
        active = (side != 0) & (slope >= distance * columns)
        onto = jnp.where(active, -side * distance, 0)
        upper, qtf = triangularize(jnp.where(active, 0, upper).T, qtf + upper @ onto)
        step = onto - solve_upper(upper, qtf)
        goal = jnp.clip(x + step, problem.lower, problem.upper)
        face = jnp.where(side < 0, problem.upper, problem.lower)
        goal = jnp.where(active, face, goal)
        blocked = 2 * jnp.sum(jnp.where(active, slope * distance, 0))
        slope = jnp.where(active, 0, slope)
    else:
        step = -solve_upper(upper, qtf)
        goal, blocked = x + step, jnp.zeros_like(fnorm)
    size = jnp.max(safe_divide(jnp.abs(goal - x), jnp.maximum(jnp.abs(x), jnp.abs(goal))))
    free = (before.pending > 0) | ~before.trial.limited
    rate = jnp.where(free, safe_divide(size, before.size), 0)
    lengths = safe_sqrt(columns)
    return Outlook(
        step=step,
        x=goal,
        size=size,
        left=jnp.where(rate < 1, size / (1 - jnp.minimum(rate, 0.99)), jnp.inf),
        offset=safe_divide(safe_sqrt(qtf @ qtf + blocked), fnorm),
        steepest=jnp.maximum(
            jnp.max(safe_divide(slope, lengths * fnorm)), safe_divide(safe_sqrt(blocked), fnorm)
        ),
        # The step that led here was rounded, too.
        scatter=norm(lengths * jnp.maximum(jnp.abs(x), jnp.abs(before.x))),
    )


def judge(
    solver: Any,
    problem: LeastSquaresProblem,
    before: State,
    state: State,
    outlook: Outlook,
    accepted: Array,
    ratio: Array,
) -> tuple[Array, Array]:
    """Status, and the status that waits for the last phase to end.

    ``accepted``, ``ratio``: what became of the trial of ``before``; ``solver`` has ftol, xtol
    and gtol.
    """
    eps, trial = problem.precision, before.trial
    first = before.nfev == 0
    polishing = before.pending > 0
    gained = jnp.maximum(before.cost - state.cost, trial.predicted)
    whole = norm(state.x / state.scale)
    nothing = state.fnorm <= eps * outlook.scatter  # f is rounding, or 0
    flat = jnp.minimum(outlook.offset, outlook.steepest)

    gtol = (flat <= jnp.maximum(solver.gtol, eps)) | nothing  # (1)
    ftol = (
        (accepted & ~first & (ratio > 0.25))
        & (~trial.limited | (outlook.steepest**2 <= solver.ftol))
        & (gained <= solver.ftol * before.cost)
    )  # (2)
    xtol = accepted & ~first & ~trial.limited & (trial.length <= solver.xtol * whole)  # (3)
    # What is left to gain is below the rounding of the cost, or of x.
    exhausted = (flat**2 <= eps) | (outlook.size <= eps)
    met = jnp.where(ftol, codes.FTOL, codes.RUNNING)
    met = jnp.where(xtol, jnp.where(ftol, codes.FTOL_AND_XTOL, codes.XTOL), met)
    met = jnp.where(exhausted & (met == codes.RUNNING), codes.XTOL, met)
    met = jnp.where(gtol, codes.GTOL, met)
    pending = jnp.where(polishing, before.pending, met).astype(jnp.int32)

    loosest = jnp.maximum(jnp.maximum(solver.ftol, solver.xtol), jnp.maximum(solver.gtol, eps))
    over = (
        (outlook.left <= MARGIN * loosest)
        | (polishing & (~accepted | (outlook.size > SHRINK * before.size)))
        | nothing
        | ~solver.running(problem, state)
    )
    # Written so that a step which is not finite counts as stuck, too.
    too_short = ~(trial.length > jnp.maximum(solver.xtol, eps) * whole)
    stuck = too_short & ~(accepted | first | polishing)
    # No descent, and none to be had: f is orthogonal to J, or nearly rounding.
    small = state.fnorm <= eps ** (2 / 3) * outlook.scatter
    done = (outlook.steepest <= eps ** (1 / 3)) | small
    stalled = jnp.where(stuck, jnp.where(done, codes.XTOL, codes.STALLED), codes.RUNNING)
    reached = _name(solver, problem, state, pending)
    # The last phase came too early where f is still far from orthogonal to J: beside a huge
    # variable without influence, for one, every step is short. On the way to x = 0 none is.
    far = (outlook.left > MARGIN * loosest) & (outlook.size < 0.2)
    far = far & (outlook.steepest > eps ** (1 / 8)) & ~small
    status = jnp.where((pending > 0) & over & ~far, reached, stalled).astype(jnp.int32)
    return status, jnp.where(over & far, codes.RUNNING, pending)


def _name(solver: Any, problem: LeastSquaresProblem, state: State, status: Array) -> Array:
    """SciPy's code: 1 wherever its absolute test on the gradient holds as well.

    And no success where a parameter which had an effect on f has none any more: the point is
    stationary because it is far out on a plateau.
    """
    # Effects are compared with f, which may have fallen by as much as they; in its unit f was
    # of the size of 1 when that was taken.
    least = problem.precision * jnp.minimum(state.fnorm, 1)
    dead = safe_sqrt(state.model.columns) <= least * state.lengths
    if problem.bounded:
        dead = dead & (state.x > problem.lower) & (state.x < problem.upper)
    plateau = jnp.any(dead & (state.lengths > 0)) & ~jnp.all(dead)
    status = jnp.where(solver.optimality(problem, state) < solver.gtol, codes.GTOL, status)
    return jnp.where(plateau, codes.PLATEAU, status)
