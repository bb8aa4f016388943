"""Symmetric systems, against the pseudo-inverse; conjugate gradients; powers of two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg as sl
from matrices import problem
from numpy.testing import assert_allclose, assert_array_equal

from optx_lite.linalg import (
    equilibrate,
    exponent,
    factor_symmetric,
    power_of_two,
    solve_by_products,
)


def solve_symmetric(matrix, b, unit, probe=None):
    return factor_symmetric(matrix, unit, probe).solve(b)


def solve_equilibrated(matrix, b):
    k = -(exponent(jnp.diagonal(matrix)) // 2)
    unit = power_of_two(k, matrix.dtype)
    return unit * solve_symmetric(unit[None, :] * matrix * unit[:, None], unit * b, unit)


jit_symmetric = jax.jit(solve_equilibrated)


SPECTRA = {
    "definite": [1.0, 2.0, 5.0, 9.0],
    "stiff": [1e-9, 1e-3, 1.0, 1e3],
    "indefinite": [-3.0, 1.0, 2.0, 4.0],
    "singular": [0.0, 1.0, 2.0, 4.0],
    "singular and indefinite": [-2.0, 0.0, 0.0, 4.0],
    "negative": [-4.0, -3.0, -2.0, -1.0],
    "zero": [0.0, 0.0, 0.0, 0.0],
}


def symmetric(spectrum, n):
    values = np.tile(spectrum, n // 4)
    q = sl.qr(np.random.default_rng(n).standard_normal((n, n)))[0]
    return q * values @ q.T


@pytest.mark.parametrize("n", [4, 12])
@pytest.mark.parametrize("kind", SPECTRA)
def test_solve_symmetric_is_the_pseudo_inverse(n, kind):
    matrix = symmetric(SPECTRA[kind], n)
    b = np.random.default_rng(0).standard_normal(n)
    expected = np.linalg.pinv(matrix, rcond=1e-13, hermitian=True) @ b
    size = np.abs(expected).max()
    assert_allclose(jit_symmetric(matrix, b), expected, rtol=1e-3, atol=1e-5 * size)
    if kind != "stiff":
        assert_allclose(jit_symmetric(matrix, b), expected, atol=1e-12 * size)


@pytest.mark.parametrize("n", [4, 12])
def test_symmetric_in_float32(n):
    a, f = problem(n, 20)
    matrix = a.T @ a + np.eye(n)
    x = jit_symmetric(matrix.astype(np.float32), f[:n].astype(np.float32))
    assert x.dtype == np.float32
    assert_allclose(x, np.linalg.solve(matrix, f[:n]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [4, 12])
def test_solve_symmetric_of_variables_of_very_different_sizes(n):
    # Scaled rows and columns: a cut relative to the largest eigenvalue would lose the small.
    base = symmetric(SPECTRA["definite"], n)
    d = 10.0 ** np.linspace(-7, 7, n)
    x = np.linspace(1, 2, n)
    matrix = d[:, None] * base * d
    assert_allclose(jit_symmetric(matrix, d * (base @ x)), x / d, rtol=1e-10)


def test_a_singular_lane_does_not_touch_the_others():
    matrices = np.stack([symmetric(SPECTRA[kind], 4) for kind in SPECTRA if kind != "stiff"])
    b = np.arange(1.0, 5.0)
    got = jax.jit(jax.vmap(solve_equilibrated, in_axes=(0, None)))(matrices, b)
    for x, matrix in zip(got, matrices, strict=True):
        assert_allclose(x, np.linalg.pinv(matrix, rcond=1e-13) @ b, atol=1e-12)


def test_solve_symmetric_of_nan_is_nan():
    # No number that looks like a derivative may come of it.
    assert np.isnan(jit_symmetric(np.full((4, 4), np.nan), np.ones(4))).all()


def test_minimum_norm_is_that_of_the_users_units():
    # x0 + x1 = 1 with x1 counted in thousandths: (1/2, 1/2) all the same.
    unit = jnp.array([1.0, 2.0**-10])
    matrix = unit[None, :] * jnp.ones((2, 2)) * unit[:, None]
    k = -(exponent(jnp.diagonal(matrix)) // 2)
    more = power_of_two(k, matrix.dtype)
    y = jax.jit(solve_symmetric)(more[None, :] * matrix * more[:, None], more * unit, unit * more)
    assert_allclose(unit * more * y, [0.5, 0.5], rtol=1e-12)


@pytest.mark.parametrize("probe, exists", [([1.0, 1.0], True), ([1.0, 1.001], False)])
def test_a_system_without_solution_is_nan(probe, exists):
    unit, ones = jnp.ones(2), jnp.ones((2, 2))
    solve = jax.jit(lambda b: solve_symmetric(ones, b, unit, lambda: jnp.array(probe)))
    assert np.isfinite(solve(jnp.array([1.0, 0.0]))).all() == exists


def test_powers_of_two_are_exact():
    values = np.array([1.0, 1.5, -2.0, 3e-300, 1e300, 0.0])
    k = np.array([0, 0, 1, *np.floor(np.log2([3e-300, 1e300])), 0])
    assert_array_equal(exponent(values), k)
    assert_array_equal(power_of_two(exponent(values), values.dtype), 2.0**k)


@pytest.mark.parametrize("dtype, rtol", [(np.float32, 1e-2), (np.float64, 1e-7)])
@pytest.mark.parametrize("n", [5, 60])
def test_solve_by_products(n, dtype, rtol):
    @jax.jit
    def solve(matrix, b):
        unit = equilibrate(lambda v: matrix @ v, jnp.ones(n, dtype))
        return unit * solve_by_products(lambda v: unit * (matrix @ (unit * v)), unit * b)

    rng = np.random.default_rng(n)
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    for spread in (1.0, 1e4, 1e8):  # of the variables' units: H has the square of its condition
        size = np.geomspace(1, spread, n)
        matrix = size * (q * np.geomspace(1, 100, n) @ q.T) * size[:, None]
        x = rng.standard_normal(n) / size
        got = np.asarray(solve(matrix.astype(dtype), (matrix @ x).astype(dtype)))
        assert_allclose(got * size, x * size, rtol=rtol, atol=rtol)
    # Singular: a solution if there is one, else NaN.
    flat = (q[:, 1:] @ q[:, 1:].T).astype(dtype)
    b = flat @ rng.standard_normal(n).astype(dtype)
    assert_allclose(flat @ np.asarray(solve(flat, b)), b, atol=rtol)
    assert np.isnan(solve(flat, q[:, 0].astype(dtype))).all()
    # Far beyond what products in this precision can tell.
    hopeless = (q * np.geomspace(1, 1e15, n) @ q.T).astype(dtype)
    assert np.isnan(solve(hopeless, q.sum(axis=1).astype(dtype))).all()
