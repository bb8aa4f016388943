r"""A function as pieces of low degree, found by halving: the adaptive construction, on the host.

Each piece is sampled at `DEGREE` + 1 Chebyshev points. If `chop` finds the series resolved, and
the polynomial agrees with the function at some further points, the piece stands; else it is halved.
All pieces of a level are sampled in one call. Chebfun first tries one series of any length; pieces
of low degree cost a few more samples, and everything after that is cheaper, and local: values,
derivatives, roots.

Tolerance. Relative to the largest value of the whole function, and, as in Chebfun, to what the
rounding of x makes of the function's slope.

Where no degree will do. At a jump or a kink the halving goes on until there is no number between
the ends of the piece, some 50 levels; such a piece is left out, and its neighbours meet there.
Where the function grows as the pieces shrink (a pole) there is an error, as where the pieces become
too many (noise, or a function that oscillates without end).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .chop import chop
from .points import basis, from_values, points

DEGREE = 64
MOST = 2**14  # pieces
BATCHES = (1, 8, 64)  # pieces sampled in one call: few shapes, as each is compiled
FEW = 2**12  # numbers in a piece: the rounding of x is then seen in the values
GROWTH = 10  # of values over a thousandfold decrease of the width: a pole
_NODES = points(DEGREE)
# Fractions of the golden ratio: far from Chebyshev points of any degree.
_CHECKS = 2 * np.mod(0.6180339887498949 * np.arange(1, 17), 1) - 1
_AT = np.concatenate([_NODES, _CHECKS])


class Pieces(NamedTuple):
    """Breaks (p + 1,), coefficients (p, n + 1), and the size of the error of each piece (p,)."""

    breaks: np.ndarray
    coefficients: np.ndarray
    accuracy: np.ndarray


class UnresolvedError(ValueError):
    """A function that polynomials do not represent to the tolerance."""


def adaptive_pieces(
    evaluate: Callable[[np.ndarray], np.ndarray], a: float, b: float, eps: float, tol: float
) -> Pieces:
    """Halve until all pieces are resolved.

    Parameters
    ----------
    evaluate : callable
        From points, (k,), to values.
    eps : float
        Of the dtype in which the points are rounded.
    tol : float
        Relative to the largest value.

    Raises
    ------
    UnresolvedError
    """
    left, right = np.array([a]), np.array([b])
    slope = np.full(1, np.inf)
    largest = 0.0
    gaps: list[np.ndarray] = []
    done: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    least = eps * eps * max(abs(a), abs(b))
    while left.size:
        values = _sample(evaluate, left, right)
        largest = max(largest, float(np.max(np.abs(values))))
        coefficients = values[:, : DEGREE + 1] @ from_values(DEGREE).T
        ulp = eps * np.maximum(np.abs(left), np.abs(right))
        slope = _slope(values, right - left, ulp, slope)
        noise = np.maximum(tol * largest, 4 * ulp * slope)
        kept, error = _kept(coefficients, values, noise)
        good = kept <= DEGREE
        noise = np.maximum(noise, 2 * error)
        coefficients[np.arange(DEGREE + 1) >= kept[:, None]] = 0
        done.append((np.stack([left, right], 1)[good], coefficients[good], noise[good]))
        ended = ~good & (right - left <= np.maximum(8 * ulp, least))
        if ended.any():
            beside = _beside(evaluate, left[ended], right[ended], values[ended], (a, b))
            gaps.append(np.stack([left[ended], beside], 1))
        left, right, slope = (part[~good & ~ended] for part in (left, right, slope))
        if 2 * left.size + sum(len(c) for _, c, _ in done) > MOST:
            raise UnresolvedError(
                f"`f` is not resolved by {MOST} pieces of degree {DEGREE}: near x = {left[0]:.6g} "
                f"it is no smooth function to a relative tolerance of {tol:.2g}. Give `tol`."
            )
        middle = left + (right - left) / 2
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
        slope = np.concatenate([slope, slope])
    return _joined(done, gaps, (a, b), tol * largest)


def _sample(evaluate: Callable, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Values at the nodes and check points of each piece, (p, 81)."""
    x = on_interval(_AT, left[:, None], right[:, None])
    count, out = len(x), []
    batch = next((size for size in BATCHES if count <= size), BATCHES[-1])
    for first in range(0, count, batch):
        part = x[first : first + batch]
        full = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        out.append(evaluate(full.reshape(-1)).reshape(full.shape)[: len(part)])
    values = np.concatenate(out)
    if not np.isfinite(values).all():
        where = x[~np.isfinite(values)][0]
        raise ValueError(
            f"`f` must be finite on [a, b], got {values[~np.isfinite(values)][0]} at x = {where!r}."
        )
    return values


def on_interval(t, left, right):
    """From [-1, 1] to [left, right], the ends exactly; arrays of NumPy or of JAX."""
    half = (right - left) / 2
    return (t < 0) * (left + (t + 1) * half) + (t >= 0) * (right - (1 - t) * half)


def _slope(values: np.ndarray, width: np.ndarray, ulp: np.ndarray, last: np.ndarray) -> np.ndarray:
    """That of the function in each piece, for what the rounding of x makes of it.

    In pieces of few numbers a jump would look like a slope: there it is that of a wider piece.
    """
    rise = np.max(values, axis=1) - np.min(values, axis=1)
    return np.where(width > FEW * ulp, rise / width, np.minimum(last, rise / width))


def _kept(coefficients: np.ndarray, values: np.ndarray, noise: np.ndarray) -> tuple:
    """How many coefficients, and the largest error seen.

    All of them if the series is not resolved, or the polynomial disagrees at the check points.
    """
    size = np.max(np.abs(values), axis=1)
    tol = np.where(size > 0, noise / np.where(size > 0, size, 1), 1)
    kept = chop(coefficients, np.minimum(tol, 1))
    cut = np.where(np.arange(DEGREE + 1) < kept[:, None], coefficients, 0)
    # The plateau of rounding errors lies above the tolerance by a factor of this order.
    error = np.abs(cut @ basis(_AT, DEGREE).T - values).max(axis=1)
    return np.where(error <= 100 * noise, kept, DEGREE + 1), error


def _beside(evaluate, left, right, values, interval) -> np.ndarray:
    """What the function changes by over pieces that are left out, were it as on their sides.

    Raises where it is so much larger than there that it has a pole.
    """
    width = right - left
    outer = np.clip([left - 1000 * width, right + 1000 * width], *interval)
    inner = np.stack([left, right])
    outer, inner = evaluate(np.stack([outer, inner]).reshape(-1)).reshape(2, 2, -1)
    pole = np.max(np.abs(values), axis=1) > GROWTH * np.max(np.abs(outer), axis=0)
    if pole.any():
        where = float(left[pole][0])
        raise UnresolvedError(f"`f` must be bounded on [a, b]; it has a pole at about {where!r}.")
    return 64 * np.max(np.abs(outer - inner), axis=0) / 1000


def _joined(
    done: list, gaps: list[np.ndarray], interval: tuple[float, float], accuracy: float
) -> Pieces:
    """All pieces from left to right; over those that are left out their neighbours meet."""
    intervals, coefficients, noise = (np.concatenate(part) for part in zip(*done, strict=True))
    if not len(intervals):
        raise UnresolvedError("`f` is resolved nowhere: [a, b] is too narrow, or `f` is noise.")
    order = np.argsort(intervals[:, 0])
    starts, coefficients, noise = intervals[order, 0], coefficients[order], noise[order]
    for gap, beside in np.concatenate([np.zeros((0, 2)), *gaps]):
        after = np.searchsorted(starts, gap)
        near = np.clip([after - 1, after], 0, len(starts) - 1)
        noise[near] = np.maximum(noise[near], beside)
    breaks = np.array([interval[0], *starts[1:], interval[1]])
    used = np.flatnonzero(np.any(coefficients != 0, axis=0))
    length = max(2, 1 + int(np.max(used, initial=0)))
    return Pieces(breaks, coefficients[:, :length], np.maximum(noise, accuracy))
