"""What every front door does with its arguments: read them, check them once, flatten them.

The exception types are SciPy's; the message names the argument, says what came and what was
expected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from ..jax_support.types import Args, Bounds, Options
from .pytrees import as_array_or_tree, is_concrete, is_numbers, ravel

LOWER, UPPER = "`bounds`: the lower bound", "`bounds`: the upper bound"


def check_x0(x0: PyTree) -> PyTree:
    """x0 as a pytree of floating arrays; anything that SciPy takes is one array (n,)."""
    tree = as_array_or_tree(x0)
    leaves = jax.tree.leaves(tree)
    if not leaves:
        raise ValueError(f"`x0` must hold at least one number, got {x0!r}.")
    try:
        dtypes = [_dtype_of(leaf) for leaf in leaves]
    except TypeError as error:
        raise ValueError(f"`x0` must be a real array or a pytree of them, got {x0!r}.") from error
    for dtype in dtypes:
        if jnp.issubdtype(dtype, jax.dtypes.extended):  # a PRNG key, for one
            raise ValueError(
                f"`x0` must hold real numbers, got a leaf of dtype {dtype}: what is not to be "
                "optimised belongs into `args`."
            )
    if any(jnp.issubdtype(d, jnp.complexfloating) for d in dtypes):
        raise ValueError(
            f"`x0` must be real, got {_names(dtypes)}: take real and imaginary parts as two "
            "variables."
        )
    alone = jax.tree_util.all_leaves([tree])
    if alone and jnp.ndim(tree) > 1:
        raise ValueError(
            f"`x0` must have at most 1 dimension, got shape {jnp.shape(tree)}: "
            "put a matrix of parameters into a pytree, e.g. a dict."
        )
    tree = jax.tree.map(_as_float, tree)
    if any(jnp.finfo(leaf.dtype).bits < 32 for leaf in jax.tree.leaves(tree)):
        raise ValueError(f"`x0` must be float32 or float64, got {_names(dtypes)}.")
    if sum(leaf.size for leaf in jax.tree.leaves(tree)) == 0:
        raise ValueError(f"`x0` must hold at least one number, got {x0!r}.")
    return tree.reshape(-1) if alone and tree.ndim == 0 else tree


def _dtype_of(leaf: PyTree) -> PyTree:
    if isinstance(leaf, (str, bytes, type, np.dtype)):  # which for JAX are the names of dtypes
        raise TypeError
    return jnp.result_type(leaf)


def _names(dtypes: list[PyTree]) -> str:
    return ", ".join(sorted({str(dtype) for dtype in dtypes}))


def _as_float(leaf: PyTree) -> PyTree:
    """The leaf as an array of floating dtype, on the host if it came from there."""
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    return leaf.astype(dtype) if isinstance(leaf, jax.Array) else np.asarray(leaf, dtype)


def check_vector(x0: PyTree, bounds: Bounds) -> tuple[Array, Array, Array]:
    """x0 as one vector (n,), where no pytree is taken; and its lower and upper bounds."""
    tree = check_x0(x0)
    if not jax.tree_util.all_leaves([tree]):
        raise ValueError(f"`x0` must be array_like, got {x0!r}.")
    x = jnp.asarray(tree)
    lower, upper, _ = check_bounds(bounds, tree, x)
    check_inside(x, lower, upper, "`x0` violates bound constraints")
    return x, jnp.asarray(lower), jnp.asarray(upper)


def as_pair(bounds: Bounds) -> tuple[PyTree, PyTree]:
    """What is given as lower and upper bound: None, a pair, or an object with ``lb`` and ``ub``."""
    if bounds is None:
        return None, None
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        sides = bounds.lb, bounds.ub  # SciPy's class makes arrays (1,) of numbers
        lower, upper = (side[0] if getattr(side, "shape", None) == (1,) else side for side in sides)
        return lower, upper
    try:
        count = len(bounds)
    except TypeError:
        count = None
    if count != 2 or isinstance(bounds, (dict, str)):
        raise ValueError(
            f"`bounds` must contain 2 elements, the two bounds (lb, ub), got {bounds!r}."
        )
    return bounds[0], bounds[1]


def check_bounds(bounds: Bounds, tree: PyTree, x: Array) -> tuple[Array, Array, bool]:
    """Flat lower and upper bounds, and whether there are any."""
    low, high = as_pair(bounds)
    lower = spread(low, -np.inf, tree, x, LOWER)
    upper = spread(high, np.inf, tree, x, UPPER)
    check_order(lower, upper)
    if not is_concrete((lower, upper)):
        return lower, upper, True
    return lower, upper, bool(np.any(np.isfinite(lower)) or np.any(np.isfinite(upper)))


def check_order(lower: ArrayLike, upper: ArrayLike) -> None:
    """That concrete bounds are numbers, and none reversed."""
    if not is_concrete((lower, upper)):
        return
    low, high = np.broadcast_arrays(lower, upper)
    if np.any(np.isnan(low)) or np.any(np.isnan(high)):
        raise ValueError(f"`bounds` must not be NaN, got lb={lower}, ub={upper}.")
    if np.any(low > high):
        i = _first(low > high)
        raise ValueError(
            "An upper bound is less than the corresponding lower bound: `bounds` has "
            f"lb={low[i]} > ub={high[i]}{_at_entry(i)}."
        )


def check_inside(
    x: Array,
    lower: Array,
    upper: Array,
    message: str = "Initial guess is outside of provided bounds",
) -> None:
    """That a concrete x0 lies within concrete bounds."""
    if not is_concrete((x, lower, upper)):
        return
    at, low, high = np.asarray(x), np.asarray(lower), np.asarray(upper)
    outside = (at < low) | (at > high)
    if outside.any():
        i = _first(outside)
        raise ValueError(f"{message}: `x0`={at[i]} is not in [{low[i]}, {high[i]}]{_at_entry(i)}.")


def check_finite(x: Array) -> None:
    """That a concrete x0 is finite."""
    if is_concrete(x) and not np.all(np.isfinite(x)):
        raise ValueError(f"`x0` must be finite, got {x}.")


def _first(where: ArrayLike) -> tuple[int, ...]:
    return tuple(map(int, np.argwhere(where)[0]))


def _at_entry(index: tuple[int, ...]) -> str:
    return f" at entry {', '.join(map(str, index))}" if index else ""


def real_array(value: PyTree, missing: float, name: str) -> PyTree:
    """Real numbers, on the host if they came from there; None is ``missing``."""
    if isinstance(value, (list, tuple)):
        value = [missing if v is None else v for v in value]
    if value is None or type(value) in (int, float):
        return missing if value is None else value
    xp = jnp if isinstance(value, jax.Array) else np
    value = xp.asarray(as_array_or_tree(value))
    if not jnp.issubdtype(value.dtype, np.number) or jnp.iscomplexobj(value):
        raise ValueError(f"{name} must be real numbers, got dtype {value.dtype}.")
    return value


def spread(value: PyTree, missing: float, tree: PyTree, x: Array, name: str) -> PyTree:
    """A number, an array or a pytree prefix of ``tree`` as a flat vector; None is ``missing``.

    ``name`` is what messages call the value.
    """
    if value is None or type(value) in (int, float):
        return np.full(x.shape, missing if value is None else value, x.dtype)

    def onto(value: PyTree, leaf: Array) -> PyTree:
        numbers = real_array(value, missing, name)
        xp = jnp if isinstance(numbers, jax.Array) else np
        value = xp.asarray(numbers)
        if value.ndim and value.shape != leaf.shape:
            raise ValueError(
                f"Inconsistent shapes: {name} has shape {value.shape}, `x0` has {leaf.shape}."
            )
        return xp.broadcast_to(value.astype(x.dtype), leaf.shape)

    def by_leaf(is_leaf: Callable[[PyTree], bool]) -> PyTree:
        return jax.tree.map(
            lambda value, part: jax.tree.map(lambda leaf: onto(value, leaf), part),
            as_array_or_tree(value),
            tree,
            is_leaf=lambda value: value is None or is_leaf(value),
        )

    try:
        try:
            full = by_leaf(lambda value: False)
        except ValueError:  # a list of numbers where `x0` has an array
            full = by_leaf(_is_numbers_or_none)
    except ValueError as error:
        if str(error).startswith(("Inconsistent shapes", name)):
            raise
        raise ValueError(
            f"{name} must be a number, an array, or a pytree prefix of `x0`, got {value!r}: {error}"
        ) from error
    return ravel(full, x.dtype)


def _is_numbers_or_none(value: PyTree) -> bool:
    if type(value) not in (list, tuple):
        return is_numbers(value)
    return is_numbers([0.0 if v is None else v for v in value])


def as_tuple(args: Args) -> tuple[PyTree, ...]:
    """Arguments; a number or an array alone need not stand in a tuple."""
    return tuple(args) if isinstance(args, (tuple, list)) else (args,)


def check_callable(fun: object, name: str = "`fun`", error: type[Exception] = TypeError) -> None:
    """That a function is one; the exception's type is SciPy's."""
    if not callable(fun):
        raise error(f"{name} must be callable, got {fun!r}.")


def check_kwargs(kwargs: Any) -> Options:
    """Keyword arguments, none for None."""
    if not isinstance(kwargs or {}, dict):
        raise TypeError(f"`kwargs` must be a dict, got {kwargs!r}.")
    return kwargs or {}


def with_kwargs(fun: Callable, kwargs: Any) -> Callable:
    """The function with its keyword arguments."""
    return jax.tree_util.Partial(fun, **chosen) if (chosen := check_kwargs(kwargs)) else fun


def shape_of(out: PyTree) -> tuple[int, ...]:
    """Shape of the array that nested lists of arrays make."""
    if isinstance(out, (list, tuple)) and out:
        return (len(out), *shape_of(out[0]))
    return tuple(getattr(out, "shape", ()))
