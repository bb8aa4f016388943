r"""From a user's elementwise function to the answer, and the derivative of that answer.

A root has f(x; a) = 0, a minimum f_x(x; a) = 0, each element by itself. So

    dx = -f_a da / f_x     (roots),        dx = -f_xa da / f_xx     (minima)          (1)

element by element: f_x is the derivative of f along a tangent of ones, f_xx that of f_x, and no
matrix is formed. The value at a minimum moves as if x stood still (the envelope theorem), that at
a root not at all:

    df = f_a da     (minima),        df = f_a da + f_x dx = 0     (roots).            (2)

What f closes over counts as a. The first points, limits and tolerances have no influence, and the
bracket that is left has no derivative: both are 0. There is none either where the search did not
converge, where f_x = 0 at a root, or where not f_xx > 0 at a minimum (a kink, a plateau, x^4):
there it is NaN.

The rule is a forward one, linear in da: jvp, vjp, jacfwd, jacrev, hessian, vmap of each all work.
"""

from __future__ import annotations

import dataclasses
import functools as ft
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array

from ._elements import Task, work_off
from ._elementwise_result import CALLBACK_STOP, MAXITER, RUNNING, ElementwiseResult
from ._implicit import no_tangent
from ._lift import Lifted, lift
from ._monitor import Watch
from ._pointwise import pointwise
from .solvers._elementwise import AbstractElementwiseMachine

NEWTON = 2  # steps: the error is squared by each, and they start from the root of eps
SHAPE_MESSAGE = (
    "The shape of the array returned by `func` must be the same as the broadcasted shape of `x` "
    "and all other `args`."
)


class ElementwiseProblem(eqx.Module):
    """A function of arrays, element by element, with all that it is given.

    Attributes
    ----------
    fun : Lifted
        On whole arrays of the common dtype.
    first : Lifted
        The same on the dtype of the first points; which that of ``fun``'s values may widen.
    args : tuple of arrays
        Positional ones and, after them, those given by name.
    points : tuple of arrays, some of them None
        What the search begins with.
    shape : tuple of int
        To which all of them broadcast.
    dtype, first_dtype : dtype
        The common one, and that of the first points.
    """

    fun: Lifted
    first: Lifted
    args: tuple[Any, ...]
    points: tuple[Any, ...]
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    first_dtype: Any = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        """Compute the function of a whole array."""
        return self.fun(x, *self.args).astype(self.dtype)

    def slope(self, x: Array) -> Array:
        """Its derivative, each element's by its own x."""
        return jax.jvp(self, (x,), (jnp.ones_like(x),))[1]

    def slope_and_curvature(self, x: Array) -> tuple[Array, Array]:
        """Its first two derivatives."""
        return jax.jvp(self.slope, (x,), (jnp.ones_like(x),))

    def task(self, machine: AbstractElementwiseMachine) -> tuple[Task, bool]:
        """What a machine is to do, in flat arrays; and whether its elements may be parted."""
        points = tuple(None if point is None else self._flat(point) for point in self.points)
        fun = pointwise(self.fun, self.shape, self.args)
        first = fun
        if self.first is not self.fun:
            first = pointwise(self.first, self.shape, self.args)
        if fun is not None and first is not None:
            return Task(machine, fun, first, points, self.dtype), True
        on_whole = (ft.partial(self._on_flat, lifted) for lifted in (self.fun, self.first))
        return Task(machine, *map(jax.tree_util.Partial, on_whole), points, self.dtype), False

    def _flat(self, point: Any) -> Array:
        point = jnp.asarray(point).astype(self.first_dtype)
        if point.size == 1:
            return point.reshape(())
        return jnp.broadcast_to(point, self.shape).reshape(-1)

    def _on_flat(self, fun: Lifted, x: Array) -> Array:
        return fun(x.reshape(self.shape), *self.args).reshape(-1)


def elementwise_problem(
    fun: Callable[..., Any],
    points: tuple[Any, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
) -> ElementwiseProblem:
    """Trace the function on arrays of the shape to which all inputs broadcast.

    Raises
    ------
    ValueError
        If the shapes do not fit, or numbers are complex.
    """
    names = tuple(kwargs or ())
    args = tuple(map(_as_array, (*args, *(kwargs or {}).values())))
    given = tuple(None if point is None else _as_array(point) for point in points)
    there = [point for point in given if point is not None]
    shape = _broadcast_shape([*there, *args])
    whole = _on_whole(fun, names, shape)

    def trace(dtype: Any) -> tuple[Lifted, Any]:
        lifted = lift(whole, jax.ShapeDtypeStruct(shape, dtype), *args, label="`func`")
        out = lifted.out_shape
        if getattr(out, "shape", None) != shape:
            raise ValueError(SHAPE_MESSAGE)
        return lifted, _common(dtype, out.dtype)

    first_dtype = _floating(there)
    first, dtype = trace(first_dtype)
    on_common = first if dtype == first_dtype else trace(dtype)[0]
    return ElementwiseProblem(on_common, first, args, given, shape, dtype, first_dtype)


def _on_whole(fun: Callable, names: tuple[str, ...], shape: tuple[int, ...]) -> Callable:
    """The function of arrays that all have the shape, as the user may expect them."""

    def whole(x: Array, *args: Any) -> Any:
        full = [jnp.broadcast_to(arg, shape) for arg in args]
        positional = full[: len(full) - len(names)]
        out = fun(x, *positional, **dict(zip(names, full[len(positional) :], strict=True)))
        return jnp.asarray(out) if isinstance(out, (list, tuple)) else out

    return whole


def _as_array(value: Any) -> Any:
    """Whatever NumPy makes an array of; arrays and numbers as they are."""
    if isinstance(value, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
        return value
    if isinstance(value, (list, tuple)) and any(isinstance(v, jax.Array) for v in value):
        return jnp.stack([jnp.asarray(v) for v in value])
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"Points and arguments must be arrays of numbers, got {value!r:.60}.")
    return array


def _broadcast_shape(arrays: list[Any]) -> tuple[int, ...]:
    shapes = [jnp.shape(array) for array in arrays]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError as error:
        raise ValueError(
            "Array shapes are incompatible for broadcasting. The first points, limits and "
            f"arguments could not be broadcast together: {', '.join(map(str, shapes))}."
        ) from error


def _floating(points: list[Any]) -> Any:
    """The dtype of all points together; integers count as JAX's default floats."""
    kinds = [
        point if isinstance(point, (int, float, complex)) or _is_inexact(point) else np.dtype(float)
        for point in points
    ]
    with jax.numpy_dtype_promotion("standard"):
        return _common(*kinds)


def _is_inexact(point: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(point), jnp.inexact)


def _common(*kinds: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*kinds)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError("Abscissae and function output must be real numbers.")
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)


# -- to the end ----------------------------------------------------------------------------


def solve(
    machine: AbstractElementwiseMachine,
    problem: ElementwiseProblem,
    watch: Watch | None = None,
    polish: bool = False,
) -> Any:
    """Run a machine to its end; an answer with an x has the derivative of that x."""
    leaves, treedef = jax.tree.flatten((machine, problem, watch))
    static = treedef, bool(polish)
    if not any(isinstance(leaf, Tracer) for leaf in leaves):
        return _run(static, leaves)  # nothing to differentiate
    return _solve(static, leaves)


@ft.partial(jax.jit, static_argnums=0)
def _run(static: Any, leaves: list[Array]) -> Any:
    treedef, polish = static
    machine, problem, watch = jax.tree.unflatten(treedef, leaves)
    task, may_be_parted = problem.task(machine)
    size = math.prod(problem.shape)
    status: Any = MAXITER
    if watch is not None:
        state, status = _heard(task, task.begin(size), watch, problem.shape)
    else:
        state = work_off(task, size) if may_be_parted else task.run(task.begin(size))
    ended = jnp.where(state.status == RUNNING, status, state.status)
    state = eqx.tree_at(lambda state: state.status, state, ended.astype(state.status.dtype))
    result = _in_shape(machine.finish(state), problem.shape)
    return _polished(problem, result) if polish else result


def _in_shape(result: Any, shape: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(shape), result)


def _heard(task: Task, state: Any, watch: Watch, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Step with somebody listening, who hears of the bracket first, then of every iteration."""

    def tell(state: Any, active: Any) -> Array:
        report = _in_shape(task.machine.finish(state), shape)
        return watch.asks_for_the_end(report, active, active)

    def more(carry: Any) -> Array:
        state, stopped = carry
        return (task.count(state) > 0) & ~stopped

    def turn(carry: Any) -> Any:
        active = more(carry)
        state = task.step(carry[0])
        return state, tell(state, active)

    carry = (state, tell(state, jnp.array(True)))
    state, stopped = lax.while_loop(more, turn, carry)
    return state, jnp.where(stopped, CALLBACK_STOP, MAXITER)


def _polished(problem: ElementwiseProblem, result: ElementwiseResult) -> ElementwiseResult:
    """The minimiser to eps, by Newton's steps on f'.

    A step counts where the curvature is positive, the point stays in the bracket, and |f'| falls.
    """
    low, _, high = result.bracket

    def newton(_: Any, now: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, slope, curvature = now
        to = x - slope / curvature
        to_slope, to_curvature = problem.slope_and_curvature(to)
        good = (curvature > 0) & (low <= to) & (to <= high) & (jnp.abs(to_slope) < jnp.abs(slope))
        new = (to, to_slope, to_curvature)
        return jax.tree.map(lambda a, b: jnp.where(good & result.success, a, b), new, now)

    start = (result.x, *problem.slope_and_curvature(result.x))
    x, *_ = lax.fori_loop(0, NEWTON, newton, start)
    return dataclasses.replace(result, x=x, f_x=problem(x))


# -- the derivative ------------------------------------------------------------------------


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solve(static: Any, leaves: list[Array]) -> Any:
    return _run(static, leaves)


@_solve.defjvp
def _solve_jvp(static: Any, primals: Any, tangents: Any) -> Any:
    (leaves,), (dots,) = primals, tangents
    result = _solve(static, leaves)
    d_result = jax.tree.map(no_tangent, result)
    if isinstance(result, ElementwiseResult):
        moved = _tangents(static[0], result.x, result.success, leaves, dots)
        d_result = eqx.tree_at(lambda result: (result.x, result.f_x), d_result, moved)
    return result, d_result


@ft.partial(jax.jit, static_argnums=0)
def _tangents(
    treedef: Any, x: Array, success: Array, leaves: list[Array], dots: list[Any]
) -> tuple[Array, Array]:
    """(1) and (2)."""
    machine, problem, _ = jax.tree.unflatten(treedef, leaves)
    moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def problem_of(values: list[Array]) -> ElementwiseProblem:
        full = list(leaves)
        for i, value in zip(moving, values, strict=True):
            full[i] = value
        return jax.tree.unflatten(treedef, full)[1]

    def along(fun: Callable[[ElementwiseProblem], Array]) -> Array:
        """How a function of the problem changes while x stands still."""
        values, d_values = [leaves[i] for i in moving], [dots[i] for i in moving]
        return jax.jvp(lambda values: fun(problem_of(values)), (values,), (d_values,))[1]

    d_f = along(lambda problem: problem(x))
    if machine.SEEKS_ROOT:
        slope = problem.slope(x)
        d_x = -d_f / jnp.where(success & (slope != 0), slope, jnp.nan)
        return d_x, d_f + slope * d_x
    _, curvature = problem.slope_and_curvature(x)
    curvature = jnp.where(success & (curvature > 0), curvature, jnp.nan)
    d_x = -along(lambda problem: problem.slope(x)) / curvature
    # A factor, since a NaN that is only chosen would be lost when this is transposed.
    return d_x, d_f * jnp.where(success, 1, jnp.nan).astype(d_f.dtype)
