"""Matrices for the tests of linear algebra, and the check of a derivative rule."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg as sl
from numpy.testing import assert_allclose

EPS = np.finfo(float).eps
# One size on each side of where the written-out loops give way to LAPACK, and the smallest.
SIZES = [1, 4, 12]


def problem(n, m, seed=0, condition=1.0):
    """A of shape (m, n) with singular values between 1 and 1 / condition, and f."""
    rng = np.random.default_rng([n, m, seed])
    k = min(n, m)
    u = sl.qr(rng.standard_normal((m, k)), mode="economic")[0]
    v = sl.qr(rng.standard_normal((n, k)), mode="economic")[0]
    return u * np.geomspace(1, 1 / condition, k) @ v.T, rng.standard_normal(m)


def upper_factor(n, seed=0):
    """A well-conditioned upper triangular matrix."""
    return np.triu(np.random.default_rng([n, seed]).standard_normal((n, n)), 1) + 3 * np.eye(n)


DEFICIENT = {
    "a zero column": lambda a: np.column_stack([a[:, :1], 0 * a[:, 1:2], a[:, 2:]]),
    "equal columns": lambda a: np.column_stack([a[:, :-1], a[:, 0]]),
    "equal columns, others after them": lambda a: np.column_stack([a[:, :1], a[:, :-1]]),
    "zero columns first": lambda a: a * (np.arange(a.shape[1]) >= a.shape[1] // 2),
    "rank one": lambda a: np.outer(a[:, 0], np.arange(1.0, a.shape[1] + 1)),
    "a sum of columns": lambda a: np.column_stack([a[:, :-1], a[:, 0] + 1e-3 * a[:, 1]]),
    "all zero": lambda a: 0 * a,
    "columns of very different sizes": lambda a: (
        np.column_stack([a[:, :-1], a[:, 0]]) * 10.0 ** np.linspace(-8, 8, a.shape[1])
    ),
}


def assert_rule(function, *primals, seed=0, rtol=1e-5):
    """The jvp along a random direction, and the vjp as its transpose."""
    rng = np.random.default_rng(seed)
    directions = tuple(rng.standard_normal(np.shape(p)) for p in primals)

    @jax.jit
    def along(t):
        return function(*(p + t * d for p, d in zip(primals, directions, strict=True)))

    h = 1e-6
    expected = jax.tree.map(lambda a, b: np.asarray(a - b) / (2 * h), along(h), along(-h))
    _, got = jax.jvp(along, (0.0,), (1.0,))
    jax.tree.map(
        lambda g, e: assert_allclose(g, e, rtol=rtol, atol=rtol * max(np.abs(e).max(), 1e-8)),
        got,
        expected,
    )
    primals_out, pullback = jax.vjp(along, 0.0)
    weights = jax.tree.map(lambda v: rng.standard_normal(v.shape), primals_out)
    total = sum(jax.tree.leaves(jax.tree.map(lambda w, g: jnp.sum(w * g), weights, got)))
    assert_allclose(pullback(weights)[0], total, rtol=1e-9, atol=1e-12)
