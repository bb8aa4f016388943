"""Covariances by oracle: closed forms, the limit of a prior, invariances, simulation.

NIST's certified deviations are in `test_nist`.
"""

import itertools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox

METHODS = ("trf", "dogbox", "lm")
T = np.linspace(0.0, 3.0, 25)
RNG = np.random.default_rng(5)
Y = 2.0 * np.exp(-1.2 * T) + 0.3 + 0.05 * RNG.normal(size=25)


def residuals(p, t, y):
    return p[0] * jnp.exp(-p[1] * t) + p[2] - y


def by_inverse(jac, variance):
    """The textbook's formula, in extended precision of the scaled columns."""
    size = np.linalg.norm(jac, axis=0)
    inverse = np.linalg.inv(np.linalg.qr(jac / size)[1])
    return variance * (inverse @ inverse.T) / np.outer(size, size)


def in_turn(cases, methods):
    """Each case by one method: what is tested begins where the methods have ended."""
    return list(zip(cases, itertools.cycle(methods)))


class TestLinearLoss:
    @pytest.mark.parametrize("method", METHODS)
    def test_textbook(self, method):
        res = ox.least_squares(residuals, [1.0, 1.0, 0.0], method=method, args=(T, Y))
        s2 = 2 * res.cost / 22
        cov = ox.covariance(res)
        assert_allclose(cov.matrix, by_inverse(np.asarray(res.jac), s2), rtol=1e-10)
        assert_allclose(np.asarray(cov), cov.matrix)
        assert_allclose(cov.stderr, np.sqrt(np.diag(cov.matrix)))
        d = np.diag(1 / np.asarray(cov.stderr))
        assert_allclose(cov.correlation, d @ cov.matrix @ d, rtol=1e-9)
        assert_allclose(ox.covariance(res, absolute_sigma=True).matrix, cov.matrix / s2, rtol=1e-10)

    @pytest.mark.parametrize("method", METHODS)
    def test_a_parameter_may_be_zero(self, method):
        # SciPy's lm is wrong there. A linear model: the covariance is that of any data.
        f = lambda p, y: p[0] * T + p[1] - y
        bumps = np.cos(7 * T)
        design = np.stack([T, np.ones_like(T)], axis=1)
        bumps -= design @ np.linalg.lstsq(design, bumps, rcond=None)[0]
        res = ox.least_squares(f, [1.0, 1.0], method=method, args=(bumps,))  # the best is 0, 0
        expected = by_inverse(design, bumps @ bumps / 23)
        assert_allclose(ox.covariance(res).matrix, expected, rtol=1e-9)

    @pytest.mark.parametrize("exponents", [(0, 0, 0), (8, -8, 3), (-100, 60, -60), (140, 0, -140)])
    def test_units_of_parameters(self, exponents):
        unit = 10.0 ** np.array(exponents)
        f = lambda p, t, y: residuals(p / unit, t, y)
        res = ox.least_squares(f, [1.0, 1.0, 0.1] * unit, method="lm", args=(T, Y))
        ref = ox.covariance(ox.least_squares(residuals, [1.0, 1.0, 0.1], method="lm", args=(T, Y)))
        cov = ox.covariance(res)
        assert_allclose(cov.stderr / unit, ref.stderr, rtol=1e-8)
        assert_allclose(cov.correlation, ref.correlation, rtol=1e-7)
        assert int(cov.rank) == 3

    @pytest.mark.parametrize("unit", [1e-8, 1e8])
    def test_units_of_residuals(self, unit):
        res = ox.least_squares(lambda p: unit * residuals(p, T, Y), [1.0, 1.0, 0.1])
        ref = ox.covariance(ox.least_squares(residuals, [1.0, 1.0, 0.1], args=(T, Y)))
        assert_allclose(ox.covariance(res).matrix, ref.matrix, rtol=1e-7)

    def test_exact_hessian(self):
        # By differences of the gradient of the cost, s² H^-1.
        res = ox.least_squares(residuals, [1.0, 1.0, 0.0], args=(T, Y), xtol=1e-12)
        gradient = jax.jit(jax.grad(lambda p: 0.5 * jnp.sum(residuals(p, T, Y) ** 2)))
        h = 1e-5
        hessian = np.stack([(gradient(res.x + e) - gradient(res.x - e)) / (2 * h)
                            for e in h * jnp.eye(3)])  # fmt: skip
        expected = 2 * res.cost / 22 * np.linalg.inv(0.5 * (hessian + hessian.T))
        cov = ox.covariance(res, residuals, args=(T, Y), hessian="exact")
        assert_allclose(cov.matrix, expected, rtol=1e-6)
        assert np.max(np.abs(cov.matrix / ox.covariance(res).matrix - 1)) > 1e-3
        # Its negative log-likelihood, minimised, has the same.
        s2 = 2 * float(res.cost) / 22
        likelihood = lambda p: 0.5 * jnp.sum(residuals(p, T, Y) ** 2) / s2
        best = ox.minimize(likelihood, res.x, options={"gtol": 1e-10, "ftol": 1e-14})
        assert_allclose(ox.covariance(best, likelihood).matrix, expected, rtol=1e-5)

    def test_jit_vmap_and_derivatives(self):
        def errors(y):
            res = ox.least_squares(residuals, jnp.array([1.0, 1.0, 0.0]), args=(T, y), xtol=1e-13)
            return ox.covariance(res).stderr

        many = jnp.stack([jnp.asarray(Y), Y + 0.01 * np.sin(T)])
        batch = jax.jit(jax.vmap(errors))(many)
        assert_allclose(batch[1], errors(many[1]), rtol=1e-8)
        jac = jax.jit(jax.jacrev(errors))(many[0])
        errors = jax.jit(errors)
        for i in (0, 7):
            e = jnp.zeros(25).at[i].set(1e-5)
            slope = (errors(many[0] + e) - errors(many[0] - e)) / 2e-5
            assert_allclose(jac[:, i], slope, rtol=1e-5)
        assert_allclose(jax.jacfwd(errors)(many[0]), jac, rtol=1e-9)

    def test_unconverged_is_nan(self):
        res = ox.least_squares(residuals, [1.0, 1.0, 0.0], args=(T, Y), max_nfev=2)
        cov = ox.covariance(res)
        assert np.isnan(cov.matrix).all() and np.isnan(cov.stderr).all()
        assert "nothing is known" in cov.explain()[0]

    @pytest.mark.usefixtures("x64_off")
    def test_float32(self):
        res = ox.least_squares(residuals, [1.0, 1.0, 0.0], args=(T.astype("f"), Y.astype("f")))
        cov = ox.covariance(res)
        assert cov.matrix.dtype == np.float32
        jac = np.asarray(res.jac, float)
        assert_allclose(cov.matrix, by_inverse(jac, 2 * float(res.cost) / 22), rtol=1e-3)


class TestBounds:
    def fits(self, method="trf"):
        free = [1.0, 1.0, 0.1]
        bounded = ox.least_squares(
            residuals, free, args=(T, Y), bounds=([0, 0, -1], [9, 9, 0.2]), method=method
        )
        fixed = ox.least_squares(lambda p: residuals((p[0], p[1], 0.2), T, Y), free[:2])
        return bounded, fixed

    @pytest.mark.parametrize("method", ["trf", "dogbox"])
    def test_at_a_bound_as_if_fixed(self, method):
        bounded, fixed = self.fits(method)
        cov, ref = ox.covariance(bounded), ox.covariance(fixed)
        assert_array_equal(cov.active_mask, [0, 0, 1])
        assert_allclose(cov.matrix[:2, :2], ref.matrix, rtol=1e-8)
        assert_array_equal(cov.matrix[2], 0)
        assert int(cov.dof) == 23
        assert cov.explain()[0].startswith("x2 is on its upper bound: its error is 0")

    @pytest.mark.parametrize(("rate", "method"), in_turn([1e-2, 1e-4, 1e-6], ["trf", "dogbox"]))
    def test_a_small_parameter_is_not_on_its_bound(self, method, rate):
        # Beside an amplitude of 1e6 a small rate is near 0 in xtol's norm, so SciPy's active mask
        # says -1; but no bound holds it, and it has an error.
        t = T / rate
        y = 1e6 * np.exp(-rate * t) + 10 * np.cos(np.arange(25.0))
        f = lambda p: p[0] * jnp.exp(-p[1] * t) - y
        res = ox.least_squares(f, [8e5, 2 * rate], bounds=(0, np.inf), method=method)
        free = ox.least_squares(f, [8e5, 2 * rate], method="lm")
        assert_allclose(ox.covariance(res).stderr, ox.covariance(free).stderr, rtol=1e-6)

    def test_a_likelihood(self):
        f = lambda p: 0.5 * jnp.sum((residuals(p, T, Y) / 0.05) ** 2)
        bounds = [(0, 9), (0, 9), (-1, 0.2)]
        res = ox.minimize(f, [1.0, 1.0, 0.1], bounds=bounds, options={"gtol": 1e-9, "ftol": 1e-14})
        cov = ox.covariance(res, f, bounds=((0, 0, -1), (9, 9, 0.2)))
        g = lambda q: 0.5 * jnp.sum((residuals((q[0], q[1], 0.2), T, Y) / 0.05) ** 2)
        expected = np.linalg.inv(jax.hessian(g)(res.x[:2]))
        assert_allclose(cov.matrix[:2, :2], expected, rtol=1e-6)
        assert_array_equal(cov.matrix[2], 0)
        with pytest.raises(ValueError, match="no minimum of `fun`"):  # `bounds` are forgotten
            ox.covariance(res, f)
        with pytest.raises(ValueError, match="`fun` is missing"):
            ox.covariance(res)


SINGULAR = {
    "product": (lambda p: p[0] * p[2] * jnp.exp(-p[1] * T), [1.0, 1.0, 2.0], "x0*x2", [0, 2]),
    "quotient": (lambda p: p[0] / p[2] * jnp.exp(-p[1] * T), [1.0, 1.0, 2.0], "x0/x2", [0, 2]),
    "square": (lambda p: p[0] ** 2 * p[2] * jnp.exp(-p[1] * T), [1.0, 1.0, 2.0], "x0^2*x2", [0, 2]),
    "sum": (lambda p: (p[0] + p[2]) * jnp.exp(-p[1] * T), [1.0, 1.0, 0.7], "x0 + x2", [0, 2]),
    "exponent": (lambda p: jnp.exp(p[0] - p[2] - p[1] * T), [1.0, 1.0, 0.7], "x0 - x2", [0, 2]),
    "combination": (lambda p: (3 * p[0] + p[2]) * jnp.exp(-p[1] * T), [0.1, 1.0, 0.7],
                    "3 x0 + x2", [0, 2]),
}  # fmt: skip


class TestSingular:
    @pytest.mark.parametrize(("name", "method"), in_turn(SINGULAR, METHODS))
    def test_named(self, name, method):
        model, start, said, lost = SINGULAR[name]
        f = lambda p: model(p) - Y
        res = ox.least_squares(f, start, method=method)
        cov = ox.covariance(res)
        assert int(cov.rank) == 2
        assert list(np.flatnonzero(cov.undetermined)) == lost
        assert np.isposinf(np.asarray(cov.stderr)[lost]).all()
        # The rate has the error that it has in a model with one parameter less.
        ref = ox.least_squares(lambda p: p[0] * jnp.exp(-p[1] * T) - Y, [1.0, 1.0], method=method)
        assert_allclose(cov.stderr[1], ox.covariance(ref).stderr[1], rtol=1e-5)
        unchanged = lambda x: bool(jnp.allclose(f(x), f(res.x)))
        (sentence,) = cov.explain(unchanged)
        assert sentence == f"x0 and x2 enter only as {said}."
        assert re.match("x0 and x2 are not determined: along .* do not change", cov.explain()[0])

    @pytest.mark.parametrize("name", ["product", "sum"])
    def test_what_never_had_an_effect_of_its_own_has_not_lost_it(self, name):
        # From any start and in any units, where a pivot of J is 0 or rounding all the way.
        rng = np.random.default_rng(0)
        starts, units = rng.uniform(0.3, 2.0, (50, 3)), 10.0 ** rng.integers(-3, 4, (50, 3))
        fit = lambda x, u: ox.least_squares(
            lambda p: SINGULAR[name][0](p * u) - Y, x / u, method="lm"
        )
        res = jax.jit(jax.vmap(fit))(jnp.asarray(starts), jnp.asarray(units))
        ref = ox.least_squares(lambda p: p[0] * jnp.exp(-p[1] * T) - Y, [1.0, 1.0])
        assert res.success.all()
        assert_allclose(res.cost, ref.cost, rtol=1e-6)

    def test_in_many_directions(self):
        f = lambda p: p["a"] * p["b"] * p["c"] * jnp.exp(-p["k"] * T) + 0 * p["z"] - Y
        res = ox.least_squares(f, {"a": 1.0, "b": 2.0, "c": 3.0, "k": 1.0, "z": 4.0})
        cov = ox.covariance(res)
        assert int(cov.rank) == 2
        assert [n for n, u in zip(cov.names, cov.undetermined, strict=True) if u] == [
            "a", "b", "c", "z",
        ]  # fmt: skip
        text = " ".join(cov.explain())
        assert "z is not determined: the residuals do not depend on it" in text

    def test_by_differences(self):
        # Noise of the scheme must not be taken for knowledge.
        with pytest.warns(ox.OptimizeWarning, match="a and c enter only as a\\*c"):
            _, pcov = ox.curve_fit(lambda t, a, b, c: a * c * jnp.exp(-b * t), T, Y, jac="2-point")
        assert np.isposinf(np.asarray(pcov)).all()

    def test_derivative_is_nan(self):
        def error(y):
            f = lambda p: p[0] * p[2] * jnp.exp(-p[1] * T) - y
            return ox.covariance(ox.least_squares(f, jnp.array([1.0, 1.0, 2.0]))).stderr[1]

        assert np.isnan(jax.grad(error)(jnp.asarray(Y))).all()

    def test_few_data(self):
        res = ox.least_squares(lambda p: p[0] * jnp.array([1.0, 2.0]) + p[1] - 1.0, [1.0, 0.0])
        cov = ox.covariance(res)
        assert np.isposinf(np.asarray(cov.stderr)).all()
        assert "no more data than parameters" in cov.explain()[0]
        assert np.isfinite(ox.covariance(res, absolute_sigma=True).matrix).all()


class TestRobust:
    @pytest.mark.parametrize(
        ("loss", "method"), in_turn(["soft_l1", "huber", "cauchy", "arctan"], METHODS)
    )
    def test_sandwich(self, loss, method):
        y = Y.copy()
        y[[3, 11]] += [1.5, -2.0]
        given = {"loss": loss, "f_scale": 0.1}
        res = ox.least_squares(residuals, [2.0, 1.2, 0.3], args=(T, y), method=method, **given)
        # psi and its slope by differentiating the loss itself.
        rho = {
            "soft_l1": lambda z: 2 * (jnp.sqrt(1 + z) - 1),
            "huber": lambda z: jnp.where(z <= 1, z, 2 * jnp.sqrt(z) - 1),
            "cauchy": jnp.log1p,
            "arctan": jnp.arctan,
        }[loss]
        cost = lambda f: 0.5 * 0.01 * rho((f / 0.1) ** 2)
        psi, slope = jax.vmap(jax.grad(cost)), jax.vmap(jax.grad(jax.grad(cost)))
        jac = jax.jacfwd(residuals)(res.x, T, y)
        # Huber's pooled sandwich, with his correction.
        mean, spread = slope(res.fun).mean(), slope(res.fun).var()
        s2 = (1 + 3 / 25 * spread / mean**2) * np.sum(psi(res.fun) ** 2) / 22 / mean
        for exact in (False, True):
            bread = jac.T @ (slope(res.fun)[:, None] * jac)
            if exact:
                bread = jax.hessian(lambda p: cost(residuals(p, T, y)).sum())(res.x)
            kind = "exact" if exact else "gauss-newton"
            cov = ox.covariance(res, residuals, args=(T, y), hessian=kind, **given)
            assert_allclose(cov.matrix, s2 * np.linalg.inv(bread), rtol=1e-6)
        # Data that are not there change nothing.
        more = eqx.tree_at(
            lambda r: (r.fun, r.jac), res,
            (jnp.append(res.fun, jnp.zeros(7)), jnp.concatenate([res.jac, jnp.zeros((7, 3))])),
        )  # fmt: skip
        padded, plain = ox.covariance(more, nobs=25, **given), ox.covariance(res, **given)
        assert_allclose(padded.matrix, plain.matrix, rtol=1e-10)

    def test_the_loss_must_be_that_of_the_fit(self):
        y = Y.copy()
        y[3] += 1.5
        res = ox.least_squares(residuals, [2.0, 1.2, 0.3], args=(T, y), loss="huber", f_scale=0.1)
        for wrong in ({}, {"loss": "cauchy", "f_scale": 0.1}, {"loss": "huber", "f_scale": 1.0}):
            with pytest.raises(ValueError, match="must be those of the fit"):
                ox.covariance(res, **wrong)
        assert np.isnan(jax.jit(lambda r: ox.covariance(r).matrix)(res)).all()


class TestPropagation:
    def test_by_simulation(self):
        fit = ox.curve_fit(lambda t, a, b: a * jnp.exp(-b * t), T, Y - 0.3)
        g = lambda p: {"life": jnp.log(2) / p[1], "area": p[0] / p[1]}
        value, error = ox.propagate(g, fit)
        p = np.random.default_rng(0).multivariate_normal(fit.popt, 0.01 * fit.pcov, 200_000)
        assert_allclose(error["life"], np.std(np.log(2) / p[:, 1]) * 10, rtol=0.01)
        assert_allclose(error["area"], np.std(p[:, 0] / p[:, 1]) * 10, rtol=0.01)
        assert_allclose(value["area"], fit.popt[0] / fit.popt[1])
        assert_allclose(ox.propagate(g, fit.popt, fit.pcov)[1]["area"], error["area"])
        jitted = jax.jit(lambda fit: ox.propagate(g, fit)[1]["area"])(fit)
        assert_allclose(jitted, error["area"])

    def test_of_what_is_determined_though_its_parts_are_not(self):
        with pytest.warns(ox.OptimizeWarning):
            fit = ox.curve_fit(lambda t, a, b, c: a * c * jnp.exp(-b * t), T, Y)
        ref = ox.curve_fit(lambda t, a, b: a * jnp.exp(-b * t), T, Y)
        product, error = ox.propagate(lambda p: p[0] * p[2], fit)
        assert_allclose(product, ref.popt[0], rtol=1e-7)
        assert_allclose(error, ref.perr[0], rtol=1e-6)
        assert np.isposinf(ox.propagate(lambda p: p[0] + p[2], fit)[1])
        x = np.array([0.0, 1.0, 5.0])
        assert_allclose(ox.band(fit, x).stderr, ox.band(ref, x).stderr, rtol=1e-5)

    @pytest.mark.parametrize("kind", ["confidence", "prediction"])
    @pytest.mark.parametrize("absolute", [False, True])
    def test_bands_of_a_line(self, kind, absolute):
        # The textbook's: s² x^T (X^T X)^-1 x, and s² more for a prediction; t or normal.
        import scipy.stats

        f = lambda x, a, b: a * x + b
        fit = ox.curve_fit(f, T, Y, sigma=0.2, absolute_sigma=absolute)
        x = np.array([-1.0, 0.5, 9.0])
        design, at = np.stack([T, np.ones(25)], 1), np.stack([x, np.ones(3)], 1)
        left = Y - design @ np.linalg.lstsq(design, Y, rcond=None)[0]
        s2 = 0.04 if absolute else left @ left / 23
        variance = s2 * np.einsum("ij,jk,ik->i", at, np.linalg.inv(design.T @ design), at)
        variance = variance + (s2 if kind == "prediction" else 0)
        q = scipy.stats.norm.ppf(0.95) if absolute else scipy.stats.t.ppf(0.95, 23)
        b = ox.band(fit, x, level=0.9, kind=kind)
        assert_allclose(b.upper - b.curve, q * np.sqrt(variance), rtol=1e-8)
        assert_allclose(b.curve - b.lower, q * np.sqrt(variance), rtol=1e-8)


def test_influence_by_leaving_out():
    f = lambda x, a, b: a * x + b
    mask = np.ones(25, bool)
    sigma = np.linspace(0.1, 0.3, 25)
    fit = ox.curve_fit(f, T, Y, sigma=sigma, mask=mask)
    s2 = float(fit.covariance.variance)
    inf = ox.influence(fit)
    assert_allclose(inf.leverage.sum(), 2)
    for i in (0, 7, 24):
        mask = np.arange(25) != i
        without = ox.curve_fit(f, T, Y, sigma=sigma, mask=mask)
        at = np.array([T[i], 1.0])
        variance = without.covariance.variance * sigma[i] ** 2 + at @ without.pcov @ at
        expected = (f(T[i], *without.popt) - Y[i]) / np.sqrt(variance)
        assert_allclose(inf.external[i], expected, rtol=1e-8)
        moved = (f(T, *fit.popt) - f(T, *without.popt)) / sigma
        assert_allclose(inf.cooks_distance[i], moved @ moved / (2 * s2), rtol=1e-8)


class TestReport:
    def test_statistics(self):
        f = lambda x, a, b: a * x + b
        fit = ox.curve_fit(f, T, Y)
        report = ox.fit_report(fit)
        left = Y - np.polyval(np.polyfit(T, Y, 1), T)
        chi2 = left @ left
        said = report.statistics
        assert_allclose(said["chi2"], chi2)
        assert_allclose(said["reduced chi2"], chi2 / 23)
        assert_allclose(said["AIC"], 25 * np.log(chi2 / 25) + 4)
        assert_allclose(said["BIC"], 25 * np.log(chi2 / 25) + 2 * np.log(25))
        assert_allclose(said["R2"], 1 - chi2 / np.sum((Y - Y.mean()) ** 2))
        (pair,) = report.correlations
        assert_allclose(pair[2], np.corrcoef(np.random.default_rng(0).multivariate_normal(
            fit.popt, fit.pcov, 100_000).T)[0, 1], atol=0.01)  # fmt: skip
        assert pair[:2] == ("b", "a") and "<table>" in report._repr_html_()
        assert str(report) == repr(fit)

    def test_says_what_is_wrong(self):
        f = lambda t, a, b, c, d: a * c * jnp.exp(-b * t) + d
        with pytest.warns(ox.OptimizeWarning):
            fit = ox.curve_fit(
                f, T, Y, {"a": 1.0, "b": 1.0, "c": 2.0, "d": 0.1}, bounds=({"a": 0.0, "b": 0.0,
                "c": 0.0, "d": 0.0}, {"a": 9.0, "b": 9.0, "c": 9.0, "d": 0.2}),
            )  # fmt: skip
        text = str(ox.fit_report(fit))
        assert "at upper bound" in text and "a and c enter only as a*c." in text
        assert re.search(r"a +\S+ ± inf +not determined", text)

    def test_of_a_batch(self):
        fit = jax.vmap(lambda y: ox.curve_fit(lambda x, a, b: a * x + b, T, y))(np.stack([Y, Y]))
        with pytest.raises(ValueError, match="one fit"):
            ox.fit_report(fit)
        assert "Parameters" in str(ox.fit_report(jax.tree.map(lambda leaf: leaf[0], fit)))


class TestProfiles:
    @pytest.mark.parametrize("absolute", [False, True])
    def test_linear_models_have_standard_errors(self, absolute):
        f = lambda x, a, b: a * x + b
        fit = ox.curve_fit(f, T, Y, sigma=0.1, absolute_sigma=absolute)
        ends = ox.profile_intervals(fit)
        import scipy.stats

        q = 1.0 if absolute else scipy.stats.t.ppf(0.5 + 0.6826894921370859 / 2, 23)
        assert_allclose(ends.upper - fit.popt, q * fit.perr, rtol=1e-5)
        assert_allclose(fit.popt - ends.lower, q * fit.perr, rtol=1e-5)
        curve, status = ox.contour(fit, "a", "b", points=8)
        away = np.asarray(curve) - np.asarray(fit.popt)
        size = np.einsum("ij,jk,ik->i", away, np.linalg.inv(fit.pcov), away)
        level = 0.6826894921370859
        expected = (
            scipy.stats.chi2.ppf(level, 2) if absolute else 2 * scipy.stats.f.ppf(level, 2, 23)
        )
        assert_allclose(size, expected, rtol=1e-5)
        assert_array_equal(status, 0)

    def test_do_not_depend_on_the_parametrisation(self):
        fit = ox.curve_fit(lambda t, a, b: a * jnp.exp(-b * t), T, Y)
        log = ox.curve_fit(lambda t, a, b: a * jnp.exp(-jnp.exp(b) * t), T, Y)
        one, other = (ox.profile_intervals(f, ["b"], level=0.95) for f in (fit, log))
        assert_allclose(np.exp(other.lower), one.lower, rtol=1e-6)
        assert_allclose(np.exp(other.upper), one.upper, rtol=1e-6)

    def test_ends_at_bounds_and_nowhere(self):
        f = lambda t, a, b, c: a * jnp.exp(-b * t) + c
        box = ([0, 0, 0.28], [9, 9, np.inf])
        ends = ox.profile_intervals(ox.curve_fit(f, T, Y, bounds=box), ["c"], level=0.9999)
        assert_allclose(ends.lower, 0.28)
        assert_array_equal(ends.status, [[2, 0]])
        with pytest.warns(ox.OptimizeWarning):
            lost = ox.curve_fit(lambda t, a, c: a * c * jnp.exp(-t), T, Y)
        ends = ox.profile_intervals(lost)
        assert_array_equal(ends.status, 1)
        assert np.isposinf(np.asarray(ends.upper)).all()

    def test_do_not_depend_on_units(self):
        # Where there is no standard error to start from: at a bound, and where nothing depends.
        unit = 1e-9
        in_units = lambda u: lambda t, a, b, c: a / u * jnp.exp(-b * t) + c / u
        for u in (1.0, unit):
            fit = ox.curve_fit(in_units(u), T, Y, [u, 1, u], bounds=([0, 0, 0.32 * u], np.inf))
            ends = ox.profile_intervals(fit, ["c"])
            assert ends.status[0, 0] == 2
            if u == 1:
                ref = ends
        assert_allclose(ends.upper / unit, ref.upper, rtol=1e-6)


def test_padded_data_share_a_program():
    f = lambda x, a, b: a * x + b
    sets = [(T[:m], Y[:m]) for m in (9, 17, 25)]
    x, y, mask = ox.pad_data(*zip(*sets, strict=True), length=30)
    fit = jax.jit(jax.vmap(lambda x, y, m: ox.curve_fit(f, x, y, mask=m)))(x, y, mask)
    for lane, (t, data) in enumerate(sets):
        ref = ox.curve_fit(f, t, data)
        assert_allclose(fit.popt[lane], ref.popt, rtol=1e-8)
        assert_allclose(fit.pcov[lane], ref.pcov, rtol=1e-7)
    with pytest.raises(ValueError, match="`length`"):
        ox.pad_data(*zip(*sets, strict=True), length=5)
