"""A global search from its start to its result: the loop, its callback, and no derivative.

Which of the minima is the lowest does not change smoothly, and neither does a population. So what
a search hands back has the derivative of the minimum where a local solver has polished it, and
NaN where none has.
"""

from __future__ import annotations

import functools as ft
from collections.abc import Callable
from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, PyTree

from ..jax_support.control_flow import while_loop
from ..jax_support.types import TreeDef
from ..problem.global_search import SearchProblem
from ..results.base import to_host
from ..solvers.global_search.differential_evolution import DifferentialEvolution
from .callbacks import AbstractListener, Watch, watched
from .custom_derivative import inputs_of_a_rule
from .unknown import nan_where_moved

Described = Callable[[PyTree, PyTree], tuple[PyTree, Array]]


class Steps(Protocol):
    """What goes from state to state."""

    def step(self, problem: PyTree, state: PyTree) -> PyTree:
        """The next state."""

    def running(self, state: PyTree) -> Array:
        """Whether there is to be one, ()."""
        ...


def search(
    solver: DifferentialEvolution,
    problem: SearchProblem,
    start: Array,
    key: Array,
    listener: AbstractListener | None = None,
) -> PyTree:
    """Run a search on a population to its end."""

    def run(watch: Watch | None) -> PyTree:
        leaves, treedef = jax.tree.flatten((solver, problem, start, key, watch))
        if not any(isinstance(leaf, Tracer) for leaf in leaves):
            return _run(treedef, leaves)
        return without_derivative(_run(treedef, lax.stop_gradient(leaves)), leaves)

    if listener is None:
        return to_host(run(None))
    return to_host(watched(run, listener, (problem, start, key)))


def drive_search(
    search: Steps,
    problem: PyTree,
    start: PyTree,
    watch: Watch | None,
    described: Described,
) -> PyTree:
    """The last state from ``start`` on.

    ``described`` gives, of the states before and after a step, what the callback gets and whether
    it is called.
    """

    def turn(state: PyTree) -> PyTree:
        after = search.step(problem, state)
        if watch is None:
            return after
        report, called = described(state, after)
        status = watch.step(report, search.running(state), called, after.status)
        return eqx.tree_at(lambda state: state.status, after, status)

    # Not the method itself, which JAX would hash together with the tracers in `search`.
    return while_loop(lambda state: search.running(state), turn, start)


@ft.partial(jax.jit, static_argnums=0)
def _run(treedef: TreeDef, leaves: list[Array]) -> PyTree:
    solver, problem, start, key, watch = jax.tree.unflatten(treedef, leaves)

    def described(before: PyTree, after: PyTree) -> tuple[PyTree, Array]:
        return solver.report(problem, after), solver.running(before)

    state = drive_search(solver, problem, solver.init(problem, start, key), watch, described)
    result = solver.finish(problem, state)
    if watch is not None:
        watch.end(result)  # an effect, which the caller waits for
    return result


def without_derivative(result: PyTree, leaves: list[PyTree], where: Array | bool = True) -> PyTree:
    """The result, whose derivative by any of the leaves is NaN if ``where``, else unchanged.

    ``where`` is a bool of shape ().
    """
    floats, others = eqx.partition(result, eqx.is_inexact_array)
    causes = [leaf for leaf in inputs_of_a_rule(leaves) if eqx.is_inexact_array(leaf)]
    return eqx.combine(_unknown(floats, causes, jnp.asarray(where)), others)


@jax.custom_jvp
def _unknown(floats: PyTree, causes: list[Array], where: Array) -> PyTree:
    return floats


@_unknown.defjvp
def _unknown_jvp(primals: PyTree, tangents: PyTree) -> PyTree:
    floats, causes, where = primals
    own, moved, _ = tangents

    def tangent(like: Array, dot: Array) -> Array:
        return dot + nan_where_moved(causes, moved, where, like)

    return _unknown(floats, causes, where), jax.tree.map(tangent, floats, own)
