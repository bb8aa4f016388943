"""What the solvers of a scalar function share: their end (`convergence`), and what they report."""

from __future__ import annotations

import abc
from typing import ClassVar, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...jax_support.types import Count, Number
from ...linalg import norm
from ...problem.bounds import projected_descent
from ...problem.minimization import MinimizationProblem
from ...results.minimize import (
    BAD_BOUNDS,
    LIMIT,
    MAXFUN,
    MAXITER,
    RUNNING,
    STATUS,
    MinimizeResult,
)
from ..base import AbstractSolver, Report
from .convergence import Prospect, at_least_noise, judge, negligible


def status_of_bounds(problem: MinimizationProblem) -> Int[Array, ""]:
    """Of a solve that has not begun: traced bounds may be reversed, or NaN."""
    if not problem.bounded:
        return jnp.full((), RUNNING, jnp.int32)
    ordered = jnp.all(problem.lower <= problem.upper)
    return jnp.where(ordered, RUNNING, BAD_BOUNDS).astype(jnp.int32)


class BestSeen(eqx.Module):
    """Where a solver stands; the states of all begin with this."""

    x: Float[Array, " n"]  # best point
    value: Float[Array, ""]  # f there, NaN before the first evaluation
    grad: Float[Array, " n"]
    nfev: Int[Array, ""]  # evaluations
    nit: Int[Array, ""]  # iterations that are done
    unchanged: Int[Array, ""]  # for how many of them on end the test on f has held
    status: Int[Array, ""]  # 0 while it runs


State = TypeVar("State", bound=BestSeen)


class AbstractMinimizer(AbstractSolver[MinimizationProblem, State]):
    """A solver that minimises; the algorithm is `init` and `step`.

    Attributes
    ----------
    ftol, gtol : float
        See the module; ``gtol`` is absolute.
    maxfun, maxiter : int
        Most evaluations and iterations.
    """

    BY_SLOPES: ClassVar[bool] = False  # whether values at the level of their noise do not stop it

    ftol: Number = 2.2204460492503131e-09
    gtol: Number = 1e-5
    maxfun: Count = 15000
    maxiter: Count = 15000

    @abc.abstractmethod
    def origin(self, state: State) -> tuple[Float[Array, " n"], Float[Array, ""]]:
        """Where the iteration at work began: x and f."""

    def inverse_hessian(self, state: State) -> PyTree:
        """The approximation that the algorithm has made, if any."""
        return None

    def slopes(self, state: State) -> PyTree:
        """See `MinimizeResult`."""
        return None

    def running(self, problem: MinimizationProblem, state: State) -> Bool[Array, ""]:
        """Whether there is to be another step."""
        return (state.status == RUNNING) & (state.nfev < self.maxfun)

    def most_steps(self, n: int) -> Count:
        """No run takes more."""
        return self.maxfun

    def judge(
        self,
        problem: MinimizationProblem,
        state: State,
        before: Float[Array, ""],
        promised: Float[Array, ""],
        possible: Float[Array, ""],
        reach: Array | float = 0.0,
        reach_before: Array | float = 0.0,
        lasted: Array | None = None,
        tested: Array | bool = False,
    ) -> tuple[Array, Array]:
        """The status, and ``unchanged``; see `convergence`.

        ``before`` is f one iteration ago, inf at the first; ``promised`` what the quadratic
        promises; ``possible`` what it may hide; ``reach`` and ``reach_before`` G now and then;
        ``lasted`` for how many iterations before the promise was negligible; ``tested`` whether
        the quadratic comes of more than one pair.
        """
        prospect = Prospect(
            value=state.value, before=before, promised=promised, possible=possible, reach=reach,
            reach_before=reach_before, optimality=self.optimality(problem, state),
            lasted=state.unchanged if lasted is None else lasted, tested=tested,
        )  # fmt: skip
        n = state.x.shape[0]
        met, unchanged = judge(
            prospect, self.ftol, self.gtol, state.unchanged, n, self.BY_SLOPES
        )  # fmt: skip
        limit = jnp.where(state.nit >= self.maxiter, MAXITER, RUNNING)
        return jnp.where(met == RUNNING, limit, met), unchanged

    def nothing(self, state: State, reach: Number) -> Array:
        """So small a promise is negligible."""
        tolerance = at_least_noise(self.ftol, state.value.dtype)
        return negligible(state.value, reach, tolerance)

    def optimality(self, problem: MinimizationProblem, state: State) -> Float[Array, ""]:
        """||P(x - g) - x||_inf."""
        return jnp.max(jnp.abs(projected_descent(problem, state.x, state.grad)))

    def finish(self, problem: MinimizationProblem, state: State) -> MinimizeResult:
        """The answer on flat vectors."""
        task = jnp.where(state.status == RUNNING, MAXFUN, state.status)
        status = jnp.full_like(task, LIMIT)
        for code, what in STATUS.items():
            status = jnp.where(task == code, what, status)
        nowhere = task == BAD_BOUNDS
        return MinimizeResult(
            x=jnp.where(nowhere, jnp.nan, state.x),
            fun=state.value,
            jac=state.grad,
            optimality=self.optimality(problem, state),
            nfev=state.nfev,
            njev=state.nfev,
            nit=state.nit,
            hess_inv=self.inverse_hessian(state),
            task=task,
            status=status,
            slopes=self.slopes(state),
        )

    def report(
        self, problem: MinimizationProblem, before: State, after: State
    ) -> tuple[Report, Array]:
        """What a callback gets after a step, and whether the step ended an iteration."""
        x, value = self.origin(before)
        first = before.nfev == 0
        report = Report(
            x=after.x,
            fun=after.value,
            value=after.value,
            reduction=jnp.where(first, 0, value - after.value),
            step_norm=jnp.where(first, 0, norm(after.x - x)),
            optimality=self.optimality(problem, after),
            nit=after.nit,
            nfev=after.nfev,
        )
        return report, after.nit > before.nit
