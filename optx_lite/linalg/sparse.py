"""Sparse matrices whose pattern is fixed: their values are gathered, never scattered.

Products with A want its rows together, those with A^T its columns. A pattern that does not change
can afford both: the values stand twice, once by rows and once by columns, each padded to the
longest row or column (the format of ELLPACK; R. G. Grimes, D. R. Kincaid and D. M. Young, "ITPACK
2.0 user's guide", 1979). A product is then a gather and a sum along short rows, which a CPU does
in order and a GPU all at once, without the atomic additions of a scatter. Where a few long rows
would make the padding large, entries are summed by sorted segments instead.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Float, Int, PyTree

from .jacobians import JacobianOperator

MOST_PADDING = 3  # times the entries


class Grouped(eqx.Module):
    """Where the entries of each row stand, for the rows of A or of A^T.

    ``entries`` (rows, width) counts entries in the order of the pattern, their number for "none";
    or (nnz,) in the order of the rows, with ``segments`` their rows. ``others`` of the same shape:
    the column of each.
    """

    entries: Array | np.ndarray  # Int[Array, "..."], as the next two
    others: PyTree
    segments: Array | np.ndarray | None
    size: int = eqx.field(static=True)
    nnz: int = eqx.field(static=True)

    @classmethod
    def by(cls, rows: np.ndarray, cols: np.ndarray, size: int) -> Grouped:
        """The entries (rows, cols) of a matrix of ``size`` rows."""
        order = np.argsort(rows, kind="stable").astype(np.int32)
        count, nnz = np.bincount(rows, minlength=size), rows.size
        width = int(count.max(initial=0))
        if size * width > MOST_PADDING * max(nnz, 1):
            own = rows[order].astype(np.int32)
            return cls(order, cols[order].astype(np.int32), own, size, nnz)
        begins = np.concatenate([[0], np.cumsum(count)[:-1]])
        table = begins[:, None] + np.arange(width)[None, :]
        proper = np.arange(width)[None, :] < count[:, None]
        order, cols = np.append(order, nnz), np.append(cols, 0)
        entries = order[np.where(proper, table, nnz)].astype(np.int32)
        return cls(entries, cols[entries].astype(np.int32), None, size, nnz)

    def gather(self, values: Float[Array, " nnz"]) -> Array:
        """Values in the shape of ``entries``; 0 where there is none."""
        return values.at[self.entries].get(mode="fill", fill_value=0.0)

    def sum(self, values: Array) -> Float[Array, " rows"]:
        """Over each row."""
        if self.segments is None:
            return jnp.sum(values, axis=1)
        return jax.ops.segment_sum(values, self.segments, self.size, indices_are_sorted=True)


class SparseMatrix(JacobianOperator):
    """A matrix (m, n), its values by rows and by columns."""

    by_row: Array
    by_column: Array
    rows: Grouped
    columns: Grouped

    @classmethod
    def of(cls, values: Float[Array, " nnz"], rows: Grouped, columns: Grouped) -> SparseMatrix:
        """From values in the order of the pattern."""
        return cls(rows.gather(values), columns.gather(values), rows, columns)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.rows.size, self.columns.size

    @property
    def dtype(self) -> np.dtype:
        """Of the entries."""
        return self.by_row.dtype

    def apply(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """A v."""
        return self.rows.sum(self.by_row * v[self.rows.others])

    def adjoint(self) -> SparseMatrix:
        """A^T."""
        return SparseMatrix(self.by_column, self.by_row, self.columns, self.rows)

    def squared_columns(self) -> Float[Array, " n"]:
        """Sums of the squares of the columns."""
        return self.columns.sum(self.by_column**2)

    def scaled(self, left: Float[Array, " m"], right: Float[Array, " n"]) -> SparseMatrix:
        """diag(left) A diag(right)."""

        def scale(values: Array, own: Array, others: Array, group: Grouped) -> Array:
            along = own[:, None] if group.segments is None else own[group.segments]
            return values * along * others[group.others]

        return SparseMatrix(
            scale(self.by_row, left, right, self.rows),
            scale(self.by_column, right, left, self.columns),
            self.rows,
            self.columns,
        )

    def absolute(self) -> SparseMatrix:
        """|A|, entry by entry."""
        return SparseMatrix(jnp.abs(self.by_row), jnp.abs(self.by_column), self.rows, self.columns)

    def as_result(self) -> BCOO:
        """As JAX's sparse array; the entries in the order of the rows."""
        group = self.rows
        if group.segments is None:
            own = jnp.broadcast_to(
                jnp.arange(group.size, dtype=jnp.int32)[:, None], group.others.shape
            )
            own = jnp.where(group.entries < group.nnz, own, group.size)  # outside: no entry
            indices = jnp.stack([own.ravel(), group.others.ravel()], axis=1)
            return BCOO((self.by_row.ravel(), indices), shape=self.shape)
        indices = jnp.stack([group.segments, group.others], axis=1)
        return BCOO((self.by_row, indices), shape=self.shape, indices_sorted=True)


class ScatteredMatrix(JacobianOperator):
    """A matrix by its values and places, which may be different at each point."""

    values: Float[Array, " nnz"]
    places: Int[Array, "nnz 2"]
    shape_: tuple[int, ...] = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.shape_[0], self.shape_[1]

    @property
    def dtype(self) -> np.dtype:
        """Of the entries."""
        return self.values.dtype

    def apply(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """A v."""
        return self._sum(self.values * v[self.places[:, 1]], 0)

    def adjoint(self) -> ScatteredMatrix:
        """A^T."""
        return ScatteredMatrix(self.values, self.places[:, ::-1], self.shape_[::-1])

    def squared_columns(self) -> Float[Array, " n"]:
        """Sums of the squares of the entries of each column."""
        return self._sum(self.values**2, 1)

    def scaled(self, left: Float[Array, " m"], right: Float[Array, " n"]) -> ScatteredMatrix:
        """diag(left) A diag(right)."""
        values = self.values * left[self.places[:, 0]] * right[self.places[:, 1]]
        return ScatteredMatrix(values, self.places, self.shape_)

    def absolute(self) -> ScatteredMatrix:
        """|A|, entry by entry."""
        return ScatteredMatrix(jnp.abs(self.values), self.places, self.shape_)

    def as_result(self) -> BCOO:
        """As JAX's sparse array."""
        return BCOO((self.values, self.places), shape=self.shape_)

    def _sum(self, values: Array, axis: int) -> Array:
        return jax.ops.segment_sum(values, self.places[:, axis], self.shape_[axis])
