"""What the searches check alike: numbers in a range, counts, and the local solver's arguments."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import DTypeLike, PyTree

from ..jax_support.types import Options
from ..problem.pytrees import as_dtype
from .minimize import minimize

MANY = np.iinfo(np.int32).max


def number(
    name: str,
    value: PyTree,
    dtype: DTypeLike,
    low: float = 0.0,
    high: float = np.inf,
    inside: bool = False,
) -> PyTree:
    """A real number from ``low`` to ``high``, or between them if ``inside``, as an array ().

    So is what it is rounded to.
    """
    if not _is_number(value):
        raise ValueError(f"`{name}` must be a real number, got {value!r}.")
    if isinstance(value, Tracer):
        return as_dtype(value, dtype)
    with np.errstate(over="ignore"):  # what overflows is out of range
        rounded = as_dtype(value, dtype)
    for plain in (float(value), float(rounded)):
        if not (low < plain < high if inside else low <= plain <= high):
            ends = f"({low:g}, {high:g})" if inside else f"[{low:g}, {high:g}]"
            after = f" as {np.dtype(dtype)}" if plain != float(value) else ""
            raise ValueError(f"`{name}` must be in range {ends}{after}, got {value!r}.")
    return rounded


def count(name: str, value: PyTree, least: int = 0) -> PyTree:
    """A whole number, at least ``least``, as an int32 (); infinite is the largest.

    A traced one that is less counts as ``least``.
    """
    if not _is_number(value):
        raise ValueError(f"`{name}` must be a whole number, got {value!r}.")
    if isinstance(value, Tracer):
        large = value.astype(float) >= MANY
        small = jnp.maximum(jnp.where(large, 0, value).astype(jnp.int32), least)
        return jnp.where(large, MANY, small)
    plain = float(value)
    if not plain >= least or (np.isfinite(plain) and plain % 1):
        raise ValueError(f"`{name}` must be a whole number, at least {least}, got {value!r}.")
    return np.asarray(min(plain, MANY), np.int32)


def whole(name: str, value: PyTree) -> int:
    """A whole number above 0 that is a shape, and so not traced."""
    if isinstance(value, Tracer):
        raise TypeError(f"`{name}` is a shape, so it must be a number, not traced.")
    return int(count(name, value, least=1))


def arguments_of_minimize(given: PyTree, taken: tuple[str, ...] = ()) -> Options:
    """Those of the local solver, without the names that the search itself gives it."""
    if not isinstance(given, (dict, type(None))):
        raise TypeError(f"`minimizer_kwargs` must be a dict, got {given!r}.")
    kwargs = dict(given or {})
    foreign = sorted({"callback", "adjoint", "fun", "x0", *taken} & set(kwargs))
    if foreign:
        raise ValueError(f"`minimizer_kwargs` must not have {foreign}.")
    unknown = sorted(set(kwargs) - set(inspect.signature(minimize).parameters))
    if unknown:
        raise TypeError(f"`minimizer_kwargs` has {unknown}, which `minimize` does not take.")
    return kwargs


def _is_number(value: object) -> bool:
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.generic, np.ndarray, jax.Array)
    ):
        return False
    return jnp.ndim(value) == 0 and jnp.isrealobj(value) and jnp.issubdtype(
        jnp.result_type(value), jnp.number
    )  # fmt: skip
