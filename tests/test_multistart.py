"""Many starts of one solve, and basin hopping."""

import functools as ft
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox
from optx_lite.driver.many_starts import run_many, take_census, what_is_unseen

# Of Himmelblau's function: published.
MINIMA = [[-3.779310, -3.283186], [-2.805118, 3.131312], [3.0, 2.0], [3.584428, -1.848127]]


def himmelblau(x, tilt):
    """Four minima at 0, of which ``tilt`` makes that at (3, 2) the lowest."""
    low = (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2
    return 1 + low - tilt * jnp.exp(-((x[0] - 3) ** 2) - (x[1] - 2) ** 2)


def starts_in_a_grid(side, dtype=None):
    line = np.linspace(-4.9, 4.8, side)
    return jnp.asarray(np.stack(np.meshgrid(line, line), -1).reshape(-1, 2), dtype)


# -- the lanes --------------------------------------------------------------------------------


def test_every_lane_is_the_solve_by_itself():
    """Packed or not, a start's steps are its own: SciPy's rule for a batch."""
    problem, _ = ox.minimization_problem(himmelblau, jnp.zeros(2), args=(0.5,))
    solver = ox.LBFGSB()
    starts = starts_in_a_grid(12)
    many = jax.jit(lambda starts: run_many(solver, problem, starts))(starts)
    alone = jax.vmap(lambda x: ox.run(solver, problem, x))(starts)
    assert_array_equal(many.nfev, alone.nfev)
    assert_allclose(many.x, alone.x, rtol=1e-9)
    assert np.all(many.success)


# -- the census -------------------------------------------------------------------------------


def brute_force(x, value, fine, starts, rtol):
    """Leaders from the best on."""
    seen = np.concatenate([starts, np.where(fine[:, None], x, starts)])
    reach = rtol * (seen.max(0) - seen.min(0))
    label, order = np.full(len(x), -1), [i for i in np.argsort(value, kind="stable") if fine[i]]
    leaders = []
    for i in order:
        if label[i] < 0:
            for j in order:
                if label[j] < 0 and np.all(np.abs(x[j] - x[i]) <= reach):
                    label[j] = len(leaders)
            leaders.append(i)
    return label, leaders


def test_census_by_brute_force():
    rng = np.random.default_rng(0)
    census_of = jax.jit(take_census)
    for _ in range(20):
        centers = rng.normal(size=(5, 3)) * [1, 1e6, 1e-6]
        which = rng.integers(0, 5, 40)
        x = centers[which] * (1 + 1e-6 * rng.normal(size=(40, 3)))
        value = which + 1e-9 * rng.normal(size=40)
        fine = rng.random(40) < 0.8
        value[rng.random(40) < 0.1] = np.nan
        starts = rng.normal(size=(40, 3)) * [1, 1e6, 1e-6]
        census = census_of(x, value, jnp.asarray(fine), starts, 1e-3)
        label, leaders = brute_force(x, value, fine & np.isfinite(value), starts, 1e-3)
        assert_array_equal(census.label, label)
        assert_array_equal(census.first[: len(leaders)], leaders)
        sizes = np.bincount(label[label >= 0], minlength=len(leaders))
        assert_array_equal(census.basin[: len(leaders)], sizes)
        assert np.sum(census.basin) == np.sum(sizes)


@pytest.mark.parametrize("basin", [[30, 20, 10], [1, 1, 1, 1], [5], [7, 1, 1], [2, 1]])
def test_what_is_unseen_is_boender_and_rinnooy_kans(basin):
    unseen = what_is_unseen(jnp.array([*basin, 0, 0]), jnp.float64)
    n, w = sum(basin), len(basin)
    if n > w + 2:
        assert_allclose(unseen.expected_minima, w * (n - 1) / (n - w - 2))
        product = math.prod((n - 1 - i) / (n - 1 + i) for i in range(1, w + 1))
        assert_allclose(unseen.all_found, product)
    else:
        assert unseen.expected_minima == np.inf and unseen.all_found == 0
    assert_allclose(unseen.missed_share, basin.count(1) / n)


def test_good_and_turings_share_is_unbiased():
    """Of minima drawn with known chances, the share that was not seen, on average."""
    rng = np.random.default_rng(1)
    chance = rng.dirichlet(np.full(30, 0.5))
    errors = []
    for _ in range(300):
        basin = rng.multinomial(40, chance)
        share = basin_share(basin)
        errors.append(share - chance[basin == 0].sum())
    assert abs(np.mean(errors)) < 5 * np.std(errors) / np.sqrt(len(errors)) + 0.01


def basin_share(basin):
    return float(what_is_unseen(jnp.asarray(basin), jnp.float64).missed_share)


# -- the front door ---------------------------------------------------------------------------


def test_all_minima_of_himmelblau():
    starts = starts_in_a_grid(12)
    solve = ft.partial(ox.minimize, himmelblau, args=(0.5,))
    res = ox.multistart(solve, starts)
    assert res.success and res.n_minima == 4 and res.n_failed == 0 and res.n_starts == 144
    order = np.lexsort(np.asarray(res.x).T[::-1])
    assert_allclose(np.asarray(res.x)[order], MINIMA, atol=2e-2)  # the tilt moves them
    assert_allclose(res.best.x, [3, 2], atol=1e-4)
    assert np.all(np.diff(res.fun) >= 0) and res.fun[0] == res.best.fun
    assert_array_equal(np.bincount(res.label), res.basin)
    assert 4 < res.expected_minima < 4.5 and res.missed_share == 0
    shuffled = jax.random.permutation(jax.random.key(0), starts)
    stopped = ox.multistart(solve, shuffled, batch=48)
    assert stopped.n_starts < 144 and stopped.n_minima == 4
    assert np.sum(stopped.label >= 0) == stopped.n_starts


def test_a_solve_that_takes_no_adjoint():
    def square_root(a, starts):
        return ox.multistart(lambda x: ox.least_squares(lambda x: x**2 - a, x), starts).best.x[0]

    starts = jnp.array([[1.0], [0.5], [3.0]])
    assert_allclose(square_root(2.0, starts), 2**0.5, rtol=1e-8)
    assert_allclose(jax.grad(square_root)(2.0, starts), 0.5 / 2**0.5, rtol=1e-6)


def test_derivative_is_that_of_the_winner():
    starts = starts_in_a_grid(12)

    def lowest(tilt):
        return ox.multistart(ft.partial(ox.minimize, himmelblau, args=(tilt,)), starts).best.fun

    tilt = 0.5
    values, slope = jax.value_and_grad(lowest)(tilt)
    best = so.minimize(lambda x: float(himmelblau(jnp.asarray(x), tilt)), [3, 2], tol=1e-10)
    assert_allclose(values, best.fun, rtol=1e-8)
    assert_allclose(slope, -np.exp(-np.sum((best.x - [3, 2]) ** 2)), rtol=1e-6)  # the envelope


def test_failed_solves_never_win():
    """Below -1 the function falls without end: a solve that gets there has not converged."""

    def cliff(x):
        inside = 1 + (x[0] - 2) ** 2 * (x[0] + 1.5) ** 2 / 4
        return jnp.where(x[0] > -1, inside, 1e3 * x[0])

    starts = jnp.linspace(-8, 4, 24)[:, None]
    solve = ft.partial(ox.minimize, cliff, options={"maxiter": 40})
    res = ox.multistart(solve, starts)
    assert res.n_failed > 0 and res.lowest_failed < 1
    assert res.success
    assert_allclose(res.best.x, 2, atol=1e-4)
    none = ox.multistart(solve, starts - 20)
    assert not none.success and none.n_minima == 0 and none.n_failed == 24
    assert none.best.fun == none.lowest_failed


def test_least_squares_pytrees_and_nested_batches():
    """y = a exp(-b t): a and b from many starts, for many data at once."""
    t = jnp.linspace(0, 2, 10)

    def residuals(p, y):
        return p["a"] * jnp.exp(-p["b"] * t) - y

    truth = jnp.array([[2.0, 0.7], [1.5, 2.0]])
    data = truth[:, :1] * jnp.exp(-truth[:, 1:] * t[None])
    key = jax.random.key(0)
    starts = {"a": jax.random.uniform(key, (9,)), "b": jax.random.uniform(key, (9,), maxval=3.0)}

    def fit(y):
        solve = ft.partial(ox.least_squares, residuals, args=(y,), method="lm")
        return ox.multistart(solve, starts)

    res = jax.jit(jax.vmap(fit))(data)
    assert np.all(res.success)
    assert_allclose(res.best.x["a"], truth[:, 0], rtol=1e-6)
    assert_allclose(res.best.x["b"], truth[:, 1], rtol=1e-6)
    assert res.x["a"].shape == (2, 9) and np.all(np.isnan(res.x["a"]) == (res.basin == 0))
    assert_array_equal(res.n_minima, 1)


def test_float32():
    starts = starts_in_a_grid(6, jnp.float32)
    res = ox.multistart(ft.partial(ox.minimize, himmelblau, args=(jnp.float32(0.5),)), starts)
    assert res.x.dtype == jnp.float32
    assert_allclose(res.best.x, [3, 2], atol=1e-2)


def test_bad_starts():
    solve = ft.partial(ox.minimize, himmelblau, args=(0.0,))
    for starts in (jnp.zeros(3), jnp.zeros((0, 2)), {"a": jnp.zeros((2, 1)), "b": jnp.zeros(3)}):
        with pytest.raises(ValueError, match="`starts`"):
            ox.multistart(solve, starts)
    with pytest.raises(ValueError, match="`batch`"):
        ox.multistart(solve, jnp.zeros((4, 2)), batch=3)
    with pytest.raises(ValueError, match="`rtol`"):
        ox.multistart(solve, jnp.zeros((4, 2)), rtol=-1.0)
    watching = ft.partial(ox.minimize, himmelblau, args=(0.0,), callback=print)
    with pytest.raises(ValueError, match="callback"):
        ox.multistart(watching, jnp.zeros((4, 2)))


# -- basin hopping ----------------------------------------------------------------------------


def wells(x, a):
    """SciPy's 2-D example of many wells, from its docstring and tests."""
    return 3 + jnp.cos(14.5 * x[0] - 0.3) + (x[1] + 0.2) * x[1] + (x[0] + a) * x[0]


def test_basinhopping_as_scipys():
    res = ox.basinhopping(wells, [1.0, 1.0], niter=100, rng=0, minimizer_kwargs={"args": (0.2,)})
    assert res.success and res.nit == 100 and res.minimization_failures == 0
    assert res.message == "requested number of basinhopping iterations completed successfully"
    assert_allclose(res.x, [-0.19506755, -0.1], atol=1e-6)
    assert_allclose(res.fun, 3 - 1.01087618, atol=1e-7)
    assert res.nfev > 101 and res.lowest_optimization_result.success
    again = ox.basinhopping(wells, [1.0, 1.0], niter=100, rng=0, minimizer_kwargs={"args": (0.2,)})
    assert_array_equal(again.x, res.x)
    assert again.nfev == res.nfev


def test_chains_side_by_side_and_their_derivative():
    def lowest(a, key):
        kwargs = {"args": (a,)}
        return ox.basinhopping(wells, jnp.ones(2), niter=60, rng=key, minimizer_kwargs=kwargs).fun

    keys = jax.random.split(jax.random.key(0), 4)
    values, slopes = jax.vmap(jax.value_and_grad(lowest), (None, 0))(0.2, keys)
    assert np.sum(np.abs(values - (3 - 1.01087618)) < 1e-6) >= 3
    right = values < 2
    assert_allclose(slopes[right], -0.19506755, atol=1e-6)  # the envelope: d f / d a = x_0


def test_hops_and_step_sizes_follow_scipys_rules():
    """T = 0 accepts what is lower only; all accepted: the steps grow; none: they shrink."""
    seen = []

    def run(**kwargs):
        seen.clear()
        return ox.basinhopping(
            wells, [1.0, 1.0], rng=3, minimizer_kwargs={"args": (0.2,)}, interval=5,
            callback=lambda x, f, accept: seen.append((float(x[0]), f, accept)), **kwargs,
        )  # fmt: skip

    cold = run(niter=20, T=0.0)
    now = seen[0][1]
    for _, f, accept in seen[1:]:
        assert accept == (f <= now)
        now = min(now, f)
    assert len(seen) == 21 and cold.fun == min(f for _, f, _ in seen)
    hot = run(niter=20, T=1e9)
    assert all(accept for _, _, accept in seen)
    assert_allclose(hot.stepsize, 0.5 / 0.9**4)
    none = run(niter=20, accept_test=lambda f_new, x_new, f_old, x_old: f_new < -1e9)
    assert none.accept_rate == 0
    assert_allclose(none.stepsize, 0.5 * 0.9**4)
    still = run(niter=50, take_step=lambda x, stepsize, rng: x, niter_success=3)
    assert still.message == "success condition satisfied" and still.nit < 20
    stopped = ox.basinhopping(wells, [1.0, 1.0], callback=lambda x, f, accept: True,
                              minimizer_kwargs={"args": (0.2,)})  # fmt: skip
    assert stopped.nit == 0 and stopped.message == "callback function requested stop early"


def test_bad_arguments_of_basinhopping():
    for name in ("target_accept_rate", "stepwise_factor"):
        with pytest.raises(ValueError, match=name):
            ox.basinhopping(wells, [1.0, 1.0], **{name: 1.0})
    with pytest.raises(TypeError, match="take_step"):
        ox.basinhopping(wells, [1.0, 1.0], take_step=1)
    with pytest.raises(ValueError, match="niter"):
        ox.basinhopping(wells, [1.0, 1.0], niter=-1)
    with pytest.raises(ValueError, match="minimizer_kwargs"):
        ox.basinhopping(wells, [1.0, 1.0], minimizer_kwargs={"callback": print})
