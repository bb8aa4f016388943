"""Piecewise Chebyshev series in JAX: values, and the linear maps on coefficients."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ..jax_support.types import Number
from .points import differentiation, from_values, integration, points


def apply(matrix: np.ndarray, coefficients: Array) -> Array:
    """A constant matrix times the last axis, to the dtype's precision on every device."""
    constant = jnp.asarray(matrix, coefficients.dtype)
    return jnp.einsum("jk,...k->...j", constant, coefficients, precision=lax.Precision.HIGHEST)


def clenshaw(coefficients: Array, t: Array) -> Array:
    """sum_k c_k T_k(t) by Clenshaw's recurrence; c (..., n + 1), t (...)."""

    def step(carry: tuple[Array, Array], c: Array) -> tuple[tuple[Array, Array], None]:
        b1, b2 = carry
        return (c + 2 * t * b1 - b2, b1), None

    zero = t * 0 + coefficients[..., 0] * 0
    by_order = jnp.moveaxis(coefficients[..., 1:], -1, 0)
    (b1, b2), _ = lax.scan(step, (zero, zero), by_order, reverse=True)
    return coefficients[..., 0] + t * b1 - b2


def locate(breaks: Array, x: Array) -> tuple[Array, Array]:
    """The piece in which x lies, and t in [-1, 1] there; NaN outside of all."""
    last = breaks.shape[0] - 2
    piece = jnp.clip(jnp.searchsorted(breaks, x, side="right") - 1, 0, last)
    left, right = breaks[piece], breaks[piece + 1]
    width = right - left
    t = ((x - left) - (right - x)) / jnp.where(width > 0, width, 1)
    return piece, jnp.where((x >= breaks[0]) & (x <= breaks[-1]), t, jnp.nan)


def value(breaks: Array, coefficients: Array, x: Array) -> Array:
    """The piecewise series at x, of any shape."""
    piece, t = locate(breaks, x)

    def step(carry: tuple[Array, Array], column: Array) -> tuple[tuple[Array, Array], None]:
        b1, b2 = carry
        return (column[piece] + 2 * t * b1 - b2, b1), None

    zero = jnp.zeros_like(t)
    (b1, b2), _ = lax.scan(step, (zero, zero), coefficients[:, 1:].T, reverse=True)
    return coefficients[piece, 0] + t * b1 - b2


def derivative(breaks: Array, coefficients: Array) -> Array:
    """Coefficients of the derivative by x; one fewer of them, down to one."""
    slopes = apply(differentiation(coefficients.shape[1] - 1), coefficients)
    return slopes[:, : max(1, slopes.shape[1] - 1)] / (jnp.diff(breaks) / 2)[:, None]


def antiderivative(breaks: Array, coefficients: Array) -> Array:
    """Coefficients of the integral from the left end."""
    half = jnp.diff(breaks)[:, None] / 2
    integrals = apply(integration(coefficients.shape[1] - 1), coefficients) * half
    over_pieces = jnp.sum(integrals, axis=1)  # T_k(1) = 1
    before = jnp.concatenate([jnp.zeros_like(over_pieces[:1]), jnp.cumsum(over_pieces)[:-1]])
    return integrals.at[:, 0].add(before)


def sample_points(a: Array, b: Array, degree: int, pieces: int) -> tuple[Array, Array]:
    """The breaks of equal pieces, (p + 1,), and their Chebyshev points, (p, n + 1)."""
    share = jnp.arange(pieces + 1, dtype=a.dtype) / pieces
    breaks = jnp.where(share < 1, a + share * (b - a), b)
    t = jnp.asarray(points(degree), a.dtype)[None]
    left, right = breaks[:-1, None], breaks[1:, None]
    half = (right - left) / 2
    return breaks, jnp.where(t < 0, left + (t + 1) * half, right - (1 - t) * half)


def interpolate(values: Array) -> tuple[Array, Array]:
    """Coefficients from values at the points, and an estimate of each piece's error.

    Which is the size of the last coefficients, beside which rounding counts; values must be finite.
    """
    degree = values.shape[-1] - 1
    coefficients = apply(from_values(degree), values)
    tail = jnp.sum(jnp.abs(coefficients[:, -max(2, degree // 8) :]), axis=1)
    eps: Number = float(jnp.finfo(values.dtype).eps)
    return coefficients, 2 * tail + 4 * eps * jnp.max(jnp.abs(values))
