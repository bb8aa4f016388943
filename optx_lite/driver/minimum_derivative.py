r"""The derivative of a solution: the implicit function theorem at the minimum.

At the solution x(theta) of min f(x; theta), lower <= x <= upper, some variables, A, are held by
a bound b and the others, F, are free, with gradient g_F = 0. Differentiated:

    H_FF dx_F = -(dg_F + H_FA db),        dx_A = db                                    (1)

H the exact Hessian of the cost, loss included (Gauss-Newton's J^T J is 6-18 % wrong where the
residual is not zero); dg the change of the gradient at fixed x; db that of the bound. x0 has no
influence: its derivative is 0. Where the solve did not converge there is no derivative: it is
NaN, unless `ImplicitAdjoint(unconverged="ignore")`. (Counters, `optimality` and `hess_inv` describe
the solve; their tangents are 0.)

Held. x is right to what the solve was asked for, no better: the g that it has left may be force,
or not yet 0, and a variable closer to its bound than that may be free. So the quadratic at x
decides, by one Newton step within the bounds,

    minimise g.p + 0.5 p^T H p   over   lower <= x + p <= upper                       (2)

whose active sets are tried one after the other: a free variable that would leave the box is held,
one that its bound would have to pull is freed. The first guess looks at each variable alone, held
if |g_j| > distance_j H_jj. (Coleman & Li's system, with g and the distance in it, has an error of
g over the distance.) Where the sets do not settle nothing is known, and the derivative is NaN.

One-sided derivatives. A variable that rests on its bound without force, g_j = 0, has one on
either side, and none of its own. It counts as free: what (1) gives is the derivative on the side
on which the variable leaves the bound, linear as all derivatives, so that both modes agree.

Units. The cost is taken in a unit of the problem's (`units`), and H is formed with steps of the
variables' own sizes, then equilibrated by powers of two: nothing under- or overflows unless the
derivative itself does, and what counts as zero does not depend on units. Where the units of the
variables are so far apart that products of two leave the range (`_in_range`), it is NaN.

Singular H. The solution of minimum norm, if there is one for all the inputs that are
differentiated; else NaN, in both modes (`linalg.symmetric`).

(1) is solved by `lax.custom_linear_solve`, so the rule is a forward one which can be
transposed: jvp, vjp, jacfwd, jacrev, hessian and vmap of each work. The user's function is
linearised once, which gives all products with H and the change of the gradient, and H is
factorised once for all orders of differentiation: where that function holds a solve itself, no
order copies it. Above `DENSE` variables a minimiser forms no
matrix: conjugate gradients take as many products as they need, with variables equilibrated by
products, too (`linalg.conjugate_gradient`); beyond a condition of about 1e8 in float64 they
answer NaN, as they do in reverse mode where H is singular. Least squares has a matrix (m, n)
anyway, and writes H out for any n.

Functions with one mode only. A gradient is taken in reverse, or forwards where the function has
no reverse mode (a `lax.while_loop`); (1) differentiates it once more. So a solution has a forward
derivative, and a reverse one where what is differentiated stays outside of such a loop. Through a
function that has reverse mode only (`jax.custom_vjp`, equinox's checkpointed loop; take
``jac='jacrev'``) it has a forward one, if the rule can be differentiated; reverse over reverse is
JAX's to refuse.
"""

from __future__ import annotations

import functools as ft
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, PyTree

from ..jax_support.control_flow import shard_like, while_loop, zeros_like
from ..jax_support.xla import full_precision
from ..linalg import (
    diagonal,
    equilibrate,
    exponent,
    factor_symmetric,
    power_of_two,
    solve_by_products,
    solve_definite,
)
from ..problem.base import AbstractProblem
from ..problem.bounds import coleman_li
from ..results.base import AbstractResult
from .custom_derivative import Moving
from .unknown import nan_where_moved, still_unless

MOST_SETS = 30  # of active variables that are tried
DENSE = 500  # variables: up to here a minimiser's Hessian is written out


@full_precision
def minimum_tangents(
    problem_of: Callable[[list[Array]], AbstractProblem],
    result: AbstractResult,
    has_derivative: Bool[Array, ""],
    moving: Moving,
) -> dict[str, Array | None]:
    """d x by (1), and with it d of the fields which follow from x, by their names.

    Parameters
    ----------
    problem_of : callable
        From the solve's leaves to the problem.
    result : Result or MinimizeResult
        On flat vectors.
    has_derivative : array of bool, ()
        Whether there is a derivative, as far as the solve can say; it is NaN elsewhere.
    moving : Moving
        The leaves.
    """
    x, *values = [still_unless(has_derivative, value) for value in (result.x, *moving.values)]
    problem = problem_of(moving.with_values(values))
    unit, size = problem.units(result)
    unit = _balanced(unit, size)
    dots = [jnp.where(has_derivative, dot, 0) for dot in moving.dots]  # see `unknown`

    def problem_with(values: list[Array]) -> AbstractProblem:
        return problem_of(moving.with_values(values))

    # The user's function stands here once, however many products follow. (It may be a solve.)
    grad, linear = jax.linearize(lambda x, v: problem_with(v).gradient(x, unit), x, values)
    zeros = zeros_like((x, values))

    # By a jvp, so that what is infinite by one argument does not meet a 0 of the other.
    def hessian_times(p: Array, linear: Callable = linear) -> Array:
        return jax.jvp(lambda x: linear(x, zeros[1]), (zeros[0],), (p,))[1]

    def change(dots: list[Array], linear: Callable = linear) -> Array:
        return jax.jvp(lambda v: linear(zeros[0], v), (zeros[1],), (dots,))[1]

    # For loops, which have no reverse mode.
    fixed = lax.stop_gradient(linear)

    dense = problem.dense or x.shape[0] <= DENSE
    hessian = (_Dense if dense else _ByProducts)(hessian_times, size)
    has_derivative = has_derivative & _in_range(hessian.unit)
    free, d_bound = jnp.ones(x.shape, bool), jnp.zeros_like(x)
    rhs = -hessian.unit * change(dots)
    if problem.bounded:
        sides, d_sides = jax.jvp(lambda v: _sides(problem_with(v)), (values,), (dots,))
        held, settled = _held(
            *lax.stop_gradient((sides, x, grad, size)),
            hessian.fixed(ft.partial(hessian_times, linear=fixed)),
        )
        has_derivative = has_derivative & settled
        free, d_bound = held == 0, jnp.where(held == 0, 0, jnp.where(held > 0, *d_sides[::-1]))
        rhs = jnp.where(free, rhs - hessian.times(d_bound / hessian.unit), 0)

    def probe() -> Array:
        shaken = [_shaken(value) for value in moving.fixed().values]
        return jnp.where(free, lax.stop_gradient(hessian.unit) * change(shaken, fixed), 0)

    d_x = d_bound + hessian.unit * hessian.solve(rhs, free, probe)
    d_x = jnp.where(has_derivative, d_x, 0)

    def describe(x: Array, values: list[Array]) -> dict[str, Array]:
        return problem_with(values).describe(x)

    _, described = jax.jvp(describe, (x, values), (d_x, dots))
    moved = {"x": d_x, **described}
    return jax.tree.map(ft.partial(_nan_without, has_derivative, moving.values, moving.dots), moved)


def _nan_without(
    has_derivative: Array, values: list[Array], d_given: list[Array], d_field: Array
) -> Array | None:
    if d_field.dtype == jax.dtypes.float0:  # of integers, as a sparse array's places
        return None
    return jnp.where(has_derivative, d_field, 0) + nan_where_moved(
        values, d_given, ~has_derivative, d_field
    )


class _Dense:
    """S H S, S = diag(unit), written out."""

    def __init__(self, hessian_times: Callable[[Array], Array], size: Array):
        columns = jax.vmap(hessian_times)(jnp.diag(size))  # H e_j size_j
        self.columns = jnp.abs(columns)
        self.curvature = diagonal(columns)  # H_jj size_j
        self.unit = _unit_diagonal(self.curvature, size)
        self.matrix = columns * (self.unit / size)[:, None] * self.unit[None, :]

    def times(self, y: Array) -> Array:
        """S H S y."""
        return self.matrix @ y

    def rounding(self, x: Array) -> Array:
        """Of the gradient, for that of x; both divided by their units."""
        return x @ self.columns

    def fixed(self, times: Callable[[Array], Array]) -> _Fixed:
        """Without derivatives."""
        matrix = lax.stop_gradient(self.matrix)
        eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)

        def solve(rhs: Array, free: Array) -> Array:
            among_free = jnp.where(free[:, None] & free[None, :], matrix, eye)
            return solve_definite(among_free, rhs)[0]

        return _Fixed(self, lambda y: matrix @ y, solve)

    def solve(self, rhs: Array, free: Array, probe: Callable[[], Array]) -> Array:
        """y with S H S y = ``rhs`` among the ``free`` variables, 0 for the others."""
        eye = jnp.eye(rhs.shape[0], dtype=rhs.dtype)
        matrix = jnp.where(free[:, None] & free[None, :], self.matrix, eye)
        # Here, and not in the solver, of which there are as many as orders of differentiation.
        factors = factor_symmetric(*lax.stop_gradient((matrix, self.unit)), probe)
        return lax.custom_linear_solve(
            lambda y: matrix @ y, rhs, lambda _, b: factors.solve(b), symmetric=True
        )


class _ByProducts:
    """The same of which only products are known."""

    def __init__(self, hessian_times: Callable[[Array], Array], size: Array):
        self.unit = equilibrate(hessian_times, size)
        self.curvature = size / self.unit / self.unit  # about H_jj size_j, or more
        self.times = lambda y: self.unit * hessian_times(self.unit * y)

    def rounding(self, x: Array) -> Array:
        """See `_Dense`."""
        return x * self.curvature

    def fixed(self, times: Callable[[Array], Array]) -> _Fixed:
        """See `_Dense`; ``times`` is H p at what does not move."""
        unit = lax.stop_gradient(self.unit)

        def scaled(y: Array) -> Array:
            return unit * times(unit * y)

        def solve(rhs: Array, free: Array) -> Array:
            y = solve_by_products(lambda y: jnp.where(free, scaled(jnp.where(free, y, 0)), y), rhs)
            return jnp.where(jnp.isfinite(jnp.sum(y)), y, 0)

        return _Fixed(self, scaled, solve)

    def solve(self, rhs: Array, free: Array, probe: Callable[[], Array]) -> Array:
        """See `_Dense`."""
        return lax.custom_linear_solve(
            lambda y: jnp.where(free, self.times(jnp.where(free, y, 0)), y),
            rhs,
            solve_by_products,
            symmetric=True,
        )


class _Fixed:
    """A Hessian at fixed values, for a loop; all in its units."""

    def __init__(self, hessian: _Dense | _ByProducts, times: Callable, solve: Callable):
        self.unit, self.curvature = lax.stop_gradient((hessian.unit, hessian.curvature))
        self.rounding = lambda x: lax.stop_gradient(hessian.rounding(x))
        self.times, self.solve = times, solve


def _balanced(unit: Array | float, size: Array) -> Array:
    """A unit of the cost in which S is about the root of the variables' ``size``.

    ``unit`` is one in which S is about ``size``. A derivative goes through S twice, in reverse mode
    before the rest, so that its root is what stays in range.
    """
    unit = exponent(jnp.asarray(unit, size.dtype))
    most = jnp.finfo(size.dtype).maxexp - 4
    of_size = exponent(size)
    middle = (jnp.max(of_size) + jnp.min(of_size)) // 2
    return power_of_two(jnp.clip(unit - middle, -most, most), size.dtype)


def _in_range(unit: Array) -> Array:
    """Whether all products of two entries of S are.

    If the units of the variables are so far apart that they are not, what came out would be
    finite and wrong.
    """
    most = jnp.finfo(unit.dtype).maxexp - 4
    return jnp.max(jnp.abs(2 * exponent(unit))) < most


def _unit_diagonal(curvature: Array, size: Array) -> Array:
    """s, powers of two, with s_j^2 H_jj about 1, from H_jj size_j; as the others where H_jj = 0."""
    of_size = exponent(size)
    relative = -(exponent(curvature) + of_size) // 2
    there = curvature != 0
    largest = jnp.max(jnp.where(there, relative, jnp.iinfo(relative.dtype).min))
    largest = jnp.where(jnp.any(there), largest, 0)
    return power_of_two(of_size + jnp.where(there, relative, largest), size.dtype)


def _sides(problem: AbstractProblem) -> tuple[Array, Array]:
    return problem.lower, problem.upper


def _held(
    sides: tuple[Array, Array], x: Array, grad: Array, size: Array, hessian: _Fixed
) -> tuple[Array, Array]:
    """The sides, -1 and 1, to which variables are held in (2), 0 for free ones; and if found."""
    lower, upper = sides
    low, high = lower - x, upper - x
    distance, side = coleman_li(x, grad, lower, upper)
    eps = jnp.finfo(x.dtype).eps
    # What the rounding of x leaves in the gradient holds nothing.
    rounding = 4 * eps * hessian.rounding(jnp.abs(x) / size)
    enough = distance / size * jnp.maximum(hessian.curvature, 0) + rounding
    fixed = lower == upper
    held = jnp.where((side != 0) & (jnp.abs(grad) > enough), -side, jnp.where(fixed, -1, 0))

    def turn(state: PyTree) -> PyTree:
        held, _, _, count = state
        onto = jnp.where(held < 0, low, jnp.where(held > 0, high, 0)) / hessian.unit
        slope = hessian.unit * grad
        rhs = jnp.where(held == 0, -slope - hessian.times(onto), 0)
        y = onto + hessian.solve(rhs, held == 0)
        force = (slope + hessian.times(y)) / hessian.unit
        p = hessian.unit * y
        beyond = 4 * eps * jnp.maximum(jnp.abs(x), jnp.abs(p))
        leaves = jnp.where(p < low - beyond, -1, jnp.where(p > high + beyond, 1, 0))
        pulled = (jnp.where(held > 0, force, -force) > rounding) & ~fixed
        new = jnp.where(held == 0, leaves, jnp.where(pulled, 0, held)).astype(held.dtype)
        weak = (held != 0) & (jnp.abs(force) <= rounding) & ~fixed
        return new, jnp.all(new == held), jnp.where(weak, 0, held), count + 1

    start = held.astype(jnp.int32)
    zero = 0 * start[0]  # with a mesh in its type, where arrays have one, unlike a constant
    _, settled, held, _ = while_loop(
        lambda state: ~state[1] & (state[3] < MOST_SETS), turn, (start, zero > 0, start, zero)
    )
    return held, settled


def _shaken(value: Array) -> Array:
    """A change of every entry, of the size of the array, with no pattern in it."""
    flat = jnp.where(jnp.isfinite(value), value, 0).reshape(-1)
    size = jnp.max(jnp.abs(flat), initial=0)
    angles = 2.399963 * jnp.arange(1, flat.size + 1, dtype=size.dtype)  # the golden one
    shaken = jnp.where(size > 0, size, 1) * jnp.cos(angles)
    return shard_like(shaken.reshape(value.shape).astype(value.dtype), value)
