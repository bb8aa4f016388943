"""Derivatives of minimisers, minima and roots, and `minimize_scalar` with its bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optx_lite as ox

EPS = float(jnp.finfo(jnp.float64).eps)
B = jnp.array([0.3, 1.0, 2.5])


def valley(x, a, b):
    """Its minimum at x = log(a) / b has no such simple derivative of the value."""
    return jnp.exp(b * x) / b - a * x


def minimum(a, b=B, polish=True):
    return ox.elementwise.find_minimum(valley, (-9.0, 0.1, 9.0), args=(a, b), polish=polish)


def root(a, b=B):
    return ox.elementwise.find_root(lambda x, a: jnp.exp(b * x) - a, (-9.0, 9.0), args=a)


SOLVERS = {"minimum": minimum, "root": root}


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_against_the_closed_form(solve):
    """x = log(a)/b; b is an argument of one and closed over by the other."""
    a = jnp.array([0.5, 1.5, 3.0])
    x = lambda a, b: solve(a, b).x
    closed = lambda a, b: jnp.log(a) / b
    np.testing.assert_allclose(x(a, B), closed(a, B), rtol=1e-13)
    for argument in (0, 1):
        right = jax.jacfwd(closed, argument)(a, B)
        for mode in (jax.jacfwd, jax.jacrev):
            np.testing.assert_allclose(mode(x, argument)(a, B), right, rtol=1e-12, atol=1e-14)
    right = jax.hessian(lambda a, b: closed(a, b).sum(), (0, 1))(a, B)
    found = jax.hessian(lambda a, b: x(a, b).sum(), (0, 1))(a, B)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-11, atol=1e-13)


def test_the_value_follows_by_the_envelope():
    value = lambda a: minimum(a).f_x
    a = jnp.array([0.5, 1.5, 3.0])
    np.testing.assert_allclose(jax.jacrev(value)(a), np.diag(-jnp.log(a) / B), rtol=1e-13)
    second = jax.hessian(lambda a: value(a).sum())(a)
    np.testing.assert_allclose(second, np.diag(-1 / (a * B)), rtol=1e-12)  # f_aa + f_ax dx
    np.testing.assert_allclose(jax.jacfwd(lambda a: root(a).f_x)(a), 0, atol=1e-15)


@pytest.mark.parametrize("solve", [minimum, root], ids=["argument", "closed over"])
def test_reverse_over_reverse_beside_a_failed_element(solve):
    """a = -1 has neither minimum nor root: what is closed over is shared with it."""
    a = jnp.array([0.5, -1.0, 3.0])

    good = np.array([0, 2])
    x = lambda scale: solve(a, scale * B).x
    second = jax.grad(jax.grad(lambda scale: x(scale)[good].sum()))(1.2)
    # x = log(a) / (b scale)
    np.testing.assert_allclose(second, 2 * (jnp.log(a) / B)[good].sum() / 1.2**3, rtol=1e-11)
    failed = jax.grad(jax.grad(lambda scale: x(scale)[1]))(1.2)
    assert np.isnan(failed)


def test_under_vmap_and_jit():
    slope = lambda a, b: jax.grad(lambda a: minimum(a, b).x)(a)
    a = jnp.array([0.5, 1.5, 3.0])
    np.testing.assert_allclose(jax.jit(jax.vmap(slope))(a, B), 1 / (a * B), rtol=1e-12)


def test_first_points_and_brackets_carry_none():
    by_init = jax.grad(lambda m: ox.elementwise.find_minimum(jnp.cosh, (-3.0, m, 4.0)).x)
    assert by_init(0.5) == 0
    ends = lambda c: sum(ox.elementwise.bracket_root(lambda x: x - c, 0.0).bracket)
    assert jax.grad(ends)(7.3) == 0


def test_not_converged_is_nan_and_only_there():
    def solve(a):
        return ox.elementwise.find_root(lambda x, a: x - a, (0.0, 1.0), args=a).x

    a = jnp.array([0.5, 7.0])
    for mode in (jax.jacfwd, jax.jacrev):
        diagonal = jnp.diag(mode(solve)(a))
        assert diagonal[0] == 1
        assert jnp.isnan(diagonal[1])


def test_no_derivative_where_the_curvature_says_nothing():
    kink = lambda c: ox.elementwise.find_minimum(lambda x: jnp.abs(x - c), (-3.0, 0.1, 4.0)).x
    assert jnp.isnan(jax.grad(kink)(0.7))


def test_polish_gives_the_digits_that_values_do_not_have():
    a = jnp.linspace(0.5, 3.0, 50)[:, None]
    error = lambda res: jnp.max(jnp.abs(res.x - jnp.log(a) / B[None, :]))
    assert error(minimum(a, polish=False)) > 1e-11
    assert error(minimum(a)) < 16 * EPS * jnp.max(jnp.abs(jnp.log(a) / B[None, :]))


CANCELLING = {
    "exponential": (lambda x, a, b: jnp.exp(b * x) / b - a * x, lambda a, b: jnp.log(a) / b),
    "square": (lambda x, a, b: x * x - 2 * a * x + a * a, lambda a, b: a),
}


@pytest.mark.parametrize("family", CANCELLING)
def test_polish_where_the_terms_of_the_value_cancel(family):
    """What is left of a value says nothing of its rounding: one lane in eight was not polished."""
    fun, lowest = CANCELLING[family]
    rng = np.random.default_rng(0)
    a, b = jnp.asarray(rng.uniform(0.5, 3, 4000)), jnp.asarray(10 ** rng.uniform(-1, 1, 4000))
    res = ox.elementwise.find_minimum(fun, (-29.0, 0.1, 29.0), args=(a, b), polish=True)
    assert res.success.all()
    np.testing.assert_allclose(res.x, lowest(a, b), rtol=1e-13, atol=1e-13)


# -- minimize_scalar -----------------------------------------------------------------------


def bowl(x, c):
    return jnp.cosh(x - c) + 0.1 * x


LOWEST = -jnp.arcsinh(0.1)  # of bowl, from c: sinh(x - c) = -0.1
WAYS = {
    "default": {},
    "two points": {"bracket": (5.0, -3.0)},
    "three points": {"bracket": (-20.0, 0.0, 20.0)},
    "bounds": {"bounds": (-50.0, 50.0)},
    "one bound": {"bounds": (-50.0, jnp.inf)},
    "no bound": {"bounds": (-jnp.inf, jnp.inf)},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_one_call_finds_the_minimum(way):
    c = jnp.array([-4.0, 0.0, 1.3, 6.0])
    res = ox.minimize_scalar(bowl, args=c, **way)
    assert res.success.all()
    np.testing.assert_array_equal(res.active_mask, 0)
    np.testing.assert_allclose(res.x, c + LOWEST, rtol=32 * EPS, atol=32 * EPS)
    np.testing.assert_allclose(res.fun, bowl(c + LOWEST, c), rtol=8 * EPS)


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_at_a_bound_the_minimum_follows_the_bound(mode):
    c = jnp.array([-2.0, 1.0, 9.0])  # below, between and above the bounds

    def solve(low, high, c):
        res = ox.minimize_scalar(bowl, bounds=(low, high), args=c)
        return res.x, res.fun, res.active_mask

    x, fun, side = solve(0.0, 3.0, c)
    np.testing.assert_array_equal(side, [-1, 0, 1])
    np.testing.assert_allclose(x, [0.0, 1 + LOWEST, 3.0], rtol=8 * EPS)
    np.testing.assert_allclose(fun, bowl(x, c), rtol=EPS)
    by_low, by_high, by_c = mode(lambda *at: solve(*at)[0], (0, 1, 2))(0.0, 3.0, c)
    np.testing.assert_array_equal(by_low, [1, 0, 0])
    np.testing.assert_array_equal(by_high, [0, 0, 1])
    np.testing.assert_allclose(by_c, np.diag([0.0, 1.0, 0.0]), atol=1e-12)
    value_by_high = mode(lambda high: solve(0.0, high, c)[1])(3.0)
    np.testing.assert_allclose(value_by_high[2], jnp.sinh(-6.0) + 0.1, rtol=1e-13)  # f'(3)


def test_what_is_wrong_is_named():
    for settings, message in (
        ({"bounds": (1.0, 0.0)}, "An upper bound is less"),
        ({"bounds": (0.0, 1.0), "bracket": (0.0, 1.0)}, "`bracket` and `bounds`"),
        ({"bracket": (1.0,)}, "two or three points"),
        ({"method": "newton"}, "`method`"),
        ({"options": {"gtol": 1}}, "gtol"),
    ):
        with pytest.raises(ValueError, match=message):
            ox.minimize_scalar(jnp.cosh, **settings)
