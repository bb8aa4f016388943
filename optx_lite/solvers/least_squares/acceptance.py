"""What becomes of a trial: by its cost, by its Jacobian, and by what it says of the model.

A trial is taken if its cost is lower, by the algorithm's rule; in the last phase, where steps
decide, if its cost is not higher but for its rounding. It is not where the Jacobian is not finite,
nor on a plateau.

The secant row w of the model takes part if the cost fell by no more than `SMALL_DECREASE` in a
step, and if J^T J alone promised too much: far from the minimum f is still to fall, and J^T J the
better of the two (Rosenbrock's valley takes four times as many evaluations otherwise). ENSO's 55
evaluations become 30.
"""

from __future__ import annotations

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...linalg.jacobians import Jacobian, column_sizes, divide, scale_columns
from ...problem.least_squares import LeastSquaresProblem
from ...problem.losses import LEAST_BEND
from .model import LinearModel
from .plateau import SMALL_DECREASE, is_refused, passes, without_effect
from .prediction import NOISE
from .state import State
from .units import units_of_variables

OPTIMISTIC = 0.75  # ratio of a step of which J^T J promised too much
CUT = 0.9  # of the radius: a step that is limited and shorter was cut short by a bound


class Outcome(NamedTuple):
    """What became of a trial."""

    f: Float[Array, " m"]
    cost: Float[Array, ""]  # in the state's unit
    reduction: Float[Array, ""]  # of the cost
    ratio: Float[Array, ""]  # of that to what was predicted; -1 for a trial that is not finite
    finite: Bool[Array, ""]
    better: Bool[Array, ""]  # by its cost it is to be taken


def rounding(problem: LeastSquaresProblem, state: State) -> Float[Array, ""]:
    """By how much the cost may be wrong."""
    return NOISE * problem.precision * state.cost


def cut_by_bound(state: State) -> Bool[Array, ""]:
    """Whether a bound cut the trial short, which then says little of how f curves."""
    return state.trial.limited & (state.trial.length < CUT * state.radius)


def linearized(
    problem: LeastSquaresProblem,
    state: State,
    outcome: Outcome,
    cost: Float[Array, ""],
    unit: Float[Array, ""],
    jacobian: Jacobian,
) -> tuple[LinearModel, Array, Array]:
    """The model at the trial and True; the old one and False if the new one is not taken.

    It is not where the Jacobian is not finite, nor on a plateau. And whether a probe confirms a
    success.
    """
    first, old = state.nfev == 0, state.model
    missed = outcome.reduction + rounding(problem, state) < OPTIMISTIC * state.trial.predicted
    curved = missed | jnp.any(old.secant != 0)
    slow = ~first & outcome.better & (outcome.reduction <= SMALL_DECREASE * outcome.cost)

    def rests(norms: Float[Array, " n"], secant: Float[Array, " ..."]) -> Bool[Array, " n"]:
        longest = jnp.maximum(norms, state.longest)
        return slow & without_effect(problem, norms, secant, longest, cost)

    f, jacobian = problem.weighted(outcome.f, jacobian, LEAST_BEND)
    sizes = column_sizes(jacobian)
    units = units_of_variables(problem, state.trial.x, sizes, unit)
    units = jnp.where(first, units, old.units)
    model = old.relinearized(
        divide(scale_columns(jacobian, units), unit),
        f / unit,
        units,
        rescale=state.unit / unit,
        step=state.trial.x - state.x,
        rounding=jnp.asarray(NOISE * problem.precision, cost.dtype),
        with_secant=slow & curved,
        rests=rests,
    )
    refused = is_refused(problem, state, model.column_norms, cost)
    taken = model.is_finite() & ~refused & (state.probing == 0)
    passed = model.is_finite() & passes(problem, state, model.column_norms, model.gradient)
    return jax.tree.map(ft.partial(_either, taken), model, old), taken, passed


def _either(taken: Array, new: Array, old: Array) -> Array:
    """Of the two models' arrays; the places of entries, integers, are those of any."""
    places = jnp.issubdtype(old.dtype, jnp.integer)
    return old if places else jnp.where(taken, new, old)
