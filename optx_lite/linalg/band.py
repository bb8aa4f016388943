r"""Banded matrices by their diagonals, and least squares with them by block elimination.

J with `lower` diagonals below the main one and `upper` above has a J^T J of half-bandwidth
p = lower + upper: a symmetric block tridiagonal matrix with blocks of p rows,

    U_{k-1}^T x_{k-1} + D_k x_k + U_k x_{k+1} = b_k                                        (1)

Elimination from the first block to the last would take n / p turns, one after the other. So the
blocks are cut into about sqrt(n / p) chunks, the last block of each being its separator: all chunks
are eliminated at once, each turn of the loop an operation on long vectors. What is left is a system
(1) of the separators alone, solved in the same way, and with their values known all chunks are
substituted back at once (A. George, "Nested dissection of a regular finite element mesh", SIAM J.
Numer. Anal. 10, 1973; A. H. Sameh and D. J. Kuck, "On stable parallel linear system solvers", JACM
25, 1978, for bands). A positive definite matrix needs no pivoting. What the program's text takes
does not grow with n.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Float

from ..jax_support.control_flow import scan
from .jacobians import JacobianOperator, NormalEquations

SEQUENTIAL = 1024  # blocks: up to here they are eliminated one after the other


class BandMatrix(JacobianOperator):
    """A matrix (m, n), diag(left) B diag(right), by the diagonals of B.

    ``diagonals[d, i]`` is B's entry (i, i + d - lower); 0 where that lies outside of the matrix.
    """

    diagonals: Float[Array, "w m"]
    left: Float[Array, " m"]
    right: Float[Array, " n"]
    lower: int = eqx.field(static=True)

    @classmethod
    def of(cls, diagonals: Float[Array, "w m"], lower: int, columns: int) -> BandMatrix:
        """B alone."""
        one = jnp.ones((), diagonals.dtype)
        of_rows = jnp.broadcast_to(one, diagonals.shape[1:])
        return cls(diagonals, of_rows, jnp.broadcast_to(one, (columns,)), lower)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def dtype(self) -> np.dtype:
        """Of the entries."""
        return self.diagonals.dtype

    def apply(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """A v."""
        m, v = self.shape[0], self.right * v
        return self.left * sum(
            (row * shifted(v, d - self.lower, m) for d, row in enumerate(self.diagonals)),
            jnp.zeros((m,), self.dtype),
        )

    def adjoint(self) -> BandMatrix:
        """A^T."""
        w, n = self.diagonals.shape[0], self.shape[1]
        rows = [shifted(self.diagonals[d], self.lower - d, n) for d in reversed(range(w))]
        return BandMatrix(jnp.stack(rows), self.right, self.left, w - 1 - self.lower)

    def squared_columns(self) -> Float[Array, " n"]:
        """Sums of the squares of the columns."""
        return sum((entries**2 for entries in self._by_column()), jnp.zeros_like(self.right))

    def scaled(self, left: Float[Array, " m"], right: Float[Array, " n"]) -> BandMatrix:
        """diag(left) A diag(right)."""
        return BandMatrix(self.diagonals, self.left * left, self.right * right, self.lower)

    def absolute(self) -> BandMatrix:
        """|A|, entry by entry."""
        parts = map(jnp.abs, (self.diagonals, self.left, self.right))
        return BandMatrix(*parts, self.lower)

    def normal(self) -> BandGram:
        """A^T A."""
        return BandGram(self)

    def as_result(self) -> BCOO:
        """As JAX's sparse array."""
        w, m = self.diagonals.shape
        n = self.shape[1]
        i = jnp.broadcast_to(jnp.arange(m, dtype=jnp.int32)[:, None], (m, w))
        j = i + (jnp.arange(w, dtype=jnp.int32) - self.lower)[None]
        # What lies outside of the matrix is no entry.
        i = jnp.where((j >= 0) & (j < n), i, m)
        indices = jnp.stack([i.ravel(), jnp.clip(j, 0, n).ravel()], axis=1)
        along = (shifted(self.right, d - self.lower, m) for d in range(w))
        rows = [row * r * self.left for row, r in zip(self.diagonals, along, strict=True)]
        return BCOO((jnp.stack(rows, axis=1).ravel(), indices), shape=self.shape)

    def gram(self) -> Float[Array, "w n"]:
        """Diagonals 0, 1, ... of A^T A: entry [e, j] is (A^T A)[j, j + e]."""
        w, columns = self.diagonals.shape[0], self._by_column()
        rows = []
        for e in range(w):
            # (i, j) on diagonal d meets (i, j + e), which is on diagonal d + e.
            parts = (columns[d] * shifted(columns[d + e], e, self.shape[1]) for d in range(w - e))
            rows.append(sum(parts, jnp.zeros_like(self.right)))
        return jnp.stack(rows)

    def _by_column(self) -> list[Float[Array, " n"]]:
        """The diagonals of A, the entries of a column at its place."""
        n = self.shape[1]
        rows = (shifted(row * self.left, self.lower - d, n) for d, row in enumerate(self.diagonals))
        return [row * self.right for row in rows]


class BandGram(NormalEquations):
    """A^T A, formed where it is solved: it takes less than to keep it."""

    of: BandMatrix

    def scaled(self, factors: Float[Array, " n"]) -> BandGram:
        """Of A diag(factors)."""
        return BandGram(self.of.scaled(jnp.ones_like(self.of.left), factors))

    def solve(self, diag: Float[Array, " n"], b: Float[Array, " n"]) -> Float[Array, " n"]:
        """By block elimination."""
        return solve_band(self.of.gram().at[0].add(diag), b)


def solve_band(gram: Float[Array, "w n"], b: Float[Array, " n"]) -> Float[Array, " n"]:
    """x with G x = b, G symmetric, positive definite, by its diagonals 0, 1, ..., w - 1."""
    w, n = gram.shape
    p = max(w - 1, 1)
    count = -(-n // p)
    padding = count * p - n
    # Rows that only fill up the last block are those of an identity.
    table = jnp.pad(gram, ((0, p + 1 - w), (0, padding))).at[0, n:].set(1)
    table = table.reshape(p + 1, count, p)
    b = jnp.pad(b, (0, padding)).reshape(count, p)
    zero = jnp.zeros_like(b[:, 0])

    def row(a: int) -> Float[Array, "q N"]:
        inside = (table[abs(c - a), :, min(a, c)] for c in range(p))
        beside = (table[p + c - a, :, a] if c <= a else zero for c in range(p))
        return jnp.stack([*inside, *beside, b[:, a]])

    return _solve_blocks(jnp.stack([row(a) for a in range(p)])).T.reshape(-1)[:n]


def _solve_blocks(system: Float[Array, "p q N"]) -> Float[Array, "p N"]:
    """(1), whose rows k are ``system[..., k]``, [D_k, U_k, b_k]."""
    p, q, count = system.shape
    if count == 1:
        return _solve_small(system[:, :p], system[:, 2 * p :])[:, 0]
    chunks = 1 if count <= SEQUENTIAL else round(count**0.5)
    length = -(-count // chunks)
    eye = jnp.eye(p, q, dtype=system.dtype)[:, :, None]
    padding = jnp.broadcast_to(eye, (p, q, chunks * length - count))
    system = jnp.concatenate([system, padding], axis=2).reshape(p, q, chunks, length)
    blocks = jnp.moveaxis(system, 3, 0)  # chunks go together
    inner, separators = blocks[:-1], blocks[-1]
    solved, change, of_left = _eliminate(inner, separators[:, p : 2 * p])

    # The separators' own system.
    diag = separators[:, :p] - change[:, :p] - _of_next(of_left[:, :p])
    upper = -_of_next(jnp.swapaxes(change[:, p:-1], 0, 1))
    known = separators[:, 2 * p :] - change[:, -1:] - _of_next(of_left[:, -1:])
    at = _solve_blocks(jnp.concatenate([diag, upper, known], axis=1))

    at_left = _of_last(at)

    def substitute(beyond: Array, solved: Array) -> tuple[Array, Array]:
        x = solved[:, -1] - _times(solved[:, :p], beyond) - _times(solved[:, p:-1], at_left)
        return x, x

    inside = scan(substitute, at, solved, reverse=True)[1]
    x = jnp.concatenate([inside, at[None]])
    return jnp.moveaxis(x, 0, 2).reshape(p, -1)[:, :count]
def _eliminate(
    blocks: Float[Array, "k p q c"], of_right: Float[Array, "p p c"]
) -> tuple[Array, Array, Array]:
    """Chunks of blocks [D, U, b]; ``of_right`` is U of the separator at the end of each.

    In order: S_k^-1 [U_k, F_k, Y_k] of the blocks, S_k being the pivots, F_k what joins them to
    the separator on their left, Y_k their right-hand sides; and what is to be subtracted from the
    rows [D, F, b] of the separator on their right, and [D, b] of that on their left.
    """
    p, chunks = blocks.shape[1], blocks.shape[-1]

    def down(carry: tuple[Array, Array], block: Array) -> tuple[tuple[Array, Array], Array]:
        change, of_left = carry
        diag, upper, b = block[:, :p], block[:, p : 2 * p], block[:, 2 * p :]
        fill = -change[:, p:-1]
        rhs = jnp.concatenate([upper, fill, b - change[:, -1:]], axis=1)
        solved = _solve_small(diag - change[:, :p], rhs)
        of_left = of_left + _transposed_times(fill, solved[:, p:])
        return (_transposed_times(upper, solved), of_left), solved

    nothing = jnp.zeros((p, p + 1, chunks), blocks.dtype)
    change = nothing.at[:, :p].set(-jnp.swapaxes(_of_last(of_right), 0, 1))
    change = jnp.concatenate([jnp.zeros((p, p, chunks), blocks.dtype), change], axis=1)
    (change, of_left), solved = scan(down, (change, nothing), blocks)
    return solved, change, of_left


def _solve_small(matrix: Float[Array, "p p c"], rhs: Float[Array, "p r c"]) -> Array:
    """Gauss-Jordan elimination, the pivots written out."""
    p = matrix.shape[0]
    table = jnp.concatenate([matrix, rhs], axis=1)
    for k in range(p):
        row = table[k] * (1 / table[k, k])[None]
        others = (np.arange(p) != k)[:, None, None]
        table = jnp.where(others, table - table[:, k, None] * row[None], row[None])
    return table[:, p:]


def _times(a: Float[Array, "p k c"], x: Float[Array, "k c"]) -> Float[Array, "p c"]:
    return sum((a[:, k] * x[k][None] for k in range(1, a.shape[1])), a[:, 0] * x[0][None])


def _transposed_times(a: Float[Array, "k p c"], b: Float[Array, "k r c"]) -> Array:
    terms = (a[k][:, None] * b[k][None] for k in range(1, a.shape[0]))
    return sum(terms, a[0][:, None] * b[0][None])


def _of_next(a: Array) -> Array:
    """Of the chunk after each."""
    return jnp.roll(a, -1, axis=-1)


def _of_last(a: Array) -> Array:
    """Of the chunk before each, 0 for the first."""
    return jnp.roll(a, 1, axis=-1).at[..., 0].set(0)


def shifted(v: Float[Array, " n"], k: int, size: int) -> Float[Array, " size"]:
    """w with w[j] = v[j + k], 0 outside."""
    begin, end = max(k, 0), min(v.shape[0], size + k)
    if begin >= end:
        return jnp.zeros((size,), v.dtype)
    return jnp.pad(v[begin:end], (begin - k, size - (end - k)))

