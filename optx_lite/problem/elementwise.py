"""A user's elementwise function with all that it is given: of known shapes and dtypes, traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, DTypeLike, PyTree

from ..functions import Lifted, Pointwise, is_jitted, lift, pointwise
from .arguments import check_kwargs

SHAPE_MESSAGE = (
    "The shape of the array returned by `func` must be the same as the broadcasted shape of `x` "
    "and all other `args`."
)

NO_DERIVATIVE = (
    "`func` lacks a derivative: a root is differentiated by the first derivative, a minimiser by "
    "the second, and JAX has none, as through `jax.pure_callback`. Give `func` one with "
    "`jax.custom_jvp` or `jax.custom_vjp`, by functions that JAX can differentiate in turn."
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
    values : tuple of arrays, optional
        The function at the points, where it is known.
    wall : float, optional
        As what a search sees NaN and inf, so that it turns away from where the function is not
        defined. None: as they are.
    """

    fun: Lifted
    first: Lifted
    args: tuple[PyTree, ...]
    points: tuple[PyTree, ...]
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: DTypeLike = eqx.field(static=True)
    first_dtype: DTypeLike = eqx.field(static=True)
    values: tuple[Array, ...] | None = None
    wall: float | None = eqx.field(static=True, default=None)

    def __call__(self, x: Array) -> Array:
        """Compute the function of a whole array."""
        return self.fun(x, *self.args).astype(self.dtype)

    def slope(self, x: Array) -> Array:
        """Its derivative, each element's by its own x."""
        return value_and_slope(self, x)[1]

    def limit(self, side: Array) -> Array:
        """Where ``side`` is below 0 or above it, the lower or the upper limit of a bracket."""
        low, high = map(self.full, self.points[3:5])
        return jnp.where(side < 0, low, jnp.where(side > 0, high, 0))

    @property
    def limits(self) -> Array:
        """The lower limits of a bracket and the upper ones, (2, ...)."""
        return jnp.stack([self.limit(jnp.full(self.shape, side)) for side in (-1, 1)])

    def full(self, point: PyTree) -> Array:
        """A first point for each element, in the common dtype."""
        return jnp.broadcast_to(jnp.asarray(point).astype(self.dtype), self.shape)

    def within(
        self, bracket: tuple[Array, ...], f_bracket: tuple[Array, ...]
    ) -> ElementwiseProblem:
        """The same with a bracket of the common dtype as the first points.

        With the values there, since another compiled program may round them otherwise, so that it
        is a bracket no more.
        """
        return dataclasses.replace(
            self, points=bracket, values=f_bracket, first=self.fun, first_dtype=self.dtype
        )

    def walled(self, wall: float) -> ElementwiseProblem:
        """The same where the function is as high as this wherever it is not defined."""
        return dataclasses.replace(self, wall=wall)

    def parted(self, fun: Lifted) -> Pointwise | None:
        """One of the two functions on any part of the elements, in a row; None if it may not be."""
        return pointwise(fun, self.shape, self.args)

    def on_row(self, fun: Lifted, x: Array) -> Array:
        """The same on all elements, in a row."""
        return fun(x.reshape(self.shape), *self.args).reshape(-1)

    def in_row(self, point: PyTree) -> Array:
        """A first point, in a row; or one number if it is the same for all."""
        point = jnp.asarray(point).astype(self.first_dtype)
        if all(length == 1 for length in point.shape):
            return point.reshape(())
        return jnp.broadcast_to(point, self.shape).reshape(-1)


def value_and_slope(fun: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """An elementwise function and its derivative, each element's by its own x.

    In forward mode; in reverse mode where a function has no other derivative, as one with a
    `jax.custom_vjp`.

    Raises
    ------
    NoDerivativeError
        If it has neither.
    """

    def push(dot: Array) -> tuple[Array, Array]:
        return jax.jvp(fun, (x,), (dot,))

    def forward() -> tuple[Array, Array]:
        jax.eval_shape(jax.vmap(push), batch_of_one(x))
        return push(jnp.ones_like(x))

    def reverse() -> tuple[Array, Array]:
        value, pullback = jax.vjp(fun, x)
        return value, pullback(jnp.ones_like(value))[0]

    return first_possible(forward, reverse)


def at_each(fun: Callable[[Array], PyTree], points: Array) -> PyTree:
    """A function of arrays at each of several, (k, ...).

    All at once, which compiles sooner; one after the other where it cannot be batched, as with
    some callbacks.
    """
    return first_possible(lambda: jax.vmap(fun)(points), lambda: lax.map(fun, points))


def batch_of_one(value: Array) -> jax.ShapeDtypeStruct:
    """The shape of a batch to trace a derivative with.

    JAX says whether a function has a forward mode when its tangent is batched; else only when the
    program is compiled.
    """
    return jax.ShapeDtypeStruct((1, *value.shape), value.dtype)


def first_possible(*ways: Callable[[], PyTree]) -> PyTree:
    """What the first of these ways to differentiate gives that JAX can go.

    Raises
    ------
    NoDerivativeError
        If there is none, from what JAX said of the first.
    """
    refusals = []
    for way in ways:
        try:
            return way()
        except Exception as refusal:  # its type differs from primitive to primitive
            refusals.append(refusal)
    raise NoDerivativeError(NO_DERIVATIVE) from refusals[0]


class NoDerivativeError(TypeError):
    """A function has no derivative in any of JAX's modes."""


def elementwise_problem(
    fun: Callable[..., PyTree],
    points: tuple[PyTree, ...],
    args: tuple[PyTree, ...],
    kwargs: Any,
) -> ElementwiseProblem:
    """Trace the function on arrays of the shape to which all inputs broadcast.

    Raises
    ------
    ValueError
        If the shapes do not fit, or numbers are complex.
    """
    named = check_kwargs(kwargs)
    names = tuple(named)
    args = tuple(_as_array(arg, "`args`") for arg in (*args, *named.values()))
    given = tuple(p if p is None else _as_array(p, "First points and limits") for p in points)
    there = [point for point in given if point is not None]
    shape = _broadcast_shape([*there, *args])
    whole = _on_whole(fun, names, shape)
    # As it stands where that does, for what is made of a function under `jax.jit` is kept.
    as_it_stands = is_jitted(fun) and not names and all(jnp.shape(arg) == shape for arg in args)

    def trace(dtype: DTypeLike) -> tuple[Lifted, PyTree]:
        x = jax.ShapeDtypeStruct(shape, dtype)
        lifted = lift(fun if as_it_stands else whole, x, *args, label="`func`")
        if as_it_stands and isinstance(lifted.out_shape, (list, tuple)):
            lifted = lift(whole, x, *args, label="`func`")
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

    def whole(x: Array, *args: Any) -> PyTree:
        full = [jnp.broadcast_to(arg, shape) for arg in args]
        positional = full[: len(full) - len(names)]
        out = fun(x, *positional, **dict(zip(names, full[len(positional) :], strict=True)))
        return jnp.asarray(out) if isinstance(out, (list, tuple)) else out

    return whole


def _as_array(value: PyTree, name: str) -> PyTree:
    """Whatever NumPy makes an array of; arrays and numbers as they are."""
    if isinstance(value, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
        return value
    if isinstance(value, (list, tuple)) and any(isinstance(v, jax.Array) for v in value):
        return jnp.stack([jnp.asarray(v) for v in value])
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name} must be arrays of numbers, got {value!r:.60}.")
    return array


def _broadcast_shape(arrays: list[PyTree]) -> tuple[int, ...]:
    shapes = [jnp.shape(array) for array in arrays]
    try:
        return jnp.broadcast_shapes(*shapes)
    except ValueError as error:
        raise ValueError(
            "Array shapes are incompatible for broadcasting. The first points, limits and "
            f"arguments could not be broadcast together: {', '.join(map(str, shapes))}."
        ) from error


def _floating(points: list[PyTree]) -> PyTree:
    """The dtype of all points together; integers count as JAX's default floats."""
    kinds = [
        point if isinstance(point, (int, float, complex)) or _is_inexact(point) else np.dtype(float)
        for point in points
    ]
    with jax.numpy_dtype_promotion("standard"):
        return _common(*kinds)


def _is_inexact(point: object) -> bool:
    return jnp.issubdtype(jnp.result_type(point), jnp.inexact)


def _common(*kinds: Any) -> PyTree:
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*kinds)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError("Abscissae and function output must be real numbers.")
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
