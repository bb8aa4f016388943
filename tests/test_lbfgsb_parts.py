"""The parts of L-BFGS-B, each against its definition: memory, Cauchy point, line search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
from numpy.testing import assert_allclose
from scipy.optimize._dcsrch import DCSRCH
from scipy.sparse.linalg import aslinearoperator

import optx_lite as ox
from optx_lite.linalg import solve_positive
from optx_lite.solvers.minimize.bfgs_matrix import Compact, Dense, matrix_of
from optx_lite.solvers.minimize.cauchy_point import cauchy_point
from optx_lite.solvers.minimize.limited_memory import Memory
from optx_lite.solvers.minimize.line_search import advance, begin

SLOTS = 4


def pairs(n, count, seed=0):
    """Steps and changes of a convex quadratic."""
    rng = np.random.default_rng([n, count, seed])
    a = rng.standard_normal((n, n))
    hessian = a @ a.T / n + np.eye(n)
    steps = rng.standard_normal((count, n))
    return steps, steps @ hessian


def memory_of(steps, changes):
    memory = Memory.empty(SLOTS, steps.shape[1], steps.dtype)
    remember = jax.jit(Memory.remember)
    for s, y in zip(steps, changes, strict=True):
        memory = remember(memory, s, y, True)
    return memory


def bfgs(steps, changes):
    """B by the recursion of Broyden, Fletcher, Goldfarb and Shanno, from theta I."""
    b = np.eye(steps.shape[1])
    if len(steps):
        b = b * (changes[-1] @ changes[-1]) / (steps[-1] @ changes[-1])
    for s, y in list(zip(steps, changes, strict=True))[-SLOTS:]:
        b = b - np.outer(b @ s, b @ s) / (s @ b @ s) + np.outer(y, y) / (s @ y)
    return b


# Not full, full, gone round once, twice and a half.
COUNTS = [0, 1, 3, SLOTS, SLOTS + 1, 10]


FORMS = [Compact, Dense]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("form", FORMS)
def test_both_forms_are_the_recursion(form, count):
    n = 7
    steps, changes = pairs(n, count)
    matrix, b = form.of(memory_of(steps, changes)), bfgs(steps, changes)
    assert_allclose(jax.vmap(matrix.times)(np.eye(n)), b, atol=1e-13)
    seen = [matrix.see(v) for v in steps[:2]]
    if count > 1:
        assert_allclose(matrix.form(*seen), steps[0] @ b @ steps[1], atol=1e-12)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("share", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("form", FORMS)
def test_the_inverse_among_the_free(form, count, share):
    n = 7
    rng = np.random.default_rng(count)
    steps, changes = pairs(n, count)
    matrix, b = form.of(memory_of(steps, changes)), bfgs(steps, changes)
    free = rng.uniform(size=n) < share
    r = rng.standard_normal(n) * free
    chosen = np.flatnonzero(free)
    expected = np.zeros(n)
    expected[chosen] = np.linalg.solve(b[np.ix_(chosen, chosen)], r[chosen])
    step, sound = matrix.solve(r, free)
    assert sound
    assert_allclose(step, expected, atol=1e-13)


@pytest.mark.parametrize("count", COUNTS)
def test_the_inverse_of_all(count):
    steps, changes = pairs(7, count)
    r = np.random.default_rng(count).standard_normal(7)
    expected = np.linalg.solve(bfgs(steps, changes), r)
    assert_allclose(memory_of(steps, changes).solve(r), expected, atol=1e-13)


def two_loops(steps, changes, r):
    """The recursion in extended precision: Nocedal (1980), algorithm 7.4 of Nocedal & Wright."""
    steps, changes, q = (np.asarray(a, np.longdouble) for a in (steps, changes, r))
    kept = []
    for s, y in zip(steps[::-1], changes[::-1], strict=True):
        kept.append((s @ q) / (s @ y))
        q = q - kept[-1] * y
    q = q * (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1])
    for s, y, a in zip(steps, changes, kept[::-1], strict=True):
        q = q + (a - (y @ q) / (s @ y)) * s
    return q.astype(float)


def test_the_inverse_keeps_its_digits_where_the_problem_is_ill_conditioned():
    weights = np.logspace(0, 12, 8)
    problem, x0 = ox.minimization_problem(lambda x: jnp.sum(weights * x**2 + x**4), np.ones(8))
    solver = ox.LBFGSB(ftol=1e-16, gtol=1e-12)
    state, step = solver.init(problem, x0), jax.jit(solver.step)
    for _ in range(80):
        state = step(problem, state)
    memory = state.memory
    assert np.all(memory.full)
    expected = two_loops(*memory.in_order(), state.grad)
    error = np.linalg.norm(memory.solve(state.grad) - expected)
    assert error < 1e-12 * np.linalg.norm(expected)


def test_a_memory_that_was_cleared_begins_anew():
    steps, changes = pairs(7, 9)
    memory = memory_of(steps[:6], changes[:6]).forget(jnp.array(True))
    for s, y in zip(steps[6:], changes[6:], strict=True):
        memory = memory.remember(s, y, jnp.array(True))
    expected = np.linalg.solve(bfgs(steps[6:], changes[6:]), steps[0])
    assert_allclose(memory.solve(steps[0]), expected, atol=1e-13)


def test_the_smaller_form_is_taken():
    assert isinstance(matrix_of(Memory.empty(SLOTS, 2 * SLOTS, float)), Dense)
    assert isinstance(matrix_of(Memory.empty(SLOTS, 2 * SLOTS + 1, float)), Compact)


def test_the_flattest_direction_seen_is_among_those_remembered():
    steps, changes = pairs(7, 10)
    seen = [s @ s / (s @ y) for s, y in zip(steps, changes, strict=True)]
    assert_allclose(memory_of(steps, changes).flatness(), max(seen[-SLOTS:]), rtol=1e-14)
    assert memory_of(steps[:0], changes[:0]).flatness() == 0


def test_what_is_not_wanted_is_not_remembered():
    steps, changes = pairs(5, 3)
    memory = memory_of(steps, changes)
    same = memory.remember(steps[0] + 1, changes[0], jnp.array(False))
    jax.tree.map(np.testing.assert_array_equal, memory, same)
    assert not np.any(memory.forget(jnp.array(True)).full)


def path_minimum(x, g, lower, upper, b):
    """From breakpoint to breakpoint, as the paper goes, with B as a matrix."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(g < 0, (x - upper) / g, np.where(g > 0, (x - lower) / g, np.inf))
    tau = 0.0
    while True:
        d = np.where(t > tau, -g, 0.0)
        z = np.where(t <= tau, -np.where(np.isfinite(t), t, 0) * g, -tau * g)
        slope, curvature = g @ d + d @ b @ z, d @ b @ d
        following = np.min(t[t > tau], initial=np.inf)
        if not d.any() or slope >= 0:
            break
        if tau - slope / curvature <= following:
            tau -= slope / curvature
            break
        tau = following
    return np.where(t <= tau, np.where(g < 0, upper, lower), x - tau * g), t > tau


@pytest.mark.parametrize("n", [1, 5, 24, 150])
@pytest.mark.parametrize("count", [0, 2, 6])
def test_cauchy_point(n, count):
    rng = np.random.default_rng([n, count])
    steps, changes = pairs(n, count)
    memory, b = memory_of(steps, changes), bfgs(steps, changes)
    matrix = matrix_of(memory)
    find = jax.jit(cauchy_point)
    for far in (0.3, 1.0, 100.0):  # all, some, or none of the bounds are met
        x, g = rng.uniform(-1, 1, n), rng.standard_normal(n)
        lower = np.where(rng.uniform(size=n) < 0.8, x - far * rng.exponential(size=n), -np.inf)
        upper = np.where(rng.uniform(size=n) < 0.8, x + far * rng.exponential(size=n), np.inf)
        lower[::5], upper[::7] = x[::5], x[::7]
        expected, free = path_minimum(x, g, lower, upper, b)
        point, ours = find(x, g, lower, upper, matrix)
        assert_allclose(point, expected, atol=1e-12)
        assert np.array_equal(ours, free)
        assert np.all((point >= lower) & (point <= upper))


def test_cauchy_point_with_equal_breakpoints():
    # Half of the variables meet their bounds at one time, the other half at another.
    n = 60
    steps, changes = pairs(n, 3)
    memory, b = memory_of(steps, changes), bfgs(steps, changes)
    g = np.tile([1.0, 2.0], n // 2)
    x, far = np.zeros(n), np.full(n, np.inf)
    for room in (0.01, 0.3, 5.0):
        expected, free = path_minimum(x, g, x - room, far, b)
        point, ours = cauchy_point(x, g, x - room, far, matrix_of(memory))
        assert_allclose(point, expected, atol=1e-12)
        assert np.array_equal(ours, free)


# The functions of Moré and Thuente's section 5, and two more.
CURVES = {
    "rational": lambda t: -t / (t**2 + 2.0),
    "quintic": lambda t: (t + 0.004) ** 5 - 2 * (t + 0.004) ** 4,
    "oscillating": lambda t: 0.1 * t**2 - 2 * t + 0.3 * jnp.sin(5 * t),
    "steep": lambda t: jnp.exp(3 * t) - 4 * t,
    "quartic": lambda t: (t - 3.0) ** 4,
}


@pytest.mark.parametrize("first", [1e-3, 0.1, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("curve", CURVES)
def test_line_search_is_minpacks(curve, first):
    phi = jax.jit(jax.value_and_grad(CURVES[curve]))
    tried = []

    def value(t):
        tried.append(float(t))
        return float(phi(float(t))[0])

    scipys = DCSRCH(value, lambda t: float(phi(float(t))[1]), 1e-3, 0.9, 0.1, 0.0, 1e10)
    value0, slope0 = phi(0.0)
    task = scipys(first, float(value0), float(slope0), maxiter=30)[3]
    search = begin(value0, slope0, jnp.asarray(first), jnp.asarray(1e10))
    step_on = jax.jit(advance)
    for expected in tried:
        if search.trials > 0 and search.step == search.best.step:
            break  # DCSRCH would go back to its best step; here that is the end
        assert_allclose(search.step, expected, rtol=1e-9)
        done, search = step_on(search, *phi(search.step))
    assert bool(done) == task.startswith(b"CONV") or search.step == search.best.step


def test_line_search_comes_back_from_where_there_is_nothing():
    phi = jax.value_and_grad(lambda t: -jnp.log(1 - t) - 3 * t)
    search = begin(*phi(0.0), jnp.asarray(5.0), jnp.asarray(1e10))
    done = False
    while not done:
        assert search.trials < 10
        done, search = advance(search, *phi(search.step))
        assert search.step < 5.0
    assert_allclose(phi(search.best.step)[1], 0, atol=0.9 * 2)


def test_line_search_below_the_rounding_of_the_value():
    # Values differ by less than one unit in the last place of 1e8: the slopes decide.
    value, unit = jnp.asarray(1e8), jnp.asarray(1.0)
    search = begin(value, jnp.asarray(-2e-8), unit, 1e10 * unit)
    assert advance(search, value, jnp.asarray(0.0))[0]
    assert not advance(search, value, jnp.asarray(2e-8))[0]


@pytest.mark.parametrize("n", [1, 5, 20])
def test_solve_positive(n):
    rng = np.random.default_rng(n)
    a = rng.standard_normal((n, n))
    scale = 10.0 ** rng.integers(-6, 7, n)
    matrix = (a @ a.T + 0.1 * np.eye(n)) * scale * scale[:, None]
    rhs = rng.standard_normal((n, 3)) * scale[:, None]
    solution, pivot = solve_positive(matrix, rhs)
    assert pivot > 0
    expected = np.linalg.solve(a @ a.T + 0.1 * np.eye(n), rhs / scale[:, None]) / scale[:, None]
    assert_allclose(solution * scale[:, None], expected * scale[:, None], rtol=1e-9, atol=1e-12)
    assert not solve_positive(-matrix, rhs)[1] > 0


@pytest.mark.parametrize("count", [1, 3, 12])
def test_inverse_hessian_is_scipys(count):
    steps, changes = pairs(6, count)
    ours, theirs = ox.LbfgsInvHessProduct(steps, changes), so.LbfgsInvHessProduct(steps, changes)
    assert ours.shape == theirs.shape
    assert ours.n_corrs == theirs.n_corrs
    assert_allclose(ours.rho, theirs.rho)
    assert_allclose(ours.todense(), theirs.todense(), atol=1e-12)
    x = np.arange(6.0)
    assert_allclose(ours @ x, theirs @ x)
    assert_allclose(ours.matvec(x[:, None])[:, 0], theirs @ x)
    assert_allclose(ours @ np.eye(6)[:, :2], theirs @ np.eye(6)[:, :2], atol=1e-12)
    assert_allclose(ours @ changes[-1], steps[-1])


def test_inverse_hessian_refuses():
    with pytest.raises(ValueError, match="matching shape"):
        ox.LbfgsInvHessProduct(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        ox.LbfgsInvHessProduct(np.ones((2, 3)), np.ones((2, 3))).matvec(np.ones(2))


def test_the_newest_pair_is_satisfied_after_the_memory_has_wrapped():
    # SciPy 1.18 misses this by more than 1: its newest pair is not in the operator.
    rosenbrock = lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)
    res = ox.minimize(rosenbrock, np.zeros(8), options={"maxcor": 5, "maxiter": 23})
    inverse = res.hess_inv
    assert inverse.n_corrs == 5
    assert_allclose(inverse @ inverse.yk[-1], inverse.sk[-1], rtol=1e-10)
    before = ox.minimize(rosenbrock, np.zeros(8), options={"maxcor": 5, "maxiter": 22})
    assert_allclose(inverse.sk[-1], res.x - before.x)
    assert_allclose(inverse.yk[-1], res.jac - before.jac)


def test_inverse_hessian_is_an_operator_as_scipys():
    steps, changes = pairs(6, 3)
    ours = ox.LbfgsInvHessProduct(steps, changes)
    theirs = aslinearoperator(so.LbfgsInvHessProduct(steps, changes).todense())
    x, many = np.arange(6.0), np.eye(6)[:, :2]
    for f in (
        lambda h: (2 * h) @ x, lambda h: (h * 2) @ x, lambda h: (h + h) @ x, lambda h: h * x,
        lambda h: (h - 3 * h) @ x, lambda h: (-h) @ x, lambda h: (h / 4) @ x, lambda h: x @ h,
        lambda h: (h @ (2 * h)) @ x, lambda h: (h**2) @ x, lambda h: h.T @ x, lambda h: h.H @ x,
        lambda h: h.adjoint() @ x, lambda h: h.rmatvec(x), lambda h: h.rmatmat(many),
        lambda h: (h @ (h + h)).T @ x, lambda h: h(x), lambda h: h.transpose() @ x,
    ):  # fmt: skip
        assert_allclose(f(ours), f(theirs), rtol=1e-10, atol=1e-12)
    assert_allclose(ours @ np.arange(6), theirs @ x)
    assert_allclose(ours @ x.astype(np.float32), theirs @ x)
    assert_allclose(ours @ (x + 1j * x), (1 + 1j) * (theirs @ x))
    whole = ox.LbfgsInvHessProduct(np.eye(2, dtype=int), 2 * np.eye(2, dtype=int))
    assert_allclose(whole @ np.ones(2), 0.5)
    with pytest.raises(ValueError, match="do not fit"):
        ours + ox.LbfgsInvHessProduct(np.ones((1, 2)), np.ones((1, 2)))


def test_a_memory_in_any_unit():
    # B is in units of y / s, far out in the range of the dtype.
    steps, changes = pairs(7, 6)
    expected = memory_of(steps, changes).solve(changes[0])
    for of_s, of_y in ((2.0**300, 2.0**-300), (2.0**-300, 2.0**300), (2.0**510, 2.0**500)):
        memory = memory_of(steps * of_s, changes * of_y)
        assert_allclose(memory.solve(changes[0]) * (of_y / of_s), expected, rtol=1e-12)
        assert_allclose(memory.in_order()[0], steps[-SLOTS:] * of_s)


@pytest.mark.parametrize("factor", [np.ones(2), 1j])
def test_an_operator_is_scaled_by_a_real_number(factor):
    inverse = ox.LbfgsInvHessProduct(np.eye(2)[:1], np.eye(2)[:1])
    with pytest.raises(ValueError, match="scaled by a real number"):
        inverse / factor
    if np.ndim(factor) == 0:
        with pytest.raises(ValueError, match="scaled by a real number"):
            inverse * factor
