"""Minima at which Gauss-Newton alone goes wrong, as batches beside SciPy and closed forms.

A column of the Jacobian vanishes where the residual does not; a parameter is switched off by
another, or by itself; the units are far from 1; the start is next to nothing. Each kind is tried on
many instances, compiled once. The oracle is SciPy's own solver, lane by lane, or a formula.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import optimize as so

import optx_lite as ox

METHODS = ("trf", "dogbox", "lm")
BOXED = ("trf", "dogbox")
LANES = 60
T = np.linspace(0.0, 5.0, 40)
GRID = np.linspace(-5.0, 5.0, 60)


def batched(fun, method, **options):
    """A solve of all lanes at once, of starts and data."""

    def solve(x0, d):
        return ox.least_squares(lambda p: fun(p, d), x0, method=method, **options)

    return jax.jit(jax.vmap(solve))


def batch(fun, starts, data, method, **options):
    return batched(fun, method, **options)(starts, data)


def scipy_costs(fun, starts, data, **options):
    """SciPy's costs, with the same functions and exact derivatives; inf where it fails."""
    value, jac = jax.jit(fun), jax.jit(jax.jacfwd(fun))
    costs = []
    for x0, d in zip(starts, data, strict=True):
        res = so.least_squares(
            lambda p, d=d: np.asarray(value(p, d)),
            x0,
            lambda p, d=d: np.asarray(jac(p, d)),
            **options,
        )
        costs.append(res.cost if res.success else np.inf)
    return np.array(costs)


def line(p, y):
    return p[0] * T + p[1] - y


# ---------------------------------------------------------------------------------------
# A column that vanishes at the minimum, beside a residual that does not


def hypotenuses(p, d):
    return jnp.stack([jnp.hypot(p[0], p[1]) - d, jnp.hypot(p[0] - 4, p[1]) - d])


@pytest.mark.parametrize("method", METHODS)
def test_two_circles_that_do_not_meet(method):
    rng = np.random.default_rng(0)
    d = rng.uniform(0.5, 1.9, LANES)
    starts = np.stack([rng.uniform(0.5, 3.5, LANES), rng.uniform(0.2, 1.0, LANES)], axis=1)
    res = batch(hypotenuses, starts, d, method)
    assert res.success.all()
    assert_allclose(res.x, np.tile([2.0, 0.0], (LANES, 1)), atol=1e-6)
    assert np.median(res.nfev) <= 20  # the secant finds the curvature: 40 and more without it


def squared_height(p, y):
    return p[0] ** 2 * jnp.exp(-(GRID**2) / 2) + p[1] - y


def exponential_height(p, y):
    return jnp.exp(p[0]) * jnp.exp(-(GRID**2) / 2) + p[1] - y


@functools.cache
def noise():
    return np.random.default_rng(1).normal(0, 0.1, (LANES, 60))


def non_negative_height(y):
    """The best cost with a height >= 0: linear in it."""
    bump = np.stack([np.exp(-(GRID**2) / 2), np.ones(60)], axis=1)
    free = np.linalg.lstsq(bump, y, rcond=None)[0]
    best = free if free[0] >= 0 else np.array([0.0, y.mean()])
    return 0.5 * np.sum((bump @ best - y) ** 2)


@pytest.mark.parametrize("method", METHODS)
def test_a_height_that_may_not_be_negative(method):
    # In half of the lanes the best height is 0: a = 0, where its column vanishes, or a = -inf.
    def height(p, data):
        y, is_squared = data
        return jax.lax.cond(is_squared, squared_height, exponential_height, p, y)

    starts = np.random.default_rng(2).uniform(0.3, 1.5, (LANES, 2))
    twice = lambda each: np.concatenate([each, each])
    res = batch(height, twice(starts), (twice(noise()), np.arange(2 * LANES) < LANES), method)
    assert res.success.all()
    assert_allclose(res.cost, twice([non_negative_height(y) for y in noise()]), rtol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_the_derivative_where_a_column_vanishes(method):
    # d mean(y) / d y_i = 1/60 for the offset, where the height is 0 and regular to second order.
    y = next(y for y in noise() if non_negative_height(y) == 0.5 * np.sum((y - y.mean()) ** 2))
    offset = lambda y: ox.least_squares(
        lambda p: squared_height(p, y), [1.0, 0.0], method=method
    ).x[1]
    assert_allclose(jax.jit(jax.grad(offset))(y), np.full(60, 1 / 60), rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_chi_squared_as_one_residual(method):
    y = 2 * T + 1 + np.sin(9 * T) + noise()[:20, :40]
    fun = lambda p, y: jnp.sum(line(p, y) ** 2)[None]
    res = batch(fun, np.zeros((20, 2)), y, method)
    assert res.success.all()
    design = np.stack([T, np.ones(40)], axis=1)
    expected = np.stack([np.linalg.lstsq(design, row, rcond=None)[0] for row in y])
    assert_allclose(res.x, expected, atol=1e-3)


# ---------------------------------------------------------------------------------------
# Parameters that rightly lose their effect


def decay(p, y):
    return p[0] * jnp.exp(-p[1] * T) + p[2] - y


@pytest.mark.parametrize("method", BOXED)
def test_an_amplitude_that_wants_to_be_negative(method):
    y = np.asarray(1 - 0.3 * np.exp(-T))
    starts = np.array([[0.5, 1.0, 1.0], [1e-3, 1.0, 0.9], [0.5, 3.0, 0.0], [2.0, 0.1, 0.5]])
    low = np.array([0.0, 0.0, -np.inf])
    res = batch(decay, starts, np.tile(y, (4, 1)), method, bounds=(low, np.inf))
    assert res.success.all()
    assert_allclose(res.cost, np.full(4, 0.5 * np.sum((y - y.mean()) ** 2)), rtol=1e-9)

    def offset(y):
        fun = lambda p: decay(p, y)
        end = ox.least_squares(fun, starts[1], method=method, bounds=(low, np.inf))
        return end.x[2], end.active_mask[0]

    slope, held = jax.jit(jax.grad(offset, has_aux=True))(y)
    if held:  # and not the rate at 0, which is another way to a constant
        assert_allclose(slope, np.full(40, 1 / 40), rtol=1e-6)


def hinge(p, y):
    return p[0] + p[1] * jnp.minimum(T, p[2]) - y


@pytest.mark.parametrize("method", METHODS)
def test_a_break_that_belongs_beyond_the_data(method):
    exact = np.tile(1 + 2 * T, (3, 1))
    noisy = exact[0] + noise()[:20, :40]
    rng = np.random.default_rng(3)
    some = np.stack([np.zeros(20), np.ones(20), rng.uniform(2.0, 4.99, 20)], axis=1)
    starts = np.array([[0.0, 1.0, 4.99], [0.0, 1.0, 3.0], [0.0, 0.5, 2.0], *some])
    res = batch(hinge, starts, np.concatenate([exact, noisy]), method)
    assert res.success[:3].all()
    assert_allclose(res.cost[:3], 0, atol=1e-20)
    theirs = scipy_costs(hinge, some, noisy)
    # A kink within the data is a local minimum for either. Beyond the data the break has no effect
    # any more: the best cost, but status -5, as for any parameter that ran away.
    assert np.sum(np.asarray(res.cost[3:]) <= theirs * (1 + 1e-6)) >= 19


def test_a_runaway_parameter_is_told_from_a_minimum():
    # Far out on the tail of an exponential nothing depends on its rate any more, and the cost is
    # not at its best: status -5 from there, if a run ends so, and never a success.
    y = np.exp(-0.7 * T)
    fun = lambda p: jnp.exp(-p[0] * T[1:]) * p[1] - y[1:]
    for method in METHODS:
        for rate in (1e3, 50.0, 5.0):
            res = ox.least_squares(fun, [rate, 1.0], method=method)
            assert not res.success or res.cost < 1e-12 or np.all(np.asarray(res.jac)[:, 0] == 0)


# ---------------------------------------------------------------------------------------
# Convex problems in a box


def distances_to_a_line(p, xy):
    return (xy[1] - p[0] * xy[0] - p[1]) / jnp.sqrt(1 + p[0] ** 2)


@pytest.mark.parametrize("method", METHODS)
def test_a_slope_that_grows_for_ever_is_no_success(method):
    """The best line has a negative slope; from a positive one the cost falls towards infinity."""
    rng = np.random.default_rng(7)
    noise = 0.1 * rng.standard_normal((LANES, 2, 30))
    xy = np.stack([0 * T[:30], 5 * np.linspace(-1, 1, 30)]) + noise
    res = batch(distances_to_a_line, np.tile([1.0, 0.0], (LANES, 1)), xy, method)
    centred = xy - xy.mean(axis=2, keepdims=True)
    smallest = np.linalg.eigvalsh(centred @ centred.transpose(0, 2, 1))[:, 0] / 2
    best = np.asarray(res.cost) <= smallest * (1 + 1e-9)
    assert_array_equal(res.success, best)
    assert 0 < np.sum(best) < LANES
    assert np.all(np.asarray(res.status)[~best] == -5)


@pytest.mark.parametrize("method", BOXED)
def test_convex_problems_are_solved(method):
    m, n = 14, 8
    fun = lambda p, d: d[:, :n] @ p - d[:, n]
    solve = batched(fun, method, bounds=(0.0, np.inf), max_nfev=2000)
    for condition in (1e1, 1e3, 1e6):
        rng = np.random.default_rng(4)
        q, _ = np.linalg.qr(rng.normal(size=(LANES, m, n)))
        w, _ = np.linalg.qr(rng.normal(size=(LANES, n, n)))
        matrices = q * np.geomspace(1, 1 / condition, n) @ w
        rights = rng.normal(size=(LANES, m))
        res = solve(np.ones((LANES, n)), np.concatenate([matrices, rights[:, :, None]], axis=2))
        pairs = zip(matrices, rights, strict=True)
        best = np.array([0.5 * so.nnls(a, b, maxiter=1000)[1] ** 2 for a, b in pairs])
        assert res.success.all(), condition
        assert_allclose(res.cost, best, rtol=1e-8, err_msg=f"condition {condition}")


@pytest.mark.parametrize("method", BOXED)
def test_overlapping_peaks_of_non_negative_height(method):
    rng = np.random.default_rng(5)
    peaks = np.exp(-0.5 * ((GRID[:, None] - np.linspace(-4, 4, 12)) / 0.9) ** 2)  # condition 344
    y = np.maximum(rng.normal(size=(LANES, 12)), 0) @ peaks.T + 0.05 * noise()
    fun = lambda p, y: jnp.asarray(peaks) @ p - y
    res = batch(fun, np.ones((LANES, 12)), y, method, bounds=(0.0, np.inf))
    assert res.success.all()
    assert_allclose(res.cost, [0.5 * so.nnls(peaks, row)[1] ** 2 for row in y], rtol=1e-9)


# ---------------------------------------------------------------------------------------
# Units, and starts that say nothing


@pytest.mark.parametrize("method", METHODS)
def test_a_solution_far_below_the_start(method):
    for target in (1e-13, 1e-16, 1e-18, 1e-30, 1e-100):
        res = ox.least_squares(lambda p, t: p / t - 1, [1.0], args=(target,), method=method)
        assert res.success
        assert_allclose(res.x, [target], rtol=1e-12)
        assert res.nfev <= 20


@pytest.mark.parametrize("method", METHODS)
def test_plancks_constant(method):
    nu, h = np.arange(5.0, 10.0) * 1e14, 6.626e-34
    res = ox.least_squares(lambda p: p[0] * nu - h * nu, [1.0], method=method)
    assert res.success
    assert_allclose(res.x, [h], rtol=1e-12)


RANGES = {np.float32: [1e-37, 1e-25, 1.0, 1e20, 1e37], np.float64: [1e-300, 1e-165, 1e165, 1e300]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", RANGES)
def test_parameters_in_any_unit(method, dtype):
    # Squares of the columns of J are out of range; the solution in units is (5, 13) / 6.
    def solve(unit, x0, lower):
        fun = lambda x: jnp.stack([x[0] / unit - 1, x[1] / unit - 2, (x[0] - x[1]) / unit + 3 / 2])
        bounds = None if lower is None else (lower * unit, np.inf)
        return ox.least_squares(fun, x0 * unit, method=method, bounds=bounds)

    for unit in map(dtype, RANGES[dtype]):
        for x0 in (np.zeros(2, dtype), np.full(2, 3, dtype)):
            res = solve(unit, x0, None)
            assert res.success
            assert_allclose(res.x / unit, [5 / 6, 13 / 6], rtol=1e-5)
        if method in BOXED:
            lower = np.array([-1, 2.2], dtype)
            res = solve(unit, np.full(2, 3, dtype), lower)
            assert res.success and res.active_mask.tolist() == [0, -1]
            assert_allclose(res.x / unit, [0.85, 2.2], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("largest", [1e37, 3e38])
def test_residuals_at_the_end_of_the_range(method, largest):
    scale = np.float32(largest)
    fun = lambda x: scale * (x - np.float32(0.5))
    res = ox.least_squares(fun, np.ones(1, np.float32), method=method)
    assert res.success
    assert_allclose(res.x, [0.5], rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", [0.0, 1e-150, 1e-20, 1e-5])
def test_a_start_of_next_to_nothing(method, start):
    fun = lambda p: jnp.stack([jnp.sinh(p[0]) - jnp.sinh(1.0), p[1] - 1.0])
    res = ox.least_squares(fun, [start, start], method=method)
    assert res.success
    assert_allclose(res.x, [1.0, 1.0], rtol=1e-10)
    assert res.nfev <= 12


@pytest.mark.parametrize("method", METHODS)
def test_data_of_any_size_from_zeros(method):
    for size in (1e-16, 1.0, 1e16):
        y = size * (1 + 2 * T)
        res = ox.least_squares(line, np.zeros(2), args=(y,), method=method)
        assert res.success and res.nfev <= 12
        assert_allclose(res.x, [2 * size, size], rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_the_default_scaling_is_no_worse_than_its_parts(method):
    t = np.arange(50.0, 591.0, 60.0)
    y = np.array([3173, 2391, 1726, 1388, 1057, 786, 598, 443, 339, 263.0])
    fun = lambda p: p[0] * jnp.exp(-p[1] * t) + p[2] - y
    runs = [
        ox.least_squares(fun, np.zeros(3), method=method, x_scale=scale)
        for scale in (None, 1.0, "jac")
    ]
    assert runs[0].success
    assert_allclose(runs[0].cost, 3678.47073, rtol=1e-8)  # SciPy's
    assert runs[0].nfev <= 2 * min(run.nfev for run in runs if run.success) + 40


# ---------------------------------------------------------------------------------------
# No success that is not one


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_jacobian_is_no_success(method):
    rng = np.random.default_rng(6)
    for seed in range(3):
        y = np.exp(-rng.uniform(0.5, 1.5) * T) + 0.1 * noise()[seed, :40]
        fun = lambda p, y=y: p[0] * jnp.exp(-p[1] * T) - y
        wrong = lambda p, fun=fun: jax.jacfwd(fun)(p) * jnp.array([[1.0, -1.0]])
        res = ox.least_squares(fun, [0.5, 0.3], jac=wrong, method=method, max_nfev=300)
        grad = np.asarray(jax.grad(lambda p, fun=fun: 0.5 * jnp.sum(fun(p) ** 2))(res.x))
        assert not res.success or np.abs(grad).max() < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_kink_is_no_success(method):
    # The cost of |p - 1|^1/2, and of max(|p|), has no slope of 0 at its minimum.
    for fun in (
        lambda p: jnp.sqrt(jnp.abs(p - 1) + 1e-300),
        lambda p: jnp.stack([jnp.sqrt(jnp.abs(p[0] - 1) + jnp.abs(p[0] + p[1]) + 1)]),
    ):
        res = ox.least_squares(fun, [3.0, 2.0], method=method, max_nfev=300)
        cost = lambda p, fun=fun: 0.5 * np.sum(np.asarray(fun(jnp.asarray(p))) ** 2)
        near = [cost(res.x + 1e-6 * d) for d in np.random.default_rng(7).normal(size=(20, 2))]
        assert not res.success or min(near) >= cost(res.x) * (1 - 1e-12)


# ---------------------------------------------------------------------------------------
# Kinks, where values at their rounding say nothing


KINKS = (
    lambda p: 2 + jnp.abs(p),
    lambda p: 2 + jnp.maximum(p, 0),
    lambda p: 2 + jnp.sqrt(p**2 + 1e-30),
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_success_in_a_valley_along_a_kink(dtype, method):
    # The data want a slope of 1.5, the model has 2 at least: the best has 2, at the kink.
    rng = np.random.default_rng(0)
    x = np.linspace(0.1, 5, 30).astype(dtype)
    y = (1.5 * x + rng.normal(0, 0.05, (LANES, 30))).astype(dtype)
    starts = (2 * rng.normal(size=(LANES, 2))).astype(dtype)

    def solve(x0, y, kink):
        fun = lambda p: jax.lax.switch(kink, KINKS, p[0]) * x + p[1] - y
        return ox.least_squares(fun, x0, method=method)

    each = len(KINKS)
    kinks = np.repeat(np.arange(each), LANES)
    y, starts = np.tile(y, (each, 1)), np.tile(starts, (each, 1))
    res = jax.jit(jax.vmap(solve))(starts, y, kinks)
    rest = y - y.mean(axis=1, keepdims=True) - 2 * (x - x.mean())
    best = 0.5 * np.sum(rest.astype(float) ** 2, axis=1)
    right = np.asarray(res.cost, float) <= best * (1 + 1e-3)
    assert np.all(right | ~np.asarray(res.success))


# ---------------------------------------------------------------------------------------
# Steps that something else than the trust region shortened


def narrow_valley(p, d):
    """Powell's badly scaled function, with its product and its sum as data."""
    return jnp.stack([1e4 * p[0] * p[1] - d[0], jnp.exp(-p[0]) + jnp.exp(-p[1]) - d[1]])


@pytest.mark.parametrize("method", BOXED)
def test_no_success_for_a_step_that_bounds_made_short(method):
    # The valley x y = const is narrow, and its floor falls towards the bound of y: where trf's
    # steps are short, Gauss-Newton still promises a part of the cost.
    d = np.stack([np.ones(8), np.full(8, 1.0001)], axis=1)
    high = np.linspace(5.0, 30.0, 8)

    def solve(d, top):
        low = jnp.array([-30.0, -10.0])
        fun = lambda p: narrow_valley(p, d)
        return ox.least_squares(
            fun, [0.0, 1.0], bounds=(low, jnp.stack([5e-6, top])), method=method
        )

    res = jax.jit(jax.vmap(solve))(d, high)
    value, jac = jax.jit(narrow_valley), jax.jit(jax.jacfwd(narrow_valley))
    for k in range(8):
        best = min(
            so.least_squares(
                lambda p, d=d[k]: np.asarray(value(p, d)), start,
                lambda p, d=d[k]: np.asarray(jac(p, d)), bounds=([-30, -10], [5e-6, high[k]]),
                x_scale=[1e-6, 1.0], xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=2000,
            ).cost
            for start in ([0.0, 1.0], np.asarray(res.x[k]))
        )  # fmt: skip
        assert not res.success[k] or res.cost[k] <= best * (1 + 1e-6) + 1e-20


# ---------------------------------------------------------------------------------------
# Robust losses with a margin far below the residuals: nearly the sum of absolute values


def least_absolute(matrix, right):
    """The least sum of absolute residuals, by linear programming."""
    m, n = matrix.shape
    sides = np.block([[matrix, -np.eye(m)], [-matrix, -np.eye(m)]])
    bounds = [(None, None)] * n + [(0, None)] * m
    costs = np.concatenate([np.zeros(n), np.ones(m)])
    return so.linprog(costs, sides, np.concatenate([right, -right]), bounds=bounds).fun


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", ["huber", "soft_l1"])
def test_a_margin_far_below_the_residuals(method, loss):
    rng = np.random.default_rng(6)
    m, n, lanes = 20, 3, 30
    matrices = rng.normal(size=(lanes, m, n))
    rights = matrices.sum(axis=2) + rng.standard_t(1.5, size=(lanes, m))
    best = np.array([least_absolute(*each) for each in zip(matrices, rights, strict=True)])

    def solve(matrix, right, margin):
        fun = lambda p: matrix @ p - right
        return ox.least_squares(fun, np.zeros(n), method=method, loss=loss, f_scale=margin)

    run = jax.jit(jax.vmap(solve, in_axes=(0, 0, None)))
    for margin in (1e-2, 1e-4, 1e-5):
        res = run(matrices, rights, margin)
        absolute = np.abs(np.einsum("kij,kj->ki", matrices, res.x) - rights).sum(axis=1)
        right = absolute <= best * (1 + 1e-5) + m * margin  # by which the losses differ from |r|
        assert np.all(right | ~np.asarray(res.success))
        # dogbox creeps along the kinks: a quarter of its lanes end honestly, by max_nfev.
        least = 0.6 if method == "dogbox" else 0.8
        assert np.sum(np.asarray(res.success)) >= least * lanes


@pytest.mark.parametrize("method", METHODS)
def test_parameters_that_were_never_apart(method):
    """Two parameters of which the data know one combination lose nothing: a plain success."""
    t = np.linspace(0.0, 3.0, 40)
    y = 2 * np.exp(-1.3 * t) + 0.5 + 0.05 * np.cos(17 * t)

    def residuals(p, is_sum, xp=jnp):
        joint = xp.where(is_sum, p[0] + p[1], p[0] * p[1])
        return joint * xp.exp(-p[2] * t) + p[3] - y

    starts = np.array([[1.0, 0.3, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0], [2.0, 0.7, 0.5, 1.0]])
    is_sum = np.arange(6) < 3
    res = batch(residuals, np.concatenate([starts, starts]), is_sum, method)
    best = [so.least_squares(residuals, starts[0], args=(k, np)).cost for k in (True, False)]
    assert np.all(res.success), res.status
    assert_allclose(res.cost, np.where(is_sum, *best), rtol=1e-6)


def test_a_margin_near_the_rounding_of_the_residuals():
    """In float32: heavy rows within the margin make every cosine small, far from the minimum."""
    rng = np.random.default_rng(3)
    m, n, lanes = 20, 3, 80
    matrices = rng.normal(size=(lanes, m, n))
    rights = matrices.sum(axis=2) + rng.standard_t(1.5, size=(lanes, m))
    best = np.array([least_absolute(*each) for each in zip(matrices, rights, strict=True)])

    def solve(matrix, right, margin):
        x0 = jnp.zeros(n, jnp.float32)
        return ox.least_squares(lambda p: matrix @ p - right, x0, loss="soft_l1", f_scale=margin)

    run = jax.jit(jax.vmap(solve, in_axes=(0, 0, None)))
    for margin in (1e-4, 1e-5):
        res = run(matrices.astype(np.float32), rights.astype(np.float32), np.float32(margin))
        x = np.asarray(res.x, float)
        absolute = np.abs(np.einsum("kij,kj->ki", matrices, x) - rights).sum(axis=1)
        right = absolute <= best * (1 + 1e-3) + m * margin
        assert np.all(right | ~np.asarray(res.success))


def test_a_cost_in_float32_is_not_noisier_than_it_is():
    """A curved valley: an overestimated noise of the cost hides a gain of 4e-4 of it."""
    rng = np.random.default_rng(0)
    rng.normal(size=(1024, 512))  # the stream of numbers in which two lanes were found
    lanes = 10_000
    t = np.linspace(0, 4, 50)
    ranges = [(1, 3), (0.5, 2), (-1, 1), (-0.1, 0.1)]
    p = np.stack([rng.uniform(*each, lanes) for each in ranges], axis=1)
    y = p[:, :1] * np.exp(-p[:, 1:2] * t) + p[:, 2:3] + p[:, 3:] * t
    y = (y + 0.01 * rng.normal(size=y.shape)).astype(np.float32)
    y = np.concatenate([y[[9463, 2531]], y[:500]])

    def fun(x, y):
        line = t.astype(y.dtype)
        return x[0] * jnp.exp(-x[1] * line) + x[2] + x[3] * line - y

    def cost(x, y):
        return 0.5 * jnp.sum(fun(x, y) ** 2)

    def solve(y):
        return ox.least_squares(lambda x: fun(x, y), jnp.array([1, 1, 0, 0], y.dtype), gtol=1e-12)

    single, double = jax.jit(jax.vmap(solve)), jax.jit(jax.vmap(solve))
    got, best = single(y).x, double(y.astype(float))
    assert best.success.all()
    reached = jax.vmap(cost)(np.asarray(got, float), y.astype(float))
    assert np.all(reached <= best.cost * (1 + 1e-5))
