r"""Chebyshev points of the second kind, and matrices that act on coefficients.

On [-1, 1] a polynomial of degree n is p(t) = sum_k c_k T_k(t). Its values at t_j = -cos(pi j / n)
give the coefficients by a discrete cosine transform, here a matrix: degrees are low (a function of
high degree is cut into pieces), and a product of matrices is what batches and accelerators do best.

References: Trefethen, *Approximation Theory and Approximation Practice* (2013), chapters 2 to 4.
"""

from __future__ import annotations

import functools as ft

import numpy as np


def points(n: int) -> np.ndarray:
    """The n + 1 points, rising from -1 to 1; by the sine, so that they are symmetric."""
    return np.sin(np.pi * np.arange(-n, n + 1, 2) / (2 * n))


@ft.cache
def from_values(n: int) -> np.ndarray:
    """The matrix from values at the points to coefficients, (n + 1, n + 1)."""
    j = np.arange(n + 1)
    matrix = 2 / n * np.cos(np.pi * np.outer(j, n - j) / n)
    matrix[:, [0, n]] /= 2
    matrix[[0, n]] /= 2
    return matrix


def basis(t: np.ndarray, n: int) -> np.ndarray:
    """T_0 to T_n at points of [-1, 1], (..., n + 1)."""
    return np.cos(np.arange(n + 1) * np.arccos(np.clip(t, -1, 1))[..., None])


@ft.cache
def differentiation(n: int) -> np.ndarray:
    """The matrix from coefficients to those of dp/dt, (n + 1, n + 1), the last row 0."""
    row, column = np.indices((n + 1, n + 1))
    matrix = np.where((column > row) & ((column - row) % 2 == 1), 2.0 * column, 0.0)
    matrix[0] /= 2
    return matrix


@ft.cache
def integration(n: int) -> np.ndarray:
    """The matrix from coefficients to those of the integral from -1, (n + 2, n + 1)."""
    matrix = np.zeros((n + 2, n + 1))
    for k in range(n + 1):
        # int T_k = (T_{k+1} / (k + 1) - T_{k-1} / (k - 1)) / 2, and T_2 / 4 for k = 1
        matrix[k + 1, k] += 1.0 if k == 0 else 0.5 / (k + 1)
        if k > 1:
            matrix[k - 1, k] -= 0.5 / (k - 1)
    signs = (-1.0) ** np.arange(n + 2)
    matrix[0] -= signs @ matrix
    return matrix


@ft.cache
def halving(n: int) -> np.ndarray:
    """The matrices from coefficients to those on the left and on the right half, (2, n+1, n+1)."""
    t = points(n)
    return np.stack([from_values(n) @ basis((t + side) / 2, n) for side in (-1, 1)])
