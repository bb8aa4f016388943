"""A function to be searched for its lowest value in a finite box, on the unit cube.

A population lives in the unit cube; `SearchProblem.at` carries it into the box,

    x = (1 - u) lower + u upper,

which does not overflow for any finite box and, clipped, is exact where ``lower == upper``.
An integral parameter is rounded; its box is widened by a half on either side, so that each
integer has the same share of the cube (SciPy's rule).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..functions import Lifted, inputs, lift
from ..jax_support.types import Args, Bounds
from .arguments import as_tuple, check_callable, real_array
from .pytrees import as_dtype, is_concrete, widest

WRONG_SHAPE = (
    "An array returned from a Constraint has the wrong shape. If `vectorized is False` the "
    "Constraint should return an array of shape (M,). If `vectorized is True` then the Constraint "
    "must return an array of shape (M, S), where S is the number of solution vectors and M is the "
    "number of constraint components in a given Constraint object."
)


class Constraint(eqx.Module):
    """``lower <= fun(x) <= upper``, each of shape (M,).

    Attributes
    ----------
    fun : callable
        (n,) -> (M,).
    lower, upper : arrays, shape (M,)
    """

    fun: Lifted
    lower: Array
    upper: Array

    def violation(self, x: Array) -> Array:
        """By how much each component is exceeded; infinite where that is NaN."""
        value = self.fun(x).astype(x.dtype)
        below, above = self.lower - value, value - self.upper
        met = (value >= self.lower) & (value <= self.upper)
        excess = jnp.where(met, 0, jnp.maximum(below, above))
        return jnp.where(jnp.isnan(excess), jnp.inf, excess)


class SearchProblem(eqx.Module):
    """A function on a box, with constraints.

    Attributes
    ----------
    objective : callable
        (n,) -> (); ``args`` are what else it takes.
    constraints : tuple of Constraint
    lower, upper : arrays, shape (n,)
        The box, widened for integral parameters.
    integral : array of bool, shape (n,), or None
        Which parameters are integers.
    vectorized : bool, static
        Whether the user's functions take many points at once; these here take one.
    """

    objective: Lifted
    args: Any
    constraints: tuple[Constraint, ...]
    lower: Array
    upper: Array
    integral: Array | None
    vectorized: bool = eqx.field(static=True)

    @property
    def has_gradient(self) -> bool:
        """Whether the objective's values are floating."""
        (leaf,) = jax.tree.leaves(self.objective.out_shape)
        return jnp.issubdtype(leaf.dtype, jnp.floating)

    def at(self, unit: Array) -> Array:
        """The parameters, (..., n), at points of the unit cube."""
        x = in_box(unit, self.lower, self.upper)
        if self.integral is None:
            return x
        return jnp.where(jnp.broadcast_to(self.integral, x.shape), jnp.round(x), x)

    def unit(self, x: Array) -> Array:
        """The points of the unit cube that belong to parameters, (..., n)."""
        return unit_of_box(x, self.lower, self.upper)

    def values(self, x: Array) -> Array:
        """f at many points, (S, n) -> (S,); infinite where it is NaN, so that it never wins."""
        return jax.vmap(self.value)(x)

    def value(self, x: Array) -> Array:
        """f at one point, (n,) -> ()."""
        value = self.objective(x, *self.args).reshape(()).astype(x.dtype)
        return jnp.where(jnp.isnan(value), jnp.inf, value)

    def violations(self, x: Array) -> Array:
        """Of all components of all constraints at many points, (S, n) -> (S, M)."""
        return jax.vmap(self.violation)(x)

    def violation(self, x: Array) -> Array:
        """The same at one point, (n,) -> (M,)."""
        if not self.constraints:
            return jnp.zeros(0, x.dtype)
        return jnp.concatenate(self.violation_of_each(x))

    def violation_of_each(self, x: Array) -> list[Array]:
        """Of each constraint by itself at one point."""
        return [c.violation(x) for c in self.constraints]


def in_box(unit: Array, lower: PyTree, upper: PyTree) -> Array:
    """The points of a box, (..., n), that belong to those of the unit cube."""
    lower, upper = (jnp.broadcast_to(side, unit.shape) for side in (lower, upper))
    return jnp.clip((1 - unit) * lower + unit * upper, lower, upper)


def unit_of_box(x: Array, lower: PyTree, upper: PyTree) -> Array:
    """The points of the unit cube, (..., n), that belong to those of a box."""
    lower, upper = (jnp.broadcast_to(side, x.shape) for side in (lower, upper))
    width = upper / 2 - lower / 2  # halved, or a wide box would overflow
    share = (x / 2 - lower / 2) / jnp.where(width > 0, width, 1)
    return jnp.where(width > 0, share, 0.5)


def search_problem(
    fun: Callable[..., PyTree],
    bounds: Bounds,
    *,
    args: Args = (),
    constraints: Any = (),
    integrality: PyTree = None,
    vectorized: bool = False,
    like: PyTree = None,
) -> SearchProblem:
    """Make a problem of the user's function and bounds.

    Parameters
    ----------
    fun, bounds, args, constraints, integrality, vectorized
        As for `differential_evolution`.
    like : array, optional
        Whose floating dtype is taken where ``bounds`` has none of its own.
    """
    lower, upper = read_box(bounds, like)
    integral: PyTree = None
    if integrality is not None and np.any(np.asarray(integrality)):
        integral = np.asarray(integrality, bool)
        if integral.shape not in ((), lower.shape):
            raise ValueError(f"`integrality` must have shape {lower.shape}, got {integral.shape}.")
        integral = np.broadcast_to(integral, lower.shape)
        lower, upper = _integral_box(lower, upper, integral)
    args = as_tuple(args)
    example = jax.ShapeDtypeStruct(lower.shape, lower.dtype)
    objective = lift(of_one_point(fun) if vectorized else fun, example, *args, label="`func`")
    _check_value(objective.out_shape)
    if vectorized:
        _check_many_values(fun, lower, args)
    return SearchProblem(
        objective=objective,
        args=inputs(args),
        constraints=tuple(_constraint(c, example, vectorized) for c in _as_sequence(constraints)),
        lower=lower,
        upper=upper,
        integral=integral,
        vectorized=vectorized,
    )


def of_one_point(fun: Callable) -> Callable:
    """A function of one point, of one of many points along the last axis."""

    def fun_at(x: Array, *args: Any) -> Array:
        value = _as_array(fun(x[:, None], *args))
        return value.reshape(value.shape[:-1])

    return fun_at


def read_box(bounds: Bounds, like: PyTree = None) -> tuple[PyTree, PyTree]:
    """Lower and upper, each (n,), of pairs (min, max) or of an object with ``lb`` and ``ub``."""
    message = (
        "bounds should be a sequence containing finite real valued (min, max) pairs for each "
        f"value in x, got {bounds!r}."
    )
    given = bounds
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        given = bounds.lb, bounds.ub
        xp = np if is_concrete((bounds.lb, bounds.ub)) else jnp
        bounds = list(zip(xp.atleast_1d(bounds.lb), xp.atleast_1d(bounds.ub), strict=True))
    if isinstance(bounds, jax.Array):
        pairs: PyTree = bounds
    else:
        try:
            concrete = is_concrete(bounds)
            pairs = np.array(bounds) if concrete else jnp.array([jnp.stack(p) for p in bounds])
        except (TypeError, ValueError) as error:
            raise ValueError(message) from error
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype == object:
        raise ValueError(message)
    dtype = _floating(given, like)
    lower, upper = as_dtype(pairs[:, 0], dtype), as_dtype(pairs[:, 1], dtype)
    if is_concrete(pairs):
        if not (np.all(np.isfinite(lower)) and np.all(np.isfinite(upper))):
            raise ValueError(message)
        return np.minimum(lower, upper), np.maximum(lower, upper)
    return jnp.minimum(lower, upper), jnp.maximum(lower, upper)


def _floating(bounds: PyTree, like: PyTree) -> PyTree:
    """The widest floating dtype in ``bounds``, else that of ``like``, else the default."""
    for given in (bounds, like):
        dtypes = [getattr(leaf, "dtype", None) for leaf in jax.tree.leaves(given)]
        known = [dtype for dtype in dtypes if dtype and jnp.issubdtype(dtype, jnp.floating)]
        if known:
            return jnp.result_type(widest(known))
    return jnp.result_type(float)


def _integral_box(lower: PyTree, upper: PyTree, integral: np.ndarray) -> tuple[PyTree, PyTree]:
    xp = np if is_concrete((lower, upper)) else jnp
    low, high = xp.ceil(lower), xp.floor(upper)
    if xp is np and not np.all((low <= high)[integral]):
        raise ValueError(
            "One of the integrality constraints does not have any possible integer values "
            f"between the lower/upper bounds: lower {lower}, upper {upper}."
        )
    half = np.asarray(0.5, lower.dtype)
    infinite = np.asarray(np.inf, lower.dtype)
    low, high = xp.nextafter(low - half, infinite), xp.nextafter(high + half, -infinite)
    return xp.where(integral, low, lower), xp.where(integral, high, upper)


def _check_value(out: PyTree) -> None:
    leaves = jax.tree.leaves(out)
    if len(leaves) != 1 or int(np.prod(leaves[0].shape)) != 1:
        raise RuntimeError(f"func(x, *args) must return a scalar value, got {out}.")
    if jnp.issubdtype(leaves[0].dtype, jnp.complexfloating):
        raise ValueError("`func` must return a real value, got a complex one.")


def _check_many_values(fun: Callable, lower: PyTree, args: tuple) -> None:
    """Of two points: of one a scalar might pass for an array."""
    two = jax.ShapeDtypeStruct((*lower.shape, 2), lower.dtype)
    out = lift(fun, two, *args, label="`func`").out_shape
    if sum(leaf.size for leaf in jax.tree.leaves(out)) != 2:
        raise RuntimeError(
            "The vectorized function must return an array of shape (S,) when given an array of "
            f"shape (len(x), S), got {out} for S = 2."
        )


def _as_sequence(constraints: Any) -> Sequence[Any]:
    if constraints is None:
        return ()
    return constraints if hasattr(constraints, "__len__") else (constraints,)


def _constraint(constraint: Any, example: PyTree, vectorized: bool) -> Constraint:
    """From SciPy's NonlinearConstraint, LinearConstraint or Bounds, by their attributes."""
    if not (hasattr(constraint, "lb") and hasattr(constraint, "ub")):
        raise ValueError(
            "`constraints` must be NonlinearConstraint, LinearConstraint or Bounds objects, "
            f"got {constraint!r}."
        )
    if hasattr(constraint, "fun"):
        check_callable(constraint.fun, "`constraints`: `fun`")
        fun = of_one_point(constraint.fun) if vectorized else constraint.fun
    elif hasattr(constraint, "A"):
        matrix = constraint.A.toarray() if hasattr(constraint.A, "toarray") else constraint.A
        matrix = jnp.atleast_2d(jnp.asarray(matrix).astype(example.dtype))
        fun = matrix.__matmul__
    else:
        fun = jnp.asarray
    lifted = lift(lambda x: _as_array(fun(x)), example, label="`constraints`: `fun`")
    shape = lifted.out_shape.shape
    sides = [
        as_dtype(real_array(side, np.nan, f"`constraints`: `{name}`"), example.dtype)
        for name, side in (("lb", constraint.lb), ("ub", constraint.ub))
    ]
    if is_concrete(sides) and any(np.any(np.isnan(side)) for side in sides):
        raise ValueError(f"`constraints`: `lb` and `ub` must not be NaN, got {sides}.")
    if len(shape) != 1 or any(side.shape not in ((), (1,), shape) for side in sides):
        raise RuntimeError(f"{WRONG_SHAPE} Got {shape}, with limits {[s.shape for s in sides]}.")
    return Constraint(lifted, *(side + jnp.zeros(shape, example.dtype) for side in sides))


def _as_array(value: PyTree) -> Array:
    return jnp.atleast_1d(jnp.asarray(value))
