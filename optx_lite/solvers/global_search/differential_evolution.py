"""Differential evolution: Storn & Price, J. Global Optimization 11 (1997) 341.

A population of S points. In each generation every point x_i meets a trial, which is x_i with some
entries replaced by those of a mutant b,

    best1           b = x_0 + F (x_r0 - x_r1)
    best2           b = x_0 + F (x_r0 + x_r1 - x_r2 - x_r3)
    rand1           b = x_r0 + F (x_r1 - x_r2)
    rand2           b = x_r0 + F (x_r1 + x_r2 - x_r3 - x_r4)
    randtobest1     b = x_r0 + F (x_0 - x_r0 + x_r1 - x_r2)
    currenttobest1  b = x_i + F (x_0 - x_i + x_r0 - x_r1)

x_0 the best point, r0, r1, ... distinct and not i, F a number, or one drawn for each generation
(dithering). Which entries: each with probability CR ("bin"), or a run that begins anywhere, wraps
around, and goes on with probability CR ("exp"); always at least one. An entry that leaves the box
is drawn anew. The trial takes the place of x_i by Lampinen's rule (CEC 2002):

    both feasible: if f is not higher; only the trial feasible: always;
    the trial infeasible: if no component of the constraints is violated more.

The end: the standard deviation of f over the population is at most ``atol + tol |mean f|``.

`updating`. "deferred": all trials of a generation are made of the one before, so they are
evaluated together. "immediate": one after the other, each made of what the population is by then
(Wormington et al. 1999). The points that are picked, the entries that are crossed and the
replacements do not depend on that, and are drawn for the whole generation at once.

Different from SciPy: the random numbers; NaN counts as infinite, where SciPy's search would keep it
as its best; where all energies are 0 the search has converged.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...functions import Lifted
from ...jax_support.control_flow import fori_loop, where
from ...jax_support.types import Count
from ...problem.global_search import SearchProblem
from ...results.base import RUNNING
from ...results.global_search import (
    BAD_BOUNDS,
    CONVERGED,
    INFEASIBLE,
    MAXFUN_EXCEEDED,
    MAXFUN_REACHED,
    NONFINITE,
    DifferentialEvolutionResult,
)
from .draws import below, distinct

Mutation = Callable[[Array, Array, Array, Array], Array]

# Of x_i, x_0, the points picked and F; with how many points are picked.
MUTATIONS: dict[str, tuple[int, Mutation]] = {
    "best1": (2, lambda x, best, r, F: best + F * (r[0] - r[1])),
    "best2": (4, lambda x, best, r, F: best + F * (r[0] + r[1] - r[2] - r[3])),
    "rand1": (3, lambda x, best, r, F: r[0] + F * (r[1] - r[2])),
    "rand2": (5, lambda x, best, r, F: r[0] + F * (r[1] + r[2] - r[3] - r[4])),
    "randtobest1": (3, lambda x, best, r, F: r[0] + F * (best - r[0] + r[1] - r[2])),
    "currenttobest1": (2, lambda x, best, r, F: x + F * (best - x + r[0] - r[1])),
}
STRATEGIES = [name + crossover for name in MUTATIONS for crossover in ("bin", "exp")]


class Member(eqx.Module):
    """A point with its value and its violations; or many, along a first axis."""

    unit: Array  # (n,) in the unit cube
    energy: Array  # () f, infinite where a constraint is violated
    violation: Array  # (M,) of each component of the constraints

    @property
    def feasible(self) -> Array:
        """Whether no constraint is violated."""
        return ~jnp.any(self.violation > 0, axis=-1)

    @property
    def total(self) -> Array:
        """The sum of the violations."""
        return jnp.sum(self.violation, axis=-1)


class State(eqx.Module):
    """A population, its best point first."""

    key: Array
    members: Member  # (S, ...)
    nfev: Array  # ()
    nit: Array  # () generations; -1 before the first evaluation
    status: Array  # () 0 while it runs


class Plan(eqx.Module):
    """What is drawn for the trials of a generation; the first axis counts the points."""

    picked: Array  # (S, k) the numbers r0, r1, ...
    crossed: Array  # (S, n) bool: the entries that come from the mutant
    replacement: Array  # (S, n) for entries that leave the box
    key: Array | None  # (S,) for a strategy of the user's


class DifferentialEvolution(eqx.Module):
    """The settings of a search; see the module for the mathematics.

    Attributes
    ----------
    strategy : str, static
        One of `STRATEGIES`, or "custom", with the function in ``custom``.
    custom : callable or None
        ``(candidate, population, key) -> trial``, in parameters.
    mutation : array, shape (2,)
        F is drawn between them.
    recombination : array, shape ()
        CR.
    tol, atol : arrays, shape ()
    maxiter, maxfun : arrays, shape ()
    immediate : bool, static
    """

    strategy: str = eqx.field(static=True)
    custom: Lifted | None
    mutation: Array
    recombination: Array
    tol: Array
    atol: Array
    maxiter: Array
    maxfun: Array
    immediate: bool = eqx.field(static=True)

    def init(self, problem: SearchProblem, population: Array, key: Array) -> State:
        """The state in which nothing has been evaluated yet."""
        size, dtype = population.shape[0], population.dtype
        components = jax.eval_shape(problem.violation, population[0]).shape[0]
        finite = jnp.all(jnp.isfinite(problem.lower) & jnp.isfinite(problem.upper))
        return State(
            key=key,
            members=Member(
                population, jnp.full(size, jnp.inf, dtype), jnp.zeros((size, components), dtype)
            ),
            nfev=jnp.zeros((), jnp.int32),
            nit=jnp.full((), -1, jnp.int32),
            status=jnp.where(finite, RUNNING, BAD_BOUNDS).astype(jnp.int32),
        )

    def running(self, state: State) -> Array:
        """Whether there is to be another generation; the one before the first is the start."""
        return (state.status == RUNNING) & (state.nit < self.maxiter)

    def step(self, problem: SearchProblem, state: State) -> State:
        """Evaluate the start, or the next generation; the function stands here once."""
        key, drawn = jax.random.split(state.key)
        scale, plan = self._plan(state.members.unit, drawn)
        generation = self._one_by_one if self.immediate else self._all_at_once
        state = generation(problem, state, plan, scale)
        started = state.nit >= 0
        ended = started & (state.status == RUNNING) & self.converged(state)
        return eqx.tree_at(
            lambda s: (s.key, s.nit, s.status),
            state,
            (key, state.nit + 1, jnp.where(ended, CONVERGED, state.status).astype(jnp.int32)),
        )

    def converged(self, state: State) -> Array:
        """Whether the energies agree."""
        spread, mean, unit = _spread(state.members.energy)
        return spread <= self.atol / unit + self.tol * mean

    def finish(self, problem: SearchProblem, state: State) -> DifferentialEvolutionResult:
        """The answer."""
        x = problem.at(state.members.unit)
        best, status = x[0], state.status
        constr = maxcv = None
        bad = (status == BAD_BOUNDS) | (state.nit < 0)
        status = jnp.where(~bad & ~jnp.isfinite(state.members.energy[0]), NONFINITE, status)
        if problem.constraints:
            constr = problem.violation_of_each(best)
            maxcv = jnp.max(jnp.concatenate(constr))
            status = jnp.where(~bad & (maxcv > 0), INFEASIBLE, status)
        spread, mean, _ = _spread(state.members.energy)
        eps = jnp.finfo(x.dtype).eps
        return DifferentialEvolutionResult(
            x=jnp.where(bad, jnp.nan, best),
            fun=jnp.where(bad, jnp.nan, state.members.energy[0]),
            nfev=state.nfev,
            nit=jnp.maximum(state.nit, 0),
            population=x,
            population_energies=state.members.energy,
            jac=None,
            constr=constr,
            maxcv=maxcv,
            convergence=self.tol / (spread / (mean + eps) + eps),
            status=status.astype(jnp.int32),
        )

    def report(self, problem: SearchProblem, state: State) -> DifferentialEvolutionResult:
        """What a callback gets after a generation; its status means nothing yet."""
        return self.finish(problem, state)

    # -- the trials ------------------------------------------------------------------------

    def _plan(self, population: Array, key: Array) -> tuple[Array, Plan]:
        """F, and what is drawn for each point."""
        size, n = population.shape
        picks = 0 if self.custom is not None else MUTATIONS[self.strategy[:-3]][0]
        for_scale, for_points, for_custom = jax.random.split(key, 3)
        low, high = self.mutation
        scale = low + (high - low) * jax.random.uniform(for_scale, (), population.dtype)
        drawn = jax.random.uniform(for_points, (size, picks + 1 + 2 * n), population.dtype)
        of_picks, of_begin, of_cross, replacement = jnp.split(
            drawn, [picks, picks + 1, picks + 1 + n], axis=1
        )
        begin = below(of_begin, n)
        own = jnp.arange(size, dtype=jnp.int32)
        chosen = of_cross < self.recombination
        entry = jnp.arange(n, dtype=jnp.int32)[None]
        if self.strategy.endswith("exp"):
            # Counted from where the run begins, it goes on as long as all before are chosen.
            going_on = jnp.cumprod(chosen[:, 1:].astype(jnp.int32), axis=1)
            length = 1 + jnp.sum(going_on, axis=1, keepdims=True, dtype=jnp.int32)
            crossed = (entry - begin) % n < length
        else:
            crossed = chosen | (entry == begin)
        keys = None if self.custom is None else jax.random.split(for_custom, size)
        return scale, Plan(distinct(of_picks, size, [own]), crossed, replacement, keys)

    def _trial(
        self, problem: SearchProblem, population: Array, i: Count, plan: Plan, scale: Array
    ) -> Array:
        """The trial that point i meets, in the unit cube; ``plan`` is that of this point."""
        if self.custom is not None:
            number = jnp.asarray(i, jnp.int32)
            trial = problem.unit(self.custom(number, problem.at(population), plan.key))
        else:
            mutant = MUTATIONS[self.strategy[:-3]][1](
                population[i], population[0], population[plan.picked], scale
            )
            trial = jnp.where(plan.crossed, mutant, population[i])
        return jnp.where((trial >= 0) & (trial <= 1), trial, plan.replacement)

    # -- a generation ----------------------------------------------------------------------

    def _all_at_once(self, problem: SearchProblem, state: State, plan: Plan, scale: Array) -> State:
        first, old = state.nit < 0, state.members
        numbers = jnp.arange(old.energy.shape[0])
        trials = jax.vmap(lambda i, plan: self._trial(problem, old.unit, i, plan, scale))(
            numbers, plan
        )
        unit = jnp.where(first, old.unit, trials)
        x = problem.at(unit)
        new = Member(unit, problem.values(x), problem.violations(x))
        counted = new.feasible.astype(jnp.int32)
        before = jnp.cumsum(counted, dtype=jnp.int32) - counted  # evaluations, up to each
        allowed = jnp.maximum(self.maxfun - state.nfev, 0)
        evaluated = new.feasible & (before < allowed)
        new = _with_energy(new, evaluated)
        nfev = jnp.sum(evaluated, dtype=jnp.int32)
        if problem.vectorized:
            nfev = jnp.ones_like(nfev)
        spent = ~first & (allowed == 0)  # then there is no generation any more
        accepted = jax.vmap(_accepted)(new, old) | first
        members = _best_first(where(accepted & ~spent, new, old))
        return _next(state, members, jnp.where(spent, 0, nfev), spent, MAXFUN_REACHED)

    def _one_by_one(self, problem: SearchProblem, state: State, plan: Plan, scale: Array) -> State:
        first = state.nit < 0

        def meet(i: Count, carry: tuple[Member, Array]) -> tuple[Member, Array]:
            members, nfev = carry
            old, drawn = jax.tree.map(lambda leaf: leaf[i], (members, plan))
            best = jax.tree.map(lambda leaf: leaf[0], members)
            unit = jnp.where(first, old.unit, self._trial(problem, members.unit, i, drawn, scale))
            x = problem.at(unit)
            new = Member(unit, problem.value(x), problem.violation(x))
            active = jnp.where(first, nfev < self.maxfun, nfev <= self.maxfun)
            evaluated = new.feasible & active
            new = _with_energy(new, evaluated)
            new = where(first | (active & _accepted(new, old)), new, old)
            # The best is at the front: a better one changes places with it.
            better = (i > 0) & _better(new, best)
            front, here = where(better, new, best), where(better, best, new)
            members = jax.tree.map(lambda leaf, row: leaf.at[0].set(row), members, front)
            members = jax.tree.map(lambda leaf, row: leaf.at[i].set(row), members, here)
            return members, nfev + evaluated.astype(nfev.dtype)

        size = state.members.energy.shape[0]
        members, nfev = fori_loop(0, size, meet, (state.members, state.nfev))
        spent = ~first & (nfev > self.maxfun)
        return _next(state, members, nfev - state.nfev, spent, MAXFUN_EXCEEDED)


def _next(state: State, members: Member, nfev: Array, spent: Array, code: int) -> State:
    """The state with its new members; ``code`` where the evaluations are spent."""
    return State(
        key=state.key,
        members=members,
        nfev=state.nfev + nfev,
        nit=state.nit,
        status=jnp.where(spent, code, state.status).astype(jnp.int32),
    )


def _with_energy(member: Member, evaluated: Array) -> Member:
    """With an infinite energy where it does not count as evaluated."""
    energy = jnp.where(evaluated, member.energy, jnp.inf)
    return Member(member.unit, energy, member.violation)


def _accepted(new: Member, old: Member) -> Array:
    """Lampinen's rule."""
    lower = new.energy <= old.energy
    less = jnp.all(new.violation <= old.violation)
    return jnp.where(new.feasible, ~old.feasible | lower, ~old.feasible & less)


def _better(new: Member, old: Member) -> Array:
    """Whether it is a better solution: of two infeasible ones that which violates less."""
    lower = new.energy < old.energy
    less = new.total < old.total
    return jnp.where(new.feasible, ~old.feasible | lower, ~old.feasible & less)


def _best_first(members: Member) -> Member:
    """With the best at the front, which changes places with it."""
    lowest = jnp.argmin(members.energy)
    finite = members.energy[lowest] < jnp.inf  # and so feasible
    best = jnp.where(finite, lowest, jnp.argmin(members.total))

    def swap(leaf: Array) -> Array:
        front = leaf[0]
        return leaf.at[0].set(leaf[best]).at[best].set(front)

    return jax.tree.map(swap, members)


def _spread(energies: Array) -> tuple[Array, Array, Array]:
    """Standard deviation and |mean|, in a unit in which their squares stay in range.

    Infinite energies have an infinite deviation.
    """
    unit = jnp.max(jnp.abs(energies))
    usual = (unit > 0) & jnp.isfinite(unit)
    unit = jnp.where(usual, unit, 1)
    finite = jnp.all(jnp.isfinite(energies))
    scaled = jnp.where(jnp.isfinite(energies), energies, 0) / unit
    spread = jnp.where(finite, jnp.std(scaled), jnp.inf)
    return spread, jnp.where(finite, jnp.abs(jnp.mean(scaled)), 0), unit
