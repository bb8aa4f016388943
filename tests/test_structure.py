"""How a solve is built: one evaluation in its loop, arrays only, no work done twice."""

import collections
import copy
import itertools
import pickle

import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox
from tests.contract.program_text import operations

SOLVERS = {
    "trf": ox.TrustRegionReflective,
    "dogbox": ox.Dogbox,
    "lm": ox.LevenbergMarquardt,
}
METHODS = tuple(SOLVERS)
INF = np.inf
T = np.linspace(0.1, 3.0, 12)
NOISE = 0.15 * np.sin(7.0 * np.arange(12) + 0.4)
Y = 2.0 * np.exp(-1.3 * T) + 0.5 + NOISE
YS = np.stack([Y, Y + 0.3, 0.5 * Y - NOISE])
P0 = np.array([1.0, 1.0, 0.3])


def decay(p, y):
    return p[0] * jnp.exp(-p[1] * T) + p[2] - y


def scipy_solution(y, x0=P0, **settings):
    numpy_decay = lambda p: p[0] * np.exp(-p[1] * T) + p[2] - y
    tight = {"ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-12}
    return so.least_squares(numpy_decay, x0, "3-point", **tight, **settings).x


# ---------------------------------------------------------------------------------------
# The user's function in the compiled program. It is marked by a sine, its Jacobian by a cosine:
# neither stands anywhere else.


def marked(p, y):
    return p[0] * jnp.sin(p[1] * T) + p[2] - y


def marked_jacobian(p, y):
    wave = jnp.cos(p[1] * T)
    return jnp.stack([wave, p[0] * T * wave, 1 + 0 * wave], axis=1)


LOOP = 2  # the solve's loop stands in another, which turns once

CONFIGURATIONS = {
    "boxed": {"bounds": ([-INF, 0.1, -INF], INF)},
    "robust": {"loss": "cauchy"},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_function_and_jacobian_stand_once_in_the_loop(method, kind):
    if (method, kind) == ("lm", "boxed"):
        pytest.skip("lm has no bounds")

    def solve(x0, y):
        settings = CONFIGURATIONS[kind]
        return ox.least_squares(marked, x0, marked_jacobian, method=method, args=(y,), **settings).x

    for program, args in (
        (jax.jit(solve), (P0, Y)),
        (jax.jit(jax.vmap(solve)), (np.stack([P0, P0]), np.stack([Y, Y]))),
    ):
        for name in ("sine", "cosine"):
            found = operations(program, *args, name=name)
            found.pop(0, None)  # before the loop
            assert found == {LOOP: 1}


@pytest.mark.parametrize("method", METHODS)
def test_autodiff_shares_the_evaluation(method):
    # The value, its derivative (a cosine) and no second value.
    program = jax.jit(lambda x0: ox.least_squares(marked, x0, method=method, args=(Y,)).x)
    for name, most in (("sine", 2), ("cosine", 1)):
        found = operations(program, P0, name=name)
        found.pop(0, None)
        assert set(found) == {LOOP}
        assert found[LOOP] <= most


# ---------------------------------------------------------------------------------------
# By hand


@pytest.fixture(scope="module")
def by_hand():
    """The whole history of each machine, driven step by step."""
    problem, x0 = ox.least_squares_problem(decay, P0, args=(Y,))

    def history(method):
        solver = SOLVERS[method]()
        step = eqx.filter_jit(solver.step)
        states = [solver.init(problem, x0)]
        while solver.running(problem, states[-1]):
            states.append(step(problem, states[-1]))
        return solver, problem, states

    return {method: history(method) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_every_step_is_one_evaluation(by_hand, method):
    solver, problem, states = by_hand[method]
    assert [int(state.nfev) for state in states] == list(range(len(states)))
    assert_allclose(states[-1].x, scipy_solution(Y), rtol=1e-7)
    costs = [float(problem.cost(state.x)) for state in states]
    tolerance = 1e-10 * costs[0]  # the last phase may let the cost rise by its rounding
    assert all(after <= before + tolerance for before, after in itertools.pairwise(costs))
    assert solver.finish(problem, states[-1]).status == states[-1].status > 0


@pytest.mark.parametrize("method", METHODS)
def test_by_hand_equals_run_equals_front_door(by_hand, method):
    solver, problem, states = by_hand[method]
    ran = ox.run(solver, problem, P0)
    called = ox.least_squares(decay, P0, method=method, args=(Y,))
    hand = solver.finish(problem, states[-1])
    for res in (ran, called):
        assert_allclose(res.x, hand.x, rtol=1e-13)
        assert_allclose(res.cost, hand.cost, rtol=1e-13)
        counts = (res.status, res.nfev, res.njev, res.nit)
        assert counts == tuple(map(int, (hand.status, hand.nfev, hand.njev, hand.nit)))


def test_results_and_problems_are_copied_and_pickled():
    problem, _ = ox.least_squares_problem(decay, P0, args=(Y,), loss="cauchy", bounds=(0, 5))
    fit = ox.least_squares(decay, P0, args=(Y,))
    minimum = ox.minimize(lambda p: jnp.sum(decay(p, Y) ** 2), P0)
    pickled = lambda value: pickle.loads(pickle.dumps(value))
    for result in (fit, minimum, ox.elementwise.find_root(lambda x: x - 1.0, (0.0, 3.0))):
        for again in (copy.copy(result), copy.deepcopy(result), pickled(result)):
            assert jax.tree.structure(again) == jax.tree.structure(result)
            assert_array_equal(again.x, result.x)
            assert again.message == result.message
    solver = ox.TrustRegionReflective()
    for again in (copy.copy(problem), copy.deepcopy(problem)):
        assert_array_equal(ox.run(solver, again, P0).x, ox.run(solver, problem, P0).x)
    with pytest.raises(TypeError, match=r"cannot be pickled.*arguments"):
        pickle.dumps(problem)


def test_a_result_is_read_like_a_dictionary():
    result = ox.least_squares(decay, P0, args=(Y,))
    assert dict(result.items()).keys() == dict(result).keys() == set(result.keys())
    assert len(result) == len(list(result)) == len(result.values())
    assert result.get("x") is result.x
    assert result.get("no such") is None
    assert result.get("no such", 3) == 3


def test_steps_in_ones_own_scan_and_vmap():
    solver = ox.LevenbergMarquardt()

    @jax.jit
    @jax.vmap
    def final(y):
        problem, x0 = ox.least_squares_problem(decay, P0, args=(y,))

        def body(state, _):
            after = solver.step(problem, state)
            keep = solver.running(problem, state)
            return jax.tree.map(lambda a, b: jnp.where(keep, a, b), after, state), state.x

        return jax.lax.scan(body, solver.init(problem, x0), length=40)

    state, path = final(YS)
    assert path.shape == (3, 40, 3)
    assert_array_equal(path[:, 0], np.broadcast_to(P0, (3, 3)))
    assert (np.asarray(state.status) > 0).all()
    assert_allclose(state.x, [scipy_solution(y) for y in YS], rtol=1e-6)


def test_run_takes_what_the_problem_was_made_with():
    problem, _ = ox.least_squares_problem(
        lambda p: p["a"] * p["b"] - jnp.array([2.0, 6.0]), {"a": 1.0, "b": jnp.ones(2)}
    )
    solver = ox.TrustRegionReflective(xtol=1e-12)
    res = ox.run(solver, problem, {"a": 2.0, "b": jnp.ones(2)})
    assert_allclose(res.x["a"] * res.x["b"], [2.0, 6.0], rtol=1e-9)
    flat = ox.run(solver, problem, np.array([2.0, 1.0, 1.0]))
    assert_array_equal(flat.x["b"], res.x["b"])


# ---------------------------------------------------------------------------------------
# Eager calls: what is traced and compiled again

EVENTS = collections.Counter()
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **kwargs: EVENTS.update([event])
)


def new_work():
    """A function that tells how many programs were compiled since."""
    compiled = "/jax/core/compile/backend_compile_duration"
    before = EVENTS[compiled]
    return lambda: EVENTS[compiled] - before


class Traces:
    """Counts outside of what the traced function can see change."""

    count = 0


def counted_decay(p, y):
    _count_trace()
    return decay(p, y)


def _count_trace():
    type.__setattr__(Traces, "count", Traces.count + 1)


@pytest.mark.parametrize("method", METHODS)
def test_new_data_is_not_compiled_again(method):
    ox.least_squares(decay, P0, method=method, args=(Y,))
    compiled = new_work()
    for x0, y in ((P0, Y), (P0 + 0.1, Y), (P0, YS[1])):
        res = ox.least_squares(decay, x0, method=method, args=(y,))
        assert_allclose(res.x, scipy_solution(y), rtol=1e-6)
    res = ox.least_squares(decay, P0, method=method, args=(Y,), ftol=1e-6, xtol=1e-5, gtol=1e-7)
    assert res.success
    assert compiled() == 0


def test_new_bounds_and_scales_are_not_compiled_again():
    x0 = np.array([1.0, 1.0, 0.95])

    def settings(low, f_scale):
        return {"bounds": ([-INF, -INF, low], INF), "loss": "soft_l1", "f_scale": f_scale}

    ox.least_squares(decay, x0, args=(Y,), **settings(0.7, 0.3))
    compiled = new_work()
    res = ox.least_squares(decay, x0, args=(YS[1],), **settings(0.9, 0.5))
    assert_allclose(res.x, scipy_solution(YS[1], x0, **settings(0.9, 0.5)), atol=1e-6)
    assert compiled() == 0


def _closure(y):
    return lambda p: p[0] * jnp.exp(-p[1] * T) + p[2] - y


class _Fit:
    def __init__(self, y):
        self.y = y

    def residuals(self, p):
        return decay(p, self.y)


FRESH = {
    "closure over NumPy data": _closure,
    "closure over JAX data": lambda y: _closure(jnp.asarray(y)),
    "bound method": lambda y: _Fit(y).residuals,
    "partial": lambda y: jax.tree_util.Partial(decay, y=y),
}


@pytest.mark.parametrize("kind", FRESH)
def test_a_fresh_function_is_not_compiled_again(kind):
    ox.least_squares(FRESH[kind](Y), P0)
    fresh = FRESH[kind](YS[1])
    compiled = new_work()
    res = ox.least_squares(fresh, P0)
    assert_allclose(res.x, scipy_solution(YS[1]), rtol=1e-6)
    assert compiled() == 0


def test_fresh_jac_loss_and_callback_are_not_compiled_again():
    def solve(y):
        jac = lambda p: jnp.stack(
            [jnp.exp(-p[1] * T), -p[0] * T * jnp.exp(-p[1] * T), jnp.ones_like(T)], axis=1
        )
        loss = lambda z: jnp.log1p(z)
        steps = []
        res = ox.least_squares(
            _closure(y), P0, jac, loss=loss, f_scale=0.3, callback=lambda x: steps.append(x)
        )
        assert len(steps) == res.nit
        return res.x

    solve(Y)
    compiled = new_work()
    x = solve(YS[1])
    assert_allclose(x, scipy_solution(YS[1], loss="cauchy", f_scale=0.3), rtol=1e-6)
    assert compiled() == 0


def test_a_jitted_function_is_traced_once():
    fun = jax.jit(counted_decay)
    ox.least_squares(fun, P0, args=(Y,))
    assert Traces.count > 0, "the counting works"
    before = Traces.count
    ox.least_squares(fun, P0, args=(YS[1],))
    assert Traces.count == before


# ---------------------------------------------------------------------------------------
# Never stale


class _Shift:
    value = 2.0


SHIFT = 2.0
ARRAY = np.array([2.0])
TABLE = {"shift": 2.0}


def _set_cell(value):
    _set_cell.into(value)


def _cell():
    shift = 2.0

    def assign(value):
        nonlocal shift
        shift = value

    _set_cell.into = assign
    return lambda x: x - shift


CAPTURED = {
    "global": (lambda x: x - SHIFT, lambda v: globals().__setitem__("SHIFT", v)),
    "array in place": (lambda x: x - ARRAY, lambda v: ARRAY.__setitem__(0, v)),
    "dictionary": (lambda x: x - TABLE["shift"], lambda v: TABLE.__setitem__("shift", v)),
    "attribute": (lambda x: x - _Shift.value, lambda v: setattr(_Shift, "value", v)),
    "cell": (_cell(), _set_cell),
}


@pytest.mark.parametrize("kind", CAPTURED)
def test_changed_captured_data_give_the_new_answer(kind):
    fun, change = CAPTURED[kind]
    for value in (2.0, 3.0, 2.0, 5.0):
        change(value)
        assert_allclose(ox.least_squares(fun, 0.0).x, [value], rtol=1e-12)
    change(2.0)


def test_functions_that_look_alike_are_told_apart():
    pairs = [
        (lambda x: x - 2.0, 2.0),
        (lambda x: x - 3.0, 3.0),
        (lambda x: x**2 - 9.0, 3.0),
        (lambda x: x**3 - 8.0, 2.0),
    ]
    for _ in range(2):
        for fun, expected in pairs:
            assert_allclose(ox.least_squares(fun, [1.0]).x, [expected], rtol=1e-9)


def test_the_same_function_inside_and_outside_of_a_trace():
    fun = lambda p, y: decay(p, y)
    inside = jax.jit(lambda y: ox.least_squares(fun, P0, args=(y,)).x)(Y)
    outside = ox.least_squares(fun, P0, args=(Y,)).x
    for x in (inside, outside):
        assert_allclose(x, scipy_solution(Y), rtol=1e-6)


def test_no_tracer_leaks():
    with jax.checking_leaks():
        jax.jit(lambda y: ox.least_squares(lambda p: decay(p, y), P0).x)(Y).block_until_ready()


def test_no_flag_is_changed():
    before = dict(jax.config.values)
    ox.least_squares(decay, P0, args=(Y,))
    assert dict(jax.config.values) == before
