"""From an elementwise problem to its answer, with the derivative of that answer.

The rule is a forward one, linear in the tangents: jvp, vjp, jacfwd, jacrev, hessian and vmap of
each work (see `driver.elementwise_derivative`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from ..jax_support.control_flow import explicit_spec, fori_loop, in_auto_mode, while_loop
from ..jax_support.types import Number
from ..problem.elementwise import ElementwiseProblem, NoDerivativeError, at_each, value_and_slope
from ..results.elementwise import (
    BAD_INPUT,
    CALLBACK_STOP,
    CONVERGED,
    LIMIT,
    MAXITER,
    NONFINITE,
    RUNNING,
    BracketResult,
    ElementwiseResult,
    ScalarResult,
)
from ..solvers.elementwise.base import AbstractElementwiseSolver, has_no_answer
from .blocks import Task, work_off
from .callbacks import Watch
from .custom_derivative import Moving, Rule, differentiable
from .elementwise_derivative import DOUBT, Change, minimum_tangents, root_tangents

NEWTON = 2  # steps of a polish: each squares the error, and they start from the root of eps


class Found(NamedTuple):
    """What a search gives, each array of the problem's shape.

    Attributes
    ----------
    result : AbstractElementwiseResult
        The answer.
    width : array
        Of the bracket that is left.
    """

    result: PyTree
    width: Array


class Search(eqx.Module):
    """One solver, run to its end."""

    solver: AbstractElementwiseSolver

    def __call__(self, problem: ElementwiseProblem, watch: Watch | None) -> Found:
        """The solver's answer."""
        solver = self.solver
        task, may_be_parted = _task(solver, problem)
        size = math.prod(problem.shape)
        status: Any = MAXITER
        if watch is not None:
            state, status = _with_callback(task, task.begin(size), watch, problem.shape)
        else:
            state = work_off(task, size) if may_be_parted else task.run(task.begin(size))
        ended = jnp.where(state.status == RUNNING, status, state.status)
        state = eqx.tree_at(lambda state: state.status, state, ended.astype(state.status.dtype))
        result: PyTree = _in_shape(solver.finish(state), problem.shape)
        return Found(result, result.bracket[-1] - result.bracket[0])


class Polished(eqx.Module):
    """A search for a minimum, and then Newton's steps on f'."""

    search: Search

    def __call__(self, problem: ElementwiseProblem, watch: Watch | None) -> Found:
        """The minimiser, to eps."""
        result, width = self.search(problem, watch)
        low, _, high = result.bracket
        x, f = _polish(problem, result.x, result.f_x, (low, high), result.success)
        return Found(dataclasses.replace(result, x=x, f_x=f), width)


Finder = Callable[[ElementwiseProblem, Watch | None], Found]


def _polish(
    problem: ElementwiseProblem,
    x: Array,
    f: Array,
    bracket: tuple[Array, Array],
    wanted: Array,
    box: tuple[Number, Number] = (-math.inf, math.inf),
) -> tuple[Array, Array]:
    """x and f after Newton's steps on f'; as they are where JAX can take no second derivative.

    A step counts where the curvature is positive, |f'| falls, and the point stays in the bracket,
    or so close that rounding may have cut off the minimum: noise = f_xx d^2 / 2. Both count
    where f has not risen by more than rounding. The terms of f may cancel: their size, and so the
    noise, is that of f, or of f_xx x^2.
    """
    try:
        start = (x, *value_and_slope(problem.slope, x))
    except NoDerivativeError:
        return x, f
    low, high = bracket
    terms = jnp.abs(start[2]) * x * x
    terms = jnp.abs(f) + jnp.where(jnp.isfinite(terms), terms, 0)
    noise = DOUBT * jnp.finfo(x.dtype).eps * terms

    def newton(_: object, now: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, slope, curvature = now
        to = jnp.clip(x - slope / curvature, *box)
        new = (to, *value_and_slope(problem.slope, to))
        outside = jnp.maximum(jnp.maximum(low - to, to - high), 0)
        good = (curvature > 0) & (curvature * outside**2 <= noise)
        good = good & wanted & (jnp.abs(new[1]) < jnp.abs(slope))
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, now)

    to = fori_loop(0, NEWTON, newton, start)[0]
    f_to = problem(to)
    keep = f_to <= f + noise
    return jnp.where(keep, to, x), jnp.where(keep, f_to, f)


class BracketAndSearch(eqx.Module):
    """First downhill to a bracket, then the minimum in it; or the limit that it falls towards.

    Where f is not defined it counts as infinite, so that the search turns away from there. With
    ``xatol`` None it is eps times the width of the bracket, since x = 0 may be the answer.
    """

    bracket: Search
    search: Search
    bounded: bool = eqx.field(static=True)
    polish: bool = eqx.field(static=True)

    def __call__(self, problem: ElementwiseProblem, watch: Watch | None) -> Found:
        """Both answers as one."""
        found, width = self.bracket(problem.walled(math.inf), None)
        highest = float(jnp.finfo(problem.dtype).max)
        search = self._search_within(width)
        within = problem.within(found.bracket, found.f_bracket).walled(highest)
        inside, width = search(within, watch)
        status = jnp.where(found.status == LIMIT, NONFINITE, found.status)  # at an infinite one
        status = jnp.where(found.status == CONVERGED, inside.status, status)
        x, f = inside.x, inside.f_x
        side = jnp.zeros(problem.shape, jnp.int32)
        if self.bounded:
            status, x, f, side = _at_limits(problem, found, status, x, f)
            status = jnp.where(inside.status == BAD_INPUT, BAD_INPUT, status)
        if self.polish:
            low, _, high = inside.bracket
            inner = (status == CONVERGED) & (side == 0)
            x, f = _polish(problem, x, f, (low, high), inner, tuple(problem.limits))
        finite = jnp.isfinite(x) & jnp.isfinite(f)
        status = jnp.where((status == CONVERGED) & ~finite, NONFINITE, status).astype(jnp.int32)
        x, f = (jnp.where(has_no_answer(status), jnp.nan, value) for value in (x, f))
        result = ScalarResult(
            status=status,
            x=x,
            fun=f,
            nfev=found.nfev + inside.nit,  # as many new points
            nit=found.nit + inside.nit,
            active_mask=jnp.where(side == 0, _resting_on(problem, x), side),
        )
        return Found(result, width)

    def _search_within(self, width: Array) -> Search:
        """The search with its ``xatol``."""
        solver: Any = self.search.solver
        if solver.xatol is not None:
            return self.search
        xatol = jnp.finfo(width.dtype).eps * width.reshape(-1)
        return Search(dataclasses.replace(solver, xatol=xatol))


def _resting_on(problem: ElementwiseProblem, x: Array) -> Array:
    """-1 or 1 where x is the lower or the upper limit, else 0."""
    on_lower, on_upper = x[None] == problem.limits
    return jnp.where(on_lower, -1, on_upper.astype(jnp.int32))


def _at_limits(
    problem: ElementwiseProblem, found: BracketResult, status: Array, x: Array, f: Array
) -> tuple[Array, Array, Array, Array]:
    """Status, x, f and the side after a look at the limits.

    The side is -1 or 1 where the minimum is the lower or the upper limit; x and f are then those
    there. So it is where the search downhill arrived at a limit, or found no room for three
    points between them. Close to a limit values differ by rounding only, so that they may show a
    bracket which is none, and a fall towards the limit which is none: there the sign of f' on the
    limit decides, if f has a derivative.
    """
    limits = problem.limits
    finite = jnp.isfinite(limits)
    points = jnp.where(finite, limits, found.bracket[1][None])
    try:
        f_limit, slope = at_each(lambda x: value_and_slope(problem, x), points)
    except NoDerivativeError:
        f_limit = at_each(problem, points)
        slope = jnp.full_like(f_limit, jnp.nan)
    f_limit = jnp.where(f_limit < jnp.inf, f_limit, jnp.inf)

    narrow = (found.status == BAD_INPUT) & (limits[0] <= limits[1]) & finite[0] & finite[1]
    (xl, _, xr), (fl, _, fr) = found.bracket, found.f_bracket
    at_lower, at_upper = xl == limits[0], xr == limits[1]
    to_lower = jnp.where(at_lower == at_upper, fl < fr, at_lower)
    to_lower = jnp.where(narrow, f_limit[0] <= f_limit[1], to_lower)
    arrived = narrow | ((found.status == LIMIT) & jnp.where(to_lower, *finite))
    status = jnp.where(arrived, CONVERGED, status)
    x, f = (
        jnp.where(arrived, jnp.where(to_lower, *at_limit), inside)
        for at_limit, inside in ((limits, x), (f_limit, f))
    )

    eps = jnp.finfo(x.dtype).eps
    start = problem.full(problem.points[1])
    reach = jnp.abs(limits) + jnp.abs(start[None] - limits)
    near = finite & (jnp.abs(x[None] - limits) <= jnp.sqrt(eps) * reach)
    falls = jnp.stack([slope[0], -slope[1]]) > 0
    by_slope = falls & (f_limit <= (f + DOUBT * eps * jnp.abs(f))[None])
    lowest = near & jnp.where(jnp.isfinite(slope), by_slope, f_limit <= f[None])
    on_upper = lowest[1] & ~(lowest[0] & (f_limit[0] <= f_limit[1]))
    side = jnp.where(on_upper, 1, -lowest[0].astype(jnp.int32))
    x = jnp.where(side == 0, x, problem.limit(side))
    return status, x, jnp.where(side == 0, f, jnp.where(on_upper, f_limit[1], f_limit[0])), side


def _task(solver: AbstractElementwiseSolver, problem: ElementwiseProblem) -> tuple[Task, bool]:
    """What a solver is to do; and whether its elements may be parted."""
    points = tuple(None if point is None else problem.in_row(point) for point in problem.points)
    given = problem.values and tuple(value.reshape(-1) for value in problem.values)
    fun = problem.parted(problem.fun)
    first = fun if problem.first is problem.fun else problem.parted(problem.first)
    if fun is not None and first is not None:
        return Task(solver, fun, first, points, given, problem.dtype, problem.wall), True
    fun, first = (
        jax.tree_util.Partial(problem.on_row, fun) for fun in (problem.fun, problem.first)
    )
    return Task(solver, fun, first, points, given, problem.dtype, problem.wall), False


def _in_shape(result: PyTree, shape: tuple[int, ...]) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(shape), result)


def _with_callback(
    task: Task, state: PyTree, watch: Watch, shape: tuple[int, ...]
) -> tuple[PyTree, PyTree]:
    """Step with a callback, which gets the bracket first, then every iteration."""

    def report(state: PyTree, active: Array) -> Array:
        result = _in_shape(task.solver.finish(state), shape)
        return watch.asks_for_the_end(result, active, active)

    def more(carry: PyTree) -> Array:
        state, stopped = carry
        return (task.count(state) > 0) & ~stopped

    def turn(carry: PyTree) -> PyTree:
        active = more(carry)
        state = task.step(carry[0])
        return state, report(state, active)

    carry = (state, report(state, jnp.array(True)))
    state, stopped = while_loop(more, turn, carry)
    return state, jnp.where(stopped, CALLBACK_STOP, MAXITER)


# -- with its derivative -------------------------------------------------------------------


class _Search(Rule):
    """Of a search on a problem: the answer moves as `elementwise_derivative` says."""

    def run(self, leaves: list[Array]) -> Found:
        """The answer, with the width of the last bracket."""

        def run(*leaves: Array) -> Found:
            search, problem, watch = self.inputs(list(leaves))
            return search(problem, watch)

        return in_auto_mode(run, leaves, self._spec_of(leaves))

    def tangents(self, answer: Found, moving: Moving) -> Found:
        """Of x and of the value there; an answer without an x has none."""
        given, treedef = jax.tree.flatten((answer, moving.leaves, moving.dots))

        def tangents(*given: Array) -> Found:
            answer, leaves, dots = jax.tree.unflatten(treedef, given)
            return self._tangents(answer, Moving(leaves, moving.places, dots))

        return in_auto_mode(tangents, given, self._spec_of(moving.leaves))

    def _spec_of(self, leaves: list[Array]) -> Callable[[jax.ShapeDtypeStruct], PartitionSpec]:
        """How an array of the answer is sharded: as those of the problem's shape are."""
        shape = self.inputs(leaves)[1].shape[:1]
        specs = [explicit_spec(leaf) for leaf in leaves if shape and leaf.shape[:1] == shape]
        spec = next(filter(any, specs), PartitionSpec())
        return lambda leaf: spec if leaf.shape[:1] == shape else PartitionSpec()

    def _tangents(self, answer: Found, moving: Moving) -> Found:
        search, problem, _ = self.inputs(moving.leaves)
        result, none = answer.result, jax.tree.map(lambda _: None, answer)
        if not isinstance(result, (ElementwiseResult, ScalarResult)):
            return none
        change = Change(lambda leaves: self.inputs(leaves)[1], moving)
        if isinstance(search, Search) and search.solver.FINDS_ROOT:
            d_x, d_f = root_tangents(change, problem, result.x, result.success, answer.width)
        else:
            scalar = isinstance(result, ScalarResult)
            side = result.active_mask.astype(result.x.dtype) if scalar else None
            found = result.x, result.success, answer.width, side
            d_x, d_f = minimum_tangents(change, problem, *found)
        fields = {"x": d_x, "f_x" if isinstance(result, ElementwiseResult) else "fun": d_f}
        return none._replace(result=dataclasses.replace(none.result, **fields))


def solve(search: Finder, problem: ElementwiseProblem, watch: Watch | None = None) -> PyTree:
    """Run a search to its end; an answer with an x has the derivative of that x."""
    leaves, treedef = jax.tree.flatten((search, problem, watch))
    return differentiable(_Search(treedef), leaves).result
