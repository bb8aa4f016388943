"""Differential evolution: SciPy's own tests of it, and what JAX adds."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import Bounds, LinearConstraint, NonlinearConstraint
from scipy.optimize._differentialevolution import DifferentialEvolutionSolver
from scipy.sparse import csr_array

import optx_lite as ox
from optx_lite.api.starting_points import as_key, unit_points
from optx_lite.problem.global_search import read_box, search_problem
from optx_lite.solvers.global_search import differential_evolution as de
from optx_lite.solvers.global_search.draws import distinct

BOX = [(0.0, 2.0)] * 2
SCIPYS = ["best1", "best2", "rand1", "rand2", "randtobest1", "currenttobest1"]


def rosen(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2, axis=0)


def bowl(x):
    return (x[0] - 2.3) ** 2 + (x[1] - 1.7) ** 2 + 0.1 * x[0] * x[1]


FAMILY = [rosen, bowl, lambda x: jnp.sum(jnp.sqrt(jnp.abs(x)))]


def one_of(x, which):
    """Of FAMILY, as one program."""
    return jnp.where(which == 2, FAMILY[2](x), jnp.where(which == 1, bowl(x), rosen(x)))


def polished(which, bounds=BOX, **kwargs):
    """With L-BFGS-B at the end."""
    return ox.differential_evolution(one_of, bounds, (which,), **{"rng": 1, **kwargs})


def quadratic(x):
    return x[0] ** 2


# -- SciPy's tests: the parts -----------------------------------------------------------------


@pytest.mark.parametrize("name", SCIPYS)
def test_mutants_are_scipys(name):
    scipys = DifferentialEvolutionSolver(quadratic, [(0, 1)] * 3, popsize=7, mutation=0.7)
    population, picked = np.asarray(scipys.population), np.array([2, 3, 4, 5, 6])
    method = getattr(scipys, f"_{name}")
    expected = method(1, picked) if name == "currenttobest1" else method(picked)
    count, mutate = de.MUTATIONS[name]
    got = mutate(population[1], population[0], population[picked[:count]], 0.7)
    assert_allclose(got, expected, atol=1e-15)


@pytest.mark.parametrize("picks", [2, 5])
def test_the_points_picked_are_distinct_and_uniform(picks):
    size, draws = 6, 4000
    uniform = jax.random.uniform(jax.random.key(0), (draws, size, picks))
    own = jnp.arange(size, dtype=jnp.int32)
    picked = np.asarray(jax.vmap(lambda u: distinct(u, size, [own]))(uniform))
    with_own = np.concatenate(
        [np.broadcast_to(np.arange(size)[:, None], (draws, size, 1)), picked], 2
    )
    assert np.all(np.diff(np.sort(with_own, axis=-1), axis=-1) > 0)
    assert picked.min() == 0 and picked.max() == size - 1
    for i in range(size):
        for column in range(picks):
            counts = np.bincount(picked[:, i, column], minlength=size)
            assert counts[i] == 0
            expected = draws / (size - 1)
            assert np.all(np.abs(np.delete(counts, i) - expected) < 6 * np.sqrt(expected))


@pytest.mark.parametrize("crossover", ["bin", "exp"])
def test_crossed_entries_have_scipys_distribution(crossover):
    n, size, rate = 5, 2000, 0.7
    solver = _settings("best1" + crossover, rate)
    plan = solver._plan(jnp.zeros((size, n)), jax.random.key(1))[1]
    counts = np.bincount(np.asarray(plan.crossed).sum(1), minlength=n + 1) / size
    if crossover == "bin":
        rest = np.array([_binomial(n - 1, k, rate) for k in range(n)])
        expected = np.concatenate([[0], rest])
    else:
        runs = rate ** np.arange(n) * (1 - rate)
        runs[-1] = rate ** (n - 1)
        expected = np.concatenate([[0], runs])
        turned = np.asarray(plan.crossed)
        borders = (turned != np.roll(turned, 1, axis=1)).sum(1)
        assert set(borders) <= {0, 2}  # one run, around the end
    assert_allclose(counts, expected, atol=5 * 0.5 / np.sqrt(size))


def _binomial(n, k, p):
    from math import comb

    return comb(n, k) * p**k * (1 - p) ** (n - k)


def _settings(strategy, rate):
    return de.DifferentialEvolution(
        strategy=strategy, custom=None, mutation=jnp.array([0.5, 0.5]),
        recombination=jnp.array(rate), tol=jnp.array(0.01), atol=jnp.array(0.0),
        maxiter=np.int32(1), maxfun=np.int32(1), immediate=False,
    )  # fmt: skip


@pytest.mark.parametrize("mutation", [(0.5, 3), (-1, 1), (0.1, np.nan), 2.0])
def test_invalid_mutation(mutation):
    with pytest.raises(ValueError, match="mutation constant"):
        ox.differential_evolution(rosen, BOX, mutation=mutation)


def test_scaling_and_integrality_limits():
    problem = search_problem(quadratic, [(0, 100)])
    assert_allclose(problem.at(jnp.array([0.3])), 30)
    assert_allclose(problem.unit(jnp.array([30.0])), 0.3)
    assert_allclose(search_problem(quadratic, [(100, 0)]).at(jnp.array([0.3])), 30)
    equal = search_problem(quadratic, [(2.0, 2.0), (1.0, 3.0)])
    assert_allclose(equal.unit(jnp.array([2.0, 2.0])), 0.5)
    for bounds in (
        [(0.2, 1.1), (0.9, 2.2), (3.3, 4.9)],
        [(-1.2, -0.9), (0.9, 2.2), (-10.3, 4.1)],
        [(-10.2, -8.1), (0.9, 2.2), (-10.9, -9.9999)],
    ):
        ours = search_problem(quadratic, bounds, integrality=[True, False, True])
        scipys = DifferentialEvolutionSolver(quadratic, bounds, integrality=[True, False, True])
        assert_array_equal(np.stack([ours.lower, ours.upper]), scipys.limits)
    with pytest.raises(ValueError, match="One of the integrality"):
        search_problem(quadratic, [(-10.2, -10.1)], integrality=True)


def test_a_box_as_wide_as_the_range_of_floats():
    problem = search_problem(quadratic, [(-1.7e308, 1.7e308)])
    assert_allclose(problem.at(jnp.array([[0.0], [0.5], [1.0]])).ravel(), [-1.7e308, 0, 1.7e308])
    assert_allclose(problem.unit(jnp.array([0.85e308])), 0.75)


@pytest.mark.parametrize("many", [False, True])
def test_violations_are_scipys(many):
    first = NonlinearConstraint(lambda x: [x[0] + x[1]], -np.inf, 1.9)
    second = NonlinearConstraint(
        lambda x: jnp.array([x[0] ** 2 + x[1], x[0] - x[1]]), -np.inf, [1.8, 1.8]
    )
    third = LinearConstraint(csr_array(np.array([[1.0, 2.0]])), 0, 1)
    all_ = (first, second, third, Bounds([0.1, 0.1], [1, 1]))
    problem = search_problem(
        (lambda x: jnp.sum(x**2, axis=0)), BOX, constraints=all_, vectorized=many
    )
    points = np.array([(1.2, 1), (2.0, 2.0), (0.5, 0.5), (0.0, 0.3)])
    scipys = DifferentialEvolutionSolver(so.rosen, BOX, constraints=all_)
    expected = [scipys._constraint_violation_fn(point)[0] for point in points]
    assert_allclose(problem.violations(points), expected, atol=1e-15)
    broken = NonlinearConstraint(lambda x: jnp.log(x[0] - 9.0), -np.inf, 1.0)
    problem = search_problem(quadratic, BOX, constraints=broken)
    assert np.all(np.isinf(problem.violations(points)))


def test_acceptance_is_scipys():
    scipys = DifferentialEvolutionSolver(
        so.rosen, BOX, constraints=NonlinearConstraint(lambda x: [x[0], x[1]], -np.inf, 1.9)
    )
    rng = np.random.default_rng(0)
    for _ in range(300):
        energies = rng.integers(0, 3, 2).astype(float)
        violations = rng.integers(0, 3, (2, 2)) * rng.integers(0, 2, (2, 1)).astype(float)
        feasible = ~np.any(violations > 0, axis=1)
        energies[~feasible] = np.inf
        new, old = (de.Member(jnp.zeros(1), energies[i], violations[i]) for i in (0, 1))
        expected = scipys._accept_trial(
            energies[0], feasible[0], violations[0], energies[1], feasible[1], violations[1]
        )
        assert bool(de._accepted(new, old)) == expected


def test_convergence_is_scipys():
    scipys = DifferentialEvolutionSolver(so.rosen, BOX, tol=0.1, atol=0.02)
    solver = _settings("best1bin", 0.7)

    solver = dataclasses.replace(solver, tol=jnp.array(0.1), atol=jnp.array(0.02))
    for values in (
        [1, 1.1, 0.9],
        [1, 1.3, 0.7],
        [0, 0, 0.05],
        [0, 0, 0],
        [1, np.inf, 1],
        [-5, -6, -5],
    ):
        energies = np.array(values, float)
        scipys.population_energies = energies
        state = SimpleNamespace(members=SimpleNamespace(energy=jnp.asarray(energies)))
        assert bool(solver.converged(state)) == bool(scipys.converged())
    huge = SimpleNamespace(members=SimpleNamespace(energy=jnp.array([1e308, 1.1e308, 0.9e308])))
    assert solver.converged(huge)


@pytest.mark.parametrize("method", ["latinhypercube", "uniform", "sobol", "halton"])
def test_first_populations_fill_the_cube(method):
    from scipy.stats import qmc

    points = np.asarray(unit_points(method, 64, 3, jax.random.key(3), jnp.float64))
    assert points.shape == (64, 3) and points.min() >= 0 and points.max() <= 1
    if method != "uniform":
        assert qmc.discrepancy(points) < 0.5 * qmc.discrepancy(
            np.random.default_rng(0).random((64, 3))
        )
    if method == "latinhypercube":
        cells = np.sort(np.floor(points * 64), axis=0)
        assert_array_equal(cells, np.broadcast_to(np.arange(64)[:, None], (64, 3)))


# -- SciPy's tests: the search ----------------------------------------------------------------


@pytest.mark.parametrize("strategy", [*de.STRATEGIES[::4], *de.STRATEGIES[3::4]])  # bin, exp
def test_every_strategy_finds_the_minimum(strategy):
    res = ox.differential_evolution(rosen, BOX, strategy=strategy, rng=1, polish=False, tol=1e-6,
                                    atol=1e-8, updating="deferred")  # fmt: skip
    assert res.success and res.message == "Optimization terminated successfully."
    assert_allclose(res.x, 1, atol=1e-3)
    assert_allclose(res.fun, so.rosen(np.asarray(res.x)), atol=1e-15)
    assert np.std(res.population_energies) <= 1.01e-8


def test_polish_and_immediate_updating():
    res = polished(0)
    assert res.success and res.fun < 1e-12
    assert_allclose(res.x, 1, atol=1e-6)
    assert_array_equal(res.x, res.population[0])
    assert res.nfev > (res.nit + 1) * 30


def test_equal_bounds():
    res = ox.differential_evolution(quadratic, [(2.0, 2.0), (3.0, 3.0)], polish=False)
    assert_array_equal(res.x, [2.0, 3.0])
    assert res.population.shape == (15, 2)
    assert res.fun == 4


def test_maxiter_and_maxfun():
    def run(**kwargs):
        return ox.differential_evolution(rosen, BOX, rng=2, polish=False, **kwargs)

    res = run(maxiter=1)
    assert not res.success and res.nit == 1
    assert res.message == "Maximum number of iterations has been exceeded."
    res = run(maxiter=0)
    assert not res.success and res.nit == 0 and res.nfev == 30 and np.isfinite(res.fun)
    res = run(maxfun=1)
    assert res.nfev == 2 and not res.success
    assert res.message == "Maximum number of function evaluations has been exceeded."
    assert run(popsize=5, maxfun=40).nfev == 41
    res = run(popsize=5, maxfun=47, updating="deferred")
    assert res.nfev == 47 and not res.success
    assert res.message == "Maximum number of function evaluations has been reached."
    for limit in (29, 30, 31, 59, 60, 61):
        for updating in ("immediate", "deferred"):
            scipys = DifferentialEvolutionSolver(
                so.rosen, BOX, rng=0, maxfun=limit, polish=False, updating=updating
            ).solve()
            res = run(maxfun=limit, updating=updating)
            assert (res.nfev, res.message) == (scipys.nfev, scipys.message)
    assert run(maxiter=None).success


def test_same_key_same_answer():
    def run(rng):
        return ox.differential_evolution(quadratic, [(-100, 100)], polish=False, rng=rng, atol=1)

    generator = np.random.default_rng(5)
    for rng in (1, jax.random.key(1), jax.random.PRNGKey(1)):
        assert_array_equal(run(rng).population, run(1).population)
    assert run(np.random.default_rng(5)).nfev == run(generator).nfev
    assert not np.array_equal(run(generator).population, run(generator).population)
    assert not np.array_equal(run(2).population, run(1).population)
    assert np.isfinite(run(None).fun)
    assert run(2**40).success
    with pytest.raises(TypeError, match="`rng`"):
        run("abc")
    with pytest.raises(ValueError, match="one key"):
        run(jax.random.split(jax.random.key(0)))


@pytest.mark.parametrize("init", ["random", "sobol", "halton"])
def test_inits(init):
    res = ox.differential_evolution(rosen, BOX, init=init, rng=4, popsize=16, polish=False)
    assert res.success and res.fun < 1e-2
    assert res.population.shape == (32, 2)


def test_given_population_and_x0():
    population = np.linspace(-1, 3, 10).reshape(5, 2)
    res = ox.differential_evolution(
        rosen, BOX, init=population, strategy="best2bin", maxiter=0, polish=False
    )
    inside = np.clip(population, 0, 2)
    assert_allclose(np.sort(res.population, axis=0), np.sort(inside, axis=0))
    assert res.fun == min(so.rosen(point) for point in inside)
    with pytest.raises(ValueError, match=r"shape \(S, len\(x\)\)"):
        ox.differential_evolution(rosen, BOX, init=np.zeros((5, 3)))
    with pytest.raises(ValueError, match="rand2bin"):
        ox.differential_evolution(rosen, BOX, init=population, strategy="rand2bin")
    with pytest.raises(ValueError, match="`init`"):
        ox.differential_evolution(rosen, BOX, init="rubbish")
    res = ox.differential_evolution(rosen, BOX, x0=[1.0, 1.0], maxiter=0, polish=False)
    assert_array_equal(res.x, 1)
    with pytest.raises(ValueError, match="outside the specified bounds"):
        ox.differential_evolution(rosen, BOX, x0=[0.2, 2.1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("func", 3), ("strategy", "abc"), ("maxiter", -1), ("maxiter", 2.5), ("maxiter", "a"),
        ("popsize", 0), ("tol", -1.0), ("tol", np.nan), ("atol", [1, 2]), ("mutation", "a"),
        ("recombination", 1.5), ("rng", "abc"), ("callback", 3), ("polish", "yes"),
        ("init", "rubbish"), ("init", np.full((6, 2), np.nan)), ("init", np.zeros((5, 3))),
        ("x0", "a"), ("x0", [0.2, 2.1]), ("x0", [np.nan, 1.0]), ("x0", [1.0]),
        ("updating", "later"), ("workers", "a"), ("constraints", 3), ("vectorized", "a"),
        ("constraints", NonlinearConstraint(3, 0, 1)),
        ("constraints", NonlinearConstraint(lambda x: x[0], np.nan, 1)),
        ("integrality", [True, False, True]), ("maxfun", -1), ("bounds", [-3]),
        ("bounds", [(-3, 3), (3, 4, 5)]), ("bounds", [(0, np.inf)]), ("bounds", [(0, np.nan)]),
        ("bounds", []),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        ox.differential_evolution(**{"func": rosen, "bounds": BOX, name: value})


def test_values_that_are_none():
    def two_values(x):
        return jnp.array([jnp.sum(x**2), jnp.sum(x)])

    with pytest.raises(RuntimeError, match=r"func\(x, \*args\) must return a scalar value"):
        ox.differential_evolution(two_values, BOX)
    with pytest.raises(TypeError, match="unexpected keyword"):
        ox.differential_evolution(rosen, BOX, tolerance=1)


def test_whole_values_are_not_polished():
    """They have no gradient."""
    res = ox.differential_evolution(lambda x: jnp.round(10 * x[0]).astype(int), BOX, rng=0)
    assert res.success and res.fun == 0 and res.jac is None


def test_args_and_bounds_object():
    def parabola(x, *args):
        assert isinstance(args, tuple)
        return args[0] + args[1] * x + args[2] * x**2.0

    res = ox.differential_evolution(parabola, Bounds([-10], [10]), args=(1.0, 2.0, 3.0), rng=0,
                                    polish=False, tol=1e-9)  # fmt: skip
    assert_allclose(res.fun, 2 / 3.0, rtol=1e-8)


def test_nan_and_infinite_values_never_win():
    def partly(x, bad):
        return jnp.where(x[0] < 0.5, bad, x[1])

    for bad in (np.inf, np.nan):
        res = ox.differential_evolution(
            partly, [(0, 1)] * 2, (bad,), rng=3, maxiter=60, polish=False
        )
        assert np.isfinite(res.fun) and res.x[0] >= 0.5
        assert not np.any(np.isnan(res.population_energies))
        res = ox.differential_evolution(
            partly, [(0, 0.4), (0, 1)], (bad,), rng=3, maxiter=3, polish=False
        )
        assert not res.success and res.message == "No point with a finite value was found."


def test_callbacks():
    seen = []

    def callback(intermediate_result):
        seen.append(intermediate_result)
        assert intermediate_result.message == "in progress" and intermediate_result.success is True
        assert intermediate_result.nit == len(seen)
        assert_array_equal(intermediate_result.x, intermediate_result.population[0])
        assert intermediate_result.fun == np.min(intermediate_result.population_energies)
        if len(seen) == 10:
            raise StopIteration

    kwargs = {"rng": 838245, "polish": False}
    res = ox.differential_evolution(rosen, BOX, callback=callback, **kwargs)
    ref = ox.differential_evolution(rosen, BOX, maxiter=10, **kwargs)
    assert res.success is ref.success is False
    assert res.nit == ref.nit == 10 and res.nfev == ref.nfev
    assert res.message == "callback function requested stop early"
    assert_allclose(res.population, ref.population)
    assert_allclose(seen[-1].population, ref.population)
    ended = polished(0, callback=lambda x, convergence: [1])
    assert ended.fun < 1e-10 and ended.message == res.message and ended.nit == 1
    assert polished(0, callback=lambda x, convergence: []).success
    assert polished(0, callback=lambda xk, val: True).nit == 1  # by position, as SciPy's
    with pytest.raises(ZeroDivisionError):
        polished(0, callback=lambda x, convergence: 1 / 0)


def test_callbacks_while_no_point_is_feasible():
    never = NonlinearConstraint(lambda x: jnp.stack([x[0] + x[1]]), -np.inf, -1)
    calls = {so: [], ox: []}
    for package, seen in calls.items():
        package.differential_evolution(
            rosen, BOX, constraints=never, rng=1, maxiter=4, polish=False,
            callback=lambda x, convergence, seen=seen: seen.append(x),
        )  # fmt: skip
    assert len(calls[ox]) == len(calls[so]) == 4


def test_disp(capsys):
    polished(0, disp=True, maxiter=2)
    out = capsys.readouterr().out
    assert "differential_evolution step 1: f(x)=" in out and "step 2" in out
    assert "Polishing" in out


def test_vectorized_is_the_same_search():
    calls = {}
    for vectorized in (False, True):
        calls[vectorized] = ox.differential_evolution(
            rosen, [(0, 10)] * 2, updating="deferred", rng=1, vectorized=vectorized,
            constraints=NonlinearConstraint(lambda x: jnp.stack([x[0] + x[1]]), 1.0, 9.0),
        )  # fmt: skip
    alone, together = calls.values()
    assert_allclose(alone.x, together.x)
    assert alone.nit == together.nit and together.nfev == together.nit + 1
    with pytest.raises(RuntimeError, match="The vectorized function"):
        ox.differential_evolution(
            lambda x: jnp.sum(x**2), BOX, vectorized=True, updating="deferred"
        )
    with pytest.warns(UserWarning, match="differential_evolution: the 'vector"):
        ox.differential_evolution(rosen, BOX, vectorized=True, maxiter=1, polish=False)
    with pytest.warns(UserWarning, match="differential_evolution: the 'workers"):
        ox.differential_evolution(rosen, BOX, workers=2, maxiter=1, polish=False)


def test_own_strategy():
    def best1bin(candidate, population, rng=None):
        keys = jax.random.split(rng, 3)
        n, size = population.shape[1], population.shape[0]
        r0, r1 = jax.random.choice(keys[0], size, (2,), replace=False)
        mutant = population[0] + 0.8 * (population[r0] - population[r1])
        crossed = jax.random.uniform(keys[1], (n,)) < 0.7
        return jnp.where(crossed, mutant, population[candidate])

    for updating in ("immediate", "deferred"):
        res = polished(0, strategy=best1bin, updating=updating)
        assert res.success and res.fun < 1e-10
    with pytest.raises(RuntimeError, match="strategy"):
        ox.differential_evolution(rosen, BOX, strategy=lambda c, p, rng: jnp.zeros(3))


def test_polish_by_a_function():
    def by_scipy(fun, x, bounds, constraints):
        return so.minimize(lambda x: float(fun(x)), np.asarray(x), method="Nelder-Mead",
                           bounds=list(zip(*map(np.asarray, bounds), strict=True)),
                           options={"xatol": 1e-10, "fatol": 1e-14})  # fmt: skip

    res = ox.differential_evolution(rosen, BOX, polish=by_scipy, maxiter=1, rng=0)
    assert_allclose(res.x, 1, atol=1e-6)
    with pytest.raises(ValueError, match="user defined polishing"):
        ox.differential_evolution(rosen, BOX, polish=lambda f, x, **kwargs: x, maxiter=1, rng=0)


def test_polish_leaves_kinks_and_infinite_slopes_alone():
    res = polished(2, [(0.0, 1.0)] * 2, atol=1e-3)
    assert np.all(np.asarray(res.x) < 1e-3) and np.isfinite(res.fun)


def test_integrality_with_polish():
    grid = {k: so.minimize_scalar(lambda y, k=k: float(bowl([k, y]))) for k in range(-4, 5)}
    best = min(grid, key=lambda k: grid[k].fun)
    res = polished(1, [(-4.4, 4.4)] * 2, integrality=[True, False])
    assert res.x[0] == best
    assert_allclose(res.x[1], grid[best].x, atol=1e-6)
    assert_allclose(res.fun, grid[best].fun, rtol=1e-9)
    res = polished(1, [(-4.4, 4.4)] * 2, integrality=True)
    brute = min(float(bowl([i, j])) for i in range(-4, 5) for j in range(-4, 5))
    assert_allclose(res.fun, brute)
    assert_array_equal(res.population, np.round(res.population))


# -- Lampinen's problems, as SciPy has them ---------------------------------------------------


def _one_indexed(fun):
    return lambda x: fun(jnp.concatenate([jnp.zeros(1), x]))


def lampinen_1():
    A = np.zeros((10, 14))
    A[1, [1, 2, 10, 11]] = 2, 2, 1, 1
    A[2, [1, 10]] = -8, 1
    A[3, [4, 5, 10]] = -2, -1, 1
    A[4, [1, 3, 10, 11]] = 2, 2, 1, 1
    A[5, [2, 11]] = -8, 1
    A[6, [6, 7, 11]] = -2, -1, 1
    A[7, [2, 3, 11, 12]] = 2, 2, 1, 1
    A[8, [3, 12]] = -8, 1
    A[9, [8, 9, 12]] = -2, -1, 1
    b = np.array([10, 0, 0, 10, 0, 0, 10, 0, 0])
    fun = _one_indexed(lambda x: jnp.sum(5 * x[1:5]) - 5 * x[1:5] @ x[1:5] - jnp.sum(x[5:]))
    bounds = [(0, 1)] * 9 + [(0, 100)] * 3 + [(0, 1)]
    return (
        fun,
        bounds,
        LinearConstraint(csr_array(A[1:, 1:]), -np.inf, b),
        -15.0,
        6e-3,
        {"popsize": 5},
    )


def lampinen_5():
    def fun(x):
        waves = jnp.sin(2 * jnp.pi * x[0]) ** 3 * jnp.sin(2 * jnp.pi * x[1])
        return -waves / (x[0] ** 3 * (x[0] + x[1]))

    held = NonlinearConstraint(
        lambda x: [x[0] ** 2 - x[1] + 1, 1 - x[0] + (x[1] - 4) ** 2], -np.inf, 0
    )
    return fun, [(0, 10)] * 2, held, -0.095825, 1e-4, {"strategy": "rand1bin"}


def lampinen_6():
    held = NonlinearConstraint(
        lambda x: [
            (x[0] - 5) ** 2 + (x[1] - 5) ** 2 - 100,
            -((x[0] - 6) ** 2) - (x[1] - 5) ** 2 + 82.81,
        ],
        0, np.inf,
    )  # fmt: skip
    options = {"strategy": "rand1bin", "tol": 1e-7}
    return (
        lambda x: (x[0] - 10) ** 3 + (x[1] - 20) ** 3,
        [(13, 100), (0, 100)],
        held,
        -6961.814744,
        3e-3,
        options,
    )


def lampinen_9():
    held = NonlinearConstraint(lambda x: [x[1] - x[0] ** 2], [-0.001], [0.001])
    return (
        lambda x: x[0] ** 2 + (x[1] - 1) ** 2,
        [(-1, 1)] * 2,
        held,
        0.75,
        1e-3,
        {"strategy": "rand1bin"},
    )


@pytest.mark.parametrize("case", [lampinen_1, lampinen_5, lampinen_6, lampinen_9])
def test_lampinen(case):
    """Most of some searches: a population may end early, SciPy's as often as ours."""
    fun, bounds, held, best, tolerance, options = case()

    def search(key):
        return ox.differential_evolution(
            fun, bounds, constraints=held, rng=key, polish=False, updating="deferred",
            maxiter=3000, **{"tol": 1e-7, **options},
        )  # fmt: skip

    many = jax.vmap(search)(jax.random.split(jax.random.key(1), 4))
    assert np.all(many.success) and np.all(many.maxcv == 0)
    assert np.all(many.fun > best - 1.1 * tolerance)
    assert np.sum(many.fun < best + tolerance) >= 2
    low, high = np.array(bounds, float).T
    assert np.all((np.asarray(many.x) >= low) & (np.asarray(many.x) <= high))


def test_constraints_that_nothing_satisfies():
    impossible = NonlinearConstraint(lambda x: jnp.array([x[0] + x[1]]), -np.inf, -1)
    for updating in ("immediate", "deferred"):
        res = ox.differential_evolution(
            rosen, BOX, constraints=(impossible,), rng=1, maxiter=100, updating=updating
        )
        assert not res.success and "MAXCV = 1" in res.message
        assert res.nfev == 0
        assert_allclose(res.maxcv, 1, atol=1e-2)  # the least that is possible, at (0, 0)
        assert_array_equal(res.constr[0], [res.maxcv])
        assert np.all(np.isinf(res.population_energies))


# -- what JAX adds ----------------------------------------------------------------------------


DIRECTION = jnp.array([1.0, -0.5])


def shifted(x, center):
    """Rastrigin's, its lowest minimum at ``center``."""
    y = x - center
    return 1 + jnp.sum(y**2 - 3 * jnp.cos(2 * jnp.pi * y) + 3)


def test_jit_vmap_and_derivative():
    """The minimum is moved as a whole."""

    def solve(center, key):
        def search(center):
            res = ox.differential_evolution(
                shifted, [(-4.0, 4.0)] * 2, (center,), rng=key, tol=1e-3
            )
            return (res.x, res.fun), res

        _, slopes, res = jax.jvp(search, (center,), (DIRECTION,), has_aux=True)
        return slopes, res

    centers = jnp.array([[0.3, -1.2], [1.7, 0.4], [-2.2, 0.9]])
    keys = jax.random.split(jax.random.key(0), 3)
    slopes, many = jax.jit(jax.vmap(solve))(centers, keys)
    assert_allclose(many.x, centers, atol=1e-6)
    assert np.all(many.success)
    assert_allclose(slopes[0], np.broadcast_to(DIRECTION, (3, 2)), atol=1e-6)
    assert_allclose(slopes[1], np.zeros(3), atol=1e-5)


def test_second_derivative_in_reverse():
    """The raw search has none; behind the polished minimum that is not seen."""

    def value(tilt):
        tilted = lambda x: jnp.sum((x - 1) ** 2) + tilt * x[0]
        return ox.differential_evolution(tilted, [(-4.0, 4.0)] * 2, rng=0, tol=0.1).fun

    # tilt - tilt² / 4 at x = 1 - tilt / 2
    assert_allclose(jax.grad(jax.grad(value))(0.3), -0.5, rtol=1e-6)


def test_without_polish_there_is_no_derivative():
    def x(center):
        return ox.differential_evolution(
            shifted, [(-4.0, 4.0)] * 2, (center,), rng=1, polish=False, maxiter=2
        ).x[0]

    center = jnp.array([0.3, 0.4])
    assert np.all(np.isnan(jax.grad(x)(center)))
    assert np.isnan(jax.jvp(x, (center,), (jnp.ones(2),))[1])


def test_float32_and_traced_bounds():
    bounds = jnp.array([[-4.0, 4.0]] * 2, jnp.float32)
    center = jnp.array([0.3, -1.2], jnp.float32)
    res = ox.differential_evolution(shifted, bounds, (center,), rng=0)
    assert res.x.dtype == res.fun.dtype == res.population.dtype == jnp.float32
    assert res.success
    assert_allclose(res.x, center, atol=1e-3)
    broken = jax.jit(
        lambda b: ox.differential_evolution(shifted, b, (center,), rng=0, polish=False)
    )
    assert broken(bounds.at[0, 1].set(jnp.inf)).status == -6


def test_the_box_that_is_read():
    """Of whose dtype it is, and in order, concrete or traced."""
    single = np.float32([0.5, 0.5])
    plain = SimpleNamespace(lb=[-1.0, -2.0], ub=[1.0, 2.0])
    for box, like, dtype in (
        (plain, single, np.float32), (plain, None, np.float64),
        (np.array([(0.0, 1.0)]), single, np.float64),
        ([(np.float32(0), np.float32(1))], None, np.float32),
        ([(np.float32(0), np.float64(1))], None, np.float64),
        ([(0, 1)], single, np.float32),
    ):  # fmt: skip
        assert [side.dtype for side in read_box(box, like)] == [dtype, dtype]
    low, high = np.array([-1.0, 2.0]), np.array([1.0, -2.0])
    ordered = jax.jit(lambda low, high: read_box(SimpleNamespace(lb=low, ub=high)))
    for sides in (ordered(low, high), read_box(SimpleNamespace(lb=low, ub=high))):
        assert_array_equal(sides, [[-1, -2], [1, 2]])


def test_keys():
    assert jnp.all(jax.random.key_data(as_key(jnp.uint32(3))) == jax.random.key_data(as_key(3)))


def test_starting_points():
    starts = np.asarray(ox.sample_starts(Bounds([0, -1], [1, 5]), 16, "sobol", 0))
    assert starts.shape == (16, 2)
    assert np.all((starts >= np.array([0, -1])) & (starts <= np.array([1, 5])))
    inside = jax.jit(lambda key: ox.sample_starts([(0.0, 1.0)], 4, "sobol", key))
    assert not np.array_equal(inside(jax.random.key(0)), inside(jax.random.key(1)))
    with pytest.raises(ValueError, match="`method`"):
        ox.sample_starts([(0, 1)], 4, "grid")
    with pytest.raises(ValueError, match="`count`"):
        ox.sample_starts([(0, 1)], 0)


def test_lanes_of_a_numpy_array_that_is_a_constant_of_the_program():
    centers = np.array([0.5, -1.0])

    def lowest(center):
        square = lambda x: jnp.sum((x - center) ** 2)
        return ox.differential_evolution(square, [(-2, 2)], rng=0, polish=False).x[0]

    assert_allclose(jax.jit(lambda: jax.vmap(lowest)(centers))(), centers, atol=0.01)
