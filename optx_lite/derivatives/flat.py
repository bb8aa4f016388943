"""SciPy's calling conventions on flat arrays, for the two functions a user calls directly."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .base import FlatFunction


def point_in_box(x0, bounds) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """`x0`, and its lower and upper bounds, as arrays of shape (n,) and of one floating dtype."""
    x = jnp.atleast_1d(jnp.asarray(x0))
    if jnp.iscomplexobj(x):
        raise ValueError(f"`x0` must be real, got {x.dtype}.")
    if x.ndim > 1:
        raise ValueError(f"`x0` must have at most 1 dimension, got shape {x.shape}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.result_type(float))
    if len(bounds) != 2:
        raise ValueError(f"`bounds` must contain 2 elements, got {len(bounds)}.")
    lower, upper = (
        _bound(bound, infinity, x)
        for bound, infinity in zip(bounds, (-jnp.inf, jnp.inf), strict=True)
    )
    known = not any(isinstance(array, Tracer) for array in (x, lower, upper))
    if known and bool(jnp.any((x < lower) | (x > upper))):
        raise ValueError(f"`x0` violates bound constraints: {_outside(x, lower, upper)}.")
    return x, lower, upper


def _bound(bound, infinity: float, x: Float[Array, " n"]) -> Float[Array, " n"]:
    bound = jnp.asarray(infinity if bound is None else bound, dtype=x.dtype)
    if bound.shape not in ((), x.shape):
        raise ValueError(
            f"Inconsistent shapes between bounds and `x0`: {bound.shape} and {x.shape}."
        )
    return jnp.broadcast_to(bound, x.shape)


def _outside(x: Array, lower: Array, upper: Array) -> str:
    i = int(np.argmax((x < lower) | (x > upper)))
    return f"x0[{i}] = {x[i]} is not in [{lower[i]}, {upper[i]}]"


def flat_function(fun: Callable, args: tuple, kwargs: dict | None) -> FlatFunction:
    """`fun` at its further arguments, always with a floating result of shape (m,)."""
    kwargs = {} if kwargs is None else kwargs

    def flat(x):
        f = jnp.atleast_1d(jnp.asarray(fun(x, *args, **kwargs)))
        if f.ndim > 1:
            raise RuntimeError(
                f"`fun` return value has more than 1 dimension: its shape is {f.shape}."
            )
        if jnp.iscomplexobj(f) and not jnp.iscomplexobj(x):
            raise ValueError(f"`fun` must return real values, got {f.dtype}.")
        return f if jnp.issubdtype(f.dtype, jnp.inexact) else f.astype(x.dtype)

    return flat
