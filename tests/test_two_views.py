"""The notebook's module for two views, by simulated matches whose truth is known."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

PATH = Path(__file__).parents[1] / "notebooks" / "two_views.py"


@pytest.fixture(scope="module", autouse=True)
def as_users_do():
    """A user's code may leave promotion to JAX, as the package may not."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def views(as_users_do):
    spec = importlib.util.spec_from_file_location("two_views", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scenes(views):
    """A batch of scenes without noise: calibrated matches and the true E."""
    sets = [views.simulate(jax.random.key(k), 8, noise=0.0, wrong=0.0) for k in range(20)]
    rays = jnp.stack([s.camera.rays(s.matches) for s in sets])
    return rays, jnp.stack([s.essential for s in sets])


@pytest.mark.parametrize("name, size", [("five_point", 5), ("seven_point", 7)])
def test_one_of_the_roots_is_the_truth(views, scenes, name, size):
    rays, essential = scenes
    models = jax.jit(jax.vmap(getattr(views, name)))(rays[:, :size])
    off = jax.vmap(lambda ms, e: jnp.min(jax.vmap(lambda m: views.up_to_scale(m, e))(ms)))
    assert np.max(off(models, essential)) < 1e-6
    # All of them fulfil the equations that they were made for, where the roots are real.
    p, q = views.both(rays[0, :size])
    assert_allclose(jnp.einsum("mi,kij,mj->km", q, models[0], p), 0, atol=1e-8)


def test_eight_points_and_roots(views, scenes):
    rays, essential = scenes
    models = jax.vmap(views.eight_point)(rays)
    assert np.max(jax.vmap(views.up_to_scale)(models, essential)) < 1e-6
    assert_allclose(jnp.linalg.det(models), 0, atol=1e-15)
    exact = np.array([3.0, -0.2, 1 + 2j, 1 - 2j, 1e-3, 40.0])
    found = np.asarray(views.roots(jnp.asarray(np.poly(exact).real)))
    assert_allclose(np.sort_complex(found), np.sort_complex(exact), rtol=1e-9, atol=1e-12)


def test_plane_and_rotation(views):
    plane = views.simulate(jax.random.key(0), 12, "plane", noise=0.0, wrong=0.0)
    h = views.homography_of(plane.matches)
    assert_allclose(views.homography_error(h, plane.matches), 0, atol=1e-8)
    turn = views.simulate(jax.random.key(0), 12, "rotation", noise=0.0, wrong=0.0)
    r = views.rotation_of(turn.camera.rays(turn.matches))
    assert_allclose(r, turn.r, atol=1e-12)


def test_frames_stay_on_their_manifolds(views):
    p = 0.3 * jax.random.normal(jax.random.key(1), (7,))
    scene = views.simulate(jax.random.key(2), 8)
    f = views.FundamentalFrame.around(views.unit(scene.camera.fundamental(scene.essential)))
    e = views.EssentialFrame.around(scene.essential)
    assert_allclose(views.up_to_scale(e.at(jnp.zeros(5)), scene.essential), 0, atol=1e-12)
    s = np.linalg.svd(f.at(p), compute_uv=False)
    assert s[2] < 1e-15 and abs(np.linalg.norm(s) - 1) < 1e-14
    assert_allclose(
        np.linalg.svd(e.at(p[:5]), compute_uv=False), [0.5**0.5, 0.5**0.5, 0], atol=1e-14
    )
    # Sampson's error is the distance to the nearest right match, to first order.
    matrix = scene.camera.fundamental(scene.essential)
    near = scene.matches[-1:] + 1e-3
    shift = jax.grad(lambda m: views.sampson(matrix, m[None])[0])(near[0])
    moved = near[0] - shift * views.sampson(matrix, near)[0]
    assert abs(views.sampson(matrix, moved[None])[0]) < 1e-4 * abs(views.sampson(matrix, near)[0])
    assert_allclose(jnp.linalg.norm(shift), 1, rtol=1e-3)


@pytest.mark.slow
def test_estimate(views):
    scene = views.simulate(jax.random.key(4), 60)
    key = jax.random.key(0)
    answer = views.essential(scene.matches, scene.camera, key)
    again = views.essential(scene.matches, scene.camera, key)
    assert np.array_equal(answer.matrix, again.matrix)
    assert np.mean(np.asarray(answer.inliers) == np.asarray(scene.right)) > 0.9
    pose = views.pose(answer, scene.matches, scene.camera)
    assert views.angle(pose.r, scene.r) < 6 * pose.rotation_error < 3
    assert views.angle(pose.t, scene.t) < 6 * pose.direction_error < 9
    assert pose.in_front > 0.9


@pytest.mark.slow
def test_jackknife_is_the_fits_without_each_feature(views):
    scene = views.simulate(jax.random.key(5), 40, wrong=0.0)
    matches = scene.matches.at[1].set(scene.matches[0])  # found twice
    errors = views.Errors(jnp.array(0.5), jnp.array(0.9), jnp.array(800.0), jnp.array(30.0))
    truth = views.FundamentalFrame.around(views.unit(scene.camera.fundamental(scene.essential)))

    @jax.jit
    @jax.vmap
    def fitted(kept):
        return views.fit_on_manifold(truth, lambda f: kept * views.sampson(f, matches), errors).x

    twins = views.same_feature(matches)
    expected = np.eye(40, dtype=bool)
    expected[:2, :2] = True
    assert np.array_equal(twins, expected)
    x = fitted(jnp.vstack([jnp.ones((1, 40)), ~twins]))
    without = [views.sampson(truth.at(p), matches)[k] for k, p in enumerate(x[1:])]
    frame = views.FundamentalFrame.around(truth.at(x[0]))
    predicted, spread = views.jackknife(frame, lambda f: views.sampson(f, matches), errors, twins)
    r = views.sampson(truth.at(x[0]), matches)
    moved = np.linalg.norm(np.asarray(without) - r)
    assert np.linalg.norm(predicted - np.asarray(without)) < 0.2 * moved
    # The covariance, by the epipole's.
    where = [views.epipole(truth.at(p)) for p in x]
    off = (np.asarray(where[1:]) - where[0]) / np.sqrt(twins.sum(axis=1))[:, None]
    jac = jax.jacfwd(lambda p: views.epipole(frame.at(p)))(jnp.zeros(7))
    assert_allclose(np.sqrt(np.diag(jac @ spread @ jac.T)), np.linalg.norm(off, axis=0), rtol=0.3)
