r"""The derivative of a solution: the implicit function theorem at the minimum.

At the solution x(theta) of min f(x; theta), lower <= x <= upper, some variables, A, are held by
a bound b and the others, F, are free, with gradient g_F = 0. Differentiated:

    H_FF dx_F = -(dg_F + H_FA db),        dx_A = db                                    (1)

H the exact Hessian of the cost, loss included (Gauss-Newton's J^T J is 6-18 % wrong where the
residual is not zero); dg the change of the gradient at fixed x; db that of the bound. x0 has no
influence: its derivative is 0. Where the solve did not converge there is no derivative: it is
NaN, unless asked otherwise. (Counters, `optimality` and `hess_inv` tell how the solve went; their
tangents are 0.)

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
variables are so far apart that products of two leave the range (`_balance`), it is NaN.

Singular H. The solution of minimum norm, if there is one for all the inputs that are
differentiated; else NaN, in both modes (`linalg.symmetric`).

(1) is solved by `lax.custom_linear_solve`, so the rule is a forward one which can be
transposed: jvp, vjp, jacfwd, jacrev, hessian and vmap of each work. Its cost is n
Hessian-vector products and one factorisation. Above `DENSE` variables a minimiser forms no
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

`UnrolledAdjoint` differentiates the iterations instead: for meta-learning, where the inner
solve is stopped early on purpose and its answer is a function of x0 too.
"""

from __future__ import annotations

import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec
from jaxtyping import Array

from ..functions import communicates
from ..jax_support.control_flow import explicit_spec, in_auto_mode, vary_like, while_loop
from ..jax_support.xla import full_precision
from ..linalg import (
    diagonal,
    equilibrate,
    exponent,
    power_of_two,
    solve_by_products,
    solve_definite,
    solve_symmetric,
)
from ..problem.bounds import coleman_li
from ..results.base import AbstractResult
from .batching import in_chunks
from .callbacks import is_staged
from .loop import Checkpointed, FixedSteps, drive, drive_as_one
from .unknown import nan_where_moved

MOST_SETS = 30  # of active variables that are tried
DENSE = 500  # variables: up to here a minimiser's Hessian is written out


class AbstractAdjoint(eqx.Module):
    """How a solve is differentiated."""

    def solve(self, solver: Any, problem: Any, x0: Array, watch: Any = None) -> AbstractResult:
        """Run to the end, with this derivative."""
        raise NotImplementedError


class ImplicitAdjoint(AbstractAdjoint):
    """The implicit function theorem at the solution; the default.

    Parameters
    ----------
    unconverged : 'nan' or 'ignore'
        What the derivative is where ``success`` is False: NaN (default), or whatever the formula
        gives at the point that was reached.
    """

    unconverged: str = eqx.field(static=True, default="nan")

    def __check_init__(self) -> None:
        if self.unconverged not in ("nan", "ignore"):
            raise ValueError(f"`unconverged` must be 'nan' or 'ignore', got {self.unconverged!r}.")

    def solve(self, solver: Any, problem: Any, x0: Array, watch: Any = None) -> AbstractResult:
        """Run to the end; the derivative is that of the minimum."""
        leaves, treedef = jax.tree.flatten((solver, problem, x0, watch))
        if not any(isinstance(leaf, Tracer) for leaf in leaves):
            return _run((treedef, self.unconverged), leaves)  # nothing to differentiate
        if is_staged():
            # For lanes of a `vmap` over a NumPy array, which JAX stages out in no custom rule.
            leaves = [jnp.copy(leaf) if isinstance(leaf, Tracer) else leaf for leaf in leaves]
        return _solve((treedef, self.unconverged), leaves)


class UnrolledAdjoint(AbstractAdjoint):
    """Through the iterations themselves.

    Parameters
    ----------
    steps : int, optional
        Run at most this many steps, as a scan: forward and reverse mode, memory in proportion
        to ``steps``. None: until converged, by recursive checkpointing; reverse mode only.
    checkpoints : int, optional
        How many states to keep when ``steps`` is None.
    """

    steps: int | None = eqx.field(static=True, default=None)
    checkpoints: int | None = eqx.field(static=True, default=None)

    def solve(self, solver: Any, problem: Any, x0: Array, watch: Any = None) -> AbstractResult:
        """Run, and let differentiation see every step."""
        if self.steps is not None:
            return drive(solver, problem, x0, watch, FixedSteps(self.steps))
        most = int(solver.most_steps(x0.shape[0]))
        return drive(solver, problem, x0, watch, Checkpointed(most, self.checkpoints))


@ft.partial(jax.jit, static_argnums=0)
def _run(static: Any, leaves: list[Array]) -> AbstractResult:
    treedef, _ = static
    solver, problem, x0, watch = jax.tree.unflatten(treedef, leaves)
    state = jax.eval_shape(solver.init, problem, x0)
    lane_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    def run(spare: Any, *leaves: Array) -> AbstractResult:
        solver, problem, x0, watch = jax.tree.unflatten(treedef, leaves)
        watch = None if watch is None else watch.silenced(spare)
        return drive_as_one(solver, problem, x0, watch)

    values = jax.eval_shape(problem.evaluate, x0)
    shape, spec = values.shape, explicit_spec(values)

    def spec_of(leaf: Any) -> PartitionSpec:
        return spec if shape and leaf.shape[:1] == shape else PartitionSpec()

    def run_in_auto_mode(spare: Any, *leaves: Array) -> AbstractResult:
        return in_auto_mode(lambda *leaves: run(spare, *leaves), leaves, spec_of)

    if communicates((solver, problem)):  # its lanes have to run side by side
        return run_in_auto_mode(np.False_, *leaves)
    return in_chunks(run_in_auto_mode, lane_bytes, listened=watch is not None)(*leaves)


def _solve(static: Any, leaves: list[Array]) -> AbstractResult:
    result = _run(static, jax.tree.map(lax.stop_gradient, leaves))
    return _differentiated(static, result, leaves)


def with_minimum_derivative(
    solver: Any, problem: Any, result: AbstractResult, unconverged: str = "nan"
) -> AbstractResult:
    """A result that was found in another way than `ImplicitAdjoint`'s, with that derivative.

    Parameters
    ----------
    solver, problem
        As for `AbstractAdjoint.solve`; ``result`` is what the solver's ``finish`` gives.
    unconverged : 'nan' or 'ignore'
        As for `ImplicitAdjoint`.
    """
    leaves, treedef = jax.tree.flatten((solver, problem, None, None))
    return _differentiated((treedef, unconverged), lax.stop_gradient(result), leaves)


def _differentiated(static: Any, result: AbstractResult, leaves: list[Array]) -> AbstractResult:
    floats, others = eqx.partition(result, eqx.is_inexact_array)
    floats = _with_derivative(static, floats, result.success, leaves)
    return eqx.combine(floats, others)


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_derivative(
    static: Any, floats: AbstractResult, success: Array, leaves: list[Array]
) -> AbstractResult:
    """What of a result may have a derivative, with the one that is due to the problem's leaves."""
    return floats


def _with_derivative_jvp(static: Any, primals: Any, tangents: Any) -> Any:
    floats, success, leaves = primals
    floats = _with_derivative(static, floats, success, leaves)
    moving = tuple(
        i
        for i, (leaf, dot) in enumerate(zip(leaves, tangents[2], strict=True))
        if not isinstance(dot, SymbolicZero) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    )
    d_values = [tangents[2][i] for i in moving]
    moved = _tangents((*static, moving), floats, success, leaves, d_values)
    d_floats = eqx.tree_at(
        lambda r: [getattr(r, name) for name in moved],
        jax.tree.map(jnp.zeros_like, floats),
        list(moved.values()),
    )
    return floats, vary_like(d_floats, floats)


_with_derivative.defjvp(_with_derivative_jvp, symbolic_zeros=True)


@ft.partial(jax.jit, static_argnums=0)
@full_precision
def _tangents(
    static: Any, result: Any, success: Array, leaves: list[Array], d_values: list[Array]
) -> dict[str, Array]:
    """d x by (1), and with it d of the fields which follow from x."""
    treedef, unconverged, moving = static

    def problem_of(values: list[Array], rest: list[Array] = leaves) -> Any:
        full = list(rest)
        for i, value in zip(moving, values, strict=True):
            full[i] = value
        return jax.tree.unflatten(treedef, full)[1]

    x, values = result.x, [leaves[i] for i in moving]
    problem = problem_of(values)
    unit, size = problem.units(result)
    fixed_leaves, fixed_x, fixed_unit = lax.stop_gradient((leaves, x, unit))
    fixed = problem_of([fixed_leaves[i] for i in moving], fixed_leaves)
    known = success if unconverged == "nan" else jnp.ones_like(success)
    d_given = d_values
    d_values = [jnp.where(known, dot, 0) for dot in d_given]  # see `unknown`

    def d_gradient(d_values: list[Array]) -> tuple[Array, Array]:
        return jax.jvp(lambda v: problem_of(v).gradient(x, balanced), (values,), (d_values,))

    def hessian_times(p: Array) -> Array:
        return jax.jvp(lambda x: problem.gradient(x, unit), (x,), (p,))[1]

    def times_at_fixed(p: Array) -> Array:
        """The same for a loop, which has no reverse mode."""
        return jax.jvp(lambda x: fixed.gradient(x, fixed_unit), (fixed_x,), (p,))[1]

    def shaken_gradient() -> Array:
        """Its change where every input moves; for a solver, which must not move itself."""

        def gradient(values: list[Array]) -> Array:
            return problem_of(values, fixed_leaves).gradient(fixed_x, balanced)

        fixed_values = [fixed_leaves[i] for i in moving]
        return jax.jvp(gradient, (fixed_values,), ([_shaken(v) for v in fixed_values],))[1]

    dense = problem.dense or x.shape[0] <= DENSE
    hessian = (_Dense if dense else _ByProducts)(hessian_times, size)
    balance, balanced, in_range = _balance(unit, hessian.unit)
    scale = hessian.unit * balance
    known = known & in_range
    grad, d_grad = d_gradient(d_values)
    grad = grad * balance * balance
    free, d_bound = jnp.ones(x.shape, bool), jnp.zeros_like(x)
    rhs = -scale * d_grad
    if problem.bounded:
        sides, d_sides = jax.jvp(lambda v: _sides(problem_of(v)), (values,), (d_values,))
        held, settled = _held(
            *lax.stop_gradient((sides, x, grad, size)), hessian.fixed(times_at_fixed)
        )
        known = known & settled
        free, d_bound = held == 0, jnp.where(held == 0, 0, jnp.where(held > 0, *d_sides[::-1]))
        rhs = jnp.where(free, rhs - hessian.times(d_bound / scale), 0)
    d_x = d_bound + scale * hessian.solve(
        rhs,
        free,
        lambda: jnp.where(free, scale * shaken_gradient(), 0),
    )
    d_x = jnp.where(known, d_x, 0)

    def describe(x: Array, values: list[Array]) -> dict[str, Array]:
        return problem_of(values).describe(x)

    _, described = jax.jvp(describe, (x, values), (d_x, d_values))
    moved = {"x": d_x, **described}
    return jax.tree.map(ft.partial(_where_known, known, values, d_given), moved)


def _where_known(
    known: Array, values: list[Array], d_given: list[Array], d_field: Array
) -> Array | None:
    if d_field.dtype == jax.dtypes.float0:  # of integers, as a sparse array's places
        return None
    return jnp.where(known, d_field, 0) + nan_where_moved(values, d_given, ~known, d_field)


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
        return lax.custom_linear_solve(
            lambda y: matrix @ y,
            rhs,
            lambda _, b: solve_symmetric(matrix, b, self.unit, probe),
            symmetric=True,
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


def _balance(unit: Array | float, scale: Array) -> tuple[Array, Array, Array]:
    """b, ``unit`` b^2, and whether all products of two entries of S b are in range.

    With the cost in the unit b^2 times as large S becomes S b, about the root of S. A derivative
    goes through it twice, in reverse mode before the rest: where the units of the variables are so
    far apart that this leaves the range of the dtype, what came out would be finite and wrong.
    """
    unit = jnp.asarray(unit, scale.dtype)
    most = jnp.finfo(scale.dtype).maxexp - 4
    largest, smallest = exponent(jnp.max(scale)), exponent(jnp.min(scale))
    b = -(largest + smallest) // 4
    b = (jnp.clip(exponent(unit) + 2 * b, -most, most) - exponent(unit)) // 2
    in_range = (2 * (largest + b) < most) & (2 * (smallest + b) > -most)
    balanced = power_of_two(exponent(unit) + 2 * b, scale.dtype)
    return power_of_two(b, scale.dtype), balanced, in_range


def _unit_diagonal(curvature: Array, size: Array) -> Array:
    """s, powers of two, with s_j^2 H_jj about 1, from H_jj size_j; as the others where H_jj = 0."""
    of_size = exponent(size)
    relative = -(exponent(curvature) + of_size) // 2
    there = curvature != 0
    largest = jnp.max(jnp.where(there, relative, jnp.iinfo(relative.dtype).min))
    largest = jnp.where(jnp.any(there), largest, 0)
    return power_of_two(of_size + jnp.where(there, relative, largest), size.dtype)


def _sides(problem: Any) -> tuple[Array, Array]:
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

    def turn(state: Any) -> Any:
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
    return (jnp.where(size > 0, size, 1) * jnp.cos(angles)).reshape(value.shape).astype(value.dtype)
