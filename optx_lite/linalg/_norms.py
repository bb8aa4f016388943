"""Norms and quotients that are safe at zero, in value and in derivative.

The guard of the derivative stands in a rule of its own, so that a solve which is not
differentiated does not pay for it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array


@jax.custom_jvp
def safe_sqrt(square: Array) -> Array:
    """Root of numbers >= 0; its derivative at 0 is 0."""
    return jnp.sqrt(square)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (square,), (d_square,) = primals, tangents
    root = safe_sqrt(square)
    return root, jnp.where(root > 0, 0.5 / jnp.where(root > 0, root, 1), 0) * d_square


def norm(v: Array) -> Array:
    """Euclidean norm of a vector."""
    return safe_sqrt(v @ v)


@jax.custom_jvp
def safe_divide(a: Array, b: Array) -> Array:
    """a / b, and 0 (with derivative 0) where b is 0."""
    return jnp.where(b == 0, 0, a / b)


@safe_divide.defjvp
def _safe_divide_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (a, b), (d_a, d_b) = primals, tangents
    quotient = safe_divide(a, b)
    inverse = jnp.where(b == 0, 0, 1 / jnp.where(b == 0, 1, b))
    return quotient, inverse * (d_a - quotient * d_b)
