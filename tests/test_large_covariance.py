"""Errors of fits with a sparse or matrix-free Jacobian, by those of the dense one."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import optx_lite as ox
from optx_lite.statistics import large

N = 30
Y = np.sin(np.arange(N) / 3.0) + 0.1 * np.random.default_rng(0).normal(size=N)
PATTERN = np.concatenate([np.eye(N), np.eye(N) + np.eye(N, k=1)])


def residuals(x):
    """A chain: data, and steps that shall be small."""
    steps = jnp.append(jnp.diff(x), 0.1 * x[-1])
    return jnp.concatenate([x + 0.1 * x**2 - Y, 3 * steps])


BOX = (-np.inf, np.append(np.full(N - 1, np.inf), -0.1))  # the last one is on its bound


@pytest.fixture(scope="module", params=["sparse", "matrix-free"])
def fits(request):
    how = {"jac_sparsity": PATTERN} if request.param == "sparse" else {"jac": "matrix-free"}
    given = {"bounds": BOX, "xtol": 1e-12, "ftol": 1e-12, "gtol": 1e-12}
    x0 = jnp.full(N, -0.2)
    return ox.least_squares(residuals, x0, **how, **given), ox.least_squares(residuals, x0, **given)


def test_all_and_chosen_parameters(fits, monkeypatch):
    some, plain = fits
    ref = ox.covariance(plain)
    assert ref.active_mask[-1] == 1
    assert_allclose(ox.covariance(some).matrix, ref.matrix, rtol=1e-5, atol=1e-9)
    at = [4, 0, 29]
    chosen = ox.covariance(some, parameters=["x[4]", 0, 29], names=[f"x[{i}]" for i in range(N)])
    assert chosen.names == ("x[4]", "x[0]", "x[29]")
    assert_allclose(chosen.matrix, np.asarray(ref.matrix)[np.ix_(at, at)], rtol=1e-5, atol=1e-9)
    assert int(chosen.dof) == int(ref.dof)
    monkeypatch.setattr(large, "DENSE", 10)
    with pytest.raises(ValueError, match="choose some by `parameters`"):
        ox.covariance(some)


def test_what_is_not_determined_is_nan():
    f = lambda x: jnp.concatenate([x[:3] - 1.0, jnp.array([1.0]) * (x[3] + x[4] - 2.0), x[:3] + 1])
    res = ox.least_squares(f, jnp.zeros(5), jac="matrix-free")
    assert np.isnan(ox.covariance(res, parameters=[3]).stderr).all()


def test_unknown_parameters(fits):
    with pytest.raises(ValueError, match="`parameters` must be names or positions"):
        ox.covariance(fits[0], parameters=["rate"])
