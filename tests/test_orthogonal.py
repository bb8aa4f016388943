"""Errors in x, by oracle: SciPy on all n + m unknowns at once, closed forms, differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox
from optx_lite.functions import lift
from optx_lite.statistics.curve import Data, Model, residuals
from optx_lite.statistics.orthogonal import Points, check_pointwise, foot

M = 25
TRUE = np.array([3.0, 1.2, 0.5])
START = [2.0, 1.0, 0.0]


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def line(x, a, b):
    return a * x + b


def data(seed):
    """x, y and their errors, which differ tenfold between data; one x is exact."""
    rng = np.random.default_rng(seed)
    sigma_x, sigma = rng.uniform(0.02, 0.2, M), rng.uniform(0.02, 0.2, M)
    sigma_x[3] = 0
    x = np.linspace(0, 4, M) + sigma_x * rng.normal(size=M)
    y = np.asarray(decay(np.linspace(0, 4, M), *TRUE)) + sigma * rng.normal(size=M)
    return x, y, sigma, sigma_x


SETS = [np.stack(each) for each in zip(*map(data, range(40)), strict=True)]


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, None))
def fits(x, y, sigma, sigma_x, mask):
    return ox.curve_fit(decay, x, y, START, sigma=sigma, sigma_x=sigma_x, mask=mask)


@pytest.fixture(scope="module")
def fitted():
    # Two data more, which are not there.
    padded = [np.pad(a, [(0, 0), (0, 2)], constant_values=np.nan) for a in SETS]
    padded[1][:, -1] = 1.0
    return fits(*padded, np.arange(M + 2) < M)


def by_all_unknowns(f, p0, x, y, sigma, sigma_x):
    """Parameters, covariance, cost and errors of x from the dense problem of n + k m unknowns."""
    n, moving = len(p0), np.broadcast_to(sigma_x, x.shape) > 0

    def residuals(z):
        delta = np.zeros(x.shape)
        delta[moving] = z[n:] * np.broadcast_to(sigma_x, x.shape)[moving]
        return np.append((f(x + delta, *z[:n]) - y) / sigma, z[n:])

    start = np.append(p0, np.zeros(moving.sum()))
    res = scipy.optimize.least_squares(
        residuals, start, jac="3-point", method="lm", xtol=1e-14, ftol=1e-14, gtol=1e-14
    )
    cov = np.linalg.inv(res.jac.T @ res.jac)[:n, :n] * 2 * res.cost / (len(y) - n)
    delta = np.zeros(x.shape)
    delta[moving] = res.x[n:] * np.broadcast_to(sigma_x, x.shape)[moving]
    return res.x[:n], cov, res.cost, delta


def numpy_decay(x, a, b, c):
    return a * np.exp(-b * x) + c


@pytest.mark.parametrize("lane", range(0, 40, 4))
def test_as_with_all_unknowns(fitted, lane):
    given = [array[lane] for array in SETS]
    popt, pcov, cost, delta = by_all_unknowns(numpy_decay, START, *given)
    one = jax.tree.map(lambda leaf: leaf[lane], fitted)
    assert_allclose(one.popt, popt, rtol=1e-6)
    assert_allclose(one.pcov, pcov, rtol=1e-5)
    assert_allclose(one.result.cost, cost, rtol=1e-10)
    assert_allclose(one.delta[:M], delta, atol=1e-6)
    assert_array_equal(one.delta[np.array([3, M, M + 1])], 0)


def test_every_lane_succeeds(fitted):
    assert fitted.result.success.all()


def test_two_columns_of_x_and_a_jacobian():
    rng = np.random.default_rng(3)
    sigma_x = np.array([[0.1], [0.05]])
    x = rng.uniform(0.5, 2.0, (2, M))
    g = lambda x, a, b: a * x[0] ** 2 * np.exp(b * x[1])
    y = g(x, 2.0, 0.5) + 0.1 * rng.normal(size=M)
    x = x + sigma_x * rng.normal(size=(2, M))
    f = lambda x, a, b: a * x[0] ** 2 * jnp.exp(b * x[1])
    jac = lambda x, a, b: jnp.stack([f(x, 1, b), x[1] * f(x, a, b)], axis=1)
    fit = ox.curve_fit(f, x, y, sigma=0.1, sigma_x=sigma_x, jac=jac)
    popt, pcov, _, delta = by_all_unknowns(g, [1.0, 1.0], x, y, 0.1, sigma_x)
    assert_allclose(fit.popt, popt, rtol=1e-6)
    assert_allclose(fit.pcov, pcov, rtol=1e-5)
    assert_allclose(fit.delta, delta, atol=1e-6)


X, Y, SIGMA, SIGMA_X = data(7)


@jax.jit
def fit_in_box(x, y, sigma, sigma_x, ceiling):
    box = (jnp.zeros(3), jnp.array([9.0, 9.0, 1.0]).at[2].set(ceiling))
    return ox.curve_fit(
        decay, x, y, START, sigma=sigma, sigma_x=sigma_x, bounds=box, xtol=1e-13, ftol=1e-13,
        gtol=1e-13,
    )[:2]  # fmt: skip


@pytest.mark.parametrize("ceiling", [1.0, 0.4])  # the latter is active
def test_derivatives_by_differences(ceiling):
    given = (X, Y, SIGMA, SIGMA_X, np.asarray(ceiling))
    assert (fit_in_box(*given)[0][2] == ceiling) == (ceiling == 0.4)
    jacobians = _derivatives(*given)
    for k, i in ((0, 4), (1, 4), (2, 9), (3, 9), (4, ())):
        change = np.zeros(np.shape(given[k]))
        change[i] = h = 3e-4
        there = [
            fit_in_box(*(v + s * change if j == k else v for j, v in enumerate(given)))
            for s in (-2, -1, 1, 2)
        ]
        for at, (a, b, c, d) in enumerate(zip(*there, strict=True)):
            slope = (8 * (np.asarray(c) - b) - (np.asarray(d) - a)) / (12 * h)
            column = jacobians[at][k] if i == () else jacobians[at][k][..., i]
            size = np.abs(slope).max() + np.abs(c).max()
            assert_allclose(column, slope, atol=1e-4 * size)


_derivatives = jax.jit(jax.jacrev(fit_in_box, argnums=(0, 1, 2, 3, 4)))


@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
def test_a_line_is_demings(ratio):
    # Deming's closed form; and x and y may change places.
    rng = np.random.default_rng(0)
    x = np.linspace(0, 5, M) + 0.3 * rng.normal(size=M)
    y = 1.7 * np.linspace(0, 5, M) - 1 + 0.3 * rng.normal(size=M)
    fit = _line_fit(x, y, 0.3 * ratio, 0.3, [1.0, 1.0])
    (sxx, sxy), (_, syy) = np.cov(x, y)
    gap = syy - ratio**2 * sxx
    slope = (gap + np.sqrt(gap**2 + 4 * ratio**2 * sxy**2)) / (2 * sxy)
    assert_allclose(fit.popt, [slope, y.mean() - slope * x.mean()], rtol=1e-7)
    turned = _line_fit(y, x, 0.3, 0.3 * ratio, [1.0, 1.0])
    assert_allclose(turned.popt, [1 / slope, x.mean() - y.mean() / slope], rtol=1e-7)
    assert_allclose(turned.result.cost, fit.result.cost)


@jax.jit
def _line_fit(x, y, sigma, sigma_x, p0):
    return ox.curve_fit(line, x, y, jnp.stack(p0), sigma=sigma, sigma_x=sigma_x)


def test_units():
    # Of x and y; and errors of x that are next to none are none.
    unit_x, unit_y = 1e-30, 1e40
    ref = _line_fit(X, Y, 0.1, 0.2, [-1.0, 3.0])
    p0 = [-unit_y / unit_x, 3 * unit_y]
    fit = _line_fit(X * unit_x, Y * unit_y, 0.1 * unit_y, 0.2 * unit_x, p0)
    assert_allclose(fit.popt, ref.popt * np.array([unit_y / unit_x, unit_y]), rtol=1e-7)
    assert_allclose(fit.result.cost, ref.result.cost, rtol=1e-9)
    plain = np.polyfit(X, Y, 1)
    assert_allclose(_line_fit(X, Y, 0.1, 1e-9, [-1.0, 3.0]).popt, plain, rtol=1e-8)
    assert_allclose(_line_fit(X, Y, 0.1, 0.0, [-1.0, 3.0]).popt, plain, rtol=1e-8)


def test_float32(fitted):
    given = [jnp.asarray(array, jnp.float32) for array in (X, Y, SIGMA, SIGMA_X, START)]
    x, y, sigma, sigma_x, p0 = given
    fit = ox.curve_fit(decay, x, y, p0, sigma=sigma, sigma_x=sigma_x)
    assert fit.popt.dtype == np.float32
    assert_allclose(fit.popt, fitted.popt[7], rtol=2e-4)
    assert_allclose(fit.pcov, fitted.pcov[7], rtol=2e-2)


def test_a_curve_that_mixes_data():
    model = Model(lambda x, a, b: a * (x - jnp.mean(x)) + b, "positional")
    p, mixed = jnp.ones(2), Data(X, Y, None, None, 0.1 * np.ones(M))
    with pytest.raises(ValueError, match="`f` whose value for each datum"):
        check_pointwise(model, p, mixed)
    assert np.isnan(residuals(model, p, mixed)).all()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"sigma_x": np.ones(3)}, "`sigma_x` must go with"),
        ({"sigma_x": -1.0}, "`sigma_x` must be finite and not negative"),
        ({"sigma_x": np.nan}, "`sigma_x` must be finite and not negative"),
        ({"sigma_x": 1.0, "sigma": np.eye(M)}, "not a matrix"),
        ({"sigma_x": 1.0, "xdata": {"t": X}}, "real `xdata` of shape"),
    ],
)
def test_errors_name_the_argument(given, said):
    with pytest.raises(ValueError, match=said):
        ox.curve_fit(line, **{"xdata": X, "ydata": Y} | given)


def test_a_foot_is_a_minimum():
    # On the axis of a parabola, beyond its centre of curvature, u = 0 is a maximum: no foot. Beside
    # it the nearest point is the cubic's root.
    x, y = jnp.array([0.0, 0.0, 0.3, 0.3, -2.0]), jnp.array([0.4, 2.0, 2.0, -1.0, 0.0])
    one = jnp.ones(5)
    points = Points(lift(lambda x, p: x**2 + 0 * p, x, 1.0), 1.0, x, y, one, one)
    u = np.asarray(foot(points))[0]
    assert_array_equal(np.isnan(u), [False, True, False, False, False])
    for i in (0, 2, 3, 4):
        # The derivative of (t - x)² + (t² - y)² by t.
        roots = np.roots([2, 0, 1 - 2 * y[i], -x[i]])
        roots = roots[np.abs(roots.imag) < 1e-12].real
        best = roots[np.argmin((roots - x[i]) ** 2 + (roots**2 - y[i]) ** 2)]
        assert_allclose(x[i] + u[i], best, rtol=1e-12, atol=1e-12)
