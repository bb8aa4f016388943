"""Basin hopping in an adjoint's place: the chain behind the front door of its local solver."""

from __future__ import annotations

import functools as ft
from typing import Any

import equinox as eqx
import jax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..jax_support.types import TreeDef
from ..problem.base import AbstractProblem
from ..solvers.base import AbstractSolver
from .adjoint import ImplicitAdjoint, with_minimum_derivative
from .callbacks import AbstractListener, Watch, watched
from .global_search import drive_search, without_derivative


class Hop(eqx.Module):
    """What the callback gets after a solve."""

    x: Float[Array, " n"]
    fun: Float[Array, ""]
    best: Float[Array, ""]
    accepted: Bool[Array, ""]
    nit: Int[Array, ""]


class Hopping(ImplicitAdjoint):
    """Hop from x0, and hand back the best minimum; its derivative is the implicit one.

    ``make`` gives the settings for a local solver and x0; the last state of the chain is left in
    ``found``, for the caller.
    """

    make: Any = eqx.field(static=True, default=None)
    key: Array | None = None
    listener: AbstractListener | None = eqx.field(static=True, default=None)
    found: dict = eqx.field(static=True, default_factory=dict)

    def solve(
        self,
        solver: AbstractSolver,
        problem: AbstractProblem,
        x0: Array,
        watch: Watch | None = None,
    ) -> PyTree:
        """The best minimum."""
        if watch is not None:
            raise ValueError("`minimizer_kwargs` must not have a callback or disp.")
        hopping = self.make(solver, x0, problem.restore_x)
        inputs = hopping, problem, x0, self.key

        def run(watch: Watch | None) -> PyTree:
            leaves, treedef = jax.tree.flatten((*inputs, watch))
            return _run(treedef, lax.stop_gradient(leaves))

        if self.listener is not None:
            self.listener.restore = problem.restore_x  # pyright: ignore[reportAttributeAccessIssue]
        state = run(None) if self.listener is None else watched(run, self.listener, inputs)
        self.found["state"] = without_derivative(state, jax.tree.leaves(inputs))
        return with_minimum_derivative(solver, problem, state.best)


@ft.partial(jax.jit, static_argnums=0)
def _run(treedef: TreeDef, leaves: list[Array]) -> PyTree:
    hopping, problem, x0, key, watch = jax.tree.unflatten(treedef, leaves)

    def described(before: PyTree, after: PyTree) -> tuple[Hop, Array]:
        hop = Hop(after.trial, after.trial_value, after.best.fun, after.accepted, after.nit)
        return hop, after.nit > before.nit

    state = drive_search(hopping, problem, hopping.init(problem, x0, key), watch, described)
    if watch is not None:
        watch.end(state.best)  # an effect, which the caller waits for
    return state
