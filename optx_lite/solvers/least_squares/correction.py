r"""A step that fails in a curved valley has shown how curved it is.

The residual that the linear model missed, r = f(x + p) - f - J p, is the second-order term along
p. So before the radius shrinks, one trial goes to x + p + c,

    c = argmin || J c + r ||^2 + alpha || D c ||^2,   taken if ||D c|| <= 3/4 ||D p||  (1)

the step of Transtrum & Sethna ("Improvements to the Levenberg-Marquardt algorithm for nonlinear
least-squares minimization", 2012), whose second derivative costs nothing here. On NIST's 54
problems it halves the evaluations of lm.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...jax_support.control_flow import where_or_cond
from ...problem.least_squares import LeastSquaresProblem
from ...problem.losses import LEAST_BEND
from .model import Correction
from .state import State

LONGEST = 0.75  # of the step that failed: a longer correction says that (1) is no small one


def correction_of(
    problem: LeastSquaresProblem, state: State, f: Float[Array, " m"], failed: Bool[Array, ""]
) -> Correction:
    """What a trial that ``failed`` says about the next; f are its residuals."""
    model, trial = state.model, state.trial
    missed = (f - state.f) / state.unit
    if not problem.loss.is_linear:
        missed = missed * problem.loss.weights(state.f, LEAST_BEND)[0]

    def gradient() -> Array:
        change = model.transposed_product(jnp.where(failed, missed, 0))
        return change - model.hessian_product(trial.x - state.x)

    return Correction(
        wanted=failed,
        start=trial.x,
        gradient=where_or_cond(failed, gradient, jnp.zeros_like(trial.x), f.size),
        damping=trial.damping,
        longest=LONGEST * trial.length,
    )


def radius_after(
    trial_radius: Float[Array, ""],
    radius: Float[Array, ""],
    ratio: Float[Array, ""],
    accepted: Bool[Array, ""],
) -> Float[Array, ""]:
    """The trust radius after a correction: one that works vindicates its step's radius."""
    vindicated = trial_radius * jnp.where(ratio > 0.25, 1, 0.25)
    return jnp.where(accepted, vindicated, radius)
