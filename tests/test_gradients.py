"""The derivative of a solution, against central differences of the whole solve and closed forms.

The solve that is differenced is not ours: `solution` takes SciPy's answer to the last digit by
Newton's method on the cost as it is written down here.
"""

import functools

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox

INF = np.inf
TIGHT = {"ftol": 1e-12, "xtol": 1e-12, "gtol": 1e-12}

# A decay with noise and two outliers: the residual at the solution is far from zero.
M = 12
T = np.linspace(0.0, 3.0, M)
Y = 2.0 * np.exp(-1.3 * T) + 0.5 + 0.15 * np.sin(7.0 * np.arange(M) + 0.4)
Y[[3, 8]] += [0.9, -0.6]
P0 = np.array([1.5, 1.0, 0.9])
LOW, HIGH = np.full(3, -INF), np.full(3, INF)
LOW_ACTIVE, HIGH_ACTIVE = np.array([-INF, -INF, 0.75]), np.array([1.7, INF, INF])

RHO = {  # as defined, for the oracle alone
    "linear": lambda z: z,
    "soft_l1": lambda z: 2 * (jnp.sqrt(1 + z) - 1),
    "huber": lambda z: jnp.where(z <= 1, z, 2 * jnp.sqrt(jnp.maximum(z, 1)) - 1),
    "cauchy": jnp.log1p,
    "arctan": jnp.arctan,
}


def decay(p, y):
    return p[0] * jnp.exp(-p[1] * T) + p[2] - y


@functools.cache
def newton_system(loss):
    def cost(p, y, f_scale):
        return 0.5 * f_scale**2 * jnp.sum(RHO[loss]((decay(p, y) / f_scale) ** 2))

    return jax.jit(lambda *args: (jax.grad(cost)(*args), jax.hessian(cost)(*args)))


def solution(y, loss="linear", f_scale=1.0, lower=LOW, upper=HIGH):
    """The minimum to the last digit: from SciPy's, by Newton's method in the free variables."""
    near = so.least_squares(
        lambda p: p[0] * np.exp(-p[1] * T) + p[2] - y,
        np.clip(P0, lower, upper), "3-point", (lower, upper), "dogbox",
        loss=loss, f_scale=f_scale, max_nfev=500,
    )  # fmt: skip
    p, free = near.x, near.active_mask == 0
    for _ in range(6):
        grad, hessian = map(np.asarray, newton_system(loss)(p, y, f_scale))
        p[free] -= np.linalg.solve(hessian[np.ix_(free, free)], grad[free])
    assert np.abs(grad[free]).max(initial=0) < 1e-12, "the oracle itself has to converge"
    return p


def differences(function, theta, h=1e-5):
    """Central differences over each entry of the vector ``theta``, on the last axis."""
    steps = h * np.eye(len(theta))
    columns = [(function(theta + e) - function(theta - e)) / (2 * h) for e in steps]
    return np.stack(columns, axis=-1)


def both_ways(solve):
    """The Jacobian of a function of one vector, forward and in reverse, through one solve."""

    @jax.jit
    def jacobians(theta):
        value, push = jax.linearize(solve, theta)
        pull = jax.linear_transpose(push, theta)
        forward = jax.vmap(push, out_axes=-1)(jnp.eye(theta.size))
        return forward, jax.vmap(pull)(jnp.eye(value.size))[0]

    return jacobians


def assert_derivative(got, expected, rtol=1e-6):
    """``got`` is one Jacobian, or the two of `both_ways`."""
    for jacobian in got if isinstance(got, tuple) else [got]:
        assert_allclose(jacobian, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


# ---------------------------------------------------------------------------------------
# Data and scale, free; data, scale and bounds where two of three variables are active


@pytest.mark.parametrize("loss", RHO)
def test_free(loss):
    def solve(theta):
        y, f_scale = theta[:-1], theta[-1]
        settings = {"loss": loss, "f_scale": f_scale, "args": (y,), **TIGHT}
        return ox.least_squares(decay, P0, method="lm", **settings).x

    theta = np.append(Y, 0.3)
    expected = differences(lambda t: solution(t[:-1], loss, t[-1]), theta)
    if loss != "linear":
        assert np.abs(expected[:, -1]).max() > 1e-2, "the scale matters"
    assert_derivative(both_ways(solve)(theta), expected)


def test_gauss_newton_alone_would_not_do():
    # Without the second derivatives in the Hessian dx = J^+ dy. test_free knows the difference.
    p = solution(Y)
    jacobian = np.asarray(jax.jacfwd(decay)(p, Y))
    expected = differences(solution, Y)
    error = np.linalg.norm(np.linalg.pinv(jacobian) - expected) / np.linalg.norm(expected)
    assert error > 0.05


def at_bounds(theta, xp):
    """The data, the scale and the two sides, with the bounds that are active."""
    low, high = xp.asarray(LOW_ACTIVE), xp.asarray(HIGH_ACTIVE)
    third, first = np.arange(3) == 2, np.arange(3) == 0
    return theta[:M], theta[M], xp.where(third, theta[-1], low), xp.where(first, theta[-2], high)


def check_at_bounds(jacobians, loss, rtol):
    def expected_x(theta):
        y, f_scale, lower, upper = at_bounds(theta, np)
        return solution(y, loss, f_scale, lower, upper)

    for shift in (0.0, 0.02, -0.02):  # of the data
        theta = np.concatenate([Y + shift * np.cos(5 * T), [0.3, 1.7, 0.75]])
        got, expected = jacobians(theta), differences(expected_x, theta)
        assert_derivative(got, expected, rtol=rtol)
        assert np.abs(expected[1]).max() > 1e-2
        for jacobian in got:
            active = jacobian[np.array([0, 2])]
            assert_allclose(active[:, :-2], 0, atol=1e-12)  # held: the data do not move them
            assert_allclose(active[:, -2:], np.eye(2), atol=1e-12)  # dx / d bound = 1, no other


# Each loss once, each method with a loss of one piece, with a clipped curvature, and without.
CONTRACT = [
    ("trf", "linear"), ("dogbox", "soft_l1"), ("trf", "cauchy"),
    ("trf", "huber"), ("trf", "arctan"), ("dogbox", "arctan"), ("dogbox", "linear"),
]  # fmt: skip


@pytest.mark.parametrize(
    "method, loss",
    [
        pytest.param(*case, marks=[pytest.mark.slow] if i > 2 else [])
        for i, case in enumerate(CONTRACT)
    ],
)
def test_at_bounds(method, loss):
    def solve(theta):
        y, f_scale, lower, upper = at_bounds(theta, jnp)
        settings = {"method": method, "loss": loss, "f_scale": f_scale, "args": (y,)}
        return ox.least_squares(decay, P0, bounds=(lower, upper), **settings, **TIGHT).x

    # Gauss-Newton on arctan, whose curvature is clipped, ends at six digits of x: the derivative
    # is that of the point which was reached.
    check_at_bounds(both_ways(solve), loss, rtol=1e-4 if loss == "arctan" else 1e-6)


def test_a_minimum_at_bounds():
    # All losses in one program: `which` chooses. L-BFGS-B ends at six digits of x, too.
    def solve(theta, which):
        y, f_scale, lower, upper = at_bounds(theta, jnp)

        def cost(p):
            z = (decay(p, y) / f_scale) ** 2
            return 0.5 * f_scale**2 * jnp.sum(jax.lax.switch(which, list(RHO.values()), z))

        bounds = jnp.stack([lower, upper], axis=1)
        return ox.minimize(cost, P0, bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-12}).x

    jacobians = jax.jit(lambda theta, which: both_ways(lambda t: solve(t, which))(theta))
    for which, loss in enumerate(RHO):
        check_at_bounds(lambda theta, k=which: jacobians(theta, k), loss, rtol=1e-4)


# ---------------------------------------------------------------------------------------
# Closed forms: linear least squares


RNG = np.random.default_rng(5)
A, B = RNG.standard_normal((6, 3)), RNG.standard_normal(6)
DEFICIENT = np.column_stack([A[:, 0], A[:, 1], A[:, 0] - 2 * A[:, 1]])


def linear(x, a, b):
    return a @ x - b


def linear_solution(a, b, method):
    return ox.least_squares(linear, np.zeros(a.shape[1]), method=method, args=(a, b)).x


@pytest.mark.parametrize("method", ["trf", "dogbox", "lm"])
def test_linear_in_the_data(method):
    derivative = jax.jit(jax.jacrev(lambda b, a: linear_solution(a, b, method)))
    assert_derivative(derivative(B, A), np.linalg.pinv(A), rtol=1e-10)
    # Dependent columns: the solution is not unique, its derivative is that of minimum norm.
    assert_derivative(derivative(B, DEFICIENT), np.linalg.pinv(DEFICIENT), rtol=1e-10)


def test_linear_in_the_matrix():
    # d (A^+ b) = (A^T A)^-1 (dA^T r - A^T dA x), r = b - A x: not zero here.
    d_a = RNG.standard_normal(A.shape)
    x = np.linalg.lstsq(A, B)[0]
    r = B - A @ x
    expected = np.linalg.solve(A.T @ A, d_a.T @ r - A.T @ d_a @ x)
    solve = lambda a: linear_solution(a, B, "trf")
    assert_derivative(jax.jvp(solve, (A,), (d_a,))[1], expected, rtol=1e-10)
    # And backwards: the same number from the other side.
    weight = np.array([1.0, -2.0, 0.5])
    pulled = jax.vjp(solve, A)[1](weight)[0]
    assert_derivative(np.sum(pulled * d_a), weight @ expected, rtol=1e-10)


def test_fewer_residuals_than_variables():
    got = jax.jacrev(lambda b: linear_solution(A[:2], b, "trf"))(B[:2])
    assert_derivative(got, np.linalg.pinv(A[:2]), rtol=1e-10)


def test_only_a_product_is_determined():
    t = np.linspace(1.0, 2.0, 5)

    def product(y):
        x = ox.least_squares(lambda x: x[0] * x[1] * t - y, [1.0, 2.0], method="lm", **TIGHT).x
        return x[0] * x[1]

    assert_derivative(jax.grad(product)(3.0 * t), t / (t @ t))


@pytest.mark.parametrize("method", ["trf", "dogbox"])
def test_linear_with_bounds(method):
    @jax.jit
    def derivatives(b, lower, upper):
        def solve(b, lower, upper):
            x0 = jnp.clip(jnp.zeros(3), lower, upper)
            settings = {"bounds": (lower, upper), "method": method, "args": (A, b)}
            res = ox.least_squares(linear, x0, **settings)
            return res.x, res.active_mask

        return jax.jacrev(solve, argnums=(0, 1, 2), has_aux=True)(b, lower, upper)

    free_x = np.linalg.lstsq(A, B)[0]
    rest = A[:, 1:]
    held_b = np.vstack([np.zeros(6), np.linalg.pinv(rest)])
    held_bound = np.zeros((3, 3))
    held_bound[:, 0] = np.concatenate([[1.0], -np.linalg.pinv(rest) @ A[:, 0]])
    zero = np.zeros((3, 3))

    def check(lower, upper, mask, d_b, d_lower, d_upper):
        (got_b, got_lower, got_upper), got_mask = derivatives(B, lower, upper)
        assert_array_equal(got_mask, mask)
        for got, expected in ((got_b, d_b), (got_lower, d_lower), (got_upper, d_upper)):
            assert_allclose(got, expected, atol=1e-8)

    at = lambda value: np.array([value, -INF, -INF])
    # No bound in the way, finite or infinite: the bounds do not matter.
    check(LOW, HIGH, [0, 0, 0], np.linalg.pinv(A), zero, zero)
    check(free_x - 1, free_x + 2, [0, 0, 0], np.linalg.pinv(A), zero, zero)
    # Pushed to its lower, and to its upper bound.
    check(at(free_x[0] + 0.5), HIGH, [-1, 0, 0], held_b, held_bound, zero)
    check(LOW, -at(0.5 - free_x[0]), [1, 0, 0], held_b, zero, held_bound)
    # lb == ub: it moves with the two together.
    fixed = at(free_x[0] + 0.5), -at(-0.5 - free_x[0])
    (got_b, got_lower, got_upper), _ = derivatives(B, *fixed)
    assert_allclose(got_b, held_b, atol=1e-8)
    assert_allclose(got_lower + got_upper, held_bound, atol=1e-8)


@pytest.mark.parametrize("method", ["trf", "dogbox"])
def test_a_bound_touched_without_force(method):
    # The free minimum lies on the bound: there is no two-sided derivative, but nothing blows up.
    def solve(t):
        fun = lambda x: jnp.stack([x[0] - t, x[1] - 2.0 + x[0]])
        bounds = ([0.0, -INF], [INF, INF])
        return ox.least_squares(fun, [1.0, 1.0], bounds=bounds, method=method).x

    got = np.asarray(jax.jit(jax.jacrev(solve))(0.0))
    assert np.isfinite(got).all()
    assert -1e-6 <= got[0] <= 1 + 1e-6
    assert_allclose(got[0] + got[1], 0.0, atol=1e-6)  # x1 = 2 - x0 on either side


# ---------------------------------------------------------------------------------------
# Units: of the data, of the variables


AT_THE_POINT = ox.ImplicitAdjoint(unconverged="ignore")
# Three decades from the ends of the range, inverse derivatives lose digits to subnormals.
UNITS = {
    np.float32: ([1e-34, 1e-20, 1e-18, 1.0, 1e20, 1e34], [1e-25, 1.0, 1e25]),
    np.float64: ([1e-300, 1e-160, 1.0, 1e160, 1e300], [1e-250, 1.0, 1e250]),
}


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("method", ["lm", "dogbox", "cauchy", "minimize"])
def test_units(method, dtype):
    # At the solution itself: where a solve in such units ends is not the question here.
    loss, lower = "linear" if method != "cauchy" else "cauchy", LOW
    if method == "dogbox":
        lower = LOW_ACTIVE
    f_scale, at = 0.3, solution(Y, loss, 0.3, lower)

    def model(p, of_x):
        q = p / of_x
        return q[0] * jnp.exp(-q[1] * T.astype(dtype)) + q[2]

    def solve(y, of_f, of_x):
        x0 = jnp.asarray(at, dtype) * of_x
        if method == "minimize":
            return ox.minimize(
                lambda p: of_f * jnp.sum((model(p, of_x) - y / of_f) ** 2), x0,
                options={"maxfun": 1}, adjoint=AT_THE_POINT,
            )  # fmt: skip
        return ox.least_squares(
            lambda p: of_f * model(p, of_x) - y, x0, max_nfev=1, adjoint=AT_THE_POINT,
            method="lm" if method == "lm" else "dogbox", loss=loss, f_scale=f_scale * of_f,
            bounds=None if method != "dogbox" else (jnp.asarray(lower, dtype) * of_x, np.inf),
        )  # fmt: skip

    @jax.jit
    def derivatives(y, of_f, of_x):
        """Of x / of_x in y / of_f, both ways, and of what a least-squares solve has besides."""
        res, push = jax.linearize(lambda v: solve(v, of_f, of_x), y)
        unit = lambda v: push(v).x / of_x
        along = unit(of_f * jnp.ones_like(y))
        pulled = of_f * jax.linear_transpose(unit, y)(jnp.ones_like(res.x))[0]
        if method == "minimize":
            return along, pulled, None
        change = push(y)
        return along, pulled, (change.cost / of_f / of_f, change.fun / of_f)

    expected = differences(lambda y: solution(y, loss, f_scale, lower), Y)
    rtol = 5e-3 if dtype == np.float32 else 1e-6
    residual, slope = decay(at, Y), np.asarray(jax.jacfwd(decay)(at, Y))
    weight = 1 / (1 + (residual / f_scale) ** 2) if method == "cauchy" else 1
    for of_f, of_x in [(f, 1.0) for f in UNITS[dtype][0]] + [(1.0, x) for x in UNITS[dtype][1]]:
        y = (Y * of_f).astype(dtype)
        along, pulled, fields = derivatives(y, dtype(of_f), dtype(of_x))
        label = f"units {of_f}, {of_x}"
        assert_allclose(along, expected.sum(1), rtol=rtol, atol=rtol, err_msg=label)
        assert_allclose(pulled, expected.sum(0), rtol=rtol, atol=rtol, err_msg=label)
        if fields is not None:
            d_fun = slope @ expected @ Y - Y
            assert_allclose(fields[1], d_fun, rtol=rtol, atol=rtol, err_msg=label)
            if of_f == 1:
                d_cost = residual * weight @ d_fun
                assert_allclose(fields[0], d_cost, rtol=rtol, atol=rtol, err_msg=label)


@pytest.mark.parametrize("loss", ["linear", "cauchy"])
def test_cost_moves_where_its_square_vanishes(loss):
    # The cost itself is out of float32's range; d cost / d y = -f rho' is not.
    t, small = jnp.linspace(0.0, 1.0, 5, dtype=jnp.float32), jnp.float32(1e-25)
    y = small * jnp.array([1, 2, 2, 3, 5], jnp.float32)
    fun = lambda x, y: small * (x[0] + x[1] * t) - y
    settings = {"method": "lm", "loss": loss, "f_scale": small}
    solve = lambda y: ox.least_squares(fun, jnp.ones(2, jnp.float32), args=(y,), **settings)
    f = np.asarray(solve(y).fun / small)
    weight = 1 / (1 + f**2) if loss == "cauchy" else 1
    assert_allclose(jax.grad(lambda y: solve(y).cost)(y) / small, -f * weight, atol=1e-4)


# ---------------------------------------------------------------------------------------
# Close to bounds, and on them without force


SPREAD = np.linalg.qr(np.random.default_rng(8).standard_normal((8, 8)))[0]
STIFF = SPREAD * np.geomspace(1, 100, 8) @ SPREAD.T  # the Hessian of a quadratic
ROOT = np.linalg.cholesky(STIFF).T


@pytest.mark.parametrize("method", ["minimize", "trf", "dogbox"])
def test_close_to_bounds(method):
    def solve(b, lower, upper):
        if method == "minimize":
            bounds = jnp.stack([lower, upper], axis=1)
            fun = lambda x: 0.5 * x @ STIFF @ x - b @ x
            return ox.minimize(fun, np.zeros(8), bounds=bounds).x
        x0 = jnp.clip(jnp.zeros(8), lower, upper)
        whitened = jnp.linalg.solve(ROOT.T, b)
        return ox.least_squares(
            lambda x: ROOT @ x - whitened, x0, bounds=(lower, upper), method=method
        ).x

    @jax.jit
    def jacobians(b, lower, upper):
        value, push = jax.linearize(lambda b: solve(b, lower, upper), b)
        pull = jax.linear_transpose(push, b)
        forward = jax.vmap(push, out_axes=-1)(jnp.eye(8))
        return value, forward, jax.vmap(pull)(jnp.eye(8))[0]

    x = np.random.default_rng(1).standard_normal(8)
    for held in (np.zeros(8, bool), np.arange(8) % 3 == 0):
        expected = np.zeros((8, 8))
        expected[np.ix_(~held, ~held)] = np.linalg.inv(STIFF[np.ix_(~held, ~held)])
        for gap in (1e-2, 1e-4, 1e-5, 1e-6, 1e-7, 1e-9):
            # x is the minimum; the held ones push with a force of 1 against their upper bounds.
            lower, upper = x - gap, np.where(held, x, x + gap)
            got, *derivatives = jacobians(STIFF @ x + held, lower, upper)
            assert_allclose(got, x, atol=2e-4)  # some roots of ftol, 2.2e-9
            for derivative in derivatives:
                assert_allclose(derivative, expected, atol=1e-9, err_msg=f"gap {gap}")


@pytest.mark.parametrize("method", ["trf", "dogbox"])
def test_without_force_a_variable_is_free(method):
    # Non-negative least squares on data which an x with zeros in it fits to the last digit.
    def solve(b):
        return ox.least_squares(linear, np.ones(3), args=(A, b), bounds=(0, INF), method=method).x

    jacobians = both_ways(solve)
    for x in (np.array([1.0, 0.0, 2.0]), np.array([0.0, 0.0, 3.0]), np.array([0.5, 1.0, 0.0])):
        assert_derivative(jacobians(A @ x), np.linalg.pinv(A), rtol=1e-8)


# ---------------------------------------------------------------------------------------
# Singular: of minimum norm if it exists, else NaN, in both modes


def valley(x, a):
    return (x[0] + x[1] - a[0]) ** 2 + a[1] * x[2] ** 2


def quartic(x, a):
    return x[0] ** 4 - a[0] * x[0] + (x[1] - 2 * a[1]) ** 2


def test_a_singular_minimum():
    at = lambda fun, a: both_ways(lambda a: ox.minimize(fun, np.zeros(a.size + 1), args=(a,)).x)(a)
    for jacobian in at(valley, np.array([0.3, 1.0])):
        assert_allclose(jacobian, [[0.5, 0], [0.5, 0], [0, 0]], atol=1e-8)
    # x0 = (a / 4)^(1/3): vertical at 0, where a solve from 0 stays.
    for jacobian in at(quartic, np.array([0.0, 0.3])):
        assert np.isnan(jacobian).all()


def test_dependent_columns_that_would_part():
    # At a = 0 only the sum is determined. Any other a determines the difference, too: 1 / a.
    def solve(a, b):
        fun = lambda x: jnp.stack([x[0] + x[1] - b, a * (x[0] - x[1]) + 1.0])
        return ox.least_squares(fun, np.zeros(2), method="lm").x

    for jacobian in both_ways(lambda a: solve(a[0], 1.0))(np.zeros(1)):
        assert np.isnan(jacobian).all()
    for jacobian in both_ways(lambda b: solve(0.0, b[0]))(np.ones(1)):
        assert_allclose(jacobian, [[0.5], [0.5]], atol=1e-8)


def test_a_singular_system_in_mixed_units():
    # A cut relative to the largest eigenvalue would take 1e-9 for nothing.
    def solve(a):
        fun = lambda x: jnp.stack([1e9 * x[0] - a[0], 1e-9 * x[1] - a[1], x[2] + x[3] - a[2]])
        return ox.least_squares(fun, np.zeros(4)).x

    expected = [[1e-9, 0, 0], [0, 1e9, 0], [0, 0, 0.5], [0, 0, 0.5]]
    for jacobian in both_ways(solve)(np.array([1.0, 2.0, 3.0])):
        assert_allclose(jacobian, expected, rtol=1e-9, atol=1e-18)


# ---------------------------------------------------------------------------------------
# Many variables


@pytest.mark.parametrize("n, condition", [(199, 1e3), (201, 1e6)])
def test_many_variables_of_least_squares(n, condition):
    # By column scaling, and by rows besides; every seventh variable held.
    rng = np.random.default_rng(n)
    a = rng.standard_normal((n + 20, n)) * np.geomspace(1, condition, n)
    x, weight = rng.standard_normal(n), rng.standard_normal(n)
    held = np.arange(n) % 7 == 0
    upper = np.where(held, x, INF)
    force = np.where(held, np.sum(a**2, axis=0), 0)
    b = a @ x + a @ np.linalg.solve(a.T @ a, force)  # a^T (a x - b) = -force
    start = np.where(held, x, x + 1e-3 / np.linalg.norm(a, axis=0))

    def solve(b):
        return ox.least_squares(linear, start, args=(a, b), bounds=(-INF, upper)).x

    size = np.geomspace(1, condition, n)
    got = jax.jit(jax.grad(lambda b: (weight * size) @ solve(b)))(b)
    free = ~held
    expected = np.linalg.pinv(a[:, free] / size[free]).T @ weight[free]
    assert_allclose(got, expected, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("n", [13, 500, 501])
def test_many_variables_of_a_minimiser(n, monkeypatch):
    # n = 13: by products, whatever DENSE is.
    if n == 13:
        monkeypatch.setattr("optx_lite.driver.minimum_derivative.DENSE", 1)
    rng = np.random.default_rng(n)
    held = np.arange(n) % 7 == 0
    x, weight = rng.standard_normal(n), rng.standard_normal(n)

    @jax.jit
    def derivatives(hessian, b, upper):
        def solve(b):
            bounds = jnp.stack([jnp.full(n, -INF), upper], axis=1)
            fun = lambda y: 0.5 * y @ hessian @ y - b @ y
            options, adjoint = {"maxfun": 1}, AT_THE_POINT  # a quadratic: x is known
            return ox.minimize(fun, x, bounds=bounds, options=options, adjoint=adjoint).x

        return jax.jvp(solve, (b,), (weight,))[1], jax.vjp(solve, b)[1](weight)[0]

    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    rotated, scaled = [(True, 1e3), (True, 1e6)], [(False, 1e3), (False, 1e6), (False, 1e12)]
    for rotate, condition in rotated + scaled:
        if rotate:
            hessian, size = q * np.geomspace(1, condition, n) @ q.T, np.ones(n)
        else:
            size = np.geomspace(1, condition**0.5, n)
            hessian = size * (q * rng.uniform(1, 4, n) @ q.T) * size[:, None]
        b = hessian @ x + np.where(held, np.diag(hessian), 0)
        expected = np.zeros(n)
        free = ~held
        expected[free] = np.linalg.solve(hessian[np.ix_(free, free)], weight[free])
        for got in derivatives(hessian, b, np.where(held, x, INF)):
            error = size * (got - expected)
            assert_allclose(error, 0, atol=1e-8 * np.abs(size * expected).max())


# ---------------------------------------------------------------------------------------
# Functions which can be differentiated in one mode only


def root_by_newton(a):
    return jax.lax.while_loop(
        lambda s: jnp.abs(s * s - a) > 1e-14 * a, lambda s: 0.5 * (s + a / s), jnp.ones_like(a)
    )


def test_residuals_with_a_while_loop():
    # Forward over forward; in reverse, the loop of the user has none.
    def solve(y, root, method):
        fun = lambda x: jnp.stack([root(x[0] * y[0]) - y[0], x[1] * x[0] - y[1], x[1] - y[2]])
        bounds = (0, INF) if method == "trf" else None
        res = ox.least_squares(fun, np.ones(2), method=method, bounds=bounds, **TIGHT)
        return res.x, res.cost

    def derivative(root, method, mode=jax.jacfwd):
        return mode(lambda y: solve(y, root, method))

    @jax.jit
    def derivatives(y):
        boxed, free = (derivative(root_by_newton, method)(y) for method in ("trf", "lm"))
        return boxed, free, derivative(jnp.sqrt, "lm")(y)

    y = np.array([1.5, 2.0, 1.1])
    *looped, expected = derivatives(y)
    for jacobians in looped:
        for got, right in zip(jacobians, expected, strict=True):
            assert_derivative(got, right, rtol=1e-8)
    for method in ("lm", "trf"):
        with pytest.raises(ValueError, match="while_loop"):
            derivative(root_by_newton, method, jax.jacrev)(y)


def test_functions_with_reverse_mode_only():
    # equinox's checkpointed loop: forward over reverse.
    def root(a):
        return eqxi.while_loop(
            lambda s: jnp.abs(s * s - a) > 1e-14 * a, lambda s: 0.5 * (s + a / s),
            jnp.ones_like(a), kind="checkpointed", max_steps=50,
        )  # fmt: skip

    def residuals(x, y, root):
        return jnp.stack([root(x[0]) - y[0], x[1] * x[0] - y[1], x[1] - y[2]])

    def cost(x, y, root):
        return jnp.sum(residuals(x, y, root) ** 2)

    def by_squares(y, root):
        return ox.least_squares(lambda x: residuals(x, y, root), np.ones(2), jac="jacrev").x

    def by_minimum(y):
        options = {"ftol": 1e-15, "gtol": 1e-10}
        return ox.minimize(lambda x: cost(x, y, root), np.ones(2), options=options).x

    @jax.jit
    def derivatives(y, along):
        solves = (lambda y: by_squares(y, root), by_minimum, lambda y: by_squares(y, jnp.sqrt))
        return [jax.jvp(solve, (y,), (along,))[1] for solve in solves]

    *got, right = derivatives(np.array([1.5, 2.0, 1.1]), np.array([1.0, -0.5, 0.3]))
    assert_allclose(got[0], right, rtol=1e-7)
    assert_allclose(got[1], right, rtol=1e-5)


# ---------------------------------------------------------------------------------------
# Losses of the user's own


@pytest.mark.parametrize("kind", ["stacked", "scalar"])
def test_callable_losses(kind):
    # cauchy with its scale inside, so that the loss has a parameter of its own.
    def solve(theta):
        c = theta[-1] ** 2
        scalar = lambda z: c * jnp.log1p(z / c)
        stacked = lambda z: jnp.stack(
            [c * jnp.log1p(z / c), 1 / (1 + z / c), -1 / (c * (1 + z / c) ** 2)]
        )
        loss = scalar if kind == "scalar" else stacked
        return ox.least_squares(decay, P0, loss=loss, args=(theta[:-1],), **TIGHT).x

    theta = np.append(Y, 0.3)
    expected = differences(lambda t: solution(t[:-1], "cauchy", t[-1]), theta)
    assert_derivative(both_ways(solve)(theta), expected)


# ---------------------------------------------------------------------------------------
# Ways in, trees, batches, dtypes


class Decay(eqx.Module):
    y: jax.Array

    def __call__(self, p):
        return decay(p, self.y)

    def residuals(self, p):
        return decay(p, self.y)


WAYS = {
    "kwargs": lambda y: ox.least_squares(decay, P0, kwargs={"y": y}, **TIGHT),
    "closure": lambda y: ox.least_squares(lambda p: decay(p, y), P0, **TIGHT),
    "module": lambda y: ox.least_squares(Decay(y), P0, **TIGHT),
    "bound method": lambda y: ox.least_squares(Decay(y).residuals, P0, **TIGHT),
    "beside integers": lambda y: ox.least_squares(
        lambda p, i, y: decay(p, y)[i], P0, args=(np.arange(M), y), **TIGHT
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in(way):
    got = jax.jit(jax.jacrev(lambda y: WAYS[way](y).x))(Y)
    assert_derivative(got, differences(solution, Y))


def test_trees():
    def fun(p, data):
        model = p["a"] * jnp.exp(-p["rest"][0] * T) + p["rest"][1]
        return {"first": model[:5] - data["y"][0], "then": model[5:] - data["y"][1]}

    def solve(data):
        x0 = {"a": 1.5, "rest": np.array([1.0, 0.9])}
        return ox.least_squares(fun, x0, args=(data,), **TIGHT).x

    got = jax.jit(jax.jacrev(solve))({"y": [jnp.asarray(Y[:5]), jnp.asarray(Y[5:])]})
    expected = differences(solution, Y)
    for rows, tree in ((expected[0], got["a"]), (expected[1:], got["rest"])):
        assert_derivative(np.concatenate(tree["y"], axis=-1), rows)


def test_vmapped():
    ys = np.stack([Y, Y + 0.2, 0.7 * Y])
    solve = lambda y: ox.least_squares(decay, P0, args=(y,), **TIGHT).x
    got = jax.jit(jax.vmap(jax.jacrev(solve)))(ys)
    for jacobian, y in zip(got, ys, strict=True):
        assert_derivative(jacobian, differences(solution, y))


def test_float32():
    def fun(p, y):
        return p[0] * jnp.exp(-p[1] * T.astype(np.float32)) + p[2] - y

    y = jnp.asarray(Y, jnp.float32)
    got = jax.jacrev(lambda y: ox.least_squares(fun, P0.astype(np.float32), args=(y,)).x)(y)
    assert got.dtype == np.float32
    assert_derivative(got, differences(solution, Y), rtol=5e-3)


@pytest.mark.parametrize("jac", ["2-point", "callable"])
def test_the_scheme_does_not_matter(jac):
    # The derivative is that of the solution, whichever Jacobian has led there; a Jacobian
    # through which nothing flows must not stop it.
    def jacobian(p, y):
        return jax.lax.stop_gradient(jax.jacfwd(decay)(p, y))

    scheme = jacobian if jac == "callable" else jac
    solve = lambda y: ox.least_squares(decay, P0, scheme, args=(y,)).x
    assert_derivative(jax.jacrev(solve)(jnp.asarray(Y)), differences(solution, Y), rtol=1e-4)


def test_the_start_has_none():
    got = jax.jacrev(lambda x0: ox.least_squares(decay, x0, args=(Y,)).x)(P0)
    assert_array_equal(got, np.zeros((3, 3)))


# ---------------------------------------------------------------------------------------
# The other fields


def fields_at(p, y, lower):
    f = np.asarray(decay(p, y))
    jacobian = np.asarray(jax.jacfwd(decay)(p, y))
    return np.concatenate([[0.5 * f @ f], f, jacobian.T @ f, jacobian.ravel()])


def test_cost_fun_grad_and_jac():
    def fields(theta):
        res = ox.least_squares(
            decay, P0, bounds=(jnp.asarray(LOW_ACTIVE).at[2].set(theta[-1]), HIGH),
            args=(theta[:-1],), **TIGHT,
        )  # fmt: skip
        return jnp.concatenate([res.cost[None], res.fun, res.grad, res.jac.ravel()])

    def expected(theta):
        lower = LOW_ACTIVE.copy()
        lower[2] = theta[-1]
        return fields_at(solution(theta[:-1], lower=lower), theta[:-1], lower)

    theta = np.append(Y, 0.75)
    got, expected = jax.jit(jax.jacfwd(fields))(theta), differences(expected, theta)
    assert_derivative(got, expected)
    multiplier = np.asarray(got)[1 + M + 2]
    assert np.abs(multiplier).max() > 1e-2, "the gradient at the active bound moves"


def test_the_envelope():
    # At a free minimum d cost / d y = -f, whatever x does.
    solve = lambda y: ox.least_squares(decay, P0, args=(y,), **TIGHT)
    res = solve(Y)
    assert_derivative(jax.grad(lambda y: solve(y).cost)(Y), -np.asarray(res.fun))


def test_the_whole_result_has_a_tangent():
    solve = lambda y: ox.least_squares(decay, P0, args=(y,), **TIGHT)
    res, tangent = jax.jvp(solve, (jnp.asarray(Y),), (jnp.ones(M),))
    assert_derivative(tangent.x, differences(solution, Y).sum(axis=1))
    assert tangent.nfev.dtype == tangent.status.dtype == jax.dtypes.float0
    assert res.jac.shape == tangent.jac.shape


# ---------------------------------------------------------------------------------------
# Second order


@pytest.mark.parametrize("bounded", [False, True], ids=["free", "boxed"])
def test_second_order(bounded):
    # Of a stretch of the data, a shift of it, and the bound.
    def data(theta, xp):
        return theta[0] * xp.asarray(Y) + theta[1] * xp.asarray(T)

    def scalar(x):
        return x[0] * x[1] + x[2] ** 2

    def ours(theta):
        bounds = (jnp.asarray(LOW_ACTIVE).at[2].set(theta[2]), HIGH) if bounded else None
        settings = {"bounds": bounds, "args": (data(theta, jnp),), **TIGHT}
        return scalar(ox.least_squares(decay, P0, **settings).x)

    def gradient(theta):
        return differences(lambda t: scalar(theirs(t)), theta, h=1e-4)

    def theirs(theta):
        lower = np.array([-INF, -INF, theta[2]]) if bounded else LOW
        return solution(data(theta, np), lower=lower)

    theta = np.array([1.0, 0.05, 0.75])
    expected = differences(gradient, theta, h=1e-3)
    hessian = jax.hessian if bounded else lambda f: jax.jacrev(jax.jacrev(f))
    assert_derivative(jax.jit(hessian(ours))(theta), expected, rtol=1e-4)


# ---------------------------------------------------------------------------------------
# Not converged


def test_not_converged_is_nan():
    # Also in reverse, where a NaN that is not multiplied by anything is lost.
    def solve(theta):
        return ox.least_squares(decay, P0, args=(theta[:M],), max_nfev=theta[M].astype(int)).x

    jacobians = both_ways(solve)
    for jacobian in jacobians(np.append(Y, 200.0)):
        assert np.isfinite(jacobian).all()
    for jacobian in jacobians(np.append(Y, 2.0)):
        assert np.isnan(jacobian[:, :M]).all()


def test_not_converged_is_nan_in_every_field():
    fields = lambda r: jnp.concatenate([r.x, r.cost[None], r.fun, r.grad, r.jac.ravel()])
    solve = lambda y: fields(ox.least_squares(decay, P0, args=(y,), max_nfev=2))
    for jacobian in both_ways(solve)(Y):
        assert np.isnan(jacobian).all()


def test_not_converged_and_asked_for_all_the_same():
    # The formula at the point that was reached: -H^-1 d(gradient).
    def solve(y):
        adjoint = ox.ImplicitAdjoint(unconverged="ignore")
        return ox.least_squares(decay, P0, args=(y,), max_nfev=3, adjoint=adjoint)

    res = solve(Y)
    assert res.status == 0
    _, hessian = newton_system("linear")(res.x, Y, 1.0)
    jacobian = np.asarray(jax.jacfwd(decay)(res.x, Y))
    expected = np.linalg.solve(hessian, jacobian.T)
    assert_derivative(both_ways(lambda y: solve(y).x)(Y), expected)


def test_a_start_that_is_not_finite_is_nan():
    solve = lambda c: ox.least_squares(lambda x: x - c, [1.0]).x
    for jacobian in both_ways(solve)(np.array([np.nan])):
        assert np.isnan(jacobian).all()


# ---------------------------------------------------------------------------------------
# Through the iterations

NEAR = solution(Y) * 1.05


@pytest.mark.parametrize(
    "method, bounds",
    [("lm", None), ("trf", (LOW_ACTIVE, HIGH_ACTIVE)), ("dogbox", (LOW_ACTIVE, HIGH_ACTIVE))],
)
def test_unrolled_for_a_fixed_number_of_steps(method, bounds):
    # Stopped on purpose: x is a function of x0 as well, and the program itself is differenced.
    start = NEAR if bounds is None else np.array([1.6, 1.3, 0.8])

    def solve(theta):
        adjoint = ox.UnrolledAdjoint(steps=3)
        settings = {"bounds": bounds, "args": (theta[3:],), "adjoint": adjoint}
        res = ox.least_squares(decay, theta[:3], method=method, **settings)
        return jnp.append(res.x, res.cost)

    @jax.jit
    def derivatives(theta):
        value, push = jax.linearize(solve, theta)
        return value, push(along), jax.linear_transpose(push, theta)(back)[0]

    theta = np.concatenate([start, Y])
    # One direction each way: less to compile.
    rng = np.random.default_rng(2)
    along, back = rng.standard_normal(theta.size), rng.standard_normal(4)
    expected = differences(lambda t: np.asarray(derivatives(t)[0]), theta, h=1e-6)
    assert np.abs(expected[:, :3]).max() > 1e-4, "the start is felt"
    _, forward, backward = derivatives(theta)
    assert_derivative(forward, expected @ along, rtol=1e-5)
    assert_derivative(backward, back @ expected, rtol=1e-5)


@pytest.mark.parametrize(
    "method, lower, upper", [("lm", LOW, HIGH), ("trf", LOW_ACTIVE, HIGH_ACTIVE)]
)
def test_unrolled_to_convergence_is_the_implicit_one(method, lower, upper):
    def solve(y):
        settings = {"bounds": (lower, upper), "args": (y,), "max_nfev": 60}
        return ox.least_squares(
            decay, P0, method=method, adjoint=ox.UnrolledAdjoint(), **settings, **TIGHT
        ).x

    expected = differences(lambda y: solution(y, lower=lower, upper=upper), Y)
    back = np.array([1.0, -0.5, 0.3])  # one direction: less to compile
    assert_derivative(jax.jit(jax.grad(lambda y: back @ solve(y)))(Y), back @ expected, rtol=1e-4)


def test_a_start_is_learned():
    # Meta-learning: descent in x0 of what one step from there attains.
    adjoint = ox.UnrolledAdjoint(steps=2)
    loss = jax.jit(
        jax.value_and_grad(lambda x0: ox.least_squares(decay, x0, args=(Y,), adjoint=adjoint).cost)
    )
    x0 = np.array([0.5, 0.4, 0.0])
    before, grad = loss(x0)
    after, _ = loss(x0 - 1e-3 * np.asarray(grad) / np.linalg.norm(grad))
    assert after < before


# ---------------------------------------------------------------------------------------
# Lanes that fail


@pytest.mark.parametrize("solver", ["least_squares", "minimize"])
def test_a_failed_lane_does_not_touch_what_it_shares_with_others(solver):
    # min (x - a)^2 + (log(c) x)^2: x = a / (1 + log(c)^2), and nothing where c < 0.
    c = jnp.array([2.0, -1.0, 3.0])

    def solution(a, c):
        if solver == "minimize":
            fun = lambda x: (x[0] - a) ** 2 + (jnp.log(c) * x[0]) ** 2
            res = ox.minimize(fun, jnp.ones(1), options={"ftol": 1e-15, "gtol": 1e-10})
        else:
            fun = lambda x: jnp.stack([x[0] - a, jnp.log(c) * x[0]])
            res = ox.least_squares(fun, jnp.ones(1))
        return res.x[0], res.success

    @jax.jit
    def derivatives(a):
        def lanes(a):
            x, success = jax.vmap(lambda c: solution(a, c))(c)
            return jnp.sum(jnp.where(success, x, 0)), x

        _, push = jax.linearize(lanes, a)
        pull = jax.linear_transpose(lambda da: push(da)[0], a)
        pull_lanes = jax.vmap(jax.linear_transpose(lambda da: push(da)[1], a))
        return push(1.0), (pull(1.0)[0], pull_lanes(jnp.eye(3))[0])

    expected = sum(1 / (1 + np.log(each) ** 2) for each in (2.0, 3.0))
    for of_sum, of_lanes in derivatives(1.5):
        assert_allclose(of_sum, expected, rtol=1e-9)
        assert_array_equal(np.isnan(of_lanes), [False, True, False])
    second = jax.jit(jax.hessian(lambda a, c: solution(a, c)[0]))
    assert np.isnan(second(1.5, -1.0))
    # Linear in a: the right-hand side of the second derivative does not move at all.
    assert_allclose(second(1.5, 2.0), 0, atol=1e-12)


FAR_APART = {np.float32: (25, 2e-2), np.float64: (225, 1e-5)}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FAR_APART)
def test_units_that_are_far_apart(dtype):
    """Each parameter has its own, and the residuals too: the derivative is right, or NaN."""
    decades, atol = FAR_APART[dtype]
    rng = np.random.default_rng(0)
    of_x = (10.0 ** rng.uniform(-decades, decades, (60, 3))).astype(dtype)
    of_f = (10.0 ** rng.uniform(-8, 8, 60)).astype(dtype)
    t, y = T.astype(dtype), jnp.asarray(Y, dtype)

    def solve(y, of_x, of_f):
        def fun(x):
            p = x / of_x
            return of_f * (p[0] * jnp.exp(-p[1] * t) + p[2] - y)

        return ox.least_squares(fun, jnp.array([1, 1, 0.1], dtype) * of_x, method="lm")

    def derivatives(of_x, of_f):
        res, push = jax.linearize(lambda y: solve(y, of_x, of_f), y)
        unit = lambda change: push(change).x / of_x
        forward = jax.vmap(unit, out_axes=-1)(jnp.eye(M, dtype=dtype))
        pull = jax.vmap(jax.linear_transpose(unit, y))
        return res.success, forward, pull(jnp.eye(3, dtype=dtype))[0]

    success, *jacobians = jax.jit(jax.vmap(derivatives))(of_x, of_f)
    assert success.all()
    expected = differences(solution, Y)
    known = [np.isfinite(np.asarray(each)).all(axis=(1, 2)) for each in jacobians]
    assert_array_equal(*known)
    assert 10 <= np.sum(known[0]) < 60
    for each in jacobians:
        found = np.asarray(each, float)[known[0]]
        assert_allclose(found, np.broadcast_to(expected, found.shape), atol=atol)


@pytest.mark.parametrize("solve", ["least squares", "minimum"])
def test_reverse_over_reverse_beside_failed_lanes(solve):
    """Lanes of NaN share the scale s of x / s with a good one: x of that, x''(s) = 0."""
    data = jnp.array([[1.0, 2.0, 4.0], [jnp.nan] * 3, [1e308] * 3])

    def fit(scale, y):
        residuals = lambda x: jnp.sinh(x / scale) - y
        if solve == "minimum":
            return ox.minimize(lambda x: jnp.sum(residuals(x) ** 2), jnp.ones(1), tol=1e-14)
        return ox.least_squares(residuals, jnp.ones(1))

    def good(scale):
        x = jax.vmap(lambda y: fit(scale, y).x[0])(data)
        return jnp.where(jnp.arange(3) == 0, x, 0).sum() ** 2

    square, second = jax.jit(lambda s: (good(s), jax.grad(jax.grad(good))(s)))(1.2)
    assert_allclose(second, 2 * square / 1.2**2, rtol=1e-6)
