r"""Roots and stationary points of the function itself, from those of its proxy; differentiable.

Newton's steps on g, which is f or f', take x from the proxy's accuracy to that of g. The
derivative is that of the implicit function, dx = -dg / g', element by element, of any order, as
the rule calls itself. Where the root is not simple, as at that of x^2 or at the minimum of x^4, or
x is none, it is NaN: close to x, g' must be on both sides what it is at x, up to the fourth root of
eps. Nor may g jump there, as f' does at the minimum of |x| + x^2: its slopes are 2 on both sides,
and its root lies where the jump does. Over a distance h around x, g must change by 2 h g', and x
lie within h of the root of its tangent; h is the root of eps times |x|, or times the interval.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from ..driver.unknown import nan_where_moved
from ..problem.elementwise import at_each, value_and_slope

STEPS = 3


def _g(function: Callable, x: Array, order: int) -> Array:
    """f or f'."""
    return function(x) if order == 0 else value_and_slope(function, x)[1]


@eqx.filter_custom_jvp
def polished(function: Callable, x: Array, usable: Array, interval: tuple, order: int) -> Array:
    """The root of f, or of f' where ``order`` is 1, next to each x (k,); x where not ``usable``."""
    # Further away it would be another root.
    far = float(jnp.finfo(x.dtype).eps) ** 0.25 * (interval[1] - interval[0])

    def step(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, value, slope = state
        new = jnp.clip(x - value / jnp.where(slope == 0, 1, slope), *interval)
        new = jnp.where(usable & (jnp.abs(new - x) <= far), new, x)
        new_value, new_slope = value_and_slope(lambda x: _g(function, x, order), new)
        better = jnp.abs(new_value) < jnp.abs(value)
        state = (new, new_value, new_slope)
        return tuple(  # type: ignore
            jnp.where(better, a, b) for a, b in zip(state, (x, value, slope), strict=True)
        )

    value, slope = value_and_slope(lambda x: _g(function, x, order), x)
    return lax.fori_loop(0, STEPS, step, (x, value, slope))[0]


@polished.def_jvp
def _polished_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    function, x, usable, interval, order = primals
    x = polished(function, lax.stop_gradient(x), usable, lax.stop_gradient(interval), order)
    leaves, tree = jax.tree.flatten(function)
    given: list[PyTree] = (
        [None] * len(leaves) if tangents[0] is None else tree.flatten_up_to(tangents[0])
    )
    moving = [k for k, dot in enumerate(given) if dot is not None]
    values, dots = [leaves[k] for k in moving], [given[k] for k in moving]
    simple = usable & is_simple(function, x, interval, order)
    inside = jnp.where(simple, x, interval[0])  # what is not finite at x would spread
    slope = value_and_slope(lambda x: _g(function, x, order), inside)[1]

    def g(values: list[Array]) -> Array:
        new = dict(zip(moving, values, strict=True))
        moved = jax.tree.unflatten(tree, [new.get(k, leaf) for k, leaf in enumerate(leaves)])
        return _g(moved, inside, order)

    d_g = jax.jvp(g, (values,), (dots,))[1]
    d_x = jnp.where(simple, -d_g / jnp.where(simple, slope, 1), 0)
    if values:
        d_x = d_x + jax.vmap(lambda bad: nan_where_moved(values, dots, bad, x[0]))(~simple)
    return x, d_x


def is_simple(function: Callable, x: Array, interval: tuple, order: int) -> Array:
    """Whether x is a simple root of g, as far as can be seen."""
    function, x, interval = lax.stop_gradient((function, x, interval))
    info = jnp.finfo(x.dtype)

    def g(x: Array) -> Array:
        return _g(function, x, order)

    value, slope = value_and_slope(g, x)
    newton = jnp.abs(value / jnp.where(slope == 0, 1, slope))
    close = 2 * newton + 8 * (float(info.eps) * jnp.abs(x) + float(info.smallest_normal))
    slopes = at_each(lambda x: value_and_slope(g, x)[1], jnp.stack([x - close, x + close]))
    off = jnp.max(jnp.abs(slopes - slope[None]), axis=0)
    same = off <= float(info.eps) ** 0.25 * jnp.abs(slope)
    # Rounding errors of g may hide its slope over the shorter distance; a jump it has over both.
    wide = interval[1] - interval[0]
    h = float(info.eps) ** 0.5 * jnp.stack([jnp.abs(x), jnp.full_like(x, wide)])
    ends = jnp.stack([jnp.clip(x[None] - h, *interval), jnp.clip(x[None] + h, *interval)])
    values = at_each(g, ends.reshape(4, -1)).reshape(ends.shape)
    change = (ends[1] - ends[0]) * slope[None]
    off = jnp.abs(values[1] - values[0] - change)
    smooth = jnp.any((off <= 0.25 * jnp.abs(change)) & (newton[None] <= h), axis=0)
    # In reverse mode 1 / g' goes through the function's own factors: it must not underflow there.
    steep = jnp.abs(slope) * float(info.smallest_normal) > float(info.eps) ** 0.25
    return jnp.isfinite(value) & jnp.isfinite(slope) & (slope != 0) & ~steep & same & smooth
