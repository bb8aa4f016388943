"""Triangular factors and solves, against NumPy's QR and least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrices import DEFICIENT, EPS, SIZES, assert_rule, problem, upper_factor
from numpy.testing import assert_allclose, assert_array_equal

from optx_lite.linalg import diagonal, solve_transposed, solve_upper, triangularize

jit_triangularize = jax.jit(triangularize)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("m", [15, 100])
@pytest.mark.parametrize("condition", [1.0, 1e5, 1e10])
def test_triangularize_is_qr(n, m, condition):
    a, f = problem(n, m, condition=condition)
    upper, qtf = map(np.asarray, jit_triangularize(a.T, f))
    q, r = np.linalg.qr(a)
    signs = np.sign(np.diag(r)) * np.sign(np.diag(upper))
    # The rows for small singular values are determined only to the condition number.
    assert_allclose(signs[:, None] * upper, r, atol=100 * EPS * condition)
    assert_allclose(signs * qtf, q.T @ f, atol=1e3 * EPS * condition)
    assert_array_equal(upper, np.triu(upper))
    # But the factorisation is stable: A^T A and A^T f come back to rounding.
    assert_allclose(upper.T @ upper, a.T @ a, atol=100 * EPS)
    assert_allclose(upper.T @ qtf, a.T @ f, atol=100 * EPS * np.linalg.norm(f))


@pytest.mark.parametrize("n", [4, 12])
def test_triangularize_keeps_the_digits_of_a_least_squares_solution(n):
    # Consistent: the error is to be proportional to the condition number and not, as with the
    # normal equations, to its square.
    condition = 1e9
    a, _ = problem(n, 40, condition=condition)
    x = np.linspace(1.0, 2.0, n)
    got = solve_upper(*jit_triangularize(a.T, a @ x))
    assert_allclose(got, x, atol=100 * EPS * condition)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("scale", [1e-150, 1e140])
def test_triangularize_of_very_small_and_large_numbers(n, scale):
    a, f = problem(n, 20)
    upper, qtf = jit_triangularize((scale * a).T, f)
    q, r = np.linalg.qr(a)
    assert_allclose(np.abs(upper), scale * np.abs(r), rtol=1e-9, atol=1e-13 * scale)
    assert_allclose(np.abs(qtf), np.abs(q.T @ f), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("n", [4, 12])
@pytest.mark.parametrize("kind", DEFICIENT)
def test_triangularize_of_dependent_columns(n, kind):
    a, f = problem(n, 20)
    a = DEFICIENT[kind](a)
    upper, qtf = map(np.asarray, jit_triangularize(a.T, f))
    sizes = np.linalg.norm(a, axis=0) + (np.abs(a).sum(axis=0) == 0)
    unit = a / sizes
    rank = np.linalg.matrix_rank(unit, tol=1e-10)
    seen = np.diag(upper) != 0
    assert seen.sum() == rank
    assert_array_equal(upper[~seen], 0)
    assert_array_equal(qtf[~seen], 0)
    assert_allclose((upper.T @ upper) / np.outer(sizes, sizes), unit.T @ unit, atol=1e-13)
    # Solved with the unseen ones left at 0, the residual is the least there is.
    x = np.asarray(solve_upper(upper, qtf))
    assert_array_equal(x[~seen], 0)
    best = np.linalg.lstsq(unit, f, rcond=1e-10)[0]
    assert_allclose(a @ x, unit @ best, atol=1e-10)


@pytest.mark.parametrize("n, m", [(2, 1), (5, 3), (12, 7)])
def test_triangularize_with_fewer_rows_than_columns(n, m):
    a, f = problem(n, m)
    upper, qtf = map(np.asarray, jit_triangularize(a.T, f))
    assert upper.shape == (n, n)
    assert_allclose(upper.T @ upper, a.T @ a, atol=1e-13)
    assert_allclose(upper.T @ qtf, a.T @ f, atol=1e-13)
    assert_allclose(a @ np.asarray(solve_upper(upper, qtf)), f, atol=1e-11)


@pytest.mark.parametrize("n", SIZES)
def test_triangular_solves(n):
    upper = upper_factor(n)
    b = np.arange(1.0, n + 1)
    assert_allclose(solve_upper(upper, b), np.linalg.solve(upper, b), rtol=1e-12)
    assert_allclose(solve_transposed(upper, b), np.linalg.solve(upper.T, b), rtol=1e-12)
    assert_array_equal(diagonal(upper), np.diag(upper))
    # An unseen variable stays where it is, and the others do not feel it.
    unseen = n // 2
    upper[unseen] = 0
    keep = np.arange(n) != unseen
    x = np.asarray(solve_upper(upper, b))
    assert x[unseen] == 0
    if n > 1:
        kept = np.linalg.solve(upper[np.ix_(keep, keep)], b[keep])
        assert_allclose(x[keep], kept, rtol=1e-12)


@pytest.mark.parametrize("n", [4, 12])
def test_a_batch_goes_through_together(n):
    pairs = [problem(n, 20, seed=i, condition=10.0 ** (3 * i)) for i in range(4)]
    a, f = map(np.stack, zip(*pairs, strict=True))
    upper, qtf = jax.jit(jax.vmap(triangularize))(np.swapaxes(a, 1, 2), f)
    for i in range(4):
        assert_allclose(upper[i].T @ upper[i], a[i].T @ a[i], atol=1e-13)
        assert_allclose(upper[i].T @ qtf[i], a[i].T @ f[i], atol=1e-13)


@pytest.mark.parametrize("n", [4, 12])
def test_float32_stays_float32(n):
    a, f = problem(n, 20)
    upper, qtf = jit_triangularize(a.T.astype(np.float32), f.astype(np.float32))
    assert upper.dtype == qtf.dtype == np.float32
    assert_allclose(upper.T @ upper, a.T @ a, atol=1e-5)


@pytest.mark.parametrize("n", [4, 12])
def test_derivative_of_triangularize(n):
    a, f = problem(n, 20, condition=10.0)
    assert_rule(triangularize, a.T, f)


@pytest.mark.parametrize("n", [4, 12])
def test_derivatives_of_the_triangular_solves(n):
    upper, b = upper_factor(n), np.arange(1.0, n + 1)
    assert_rule(lambda r, b: solve_upper(jnp.triu(r), b), upper, b)
    assert_rule(lambda r, b: solve_transposed(jnp.triu(r), b), upper, b)
