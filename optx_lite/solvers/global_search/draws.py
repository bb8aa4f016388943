"""Distinct numbers, drawn for many rows at once."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from ...jax_support.types import Count


def below(uniform: Array, count: Count) -> Array:
    """Integers from 0 to ``count - 1``, of numbers in [0, 1)."""
    return jnp.minimum((uniform * count).astype(jnp.int32), count - 1)


def distinct(uniform: Array, size: int, taken: list[Array]) -> Array:
    """In each row distinct integers below ``size``, one for each column, (rows, columns).

    A number is drawn from as many as are left, and stepped over those that are taken: ``taken``,
    each (rows,) and in order, and those before it.
    """
    picked = []
    for column in range(uniform.shape[1]):
        number = below(uniform[:, column], size - len(taken))
        for other in taken:
            number = number + (number >= other).astype(jnp.int32)
        picked.append(number)
        taken = _inserted(taken, number)
    return jnp.stack(picked, axis=1) if picked else jnp.zeros((uniform.shape[0], 0), jnp.int32)


def _inserted(ordered: list[Array], number: Array) -> list[Array]:
    out = []
    for other in ordered:
        out.append(jnp.minimum(other, number))
        number = jnp.maximum(other, number)
    return [*out, number]
