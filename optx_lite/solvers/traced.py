"""A solver that was written outside of the package, as a value.

Its code may read a global, or call a helper that is redefined: like the user's functions it is
traced each time, so that what runs is what it computes now.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..functions.traced import Lifted, lift
from ..jax_support.control_flow import in_explicit_mode
from ..jax_support.types import Count
from ..problem.base import AbstractProblem
from .base import AbstractSolver

PACKAGE = __name__.split(".")[0]


class _Traced(AbstractSolver):
    first: Lifted
    next: Lifted
    goes_on: Lifted
    result: Lifted
    reported: Lifted
    most: Count

    def init(self, problem: AbstractProblem, x0: Array) -> PyTree:
        return self.first(problem, x0)

    def step(self, problem: AbstractProblem, state: PyTree) -> PyTree:
        return self.next(problem, state)

    def running(self, problem: AbstractProblem, state: PyTree) -> Array:
        return self.goes_on(problem, state)

    def most_steps(self, n: int) -> Count:
        return self.most

    def finish(self, problem: AbstractProblem, state: PyTree) -> PyTree:
        return self.result(problem, state)

    def report(self, problem: AbstractProblem, before: PyTree, after: PyTree) -> PyTree:
        return self.reported(problem, before, after)


def traced(solver: AbstractSolver, problem: AbstractProblem, x0: Array) -> AbstractSolver:
    """A solver whose code is compiled anew when what it computes has changed.

    Those of the package depend on their fields alone. In JAX's explicit mode, where not all code
    can be traced, a solver is taken as it is.
    """
    if type(solver).__module__.split(".")[0] == PACKAGE or in_explicit_mode():
        return solver
    after = jax.eval_shape(lambda: solver.step(problem, solver.init(problem, x0)))

    def init(problem: AbstractProblem, x0: Array) -> PyTree:
        """In the dtypes of the loop, which adapts numbers without one of their own."""
        first = solver.init(problem, x0)
        return jax.tree.map(lambda a, b: jnp.asarray(a).astype(b.dtype), first, after)

    first = lift(init, problem, x0, label="`method.init`")
    state = first.out_shape
    return _Traced(
        first=first,
        next=lift(solver.step, problem, state, label="`method.step`"),
        goes_on=lift(solver.running, problem, state, label="`method.running`"),
        result=lift(solver.finish, problem, state, label="`method.finish`"),
        reported=lift(solver.report, problem, state, state, label="`method.report`"),
        most=solver.most_steps(x0.size),
    )
