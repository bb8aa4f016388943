r"""Covariances where the Jacobian is sparse, or known by its products alone.

Up to `DENSE` parameters it is written out, by n products. Beyond, the errors of some parameters
are columns of an inverse,

    (J^T J) z_j = e_j,      cov(x_i, x_j) = s² z_j[i]                                       (1)

by conjugate gradients on the equilibrated normal equations: their condition is that of J, squared,
and where it leaves no digits (above about 1e4 in float32 and 1e8 in float64) the answer is NaN, as
it is for parameters that are not determined. A sparse Jacobian of bundle adjustment's shape is
solved by elimination instead, see `linalg.two_groups`: one factorisation for all columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from jaxtyping import Array

from ..derivatives.blocks import two_groups
from ..derivatives.compressed import LARGEST
from ..derivatives.sparsity import sparsity
from ..driver.unknown import nan_unless
from ..linalg import equilibrate, norm, solve_by_products
from ..linalg.two_groups import Pairs, TwoGroupMatrix
from ..problem.pytrees import is_concrete

DENSE = 1000  # parameters: up to here J is written out
ROUNDING = 100  # times epsilon: a pivot below that part of its diagonal entry is rounding


def is_large(jac: Any) -> bool:
    """Whether it is no plain matrix."""
    return not isinstance(jac, (jax.Array, np.ndarray))


def written_out(jac: Any) -> Array:
    """A Jacobian of few columns as a matrix, (m, n)."""
    if not is_large(jac):
        return jac
    n = jac.shape[1]
    if n > DENSE:
        raise ValueError(
            f"`result` has a sparse or matrix-free Jacobian and {n} parameters: choose some by "
            f"`parameters` (up to {DENSE} all have their errors without)."
        )
    return jax.vmap(_products(jac)[0], out_axes=1)(jnp.eye(n, dtype=jac.dtype))


def _products(jac: Any) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """J v, and J^T u."""
    if isinstance(jac, BCOO):
        transposed: Any = jac.T
        return lambda v: jac @ v, lambda u: transposed @ u
    if is_large(jac):
        return jac.apply, jac.adjoint().apply
    return lambda v: jac @ v, lambda u: u @ jac


def column_lengths(jac: Any) -> Array:
    """Norms of the columns, (n,); estimated where only products are known."""
    if not is_large(jac):
        return jax.vmap(norm)(jac.T)
    if isinstance(jac, BCOO):
        squares = jnp.zeros(jac.shape[1], jac.dtype).at[jac.indices[:, 1]].add(jac.data**2)
    else:
        squares = jac.squared_columns()
    return jnp.sqrt(squares)


def positions(parameters: Sequence[Any], names: Sequence[str]) -> list[int]:
    """Where parameters stand, by their names or numbers."""
    missing = [p for p in parameters if isinstance(p, str) and p not in names]
    missing += [p for p in parameters if not isinstance(p, str) and not 0 <= p < len(names)]
    if missing or not len(parameters):
        raise ValueError(
            f"`parameters` must be names or positions of the {len(names)} parameters, got "
            f"{missing or parameters}."
        )
    return [names.index(p) if isinstance(p, str) else int(p) for p in parameters]


def inverse_block(jac: Any, held: Array, chosen: Array) -> Array:
    """The rows and columns of (J^T J)^-1 of some parameters, (k, k); 0 for what is held."""
    groups = _in_two_groups(jac)
    if groups is None:
        return _by_conjugate_gradients(jac, held, chosen)
    return _by_elimination(groups, held, chosen)


def _in_two_groups(jac: Any) -> TwoGroupMatrix | None:
    """A sparse Jacobian of bundle adjustment's shape; None if it is none, or traced."""
    if not isinstance(jac, BCOO) or not is_concrete(jac):
        return None
    m, n = jac.shape
    indices, values = np.asarray(jac.indices), np.asarray(jac.data)
    inside = np.all(indices < (m, n), axis=1)
    (rows, cols), values = indices[inside].T, values[inside]
    pattern = sparsity((rows, cols), (m, n))
    groups = two_groups(pattern) if pattern.nnz == rows.size else None
    if groups is None or groups.few.size > LARGEST:
        return None
    flat = rows.astype(np.int64) * n + cols
    order = np.argsort(flat)

    def part(columns: np.ndarray) -> Array:
        at = groups.rows[:, :, None].astype(np.int64) * n + columns[:, None]
        return jnp.asarray(values[order[np.searchsorted(flat[order], at)]])

    of_few, of_many = groups.few[groups.of_few], groups.many[groups.of_many]
    return TwoGroupMatrix(part(of_few), part(of_many), Pairs.of(*groups))


@jax.jit
def _by_elimination(jac: TwoGroupMatrix, held: Array, chosen: Array) -> Array:
    """By the Schur complement, factorised once; NaN where a pivot is but rounding."""
    length = jnp.sqrt(jac.squared_columns())
    moves = ~held
    s = jnp.where(moves & (length > 0), 1 / jnp.where(length > 0, length, 1), 0)
    factor = jac.normal().scaled(s).factor(held.astype(s.dtype))

    def column(j: Array) -> Array:
        return s * factor.solve(jnp.zeros_like(s).at[j].set(s[j]))

    block = jax.lax.map(column, chosen)[:, chosen]
    determined = factor.left > ROUNDING * jnp.finfo(s.dtype).eps
    return nan_unless(determined, 0.5 * (block + block.T))


@jax.jit
def _by_conjugate_gradients(jac: Any, held: Array, chosen: Array) -> Array:
    forward, backward = _products(jac)

    def normal(v: Array) -> Array:
        v = jnp.where(held, 0, v)
        return jnp.where(held, 0, backward(forward(v)))

    length = column_lengths(jac)
    start = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 1)
    s = equilibrate(normal, start)

    def column(j: Array) -> Array:
        e = jnp.where(held[j], 0, jnp.zeros_like(s).at[j].set(s[j]))
        return s * solve_by_products(lambda v: s * normal(s * v), e)

    block = jax.lax.map(column, chosen)[:, chosen]
    return 0.5 * (block + block.T)


@jax.jit
def factor_of(block: Array, held: Array) -> Array:
    """F with F F^T the block, (k, k)."""
    eye = jnp.eye(block.shape[0], dtype=block.dtype)
    factor = jnp.linalg.cholesky(jnp.where(held[:, None] | held[None, :], eye, block))
    return jnp.where(held[:, None], 0, factor)
