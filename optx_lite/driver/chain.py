"""A search by local solves, which stands in an adjoint's place behind `minimize`."""

from __future__ import annotations

import functools as ft
from collections.abc import Callable
from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from ..jax_support.types import TreeDef
from ..problem.base import AbstractProblem
from ..solvers.base import AbstractSolver
from .adjoint import ImplicitAdjoint, with_minimum_derivative
from .callbacks import AbstractListener, Watch, watched
from .global_search import Steps, drive_search, without_derivative


class ChainSteps(Steps, Protocol):
    """A search whose answer is a local solver's result."""

    def init(self, problem: PyTree, x0: Array, key: Array) -> PyTree:
        """The state before the first evaluation."""

    @property
    def has_minimum(self) -> bool:
        """Whether a local solver may have found the answer."""
        ...

    def described(self, before: PyTree, after: PyTree) -> tuple[PyTree, Array]:
        """What the callback gets of a step, and whether it is called."""
        ...

    def answer(self, state: PyTree) -> PyTree:
        """The local solver's result at the lowest point."""


class ChainListener(AbstractListener):
    """Calls the user's callback.

    Attributes
    ----------
    restore : callable
        From a flat x to the user's structure; the chain sets it.
    """

    def __init__(self, callback: Callable | None):
        super().__init__()
        self.callback = callback
        self.restore: Callable = np.asarray

    def call(self, report: PyTree, last: object) -> bool:
        """``callback(x, f, last)``, if there is one; whether it asks for the end."""
        callback = self.callback
        if callback is None:
            return False
        x = self.restore(np.asarray(report.x))
        return self.ask(lambda: bool(callback(x, float(report.fun), last)))


class Chain(ImplicitAdjoint):
    """Search from x0, and hand back the best minimum; its derivative is the implicit one.

    Where the local solve has not succeeded, derivatives are NaN, those by x0 and by the search's
    settings too.

    ``make`` gives the search for a local solver, the problem and x0; its last state is left in
    ``found``, for the caller.
    """

    make: Callable[..., ChainSteps] | None = eqx.field(static=True, default=None)
    key: Array | None = None
    listener: ChainListener | None = eqx.field(static=True, default=None)
    found: dict = eqx.field(static=True, default_factory=dict)

    def solve(
        self,
        solver: AbstractSolver,
        problem: AbstractProblem,
        x0: Array,
        watch: Watch | None = None,
    ) -> PyTree:
        """The result at the lowest point."""
        if watch is not None:
            raise ValueError("`minimizer_kwargs` must not have a callback or disp.")
        assert self.make is not None  # all fields of a subclass need defaults
        search = self.make(solver, problem, x0)
        inputs = search, problem, x0, self.key

        def run(watch: Watch | None) -> PyTree:
            leaves, treedef = jax.tree.flatten((*inputs, watch))
            return _run(treedef, lax.stop_gradient(leaves))

        if self.listener is not None:
            self.listener.restore = problem.restore_x
        ran = run(None) if self.listener is None else watched(run, self.listener, inputs)
        state, answer = ran
        self.found["state"] = without_derivative(state, jax.tree.leaves(inputs))
        if not search.has_minimum:
            return without_derivative(answer, jax.tree.leaves(inputs))
        answer = with_minimum_derivative(solver, problem, answer)
        return without_derivative(
            answer, jax.tree.leaves((search, x0)), ~jnp.asarray(answer.success)
        )


@ft.partial(jax.jit, static_argnums=0)
def _run(treedef: TreeDef, leaves: list[Array]) -> tuple[PyTree, PyTree]:
    search, problem, x0, key, watch = jax.tree.unflatten(treedef, leaves)
    state = drive_search(search, problem, search.init(problem, x0, key), watch, search.described)
    answer = search.answer(state)
    if watch is not None:
        watch.end(answer)  # an effect, which the caller waits for
    return state, answer
