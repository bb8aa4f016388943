"""Linear least squares in a box, against bounded-variable least squares of SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrices import assert_rule, problem
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import lsq_linear

from optx_lite.linalg import evaluate_model, solve_in_box, triangularize


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


@pytest.mark.parametrize("n", [4, 12])
def test_derivative_of_the_step_in_a_box(n):
    a, b, low, high = boxed_problem(n, 3, 10.0)
    low, high = np.maximum(low, -9), np.minimum(high, 9)  # finite, to be moved
    upper, qtf = map(np.asarray, triangularize(a.T, -b))

    def step(r, q, low, high):
        return solve_in_box(jnp.triu(r), q, low, high, jnp.zeros(n))[:2]

    p, _ = step(upper, qtf, low, high)
    assert 0 < np.sum((p > low) & (p < high)) < n, "some are free and some are not"
    assert_rule(step, upper, qtf, low, high)
