r"""From an elementwise problem to its answer, and the derivative of that answer.

A root has f(x; a) = 0, a minimum f_x(x; a) = 0, each element by itself. So

    dx = -f_a da / f_x     (roots),        dx = -f_xa da / f_xx     (minima)          (1)

element by element: f_x is the derivative of f along a tangent of ones, f_xx that of f_x, and no
matrix is formed. The value at a minimum moves as if x stood still (the envelope theorem), that at
a root not at all:

    df = f_a da     (minima),        df = f_a da + f_x dx = 0     (roots).            (2)

A minimiser that rests on a limit follows the limit, dx = dlimit, and f along with it. What f closes
over counts as a. First points and tolerances have no influence, and the bracket
that is left has no derivative: both are 0. There is none either where the search did not
converge, where f_x = 0 at a root, or where not f_xx > 0 at a minimum (a kink, a plateau, x^4):
there it is NaN.

The rule is a forward one, linear in da: jvp, vjp, jacfwd, jacrev, hessian, vmap of each all work.
"""

from __future__ import annotations

import dataclasses
import functools as ft
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from ._control_flow import fori_loop, while_loop
from ._elements import Task, work_off
from ._elementwise_problem import ElementwiseProblem
from ._elementwise_result import (
    CALLBACK_STOP,
    CONVERGED,
    LIMIT,
    MAXITER,
    RUNNING,
    AbstractElementwiseResult,
    ElementwiseResult,
    ScalarResult,
)
from ._implicit import no_tangent
from ._monitor import Watch
from .solvers._elementwise import AbstractElementwiseMachine
from .solvers.chandrupatla_root import ChandrupatlaRoot

DOUBT = 64  # times eps and |f|: by so much a value may be wrong
NEWTON = 2  # steps of a polish: each squares the error, and they start from the root of eps


class Search(eqx.Module):
    """One machine, run to its end."""

    machine: AbstractElementwiseMachine

    def __call__(self, problem: ElementwiseProblem, watch: Watch | None) -> Any:
        """The machine's answer, each field of the problem's shape."""
        machine = self.machine
        task, may_be_parted = _task(machine, problem)
        size = math.prod(problem.shape)
        status: Any = MAXITER
        if watch is not None:
            state, status = _heard(task, task.begin(size), watch, problem.shape)
        else:
            state = work_off(task, size) if may_be_parted else task.run(task.begin(size))
        ended = jnp.where(state.status == RUNNING, status, state.status)
        state = eqx.tree_at(lambda state: state.status, state, ended.astype(state.status.dtype))
        return _in_shape(machine.finish(state), problem.shape)


class Polished(eqx.Module):
    """A search for a minimum, and then Newton's steps on f'.

    A step counts where the curvature is positive, |f'| falls, and the point stays in the bracket,
    or so close that rounding may have cut off the minimum: eps |f| = f_xx d^2 / 2.
    """

    search: Search

    def __call__(self, problem: ElementwiseProblem, watch: Watch | None) -> ElementwiseResult:
        """The minimiser, told to eps."""
        result = self.search(problem, watch)
        low, _, high = result.bracket
        noise = DOUBT * jnp.finfo(problem.dtype).eps * jnp.abs(result.f_x)

        def newton(_: Any, now: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            x, slope, curvature = now
            to = x - slope / curvature
            new = (to, *problem.slope_and_curvature(to))
            outside = jnp.maximum(jnp.maximum(low - to, to - high), 0)
            good = (curvature > 0) & (curvature * outside**2 <= noise)
            good = good & result.success & (jnp.abs(new[1]) < jnp.abs(slope))
            return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, now)

        start = (result.x, *problem.slope_and_curvature(result.x))
        x, *_ = fori_loop(0, NEWTON, newton, start)
        return dataclasses.replace(result, x=x, f_x=problem(x))


class BracketAndSearch(eqx.Module):
    """First downhill to a bracket, then the minimum in it; or the limit that it falls towards.

    Close to a limit values differ by rounding only, so that a bracket may be found there which is
    none. There the sign of f' decides.
    """

    bracket: Search
    search: Search | Polished

    def __call__(self, problem: ElementwiseProblem, watch: Watch | None) -> ScalarResult:
        """Both answers as one."""
        found = self.bracket(problem, None)
        (xl, _, xr), (fl, _, fr) = found.bracket, found.f_bracket
        inside = self.search(problem.within(found.bracket), watch)
        ended = found.status == LIMIT
        x = jnp.where(ended, jnp.where(fl < fr, xl, xr), inside.x)
        side = jnp.where(ended, jnp.where(fl < fr, -1, 1), _side(problem, x))
        x = jnp.where(side == 0, x, problem.limit(side))
        status = jnp.where(found.status == CONVERGED, inside.status, found.status)
        return ScalarResult(
            status=jnp.where(ended, CONVERGED, status).astype(jnp.int32),
            x=x,
            fun=jnp.where(side == 0, inside.f_x, problem(x)),
            nfev=found.nfev + jnp.where(found.status == CONVERGED, inside.nfev, 0),
            nit=found.nit + inside.nit,
            active_mask=side.astype(jnp.int32),
        )


def _side(problem: ElementwiseProblem, x: Array) -> Array:
    """-1 or 1 where x is all but at the lower or upper limit, and f falls towards it; else 0."""
    slope = problem.slope(x)
    start = jnp.asarray(problem.points[1]).astype(x.dtype)

    def near(side: int) -> Array:
        limit = problem.limit(jnp.full(problem.shape, side))
        reach = jnp.abs(limit) + jnp.abs(start - limit)
        close = jnp.abs(x - limit) <= jnp.sqrt(jnp.finfo(x.dtype).eps) * reach
        return close & jnp.isfinite(limit) & jnp.isfinite(x)

    at_lower, at_upper = near(-1) & (slope > 0), near(1) & (slope < 0)
    return at_upper.astype(jnp.int32) - at_lower.astype(jnp.int32)


def _task(machine: AbstractElementwiseMachine, problem: ElementwiseProblem) -> tuple[Task, bool]:
    """What a machine is to do; and whether its elements may be parted."""
    points = tuple(None if point is None else problem.in_row(point) for point in problem.points)
    fun = problem.parted(problem.fun)
    first = fun if problem.first is problem.fun else problem.parted(problem.first)
    if fun is not None and first is not None:
        return Task(machine, fun, first, points, problem.dtype), True
    fun, first = (
        jax.tree_util.Partial(problem.on_row, fun) for fun in (problem.fun, problem.first)
    )
    return Task(machine, fun, first, points, problem.dtype), False


def _in_shape(result: Any, shape: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(shape), result)


def _heard(task: Task, state: Any, watch: Watch, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Step with somebody listening, who hears of the bracket first, then of every iteration."""

    def tell(state: Any, active: Any) -> Array:
        report = _in_shape(task.machine.finish(state), shape)
        return watch.asks_for_the_end(report, active, active)

    def more(carry: Any) -> Array:
        state, stopped = carry
        return (task.count(state) > 0) & ~stopped

    def turn(carry: Any) -> Any:
        active = more(carry)
        state = task.step(carry[0])
        return state, tell(state, active)

    carry = (state, tell(state, jnp.array(True)))
    state, stopped = while_loop(more, turn, carry)
    return state, jnp.where(stopped, CALLBACK_STOP, MAXITER)


# -- with its derivative -------------------------------------------------------------------


def solve(search: Any, problem: ElementwiseProblem, watch: Watch | None = None) -> Any:
    """Run a search to its end; an answer with an x has the derivative of that x."""
    leaves, treedef = jax.tree.flatten((search, problem, watch))
    if not any(isinstance(leaf, Tracer) for leaf in leaves):
        return _run(treedef, leaves)  # nothing to differentiate
    return _solve(treedef, leaves)


@ft.partial(jax.jit, static_argnums=0)
def _run(treedef: Any, leaves: list[Array]) -> AbstractElementwiseResult:
    search, problem, watch = jax.tree.unflatten(treedef, leaves)
    return search(problem, watch)


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solve(treedef: Any, leaves: list[Array]) -> AbstractElementwiseResult:
    return _run(treedef, leaves)


@_solve.defjvp
def _solve_jvp(treedef: Any, primals: Any, tangents: Any) -> Any:
    (leaves,), (dots,) = primals, tangents
    result = _solve(treedef, leaves)
    d_result = jax.tree.map(no_tangent, result)
    if isinstance(result, (ElementwiseResult, ScalarResult)):
        side = result.active_mask if isinstance(result, ScalarResult) else None
        moved = _tangents(treedef, result.x, result.success, side, leaves, dots)
        d_result = eqx.tree_at(lambda result: (result.x, result.value), d_result, moved)
    return result, d_result


@ft.partial(jax.jit, static_argnums=0)
def _tangents(
    treedef: Any, x: Array, success: Array, side: Any, leaves: list[Array], dots: list[Any]
) -> tuple[Array, Array]:
    """(1) and (2)."""
    search, problem, _ = jax.tree.unflatten(treedef, leaves)
    moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def problem_of(values: list[Array]) -> ElementwiseProblem:
        full = list(leaves)
        for i, value in zip(moving, values, strict=True):
            full[i] = value
        return jax.tree.unflatten(treedef, full)[1]

    def along(fun: Callable[[ElementwiseProblem], Array]) -> Array:
        """How a function of the problem changes while x stands still."""
        values, d_values = [leaves[i] for i in moving], [dots[i] for i in moving]
        return jax.jvp(lambda values: fun(problem_of(values)), (values,), (d_values,))[1]

    # NaN comes in as a factor or a divisor: one that is only chosen would be lost in a transpose.
    d_f = along(lambda problem: problem(x)) * jnp.where(success, 1, jnp.nan).astype(x.dtype)
    if isinstance(search, Search) and isinstance(search.machine, ChandrupatlaRoot):
        slope = problem.slope(x)
        d_x = -d_f / jnp.where(slope != 0, slope, jnp.nan)
        return d_x, d_f + slope * d_x
    slope, curvature = problem.slope_and_curvature(x)
    d_slope = along(lambda problem: problem.slope(x))
    free = success & (curvature > 0)
    held = jnp.zeros_like(success) if side is None else side != 0
    # By d_f, too, since f_xa may be 0 by structure, as that of |x - a|, and so pass on no NaN.
    unknown = d_f * jnp.where(free | held, 0, jnp.nan).astype(x.dtype)
    d_x = unknown - jnp.where(held, 0, d_slope) / jnp.where(free, curvature, 1)
    if side is None:
        return d_x, d_f
    d_limit = along(lambda problem: problem.limit(side))
    d_held = jnp.where(held, d_limit, 0)
    return d_x + d_held, d_f + slope * d_held
