"""Sample consensus: robust fits where most of the data may be wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox


def circle_through(three):
    """Center and radius."""
    p = three
    sides = 2 * (p[1:] - p[:1])
    right = jnp.sum(p[1:] ** 2, axis=1) - jnp.sum(p[:1] ** 2)
    det = sides[0, 0] * sides[1, 1] - sides[0, 1] * sides[1, 0]
    x = (right[0] * sides[1, 1] - right[1] * sides[0, 1]) / det
    y = (sides[0, 0] * right[1] - sides[1, 0] * right[0]) / det
    return {"center": jnp.stack([x, y]), "radius": jnp.hypot(p[0, 0] - x, p[0, 1] - y)}


def distances(circle, points):
    off = points - circle["center"][None]
    return jnp.hypot(off[:, 0], off[:, 1]) - circle["radius"]


def points_on_a_circle(seed, share, noise=0.005, count=90):
    """And the mask of those that are on it."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, count)
    on = np.stack([3 + 2 * np.cos(angle), -1 + 2 * np.sin(angle)], 1)
    on += noise * rng.normal(size=on.shape)
    inlier = np.arange(count) < share * count
    return jnp.asarray(np.where(inlier[:, None], on, rng.uniform(-4, 8, on.shape))), inlier


def fit(points, key=0, **kwargs):
    options = {"sample_size": 3, "threshold": 0.03, "rng": key, **kwargs}
    return ox.sample_consensus(circle_through, distances, points, **options)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.35])
def test_circle(share):
    points, inlier = points_on_a_circle(1, share)
    res = fit(points)
    assert res.success and "confidence" in res.message
    assert np.all(np.asarray(res.inliers)[inlier])
    assert np.sum(np.asarray(res.inliers)[~inlier]) <= 3
    assert_array_equal(res.inliers, np.abs(distances(res.x, points)) <= 0.03)
    # As good as the fit to those that are known to be right.
    best = ox.least_squares(lambda c: jnp.where(inlier, distances(c, points), 0), res.x)
    assert_allclose(res.x["center"], best.x["center"], atol=4e-3)
    assert_allclose(res.x["radius"], best.x["radius"], atol=4e-3)
    truncated = np.minimum(np.asarray(distances(res.x, points)) ** 2, 0.03**2).sum()
    assert_allclose(res.score, truncated, rtol=1e-12)
    raw = fit(points, refine=False)
    assert raw.score >= res.score and raw.fit is None


def test_same_key_same_answer_and_few_samples_where_few_are_wrong():
    clean, dirty = points_on_a_circle(2, 0.95)[0], points_on_a_circle(2, 0.3)[0]
    assert_array_equal(fit(clean).x["center"], fit(clean).x["center"])
    few, many = fit(clean, batch=16), fit(dirty, batch=16)
    assert few.n_samples == 16 < many.n_samples
    # (2): 0.95^3 and 0.3^3
    assert many.n_samples >= 0.5 * np.log(1e-3) / np.log1p(-(0.36**3))


def test_nothing_to_find():
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.uniform(-4, 8, (90, 2)))
    res = fit(points, threshold=1e-9, max_samples=500)
    assert not res.success and res.status == 0 and res.n_samples == 500
    one = fit(jnp.ones((90, 2)), max_samples=256)  # no circle through one point
    assert not one.success and not np.any(one.inliers)


SHIFTS = jnp.array([[0.0, 0.0], [1.0, 2.0], [-3.0, 0.5]])


def center(shift, key, **kwargs):
    """It moves with the data."""
    return fit(points_on_a_circle(3, 0.6)[0] + shift[None], key, **kwargs).x["center"]


@pytest.mark.parametrize("refine", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_vmap_and_jit(refine):
    keys = jax.random.split(jax.random.key(0), 3)
    run = jax.jit(jax.vmap(lambda shift, key: center(shift, key, refine=refine)))
    tolerance = 5e-3 if refine else 3e-2
    assert_allclose(run(SHIFTS, keys) - SHIFTS, np.broadcast_to([3, -1], (3, 2)), atol=tolerance)


def test_derivative():
    key = jax.random.key(1)
    assert_allclose(jax.jacrev(center)(SHIFTS[1], key), np.eye(2), atol=1e-6)
    assert np.all(np.isnan(jax.jacrev(lambda s: center(s, key, refine=False))(SHIFTS[1])))


def test_score_is_the_best_of_all_samples():
    """A brute force over all pairs: of few data, many samples see all."""
    rng = np.random.default_rng(5)
    y = np.where(np.arange(12) < 8, 0.7 * np.arange(12), rng.uniform(-9, 9, 12))
    y += 0.02 * rng.normal(size=12)
    data = np.stack([np.arange(12.0), y], 1)

    def line(two):
        slope = (two[1, 1] - two[0, 1]) / (two[1, 0] - two[0, 0])
        return jnp.stack([slope, two[0, 1] - slope * two[0, 0]])

    def off(line, d):
        return line[0] * d[:, 0] + line[1] - d[:, 1]

    res = ox.sample_consensus(
        line, off, jnp.asarray(data), sample_size=2, threshold=0.1, rng=0, refine=False,
        confidence=1 - 1e-12, max_samples=2000,
    )  # fmt: skip
    scores = [
        np.minimum(np.asarray(off(np.asarray(line(data[[i, j]])), data)) ** 2, 0.01).sum()
        for i in range(12)
        for j in range(i)
    ]
    assert_allclose(res.score, min(scores), rtol=1e-9)
    assert res.n_inliers >= 8 and np.all(res.inliers[:8])


def test_bad_arguments():
    points = jnp.zeros((9, 2))
    for kwargs, name in (
        ({"sample_size": 9}, "sample_size"),
        ({"sample_size": 2.5}, "sample_size"),
        ({"max_samples": 0}, "max_samples"),
        ({"batch": 0}, "batch"),
        ({"threshold": "a"}, "threshold"),
        ({"threshold": 0.0}, "threshold"),
        ({"confidence": 1.0}, "confidence"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`"):
            fit(points, **kwargs)
    with pytest.raises(ValueError, match="`data`"):
        fit({"a": jnp.zeros(3), "b": jnp.zeros(4)})
    with pytest.raises(ValueError, match="`residuals`"):
        ox.sample_consensus(
            circle_through, lambda c, p: c["center"], points, sample_size=3, threshold=1
        )


def test_float32():
    points = points_on_a_circle(4, 0.6)[0].astype(jnp.float32)
    res = fit(points)
    assert res.x["radius"].dtype == res.score.dtype == jnp.float32
    assert res.success
    assert_allclose(res.x["radius"], 2, atol=1e-2)
