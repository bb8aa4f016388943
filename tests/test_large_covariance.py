"""Errors of fits with a sparse or matrix-free Jacobian, by those of the dense one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO
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


def seen(x, cameras, points):
    """Points of the plane by distance and slope from three places; each row touches one of each."""
    places, marks = x[:6].reshape(3, 2), x[6:].reshape(-1, 2)
    apart = marks[points] - places[cameras]
    return jnp.stack([jnp.hypot(*apart.T), apart[:, 1] / apart[:, 0]], 1).ravel()


def test_by_elimination():
    """Bundle adjustment's shape: the inverse of J^T J where two places are known; without, NaN."""
    rng = np.random.default_rng(1)
    count = 40
    points, cameras = (a.ravel() for a in np.meshgrid(np.arange(count), np.arange(3)))
    x = jnp.asarray(np.concatenate([[0, 0, 0, 1, 0.5, 3], rng.uniform(3, 6, 2 * count)]))
    jac = np.asarray(jax.jacfwd(seen)(x, cameras, points))
    sparse = BCOO.fromdense(jnp.asarray(jac))
    assert large._in_two_groups(sparse) is not None
    chosen = np.array([4, 5, 6, 30])
    held = np.arange(x.size) < 4
    own = jac[:, ~held]
    exact = np.zeros((x.size, x.size))
    exact[np.ix_(~held, ~held)] = np.linalg.inv(own.T @ own)
    found = large.inverse_block(sparse, jnp.asarray(held), jnp.asarray(chosen))
    assert_allclose(found, exact[np.ix_(chosen, chosen)], rtol=1e-9, atol=1e-12)
    # All together may be moved along.
    free = large.inverse_block(sparse, jnp.zeros(x.size, bool), jnp.asarray(chosen))
    assert np.all(np.isnan(free))
