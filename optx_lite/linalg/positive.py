"""Positive definite systems of a few rows, by elimination written out.

A matrix of at most some twenty rows is eliminated with its right-hand sides beside it, one
pivot after another in a rolled loop. No pivot is chosen: symmetric positive definite matrices do
not need it (Higham, "Accuracy and Stability of Numerical Algorithms", section 10.1). Each turn is
one rank-one update, in which the lanes of a `vmap` go together, where LAPACK goes from one to
the next.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ..jax_support.control_flow import fori_loop


def solve_positive(
    matrix: Float[Array, "n n"], rhs: Float[Array, "n k"]
) -> tuple[Float[Array, "n k"], Float[Array, ""]]:
    """``matrix``^-1 ``rhs``, (n, n) and (n, k), and the smallest pivot relative to its diagonal.

    The second is not positive, or NaN, where the matrix was not positive definite to rounding.
    """
    n = matrix.shape[0]
    # Equilibrated by powers of two, which round nothing.
    _, exponent = jnp.frexp(lax.stop_gradient(_diagonal(matrix)))
    inverse = jnp.ldexp(jnp.ones(n, matrix.dtype), -(exponent // 2))
    table = jnp.concatenate(
        [matrix * inverse[None, :] * inverse[:, None], rhs * inverse[:, None]], axis=1
    )
    rows = jnp.arange(n)

    def eliminate(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        table, smallest = carry
        row = lax.dynamic_index_in_dim(table, k, keepdims=False)
        pivot = lax.dynamic_index_in_dim(row, k, keepdims=False)
        row = row / pivot
        column = lax.dynamic_index_in_dim(table, k, axis=1, keepdims=False)
        table = table - jnp.where(rows == k, 0, column)[:, None] * row[None, :]
        table = jnp.where((rows == k)[:, None], row[None, :], table)
        return table, jnp.where(pivot > smallest, smallest, pivot)

    start = (table, jnp.ones((), matrix.dtype))
    table, smallest = fori_loop(0, n, eliminate, start)
    return table[:, n:] * inverse[:, None], smallest


def _diagonal(matrix: Float[Array, "n n"]) -> Float[Array, " n"]:
    return jnp.sum(jnp.where(jnp.eye(matrix.shape[0], dtype=bool), matrix, 0), axis=1)
