"""`curve_fit` beside SciPy's: the cases of SciPy's own tests, and what SciPy cannot do."""

import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import Bounds

import optx_lite as ox
from optx_lite.statistics import padding

curve_fit_module = importlib.import_module("optx_lite.api.curve_fit")
METHODS = ("lm", "trf", "dogbox")
X = np.array([1.0, 2.0, 3.0, 4.0])
Y = np.array([1.0, 3.2, 9.5, 13.7])


def decay(x, a, b):
    return a * jnp.exp(-b * x)


def line(x, a, b):
    return a * x + b


def as_scipy(f):
    """The same model for SciPy."""
    return lambda x, *p: np.asarray(f(jnp.asarray(x), *p))


class TestScipysOwn:
    """The cases of scipy/optimize/tests/test_minpack.py, class TestCurveFit."""

    def test_one_argument(self):
        popt, pcov = ox.curve_fit(lambda x, a: x**a, X, Y)
        assert popt.shape == (1,) and pcov.shape == (1, 1)
        assert_allclose(popt[0], 1.9149, atol=1e-4)
        assert_allclose(pcov[0, 0], 0.0016, atol=1e-4)
        popt2, *_ = ox.curve_fit(lambda x, a: x**a, X, Y, full_output=1, check_finite=False)
        assert_allclose(popt2, popt)

    def test_two_arguments_and_a_method(self):
        class Power:
            def f(self, x, a, b):
                return b * x**a

        for f in (lambda x, a, b: b * x**a, Power().f):
            popt, pcov = ox.curve_fit(f, X, Y)
            assert_allclose(popt, [1.7989, 1.1642], atol=1e-4)
            assert_allclose(pcov, [[0.0852, -0.1260], [-0.1260, 0.1912]], atol=1e-4)

    def test_regression_2639(self):
        x = [574.142, 574.154, 574.165, 574.177, 574.188, 574.199, 574.211, 574.222, 574.234,
             574.245]  # fmt: skip
        y = [859.0, 997.0, 1699.0, 2604.0, 2013.0, 1964.0, 2435.0, 1550.0, 949.0, 841.0]
        guess = [574.1861428571428, 574.2155714285715, 1302.0, 1302.0, 0.0035019999999983615, 859.0]
        good = [574.177150, 574.209188, 1741.87044, 1586.46166, 1.0068462e-02, 857.450661]

        def peaks(x, x0, x1, a0, a1, sigma, c):
            first = a0 * jnp.exp(-((x - x0) ** 2) / (2.0 * sigma**2))
            return first + a1 * jnp.exp(-((x - x1) ** 2) / (2.0 * sigma**2)) + c

        popt, _ = ox.curve_fit(peaks, x, y, guess, maxfev=10000)
        assert_allclose(popt, good, rtol=1e-5)

    @pytest.mark.parametrize("method", METHODS)
    def test_pcov(self, method):
        xdata, ydata = np.arange(6), np.array([1, 1, 5, 7, 8, 12])
        sigma = np.array([1, 2, 1, 2, 1, 2])
        for factor in (1, 3):
            for absolute, expected in (
                (False, [0.20659803, 0.57204404]),
                (True, [factor * 0.30714756, factor * 0.85045308]),
            ):
                _, pcov = ox.curve_fit(line, xdata, ydata, p0=[2, 0], sigma=factor * sigma,
                                       absolute_sigma=absolute, method=method)  # fmt: skip
                assert_allclose(np.sqrt(np.diag(pcov)), expected, rtol=1e-3)

    @pytest.mark.parametrize("method", METHODS)
    def test_infinite_variances(self, method):
        xdata, ydata = np.arange(6), np.array([1, 1, 5, 7, 8, 12])
        with pytest.warns(ox.OptimizeWarning, match="b is not determined"):
            _, flat = ox.curve_fit(lambda x, a, b: a * x, xdata, ydata, p0=[2, 0], method=method)
        assert_array_equal(flat, np.full((2, 2), np.inf))

    def test_no_more_data_than_parameters(self):
        with pytest.warns(ox.OptimizeWarning, match="no more data than parameters"):
            _, few = ox.curve_fit(line, X[:2], Y[:2], p0=[2, 0])
        assert_array_equal(few, np.full((2, 2), np.inf))

    def test_array_like(self):
        assert_allclose(ox.curve_fit(line, [1, 2, 3, 4], [3, 5, 7, 9])[0], [2, 1], atol=1e-10)

    def test_nan_in_the_data(self):
        bad, good = np.array([1, np.nan, 3]), np.array([1, 2, 3])
        for x, y in ((bad, good), (good, bad)):
            with pytest.raises(ValueError, match="must not contain infs or NaNs"):
                ox.curve_fit(line, x, y)
            with pytest.raises(ValueError, match="must not contain infs or NaNs"):
                ox.curve_fit(line, x, y, check_finite=True)

    @pytest.mark.parametrize(("dims", "method"), list(zip((1, 2, 3), METHODS, strict=True)))
    def test_nan_policy(self, method, dims):
        nan = np.nan
        x = np.array([[2, 3, nan, 4, 4, nan, 5], [2, 3, nan, nan, 4, nan, 7]])
        y = np.array([1, 2, 5, 3, nan, 7, 10])
        clean_x, clean_y = np.array([[2, 3, 5], [2, 3, 7]]), np.array([1, 2, 10])
        f = lambda x, a, b: a * jnp.ravel(x[..., 0, :]) + b + jnp.ravel(x[..., 1, :])
        if dims == 1:
            f, x, clean_x = line, x[0], np.array([2, 3, 4, 5])
            clean_y = np.array([1, 2, 3, 10])
        elif dims == 3:
            x, clean_x = x[None], clean_x[None]
        given = {"method": method, "check_finite": False}
        with pytest.raises(ValueError, match="`nan_policy='propagate'` is not supported"):
            ox.curve_fit(f, x, y, nan_policy="propagate", maxfev=2000, **given)
        with pytest.raises(ValueError, match="The input contains nan"):
            ox.curve_fit(f, x, y, nan_policy="raise", **given)
        with pytest.raises(ValueError, match="nan_policy must be one of"):
            ox.curve_fit(f, x, y, nan_policy="hi", **given)
        omitted, cov = ox.curve_fit(f, x, y, nan_policy="omit", **given)
        popt, pcov = ox.curve_fit(f, clean_x, clean_y, **given)
        assert_allclose(omitted, popt)
        assert_allclose(cov, pcov)

    def test_empty_inputs(self):
        for x, bounds in (([], (-np.inf, np.inf)), ([], (1, 2)), ([1], (1, 2))):
            with pytest.raises(ValueError, match="`ydata` must not be empty"):
                ox.curve_fit(lambda x, a: a * x, x, [], bounds=bounds)

    def test_no_parameters(self):
        with pytest.raises(ValueError, match="Unable to determine number of fit parameters"):
            ox.curve_fit(lambda x: x, [1, 2], [3, 4])

    def test_no_x(self):
        popt, _ = ox.curve_fit(lambda _, a: a * jnp.arange(10.0), None, 2 * np.arange(10))
        assert_allclose(popt, [2.0])

    @pytest.mark.parametrize("method", [*METHODS, None])
    def test_full_output(self, method):
        x = np.linspace(0, 1, 11)
        y = np.asarray(decay(x, 2.0, 2.0))
        fit = ox.curve_fit(decay, x, y, method=method, full_output=True)
        popt, _, info, mesg, ier = fit
        assert_allclose(popt, [2.0, 2.0])
        assert info["nfev"] > 0 and info["fvec"].shape == (11,)
        assert isinstance(mesg, str) and ier in (1, 2, 3, 4)
        if method in ("lm", None):  # R^T R is P^T J^T J P, and R^T qtf is P^T J^T f
            jac = np.asarray(jax.jacfwd(lambda p: decay(x, *p))(popt))[:, np.asarray(info["ipvt"])]
            r = np.triu(np.asarray(info["fjac"]).T[:2])
            assert_allclose(r.T @ r, jac.T @ jac)
            assert_allclose(r.T @ info["qtf"], jac.T @ info["fvec"], atol=1e-12)
            assert abs(r[0, 0]) >= abs(r[1, 1])

    def test_unknown_method(self):
        with pytest.raises(ValueError, match="`method`"):
            ox.curve_fit(decay, X, Y, method="unknown")

    @pytest.mark.parametrize("method", ["trf", "dogbox", None])
    def test_bounds(self, method):
        x = np.linspace(0, 1, 11)
        y = np.asarray(decay(x, 2.0, 2.0))
        lower, upper = [1.0, 0], [1.5, 3.0]
        popt, _ = ox.curve_fit(decay, x, y, bounds=(lower, upper), method=method)
        assert_allclose(popt[0], 1.5)
        again, _ = ox.curve_fit(decay, x, y, bounds=Bounds(lower, upper), method=method)
        assert_allclose(again, popt)
        popt, _ = ox.curve_fit(decay, x, y, bounds=([0.0, 0], [0.6, np.inf]), method=method)
        assert_allclose(popt[0], 0.6)

    def test_lm_takes_no_bounds(self):
        with pytest.raises(ValueError, match="doesn't support bounds"):
            ox.curve_fit(decay, X, Y, bounds=(0, 20), method="lm")

    @pytest.mark.parametrize("method", ["trf", "dogbox"])
    def test_p0_counts_within_bounds(self, method):
        x = np.linspace(-2 * np.pi, 2 * np.pi, 40)
        f = lambda x, a: jnp.sin(x + a)
        free, _ = ox.curve_fit(f, x, np.sin(x), p0=2.1 * np.pi)
        popt, _ = ox.curve_fit(f, x, np.sin(x), p0=2.1 * np.pi, bounds=(-9.4, 9.4), method=method)
        assert_allclose(popt, free)

    @pytest.mark.parametrize(
        ("method", "scheme"), list(zip(METHODS, ("2-point", "3-point", "cs"), strict=True))
    )
    def test_jac(self, method, scheme):
        def jac(x, a, b):
            e = jnp.exp(-b * x)
            return jnp.vstack((e, -a * x * e)).T

        x = np.linspace(0, 1, 11)
        y = np.array(decay(x, 2.0, 2.0))
        popt, _ = ox.curve_fit(decay, x, y, jac=scheme, method=method)
        assert_allclose(popt, [2, 2])
        y[5], sigma = 100, np.ones(11)
        sigma[5] = 200
        popt, pcov = ox.curve_fit(decay, x, y, sigma=sigma, method=method, jac=jac)
        assert_allclose(popt, [2, 2], rtol=1e-3)
        assert_allclose(pcov, ox.curve_fit(decay, x, y, sigma=sigma, method=method)[1])
        if method == "lm":
            transposed = lambda x, a, b: jac(x, a, b).T
            popt, _ = ox.curve_fit(decay, x, y, sigma=sigma, jac=transposed, col_deriv=True)
            assert_allclose(popt, [2, 2], rtol=1e-3)

    def test_maxfev_and_bounds(self):
        x = np.arange(10)
        for name in ("maxfev", "max_nfev"):
            popt, _ = ox.curve_fit(lambda x, p: p * x, x, 2 * x, bounds=(0, 3), **{name: 100})
            assert_allclose(popt, 2, atol=1e-14)

    @pytest.mark.parametrize("sigma_dim", [0, 1, 2])
    def test_omitted_with_sigma(self, sigma_dim):
        rng = np.random.default_rng(578285731148908)
        n = 100
        x = np.linspace(1, 10, n)
        f = lambda x, a, b: b * jnp.exp(a * x)
        a = rng.normal(0, 0.1, (n, n))
        sigma = (0.05, x * 0.05, a @ a.T + 1e-3 * np.eye(n))[sigma_dim]
        y = np.asarray(f(x, 0.2, 0.5)) + rng.normal(0, 0.05, n)
        x[rng.integers(n, size=5)] = np.nan
        y[rng.integers(n, size=5)] = np.nan
        there = ~(np.isnan(x) | np.isnan(y))
        keep = (lambda s: s, lambda s: s[there], lambda s: s[there][:, there])[sigma_dim]
        res = ox.curve_fit(f, x, y, p0=[0.1, 1.0], sigma=sigma, nan_policy="omit")
        ref = ox.curve_fit(f, x[there], y[there], p0=[0.1, 1.0], sigma=keep(sigma))
        assert_allclose(res[0], ref[0], rtol=1e-9)
        assert_allclose(res[1], ref[1], rtol=1e-8)

    @pytest.mark.parametrize("absolute", [False, True])
    def test_sigma_as_a_matrix(self, absolute):
        rng = np.random.default_rng(1234)
        turn = np.array([[0.5**0.5, -(0.5**0.5), 0], [0.5**0.5, 0.5**0.5, 0], [0, 0, 1.0]])
        x = np.arange(1.0, 4)
        y = np.asarray(decay(x, 2.5, 1.0)) + 0.2 * rng.standard_normal(3)
        one = ox.curve_fit(decay, x, y, sigma=np.full(3, 0.2), absolute_sigma=absolute)
        diagonal = ox.curve_fit(decay, x, y, sigma=0.04 * np.eye(3), absolute_sigma=absolute)
        turned = ox.curve_fit(
            lambda x, a, b: turn @ decay(x, a, b), x, turn @ y, sigma=turn @ (0.04 * turn.T),
            absolute_sigma=absolute, jac=lambda x, a, b: turn @ jnp.stack(
                [jnp.exp(-b * x), -a * x * jnp.exp(-b * x)], axis=1),
        )  # fmt: skip
        for other in (diagonal, turned):
            assert_allclose(other[0], one[0], rtol=1.4e-7)
            assert_allclose(other[1], one[1], rtol=1.4e-7)

    def test_wrong_sigma(self):
        asymmetric = np.eye(4) + np.triu(np.full((4, 4), 0.1), 1)
        units = np.diag([1.0, 1e-9, 1e-9, 1e-9])  # what is wrong is small beside the first
        for wrong in (-np.eye(4), asymmetric, units @ asymmetric @ units):
            with pytest.raises(ValueError, match="`sigma` must be symmetric and positive definite"):
                ox.curve_fit(line, X, Y, sigma=wrong)
        assert np.isnan(jax.jit(lambda s: ox.curve_fit(line, X, Y, sigma=s)[0])(asymmetric)).all()
        with pytest.raises(ValueError, match="`sigma` has incorrect shape"):
            ox.curve_fit(line, X, Y, sigma=np.ones(3))

    @pytest.mark.parametrize("absolute", [False, True])
    def test_scalar_sigma(self, absolute):
        one = ox.curve_fit(line, X, Y, sigma=2, absolute_sigma=absolute)
        many = ox.curve_fit(line, X, Y, sigma=np.full(4, 2.0), absolute_sigma=absolute)
        assert_allclose(one[1], many[1])

    @pytest.mark.parametrize("method", METHODS)
    def test_dtypes(self, method):
        x = np.arange(-3, 5)
        y = 1.5 * x + 3.0 + 0.5 * np.sin(x)
        for dtx in (np.float32, np.float64):
            for dty in (np.float32, np.float64):
                p, cov = ox.curve_fit(line, x.astype(dtx), y.astype(dty), method=method)
                assert p.dtype == np.float64 and np.isfinite(cov).all()
                assert_allclose(p, np.polyfit(x, y, 1), rtol=1e-6)

    def test_float32_data(self):
        def hyperbola(x, s_1, s_2, o_x, o_y, c):
            b_2, b_1 = (s_1 + s_2) / 2, (s_2 - s_1) / 2
            return o_y + b_1 * (x - o_x) + b_2 * jnp.sqrt((x - o_x) ** 2 + c**2 / 4)

        box = (np.array([-3.0, 0.0, -2.0, -10.0, 0.0]), np.array([0.0, 3.0, 3.0, 0.0, 10.0]))
        guess, true = np.array([-2.5 / 3.0, 4 / 3.0, 1.0, -4.0, 0.5]), [-2, 0.4, -1, -5, 9.5]
        x = np.array([-32.0, -16, -8, 4, 4, 8, 16, 32])
        popt = [
            ox.curve_fit(hyperbola, x.astype(t), np.asarray(hyperbola(x, *true), t), guess,
                         bounds=box)[0]
            for t in (np.float32, np.float64)
        ]  # fmt: skip
        assert_allclose(popt[0], popt[1], atol=2e-5)

    def test_broadcast_y(self):
        x = np.arange(10)
        target = 4.7 * x**2 + 3.5 * x + np.random.default_rng(123).random(10)
        f = lambda x, a, b: a * x**2 + b * x - target
        zeros = ox.curve_fit(f, x, np.zeros(10))
        scalar = ox.curve_fit(f, x, 0)
        assert_allclose(zeros[0], scalar[0])
        assert_allclose(zeros[1], scalar[1])

    def test_args(self):
        with pytest.raises(ValueError, match="'args' is not a supported"):
            ox.curve_fit(line, X, Y, p0=[1], args=(1,))

    def test_too_few_data(self):
        f = lambda x, a, b, c, d, e: a * jnp.exp(-b * x) + c + d + e
        with pytest.raises(TypeError, match="The number of func parameters="):
            ox.curve_fit(f, X, Y)

    def test_gh4555(self):
        rng = np.random.default_rng(408113519974467917)
        x = np.arange(100)
        y = np.linspace(2, 7, 100) + rng.random(100)
        f = lambda x, a, b, c, d, e: a * jnp.log(x + 1 + b) + c * jnp.log(x + 1 + d) + e
        # Two logarithms where one will do: whatever comes, a covariance is one.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ox.OptimizeWarning)
            try:
                _, cov = ox.curve_fit(f, x, y, maxfev=100000)
            except (RuntimeError, ValueError):
                return
        assert np.all(np.diag(cov) > 0)
        assert_array_equal(cov, cov.T)

    def test_gh4555b(self):
        rng = np.random.default_rng(408113519974467917)
        x = np.linspace(0, 4, 50)
        f = lambda x, a, b, c: a * jnp.exp(-b * x) + c
        y = np.asarray(f(x, 2.5, 1.3, 0.5)) + 0.2 * rng.normal(size=50)
        ref = [
            [+0.0158972536486215, 0.0069207183284242, -0.0007474400714749],
            [+0.0069207183284242, 0.0205057958128679, +0.0053997711275403],
            [-0.0007474400714749, 0.0053997711275403, +0.0027833930320877],
        ]
        # MINPACK's popt has seven right digits, by forward differences.
        assert_allclose(ox.curve_fit(f, x, y)[1], ref, 5e-6)

    @pytest.mark.parametrize("method", ["trf", "dogbox"])
    def test_start_outside(self, method):
        with pytest.raises(ValueError, match="Initial guess is outside of provided bounds: `p0`"):
            ox.curve_fit(lambda x, a: x**a, X, Y, p0=[1], bounds=(1000, 1001), method=method)


# One program for all instances: the data are inputs.
MODELS = {
    "decay": (decay, [2.0, 0.7]),
    "peak": (lambda x, a, c, w: a * jnp.exp(-(((x - c) / w) ** 2)), [3.0, 2.0, 1.5]),
    "cubic": (lambda x, a, b, c: a * x**3 + b * x + c, [0.3, -2.0, 5.0]),
}


@pytest.mark.parametrize(("name", "method"), list(zip(MODELS, METHODS, strict=True)))
def test_as_scipy_on_random_data(name, method):
    f, true = MODELS[name]
    x = np.linspace(0.1, 4, 30)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        sigma = rng.uniform(0.05, 0.2, 30)
        y = np.asarray(f(x, *true)) + sigma * rng.normal(size=30)
        given = {"p0": true, "sigma": sigma, "absolute_sigma": bool(seed % 2)}
        popt, pcov = ox.curve_fit(f, x, y, method=method, **given)
        ref, ref_cov = scipy.optimize.curve_fit(as_scipy(f), x, y, xtol=1e-12, ftol=1e-12,
                                                method="trf", jac="3-point", **given)  # fmt: skip
        assert_allclose(popt, ref, rtol=1e-6)
        assert_allclose(pcov, ref_cov, rtol=1e-5)


def test_default_start_within_bounds():
    # SciPy's: the middle of two bounds, one unit from a single one, else 1.
    seen = []

    def f(x, a, b, c, d):
        jax.debug.callback(lambda *p: seen.append(p), a, b, c, d)
        return a * x + b + c + d

    with pytest.raises(RuntimeError):
        ox.curve_fit(f, X, Y, bounds=([0, -np.inf, 2, -np.inf], [8, 3, np.inf, np.inf]), max_nfev=1)
    jax.effects_barrier()
    assert tuple(map(float, seen[0])) == (4, 2, 3, 1)


DATA = {"t": np.linspace(0.0, 3.0, 20)}
RATES = np.asarray(2.0 * np.exp(-DATA["t"]) + 0.05 * np.cos(9 * DATA["t"]))


class TestStructures:
    @pytest.mark.parametrize(
        "f, p0",
        [
            (lambda d, height, rate: height * jnp.exp(-rate * d["t"]),
             {"height": 1.0, "rate": 1.0}),
            (lambda d, p: p["height"] * jnp.exp(-p["rate"] * d["t"]),
             {"height": 1.0, "rate": 1.0}),
            (lambda d, p: p["height"][0] * jnp.exp(-p["rate"] * d["t"]),
             {"height": jnp.ones(1), "rate": 1.0}),
            (lambda d, height, rate: height[0] * jnp.exp(-rate * d["t"]), (jnp.ones(1), 1.0)),
        ],
    )  # fmt: skip
    def test_of_parameters(self, f, p0):
        popt, pcov = ox.curve_fit(f, DATA, RATES, p0)
        flat, cov = ox.curve_fit(lambda d, a, b: a * jnp.exp(-b * d["t"]), DATA, RATES)
        assert jax.tree.structure(popt) == jax.tree.structure(p0)
        assert [jnp.shape(leaf) for leaf in jax.tree.leaves(popt)] == [
            jnp.shape(leaf) for leaf in jax.tree.leaves(p0)
        ]
        assert_allclose(np.hstack(jax.tree.leaves(popt)), flat)
        assert_allclose(pcov, cov)

    def test_names(self):
        fit = ox.curve_fit(
            lambda d, p: p["height"][0] * jnp.exp(-p["rate"] * d["t"]),
            DATA, RATES, {"height": jnp.ones(1), "rate": 1.0},
        )  # fmt: skip
        assert fit.covariance.names == ("height[0]", "rate")
        assert ox.curve_fit(decay, X, Y).covariance.names == ("a", "b")
        with_star = ox.curve_fit(lambda x, *p: p[0] * x + p[1], X, Y, [1.0, 1.0])
        assert with_star.covariance.names == ("x0", "x1")

    def test_any_object_for_x(self):
        class Times:
            def __init__(self, t):
                self.t = t

        def f(d, a, b):
            return decay(d.t, a, b)

        def jac(d, a, b):
            return jnp.stack([decay(d.t, 1.0, b), -d.t * decay(d.t, a, b)], axis=1)

        def rate(stretch):
            times = Times(stretch * jnp.asarray(DATA["t"]))
            return ox.curve_fit(f, times, RATES, jac=jac)[0][1]

        expected = ox.curve_fit(decay, DATA["t"], RATES)[0]
        for chosen in (None, jac):
            assert_allclose(ox.curve_fit(f, Times(DATA["t"]), RATES, jac=chosen)[0], expected)
        # The rate is one over the unit of time.
        assert_allclose(jax.jit(rate)(2.0), expected[1] / 2)
        assert_allclose(jax.grad(rate)(1.0), -expected[1], rtol=1e-6)

    def test_data_like_a_series(self):
        class Series:
            """What pandas.Series is to NumPy."""

            def __init__(self, values):
                self.values = np.asarray(values)

            def __array__(self, dtype=None, copy=None):
                return self.values if dtype is None else self.values.astype(dtype)

        ref = ox.curve_fit(line, X, Y, [1.0, 0.0], sigma=X)
        fit = ox.curve_fit(line, Series(X), Series(Y), Series([1.0, 0.0]), sigma=Series(X))
        assert_array_equal(fit.pcov, ref.pcov)
        assert_array_equal(
            ox.curve_fit(line, X, Y.astype(object), [1.0, 0.0], sigma=X).pcov, ref.pcov
        )

    @pytest.mark.parametrize("y", [Y + 1j, Y.astype(str)])
    def test_data_must_be_real(self, y):
        with pytest.raises(ValueError, match="`ydata` must be real numbers"):
            ox.curve_fit(line, X, y)

    def test_tuple_of_arrays_is_an_array(self):
        f = lambda x, a, b: a * x[0] + b * x[1]
        popt, _ = ox.curve_fit(f, (X, X**2), 2 * X + 3 * X**2)
        assert_allclose(popt, [2, 3])


class TestTransformations:
    def test_jit_and_vmap(self):
        many = np.stack([RATES, 2 * RATES, RATES + 0.1])
        fit = jax.jit(jax.vmap(lambda y: ox.curve_fit(decay, DATA["t"], y)))(many)
        popt, pcov = fit
        assert popt.shape == (3, 2) and pcov.shape == (3, 2, 2)
        for lane, y in enumerate(many):
            one = ox.curve_fit(decay, DATA["t"], y)
            assert_allclose(popt[lane], one.popt, rtol=1e-10)
            assert_allclose(pcov[lane], one.pcov, rtol=1e-8)

    @pytest.mark.parametrize("m", [3, 4])
    def test_lanes_as_many_as_parameters_or_data(self, m):
        # Three lanes of three parameters: a lane taken for a parameter would not be noticed.
        f = lambda t, a, b, c: a + b * t + c * t**2
        t = np.linspace(-1.0, 1.0, m)
        y = np.random.default_rng(m).normal(size=(3, m))
        call = lambda y: ox.curve_fit(f, t, y, sigma=0.1, absolute_sigma=True)
        fits, ones = jax.vmap(call)(y), [call(row) for row in y]
        for of in (
            lambda fit: fit.perr, lambda fit: fit.pcov, lambda fit: fit.predict(),
            lambda fit: fit.predict(t[:2]), lambda fit: fit.r_squared,
            lambda fit: fit.covariance.correlation, lambda fit: fit.covariance.scaled_factor,
        ):  # fmt: skip
            assert_allclose(of(fits), np.stack([of(one) for one in ones]), rtol=1e-6, atol=1e-12)
        for whole in (
            lambda: ox.covariance(fits.result), lambda: ox.propagate(sum, fits.covariance),
            lambda: ox.band(fits),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="must be one, not a batch"):
                whole()

    def test_failure_is_nan_inside_and_raised_outside(self):
        bad = lambda y: ox.curve_fit(decay, DATA["t"], y, max_nfev=2)[:2]
        with pytest.raises(RuntimeError, match="Optimal parameters not found: The maximum"):
            bad(RATES)
        popt, pcov = jax.jit(bad)(RATES)
        assert np.isnan(popt).all() and np.isnan(pcov).all()

    def test_singular_is_inf_inside(self):
        f = lambda x, a, b, c: a * b * x + c
        popt, pcov = jax.jit(lambda y: ox.curve_fit(f, X, y)[:2])(Y)
        assert np.isfinite(popt).all() and np.isposinf(np.asarray(pcov)).all()

    def test_one_bad_lane_leaves_the_others(self):
        many = np.stack([RATES, np.full(20, np.nan), RATES + 0.1])
        fit = jax.vmap(lambda y: ox.curve_fit(decay, DATA["t"], y))(many)
        assert_array_equal(np.isnan(fit.popt).any(1), [False, True, False])
        assert_allclose(fit.popt[2], ox.curve_fit(decay, DATA["t"], RATES + 0.1).popt)

    @pytest.mark.parametrize("of", [0, 1])  # popt, pcov
    def test_derivatives_by_differences(self, of):
        t = DATA["t"]
        x, y, sigma = jnp.asarray(t), jnp.asarray(RATES), jnp.full(20, 0.1) + 0.01 * t
        upper = jnp.array([1.8, 5.0])

        @jax.jit
        def fit(x, y, sigma, upper):
            box = (jnp.zeros(2), upper)
            return ox.curve_fit(decay, x, y, sigma=sigma, bounds=box, p0=[1.0, 1.0])[of]

        inputs = (x, y, sigma, upper)
        derivatives = jax.jit(jax.jacrev(fit, argnums=(0, 1, 2, 3)))(*inputs)
        assert_allclose(fit(*inputs)[0] if of == 0 else 1.8, 1.8)
        for k, jac in enumerate(derivatives):
            for i in (0, 1):
                h = 1e-5
                up, down = (
                    fit(*(v.at[i].add(s * h) if j == k else v for j, v in enumerate(inputs)))
                    for s in (1, -1)
                )
                assert_allclose(jac[..., i], (up - down) / (2 * h), rtol=2e-5, atol=1e-8)
        forward = jax.jit(jax.jacfwd(fit, argnums=1))(*inputs)
        assert_allclose(forward, derivatives[1], rtol=1e-8, atol=1e-12)

    def test_derivative_with_a_matrix_sigma(self):
        @jax.jit
        def rate(s):
            sigma = 0.01 * jnp.eye(20) + s * jnp.ones((20, 20))
            return ox.curve_fit(decay, DATA["t"], RATES, sigma=sigma, absolute_sigma=True)[1][0, 0]

        slope = (rate(0.01001) - rate(0.00999)) / 0.00002
        assert_allclose(jax.grad(rate)(0.01), slope, rtol=1e-3)

    @pytest.mark.usefixtures("x64_off")
    def test_float32(self):
        popt, pcov = ox.curve_fit(decay, DATA["t"], RATES)
        assert popt.dtype == pcov.dtype == np.float32
        ref, ref_cov = scipy.optimize.curve_fit(
            lambda t, a, b: a * np.exp(-b * t), DATA["t"], RATES
        )
        assert_allclose(popt, ref, rtol=1e-5)
        assert_allclose(pcov, ref_cov, rtol=1e-4)

    def test_float32_arrays_of_jax_stay_such(self):
        t, y = jnp.asarray(DATA["t"], jnp.float32), jnp.asarray(RATES, jnp.float32)
        assert ox.curve_fit(decay, t, y)[0].dtype == np.float32


class TestMaskAndFixed:
    @pytest.mark.parametrize("sigma", [None, 0.1, "vector", "matrix", "infinite"])
    def test_masked_data_count_for_nothing(self, sigma):
        rng = np.random.default_rng(0)
        t, y = np.append(DATA["t"], [np.nan, 7.0]), np.append(RATES, [3.0, np.nan])
        mask = np.append(np.ones(20, bool), [False, False])
        a = rng.normal(size=(22, 30))
        matrix = 1e-3 * a @ a.T
        full = {"vector": rng.uniform(0.05, 0.2, 22), "matrix": matrix}.get(sigma, sigma)
        part = {"vector": lambda: full[:20], "matrix": lambda: matrix[:20, :20]}.get(sigma)
        part = part() if part else sigma
        if sigma == "infinite":  # leaves a datum out, too
            full, part = np.append(np.ones(19), [np.inf] * 3), np.ones(19)
        n = 19 if sigma == "infinite" else 20
        res = ox.curve_fit(decay, t, y, sigma=full, mask=mask)
        ref = ox.curve_fit(decay, DATA["t"][:n], RATES[:n], sigma=part)
        assert_allclose(res[0], ref[0], rtol=1e-8)
        assert_allclose(res[1], ref[1], rtol=1e-7)
        assert int(res.nobs) == n

    @pytest.mark.parametrize("kind", [jnp.asarray, np.asarray, list])
    def test_of_arrays_of_any_kind(self, kind):
        there = np.array([True, True, False, True])
        ref = ox.curve_fit(line, X[there], Y[there])
        fit = ox.curve_fit(line, kind(X), kind(Y), mask=kind(there))
        assert_allclose(fit.perr, ref.perr, rtol=1e-9)
        gap = np.where(there, Y, np.nan)
        assert_allclose(ox.curve_fit(line, kind(X), kind(gap), nan_policy="omit").perr, ref.perr)
        masked = np.ma.masked_array(Y, ~there)
        assert_allclose(ox.curve_fit(line, kind(X), masked).perr, ref.perr, rtol=1e-9)

    def test_traced_omit_and_gradient(self):
        y = np.append(RATES, np.nan)
        t = np.append(DATA["t"], np.nan)
        rate = lambda t, y: ox.curve_fit(decay, t, y, nan_policy="omit")[0][1]
        g = jax.jit(jax.grad(rate, argnums=1))(t, y)
        ref = jax.grad(lambda y: ox.curve_fit(decay, DATA["t"], y)[0][1])(jnp.asarray(RATES))
        assert_allclose(g[:20], ref, rtol=1e-6)
        assert g[20] == 0

    def test_all_masked(self):
        with pytest.raises(ValueError, match="`ydata` must not be empty"):
            ox.curve_fit(decay, X, Y, mask=np.zeros(4, bool))

    @pytest.mark.parametrize("how", ["fixed", "bounds"])
    def test_fixed_is_as_without(self, how):
        f = lambda t, a, b, c: a * jnp.exp(-b * t) + c
        given = {
            "fixed": {"fixed": [False, False, True]},
            "bounds": {"bounds": ([0, 0, 0.1], [9, 9, 0.1])},
        }[how]
        fit = ox.curve_fit(f, DATA["t"], RATES, [1.0, 1.0, 0.1], **given)
        ref = ox.curve_fit(lambda t, a, b: f(t, a, b, 0.1), DATA["t"], RATES)
        assert_allclose(fit.popt[:2], ref.popt, rtol=1e-8)
        assert_allclose(fit.pcov[:2, :2], ref.pcov, rtol=1e-7)
        assert_array_equal(fit.pcov[2], 0)
        assert fit.popt[2] == 0.1
        assert "c is fixed" in fit.explain()[0]


class TestWhatIsNotThere:
    """Inside of a transformation: NaN, in values and in derivatives, where eagerly it raises."""

    T = jnp.linspace(0.0, 3.0, 12)

    def data(self):
        return decay(self.T, 2.0, 1.3) + 0.05 * jnp.cos(9 * self.T)

    @pytest.mark.parametrize("method", ["trf", pytest.param("dogbox", marks=pytest.mark.slow)])
    def test_bounds_of_lanes(self, method):
        """Inactive, active, reversed, NaN, and beyond p0; the derivative by differences."""

        def fit(y, upper):
            bounds = (jnp.zeros(2), jnp.stack([9.0, upper]))
            answer = ox.curve_fit(decay, self.T, y, [1.0, 1.0], bounds=bounds, method=method)
            return answer.popt, answer.pcov, answer.perr

        upper, y = jnp.array([9.0, 1.1, -1.0, jnp.nan, 0.5]), self.data()
        lanes = jax.jit(jax.vmap(fit, (None, 0)))
        slopes = jax.jit(jax.vmap(jax.jacfwd(fit, (0, 1)), (None, 0)))(y, upper)
        popt, pcov, perr = lanes(y, upper)
        assert np.isfinite(popt[:2]).all() and np.isfinite(pcov[:2]).all()
        for leaf in jax.tree.leaves((popt, pcov, perr, slopes)):
            assert np.isnan(leaf[2:]).all()
        step = 1e-5
        by_upper = slopes[0][1]
        more, less = lanes(y, upper + step)[0], lanes(y, upper - step)[0]
        assert_allclose(by_upper[:2], (more - less)[:2] / (2 * step), rtol=1e-6, atol=1e-8)
        assert_allclose(by_upper[0], 0.0)
        assert_allclose(by_upper[1, 1], 1.0)

    def test_a_failed_lane_is_not_mixed_with_others(self):
        """The height is proportional to the data."""

        def first(scale):
            def fit(upper):
                bounds = (0.0, jnp.stack([9.0, upper]))
                return ox.curve_fit(decay, self.T, scale * self.data(), [1.0, 1.0], bounds=bounds)

            heights = jax.vmap(fit)(jnp.array([9.0, -1.0])).popt[:, 0]
            return heights[0], jnp.where(jnp.isfinite(heights), heights, 0.0)

        height, slopes = first(1.0)[0], jax.jit(jax.jacrev(first))(1.0)
        assert_allclose(slopes[0], height, rtol=1e-6)
        assert_allclose(slopes[1], [height, 0.0], rtol=1e-6)

    def test_no_data_at_all(self):
        counts = jnp.stack([jnp.arange(12) < m for m in (12, 6, 0)])
        fit = lambda mask: ox.curve_fit(decay, self.T, self.data(), [1.0, 1.0], mask=mask)
        many = jax.vmap(fit)(counts)
        assert list(many.result.success) == [True, True, False]
        assert np.isnan(many.popt[2]).all() and np.isnan(many.perr[2]).all()
        for lane, m in enumerate((12, 6)):
            ref = scipy.optimize.curve_fit(as_scipy(decay), self.T[:m], self.data()[:m], [1.0, 1.0])
            assert_allclose(many.popt[lane], ref[0], rtol=1e-6)
            assert_allclose(many.pcov[lane], ref[1], rtol=1e-4)

    def test_a_mask_that_the_compiled_function_captured(self):
        mask = jnp.arange(12) < 6
        fit = lambda y: ox.curve_fit(decay, self.T, y, [1.0, 1.0], mask=mask).popt
        assert_allclose(jax.jit(fit)(self.data()), fit(self.data()), rtol=1e-10)

    def test_negative_errors_of_x(self):
        fit = lambda s: (
            ox.curve_fit(
                decay, self.T, self.data(), [1.0, 1.0], sigma=0.1, sigma_x=jnp.full(12, s)
            ).popt
        )
        assert np.isnan(jax.jit(fit)(-0.1)).all()
        with pytest.raises(ValueError, match="`sigma_x`"):
            fit(-0.1)

    def test_eager_derivative_of_a_fit_without_errors(self):
        """Through two points: y[0] is the height, and the rate follows from both in closed form."""
        with pytest.warns(ox.OptimizeWarning, match="could not be estimated"):
            jac = jax.jacfwd(lambda y: ox.curve_fit(decay, X[:2] - 1, y, [1.0, 1.0]).popt)(
                jnp.array([2.0, 1.0])
            )
        assert_allclose(jac, [[1.0, 0.0], [0.5, -1.0]], atol=1e-6)


@pytest.mark.parametrize("what", ["y", "sigma"])
def test_errors_in_units_whose_squares_are_out_of_range(what):
    t = TestWhatIsNotThere.T
    y = TestWhatIsNotThere().data()

    @jax.jit
    def errors(unit):
        if what == "sigma":
            return ox.curve_fit(decay, t, y, [1.0, 1.0], sigma=jnp.full(12, unit)).perr
        perr = ox.curve_fit(decay, t, unit * y, jnp.stack([unit, 1.0])).perr
        return perr / jnp.stack([unit, 1.0])

    reference = errors(1.0)
    for unit in (1e-250, 1e-160, 1e160, 1e200):
        assert_allclose(errors(unit), reference, rtol=1e-5)


@pytest.mark.parametrize("under", [lambda f: f, jax.jit])
def test_a_loop_of_fits_compiles_once(under, caplog):
    f = under(lambda t, a, b: a / (b + t))
    t, rng = np.linspace(0.0, 2.0, 17), np.random.default_rng(0)
    data = [2.0 / (1.5 + t) + 0.01 * rng.normal(size=17) for _ in range(4)]
    ox.curve_fit(f, t, data[0])
    short = [(t[:m], data[0][:m]) for m in (9, 12, 15)]
    padded = list(zip(*ox.pad_data(*zip(*short, strict=True), length=17), strict=True))
    ox.curve_fit(f, *padded[0][:2], mask=padded[0][2])
    with jax.log_compiles(), caplog.at_level("WARNING"):
        fits = [ox.curve_fit(f, t, y) for y in data]
        gaps = [ox.curve_fit(f, x, y, mask=there) for x, y, there in padded]
    assert not [r for r in caplog.records if "Compiling" in r.getMessage()]
    for fit, (x, y) in zip([*fits, *gaps], [*((t, y) for y in data), *short], strict=True):
        popt, pcov = scipy.optimize.curve_fit(as_scipy(f), x, y, [1.0, 1.0])
        assert_allclose(fit.popt, popt, rtol=1e-5)
        assert_allclose(fit.pcov, pcov, rtol=1e-4)


def test_a_hint_at_many_lengths_is_given_once(monkeypatch, caplog):
    monkeypatch.setattr(curve_fit_module, "LENGTH_HINT", padding.LengthHint())
    monkeypatch.setattr(curve_fit_module, "with_solver", _no_fit)
    for f in (line, decay):
        for k, m in enumerate((4, 5, 5, 5, 6, 7, 8, 9, 10)):
            with pytest.raises(NotImplementedError):
                ox.curve_fit(f, np.ones(m), np.ones(m))
            assert len(caplog.records) == (f is decay or k >= 6)
    assert "ox.pad_data" in caplog.text


def _no_fit(*_, **__):
    raise NotImplementedError
