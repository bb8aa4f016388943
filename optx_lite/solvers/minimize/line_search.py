"""The line search of Moré and Thuente, one evaluation a call.

J. J. Moré, D. J. Thuente, "Line search algorithms with guaranteed sufficient decrease", ACM
TOMS 20 (1994). Along phi(t) = f(x + t d), phi'(0) < 0, it finds a step with

    phi(t) <= phi(0) + mu t phi'(0),        |phi'(t)| <= eta |phi'(0)|               (1.1), (1.2)

An interval between t_l, the best step so far, and t_u holds such a step from the moment on
when the interval is closed. Until psi(t) = phi(t) - phi(0) - mu t phi'(0) has been seen with
psi(t) <= 0 and phi'(t) >= 0 (the first stage) the interval is updated by psi, after that by phi.

Different from MINPACK-2's ``dcsrch``:

- Where phi(t) - phi(0) is no more than the rounding of the two values, it says nothing, and a
  search by values fails just before the minimum, in single precision at 1e-4 of it. If phi'(0)
  promises no more for the step 1 than a hundred times that, the difference is taken from the
  slopes, t (phi'(0) + phi'(t)) / 2, right to third order, and (1.1) becomes the approximate
  Wolfe condition of Hager & Zhang (SIAM J. Optim. 16, 2005). If it promises more, the slope is
  not relied on: it may belong to a wrong gradient.
- A value that is not finite cuts the step to a quarter of the way from the best one, in later
  trials to ever smaller parts of it, and nothing beyond is tried again.
- A first step may be too long by any factor, where x0 = 0 and so no size of x is known. Then the
  cubic's minimum may be lost in rounding, beside the other end, and the quadratic's counts; and
  where the two, after `PATIENT` trials, or the ends of an interval differ by more than `WIDE`, that
  is halved on the scale of logarithms.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...linalg import safe_divide, safe_sqrt

MU, ETA, XTOL = 1e-3, 0.9, 0.1  # as in L-BFGS-B
NOISE = 8  # times epsilon and |phi|: what a value may be wrong by
DOUBT = 100  # times that: a slope that promises no more may be right though no value shows it
SHRINK = 0.25  # of a step to a point where the function is not finite
PATIENT = 6  # trials before a step is taken to be too long by orders of magnitude
WIDE = 1e12  # ratio of two steps; to come so far by a sixth at a time takes 15 trials
LOST = 64  # times epsilon and the interval: a cubic's minimum so close to its end is not known


class Knot(eqx.Module):
    """A step with what was found there."""

    step: Float[Array, ""]
    value: Float[Array, ""]
    slope: Float[Array, ""]

    def tilted(self, slope: Array) -> Knot:
        """The same of phi(t) - slope * t."""
        return Knot(self.step, self.value - slope * self.step, self.slope - slope)


class LineSearch(eqx.Module):
    """The search between two evaluations."""

    step: Float[Array, ""]  # to be evaluated
    start: Knot  # at 0
    best: Knot  # t_l
    other: Knot  # t_u
    low: Float[Array, ""]  # steps may lie from here
    high: Float[Array, ""]  # to here
    width: Float[Array, ""]  # of the interval, and
    last_width: Float[Array, ""]  # one update ago
    closed: Bool[Array, ""]  # t_l and t_u have an acceptable step between them
    second_stage: Bool[Array, ""]
    longest: Float[Array, ""]  # no step is longer
    trials: Int[Array, ""]  # evaluations so far


def begin(
    value: Float[Array, ""],
    slope: Float[Array, ""],
    step: Float[Array, ""],
    longest: Float[Array, ""],
) -> LineSearch:
    """A search from ``value`` and ``slope`` < 0, with ``step`` <= ``longest`` as the first."""
    start = Knot(jnp.zeros_like(value), value, slope)
    no, none = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    return LineSearch(
        step=step, start=start, best=start, other=start, low=jnp.zeros_like(value),
        high=5 * step, width=longest, last_width=2 * longest, closed=no, second_stage=no,
        longest=longest, trials=none,
    )  # fmt: skip


def advance(
    search: LineSearch, value: Float[Array, ""], slope: Float[Array, ""]
) -> tuple[Array, LineSearch]:
    """Whether ``search.step`` will do, and the search with the next step to be evaluated."""
    finite = jnp.isfinite(value) & jnp.isfinite(slope)
    trial = Knot(search.step, jnp.where(finite, value, 0), jnp.where(finite, slope, 0))
    trial = eqx.tree_at(lambda t: t.value, trial, _above_the_noise(search, trial))
    decrease = MU * search.start.slope
    enough = trial.value <= search.start.value + decrease * trial.step  # (1.1)
    flat = jnp.abs(trial.slope) <= ETA * jnp.abs(search.start.slope)  # (1.2)
    narrow = search.high - search.low <= XTOL * search.high
    outside = (trial.step <= search.low) | (trial.step >= search.high)
    exhausted = search.closed & (narrow | outside)
    at_end = (trial.step == search.longest) & enough & (trial.slope <= decrease)
    done = finite & ((enough & flat) | exhausted | at_end)
    second_stage = search.second_stage | (enough & (trial.slope >= 0))
    search = eqx.tree_at(
        lambda s: (s.second_stage, s.trials), search, (second_stage, search.trials + 1)
    )
    by_psi = ~second_stage & (trial.value <= search.best.value) & ~enough
    narrowed = _narrow(search, trial, jnp.where(by_psi, decrease, 0))
    return done, _choose(finite, narrowed, _shorten(search))


def _choose(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def is_gain(search: LineSearch, value: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether ``value`` is a gain over the start that the slope there does not belie."""
    noise = _noise(search.start, value)
    return (value < search.start.value - noise) | (jnp.abs(search.start.slope) <= DOUBT * noise)


def _noise(start: Knot, value: Float[Array, ""]) -> Float[Array, ""]:
    """The rounding of the difference of two values."""
    size = jnp.maximum(jnp.abs(start.value), jnp.abs(value))
    info = jnp.finfo(size.dtype)
    return NOISE * (info.eps * size + info.smallest_normal)


def _above_the_noise(search: LineSearch, trial: Knot) -> Array:
    """The trial's value, from the slopes where the values' difference is only rounding."""
    start = search.start
    noise = _noise(start, trial.value)
    lost = (jnp.abs(trial.value - start.value) <= noise) & (jnp.abs(start.slope) <= DOUBT * noise)
    by_slopes = start.value + 0.5 * trial.step * (start.slope + trial.slope)
    return jnp.where(lost, by_slopes, trial.value)


def _shorten(search: LineSearch) -> LineSearch:
    """After a value that is not finite."""
    part = SHRINK ** jnp.maximum(search.trials - PATIENT, 1).astype(search.step.dtype)
    step = search.best.step + part * (search.step - search.best.step)
    return eqx.tree_at(
        lambda s: (s.step, s.high, s.longest), search, (step, search.step, search.step)
    )


def _narrow(search: LineSearch, trial: Knot, tilt: Array) -> LineSearch:
    """Update the interval by phi(t) - ``tilt`` t, and choose the next step in it."""
    best, other = search.best.tilted(tilt), search.other.tilted(tilt)
    step = lax.optimization_barrier(_interpolate(best, other, trial.tilted(tilt), search))
    worse = trial.tilted(tilt).value > best.value
    turned = ~worse & ((trial.slope - tilt) * best.slope < 0)
    closed = search.closed | worse | turned
    other = _choose(worse, trial, _choose(turned, search.best, search.other))
    best = _choose(worse, search.best, trial)

    # Closed: bisect if two updates have not made a third of it vanish. Open: go on outward.
    width = jnp.abs(other.step - best.step)
    slow = width >= 0.66 * search.last_width
    halved = slow | _are_far_apart(best.step, other.step)
    step = jnp.where(closed & halved, _halfway(best.step, other.step), step)
    ends = jnp.minimum(best.step, other.step), jnp.maximum(best.step, other.step)
    low = jnp.where(closed, ends[0], step + 1.1 * (step - best.step))
    high = jnp.where(closed, ends[1], step + 4 * (step - best.step))
    step = jnp.clip(step, 0, search.longest)
    stuck = closed & ((step <= low) | (step >= high) | (high - low <= XTOL * high))
    return LineSearch(
        step=jnp.where(stuck, best.step, step),
        start=search.start,
        best=best,
        other=other,
        low=low,
        high=high,
        width=jnp.where(closed, width, search.width),
        last_width=jnp.where(closed, search.width, search.last_width),
        closed=closed,
        second_stage=search.second_stage,
        longest=search.longest,
        trials=search.trials,
    )


def _are_far_apart(a: Float[Array, ""], b: Float[Array, ""]) -> Bool[Array, ""]:
    """Two steps >= 0, of which neither is 0, in orders of magnitude."""
    near = jnp.minimum(a, b)
    return (near > 0) & (jnp.maximum(a, b) > WIDE * near)


def _halfway(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, ""]:
    """Between two steps, on the scale of logarithms if they are far apart."""
    return jnp.where(_are_far_apart(a, b), safe_sqrt(a) * safe_sqrt(b), a + 0.5 * (b - a))


def _interpolate(best: Knot, other: Knot, trial: Knot, search: LineSearch) -> Array:
    """The next step, by the four cases of the paper's section 4."""
    worse = trial.value > best.value
    turned = trial.slope * best.slope < 0
    flatter = jnp.abs(trial.slope) < jnp.abs(best.slope)
    ahead = trial.step > best.step

    # The minimum of the cubic through two knots, for three pairs at once.
    seen_from, through = _stack(best, trial, trial), _stack(trial, best, other)
    cubic, ratio = lax.optimization_barrier(_cubic(seen_from, through))
    from_best, from_trial, to_other = cubic

    # Case 1, a higher value: between the cubic's minimum and the quadratic's, nearer to best.
    gap = trial.step - best.step
    chord = safe_divide(best.value - trial.value, gap)
    quadratic = best.step + 0.5 * safe_divide(best.slope, chord + best.slope) * gap
    near = jnp.abs(from_best - best.step) <= jnp.abs(quadratic - best.step)
    between = jnp.where(near, from_best, from_best + 0.5 * (quadratic - from_best))
    to_quadratic, to_cubic = jnp.abs(quadratic - best.step), jnp.abs(from_best - best.step)
    middle = jnp.sign(gap) * safe_sqrt(to_quadratic) * safe_sqrt(to_cubic)
    apart = (to_cubic > WIDE * to_quadratic) & (search.trials > PATIENT)
    between = jnp.where(apart, best.step + middle, between)
    lost = jnp.abs(ratio[0]) <= LOST * jnp.finfo(ratio.dtype).eps
    between = jnp.where(lost, quadratic, between)

    # Case 2, a slope of the other sign: the cubic's or the secant's, whichever goes farther.
    secant = trial.step - safe_divide(trial.slope, trial.slope - best.slope) * gap
    farther = jnp.abs(from_trial - trial.step) > jnp.abs(secant - trial.step)
    across = jnp.where(farther, from_trial, secant)

    # Case 3, a flatter slope of the same sign: the cubic's minimum if it lies beyond the trial.
    # Closed: the nearer of the two, and no more than 0.66 of the way to the other end.
    limit = jnp.where(ahead, search.high, search.low)
    beyond = jnp.where(ratio[1] < 0, from_trial, limit)
    further = jnp.abs(beyond - trial.step) > jnp.abs(secant - trial.step)
    most = trial.step + 0.66 * (other.step - trial.step)
    nearer = jnp.where(further, secant, beyond)
    nearer = jnp.where(ahead, jnp.minimum(most, nearer), jnp.maximum(most, nearer))
    farthest = jnp.clip(jnp.where(further, beyond, secant), search.low, search.high)
    onward = jnp.where(search.closed, nearer, farthest)

    # Case 4, a steeper slope of the same sign: the cubic through the other end, or to the limit.
    steeper = jnp.where(search.closed, to_other, limit)
    return jnp.select([worse, turned, flatter], [between, across, onward], steeper)


def _stack(*knots: Knot) -> Knot:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *knots)


def _cubic(a: Knot, b: Knot) -> tuple[Array, Array]:
    """Minimum of the cubic through knots a and b, and where it lies: 0 at a, 1 at b.

    The second is 0 where the cubic has none.
    """
    ahead = b.step - a.step
    theta = 3 * safe_divide(a.value - b.value, ahead) + a.slope + b.slope
    s = jnp.maximum(jnp.maximum(jnp.abs(theta), jnp.abs(a.slope)), jnp.abs(b.slope))
    square = safe_divide(theta, s) ** 2 - safe_divide(a.slope, s) * safe_divide(b.slope, s)
    gamma = s * safe_sqrt(jnp.maximum(square, 0)) * jnp.sign(ahead)
    ratio = safe_divide(gamma - a.slope + theta, gamma - a.slope + gamma + b.slope)
    return a.step + ratio * ahead, jnp.where(gamma != 0, ratio, 0)
