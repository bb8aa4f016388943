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
from optx_lite.driver.many_starts import take_census, what_is_unseen
from optx_lite.driver.refill import nothing_found, solve_batch
from tests.newton import Newton
from tests.test_own_solver import GaussNewton

# Of Himmelblau's function: published.
MINIMA = [[-3.779310, -3.283186], [-2.805118, 3.131312], [3.0, 2.0], [3.584428, -1.848127]]


def himmelblau(x, tilt):
    """Four minima at 0, of which ``tilt`` makes that at (3, 2) the lowest."""
    low = (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2
    return 1 + low - tilt * jnp.exp(-((x[0] - 3) ** 2) - (x[1] - 2) ** 2)


NEWTON = Newton(maxfun=200)


def starts_in_a_grid(side, dtype=None):
    line = np.linspace(-4.9, 4.8, side)
    return jnp.asarray(np.stack(np.meshgrid(line, line), -1).reshape(-1, 2), dtype)


# -- the lanes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [NEWTON, pytest.param(ox.LBFGSB(), marks=pytest.mark.slow)],
    ids=["Newton", "L-BFGS-B"],
)
def test_every_lane_is_the_solve_by_itself(solver):
    """Whatever lane it is solved in, a start's steps are its own."""
    problem, _ = ox.minimization_problem(himmelblau, jnp.zeros(2), args=(0.5,))

    @jax.jit
    def together(first, found):
        return solve_batch(solver, problem, starts, first, 72, found)

    starts = starts_in_a_grid(12)
    many = nothing_found(solver, problem, starts)
    for first in (0, 72):
        many = together(first, many)
    alone = jax.jit(jax.vmap(lambda x: ox.run(solver, problem, x)))(starts)
    assert_array_equal(many.nfev, alone.nfev)
    assert_allclose(many.x, alone.x, rtol=1e-9)
    assert_allclose(many.value, alone.fun, rtol=1e-9)
    assert np.all(many.success)
    assert int(many.number) == np.argmin(many.value)
    assert_array_equal(many.best.x, many.x[many.number])


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


LOCAL = ft.partial(ox.minimize, himmelblau, method=NEWTON)


@jax.jit
def search(tilt, starts):
    """From all starts, and d fun, d x of the best by ``tilt``."""

    def best(tilt):
        res = ox.multistart(ft.partial(LOCAL, args=(tilt,)), starts)
        return (res.best.fun, res.best.x), res

    _, slopes, res = jax.jvp(best, (tilt,), (jnp.ones_like(tilt),), has_aux=True)
    return res, slopes


def test_all_minima_of_himmelblau():
    starts = starts_in_a_grid(12)
    res, _ = search(0.5, starts)
    assert res.success and res.n_minima == 4 and res.n_failed == 0 and res.n_starts == 144
    found = np.asarray(res.x[:4])
    assert_allclose(found[np.lexsort(found.T[::-1])], MINIMA, atol=2e-2)  # the tilt moves them
    assert np.all(np.isnan(res.x[4:])) and np.all(np.isnan(res.fun[4:]))
    assert_allclose(res.best.x, [3, 2], atol=1e-4)
    assert np.all(np.diff(res.fun[:4]) >= 0) and res.fun[0] == res.best.fun
    assert_array_equal(np.bincount(res.label), res.basin[:4])
    assert 4 < res.expected_minima < 4.5 and res.missed_share == 0
    one_by_one = jax.vmap(lambda x: LOCAL(x, args=(0.5,)))(starts)
    assert_allclose(found[res.label], one_by_one.x, atol=1e-6)
    assert res.nfev == jnp.sum(one_by_one.nfev)


def test_batches_end_when_nothing_is_missing():
    starts = jax.random.permutation(jax.random.key(0), starts_in_a_grid(12))
    res = ox.multistart(ft.partial(LOCAL, args=(0.5,)), starts, batch=48)
    assert res.n_starts in (48, 96) and res.n_minima == 4 and res.x.shape == (4, 2)
    assert np.sum(res.label >= 0) == np.sum(res.basin) == res.n_starts
    assert np.all(res.label[res.n_starts :] == -1) and res.n_failed == 0


def test_derivative_is_that_of_the_winner():
    """The envelope; and what the local solve from the winner's start has."""
    starts = starts_in_a_grid(12)
    for tilt in (0.1, 0.5, 0.9, -0.5):
        res, (d_fun, d_x) = search(tilt, starts)
        best = so.minimize(lambda x: float(himmelblau(x, tilt)), res.best.x, tol=1e-12)  # noqa: B023
        assert_allclose(res.best.fun, best.fun, rtol=1e-8)
        bump = np.exp(-np.sum((np.asarray(res.best.x) - [3, 2]) ** 2))
        assert_allclose(d_fun, -bump, rtol=1e-6, atol=1e-12)
        own = jax.jacfwd(lambda tilt: LOCAL(res.best.x, args=(tilt,)).x)(tilt)  # noqa: B023
        assert_allclose(d_x, own, rtol=1e-5, atol=1e-9)


def test_failed_solves_never_win():
    """Below -1 the function falls without end: a solve that gets there has not converged."""

    def cliff(x):
        inside = 1 + (x[0] - 2) ** 2 * (x[0] + 1.5) ** 2 / 4
        return jnp.where(x[0] > -1, inside, 1e3 * x[0])

    solve = ft.partial(ox.minimize, cliff, method=Newton(maxfun=40))
    search = jax.jit(lambda starts: ox.multistart(solve, starts))
    starts = jnp.linspace(-8, 4, 24)[:, None]
    res = search(starts)
    assert res.n_failed > 0 and res.lowest_failed < 1
    assert res.success
    assert_allclose(res.best.x, 2, atol=1e-4)
    none = search(starts - 20)
    assert not none.success and none.n_minima == 0 and none.n_failed == 24
    assert none.best.fun == none.lowest_failed
    some = search(starts.at[3].set(jnp.nan))
    assert some.n_failed == res.n_failed and some.label[3] == -1 and some.best.x == res.best.x
    assert np.isnan(search(starts.at[:].set(jnp.nan)).best.fun)


def test_least_squares_pytrees_and_nested_batches():
    """y = a exp(-b t): a and b from many starts, for many data at once."""
    t = jnp.linspace(0, 2, 10)

    def residuals(p, y):
        return p["a"] * jnp.exp(-p["b"] * t) - y

    truth = jnp.array([[2.0, 0.7], [1.5, 2.0]])
    data = truth[:, :1] * jnp.exp(-truth[:, 1:] * t[None])
    key = jax.random.key(0)
    starts = {"a": jax.random.uniform(key, (9,)), "b": jax.random.uniform(key, (9,), maxval=2.0)}

    def fit(y):
        solve = ft.partial(ox.least_squares, residuals, args=(y,), method=GaussNewton())
        return ox.multistart(solve, starts)

    res = jax.jit(jax.vmap(fit))(data)
    assert np.all(res.success)
    assert_allclose(res.best.x["a"], truth[:, 0], rtol=1e-6)
    assert_allclose(res.best.x["b"], truth[:, 1], rtol=1e-6)
    assert res.x["a"].shape == (2, 9) and np.all(np.isnan(res.x["a"]) == (res.basin == 0))
    ended = np.asarray(res.fun) < 1e-12  # the others ran away
    assert_array_equal(np.sum(ended, axis=1), 1)


def test_bounds_and_a_scalar_solver():
    """Minima in the box and on its wall, where the winner follows the wall."""

    def wave(x):
        return jnp.cos(3 * x) + 0.1 * x

    def lowest(wall, starts):
        def solve(x):
            return ox.minimize_scalar(wave, bounds=(x[0] - 1.0, jnp.minimum(x[0] + 1.0, wall)))

        res = ox.multistart(solve, starts)
        return res.best.fun, res

    starts = jnp.linspace(-3, 5, 17)[:, None]
    run = jax.jit(jax.value_and_grad(lowest, has_aux=True))
    (value, res), slope = run(6.0, starts)
    brute = np.linspace(-4, 6, 100_001)
    assert_allclose(value, np.min(np.cos(3 * brute) + 0.1 * brute), atol=1e-8)
    assert slope == 0 and res.success
    (value, res), slope = run(-3.5, jnp.broadcast_to(starts[:1], (17, 1)))
    assert_allclose(value, np.cos(10.5) - 0.35, rtol=1e-12)
    assert_allclose(slope, 3 * np.sin(3 * 3.5) + 0.1, rtol=1e-6)


def test_a_solve_whose_adjoint_is_not_to_be_replaced():
    """Its lanes are batched as they are, whether it takes none, its own, or swallows anything."""
    starts = jnp.array([[1.0], [0.5], [3.0]])
    seen = []

    def swallows(x, **options):
        seen.append(options)
        return ox.minimize(lambda x: jnp.cosh(x[0] - 2), x, method=NEWTON)

    unrolled = ft.partial(swallows, adjoint=ox.UnrolledAdjoint(5))
    for solve in (swallows, unrolled):
        assert_allclose(ox.multistart(solve, starts).best.x, 2, rtol=1e-6)
    assert seen[0] == {} and isinstance(seen[1]["adjoint"], ox.UnrolledAdjoint)
    with pytest.raises(ValueError, match="adjoint"):
        ox.multistart(swallows, starts, batch=1)


def test_failures_have_no_derivative_unless_they_are_asked_for():
    def slope(**adjoint):
        def best(a):
            solve = ft.partial(
                ox.minimize, lambda x: (x[0] - a) ** 4, method=Newton(maxfun=2), **adjoint
            )
            return ox.multistart(solve, jnp.array([[1.0], [3.0]])).best.x[0]

        return jax.grad(best)(0.5)

    assert np.isnan(slope())
    assert_allclose(slope(adjoint=ox.ImplicitAdjoint("ignore")), 1, rtol=1e-6)


def test_float32():
    starts = starts_in_a_grid(3, jnp.float32)
    res = ox.multistart(ft.partial(LOCAL, args=(jnp.float32(0.5),)), starts)
    assert res.x.dtype == res.fun.dtype == jnp.float32
    assert_allclose(res.best.x, [3, 2], atol=1e-2)


def test_bad_starts():
    solve = ft.partial(ox.minimize, himmelblau, args=(0.0,))
    for starts in (jnp.zeros(3), jnp.zeros((0, 2)), {"a": jnp.zeros((2, 1)), "b": jnp.zeros(3)}):
        with pytest.raises(ValueError, match="`starts`"):
            ox.multistart(solve, starts)
    with pytest.raises(TypeError, match="`solve`"):
        ox.multistart(None, jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="`batch`"):
        ox.multistart(solve, jnp.zeros((4, 2)), batch=3)
    for rtol in (-1.0, jnp.nan):
        with pytest.raises(ValueError, match="`rtol`"):
            ox.multistart(solve, jnp.zeros((4, 2)), rtol=rtol)
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


def hop(a, key, niter=60, **kwargs):
    kwargs = {"niter": niter, "rng": key, **kwargs}
    local = {"args": (a,), "method": NEWTON}
    return ox.basinhopping(wells, jnp.ones(2), minimizer_kwargs=local, **kwargs)


def test_chains_side_by_side_and_their_derivative():
    def lowest(a, key):
        res = hop(a, key)
        return res.fun, res

    keys = jax.random.split(jax.random.key(0), 4)
    chains = jax.jit(jax.vmap(jax.value_and_grad(lowest, has_aux=True), (None, 0)))
    (values, res), slopes = chains(0.2, keys)
    assert np.sum(np.abs(values - (3 - 1.01087618)) < 1e-6) >= 3
    right = values < 2
    assert_allclose(slopes[right], -0.19506755, atol=1e-6)  # the envelope: d f / d a = x_0
    alone = hop(0.2, keys[1])
    assert_allclose(res.x[1], alone.x, rtol=1e-9)
    assert res.nfev[1] == alone.nfev and res.nit[1] == 60


def test_a_failed_chain_has_no_derivative():
    """By x0 neither, which is the answer where no solve takes a step."""

    def x(x0):
        local = {"args": (0.2,), "options": {"maxiter": 0}}
        return ox.basinhopping(wells, x0, 2, rng=0, minimizer_kwargs=local).x

    for jacobian in (jax.jacfwd, jax.jacrev):
        assert np.all(np.isnan(jacobian(x)(jnp.ones(2))))


def test_hops_and_step_sizes_follow_scipys_rules():
    """T = 0 accepts what is lower only; all accepted: the steps grow; none: they shrink."""
    seen = []

    def run(niter=20, **kwargs):
        seen.clear()
        return hop(
            0.2, 3, niter, interval=5,
            callback=lambda x, f, accept: seen.append((float(x[0]), f, accept)), **kwargs,
        )  # fmt: skip

    cold = run(T=0.0)
    now = seen[0][1]
    for _, f, accept in seen[1:]:
        assert accept == (f <= now)
        now = min(now, f)
    assert len(seen) == 21 and cold.fun == min(f for _, f, _ in seen)
    hot = run(T=1e9)
    assert all(accept for _, _, accept in seen)
    assert_allclose(hot.stepsize, 0.5 / 0.9**4)
    none = run(accept_test=lambda f_new, x_new, f_old, x_old: f_new < -1e9)
    assert none.accept_rate == 0
    assert_allclose(none.stepsize, 0.5 * 0.9**4)
    right = run(50, accept_test=lambda f_new, x_new, f_old, x_old: x_new[0] > 0)
    assert right.x[0] > 0 and min(f for x, f, _ in seen if x > 0) == right.fun
    assert min(f for _, f, _ in seen) < right.fun  # it was there, and refused
    still = run(50, take_step=lambda x, stepsize, rng: x, niter_success=3)
    assert still.message == "success condition satisfied" and still.nit < 20
    stopped = hop(0.2, 3, callback=lambda x, f, accept: True)
    assert stopped.nit == 0 and stopped.message == "callback function requested stop early"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_accept_rate", 1.0), ("stepwise_factor", 0.0), ("take_step", 1), ("niter", -1),
        ("accept_test", 1), ("niter", 2.5), ("niter", "a"), ("interval", 0), ("T", -1.0),
        ("T", "a"), ("stepsize", np.nan), ("rng", "a"), ("callback", 3), ("niter_success", -1),
        ("minimizer_kwargs", [1]), ("minimizer_kwargs", {"adjoint": None}),
        ("accept_test", lambda **tested: "force accept"),
    ],
)  # fmt: skip
def test_bad_arguments_of_basinhopping(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        ox.basinhopping(wells, [1.0, 1.0], **{"minimizer_kwargs": {"args": (0.2,)}, name: value})
    with pytest.raises(TypeError, match="foo"):
        ox.basinhopping(wells, [1.0, 1.0], foo=1)


def test_a_chain_from_nan_finds_its_way():
    """As SciPy's: whatever is finite is lower."""

    def root(x):
        return jnp.sqrt(x[0]) + (x[0] - 2) ** 2

    res = ox.basinhopping(
        root, [-1.0], 20, stepsize=4.0, rng=0, minimizer_kwargs={"method": NEWTON}
    )
    assert res.success and res.minimization_failures > 0
    assert_allclose(
        res.x, so.minimize_scalar(lambda x: float(root([x])), bounds=(1, 3)).x, atol=1e-5
    )


def test_a_closure_over_new_data_compiles_nothing(caplog):
    starts = starts_in_a_grid(3)

    def run(c):
        solve = lambda x: ox.minimize(lambda x: jnp.sum((x - c) ** 2), x)
        return ox.multistart(solve, starts)

    run(0.3)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        res = run(1.3)
    assert "Compiling" not in caplog.text
    assert_allclose(res.best.x, 1.3, rtol=1e-5)
