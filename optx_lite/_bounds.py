"""The box lower <= x <= upper, on flat vectors.

Different from SciPy: ``lower == upper`` fixes a variable, and a point may lie on a bound; the
Coleman-Li distance is then 0 where the gradient pushes outward, which holds the variable, and
positive where it does not, which frees it.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def within(x: Float[Array, " n"], lower: Float[Array, " n"], upper: Float[Array, " n"]) -> Array:
    """Whether every entry lies in the box, its faces included."""
    return jnp.all((x >= lower) & (x <= upper))


def step_to_bound(
    x: Float[Array, " n"],
    step: Float[Array, " n"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
) -> tuple[Float[Array, ""], Bool[Array, " n"]]:
    """The largest t with x + t * step in the box (inf for none), and which entries stop it."""
    moving = step != 0
    room = jnp.where(step > 0, upper, lower) - x
    t = jnp.where(moving, room / jnp.where(moving, step, 1), jnp.inf)
    smallest = jnp.min(t)
    return smallest, moving & (t == smallest)


def coleman_li(
    x: Float[Array, " n"],
    grad: Float[Array, " n"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Distance to the bound that the antigradient points to, and its derivative.

    Branch, Coleman & Li (1999), equation (2.2): v = upper - x where g < 0, x - lower where
    g > 0, and 1 with derivative 0 where that bound is infinite or g = 0.
    """
    to_upper = (grad < 0) & jnp.isfinite(upper)
    to_lower = (grad > 0) & jnp.isfinite(lower)
    distance = jnp.where(to_upper, upper - x, jnp.where(to_lower, x - lower, 1))
    slope = jnp.where(to_upper, -1, jnp.where(to_lower, 1, 0)).astype(x.dtype)
    return distance, slope


def active_mask(
    x: Float[Array, " n"], lower: Float[Array, " n"], upper: Float[Array, " n"]
) -> Array:
    """-1 on the lower bound, 1 on the upper, 0 elsewhere; int32."""
    return jnp.where(x <= lower, -1, jnp.where(x >= upper, 1, 0)).astype(jnp.int32)
