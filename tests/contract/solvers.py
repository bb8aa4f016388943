"""The solvers that keep the contract: a new one is a row here.

All of them solve small problems in two unknowns, or in as many separate ones, whose data are
``c`` and ``wall``: above the wall the function is NaN. A sine marks the user's function, which
stands nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import optx_lite as ox
from optx_lite.solvers import first_order
from tests.test_own_solver import GaussNewton


class Row(NamedTuple):
    """A solver, as it is called.

    Attributes
    ----------
    solve : callable
        (start, c, wall, **options) to a result.
    by_hand : callable
        (start, c, wall) to the solver's first state and the step, or None where the state is
        internal to the front door.
    start : array
        From where it finds the solution.
    walls : tuple of float
        Of which a trial meets some on the way.
    recovers : bool
        Whether such a trial is rejected; else the solve ends by saying so.
    answer : callable
        Result to the arrays that answer.
    has_derivative : bool
    takes_callback : bool
    evaluations : dict
        How often the function stands in the program, by the number of loops around it: a loop which
        turns once stands around those of least_squares and minimize.
    """

    solve: Callable[..., Any]
    by_hand: Callable[..., Any]
    start: np.ndarray
    walls: tuple[float, ...]
    recovers: bool = True
    answer: Callable[[Any], Any] = lambda result: result.x
    has_derivative: bool = True
    takes_callback: bool = True
    evaluations: dict[int, int] = {2: 1}  # noqa: RUF012


# ---------------------------------------------------------------------------------------
# Least squares and minimisation


def residuals(x, c, wall):
    """Of which no linear model is exact, and which do not vanish at the solution."""
    steep = jnp.arctan(x[0] - c[0])
    wavy = x[1] + 0.3 * jnp.sin(x[1]) - c[1]
    return jnp.stack([jnp.where(x[0] > wall, jnp.nan, steep), wavy, 0.1 * x[0] * x[1] + 0.5])


def jacobian(x, c, wall):
    one = jnp.ones_like(x[0])
    return jnp.stack(
        [
            jnp.stack([one / (1 + (x[0] - c[0]) ** 2), 0 * one]),
            jnp.stack([0 * one, one + 0.3 * jnp.cos(x[1])]),
            jnp.stack([0.1 * x[1], 0.1 * x[0]]),
        ]
    )


def objective(x, c, wall):
    return 0.5 * jnp.sum(residuals(x, c, wall) ** 2)


def gradient(x, c, wall):
    # The residuals are written out anew, so that the sine of the value stays the only one.
    steep, wavy = jnp.arctan(x[0] - c[0]), x[1] - c[1] + 0.3 * jnp.cos(x[1] - np.pi / 2)
    return jacobian(x, c, wall).T @ jnp.stack([steep, wavy, 0.1 * x[0] * x[1] + 0.5])


def least_squares(solver, start, **kinds):
    def solve(x0, c, wall, **options):
        return ox.least_squares(residuals, x0, jacobian, method=solver, args=(c, wall), **options)

    def by_hand(x0, c, wall):
        problem, x = ox.least_squares_problem(residuals, x0, jac=jacobian, args=(c, wall))
        return solver.init(problem, x), lambda state: solver.step(problem, state)

    return Row(solve, by_hand, np.array(start), **kinds)


def minimizer(method, solver, start, options=None, **kinds):
    def solve(x0, c, wall, **further):
        return ox.minimize(
            objective, x0, (c, wall), method=method, jac=gradient, options=options, **further
        )

    def by_hand(x0, c, wall):
        problem, x = ox.minimization_problem(objective, x0, jac=gradient, args=(c, wall))
        made = solver(problem, x)
        return made.init(problem, x), lambda state: made.step(problem, state)

    return Row(solve, by_hand, np.array(start), **kinds)


# ---------------------------------------------------------------------------------------
# Element by element


def root_of(x, c, wall):
    return jnp.where(x > wall, jnp.nan, x + 0.3 * jnp.sin(x) - c)


def well(x, c, wall):
    return jnp.where(x > wall, jnp.nan, (x - c) ** 2 + 0.3 * jnp.sin(x))


def elementwise(front_door, fun, **kinds):
    def solve(start, c, wall, **options):
        return front_door(fun, start, (c, wall), **options)

    return Row(solve, None, evaluations={1: 1}, recovers=False, **kinds)


def of_points(search, *offsets):
    def front_door(fun, start, args, **options):
        points = tuple(start + np.asarray(offset, start.dtype) for offset in offsets)
        return search(fun, points, args=args, **options)

    return front_door


def of_bracket(search):
    return lambda fun, start, args: search(fun, start, args=args)


def both_ends(result):
    return jnp.stack([result.bracket[0], result.bracket[-1]])


TIGHT = {"ftol": 1e-13, "xtol": 1e-13, "gtol": 1e-13}
FAR, NEAR = [-2.5, 4.0], [-0.8, 0.5]
WALLS = (0.32, 0.5, 0.8)  # beyond the solution
SGD = optax.sgd(0.4, momentum=0.3)
SOLVERS = {
    "trf": least_squares(ox.TrustRegionReflective(**TIGHT), FAR, walls=WALLS),
    "dogbox": least_squares(ox.Dogbox(**TIGHT), FAR, walls=WALLS),
    "lm": least_squares(ox.LevenbergMarquardt(**TIGHT), FAR, walls=WALLS),
    "own": least_squares(
        GaussNewton(), NEAR, walls=(0.1,), recovers=False, evaluations={1: 1, 2: 1}
    ),
    "lbfgsb": minimizer(
        ox.LBFGSB(ftol=1e-15, gtol=1e-11), lambda *_: ox.LBFGSB(), FAR, walls=WALLS
    ),
    "optax": minimizer(
        SGD, partial(first_order, SGD), NEAR, {"ftol": 1e-15, "gtol": 1e-10}, walls=(0.1,),
        recovers=False,
    ),
    "find_root": elementwise(
        of_points(ox.elementwise.find_root, -2.0, 3.0), root_of, start=np.zeros(2), walls=(0.9,)
    ),
    "find_minimum": elementwise(
        of_points(ox.elementwise.find_minimum, -2.0, 0.5, 3.0), well,
        start=np.zeros(2), walls=(0.9,),
    ),
    "bracket_root": elementwise(
        of_bracket(ox.elementwise.bracket_root), root_of, start=np.full(2, -9.0), walls=(-3.0,),
        answer=both_ends, has_derivative=False, takes_callback=False,
    ),
    "bracket_minimum": elementwise(
        of_bracket(ox.elementwise.bracket_minimum), well, start=np.full(2, -9.0), walls=(-3.0,),
        answer=both_ends, has_derivative=False, takes_callback=False,
    ),
}  # fmt: skip
