"""Sparse Jacobians from as many products, or values, as their columns have colours.

See `coloring`. The colours and the places of the entries are arrays of the scheme, inputs of the
compiled program like all others: its text does not grow with the number of variables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from ..jax_support.control_flow import scan
from ..linalg.band import BandMatrix
from ..linalg.jacobians import JacobianOperator
from ..linalg.norms import safe_divide
from ..linalg.sparse import Grouped, SparseMatrix
from ..linalg.two_groups import Pairs, TwoGroupMatrix
from .autodiff import Forward, Reverse
from .base import (
    AbstractJacobian,
    AbstractSampled,
    FlatFunction,
    higher_precision,
    lower_eps,
)
from .blocks import two_groups
from .coloring import Coloring, color
from .complex_step import ComplexStep
from .finite_difference import FiniteDifference
from .sparsity import Sparsity
from .structured import AbstractStructured

WIDEST = 5  # diagonals of a matrix that is kept by them
FULL = 0.5  # of a band that has entries
SEEN = 100  # times rounding: a change of f beyond that is none of rounding
SUBSETS = 8  # of the parameters that step, to find an entry that a pattern lacks
LARGEST = 6000  # variables of the smaller group: its matrix is dense
AT_ONCE = 1 << 18  # numbers of products that are computed together: more leave the cache


class Compressed(AbstractStructured):
    """A Jacobian whose pattern is known, computed by the colours of its columns and rows."""

    base: AbstractJacobian
    forward: Int[Array, " n"]  # colours, -1 for none
    reverse: Int[Array, " m"]
    layout: _Band | _TwoGroups | _Entries
    forward_colors: int = eqx.field(static=True)
    reverse_colors: int = eqx.field(static=True)

    @classmethod
    def of(cls, base: AbstractJacobian, entries: Sparsity) -> Compressed:
        """For the scheme `base` and the pattern `entries`."""
        colors: Any = _colors(base, entries)
        of_both = colors.forward, colors.reverse
        return cls(
            base, *of_both, _layout(entries, colors), colors.forward_colors, colors.reverse_colors
        )

    def linearize(
        self,
        fun: FlatFunction,
        x: Float[Array, " n"],
        lower: Float[Array, " n"],
        upper: Float[Array, " n"],
    ) -> tuple[Float[Array, " m"], Callable[[], JacobianOperator]]:
        """The function at x, and a thunk for its Jacobian there, as of `AbstractJacobian`."""
        base = self.base
        if isinstance(base, AbstractSampled):
            f = fun(x)

            def by_colors() -> _Products:
                groups = _groups(self.forward, self.forward_colors)
                weights, changes = base.sampled(fun, x, f, lower, upper, groups)
                return _Products(weights, changes, None, self.forward, self.reverse)
        else:
            f, by_colors = self._automatic(fun, x)
        dtype = higher_precision(x, f)
        return f, lambda: self.layout.gather(by_colors(), dtype)

    @property
    def direct(self) -> bool:
        """Narrow bands, and two groups of which the smaller makes no large matrix."""
        return self.layout.direct

    def blank(self, fun: FlatFunction, x: Float[Array, " n"], m: int) -> JacobianOperator:
        """No products known: all entries are 0."""
        nothing = _Products(None, None, None, self.forward, self.reverse)
        return self.layout.gather(nothing, x.dtype)

    def mismatch(
        self,
        fun: FlatFunction,
        x: Float[Array, " n"],
        lower: Float[Array, " n"],
        upper: Float[Array, " n"],
    ) -> Float[Array, " m"]:
        """By how much f changes along a direction beyond what J says, over what may be rounding.

        Above 1 where the pattern lacks an entry of that row.
        """
        f, jacobian = self.linearize(fun, x, lower, upper)
        matrix = jacobian()
        if isinstance(self.base, AbstractSampled):
            scheme = self.base if isinstance(self.base, ComplexStep) else FiniteDifference()
            # Some of the parameters step: together they are what the colours have summed.
            some = (_hash(x.size)[None] >> jnp.arange(SUBSETS, dtype=jnp.uint32)[:, None]) % 2 == 1
            weights, changes = scheme.sampled(fun, x, f, lower, upper, some)
            along = jnp.where(some, safe_divide(jnp.ones_like(weights[0]), weights[0])[None], 0)
            change = changes[0]
            # Differences have the rounding of f; imaginary parts have not.
            rounding = 0.0 if scheme is self.base else SEEN * lower_eps(x, f)
            noise = rounding * jnp.abs(f).astype(change.dtype)
        else:
            sizes = 1 + _hash(x.size).astype(x.dtype) / 2.0**32
            along = (sizes * jnp.maximum(jnp.abs(x), 1))[None]
            change = jax.jvp(fun, (x,), (along[0],))[1].astype(matrix.dtype)[None]
            along, noise = along.astype(matrix.dtype), jnp.zeros_like(change[0])
        missed = jnp.max(jnp.abs(change - jax.vmap(matrix.apply)(along)), axis=0)
        size = jax.vmap(matrix.absolute().apply)(jnp.abs(along))
        least = SEEN * lower_eps(x, f) ** 0.5 * jnp.max(size, axis=0)
        return safe_divide(missed, least + noise) + jnp.where(
            (least + noise == 0) & (missed > 0), 2, 0
        )

    def missing_entry(
        self, fun: FlatFunction, x: Float[Array, " n"], entries: Float[Array, " m"]
    ) -> tuple[int, int]:
        """The entry (i, j) which the pattern lacks, where `mismatch` is largest. On the host."""
        i = int(jnp.argmax(jnp.where(jnp.isnan(entries), 0, entries)))
        _, pullback = jax.vjp(fun, x)
        unit = jnp.zeros(entries.shape, jax.eval_shape(fun, x).dtype).at[i].set(1)
        (row,) = pullback(unit)
        nothing = self.blank(fun, x, entries.size)
        places = nothing.as_result().indices
        known = places[:, 1][(places[:, 0] == i)]
        return i, int(jnp.argmax(jnp.abs(row).at[known].set(0)))

    def _automatic(self, fun: FlatFunction, x: Array) -> tuple[Array, Callable[[], _Products]]:
        pushforward = pullback = None
        if self.forward_colors:
            f, pushforward = jax.linearize(fun, x)
        if self.reverse_colors:
            f, pullback = jax.vjp(fun, x)
        if not (self.forward_colors or self.reverse_colors):
            f = fun(x)

        def by_colors() -> _Products:
            along = of_rows = None
            if pushforward is not None:
                along = _each(pushforward, self.forward, self.forward_colors, x, f.size)[None]
            if pullback is not None:
                (of_rows,) = _each(pullback, self.reverse, self.reverse_colors, f, x.size)
            return _Products(None, along, of_rows, self.forward, self.reverse)

        return f, by_colors


class _Products(eqx.Module):
    """All that is known of a Jacobian, before its entries are taken out of it."""

    weights: Float[Array, "p n"] | None  # of parameters; None: 1
    along: Float[Array, "p k m"] | None  # J times groups of columns
    of_rows: Float[Array, "l n"] | None  # groups of rows times J
    forward: Int[Array, " n"]
    reverse: Int[Array, " m"]

    def entries(self, i: Int[Array, "*s"], j: Int[Array, "*s"], dtype: Any) -> Float[Array, "*s"]:
        """J_ij."""
        by_column = by_row = jnp.zeros(i.shape, dtype)
        if self.along is not None:
            change = self.along[:, self.forward[j], i].astype(dtype)
            weight = 1 if self.weights is None else self.weights[:, j]
            by_column = jnp.sum(weight * change, axis=0)
        if self.of_rows is None:
            return by_column
        color = self.reverse[i]
        by_row = self.of_rows[color, j].astype(dtype)
        return jnp.where(color >= 0, by_row, by_column)

    def diagonal(self, k: int, colors: _OfDiagonal, dtype: Any) -> Float[Array, " m"]:
        """J_{i, i + k}, where that is an entry: by choices, which fuse where `entries` gathers."""
        m = self.reverse.size

        def at_columns(v: Float[Array, " n"]) -> Float[Array, " m"]:
            begin, end = max(k, 0), min(v.shape[0], m + k)
            return jnp.pad(v[begin:end], (begin - k, m + k - end)).astype(dtype)

        def choice(of_color: Sequence[Float[Array, " m"]], color: Array) -> Float[Array, " m"]:
            choices = (jnp.where(color == c, row, 0) for c, row in enumerate(of_color))
            return sum(choices, jnp.zeros((m,), dtype))

        found = jnp.zeros((m,), dtype)
        if self.along is not None:
            for p, products in enumerate(self.along.astype(dtype)):
                weight = 1 if self.weights is None else at_columns(self.weights[p])
                found = found + weight * choice(list(products), colors.forward)
        if self.of_rows is not None:
            found = found + choice([at_columns(row) for row in self.of_rows], colors.reverse)
        return found


class _Entries(eqx.Module):
    """Of any pattern."""

    i: Int[Array, " nnz"]
    j: Int[Array, " nnz"]
    rows: Grouped
    columns: Grouped

    direct: ClassVar[bool] = False

    @classmethod
    def of(cls, entries: Sparsity) -> _Entries:
        m, n = entries.shape
        i: Any = entries.rows.astype(np.int32)
        j: Any = entries.cols.astype(np.int32)
        return cls(i, j, Grouped.by(i, j, m), Grouped.by(j, i, n))

    def gather(self, products: _Products, dtype: Any) -> SparseMatrix:
        return SparseMatrix.of(products.entries(self.i, self.j, dtype), self.rows, self.columns)


class _OfDiagonal(NamedTuple):
    """Of which colour the products are that have its entries; -1 for none."""

    forward: Int[Array, " m"]
    reverse: Int[Array, " m"]


class _Band(eqx.Module):
    """Of a band most of which has entries."""

    colors: list[_OfDiagonal]
    lower: int = eqx.field(static=True)
    columns: int = eqx.field(static=True)

    direct: ClassVar[bool] = True

    @classmethod
    def of(cls, entries: Sparsity, colors: Coloring) -> _Band:
        (m, n), (lower, upper) = entries.shape, entries.band
        which = np.full((2, lower + upper + 1, m), -1, np.int32)
        i, j = entries.rows, entries.cols
        by_row = colors.reverse[i]
        which[:, j - i + lower, i] = np.where(by_row < 0, colors.forward[j], -1), by_row
        of_diagonals: Any = [_OfDiagonal(*both) for both in zip(*which, strict=True)]
        return cls(of_diagonals, lower, n)

    def gather(self, products: _Products, dtype: Any) -> BandMatrix:
        diagonals = [
            products.diagonal(d - self.lower, colors, dtype) for d, colors in enumerate(self.colors)
        ]
        return BandMatrix.of(diagonals, self.lower, self.columns)


class _TwoGroups(eqx.Module):
    """Of two groups of blocks."""

    pairs: Pairs

    @property
    def direct(self) -> bool:
        return self.pairs.few.size <= LARGEST

    def gather(self, products: _Products, dtype: Any) -> TwoGroupMatrix:
        pairs = self.pairs
        i = pairs.rows[:, :, None]

        def part(columns: Int[Array, "O d"]) -> Float[Array, "O dr d"]:
            shape = (*pairs.rows.shape, columns.shape[1])
            j = jnp.broadcast_to(columns[:, None, :], shape)
            return products.entries(jnp.broadcast_to(i, shape), j, dtype)

        of_few, of_many = pairs.few[pairs.of_few], pairs.many[pairs.of_many]
        return TwoGroupMatrix(part(of_few), part(of_many), pairs)


def _layout(entries: Sparsity, colors: Coloring) -> _Band | _TwoGroups | _Entries:
    if _is_band(entries):
        return _Band.of(entries, colors)
    groups = two_groups(entries)
    return _Entries.of(entries) if groups is None else _TwoGroups(Pairs.of(*groups))


def _is_band(entries: Sparsity) -> bool:
    lower, upper = entries.band
    width = lower + upper + 1
    return width <= WIDEST and entries.nnz > FULL * width * min(entries.shape)


def _colors(base: AbstractJacobian, entries: Sparsity) -> Coloring:
    """By the modes that the scheme has; both only where that halves the products."""
    if isinstance(base, Reverse):
        return color(entries, ("reverse",))
    best = color(entries) if isinstance(base, Forward) else color(entries, ("forward",))
    if not best.reverse_colors:
        return best
    alone = color(entries, ("forward",))
    return best if 2 * best.products <= alone.products else alone


def _each(
    product: Callable[[Array], Any], colors: Int[Array, " n"], count: int, like: Array, size: int
) -> Any:
    """Products with the groups of all colours; one after the other where they are long.

    Twelve products of 60,000 numbers take a third of the time that they take in one batch.
    """

    def of_color(color: Int[Array, ""]) -> Any:
        return product((colors == color).astype(like.dtype))

    every = jnp.arange(count, dtype=jnp.int32)
    if count * size <= AT_ONCE:
        return jax.vmap(of_color)(every)
    return scan(lambda carry, color: (carry, of_color(color)), (), every)[1]


def _hash(size: int) -> UInt32[Array, " size"]:
    """Bits without a pattern: the end of MurmurHash3, of the index.

    JAX's generator takes as long as five evaluations of a tridiagonal system.
    """
    bits = jnp.arange(1, size + 1, dtype=jnp.uint32)
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def _groups(colors: Int[Array, " n"], count: int) -> Bool[Array, "k n"]:
    return jnp.arange(count, dtype=jnp.int32)[:, None] == colors[None, :]
