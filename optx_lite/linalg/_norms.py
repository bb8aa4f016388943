"""Norms whose derivative at zero is zero, not NaN."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array


def norm(v: Array) -> Array:
    """Euclidean norm of a vector."""
    return safe_sqrt(v @ v)


def safe_sqrt(square: Array) -> Array:
    """Root of numbers >= 0; value and derivative are 0 at 0."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def safe_divide(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0."""
    return jnp.where(b != 0, a / jnp.where(b != 0, b, 1), 0)
