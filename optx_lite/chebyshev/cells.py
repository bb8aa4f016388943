r"""Roots and the global minimum of a piecewise polynomial by arrays of fixed size.

The tests on cells are those of `isolate`; here the cells that are still undecided are kept in an
array of fixed length, halved in a `while_loop`, and what does not fit is reported. For the global
minimum the bounds prune as in branch and bound: with |T_k| <= 1 no value on a cell is below
c_0 - sum_k>0 |c_k|, so a cell that cannot beat the best value seen is dropped; a cell on which p
is convex or monotone is settled at once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ..jax_support.control_flow import while_loop
from .points import differentiation, halving
from .series import apply, clenshaw

LEVELS = 40
STEPS = 12  # of Newton's method and bisection in a cell; the rest is done on the function itself
LAST = 3  # without a bracket
LEAST = 16  # cells in work


class Cells(NamedTuple):
    """Parts of pieces: coefficients (w, n + 1), the pieces, their ends in t, and if they count."""

    coefficients: Array
    piece: Array
    low: Array
    high: Array
    active: Array

    def first(self, order: Array) -> Cells:
        """In another order, or some of them."""
        return Cells(*(field[order] for field in self))

    def halved(self) -> Cells:
        """Both halves of each."""
        degree = self.coefficients.shape[1] - 1
        left, right = (apply(half, self.coefficients) for half in halving(degree))
        middle = (self.low + self.high) / 2
        return Cells(
            jnp.concatenate([left, right]),
            jnp.concatenate([self.piece, self.piece]),
            jnp.concatenate([self.low, middle]),
            jnp.concatenate([middle, self.high]),
            jnp.concatenate([self.active, self.active]),
        )

    def at(self, s: Array) -> Array:
        """t in the piece, from s in [-1, 1] in the cell."""
        return self.low + (self.high - self.low) * (s + 1) / 2


def _of_pieces(coefficients: Array, count: int) -> Cells:
    """One cell a piece, filled up to ``count``."""
    pieces, size = coefficients.shape
    more = count - pieces
    filled = jnp.concatenate([coefficients, jnp.zeros((more, size), coefficients.dtype)])
    ones = jnp.ones(count, coefficients.dtype) + 0 * filled[:, 0]
    piece = jnp.minimum(jnp.arange(count), pieces - 1)
    return Cells(filled, piece, -ones, ones, jnp.arange(count) < pieces)


def _beside_first(c: Array) -> Array:
    """sum_k>0 |c_k|."""
    return jnp.sum(jnp.abs(c[:, 1:]), axis=1)


def _ends(c: Array) -> tuple[Array, Array]:
    """Values at s = -1 and 1."""
    even, odd = jnp.sum(c[:, ::2], axis=1), jnp.sum(c[:, 1::2], axis=1)
    return even - odd, even + odd


def _newton(values: Array, slopes: Array, rising: Array) -> Array:
    """A root in each cell where there is one; Newton's method, and bisection."""

    def step(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        s, low, high = state
        value, slope = clenshaw(values, s), clenshaw(slopes, s)
        left_of_root = jnp.where(rising, value < 0, value > 0)
        low, high = jnp.where(left_of_root, s, low), jnp.where(left_of_root, high, s)
        new = s - value / jnp.where(slope == 0, 1, slope)
        inside = (slope != 0) & (new >= low) & (new <= high)
        return jnp.where(inside, new, (low + high) / 2), low, high

    def last(_: int, s: Array) -> Array:
        """Onto an end, where the root is there to rounding, or just outside."""
        value, slope = clenshaw(values, s), clenshaw(slopes, s)
        new = jnp.clip(s - value / jnp.where(slope == 0, 1, slope), -1, 1)
        return jnp.where(jnp.abs(clenshaw(values, new)) < jnp.abs(value), new, s)

    zero = values[:, 0] * 0
    s = lax.fori_loop(0, STEPS, step, (zero, zero - 1, zero + 1))[0]
    return lax.fori_loop(0, LAST, last, s)


def global_minimum(coefficients: Array, accuracy: Array) -> tuple[Array, Array, Array, Array]:
    """The lowest point: its piece, t in it, the value; and whether no other can be lower.

    To the accuracy (p,) of the pieces.
    """
    pieces, size = coefficients.shape
    capacity = max(LEAST, pieces)
    matrix = differentiation(size - 1)

    def settle(cells: Cells, best: tuple) -> tuple[Cells, tuple, Array]:
        """The best with these cells, those left, most promising first, and how many there are."""
        c = cells.coefficients
        d = apply(matrix, c)
        curvature = apply(matrix, d)
        spread = _beside_first(c)
        lower = c[:, 0] - spread
        monotone = jnp.abs(d[:, 0]) > _beside_first(d)
        convex = curvature[:, 0] > _beside_first(curvature)
        left, right = _ends(c)
        inner = jnp.where(convex, _newton(d, curvature, convex), 0)
        s = jnp.stack([inner, inner * 0 - 1, inner * 0 + 1])
        values = jnp.stack([clenshaw(c, inner), left, right])
        values = jnp.where(cells.active, values, jnp.inf)
        row, cell = jnp.unravel_index(jnp.argmin(values), values.shape)
        here = (values[row, cell], cells.piece[cell], cells.at(s[row])[cell])
        lowest = jnp.minimum(here[0], best[0])
        best = tuple(jnp.where(here[0] < best[0], a, b) for a, b in zip(here, best, strict=True))
        flat = spread <= 2 * accuracy[cells.piece]  # its ends are as low as all of it
        left_over = cells.active & ~monotone & ~convex & ~flat
        left_over = left_over & (lower < lowest - accuracy[cells.piece])
        order = jnp.argsort(jnp.where(left_over, lower, jnp.inf))
        return cells._replace(active=left_over).first(order), best, jnp.sum(left_over)

    zero = coefficients[0, 0] * 0
    start = _of_pieces(coefficients, capacity)
    cells, best, count = settle(start, (zero + jnp.inf, start.piece[0], zero))

    def body(state: tuple) -> tuple:
        cells, best, count, lost, level = state
        lost = lost | (count > capacity // 2)
        children = cells.first(jnp.arange(capacity // 2)).halved()
        cells, best, count = settle(children, best)
        return cells, best, count, lost, level + 1

    zero_count = count * 0
    state = while_loop(
        lambda state: (state[2] > 0) & (state[4] < LEVELS),
        body,
        (cells, best, count, zero_count > 0, zero_count),
    )
    _, (value, piece, t), count, lost, _ = state
    return piece, t, value, (count == 0) & ~lost


class Roots(NamedTuple):
    """Fixed-size arrays, (size,): x, if the sign changes for certain, if there is a root at all.

    And whether these are all.
    """

    x: Array
    crossing: Array
    there: Array
    complete: Array


def all_roots(breaks: Array, coefficients: Array, accuracy: Array, size: int) -> Roots:
    """The roots, rising; see `isolate.real_roots`."""
    pieces, length = coefficients.shape
    capacity = max(LEAST, pieces, 2 * size)
    matrix = differentiation(length - 1)
    eps = float(jnp.finfo(coefficients.dtype).eps)
    x_size = jnp.maximum(jnp.abs(breaks[0]), jnp.abs(breaks[-1]))
    largest = jnp.max(jnp.abs(coefficients))
    scale = jnp.where(largest > 0, largest, 1)  # slopes do not overflow then
    coefficients, accuracy = coefficients / scale, accuracy / scale

    def settle(cells: Cells, found: tuple) -> tuple[Cells, tuple, Array, Array]:
        c = cells.coefficients
        d = apply(matrix, c)
        left, right = breaks[cells.piece], breaks[cells.piece + 1]
        width = (right - left) / 2 * (cells.high - cells.low)  # of the cell, in x
        slope = 2 * jnp.max(jnp.abs(jnp.stack(_ends(d))), axis=0) / jnp.where(width > 0, width, 1)
        zero = accuracy[cells.piece] + 4 * eps * x_size * slope
        spread = _beside_first(c)
        possible = cells.active & (jnp.abs(c[:, 0]) <= spread + zero)
        monotone = possible & (jnp.abs(d[:, 0]) > _beside_first(d))
        flat = possible & ~monotone & (spread + jnp.abs(c[:, 0]) <= accuracy[cells.piece])
        low, high = _ends(c)
        rising = d[:, 0] > 0
        first, last = jnp.where(rising, low, -low), jnp.where(rising, high, -high)
        crossing = monotone & (first < 0) & (last >= 0)
        root = monotone & (first <= zero) & (last >= -zero)
        t = cells.at(jnp.where(monotone, _newton(c, d, rising), 0))
        half = (right - left) / 2
        x = jnp.where(t < 0, left + (t + 1) * half, right - (1 - t) * half)
        doubt = jnp.minimum(2 * zero / jnp.where(slope > 0, slope, 1), width)
        doubt = jnp.where(flat, width, doubt) + 4 * eps * x_size
        new = (jnp.where(root | flat, x, jnp.inf), doubt, crossing)
        merged = [jnp.concatenate(pair) for pair in zip(found, new, strict=True)]
        x, doubt, crossing, kept = _once(*merged)
        found = tuple(field[: 2 * size] for field in (x, doubt, crossing))
        left_over = possible & ~monotone & ~flat
        order = jnp.argsort(~left_over, stable=True)
        return cells._replace(active=left_over).first(order), found, jnp.sum(left_over), kept

    zero = coefficients[0, 0] * 0
    nothing = jnp.full(2 * size, jnp.inf, coefficients.dtype) + zero
    found = (nothing, jnp.zeros_like(nothing), nothing < 0)
    cells, found, count, kept = settle(_of_pieces(coefficients, capacity), found)

    def body(state: tuple) -> tuple:
        cells, found, count, lost, level = state
        lost = lost | (count > capacity // 2)
        children = cells.first(jnp.arange(capacity // 2)).halved()
        cells, found, count, kept = settle(children, found)
        return cells, found, count, lost | (kept > 2 * size), level + 1

    zero_count = count * 0
    _, (x, _, crossing), count, lost, _ = while_loop(
        lambda state: (state[2] > 0) & (state[4] < LEVELS),
        body,
        (cells, found, count, kept > 2 * size, zero_count),
    )
    there = x < jnp.inf
    complete = (count == 0) & ~lost & (jnp.sum(there) <= size)
    return Roots(x[:size], crossing[:size], there[:size], complete)


def _once(x: Array, doubt: Array, crossing: Array) -> tuple[Array, Array, Array, Array]:
    """Roots in order, those that are not told apart once; and how many there are."""
    order = jnp.argsort(x)
    x, doubt, crossing = x[order], doubt[order], crossing[order]
    near = jnp.where(x[1:] < jnp.inf, x[1:] - x[:-1] <= doubt[1:] + doubt[:-1], False)
    same = jnp.concatenate([near[:1] & False, near])
    next_same = jnp.concatenate([near, near[:1] & False])
    # The one that is kept knows what its neighbour knows.
    after = jnp.concatenate([crossing[1:], crossing[:1] & False])
    x_after = jnp.concatenate([x[1:], x[:1]])
    better = next_same & after & ~crossing
    x = jnp.where(better, x_after, x)
    crossing = crossing | (next_same & after)
    x = jnp.where(same, jnp.inf, x)
    order = jnp.argsort(x)
    return x[order], doubt[order], (crossing & (x < jnp.inf))[order], jnp.sum(x < jnp.inf)
