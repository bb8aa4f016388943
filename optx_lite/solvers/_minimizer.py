"""What the machines that minimise a scalar function share: when they end, and what they tell.

The end. SciPy's L-BFGS-B stops where the last reduction of f was small relative to max(|f|, 1),
or where the projected gradient is small. Both are met far from a minimum if f is flat there, or
is measured in small units. Here a machine also has to say what there is still to be gained, by
the quadratic that it knows of, and no test counts unless that is small, too:

    q <= ftol |f|,    and    |f_before - f| <= ftol |f|   or   ||P(x - g) - x||_inf <= gtol.   (1)

Far from a minimum a quadratic made of unsuitable pairs may promise nothing for some iterations
on end. So the first way of (1) must hold for as many of them as ftol asks for digits, at most
`CALM`, unless q is below the rounding of f; and for `PATIENCE` times as many if the gradient
might hide more than q: if all of it lay along the flattest direction that was seen,

    g_F.g_F / (2 kappa) > ftol |f|,    kappa the least s.y / s.s,                    (2)

F the variables which g does not hold at a bound. (Where ftol asks for all that values can tell,
there is nothing to wait for.)

An f that goes to 0 would never be "small relative to |f|": in (1) |f| is at least the root of
epsilon of all that f has fallen by. And where q is so small that the line search does not go by
values any more, nothing else could end a solve: ftol counts as no less than `DOUBT` times the
`NOISE` of `_more_thuente`.
"""

from __future__ import annotations

import abc
from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._bounds import projected_descent
from .._minimize_result import (
    FTOL,
    GTOL,
    LIMIT,
    MAXFUN,
    MAXITER,
    RUNNING,
    STATUS,
    MinimizeResult,
)
from .._monitor import Report
from .._problem import MinimizationProblem
from ..linalg import norm
from ._base import AbstractSolver
from ._more_thuente import DOUBT, NOISE

CALM = 10
PATIENCE = 5


class BestSeen(eqx.Module):
    """Where a machine stands; the states of all begin with this."""

    x: Array  # (n,) best point
    value: Array  # () f there
    grad: Array  # (n,)
    value0: Array  # () f at x0
    nfev: Array  # () evaluations
    nit: Array  # () iterations that are done
    calm: Array  # () how many of the last ones met the test on f
    status: Array  # () 0 while it runs


State = TypeVar("State", bound=BestSeen)


class AbstractMinimizer(AbstractSolver[MinimizationProblem, State]):
    """A machine that minimises; the algorithm is `init` and `step`.

    Attributes
    ----------
    ftol, gtol : float
        See the module; ``gtol`` is absolute.
    maxfun, maxiter : int
        Most evaluations and iterations.
    """

    ftol: Any = 2.2204460492503131e-09
    gtol: Any = 1e-5
    maxfun: Any = 15000
    maxiter: Any = 15000

    @abc.abstractmethod
    def origin(self, state: State) -> tuple[Array, Array]:
        """Where the iteration at work began: x and f."""

    def inverse_hessian(self, state: State) -> Any:
        """What the algorithm knows of it."""
        return None

    def slopes(self, state: State) -> Any:
        """See `MinimizeResult`."""
        return None

    def running(self, problem: MinimizationProblem, state: State) -> Array:
        """Whether the machine wants another step."""
        return (state.status == RUNNING) & (state.nfev < self.maxfun)

    def most_steps(self, n: int) -> Any:
        """No run takes more."""
        return self.maxfun

    def judge(
        self,
        problem: MinimizationProblem,
        state: State,
        before: Array,
        promised: Array,
        possible: Array,
    ) -> tuple[Array, Array]:
        """The status by (1), and ``calm``.

        ``before`` is f one iteration ago, inf at the first; ``possible`` the left of (2).
        """
        eps = jnp.finfo(state.value.dtype).eps
        fallen = eps**0.5 * (state.value0 - state.value)
        size = jnp.maximum(jnp.abs(state.value), fallen)
        finest = DOUBT * NOISE * eps
        ftol = jnp.maximum(self.ftol, finest)
        least = ftol * size
        settled = promised <= least
        small = settled & (jnp.abs(before - state.value) <= least)
        calm = jnp.where(small, state.calm + 1, 0)
        asked = jnp.clip(-jnp.log10(ftol), 1, CALM)
        hidden = (possible > least) & (self.ftol > finest)
        asked = jnp.where(hidden, PATIENCE * asked, asked)
        over = small & ((calm.astype(asked.dtype) >= asked) | (promised <= eps * size))
        optimality = self.optimality(problem, state)
        status = jnp.where(state.nit >= self.maxiter, MAXITER, RUNNING)
        status = jnp.where(over, FTOL, status)
        return jnp.where(settled & (optimality <= self.gtol), GTOL, status), calm

    def optimality(self, problem: MinimizationProblem, state: State) -> Array:
        """||P(x - g) - x||_inf."""
        return jnp.max(jnp.abs(projected_descent(problem, state.x, state.grad)))

    def finish(self, problem: MinimizationProblem, state: State) -> MinimizeResult:
        """The answer on flat vectors."""
        task = jnp.where(state.status == RUNNING, MAXFUN, state.status)
        status = jnp.full_like(task, LIMIT)
        for code, what in STATUS.items():
            status = jnp.where(task == code, what, status)
        return MinimizeResult(
            x=state.x,
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
        """What a callback is told after a step, and whether the step ended an iteration."""
        x, value = self.origin(before)
        first = before.nfev == 0
        told = Report(
            x=after.x,
            fun=after.value,
            value=after.value,
            reduction=jnp.where(first, 0, value - after.value),
            step_norm=jnp.where(first, 0, norm(after.x - x)),
            optimality=self.optimality(problem, after),
            nit=after.nit,
            nfev=after.nfev,
        )
        return told, after.nit > before.nit
