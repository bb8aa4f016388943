"""`minimize` and `fmin_l_bfgs_b`: SciPy as the oracle, and what SciPy cannot do."""

import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox

INF = np.inf
TIGHT = {"ftol": 1e-15, "gtol": 1e-10}


def rosenbrock(x, a=1.0, b=100.0):
    return jnp.sum(b * (x[1:] - x[:-1] ** 2) ** 2 + (a - x[:-1]) ** 2)


def start(n):
    return np.tile([-1.2, 1.0], n)[:n] * (1 + 0.1 * np.sin(np.arange(n)))


def scipys(fun, x0, **settings):
    both = jax.jit(jax.value_and_grad(fun))
    numbers = lambda x: (float(both(x)[0]), np.asarray(both(x)[1]))
    return so.minimize(numbers, x0, jac=True, method="L-BFGS-B", **settings)


BOXES = {
    "free": None,
    "above": [(None, 0.7)] * 6,
    "below": [(-1.5, None)] * 6,
    "boxed": [(-1.5, 0.5)] * 6,
    "mixed": [(-1.3, None), (None, 0.5), (0.4, 0.9), (None, None), (-2, 2), (0.1, 0.1)],
}


@pytest.mark.parametrize("box", BOXES)
def test_solution_is_scipys(box):
    bounds = BOXES[box]
    res = ox.minimize(rosenbrock, start(6), bounds=bounds, options=TIGHT)
    expected = scipys(rosenbrock, start(6), bounds=bounds, options=TIGHT)
    assert res.success
    assert res.status == 0
    assert_allclose(res.x, expected.x, atol=1e-6)
    assert_allclose(res.fun, expected.fun, rtol=1e-9, atol=1e-14)
    assert_allclose(res.jac, expected.jac, atol=1e-4)
    assert res.nfev == res.njev
    assert set(expected) <= {*res, "success", "message"}


@pytest.mark.parametrize("n", [2, 5, 10])
def test_the_path_is_scipys(n):
    # Without bounds the two differ by rounding alone, and it takes a while until that shows.
    seen = []
    both = jax.jit(jax.value_and_grad(rosenbrock))

    def fun(x):
        seen.append(x.copy())
        return float(both(x)[0]), np.asarray(both(x)[1])

    so.minimize(fun, start(n), jac=True, method="L-BFGS-B")
    problem, x = ox.minimization_problem(rosenbrock, start(n))
    solver = ox.LBFGSB()
    step = jax.jit(solver.step)
    state = solver.init(problem, x)
    for expected in seen[:20]:
        assert_allclose(state.line.trial, expected, atol=1e-7)
        state = step(problem, state)


def test_every_trial_is_feasible():
    lower, upper = np.full(6, -1.5), np.array([0.5, 0.7, INF, 0.7, 0.9, 0.8])
    problem, x = ox.minimization_problem(
        rosenbrock, np.zeros(6), bounds=list(zip(lower, upper, strict=True))
    )
    solver = ox.LBFGSB()
    step = jax.jit(solver.step)
    state = solver.init(problem, x)
    while solver.running(problem, state):
        assert np.all((state.line.trial >= lower) & (state.line.trial <= upper))
        state = step(problem, state)
    expected = scipys(rosenbrock, np.zeros(6), bounds=so.Bounds(lower, upper), options=TIGHT).x
    assert_array_equal(state.x == lower, np.abs(expected - lower) < 1e-9)
    assert_array_equal(state.x == upper, np.abs(expected - upper) < 1e-9)


def test_x0_outside_is_moved_into_the_box():
    res = ox.minimize(lambda x: jnp.sum((x - 1) ** 2), [9.0, -9.0], bounds=[(0, 3), (2, 3)])
    assert_allclose(res.x, [1, 2], atol=1e-6)


@pytest.mark.parametrize("exponent", [-60, -27, 27, 60])
def test_units_of_the_objective(exponent):
    # A power of two rounds nothing: the same path, bit for bit, until the same end by ftol.
    options = {"gtol": 0.0}
    one = ox.minimize(rosenbrock, start(4), bounds=[(-2, 0.5)] * 4, options=options)
    scaled = lambda x, c: rosenbrock(x) * c
    c = 2.0**exponent
    two = ox.minimize(scaled, start(4), args=(c,), bounds=[(-2, 0.5)] * 4, options=options)
    assert_array_equal(one.x, two.x)
    assert one.nfev == two.nfev


@pytest.mark.parametrize("factor", [1e-8, 1e8])
def test_no_false_claim_in_other_units(factor):
    res = ox.minimize(lambda x, c: c * rosenbrock(x), start(5), args=(factor,))
    assert res.success
    assert_allclose(res.x, 1.0, atol=1e-4)


def wood(x):
    a = 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
    b = 90 * (x[3] - x[2] ** 2) ** 2 + (1 - x[2]) ** 2
    return a + b + 10 * (x[1] + x[3] - 2) ** 2 + 0.1 * (x[1] - x[3]) ** 2


def test_a_saddle_is_passed():
    # At f = 7.877 an iteration neither gains nor promises more than 1e-9 of f.
    res = ox.minimize(wood, [-3.0, -1, -3, -1], bounds=[(-10, 10)] * 4)
    assert res.success
    assert_allclose(res.x, 1, atol=1e-5)


# ---------------------------------------------------------------------------------------
# Arguments


@pytest.mark.parametrize("jac", [None, "2-point", "3-point", "cs", "given", True])
def test_ways_to_a_gradient(jac):
    fun, way = rosenbrock, jac
    if jac == "given":
        way = jax.grad(rosenbrock)
    if jac is True:
        fun = jax.value_and_grad(rosenbrock)
    res = ox.minimize(fun, start(3), args=(0.9,), jac=way)
    expected = scipys(lambda x: rosenbrock(x, 0.9), start(3), options=TIGHT)
    assert res.success
    assert_allclose(res.x, expected.x, atol=1e-3)
    assert_allclose(rosenbrock(res.x, 0.9), res.fun)


def test_kinds_of_x0():
    square = lambda x: (x - 2.0) ** 2
    for x0 in (1, 1.0, np.array([1.0])):
        res = ox.minimize(square, x0)
        assert res.x.shape == (1,)
        assert_allclose(res.x, 2.0, atol=1e-6)
    tree = {"a": jnp.ones(2), "b": jnp.array(3.0)}
    fun = lambda p: jnp.sum((p["a"] - 2) ** 2) + (p["b"] - 1) ** 2
    res = ox.minimize(fun, tree, bounds=({"a": -INF, "b": 1.5}, {"a": 1.7, "b": INF}))
    assert_allclose(res.x["a"], 1.7)
    assert_allclose(res.x["b"], 1.5)
    assert_allclose(res.jac["b"], 1.0)


def test_bounds_of_scipys_kind():
    fun = lambda x: jnp.sum((x - 2) ** 2)
    for bounds in (
        so.Bounds([0, 0], [1, 3]),
        [(0, 1), (0, 3)],
        ((0, 1), (0, 3)),
        np.array([[0, 1.0], [0, 3]]),
        [(None, 1), (-INF, None)],
    ):
        assert_allclose(ox.minimize(fun, [0.5, 0.5], bounds=bounds).x, [1, 2], atol=1e-6)


def test_fixed_variables():
    res = ox.minimize(rosenbrock, start(3), bounds=[(0.5, 0.5), (None, None), (None, None)])
    expected = so.minimize(lambda x: float(rosenbrock(jnp.array([0.5, *x]))), [1.0, 1.0], tol=1e-12)
    assert_allclose(res.x, [0.5, *expected.x], atol=1e-4)
    res = ox.minimize(rosenbrock, start(2), bounds=[(0.5, 0.5), (1, 1)])
    assert res.success
    assert res.nfev == 1
    assert res.message == "All independent variables were fixed by bounds."


def test_limits():
    full = ox.minimize(rosenbrock, start(4))
    res = ox.minimize(rosenbrock, start(4), options={"maxiter": 7})
    assert (res.nit, res.status, res.success) == (7, 1, False)
    assert res.message == "STOP: TOTAL NO. OF ITERATIONS REACHED LIMIT"
    res = ox.minimize(rosenbrock, start(4), options={"maxfun": 9.0})
    assert (res.nfev, res.status) == (9, 1)
    assert res.message == "STOP: TOTAL NO. OF F,G EVALUATIONS EXCEEDS LIMIT"
    assert full.fun < res.fun < rosenbrock(start(4))
    endless = ox.minimize(rosenbrock, start(4), options={"maxiter": INF, "maxfun": INF})
    assert endless.nfev == full.nfev


def test_the_function_stands_once_in_the_program():
    fun = lambda x: jnp.sum(jnp.arctan2(x, 2.0) * x)
    program = jax.jit(lambda x: ox.minimize(fun, x, bounds=[(-1, 1)] * 3).x).lower(np.ones(3))
    assert program.as_text().count("atan2") == 1


def test_callback_ends_it_as_maxiter_does():
    seen = []

    def callback(intermediate_result):
        seen.append(float(intermediate_result.fun))
        if len(seen) == 5:
            raise StopIteration

    res = ox.minimize(rosenbrock, start(4), callback=callback)
    same = ox.minimize(rosenbrock, start(4), options={"maxiter": 5})
    assert res.status == 99
    assert res.message == "`callback` raised `StopIteration`."
    assert res.success is False
    # To the last bit as XLA compiles for users; the tests' own flags cost some roundings.
    assert_allclose(res.x, same.x, rtol=1e-12)
    assert_allclose(res.jac, same.jac, rtol=1e-12)
    assert seen == sorted(seen, reverse=True)
    xs = []
    ox.minimize(rosenbrock, start(4), callback=lambda xk: xs.append(xk))
    assert_allclose(rosenbrock(xs[4]), seen[4])


def test_ftol_counts():
    # The fewer digits it asks for, the earlier it ends.
    counts = [
        ox.minimize(rosenbrock, start(10), options={"ftol": ftol}).nfev
        for ftol in (1.0, 1e-2, 1e-4, 1e-12)
    ]
    assert counts[0] < counts[1] < counts[2] < counts[3]


def test_disp(capsys):
    ox.minimize(rosenbrock, start(2), options={"disp": 2, "maxiter": 3})
    lines = capsys.readouterr().out.splitlines()
    titles = "Iteration Total nfev Fun Fun reduction Step norm Optimality"
    assert lines[0].split() == titles.split()
    assert len(lines) == 4 + 1 + 2
    assert lines[-2] == "STOP: TOTAL NO. OF ITERATIONS REACHED LIMIT"


def test_nan_in_a_trial_shortens_the_step():
    fun = lambda x: jnp.sum(x - 3 * jnp.log(x))  # nothing at x <= 0
    res = ox.minimize(fun, [0.05, 40.0], options=TIGHT)
    assert res.success
    assert_allclose(res.x, 3.0, rtol=1e-6)


def test_nan_is_never_converged():
    res = ox.minimize(lambda x: jnp.nan * jnp.sum(x**2), [1.0, 2.0])
    assert not res.success
    assert res.status == 2
    assert "not finite" in res.message


def test_a_wrong_gradient_is_told():
    res = ox.minimize(rosenbrock, start(3), jac=lambda x: -jax.grad(rosenbrock)(x))
    assert res.status == 2
    assert "check_derivative" in res.message
    along = -jax.grad(rosenbrock)(res.x)
    along = np.linalg.norm(along)  # the last direction is the gradient that was given
    assert_allclose(res.slopes, [-along, along], rtol=1e-3)
    assert f"{float(res.slopes[0]):.6g}, `fun` itself" in res.message


def test_what_is_refused():
    fun = lambda x: jnp.sum(x**2)
    for match, settings in (
        (
            "entries \\['maxits'\\] that are not known to method L-BFGS-B",
            {"options": {"maxits": 3}},
        ),
        ("method", {"method": "BFGS"}),
        ("constraints", {"constraints": [{"type": "eq"}]}),
        ("number of bounds is not compatible with the length of `x0`", {"bounds": [(0, 1)] * 3}),
        ("An upper bound is less than", {"bounds": [(0, 1), (2, 1)]}),
        ("`jac`", {"jac": "4-point"}),
        ("eps", {"options": {"eps": 1e-6}}),
        ("maxcor", {"options": {"maxcor": 0}}),
        ("maxls", {"options": {"maxls": 0}}),
        ("ftol", {"options": {"ftol": -1.0}}),
        ("what `jac` returns", {"jac": lambda x: jnp.ones(3)}),
    ):
        with pytest.raises(ValueError, match=match):
            ox.minimize(fun, [1.0, 1.0], **settings)
    with pytest.raises(ValueError, match="number of bounds is not compatible"):
        ox.minimize(fun, [1.0, 1.0], bounds=so.Bounds([0, 0, 0], [1, 1, 1]))
    with pytest.raises(TypeError, match="`options` must be a dict"):
        ox.minimize(fun, [1.0, 1.0], options=3)
    with pytest.raises(ValueError, match="'x0' must only have one dimension"):
        ox.minimize(fun, np.ones((2, 1)))
    with pytest.raises(ValueError, match="scalar value"):
        ox.minimize(lambda x: x, [1.0, 1.0])
    with pytest.raises(ValueError, match="value, gradient"):
        ox.minimize(fun, [1.0, 1.0], jac=True)
    with pytest.warns(RuntimeWarning, match="does not use `hess`"):
        ox.minimize(fun, [1.0, 1.0], hess=lambda x: x)


# ---------------------------------------------------------------------------------------
# fmin_l_bfgs_b


@pytest.mark.parametrize("way", ["automatic", "fprime", "pair", "approx"])
def test_fmin_l_bfgs_b(way):
    bounds = [(-2, 0.5), (None, 2)]
    func, settings = rosenbrock, {}
    if way == "fprime":
        settings = {"fprime": jax.grad(rosenbrock)}
    if way == "pair":
        func = jax.value_and_grad(rosenbrock)
    if way == "approx":
        settings = {"approx_grad": 1}
    x, f, told = ox.fmin_l_bfgs_b(func, start(2), bounds=bounds, **settings)
    both = lambda x: tuple(map(np.asarray, jax.value_and_grad(rosenbrock)(x)))
    expected, least, theirs = so.fmin_l_bfgs_b(both, start(2), bounds=bounds)
    assert_allclose(x, expected, atol=1e-4)
    assert_allclose(f, least, rtol=1e-6)
    assert_allclose(told["grad"], theirs["grad"], atol=1e-3)
    assert told["grad"][0] < 0, "the upper bound holds it"
    assert set(theirs) == set(told)
    assert told["warnflag"] == 0


# ---------------------------------------------------------------------------------------
# Transformations


def quadratic(x, a, b):
    return 0.5 * x @ a @ x - b @ x + 0.1 * jnp.sum(x**4)


A = np.array([[3.0, 1.0, 0.5], [1.0, 2.0, -0.3], [0.5, -0.3, 1.0]])
B = np.array([1.0, 2.0, -1.5])
LOWER, UPPER = np.array([-1.0, -1.0, -0.4]), np.array([1.0, 0.6, 1.0])


def minimum(b, lower=LOWER, upper=UPPER, x0=(0.0, 0.0, 0.0)):
    x0 = jnp.asarray(x0, jnp.result_type(b))
    bounds = types.SimpleNamespace(lb=lower, ub=upper)  # SciPy's own takes no tracers
    return ox.minimize(quadratic, x0, args=(A.astype(x0.dtype), b), bounds=bounds, options=TIGHT).x


def differences(f, x, h=1e-5):
    rows = [(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(len(x))]
    return np.stack([np.asarray(row) for row in rows], axis=-1)


def test_jit_and_vmap_are_the_loop():
    bs = B + 0.3 * np.random.default_rng(0).standard_normal((5, 3))
    one_by_one = np.stack([minimum(b) for b in bs])
    assert_allclose(jax.jit(minimum)(bs[0]), one_by_one[0], atol=1e-9)
    assert_allclose(jax.vmap(minimum)(bs), one_by_one, atol=1e-9)


def test_derivative_in_the_data_and_in_the_bounds():
    def solve(theta):
        return minimum(*theta.reshape(3, 3))

    @jax.jit
    def derivatives(theta):
        x, push = jax.linearize(solve, theta)
        pull = jax.vmap(jax.linear_transpose(push, theta))
        return x, jax.vmap(push, out_axes=-1)(jnp.eye(9)), pull(jnp.eye(3))[0]

    theta = np.concatenate([B, LOWER, UPPER])
    x, *both = derivatives(theta)
    assert np.any(x == UPPER) and np.any(x != UPPER)
    expected = differences(lambda theta: derivatives(theta)[0], theta)
    for jacobian in both:
        assert_allclose(jacobian, expected, atol=1e-6)


def test_second_derivative_and_closures():
    def outer(b):
        return jnp.sum(ox.minimize(lambda x: quadratic(x, A, b), np.zeros(3), options=TIGHT).x ** 2)

    derivatives = jax.jit(lambda b: (jax.grad(outer)(b), jax.hessian(outer)(b)))
    slope = differences(lambda b: derivatives(b)[0], B)
    assert_allclose(derivatives(B)[1], slope, atol=1e-5)


def test_derivative_of_the_value_and_the_gradient():
    solve = lambda b: ox.minimize(quadratic, np.zeros(3), args=(A, b), options=TIGHT)

    @jax.jit
    def derivatives(b):
        res, push = jax.linearize(solve, b)
        pull = jax.linear_transpose(lambda v: push(v).fun, b)
        return res.x, pull(1.0)[0], jax.vmap(lambda v: push(v).jac)(jnp.eye(3))

    x, slope, of_gradient = derivatives(B)
    assert_allclose(slope, -x, atol=1e-7)  # envelope
    assert_allclose(of_gradient, np.zeros((3, 3)), atol=1e-7)


def test_derivative_of_a_large_problem_by_products(monkeypatch):
    n = 300
    monkeypatch.setattr("optx_lite.driver.minimum_derivative.DENSE", n - 1)
    upper = np.where(np.arange(n) % 7 == 0, 0.5, INF)
    rng = np.random.default_rng(0)
    b, w = 1 + rng.standard_normal(n), rng.standard_normal(n)
    matrix = 2.5 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)

    def energy(x, b):
        return 1.25 * x @ x - x[1:] @ x[:-1] - b @ x

    def solve(b):
        bounds = types.SimpleNamespace(lb=-INF, ub=upper)
        return ox.minimize(energy, np.zeros(n), args=(b,), bounds=bounds, options=TIGHT).x

    x = solve(b)
    free = np.asarray(x < upper)
    assert 10 < n - free.sum() < 43
    inside = np.linalg.inv(matrix[np.ix_(free, free)])
    rhs = b - matrix[:, ~free] @ upper[~free]
    assert_allclose(x[free], inside @ rhs[free], atol=1e-7)
    expected = np.zeros(n)
    expected[free] = inside @ w[free]
    slope, forward = jax.jit(
        lambda b: (jax.grad(lambda b: w @ solve(b))(b), jax.jvp(solve, (b,), (w,))[1])
    )(b)
    assert_allclose(slope, expected, atol=1e-9)
    assert_allclose(forward, expected, atol=1e-9)  # the inverse is symmetric


def test_no_derivative_where_it_did_not_converge():
    options = {"maxiter": 2}
    solve = lambda b: ox.minimize(quadratic, np.zeros(3), args=(A, b), options=options).x
    assert np.all(np.isnan(jax.jacrev(solve)(B)))


def test_unrolled():
    def stopped(x0):
        return ox.minimize(
            quadratic, x0, args=(A, B), options={"maxiter": 3}, adjoint=ox.UnrolledAdjoint(steps=6)
        ).x

    @jax.jit
    def derivative(x0):
        x, pull = jax.vjp(stopped, x0)
        return x, pull(along)[0]

    x0, along = np.array([0.3, -0.2, 0.1]), np.array([1.0, -0.5, 0.3])
    expected = along @ differences(lambda x0: derivative(x0)[0], x0, 1e-6)
    assert_allclose(derivative(x0)[1], expected, atol=1e-5)


def test_float32():
    b = B.astype(np.float32)
    res = ox.minimize(quadratic, np.zeros(3, np.float32), args=(A.astype(np.float32), b))
    assert res.success
    assert res.x.dtype == res.fun.dtype == res.jac.dtype == np.float32
    assert_allclose(res.x, ox.minimize(quadratic, np.zeros(3), args=(A, B)).x, atol=2e-3)
    res = ox.minimize(rosenbrock, start(5).astype(np.float32))
    assert res.success
    assert_allclose(res.x, 1, atol=2e-2)


@pytest.mark.parametrize("possible, iterations", [(0.0, 9), (1.0, 45)])
def test_a_plateau_must_last_longer_where_something_may_hide(possible, iterations):
    # ftol asks for nine digits; the quadratic promises less than that, but not nothing.
    problem, x0 = ox.minimization_problem(lambda x: x @ x, np.ones(2))
    solver = ox.LBFGSB(ftol=1e-9, gtol=0.0)
    state = solver.step(problem, solver.init(problem, x0))
    judge = jax.jit(solver.judge)
    lasted = 0
    while state.status == 0:
        met = judge(problem, state, state.value, state.value * 1e-12, jnp.array(possible))
        state = eqx.tree_at(lambda s: (s.status, s.unchanged), state, met)
        lasted += 1
    assert lasted == iterations


# ---------------------------------------------------------------------------------------
# What is refused, and what is read as what


def test_a_pytree_of_one_array_takes_two_bounds():
    fun = lambda p: jnp.sum((p["a"] - 2) ** 2)
    x0 = {"a": jnp.array([0.5, 0.5])}
    for bounds in ((0.0, 1.5), ({"a": np.zeros(2)}, {"a": np.array([1.5, 1.5])})):
        assert_allclose(ox.minimize(fun, x0, bounds=bounds).x["a"], 1.5)
    lower, upper = {"a": np.array([0.0, 2.5])}, {"a": np.array([1.0, 3.0])}
    assert_allclose(ox.minimize(fun, x0, bounds=(lower, upper)).x["a"], [1.0, 2.5])


def test_a_jacobian_in_the_structure_of_jacfwd():
    fun = lambda p: jnp.concatenate([p["a"] - 1, 2 * p["a"] - 2])
    res = ox.least_squares(fun, {"a": jnp.zeros(2)}, jac=jax.jacfwd(fun))
    assert_allclose(res.x["a"], 1)


def test_an_objective_of_whole_numbers_is_refused():
    for fun in (lambda x: jnp.sum(x > 0), lambda x: jnp.any(x > 0)):
        with pytest.raises(TypeError, match="floating"):
            ox.minimize(fun, [1.0, 2.0])


def test_options_that_are_none_or_no_numbers():
    assert ox.minimize(rosenbrock, start(2), options={"maxiter": None, "ftol": None}).success
    with pytest.raises(TypeError, match="`maxcor`"):
        jax.jit(lambda m: ox.minimize(rosenbrock, start(2), options={"maxcor": m}).x)(3)
    with pytest.raises(ValueError, match="`maxiter` must be at least"):
        ox.minimize(rosenbrock, start(2), options={"maxiter": "3"})


def test_a_callback_reads_the_message_of_a_solve_that_goes_on():
    seen = []

    def callback(intermediate_result):
        seen.append((intermediate_result.message, intermediate_result.success))

    ox.minimize(rosenbrock, start(2), callback=callback)
    assert set(seen) == {("The algorithm is proceeding normally.", False)}


@pytest.mark.slow
def test_unrolled_in_a_box():
    def stopped(v):  # with a callback, which has no derivative
        bounds = [(-1.0, v[3]), (None, 0.6), (-1.0, None)]
        return ox.minimize(
            rosenbrock, v[:3], args=(v[4],), bounds=bounds, callback=lambda x: None,
            adjoint=ox.UnrolledAdjoint(steps=6),
        ).x  # fmt: skip

    # One direction each way: less to compile.
    along, back = np.array([0.3, -0.2, 0.5, 1.0, -0.7]), np.array([1.0, -0.5, 0.3])

    @jax.jit
    def derivatives(v):
        x, push = jax.linearize(stopped, v)
        return x, push(along), jax.linear_transpose(push, v)(back)[0]

    v = np.array([-0.7, 0.4, 0.3, 0.5, 1.1])
    expected = differences(lambda v: derivatives(v)[0], v, 1e-6)
    _, forward, backward = derivatives(v)
    assert_allclose(backward, back @ expected, atol=1e-6)
    assert_allclose(forward, expected @ along, atol=1e-6)


def test_a_loop_without_reverse_mode_inside():
    def cube(x):
        start = (0, jnp.ones_like(x))
        return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x), start)[1]

    res = ox.minimize(lambda x: (cube(x[0]) - 8) ** 2 + x[1] ** 2, [1.0, 1.0])
    assert res.success
    assert_allclose(res.x, [2.0, 0.0], atol=1e-5)
