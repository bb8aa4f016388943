r"""Banded matrices by their diagonals, and least squares with them by block elimination.

J with `lower` diagonals below the main one and `upper` above has a J^T J of half-bandwidth
p = lower + upper: a symmetric block tridiagonal matrix with blocks of p rows,

    U_{k-1}^T x_{k-1} + D_k x_k + U_k x_{k+1} = b_k                                        (1)

Elimination from the first block to the last would take n / p turns, one after the other. So the
blocks are cut into about sqrt(n / p) chunks with a separator after each: all chunks are eliminated
at once, each turn of the loop an operation on long vectors, with their solution an affine
function of the two separators beside them,

    x_k = B_k + L_k x_left + R_k x_right                                                  (2)

and what is left is a system (1) of the separators alone, solved in the same way (A. H. Sameh and
D. J. Kuck, "On stable parallel linear system solvers", JACM 25, 1978; A. George, "Nested
dissection of a regular finite element mesh", SIAM J. Numer. Anal. 10, 1973, for separators).
A positive definite matrix needs no pivoting. What the program's text takes does not grow with n.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Float

from ..jax_support.control_flow import scan
from .jacobians import JacobianOperator, NormalEquations

SEQUENTIAL = 48  # blocks: up to here they are eliminated one after the other


class BandMatrix(JacobianOperator):
    """A matrix (m, n) by its diagonals.

    ``diagonals[d, i]`` is the entry (i, i + d - lower); 0 where that lies outside of the matrix.
    """

    diagonals: Float[Array, "w m"]
    lower: int = eqx.field(static=True)
    columns: int = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.diagonals.shape[1], self.columns

    @property
    def dtype(self) -> np.dtype:
        """Of the entries."""
        return self.diagonals.dtype

    @property
    def half_bandwidth(self) -> int:
        """Of A^T A."""
        return self.diagonals.shape[0] - 1

    def apply(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """A v."""
        m = self.shape[0]
        parts = (row * _shifted(v, d - self.lower, m) for d, row in enumerate(self.diagonals))
        return sum(parts, jnp.zeros((m,), self.dtype))

    def adjoint(self) -> BandMatrix:
        """A^T."""
        w, n = self.diagonals.shape[0], self.columns
        rows = [_shifted(self.diagonals[d], self.lower - d, n) for d in reversed(range(w))]
        return BandMatrix(jnp.stack(rows), w - 1 - self.lower, self.shape[0])

    def squared_columns(self) -> Float[Array, " n"]:
        """Sums of the squares of the columns."""
        return jnp.sum(self.adjoint().diagonals ** 2, axis=0)

    def scaled(self, left: Float[Array, " m"], right: Float[Array, " n"]) -> BandMatrix:
        """diag(left) A diag(right)."""
        w, m = self.diagonals.shape
        along = jnp.stack([_shifted(right, d - self.lower, m) for d in range(w)])
        return BandMatrix(self.diagonals * left[None] * along, self.lower, self.columns)

    def absolute(self) -> BandMatrix:
        """|A|, entry by entry."""
        return BandMatrix(jnp.abs(self.diagonals), self.lower, self.columns)

    def normal(self) -> BandGram:
        """A^T A."""
        return BandGram(self.gram())

    def blank_normal(self) -> BandGram:
        """Zeros."""
        return BandGram(jnp.zeros((self.diagonals.shape[0], self.columns), self.dtype))

    def as_result(self) -> BCOO:
        """As JAX's sparse array."""
        w, m = self.diagonals.shape
        i = jnp.broadcast_to(jnp.arange(m, dtype=jnp.int32)[:, None], (m, w))
        j = i + (jnp.arange(w, dtype=jnp.int32) - self.lower)[None]
        # What lies outside of the matrix is no entry.
        i = jnp.where((j >= 0) & (j < self.columns), i, m)
        indices = jnp.stack([i.ravel(), jnp.clip(j, 0, self.columns).ravel()], axis=1)
        return BCOO((self.diagonals.T.ravel(), indices), shape=self.shape)

    def gram(self) -> Float[Array, "w n"]:
        """Diagonals 0, 1, ... of A^T A: entry [e, j] is (A^T A)[j, j + e]."""
        w = self.diagonals.shape[0]
        columns = self.adjoint().diagonals[::-1]  # [d, j]: entry (j + lower - d, j)
        rows = []
        for e in range(w):
            # (i, j) on diagonal d meets (i, j + e), which is on diagonal d + e.
            parts = (columns[d] * _shifted(columns[d + e], e, self.columns) for d in range(w - e))
            rows.append(sum(parts, jnp.zeros((self.columns,), self.dtype)))
        return jnp.stack(rows)


class BandGram(NormalEquations):
    """A^T A by its diagonals 0, 1, ...: entry [e, j] is (A^T A)[j, j + e]."""

    diagonals: Float[Array, "w n"]

    def scaled(self, factors: Float[Array, " n"]) -> BandGram:
        """Of A diag(factors)."""
        w, n = self.diagonals.shape
        others = jnp.stack([_shifted(factors, e, n) for e in range(w)])
        return BandGram(self.diagonals * factors[None] * others)

    def solve(self, diag: Float[Array, " n"], b: Float[Array, " n"]) -> Float[Array, " n"]:
        """By block elimination."""
        return solve_band(self.diagonals.at[0].add(diag), b)


def solve_band(gram: Float[Array, "w n"], b: Float[Array, " n"]) -> Float[Array, " n"]:
    """x with G x = b, G symmetric, positive definite, by its diagonals 0, 1, ..., w - 1."""
    w, n = gram.shape
    p = max(w - 1, 1)
    count = -(-n // p)
    padding = count * p - n
    b = jnp.pad(b, (0, padding)).reshape(count, p)
    # Rows that only fill up the last block are those of an identity.
    of_padding = jnp.arange(count * p) >= n
    table = jnp.pad(gram, ((0, p + 1 - w), (0, padding)))
    table = table.at[0].add(of_padding.astype(gram.dtype)).reshape(p + 1, count, p)
    inside = [[table[abs(c - a), :, min(a, c)] for c in range(p)] for a in range(p)]
    zero = jnp.zeros_like(b[:, 0])
    beside = [[table[p + c - a, :, a] if c <= a else zero for c in range(p)] for a in range(p)]
    diag, upper = (jnp.stack([jnp.stack(row) for row in blocks]) for blocks in (inside, beside))
    return _solve_blocks(diag, upper, b.T).T.reshape(-1)[:n]


def _solve_blocks(
    diag: Float[Array, "p p N"], upper: Float[Array, "p p N"], b: Float[Array, "p N"]
) -> Float[Array, "p N"]:
    """(1), blocks along the last axis; ``upper[..., k]`` is beside ``diag[..., k]``."""
    p, count = b.shape
    if count <= SEQUENTIAL:
        return _eliminate(diag[..., None], upper[..., None], b[:, None, :, None])[0][:, 0, :, 0]
    chunks = round((count / 2) ** 0.5)
    inner = -(-count // chunks) - 1  # blocks of a chunk, its separator not counted
    padding = chunks * (inner + 1) - count
    eye = jnp.eye(p, dtype=b.dtype)[:, :, None]
    diag = jnp.concatenate([diag, jnp.broadcast_to(eye, (p, p, padding))], axis=2)
    upper = jnp.where((jnp.arange(count) < count - 1)[None, None], upper, 0)
    diag, upper, b = (
        jnp.swapaxes(_pad_last(a, chunks * (inner + 1)).reshape(*a.shape[:-1], chunks, -1), -1, -2)
        for a in (diag, upper, b)
    )  # (..., inner + 1, chunks): chunks go together
    before = jnp.roll(upper[:, :, -1, :], 1, axis=-1).at[..., 0].set(0)  # of the left separator
    rhs = jnp.zeros((p, 1 + p, inner, chunks), b.dtype)
    rhs = rhs.at[:, 0].set(b[:, :-1]).at[:, 1:, 0].set(-jnp.swapaxes(before, 0, 1))
    alone, right = _eliminate(diag[..., :-1, :], upper[..., :-1, :], rhs)
    own, left = alone[:, 0], alone[:, 1:]

    # The separators' own system.
    down = jnp.swapaxes(upper[:, :, -2, :], 0, 1)  # U^T of the last block inside
    beyond = upper[:, :, -1, :]

    def of_next(a: Array) -> Array:
        return jnp.roll(a[..., 0, :], -1, axis=-1)

    middle = diag[:, :, -1] + _times(down, right[..., -1, :]) + _times(beyond, of_next(left))
    beside = _times(beyond, of_next(right))
    known = b[:, -1] - _times(down, own[:, None, -1])[:, 0]
    known = known - _times(beyond, of_next(own)[:, None])[:, 0]
    at = _solve_blocks(middle, beside, known)
    at_left = jnp.roll(at, 1, axis=-1).at[:, 0].set(0)
    inside = own + jnp.sum(left * at_left[None, :, None], 1) + jnp.sum(right * at[None, :, None], 1)
    x = jnp.concatenate([inside, at[:, None]], axis=1)
    return jnp.swapaxes(x, -1, -2).reshape(p, -1)[:, :count]


def _eliminate(
    diag: Float[Array, "p p q c"], upper: Float[Array, "p p q c"], rhs: Float[Array, "p r q c"]
) -> tuple[Float[Array, "p r q c"], Float[Array, "p p q c"]]:
    """Solutions of c systems (1) of q blocks at once, and R of (2)."""
    p, r = rhs.shape[:2]

    def down(carry: tuple[Array, Array], block: tuple) -> tuple[tuple[Array, Array], Array]:
        coupling, solved = carry  # U_{k-1} and S_{k-1}^-1 [U_{k-1}, Y_{k-1}]
        diag, upper, rhs = block
        change = _times(jnp.swapaxes(coupling, 0, 1), solved)
        schur = diag - change[:, :p]
        solved = _solve_small(schur, jnp.concatenate([upper, rhs - change[:, p:]], axis=1))
        return (upper, solved), solved

    def last_first(a: Array) -> Array:
        return jnp.moveaxis(a, 2, 0)

    blocks = tuple(map(last_first, (diag, upper, rhs)))
    nothing = jnp.zeros_like(diag[:, :, 0]), jnp.zeros((p, p + r, diag.shape[-1]), rhs.dtype)
    solved = scan(down, nothing, blocks)[1]

    def up(x: Array, solved: Array) -> tuple[Array, Array]:
        known = jnp.pad(solved[:, p:], ((0, 0), (0, p), (0, 0)))
        x = known - _times(solved[:, :p], x)
        return x, x

    eye = jnp.broadcast_to(jnp.eye(p, dtype=rhs.dtype)[:, :, None], (p, p, diag.shape[-1]))
    beyond = jnp.concatenate([jnp.zeros((p, r, diag.shape[-1]), rhs.dtype), eye], axis=1)
    x = jnp.moveaxis(scan(up, beyond, solved[::-1])[1][::-1], 0, 2)
    return x[:, :r], x[:, r:]


def _solve_small(matrix: Float[Array, "p p c"], rhs: Float[Array, "p r c"]) -> Array:
    """Gauss-Jordan elimination, the pivots written out."""
    p = matrix.shape[0]
    table = jnp.concatenate([matrix, rhs], axis=1)
    for k in range(p):
        row = table[k] / table[k, k][None]
        others = (np.arange(p) != k)[:, None, None]
        table = jnp.where(others, table - table[:, k, None] * row[None], row[None])
    return table[:, p:]


def _times(a: Float[Array, "p k c"], b: Float[Array, "k r c"]) -> Float[Array, "p r c"]:
    return jnp.sum(a[:, :, None] * b[None], axis=1)


def _shifted(v: Float[Array, " n"], k: int, size: int) -> Float[Array, " size"]:
    """w with w[j] = v[j + k], 0 outside."""
    begin, end = max(k, 0), min(v.shape[0], size + k)
    if begin >= end:
        return jnp.zeros((size,), v.dtype)
    return jnp.pad(v[begin:end], (begin - k, size - (end - k)))


def _pad_last(a: Array, size: int) -> Array:
    return jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, size - a.shape[-1])])
