r"""The trust-region solver which trf, dogbox and lm share.

One step of the solver is: evaluate f at the trial point; compare the cost with what the
quadratic model promised; accept or reject; where accepted, linearise and factorise anew; set
the radius; ask whether this is the end; propose the next trial. The algorithm itself (metric,
shape of the region, radius rule, what a trial is) stands in the file that carries its name.

Scale. Costs and models are in units of s^2, s the largest power of two up to max|f(x0)|. A residual
of 1e200 is then a number like any other, and f and 1e8 f take the same path, bit for bit when
the factor is a power of two. Where f has become so small beside s
that its square would vanish, s is chosen anew. Within a step variables are in units as well, the
powers of two u_j which make the columns of the first J of the size of 1, so that x may be measured
in any unit whose square is out of range. Neither rounds anything.

The correction. A step p that fails in a curved valley has shown how curved it is: the residual
that the linear model missed, r = f(x + p) - f - J p, is the second-order term along p. So
before the radius shrinks, one trial goes to x + p + c,

    c = argmin || J c + r ||^2 + alpha || D c ||^2,   taken if ||D c|| <= 3/4 ||D p||  (1)

the step of Transtrum & Sethna ("Improvements to the Levenberg-Marquardt algorithm for
nonlinear least-squares minimization", 2012), whose second derivative costs nothing here.
On NIST's 54 problems it halves the evaluations of lm.

The curvature of the residuals. J^T J lacks sum_i f_i f_i'', which is all there is where a column
of J vanishes at the minimum and f does not: without it the Gauss-Newton step points to infinity
there, and where f is large it makes the last digits dear. The change of J along the last step
tells it in one direction, by the structured secant condition of J. E. Dennis, D. M. Gay and R. E.
Welsch ("An adaptive nonlinear least-squares algorithm", ACM TOMS 7, 1981),

    S p = y,    y = (J_+ - J)^T f_+,    S = y y^T / y.p = w w^T                       (2)

the symmetric matrix of rank one, which takes part as one more row w of J if it is positive beyond
its rounding, if the cost fell by no more than `SETTLED` in that step, and if J^T J alone promised
too much: far from the minimum f is still to fall, and J^T J the better of the two (Rosenbrock's
valley takes four times as many evaluations otherwise). ENSO's 55 evaluations become 30.

The fallback. No scaling wins everywhere: the columns of J on badly scaled parameters, 1 on
functions whose columns change by orders of magnitude. Unless the user chose one, the solver
goes over to the other after `PATIENCE` evaluations in which the trust region was in the way and
the cost did not fall by a tenth, with more patience after each second time, and once before it
gives up.

Plateaus. A step after which a parameter has no effect any more, in one go, went too far, as a
rule: out on the tail of an exponential, beyond the data. It is not taken, though the cost may be
lower. But that may also be where the minimum is: a peak whose height is 0 has no position, and a
break may belong beyond the data. So after `REFUSALS` of them, with no more than `SETTLED` gained
by a step in between, no more are refused, after
`REFUSALS_AT_BOUNDS` if the step brings a variable to a bound, and none once nothing else is left.

The first radius is the size of x0, or the Cauchy step where x0 is nothing beside that.

When it has arrived: see `convergence`.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...jax_support.control_flow import cond
from ...linalg import (
    exponent,
    norm,
    power_of_two,
    reciprocal,
    safe_divide,
    safe_sqrt,
    triangularize,
    unit_of,
)
from ...problem.bounds import active_mask, coleman_li, within
from ...problem.least_squares import LeastSquaresProblem
from ...results import least_squares as codes
from ...results.least_squares import Result
from ..base import Report
from .base import AbstractLeastSquaresSolver
from .convergence import (
    NOISE,
    Prediction,
    Tolerances,
    judge,
    passes,
    possible_reduction,
    predict,
    probe,
    verify,
    without_effect,
)
from .state import Correction, Model, State, Trial

OPTIMISTIC = 0.75  # ratio of a step of which J^T J promised too much
SETTLED = 0.01  # a cost that falls by no more, relatively, in a step: the residual is there to stay
REFUSALS = 20  # of trials on a plateau
REFUSALS_AT_BOUNDS = 2  # of those that bring a variable to a bound
NEGLIGIBLE = 1e-3  # an x0 so small beside the Cauchy step says nothing of the size of x


class TrustRegionSolver(AbstractLeastSquaresSolver[State]):
    """What trf, dogbox and lm share; an algorithm fills in the methods at the end.

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

    # -- the solver ---------------------------------------------------------------------

    def init(self, problem: LeastSquaresProblem, x0: Array) -> State:
        """Nothing evaluated yet; x0 is the first trial."""
        n, dtype = x0.shape[0], x0.dtype
        m = jax.eval_shape(problem.residuals, x0).shape[0]

        def constant(value: Any, shape: tuple[int, ...] = (), dtype: Any = dtype) -> Any:
            return np.full(shape, value, dtype)  # NumPy's: nothing to do at run time

        zero, zeros, infinite = constant(0), constant(0, (n,)), constant(np.inf)
        no, none = constant(False, dtype=bool), constant(0, dtype=np.int32)
        status = none
        if problem.bounded:
            bad = jnp.any(problem.lower > problem.upper) | ~within(x0, problem.lower, problem.upper)
            status = jnp.where(bad, codes.BAD_INPUT, codes.RUNNING).astype(jnp.int32)
        state = State(
            x=x0,
            f=constant(0, (m,)),
            cost=infinite,
            unit=constant(1),
            model=Model(
                units=zeros + 1,
                rows=constant(0, (n, m)),
                secant=zeros,
                lengths=zeros,
                upper=constant(0, (n, n)),
                qtf=zeros,
                grad=zeros,
            ),
            lengths=zeros,
            scale=zeros + 1,
            radius=infinite,
            trial=Trial(
                x=x0,
                length=zero,
                predicted=zero,
                limited=no,
                damping=zero,
                radius=infinite,
                corrected=no,
            ),
            size=infinite,
            last_size=infinite,
            pending=none,
            probing=none,
            hope=infinite,
            refused=none,
            slow=none,
            switches=none,
            nfev=none,
            nit=none,
            status=status,
        )
        return jax.tree.map(jnp.asarray, state)

    def running(self, problem: LeastSquaresProblem, state: State) -> Array:
        """Whether the solver wants another step."""
        budget = self.most_steps(state.x.shape[0])
        return (state.status == codes.RUNNING) & (state.nfev < budget)

    def most_steps(self, n: int) -> Any:
        """No run takes more."""
        return 100 * n if self.max_nfev is None else self.max_nfev

    def step(self, problem: LeastSquaresProblem, state: State) -> State:
        """Evaluate the trial, judge it, propose the next."""
        f, jacobian = problem.linearize(state.trial.x)
        outside, (problem, state) = problem, in_units(problem, state, state.model.units)
        first, polishing = state.nfev == 0, state.pending > 0
        unit = jnp.where(first, unit_of(f), state.unit)
        cost = problem.loss.cost(f, unit)
        finite = jnp.isfinite(cost)
        if not problem.loss.is_linear:
            finite = finite & jnp.all(jnp.isfinite(f))
        reduction = state.cost - cost
        ratio = jnp.where(first, 1, safe_divide(reduction, state.trial.predicted))
        ratio = jnp.where(finite, ratio, -1)
        # In the last phase the steps tell; the cost, which is rounded, only warns.
        noise = problem.precision ** (2 / 3) * state.cost
        # A variable that is all but on its bound may as well be there.
        rounding = NOISE * problem.precision * state.cost
        landed = _lands(problem, state) & (jnp.abs(reduction) <= rounding)
        good = self.acceptable(reduction, ratio) | landed
        better = jnp.where(polishing, reduction >= -noise, good)
        better = finite & (first | better) & (state.probing == 0)
        finer = _finer_unit(f, cost, unit)
        in_finer = problem.loss.cost(f, finer)
        optimistic = reduction + rounding < OPTIMISTIC * state.trial.predicted
        curved = optimistic | jnp.any(state.model.secant != 0)
        settled = ~first & better & (reduction <= SETTLED * cost)
        model, accepted, passed = cond(
            better | (state.probing > 0),
            lambda: _linearized(problem, state, f, in_finer, finer, settled, curved, jacobian()),
            lambda: (state.model, jnp.array(False), jnp.array(False)),
        )
        problem, state = in_units(problem, state, model.units * reciprocal(state.model.units))
        scale = jnp.where(first, self._scale(state.switches, model), state.scale)
        state = eqx.tree_at(lambda s: s.scale, state, scale)
        ratio = jnp.where(better & ~accepted, -1, ratio)
        moved = self._moved(state, f, cost, model, accepted)
        refused = state.refused + (better & ~accepted).astype(jnp.int32)
        gained = accepted & (reduction > SETTLED * cost) & (state.refused < REFUSALS)
        refused = jnp.where(gained, 0, refused)
        moved = eqx.tree_at(
            lambda s: (s.cost, s.unit, s.refused),
            moved,
            (jnp.where(accepted, in_finer, state.cost), jnp.where(accepted, finer, unit), refused),
        )
        prediction = predict(problem, state, moved)
        # A trial where f or J is not finite, or on a plateau, tells nothing of the curvature of f;
        # nor does one that a bound cut short.
        cut = state.trial.limited & (state.trial.length < 0.9 * state.radius)
        known = finite & ~better & ~cut
        hope = possible_reduction(state, prediction, accepted, reduction, known)
        moved = eqx.tree_at(lambda s: s.hope, moved, hope)
        radius = self._radius(problem, state, moved, cost, ratio, finite, accepted)
        moved = eqx.tree_at(lambda s: (s.radius, s.size), moved, (radius, prediction.size))
        tolerances = Tolerances(self.ftol, self.xtol, self.gtol, problem.precision)
        spent = ~self.running(problem, moved)
        status, pending, doubtful = judge(
            tolerances, state, moved, prediction, accepted, ratio, spent
        )
        status, pending, probing = verify(
            problem, state, moved, prediction, status, pending, doubtful, passed
        )
        bad_start = jnp.where(finite, codes.NONFINITE_JACOBIAN, codes.NONFINITE)
        status = jnp.where(first & ~accepted, bad_start, status).astype(jnp.int32)
        moved, status = self._last_resort(problem, state, moved, status)

        shrunk = safe_divide(state.radius, moved.radius)
        anew = moved.switches != state.switches
        damping = jnp.where(first | anew, 0, state.trial.damping * shrunk)
        damping = jnp.where(jnp.isfinite(damping), damping, 0)
        failed = finite & ~better & ~polishing & ~state.trial.corrected
        correction = self._correction(problem, state, f, failed)
        trial = self.propose(problem, moved, prediction, damping, correction)
        trial = trial.or_corrected(state.trial)
        x = jnp.where(pending > 0, prediction.x, trial.x)
        x = jnp.where(probing > 0, probe(problem, state, moved, probing), x)
        trial = eqx.tree_at(lambda t: t.x, trial, x)
        after = eqx.tree_at(
            lambda s: (s.trial, s.pending, s.probing, s.status),
            moved,
            (trial, pending, probing, status),
        )
        after = _out_of_units(outside, after)
        # SciPy's code is 1 wherever its absolute test on the gradient holds as well.
        small = (status > 0) & (self.optimality(outside, after) < self.gtol)
        return eqx.tree_at(lambda s: s.status, after, jnp.where(small, codes.GTOL, status))

    def _moved(self, state: State, f: Array, cost: Array, model: Model, accepted: Array) -> State:
        """The state at the trial if it was accepted; cost, unit and radius are still old."""
        trial = state.trial
        lengths = jnp.maximum(model.lengths, state.lengths)
        out_of_the_way = accepted & (~trial.limited | (cost < 0.9 * state.cost))
        slow = jnp.where(out_of_the_way, 0, state.slow + 1)
        switches, scale = state.switches, state.scale
        if self.falls_back:
            # With more and more patience, or two unsuitable scalings would take turns for ever.
            impatient = accepted & (slow >= self.PATIENCE * (1 + switches // 2))
            switches = switches + impatient.astype(jnp.int32)
            slow = jnp.where(impatient, 0, slow)
        if self.falls_back or self.from_jacobian:
            scale = self._scale(switches, eqx.tree_at(lambda m: m.lengths, model, lengths))
        return State(
            x=jnp.where(accepted, trial.x, state.x),
            f=jnp.where(accepted, f, state.f),
            cost=state.cost,
            unit=state.unit,
            model=model,
            lengths=lengths,
            scale=scale,
            radius=state.radius,
            trial=trial,
            size=state.size,
            last_size=state.size,
            pending=state.pending,
            probing=state.probing,
            hope=state.hope,
            refused=state.refused,
            slow=slow,
            switches=switches,
            nfev=state.nfev + 1,
            nit=state.nit + (accepted & (state.nfev > 0)).astype(jnp.int32),
            status=state.status,
        )

    @property
    def falls_back(self) -> bool:
        """Whether the scaling is the solver's to choose."""
        return self.x_scale is None and not self.from_jacobian

    def _scale(self, switches: Array, model: Model) -> Array:
        """D^-1 in units, of a model with the largest lengths that columns have had."""
        by_jacobian = _inverse(model.lengths)
        if self.from_jacobian:
            return by_jacobian
        # The user's, or 1; a common factor, which says nothing, keeps it in range.
        given = reciprocal(model.units) * (1.0 if self.x_scale is None else self.x_scale)
        given = given * reciprocal(unit_of(given))
        if not self.falls_back:
            return given
        return jnp.where((switches % 2 == 1) != self.JACOBIAN_FIRST, by_jacobian, given)

    def _last_resort(
        self, problem: LeastSquaresProblem, before: State, state: State, status: Array
    ) -> tuple[State, Array]:
        """What has not been tried yet, where the solver would have stalled.

        With the other scaling, and onto a plateau if there was one with a lower cost.
        """
        stalled = status == codes.STALLED
        to_plateau = stalled & (state.refused > 0) & (before.refused < REFUSALS)
        rescaled = stalled & (state.switches == 0) & self.falls_back
        switches = state.switches + rescaled.astype(jnp.int32)
        scale = state.scale
        if self.falls_back:
            scale = self._scale(
                switches, eqx.tree_at(lambda m: m.lengths, state.model, state.lengths)
            )
        anew = eqx.tree_at(
            lambda s: (s.refused, s.switches, s.slow, s.scale),
            state,
            (
                jnp.where(to_plateau, REFUSALS, state.refused),
                switches,
                jnp.where(rescaled, 0, state.slow),
                scale,
            ),
        )
        tried = to_plateau | rescaled
        radius = jnp.where(tried, self.first_radius(problem, anew), state.radius)
        anew = eqx.tree_at(lambda s: s.radius, anew, radius)
        return anew, jnp.where(tried, codes.RUNNING, status).astype(jnp.int32)

    def _radius(
        self,
        problem: LeastSquaresProblem,
        before: State,
        state: State,
        cost: Array,
        ratio: Array,
        finite: Array,
        accepted: Array,
    ) -> Array:
        """The trust radius after a trial."""
        trial = before.trial
        usual = self.next_radius(before, cost, ratio, finite)
        # A correction that works vindicates the radius of the step which it corrects.
        vindicated = trial.radius * jnp.where(ratio > 0.25, 1, 0.25)
        corrected = jnp.where(accepted, vindicated, before.radius)
        radius = jnp.where(trial.corrected, corrected, usual)
        radius = jnp.where(before.pending > 0, before.radius, radius)
        if self.falls_back:
            anew = state.switches != before.switches
            radius = jnp.where(anew, 2 * norm((state.x - before.x) / state.scale), radius)
        # After the last refusal a plateau may be where the minimum is: begin again, towards it.
        anew = (before.nfev == 0) | ((state.refused == REFUSALS) & (before.refused < REFUSALS))
        return jnp.where(anew, self.first_radius(problem, state), radius)

    def _correction(
        self, problem: LeastSquaresProblem, state: State, f: Array, failed: Array
    ) -> Correction:
        """What a trial that ``failed`` says about the next; f are its residuals."""
        model, trial = state.model, state.trial
        step = trial.x - state.x
        missed = (f - state.f) / state.unit
        if not problem.loss.is_linear:
            missed = missed * problem.loss.weights(state.f)[0]
        grad = model.rows @ jnp.where(failed, missed, 0) - model.upper.T @ (model.upper @ step)
        return Correction(
            wanted=failed, start=trial.x, grad=grad, damping=trial.damping,
            longest=0.75 * trial.length,
        )  # fmt: skip

    def optimality(self, problem: LeastSquaresProblem, state: State) -> Array:
        """max |v g|, v the Coleman-Li distance (1 without a bound)."""
        grad = state.gradient
        if problem.bounded:
            grad = grad * coleman_li(state.x, grad, problem.lower, problem.upper)[0]
            grad = jnp.where(problem.lower == problem.upper, 0, grad)
        return jnp.max(jnp.abs(grad))

    def finish(self, problem: LeastSquaresProblem, state: State) -> Result:
        """The answer on flat vectors."""
        cost, fun = _cost_and_residuals(problem, state)
        known = jnp.where(jnp.isfinite(state.cost), 1, jnp.nan).astype(cost.dtype)
        jac = state.model.rows.T * (known * state.unit) * reciprocal(state.model.units)[None, :]
        mask = jnp.zeros(state.x.shape, jnp.int32)
        if problem.bounded:
            # On a bound: within what xtol takes for nothing, in the metric; and not free to stay
            # there, as a variable may be which is small beside the others: alone it would leave.
            scale = state.scale * state.model.units
            nothing = self.xtol * norm(state.x / scale) * scale
            mask = active_mask(state.x, problem.lower, problem.upper, nothing)
            distance, _ = coleman_li(state.x, state.gradient, problem.lower, problem.upper)
            length = jax.vmap(norm)(jac.T)
            leaves = jnp.abs(state.gradient) > distance * length * length
            on = (state.x == problem.lower) | (state.x == problem.upper)
            pressed = jnp.where(mask < 0, state.gradient > 0, state.gradient < 0)
            mask = jnp.where(on | (leaves & pressed), mask, 0)
        return Result(
            x=state.x,
            cost=cost,
            fun=fun,
            jac=jac,
            grad=state.gradient * known,
            optimality=self.optimality(problem, state) * known,
            active_mask=mask,
            nfev=state.nfev,
            njev=state.nit + jnp.isfinite(state.cost).astype(jnp.int32),
            nit=state.nit,
            status=state.status,
        )

    def report(
        self, problem: LeastSquaresProblem, before: State, after: State
    ) -> tuple[Report, Array]:
        """What a callback is told after a step, and whether the step moved x."""
        first = before.nfev == 0
        cost, fun = _cost_and_residuals(problem, after)
        told = Report(
            x=after.x,
            fun=fun,
            value=cost,
            reduction=jnp.where(first, 0, problem.loss.cost(before.f) - cost),
            step_norm=norm(after.x - before.x),
            optimality=self.optimality(problem, after),
            nit=after.nit,
            nfev=after.nfev,
        )
        return told, after.nit > before.nit

    # -- the algorithm -------------------------------------------------------------------

    PATIENCE: ClassVar[int] = 20
    JACOBIAN_FIRST: ClassVar[bool] = False  # which scaling is the first, which the fallback

    @abc.abstractmethod
    def first_radius(self, problem: LeastSquaresProblem, state: State) -> Array:
        """The trust radius at x0."""

    @abc.abstractmethod
    def next_radius(self, before: State, cost: Array, ratio: Array, finite: Array) -> Array:
        """The trust radius after ``before.trial`` came out at ``cost``."""

    @abc.abstractmethod
    def propose(
        self,
        problem: LeastSquaresProblem,
        state: State,
        prediction: Prediction,
        damping: Array,
        correction: Correction,
    ) -> Trial:
        """The correction, if wanted and short; else a trial within ``state.radius``."""

    def acceptable(self, reduction: Array, ratio: Array) -> Array:
        """Whether a trial in the main phase is taken."""
        return reduction > 0


def _cost_and_residuals(problem: LeastSquaresProblem, state: State) -> tuple[Array, Array]:
    """At the best point; infinite and NaN as long as there is none, as after a bad start."""
    none = jnp.isinf(state.cost)
    cost = jnp.where(none, jnp.inf, problem.loss.cost(state.f))
    return cost, jnp.where(none, jnp.nan, state.f)


def _linearized(
    problem: LeastSquaresProblem,
    state: State,
    f: Array,
    cost: Array,
    unit: Array,
    settled: Array,
    curved: Array,
    rows: Array,
) -> tuple[Model, Array, Array]:
    """The model at the trial and True; the old one and False if the new one is not taken.

    It is not where the Jacobian is not finite, nor where a parameter which had an effect on f has
    suddenly none: such a step went too far, onto a plateau. And whether a probe confirms a
    success, see `convergence`.
    """
    old = state.model
    weighted, rows = problem.weighted(f, rows)
    units = jnp.where(state.nfev == 0, _units(problem, state.trial.x, rows, unit), old.units)
    weighted, rows = weighted / unit, (rows * units[:, None]) / unit
    step = state.trial.x - state.x
    lengths, grad = safe_sqrt(jnp.sum(rows * rows, axis=1)), rows @ weighted
    rounding = NOISE * problem.precision * norm(weighted) * (lengths @ jnp.abs(step))
    change = rows - old.rows * (state.unit / unit)
    secant = jnp.where(settled & curved, _secant(change, weighted, step, rounding), 0)
    rests = without_effect(problem, lengths, secant, jnp.maximum(lengths, state.lengths), cost)
    with_secant = jnp.concatenate([rows, secant[:, None]], axis=1)
    with_secant = jnp.where(settled & rests[:, None], 0, with_secant)
    upper, qtf = triangularize(with_secant, jnp.pad(weighted, (0, 1)))
    model = Model(
        units=units, rows=rows, secant=secant, lengths=lengths, upper=upper, qtf=qtf, grad=grad
    )
    # Effects are compared with f, which may fall by as much.
    lost = lengths**2 * state.cost < problem.precision * old.lengths**2 * cost
    on_plateau = jnp.any(lost) & ~jnp.all(lost | (old.lengths == 0))
    patience = jnp.where(_lands(problem, state), REFUSALS_AT_BOUNDS, REFUSALS)
    on_plateau = on_plateau & (state.refused < patience)
    finite = jnp.isfinite(jnp.sum(lengths) + jnp.sum(qtf) + jnp.sum(grad))
    taken = finite & ~on_plateau & (state.probing == 0)
    passed = finite & passes(problem, state, lengths, grad)
    model = jax.tree.map(lambda new, old: jnp.where(taken, new, old), model, old)
    return model, taken, passed


def in_units(
    problem: LeastSquaresProblem, state: State, units: Array
) -> tuple[LeastSquaresProblem, State]:
    """Box, point and trial divided by units."""
    factor = reciprocal(units)
    if problem.bounded:
        sides = problem.lower * factor, problem.upper * factor
        problem = eqx.tree_at(lambda p: (p.lower, p.upper), problem, sides)
    points = state.x * factor, state.trial.x * factor
    return problem, eqx.tree_at(lambda s: (s.x, s.trial.x), state, points)


def _out_of_units(problem: LeastSquaresProblem, state: State) -> State:
    """The state with the user's point and trial, within the user's box."""
    points = state.x * state.model.units, state.trial.x * state.model.units
    if problem.bounded:  # where a bound is nothing beside the unit, it is lost in units
        points = tuple(jnp.clip(x, problem.lower, problem.upper) for x in points)
    return eqx.tree_at(lambda s: (s.x, s.trial.x), state, points)


def _units(problem: LeastSquaresProblem, x: Array, rows: Array, unit: Array) -> Array:
    """u: powers of two, with columns of J u of the size of ``unit``; x and the box are in range."""
    largest = jnp.max(jnp.abs(rows), axis=1)
    units = power_of_two(exponent(unit) - exponent(largest), x.dtype)
    farthest = jnp.abs(x)
    for side in (problem.lower, problem.upper) if problem.bounded else ():
        farthest = jnp.maximum(farthest, jnp.where(jnp.isfinite(side), jnp.abs(side), 0))
    least = power_of_two(exponent(farthest) - (jnp.finfo(x.dtype).maxexp - 4), x.dtype)
    proper = (largest > 0) & jnp.isfinite(largest)
    return jnp.where(proper, jnp.maximum(units, jnp.where(farthest > 0, least, 0)), 1)


def _lands(problem: LeastSquaresProblem, state: State) -> Array:
    """Whether the trial brings a variable to a bound, all but: that may switch others off."""
    if not problem.bounded:
        return jnp.zeros((), bool)

    def room(x: Array) -> Array:
        return jnp.minimum(x - problem.lower, problem.upper - x)

    return jnp.any(room(state.trial.x) < problem.precision**0.25 * room(state.x))


def _secant(change: Array, f: Array, step: Array, rounding: Array) -> Array:
    """w of (2), from the change of J^T along a step; 0 where y.p is not above its rounding."""
    curved = change @ f
    along = curved @ step
    wanted = along > rounding
    return jnp.where(wanted, curved / jnp.sqrt(jnp.where(wanted, along, 1)), 0)


def _finer_unit(f: Array, cost: Array, unit: Array) -> Array:
    """The unit, a new one where f has fallen so far that its squares in the old one vanish."""
    info = jnp.finfo(cost.dtype)
    vanishes = (cost < info.tiny / info.eps) & jnp.any(f != 0)
    return jnp.where(vanishes, unit_of(f), unit)


def scipy_radius(before: State, ratio: Array, finite: Array) -> Array:
    """SciPy's rule: a quarter of a bad step, twice the radius after a good one at its edge."""
    at_edge = before.trial.length > 0.95 * before.radius
    shrunk = 0.25 * before.trial.length
    grown = jnp.where((ratio > 0.75) & at_edge, 2 * before.radius, before.radius)
    return jnp.where(finite & (ratio >= 0.25), grown, shrunk)


def starting_radius(size: Array, cauchy: Array) -> Array:
    """The size of x0, unless that is nothing beside the Cauchy step: then the length of this."""
    by_model = jnp.where((cauchy > 0) & jnp.isfinite(cauchy), cauchy, 1)
    return jnp.where(size > NEGLIGIBLE * cauchy, size, by_model)


def cauchy_factor(upper: Array, grad: Array) -> Array:
    """t at which the model is least along -t grad."""
    moved = upper @ grad
    return safe_divide(grad @ grad, moved @ moved)


def _inverse(lengths: Array) -> Array:
    """1 / lengths, and 1 for a column that has always been 0."""
    return jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 1)
