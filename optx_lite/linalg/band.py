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

import functools as ft
import operator
from collections.abc import Iterable, Iterator, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Float

from ..jax_support.control_flow import scan
from .jacobians import JacobianOperator, NormalEquations, Transposed
from .operators import AbstractOperator

SEQUENTIAL = 1024  # blocks: up to here they are eliminated one after the other


class BandMatrix(JacobianOperator):
    """A matrix (m, n), diag(left) B diag(right), by the diagonals of B.

    ``diagonals[d][h + i]`` is B's entry (i, i + d - lower), 0 where that lies outside of the
    matrix. The margins of h = w - 1 zeros make a slice of every shift: XLA fuses it.
    """

    diagonals: tuple[Float[Array, " padded"], ...]
    left: Float[Array, " m"]
    right: Float[Array, " n"]
    lower: int = eqx.field(static=True)

    @classmethod
    def of(cls, diagonals: Sequence[Float[Array, " m"]], lower: int, columns: int) -> BandMatrix:
        """B alone, without margins: ``diagonals[d][i]``."""
        one = jnp.ones((), diagonals[0].dtype)
        left = jnp.broadcast_to(one, diagonals[0].shape)
        blank = cls(tuple(diagonals), left, jnp.broadcast_to(one, (columns,)), lower)
        return eqx.tree_at(lambda A: A.diagonals, blank, tuple(map(blank._padded, diagonals)))

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def dtype(self) -> np.dtype:
        """Of the entries."""
        return self.left.dtype

    def apply(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """A v."""
        m, v = self.shape[0], self._padded(self.right * v)
        parts = (self._from(row, 0, m) * self._from(v, k, m) for k, row in self._rows())
        return self.left * _sum(parts)

    def apply_adjoint(self, u: Float[Array, " m"]) -> Float[Array, " n"]:
        """A^T u."""
        n, u = self.shape[1], self._padded(self.left * u)
        return self.right * _sum(self._from(row, -k, n) * self._from(u, -k, n) for k, row in self._rows())

    def adjoint(self) -> AbstractOperator:
        """A^T."""
        return Transposed(self)

    def squared_columns(self) -> Float[Array, " n"]:
        """Sums of the squares of the columns."""
        return self.gram(1)[0]

    def scaled(self, left: Float[Array, " m"], right: Float[Array, " n"]) -> BandMatrix:
        """diag(left) A diag(right)."""
        return BandMatrix(self.diagonals, self.left * left, self.right * right, self.lower)

    def absolute(self) -> BandMatrix:
        """|A|, entry by entry."""
        return jax.tree.map(jnp.abs, self)

    def normal(self) -> BandGram:
        """A^T A."""
        return BandGram(self)

    def as_result(self) -> BCOO:
        """As JAX's sparse array."""
        (m, n), w = self.shape, len(self.diagonals)
        i = jnp.broadcast_to(jnp.arange(m, dtype=jnp.int32)[:, None], (m, w))
        j = i + (jnp.arange(w, dtype=jnp.int32) - self.lower)[None]
        # What lies outside of the matrix is no entry.
        i = jnp.where((j >= 0) & (j < n), i, m)
        indices = jnp.stack([i.ravel(), jnp.clip(j, 0, n).ravel()], axis=1)
        right = self._padded(self.right)
        rows = [self._from(row, 0, m) * self._from(right, k, m) for k, row in self._rows()]
        values = jnp.stack([row * self.left for row in rows], axis=1)
        return BCOO((values.ravel(), indices), shape=self.shape)

    def gram(self, count: int | None = None) -> list[Float[Array, " n"]]:
        """Diagonals 0, 1, ... of A^T A: entry [e][j] is (A^T A)[j, j + e], 0 outside.

        All of them, or the first ``count``.
        """
        w, n = len(self.diagonals), self.shape[1]
        left, right = self._padded(self.left), self._padded(self.right)

        def entry(d: int, row: int, e: int) -> Float[Array, " n"]:
            """A[j - row, j + e], which lies on diagonal d, at j."""
            of_row = self._from(self.diagonals[d], -row, n) * self._from(right, e, n)
            return of_row * self._from(left, -row, n)

        def entries(e: int) -> Float[Array, " n"]:
            # (i, j) on diagonal d meets (i, j + e), which is on diagonal d + e.
            return _sum(
                entry(d, d - self.lower, 0) * entry(d + e, d - self.lower, e) for d in range(w - e)
            )

        return [entries(e) for e in range(w if count is None else count)]

    def _rows(self) -> Iterator[tuple[int, Float[Array, " padded"]]]:
        """Offsets j - i of the diagonals, and these."""
        return ((d - self.lower, row) for d, row in enumerate(self.diagonals))

    def _padded(self, v: Float[Array, " k"]) -> Float[Array, " padded"]:
        """With margins, as the diagonals."""
        h = len(self.diagonals) - 1
        return jnp.pad(v, (h, h + max(self.shape) - v.shape[0]))

    def _from(self, padded: Float[Array, " padded"], k: int, size: int) -> Float[Array, " size"]:
        """v_k, v_{k+1}, ... of a v with margins."""
        begin = len(self.diagonals) - 1 + k
        return padded[begin : begin + size]


class BandGram(NormalEquations):
    """A^T A, formed where it is solved: it takes less than to keep it."""

    of: BandMatrix

    def scaled(self, factors: Float[Array, " n"]) -> BandGram:
        """Of A diag(factors)."""
        return BandGram(self.of.scaled(jnp.ones_like(self.of.left), factors))

    def solve(self, diag: Float[Array, " n"], b: Float[Array, " n"]) -> Float[Array, " n"]:
        """By block elimination."""
        main, *others = self.of.gram()
        return solve_band([main + diag, *others], b)


def solve_band(diagonals: list[Float[Array, " n"]], b: Float[Array, " n"]) -> Float[Array, " n"]:
    """x with G x = b, G symmetric and positive definite, by its diagonals as of `gram`."""
    (n,), p = b.shape, max(len(diagonals) - 1, 1)
    count = -(-n // p)
    chunks, length = _cut(count)
    count = chunks * length

    def blocks(v: Float[Array, " n"], filling: int = 0) -> Float[Array, "N p"]:
        return jnp.pad(v, (0, count * p - n), constant_values=filling).reshape(count, p)

    # Rows that only fill up the last chunk are those of an identity.
    table = [blocks(diagonals[0], 1), *map(blocks, diagonals[1:])]
    zero, b = jnp.zeros((count,), b.dtype), blocks(b)

    def entry(a: int, c: int) -> Float[Array, " N"]:
        return table[c - a][:, a] if 0 <= c - a < len(table) else zero

    def row(a: int) -> Float[Array, "q N"]:
        inside = (entry(min(a, c), max(a, c)) for c in range(p))
        beside = (entry(a, p + c) for c in range(p))
        return jnp.stack([*inside, *beside, b[:, a]])

    return _solve_blocks(jnp.stack([row(a) for a in range(p)])).T.reshape(-1)[:n]


def _cut(count: int) -> tuple[int, int]:
    """How many chunks, and of what length, hold so many blocks."""
    chunks = 1 if count <= SEQUENTIAL else round(count**0.5)
    return chunks, -(-count // chunks)


def _solve_blocks(system: Float[Array, "p q N"]) -> Float[Array, "p N"]:
    """(1), whose rows k are ``system[..., k]``, [D_k, U_k, b_k]."""
    p, q, count = system.shape
    if count == 1:
        return _solve_small(system[:, :p], system[:, 2 * p :])[:, 0]
    chunks, length = _cut(count)
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
    return _sum(a[:, k] * x[k][None] for k in range(a.shape[1]))


def _transposed_times(a: Float[Array, "k p c"], b: Float[Array, "k r c"]) -> Array:
    return _sum(a[k][:, None] * b[k][None] for k in range(a.shape[0]))


def _of_next(a: Array) -> Array:
    """Of the chunk after each."""
    return jnp.roll(a, -1, axis=-1)


def _of_last(a: Array) -> Array:
    """Of the chunk before each, 0 for the first."""
    return jnp.roll(a, 1, axis=-1).at[..., 0].set(0)


def _sum(terms: Iterable[Array]) -> Array:
    """Of one term or more."""
    return ft.reduce(operator.add, terms)
