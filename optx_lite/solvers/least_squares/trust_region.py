r"""The trust-region solver which trf, dogbox and lm share.

One step of the solver is: evaluate f at the trial point; compare the cost with what the
quadratic model promised; accept or reject; where accepted, linearise and factorise anew; set
the radius; test for convergence; propose the next trial. The algorithm itself (metric,
shape of the region, radius rule, what a trial is) stands in the file that carries its name.

What it is made of stands in files of their own: the linear model (`model`), units (`units`), the
correction of a step that failed (`correction`), the sizes of the variables and the change of them
(`scaling`), what becomes of a trial (`acceptance`), trust radii (`radius`), parameters that lose
their effect (`plateau`), and when it has arrived (`prediction`, `convergence`).
"""

from __future__ import annotations

import abc
from dataclasses import replace
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...jax_support.control_flow import cond, where_or_cond
from ...jax_support.types import Count, Number
from ...jax_support.xla import computed_once, full_precision
from ...linalg import norm, reciprocal, safe_divide
from ...linalg.jacobians import Jacobian, as_result, scale_columns, scale_rows
from ...problem.bounds import active_mask, coleman_li, within
from ...problem.least_squares import LeastSquaresProblem
from ...problem.losses import LEAST_BEND
from ...results import least_squares as codes
from ...results.least_squares import Result
from ..base import Report
from .acceptance import Outcome, cut_by_bound, linearized, rounding
from .base import AbstractLeastSquaresSolver
from .convergence import Tolerances, judge, possible_reduction
from .correction import correction_of, radius_after
from .model import Correction, DenseModel, LinearModel
from .operator_model import LinearSolver, OperatorModel
from .plateau import REFUSALS, SMALL_DECREASE, dead_parameters, lands, probe, verify
from .prediction import Prediction, predict
from .scaling import FALL, Scaling
from .state import State, Trial, initial_state
from .units import finer_unit, in_units, out_of_units

POLISH_NOISE = 2 / 3  # power of eps: by what part of F the cost may rise in the last phase


class StepInputs(NamedTuple):
    """What a trial is made from."""

    problem: LeastSquaresProblem
    state: State
    prediction: Prediction
    damping: Float[Array, ""]  # a first guess of the Levenberg-Marquardt parameter
    correction: Correction


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
    linear_solver : LinearSolver
        Of problems whose Jacobian is an operator.
    """

    ftol: Number = 1e-8
    xtol: Number = 1e-8
    gtol: Number = 1e-8
    x_scale: Array | None = None
    max_nfev: Count | None = None
    from_jacobian: bool = eqx.field(static=True, default=False)
    linear_solver: LinearSolver = LinearSolver()

    # -- the solver ---------------------------------------------------------------------

    def init(self, problem: LeastSquaresProblem, x0: Float[Array, " n"]) -> State:
        """Nothing evaluated yet; x0 is the first trial."""
        m = jax.eval_shape(problem.residuals, x0).shape[0]
        model = self._blank_model(problem, x0, m)
        state = initial_state(x0, m, model, problem.bounded and model.BEGINS_AT_LAST)
        status = state.status
        if problem.bounded:
            bad = jnp.any(problem.lower > problem.upper)
            bad = bad | ~within(x0, problem.lower, problem.upper)
            status = jnp.where(bad, codes.BAD_INPUT, status)
        if problem.has_pattern:
            wrong = jnp.any(problem.sparsity_mismatch(x0) > 1)
            status = jnp.where(wrong, codes.WRONG_SPARSITY, status)
        return replace(state, status=jnp.asarray(status, jnp.int32))

    def _blank_model(
        self, problem: LeastSquaresProblem, x0: Float[Array, " n"], m: int
    ) -> LinearModel:
        n, dtype = x0.shape[0], x0.dtype
        jacobian = problem.blank_jacobian(x0)
        if jacobian is None:
            return DenseModel.empty(n, m, dtype)
        bounded = problem.bounded
        return OperatorModel.empty(jacobian, m, n, dtype, self.linear_solver, bounded)

    def running(self, problem: LeastSquaresProblem, state: State) -> Bool[Array, ""]:
        """Whether there is to be another step."""
        budget = self.most_steps(state.x.shape[0])
        return (state.status == codes.RUNNING) & (state.nfev < budget)

    def most_steps(self, n: int) -> Count:
        """No run takes more."""
        return 100 * n if self.max_nfev is None else self.max_nfev

    @full_precision
    def step(self, problem: LeastSquaresProblem, state: State) -> State:
        """Evaluate the trial, judge it, propose the next."""
        f, jacobian = problem.linearize(state.trial.x)
        outside, (problem, state) = problem, in_units(problem, state, state.model.units)
        first = state.nfev == 0
        unit = jnp.where(first, problem.loss.unit(f), state.unit)
        outcome = self._outcome(problem, state, f, unit)
        finer = finer_unit(problem, f, outcome.cost, unit)
        in_finer = problem.loss.cost(f, finer)
        model, accepted, passed = cond(
            outcome.better | (state.probing > 0),
            lambda: linearized(problem, state, outcome, in_finer, finer, jacobian()),
            lambda: (state.model, jnp.array(False), jnp.array(False)),
        )
        problem, state = in_units(problem, state, model.units * reciprocal(state.model.units))
        scale = self.scaling.scale(state.switches, model.column_norms, model.units)
        state = replace(state, scale=jnp.where(first, scale, state.scale))
        ratio = jnp.where(outcome.better & ~accepted, -1, outcome.ratio)
        moved = self._moved(state, outcome, in_finer, finer, unit, model, accepted)

        prediction = predict(problem, state, moved)
        usable = outcome.finite & ~outcome.better & ~cut_by_bound(state)
        reduction, noise = outcome.reduction, prediction.noise
        possible = possible_reduction(state, noise, accepted, reduction, usable)
        moved = replace(moved, possible=possible, size=prediction.size)
        radius = self._radius(problem, state, moved, outcome, ratio, accepted)
        moved = replace(moved, radius=radius)
        moved, status, pending, probing = self._status(
            problem, state, moved, prediction, outcome, ratio, accepted, passed
        )
        flags = (status, pending, probing, moved.switches, moved.refused, moved.slow)
        status, pending, probing, switches, refused, slow = computed_once(flags)
        moved = replace(moved, switches=switches, refused=refused, slow=slow)
        trial = self._next_trial(problem, state, moved, prediction, outcome)
        x = jnp.where(pending > 0, prediction.x, trial.x)
        x = jnp.where(probing > 0, probe(problem, state, moved, probing), x)
        after = replace(
            moved, trial=replace(trial, x=x), pending=pending, probing=probing, status=status
        )
        if after.goal is not None:
            after = replace(after, goal=prediction.x)
        after = out_of_units(outside, after)
        # SciPy's code is 1 wherever its absolute test on the gradient holds as well.
        small = (status > 0) & (self.optimality(outside, after) < self.gtol)
        return replace(after, status=jnp.where(small, codes.GTOL, status))

    def _outcome(
        self,
        problem: LeastSquaresProblem,
        state: State,
        f: Float[Array, " m"],
        unit: Float[Array, ""],
    ) -> Outcome:
        """What became of the trial, by the cost alone."""
        first, polishing = state.nfev == 0, state.pending > 0
        cost = problem.loss.cost(f, unit)
        finite = jnp.isfinite(cost)
        if not problem.loss.is_linear:
            finite = finite & jnp.all(jnp.isfinite(f))
        reduction = state.cost - cost
        ratio = jnp.where(first, 1, safe_divide(reduction, state.trial.predicted))
        ratio = jnp.where(finite, ratio, -1)
        # A variable that is all but on its bound may as well be there.
        landed = lands(problem, state) & (jnp.abs(reduction) <= rounding(problem, state))
        good = self.acceptable(reduction, ratio) | landed
        # In the last phase the steps decide; the cost, which is rounded, only warns.
        noise = problem.precision**POLISH_NOISE * state.cost
        better = jnp.where(polishing, reduction >= -noise, good)
        better = finite & (first | better) & (state.probing == 0)
        return Outcome(f, cost, reduction, ratio, finite, better)

    def _moved(
        self,
        state: State,
        outcome: Outcome,
        cost: Float[Array, ""],
        finer: Float[Array, ""],
        unit: Float[Array, ""],
        model: LinearModel,
        accepted: Bool[Array, ""],
    ) -> State:
        """The state at the trial if it was accepted, at ``cost`` in the unit ``finer``.

        Its radius and what follows from it are still old.
        """
        trial = state.trial
        longest = jnp.maximum(model.column_norms, state.longest)
        fell = outcome.cost < FALL * state.cost
        slow, switches = self.scaling.after(
            state.slow, state.switches, accepted, trial.limited, fell
        )
        scale = state.scale
        if not self.scaling.constant:
            scale = self.scaling.scale(switches, longest, model.units)
        refused = state.refused + (outcome.better & ~accepted).astype(jnp.int32)
        gained = accepted & (outcome.reduction > SMALL_DECREASE * outcome.cost)
        gained = gained & (state.refused < REFUSALS)
        return replace(
            state,
            x=jnp.where(accepted, trial.x, state.x),
            f=jnp.where(accepted, outcome.f, state.f),
            cost=jnp.where(accepted, cost, state.cost),
            unit=jnp.where(accepted, finer, unit),
            model=model,
            longest=longest,
            scale=scale,
            last_size=state.size,
            refused=jnp.where(gained, 0, refused),
            slow=slow,
            switches=switches,
            nfev=state.nfev + 1,
            nit=state.nit + (accepted & (state.nfev > 0)).astype(jnp.int32),
        )

    def _status(
        self,
        problem: LeastSquaresProblem,
        before: State,
        state: State,
        prediction: Prediction,
        outcome: Outcome,
        ratio: Array,
        accepted: Array,
        passed: Array,
    ) -> tuple[State, Array, Array, Array]:
        """The state, anew where all else failed; status, what waits, what to look for."""
        tolerances = Tolerances(self.ftol, self.xtol, self.gtol, problem.precision)
        spent = ~self.running(problem, state)
        status, pending, doubtful = computed_once(
            judge(tolerances, before, state, prediction, accepted, ratio, spent)
        )
        dead = dead_parameters(problem, before, state, prediction.x) & ~prediction.nothing
        status, pending, probing = verify(before, dead, status, pending, doubtful, passed)
        state = replace(state, dead=dead)
        bad_start = jnp.where(outcome.finite, codes.NONFINITE_JACOBIAN, codes.NONFINITE)
        status = jnp.where((before.nfev == 0) & ~accepted, bad_start, status).astype(jnp.int32)
        state, status = self._last_resort(problem, before, state, status)
        return state, status, pending, probing

    def _next_trial(
        self,
        problem: LeastSquaresProblem,
        before: State,
        state: State,
        prediction: Prediction,
        outcome: Outcome,
    ) -> Trial:
        """The algorithm's trial from the state, or the correction of the one before."""
        anew = (before.nfev == 0) | (state.switches != before.switches)
        shrunk = safe_divide(before.radius, state.radius)
        damping = jnp.where(anew, 0, before.trial.damping * shrunk)
        damping = jnp.where(jnp.isfinite(damping), damping, 0)
        failed = outcome.finite & ~outcome.better & ~before.trial.corrected
        failed = failed & (before.pending == 0)
        correction = correction_of(problem, before, outcome.f, failed)
        inputs = StepInputs(problem, state, prediction, damping, correction)
        return self.propose(inputs).or_corrected(before.trial)

    @property
    def scaling(self) -> Scaling:
        """How the variables are scaled."""
        return Scaling(self.x_scale, self.from_jacobian, self.JACOBIAN_FIRST, self.PATIENCE)

    def _last_resort(
        self, problem: LeastSquaresProblem, before: State, state: State, status: Int[Array, ""]
    ) -> tuple[State, Array]:
        """What has not been tried yet, where the solver would have stalled.

        With the other scaling, and onto a plateau if there was one with a lower cost.
        """
        stalled = status == codes.STALLED
        to_plateau = stalled & (state.refused > 0) & (before.refused < REFUSALS)
        rescaled = stalled & (state.switches == 0) & self.scaling.switches
        switches = state.switches + rescaled.astype(jnp.int32)
        scale = state.scale
        if self.scaling.switches:
            scale = self.scaling.scale(switches, state.longest, state.model.units)
        anew = replace(
            state,
            refused=jnp.where(to_plateau, REFUSALS, state.refused),
            switches=switches,
            slow=jnp.where(rescaled, 0, state.slow),
            scale=scale,
        )
        tried = to_plateau | rescaled
        radius = self._first_radius_where(tried, problem, anew, state.radius)
        status = jnp.where(tried, codes.RUNNING, status).astype(jnp.int32)
        return replace(anew, radius=radius), status

    def _radius(
        self,
        problem: LeastSquaresProblem,
        before: State,
        state: State,
        outcome: Outcome,
        ratio: Float[Array, ""],
        accepted: Bool[Array, ""],
    ) -> Float[Array, ""]:
        """The trust radius after a trial."""
        trial = before.trial
        usual = self.next_radius(before, outcome.cost, ratio, outcome.finite)
        corrected = radius_after(trial.radius, before.radius, ratio, accepted)
        radius = jnp.where(trial.corrected, corrected, usual)
        radius = jnp.where(before.pending > 0, before.radius, radius)
        if self.scaling.switches:
            anew = state.switches != before.switches
            radius = jnp.where(anew, 2 * norm((state.x - before.x) / state.scale), radius)
        # After the last refusal a plateau may be where the minimum is: begin again, towards it.
        anew = (before.nfev == 0) | ((state.refused == REFUSALS) & (before.refused < REFUSALS))
        return self._first_radius_where(anew, problem, state, radius)

    def _first_radius_where(
        self, which: Array, problem: LeastSquaresProblem, state: State, radius: Array
    ) -> Array:
        """A radius anew, or the one that there is."""
        size = state.f.size
        return where_or_cond(which, lambda: self.first_radius(problem, state), radius, size)

    def optimality(self, problem: LeastSquaresProblem, state: State) -> Float[Array, ""]:
        """max |v g|, v the Coleman-Li distance (1 without a bound)."""
        grad = state.gradient
        if problem.bounded:
            grad = grad * coleman_li(state.x, grad, problem.lower, problem.upper)[0]
            grad = jnp.where(problem.lower == problem.upper, 0, grad)
        return jnp.max(jnp.abs(grad))

    @full_precision
    def finish(self, problem: LeastSquaresProblem, state: State) -> Result:
        """The answer on flat vectors."""
        cost, fun = _cost_and_residuals(problem, state)
        known = jnp.where(jnp.isfinite(state.cost), 1, jnp.nan).astype(cost.dtype)
        mask = jnp.zeros(state.x.shape, jnp.int32)
        if problem.bounded:
            # On a bound: within what xtol takes for nothing, in the metric.
            scale = state.scale * state.model.units
            nothing = self.xtol * norm(state.x / scale) * scale
            mask = active_mask(state.x, problem.lower, problem.upper, nothing)
        return Result(
            x=state.x,
            cost=cost,
            fun=fun,
            jac=as_result(_jacobian(problem, state, known)),
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
        """What a callback gets after a step, and whether the step moved x."""
        first = before.nfev == 0
        cost, fun = _cost_and_residuals(problem, after)
        report = Report(
            x=after.x,
            fun=fun,
            value=cost,
            reduction=jnp.where(first, 0, problem.loss.cost(before.f) - cost),
            step_norm=norm(after.x - before.x),
            optimality=self.optimality(problem, after),
            nit=after.nit,
            nfev=after.nfev,
        )
        return report, after.nit > before.nit

    # -- the algorithm -------------------------------------------------------------------

    PATIENCE: ClassVar[int] = 20
    JACOBIAN_FIRST: ClassVar[bool] = False  # which scaling is the first, which the fallback

    @abc.abstractmethod
    def first_radius(self, problem: LeastSquaresProblem, state: State) -> Float[Array, ""]:
        """The trust radius at x0."""

    @abc.abstractmethod
    def next_radius(
        self,
        before: State,
        cost: Float[Array, ""],
        ratio: Float[Array, ""],
        finite: Bool[Array, ""],
    ) -> Float[Array, ""]:
        """The trust radius after ``before.trial`` came out at ``cost``."""

    @abc.abstractmethod
    def propose(self, inputs: StepInputs) -> Trial:
        """The correction, if wanted and short; else a trial within the state's radius."""

    def acceptable(self, reduction: Float[Array, ""], ratio: Float[Array, ""]) -> Bool[Array, ""]:
        """Whether a trial in the main phase is taken."""
        return reduction > 0


def _cost_and_residuals(
    problem: LeastSquaresProblem, state: State
) -> tuple[Float[Array, ""], Float[Array, " m"]]:
    """At the best point; infinite and NaN as long as there is none, as after a bad start."""
    none = jnp.isinf(state.cost)
    cost = jnp.where(none, jnp.inf, problem.loss.cost(state.f))
    return cost, jnp.where(none, jnp.nan, state.f)


def _jacobian(problem: LeastSquaresProblem, state: State, known: Float[Array, ""]) -> Jacobian:
    """J in the user's units, with the loss in it as in SciPy; times ``known``."""
    model, weight = state.model, jnp.broadcast_to(known * state.unit, state.f.shape)
    if not problem.loss.is_linear:
        own, scipys = (problem.loss.weights(state.f, least)[0] for least in (LEAST_BEND, 0.0))
        weight = weight * safe_divide(scipys, own)
    return scale_columns(scale_rows(model.jacobian, weight), reciprocal(model.units))
