r"""When a trust-region solver has arrived.

R, q are the triangular factor and Q^T f of the weighted Jacobian, with the row w of
`trust_region` in it, restricted to the free variables, and p = -R^{-1} q is the Gauss-Newton step.

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

Nothing left. Near a minimum where the cost is flat, or noisy by rounding, no step reduces it any
more, and the radius collapses. That is convergence if there was nothing to be gained: if the
parabola through cost and slope at x and the cost at a trial that failed,

    phi(t) = F + s t + k t^2 / 2,    k = 2 (F(x + p) - F - s),    s = g.p,                (4)

has its minimum s^2 / 2k below the rounding of F, for each of the trials since the last step that
gained more than this, of those at least whose parabola tells where its minimum is (F has risen by
more than its rounding, and -s / k >= 0.1).
A wrong derivative, a kink or noise in f promise more, at the longest of those trials at the latest:
status -4, stalled. A kink next to x may have let no trial promise more than rounding. There the
gradient turns about at once, so one evaluation more looks at it where the last trial was; and it
is not small: what F changes by, to first order, if all variables change by their own size is about
F, where at a minimum it goes down with the root of what is left to gain. If that is rounding,
nothing is left either.

Plateaus. A parameter that had an effect on f and has none at the end may have run away, along an
exponential's tail for one: status -5, the point is stationary just because it is far out. Or the
other parameters switched it off, as a height of 0 does with the position of a peak; or it has an
effect to second order only, as a in a^2 at 0. Then a small move of all parameters brings effects
back that are much larger than those at the end. So before a success is claimed with such a
parameter, one evaluation more is made at a point nearby, the `probe`.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ...linalg import evaluate_model, norm, safe_divide, safe_sqrt, solve_in_box, solve_upper
from ...problem.bounds import coleman_li
from ...problem.least_squares import LeastSquaresProblem
from ...results import least_squares as codes
from .state import State

SHRINK = 0.9  # a polishing step must be this much shorter than one of the two before
NEAR = 0.1  # of a trial step: from there on a parabola tells where it is lowest
NOISE = 8  # times epsilon: by so much a cost may be wrong
LEFT_OUT = 0.01  # part of f that need not be rounding where all the rest is
PLATEAU, KINK = 1, 2  # what a probe looks for
HIDDEN = 5  # pending where all that is left to gain is hidden in the rounding of f
SMOOTH = 30  # times the geometric mean of F and its rounding: reach at a smooth minimum
UNMOVED = 16  # times the rounding of F: reach where nothing is left to gain
SHORT = 0.2  # step relative to x: longer ones are on the way to x = 0
FAR, ORTHOGONAL = 1 / 8, 1 / 3  # powers of eps: cosines between f and J that are not, and are, 0
MARGIN = 0.1  # error that may be left in x, relative to the tolerance


class Prediction(eqx.Module):
    """What undamped Gauss-Newton promises from the current point, within the bounds."""

    step: Array  # (n,) the Gauss-Newton step, to the minimiser of the model in the box
    x: Array  # (n,) where it leads
    factor: Array  # (n, n) R of the columns that are free there
    size: Array  # () largest |dx_j| / |x_j|
    left: Array  # () the same for all the steps that are still to come, by their rate so far
    gain: Array  # () by what F falls with it; inf if it is not known
    offset: Array  # () the relative offset (1), bounds included
    cosine: Array  # () largest between f and a free column of J
    steepest: Array  # () the same with the curvature of f in the length of the column
    reach: Array  # () by what F changes, to first order, if all x_j change by |x_j|
    nothing: Array  # () bool: f is rounding, or 0
    small: Array  # () bool: f is nearly so
    noise: Array  # () of the cost


def predict(problem: LeastSquaresProblem, before: State, state: State) -> Prediction:
    """The prediction from ``state.x``, where the trial of ``before`` led."""
    model, x, fnorm = state.model, state.x, state.fnorm
    upper, qtf, columns = model.upper, model.qtf, model.columns
    slope = jnp.where(columns > 0, jnp.abs(model.grad), 0)  # of the parameters with an effect
    room = jnp.finfo(x.dtype).max  # of a variable on the way down its slope
    if problem.bounded:
        distance, side = coleman_li(x, model.grad, problem.lower, problem.upper)
        room = jnp.where(side == 0, room, distance)
        low, high = problem.lower - x, problem.upper - x
        # A guess: on its bound if the minimiser along this variable alone lies beyond.
        active = (side != 0) & (slope >= room * columns)
        start = jnp.where(active, jnp.where(side < 0, high, low), 0)
        step, factor, found = solve_in_box(upper, qtf, low, high, start)
        goal = jnp.where(step <= low, problem.lower, x + step)
        goal = jnp.where(step >= high, problem.upper, goal)
        gain = jnp.where(found, jnp.maximum(evaluate_model(upper, qtf, step), 0), jnp.inf)
    else:
        step, factor = -solve_upper(upper, qtf), upper
        goal, gain = x + step, 0.5 * (qtf @ qtf)
    size = jnp.max(safe_divide(jnp.abs(goal - x), jnp.maximum(jnp.abs(x), jnp.abs(goal))))
    free = (before.pending > 0) | ~before.trial.limited
    # Over two steps as well: with w they do not shrink evenly.
    rate = safe_divide(size, before.size)
    rate = jnp.maximum(rate, safe_sqrt(safe_divide(size, before.last_size)))
    rate = jnp.where(free, rate, 0)

    # f is known to eps |J| |x|, row by row: an entry of J that is huge, beside a root at its zero
    # for one, does not speak for the other residuals.
    eps, f = problem.precision, jnp.abs(state.f) / state.unit
    scatter = jnp.abs(x) @ jnp.abs(model.rows)
    pull = fnorm  # norm of the derivative of F by f
    if not problem.loss.is_linear:
        weight, f_weight = problem.loss.weights(state.f)
        scatter = safe_divide(scatter, weight)
        pull = norm(f * weight * f_weight)

    def rounding(level: float) -> Array:
        return norm(jnp.minimum(level * scatter, f))

    def is_rounding(level: float) -> Array:
        return norm(f) <= (1 + LEFT_OUT) * rounding(2 * level)

    def steepest(lengths: Array) -> Array:
        # Root of twice what the best of the variables gains alone, as far as its bound.
        whole = safe_divide(slope, lengths)
        as_far = jnp.minimum(whole, room * lengths)
        return safe_divide(safe_sqrt(jnp.max((2 * whole - as_far) * as_far)), fnorm)

    return Prediction(
        step=step,
        x=goal,
        factor=factor,
        size=size,
        left=jnp.where(rate < 1, size / (1 - jnp.minimum(rate, 0.99)), jnp.inf),
        gain=jnp.asarray(gain),
        offset=safe_divide(safe_sqrt(2 * gain), fnorm),
        cosine=steepest(model.lengths),
        steepest=steepest(safe_sqrt(columns)),
        # At x_j = 0 nothing is known of the size of x_j.
        reach=jnp.where(jnp.any((x == 0) & (slope > 0)), jnp.inf, slope @ jnp.abs(x)),
        nothing=is_rounding(eps),
        small=is_rounding(eps ** (2 / 3)),
        noise=NOISE * (eps * fnorm * fnorm + pull * rounding(eps)),
    )


def possible_reduction(
    before: State, prediction: Prediction, accepted: Array, reduction: Array, known: Array
) -> Array:
    """(4): the most that failed trials since the last significant step leave to be gained.

    Infinite if none of them was near enough to say so. ``known``: whether the trial of
    ``before`` failed in a way that tells, by its ``reduction``, how f curves along it.
    """
    noise = prediction.noise
    slope = before.model.grad @ (before.trial.x - before.x)
    rise = -reduction
    curvature = 2 * (rise - slope)
    # A parabola through a trial far beyond its lowest point says nothing of that point; nor does
    # one that is flat to rounding, as all are on a plateau.
    near = -slope >= NEAR * curvature
    gain = 0.5 * safe_divide(slope**2, curvature)
    failed = ~accepted & (before.nfev > 0) & (before.pending == 0) & ~before.trial.corrected
    tells = failed & known & (slope < 0) & near & (rise > noise)
    hope = jnp.where(jnp.isfinite(before.hope), jnp.maximum(before.hope, gain), gain)
    hope = jnp.where(tells, hope, before.hope)
    significant = accepted & (reduction > noise)
    return jnp.where(significant, jnp.inf, hope)


class Tolerances(eqx.Module):
    """Those of a solve, all relative."""

    ftol: Any
    xtol: Any
    gtol: Any
    eps: float  # of the coarser of the dtypes of x and f

    @property
    def loosest(self) -> Array:
        """The largest of them."""
        return jnp.maximum(jnp.maximum(self.ftol, self.xtol), jnp.maximum(self.gtol, self.eps))


def judge(
    tolerances: Tolerances,
    before: State,
    state: State,
    prediction: Prediction,
    accepted: Array,
    ratio: Array,
    spent: Array,
) -> tuple[Array, Array, Array]:
    """Status, the status that waits for the last phase to end, and whether a kink may be near.

    ``accepted``, ``ratio``: what became of the trial of ``before``; ``spent``: whether the
    evaluations are.
    """
    met = _test_met(tolerances, before, state, prediction, accepted, ratio)
    pending = jnp.where(before.pending > 0, before.pending, met).astype(jnp.int32)
    over = _last_phase_over(tolerances, before, prediction, accepted) | spent
    early = _too_early(tolerances, state, prediction, pending) | (
        (pending == codes.GTOL)
        & (prediction.gain > tolerances.ftol * state.cost)
        & accepted
        & (before.cost - state.cost > tolerances.ftol * before.cost)
        & (before.nfev > 0)
    )
    stuck = _stuck(tolerances, before, state, accepted)
    sure = _nothing_to_gain(tolerances, state, prediction)
    done = sure | _values_promise_nothing(state, prediction)
    stalled = jnp.where(stuck, jnp.where(done, codes.XTOL, codes.STALLED), codes.RUNNING)
    reached = jnp.where(pending == HIDDEN, codes.XTOL, pending)
    status = jnp.where((pending > 0) & over & ~early, reached, stalled).astype(jnp.int32)
    return status, jnp.where(over & early, codes.RUNNING, pending), stuck & ~sure


def _test_met(
    tolerances: Tolerances,
    before: State,
    state: State,
    prediction: Prediction,
    accepted: Array,
    ratio: Array,
) -> Array:
    """The status of the test that is met, if any, and that opens the last phase."""
    eps, trial = tolerances.eps, before.trial
    stepped = accepted & (before.nfev > 0)
    # Where w is in R the offset is not that of (1), and a w from a kink would hide the gradient.
    plain = jnp.all(state.model.secant == 0)
    flat = jnp.minimum(jnp.where(plain, prediction.offset, jnp.inf), prediction.cosine)
    gtol = (flat <= jnp.maximum(tolerances.gtol, eps)) | prediction.nothing  # (1)

    # What one variable could still gain is below ftol, and all together not far above.
    little = (prediction.cosine**2 <= tolerances.ftol) & (
        prediction.offset**2 <= 100 * tolerances.ftol
    )
    little_of_cost = jnp.maximum(tolerances.ftol * before.cost, prediction.noise)
    gained = jnp.maximum(before.cost - state.cost, trial.predicted)
    whole = ~trial.limited & (prediction.gain <= jnp.maximum(gained, little_of_cost))
    believed = stepped & (ratio > 0.25) & (whole | little)
    ftol = believed & (gained <= tolerances.ftol * before.cost)  # (2)
    xtol = stepped & whole & (trial.length <= tolerances.xtol * _whole(state))  # (3)

    # What is left to gain is below the rounding of x, or of the cost.
    exhausted = (flat**2 <= eps) | (prediction.size <= eps)
    hidden = 0.5 * (flat * state.fnorm) ** 2 <= prediction.noise
    none = jnp.where(exhausted, codes.XTOL, jnp.where(hidden, HIDDEN, codes.RUNNING))
    met = jnp.where(ftol, jnp.where(xtol, codes.FTOL_AND_XTOL, codes.FTOL), none)
    met = jnp.where(xtol & ~ftol, codes.XTOL, met)
    return jnp.where(gtol, codes.GTOL, met)


def _whole(state: State) -> Array:
    """||D x||."""
    return norm(state.x / state.scale)


def _last_phase_over(
    tolerances: Tolerances, before: State, prediction: Prediction, accepted: Array
) -> Array:
    """x is right to the tolerance, or the steps shrink no more."""
    longer = jnp.maximum(before.size, before.last_size)
    shrinks = accepted & (prediction.size <= SHRINK * longer)
    right = prediction.left <= MARGIN * tolerances.loosest
    return right | ((before.pending > 0) & ~shrinks) | prediction.nothing


def _too_early(
    tolerances: Tolerances, state: State, prediction: Prediction, pending: Array
) -> Array:
    """The last phase is over, but was opened too early.

    f is still far from orthogonal to J: beside a huge variable without influence, or with huge ones
    whose difference counts, every step is short. On the way to x = 0 none is. Or, where values do
    not tell any more, steps do not shrink to nothing.
    """
    eps = tolerances.eps
    short = (prediction.left > NOISE * eps) & (prediction.size < SHORT)
    far = short & (prediction.steepest > eps**FAR) & ~prediction.small
    known = prediction.nothing | _values_promise_nothing(state, prediction)
    lasts = prediction.left > MARGIN * tolerances.loosest
    return far | ((pending == HIDDEN) & ~known & lasts)


def _stuck(tolerances: Tolerances, before: State, state: State, accepted: Array) -> Array:
    """A trial failed whose step cannot be much shorter; also one that is not finite."""
    least = jnp.maximum(tolerances.xtol, tolerances.eps) * _whole(state)
    too_short = ~(before.trial.length > least)
    return too_short & ~(accepted | (before.nfev == 0) | (before.pending > 0))


def _nothing_to_gain(tolerances: Tolerances, state: State, prediction: Prediction) -> Array:
    """f is orthogonal to J, or nearly rounding; or no variable matters any more."""
    orthogonal = prediction.steepest <= tolerances.eps**ORTHOGONAL
    # Of a start on a plateau that says nothing.
    unmoved = (prediction.reach <= UNMOVED * prediction.noise) & (state.nit > 0)
    return orthogonal | prediction.small | unmoved


def _values_promise_nothing(state: State, prediction: Prediction) -> Array:
    """By the parabolas (4), at what may be a smooth minimum."""
    smooth = prediction.reach <= SMOOTH * safe_sqrt(prediction.noise * state.cost)
    return (state.hope <= prediction.noise) & smooth


def verify(
    problem: LeastSquaresProblem,
    before: State,
    state: State,
    prediction: Prediction,
    status: Array,
    pending: Array,
    doubtful: Array,
    passed: Array,
) -> tuple[Array, Array, Array]:
    """Status, what waits, and what the next trial is to look for, if anything.

    ``doubtful``: whether a kink may be near; ``passed``: what the last trial found if it was there
    to look for something.
    """
    dead = jnp.any(_dead(problem, state)) & ~prediction.nothing
    wanted = jnp.where(dead, PLATEAU, jnp.where(doubtful, KINK, 0)).astype(jnp.int32)
    looking = before.probing > 0
    probing = jnp.where((status > 0) & ~looking, wanted, 0)
    failed = jnp.where(before.probing == KINK, codes.STALLED, codes.PLATEAU)
    found = jnp.where(passed, before.pending, failed)
    pending = jnp.where(probing > 0, status, pending)
    status = jnp.where(looking, found, jnp.where(probing > 0, codes.RUNNING, status))
    return status, pending.astype(jnp.int32), probing


def without_effect(
    problem: LeastSquaresProblem, lengths: Array, secant: Array, longest: Array, cost: Array
) -> Array:
    """Parameters whose columns, which have been ``longest``, are nothing now, w included."""
    # Effects are compared with f, which may have fallen by as much as they; in its unit f was
    # of the size of 1 when that was taken.
    least = problem.precision * jnp.minimum(safe_sqrt(2 * cost), 1)
    return jnp.maximum(lengths, jnp.abs(secant)) <= least * longest


def _dead(problem: LeastSquaresProblem, state: State) -> Array:
    """Parameters that had an effect on f and have none any more, while others have."""
    model = state.model
    dead = without_effect(problem, model.lengths, model.secant, state.lengths, state.cost)
    dead = dead & (state.lengths > 0)
    if problem.bounded:
        dead = dead & (state.x > problem.lower) & (state.x < problem.upper)
    return dead & ~jnp.all(dead)


def probe(problem: LeastSquaresProblem, before: State, state: State, kind: Array) -> Array:
    """Where to look: for a kink, at the last trial; for a plateau, at a point nearby.

    There each parameter is moved by a small part of what moves f by its own size.
    """
    part = problem.precision**0.25 * safe_divide(state.fnorm, state.lengths)
    if problem.bounded:
        part = jnp.where(state.x + part <= problem.upper, part, -part)
        nearby = jnp.clip(state.x + part, problem.lower, problem.upper)
    else:
        nearby = state.x + part
    return jnp.where(kind == KINK, before.trial.x, nearby)


def passes(problem: LeastSquaresProblem, state: State, lengths: Array, grad: Array) -> Array:
    """Whether a probe, with columns of these lengths and this gradient, confirms the success."""
    step = state.trial.x - state.x
    turned = grad @ step > 0.5 * jnp.abs(state.model.grad @ step)
    return jnp.where(state.probing == KINK, ~turned, revives(problem, state, lengths))


def revives(problem: LeastSquaresProblem, state: State, lengths: Array) -> Array:
    """Whether columns of these lengths have the effects that are missing at ``state.x``."""
    least = problem.precision ** (-1 / 8) * state.model.lengths
    return jnp.all(~_dead(problem, state) | (lengths > least))
