r"""L-BFGS-B: a limited-memory quasi-Newton method in a box.

R. H. Byrd, P. Lu, J. Nocedal, C. Zhu, "A limited memory algorithm for bound constrained
optimization", SIAM J. Sci. Comput. 16 (1995); J. L. Morales, J. Nocedal, "Remark on Algorithm
778", ACM TOMS 38 (2011). An iteration, from x with gradient g and the matrix B of `bfgs_matrix`:

1. The generalized Cauchy point x^c decides which variables are held at bounds (`cauchy_point`).
2. The quadratic is minimised in the others, F, from there:

       x^ = x^c + Z B_F^-1 r,    r = -Z^T (g + B (x^c - x))                         (5.4)-(5.11)

   within the box (`subspace`).
3. A line search along d = x^ - x (`line_search`) gives the next x.
4. The pair s, y joins the memory if s.y > eps * |g.s|.

Without bounds 1 and 2 are one product with H = B^-1, see `limited_memory`. Every call of `step` is
one evaluation of f and its gradient; the trials of the line search are states.

Different from the original code:

- The first step is as long as the largest entry of x0, to a power of two, and 1 where x0 = 0, in a
  box too. So factors on f and on x do not change the path. Of both the solver has units, powers
  of two; the products that make the quadratic are formed in these.
- The end is decided by what the quadratic still promises, q = -g.d / 2: see `convergence`. Whether
  that is to be relied on the last search has shown, where the slope went from phi'(0) = g.d to
  phi'(t): the curvature along d was

      rho = (phi'(t) - phi'(0)) / (-t phi'(0))                                         (1)

  times what the quadratic said. Where rho < 1 it is too stiff, and q counts as q / rho.
- A search that has come to a lower point goes on from there, however it ended. One that gains no
  more than the rounding of f, where its slope promises a hundred times that, has failed, as one
  that finds nothing. The next one is begun without memory, with a step so short that it is a
  finite difference of the gradient: it shows the curvature along g, and whether f changes as g
  says. If g promises less than the rounding of f, that is the end, and so it is if such a search
  fails as well and g promises no more than the noise that f may have; else the result reports
  both slopes.
- Before a success is claimed where the gradient has not visibly gone to 0, one evaluation looks
  whether it is going to: at a kink it is not. Then the memory is of no use, and the search goes on
  as after a failure. Where there are more variables than pairs, d is not the Newton step, and some
  components of a smooth gradient do not grow by chance: so those count that grow in no look from
  this x, and only components that have not grown at `KINKS` looks are a kink.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...jax_support.control_flow import cond
from ...jax_support.types import Count
from ...jax_support.xla import computed_once, full_precision
from ...linalg import norm, reciprocal, safe_divide, unit_of
from ...linalg.inverse_hessian import LbfgsInvHessProduct
from ...problem.bounds import onto_bounds, step_to_bound
from ...problem.minimization import MinimizationProblem
from ...results.minimize import ALL_FIXED, FAILED, FTOL, GTOL, KINK, NONFINITE, RUNNING
from .base import AbstractMinimizer, BestSeen, status_of_bounds
from .convergence import rounding
from .limited_memory import Memory
from .line_search import DOUBT, NOISE, LineSearch, advance, begin, is_gain
from .look_back import (
    VANISHED,
    hides_a_variable,
    is_cut_short,
    is_small_part,
    look_back,
    stays,
)
from .subspace import subspace_minimum

LONGEST = 1e10  # times d, where no bound limits a step
KINKS = 2  # looks at which a component has not grown: then it has one
DEVIATION = 0.1  # of a change of f, from that of a quadratic
SHORT = 10.0  # times the root of epsilon and |x|: the step of a probe


class Line(eqx.Module):
    """What is searched, and where."""

    base: Float[Array, " n"]  # where the line search began
    grad: Float[Array, " n"]  # there
    direction: Float[Array, " n"]  # d
    trial: Float[Array, " n"]  # to be evaluated
    search: LineSearch
    unit_g: Float[Array, ""]  # of ``grad``, projected, a power of two
    unit_d: Float[Array, ""]  # of ``direction``, too
    reach: Float[Array, ""]  # G of `convergence` at the base
    settled: Int[Array, ""]  # for how many iterations, the present one included, (1) has held
    known: Float[Array, ""]  # what a probe has found to be promised, infinite before
    probing: Bool[Array, ""]  # the first trial is a difference, to look at the gradient by
    back: Float[Array, ""]  # how many steps behind the base the trial is, where it is a look back


class Pair(eqx.Module):
    """What a step s from the base of a line, and the change y of the gradient, show."""

    step: Float[Array, " n"]  # in units of the solver
    change: Float[Array, " n"]  # too
    curved: Bool[Array, ""]  # s.y is positive, to rounding
    promised: Float[Array, ""]  # along s, by the curvature that was found there: (g.s)^2 / (2 s.y)
    stiffness: Float[Array, ""]  # rho of (1); 0 where it is not positive
    length: Float[Array, ""]  # of s, relative to the direction


class Antigradient(NamedTuple):
    """At ``state.x``, without what leads out of the box, and the units there."""

    descent: Float[Array, " n"]
    unit: Float[Array, ""]  # of it, a power of two
    scaled: Float[Array, " n"]  # in that unit
    unit_step: Float[Array, ""]  # of the step that the memory makes of it
    moving: Bool[Array, ""]  # whether it leads anywhere


class State(BestSeen):
    """The solver between two evaluations."""

    line: Line
    memory: Memory  # in the units
    unit_x: Float[Array, ""]  # a power of two: the size of x0
    unit_g: Float[Array, ""]  # and that of the first gradient
    sizes: Float[Array, " n"]  # the largest |x_j| so far
    slopes: Float[Array, " 2"]  # along d, by the gradient and by f: what the last probe found
    pending: Int[Array, ""]  # the status that waits for a look whether the gradient vanishes
    stuck: Bool[Array, " n"]  # components that did not in any look from ``x``
    kinks: Int[Array, " n"]  # at how many looks each did not


class LBFGSB(AbstractMinimizer[State]):
    """``method='L-BFGS-B'``; see the module for the mathematics.

    Attributes
    ----------
    ftol, gtol, maxfun, maxiter
        See `AbstractMinimizer`.
    maxls : int
        Most evaluations in one line search.
    maxcor : int, static
        Pairs in the memory.
    """

    BY_SLOPES = True

    maxls: Count = 20
    maxcor: int = eqx.field(static=True, default=10)

    def init(self, problem: MinimizationProblem, x0: Float[Array, " n"]) -> State:
        """x0, moved into the box, is the first trial."""
        n, dtype = x0.shape[0], x0.dtype
        zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        x0 = jnp.clip(x0, problem.lower, problem.upper) if problem.bounded else x0
        unknown, zeros = zero + jnp.nan, jnp.zeros(n, dtype)
        line = Line(
            base=x0, grad=zeros, direction=zeros, trial=x0, search=begin(zero, zero, zero, zero),
            unit_g=zero + 1, unit_d=zero + 1, reach=zero, settled=none,
            known=zero + jnp.inf, probing=jnp.zeros((), bool), back=zero,
        )  # fmt: skip
        return State(
            x=x0, value=unknown, grad=zeros + jnp.nan, nfev=none, nit=none,
            unchanged=none, status=status_of_bounds(problem), line=line,
            memory=Memory.empty(self.maxcor, n, dtype), unit_x=unit_of(x0),
            unit_g=jnp.ones((), dtype), sizes=jnp.abs(x0), slopes=jnp.zeros(2, dtype),
            pending=none, stuck=jnp.ones(n, bool), kinks=jnp.zeros(n, jnp.int32),
        )  # fmt: skip

    @full_precision
    def step(self, problem: MinimizationProblem, state: State) -> State:
        """Evaluate the trial and judge it; the next trial of the search, or a new direction."""
        line = state.line
        value, grad = problem.value_and_grad(line.trial)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(grad))
        first, looking = state.nfev == 0, state.pending != RUNNING
        lower = finite & (value < state.value) & ~looking
        probed = line.probing & (line.search.trials == 0) & ~looking
        slope = _slope(line, grad)
        done, search = advance(line.search, value, slope)
        done = finite & (done | (probed & lower)) & ~looking
        taken = first | done | lower
        x, value_x, grad_x = (
            jnp.where(taken, new, old)
            for new, old in ((line.trial, state.x), (value, state.value), (grad, state.grad))
        )
        over = (search.trials >= self.maxls) | (search.step == search.best.step)
        confirmed, stuck, kinks, kinked = _looked_back(problem, state, grad)
        # A probe is a difference of the gradient at the base, wherever it leads.
        at, grad_at = jnp.where(probed, line.trial, x), jnp.where(probed, grad, grad_x)
        unit_g = cond(first, lambda: unit_of(grad), lambda: state.unit_g)
        pair = _pair(line, at, grad_at, state.unit_x, unit_g)
        slopes = cond(probed, lambda: _slopes(line, value), lambda: state.slopes)
        seen = probed & finite & _as_a_quadratic(line, value, slope)
        known = jnp.where(seen, pair.promised, line.known)
        exhausted = (known <= NOISE * rounding(line.search.start.value, line.reach)) & ~looking
        ended = first | done | exhausted | jnp.where(looking, ~confirmed, over)
        ended, exhausted, confirmed = computed_once((ended, exhausted, confirmed))
        accepted = ended & ~first & is_gain(line.search, value_x) & jnp.any(x != line.base)
        status = jnp.where(confirmed, state.pending, state.status)
        status = jnp.where(kinked, KINK, status)
        status = jnp.where(first & ~finite, NONFINITE, status).astype(jnp.int32)
        state = State(
            x=x,
            value=value_x,
            grad=grad_x,
            nfev=state.nfev + 1,
            nit=state.nit + accepted.astype(jnp.int32),
            unchanged=state.unchanged,
            status=status,
            line=eqx.tree_at(lambda line: (line.search, line.known), line, (search, known)),
            # Here and not where a new line is sought: XLA would copy it out of a branch.
            memory=_remember(
                problem, state.memory.forget(probed & ~exhausted), pair, x, grad_x, unit_g,
                first, accepted,
            ),
            unit_x=state.unit_x,
            unit_g=unit_g,
            sizes=jnp.maximum(state.sizes, jnp.abs(x)),
            slopes=slopes,
            pending=jnp.full_like(status, RUNNING),
            stuck=stuck | accepted,
            kinks=kinks,
        )  # fmt: skip
        return self._continued(problem, state, pair, first, accepted, exhausted, ended)

    def _continued(
        self, problem: MinimizationProblem, state: State, pair: Pair, first: Bool[Array, ""],
        accepted: Bool[Array, ""], exhausted: Bool[Array, ""], ended: Bool[Array, ""],
    ) -> State:  # fmt: skip
        """With the next trial: on the line, or where it has ``ended``, on a new one."""
        line, status, pending, unchanged, forgotten = cond(
            ended,
            lambda: self._new_line(problem, state, pair, first, accepted, exhausted),
            lambda: (
                _search_on(problem, state.line), state.status, state.pending, state.unchanged,
                jnp.array(False),
            ),
        )  # fmt: skip
        return eqx.tree_at(
            lambda state: (state.line, state.status, state.pending, state.unchanged, state.memory),
            state,
            (line, status, pending, unchanged, state.memory.forget(forgotten)),
        )

    def _new_line(
        self, problem: MinimizationProblem, state: State, pair: Pair, first: Bool[Array, ""],
        accepted: Bool[Array, ""], exhausted: Bool[Array, ""],
    ) -> tuple[Line, Array, Array, Array, Array]:  # fmt: skip
        """From ``state.x``, with three fields of the state, and whether the memory is of no use."""
        x = state.x
        failed = ~first & ~accepted
        down = _antigradient(problem, state)
        target, sound = _minimize_model(problem, state, down.scaled, down.unit_step)
        sound = sound & ~failed
        target, probing = cond(
            sound,
            lambda: (target, jnp.zeros((), bool)),
            lambda: _without_model(problem, state, down.scaled, down.unit_step, failed),
        )
        direction = target - x
        longest = _longest(problem, state, direction, first)
        unit_d = unit_of(direction)
        slope = -(down.scaled @ (direction * reciprocal(unit_d))) * (down.unit * unit_d)
        before = jnp.where(accepted, state.line.search.start.value, jnp.inf)
        trusted = jnp.where(first | failed, 0, jnp.minimum(pair.stiffness, 1))
        promised = jnp.where(trusted > 0, safe_divide(-0.5 * slope, trusted), jnp.inf)
        promised = jnp.where(down.moving, promised, 0)
        reach, status, unchanged = self._claim(problem, state, down, before, promised)
        settled = jnp.where(promised <= self.nothing(state, reach), state.line.settled + 1, 0)
        settled = jnp.where(failed, state.line.settled, settled)
        status = self._without_gain(problem, state, status, settled, reach, failed)
        status = jnp.where(exhausted, FTOL, status)
        claimed = jnp.where(exhausted | failed, state.line.known, promised)
        doubtful = _is_doubtful(state, down, status, reach, claimed)
        by_probe = exhausted | failed
        behind, back = _behind(
            problem, state, down, by_probe, probing, direction, self.nothing(state, reach)
        )
        pending = jnp.where(doubtful, status, RUNNING)
        status = jnp.where(doubtful, RUNNING, status)
        if problem.bounded:
            status = jnp.where(jnp.all(problem.lower == problem.upper), ALL_FIXED, status)
        status = jnp.where(state.status == RUNNING, status, state.status).astype(jnp.int32)
        status, doubtful, probing, settled = computed_once((status, doubtful, probing, settled))
        line = Line(
            base=x,
            grad=state.grad,
            direction=direction,
            trial=jnp.where(doubtful, behind, target),
            search=begin(state.value, slope, jnp.ones_like(slope), longest),
            unit_g=down.unit,
            unit_d=unit_d,
            reach=reach,
            settled=settled,
            known=jnp.full_like(slope, jnp.inf),
            probing=probing,
            back=back,
        )
        useless = ~sound & ~probing & down.moving
        return line, status, pending.astype(jnp.int32), unchanged, useless

    def _claim(
        self, problem: MinimizationProblem, state: State, down: Antigradient,
        before: Float[Array, ""], promised: Float[Array, ""],
    ) -> tuple[Float[Array, ""], Int[Array, ""], Int[Array, ""]]:  # fmt: skip
        """G of `convergence`, and what its tests say at ``state.x``."""
        possible = 0.5 * (down.scaled @ down.scaled) * state.memory.flatness()
        possible = jnp.where(down.moving, possible * down.unit_step * down.unit, 0)
        terms = jnp.abs(state.x * reciprocal(state.unit_x)) @ jnp.abs(down.scaled)
        reach = terms * (state.unit_x * down.unit)
        status, unchanged = self.judge(
            problem, state, before, promised, possible, reach, state.line.reach,
            state.line.settled, jnp.sum(state.memory.full) > 1,
        )  # fmt: skip
        return reach, status, unchanged

    def _without_gain(
        self, problem: MinimizationProblem, state: State, status: Int[Array, ""],
        settled: Int[Array, ""], reach: Float[Array, ""], failed: Bool[Array, ""],
    ) -> Int[Array, ""]:  # fmt: skip
        """The status where no lower value is to be found, as expected where none was promised."""
        noisy = state.line.known <= DOUBT * NOISE * rounding(state.value, reach)
        flat = self.optimality(problem, state) <= self.gtol
        failure = jnp.where((settled > 0) & flat, GTOL, jnp.where(noisy, FTOL, FAILED))
        return jnp.where(failed & state.line.probing & (status == RUNNING), failure, status)

    def origin(self, state: State) -> tuple[Float[Array, " n"], Float[Array, ""]]:
        """Where the line search began."""
        return state.line.base, state.line.search.start.value

    def inverse_hessian(self, state: State) -> LbfgsInvHessProduct:
        """As the memory has it."""
        steps, changes = state.memory.in_order()
        return LbfgsInvHessProduct(steps * state.unit_x, changes * state.unit_g)

    def slopes(self, state: State) -> Float[Array, " 2"]:
        """Found by the last probe, if there was one."""
        return state.slopes


def _looked_back(
    problem: MinimizationProblem, state: State, grad: Float[Array, " n"]
) -> tuple[Bool[Array, ""], Bool[Array, " n"], Int[Array, " n"], Bool[Array, ""]]:
    """Whether a look back, if this was one, has shown that the gradient vanishes at x.

    Then ``stuck`` and ``kinks`` after it, and whether it is a kink.
    """
    looking = state.pending != RUNNING
    descent = _projected(problem, state.x, state.grad)
    stuck = state.stuck & (stays(descent, grad, state.line.back) | ~looking)
    parts = jnp.stack([stuck, stuck & (state.kinks + 1 >= KINKS)])
    vanished, new = jax.vmap(is_small_part, (None, None, 0))(state.x, descent, parts)
    confirmed = looking & (vanished | is_cut_short(problem, state.x, state.line.trial))
    refused = looking & ~confirmed
    kinks = state.kinks + (refused & stuck).astype(jnp.int32)
    return confirmed, stuck, kinks, refused & ~new


def _antigradient(problem: MinimizationProblem, state: State) -> Antigradient:
    descent = _projected(problem, state.x, state.grad)
    unit = unit_of(descent)
    scaled = descent * reciprocal(unit)
    unit_step = state.unit_x * (unit * reciprocal(state.unit_g))
    return Antigradient(descent, unit, scaled, unit_step, jnp.any(descent != 0))


def _longest(
    problem: MinimizationProblem, state: State, direction: Float[Array, " n"],
    first: Bool[Array, ""],
) -> Float[Array, ""]:  # fmt: skip
    """Step of the line search, in units of ``direction``."""
    if not problem.bounded:
        return jnp.full_like(state.value, LONGEST)
    longest, _ = step_to_bound(state.x, direction, problem.lower, problem.upper)
    return jnp.clip(jnp.where(first, 1, longest), 1, LONGEST)


def _is_doubtful(
    state: State, down: Antigradient, status: Int[Array, ""], reach: Float[Array, ""],
    claimed: Float[Array, ""],
) -> Bool[Array, ""]:  # fmt: skip
    """Whether a success is claimed where the gradient has not visibly gone to 0.

    In all, and in the unit of each variable: ``reach`` is G, ``claimed`` what is left by the claim.
    """
    changed = state.memory.steepest() * state.unit_g
    visible = norm(down.scaled) * down.unit <= VANISHED * changed
    widest = state.memory.widest(state.x * reciprocal(state.unit_x))
    changed = widest * state.unit_x * state.unit_g
    visible = visible & ~hides_a_variable(reach, changed, claimed)
    doubtful = ((status == GTOL) | (status == FTOL)) & down.moving & ~visible
    return doubtful & (state.status == RUNNING)


def _behind(
    problem: MinimizationProblem, state: State, down: Antigradient, by_probe: Bool[Array, ""],
    probing: Bool[Array, ""], direction: Float[Array, " n"], nothing: Float[Array, ""],
) -> tuple[Float[Array, " n"], Float[Array, ""]]:  # fmt: skip
    """Where to look whether the gradient vanishes, see `look_back`.

    Along what has made the claim: the quadratic, or, where it was a probe along the gradient, which
    the variables in small units rule, the gradient in the unit of each variable.
    """
    part = jnp.where(probing, jnp.sqrt(jnp.finfo(direction.dtype).eps) / SHORT, 1)
    step = _step_that_gains(nothing, state, down)
    step = jnp.where(by_probe, step, part * direction)
    return look_back(problem, state.x, state.value, down.descent, step)


def _step_that_gains(
    reduction: Float[Array, ""], state: State, down: Antigradient
) -> Float[Array, " n"]:
    """Along the projected gradient, in the unit of each variable: f falls by so much at most.

    If the step leads to the minimum there; but no shorter than a finite difference. The unit is
    the largest that the variable has been: it may be 0 at the minimum.
    """
    size = state.sizes
    unit = jnp.where(jnp.any(size > 0), unit_of(size), state.unit_x)
    weight = jnp.where(jnp.all(size == 0), 1, size * reciprocal(unit))
    relative = weight * down.scaled  # the step beside the size, but for its length
    gains = safe_divide(2 * reduction * reciprocal(down.unit), relative @ relative)
    shortest = jnp.sqrt(jnp.finfo(weight.dtype).eps)
    differs = safe_divide(shortest * unit, jnp.max(jnp.abs(relative)))
    return weight * relative * jnp.maximum(gains, differs)


def _as_a_quadratic(
    line: Line, value: Float[Array, ""], slope: Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether f has changed along a probe as by its slopes at both ends."""
    start = line.search.start
    expected = 0.5 * line.search.step * (start.slope + slope)
    error = jnp.abs(value - start.value - expected)
    return error <= DEVIATION * jnp.abs(expected) + NOISE * rounding(start.value, line.reach)


def _search_on(problem: MinimizationProblem, line: Line) -> Line:
    trial = line.base + line.search.step * line.direction
    return eqx.tree_at(lambda line: line.trial, line, _feasible(problem, trial, line.base))


def _slope(line: Line, grad: Float[Array, " n"]) -> Float[Array, ""]:
    slope = (grad * reciprocal(line.unit_g)) @ (line.direction * reciprocal(line.unit_d))
    return slope * (line.unit_g * line.unit_d)


def _pair(
    line: Line,
    x: Float[Array, " n"],
    grad: Float[Array, " n"],
    unit_x: Float[Array, ""],
    unit_g: Float[Array, ""],
) -> Pair:
    step, change = x - line.base, grad - line.grad
    per_g, per_d = reciprocal(line.unit_g), reciprocal(line.unit_d)
    base, short = line.grad * per_g, step * per_d
    gained, slope = base @ short, base @ (line.direction * per_d)
    along = short @ (change * per_g)
    promised = 0.5 * gained * safe_divide(gained, along) * (line.unit_g * line.unit_d)
    stiffness = jnp.abs(safe_divide(slope, gained) * safe_divide(along, gained))
    return Pair(
        step=step * reciprocal(unit_x),
        change=change * reciprocal(unit_g),
        curved=along > jnp.finfo(x.dtype).eps * jnp.abs(gained),
        promised=jnp.where(along > 0, promised, jnp.inf),
        stiffness=jnp.where(along > 0, stiffness, 0),
        length=jnp.abs(safe_divide(gained, slope)),
    )


def _remember(
    problem: MinimizationProblem, memory: Memory, pair: Pair,
    x: Float[Array, " n"], grad: Float[Array, " n"],
    unit_g: Float[Array, ""], first: Bool[Array, ""], accepted: Bool[Array, ""],
) -> Memory:  # fmt: skip
    memory = memory.remember(pair.step, pair.change, accepted & pair.curved)
    # Before any pair is known: a step as long as the unit of x, or as the one before.
    anew = accepted & ~jnp.any(memory.full) & (pair.length > 0)
    theta = memory.theta * jnp.where(anew, 1 / jnp.where(anew, pair.length, 1), 1)
    theta = cond(first, lambda: _steepness(problem, x, grad, unit_g), lambda: theta)
    return eqx.tree_at(lambda m: m.theta, memory, theta)


def _steepness(
    problem: MinimizationProblem,
    x: Float[Array, " n"],
    grad: Float[Array, " n"],
    unit_g: Float[Array, ""],
) -> Float[Array, ""]:
    steepness = norm(_projected(problem, x, grad) * reciprocal(unit_g))
    return jnp.where(steepness > 0, steepness, 1)


def _slopes(line: Line, value: Float[Array, ""]) -> Float[Array, " 2"]:
    """Along the direction, by the gradient and by the function, per unit of length."""
    start = line.search.start
    slopes = jnp.stack([start.slope, safe_divide(value - start.value, line.search.step)])
    return safe_divide(slopes, norm(line.direction))


def _projected(
    problem: MinimizationProblem, x: Float[Array, " n"], grad: Float[Array, " n"]
) -> Float[Array, " n"]:
    """-g without the components that lead out of the box."""
    if not problem.bounded:
        return -grad
    return jnp.where(jnp.where(grad < 0, x < problem.upper, x > problem.lower), -grad, 0)


def _feasible(
    problem: MinimizationProblem, trial: Float[Array, " n"], x: Float[Array, " n"]
) -> Float[Array, " n"]:
    """The trial, on a bound where it is so but for rounding."""
    return onto_bounds(trial, x, problem.lower, problem.upper) if problem.bounded else trial


def _minimize_model(
    problem: MinimizationProblem,
    state: State,
    scaled: Float[Array, " n"],
    unit_step: Float[Array, ""],
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """x^ of (5.4), and whether it is a descent.

    ``scaled`` is the projected -g in a unit of its own; ``unit_step`` that of the steps which the
    memory makes of it.
    """
    if problem.bounded:
        # A component at its bound, where it stays, may be of another size.
        grad = jnp.where(scaled == 0, jnp.sign(state.grad), -scaled)
        per_step = reciprocal(unit_step)
        lower, upper = ((bound - state.x) * per_step for bound in (problem.lower, problem.upper))
        step, sound = subspace_minimum(grad, lower, upper, state.memory)
    else:
        step, sound = state.memory.solve(scaled), True
    target = _feasible(problem, state.x + unit_step * step, state.x)
    descends = scaled @ ((target - state.x) * reciprocal(unit_step)) > 0
    return target, sound & descends & jnp.all(jnp.isfinite(target))


def _without_model(
    problem: MinimizationProblem,
    state: State,
    scaled: Float[Array, " n"],
    unit_step: Float[Array, ""],
    failed: Bool[Array, ""],
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """Where the newest curvature alone leads, or a probe; and whether it is that."""

    def onto(target: Array) -> Array:
        return jnp.clip(target, problem.lower, problem.upper) if problem.bounded else target

    x = state.x
    plain = onto(x + unit_step * (scaled / state.memory.theta))
    probing = failed | ~(jnp.all(jnp.isfinite(plain)) & jnp.any(plain != x))
    probe = onto(x + safe_divide(scaled, norm(scaled)) * _short(state))
    return jnp.where(probing, probe, plain), probing


def _short(state: State) -> Float[Array, ""]:
    """The length of a step that is a finite difference."""
    size = norm(state.x)
    size = jnp.where(size > 0, size, state.unit_x)
    return SHORT * jnp.sqrt(jnp.finfo(size.dtype).eps) * size
