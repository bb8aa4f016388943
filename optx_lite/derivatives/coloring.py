"""Columns of a sparse Jacobian that share no row are told apart in one product with J.

A. R. Curtis, M. J. D. Powell and J. K. Reid, "On the estimation of sparse Jacobian matrices"
(1974): columns of one colour are summed into one direction, and each row of the product belongs
to at most one of them. So J is known from as many products as there are colours. Rows in place of
columns, from products with J^T; or a few dense rows by J^T and all else by J (A. H. Gebremedhin,
F. Manne and A. Pothen, "What color is your Jacobian?", SIAM Review 47, 2005).

The colouring is greedy: each column takes the first colour that no column has with which it shares
a row. Every row keeps the set of its colours as the bits of an integer, so the work is one
operation for each entry. A full band of width w gets its w colours in turn: three for a tridiagonal
matrix, where SciPy, which begins with the columns in random order, takes up to five.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from .sparsity import Sparsity


class Coloring(NamedTuple):
    """How the entries of a Jacobian are gathered from products."""

    forward: Int[np.ndarray, " n"]  # colour of each column; -1: takes no part
    reverse: Int[np.ndarray, " m"]  # colour of each row that comes from products with J^T; else -1
    forward_colors: int
    reverse_colors: int

    @property
    def products(self) -> int:
        """How many it takes."""
        return self.forward_colors + self.reverse_colors


def color_columns(entries: Sparsity) -> tuple[Int[np.ndarray, " n"], int]:
    """A colour for each column, and how many there are. A column without entries has none: -1."""
    m, n = entries.shape
    width = sum(entries.band) + 1
    if width == entries.most_in_a_row:  # with so many colours no band takes more, and none fewer
        some = np.bincount(entries.cols, minlength=n) > 0
        return np.where(some, np.arange(n, dtype=np.int32) % width, -1), width
    order = np.argsort(entries.cols, kind="stable")
    rows = entries.rows[order].tolist()
    begins = np.searchsorted(entries.cols[order], np.arange(n + 1)).tolist()
    taken, colors, count = [0] * m, [-1] * n, 0
    for j in range(n):
        own = rows[begins[j] : begins[j + 1]]
        if not own:
            continue
        used = 0
        for i in own:
            used |= taken[i]
        bit = ~used & (used + 1)  # the lowest that is 0
        for i in own:
            taken[i] |= bit
        colors[j] = bit.bit_length() - 1
        count = max(count, bit.bit_length())
    return np.asarray(colors, np.int32), count


def color(entries: Sparsity, modes: tuple[str, ...] = ("forward", "reverse")) -> Coloring:
    """The colouring with the fewest products of those that `modes` allow.

    Parameters
    ----------
    entries : Sparsity
        Of the Jacobian.
    modes : tuple of {'forward', 'reverse'}
        Products with J, with J^T. With both, dense rows may be left to J^T.
    """
    m, n = entries.shape
    candidates = []
    if "forward" in modes:
        colors, count = color_columns(entries)
        candidates.append(Coloring(colors, np.full(m, -1, np.int32), count, 0))
    if "reverse" in modes:
        transposed = entries.transposed()
        fewest = min((candidate.products for candidate in candidates), default=n + 1)
        if transposed.most_in_a_row < fewest:
            colors, count = color_columns(transposed)
            candidates.append(Coloring(np.full(n, -1, np.int32), colors, 0, count))
    if len(modes) == 2:
        candidates += [_split(entries, dense) for dense in _dense_rows(entries)]
    return min(candidates, key=lambda candidate: candidate.products)


def _dense_rows(entries: Sparsity) -> list[Bool[np.ndarray, " m"]]:
    """Sets of the rows with the most entries: those with above 2, 8, 32 ... times the mean."""
    count = np.bincount(entries.rows, minlength=entries.shape[0])
    sets, most = [], count.max(initial=0)
    level = 2 * max(count.mean(), 1)
    while level < most:
        sets.append(count > level)
        level *= 4
    return sets


def _split(entries: Sparsity, dense: Bool[np.ndarray, " m"]) -> Coloring:
    """The dense rows from products with J^T, the others from products with J."""
    of_dense = dense[entries.rows]
    rows, cols = entries.rows, entries.cols
    sparse = Sparsity(rows[~of_dense], cols[~of_dense], entries.shape)
    forward, forward_colors = color_columns(sparse)
    few = Sparsity(rows[of_dense], cols[of_dense], entries.shape)
    reverse, reverse_colors = color_columns(few.transposed())
    return Coloring(forward, reverse, forward_colors, reverse_colors)
