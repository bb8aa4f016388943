"""Derivatives that are not known: NaN, in forward and in reverse mode, and of their own elements.

A NaN that is a summand would be lost when transposed; one that is a factor would come to those
whose other factor is 0, and so from a lane that has failed to what it shares with all others.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from ..jax_support.types import Number


def nan_where_moved(values: list[Array], dots: list[Array], where: Array, like: Array) -> Array:
    """NaN in the shape of ``like`` if any tangent is not 0 and ``where``, (); else 0.

    As a linear function of the tangents ``dots`` of ``values``, which JAX can transpose: where a
    cotangent is not 0, those of all values become NaN.
    """
    weight: Number = 0
    total: Number = 0
    for value, dot in zip(values, dots, strict=True):
        weight = weight + jnp.sum(zero_that_moves(value)).astype(like.dtype)
        total = total + jnp.sum(one_unless_zero(dot)).astype(like.dtype)
    # The weight is 1, and so are its derivatives: those of NaN are NaN, too.
    total = jnp.broadcast_to(jnp.exp(weight) * total, like.shape)
    return nan_unless_zero(total, where)


@jax.custom_jvp
def nan_unless(known: Bool[Array, " ..."], value: Array) -> Array:
    """The value where it is known, elsewhere NaN with a derivative that is NaN.

    (That of `jax.numpy.where` is 0 there.)
    """
    return jnp.where(known, value, jnp.nan)


@nan_unless.defjvp
def _nan_unless_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (known, value), (_, dot) = primals, tangents
    lost = nan_unless_zero(jnp.exp(zero_that_moves(value)) * one_unless_zero(dot), ~known)
    return nan_unless(known, value), jnp.where(known, dot, 0) + lost


def zero_that_moves(value: Array) -> Array:
    """0, with the tangent of a value."""
    value = jnp.where(jnp.isfinite(value), value, 0)
    return value - lax.stop_gradient(value)


def still_unless(has_derivative: Array, value: Array) -> Array:
    """The value, which moves only where it has a derivative: none of what follows comes back."""
    return jnp.where(has_derivative, value, lax.stop_gradient(value))


def one_unless_zero(tangent: Array) -> Array:
    """1 where a tangent is not 0, so that a sum of such is 0 only where all are.

    (A NaN for a mark would be lost behind a `where` at first, and come back at the next order of
    reverse mode, which multiplies it by 0.) The transpose hands on the NaN of `nan_unless_zero`.
    """

    def solve(_: object, tangent: Array) -> Array:
        moves = (tangent != 0).astype(tangent.dtype)
        return jnp.where(jnp.isnan(tangent), tangent, moves)

    return lax.custom_linear_solve(lambda y: y, tangent, solve, symmetric=True)


def nan_unless_zero(tangent: Array, where: Array | bool = True) -> Array:
    """NaN ``where`` a tangent is not 0, 0 elsewhere; the transpose does the same.

    To JAX it is a linear system whose matrix is the identity: such a solver it does not look into.
    """

    def solve(_: object, tangent: Array) -> Array:
        return jnp.where(where & (tangent != 0), jnp.nan, 0).astype(tangent.dtype)

    return lax.custom_linear_solve(lambda y: y, tangent, solve, symmetric=True)
