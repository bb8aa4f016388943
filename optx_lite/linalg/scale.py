"""Powers of two as units: scaled by them, numbers stay in range and are not rounded.

Exponents are integers of which sums and differences are taken before a power is formed, so a
unit that is the quotient of a large and a small number overflows only if it is itself too large.
They are read from and written to the bits of a number, for which `frexp` and `ldexp` take some
thirty operations. Units are constants to differentiation.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def exponent(size: Float[Array, " ..."]) -> Int[Array, " ..."]:
    """k with 2^k <= |size| < 2^(k+1); int32, 0 for 0, the least for subnormal numbers."""
    info = jnp.finfo(size.dtype)
    bits = lax.bitcast_convert_type(jnp.abs(lax.stop_gradient(size)), f"int{info.bits}")
    k = (bits >> info.nmant) - (info.maxexp - 1)
    return jnp.where(bits == 0, 0, k).astype(jnp.int32)


def power_of_two(k: Int[Array, " ..."], dtype: jnp.dtype) -> Float[Array, " ..."]:
    """2^k, or the nearest which is in the dtype's range together with its inverse."""
    info = jnp.finfo(dtype)
    limit = info.maxexp - 2
    biased = jnp.clip(k, -limit, limit).astype(f"int{info.bits}") + (info.maxexp - 1)
    return lax.bitcast_convert_type(biased << info.nmant, dtype)


def next_power_of_two(size: Float[Array, " ..."]) -> Float[Array, " ..."]:
    """2^k next to ``|size|``; 1 for 0."""
    return power_of_two(exponent(size), size.dtype)
