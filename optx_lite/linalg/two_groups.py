r"""Least squares in which each residual touches one block of variables of either of two groups.

    J = [A B],    J^T J = [ U    W ]      U, V block diagonal                              (1)
                          [ W^T  V ]

Bundle adjustment's shape: U of the cameras, V of the points. The many blocks of V are eliminated,

    (U - W V^-1 W^T) a = g_a - W V^-1 g_b,      b = V^-1 (g_b - W^T a)                    (2)

and what is left, the Schur complement, is a dense matrix of the few (D. C. Brown, "A solution to
the general problem of multiple station analytical stereotriangulation", 1958; B. Triggs, P. F.
McLauchlan, R. I. Hartley and A. W. Fitzgibbon, "Bundle adjustment: a modern synthesis", 2000).
W V^-1 W^T is a sum over pairs of residuals that share a block of V.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Float, Int

from ..jax_support.control_flow import scan
from .jacobians import JacobianOperator, NormalEquations, Transposed
from .norms import safe_divide
from .operators import AbstractOperator

CHUNK = 1024  # pairs whose products stay in the cache


class Pairs(eqx.Module):
    """Where things stand: arrays of integers, inputs of a program like all others."""

    few: Int[Array, "C dc"]  # columns of the blocks that are kept
    many: Int[Array, "P dp"]  # and of those that are eliminated
    of_few: Int[Array, " O"]
    of_many: Int[Array, " O"]  # sorted
    rows: Int[Array, "O dr"]
    first: Int[Array, " Q"]  # pairs of observations of one point, the cameras in order
    second: Int[Array, " Q"]
    twice: bool = eqx.field(static=True)  # whether a camera has two observations of one point

    @classmethod
    def of(cls, few: Any, many: Any, of_few: Any, of_many: Any, rows: Any) -> Pairs:
        """With the pairs of observations that share a block of the many."""
        begins = np.searchsorted(of_many, np.arange(len(many) + 1))
        sizes = np.diff(begins)
        first, second = [], []
        for size in np.unique(sizes):
            at = begins[:-1][sizes == size]
            i, j = np.triu_indices(size)
            first.append((at[:, None] + i).ravel())
            second.append((at[:, None] + j).ravel())
        one, two = np.concatenate(first), np.concatenate(second)
        flip = of_few[one] > of_few[two]
        one, two = np.where(flip, two, one), np.where(flip, one, two)
        order = np.lexsort((of_few[two], of_few[one]))
        arrays = few, many, of_few, of_many, rows, one[order], two[order]
        twice = bool(np.any((of_few[one] == of_few[two]) & (one != two)))
        places: Any = [np.asarray(array, np.int32) for array in arrays]
        return cls(*places, twice=twice)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.rows.size, self.few.size + self.many.size

    def over_few(self, parts: Array) -> Array:
        """Sums over the observations of each of the few."""
        return jax.ops.segment_sum(parts, self.of_few, self.few.shape[0])

    def over_many(self, parts: Array) -> Array:
        """Sums over the observations of each of the many."""
        count = self.many.shape[0]
        return jax.ops.segment_sum(parts, self.of_many, count, indices_are_sorted=True)

    def joined(self, a: Float[Array, "C dc"], b: Float[Array, "P dp"]) -> Float[Array, " n"]:
        """A vector of all variables."""
        return jnp.zeros((self.shape[1],), a.dtype).at[self.few].set(a).at[self.many].set(b)


class TwoGroupMatrix(JacobianOperator):
    """J of (1): the parts of each observation that touch one group and the other."""

    of_few: Float[Array, "O dr dc"]
    of_many: Float[Array, "O dr dp"]
    pairs: Pairs

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.pairs.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the entries."""
        return self.of_few.dtype

    def apply(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """J v."""
        pairs = self.pairs
        a, b = v[pairs.few][pairs.of_few], v[pairs.many][pairs.of_many]
        parts = _added(self.of_few * a[:, None], 2) + _added(self.of_many * b[:, None], 2)
        return jnp.zeros((self.shape[0],), v.dtype).at[pairs.rows].set(parts)

    def adjoint(self) -> AbstractOperator:
        """J^T."""
        return Transposed(self)

    def apply_adjoint(self, u: Float[Array, " m"]) -> Float[Array, " n"]:
        """J^T u."""
        parts = u[self.pairs.rows][:, :, None]
        a, b = _added(self.of_few * parts, 1), _added(self.of_many * parts, 1)
        return self.pairs.joined(self.pairs.over_few(a), self.pairs.over_many(b))

    def squared_columns(self) -> Float[Array, " n"]:
        """Sums of the squares of the columns."""
        a, b = _added(self.of_few**2, 1), _added(self.of_many**2, 1)
        return self.pairs.joined(self.pairs.over_few(a), self.pairs.over_many(b))

    def scaled(self, left: Float[Array, " m"], right: Float[Array, " n"]) -> TwoGroupMatrix:
        """diag(left) J diag(right)."""
        pairs = self.pairs
        rows = left[pairs.rows][:, :, None]
        a, b = right[pairs.few][pairs.of_few], right[pairs.many][pairs.of_many]
        return TwoGroupMatrix(
            self.of_few * rows * a[:, None], self.of_many * rows * b[:, None], pairs
        )

    def absolute(self) -> TwoGroupMatrix:
        """|J|, entry by entry."""
        return TwoGroupMatrix(jnp.abs(self.of_few), jnp.abs(self.of_many), self.pairs)

    def as_result(self) -> BCOO:
        """As JAX's sparse array."""
        pairs = self.pairs
        columns = pairs.few[pairs.of_few], pairs.many[pairs.of_many]

        def indices(j: Int[Array, "O d"]) -> Int[Array, "k 2"]:
            shape = (*pairs.rows.shape, j.shape[1])
            i = jnp.broadcast_to(pairs.rows[:, :, None], shape)
            return jnp.stack([i.ravel(), jnp.broadcast_to(j[:, None], shape).ravel()], axis=1)

        values = jnp.concatenate([self.of_few.ravel(), self.of_many.ravel()])
        places = jnp.concatenate([indices(j) for j in columns])
        return BCOO((values, places), shape=self.shape, unique_indices=True)

    def normal(self) -> BlockGram:
        """J^T J by its blocks (1)."""
        pairs = self.pairs
        return BlockGram(
            pairs.over_few(_transposed_times(self.of_few, self.of_few)),
            pairs.over_many(_transposed_times(self.of_many, self.of_many)),
            _transposed_times(self.of_few, self.of_many),
            pairs,
        )


class BlockGram(NormalEquations):
    """The blocks U, V and W of (1)."""

    u: Float[Array, "C dc dc"]
    v: Float[Array, "P dp dp"]
    w: Float[Array, "O dc dp"]
    pairs: Pairs

    def scaled(self, factors: Float[Array, " n"]) -> BlockGram:
        """Of J diag(factors)."""
        pairs = self.pairs
        few, many = factors[pairs.few], factors[pairs.many]
        w = self.w * few[pairs.of_few][:, :, None] * many[pairs.of_many][:, None]
        return BlockGram(
            self.u * few[:, :, None] * few[:, None],
            self.v * many[:, :, None] * many[:, None],
            w,
            pairs,
        )

    def solve(self, diag: Float[Array, " n"], b: Float[Array, " n"]) -> Float[Array, " n"]:
        """By (2)."""
        return self.factor(diag).solve(b)

    def factor(self, diag: Float[Array, " n"]) -> BlockFactor:
        """Of J^T J + diag(diag), for any number of right-hand sides."""
        pairs = self.pairs
        u, v = self.u + _diagonals(diag[pairs.few]), self.v + _diagonals(diag[pairs.many])
        root = _inverse_root(v)
        w = _times_transposed(self.w, root[pairs.of_many])
        schur = self._schur(u, w)
        size = jnp.diagonal(schur)
        scale = lax.rsqrt(jnp.where(size > 0, size, 1))
        lower = jnp.linalg.cholesky(schur * scale[:, None] * scale[None, :])
        # What elimination leaves of each diagonal entry of J^T J: where nothing but rounding is
        # left, the variable is not determined.
        of_few = size * jnp.diagonal(lower) ** 2
        own = jnp.diagonal(u, axis1=1, axis2=2).reshape(-1)
        pivots = jnp.diagonal(root, axis1=1, axis2=2)  # 1 / l_jj; 0 where that is no number
        of_many = safe_divide(jnp.ones_like(pivots), pivots**2)
        left = jnp.minimum(
            jnp.min(safe_divide(of_few, own)),
            jnp.min(safe_divide(of_many, jnp.diagonal(v, axis1=1, axis2=2))),
        )
        return BlockFactor(root, w, lower, scale, left, pairs)

    def _schur(self, u: Float[Array, "C dc dc"], w: Float[Array, "O dc dp"]) -> Array:
        """U - W V^-1 W^T, dense: its upper triangle of blocks is summed, then mirrored."""
        pairs = self.pairs
        count, dc = pairs.few.shape
        padding = -pairs.first.size % CHUNK
        # Past the end: added to a block beyond the last.
        first, second = (jnp.pad(of, (0, padding)) for of in (pairs.first, pairs.second))
        places = pairs.of_few[first] * count + pairs.of_few[second]
        places = jnp.where(jnp.arange(first.size) < pairs.first.size, places, count * count)

        def add(blocks: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
            one, two, place = part
            product = _times_transposed(w[one], w[two])
            if pairs.twice:
                again = (pairs.of_few[one] == pairs.of_few[two]) & (one != two)
                product = jnp.where(
                    again[:, None, None], product + jnp.swapaxes(product, 1, 2), product
                )
            return blocks.at[place].add(product, indices_are_sorted=True), None

        parts = tuple(array.reshape(-1, CHUNK) for array in (first, second, places))
        blocks = scan(add, jnp.zeros((count * count + 1, dc, dc), w.dtype), parts)[0][:-1]
        blocks = -blocks.reshape(count, count, dc, dc)
        mirrored = blocks + jnp.transpose(blocks, (1, 0, 3, 2))
        same = jnp.eye(count, dtype=bool)[:, :, None, None]
        whole = jnp.where(same, blocks + u[:, None], mirrored)
        return jnp.transpose(whole, (0, 2, 1, 3)).reshape(count * dc, count * dc)


class BlockFactor(eqx.Module):
    """What (2) solves with."""

    root: Float[Array, "P dp dp"]  # L^-1 with L L^T = V
    w: Float[Array, "O dc dp"]  # W L^-T
    lower: Float[Array, "k k"]  # Cholesky factor of the equilibrated Schur complement
    scale: Float[Array, " k"]
    left: Float[Array, ""]  # the least part of a diagonal entry that is left as its pivot
    pairs: Pairs

    def solve(self, b: Float[Array, " n"]) -> Float[Array, " n"]:
        """By substitution."""
        pairs, w, root = self.pairs, self.w, self.root
        gb = _added(root * b[pairs.many][:, None], 2)  # L^-1 g_b
        ga = b[pairs.few] - pairs.over_few(_added(w * gb[pairs.of_many][:, None], 2))
        factor = self.lower, True
        a = self.scale * jax.scipy.linalg.cho_solve(factor, ga.reshape(-1) * self.scale)
        a = a.reshape(pairs.few.shape)
        change = pairs.over_many(_added(w * a[pairs.of_few][:, :, None], 1))
        return pairs.joined(a, _added(root * (gb - change)[:, :, None], 1))


def _times_transposed(a: Float[Array, "k i r"], b: Float[Array, "k j r"]) -> Array:
    """A B^T of many small matrices, written out: XLA's own product takes them one by one."""
    return sum(
        (a[:, :, None, r] * b[:, None, :, r] for r in range(1, a.shape[2])),
        a[:, :, None, 0] * b[:, None, :, 0],
    )


def _transposed_times(a: Float[Array, "k r i"], b: Float[Array, "k r j"]) -> Array:
    """A^T B, likewise."""
    return _times_transposed(jnp.swapaxes(a, 1, 2), jnp.swapaxes(b, 1, 2))


def _added(a: Array, axis: int) -> Array:
    """The sum along a short axis, written out for the same reason."""
    return sum(jnp.moveaxis(a, axis, 0)[1:], jnp.moveaxis(a, axis, 0)[0])


def _diagonals(rows: Float[Array, "k d"]) -> Float[Array, "k d d"]:
    return rows[:, :, None] * jnp.eye(rows.shape[1], dtype=rows.dtype)[None]


def _inverse_root(v: Float[Array, "P d d"]) -> Float[Array, "P d d"]:
    """L^-1, L the Cholesky factor, the columns written out; 0 for a pivot that is not positive."""
    d = v.shape[1]
    lower = [[jnp.zeros_like(v[:, 0, 0])] * d for _ in range(d)]
    for j in range(d):
        square = v[:, j, j] - sum((lower[j][k] ** 2 for k in range(j)), jnp.zeros_like(v[:, 0, 0]))
        positive = square > 0
        # 1 / l_jj
        lower[j][j] = jnp.where(positive, lax.rsqrt(jnp.where(positive, square, 1)), 0)
        for i in range(j + 1, d):
            dot = sum((lower[i][k] * lower[j][k] for k in range(j)), jnp.zeros_like(square))
            lower[i][j] = (v[:, i, j] - dot) * lower[j][j]
    inverse = [[jnp.zeros_like(v[:, 0, 0])] * d for _ in range(d)]
    for j in range(d):
        inverse[j][j] = lower[j][j]
        for i in range(j + 1, d):
            terms = (lower[i][k] * inverse[k][j] for k in range(j, i))
            inverse[i][j] = -lower[i][i] * sum(terms, jnp.zeros_like(v[:, 0, 0]))
    return jnp.stack([jnp.stack(row, axis=1) for row in inverse], axis=1)
