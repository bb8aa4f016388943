r"""Dual annealing: generalised simulated annealing, and a local solve from what it finds.

Y. Xiang, S. Gubian, B. Suomela, J. Hoeng, "Generalized Simulated Annealing for Global Optimization:
the GenSA Package", The R Journal 5 (2013) 13; C. Tsallis, D. A. Stariolo, Physica A 233 (1996) 395.

The temperature falls from T_1 with the number t = 1, 2, ... of temperatures so far,

    T = T_1 (2^{q_v - 1} - 1) / ((1 + t)^{q_v - 1} - 1)                                  (1)

and cooling begins anew, from a point drawn in the box, when T < T_1 ``restart``. At each
temperature there are 2 n trials from where the chain is: n that move every variable, then one for
each variable by itself. A variable moves by

    d = sigma N_1 / |N_2|^{(q_v - 1) / (3 - q_v)},       N_1, N_2 normal,                (2)

    sigma = [ sqrt(pi) (q_v - 1)^{4 - q_v} 2^{(q_v - 2) / (q_v - 1)} T^{1 / (q_v - 1)}
              / ((3 - q_v) Gamma(1 / (q_v - 1) - 1/2)) ]^{(q_v - 1) / (3 - q_v)},        (3)

of which few are long, but some across the whole box; what leaves the box on one side enters it on
the other. A trial that is lower by -D is accepted, and a higher one with probability

    max(0, 1 - (1 - q_a) D t / T)^{1 / (1 - q_a)}.                                       (4)

After a temperature at which a trial was the lowest so far, the local solver starts from it; after
n others in a row, from the lowest point at which the chain was at that temperature, but only when
the trials since the last solve are as many as the evaluations that it took, a gradient counted as
two; and not from a minimum that is known. A step is one temperature with its local solve.

Different from SciPy: the random numbers; d is in units of 1e-4 of the box (there, of x, so that
another unit is another search); the chain's own local solves begin after n temperatures (there,
the first after 1000); no search ends between a trial that was the lowest and its local solve.
"""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, PyTree

from ...jax_support.control_flow import where, while_loop
from ...problem.bounds import within
from ...problem.global_search import in_box, unit_of_box
from ...problem.minimization import MinimizationProblem
from ...results.base import RUNNING
from ...results.global_search import BAD_BOUNDS, COOLED, MAXFUN_REACHED, OUT_OF_RANGE
from ...results.minimize import MAXITER as NOT_SOLVED
from ..minimize.base import AbstractMinimizer

BOX = 1e4  # units of (2) across the box
GRADIENT = 2  # evaluations
ANNEALING, FROM_LOWEST, FROM_CHAIN = range(3)  # what finds a lower point; SciPy's contexts


class Point(eqx.Module):
    """Where, and how high; infinite where that is NaN."""

    x: Array  # (n,)
    value: Array  # ()


class Found(eqx.Module):
    """What the callback gets: the lowest point, and what has found it."""

    x: Array
    fun: Array
    context: Array


class State(eqx.Module):
    """A chain between two temperatures."""

    key: Array
    now: Point  # where it is
    fresh: Array  # () bool: whether that point has still to be evaluated
    lowest: Point  # of all
    best: PyTree  # the local solver's result there, if ``polished``
    polished: Array  # () bool
    unchanged: Array  # () temperatures since `lowest` was found, or since the last local solve
    patience: Array  # () how many of them there are before the next
    time: Array  # () temperatures since cooling began: t - 1
    context: Array  # () what has found `lowest`: one of the three above
    nit: Array  # () temperatures
    nfev: Array  # ()
    njev: Array  # ()
    status: Array  # () 0 while it runs


class Trials(eqx.Module):
    """A chain among the trials of a temperature."""

    key: Array
    now: Point
    lowest: Point
    lowest_now: Point  # of those where it was at this temperature
    number: Array  # () of the next trial; -1 if the chain's own point is to be evaluated


class DualAnnealing(eqx.Module):
    """The settings; see the module for the mathematics.

    Attributes
    ----------
    solver : AbstractMinimizer
        The local solver.
    local_search : bool, static
        Whether it is used.
    draws_start : bool, static
        Whether the first point is drawn in the box.
    maxiter, maxfun : arrays of int, shape ()
    temperature, restart, visit, accept : arrays, shape ()
        T_1, restart, q_v and q_a.
    """

    solver: AbstractMinimizer
    local_search: bool = eqx.field(static=True)
    draws_start: bool = eqx.field(static=True)
    maxiter: Array
    maxfun: Array
    temperature: Array
    restart: Array
    visit: Array
    accept: Array

    def init(self, problem: MinimizationProblem, x0: Array, key: Array) -> State:
        """The state before the first evaluation, at x0 or where the key says."""
        key, for_start = jax.random.split(key)
        start = _drawn(problem, for_start, x0) if self.draws_start else x0
        start = jnp.clip(start, problem.lower, problem.upper)
        finite = jnp.isfinite(problem.lower) & jnp.isfinite(problem.upper)
        box = jnp.all(finite & (problem.lower <= problem.upper))
        status = jnp.where(box, jnp.where(self._in_range(), RUNNING, OUT_OF_RANGE), BAD_BOUNDS)
        best = jax.eval_shape(lambda: self._solved_from(problem, start, box))
        best = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), best)
        point = Point(start, jnp.full((), jnp.inf, x0.dtype))
        none, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return State(
            key=key, now=point, fresh=~no, lowest=point, best=best, polished=no, unchanged=none,
            patience=none + x0.shape[0], time=none, context=none + ANNEALING, nit=none, nfev=none,
            njev=none, status=status.astype(jnp.int32),
        )  # fmt: skip

    def _in_range(self) -> Array:
        """Whether the numbers are such that (1) to (4) mean something."""
        heat = (self.temperature > 0) & (self.temperature < jnp.inf)
        share = (self.restart > 0) & (self.restart < 1)
        return heat & share & (self.visit > 1) & (self.visit < 3) & (self.accept < 1)

    def running(self, state: State) -> Array:
        """Whether there is to be another temperature."""
        return state.status == RUNNING

    def step(self, problem: MinimizationProblem, state: State) -> State:
        """A temperature, and the local solve after it."""
        after = self._anneal(problem, state)
        improved = after.lowest.value < state.lowest.value
        evaluated = after.number + jnp.where(state.fresh, 1, 0)
        state = eqx.tree_at(
            lambda s: (
                s.key, s.now, s.lowest, s.polished, s.unchanged, s.context, s.nfev
            ),
            state,
            (
                after.key, after.now, after.lowest, state.polished & ~improved,
                jnp.where(improved, 0, state.unchanged + 1),
                jnp.full_like(state.context, ANNEALING),
                state.nfev + evaluated,
            ),
        )  # fmt: skip
        if self.local_search:
            state = self._solve(problem, state, improved, after.lowest_now)
        return self._cooled(problem, state)

    @property
    def has_minimum(self) -> bool:
        """Whether a local solver may have found the answer."""
        return self.local_search

    def described(self, before: State, after: State) -> tuple[Found, Array]:
        """What the callback gets after a step, and whether it is called."""
        found = Found(after.lowest.x, after.lowest.value, after.context)
        return found, after.lowest.value < before.lowest.value

    def answer(self, problem: MinimizationProblem, state: State) -> PyTree:
        """The local solver's result at the lowest point; not a success if none has ended there.

        NaN where nothing was evaluated.
        """
        nowhere = state.nfev == 0
        unknown = jax.tree.map(_nan, state.best)
        unknown = eqx.tree_at(
            lambda result: (result.x, result.fun, result.task, result.status),
            unknown,
            (
                jnp.where(nowhere, jnp.nan, state.lowest.x),
                jnp.where(nowhere, jnp.nan, state.lowest.value).astype(state.best.fun.dtype),
                jnp.full_like(state.best.task, NOT_SOLVED),
                jnp.ones_like(state.best.status),
            ),
        )
        return where(state.polished, state.best, unknown)

    # -- annealing -------------------------------------------------------------------------

    def _temperature(self, time: Array) -> Array:
        """(1)."""
        power = self.visit - 1
        t = time.astype(power.dtype) + 1
        return self.temperature * jnp.expm1(power * math.log(2)) / jnp.expm1(power * jnp.log1p(t))

    def _anneal(self, problem: MinimizationProblem, state: State) -> Trials:
        """All trials of a temperature."""
        temperature = self._temperature(state.time)
        sigma = self._sigma(temperature)
        planned = jnp.where(state.nit < self.maxiter, 2 * state.now.x.shape[0], 0)
        first = jnp.where(state.fresh, -1, 0).astype(jnp.int32)

        def more(trials: Trials) -> Array:
            evaluated = state.nfev + trials.number - first
            return (trials.number < planned) & (evaluated < self.maxfun)

        def tried(trials: Trials) -> Trials:
            key, for_move, for_choice = jax.random.split(trials.key, 3)
            fresh = trials.number < 0
            moved = self._moved(problem, trials, sigma, for_move)
            x = jnp.where(fresh, trials.now.x, moved)
            value = problem.evaluate(x).astype(x.dtype)
            new = Point(x, jnp.where(jnp.isnan(value), jnp.inf, value))
            rise = (new.value - trials.now.value) * (state.time + 1).astype(x.dtype) / temperature
            # From an infinite value it moves to another, as on any plateau.
            accepted = fresh | (new.value <= trials.now.value) | self._accepts(rise, for_choice)
            now = where(accepted, new, trials.now)
            anew = (trials.number <= 0) | (now.value < trials.lowest_now.value)
            return Trials(
                key=key,
                now=now,
                lowest=where(new.value < trials.lowest.value, new, trials.lowest),
                lowest_now=where(anew, now, trials.lowest_now),
                number=trials.number + 1,
            )

        return while_loop(more, tried, Trials(state.key, state.now, state.lowest, state.now, first))

    def _sigma(self, temperature: Array) -> Array:
        """(3), by its logarithm."""
        power = self.visit - 1
        log_base = (
            0.5 * math.log(math.pi) + (3 - power) * jnp.log(power)
            + (power - 1) / power * math.log(2) + jnp.log(temperature) / power
            - jnp.log(2 - power) - gammaln(1 / power - 0.5)
        )  # fmt: skip
        return jnp.exp(power / (2 - power) * log_base)

    def _moved(
        self, problem: MinimizationProblem, trials: Trials, sigma: Array, key: Array
    ) -> Array:
        """(2), of all variables or of one."""
        x = trials.now.x
        n, dtype = x.shape[0], x.dtype
        for_normal, for_far = jax.random.split(key)
        up, down = jax.random.normal(for_normal, (2, n), dtype)
        move = sigma * up / jnp.abs(down) ** ((self.visit - 1) / (3 - self.visit)) / BOX
        # Of a longer one no digit would be left in the box: any point is as likely.
        far = ~(jnp.abs(move) < jnp.finfo(dtype).eps ** -0.5)
        move = jnp.where(far, jax.random.uniform(for_far, (n,), dtype), move)
        chosen = (trials.number < n) | (jnp.arange(n, dtype=jnp.int32) == trials.number - n)
        unit = (unit_of_box(x, problem.lower, problem.upper) + move) % 1
        return jnp.where(chosen, in_box(unit, problem.lower, problem.upper), x)

    def _accepts(self, rise: Array, key: Array) -> Array:
        """(4), of D t / T."""
        rest = 1 - self.accept
        base = 1 - rest * rise
        chance = jnp.where(base > 0, base, 0) ** (1 / rest)
        return jax.random.uniform(key, (), rise.dtype) < chance

    def _cooled(self, problem: MinimizationProblem, state: State) -> State:
        """At the next temperature, or at the end."""
        key, for_start = jax.random.split(state.key)
        nit = jnp.minimum(state.nit + 1, self.maxiter).astype(jnp.int32)
        time = state.time + 1
        cold = self._temperature(time) < self.temperature * self.restart
        start = _drawn(problem, for_start, state.now.x)
        drawn = Point(start, jnp.full_like(state.now.value, jnp.inf))
        status = jnp.where(state.nfev >= self.maxfun, MAXFUN_REACHED, RUNNING)
        status = jnp.where(nit >= self.maxiter, COOLED, status)
        return eqx.tree_at(
            lambda s: (s.key, s.now, s.fresh, s.time, s.nit, s.status),
            state,
            (
                key, where(cold, drawn, state.now), cold, jnp.where(cold, 0, time), nit,
                status.astype(jnp.int32),
            ),
        )  # fmt: skip

    # -- local solves ----------------------------------------------------------------------

    def _solve(
        self, problem: MinimizationProblem, state: State, improved: Array, elsewhere: Point
    ) -> State:
        """After the local solve, if there is to be one, from the lowest point or elsewhere."""
        n = elsewhere.x.shape[0]
        waited = (state.unchanged >= state.patience) & (state.nfev < self.maxfun)
        # A minimum is not solved from again.
        settled = state.best.success & (elsewhere.value == state.lowest.value)
        wanted = improved | (waited & ~settled)
        start = jnp.where(improved, state.lowest.x, elsewhere.x)
        result = self._solved_from(problem, start, wanted)
        new = Point(result.x, result.fun.astype(state.now.value.dtype))
        # A solver that knows no bounds may have left the box.
        valid = wanted & within(new.x, problem.lower, problem.upper)
        lower = new.value < state.lowest.value
        # Of two at the same height the one that has succeeded.
        better = ~state.polished | (result.success & ~state.best.success)
        lowest = valid & (lower | ((new.value == state.lowest.value) & better))
        context = jnp.where(improved, FROM_LOWEST, FROM_CHAIN)
        spent = result.nfev + GRADIENT * result.njev
        return eqx.tree_at(
            lambda s: (
                s.now, s.lowest, s.best, s.polished, s.unchanged, s.patience, s.context, s.nfev,
                s.njev,
            ),
            state,
            (
                where(lowest, new, state.now), where(lowest, new, state.lowest),
                where(lowest, result, state.best), state.polished | lowest,
                jnp.where(wanted, 0, state.unchanged),
                jnp.where(wanted, jnp.maximum(n, spent // (2 * n)), state.patience),
                jnp.where(lowest, context, state.context).astype(jnp.int32),
                state.nfev + jnp.where(wanted, result.nfev, 0),
                state.njev + jnp.where(wanted, result.njev, 0),
            ),
        )  # fmt: skip

    def _solved_from(self, problem: MinimizationProblem, start: Array, wanted: Array) -> PyTree:
        """The local solver's result; without a step if it is not wanted."""
        local = while_loop(
            lambda local: wanted & self.solver.running(problem, local),
            lambda local: self.solver.step(problem, local),
            self.solver.init(problem, start),
        )
        return self.solver.finish(problem, local)


def _drawn(problem: MinimizationProblem, key: Array, like: Array) -> Array:
    """A point of the box, every one as likely."""
    unit = jax.random.uniform(key, like.shape, like.dtype)
    return in_box(unit, problem.lower, problem.upper)


def _nan(leaf: Array) -> Array:
    return jnp.full_like(leaf, jnp.nan) if eqx.is_inexact_array(leaf) else leaf
