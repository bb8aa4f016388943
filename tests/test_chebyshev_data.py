"""Series and splines through data: against exact derivatives, and dense linear algebra."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optx_lite as ox

fit, smooth = ox.chebyshev.fit, ox.chebyshev.smooth
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.mark.parametrize("random", [False, True])
def test_ninth_derivative_of_60_samples(random):
    """Of the sine on a period. Repeated differences of rounded samples give noise of 1e-16/h^9."""
    x = np.linspace(0, 2 * np.pi, 60)
    if random:
        x[1:-1] = RNG.permutation(RNG.uniform(0, 2 * np.pi, 58))
    res = fit(x, np.sin(x))
    at = np.linspace(0, 2 * np.pi, 300)
    np.testing.assert_allclose(res.derivative(at, 9), np.cos(at), rtol=0, atol=1e-4)


def test_polynomials_are_found_exactly():
    x = np.sort(RNG.uniform(-3, 5, 40))
    for degree in (0, 1, 4, 7):
        res = fit(x, np.polynomial.chebyshev.chebval(x / 8, np.arange(degree + 1) + 1.0))
        assert res.degree >= degree  # rounding errors are noise, too
        assert np.abs(res.coefficients[degree + 1 :]).max() < 1e-13
        assert res.sigma < 1e-13


def test_least_squares_as_by_numpy():
    """Coefficients, noise and standard errors, weighted, with missing samples."""
    x, sigma = np.linspace(0, 2, 50), RNG.uniform(0.5, 2, 50)
    y = np.exp(x) + 0.1 * sigma * RNG.normal(size=50)
    y[[3, 20]] = np.nan
    res = fit(x, y, degree=5, sigma=sigma, interval=(-0.5, 2.5))
    there = np.isfinite(y)
    matrix = np.polynomial.chebyshev.chebvander((x[there] - 1) / 1.5, 5) / sigma[there, None]
    right, rss, *_ = np.linalg.lstsq(matrix, y[there] / sigma[there])
    np.testing.assert_allclose(res.coefficients, right, rtol=1e-11)
    variance = rss[0] / (48 - 6)
    np.testing.assert_allclose(res.sigma**2, variance, rtol=1e-10)
    covariance = variance * np.linalg.inv(matrix.T @ matrix)
    at = np.polynomial.chebyshev.chebvander((np.array([0.3, 1.9]) - 1) / 1.5, 5)
    error = np.sqrt(np.einsum("ij,jk,ik->i", at, covariance, at))
    np.testing.assert_allclose(res.standard_error([0.3, 1.9]), error, rtol=1e-9)


def test_gcv_by_its_definition():
    x = np.linspace(-1, 1, 30)
    y = np.sin(4 * x) + 0.1 * RNG.normal(size=30)
    res = fit(x, y, most=10)
    for degree in range(11):
        hat = np.polynomial.chebyshev.chebvander(x, degree)
        left = y - hat @ np.linalg.lstsq(hat, y)[0]
        gcv = 30 * np.sum(left**2) / (30 - degree - 1) ** 2
        np.testing.assert_allclose(res.gcv[degree], gcv, rtol=1e-9)
    assert int(res.degree) == int(np.argmin(res.gcv))


def dense(x, y, order, rho):
    """The posterior of an integrated Wiener process by covariances: means, errors, sigma."""
    nodes, weights = np.polynomial.legendre.leggauss(12)

    def kernel(s, t, i, j):
        """The covariance of the i-th and the j-th derivative, integrated by Gauss."""
        least = np.minimum(s[:, None], t[None])[..., None]
        u, w = (nodes + 1) / 2 * least, weights / 2 * least
        powers = (s[:, None, None] - u) ** (order - i) * (t[None, :, None] - u) ** (order - j)
        return (powers * w).sum(-1) / math.factorial(order - i) / math.factorial(order - j)

    there = np.isfinite(y)
    x_there = x[there]
    inverse = np.linalg.inv(rho * kernel(x_there, x_there, 0, 0) + np.eye(there.sum()))
    free = np.vander(x_there, order + 1, increasing=True)
    information = np.linalg.inv(free.T @ inverse @ free)
    beta = information @ free.T @ inverse @ y[there]
    left = y[there] - free @ beta
    variance = left @ inverse @ left / (there.sum() - order - 1)
    means, errors = [], []
    for k in range(order + 1):
        cross = rho * kernel(x, x_there, k, 0)
        powers = [
            math.perm(p, k) * x ** max(p - k, 0) if p >= k else 0 * x for p in range(order + 1)
        ]
        powers = np.stack(powers, 1)
        means.append(powers @ beta + cross @ inverse @ left)
        rest = powers - cross @ inverse @ free
        own = np.array([rho * kernel(t[None], t[None], k, k)[0, 0] for t in x])
        own = own - np.einsum("ij,jk,ik->i", cross, inverse, cross)
        own = own + np.einsum("ij,jk,ik->i", rest, information, rest)
        errors.append(np.sqrt(variance * own))
    return np.array(means), np.array(errors), np.sqrt(variance)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_spline_as_by_dense_algebra(order):
    """Uneven and equal points, a missing sample; means and errors of all derivatives."""
    x = np.sort(RNG.uniform(0, 2, 40))
    x[5] = x[6]
    y = np.sin(3 * x) + 0.1 * RNG.normal(size=40)
    y[10] = np.nan
    res = smooth(x, y, order=order, penalty=1e-3)
    means, errors, sigma = dense(x, y, order, 1e3)
    np.testing.assert_allclose(res.sigma, sigma, rtol=1e-9)
    for k in range(order + 1):
        scale = np.abs(means[k]).max()
        np.testing.assert_allclose(res.derivatives[k], means[k], rtol=0, atol=1e-8 * scale)
        np.testing.assert_allclose(res.standard_errors[k], errors[k], rtol=1e-6)
    # Another order of the samples, other units.
    mixed = RNG.permutation(40)
    other = smooth(8 * x[mixed], 1e6 * y[mixed], order=order, penalty=1e-3 * 8.0 ** (2 * order + 1))
    got = np.asarray(other.derivatives)[:, np.argsort(mixed)] / 1e6
    for k in range(order + 1):
        scale = np.abs(means[k]).max()
        np.testing.assert_allclose(got[k] * 8.0**k, means[k], rtol=0, atol=1e-8 * scale)


def restricted(x, y, order, penalty):
    """-2 log of the restricted likelihood, by dense covariances, but for a constant."""
    t = x - x[0]
    nodes, weights = np.polynomial.legendre.leggauss(12)
    least = np.minimum(t[:, None], t[None])[..., None]
    u, w = (nodes + 1) / 2 * least, weights / 2 * least
    kernel = ((t[:, None, None] - u) * (t[None, :, None] - u)) ** order * w
    covariance = kernel.sum(-1) / math.factorial(order) ** 2 / penalty + np.eye(x.size)
    free = np.vander(t, order + 1, increasing=True)
    inverse = np.linalg.inv(covariance)
    inner = free.T @ inverse @ free
    left = y - free @ np.linalg.solve(inner, free.T @ inverse @ y)
    logs = np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(inner)[1]
    return (x.size - order - 1) * np.log(left @ inverse @ left) + logs


def test_many_series_each_with_its_penalty():
    """It minimises the restricted likelihood of dense algebra; the bands cover."""
    x = np.sort(RNG.uniform(0, 2, 80))
    truth = np.sin(5 * x)
    y = truth + 0.2 * RNG.normal(size=(30, 80))
    res = jax.jit(jax.vmap(lambda y: (r := smooth(x, y), r.band(), r.band(1))))(y)
    res, *bands = jax.tree.map(np.asarray, res)
    assert (res.status == 0).all()
    for k in range(5):
        here = restricted(x, y[k], 2, res.penalty[k])
        for factor in (0.5, 0.9, 1.1, 2.0):
            assert here <= restricted(x, y[k], 2, factor * res.penalty[k]) + 1e-3
    for (low, high), right in zip(bands, (truth, 5 * np.cos(5 * x)), strict=True):
        assert 0.92 < np.mean((low < right) & (right < high)) <= 0.995
    np.testing.assert_allclose(res.sigma.mean(), 0.2, rtol=0.05)


def test_derivatives_by_the_data():
    """Linear in y at a given penalty, in both modes; through its choice unknown."""
    x = np.linspace(0, 1, 20)
    y = np.cos(3 * x)
    value = lambda y: smooth(x, y, penalty=1e-4).derivatives[1]
    forward, backward = jax.jacfwd(value)(y), jax.jacrev(value)(y)
    np.testing.assert_allclose(forward, backward, rtol=0, atol=1e-11)
    np.testing.assert_allclose(backward @ y, value(y), rtol=0, atol=1e-11)
    assert np.isnan(jax.grad(lambda y: smooth(x, y).derivatives[0, 3])(y)).all()
    series = lambda y: fit(x, y, degree=4)(jnp.array(0.4))
    np.testing.assert_allclose(jax.grad(series)(y) @ y, series(y), rtol=1e-12)


def test_bad_data():
    x = np.linspace(0, 1, 10)
    for solve in (fit, smooth):
        with pytest.raises(ValueError, match="one shape"):
            solve(x, x[:-1])
        with pytest.raises(ValueError, match="finite"):
            solve(np.where(x > 0.5, np.nan, x), x)
        with pytest.raises(ValueError, match="samples"):
            solve(x, np.where(x > 0.2, np.nan, x))
        status = jax.jit(lambda x, y, solve=solve: solve(x, y).status)
        assert status(x, np.where(x > 0.2, np.nan, x)) == -5
    with pytest.raises(ValueError, match="`order`"):
        smooth(x, x, order=0)
    with pytest.raises(ValueError, match="`penalty`"):
        smooth(x, x, penalty=-1.0)
    with pytest.raises(ValueError, match="`degree`"):
        fit(x, x, degree=9)


@pytest.mark.usefixtures("x64_off")
def test_single_precision():
    x = jnp.linspace(0.0, 6.0, 60)
    y = jnp.sin(x) + 0.01 * jnp.asarray(RNG.normal(size=60), jnp.float32)
    res = smooth(x, y, order=3)
    assert res.derivatives.dtype == jnp.float32
    np.testing.assert_allclose(res.derivatives[1][5:-5], jnp.cos(x)[5:-5], rtol=0, atol=0.1)
    np.testing.assert_allclose(fit(x, y).derivative(x)[5:-5], jnp.cos(x)[5:-5], rtol=0, atol=0.1)
