r"""Banded matrices by their diagonals, and least squares with them by block elimination.

J with `lower` diagonals below the main one and `upper` above has a J^T J of half-bandwidth
p = lower + upper: a symmetric block tridiagonal matrix with blocks of p rows,

    U_{k-1}^T x_{k-1} + D_k x_k + U_k x_{k+1} = b_k                                        (1)

Elimination from the first block to the last would take n / p turns, one after the other. So the
blocks are cut into about sqrt(n / p) chunks, the last block of each being its separator: all chunks
are eliminated at once, each turn of the loop an operation on long vectors. What is left is a system
(1) of the separators alone, eliminated one after the other, and with their values known all chunks
are substituted back at once (A. George, "Nested dissection of a regular finite element mesh", SIAM
J. Numer. Anal. 10, 1973; for bands A. H. Sameh and D. J. Kuck, "On stable parallel linear system
solvers", JACM 25, 1978). A positive definite matrix needs no pivoting. What the program's text
takes does not grow with n.
"""

from __future__ import annotations

import functools as ft
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Float, PyTree

from ..jax_support.control_flow import scan
from .jacobians import JacobianOperator, NormalEquations, Transposed
from .operators import AbstractOperator


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
        return self.right * _sum(
            self._from(row, -k, n) * self._from(u, -k, n) for k, row in self._rows()
        )

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
    chunks = round(count**0.5)
    length = -(-count // chunks)
    padding = 0, chunks * length * p - n
    # Rows that only fill up the last chunk are those of an identity.
    rows = [jnp.pad(diagonals[0], padding, constant_values=1)]
    rows = [*rows, *(jnp.pad(v, padding) for v in (*diagonals[1:], b))]
    blocks = jnp.stack(rows).reshape(-1, chunks, length, p)

    def of_separators(system: _Block) -> Float[Array, "p c"]:
        one_by_one = (jnp.moveaxis(part, -1, 0)[..., None] for part in system)
        x = _solve(_Block(*one_by_one), lambda block: block, _solve_last)
        return jnp.moveaxis(x[..., 0], 0, -1)

    x = _solve(jnp.transpose(blocks, (2, 0, 3, 1)), _unpacked, of_separators)
    return jnp.transpose(x, (2, 0, 1)).reshape(-1)[:n]


class _Block(NamedTuple):
    """D_k, U_k and b_k of (1), of c systems."""

    diag: Float[Array, "p p ..."]
    upper: Float[Array, "p p ..."]
    b: Float[Array, "p ..."]


def _unpacked(rows: Float[Array, "r p c"]) -> _Block:
    """From the entries of the diagonals, and of b, at the rows of a block."""
    *table, b = rows
    p, zero = b.shape[0], jnp.zeros_like(b[0])

    def block(first: int) -> Float[Array, "p p c"]:
        """G's entries (i, first + j)."""

        def entry(i: int, j: int) -> Float[Array, " c"]:
            e = abs(j - i)
            return table[e][min(i, j)] if e < len(table) else zero

        return jnp.stack([jnp.stack([entry(i, first + j) for j in range(p)]) for i in range(p)])

    return _Block(block(0), block(p), b)


def _solve(
    blocks: PyTree,
    unpacked: Callable[[PyTree], _Block],
    of_separators: Callable[[_Block], Float[Array, "p c"]],
) -> Float[Array, "k p c"]:
    """x of c chunks of k blocks, of which the last is the separator, one after the other."""
    last = unpacked(jax.tree.map(lambda part: part[-1], blocks))
    p, chunks = last.b.shape
    none = jnp.zeros((p, p + 1, chunks), last.b.dtype)

    def eliminate(carry: tuple[Array, Array], block: PyTree) -> tuple[tuple[Array, Array], Array]:
        """S_k^-1 [U_k, F_k, y_k], F_k being what joins the block to the separator on its left.

        Carried on: what is to be subtracted from the rows [D, F, b] of the next block, and from
        [D, b] of that separator.
        """
        change, of_left = carry
        diag, upper, b = unpacked(block)
        fill = -change[:, p:-1]
        rhs = jnp.concatenate([upper, fill, (b - change[:, -1])[:, None]], axis=1)
        solved = _solve_small(diag - change[:, :p], rhs)
        of_left = of_left + _transposed_times(fill, solved[:, p:])
        return (_transposed_times(upper, solved), of_left), solved

    joined = none.at[:, :p].set(-jnp.swapaxes(_of_last(last.upper), 0, 1))
    begin = jnp.concatenate([none[:, :p], joined], axis=1), none
    inner = jax.tree.map(lambda part: part[:-1], blocks)
    (change, of_left), solved = scan(eliminate, begin, inner)
    of_next = _of_next(of_left)
    at = of_separators(
        _Block(
            last.diag - change[:, :p] - of_next[:, :p],
            -jnp.swapaxes(_of_next(change[:, p:-1]), 0, 1),
            last.b - change[:, -1] - of_next[:, -1],
        )
    )
    at_left = _of_last(at)

    def substitute(beyond: Array, solved: Array) -> tuple[Array, Array]:
        x = solved[:, -1] - _times(solved[:, :p], beyond) - _times(solved[:, p:-1], at_left)
        return x, x

    inside = scan(substitute, at, solved, reverse=True)[1]
    return jnp.concatenate([inside, at[None]])


def _solve_last(block: _Block) -> Float[Array, "p c"]:
    return _solve_small(block.diag, block.b[:, None])[:, 0]


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
