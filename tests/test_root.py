"""`root`, `leastsq` and `fixed_point`: SciPy's own cases, and minima that are no roots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from numpy.testing import assert_allclose

import optx_lite as ox

METHODS = ("hybr", "lm", "trf", "dogbox")
SOLVERS = ("hybr", "trf", "dogbox")  # hybr and lm are one


def pressures(flow, total, k):
    p = k * flow**2
    return jnp.hstack((p[1:] - p[0], flow.sum() - total))


def pressures_jacobian(flow, total, k):
    down = jnp.diag(2 * k[1:] * flow[1:])
    return jnp.vstack(
        (jnp.hstack((-2 * k[0] * flow[0] * jnp.ones((3, 1)), down)), jnp.ones((1, 4)))
    )


@pytest.mark.parametrize("method", METHODS)
def test_pressure_network(method):
    args = (4.0, np.full(4, 0.5))
    pair = lambda *a: (pressures(*a), pressures_jacobian(*a))
    given = {"hybr": (pressures_jacobian, pressures), "trf": (True, pair)}
    for jac, fun in ((None, pressures), given.get(method, (pressures_jacobian, pressures))):
        start = [[2.0, 0.0, 2.0, 0.0]] if jac is pressures_jacobian else [2.0, 0.0, 2.0, 0.0]
        res = ox.root(fun, np.array(start), args=args, jac=jac, method=method)
        assert res.success and res.method == method
        assert_allclose(res.x, np.ones(4), atol=1e-6)
        assert_allclose(res.fun, 0, atol=1e-12)


def test_tol_counts():
    f = lambda z: z**3 - 1
    close, coarse = (ox.root(f, [1.1, 1.1], tol=tol) for tol in (1e-4, 0.5))
    assert close.success and coarse.success
    assert close.nfev <= coarse.nfev + 20
    assert np.abs(close.fun).max() <= np.abs(coarse.fun).max()


def test_a_number_as_args():
    f = lambda z, c: jnp.array([z[0] ** 3 - 1, z[1] ** 3 - c])
    assert_allclose(ox.root(f, [1.1, 1.1], args=1.5).x, [1, 1.5 ** (1 / 3)])


def test_wrong_shapes():
    with pytest.raises(TypeError, match="as many equations"):
        ox.root(lambda x: jnp.ones(1) * x[0], [1.5, 2.0])
    with pytest.raises(TypeError, match="as many equations"):
        ox.root(lambda x: jnp.ones(3) * x[0], [1.5, 2.0], method="hybr")
    with pytest.raises(ValueError, match="`method`"):
        ox.root(lambda x: x, [1.0], method="krylov")


# Equations without a root, or whose solver ends elsewhere: a minimum of the squares is no success.
ROOTLESS = {
    "no real root": (lambda x: x**2 + 1.0, [1.0]),
    "far away": (lambda x: jnp.array([x[0] - x[1], x[0] - x[1] - 0.5]), [1e8, 0.0]),
    "dependent": (lambda x: jnp.array([x[0] + x[1] - 1, 2 * x[0] + 2 * x[1] - 5]), [3.0, 4.0]),
    "a bump": (lambda x: x**3 - 3 * x + 4.0, [1.2]),
    "exponential": (lambda x: jnp.exp(x) + 1e-3, [1.0]),
    "in small units": (lambda x: 1e-9 * (x**2 + 1.0), [1.0]),
    "in large units": (lambda x: 1e9 * (x**2 + 1.0), [1e-3]),
}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("method", SOLVERS)
def test_a_minimum_is_no_root(n, method):
    # All of n variables in one program: `which` chooses.
    cases = {name: case for name, case in ROOTLESS.items() if len(case[1]) == n}
    functions = [f for f, _ in cases.values()]
    f = lambda x, which: jax.lax.switch(which, functions, x)
    compiled = jax.jit(lambda x0, k: ox.root(f, x0, args=(k,), method=method).success)
    for which, (name, (_, x0)) in enumerate(cases.items()):
        res = ox.root(f, x0, args=(np.int32(which),), method=method)
        assert not res.success, name
        assert res.status < 1 and isinstance(res.message, str), name
        assert not bool(compiled(jnp.asarray(x0), np.int32(which))), name


@pytest.mark.parametrize("method", SOLVERS)
def test_roots_in_any_unit(method):
    f = lambda x, c, unit: unit * jnp.array([jnp.sinh(x[0] / unit - c), x[1] / unit - 2 * c])
    for unit in (1e-8, 1.0, 1e8):
        for c in (0.0, 0.3, 7.0):  # a root at 0, too
            res = ox.root(f, [unit, unit], args=(c, unit), method=method)
            assert res.success
            assert_allclose(res.x, [unit * c, 2 * unit * c], rtol=1e-8, atol=1e-8 * unit)


def test_root_outside_of_the_bounds():
    f = lambda x: x**2 - 4.0
    assert ox.root(f, [1.0], bounds=(0, 3)).success
    outside = ox.root(f, [1.0], bounds=(0, 1.5))
    assert not outside.success and outside.solver == "trf"
    on_bound = ox.root(f, [1.0], bounds=(0, 2.0), method="dogbox")
    assert on_bound.success
    assert_allclose(on_bound.x, 2)


def test_derivative_of_a_root():
    f = lambda x, c: jnp.array([x[0] * x[1] - c, x[0] - jnp.exp(x[1])])
    root_of = lambda c: ox.root(f, [2.0, 1.0], args=(c,)).x
    jac, slope = jax.jit(jax.jacrev(root_of))(2.0), (root_of(2.0001) - root_of(1.9999)) / 2e-4
    assert_allclose(jac, slope, rtol=1e-6)
    many = jax.vmap(lambda c: ox.root(f, [2.0, 1.0], args=(c,)))(jnp.array([1.0, 2.0, 3.0]))
    assert bool(jnp.all(many.success))


def test_no_derivative_where_there_is_no_root():
    """At the minimum of the squares it would be 0 or 1, and not what was asked."""
    f = lambda x, c: x**2 - c

    def answer(c, upper):
        res = ox.root(f, [1.0], args=(c,), bounds=(0.0, upper))
        return res.x[0]

    slopes = jax.jit(jax.vmap(jax.grad(answer, argnums=(0, 1))))
    by_c, by_upper = slopes(jnp.array([4.0, -1.0, 9.0]), jnp.full(3, 2.5))  # none, one outside
    assert_allclose(by_c, [0.25, np.nan, np.nan], rtol=1e-6)
    assert_allclose(by_upper, [0.0, 0.0, np.nan], atol=1e-12)  # none moves, and there is none
    # What has failed is not mixed with other lanes.
    many = lambda c: jnp.sum(jax.vmap(answer, (0, None))(c, 2.5)[:1])
    assert_allclose(jax.grad(many)(jnp.array([4.0, -1.0])), [0.25, 0.0], rtol=1e-6)


class TestLeastsq:
    """scipy/optimize/tests/test_minpack.py, class TestLeastSq."""

    x = np.linspace(0, 10, 40)
    abc = (3.1, 42.0, -304.2)
    y = 3.1 * x**2 + 42 * x - 304.2 + 0.01 * np.random.default_rng(123).standard_normal(40)

    @staticmethod
    def residuals(p, y, x):
        return y - (p[0] * x**2 + p[1] * x + p[2])

    @staticmethod
    def jacobian(p, y, x):
        return -jnp.stack([x**2, x, jnp.ones_like(x)], axis=1)

    def test_basic(self):
        start = np.array([0, 0, 0])
        for given in (
            {},
            {"Dfun": self.jacobian},
            {"Dfun": lambda *a: self.jacobian(*a).T, "col_deriv": True},
        ):
            fit, ier = ox.leastsq(self.residuals, start, args=(self.y, self.x), **given)
            assert ier in (1, 2, 3, 4)
            assert_allclose(fit, self.abc, atol=0.02)
        assert_allclose(start, 0)

    def test_full_output(self):
        args = (self.y, self.x)
        x, cov, info, mesg, ier = ox.leastsq(self.residuals, [[0, 0, 0]], args, full_output=True)
        f = lambda p, y, x: np.asarray(self.residuals(p, y, x))
        ref = scipy.optimize.leastsq(f, [0, 0, 0], args, full_output=True)
        assert_allclose(x, ref[0], rtol=1e-7)
        assert_allclose(cov, ref[1], rtol=1e-6)
        assert_allclose(info["fvec"], ref[2]["fvec"], atol=1e-6)
        assert_allclose(info["ipvt"], ref[2]["ipvt"])
        r, expected = (np.triu(np.asarray(fjac).T[:3]) for fjac in (info["fjac"], ref[2]["fjac"]))
        assert_allclose(np.abs(r), np.abs(expected), rtol=1e-6)
        assert isinstance(mesg, str) and ier in (1, 2, 3, 4)

    def test_singular(self):
        _, cov, *_ = ox.leastsq(lambda p: p[0] * p[1] * self.x - 3.0, [1.0, 1.0], full_output=True)
        assert cov is None

    def test_errors(self):
        with pytest.raises(TypeError, match="Improper input: func input vector length N="):
            ox.leastsq(lambda x: 2 * (x[0] - 3) ** 2 + 1, [0, 1])
        with pytest.raises(TypeError, match="`Dfun` has wrong shape"):
            ox.leastsq(lambda x: x * 1.0, [0.0, 1.0], Dfun=lambda x: jnp.ones((3, 3)))
        with pytest.raises(ValueError, match="`diag`"):
            ox.leastsq(lambda x: x * 1.0, [0.0, 1.0], diag=[1.0])
        with pytest.raises(ValueError, match="`maxfev`"):
            ox.leastsq(lambda x: x * 1.0, [0.0, 1.0], maxfev=-1)
        with pytest.raises(ValueError, match="I raised"):
            ox.leastsq(_raises, [0.0])
        with pytest.warns(RuntimeWarning, match="maximum number"):
            _, ier = ox.leastsq(self.residuals, [0, 0, 0], (self.y, self.x), maxfev=1)
        assert ier == 5

    @pytest.mark.usefixtures("x64_off")
    def test_float32(self):
        x = np.array([1.475, 1.429, 1.409, 1.419, 1.455, 1.519, 1.472, 1.368, 1.286, 1.231])
        y = np.array(
            [0.0168, 0.0193, 0.0211, 0.0202, 0.0171, 0.0151, 0.0185, 0.0258, 0.034, 0.0396]
        )
        x, y = x.astype(np.float32), y.astype(np.float32)
        f = lambda p, x, y: p[0] * jnp.exp(-((x - p[1]) ** 2) / (2.0 * p[2] ** 2)) + p[3] - y
        p, _ = ox.leastsq(f, np.ones(4, np.float32), args=(x, y))
        assert (f(p, x, y) ** 2).sum() < 1e-4 * (f(np.ones(4, np.float32), x, y) ** 2).sum()


def _raises(*args):
    raise ValueError("I raised")


class TestFixedPoint:
    """scipy/optimize/tests/test_minpack.py, class TestFixedPoint."""

    def test_scalars(self):
        assert_allclose(ox.fixed_point(lambda x: 2.0 * x, 1.0), 0, atol=1e-7)
        assert_allclose(ox.fixed_point(lambda x: x**2, 1.05), 1)
        assert_allclose(ox.fixed_point(lambda x: x**0.5, 1.05), 1)
        x = ox.fixed_point(lambda x: jnp.exp(-2.0 * x) / 2.0, 1.0, xtol=1e-12)
        assert_allclose(x, np.exp(-2.0 * x) / 2.0)

    def test_arrays(self):
        c = np.array([0.75, 1.0, 1.25])
        x = ox.fixed_point(lambda x, c: c * x**2, [1.1, 1.15, 0.9], args=(c,))
        assert_allclose(x, 1 / c)
        x = ox.fixed_point(lambda x, c: c * x**0.5, [0.8, 1.1, 1.1], args=(c,), method="iteration")
        assert_allclose(x, c**2)

    def test_none(self):
        with pytest.raises(RuntimeError, match="Failed to converge"):
            ox.fixed_point(lambda x: x + jnp.exp(-x) + 1.0, 1.0)

    def test_another_shape(self):
        with pytest.raises(ValueError, match=r"shape of x, \(1,\), got \(3,\)"):
            ox.fixed_point(lambda x: jnp.ones(3) * x, [1.0])

    def test_lanes_without_one(self):
        """x = x^2 + c has none for c > 1/4, else 1/2 - sqrt(1/4 - c)."""
        of = lambda c: ox.fixed_point(lambda x, c: x * x + c, 0.3, args=(c,))
        value, slope = jax.vmap(jax.value_and_grad(of))(jnp.array([0.1, 1.0]))
        assert_allclose(value, [0.5 - 0.15**0.5, np.nan], rtol=1e-6)
        assert_allclose(slope, [0.5 / 0.15**0.5, np.nan], rtol=1e-6)
