"""The step in a trust region, against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrices import DEFICIENT, SIZES, assert_rule, problem, upper_factor
from numpy.testing import assert_allclose

from optx_lite.linalg import CorrectionStep, diagonal, solve_trust_region, triangularize

jit_triangularize = jax.jit(triangularize)
jit_trust_region = jax.jit(solve_trust_region)


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
