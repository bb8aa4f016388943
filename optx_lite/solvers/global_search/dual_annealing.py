r"""Dual annealing: generalised simulated annealing, and a local solve from what it finds.

Y. Xiang, S. Gubian, B. Suomela, J. Hoeng, "Generalized Simulated Annealing for Global Optimization:
the GenSA Package", The R Journal 5 (2013) 13; C. Tsallis, D. A. Stariolo, Physica A 233 (1996) 395.

The temperature falls from T_1 with the number t = 1, 2, ... of temperatures since cooling began,

    T = T_1 (2^{q_v - 1} - 1) / ((1 + t)^{q_v - 1} - 1)                                  (1)

and cooling begins anew, from a point drawn in the box, when T < T_1 ``restart``. At each
temperature there are 2 n trials from where the chain is: n that move every variable, then one for
each variable by itself. A variable moves by

    d = sigma N_1 / |N_2|^{(q_v - 1) / (3 - q_v)},       N_1, N_2 normal,                (2)

    sigma = [ sqrt(pi) (q_v - 1)^{4 - q_v} 2^{(q_v - 2) / (q_v - 1)} T^{1 / (q_v - 1)}
              / ((3 - q_v) Gamma(1 / (q_v - 1) - 1/2)) ]^{(q_v - 1) / (3 - q_v)},        (3)

of which few are long, but some across the whole box; what leaves the box on one side enters it on
the other. A trial that is not higher is accepted, one that is higher by D with probability

    max(0, 1 - (1 - q_a) D t / T)^{1 / (1 - q_a)}.                                       (4)

After a temperature at which a trial was the lowest so far, the local solver starts from it. After n
others in a row it starts from the lowest of the points at which the trials left the chain, but only
when the trials since the last solve are as many as the evaluations which that took, a gradient
counted as two; and not where the value is that of the lowest minimum.

A step is one temperature with its local solve, each a loop of its own, so that chains that are
batched wait for each other at each of them. (With one evaluation a step, as elsewhere, a chain took
more than twice as long, for a loop that branches is not compiled to one function.)

Different from SciPy: the random numbers; d is in units of 1e-4 of the box (there, of x), so that
annealing does not depend on the unit of x; a move by more than eps^{-1/2} boxes ends anywhere in
the box (there, beyond 1e8 it is shortened at random); the chain's own local solves begin after n
temperatures (there, the first after 1000), and start from the lowest point of the temperature
(there, from the last that was accepted); no search ends between a trial that was the lowest and its
local solve; the first point of a cooling may be infinite (there, another is drawn), and is not
solved from unless it is the lowest of all.
"""

from __future__ import annotations

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from ...jax_support.control_flow import where, while_loop
from ...problem.bounds import within
from ...problem.global_search import in_box, unit_of_box
from ...problem.minimization import MinimizationProblem
from ...results.base import RUNNING
from ...results.global_search import BAD_BOUNDS, MAXFUN_REACHED, OUT_OF_RANGE, TEMPERATURES_DONE
from ...results.minimize import LIMIT, NOT_SOLVED
from ..minimize.base import AbstractMinimizer

BOX = 1e4  # units of (2) across the box
GRADIENT_COST = 2  # evaluations
ANNEALING, FROM_LOWEST, FROM_CHAIN = range(3)  # what finds a lower point; SciPy's contexts


class Point(eqx.Module):
    """Where, and how high; infinite where that is NaN."""

    x: Float[Array, " n"]
    value: Float[Array, ""]


class Found(eqx.Module):
    """What the callback gets: the lowest point, and what has found it."""

    x: Float[Array, " n"]
    fun: Float[Array, ""]
    context: Int[Array, ""]


class State(eqx.Module):
    """A chain between two temperatures."""

    key: Key[Array, ""]
    now: Point  # where it is
    fresh: Bool[Array, ""]  # whether that point has still to be evaluated
    lowest: Point  # of all
    best: PyTree  # the local solver's result there, if ``polished``
    polished: Bool[Array, ""]
    unchanged: Int[Array, ""]  # temperatures since the last local solve
    patience: Int[Array, ""]  # how many of them there are before one from where the chain is
    time: Int[Array, ""]  # temperatures since cooling began: t - 1
    context: Int[Array, ""]  # what has found `lowest`: one of the three above
    nit: Int[Array, ""]  # temperatures
    nfev: Int[Array, ""]
    njev: Int[Array, ""]
    status: Int[Array, ""]  # 0 while it runs


class Trials(eqx.Module):
    """A chain among the trials of a temperature."""

    key: Key[Array, ""]
    now: Point
    lowest: Point
    lowest_now: Point  # of those at which a trial left it
    number: Int[Array, ""]  # of the next trial; -1 if the chain's own point is to be evaluated

    def evaluated(self, fresh: Array) -> Array:
        """How many points were, ()."""
        return self.number + jnp.where(fresh, 1, 0)


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
        zero, false = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return State(
            key=key, now=point, fresh=~false, lowest=point, best=best, polished=false,
            unchanged=zero, patience=zero + x0.shape[0], time=zero, context=zero + ANNEALING,
            nit=zero, nfev=zero, njev=zero, status=status.astype(jnp.int32),
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
        state = dataclasses.replace(
            state,
            key=after.key,
            now=after.now,
            lowest=after.lowest,
            polished=state.polished & ~improved,
            unchanged=jnp.where(improved, 0, state.unchanged + 1),
            context=jnp.full_like(state.context, ANNEALING),
            nfev=state.nfev + after.evaluated(state.fresh),
        )
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

    def answer(self, state: State) -> PyTree:
        """The local solver's result at the lowest point; not a success if none has ended there.

        NaN where nothing was evaluated.
        """
        nowhere = state.nfev == 0
        unsolved = dataclasses.replace(
            jax.tree.map(_unknown, state.best),
            x=jnp.where(nowhere, jnp.nan, state.lowest.x),
            fun=jnp.where(nowhere, jnp.nan, state.lowest.value).astype(state.best.fun.dtype),
            task=jnp.full_like(state.best.task, NOT_SOLVED),
            status=jnp.full_like(state.best.status, LIMIT),
        )
        return where(state.polished, state.best, unsolved)

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
            evaluated = state.nfev + trials.evaluated(state.fresh)
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
        # Of a longer one less than half of the digits would be left: any point is as likely.
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
        status = jnp.where(nit >= self.maxiter, TEMPERATURES_DONE, status)
        return dataclasses.replace(
            state,
            key=key,
            now=where(cold, drawn, state.now),
            fresh=cold,
            time=jnp.where(cold, 0, time),
            nit=nit,
            status=status.astype(jnp.int32),
        )

    # -- local solves ----------------------------------------------------------------------

    def _solve(
        self, problem: MinimizationProblem, state: State, improved: Array, elsewhere: Point
    ) -> State:
        """After the local solve, if there is to be one, from the lowest point or elsewhere."""
        waited = (state.unchanged >= state.patience) & (state.nfev < self.maxfun)
        # From the lowest point once more only where its solve has not succeeded.
        settled = (elsewhere.value == state.lowest.value) & (~state.polished | state.best.success)
        wanted = improved | (waited & ~settled)
        start = jnp.where(improved, state.lowest.x, elsewhere.x)
        result = self._solved_from(problem, start, wanted)
        found = jnp.where(improved, FROM_LOWEST, FROM_CHAIN)
        return where(wanted, self._arrived(problem, state, result, found), state)

    def _arrived(
        self, problem: MinimizationProblem, state: State, result: PyTree, found: Array
    ) -> State:
        """At the local solver's result, if that is the lowest point."""
        new = Point(result.x, result.fun.astype(state.now.value.dtype))
        # Of two at the same height the one that has succeeded.
        better = ~state.polished | (result.success & ~state.best.success)
        lower = (new.value < state.lowest.value) | ((new.value == state.lowest.value) & better)
        # A solver that knows no bounds may have left the box.
        lowest = lower & within(new.x, problem.lower, problem.upper)
        trials = 2 * new.x.shape[0]
        rounds = -(-(result.nfev + GRADIENT_COST * result.njev) // trials)
        return dataclasses.replace(
            state,
            now=where(lowest, new, state.now),
            lowest=where(lowest, new, state.lowest),
            best=where(lowest, result, state.best),
            polished=state.polished | lowest,
            unchanged=jnp.zeros_like(state.unchanged),
            patience=jnp.maximum(new.x.shape[0], rounds).astype(state.patience.dtype),
            context=jnp.where(lowest, found, state.context).astype(state.context.dtype),
            nfev=state.nfev + result.nfev,
            njev=state.njev + result.njev,
        )

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


def _unknown(leaf: Array) -> Array:
    return jnp.full_like(leaf, jnp.nan if eqx.is_inexact_array(leaf) else 0)
