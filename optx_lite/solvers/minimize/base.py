"""What the solvers of a scalar function share: when they end, and what they report.

The end. SciPy's L-BFGS-B stops where the last reduction of f was small relative to max(|f|, 1),
or where the projected gradient is small. Both are met far from a minimum if f is flat there, or
is measured in small units; and a test relative to f where the solve began, or to what f has
fallen by, is met anywhere if it began high enough. So a solver has to say what there is still to
be gained from here, q, by its quadratic, and no test counts unless that is small beside what f, g
and x are here:

    q <= ftol |f|    or    q <= ftol^3/4 G / 2,    G = |g_F|.|x_F|,                    (1)

F the variables which g does not hold at a bound. The first says that there are no more digits of f
to be gained. The second says that of x: G is by what f changes, to first order, if all x_j change
by |x_j|. As q = -g.d / 2, a step d is small relative to x, weighted by g. (An f that is right to
ftol goes with an x that is right to the root of it. Half of the way from there to ftol costs next
to nothing where steps shrink superlinearly, and tells that from a slow walk along a valley.) It is
what ends a solve whose f goes to 0. Neither depends on the units of f and of each x_j.

    gtol    (1)  and  ||P(x - g) - x||_inf <= gtol                                    (2)
    ftol    (1)  and  f_before - f <= ftol |f|  or  <= ftol^3/4 G_before / 2          (3)

The rounding of f is eps (|f| + G), that of its computation and that of x; so ftol counts as no less
than `NOISE` times epsilon. Far from a minimum a quadratic made of unsuitable pairs may promise
nothing for some iterations on end, while the gradient hides more than that: if all of it lay along
the flattest direction that was seen, it could be

    g_F.g_F / (2 kappa),    kappa the least s.y / s.s.                                (4)

(2) counts where (1) held one iteration before as well, so that a step as small as that has shown
that the quadratic is right; and as often as ftol asks for digits, at most `CALM`, if (4) is not
small in the sense of (1). (3) counts if it has held that often; for `PATIENCE` times as many
iterations if (4) is not small (where ftol asks for all that values can tell, there is nothing to
wait for); and only as often as there are variables if q and f_before - f are rounding.

Values may be noisier than that, or the gradient too rough to bring q so low. Where f stands
still, and q is no more than what makes the line search go by slopes instead of values, `DOUBT`
times `NOISE` times the rounding, a solve ends as well, if that lasts `PATIENCE` times as long.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ...linalg import dot, norm
from ...problem.bounds import projected_descent
from ...problem.minimization import MinimizationProblem
from ...results.minimize import (
    BAD_BOUNDS,
    FTOL,
    GTOL,
    LIMIT,
    MAXFUN,
    MAXITER,
    RUNNING,
    STATUS,
    MinimizeResult,
)
from ..base import AbstractSolver, Report
from .line_search import DOUBT, NOISE

CALM = 10
PATIENCE = 5
CONFIRM = 2


def status_of_bounds(problem: MinimizationProblem) -> Array:
    """Of a solve that has not begun: traced bounds may be reversed, or NaN."""
    if not problem.bounded:
        return jnp.full((), RUNNING, jnp.int32)
    ordered = jnp.all(problem.lower <= problem.upper)
    return jnp.where(ordered, RUNNING, BAD_BOUNDS).astype(jnp.int32)


def negligible(value: Array, reach: Any, tolerance: Any) -> Array:
    """What no digit of f, to ``tolerance``, and none of x can show; ``reach`` is G of (1)."""
    return jnp.maximum(tolerance * jnp.abs(value), 0.5 * tolerance**0.75 * reach)


def rounding(value: Array, reach: Any) -> Array:
    """What f may be wrong by, its own rounding and that of x, and at the end of its range."""
    info = jnp.finfo(value.dtype)
    return info.eps * (jnp.abs(value) + reach) + info.smallest_normal


def reach_of(x: Array, descent: Array) -> Array:
    """G of (1), of a projected gradient, (n,)."""
    return dot(jnp.abs(x), jnp.abs(descent))


class BestSeen(eqx.Module):
    """Where a solver stands; the states of all begin with this."""

    x: Array  # (n,) best point
    value: Array  # () f there, NaN before the first evaluation
    grad: Array  # (n,)
    nfev: Array  # () evaluations
    nit: Array  # () iterations that are done
    calm: Array  # () how many of the last ones met the test on f
    status: Array  # () 0 while it runs


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
        """Whether the solver wants another step."""
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
        reach: Any = 0.0,
        reach_before: Any = 0.0,
        lasted: Any = None,
    ) -> tuple[Array, Array]:
        """The status by (2) and (3), and ``calm``.

        ``before`` is f one iteration ago, inf at the first; ``promised`` q; ``possible`` (4);
        ``reach`` and ``reach_before`` G now and then; ``lasted`` for how many
        iterations before (1) has held.
        """
        eps = jnp.finfo(state.value.dtype).eps
        ftol = jnp.maximum(self.ftol, NOISE * eps)
        rough = jnp.maximum(self.ftol, DOUBT * NOISE * eps)
        least = self.nothing(state, reach)
        settled, sure = promised <= least, possible <= least
        exact = rounding(state.value, reach)
        doubtful = settled | (self.BY_SLOPES & (promised <= DOUBT * NOISE * exact))
        still = jnp.abs(before - state.value) <= negligible(state.value, reach_before, ftol)
        calm = jnp.where(doubtful & still, state.calm + 1, 0)
        digits = jnp.clip(-jnp.log10(rough), 1, CALM)
        few = jnp.minimum(digits, state.x.shape[0])
        patient = ~settled | (~sure & (self.ftol >= rough))
        asked = jnp.where(patient, PATIENCE * digits, digits)
        gained = jnp.abs(before - state.value)
        exhausted = (promised <= exact) & (gained <= NOISE * exact)
        asked = jnp.where(exhausted, few, asked)
        status = jnp.where(state.nit >= self.maxiter, MAXITER, RUNNING)
        status = jnp.where(doubtful & still & (calm.astype(asked.dtype) >= asked), FTOL, status)
        flat = self.optimality(problem, state) <= self.gtol
        lasted = calm if lasted is None else lasted
        often = jnp.where(sure, min(CONFIRM, state.x.shape[0] + 1), digits)
        confirmed = ((lasted + 1).astype(digits.dtype) >= often) | (promised == 0)
        return jnp.where(settled & flat & confirmed, GTOL, status), calm

    def nothing(self, state: State, reach: Any) -> Array:
        """The right of (1)."""
        finest = NOISE * jnp.finfo(state.value.dtype).eps
        return negligible(state.value, reach, jnp.maximum(self.ftol, finest))

    def optimality(self, problem: MinimizationProblem, state: State) -> Array:
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
