"""Bundle adjustment and an obstacle, of the shape of the large ones, by SciPy and active sets."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import optx_lite as ox
from benchmarks.large import primal_dual
from benchmarks.problems import large


def test_sixteen_cameras():
    problem = large.simulated_bundle(cameras=16, points=60, sees=0.6)
    fit = jax.jit(
        lambda x0, seen: ox.least_squares(
            problem.residuals, x0, args=(seen,), jac_sparsity=problem.pattern, x_scale="jac"
        )
    )
    found = fit(problem.x0, problem.seen)
    assert found.status > 0
    residuals = jax.jit(problem.residuals)
    jacobian = jax.jit(jax.jacfwd(problem.residuals))
    exact = scipy.optimize.least_squares(
        lambda x: np.asarray(residuals(x)), found.x, lambda x: np.asarray(jacobian(x)),
        x_scale="jac", xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=30,
    )  # fmt: skip
    np.testing.assert_allclose(found.cost, exact.cost, rtol=1e-9)
    np.testing.assert_allclose(found.jac.todense(), jacobian(found.x), rtol=1e-9, atol=1e-9)
    # Half a pixel of noise in what the variables, but for seven of the gauge, leave free.
    dof = problem.seen.size - problem.x0.size + 7
    assert abs(2 * found.cost / dof / 0.25 - 1) < 5 * np.sqrt(2 / dof)


def test_a_membrane_by_trf():
    """The active set is searched for once, not at each evaluation: LSMR hardly turns then."""
    side = 15
    low = large.obstacle(side)
    solve = lambda low: ox.least_squares(
        large.differences, jnp.maximum(low, 0), bounds=(low, jnp.inf),
        jac_sparsity=large.laplace_pattern(side),
    )  # fmt: skip
    found = jax.jit(solve)(low)
    assert found.status > 0
    np.testing.assert_allclose(found.x, primal_dual(np.asarray(low), side), atol=1e-6)


def test_a_membrane_over_an_obstacle():
    """Where it touches, and its volume's derivative by the obstacle's height."""
    side = 15
    pattern = large.laplace_pattern(side)

    @jax.jit
    def solve(height):
        def solution(height):
            low = large.obstacle(side, height)
            return ox.least_squares(
                large.differences, jnp.maximum(low, 0), bounds=(low, jnp.inf), method="dogbox",
                jac_sparsity=pattern,
            )  # fmt: skip

        return jax.jvp(solution, (height,), (1.0,))

    found, moved = solve(1.0)
    exact = lambda height: primal_dual(np.asarray(large.obstacle(side, height)), side)
    assert found.status > 0
    np.testing.assert_allclose(found.x, exact(1.0), atol=1e-6)
    floor = np.asarray(large.obstacle(side))
    np.testing.assert_array_equal(found.active_mask != 0, exact(1.0) <= floor)
    h = 1e-5
    np.testing.assert_allclose(moved.x, (exact(1 + h) - exact(1 - h)) / (2 * h), atol=1e-5)
