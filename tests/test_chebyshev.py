"""Chebyshev proxies: pieces, calculus, all roots, all extrema, the global minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optx_lite as ox
from optx_lite.chebyshev.chop import chop

EPS = np.finfo(float).eps
proxy = ox.chebyshev.proxy


def check(f, a, b, exact=None, times=20):
    """The proxy of a NumPy function, after a look at its values; to the rounding of x as well."""
    p = proxy(f, a, b)
    x = np.random.default_rng(0).uniform(a, b, 500)
    right = (exact or f)(x)
    rounding = EPS * np.abs(right).max() * (1 + max(abs(a), abs(b)) / 100)
    np.testing.assert_allclose(p(x), right, rtol=0, atol=times * rounding)
    return p


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("a, b", [(-1.0, 1.0), (-3.0, 8.0), (1e6, 1e6 + 2)])
def test_values_in_any_unit(scale, a, b):
    middle = (a + b) / 2
    check(lambda x: scale * np.exp(np.sin(3 * (x - middle))), a, b, times=100 if b < 10 else 1000)


def test_two_thousand_roots():
    """The roots of exp(x) sin(1000 pi x) are k / 1000."""
    p = proxy(lambda x: np.exp(x) * np.sin(1000 * np.pi * x), -1.0, 1.0)
    res = p.roots()
    np.testing.assert_allclose(res.x, np.arange(-1000, 1001) / 1000, rtol=0, atol=1e-14)


def test_calculus():
    p = check(lambda x: np.exp(-x) * np.sin(20 * x), 0.0, 6.0)
    x = np.linspace(0, 6, 200)
    complex_power = lambda k: ((20j - 1) ** k * np.exp((20j - 1) * x)).imag
    for order in (1, 2, 4):
        off = np.abs(p.derivative(order)(x) - complex_power(order)).max()
        assert off <= 1e-14 * (20 * 30) ** order
    integral = ((np.exp((20j - 1) * x) - 1) / (20j - 1)).imag
    np.testing.assert_allclose(p.antiderivative()(x), integral, rtol=0, atol=1e-15)
    np.testing.assert_allclose(p.integral(), integral[-1], rtol=0, atol=1e-15)
    np.testing.assert_allclose(p.antiderivative().derivative()(x), p(x), rtol=0, atol=1e-13)


def test_kinks_and_jumps_become_breaks():
    p = check(lambda x: np.abs(x - 0.3), -1.0, 1.0, times=200)
    for found in (p.roots(), p.extrema(), p.minimum()):
        np.testing.assert_allclose(np.ravel(found.x), [0.3], rtol=0, atol=1e-11)
    # A jump is no root, and a kink that goes on rising no extremum.
    assert check(lambda x: np.sign(x - 0.3) + x / 2, -1.0, 1.0).roots().x.size == 0
    rising = check(lambda x: x + np.abs(x - 0.3) / 2, -1.0, 1.0, times=200)
    assert rising.extrema().x.size == 0
    np.testing.assert_allclose(rising.roots().x, [-0.3], rtol=0, atol=1e-14)
    root = check(np.sqrt, 0.0, 1.0, times=100)
    np.testing.assert_allclose(root.integral(), 2 / 3, rtol=1e-14)


def test_multiple_roots_are_not_certain():
    res = proxy(lambda x: (x - 0.5) ** 2, 0.0, 1.0).roots()
    np.testing.assert_allclose(res.x, [0.5], rtol=0, atol=1e-7)
    assert not res.crossing.any()
    res = proxy(lambda x: (x - 0.25) ** 3, -1.0, 1.0).roots()
    np.testing.assert_allclose(res.x, [0.25], rtol=0, atol=1e-4)
    assert res.crossing.all()
    assert proxy(lambda x: (x - 0.5) ** 2 + 1e-14, 0.0, 1.0).roots().x.size == 0
    # Below the accuracy of the proxy there may be a root or none.
    assert not proxy(lambda x: np.exp(-40 * x), 0.0, 1.0).roots().crossing.any()
    np.testing.assert_allclose(
        proxy(lambda x: (x - 0.5) * (x - 0.500001), 0.0, 1.0).roots().x,
        [0.5, 0.500001],
        rtol=0,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    "f, message",
    [
        (lambda x: 1 / (x - 0.3), "pole|finite"),
        (lambda x: 1 / (x - 1 / 3), "pole|finite"),
        (np.log, "finite"),
        (lambda x: np.random.default_rng(0).normal(size=x.shape), "not resolved"),
        (lambda x: np.where(x > 0.7, np.nan, x), "finite"),
        (lambda x: 1.0, "shape"),
        (lambda x: np.asarray(x) + 1j, "real"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_is_no_smooth_function(f, message):
    with pytest.raises(ValueError, match=message):
        proxy(f, 0.0, 1.0)


@pytest.mark.parametrize("a, b", [(1.0, 1.0), (1.0, 0.0), (0.0, np.inf), (np.nan, 1.0)])
def test_bad_intervals(a, b):
    with pytest.raises(ValueError, match="`a` and `b` must be finite"):
        proxy(jnp.sin, a, b)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`degree`"):
        proxy(jnp.sin, 0.0, 1.0, degree=2)
    with pytest.raises(ValueError, match="`pieces`"):
        proxy(jnp.sin, 0.0, 1.0, pieces=2)
    with pytest.raises(ValueError, match="`tol`"):
        proxy(jnp.sin, 0.0, 1.0, tol=-1.0)
    with pytest.raises(ValueError, match="`size`"):
        ox.chebyshev.roots(jnp.sin, 0.0, 1.0, degree=16)
    with pytest.raises(TypeError, match="degree"):
        jax.jit(lambda c: proxy(lambda x: c * x, 0.0, 1.0))(1.0)
    with pytest.raises(TypeError, match="degree"):
        jax.jit(lambda c: ox.chebyshev.minimum(lambda x: c * x, 0.0, 1.0))(1.0)


def test_tolerance():
    noisy = lambda x: np.sin(5 * x) + 1e-9 * np.random.default_rng(0).normal(size=x.shape)
    p = proxy(noisy, 0.0, 3.0, tol=1e-8)
    x = np.linspace(0, 3, 100)
    np.testing.assert_allclose(p(x), np.sin(5 * x), rtol=0, atol=1e-6)
    np.testing.assert_allclose(p.roots().x, np.arange(5) * np.pi / 5, rtol=0, atol=1e-6)


def test_outside_there_are_no_values():
    p = proxy(np.sin, 0.0, 1.0)
    assert np.isnan(p(np.array([-1e-9, 1.0 + 1e-9, np.nan]))).all()
    assert np.isfinite(p(np.array([0.0, 1.0]))).all()


@pytest.mark.usefixtures("x64_off")
def test_single_precision():
    p = proxy(lambda x: jnp.sin(x) / x, 0.5, 20.0)
    assert p.coefficients.dtype == np.float32
    np.testing.assert_allclose(p.roots().x, np.pi * np.arange(1, 7), rtol=1e-6)
    # tan(x) = x, by mpmath.
    right = [4.493409457909064, 7.725251836937707, 10.904121659428899, 14.066193912831473]
    np.testing.assert_allclose(p.extrema().x[:4], right, rtol=1e-5)


# Roots of Bessel's J0 by mpmath; J0(x) is the mean of cos(x sin t), to which 64 points are exact.
J0 = [2.404825557695773, 5.520078110286311, 8.653727912911013, 11.79153443901428]
J0_EXTREMA = [3.831705970207512, 7.015586669815619, 10.17346813506272]


def bessel(x, scale):
    t = np.pi * (np.arange(64) + 0.5) / 64
    return jnp.mean(jnp.cos(scale * x[:, None] * np.sin(t)[None]), axis=1)


FOUND = {"roots": np.array(J0), "extrema": np.array(J0_EXTREMA)}


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("fixed", [False, True])
def test_of_the_function_with_derivatives(name, fixed):
    """x(c) = x(1) / c, whether the proxy is adaptive or of fixed size."""
    right = FOUND[name]
    size = {"degree": 16, "size": 5} if fixed else {}
    find = lambda c: getattr(ox.chebyshev, name)(bessel, 0.5, 12.0, args=c, **size)
    one = jnp.array(1.0)
    count = right.size
    res = find(one)
    assert res.success and res.mask[:count].all() and not res.mask[count:].any()
    np.testing.assert_allclose(res.x[:count], right, rtol=0, atol=1e-14 * 20)
    x = lambda c: find(c).x[:count]
    if fixed:
        np.testing.assert_allclose(jax.jit(jax.jacrev(x))(one), -right, rtol=1e-12)
    else:
        np.testing.assert_allclose(jax.jacfwd(x)(one), -right, rtol=1e-12)


def test_second_derivatives_of_a_root():
    x = lambda c: ox.chebyshev.roots(lambda x: jnp.exp(x) - c, -1.0, 3.0, args=()).x[0]
    np.testing.assert_allclose(jax.jacfwd(jax.jacrev(x))(2.0), -1 / 4, rtol=1e-12)


def test_extrema_lie_within():
    """The derivative of a cosine is 0 at both ends, to rounding: no extremum within."""
    for size in ({}, {"degree": 16, "size": 4}):
        res = ox.chebyshev.extrema(jnp.cos, 0.0, 2 * np.pi, **size)
        np.testing.assert_allclose(res.x[res.mask], [np.pi], rtol=1e-15)


def test_fixed_size_says_what_it_does_not_know():
    def find(c, a, b):
        f = lambda x: jnp.sin(c * x)
        res = ox.chebyshev.roots(f, a, b, degree=24, pieces=4, size=6)
        low = ox.chebyshev.minimum(f, a, b, degree=24, pieces=4)
        return res, low

    c = jnp.array([3.0, 7.0, 200.0, jnp.nan, 3.0, 3.0])
    a = jnp.array([-2.0, -2.0, -2.0, -2.0, 2.0, -jnp.inf])
    res, low = jax.jit(jax.vmap(find))(c, a, jnp.full(6, 1.5))
    np.testing.assert_array_equal(res.status, [0, -2, -2, -3, -5, -5])
    np.testing.assert_array_equal(low.status, [0, 0, -2, -3, -5, -5])
    np.testing.assert_allclose(res.x[0, :3], [-np.pi / 3, 0, np.pi / 3], rtol=0, atol=1e-15)
    np.testing.assert_array_equal(res.mask[0], [True] * 3 + [False] * 3)
    assert np.isnan(res.x[3:]).all() and np.isnan(low.x[3:]).all() and np.isnan(low.fun[3:]).all()
    np.testing.assert_allclose(low.fun[:2], -1, rtol=1e-15)


def test_closest_points_of_a_curve():
    """y = 2 sin x: the distance is that by brute force, its derivative the unit vector."""

    def distance(p):
        square = lambda x: (x - p[0]) ** 2 + (2 * jnp.sin(x) - p[1]) ** 2
        res = ox.chebyshev.minimum(square, p[0] - 6, p[0] + 6, degree=16)
        return jnp.sqrt(res.fun), res

    x, y = np.meshgrid(np.linspace(-6, 6, 23), np.linspace(-4, 4, 23))
    points = np.stack([x, y], -1).reshape(-1, 2) + 0.01
    solve = jax.jit(jax.vmap(jax.value_and_grad(distance, has_aux=True)))
    (found, res), slope = solve(points)
    assert np.all(res.status == 0)
    s = np.linspace(-13, 13, 20001)
    square = (s - points[:, :1]) ** 2 + (2 * np.sin(s) - points[:, 1:]) ** 2
    nearest = np.sqrt(square.min(axis=1))
    assert np.all(found <= nearest * (1 + 4 * EPS))
    # Between the points of the brute force the curve is not closer than this.
    assert np.all(found >= np.sqrt(np.maximum(nearest**2 - 20 * 0.0013**2, 0)))
    foot = np.stack([res.x, 2 * np.sin(res.x)], -1)
    unit = (points - foot) / np.asarray(found)[:, None]
    np.testing.assert_allclose(slope, unit, rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(slope, axis=1), 1, rtol=1e-12)


def test_a_minimum_at_an_end_follows_it():
    find = lambda b, c: ox.chebyshev.minimum(lambda x: jnp.cosh(x - c), 0.0, b, degree=16)
    solve = jax.jit(jax.value_and_grad(lambda b, c: find(b, c).x, (0, 1)))
    x, slopes = solve(1.0, 5.0)
    assert (float(x), *map(float, slopes)) == (1.0, 1.0, 0.0)
    x, slopes = solve(8.0, 1e-13)  # close to the other end, and not on it
    np.testing.assert_allclose([x, *slopes], [0, 0, 1], rtol=0, atol=1e-12)
    x, slopes = solve(8.0, 5.0)
    np.testing.assert_allclose([x, *slopes], [5, 0, 1], rtol=1e-13, atol=1e-13)


def test_no_derivative_where_there_is_none():
    """At a multiple root, and at the minimum of a fourth power: NaN, in both modes."""
    root = lambda c: ox.chebyshev.roots(lambda x: (x - c) ** 2, 0.0, 1.0).x[0]
    low = lambda c: ox.chebyshev.minimum(lambda x: (x - c) ** 4, 0.0, 1.0).x
    for x in (root, low):
        assert np.isnan(jax.jacfwd(x)(0.4)) and np.isnan(jax.jacrev(x)(0.4))


def test_a_minimum_at_a_kink_has_no_derivative_that_is_known():
    """3 |x - c| + (x - 0.35)^2: f' jumps at its minimum, x = c, with one slope on both sides."""
    f = lambda x, c: 3 * jnp.abs(x - c) + (x - 0.35) ** 2
    x = lambda c: ox.chebyshev.minimum(f, -1.0, 1.0, args=c)
    inner = lambda c: ox.chebyshev.extrema(f, -1.0, 1.0, args=c)
    np.testing.assert_allclose(x(0.3).x, 0.3, rtol=0, atol=1e-12)
    for found in (x, inner):
        assert np.isnan(jax.jacfwd(lambda c, found=found: found(c).x)(0.3)).all()
        assert np.isnan(jax.jacrev(lambda c, found=found: found(c).fun)(0.3)).all()


def test_what_failed_has_no_derivative():
    """And plateaus do not fail: a constant is as low at its ends as anywhere."""
    a, b = jnp.array(-1.0), jnp.array(1.0)  # closed over, concrete inside `jit`

    def find(c):
        f = lambda x: jnp.where(x > 0.1, c[1] * c[0], c[0] + 0 * x)
        low = ox.chebyshev.minimum(f, a, b, degree=16)
        return low.x + low.fun, low

    c = jnp.array([[-2.0, 1.0], [jnp.nan, 1.0], [0.3, 1.0], [1e300, 1.0]])
    (_, low), slope = jax.jit(jax.vmap(jax.value_and_grad(find, has_aux=True)))(c)
    np.testing.assert_array_equal(low.status, [0, -3, 0, 0])
    np.testing.assert_array_equal(low.fun, c[:, 0])
    assert np.isnan(slope[:, 0]).all()
    with pytest.raises(ValueError, match="so b - a"):
        proxy(jnp.sin, -1.7e308, 1.7e308)


def test_chop_as_in_the_paper():
    """A series that falls to a plateau is cut there; noise and what still falls is not."""
    k = np.arange(65)
    noise = 1e-17 * np.cos(100.0 * k)
    series = np.stack([0.4**k + noise, 0.9**k, np.cos(9.0 * k), 0.0 * k, 1.0 * (k == 7)])
    kept = chop(series, np.full(5, EPS))
    assert 36 <= kept[0] <= 44
    np.testing.assert_array_equal(kept[1:], [65, 65, 1, 8])
