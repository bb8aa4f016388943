"""`least_squares` beside SciPy's: the same answers, fields, statuses, texts and kinds of input.

The oracle is `scipy.optimize.least_squares` on the same formulas in NumPy. Numbers of evaluations
are not compared: the steps differ by design (corrections, a last phase of undamped steps).
"""

import inspect
import itertools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize._lsq.common import find_active_constraints

import optx_lite as ox
from benchmarks.problems import mgh

METHODS = ("trf", "dogbox", "lm")
LOSSES = ("linear", "soft_l1", "huber", "cauchy", "arctan")
INF = np.inf

# An exponential decay with noise and two outliers: its least residual is far from zero.
T = np.linspace(0.0, 3.0, 12)
Y = 2.0 * np.exp(-1.3 * T) + 0.5 + 0.15 * np.sin(7.0 * np.arange(12) + 0.4)
Y[[3, 8]] += [1.5, -1.0]
P0 = np.array([1.0, 1.0, 0.9])
BOX = ([-INF, -INF, 0.7], [1.6, INF, INF])  # both of them active at the solution
FREE = (-INF, INF)


def decay_in(xp):
    def decay(p, y):
        t, y = xp.asarray(T, dtype=p.dtype), xp.asarray(y, dtype=p.dtype)  # complex for 'cs'
        return p[0] * xp.exp(-p[1] * t) + p[2] - y

    return decay


def jacobian_in(xp):
    def jacobian(p, y):
        e = xp.exp(-p[1] * T)
        return xp.stack([e, -p[0] * T * e, xp.ones_like(T)], axis=1)

    return jacobian


def rosenbrock_in(xp):
    return lambda x: xp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def rosenbrock_jacobian_in(xp):
    one = xp.ones(())
    return lambda x: xp.stack([xp.stack([-20 * x[0], 10 * one]), xp.stack([-one, 0 * one])])


decay, rosenbrock = decay_in(jnp), rosenbrock_in(jnp)
TIGHT = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-13, "max_nfev": 2000}


def scipy_minimum(fun, x0, jac="3-point", **kwargs):
    """SciPy's best: its dogbox puts active variables on their bounds. Good for 1e-7 in x."""
    return so.least_squares(fun, x0, jac, method="dogbox", **TIGHT, **kwargs)


# ---------------------------------------------------------------------------------------
# The signature


def parameters(function):
    return inspect.signature(function).parameters


@pytest.mark.parametrize("name", parameters(so.least_squares))
def test_signature(name):
    ours, theirs = parameters(ox.least_squares), parameters(so.least_squares)
    shared = [n for n in ours if n in theirs]
    assert shared == list(theirs), "other names, or in another order"
    assert ours[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert ours[name].default == ("jacfwd" if name == "jac" else theirs[name].default)


# ---------------------------------------------------------------------------------------
# Answers and fields, for every method and loss

CASES = [
    *itertools.product(("trf", "dogbox"), LOSSES, (BOX,)),
    *itertools.product(("lm",), LOSSES, (FREE,)),
    ("trf", "linear", FREE),
    ("dogbox", "soft_l1", FREE),
]


def case_id(case):
    method, loss, bounds = case
    return f"{method}-{loss}-{'boxed' if bounds is BOX else 'free'}"


@pytest.fixture(params=CASES, ids=case_id)
def case(request):
    """A case, and our solver for it: with the number of evaluations as data it compiles once."""
    method, loss, bounds = request.param
    settings = {"bounds": bounds, "loss": loss, "f_scale": 0.3, "args": (Y,)}

    def solve(max_nfev=500):
        return ox.least_squares(decay, P0, method=method, max_nfev=max_nfev, **settings)

    return method, settings, solve


def test_solution(case):
    _, settings, solve = case
    ours, theirs = solve(), scipy_minimum(decay_in(np), P0, jacobian_in(np), **settings)
    assert ours.success
    assert_allclose(ours.x, theirs.x, atol=1e-6)
    assert_allclose(ours.cost, theirs.cost, rtol=1e-10)
    assert_allclose(ours.fun, theirs.fun, rtol=1e-5, atol=1e-6)
    assert_allclose(ours.jac, theirs.jac, rtol=1e-4, atol=1e-5)
    assert_allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert_array_equal(ours.active_mask, theirs.active_mask)
    assert 1 <= ours.nit <= ours.nfev
    assert ours.njev <= ours.nfev


def test_fields_after_one_evaluation(case):
    # Nothing has moved yet, so SciPy's formulas alone settle every field.
    method, settings, solve = case
    ours = solve(max_nfev=1)
    # SciPy's lm has no losses and counts differently; its trf has the same fields at x0.
    method = "trf" if method == "lm" else method
    theirs = so.least_squares(
        decay_in(np), P0, jacobian_in(np), max_nfev=1, method=method, **settings
    )
    for name in ("x", "cost", "fun", "jac", "grad", "optimality"):
        got, expected = getattr(ours, name), getattr(theirs, name)
        assert np.shape(got) == np.shape(expected), name
        assert_allclose(got, expected, rtol=1e-9, atol=1e-13, err_msg=name)
    assert_array_equal(ours.active_mask, theirs.active_mask)
    for name in ("nfev", "njev", "status", "message", "success"):
        assert getattr(ours, name) == getattr(theirs, name), name


# ---------------------------------------------------------------------------------------
# Statuses and texts


def scipy_messages():
    """SciPy's own text for each status that it can be brought to."""
    near = so.least_squares(decay_in(np), P0, args=(Y,)).x * 1.001
    tries = [
        {"max_nfev": 1},
        {"ftol": None, "xtol": None, "gtol": 1e-5},
        {"xtol": None, "gtol": None},
        {"ftol": None, "gtol": None},
        {"ftol": 0.9, "xtol": 0.9, "gtol": None},
    ]
    with np.errstate(all="ignore"):  # its own, on some machines
        results = [so.least_squares(decay_in(np), near, args=(Y,), **how) for how in tries]
    return {res.status: res.message for res in results}


@pytest.mark.parametrize("method", METHODS)
def test_messages_are_scipys(method):
    texts = scipy_messages()
    assert set(texts) == {0, 1, 2, 3, 4}
    seen = {}
    for only, status in (("gtol", 1), ("ftol", 2), ("xtol", 3)):
        tolerances = {"ftol": None, "xtol": None, "gtol": None, only: 1e-5}
        res = ox.least_squares(decay, P0, method=method, max_nfev=500, args=(Y,), **tolerances)
        assert res.status == status
        seen[status] = res.message
    res = ox.least_squares(decay, P0, method=method, max_nfev=2, args=(Y,))
    assert not res.success
    seen[res.status] = res.message
    assert seen == {status: texts[status] for status in (0, 1, 2, 3)}
    assert res.__class__(**{**vars(res), "status": 4}).message == texts[4]


@pytest.mark.skipif("callback" not in parameters(so.least_squares), reason="SciPy before 1.16")
def test_message_of_a_stopped_solve_is_scipys():
    def stop(x):
        raise StopIteration

    ours = ox.least_squares(rosenbrock, [-1.2, 1.0], callback=stop)
    theirs = so.least_squares(rosenbrock_in(np), [-1.2, 1.0], callback=stop)
    assert (ours.status, ours.message, ours.success) == (-2, theirs.message, theirs.success)


def test_result_reads_like_scipys():
    ours = ox.least_squares(decay, P0, args=(Y,), max_nfev=500)
    theirs = so.least_squares(decay_in(np), P0, args=(Y,))
    assert set(theirs.keys()) <= set(ours.keys())
    assert ours["x"] is ours.x
    assert "cost" in ours and "nothing" not in ours
    labels = lambda text: set(re.findall(r"^ *(\w+):", text, flags=re.MULTILINE))
    assert labels(repr(theirs)) <= labels(repr(ours))
    assert str(ours) == repr(ours)
    for name in ("success", "status", "message", "nfev", "njev", "nit"):
        kind = {"success": bool, "message": str}.get(name, int)
        assert type(ours[name]) is kind, name


# ---------------------------------------------------------------------------------------
# The examples on SciPy's page


@pytest.mark.parametrize("method", METHODS)
def test_documented_rosenbrock(method):
    res = ox.least_squares(rosenbrock, np.array([2.0, 2.0]), method=method)
    assert_allclose(res.x, [1.0, 1.0], rtol=1e-9)
    assert res.cost < 1e-18
    assert res.optimality < 1e-8
    assert res.success


@pytest.mark.parametrize("method", ["trf", "dogbox"])
def test_documented_bounded_rosenbrock(method):
    bounds = ([-INF, 1.5], INF)
    ours = ox.least_squares(
        rosenbrock, np.array([2.0, 2.0]), rosenbrock_jacobian_in(jnp), bounds, method
    )
    theirs = scipy_minimum(
        rosenbrock_in(np), np.array([2.0, 2.0]), rosenbrock_jacobian_in(np), bounds=bounds
    )
    assert_allclose(ours.x, theirs.x, rtol=1e-8)
    assert_allclose(ours.cost, theirs.cost, rtol=1e-10)
    assert_array_equal(ours.active_mask, [0, -1])


@pytest.mark.parametrize("loss, f_scale", [("linear", 1.0), ("soft_l1", 0.1), ("cauchy", 0.1)])
def test_documented_robust_fit(loss, f_scale):
    rng = np.random.default_rng(0)
    t = np.linspace(0, 10, 15)
    error = 0.1 * rng.standard_normal(t.size)
    error[rng.integers(0, t.size, 3)] *= 10
    y = 0.5 + 2.0 * np.exp(-t) + error
    model = lambda xp: lambda x, t, y: x[0] + x[1] * xp.exp(x[2] * t) - y
    settings = {"loss": loss, "f_scale": f_scale, "args": (t, y)}
    ours = ox.least_squares(model(jnp), np.array([1.0, 1.0, 0.0]), **settings)
    # From our answer on, SciPy must not find a better one.
    theirs = scipy_minimum(model(np), np.asarray(ours.x), **settings)
    assert ours.success
    assert_allclose(ours.x, theirs.x, atol=1e-5)
    assert_allclose(ours.cost, theirs.cost, rtol=1e-10)
    usual = so.least_squares(model(np), np.array([1.0, 1.0, 0.0]), **settings)
    assert ours.cost <= usual.cost * (1 + 1e-8)


@pytest.mark.parametrize("jac", ["jacfwd", "3-point"])
def test_documented_complex_wrapped(jac):
    def wrapped(x):
        f = jax.lax.complex(x[0], x[1]) - (0.5 + 0.5j)
        return jnp.stack([f.real, f.imag])

    res = ox.least_squares(wrapped, (0.1, 0.1), jac, bounds=([0, 0], [1, 1]))
    assert_allclose(res.x, [0.5, 0.5], rtol=1e-9)


# ---------------------------------------------------------------------------------------
# Derivative schemes, scales, bounds


def scipy_jac(scheme, **settings):
    # The points of the differences count: with a long step the error is what is compared.
    return so.least_squares(decay_in(np), P0, scheme, max_nfev=1, args=(Y,), **settings).jac


@pytest.mark.parametrize("scheme", ["2-point", "3-point", "cs"])
@pytest.mark.parametrize("steps", [(None,), (0.1, [0.1, 0.01, 0.3])], ids=["default", "given"])
def test_difference_schemes(scheme, steps):
    expected = scipy_minimum(decay_in(np), P0, args=(Y,)).x
    for step in steps:
        settings = {"diff_step": step, "args": (Y,)}
        start = ox.least_squares(decay, P0, scheme, max_nfev=1, **settings)
        assert_allclose(start.jac, scipy_jac(scheme, diff_step=step), rtol=1e-6, atol=1e-6)
        if step is None:
            res = ox.least_squares(decay, P0, scheme, max_nfev=500, **settings)
            assert res.success
            assert_allclose(res.x, expected, atol=1e-6)


@pytest.mark.parametrize("scheme", ["2-point", "3-point"])
def test_difference_schemes_at_a_bound(scheme):
    settings = {"bounds": ([-INF, -INF, 0.9], [INF, 1.02, INF]), "method": "dogbox"}
    step = [0.1, 0.1, 0.1]
    got = ox.least_squares(decay, P0, scheme, diff_step=step, max_nfev=1, args=(Y,), **settings).jac
    assert_allclose(got, scipy_jac(scheme, diff_step=step, **settings), rtol=1e-6, atol=1e-6)


def test_jac_with_args_and_kwargs():
    def fun(xp):
        return lambda p, t, *, y: p[0] * xp.exp(-p[1] * t) + p[2] - y

    def jac(xp):
        return lambda p, t, *, y: jacobian_in(xp)(p, y)

    settings = {"args": (T,), "kwargs": {"y": Y}}
    ours = ox.least_squares(fun(jnp), P0, jac(jnp), **settings)
    theirs = scipy_minimum(fun(np), P0, jac(np), **settings)
    assert_allclose(ours.x, theirs.x, atol=1e-6)
    assert_allclose(ours.jac, theirs.jac, rtol=1e-5)


def test_the_callable_jacobian_is_the_one_used():
    wrong = lambda x: 2.0 * rosenbrock_jacobian_in(jnp)(x)
    res = ox.least_squares(rosenbrock, [-1.2, 1.0], wrong, max_nfev=1)
    assert_allclose(res.jac, [[48.0, 20.0], [-2.0, 0.0]])


def test_a_jacobian_of_nested_lists():
    # As `np.atleast_2d` takes it: numbers, rows, or one row for one residual.
    rows = lambda x: [[-20 * x[0], 10.0], [-1.0, 0.0]]
    arrays = lambda x: [jnp.stack([-20 * x[0], 10.0 + 0 * x[0]]), jnp.array([-1.0, 0.0])]
    for jac in (rows, arrays):
        res = ox.least_squares(rosenbrock, [-1.2, 1.0], jac, max_nfev=1)
        assert_allclose(res.jac, [[24.0, 10.0], [-1.0, 0.0]])
    res = ox.least_squares(lambda x: x[0] * x[1] - 1, [2.0, 3.0], lambda x: [x[1], x[0]])
    assert_allclose(res.x[0] * res.x[1], 1.0)


def test_a_loss_of_one_number():
    # It cannot take a vector: the choice is made by a branch on the one number.
    def huber(z):
        return jax.lax.cond(z <= 1, lambda: z, lambda: 2 * jnp.sqrt(z) - 1)

    settings = {"f_scale": 0.2, "args": (Y,)}
    expected = scipy_minimum(decay_in(np), P0, loss="huber", **settings)
    res = ox.least_squares(decay, P0, loss=huber, **settings)
    assert_allclose(res.x, expected.x, atol=1e-6)


@pytest.mark.parametrize("jac", ["2-point", "jacrev"])
def test_lm_counts_jacobians_as_scipy(jac):
    # SciPy's lm cannot count the evaluations of a finite difference and says None.
    res = ox.least_squares(rosenbrock, [-1.2, 1.0], jac, method="lm")
    assert_allclose(res.x, 1.0, rtol=1e-7)
    assert (res.njev is None) == (jac == "2-point")


@pytest.mark.parametrize("method", METHODS)
def test_x_scale(method):
    expected = scipy_minimum(decay_in(np), P0, args=(Y,)).x
    for x_scale in (2.0, [1.0, 0.3, 2.0], np.array([1e3, 1.0, 1e-3]), 1):
        res = ox.least_squares(decay, P0, method=method, x_scale=x_scale, args=(Y,))
        assert_allclose(res.x, expected, atol=1e-6)
    res = ox.least_squares(decay, P0, method=method, x_scale="jac", args=(Y,))
    assert_allclose(res.x, expected, atol=1e-6)


@pytest.mark.parametrize("method", ["trf", "dogbox"])
def test_bounds_of_every_kind(method):
    expected = scipy_minimum(rosenbrock_in(np), [-1.0, 0.3], bounds=([-2.0, -2.0], 0.5)).x
    kinds = [
        (-2.0, 0.5),
        ([-2.0, -2.0], 0.5),
        (np.array([-2, -2]), np.array([0.5, 0.5])),
        [-2, [0.5, 0.5]],
        (jnp.array([-2.0, -2.0]), jnp.array([0.5, 0.5])),
        so.Bounds([-2.0, -2.0], [0.5, 0.5]),
        (None, 0.5),
    ]
    for bounds in kinds:
        res = ox.least_squares(rosenbrock, [-1.0, 0.3], bounds=bounds, method=method)
        assert_allclose(res.x, expected, rtol=1e-7)
    for bounds in (None, (None, None), (-INF, INF)):
        res = ox.least_squares(rosenbrock, [-1.0, 0.3], bounds=bounds, method=method)
        assert_allclose(res.x, 1.0, rtol=1e-7)


@pytest.mark.parametrize("method", ["trf", "dogbox"])
def test_start_on_a_bound(method):
    bounds = ([0.5, 0.0], [3.0, 2.0])
    for x0 in ([0.5, 0.0], [0.5, 2.0], [3.0, 2.0], [3.0, 0.0]):
        res = ox.least_squares(rosenbrock, x0, bounds=bounds, method=method)
        assert res.success
        assert_allclose(res.x, 1.0, rtol=1e-7)


@pytest.mark.parametrize("method", ["trf", "dogbox"])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_solution_beside_a_bound_is_not_displaced(method, side):
    # The least residual lies `gap` inside of the bound; SciPy's trf ends up to 1e-10 away.
    def fun(x, target):
        return jnp.stack([x[0] - target, 0.5 * (x[1] - 3.0)])

    for bound, gap in itertools.product((0.0, 1.0), (0.0, 1e-12, 1e-10, 1e-6)):
        target = bound - side * gap
        low, high = ([bound, -INF], [INF, INF]) if side < 0 else ([-INF, -INF], [bound, INF])
        res = ox.least_squares(
            fun, [bound - 2.0 * side, 0.0], bounds=(low, high), method=method, args=(target,)
        )
        assert res.success
        assert abs(float(res.x[0]) - target) <= 2e-13
        assert_allclose(res.x[1], 3.0, rtol=1e-10)


@pytest.mark.parametrize("method", ["trf", "dogbox"])
def test_a_step_onto_a_bound_ends_there(method):
    # From x0 the bound of p[2] is reached in one step, but for the rounding of that step.
    t = np.linspace(0.0, 3.0, 100)
    y = 2.5 * np.exp(-1.3 * t) - 0.1
    fun = lambda xp: lambda p: p[0] * xp.exp(-p[1] * xp.asarray(t)) + p[2] - xp.asarray(y)
    bounds = ([0.0, 0.0, 0.0], [10.0, 10.0, 10.0])
    expected = scipy_minimum(fun(np), [1.0, 1.0, 1.0], bounds=bounds)
    for start in (0.6, 1.0, 1.4, 3.0):
        res = ox.least_squares(fun(jnp), [1.0, 1.0, start], bounds=bounds, method=method)
        assert res.success
        assert_allclose(res.x, expected.x, atol=1e-6)
        assert res.x[2] == 0.0
        assert_array_equal(res.active_mask, [0, 0, -1])


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-10, 1e-7, 1e-3])
def test_what_counts_as_active_is_scipys(gap):
    # SciPy's rule at this x. Its own trf stops farther from the bound, and its mask says 0.
    res = ox.least_squares(lambda x: x - (1.0 + gap), [2.0], bounds=(1.0, INF))
    assert_allclose(res.x, 1.0 + gap, atol=1e-9)
    expected = find_active_constraints(np.asarray(res.x), np.ones(1), np.full(1, INF), rtol=1e-8)
    assert_array_equal(res.active_mask, expected)
    assert expected == (-1 if gap < 1e-8 else 0)


def test_a_step_that_a_bound_cut_short_is_not_convergence():
    # Meyer's problem in a box that cuts off its minimum. dogbox comes to rest a hair from a
    # bound, whence every path is blocked after 1e-8 of the way; SciPy's stops there, with success.
    meyer = mgh.by_name["meyer"]
    lower, upper = np.array([-0.1239, -17813.0, -702.2]), np.array([0.1639, 5090.67, 1202.2])
    res = ox.least_squares(meyer.residuals, meyer.start(), bounds=(lower, upper), method="dogbox")
    f = lambda x: np.asarray(meyer.residuals(jnp.asarray(x)))
    jac = lambda x: np.asarray(jax.jacfwd(meyer.residuals)(jnp.asarray(x)))
    best = so.least_squares(
        f, meyer.start(), jac, bounds=(lower, upper), x_scale="jac", max_nfev=5000
    )
    assert not res.success or res.cost <= best.cost * (1 + 1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_huge_variable_without_influence_is_not_convergence(method):
    # Beside it every step of the other one is short, and SciPy's xtol is met at once.
    i = np.arange(1.0, 11.0)
    fun = lambda x: 2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))
    alone = so.minimize_scalar(lambda x: 0.5 * np.sum((2 + 2 * i - np.exp(i * x)) ** 2), (0, 0.5))
    res = ox.least_squares(fun, [2.0, -1e9], method=method)
    assert res.success
    assert_allclose(res.x, [alone.x, -1e9], rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_residual_that_falls_by_two_hundred_orders(method):
    res = ox.least_squares(lambda x: jnp.exp(50 * x) - 1, [9.0], method=method, max_nfev=1000)
    assert res.success
    assert_allclose(res.x, 0.0, atol=1e-8)


# ---------------------------------------------------------------------------------------
# Kinds of x0 and of return values


@pytest.mark.parametrize(
    "x0",
    [2.0, 2, np.float64(2.0), np.array(2.0), jnp.array(2), [2], (2.0,), np.array([2])],
    ids=lambda v: f"{type(v).__name__}-{np.asarray(v).dtype}",
)
def test_scalar_and_integer_starts(x0):
    res = ox.least_squares(lambda x: (x - 0.5) * 3, x0)
    theirs = so.least_squares(lambda x: (x - 0.5) * 3, np.asarray(x0))
    for name in ("x", "fun", "jac", "grad", "active_mask", "cost"):
        assert np.shape(res[name]) == np.shape(theirs[name]), name
    assert res.x.dtype == np.float64
    assert_allclose(res.x, [0.5], rtol=1e-12)


RETURNS = {
    "scalar": lambda x: x[0] * x[0] - 4,
    "list": lambda x: [x[0] * x[0] - 4],
    "tuple": lambda x: (x[0] * x[0] - 4,),
    "two scalars": lambda x: [x[0] * x[0] - 4, 0.0],
}


@pytest.mark.parametrize("kind", RETURNS)
def test_kinds_of_return_values(kind):
    fun = RETURNS[kind]
    res, theirs = ox.least_squares(fun, 1.0), so.least_squares(fun, 1.0)
    for name in ("fun", "jac"):
        assert np.shape(res[name]) == np.shape(theirs[name]), name
    assert_allclose(res.x, [2.0], rtol=1e-9)


@pytest.mark.parametrize("method", ["trf", "lm"])
def test_fewer_residuals_than_variables(method):
    fun = lambda x: jnp.stack([x[0] + x[1] - 2.0])
    res = ox.least_squares(fun, [5.0, 1.0], method=method)
    assert res.success
    assert_allclose(res.x, [3.0, -1.0], rtol=1e-12)  # the nearest of the many solutions


# ---------------------------------------------------------------------------------------
# Tolerances


@pytest.mark.parametrize("name", ["ftol", "xtol", "gtol"])
def test_a_tolerance_below_eps_warns_as_in_scipy(name):
    with warnings.catch_warnings(record=True) as theirs:
        warnings.simplefilter("always")
        so.least_squares(rosenbrock_in(np), [-1.2, 1.0], **{name: 1e-20})
    with pytest.warns(UserWarning, match=name) as ours:
        ox.least_squares(rosenbrock, [-1.2, 1.0], **{name: 1e-20})
    assert [w.category for w in ours] == [w.category for w in theirs]
    assert ours[0].filename == __file__, "the warning points at the user's line"


@pytest.mark.parametrize("method", METHODS)
def test_evaluations_do_not_exceed_their_number(method):
    for most in (1, 2, 3):
        res = ox.least_squares(rosenbrock, [-1.2, 1.0], method=method, max_nfev=most)
        assert res.nfev == most
        assert (res.status, res.success) == (0, False)
