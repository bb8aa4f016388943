"""The box lower <= x <= upper, on flat vectors.

Different from SciPy: ``lower == upper`` fixes a variable, and a point may lie on a bound; the
Coleman-Li distance is then 0 where the gradient pushes outward, which holds the variable, and
positive where it does not, which frees it.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .base import AbstractProblem


def within(
    x: Float[Array, " n"], lower: Float[Array, " n"], upper: Float[Array, " n"]
) -> Bool[Array, ""]:
    """Whether every entry lies in the box, its faces included."""
    return jnp.all((x >= lower) & (x <= upper))


def onto_bounds(
    moved: Float[Array, " n"],
    x: Float[Array, " n"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
) -> Float[Array, " n"]:
    """``moved`` in the box, and on a bound where it is so but for the rounding of a step from x."""
    rounding = 4 * jnp.finfo(x.dtype).eps * jnp.maximum(jnp.abs(x), jnp.abs(moved))
    moved = jnp.where(moved - lower <= rounding, lower, moved)
    return jnp.where(upper - moved <= rounding, upper, moved)


def step_to_bound(
    x: Float[Array, " n"],
    step: Float[Array, " n"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
) -> tuple[Float[Array, ""], Bool[Array, " n"]]:
    """The largest t with x + t * step in the box (inf for none), and which entries stop it."""
    room = jnp.where(step > 0, upper, lower) - x
    # Twice `where`: the derivative of the branch not taken must be finite, too.
    ahead = (step != 0) & jnp.isfinite(room)
    t = jnp.where(ahead, jnp.where(ahead, room, 1) / jnp.where(ahead, step, 1), jnp.inf)
    smallest = jnp.min(t)
    return smallest, ahead & (t == smallest)


def projected_descent(
    problem: AbstractProblem, x: Float[Array, " n"], grad: Float[Array, " n"]
) -> Float[Array, " n"]:
    """P(x - g) - x, P the projection onto the box, so that a small g is not lost beside x."""
    if not problem.bounded:
        return -grad
    return jnp.clip(-grad, problem.lower - x, problem.upper - x)


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
    x: Float[Array, " n"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
    tolerance: Float[Array, " n"],
) -> Int[Array, " n"]:
    """-1 within ``tolerance`` of the lower bound, 1 of the upper, 0 elsewhere; int32."""
    to_lower, to_upper = x - lower, upper - x
    at_lower = (to_lower <= tolerance) & (to_lower <= to_upper)
    at_upper = (to_upper <= tolerance) & (to_upper < to_lower)
    return at_upper.astype(jnp.int32) - at_lower.astype(jnp.int32)
