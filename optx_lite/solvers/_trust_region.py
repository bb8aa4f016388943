r"""The trust-region machine which trf, dogbox and lm share.

One step of the machine is: evaluate f at the trial point; compare the cost with what the
quadratic model promised; accept or reject; where accepted, linearise and factorise anew; set
the radius; ask whether this is the end; propose the next trial. The algorithm itself (metric,
shape of the region, radius rule, what a trial is) stands in the file that carries its name.

Scale. Costs and models are in units of s^2, s the power of two next to max|f(x0)|. A residual
of 1e200 is then a number like any other, and f and 1e8 f take the same path, bit for bit when
the factor is a power of two.

The end. R, q are the triangular factor and Q^T f of the weighted Jacobian, restricted to the
free variables, and p = -R^{-1} q is the Gauss-Newton step.

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

A radius that collapses with the gradient still there is not convergence: status -4.

The correction. A step p that fails in a curved valley has shown how curved it is: the residual
that the linear model missed, r = f(x + p) - f - J p, is the second-order term along p. So
before the radius shrinks, one trial goes to x + p + c,

    c = argmin || J c + r ||^2 + alpha || D c ||^2,   taken if ||D c|| <= 3/4 ||D p||  (4)

the step of Transtrum & Sethna ("Improvements to the Levenberg-Marquardt algorithm for
nonlinear least-squares minimization", 2012), whose second derivative is had here for nothing.
On NIST's 54 problems it halves the evaluations of lm.

The fallback. No scaling wins everywhere: the columns of J on badly scaled parameters, 1 on
functions whose columns change by orders of magnitude. Unless the user chose one, the machine
goes over to the other after `PATIENCE` evaluations in which the trust region was in the way and
the cost did not fall by a tenth.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .. import _result as codes
from .._bounds import active_mask, coleman_li, within
from .._monitor import Report
from .._problem import LeastSquaresProblem
from .._result import Result
from ..linalg import (
    diagonal,
    norm,
    normal_step,
    safe_divide,
    safe_sqrt,
    solve_upper,
    triangularize,
)
from ._base import AbstractSolver

SHRINK = 0.9  # a polishing step must be this much shorter than the one before
MARGIN = 0.1  # error that may be left in x, relative to the tolerance


class Model(eqx.Module):
    """The weighted linear model at the current point, in units of s: 0.5 || J p + f ||^2."""

    rows: Array  # (n, m) transposed weighted Jacobian
    upper: Array  # (n, n) its triangular factor
    qtf: Array  # (n,)
    grad: Array  # (n,) J^T f
    fnorm: Array  # () root of twice the cost; the norm of f when the loss is linear
    singular: Array  # () bool: columns of J depend on each other


class Trial(eqx.Module):
    """A point to be evaluated and what the model expects there."""

    x: Array  # (n,)
    length: Array  # () of the step, in the metric of the trust region
    predicted: Array  # () reduction of the cost, in units of s^2
    limited: Array  # () bool: the trust region cut the step short
    damping: Array  # () Levenberg-Marquardt parameter, a first guess for the next
    corrected: Array  # () bool: by (4)
    radius: Array  # () trust radius in which it was proposed


class Outlook(eqx.Module):
    """What undamped Gauss-Newton on the free variables promises from the current point."""

    step: Array  # (n,) the Gauss-Newton step
    x: Array  # (n,) where it leads, active variables on their bounds
    size: Array  # () largest |dx_j| / |x_j|
    left: Array  # () the same for all the steps that are still to come, by their rate so far
    offset: Array  # () the relative offset (1), bounds included
    steepest: Array  # () largest cosine between f and a free column of J
    scatter: Array  # () |J| |x|: f is known to eps of this


class State(eqx.Module):
    """Where the machine stands; arrays only."""

    x: Array  # (n,) best point
    f: Array  # (m,) its true residuals
    cost: Array  # () in units of s^2; inf before the first evaluation
    unit: Array  # () s
    model: Model
    outlook: Outlook
    lengths: Array  # (n,) largest norm that each column of J has had
    scale: Array  # (n,) D^-1: the size of each variable
    slow: Array  # () evaluations since the trust region was last out of the way
    switched: Array  # () bool: the fallback scaling is in force
    radius: Array  # () trust radius
    trial: Trial
    pending: Array  # () status of the test which opened the last phase, 0 before
    reduction: Array  # () of the cost in the last accepted step
    step_norm: Array  # () of x in the last accepted step
    nfev: Array
    njev: Array
    nit: Array
    status: Array


class TrustRegionSolver(AbstractSolver[LeastSquaresProblem, State]):
    """The machine; an algorithm fills in the four methods at the end.

    Attributes
    ----------
    ftol, xtol, gtol : float
        Relative tolerances, 0 for "off".
    x_scale : array (n,) or None
        The size of each variable; None: the algorithm's own, with the fallback.
    from_jacobian : bool, static
        Take it from the columns of the Jacobian and from nothing else, 'jac' in SciPy.
    max_nfev : int or None
        Most evaluations; None: 100 n.
    """

    ftol: Any = 1e-8
    xtol: Any = 1e-8
    gtol: Any = 1e-8
    x_scale: Any = None
    max_nfev: Any = None
    from_jacobian: bool = eqx.field(static=True, default=False)

    # -- the machine ---------------------------------------------------------------------

    def init(self, problem: LeastSquaresProblem, x0: Array) -> State:
        """Nothing evaluated yet; x0 is the first trial."""
        n = x0.shape[0]
        m = jax.eval_shape(problem.residuals, x0).shape[0]
        zero, zeros = jnp.zeros((), x0.dtype), jnp.zeros(n, x0.dtype)
        count = jnp.zeros((), jnp.int32)
        infinite = jnp.full((), jnp.inf, x0.dtype)
        unit = jnp.ones((), x0.dtype)
        bad = (
            jnp.any(problem.lower > problem.upper) | ~within(x0, problem.lower, problem.upper)
            if problem.bounded
            else jnp.zeros((), bool)
        )
        return State(
            x=x0,
            f=jnp.zeros(m, x0.dtype),
            cost=infinite,
            unit=unit,
            model=Model(
                rows=jnp.zeros((n, m), x0.dtype),
                upper=jnp.zeros((n, n), x0.dtype),
                qtf=zeros,
                grad=zeros,
                fnorm=zero,
                singular=jnp.zeros((), bool),
            ),
            outlook=Outlook(
                step=zeros,
                x=x0,
                size=infinite,
                left=infinite,
                offset=infinite,
                steepest=infinite,
                scatter=zero,
            ),
            lengths=zeros,
            scale=zeros + 1 if self.x_scale is None else zeros + self.x_scale,
            slow=count,
            switched=jnp.zeros((), bool),
            radius=infinite,
            trial=Trial(
                x=x0,
                length=zero,
                predicted=zero,
                limited=jnp.zeros((), bool),
                damping=zero,
                corrected=jnp.zeros((), bool),
                radius=infinite,
            ),
            pending=count,
            reduction=zero,
            step_norm=zero,
            nfev=count,
            njev=count,
            nit=count,
            status=jnp.where(bad, codes.BAD_INPUT, codes.RUNNING).astype(jnp.int32),
        )

    def running(self, problem: LeastSquaresProblem, state: State) -> Array:
        """Whether the machine wants another step."""
        return (state.status == codes.RUNNING) & (state.nfev < self.budget(state))

    def budget(self, state: State) -> Any:
        """The most evaluations."""
        return 100 * state.x.shape[0] if self.max_nfev is None else self.max_nfev

    def step(self, problem: LeastSquaresProblem, state: State) -> State:
        """Evaluate the trial, judge it, propose the next."""
        f, jacobian = problem.linearize(state.trial.x)
        first = state.nfev == 0
        unit = lax.cond(first, _power_of_two, lambda _: state.unit, f)
        cost = problem.loss.cost(f, unit)
        finite = jnp.isfinite(cost)
        if not problem.loss.is_linear:
            finite = finite & jnp.all(jnp.isfinite(f))
        reduction = state.cost - cost
        ratio = jnp.where(first, 1, safe_divide(reduction, state.trial.predicted))
        ratio = jnp.where(finite, ratio, -1)
        polishing = state.pending > 0
        # In the last phase the steps tell; the cost, which is rounded, only warns.
        noise = problem.precision ** (2 / 3) * state.cost
        better = jnp.where(polishing, reduction >= -noise, self.acceptable(reduction, ratio))
        better = finite & (first | better)

        def stay() -> tuple[State, Array]:
            return self._stay(state, unit), jnp.zeros((), bool)

        def move() -> tuple[State, Array]:
            return self._move(problem, state, f, cost, jacobian(), unit, stay)

        moved, accepted = lax.cond(better, move, stay)
        ratio = jnp.where(better & ~accepted, -1, ratio)
        radius = self._radius(problem, state, moved, cost, ratio, finite, accepted)
        moved = eqx.tree_at(lambda s: s.radius, moved, radius)
        status, pending = self._judge(problem, state, moved, accepted, ratio)
        status = jnp.where(first & ~accepted, codes.NONFINITE, status).astype(jnp.int32)
        damping = jnp.where(first, 0, state.trial.damping * safe_divide(state.radius, radius))
        trial = self.propose(problem, moved, jnp.where(jnp.isfinite(damping), damping, 0))
        x = jnp.where(pending > 0, moved.outlook.x, trial.x)
        trial = eqx.tree_at(lambda t: t.x, trial, x)
        failed = finite & ~better & ~polishing & ~state.trial.corrected
        trial = lax.cond(failed, lambda: self._correct(problem, state, f, trial), lambda: trial)
        return eqx.tree_at(
            lambda s: (s.trial, s.pending, s.status), moved, (trial, pending, status)
        )

    def _radius(
        self,
        problem: LeastSquaresProblem,
        state: State,
        moved: State,
        cost: Array,
        ratio: Array,
        finite: Array,
        accepted: Array,
    ) -> Array:
        """The trust radius after a trial."""
        trial = state.trial
        usual = self.next_radius(state, cost, ratio, finite)
        # A correction that works vindicates the radius of the step which it corrects.
        vindicated = trial.radius * jnp.where(ratio > 0.25, 1, 0.25)
        corrected = jnp.where(accepted, vindicated, state.radius)
        radius = jnp.where(trial.corrected, corrected, usual)
        radius = jnp.where(state.pending > 0, state.radius, radius)
        if self.x_scale is None and not self.from_jacobian:
            anew = moved.switched != state.switched
            radius = jnp.where(anew, 2 * norm((moved.x - state.x) / moved.scale), radius)
        return jnp.where(state.nfev == 0, self.first_radius(problem, moved), radius)

    def _correct(self, problem: LeastSquaresProblem, state: State, f: Array, trial: Trial) -> Trial:
        """The trial (4) after one that failed, or else ``trial``."""
        model, failed = state.model, state.trial
        step = failed.x - state.x
        missed = f - state.f
        if not problem.loss.is_linear:
            missed = missed * problem.loss.weights(state.f)[0]
        missed = missed / state.unit - step @ model.rows
        metric, diag = self.metric(problem, state)
        upper = model.upper * metric
        damping = failed.damping + (jnp.zeros_like(metric) if diag is None else diag)
        correction = normal_step(upper, metric * (model.rows @ missed), damping)
        length = norm(correction)
        x = failed.x + metric * correction
        if problem.bounded:
            x = jnp.clip(x, problem.lower, problem.upper)
        usable = (length <= 0.75 * failed.length) & jnp.all(jnp.isfinite(x))
        corrected = eqx.tree_at(lambda t: (t.x, t.corrected), failed, (x, jnp.ones((), bool)))
        return jax.tree.map(lambda new, old: jnp.where(usable, new, old), corrected, trial)

    def _stay(self, state: State, unit: Array) -> State:
        """The state after a rejected trial."""
        return eqx.tree_at(
            lambda s: (s.unit, s.nfev, s.slow), state, (unit, state.nfev + 1, state.slow + 1)
        )

    def _move(
        self,
        problem: LeastSquaresProblem,
        state: State,
        f: Array,
        cost: Array,
        rows: Array,
        unit: Array,
        stay: Callable[[], tuple[State, Array]],
    ) -> tuple[State, Array]:
        """The state at a better point and True, or what ``stay`` gives if it is not sound.

        It is not sound where the Jacobian is not finite, nor where a parameter which had an effect
        on f has suddenly none: such a step went too far, onto a plateau.
        """
        weighted, rows = problem.weighted(f, rows)
        weighted, rows = weighted / unit, rows / unit
        upper, qtf = triangularize(rows, weighted)
        columns = jnp.sum(upper * upper, axis=0)
        model = Model(
            rows=rows,
            upper=upper,
            qtf=qtf,
            grad=rows @ weighted,
            fnorm=safe_sqrt(2 * cost),
            singular=jnp.any((diagonal(upper) == 0) & (columns > 0)),
        )
        # Effects are compared with f, which may fall by as much.
        before = jnp.sum(state.model.upper * state.model.upper, axis=0)
        lost = columns * state.cost < problem.precision * before * cost
        on_plateau = jnp.any(lost) & ~jnp.all(lost | (before == 0))
        sound = jnp.isfinite(jnp.sum(columns) + jnp.sum(qtf) + jnp.sum(model.grad)) & ~on_plateau

        def settle() -> tuple[State, Array]:
            moved = self._settle(state, f, cost, unit, model, columns)
            outlook = self._outlook(problem, moved, columns)
            return eqx.tree_at(lambda s: s.outlook, moved, outlook), sound

        return lax.cond(sound, settle, stay)

    def _settle(
        self, state: State, f: Array, cost: Array, unit: Array, model: Model, columns: Array
    ) -> State:
        """The state at the trial; its outlook is still the old one."""
        first = state.nfev == 0
        lengths = jnp.maximum(jnp.sqrt(columns), state.lengths)
        out_of_the_way = ~state.trial.limited | (cost < 0.9 * state.cost)
        slow = jnp.where(out_of_the_way, 0, state.slow + 1)
        switched, scale = state.switched, state.scale
        if self.from_jacobian:
            scale = _inverse(lengths)
        elif self.x_scale is None:
            switched = switched ^ (slow >= self.PATIENCE)
            slow = jnp.where(switched == state.switched, slow, 0)
            scale = jnp.where(switched == self.JACOBIAN_FIRST, 1, _inverse(lengths))
        return State(
            x=state.trial.x,
            f=f,
            cost=cost,
            unit=unit,
            model=model,
            outlook=state.outlook,
            lengths=lengths,
            scale=scale,
            slow=slow,
            switched=switched,
            radius=state.radius,
            trial=state.trial,
            pending=state.pending,
            reduction=jnp.where(first, 0, state.cost - cost),
            step_norm=norm(state.trial.x - state.x),
            nfev=state.nfev + 1,
            njev=state.njev + 1,
            nit=state.nit + 1 - first.astype(jnp.int32),
            status=state.status,
        )

    def _outlook(self, problem: LeastSquaresProblem, state: State, columns: Array) -> Outlook:
        """Undamped Gauss-Newton on the free variables, the active ones put on their bounds.

        ``columns``: squared norms of the columns of J.
        """
        model, x = state.model, state.x
        upper, qtf, slope = model.upper, model.qtf, jnp.abs(model.grad)
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
            goal, blocked = x + step, jnp.zeros_like(model.fnorm)
        size = jnp.max(safe_divide(jnp.abs(goal - x), jnp.maximum(jnp.abs(x), jnp.abs(goal))))
        free = (state.pending > 0) | ~state.trial.limited
        rate = jnp.where(free, safe_divide(size, state.outlook.size), 0)
        return Outlook(
            step=step,
            x=goal,
            size=size,
            left=jnp.where(rate < 1, size / (1 - jnp.minimum(rate, 0.99)), jnp.inf),
            offset=safe_divide(safe_sqrt(qtf @ qtf + blocked), model.fnorm),
            steepest=jnp.maximum(
                jnp.max(safe_divide(slope, safe_sqrt(columns) * model.fnorm)),
                safe_divide(safe_sqrt(blocked), model.fnorm),
            ),
            scatter=norm(safe_sqrt(columns) * x),
        )

    def _judge(
        self,
        problem: LeastSquaresProblem,
        before: State,
        state: State,
        accepted: Array,
        ratio: Array,
    ) -> tuple[Array, Array]:
        """Status, and the status that is waiting for the last phase to end."""
        eps, outlook = problem.precision, state.outlook
        trial = before.trial
        first = before.nfev == 0
        good = accepted & ~first
        ftol = (
            good
            & (~trial.limited | (outlook.steepest**2 <= self.ftol))
            & (state.reduction <= self.ftol * before.cost)
            & (trial.predicted <= self.ftol * before.cost)
            & (ratio > 0.25)
        )
        size = norm(state.x / state.scale)
        xtol = good & ~trial.limited & (trial.length <= self.xtol * size)
        fnorm = state.model.fnorm
        nothing = fnorm <= eps * outlook.scatter  # f is rounding, or 0
        flat = jnp.minimum(outlook.offset, outlook.steepest)
        gtol = (flat <= jnp.maximum(self.gtol, eps)) | nothing
        # What is left to gain is below the rounding of the cost, or of x.
        exhausted = (flat**2 <= eps) | (outlook.size <= eps)
        met = jnp.where(
            gtol,
            codes.GTOL,
            jnp.where(
                ftol,
                jnp.where(xtol, codes.FTOL_AND_XTOL, codes.FTOL),
                jnp.where(xtol | exhausted, codes.XTOL, codes.RUNNING),
            ),
        )
        polishing = before.pending > 0
        pending = jnp.where(polishing, before.pending, met)
        tolerance = jnp.maximum(jnp.maximum(self.ftol, self.xtol), jnp.maximum(self.gtol, eps))
        over = (
            (outlook.left <= MARGIN * tolerance)
            | (polishing & ~accepted)
            | (polishing & (outlook.size > SHRINK * before.outlook.size))
            | nothing
            | (state.nfev >= self.budget(state))
        )
        # Written so that a step which is not finite counts as stuck, too.
        too_short = ~(trial.length > jnp.maximum(self.xtol, eps) * size)
        stuck = ~accepted & ~first & too_short
        # No descent, and none to be had: f is orthogonal to J, or nearly rounding.
        small = fnorm <= eps ** (2 / 3) * outlook.scatter
        done = (outlook.steepest <= eps ** (1 / 3)) | small
        stalled = jnp.where(done, codes.XTOL, codes.STALLED)
        status = jnp.where(
            (pending > 0) & over,
            self._name(problem, state, pending),
            jnp.where(stuck & ~polishing, stalled, codes.RUNNING),
        )
        return status, pending.astype(jnp.int32)

    def _name(self, problem: LeastSquaresProblem, state: State, status: Array) -> Array:
        """SciPy's code: 1 wherever its absolute test on the gradient holds as well.

        And no success where a parameter which had an effect on f has none any more: the point
        is stationary because it is far out on a plateau.
        """
        columns = jnp.sum(state.model.upper * state.model.upper, axis=0)
        dead = jnp.sqrt(columns) <= problem.precision * state.lengths
        if problem.bounded:
            dead = dead & (state.x > problem.lower) & (state.x < problem.upper)
        plateau = jnp.any(dead & (state.lengths > 0)) & ~jnp.all(dead)
        status = jnp.where(self.optimality(problem, state) < self.gtol, codes.GTOL, status)
        return jnp.where(plateau, codes.PLATEAU, status)

    def optimality(self, problem: LeastSquaresProblem, state: State) -> Array:
        """max |v g|, v the Coleman-Li distance (1 without a bound)."""
        grad = state.model.grad * state.unit**2
        if problem.bounded:
            grad = grad * coleman_li(state.x, grad, problem.lower, problem.upper)[0]
            grad = jnp.where(problem.lower == problem.upper, 0, grad)
        return jnp.max(jnp.abs(grad))

    def finish(self, problem: LeastSquaresProblem, state: State) -> Result:
        """The answer on flat vectors."""
        model = state.model
        return Result(
            x=state.x,
            cost=problem.loss.cost(state.f),
            fun=state.f,
            jac=model.rows.T * state.unit,
            grad=model.grad * state.unit**2,
            optimality=self.optimality(problem, state),
            active_mask=(
                active_mask(state.x, problem.lower, problem.upper)
                if problem.bounded
                else jnp.zeros(state.x.shape, jnp.int32)
            ),
            nfev=state.nfev,
            njev=state.njev,
            nit=state.nit,
            status=state.status,
        )

    def report(
        self, problem: LeastSquaresProblem, before: State, after: State
    ) -> tuple[Report, Array]:
        """What a callback is told after a step, and whether the step moved x."""
        told = Report(
            x=after.x,
            fun=after.f,
            cost=problem.loss.cost(after.f),
            reduction=after.reduction * after.unit**2,
            step_norm=after.step_norm,
            optimality=self.optimality(problem, after),
            nit=after.nit,
            nfev=after.nfev,
        )
        return told, after.nit > before.nit

    # -- the algorithm -------------------------------------------------------------------

    PATIENCE: ClassVar[int] = 20
    JACOBIAN_FIRST: ClassVar[bool] = False  # which scaling is the first, which the fallback

    @abc.abstractmethod
    def metric(self, problem: LeastSquaresProblem, state: State) -> tuple[Array, Array | None]:
        """The lengths of the unit steps (n,), and the diagonal added to J^T J there, if any."""

    @abc.abstractmethod
    def first_radius(self, problem: LeastSquaresProblem, state: State) -> Array:
        """The trust radius at x0."""

    @abc.abstractmethod
    def next_radius(self, before: State, cost: Array, ratio: Array, finite: Array) -> Array:
        """The trust radius after ``before.trial`` came out at ``cost``."""

    @abc.abstractmethod
    def propose(self, problem: LeastSquaresProblem, state: State, damping: Array) -> Trial:
        """The next trial from ``state.model`` within ``state.radius``."""

    def acceptable(self, reduction: Array, ratio: Array) -> Array:
        """Whether a trial in the main phase is taken."""
        return reduction > 0


def evaluate_model(upper: Array, qtf: Array, step: Array) -> Array:
    """Reduction that the linear model predicts: -(g p + 0.5 |R p|^2) = -(q + R p / 2) . R p."""
    moved = upper @ step
    return -jnp.sum((qtf + 0.5 * moved) * moved)


def scipy_radius(before: State, ratio: Array, finite: Array) -> Array:
    """SciPy's rule: a quarter of a bad step, twice the radius after a good one at its edge."""
    shrunk = 0.25 * before.trial.length
    grown = jnp.where((ratio > 0.75) & before.trial.limited, 2 * before.radius, before.radius)
    return jnp.where(finite & (ratio >= 0.25), grown, shrunk)


def _inverse(lengths: Array) -> Array:
    """1 / lengths, and 1 for a column that has always been 0."""
    return jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 1)


def _power_of_two(f: Array) -> Array:
    """2^k next to max|f|, which scales without rounding; 1 for f = 0."""
    largest = jnp.max(jnp.abs(f))
    _, exponent = jnp.frexp(lax.stop_gradient(largest))
    return jnp.where(largest > 0, jnp.ldexp(jnp.ones_like(largest), exponent), 1)
