"""What must not matter: the units of residuals and variables, their order.

Factors, orders and starts are arguments, so that each solver compiles once for all examples. The
oracle is symmetry itself: two solves of one problem, written differently, must agree.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox

METHODS = ("trf", "dogbox", "lm")
INF = np.inf
M, N = 12, 3
T = np.linspace(0.0, 3.0, M)
Y = 2.0 * np.exp(-1.3 * T) + 0.5 + 0.15 * np.sin(7.0 * np.arange(M) + 0.4)
P0 = np.array([1.0, 1.0, 0.3])
FIRST = np.arange(N), np.arange(M)


def decay(p, t, y):
    return p[0] * jnp.exp(-p[1] * t) + p[2] - y


def disguised(q, c, d, columns, rows, t, y):
    """The decay in units d of its variables and c of its residuals, all of them reordered."""
    p = jnp.zeros_like(q).at[columns].set(q) * d
    return c * decay(p, t, y)[rows]


def solve(method, x_scale=None, boxed=False, c=1.0, d=(1.0,) * N, order=FIRST):
    """Solve the disguised problem, and take the disguise off x."""
    d = np.array(d)
    columns, rows = order
    low, high = np.array([-INF, -INF, 0.7]), np.array([1.6, INF, INF])
    bounds = (low / d)[columns], (high / d)[columns]
    start = np.clip(P0, low, high) if boxed else P0
    res = ox.least_squares(
        disguised, (start / d)[columns], method=method, x_scale=x_scale,
        bounds=bounds if boxed else None, args=(c, d, columns, rows, T, Y),
    )  # fmt: skip
    x = np.empty(N)
    x[columns] = res.x
    return res, x * d


@functools.cache
def plain(method, x_scale, boxed=False):
    return solve(method, x_scale, boxed)


# trf also in a box, where distances to bounds enter, and with either scaling.
SOLVES = [("trf", None, True), ("trf", "jac", False), ("dogbox", None, False), ("lm", None, False)]
orders = st.tuples(st.permutations(range(N)), st.permutations(range(M)))


@pytest.mark.parametrize("method, x_scale, boxed", SOLVES)
@given(power=st.integers(-60, 60))
def test_units_of_the_residuals_exactly(method, x_scale, boxed, power):
    # A power of two scales without rounding: the path is the same, bit for bit.
    res, x = solve(method, x_scale, boxed, c=2.0**power)
    expected, expected_x = plain(method, x_scale, boxed)
    assert_array_equal(x, expected_x)
    assert (res.nfev, res.njev, res.nit) == (expected.nfev, expected.njev, expected.nit)
    assert res.success
    assert_array_equal(res.fun, 2.0**power * np.asarray(expected.fun))


@pytest.mark.parametrize("method, x_scale, boxed", SOLVES)
@given(exponent=st.floats(-8, 8))
def test_units_of_the_residuals(method, x_scale, boxed, exponent):
    res, x = solve(method, x_scale, boxed, c=10.0**exponent)
    assert res.success
    assert_allclose(x, plain(method, x_scale, boxed)[1], rtol=1e-7)


@pytest.mark.parametrize("method", ["trf", "lm"])
@given(powers=st.tuples(*[st.integers(-30, 30)] * N))
def test_units_of_the_variables_exactly(method, powers):
    # Not dogbox: its Cauchy step goes down the gradient, whose direction depends on the units.
    res, x = solve(method, "jac", d=2.0 ** np.array(powers))
    expected, expected_x = plain(method, "jac")
    assert (res.nfev, res.njev, res.nit) == (expected.nfev, expected.njev, expected.nit)
    assert_array_equal(x, expected_x)


@pytest.mark.parametrize("method", METHODS)
@given(exponents=st.tuples(*[st.floats(-8, 8)] * N))
def test_units_of_the_variables(method, exponents):
    res, x = solve(method, "jac", d=10.0 ** np.array(exponents))
    assert res.success
    assert_allclose(x, plain(method, "jac")[1], rtol=1e-7)


@pytest.mark.parametrize("method, x_scale, boxed", SOLVES)
@given(order=orders)
def test_order_of_variables_and_residuals(method, x_scale, boxed, order):
    res, x = solve(method, x_scale, boxed, order=tuple(map(np.array, order)))
    assert res.success
    assert_allclose(x, plain(method, x_scale, boxed)[1], rtol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_float32_is_the_same_with_x64_on(method):
    def run():
        args = (T.astype(np.float32), Y.astype(np.float32))
        return ox.least_squares(decay, P0.astype(np.float32), method=method, args=args)

    on = run()
    with jax.enable_x64(False):
        off = run()
    assert on.x.dtype == off.x.dtype == np.float32
    assert_array_equal(on.x, off.x)
    assert (on.nfev, on.nit, on.status) == (off.nfev, off.nit, off.status)
    assert on.success
    assert_allclose(on.x, plain(method, None)[1], rtol=1e-4)
