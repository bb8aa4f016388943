"""Trust radii: the first, and SciPy's rule for the next.

The first is the size of x0, or the Cauchy step where x0 is nothing beside that.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .state import State

NEGLIGIBLE = 1e-3  # an x0 so small beside the Cauchy step says nothing of the size of x


def scipy_radius(
    before: State, ratio: Float[Array, ""], finite: Bool[Array, ""]
) -> Float[Array, ""]:
    """SciPy's rule: a quarter of a bad step, twice the radius after a good one at its edge."""
    at_edge = before.trial.length > 0.95 * before.radius
    shrunk = 0.25 * before.trial.length
    grown = jnp.where((ratio > 0.75) & at_edge, 2 * before.radius, before.radius)
    return jnp.where(finite & (ratio >= 0.25), grown, shrunk)


def starting_radius(size: Float[Array, ""], cauchy: Float[Array, ""]) -> Float[Array, ""]:
    """The size of x0, unless that is nothing beside the Cauchy step: then the length of this."""
    by_model = jnp.where((cauchy > 0) & jnp.isfinite(cauchy), cauchy, 1)
    return jnp.where(size > NEGLIGIBLE * cauchy, size, by_model)
