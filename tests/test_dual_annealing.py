"""Dual annealing: SciPy's rules and answers, closed forms, and what JAX adds."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize._dual_annealing import VisitingDistribution

import optx_lite as ox
from optx_lite.solvers.global_search.dual_annealing import BOX, DualAnnealing, Point, Trials
from tests.newton import Newton

BOXES = [(-5.0, 4.0), (-4.0, 6.0)]
NEWTON = Newton(maxfun=50)


def bumps(x, center):
    """Many minima, the lowest 0 at ``center``, where the Hessian is (2 + 120) I."""
    away = x - center
    return jnp.sum(away**2 - 3 * jnp.cos(2 * jnp.pi * away) + 3)


def lowest(center, rng=0, maxiter=150, bounds=BOXES, **kwargs):
    kwargs.setdefault("minimizer_kwargs", {"method": NEWTON})
    return ox.dual_annealing(bumps, bounds, (center,), maxiter, rng=rng, **kwargs)


# -- the rules --------------------------------------------------------------------------------


def settings(visit=2.62, accept=-5.0):
    numbers = (jnp.asarray(value) for value in (5230.0, 2e-5, visit, accept))
    return DualAnnealing(NEWTON, True, True, 10, 10, *numbers)


class Ones:
    """As a generator: every number drawn is 1."""

    def normal(self, size):
        return np.ones(size)


@pytest.mark.parametrize("visit", [1.7, 1.9, 2.0, 2.62, 2.9])
def test_moves_are_as_long_as_scipys(visit):
    # Where q_v < 5/3 SciPy takes the logarithm of a negative number.
    theirs = VisitingDistribution(np.zeros(1), np.ones(1), visit, Ones())
    for temperature in (1e-3, 1.0, 5230.0):
        ours = settings(visit)._sigma(jnp.asarray(temperature))
        assert_allclose(ours, theirs.visit_fn(temperature, 1)[0], rtol=1e-9)


def test_moves_closed_forms():
    """q_v = 2: Cauchy's distribution of scale T; q_a = 0: 1 - D t / T, and no chance above 1."""
    assert_allclose(settings(2.0)._sigma(jnp.asarray(0.7)), 0.7, rtol=1e-12)
    keys = jax.random.split(jax.random.key(0), 4000)
    accepts = jax.vmap(settings(accept=0.0)._accepts, (None, 0))
    for rise, chance in ((0.3, 0.7), (0.9, 0.1), (1.5, 0.0), (jnp.inf, 0.0), (jnp.nan, 0.0)):
        assert abs(np.mean(accepts(jnp.asarray(rise), keys)) - chance) < 0.03
    accepts = jax.vmap(settings()._accepts, (None, 0))  # (1 - 6 D t / T)^(1/6)
    assert abs(np.mean(accepts(jnp.asarray(0.1), keys)) - 0.4 ** (1 / 6)) < 0.03


def test_temperatures_are_scipys():
    """T_1 (2^1.62 - 1) / ((1 + t)^1.62 - 1); SciPy's loop counts i = t - 1."""
    i = np.arange(5)
    expected = 5230 * (2**1.62 - 1) / ((i + 2) ** 1.62 - 1)
    assert_allclose(jax.vmap(settings()._temperature)(jnp.asarray(i)), expected, rtol=1e-12)


@pytest.mark.parametrize("ratio", [0.5, 0.1])
def test_cooling_begins_anew_as_scipys(ratio):
    """Each restart costs one evaluation, so that the counts tell when they are."""
    rules = {"maxiter": 20, "rng": 0, "no_local_search": True, "restart_temp_ratio": ratio}
    theirs = so.dual_annealing(lambda x: float(bumps(x, 0.3)), BOXES, **rules)
    assert lowest(0.3, **rules).nfev == theirs.nfev


def test_a_trial_moves_all_variables_or_one():
    """q_v = 2, of scale s of the box: P(|d| < a) = 2/pi atan(tan(pi a) / tanh(pi s)), wrapped."""
    box = [(-5.0, 5.0)] * 3
    problem, x = ox.minimization_problem(jnp.sum, jnp.array([0.0, 4.0, -4.0]), bounds=box)
    here, rules = Point(x, jnp.zeros(())), settings(2.0)
    sigma = rules._sigma(jnp.asarray(0.1 * BOX))
    keys = jax.random.split(jax.random.key(0), 4000)

    @jax.jit
    def moved(number):
        trials = lambda key: Trials(key, here, here, here, number)
        return jax.vmap(lambda key: rules._moved(problem, trials(key), sigma, key))(keys)

    for number in range(6):
        away = moved(jnp.asarray(number)) - x[None]
        expected = number < 3 or np.arange(3) == number - 3
        assert_array_equal(np.any(away != 0, axis=0), np.broadcast_to(expected, 3))
        if number < 3:
            share = away / 10 - np.round(away / 10)
            for a in (0.05, 0.25, 0.4):
                chance = 2 / np.pi * np.arctan(np.tan(np.pi * a) / np.tanh(np.pi * 0.1))
                assert_allclose(np.mean(np.abs(share) < a, axis=0), chance, atol=0.03)


def test_local_solves_from_where_the_chain_is():
    """Cold, it stays in the valley of x0, whose solve is done at once; further ones come rarely.

    Their evaluations, a gradient for two, are at most as many as the trials.
    """
    seen = []
    steep = ox.dual_annealing(
        bumps, BOXES, (0.3,), 150, rng=0, x0=[2.3, 2.3], initial_temp=30.0,
        callback=lambda x, f, context: seen.append(context),
    )  # fmt: skip
    assert 2 in seen and steep.njev > 0
    trials = steep.nfev - steep.njev
    first = lowest(0.3, maxiter=0, x0=[2.3, 2.3], minimizer_kwargs=None).njev
    assert 3 * (steep.njev - (1 + seen.count(1)) * 2 * first) <= trials


# -- answers ----------------------------------------------------------------------------------


def test_as_scipys():
    def rastrigin(x, xp):
        return xp.sum(x**2 - 10 * xp.cos(2 * xp.pi * x) + 10)

    box = [(-5.0, 5.5)] * 3
    res = ox.dual_annealing(lambda x: rastrigin(x, jnp), box, maxiter=300, rng=0)
    theirs = so.dual_annealing(lambda x: rastrigin(x, np), box, maxiter=300, rng=0)
    assert res.success and theirs.success and res.nit == theirs.nit == 300
    assert_allclose(res.fun, theirs.fun, atol=1e-9)
    assert_allclose(res.x, theirs.x, atol=1e-6)
    assert res.message in theirs.message
    assert res.nfev >= 300 * 6 and 0 < res.njev < res.nfev
    for name in ("x", "fun", "nfev", "njev", "nit", "status", "success", "message"):
        assert hasattr(res, name) and hasattr(theirs, name)


def test_the_same_key_gives_the_same_answer():
    first, second = lowest(0.3), lowest(0.3, jax.random.key(0))
    assert_array_equal(first.x, second.x)
    assert first.nfev == second.nfev
    assert lowest(0.3, 1).nfev != first.nfev


def test_chains_side_by_side():
    keys = jax.random.split(jax.random.key(1), 3)
    run = ft.partial(lowest, 0.3, maxiter=60)
    together = jax.jit(jax.vmap(run))(keys)
    for lane, key in enumerate(keys):
        alone = run(key)
        assert together.nfev[lane] == alone.nfev
        assert_allclose(together.x[lane], alone.x, rtol=1e-9)
    assert_allclose(together.fun, 0, atol=1e-9)


def test_derivatives_of_the_minimum():
    def answer(center):
        res = lowest(center, maxiter=60)
        return res.x, res.fun + jnp.sum(center**2) / 2  # so that something is left: I

    center = jnp.array([0.3, -0.2])
    assert_allclose(answer(center)[0], center, atol=1e-7)
    for jacobian in (jax.jacfwd, jax.jacrev):
        of_x, of_value = jax.jit(jacobian(answer))(center)
        assert_allclose(of_x, np.eye(2), atol=1e-7)
        assert_allclose(of_value, center, atol=1e-6)
    hessian = jax.hessian(lambda center: answer(center)[1])(center)
    assert_allclose(hessian, np.eye(2), atol=1e-5)


def test_derivative_at_a_bound():
    """x_0 lies on its bound and moves with it; x_1 is free and moves with the center."""

    def slope(x, tilt):
        return -x[0] + bumps(x[1:], tilt)

    def x(tilt, upper):
        box = jnp.stack([jnp.stack([-upper, upper]), jnp.array([-2.0, 3.0])])
        return ox.dual_annealing(slope, box, (tilt,), maxiter=60, rng=0).x

    assert_allclose(x(0.3, 2.0), [2.0, 0.3], atol=1e-6)
    by_tilt, by_bound = jax.jacfwd(x, (0, 1))(0.3, 2.0)
    assert_allclose(by_tilt, [0, 1], atol=1e-6)
    assert_allclose(by_bound, [1, 0], atol=1e-6)


def test_without_local_search():
    """An answer near the minimum, and no derivative, which would be that of a minimum."""
    res = lowest(0.3, no_local_search=True, maxiter=400)
    assert res.success and res.njev == 0 and 0 < res.fun < 0.1
    assert res.nfev == 1 + 4 * 400
    assert not res.lowest_optimization_result.success
    slope = jax.jacfwd(lambda c: lowest(c, no_local_search=True, maxiter=20).x)(0.3)
    assert np.all(np.isnan(slope))


def test_out_of_evaluations():
    """The search ends where they are spent, but not before the local solve of what was found."""
    res = lowest(0.3, maxfun=40)
    assert not res.success and res.status == -5 and 40 <= res.nfev < 40 + NEWTON.maxfun
    assert "function call reached" in res.message
    assert res.lowest_optimization_result.success
    short = lowest(0.3, maxfun=40, no_local_search=True)
    assert short.nfev == 40
    none = lowest(0.3, maxiter=0)
    assert none.nit == 0 and none.lowest_optimization_result.success


def test_where_the_function_is_nan():
    def half(x, center):
        return jnp.where(x[0] > 0, bumps(x, center), jnp.nan)

    res = ox.dual_annealing(half, BOXES, (0.3,), 100, {"method": NEWTON}, rng=0, x0=[-1.0, 0.0])
    assert res.success
    assert_allclose(res.x, 0.3, atol=1e-6)
    res = ox.dual_annealing(lambda x: jnp.nan * x[0], BOXES, maxiter=3, rng=0)
    assert not res.success and res.status == -3 and res.fun == np.inf


def test_bounds_inside_jit():
    run = jax.jit(lambda box: lowest(0.3, bounds=box))
    assert_allclose(run(jnp.array(BOXES)).x, 0.3, atol=1e-6)
    for bad in (np.inf, np.nan, -4.5):
        res = run(jnp.array([(-5.0, 4.0), (-4.0, bad)]))
        assert res.status == -6 and not res.success
        assert np.all(np.isnan(res.x)) and np.isnan(res.fun)


@pytest.mark.parametrize(("name", "power"), [("float64", 900), ("float32", 100)])
def test_units_of_x_do_not_matter_to_annealing(name, power):
    """SciPy's moves are in units of x, so that there another unit is another search."""
    dtype = np.dtype(name)

    @jax.jit
    def run(unit):
        box = jnp.asarray(BOXES, dtype) * unit
        center = jnp.asarray(0.25, dtype)
        return ox.dual_annealing(
            lambda x: bumps(x / unit, center), box, maxiter=30, rng=0, no_local_search=True
        )

    one = run(dtype.type(1))
    assert one.x.dtype == one.fun.dtype == dtype
    for unit in (dtype.type(2.0**power), dtype.type(2.0**-power)):
        other = run(unit)
        assert_array_equal(other.x / unit, one.x)
        assert_array_equal(other.fun, one.fun)


def test_pytrees_fixed_variables_and_a_first_point():
    def func(x, center):
        return bumps(x["a"], center) + (x["b"] - 1) ** 2

    x0 = {"a": jnp.array([9.0, 2.0]), "b": jnp.asarray(0.5)}
    box = ({"a": -5.0, "b": 0.5}, {"a": 5.0, "b": 0.5})
    res = ox.dual_annealing(func, box, (0.3,), 100, rng=0, x0=x0)
    assert res.lowest_optimization_result.success
    assert_allclose(res.x["a"], 0.3, atol=1e-6)
    assert res.x["b"] == 0.5
    first = lowest(0.3, x0=[0.3, 0.3], maxiter=0)
    assert first.fun < 1e-12 and first.nit == 0


def test_a_local_solver_that_leaves_the_box():
    """Newton's knows no bounds: what it finds outside does not count."""
    res = ox.dual_annealing(
        lambda x: jnp.sum((x - 3) ** 2), [(-1.0, 2.0)] * 2, (), 200, {"method": NEWTON}, rng=0
    )
    assert np.all(np.abs(res.x - 2) < 0.05) and np.all(res.x <= 2)
    assert not res.lowest_optimization_result.success


def test_derivatives_by_what_steers_the_search():
    """By x0 and by the settings: 0 of a minimum, which does not follow them; of no minimum NaN."""

    def x(x0, temperature, **kwargs):
        kwargs = {"maxiter": 1, "x0": x0, "initial_temp": temperature, **kwargs}
        return lowest(0.3, **kwargs).x

    no_steps = {"minimizer_kwargs": {"options": {"maxiter": 0}}, "maxiter": 0}
    for jacobian, rules, expected in (
        (jax.jacrev, {}, 0.0),
        (jax.jacfwd, {"no_local_search": True}, np.nan),
        (jax.jacrev, {"no_local_search": True}, np.nan),
        (jax.jacrev, no_steps, np.nan),
    ):
        for slope in jacobian(ft.partial(x, **rules), (0, 1))(jnp.ones(2), 5.0):
            assert_array_equal(slope, np.full(slope.shape, expected))


def test_values_without_a_gradient():
    """Integers, and functions of the host: asked for values only."""

    def steps(x):
        return jnp.sum(jnp.round(3 * x).astype(int) ** 2)

    res = ox.dual_annealing(steps, BOXES, maxiter=100, rng=0, no_local_search=True)
    assert res.success and res.fun == 0
    host = lambda x: jax.pure_callback(lambda x: np.sum(np.square(x)), jnp.zeros(()), x)
    res = ox.dual_annealing(host, BOXES, maxiter=5, rng=0, no_local_search=True)
    assert res.success and res.njev == 0
    with pytest.raises(TypeError, match="gradient"):
        ox.dual_annealing(steps, BOXES)


def test_infinite_values():
    """Of -inf nothing is lower; from inf it goes on to other infinite values."""

    def pit(x):
        return jnp.where(x[0] > 1, -jnp.inf, jnp.sum(x**2))

    res = ox.dual_annealing(pit, BOXES, maxiter=10, rng=0)
    assert res.success and res.fun == -np.inf

    def corner(x):
        return jnp.where(jnp.min(x) > 3, jnp.sum((x - 3.5) ** 2), jnp.nan)

    res = ox.dual_annealing(
        corner, BOXES, maxiter=200, rng=0, x0=[0.0, 0.0], initial_temp=1.0, no_local_search=True
    )
    assert res.success and res.fun < 0.5


def test_traced_numbers_out_of_range():
    run = jax.jit(lambda **traced: lowest(0.3, maxiter=traced.pop("maxiter", 5), **traced))
    for name, value in (
        ("initial_temp", -1.0), ("initial_temp", np.nan), ("restart_temp_ratio", 1.5),
        ("visit", 3.0), ("accept", 1.5),
    ):  # fmt: skip
        res = run(**{name: value})
        assert res.status == -7 and not res.success and np.all(np.isnan(res.x))
    assert run(maxiter=-1).nit == 0
    assert run(maxiter=np.int64(5), maxfun=np.int64(2**40)).success


def test_numbers_that_float32_rounds_out_of_range():
    box = np.array(BOXES, np.float32)
    for name, value in (
        ("accept", 1 - 1e-9), ("accept", -1e39), ("visit", 1 + 1e-9), ("visit", 3 - 1e-9),
        ("restart_temp_ratio", 1 - 1e-9), ("initial_temp", 1e39), ("initial_temp", 1e-46),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}.*float32"):
            lowest(np.float32(0.3), bounds=box, **{name: value})


def test_boxes_of_every_kind():
    """Objects with lb and ub, traced too; lists of NumPy's numbers, whose dtype counts."""

    class Box:
        def __init__(self, lb, ub):
            self.lb, self.ub = lb, ub

    low, high = np.array(BOXES).T
    expected = lowest(0.3, maxiter=20).x
    for box in (so.Bounds(low, high), Box(jnp.asarray(low), jnp.asarray(high)), np.array(BOXES)):
        assert_array_equal(lowest(0.3, maxiter=20, bounds=box).x, expected)
    run = jax.jit(lambda low, high: lowest(0.3, maxiter=20, bounds=Box(low, high)))
    assert_allclose(run(low, high).x, expected, rtol=1e-9)
    single = [(np.float32(low), np.float32(high)) for low, high in BOXES]
    assert lowest(np.float32(0.3), maxiter=5, bounds=single).x.dtype == np.float32


# -- callbacks and arguments ------------------------------------------------------------------


def test_callback():
    seen = []

    def callback(x, f, context):
        seen.append((f, context))
        assert_allclose(bumps(x, 0.3), f, rtol=1e-6, atol=1e-9)

    res = lowest(0.3, callback=callback)
    values = [f for f, _ in seen]
    assert values == sorted(values, reverse=True) and values[-1] == res.fun
    assert {context for _, context in seen} <= {0, 1, 2} and seen[0][1] == 1
    seen.clear()
    lowest(0.3, callback=callback, no_local_search=True)
    assert seen and {context for _, context in seen} == {0}
    for stop in (lambda x, f, context: True, ft.partial(_stop, StopIteration)):
        stopped = lowest(0.3, callback=stop)
        assert stopped.status == -2 and not stopped.success and stopped.nit == 1
        assert "stop early" in stopped.message
    with pytest.raises(KeyError):
        lowest(0.3, callback=ft.partial(_stop, KeyError))


def _stop(error, x, f, context):
    raise error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("maxiter", -1), ("maxiter", 2.5), ("maxfun", "a"), ("initial_temp", 0.0),
        ("initial_temp", np.nan), ("restart_temp_ratio", 1.0), ("restart_temp_ratio", 0.0),
        ("visit", 1.0), ("visit", 3.0), ("accept", 1.0), ("rng", "a"), ("callback", 3),
        ("no_local_search", 1), ("minimizer_kwargs", [1]), ("minimizer_kwargs", {"args": (1,)}),
        ("minimizer_kwargs", {"adjoint": None}), ("minimizer_kwargs", {"bounds": [(0, 1)] * 2}),
        ("bounds", [(0, np.inf)] * 2), ("bounds", [(0, np.nan)] * 2), ("bounds", [(1, 0)] * 2),
        ("bounds", [(0, 1, 2)] * 2), ("bounds", None), ("func", 3), ("rng", -1),
        ("x0", [np.nan, 0.0]), ("minimizer_kwargs", {"foo": 1}), ("minimizer_kwargs", {"x0": 1}),
    ],
)  # fmt: skip
def test_bad_arguments(name, value):
    given = {"func": lambda x: bumps(x, 0.3), "bounds": BOXES, name: value}
    with pytest.raises((ValueError, TypeError), match=name):
        ox.dual_annealing(**given)


def test_a_first_point_needs_finite_bounds_too():
    with pytest.raises(ValueError, match="bounds"):
        ox.dual_annealing(bumps, [(0, np.inf)] * 2, (0.3,), x0=[1.0, 1.0])


def test_arguments_of_the_local_solver():
    """The same bounds once more, as SciPy's users write it; a method and its options."""
    local = {"method": "L-BFGS-B", "bounds": BOXES, "options": {"maxiter": 1}}
    short = lowest(0.3, minimizer_kwargs=local, maxiter=20)
    long = lowest(0.3, minimizer_kwargs={**local, "options": {}}, maxiter=20)
    assert short.njev < long.njev


def test_a_closure_over_new_data_compiles_nothing(caplog):
    def run(c):
        return ox.dual_annealing(
            lambda x: jnp.sum((x - c) ** 2), BOXES, (), 5, {"method": NEWTON}, rng=0
        )

    run(0.3)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        res = run(1.3)
    assert "Compiling" not in caplog.text
    assert_allclose(res.x, 1.3, rtol=1e-5)
