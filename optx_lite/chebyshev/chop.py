r"""Where to cut a Chebyshev series: `standardChop` of Aurentz and Trefethen.

Coefficients of a smooth function fall to a plateau of rounding errors. The rule looks at their
monotone envelope for a stretch from j to 1.25 j + 5 in which they fall by little, the less the
closer they are to the tolerance, and then cuts where envelope and a slanted line are lowest.

Reference: Aurentz & Trefethen, *Chopping a Chebyshev series*, ACM TOMS 43, 33 (2017). Here for many
series at once.
"""

from __future__ import annotations

import numpy as np


def chop(coefficients: np.ndarray, tol: np.ndarray) -> np.ndarray:
    """How many coefficients of each series to keep; all of them if it is not resolved.

    Parameters
    ----------
    coefficients : (s, n + 1) array, n at least 16
    tol : (s,) array
        Relative to the largest coefficient of each series.
    """
    size = coefficients.shape[1]
    envelope = np.maximum.accumulate(np.abs(coefficients)[:, ::-1], axis=1)[:, ::-1]
    largest = envelope[:, 0]
    tol = np.where(largest > 0, tol, 1.0)
    envelope = envelope / np.where(largest > 0, largest, 1)[:, None]
    kept = np.where((largest == 0) | (tol >= 1), 1, size)
    undecided = (largest > 0) & (tol < 1)
    for j in range(2, size + 1):  # counted from 1, as in the paper
        j2 = round(1.25 * j + 5)
        if j2 > size or not undecided.any():
            break
        e1, e2 = envelope[:, j - 1], envelope[:, j2 - 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            required = 3 * (1 - np.log(e1) / np.log(tol))
            plateau = undecided & ((e1 == 0) | (e2 / e1 > required))
        for s in np.flatnonzero(plateau):
            kept[s] = _cut(envelope[s], tol[s], j - 1, j2)
        undecided &= ~plateau
    return kept


def _cut(envelope: np.ndarray, tol: float, plateau: int, j2: int) -> int:
    """The third step of the rule, for one series that has a plateau."""
    if envelope[plateau - 1] == 0:
        return plateau
    floor = tol ** (7 / 6)
    j3 = int(np.sum(envelope >= floor))
    heights = envelope.copy()
    if j3 < j2:
        j2 = j3 + 1
        heights[j2 - 1] = floor
    line = np.log10(heights[:j2]) + np.linspace(0, -np.log10(tol) / 3, j2)
    return max(int(np.argmin(line)), 1)
