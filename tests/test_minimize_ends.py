"""No success without a stationary point, wherever `minimize` begins and whatever the units."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox

INF = np.inf
T = np.linspace(0, 10, 50)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def wall(x, a=1.0):
    """On the left it is exp(-10 x); a x + exp(-10 x) is least at x = log(10 / a) / 10."""
    return jnp.sum(a * x + jnp.exp(-10 * x))


def fit(p):
    data = 2 * np.exp(-0.7 * T) + 0.3
    return jnp.sum((p[0] * jnp.exp(-p[1] * T) + p[2] - data) ** 2)


# ---------------------------------------------------------------------------------------
# Where it began


@pytest.mark.parametrize("options", [{}, {"ftol": 0.0, "gtol": 0.0}], ids=["default", "tight"])
def test_from_high_up_on_a_wall(options):
    solve = jax.jit(jax.vmap(lambda x: ox.minimize(wall, x[None], options=options)))
    res = solve(jnp.array([-1.0, -5.0, -10.0, -30.0]))
    assert np.all(res.success)
    assert_allclose(res.x[:, 0], np.log(10) / 10, rtol=1e-5)


def test_the_derivative_from_high_up_on_a_wall():
    slope = jax.grad(lambda a: ox.minimize(wall, [-10.0], args=(a,)).x[0])(1.0)
    assert_allclose(slope, -0.1, rtol=1e-4)


def test_a_fit_from_far_away():
    res = ox.minimize(fit, [1.0, -2.0, 0.0])
    assert res.success
    assert_allclose(res.x, [2, 0.7, 0.3], rtol=1e-4)


def test_rosenbrock_from_far_away():
    res = ox.minimize(rosenbrock, 1000 * np.ones(7))
    assert res.success
    assert_allclose(res.x, 1, atol=1e-4)


def test_rosenbrock_from_far_away_in_float32():
    solve = jax.jit(jax.vmap(lambda x: ox.minimize(rosenbrock, x)))
    res = solve(np.array([[20, -20], [100, -100], [-1.2, 1], [1e3, 10]], np.float32))
    assert np.all(res.success)
    assert_allclose(res.x, 1, atol=1e-3)


@pytest.mark.parametrize("n", [2, 5])
def test_a_constant_added_in_float32(n):
    # A unit in the last place of 1e4 is 1e-3: so much more is not to be seen.
    x0 = np.resize([-1.2, 1.0], n).astype(np.float32)
    res = ox.minimize(lambda x: rosenbrock(x) + 1e4, x0)
    assert res.success
    assert rosenbrock(res.x) < 4e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bounds", [None, [(-6, 3)] * 2])
def test_adam(dtype, bounds):
    res = ox.minimize(wall, np.array([-1, -0.5], dtype), method=optax.adam(0.03), bounds=bounds)
    assert res.success
    assert_allclose(res.x, np.log(10) / 10, rtol=3e-3)
    # A narrow valley, in which it is slow: not there, and it does not say so.
    options = {"maxfun": 3000}
    x0 = np.array([20, -20], dtype)
    res = ox.minimize(rosenbrock, x0, method=optax.adam(0.1), options=options)
    assert not res.success


# ---------------------------------------------------------------------------------------
# Units

POWERS = {np.float32: [-100, -60, -20, 0, 20, 60, 100], np.float64: [-980, -300, 0, 300, 980]}


@pytest.mark.parametrize("dtype", POWERS)
@pytest.mark.parametrize("bounded", [False, True])
def test_units_change_nothing(dtype, bounded):
    # Powers of two round nothing: the same path, bit for bit.
    bounds = [(-2, 0.5), (None, 2)] if bounded else None

    def solve(of_f, of_x):
        box = None if bounds is None else [
            tuple(side if side is None else side * of_x for side in pair) for pair in bounds
        ]  # fmt: skip
        x0 = jnp.array([-1.2, 1.0], dtype) * of_x
        options = {"gtol": 0.0, "maxiter": 25}
        return ox.minimize(lambda x: of_f * rosenbrock(x / of_x), x0, bounds=box, options=options)

    units = (np.array(2.0) ** POWERS[dtype]).astype(dtype)
    one = np.ones_like(units)
    middle = len(units) // 2
    batch = jax.jit(jax.vmap(solve))
    for of_f, of_x in ((units, one), (one, units[::-1] if dtype == np.float64 else units)):
        # x beside f: the gradient has to be a number, too.
        res = batch(of_f, of_x)
        scaled = np.asarray(res.x) / of_x[:, None]
        assert np.all(res.nfev == res.nfev[middle])
        assert_array_equal(scaled, np.broadcast_to(scaled[middle], scaled.shape))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_unit_ends_at_the_minimum(dtype):
    top = 30 if dtype == np.float32 else 300
    units = (10.0 ** np.linspace(-top, top, 13)).astype(dtype)
    x0 = np.array([-1.2, 1], dtype)

    @jax.jit
    @jax.vmap
    def solve(of_f, of_x):
        return ox.minimize(lambda x: of_f * rosenbrock(x / of_x), x0 * of_x)

    res = solve(units, np.ones_like(units))
    assert np.all(res.success)
    assert_allclose(res.x, 1, atol=1e-3)
    # Differences of x have to be numbers, too: 16 digits of it.
    units = np.where(np.log10(units) < -290, 1e-290, units) if dtype == np.float64 else units
    res = solve(np.ones_like(units), units)
    assert np.all(res.success)
    assert_allclose(np.asarray(res.x) / units[:, None], 1, atol=1e-3)


def test_a_stiff_start_is_no_end():
    res = ox.minimize(lambda x: jnp.sum((1e9 * (x - 1)) ** 2), np.array([50, 20], np.float32))
    assert res.success
    assert_allclose(res.x, 1, atol=1e-6)


def test_a_tiny_start_moves():
    res = ox.minimize(lambda x: jnp.sum((x - 1) ** 2), np.full(2, 1e-30))
    assert res.success
    assert_allclose(res.x, 1, atol=1e-5)


def test_a_quartic_ends():
    # x* = 0 and f* = 0: nothing but the range of the dtype says how small is small.
    res = ox.minimize(lambda x: jnp.sum(x**4), np.array([1, 2], np.float32))
    assert res.success
    assert res.nfev < 200


# ---------------------------------------------------------------------------------------
# Random problems, judged in extended precision

N, LANES = 4, 60


def quadratic(x, data):
    r = data["m"] @ (x / data["unit"] - data["a"])
    return data["scale"] * (0.5 * (r @ r) + data["offset"])


def exponentials(x, data):
    z = data["m"] @ (x / data["unit"] - data["a"])
    return data["scale"] * (jnp.sum(jnp.exp(z) + jnp.exp(-z)) + data["offset"])


def logistic(x, data):
    z = data["m"] @ (x / data["unit"] - data["a"])
    smooth = jnp.sum(jnp.logaddexp(0.0, z).astype(z.dtype)) - 0.3 * jnp.sum(z)
    return data["scale"] * (smooth + data["offset"])


def quartic(x, data):
    z = data["m"] @ (x / data["unit"] - data["a"])
    return data["scale"] * (jnp.sum(0.25 * z**4 + 0.5 * z**2) + data["offset"])


FAMILIES = (quadratic, exponentials, logistic, quartic)


def of_each_family(x, data):
    return jax.lax.switch(data["family"], FAMILIES, x, data)


def problems(rng, dtype, family):
    """Data of many: conditions to 1e6, units to the ends of the dtype, starts to 1e3 away."""
    top = 12 if dtype == np.float32 else 120
    q = np.linalg.qr(rng.standard_normal((LANES, N, N)))[0]
    spread = 1 if FAMILIES[family] in (exponentials, logistic) else 3
    m = 10.0 ** (-spread * rng.uniform(size=(LANES, N, 1))) * q
    far = 10.0 ** rng.uniform(-1, 1 if FAMILIES[family] is exponentials else 3, (LANES, 1))
    data = {
        "m": m,
        "a": rng.standard_normal((LANES, N)),
        "unit": 10.0 ** rng.uniform(-top, top, LANES),
        "scale": 10.0 ** rng.uniform(-top, top, LANES),
        "offset": rng.choice([0.0, 1.0, 1e3], LANES),
    }
    x0 = data["unit"][:, None] * (data["a"] + far * rng.standard_normal((LANES, N)))
    data, x0 = jax.tree.map(lambda leaf: leaf.astype(dtype), (data, x0))
    return {**data, "family": np.full(LANES, family)}, x0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_success_without_a_stationary_point(dtype):
    """What is left to be gained, by the exact Hessian, beside the tolerances and rounding.

    A limited memory does not see all of an ill-conditioned Hessian: a factor of 1000 for that.
    """

    def solve(x0, lower, upper, data):
        bounds = jnp.stack([lower, upper], axis=1)
        return ox.minimize(of_each_family, x0, args=(data,), bounds=bounds)

    solve = jax.jit(jax.vmap(solve))
    derivatives = jax.jit(
        lambda z, data: (
            *jax.vmap(jax.value_and_grad(of_each_family))(z, data),
            jax.vmap(jax.hessian(of_each_family))(z, data),
        )
    )
    for family, fun in enumerate(FAMILIES):
        data, x0 = problems(np.random.default_rng(len(fun.__name__)), dtype, family)
        room = data["unit"][:, None] * (np.abs(data["a"]) + np.array(0.3, dtype))
        free = np.arange(LANES)[:, None] % 2 == 0
        lower, upper = (np.where(free, side * INF, side * room).astype(dtype) for side in (-1, 1))
        res = solve(x0, lower, upper, data)
        assert not false_successes(res, lower, upper, data, derivatives, dtype), fun.__name__
        assert np.mean(res.success) > 0.9, fun.__name__


def false_successes(res, lower, upper, data, derivatives, dtype):
    # In float64, where x and f are of the size of 1; the data as the solve has them.
    number = data["family"]
    exact = {name: np.asarray(leaf, float) for name, leaf in data.items()} | {"family": number}
    unit, scale = exact["unit"][:, None], exact["scale"]
    z = np.asarray(res.x, float) / unit
    f, g, h = derivatives(z, {**exact, "unit": np.ones_like(scale), "scale": np.ones_like(scale)})
    g, h = np.asarray(g), np.asarray(h)
    low, high = np.asarray(lower, float) / unit, np.asarray(upper, float) / unit
    held = ((z <= low) & (g > 0)) | ((z >= high) & (g < 0))
    eps = float(np.finfo(dtype).eps)
    tolerance = max(2.2e-9, 8 * eps)
    false = []
    for k in np.flatnonzero(res.success):
        free = ~held[k]
        if not free.any():
            continue
        h_f, g_f = h[k][np.ix_(free, free)], g[k][free]
        promised = 0.5 * g_f @ np.linalg.solve(h_f, g_f)
        # What rounding x and z alone do to the gradient, and what that promises.
        noise = 10 * eps * np.abs(h[k])[free] @ (np.abs(z[k]) + np.abs(exact["a"][k]))
        rounding = 0.5 * np.abs(noise) @ np.abs(np.linalg.inv(h_f)) @ np.abs(noise)
        reach = np.abs(g_f) @ np.abs(z[k][free])
        allowed = tolerance * abs(f[k]) + tolerance**0.5 * reach + rounding
        if not promised <= 1000 * allowed:
            false.append((k, promised / allowed))
    return false


@pytest.mark.parametrize("dtype, apart", [(np.float32, 3), (np.float64, 7)])
def test_no_success_where_one_unit_hides_another(dtype, apart):
    """Each variable in a unit of its own: beside the steep ones the others have no gradient."""
    rng = np.random.default_rng(4)
    lanes, n = 300, 3
    a, b = rng.standard_normal((lanes, n + 2, n)), rng.standard_normal((lanes, n + 2))
    z0 = 2 * rng.standard_normal((lanes, n))
    unit = 10.0 ** rng.uniform(-apart, apart, (lanes, n))

    def solve(x0, a, b, unit):
        def fun(x):
            r = a @ (x / unit) - b
            return r @ r

        return ox.minimize(fun, x0)

    given = [leaf.astype(dtype) for leaf in (z0 * unit, a, b, unit)]
    res = jax.jit(jax.vmap(solve))(*given)
    least = np.array(
        [np.sum((m @ np.linalg.lstsq(m, r)[0] - r) ** 2) for m, r in zip(a, b, strict=True)]
    )
    began = np.sum((np.einsum("kij,kj->ki", a, z0) - b) ** 2, axis=1)
    excess = (np.asarray(res.fun, float) - least) / began
    success = np.asarray(res.success)
    assert np.all(excess[success] < max(1e-6, 1e3 * np.finfo(dtype).eps))
    assert np.mean(success) > 0.5


# ---------------------------------------------------------------------------------------
# Searches that meet NaN


CLIFFS = (
    (lambda x: jnp.where(x > 0, x + 1 / x, jnp.nan), [1000.0, 30.0]),
    (lambda x: x - jnp.log(x), [1e5, 1e3]),
    (lambda x: x - 2 * jnp.sqrt(x), [1e6, 1e2]),
)


def test_a_search_goes_on_from_its_lowest_point():
    def fun(x, cliff):
        return jax.lax.switch(cliff, [f for f, _ in CLIFFS], x[0])

    kinds = np.repeat(np.arange(len(CLIFFS)), 2)
    starts = np.concatenate([starts for _, starts in CLIFFS])[:, None]
    res = jax.jit(jax.vmap(lambda x, cliff: ox.minimize(fun, x, args=(cliff,))))(starts, kinds)
    assert np.all(res.success)
    assert_allclose(res.x, 1, rtol=1e-3)


def test_where_nothing_is_finite_the_gradient_is_not_blamed():
    res = ox.minimize(lambda x: jnp.where(jnp.all(x == 1.0), jnp.sum(x), jnp.nan), [1.0, 1.0])
    assert not res.success
    assert "not finite" in res.message
    assert "gradient is wrong" not in res.message


# ---------------------------------------------------------------------------------------
# Failures that show


def test_what_is_not_known_is_nan():
    fun = lambda x: jnp.sum(x**2)
    res = ox.minimize(fun, [1.0, 2.0], options={"maxfun": 0})
    assert res.status == 1
    assert np.isnan(res.fun) and np.all(np.isnan(res.jac)) and np.isnan(res.optimality)
    for method in (None, optax.sgd(0.1)):
        res = ox.minimize(lambda x: jnp.nan * jnp.sum(x), [1.0, 2.0], method=method)
        assert res.status == 2
        assert np.isnan(res.fun) and np.all(np.isnan(res.jac)) and np.isnan(res.optimality)


def test_bounds_that_are_traced():
    fun = lambda x, u: jnp.sum((x - 2) ** 2)
    solve = lambda u: ox.minimize(
        fun, [0.5, 0.5, 0.5], args=(u,), bounds=[(-1.0, u), (None, np.float64(1.5)), (u - 3, None)]
    )

    @jax.jit
    def derivatives(u):
        res, push = jax.linearize(solve, u)
        pull = jax.vmap(jax.linear_transpose(lambda v: push(v).x, u))
        return res, pull(jnp.eye(3))[0]

    res, jacobian = derivatives(1.0)
    assert_allclose(res.x, [1, 1.5, 2], atol=1e-6)
    assert_allclose(jacobian, [1, 0, 0], atol=1e-6)
    res = jax.jit(jax.vmap(solve))(jnp.array([1.0, -1.5, jnp.nan]))
    assert_array_equal(res.success, [True, False, False])
    assert_array_equal(res.status, [0, 2, 2])
    assert np.all(np.isnan(res.x[1:]))
    res, _ = derivatives(-2.0)
    assert "reversed" in res.message


def test_a_line_search_that_ignores_the_box_ends():
    bounds = [(-2, 0.5), (None, None)]
    res = ox.minimize(rosenbrock, [-1.2, 1.0], method=optax.lbfgs(), bounds=bounds)
    assert not res.success
    assert res.nfev < 1000
    assert "optax" in res.message


# ---------------------------------------------------------------------------------------
# Kinks: steps shrink to nothing there, and the gradient does not

KINKS = ("sum of abs", "max", "relu", "lasso", "valley", "steeper on one side")
SMOOTH = ("quadratic", "exponential", "rounded abs")


def kinked_or_smooth(x, data):
    z = x / data["unit"]
    r, t = data["a"] @ z - data["b"], data["q"] @ (z - data["c"])
    values = [
        jnp.sum(jnp.abs(r)),
        jnp.max(r) + 0.1 * (t @ t),
        jnp.sum(jax.nn.relu(r)) + 0.1 * (t @ t) + 0.3 * jnp.sum(z),
        t @ t + 0.7 * jnp.sum(jnp.abs(z)),
        jnp.abs(r[0]) + 0.1 * (t @ t),
        jnp.sum(jnp.maximum(-r[:3], data["steep"] * r[:3])),
        t @ t,
        jnp.sum(jnp.exp(t) + jnp.exp(-t)),
        jnp.sum(jnp.sqrt(r * r + 1e-2)),
    ]
    return data["scale"] * jnp.stack(values)[data["kind"]]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bounded", [False, True])
def test_no_success_at_a_kink(dtype, bounded):
    """The gradient at the answer is the oracle: at a kink it is as large as anywhere."""
    n, lanes = 3, 450
    rng = np.random.default_rng(11)
    top = 6 if dtype == np.float32 else 60
    data = {
        "a": rng.standard_normal((lanes, 5, n)),
        "b": rng.standard_normal((lanes, 5)),
        "q": np.linalg.qr(rng.standard_normal((lanes, n, n)))[0],
        "c": rng.standard_normal((lanes, n)),
        "steep": 10 ** rng.uniform(-1, 1, lanes),
        "unit": 10 ** rng.uniform(-top, top, lanes),
        "scale": 10 ** rng.uniform(-top, top, lanes),
    }
    x0 = data["unit"][:, None] * 3 * rng.standard_normal((lanes, n))
    data, x0 = jax.tree.map(lambda leaf: leaf.astype(dtype), (data, x0))
    data["kind"] = np.arange(lanes) % (len(KINKS) + len(SMOOTH))
    room = np.where(rng.uniform(size=(lanes, n)) < 0.5, INF, data["unit"][:, None]).astype(dtype)

    def solve(x0, room, data):
        bounds = jnp.stack([-room, room], axis=1) if bounded else None
        options = {"maxfun": 2000}
        return ox.minimize(kinked_or_smooth, x0, args=(data,), bounds=bounds, options=options)

    res = jax.jit(jax.vmap(solve))(x0, room, data)
    unit, scale = data["unit"][:, None].astype(float), data["scale"].astype(float)
    x, f = np.asarray(res.x, float), np.asarray(res.fun, float) / scale
    g = np.asarray(res.jac, float) * unit / scale[:, None]
    held = bounded & (((x <= -room) & (g > 0)) | ((x >= room) & (g < 0)))
    largest = np.max(np.where(held, 0, np.abs(g)), axis=1)
    kinked = data["kind"] < len(KINKS)
    tolerance = max(2.2e-9, 8 * np.finfo(dtype).eps)
    steep = largest > 100 * np.sqrt(tolerance) * np.maximum(np.abs(f), 1)
    success = np.asarray(res.success)
    # A quarter of them, before there was a look back; on JAX 0.10.0 more than six of 300.
    assert np.sum(success & kinked & steep) <= 0.03 * np.sum(kinked)
    assert np.all(success[~kinked])
    assert not np.any(steep[~kinked])
    assert np.sum(steep & kinked) > 100  # most kinks are seen for what they are


def test_a_quadratic_is_no_kink():
    """More variables than pairs in the memory: a look back shows the gradient's growth in part."""
    rng = np.random.default_rng(5)
    lanes, n = 300, 24
    a, b = rng.standard_normal((lanes, 40, n)), rng.standard_normal((lanes, 40))
    ridge = np.exp(rng.uniform(0, 4, (lanes, 3)))[:, np.arange(n) // 8]
    lower = np.where(np.arange(lanes) % 2, 0.0, -INF)

    def solve(a, b, ridge, lower):
        fun = lambda x: jnp.sum((a @ x - b) ** 2) + jnp.sum((ridge * x) ** 2)
        bounds = jnp.stack([jnp.full(n, lower), jnp.full(n, INF)], axis=1)
        return ox.minimize(fun, jnp.full(n, 0.1), bounds=bounds)

    res = jax.jit(jax.vmap(solve))(a, b, ridge, lower)
    # Six in a hundred failed where any that had not grown, at two looks, made a kink.
    assert np.mean(res.success) > 0.97
    least = []
    for k in range(lanes):
        rows = np.vstack([a[k], np.diag(ridge[k])]), np.concatenate([b[k], np.zeros(n)])
        if np.isinf(lower[k]):
            least.append(np.sum((rows[0] @ np.linalg.lstsq(*rows)[0] - rows[1]) ** 2))
        else:
            least.append(scipy.optimize.nnls(*rows)[1] ** 2)
    assert_allclose(res.fun, least, rtol=1e-7)


@pytest.mark.parametrize("method", [None, optax.adam(optax.exponential_decay(0.3, 1, 0.97))])
def test_a_kink_is_no_success_and_has_no_derivative(method):
    def solve(a):
        fun = lambda x: jnp.sum(jnp.abs(x - a)) + 1
        return ox.minimize(fun, [0.0, 1.0], method=method, options={"maxfun": 3000})

    @jax.jit
    @jax.vmap
    def derivatives(a):
        _, pull, res = jax.vjp(lambda a: (lambda res: (res.x, res))(solve(a)), a, has_aux=True)
        return res, jax.vmap(pull)(jnp.eye(2))[0]

    res, jacobians = derivatives(jnp.array([0.37, -1.31, 2.43]))
    assert not np.any(res.success)
    assert "kink" in res.message[0] or "not smooth" in res.message[0]
    assert np.all(np.isnan(jacobians))


# ---------------------------------------------------------------------------------------
# A start at 0, where no size of x is known

FROM_ZERO = (
    (lambda t: (t[0] - 1) ** 2 + 3 * (t[1] + 0.5) ** 2, [1, -0.5]),
    (lambda t: jnp.sum((t - 1) ** 4 + (t - 1) ** 2), [1, 1]),
    (lambda t: jnp.sum(jnp.exp(t) - 2 * t), [np.log(2)] * 2),
)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_from_zero_in_any_unit_of_x(dtype):
    # Trials of exp overflow: the search has to come down by the unit in `maxls` of them.
    top, lanes = (15 if dtype == np.float32 else 45), 11
    units = np.tile((10.0 ** np.linspace(-top, top, lanes)).astype(dtype), len(FROM_ZERO))
    kinds = np.repeat(np.arange(len(FROM_ZERO)), lanes)

    def solve(unit, kind):
        fun = lambda x: jax.lax.switch(kind, [f for f, _ in FROM_ZERO], x / unit)
        return ox.minimize(fun, jnp.zeros(2, dtype))

    res = jax.jit(jax.vmap(solve))(units, kinds)
    assert np.all(res.success)
    z = np.asarray(res.x, float) / units[:, None]
    assert_allclose(z, np.array([answer for _, answer in FROM_ZERO])[kinds], atol=2e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bounded", [False, True])
def test_on_a_kink_itself_the_gradient_is_some_mean(dtype, bounded):
    """One variable, so that the search meets the kink exactly, where JAX gives a mean of slopes."""
    rng = np.random.default_rng(2)
    lanes, lines = 200, 8
    slopes = rng.standard_normal((lanes, lines)).astype(dtype)
    offsets = rng.standard_normal((lanes, lines)).astype(dtype)
    x0 = 3 * rng.standard_normal((lanes, 1)).astype(dtype)

    def solve(x0, slope, offset):
        fun = lambda x: jnp.max(slope * x[0] - offset) + dtype(0.01) * jnp.abs(x[0])
        bounds = [(-100, 100)] if bounded else None
        # Two fall for ever.
        return ox.minimize(fun, x0, bounds=bounds, options={"maxfun": 1000})

    res = jax.jit(jax.vmap(solve))(x0, slopes, offsets)
    free = np.abs(np.asarray(res.x)[:, 0]) < 100
    # Piecewise linear: no minimum in between has a gradient of 0.
    assert not np.any(np.asarray(res.success) & free)


# ---------------------------------------------------------------------------------------
# Where there is no minimum

FALLING = (
    lambda x: x[0] ** 3,
    lambda x: -(x[0] ** 2),
    lambda x: -(x[0] ** 4),
    lambda x: x[0] ** 5,
    lambda x: x[0],
    lambda x: x[0] ** 3 * (1 + x[1] ** 2),
)


@pytest.mark.parametrize(
    "bounds, dtype",
    [(None, np.float32), (None, np.float64), ([(-INF, 5.0), (-INF, INF)], np.float32)],
    ids=["float32", "float64", "bounds"],
)
def test_a_function_that_falls_without_end_has_no_minimum(bounds, dtype):
    # Towards the end of the range |x|.|g| is infinite before f is.
    def solve(which, x0):
        fun = lambda x: jax.lax.switch(which, FALLING, x) + x[1] ** 2
        return ox.minimize(fun, x0, bounds=bounds, options={"maxfun": 2000})

    starts = np.array([[-1.0, 1.0], [-3.0, 2.0], [-0.01, -30.0]], dtype)
    cases = np.repeat(np.arange(len(FALLING)), len(starts)), np.tile(starts, (len(FALLING), 1))
    res = jax.jit(jax.vmap(solve))(*cases)
    assert np.all(res.fun < -1e3)
    assert not np.any(res.success)
