"""Solve H x = b for a symmetric H that may be singular: the solution of minimum norm.

A positive definite H, the usual case at a minimum, is solved by Cholesky. Anything else by
its eigenvalues, those below n eps max|lambda| cut. The second way runs only when some lane
of a batch needs it: it stands in a `while_loop` of at most one turn, because `vmap` turns a
`cond` into "both" but keeps a loop's "until no lane wants more".
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from .._control_flow import while_loop
from ._triangular import SMALL, diagonal, solve_transposed, solve_upper


def solve_symmetric(matrix: Array, b: Array) -> Array:
    """x of minimum norm with ``matrix @ x = b`` in the least-squares sense; (n, n), (n,)."""
    eps = jnp.finfo(b.dtype).eps
    n = b.shape[0]
    size = jnp.sqrt(jnp.abs(diagonal(matrix)))
    scale = 1 / jnp.where(size > 0, size, 1)
    unit = matrix * scale[:, None] * scale[None, :]
    lower = _cholesky(unit)
    pivots = diagonal(lower)
    definite = jnp.min(jnp.where(jnp.isfinite(pivots), pivots, 0)) > jnp.sqrt(n * eps)
    x = scale * _solve_definite(lower, b * scale)
    # One correction: it gives back the digits that the factorisation of a stiff H lost.
    residual = b - matrix @ x
    x = x + scale * _solve_definite(lower, residual * scale)
    x = jnp.where(definite, x, 0)

    def by_eigenvalues(state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, todo = state
        finite = jnp.where(jnp.all(jnp.isfinite(matrix)), matrix, jnp.eye(n, dtype=b.dtype))
        values, vectors = jnp.linalg.eigh(finite)
        keep = jnp.abs(values) > n * eps * jnp.max(jnp.abs(values))
        parts = jnp.where(keep, (vectors.T @ b) / jnp.where(keep, values, 1), 0)
        return jnp.where(todo, vectors @ parts, x), jnp.zeros_like(todo)

    x, _ = while_loop(lambda state: state[1], by_eigenvalues, (x, ~definite))
    return jnp.where(jnp.isfinite(jnp.sum(matrix)), x, jnp.nan)


def _solve_definite(lower: Array, b: Array) -> Array:
    upper = lower.T
    return solve_upper(upper, solve_transposed(upper, b))


def _cholesky(matrix: Array) -> Array:
    """Lower factor; a column of NaN or zeros where the matrix is not positive definite."""
    n = matrix.shape[0]
    if n > SMALL:
        return jnp.linalg.cholesky(matrix)
    columns = []
    for j in range(n):
        column = matrix[j:, j]
        for i, earlier in enumerate(columns):
            column = column - earlier[j - i :] * earlier[j - i]
        root = jnp.sqrt(jnp.where(column[0] > 0, column[0], 0))
        columns.append(jnp.where(root > 0, column / jnp.where(root > 0, root, 1), 0))
    padded = [jnp.concatenate([jnp.zeros(j, matrix.dtype), c]) for j, c in enumerate(columns)]
    return jnp.stack(padded, axis=1)
