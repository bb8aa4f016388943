"""Pictures show what they are of; bars and histories say what the solve did."""

import importlib
import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox

T = np.linspace(0.0, 3.0, 20)
Y = 2.0 * np.exp(-T) + 0.05 * np.cos(9 * T)


def decay(t, height, rate):
    return height * jnp.exp(-rate * t)


def residuals(x, y):
    return x[0] * jnp.exp(-x[1] * T) - y


def test_importing_draws_in_nothing():
    code = "import optx_lite, sys; assert not {'matplotlib', 'tqdm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def fit():
    mask = np.arange(20) != 5
    return ox.curve_fit(decay, T, np.where(mask, Y, np.nan), sigma=0.1, mask=mask)


class TestPictures:
    @pytest.fixture(autouse=True)
    def without_a_screen(self):
        pytest.importorskip("matplotlib").use("Agg")
        yield
        importlib.import_module("matplotlib.pyplot").close("all")

    def test_fit(self, fit):
        top, bottom = ox.plot.fit(fit, prediction=True)
        (curve,) = [line for line in top.lines if line.get_label() == "fit"]
        x, y = curve.get_data()
        assert_allclose(y, decay(x, *fit.popt), rtol=1e-6)
        data, left = (part.containers[0].lines[0].get_data() for part in (top, bottom))
        assert_array_equal(data[0], np.delete(T, 5))
        assert_allclose(left[1], np.delete(Y - np.asarray(fit.predict()), 5), atol=1e-12)
        assert ox.plot.fit(fit, ax=(top, bottom))[0] is top

    def test_correlation(self, fit):
        ax = ox.plot.correlation(fit)
        assert_allclose(ax.images[0].get_array(), fit.covariance.correlation)
        assert ox.plot.correlation(fit.covariance, ax=ax) is ax

    def test_contours(self, fit):
        ax = ox.plot.contours(fit, "height", "rate", levels=[0.9], points=8, path=[[9, 9], [2, 1]])
        curve, _ = ox.contour(fit, "height", "rate", level=0.9, points=8)
        assert_allclose(ax.lines[0].get_xydata()[:-1], curve)
        assert_allclose(ax.lines[-1].get_xydata()[0], fit.popt)

    def test_profiles(self, fit):
        (ax,) = ox.plot.profiles(fit, ["rate"], level=0.9, points=9)
        (quadratic,) = [line for line in ax.lines if line.get_label() == "quadratic"]
        (profile,) = [line for line in ax.lines if line.get_label() == "profile"]
        v, rise = profile.get_data()
        # Each point is a fit in which the parameter is fixed.
        fixed = ox.curve_fit(decay, T, Y, [2.0, v[1]], fixed=[False, True],
                             sigma=0.1, mask=np.arange(20) != 5)  # fmt: skip
        s2 = float(fit.covariance.variance)
        assert_allclose(rise[1], 2 * (fixed.result.cost - fit.result.cost) / s2, rtol=1e-6)
        assert_allclose(quadratic.get_data()[1], ((v - fit.popt[1]) / fit.perr[1]) ** 2)

    def test_convergence(self):
        problem, x0 = ox.least_squares_problem(residuals, jnp.ones(2), args=(Y,))
        _, history = ox.record(ox.LevenbergMarquardt(), problem, x0, length=30)
        ax = ox.plot.convergence(history)
        assert_array_equal(ax.lines[0].get_ydata(), history.value[: int(history.count)])

    def test_one_fit_of_one_variable(self, fit):
        batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), fit)
        for draw in (ox.plot.fit, ox.plot.correlation, ox.plot.profiles):
            with pytest.raises(ValueError, match="must be one, not a batch"):
                draw(batch)
        assert batch._repr_html_() is None  # a notebook shows the plain text

    def test_what_is_no_fit(self):
        res = ox.root(lambda x: x**2 - 2.0, [1.0])
        for draw in (ox.plot.fit, ox.plot.correlation, ox.plot.profiles, ox.fit_report):
            with pytest.raises(TypeError, match=r"`fit` must .* got RootResult"):
                draw(res)
        with pytest.raises(TypeError, match=r"`history` must .* got RootResult"):
            ox.plot.convergence(res)


class TestHistory:
    def test_is_that_of_a_callback(self):
        seen = []
        problem, x0 = ox.least_squares_problem(residuals, jnp.ones(2), args=(Y,))
        solver = ox.LevenbergMarquardt()
        result, history = ox.record(solver, problem, x0, length=30)
        plain = ox.least_squares(
            residuals, jnp.ones(2), args=(Y,), method=solver,
            callback=lambda intermediate_result: seen.append(float(intermediate_result.cost)),
        )  # fmt: skip
        assert_allclose(result.x, plain.x, rtol=1e-10)
        assert int(history.count) == result.nfev == plain.nfev
        assert len(seen) == plain.nit
        assert set(np.round(seen, 12)) <= set(np.asarray(history.value).round(12))
        assert np.isnan(history.value[result.nfev :]).all()
        short, cut = ox.record(solver, problem, x0, length=2)
        assert_array_equal(cut.value, history.value[:2])
        assert int(cut.count) == result.nfev and short.nfev == result.nfev

    def test_in_a_batch_and_without_a_derivative(self):
        def of(y):
            problem, x0 = ox.least_squares_problem(residuals, jnp.ones(2), args=(y,))
            return ox.record(ox.LevenbergMarquardt(), problem, x0, length=30)

        result, history = jax.vmap(of)(jnp.stack([Y, 3 * Y]))
        assert_array_equal(history.count, result.nfev)
        assert_allclose(jnp.nanmin(history.value, axis=1), result.cost)
        with pytest.raises(RuntimeError, match=r"optx_lite\.record"):
            jax.jvp(lambda y: of(y)[0].x, (jnp.asarray(Y),), (jnp.ones(20),))


class TestBars:
    @pytest.fixture(autouse=True)
    def tqdm(self):
        pytest.importorskip("tqdm")

    def test_of_one_solve(self):
        text = io.StringIO()
        with ox.ProgressBar(file=text, mininterval=0) as bar:
            res = ox.least_squares(residuals, jnp.ones(2), args=(Y,), callback=bar)
        assert bar.count == res.nit and f"cost={float(res.cost):.4g}" in text.getvalue()

    def test_of_a_batch(self):
        with ox.ProgressBar(lanes=5, file=io.StringIO()) as bar:
            solve = lambda y: ox.least_squares(residuals, jnp.ones(2), args=(y,), callback=bar).x
            jax.block_until_ready(jax.jit(jax.vmap(solve))(jnp.outer(jnp.arange(1.0, 6), Y)))
            jax.effects_barrier()
            assert bar.count == 5
