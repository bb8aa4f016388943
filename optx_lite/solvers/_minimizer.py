"""What the solvers of a scalar function share: when they end, and what they report.

The end. SciPy's L-BFGS-B stops where the last reduction of f was small relative to max(|f|, 1),
or where the projected gradient is small. Both are met far from a minimum if f is flat there, or
is measured in small units; and a test relative to f where the solve began, or to what f has
fallen by, is met anywhere if it began high enough. So a solver has to say what there is still to
be gained from here, q, by its quadratic, and q has to be small beside what f and x are here:

    q <= t |f|    or    q <= t^2 X,    X = (|y|.|x|)^2 / (2 s.y),                      (1)

s and y the last step and the change of the gradient along it. The first is a loss of digits of f.
The second is one of digits of x: if each x_j is wrong by t |x_j|, then the slope along s, s.Hx,
is wrong by t |y|.|x|, and that promises t^2 X, where there is nothing to be gained. It is
what ends a solve whose f goes to 0, at a relative error of t in x.

    gtol    (1) with t = ftol,  and  ||P(x - g) - x||_inf <= gtol                     (2)
    ftol    (1) with t = ftol,  and  f_before - f no larger than that                 (3)

and ftol counts as no less than `NOISE` times epsilon. Far from a minimum a quadratic made of
unsuitable pairs may promise nothing for some iterations on end. So (3) must hold for as many of
them as ftol asks for digits, at most `CALM`, unless (1) holds with t = epsilon; and for `PATIENCE`
times as many if the gradient might hide more than q: if all of it lay along the flattest
direction that was seen,

    g_F.g_F / (2 kappa) > ftol |f|,    kappa the least s.y / s.s,                      (4)

F the variables which g does not hold at a bound. (Where ftol asks for all that values can tell,
there is nothing to wait for.)

Values may be noisier than `NOISE`, or the gradient too rough to bring q below it. Where f stands
still, and q is no more than what makes the line search go by slopes instead of values, `DOUBT`
times `NOISE`, a solve ends as well, if that lasts `PATIENCE` times as long.
"""

from __future__ import annotations

import abc
from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._bounds import projected_descent
from .._minimize_result import (
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
from .._monitor import Report
from .._problem import MinimizationProblem
from ..linalg import norm, power_of_two, reciprocal, safe_divide
from ._base import AbstractSolver
from ._more_thuente import DOUBT, NOISE

CALM = 10
PATIENCE = 5


def status_of_bounds(problem: MinimizationProblem) -> Array:
    """Of a solve that has not begun: traced bounds may be reversed, or NaN."""
    if not problem.bounded:
        return jnp.full((), RUNNING, jnp.int32)
    ordered = jnp.all(problem.lower <= problem.upper)
    return jnp.where(ordered, RUNNING, BAD_BOUNDS).astype(jnp.int32)


def negligible(value: Array, reach: Any, tolerance: Any) -> Array:
    """The most that q of (1) may be."""
    in_x = tolerance * (tolerance * reach)
    # Where X is out of range it says nothing.
    return jnp.maximum(tolerance * jnp.abs(value), jnp.where(in_x < jnp.inf, in_x, 0))


def promise(slope: Array, step: Array, change: Array, units: tuple[Array, Array]) -> Array:
    """slope^2 / (2 s.y), where ``slope`` is in units of g and of x; inf where s.y is not positive.

    No intermediate number leaves the range of the dtype.
    """
    of_step, of_change = power_of_two(step), power_of_two(change)
    per_step, per_change = reciprocal(of_step), reciprocal(of_change)
    along = (step * per_step) @ (change * per_change)
    of_g, of_x = units
    size = of_g * of_x * ((of_g * per_change) * (of_x * per_step))
    return jnp.where(along > 0, 0.5 * slope * safe_divide(slope, along) * size, jnp.inf)


def reach_of(step: Array, change: Array, x: Array) -> Array:
    """X of (1); inf where the curvature along the step is not positive."""
    units = power_of_two(change), power_of_two(x)
    across = jnp.abs(change * reciprocal(units[0])) @ jnp.abs(x * reciprocal(units[1]))
    return promise(across, step, change, units)


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
        reach: Any = 0.0,
    ) -> tuple[Array, Array]:
        """The status by (2) and (3), and ``calm``.

        ``before`` is f one iteration ago, inf at the first; ``promised`` q; ``possible`` the
        left of (4); ``reach`` X.
        """
        eps = jnp.finfo(state.value.dtype).eps
        ftol = jnp.maximum(self.ftol, NOISE * eps)
        rough = jnp.maximum(self.ftol, DOUBT * NOISE * eps)
        least = negligible(state.value, reach, ftol)
        settled, sure = promised <= least, possible <= least
        doubtful = promised <= negligible(state.value, reach, rough)
        small = doubtful & (jnp.abs(before - state.value) <= least)
        calm = jnp.where(small, state.calm + 1, 0)
        digits = jnp.clip(-jnp.log10(rough), 1, CALM)
        few = jnp.minimum(digits, state.x.shape[0])
        patient = ~settled | (~sure & (self.ftol >= rough))
        asked = jnp.where(patient, PATIENCE * digits, digits)
        asked = jnp.where(promised <= negligible(state.value, reach, eps), few, asked)
        lasted = calm.astype(asked.dtype)
        status = jnp.where(state.nit >= self.maxiter, MAXITER, RUNNING)
        status = jnp.where(small & (lasted >= asked), FTOL, status)
        flat = self.optimality(problem, state) <= self.gtol
        return jnp.where(settled & flat & (sure | (lasted >= few)), GTOL, status), calm

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
