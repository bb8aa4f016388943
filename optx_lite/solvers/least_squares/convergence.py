r"""When a trust-region solver has arrived.

R, q are the triangular factor and Q^T f of the weighted Jacobian, with the row w of `model` in
it, restricted to the free variables, and p = -R^{-1} q is the Gauss-Newton step.

    gtol   ||q|| <= gtol ||f||                                                      (1)
    ftol   dF <= ftol F, both as it was and as the model said, with 1/4 < ratio     (2)
    xtol   ||D dx|| <= xtol ||D x||                                                 (3)

(1) is the relative offset of Bates & Watts ("A relative offset orthogonality convergence
criterion for nonlinear least squares", Technometrics 23, 1981): the cosine of the angle
between f and the tangent plane. Where J is nearly singular that plane holds directions which
lead nowhere, and MINPACK's measure counts instead: the largest cosine between f and a single
column. With a robust loss a few heavy rows may make all columns nearly parallel and all cosines
small, so the offset counts as long as the plane is known. SciPy compares ||g||_inf with gtol,
which is met anywhere if f is small enough; here that sets only the status code of a solve that
has ended.

A step is not small because it was kept small. So (2) and (3) count only for a step which the trust
region did not cut short, and after which Gauss-Newton promises no more than the step gained, or
than ftol F: a diagonal in the model, the scaling, or a set of active bounds may have shortened it
as well. (2) counts also if the square of the largest cosine, what one variable alone could still
gain, is below ftol, and what all gain together not far above.

The polish. dF < 1e-8 F leaves an error of 1e-4 in x, and a Gauss-Newton iteration that is
within its domain of convergence gains ten further digits with a handful of evaluations. So a
test that is met only opens the last phase: undamped steps p on the free variables, with the
active ones put on their bounds exactly, for as long as they shrink, the cost does not rise
above its rounding, and p is not yet below the tolerance relative to x. The last phase ends
with the status that opened it. It does not while F still falls by more than ftol F in a step, as
the model says, if the cosines of (1) opened it: far out in a valley they are all small.

Nothing left. Near a minimum where the cost is flat, or noisy by rounding, no step reduces it any
more, and the radius collapses. That is convergence if there was nothing to be gained: if the
parabola through cost and slope at x and the cost at a trial that failed,

    phi(t) = F + s t + k t^2 / 2,    k = 2 (F(x + p) - F - s),    s = g.p,                (4)

has its minimum s^2 / 2k below the rounding of F, for each of the trials since the last step that
gained more than this, of those at least whose parabola has its minimum near (F has risen by
more than its rounding, and -s / k >= 0.1).
A wrong derivative, a kink or noise in f promise more, at the longest of those trials at the latest:
status -4, stalled. A kink next to x may have let no trial promise more than rounding. There the
gradient turns about at once, so one evaluation more looks at it where the last trial was; and it
is not small: what F changes by, to first order, if all variables change by their own size is about
F, where at a minimum it goes down with the root of what is left to gain. If that is rounding,
nothing is left either.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...jax_support.types import Number
from ...linalg import norm, safe_divide, safe_sqrt
from ...results import least_squares as codes
from .prediction import NOISE, Prediction
from .state import State

AGREES = 0.25  # least ratio of a step by which (2) may be judged: the model held there
NOT_FAR_ABOVE = 100  # times ftol F: gain of all variables together where one alone gains ftol F
SHRINK = 0.9  # a polishing step must be this much shorter than one of the two before
NEAR = 0.1  # of a trial step: from there on a parabola shows where it is lowest
HIDDEN = 5  # pending where all that is left to gain is hidden in the rounding of f
SMOOTH = 30  # times the geometric mean of F and its rounding: reach at a smooth minimum
UNMOVED = 16  # times the rounding of F: reach where nothing is left to gain
SHORT = 0.2  # step relative to x: longer ones are on the way to x = 0
FAR, ORTHOGONAL = 1 / 8, 1 / 3  # powers of eps: cosines between f and J that are not, and are, 0
VANISHES = 0.5  # part of F: a model that promises more says that f goes to 0
MARGIN = 0.1  # error that may be left in x, relative to the tolerance


class Tolerances(eqx.Module):
    """Those of a solve, all relative."""

    ftol: Number
    xtol: Number
    gtol: Number
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
    accepted: Bool[Array, ""],
    ratio: Float[Array, ""],
    spent: Bool[Array, ""],
) -> tuple[Array, Array, Array]:
    """Status, the status that waits for the last phase to end, and whether a kink may be near.

    ``accepted``, ``ratio``: what became of the trial of ``before``; ``spent``: whether the
    evaluations are.
    """
    whole = norm(state.x / state.scale)
    reduction = before.cost - state.cost
    polishing = before.pending > 0
    flat, offset = _flatness(state, prediction, tolerances.eps)
    met = _status(
        (flat <= jnp.maximum(tolerances.gtol, tolerances.eps)) | prediction.nothing,
        *_of_step(tolerances, before, prediction, accepted, ratio, reduction, whole),
        exhausted=(flat**2 <= tolerances.eps) | (prediction.size <= tolerances.eps),
        hidden=0.5 * (flat * state.fnorm) ** 2 <= prediction.noise,
    )
    pending = jnp.where(polishing, before.pending, met).astype(jnp.int32)
    noise = prediction.noise
    promises_nothing = _is_smooth(prediction, state.cost) & (state.possible <= noise)
    # Values that rise speak of the directions in which they were asked for, R of all.
    little = prediction.newton.gain <= noise
    promises_nothing &= (offset == 0) | little

    falls = accepted & (before.nfev > 0) & (reduction > tolerances.ftol * before.cost)
    early = _is_far(prediction, tolerances.eps)
    early |= (pending == codes.GTOL) & _descends(prediction, tolerances.ftol, state.cost, falls)
    early |= (pending == HIDDEN) & _lasts(prediction, tolerances) & ~(promises_nothing & little)
    over = _is_right(prediction, tolerances) | spent
    over |= polishing & ~(accepted & _shrinks(prediction.size, before.size, before.last_size))
    reached = jnp.where(pending == HIDDEN, codes.XTOL, pending)

    failed = ~(accepted | (before.nfev == 0) | polishing)
    stuck = failed & _collapsed(before.trial.length, tolerances, whole)
    sure = _nothing_to_gain(prediction, offset, tolerances.eps, state.nit)
    done = sure | promises_nothing
    stalled = jnp.where(stuck, jnp.where(done, codes.XTOL, codes.STALLED), codes.RUNNING)
    status = jnp.where((pending > 0) & over & ~early, reached, stalled).astype(jnp.int32)
    return status, jnp.where(over & early, codes.RUNNING, pending), stuck & ~sure


def _flatness(
    state: State, prediction: Prediction, eps: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The measure of (1) that counts, and the offset by a robust loss where known, 0 elsewhere."""
    # Where w is in R the offset is not that of (1), and a w from a kink would hide the gradient.
    plain = jnp.all(state.model.secant == 0)
    smaller = jnp.minimum(jnp.where(plain, prediction.offset, jnp.inf), prediction.cosine)
    # A direction in the plane is known to the rounding of J divided by its pivot.
    known = plain & (prediction.by_loss * jnp.min(state.model.pivots()) > NOISE * eps)
    offset = jnp.where(known, prediction.by_loss, 0)
    return jnp.where(known, offset, smaller), offset


def _of_step(
    tolerances: Tolerances,
    before: State,
    prediction: Prediction,
    accepted: Array,
    ratio: Array,
    reduction: Array,
    whole: Array,
) -> tuple[Array, Array]:
    """Whether (2) and (3) are met by the trial of ``before``, ``whole`` being ||D x||."""
    trial, ftol = before.trial, tolerances.ftol
    stepped = accepted & (before.nfev > 0)
    gained = jnp.maximum(reduction, trial.predicted)
    least = jnp.maximum(ftol * before.cost, prediction.noise)
    unshortened = ~trial.limited & (prediction.newton.gain <= jnp.maximum(gained, least))
    little = (prediction.cosine**2 <= ftol) & (prediction.offset**2 <= NOT_FAR_ABOVE * ftol)
    by_cost = (gained <= ftol * before.cost) & (ratio > AGREES) & (unshortened | little)
    by_step = (trial.length <= tolerances.xtol * whole) & unshortened
    return stepped & by_cost, stepped & by_step


def _status(gtol: Array, ftol: Array, xtol: Array, exhausted: Array, hidden: Array) -> Array:
    """The status of the tests that are met.

    ``exhausted``, ``hidden``: what is left to gain is below the rounding of x, or of the cost.
    """
    none = jnp.where(exhausted, codes.XTOL, jnp.where(hidden, HIDDEN, codes.RUNNING))
    met = jnp.where(ftol, jnp.where(xtol, codes.FTOL_AND_XTOL, codes.FTOL), none)
    met = jnp.where(xtol & ~ftol, codes.XTOL, met)
    return jnp.where(gtol, codes.GTOL, met)


def _shrinks(
    size: Float[Array, ""], last: Float[Array, ""], one_before: Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether the steps of the last phase become shorter."""
    return size <= SHRINK * jnp.maximum(last, one_before)


def _is_right(prediction: Prediction, tolerances: Tolerances) -> Bool[Array, ""]:
    """Whether x is right to the tolerance, or f is rounding."""
    return (prediction.left <= MARGIN * tolerances.loosest) | prediction.nothing


def _lasts(prediction: Prediction, tolerances: Tolerances) -> Bool[Array, ""]:
    """Whether steps are still to come which the tolerance does not allow to leave out."""
    return (prediction.left > MARGIN * tolerances.loosest) & ~prediction.nothing


def _is_far(prediction: Prediction, eps: float) -> Bool[Array, ""]:
    """Whether f is far from orthogonal to J, though steps are short.

    Beside a huge variable without influence, or with huge ones whose difference counts, every step
    is short. On the way to x = 0 none is.
    """
    short = (prediction.left > NOISE * eps) & (prediction.size < SHORT)
    return short & (prediction.steepest > eps**FAR) & ~prediction.small


def _descends(
    prediction: Prediction, ftol: Number, cost: Float[Array, ""], falls: Bool[Array, ""]
) -> Bool[Array, ""]:
    """Whether the cost falls by more than ftol F in a step, and will by the model."""
    gain = prediction.newton.gain
    # On the way to f = 0, where the model promises all of it, F falls by a part for ever.
    return falls & (gain > ftol * cost) & (gain < VANISHES * cost)


def _collapsed(
    length: Float[Array, ""], tolerances: Tolerances, whole: Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether a step that failed cannot be much shorter; also one that is not finite."""
    return ~(length > jnp.maximum(tolerances.xtol, tolerances.eps) * whole)


def _nothing_to_gain(prediction: Prediction, offset: Array, eps: float, nit: Array) -> Array:
    """f is orthogonal to J, or nearly rounding; or no variable matters any more."""
    orthogonal = jnp.maximum(prediction.steepest, offset) <= eps**ORTHOGONAL
    # Of a start on a plateau that says nothing.
    unmoved = (prediction.reach <= UNMOVED * prediction.noise) & (nit > 0)
    return orthogonal | prediction.small | unmoved


def _is_smooth(prediction: Prediction, cost: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether this may be a smooth minimum, where the values (4) say what is left."""
    return prediction.reach <= SMOOTH * safe_sqrt(prediction.noise * cost)


def possible_reduction(
    before: State,
    noise: Float[Array, ""],
    accepted: Bool[Array, ""],
    reduction: Float[Array, ""],
    usable: Array,
) -> Float[Array, ""]:
    """(4): the most that failed trials since the last significant step leave to be gained.

    Infinite if none of them was near enough to say so. ``usable``: whether the trial of
    ``before`` failed in a way that shows, by its ``reduction``, how f curves along it.
    """
    slope = before.model.gradient @ (before.trial.x - before.x)
    rise = -reduction
    curvature = 2 * (rise - slope)
    # A parabola through a trial far beyond its lowest point says nothing of that point; nor does
    # one that is flat to rounding, as all are on a plateau.
    near = -slope >= NEAR * curvature
    gain = 0.5 * safe_divide(slope**2, curvature)
    failed = ~accepted & (before.nfev > 0) & (before.pending == 0) & ~before.trial.corrected
    counts = failed & usable & (slope < 0) & near & (rise > noise)
    largest = jnp.where(jnp.isfinite(before.possible), jnp.maximum(before.possible, gain), gain)
    possible = jnp.where(counts, largest, before.possible)
    significant = accepted & (reduction > noise)
    return jnp.where(significant, jnp.inf, possible)
