"""The dense factorisations, against NumPy's SVD, QR and least squares, and brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg as sl
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import lsq_linear

from optx_lite.linalg import (
    CorrectionStep,
    diagonal,
    equilibrate,
    evaluate_model,
    exponent,
    norm,
    power_of_two,
    safe_divide,
    safe_sqrt,
    solve_by_products,
    solve_in_box,
    solve_symmetric,
    solve_transposed,
    solve_trust_region,
    solve_upper,
    triangularize,
)

EPS = np.finfo(float).eps
# One size on each side of where the written-out loops give way to LAPACK, and the smallest.
SIZES = [1, 4, 12]

jit_triangularize = jax.jit(triangularize)
jit_trust_region = jax.jit(solve_trust_region)


def solve_equilibrated(matrix, b):
    k = -(exponent(jnp.diagonal(matrix)) // 2)
    unit = power_of_two(k, matrix.dtype)
    return unit * solve_symmetric(unit[None, :] * matrix * unit[:, None], unit * b, unit)


jit_symmetric = jax.jit(solve_equilibrated)


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


# ---------------------------------------------------------------------------------------
# Triangular factors


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
    matrix, b = (a.T @ a + np.eye(n)).astype(np.float32), f[:n].astype(np.float32)
    x = jit_symmetric(matrix, b)
    assert x.dtype == np.float32
    assert_allclose(x, np.linalg.solve(a.T @ a + np.eye(n), f[:n]), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------
# The step in a trust region


def correction(qtf, alpha=0.0, longest=np.inf, wanted=True):
    return CorrectionStep(
        jnp.asarray(wanted), jnp.asarray(qtf), jnp.asarray(alpha), jnp.asarray(longest)
    )


def region(upper, qtf, diag, radius, guess=0.0, first=None):
    singular = jnp.any(diagonal(upper) == 0)
    newton = None
    if diag is None and not singular:
        newton = -np.linalg.solve(upper, qtf)
    return jit_trust_region(
        upper,
        qtf,
        diag,
        newton,
        singular,
        jnp.asarray(radius),
        jnp.asarray(guess),
        first or correction(qtf, wanted=False),
    )


def brute_force(upper, qtf, diag, radius):
    """The minimiser in the ball: bisection for alpha on the eigenvalues, from the textbook."""
    hessian = upper.T @ upper + (0 if diag is None else np.diag(diag))
    values, vectors = np.linalg.eigh(hessian)
    slope = vectors.T @ (upper.T @ qtf)
    values = np.where(values > 1e-12 * values.max(), values, 0)
    slope = np.where(values > 0, slope, 0)  # R^T q has no part in the null space of R^T R
    parts = lambda alpha: -slope / np.where(values + alpha > 0, values + alpha, 1)
    if np.linalg.norm(parts(0.0)) <= radius:
        return vectors @ parts(0.0)
    low, high = 0.0, np.linalg.norm(slope) / radius
    for _ in range(200):
        middle = 0.5 * (low + high)
        longer = np.linalg.norm(parts(middle)) > radius
        low, high = (middle, high) if longer else (low, middle)
    return vectors @ parts(high)


def model(upper, qtf, diag, step):
    moved = upper @ step + qtf
    return 0.5 * moved @ moved + (0 if diag is None else 0.5 * step @ (diag * step))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("with_diag", [False, True], ids=["plain", "coleman-li"])
def test_trust_region_step(n, with_diag):
    rng = np.random.default_rng(n)
    for condition in (1.0, 1e2, 1e4):
        a, f = problem(n, 30, condition=condition)
        upper, qtf = map(np.asarray, jit_triangularize(a.T, f))
        diag = rng.uniform(0, 1, n) * (np.arange(n) % 2) if with_diag else None
        full = np.linalg.norm(brute_force(upper, qtf, diag, np.inf))
        for radius in full * np.array([1e-6, 1e-2, 0.5, 0.999, 1.001, 1e3]):
            answer = region(upper, qtf, diag, radius)
            step, alpha, limited = answer.step, answer.alpha, answer.limited
            assert not answer.corrected
            expected = brute_force(upper, qtf, diag, radius)
            assert bool(limited) == (radius < full)
            assert (float(alpha) > 0) == bool(limited)
            assert np.linalg.norm(step) <= radius * (1 + 1e-12)
            if limited:
                assert_allclose(np.linalg.norm(step), radius, rtol=1e-12)
            # alpha is found to 1e-4, which costs the model the square of that.
            best, none = (model(upper, qtf, diag, s) for s in (expected, 0 * expected))
            assert model(upper, qtf, diag, np.asarray(step)) - best <= 1e-6 * (none - best)


@pytest.mark.parametrize("n", [4, 12])
@pytest.mark.parametrize("kind", ["equal columns", "a zero column"])
def test_trust_region_step_of_a_singular_matrix_is_the_shortest(n, kind):
    a, f = problem(n, 20)
    a = DEFICIENT[kind](a)
    upper, qtf = map(np.asarray, jit_triangularize(a.T, f))
    shortest = np.linalg.pinv(a) @ -f
    size = np.linalg.norm(shortest)
    for radius in size * np.array([0.1, 0.5, 2.0]):
        answer = region(upper, qtf, None, radius)
        assert bool(answer.limited) == (radius < size)
        expected = brute_force(upper, qtf, None, radius)
        assert_allclose(answer.step, expected, atol=1e-2 * radius)


def test_trust_region_step_does_not_depend_on_the_first_guess():
    a, f = problem(4, 30, condition=1e3)
    upper, qtf = jit_triangularize(a.T, f)
    guesses = (0.0, 1e-8, 1e-2, 1.0, 1e6)
    steps = [region(upper, qtf, None, 0.3, guess).step for guess in guesses]
    for step in steps[1:]:
        assert_allclose(step, steps[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n", [4, 12])
@pytest.mark.parametrize("with_diag", [False, True], ids=["plain", "coleman-li"])
def test_a_correction_is_taken_if_it_is_short(n, with_diag):
    rng = np.random.default_rng(n)
    upper = upper_factor(n)
    qtf, other = rng.standard_normal((2, n))
    diag = rng.uniform(0, 1, n) if with_diag else None
    alpha = 0.3
    matrix = upper.T @ upper + alpha * np.eye(n) + (np.diag(diag) if with_diag else 0)
    expected = -np.linalg.solve(matrix, upper.T @ other)
    length = np.linalg.norm(expected)
    for radius in (1e-2, 1e3):
        taken = region(upper, qtf, diag, radius, first=correction(other, alpha, 1.01 * length))
        assert taken.corrected and not taken.limited
        assert_allclose(taken.step, expected, rtol=1e-10)
        refused = region(upper, qtf, diag, radius, first=correction(other, alpha, 0.99 * length))
        plain = region(upper, qtf, diag, radius)
        assert not refused.corrected and refused.limited == plain.limited
        assert_allclose(refused.step, plain.step, rtol=1e-3, atol=1e-3 * radius)


# ---------------------------------------------------------------------------------------
# Least squares in a box


def boxed_problem(n, seed, condition):
    """A, b, and a box around 0 whose sides are partly infinite."""
    rng = np.random.default_rng(seed)
    a, b = problem(n, n + 6, seed, condition)
    high = np.where(rng.random(n) < 0.5, np.inf, rng.random(n))
    low = np.where(rng.random(n) < 0.2, -np.inf, -rng.random(n))
    return a, b, low, high


@jax.jit
def jit_in_box(a, b, low, high, start):
    upper, qtf = triangularize(a.T, -b)
    return solve_in_box(upper, qtf, low, high, start), upper, qtf


@pytest.mark.parametrize("n", [4, 12, 40])
@pytest.mark.parametrize("condition", [1e1, 1e4, 1e8])
def test_least_squares_in_a_box(n, condition):
    for seed in range(20):
        a, b, low, high = boxed_problem(n, seed, condition)
        low[0] = high[0] = 0.0
        free = slice(1, None)  # SciPy refuses a fixed variable; where it is 0 it may be left out
        expected = lsq_linear(
            a[:, free], b, (low[free], high[free]), method="bvls", tol=1e-14, max_iter=10 * n
        )
        for start in (np.zeros(n), np.clip(np.ones(n), low, high)):
            (p, factor, found), upper, qtf = jit_in_box(a, b, low, high, start)
            assert found
            assert np.all((p >= low) & (p <= high))
            cost = 0.5 * np.sum((a @ p - b) ** 2)
            assert_allclose(cost, expected.cost, rtol=1e-9)
            assert_allclose(0.5 * b @ b - evaluate_model(upper, qtf, p), cost, rtol=1e-9)
            inside = np.asarray((p > low) & (p < high))
            gram = np.where(inside[:, None] & inside, a.T @ a, 0)
            assert_allclose(factor.T @ factor, gram, atol=1e-12)


def test_in_a_box_dependent_variables_stay():
    a, b = problem(3, 9)
    a = np.concatenate([a, a[:, :1], np.zeros((9, 1))], axis=1)
    (p, _, found), *_ = jit_in_box(a, b, np.full(5, -9.0), np.full(5, 9.0), np.zeros(5))
    assert found
    assert_allclose(a @ p, a @ np.linalg.lstsq(a, b, rcond=None)[0], rtol=1e-12)
    assert_array_equal(p[3:], 0)


def test_in_a_box_lanes_go_together_and_float32_stays():
    problems = [boxed_problem(6, seed, 1e2) for seed in range(8)]
    a, b, low, high = (np.stack(each) for each in zip(*problems, strict=True))
    zeros = np.zeros((8, 6))
    (together, *_), *_ = jax.vmap(jit_in_box)(a, b, low, high, zeros)
    for lane, each in enumerate(problems):
        (alone, *_), *_ = jit_in_box(*each, zeros[0])
        assert_allclose(together[lane], alone, rtol=1e-10, atol=1e-12)
    single = [np.float32(v) for v in (a[0], b[0], low[0], high[0], zeros[0])]
    (p, _, found), *_ = jit_in_box(*single)
    assert found and p.dtype == np.float32
    assert_allclose(p, together[0], rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------------------------
# Symmetric systems

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


# ---------------------------------------------------------------------------------------
# Derivative rules, against central differences


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


@pytest.mark.parametrize("n", [4, 12])
def test_derivative_of_triangularize(n):
    a, f = problem(n, 20, condition=10.0)
    assert_rule(triangularize, a.T, f)


@pytest.mark.parametrize("n", [4, 12])
def test_derivatives_of_the_triangular_solves(n):
    upper, b = upper_factor(n), np.arange(1.0, n + 1)
    assert_rule(lambda r, b: solve_upper(jnp.triu(r), b), upper, b)
    assert_rule(lambda r, b: solve_transposed(jnp.triu(r), b), upper, b)


@pytest.mark.parametrize("n", [4, 12])
def test_derivative_of_the_step_in_a_box(n):
    a, b, low, high = boxed_problem(n, 3, 10.0)
    low, high = np.maximum(low, -9), np.minimum(high, 9)  # finite, to be moved
    upper, qtf = map(np.asarray, jit_triangularize(a.T, -b))

    def step(r, q, low, high):
        return solve_in_box(jnp.triu(r), q, low, high, jnp.zeros(n))[:2]

    p, _ = step(upper, qtf, low, high)
    assert 0 < np.sum((p > low) & (p < high)) < n, "some are free and some are not"
    assert_rule(step, upper, qtf, low, high)


@pytest.mark.parametrize("n", [4, 12])
@pytest.mark.parametrize("fraction", [0.3, 3.0], ids=["limited", "inside"])
def test_derivative_of_the_trust_region_step(n, fraction):
    a, f = problem(n, 20, condition=10.0)
    upper, qtf = map(np.asarray, jit_triangularize(a.T, f))
    diag = np.linspace(0.1, 1, n)
    radius = fraction * np.linalg.norm(brute_force(upper, qtf, diag, np.inf))

    def step(r, q, d, radius):
        no, zero = jnp.zeros((), bool), jnp.zeros(())
        return solve_trust_region(
            jnp.triu(r), q, d, None, no, radius, zero, correction(q, wanted=False)
        ).step

    # alpha is converged to 1e-4 only, and that is the accuracy of the rule too.
    rtol = 2e-3 if fraction < 1 else 1e-5
    rng = np.random.default_rng(n)
    directions = [0.1 * rng.standard_normal(np.shape(v)) for v in (upper, qtf, diag, radius)]
    primals = (upper, qtf, diag, radius)
    moved = lambda t: [p + t * d for p, d in zip(primals, directions, strict=True)]
    _, got = jax.jvp(lambda t: step(*moved(t)), (0.0,), (1.0,))
    # Exact steps for the differences.
    exact = lambda t: brute_force(np.triu(moved(t)[0]), *moved(t)[1:])
    expected = (exact(1e-6) - exact(-1e-6)) / 2e-6
    assert_allclose(got, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize("n", [4, 12])
def test_derivative_of_a_correction(n):
    upper, rng = upper_factor(n), np.random.default_rng(n)
    no, zero, one = jnp.zeros((), bool), jnp.zeros(()), jnp.ones(())

    def step(r, q, d):
        return solve_trust_region(
            jnp.triu(r), jnp.zeros(n), d, None, no, one, zero, correction(q)
        ).step  # fmt: skip

    assert_rule(step, upper, rng.standard_normal(n), np.linspace(0.5, 2, n))


def test_norms_and_quotients_at_zero():
    zeros, zero, two, four = jnp.zeros(3), jnp.array(0.0), jnp.array(2.0), jnp.array(4.0)
    assert norm(zeros) == 0
    assert_array_equal(jax.grad(norm)(zeros), 0)
    assert_array_equal(jax.jacrev(jax.grad(norm))(zeros), 0)
    assert jax.grad(safe_sqrt)(zero) == 0
    assert safe_divide(two, zero) == 0
    assert jax.grad(safe_divide, argnums=(0, 1))(two, zero) == (0, 0)
    v = jnp.array([3.0, 4.0])
    assert_allclose(norm(v), 5.0)
    assert_allclose(jax.grad(norm)(v), v / 5.0)
    assert_allclose(jax.grad(safe_divide, argnums=(0, 1))(two, four), (0.25, -0.125))
    second = jax.hessian(functools.partial(safe_divide, two))(four)
    assert_allclose(second, 2 * 2.0 / 4.0**3)
