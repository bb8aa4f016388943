"""Parameters that lose their effect: what is refused, and what is looked at before a success.

A step after which a parameter has no effect any more, in one go, went too far, as a rule: out on
the tail of an exponential, beyond the data. It is not taken, though the cost may be lower. But
that may also be where the minimum is: a peak whose height is 0 has no position, and a break may
belong beyond the data. So after `REFUSALS` of them, with no more than `SMALL_DECREASE` gained by a
step in between, no more are refused, after `REFUSALS_AT_BOUNDS` if the step brings a variable to a
bound, and none once nothing else is left.

A parameter that had an effect on f and has none at the end may have run away, along an
exponential's tail for one: status -5, the point is stationary just because it is far out. Or the
other parameters switched it off, as a height of 0 does with the position of a peak; or it has an
effect to second order only, as a in a^2 at 0. Then a small move of all parameters brings effects
back that are much larger than those at the end. So before a success is claimed with such a
parameter, one evaluation more is made at a point nearby, the `probe`. A probe may also look for a
kink, see `convergence`.

An effect may also fade slowly, as that of a slope which grows for ever: each step is a part of x,
outwards, would have changed f by its own size, and does next to nothing. Such a parameter is looked
at as one without effect.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...linalg import safe_divide, safe_sqrt
from ...problem.least_squares import LeastSquaresProblem
from ...results import least_squares as codes
from .state import State

SMALL_DECREASE = 0.01  # a cost that falls by no more in a step, relatively: f is there to stay
REFUSALS = 20  # of trials on a plateau
REFUSALS_AT_BOUNDS = 2  # of those that bring a variable to a bound
PLATEAU, KINK = 1, 2  # what a probe looks for
NEARBY = 1 / 4  # power of eps: part of a move that changes f by its own size, for a probe
REVIVED = -1 / 8  # power of eps: by so much an effect that comes back is the larger
GROWTH = 0.2  # relative to x, of a step that leads away
FADED = 1 / 4  # power of eps: what is left of the effect of a parameter that may run away
LANDED = 1 / 4  # power of eps: part of the room to a bound that is left, all but on it


def without_effect(
    problem: LeastSquaresProblem,
    norms: Float[Array, " n"],
    secant: Float[Array, " ..."],
    longest: Float[Array, " n"],
    cost: Float[Array, ""],
) -> Bool[Array, " n"]:
    """Parameters whose columns, which have been ``longest``, are nothing now, w included."""
    # Effects are compared with f, which may have fallen by as much as they; in its unit f was
    # of the size of 1 when that was taken.
    least = problem.precision * jnp.minimum(safe_sqrt(2 * cost), 1)
    return jnp.maximum(norms, jnp.abs(secant)) <= least * longest


def lands(problem: LeastSquaresProblem, state: State) -> Bool[Array, ""]:
    """Whether the trial brings a variable to a bound, all but: that may switch others off."""
    if not problem.bounded:
        return jnp.zeros((), bool)

    def room(x: Array) -> Array:
        return jnp.minimum(x - problem.lower, problem.upper - x)

    return jnp.any(room(state.trial.x) < problem.precision**LANDED * room(state.x))


def is_refused(
    problem: LeastSquaresProblem, state: State, norms: Float[Array, " n"], cost: Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether a trial with columns of these norms lies on a plateau, and is not taken."""
    old = state.model.column_norms
    # Effects are compared with f, which may fall by as much.
    lost = norms**2 * state.cost < problem.precision * old**2 * cost
    patience = jnp.where(lands(problem, state), REFUSALS_AT_BOUNDS, REFUSALS)
    return jnp.any(lost) & ~jnp.all(lost | (old == 0)) & (state.refused < patience)


def verify(
    before: State,
    dead: Array,
    status: Array,
    pending: Array,
    doubtful: Array,
    passed: Array,
) -> tuple[Array, Array, Array]:
    """Status, what waits, and what the next trial is to look for, if anything.

    ``dead``: parameters without effect; ``doubtful``: whether a kink may be near; ``passed``: what
    the last trial found if it was there to look for something.
    """
    dead = jnp.any(dead)
    wanted = jnp.where(dead, PLATEAU, jnp.where(doubtful, KINK, 0)).astype(jnp.int32)
    looking = before.probing > 0
    probing = jnp.where((status > 0) & ~looking, wanted, 0)
    failed = jnp.where(before.probing == KINK, codes.STALLED, codes.PLATEAU)
    found = jnp.where(passed, before.pending, failed)
    pending = jnp.where(probing > 0, status, pending)
    status = jnp.where(looking, found, jnp.where(probing > 0, codes.RUNNING, status))
    return status, pending.astype(jnp.int32), probing


def dead_parameters(
    problem: LeastSquaresProblem, before: State, state: State, goal: Float[Array, " n"]
) -> Bool[Array, " n"]:
    """Those that had an effect on f and have none any more, while others have.

    Or have so little that the model sends them further and further out, to its ``goal``.
    """
    model = state.model
    dead = without_effect(problem, model.column_norms, model.secant, state.longest, state.cost)
    dead = dead & (state.longest > 0)
    dead = (dead & ~jnp.all(dead)) | _runs_away(problem, before, state, goal)
    if problem.bounded:
        dead = dead & (state.x > problem.lower) & (state.x < problem.upper)
    return dead


def _runs_away(
    problem: LeastSquaresProblem, before: State, state: State, goal: Float[Array, " n"]
) -> Bool[Array, " n"]:
    """A step by a part of x, outwards, that would have changed f by its own size, and does not.

    And the last one, like it, has made the effect smaller still.
    """
    grows = jnp.abs(goal) - jnp.abs(state.x) >= GROWTH * jnp.abs(goal)
    effect = state.model.column_norms
    faded = effect <= problem.precision**FADED * state.longest
    fades = effect <= (1 - GROWTH) * before.model.column_norms
    step = jnp.abs(goal - state.x)
    return grows & faded & fades & (step * state.longest > state.fnorm)


def probe(
    problem: LeastSquaresProblem, before: State, state: State, kind: Int[Array, ""]
) -> Float[Array, " n"]:
    """Where to look: for a kink, at the last trial; for a plateau, at a point nearby.

    There each parameter is moved by a small part of what moves f by its own size.
    """
    part = problem.precision**NEARBY * safe_divide(state.fnorm, state.longest)
    if problem.bounded:
        part = jnp.where(state.x + part <= problem.upper, part, -part)
        nearby = jnp.clip(state.x + part, problem.lower, problem.upper)
    else:
        nearby = state.x + part
    return jnp.where(kind == KINK, before.trial.x, nearby)


def passes(
    problem: LeastSquaresProblem,
    state: State,
    norms: Float[Array, " n"],
    gradient: Float[Array, " n"],
) -> Bool[Array, ""]:
    """Whether a probe, with columns of these norms and this gradient, confirms the success."""
    step = state.trial.x - state.x
    turned = gradient @ step > 0.5 * jnp.abs(state.model.gradient @ step)
    return jnp.where(state.probing == KINK, ~turned, revives(problem, state, norms))


def revives(
    problem: LeastSquaresProblem, state: State, norms: Float[Array, " n"]
) -> Bool[Array, ""]:
    """Whether columns of these norms have the effects that are missing at ``state.x``."""
    least = problem.precision**REVIVED * state.model.column_norms
    return jnp.all(~state.dead | (norms > least))
