"""The units of a solve: powers of two, which round nothing.

Costs and models are in units of s^2, s the largest power of two up to max|f(x0)|. A residual of
1e200 is then a number like any other, and f and 1e8 f take the same path, bit for bit when the
factor is a power of two. Where f has become so small beside s that its square would vanish, s is
chosen anew. With a robust loss s is that of the residuals whose sum of squares the cost is.

Within a step variables are in units as well, the powers of two u_j which make the columns of the
first J of the size of 1, so that x may be measured in any unit whose square is out of range.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...linalg import exponent, power_of_two, reciprocal
from ...problem.least_squares import LeastSquaresProblem
from .state import State


def in_units(
    problem: LeastSquaresProblem, state: State, units: Float[Array, " n"]
) -> tuple[LeastSquaresProblem, State]:
    """Box, point and trial divided by units."""
    factor = reciprocal(units)
    if problem.bounded:
        sides = problem.lower * factor, problem.upper * factor
        problem = eqx.tree_at(lambda p: (p.lower, p.upper), problem, sides)
    return problem, eqx.tree_at(_points, state, [x * factor for x in _points(state)])


def out_of_units(problem: LeastSquaresProblem, state: State) -> State:
    """The state with the user's point and trial, within the user's box."""
    points = [x * state.model.units for x in _points(state)]
    if problem.bounded:  # where a bound is nothing beside the unit, it is lost in units
        points = [jnp.clip(x, problem.lower, problem.upper) for x in points]
    return eqx.tree_at(_points, state, points)


def _points(state: State) -> list[Array]:
    return [x for x in (state.x, state.trial.x, state.goal) if x is not None]


def units_of_variables(
    problem: LeastSquaresProblem, x: Array, largest: Array, unit: Array
) -> Array:
    """u, with columns of J u of the size of ``unit``, so that x and the box are in range.

    ``largest`` is the largest entry, without sign, of each column of J.
    """
    units = power_of_two(exponent(unit) - exponent(largest), x.dtype)
    farthest = jnp.abs(x)
    for side in (problem.lower, problem.upper) if problem.bounded else ():
        farthest = jnp.maximum(farthest, jnp.where(jnp.isfinite(side), jnp.abs(side), 0))
    least = power_of_two(exponent(farthest) - (jnp.finfo(x.dtype).maxexp - 4), x.dtype)
    proper = (largest > 0) & jnp.isfinite(largest)
    return jnp.where(proper, jnp.maximum(units, jnp.where(farthest > 0, least, 0)), 1)


def finer_unit(problem: LeastSquaresProblem, f: Array, cost: Array, unit: Array) -> Array:
    """s, a new one where f has fallen so far that its squares in the old one vanish."""
    info = jnp.finfo(cost.dtype)
    vanishes = (cost < info.tiny / info.eps) & jnp.any(f != 0)
    return jnp.where(vanishes, problem.loss.unit(f), unit)
