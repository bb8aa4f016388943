"""Powers of two as units: scaled by them, numbers stay in range and are not rounded.

Exponents are integers of which sums and differences are taken before a power is formed, so a
unit that is the quotient of a large and a small number overflows only if it is itself too large.
Units are constants to differentiation.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def exponent(size: Array) -> Array:
    """k with 2^k <= |size| < 2^(k+1); int32, 0 for 0."""
    _, k = jnp.frexp(lax.stop_gradient(size))
    return jnp.where(size == 0, 0, k - 1)


def power_of_two(k: Array, dtype: jnp.dtype) -> Array:
    """2^k, or the nearest which is in the dtype's range together with its inverse."""
    limit = jnp.finfo(dtype).maxexp - 2
    return jnp.ldexp(jnp.ones(k.shape, dtype), jnp.clip(k, -limit, limit))


def next_power_of_two(size: Array) -> Array:
    """2^k next to ``|size|``; 1 for 0."""
    return power_of_two(exponent(size), size.dtype)
