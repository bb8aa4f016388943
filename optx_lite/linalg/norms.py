"""Norms, inner products and quotients that are safe at zero, in value and in derivative.

The guard of the derivative stands in a rule of its own, so that a solve which is not
differentiated does not pay for it.

The square of a number leaves the range of float32 from 1e-23 downwards and from 2e19 upwards. So
vectors are divided by a power of two near their largest entry before their products are summed:
it rounds nothing, and the result is right wherever it can be represented.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_INTEGERS = {4: np.int32, 8: np.int64}


@jax.custom_jvp
def safe_sqrt(square: Float[Array, " ..."]) -> Float[Array, " ..."]:
    """Root of numbers >= 0; its derivative at 0 is 0."""
    return jnp.sqrt(square)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (square,), (d_square,) = primals, tangents
    root = safe_sqrt(square)
    return root, jnp.where(root > 0, 0.5 / jnp.where(root > 0, root, 1), 0) * d_square


def unit_of(v: Float[Array, " ..."]) -> Float[Array, ""]:
    """The largest power of two that is not above max |v|, (); 1 where that is 0 or not finite.

    A unit for ``v``, whose `reciprocal` is in range, too. It counts as a constant in derivatives.
    """
    largest = jnp.max(jnp.abs(lax.stop_gradient(v)))
    info = jnp.finfo(largest.dtype)
    bits = _bits(largest) & _bits(np.asarray(jnp.inf, largest.dtype))
    unit = lax.bitcast_convert_type(bits, largest.dtype)
    proper = (unit > 0) & (unit < jnp.inf)
    return jnp.where(proper, jnp.minimum(unit, 0.5 / info.smallest_normal), 1)


def reciprocal(unit: Float[Array, " ..."]) -> Float[Array, " ..."]:
    """1 / ``unit`` of a power of two, exactly.

    By its exponent: of (a / b) / c XLA makes a / (b c), where b c may be out of range.
    """
    one = np.ones((), unit.dtype)
    return lax.bitcast_convert_type(2 * _bits(one) - _bits(unit), unit.dtype)


def _bits(number: Array | np.ndarray) -> Array | np.ndarray:
    integer = _INTEGERS[number.dtype.itemsize]
    if isinstance(number, np.ndarray):
        return number.view(integer)
    return lax.bitcast_convert_type(number, integer)


def norm(v: Float[Array, " n"]) -> Float[Array, ""]:
    """Euclidean norm of a vector, also where the squares of its entries are out of range."""
    unit = unit_of(v)
    v = v * reciprocal(unit)
    return safe_sqrt(v @ v) * unit


def dot(a: Float[Array, " n"], b: Float[Array, " n"]) -> Float[Array, ""]:
    """a . b, also where products of their entries are out of range."""
    unit_a, unit_b = unit_of(a), unit_of(b)
    product = (a * reciprocal(unit_a)) @ (b * reciprocal(unit_b))
    larger, smaller = jnp.maximum(unit_a, unit_b), jnp.minimum(unit_a, unit_b)
    return jnp.where(product == 0, 0, product * larger * smaller)


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
