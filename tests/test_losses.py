"""Robust losses: values and derivatives by SciPy's formulas, in range wherever the cost is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import optx_lite as ox
from optx_lite.problem.losses import check_loss

NAMES = ("huber", "soft_l1", "cauchy", "arctan")
# rho, rho' and rho'' of z in extended precision, from SciPy's documentation.
FORMULAS = {
    "huber": lambda z: (
        np.where(z <= 1, z, 2 * np.sqrt(z) - 1),
        np.where(z <= 1, 1, 1 / np.sqrt(z)),
        np.where(z <= 1, 0, -0.5 / z**1.5),
    ),
    "soft_l1": lambda z: (
        2 * z / (np.sqrt(1 + z) + 1),
        1 / np.sqrt(1 + z),
        -0.5 / (1 + z) ** 1.5,
    ),
    "cauchy": lambda z: (np.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2),
    "arctan": lambda z: (np.arctan(z), 1 / (1 + z**2), -2 * z / (1 + z**2) ** 2),
}


def loss_of(name, margin, f):
    return check_loss(name, margin, jax.ShapeDtypeStruct(f.shape, f.dtype))


def residuals(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=30) * 10.0 ** rng.uniform(-3, 3, 30)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("margin", [1e-2, 1.0, 30.0])
def test_values_and_derivatives(name, margin):
    f = residuals()
    z = np.longdouble(f / margin) ** 2
    rho, first, second = FORMULAS[name](z)
    loss = loss_of(name, margin, f)
    assert_allclose(loss.cost(f), 0.5 * margin**2 * np.sum(rho), rtol=1e-13)
    assert_allclose(loss.slope(f), f * first, rtol=1e-13)
    curvature = np.asarray(first + 2 * second * z, float)
    slopes = jax.jvp(loss.slope, (f,), (np.ones(30),))[1]
    assert_allclose(slopes, curvature, rtol=1e-7, atol=1e-14)
    row, factor = loss.weights(f)
    assert_allclose(np.asarray(row) * np.asarray(factor), np.asarray(first, float), rtol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_by_the_margin(name):
    f = residuals()
    for of in (lambda c: loss_of(name, c, f).cost(f), lambda c: loss_of(name, c, f).slope(f)):
        central = (of(0.3 * (1 + 1e-6)) - of(0.3 * (1 - 1e-6))) / 0.6e-6
        assert_allclose(jax.jacfwd(of)(0.3), central, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype, widest", [(np.float32, 36.0), (np.float64, 300.0)])
def test_in_range_wherever_the_cost_is(name, dtype, widest):
    # In units of the loss the cost is near 1; z = (f / C)^2 itself overflows or vanishes.
    info = np.finfo(dtype)
    for power in (-0.95 * widest, -0.6 * widest, 0.6 * widest, 0.95 * widest):
        f = np.array([1.0, -2.0, 0.5], dtype)
        margin = dtype(10.0**-power)
        loss = loss_of(name, margin, f)
        unit = loss.unit(jnp.asarray(f))
        f_long, c_long, u_long = map(np.longdouble, (f, margin, unit))
        rho = FORMULAS[name]((f_long / c_long) ** 2)[0]
        expected = np.sum(0.5 * (c_long * np.sqrt(rho) / u_long) ** 2)
        assert 0.01 < expected < 100
        assert_allclose(float(loss.cost(f, unit)), float(expected), rtol=30 * info.eps)
        slope = loss.slope(f)
        assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("method", ["trf", "dogbox", "lm"])
@pytest.mark.parametrize("dtype, scale", [(np.float32, 1e-25), (np.float64, 1e-200)])
def test_a_margin_whose_square_is_out_of_range(dtype, scale, method):
    # Residuals and margin in a tiny unit: the same solution as in units of 1.
    t = np.linspace(0, 1, 20, dtype=dtype)
    y = (1 + 2 * t + 0.1 * np.sin(9 * np.arange(20))).astype(dtype)
    y[3] += dtype(5)

    def solve(unit):
        fun = lambda p: unit * (p[0] + p[1] * t - y)
        return ox.least_squares(
            fun, np.zeros(2, dtype), method=method, loss="soft_l1", f_scale=dtype(0.1) * unit
        )

    small, plain = solve(dtype(scale)), solve(dtype(1))
    assert small.success and plain.success
    assert_allclose(small.x, plain.x, rtol=1e-4 if dtype == np.float32 else 1e-8)
