"""Basin hopping: Wales & Doye, J. Phys. Chem. A 101 (1997) 5111.

From a local minimum x with value f: move at random, solve from there, and go on from the new
minimum x', f' with probability

    min(1, exp(-(f' - f) / T)),                                                          (1)

and never from a success to a failure. Every ``interval`` hops the step size is divided by
``factor`` if more than ``target`` of all hops so far were accepted, else multiplied.

The local solver's steps and the hops are one state machine: a step is one of the local solver and,
where that ends the solve, a hop. So chains that are batched wait for each other at the end only.

Different from SciPy: the random numbers.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...functions import Lifted
from ...jax_support.control_flow import cond
from ...problem.minimization import MinimizationProblem
from ...results.base import RUNNING
from ...results.global_search import HOPS_DONE, UNCHANGED
from ..minimize.base import AbstractMinimizer


class State(eqx.Module):
    """A chain."""

    key: Array
    local: PyTree  # the state of the local solver
    x: Array  # (n,) the minimum from which it hops
    value: Array  # () f there
    fine: Array  # () bool: whether that solve succeeded
    best: PyTree  # the local solver's result at the lowest minimum
    trial: Array  # (n,) the last minimum found
    trial_value: Array  # ()
    accepted: Array  # () bool: whether it was accepted
    stepsize: Array  # ()
    acceptances: Array  # () how many hops were accepted
    unchanged: Array  # () hops since the best has changed
    failures: Array  # () solves that failed
    nit: Array  # () hops; -1 in the first solve
    nfev: Array  # () of the solves that have ended
    njev: Array  # ()
    status: Array  # () 0 while it runs


class Hop(eqx.Module):
    """What the callback gets after a solve."""

    x: Float[Array, " n"]
    fun: Float[Array, ""]
    best: Float[Array, ""]
    accepted: Bool[Array, ""]
    nit: Int[Array, ""]


class BasinHopping(eqx.Module):
    """The settings; see the module for the mathematics.

    Attributes
    ----------
    solver : AbstractMinimizer
        The local solver.
    niter, interval, niter_success : arrays of int, shape ()
    temperature, stepsize, target, factor : arrays, shape ()
    take_step : callable or None
        ``(x, stepsize, key) -> x``.
    accept_test : callable or None
        ``(f_new, x_new, f_old, x_old) -> bool``, besides (1).
    """

    solver: AbstractMinimizer
    niter: Array
    interval: Array
    niter_success: Array
    temperature: Array
    stepsize: Array
    target: Array
    factor: Array
    take_step: Lifted | None
    accept_test: Lifted | None

    def init(self, problem: MinimizationProblem, x0: Array, key: Array) -> State:
        """The state before the first solve, from x0."""
        local = self.solver.init(problem, x0)
        infinite, none = jnp.full((), jnp.inf, x0.dtype), jnp.zeros((), jnp.int32)
        best = jax.eval_shape(lambda: self.solver.finish(problem, local))
        best = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), best)
        return State(
            key=key, local=local, x=x0, value=infinite, fine=jnp.array(False), best=best,
            trial=x0, trial_value=infinite, accepted=jnp.array(False),
            stepsize=jnp.asarray(self.stepsize), acceptances=none, unchanged=none, failures=none,
            nit=none - 1, nfev=none, njev=none, status=none,
        )  # fmt: skip

    def running(self, state: State) -> Array:
        """Whether there is to be another step."""
        return state.status == RUNNING

    def step(self, problem: MinimizationProblem, state: State) -> State:
        """A step of the local solver; and a hop, if it has ended."""
        local = self.solver.step(problem, state.local)
        state = eqx.tree_at(lambda state: state.local, state, local)
        going_on = self.solver.running(problem, local)
        return cond(going_on, lambda: state, lambda: self._hop(problem, state))

    @property
    def has_minimum(self) -> bool:
        """Whether a local solver may have found the answer."""
        return True

    def described(self, before: State, after: State) -> tuple[Hop, Array]:
        """What the callback gets after a step, and whether that was a hop."""
        hop = Hop(after.trial, after.trial_value, after.best.fun, after.accepted, after.nit)
        return hop, after.nit > before.nit

    def answer(self, state: State) -> PyTree:
        """The local solver's result at the lowest minimum."""
        return state.best

    def _hop(self, problem: MinimizationProblem, state: State) -> State:
        key, for_choice, for_step = jax.random.split(state.key, 3)
        result = self.solver.finish(problem, state.local)
        first = state.nit < 0
        x, value = result.x, result.fun.astype(state.value.dtype)
        fine = result.success & jnp.isfinite(value)
        accepted = first | self._accepts(state, x, value, fine, for_choice)
        lower = first | (accepted & fine & (~state.best.success | (value < state.best.fun)))
        best = jax.tree.map(lambda new, old: jnp.where(lower, new, old), result, state.best)
        x_now, value_now, fine_now = (
            jnp.where(accepted, new, old)
            for new, old in ((x, state.x), (value, state.value), (fine, state.fine))
        )
        nit = state.nit + 1
        acceptances = state.acceptances + (accepted & ~first).astype(jnp.int32)
        unchanged = jnp.where(lower, 0, state.unchanged + 1).astype(jnp.int32)
        stepsize = self._adapted(state.stepsize, nit + 1, acceptances)
        start = self._moved(x_now, stepsize, for_step)
        status = jnp.where(unchanged > self.niter_success, UNCHANGED, RUNNING)
        status = jnp.where((status == RUNNING) & (nit >= self.niter), HOPS_DONE, status)
        return State(
            key=key, local=self.solver.init(problem, start), x=x_now, value=value_now,
            fine=fine_now, best=best, trial=x, trial_value=value, accepted=accepted,
            stepsize=stepsize, acceptances=acceptances, unchanged=unchanged,
            failures=state.failures + (~result.success).astype(jnp.int32), nit=nit,
            nfev=state.nfev + result.nfev, njev=state.njev + result.njev,
            status=status.astype(jnp.int32),
        )  # fmt: skip

    def _accepts(self, state: State, x: Array, value: Array, fine: Array, key: Array) -> Array:
        """(1), where f = NaN is the highest of all."""
        old = jnp.where(jnp.isnan(state.value), jnp.inf, state.value)
        chance = jnp.exp(-(value - old) / self.temperature)
        drawn = jax.random.uniform(key, (), value.dtype)
        accepted = ((value <= old) | (drawn < chance)) & (fine | ~state.fine)
        if self.accept_test is None:
            return accepted
        return accepted & self.accept_test(value, x, state.value, state.x)

    def _adapted(self, stepsize: Array, steps: Array, acceptances: Array) -> Array:
        """For the step that is number ``steps``."""
        many = acceptances.astype(stepsize.dtype) > self.target * steps.astype(stepsize.dtype)
        adapted = jnp.where(many, stepsize / self.factor, stepsize * self.factor)
        return jnp.where(steps % self.interval == 0, adapted, stepsize)

    def _moved(self, x: Array, stepsize: Array, key: Array) -> Array:
        if self.take_step is not None:
            return self.take_step(x, stepsize, key)
        return x + stepsize * jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0)
