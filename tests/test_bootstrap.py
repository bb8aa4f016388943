"""Bootstraps, by what is known of their limits: covariances, SciPy's BCa, known distributions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox
from optx_lite.statistics.bootstrap import _residual

M = 30
T = np.linspace(0.0, 3.0, M)
SIGMA = np.linspace(0.02, 0.1, M)
Y = 2.0 * np.exp(-1.2 * T) + 0.3 + SIGMA * np.random.default_rng(0).normal(size=M)


def decay(t, a, b, c):
    return a * jnp.exp(-b * t) + c


@functools.cache
def fitted():
    return ox.curve_fit(decay, T, Y, sigma=SIGMA)


@functools.cache
def many_samples():
    return ox.bootstrap(fitted(), 0, samples=4000)


def test_parametric_has_the_errors_of_the_covariance():
    # Of 4,000 normal samples a standard deviation is known to 1.1 %; the model is nearly linear.
    many = many_samples()
    assert int(many.failed) == 0
    assert_allclose(many.stderr, fitted().perr, rtol=0.06)
    assert_allclose(many.covariance, np.cov(np.asarray(many.x).T), rtol=1e-8)
    low, high = many.intervals(0.9)
    assert_allclose(low, np.quantile(many.x, 0.05, axis=0))
    assert_allclose(high, np.quantile(many.x, 0.95, axis=0))
    key = jax.random.key(0)
    assert_array_equal(
        ox.bootstrap(fitted(), key, samples=50).x, ox.bootstrap(fitted(), 0, samples=50).x
    )
    assert np.any(
        ox.bootstrap(fitted(), 1, samples=50).x != ox.bootstrap(fitted(), 0, samples=50).x
    )


def test_residual_has_the_spread_of_the_residuals():
    many = ox.bootstrap(fitted(), 0, samples=4000, kind="residual")
    assert_allclose(many.stderr, fitted().perr, rtol=0.08)
    # The data that were drawn are made of the residuals, and of nothing else.
    drawn = _residual(fitted(), jax.random.key(3))
    white = (np.asarray(drawn.y) - np.asarray(fitted().predict())) / SIGMA
    own = -np.asarray(fitted().result.fun) / np.sqrt(
        1 - np.asarray(ox.influence(fitted()).leverage)
    )
    own = own - own.mean()
    assert np.max(np.min(np.abs(white[:, None] - own[None, :]), axis=1)) < 1e-12


def test_matrix_sigma_and_masked_data():
    a = np.random.default_rng(1).normal(size=(M, M))
    matrix = np.diag(SIGMA**2) + 1e-5 * a @ a.T
    mask = np.arange(M) != 4
    fit = ox.curve_fit(decay, T, np.where(mask, Y, np.nan), sigma=matrix, absolute_sigma=True,
                       mask=mask)  # fmt: skip
    many = ox.bootstrap(fit, 0, samples=2000)
    assert_allclose(many.stderr, fit.perr, rtol=0.1)
    many = ox.bootstrap(fit, 0, samples=2000, kind="residual")
    scale = np.sqrt(2 * float(fit.result.cost) / 26)
    assert_allclose(many.stderr, scale * fit.perr, rtol=0.12)


def test_refits_as_the_fit_was_made():
    def opaque(t, a, b, c):  # no derivative but by differences
        shape = jax.ShapeDtypeStruct(t.shape, t.dtype)
        numpy = lambda t, a, b, c: np.asarray(a * np.exp(-b * t) + c, t.dtype)
        return jax.pure_callback(numpy, shape, t, a, b, c, vmap_method="sequential")

    by_differences = ox.curve_fit(opaque, T, Y, sigma=SIGMA, jac="2-point")
    few = ox.bootstrap(fitted(), 0, samples=4)
    assert_allclose(ox.bootstrap(by_differences, 0, samples=4).x, few.x, rtol=1e-5)
    ends = ox.profile_intervals(by_differences, ["b"])
    assert_allclose(ends.lower, ox.profile_intervals(fitted(), ["b"]).lower, rtol=1e-5)
    loose = ox.curve_fit(decay, T, Y, sigma=SIGMA, ftol=1e-2, xtol=1e-2, gtol=1e-2)
    assert np.max(np.abs(ox.bootstrap(loose, 0, samples=4).x - few.x)) > 1e-7


def test_bca_of_a_mean_is_scipys():
    # y = a has the mean for its fit, and its residual bootstrap is that of the sample.
    y = np.random.default_rng(2).exponential(size=40)
    fit = ox.curve_fit(lambda x, a: a + 0 * x, np.arange(40.0), y)
    many = ox.bootstrap(fit, 0, samples=20_000, kind="residual")
    ref = scipy.stats.bootstrap((y,), np.mean, n_resamples=20_000, method="BCa", rng=0)
    interval = ref.confidence_interval
    low, high = many.intervals(0.95, "bca")
    width = interval.high - interval.low
    assert_allclose([low[0], high[0]], [interval.low, interval.high], atol=0.03 * width)
    plain = many.intervals(0.95)
    assert low[0] > plain[0][0] + 0.02 * width  # the data are skewed, and it is seen


def test_failed_fits_are_left_out_and_counted():
    fit = ox.Bootstrap(
        x=jnp.array([[1.0], [np.nan], [3.0], [2.0]]), success=jnp.array([True, False, True, True]),
        estimate=jnp.array([2.0]), acceleration=jnp.zeros(1), names=("a",),
        restore=fitted().covariance.restore,
    )  # fmt: skip
    assert_allclose(fit.covariance, [[1.0]])
    assert int(fit.failed) == 1 and "1 of 4 fits failed: left out." in repr(fit)


def test_arguments():
    with pytest.raises(ValueError, match="`kind` must be one of"):
        ox.bootstrap(fitted(), 0, kind="pairs")
    with pytest.raises(ValueError, match="`samples` must be"):
        ox.bootstrap(fitted(), 0, samples=1)
    with pytest.raises(TypeError, match="`fit` must come from `curve_fit`"):
        ox.bootstrap(fitted().result, 0)
    with pytest.raises(TypeError, match="`key` must be"):
        ox.bootstrap(fitted(), 0.5)
    with pytest.raises(ValueError, match="`kind` must be one of"):
        many_samples().intervals(0.9, "basic")


@pytest.mark.parametrize("level", [95, 1.0, 0.0, -0.5, np.nan, np.array([0.5, 0.9])])
def test_a_level_is_a_probability(level):
    for interval in (
        many_samples().intervals,
        lambda level: ox.band(fitted(), level=level),
        lambda level: ox.profile_intervals(fitted(), level=level),
        lambda level: ox.contour(fitted(), "a", "b", level=level),
    ):
        with pytest.raises(ValueError, match="`level` must be a probability"):
            interval(level)


def test_a_traced_level_that_is_none_gives_nan():
    low = jax.jit(lambda level: ox.band(fitted(), jnp.ones(1), level=level).lower)
    assert np.isfinite(low(0.95)) and np.isnan(low(95.0))
