r"""The derivative of what an elementwise search has found, by the implicit function theorem.

A root has f(x; a) = 0, a minimum f_x(x; a) = 0, each element by itself. So

    dx = -f_a da / f_x     (roots),        dx = -f_xa da / f_xx     (minima)          (1)

element by element: f_x is the derivative of f along a tangent of ones, f_xx that of f_x, and no
matrix is formed. The value at a minimum moves as if x stood still (the envelope theorem), that at
a root not at all:

    df = f_a da     (minima),        df = f_a da + f_x dx = 0     (roots).            (2)

A minimiser that rests on a limit, f falling towards it, follows the limit, dx = dlimit, and f along
with it; with f_x = 0 on the limit, (1) is the derivative on the side where x leaves the limit. What
f closes over counts as a. First points and tolerances have no influence: their derivative is 0.

(1) asks for a simple root of g, which is f or, for a minimum, f_x. The searches ask for less: they
also end at a jump, a kink, a pole, a plateau, x^3 or x^4. `simple_root` looks for what can be seen
of that. Where it fails, and where the search did not converge, the derivative is NaN, in forward
and in reverse mode (`Change.unknown`).
"""

from __future__ import annotations

import functools as ft
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from ..jax_support.types import Number
from ..problem.elementwise import (
    ElementwiseProblem,
    at_each,
    batch_of_one,
    first_possible,
    value_and_slope,
)
from .custom_derivative import Moving
from .unknown import nan_unless_zero, one_unless_zero, zero_that_moves

DOUBT = 64  # times eps: the part of a number that rounding may have spoilt


def root_tangents(
    change: Change, problem: ElementwiseProblem, x: Array, success: Array, width: Array
) -> tuple[Array, Array]:
    """(1) and (2) for a root; ``width`` is that of the search's last bracket."""
    simple = success & simple_root(ElementwiseProblem.__call__, problem, x, width)[0]
    x = _usable(x, simple, problem)
    slope = problem.slope(x)
    d_f = change.of(lambda problem: problem(x))
    d_x = -d_f * _reciprocal(slope, simple)
    unknown = change.unknown(~simple)
    return d_x + unknown, jnp.where(simple, d_f + slope * d_x, 0) + unknown


def minimum_tangents(
    change: Change,
    problem: ElementwiseProblem,
    x: Array,
    success: Array,
    width: Array,
    side: Array | None = None,
) -> tuple[Array, Array]:
    """(1) and (2) for a minimum; ``side`` is -1 or 1 where it rests on a limit, else 0."""
    simple, stationary = simple_root(ElementwiseProblem.slope, problem, x, width)
    slope, curvature = lax.stop_gradient(value_and_slope(problem.slope, x))
    held, d_limit = jnp.zeros_like(success), jnp.zeros_like(x)
    if side is not None:
        held = success & _follows_limit(problem, slope, side)
        d_limit = jnp.where(held, change.of(lambda problem: problem.limit(side)), 0)
    free = success & simple & (curvature > 0) & ~held
    x_free = _usable(x, free, problem)
    curvature = value_and_slope(problem.slope, x_free)[1]
    d_free = -change.of(lambda problem: problem.slope(x_free)) * _reciprocal(curvature, free)
    has_derivative = held | (success & stationary)
    x = _usable(x, has_derivative, problem)
    d_f = jnp.where(has_derivative, change.of(lambda problem: problem(x)), 0)
    d_f = d_f + jnp.where(held, problem.slope(x), 0) * d_limit
    return (
        d_free + d_limit + change.unknown(~(free | held)),
        d_f + change.unknown(~has_derivative),
    )


def _usable(x: Array, where: Array, problem: ElementwiseProblem) -> Array:
    """x there, else a first point: what is not finite at x would spread when transposed."""
    return jnp.where(where, x, problem.full(problem.points[1]))


def _follows_limit(problem: ElementwiseProblem, slope: Array, side: Array) -> Array:
    """Whether the minimiser stays on its limit when the problem changes a little.

    The sign of an infinite slope, as of sqrt(x) at 0, says nothing: it is that of the 0.
    """
    lower, upper = problem.limits
    pressed = (slope * side < 0) | ~jnp.isfinite(slope) | (lower == upper)
    return (side != 0) & pressed


def _reciprocal(divisor: Array, where: Array) -> Array:
    """1 / divisor, and 0 elsewhere."""
    return jnp.where(where, 1 / jnp.where(where, divisor, 1), 0)


def simple_root(
    function: Callable[[ElementwiseProblem, Array], Array],
    problem: ElementwiseProblem,
    x: Array,
    width: Array,
) -> tuple[Array, Array]:
    """Whether x is a simple root of g, and whether it is a root of g, as far as can be seen.

    The search finds x to the width of its last bracket, to the root of eps of its size, and to
    what rounding makes of the way from the first points. Newton's step from x may not be longer.
    Further away than that, g may not have changed by more than its derivative explains (or there
    is a jump), nor be 0 all over. And close to x, twice Newton's step away, this derivative must be
    on both sides what it is at x, up to the fourth root of eps (or there is a kink, or a multiple
    root).
    """
    problem, x, width = lax.stop_gradient((problem, x, width))
    g = ft.partial(function, problem)
    info = jnp.finfo(x.dtype)
    value, slope = value_and_slope(g, x)
    # A value of 0 may be one that has underflowed, as that of x^3 long before x = 0.
    least = jnp.maximum(jnp.abs(value), info.smallest_normal)
    newton = jnp.where((value == 0) & (slope == 0), 0, least / jnp.abs(slope))
    rounding = DOUBT * info.eps * _way(problem, x)
    resolution = 2 * jnp.abs(width) + jnp.sqrt(info.eps) * jnp.abs(x) + rounding

    close = 2 * newton + 8 * (info.eps * jnp.abs(x) + info.smallest_normal)
    far = close + rounding
    around = jnp.stack([x - far, x - close, x + close, x + far])
    values, slopes = at_each(lambda x: value_and_slope(g, x), around)
    steepest = jnp.maximum(jnp.abs(slope), jnp.nanmax(jnp.abs(slopes), axis=0))
    jumps = jnp.abs(values[2:] - values[1::-1]) > (steepest * (4 * far + resolution))[None]
    flat = (value == 0) & (slope == 0) & jnp.all((values == 0) & (slopes == 0), axis=0)
    root = (newton <= resolution) & ~jnp.any(jumps, axis=0) & ~flat
    off = jnp.max(jnp.abs(slopes[1:3] - slope[None]), axis=0)
    same = off <= info.eps**0.25 * jnp.abs(slope)
    return root & same & jnp.isfinite(slope) & (slope != 0), root


def _way(problem: ElementwiseProblem, x: Array) -> Array:
    """How far x is from the furthest of the first points."""
    given = [problem.full(point) for point in problem.points[:3] if point is not None]
    return ft.reduce(jnp.maximum, [jnp.abs(x - point) for point in given])


class Change:
    """How a quantity of an elementwise problem changes with everything in the problem.

    That is linear in the tangents of the problem's leaves, and is transposed in reverse mode.

    Parameters
    ----------
    problem_of : callable
        From leaves to the problem.
    moving : Moving
        The leaves.
    """

    def __init__(self, problem_of: Callable[[list[PyTree]], ElementwiseProblem], moving: Moving):
        self.problem_of = problem_of
        self.moving = moving
        self.values, self.dots = moving.values, moving.dots

    def of(self, quantity: Callable[[ElementwiseProblem], Array]) -> Array:
        """The change of a quantity.

        In forward mode if its derivative has that mode, and a transpose, as functions of
        `jax.numpy` have; else as the transpose of reverse mode (`jax.custom_vjp`); else by one
        forward derivative for each argument (`lax.while_loop`).
        """

        def fun(values: list[Array]) -> Array:
            return quantity(self.problem_of(self.moving.with_values(values)))

        out = jax.eval_shape(fun, self.values)

        def forward(dots: list[Array]) -> Array:
            return jax.jvp(fun, (self.values,), (dots,))[1]

        def by_forward_mode() -> Array:
            batch = list(map(batch_of_one, self.dots))
            jax.eval_shape(jax.linear_transpose(jax.vmap(forward), batch), batch_of_one(out))
            return forward(self.dots)

        def by_reverse_mode() -> Array:
            pullback = jax.vjp(fun, self.values)[1]
            (changed,) = jax.linear_transpose(lambda d_out: pullback(d_out)[0], out)(self.dots)
            return changed

        def by_arguments() -> Array:
            zeros = [jnp.zeros_like(value) for value in self.values]
            args = self._places(lambda problem: problem.args)
            captured = self._places(lambda problem: problem.fun)
            args += [k for k in captured if self.values[k].ndim == 0]
            rest = [zeros[k] if k in args else dot for k, dot in enumerate(self.dots)]
            changed = forward(rest)
            for k in args:
                ones = [*zeros[:k], jnp.ones_like(zeros[k]), *zeros[k + 1 :]]
                changed = changed + forward(ones) * self.dots[k].astype(out.dtype)
            return changed

        return first_possible(by_forward_mode, by_reverse_mode, by_arguments)

    def unknown(self, where: Array) -> Array:
        """NaN for the elements ``where`` any of their tangents is not 0; 0 for all others.

        As a linear function of the tangents, which JAX can transpose: a cotangent of such an
        element becomes NaN unless it is 0, see `unknown`.
        """
        own = self._places(lambda problem: (problem.args, problem.points))
        dtype = self.problem_of(self.moving.leaves).dtype
        weight: Number = 0
        rows = []
        for k, (value, dot) in enumerate(zip(self.values, self.dots, strict=True)):
            move, dot = zero_that_moves(value).astype(dtype), dot.astype(dtype)
            if k not in own:  # shared by all elements
                move, dot = jnp.sum(move), jnp.sum(one_unless_zero(dot))
            weight = weight + jnp.broadcast_to(move, where.shape)
            rows.append(jnp.broadcast_to(dot, where.shape))
        # The weight is 1, and so are its derivatives: those of NaN are NaN, too.
        rows = jnp.exp(weight)[None] * jnp.stack(rows)
        return jnp.sum(nan_unless_zero(rows, where[None]), axis=0)

    def _places(self, part: Callable[[PyTree], PyTree]) -> list[int]:
        """Where among the values the leaves of a part of the problem are."""
        numbers = list(range(len(self.moving.leaves)))
        chosen = set(jax.tree.leaves(part(self.problem_of(numbers))))
        return [i for i, place in enumerate(self.moving.places) if place in chosen]
