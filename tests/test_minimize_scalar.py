"""`minimize_scalar`: answers at 0 and at bounds, walls, functions with few derivatives, options."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from numpy.testing import assert_allclose

import optx_lite as ox

RISING = {
    "x": lambda x: x,
    "sqrt": jnp.sqrt,
    "sinh": jnp.sinh,
    "expm1": jnp.expm1,
    "log1p": jnp.log1p,
    "tanh": jnp.tanh,
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_minimum_may_be_a_bound_at_zero(dtype):
    """(0, width) and, mirrored, (-width, 0), for boxes of all sizes."""
    width = jnp.array([1e-30, 1e-9, 1.0, 3.0, jnp.inf] * 2, dtype)
    sign = jnp.where(jnp.arange(10) < 5, 1, -1).astype(dtype)
    kind = jnp.arange(len(RISING), dtype=dtype)[:, None]  # a row for each function
    zero = jnp.zeros((len(RISING), 10), dtype)

    def f(x, sign, kind):
        choices = [rising(sign * x) for rising in RISING.values()]
        return jnp.select([kind == k for k in range(len(RISING))], choices)

    def solve(at):
        low, high = jnp.where(sign > 0, at, -width), jnp.where(sign > 0, width, at)
        res = ox.minimize_scalar(f, bounds=(low, high), args=(sign, kind))
        return res.x, res

    (x, res), (moved, _) = jax.jvp(solve, (zero,), (zero + 1,))
    np.testing.assert_array_equal(res.status, 0)
    np.testing.assert_array_equal(x, 0)
    np.testing.assert_array_equal(res.fun, 0)
    np.testing.assert_array_equal(res.active_mask, jnp.broadcast_to(-sign, x.shape))
    np.testing.assert_array_equal(moved, 1)
    assert res.nfev.max() < 64  # as many as there are digits


@pytest.mark.parametrize("power", [0.5, 1, 2, 4])
def test_the_minimum_may_be_zero_inside(power):
    """|x|^p, from boxes of which 0 is no simple fraction; x is told to eps of their width."""
    unit = jnp.array([1e-30, 1e-3, 1.0, 1e9])
    f = lambda x: jnp.abs(x) ** power
    for settings in ({"bounds": (-unit, 1.3 * unit)}, {"bracket": (-unit, 0.3 * unit, 1.3 * unit)}):
        res = ox.minimize_scalar(f, **settings)
        np.testing.assert_array_equal(res.status, 0)
        assert (jnp.abs(res.x) <= 4 * jnp.finfo(jnp.float64).eps * unit).all()
        np.testing.assert_array_equal(res.active_mask, 0)
        assert res.nfev.max() < 120


def test_equal_bounds_hold_x():
    """It follows the one that f falls towards, the lower one if f is flat."""
    c = jnp.array([-5.0, 5.0, 2.0])
    above = jnp.array([2.0, np.nextafter(2.0, 3.0)])[:, None]  # equal and nearly so

    def solve(low, high):
        res = ox.minimize_scalar(lambda x, c: (x - c) ** 2, bounds=(low, high), args=c)
        return res.x, res

    x, res = solve(2.0, above)
    np.testing.assert_array_equal(res.status, 0)
    np.testing.assert_array_equal(x, [[2.0, 2.0, 2.0], [2.0, above[1, 0], 2.0]])
    np.testing.assert_array_equal(res.active_mask, [[-1, 1, -1]] * 2)
    low, high = jnp.full((2, 3), 2.0), jnp.broadcast_to(above, (2, 3))
    _, push, _ = jax.linearize(jax.jit(solve), low, high, has_aux=True)
    by_low, by_high = push(jnp.ones((2, 3)), 0 * low), push(0 * low, jnp.ones((2, 3)))
    np.testing.assert_array_equal(by_low[0], [1, 0, 1])
    np.testing.assert_array_equal(by_high[0], [0, 1, 0])
    both = jax.grad(lambda b: solve(b, b)[0].sum())(2.0)
    assert both == 3


@pytest.mark.parametrize(
    "f, settings, x, error",
    [
        (lambda x: x**2 - jnp.log(x), {}, 0.5**0.5, 1e-15),  # infinite at the first point
        (lambda x: x**2 - jnp.log(x), {"bounds": (-3.0, 8.0)}, 0.5**0.5, 1e-15),  # NaN below 0
        (lambda x: jnp.sqrt(x) + x, {"bounds": (-1.0, 2.0)}, 0.0, 1e-15),
        (lambda x: -jnp.sin(x) / x, {"bounds": (0.0, 2.0)}, 0.0, 1e-7),  # NaN at 0 alone
        (lambda x: 1e307 * (x - 3) ** 2, {}, 3.0, 1e-15),  # overflows
    ],
)
def test_the_search_turns_away_from_where_the_function_is_not_defined(f, settings, x, error):
    res = ox.minimize_scalar(f, **settings)
    assert res.success
    assert res.x == pytest.approx(x, abs=error)
    assert jnp.isfinite(res.fun)


@pytest.mark.parametrize(
    "settings", [{}, {"bounds": (0.0, jnp.inf)}, {"bounds": (-jnp.inf, jnp.inf)}]
)
def test_no_success_without_a_minimum(settings):
    """Undefined, falling forever, to no lowest value, and one good one: the last alone has x."""
    kind = jnp.arange(4)

    def f(x, kind, c):
        choices = [jnp.nan * x, -x, jnp.log(jnp.abs(x)), (x - c) ** 2]
        return jnp.select([kind == k for k in range(4)], choices)

    def solve(c):
        return ox.minimize_scalar(f, args=(kind, c), **settings)

    res = solve(2.0)
    np.testing.assert_array_equal(res.success, [False, False, False, True])
    np.testing.assert_array_equal(jnp.isnan(res.x), ~res.success)
    np.testing.assert_array_equal(jnp.isnan(res.fun), ~res.success)
    for mode in (jax.jacfwd, jax.jacrev):
        np.testing.assert_array_equal(mode(lambda c: solve(c).x)(2.0), [jnp.nan] * 3 + [1.0])
    # What has failed, and is left out, comes into nothing that it shares.
    kept = lambda c: jnp.sum(jnp.where(solve(c).success, solve(c).x, 0))
    assert jax.grad(kept)(2.0) == 1


@pytest.mark.parametrize("dtype, top", [(jnp.float32, 18), (jnp.float64, 140)])
@pytest.mark.parametrize("where", ["bracket", "above", "below"])
def test_flat_to_rounding_where_the_search_begins(where, dtype, top):
    """The minimum is far away, so that the first values differ by their rounding only."""
    random = np.random.default_rng(1)
    n = 600
    c = 10 ** random.uniform(0, top, n) * random.choice([-1, 1], n)
    settings = {
        "bracket": {"bracket": (dtype(-3), dtype(2))},
        "above": {"bounds": (dtype(0), None)},
        "below": {"bounds": (None, dtype(7))},
    }[where]
    c = {"bracket": c, "above": abs(c), "below": -abs(c)}[where]
    kind, offset = random.integers(0, 3, n), random.choice([0, 1, 1e3], n)
    c, offset = jnp.asarray(c, dtype), jnp.asarray(offset, dtype)

    def f(x, kind, c, offset):
        t = x / c - 1
        choices = [t * t, jnp.logaddexp(t, -t), jnp.sqrt(1 + t * t)]
        return jnp.select([kind == k for k in range(3)], choices) + offset

    res = ox.minimize_scalar(f, args=(kind, c, offset), **settings)
    assert res.success.all()
    eps = float(jnp.finfo(dtype).eps)
    error = abs(np.asarray(res.x, float) / np.asarray(c, float) - 1)
    assert (error < 50 * eps**0.5 * np.maximum(np.asarray(offset, float), 1) ** 0.5).all()


def test_a_function_without_a_minimum_is_a_failure():
    res = ox.minimize_scalar(lambda x: jnp.full_like(x, 3), bracket=(0.0, 1.0))
    assert not res.success


KINDS = 8


def smooth(x, kind, a, b, xp=jnp):
    """In units of its own."""
    return xp.select(
        [kind == k for k in range(KINDS)],
        [
            (x - a) ** 2,
            xp.cosh(x - a),
            xp.exp(x) - (1 + abs(a)) * x,
            -xp.exp(-((x - a) ** 2) / 8),
            (x - a) ** 4 + (x - a) ** 2,
            xp.sin(3 * x + a) + 0.1 * (x - b) ** 2,
            abs(x - a),
            xp.arctan(x - a),
        ],
    )


@pytest.mark.parametrize("dtype, most", [(jnp.float32, 12), (jnp.float64, 140)])
def test_beside_scipy_and_brute_force(dtype, most):
    """Answers at 0, at bounds and inside, in units of all sizes: no failure, no false success."""
    random = np.random.default_rng(7)
    n = 1200
    kind = random.integers(0, KINDS, n)
    a = np.where(random.random(n) < 0.4, random.integers(-1, 2, n), random.normal(size=n))
    b = random.normal(size=n)
    low = np.where(random.random(n) < 0.4, random.integers(-1, 2, n), 3 * random.normal(size=n))
    high = low + 10 ** random.uniform(-2, 1, n)
    unit, height = (2.0 ** random.integers(-3 * most, 3 * most, n) for _ in range(2))
    given = [jnp.asarray(v, dtype) for v in (low * unit, high * unit, a, b, unit, height)]
    lower, upper, *args = given

    def f(x, kind, a, b, unit, height):
        return height * smooth(x / unit, kind, a, b)

    res = ox.minimize_scalar(f, bounds=(lower, upper), args=(kind, *args))
    np.testing.assert_array_equal(res.status, 0)
    assert ((res.x >= lower) & (res.x <= upper)).all()

    low, high, a, b = (np.asarray(v, np.float64) for v in given[:4])
    low, high, x = low / unit, high / unit, np.asarray(res.x, np.float64) / unit
    g = lambda x: smooth(x, kind, a, b, np)
    eps = float(jnp.finfo(dtype).eps)
    noise = 32 * eps * (1 + abs(g(x)) + abs(x))
    noise += np.where(kind == 6, 2 * eps**0.5 * abs(x), 0)  # where values tell no more of x
    step = 3 * eps**0.5 * (high - low)
    for neighbour in (np.maximum(x - step, low), np.minimum(x + step, high)):
        assert (g(x) <= g(neighbour) + noise).all()
    for i in range(0, n, 8):
        if kind[i] not in (3, 5, 7):  # with a single local minimum
            one = lambda x, i=i: float(smooth(np.float64(x), kind[i], a[i], b[i], np))
            peer = scipy.optimize.minimize_scalar(one, bounds=(low[i], high[i]))
            assert one(x[i]) <= peer.fun + noise[i]


# -- functions with few derivatives --------------------------------------------------------


@jax.custom_vjp
def by_reverse(x, c):
    return jnp.cosh(x - c)


by_reverse.defvjp(
    lambda x, c: (jnp.cosh(x - c), jnp.sinh(x - c)), lambda slope, d: (d * slope, -d * slope)
)


def by_forward(x, c):
    """3 cosh(x - c), by a loop that has no reverse mode."""
    step = lambda state: (state[0] + 1, state[1] + jnp.cosh(x - c))
    return jax.lax.while_loop(lambda state: state[0] < 3, step, (0, jnp.zeros_like(x)))[1]


def by_values(x, c):
    on_host = lambda x, c: np.cosh(np.asarray(x) - np.asarray(c))
    return jax.pure_callback(on_host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, c)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0), (-1.0, 0.3)])
@pytest.mark.parametrize("f", [by_reverse, by_forward])
def test_one_mode_is_enough_for_both(f, bounds):
    def solve(c):
        res = ox.minimize_scalar(f, args=c, bounds=bounds)
        return jnp.stack([res.x, res.fun])

    @jax.jit
    def derivatives(c):
        value, push = jax.linearize(solve, c)
        pull = jax.vmap(jax.linear_transpose(push, c))
        return value[0], push(1.0), pull(jnp.eye(2))[0]

    x, *both = derivatives(0.5)
    assert x == pytest.approx(0.3 if bounds == (-1.0, 0.3) else 0.5, abs=1e-15)
    held = bounds == (-1.0, 0.3)
    by_x = 0.0 if held else 1.0
    value = jnp.sinh(0.2) * (3 if f is by_forward else 1) if held else 0.0
    for derivative in both:
        np.testing.assert_allclose(derivative, [by_x, value], atol=1e-14)


@pytest.mark.parametrize("f", [by_reverse, by_forward])
def test_one_mode_is_enough_for_a_root(f):
    root = lambda c: ox.elementwise.find_root(lambda x, c: f(x, c) - 4, (0.0, 9.0), args=c).x
    for mode in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(mode(root)(jnp.array([0.1, 0.7])), np.eye(2), atol=1e-14)


def test_values_are_enough_for_an_answer_and_not_for_its_derivative():
    for bounds, x in ((None, 0.5), ((-1.0, 1.0), 0.5), ((-1.0, 0.3), 0.3)):
        solve = lambda c, bounds=bounds: ox.minimize_scalar(by_values, args=c, bounds=bounds).x
        assert solve(0.5) == pytest.approx(x, abs=1e-7)
        for mode in (jax.jacfwd, jax.jacrev):
            with pytest.raises(TypeError, match=r"`func` lacks a derivative"):
                mode(solve)(0.5)


# -- arguments -----------------------------------------------------------------------------


def test_the_methods_of_scipy_and_their_rules():
    f = lambda x: (x - 2) * x * (x + 2) ** 2  # SciPy's example
    for method in ("brent", "Golden", "chandrupatla", None):
        res = ox.minimize_scalar(f, method=method, tol=1e-6, options={"disp": False})
        assert res.x == pytest.approx(1.28077640403)
    res = ox.minimize_scalar(f, bounds=(-3, -1), method="bounded", options={"xatol": 1e-6})
    assert res.x == pytest.approx(-2.0, abs=1e-6)
    for settings, message in (
        ({"method": "bounded"}, "mandatory for method `bounded`"),
        ({"method": "brent", "bounds": (0, 1)}, "incompatible with 'method=brent'"),
        ({"method": "golden", "bounds": (0, 1)}, "incompatible with 'method=golden'"),
        ({"method": "newton"}, "`method` must be None or one of"),
        ({"method": "chebyshev", "bounds": (0, 1)}, "use `chebyshev.minimum"),
        ({"options": {"gtol": 1}}, "gtol"),
        ({"options": {"xtol": 1e-8, "xrtol": 1e-8}}, "another name"),
        ({"bracket": (0.0, 3.0, 1.0)}, "`bracket` must be two different numbers, or three in"),
        ({"bracket": (1.0, 1.0)}, "`bracket` must be two different numbers"),
        ({"bracket": (0.0, jnp.inf)}, "finite"),
        ({"bounds": (jnp.nan, 1.0)}, "`bounds` must not be NaN"),
        ({"bounds": (0.0, 1.0, 2.0)}, "two"),
    ):
        with pytest.raises(ValueError, match=message):
            ox.minimize_scalar(f, **settings)


def test_what_is_raised_is_a_status_inside_jit():
    inside = jax.jit(lambda *b: ox.minimize_scalar(jnp.cosh, bracket=b).status)
    for bracket in ((0.0, 3.0, 1.0), (1.0, 1.0), (jnp.nan, 1.0)):
        assert inside(*bracket) == -5
    inside = jax.jit(lambda *b: ox.minimize_scalar(jnp.cosh, bounds=b).status)
    for bounds in ((2.0, 1.0), (jnp.nan, 1.0)):
        assert inside(*bounds) == -5


def test_disp_prints_why_it_ended(capsys):
    ox.minimize_scalar(jnp.cosh, options={"disp": True})
    assert capsys.readouterr().out.startswith("The algorithm converged")


def test_export_for_any_number_of_problems():
    size = jax.export.symbolic_shape("n")
    solve = lambda c: ox.minimize_scalar(lambda x, c: jnp.cosh(x - c), bounds=(0.0, 3.0), args=c).x
    root = lambda c: ox.elementwise.find_root(lambda x, c: x**3 - c, (-5.0, 5.0), args=c).x
    both = lambda c: (solve(c), root(c), jax.grad(lambda c: (solve(c) * root(c)).sum())(c))
    example = jax.ShapeDtypeStruct(size, jnp.float64)
    exported = jax.export.export(jax.jit(both))(example)
    for n in (1, 7, 3000):
        c = jnp.linspace(0.5, 4.0, n)
        for found, right in zip(exported.call(c), both(c), strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-12)


def test_none_is_no_bound():
    res = ox.minimize_scalar(lambda x: (x - 2) ** 2, bounds=(None, 1.5))
    assert res.success
    assert_allclose(res.x, 1.5)
    res = ox.minimize_scalar(lambda x: (x - 2) ** 2, bounds=(0.0, None))
    assert_allclose(res.x, 2.0, rtol=1e-6)
