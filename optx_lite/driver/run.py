"""A solver on a problem, from x0 to the result: what every front door ends in."""

from __future__ import annotations

from jaxtyping import Array, PyTree

from ..problem.base import AbstractProblem
from ..problem.pytrees import ravel
from ..results.base import restored, to_host
from ..solvers import AbstractSolver
from ..solvers.traced import traced
from .adjoint import AbstractAdjoint, ImplicitAdjoint
from .callbacks import Listener, watched

IMPLICIT = ImplicitAdjoint()


def run(
    solver: AbstractSolver,
    problem: AbstractProblem,
    x0: PyTree,
    adjoint: AbstractAdjoint = IMPLICIT,
) -> PyTree:
    """Run a solver on a problem, from x0 to the result.

    Parameters
    ----------
    solver : AbstractSolver
        E.g. ``ox.LevenbergMarquardt(xtol=1e-10)``.
    problem : LeastSquaresProblem or MinimizationProblem
        From `least_squares_problem` or `minimization_problem`.
    x0 : array (n,) or pytree
        First point, in the structure that the problem was made with or flat.
    adjoint : ImplicitAdjoint or UnrolledAdjoint
        How the result is differentiated.

    Returns
    -------
    Result or MinimizeResult

    Examples
    --------
    By hand, one evaluation a step:

    >>> import jax.numpy as jnp, optx_lite as ox
    >>> problem, x0 = ox.least_squares_problem(lambda x: x**2 - 2.0, jnp.array([1.0]))
    >>> solver = ox.LevenbergMarquardt()
    >>> state = solver.init(problem, x0)
    >>> while state.status == 0:
    ...     state = solver.step(problem, state)
    >>> print(state.x.round(4), ox.run(solver, problem, x0).x.round(4))
    [1.4142] [1.4142]
    """
    x = ravel(x0, problem.lower.dtype)
    return solve(solver, problem, x, adjoint, None)


def solve(
    solver: AbstractSolver,
    problem: AbstractProblem,
    x: Array,
    adjoint: AbstractAdjoint,
    listener: Listener | None,
) -> PyTree:
    """From a flat x to the result in the user's structures, perhaps with a callback."""
    inputs = traced(solver, problem, x), problem, x
    if listener is None:
        result = adjoint.solve(*inputs)
    else:
        result = watched(lambda watch: adjoint.solve(*inputs, watch), listener, inputs)
    result = to_host(result)
    if isinstance(result.status, int) and result.status in solver.BAD_STARTS:
        raise ValueError(result.message)
    return restored(result, problem.structures)
