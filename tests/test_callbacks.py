"""What is seen of a solve while it runs: `callback` and `verbose`, eager and compiled.

The oracle of the printed text is SciPy's own output.
"""

import collections
import functools
import gc
import inspect
import re
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox
from optx_lite.driver import callbacks as _monitor

METHODS = ("trf", "dogbox", "lm")
START = np.array([-1.2, 1.0])


def rosenbrock_in(xp):
    return lambda x: xp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


rosenbrock, numpy_rosenbrock = rosenbrock_in(jnp), rosenbrock_in(np)


def eager(callback, method="trf", **settings):
    return ox.least_squares(rosenbrock, START, method=method, callback=callback, **settings)


def jitted(callback, method="trf", **settings):
    solve = jax.jit(lambda x0: ox.least_squares(rosenbrock, x0, callback=callback, method=method))
    res = jax.block_until_ready(solve(START))
    jax.effects_barrier()
    return res


@pytest.fixture(params=[eager, jitted], ids=["eager", "jit"])
def run(request):
    """A way to solve Rosenbrock's problem with a callback."""
    return request.param


# ---------------------------------------------------------------------------------------
# What a callback is given


@pytest.mark.parametrize("method", METHODS)
def test_callback_with_x(run, method):
    seen = []
    res = run(lambda x: seen.append(np.array(x)), method)
    assert len(seen) == int(res.nit) >= 2
    assert_array_equal(seen[-1], res.x)
    costs = [0.5 * np.sum(numpy_rosenbrock(x) ** 2) for x in [START, *seen]]
    assert (np.diff(costs) <= 0).all(), "only accepted points are shown"


@pytest.mark.parametrize("method", METHODS)
def test_callback_with_intermediate_result(run, method):
    seen = []

    def callback(intermediate_result):
        seen.append(intermediate_result)

    res = run(callback, method)
    assert [r.nit for r in seen] == list(range(1, int(res.nit) + 1))
    counts = [r.nfev for r in seen]
    assert counts == sorted(counts)
    assert counts[-1] <= int(res.nfev)
    for r in seen:
        assert_allclose(r.fun, numpy_rosenbrock(np.asarray(r.x)), rtol=1e-10, atol=1e-13)
        assert_allclose(r.cost, 0.5 * np.sum(np.asarray(r.fun) ** 2), rtol=1e-12)
    assert_array_equal(seen[-1].x, res.x)


class WithX:
    def __init__(self):
        self.seen = []

    def __call__(self, x):
        self.seen.append(x)

    def method(self, intermediate_result):
        self.seen.append(intermediate_result)


def test_the_name_of_the_parameter_decides():
    plain, bound = WithX(), WithX()
    named, partial, renamed = [], [], []
    eager(plain)
    eager(bound.method)
    eager(lambda *, intermediate_result: named.append(intermediate_result))
    eager(functools.partial(lambda log, x: log.append(x), partial))
    eager(lambda result: renamed.append(result))
    for shown in (plain.seen, partial, renamed):
        assert {np.shape(x) for x in shown} == {(2,)}
    for shown in (bound.seen, named):
        assert {np.shape(r.x) for r in shown} == {(2,)}
        assert {np.shape(r.cost) for r in shown} == {()}


def test_callback_sees_the_users_structure():
    seen = []
    x0 = {"a": 0.0, "b": np.zeros((2, 1))}
    res = ox.least_squares(
        lambda p: [p["a"] - 1.0, p["b"] - 2.0], x0, callback=lambda p: seen.append(p)
    )
    assert jax.tree.structure(seen[-1]) == jax.tree.structure(x0)
    assert_array_equal(seen[-1]["b"], res.x["b"])


@pytest.mark.skipif(
    "callback" not in inspect.signature(so.least_squares).parameters, reason="SciPy before 1.16"
)
def test_the_first_thing_scipys_callback_sees_is_the_first_step():
    ours, theirs = [], []
    eager(lambda intermediate_result: ours.append(intermediate_result.nit))
    so.least_squares(
        numpy_rosenbrock, START,
        callback=lambda intermediate_result: theirs.append(intermediate_result.nit),
    )  # fmt: skip
    assert ours[:3] == theirs[:3]


# ---------------------------------------------------------------------------------------
# What a callback can do


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["StopIteration", "True"])
def test_a_callback_ends_the_solve(run, method, how):
    seen = []

    def callback(x):
        seen.append(np.array(x))
        if len(seen) == 2:
            if how == "True":
                return True
            raise StopIteration
        return False

    res = run(callback, method)
    assert len(seen) == int(res.nit) == 2
    assert int(res.status) == -2
    assert not bool(res.success)
    assert_array_equal(res.x, seen[-1])


def test_a_compiled_program_is_not_stopped_for_good():
    seen, limit = [], [2]

    def callback(x):
        seen.append(1)
        if len(seen) >= limit[0]:
            raise StopIteration

    solve = jax.jit(lambda x0: ox.least_squares(rosenbrock, x0, callback=callback))
    assert int(solve(START).status) == -2
    limit[0] = 10**6
    assert int(solve(START).status) > 0


def test_exceptions_pass():
    error = KeyError("mine")

    def callback(x):
        raise error

    with pytest.raises(KeyError) as caught:
        eager(callback)
    assert caught.value is error
    # And leave nothing behind.
    seen = []
    assert eager(lambda x: seen.append(x)).success
    assert seen


def by_least_squares(c, callback):
    fun = lambda x: rosenbrock(x) - jnp.stack([0 * c, c])
    return ox.least_squares(fun, START, callback=callback).x[1]


def by_minimize(c, callback):
    fun = lambda x: jnp.sum((rosenbrock(x) - jnp.stack([0 * c, c])) ** 2)
    return ox.minimize(fun, START, callback=callback).x[1]


EAGERLY = {
    "vmap": lambda f: jax.vmap(f)(jnp.array([0.0, 0.5])),
    "grad": lambda f: jax.grad(f)(0.5),
    "value_and_grad": lambda f: jax.value_and_grad(f)(0.5),
    "jacfwd": lambda f: jax.jacfwd(f)(0.5),
    "grad of vmap": lambda f: jax.grad(lambda c: jax.vmap(f)(c).sum())(jnp.ones(2)),
}


@pytest.mark.parametrize("transform", EAGERLY)
@pytest.mark.parametrize("solve", [by_least_squares, by_minimize])
def test_exceptions_pass_through_eager_transformations(transform, solve):
    class Mine(BaseException):
        pass

    calls, error = [], None

    def callback(x):  # one function, one program
        calls.append(x)
        if error is not None:
            raise error

    for kind in (Mine, KeyError, KeyboardInterrupt):
        calls.clear()
        error = kind("mine")
        with pytest.raises(kind) as caught:
            EAGERLY[transform](lambda c: solve(c, callback))
        assert caught.value is error
        assert len(calls) == 1, "no lane goes on"
        frames = traceback.extract_tb(error.__traceback__)
        assert frames[-1].name == "callback"
        assert not _monitor._LISTENERS
    calls.clear()
    error = None
    EAGERLY[transform](lambda c: solve(c, callback))
    assert calls
    assert not _monitor._LISTENERS


def test_exceptions_in_a_compiled_program_carry_their_text(capfd):
    def callback(x):
        raise KeyError("these very words")

    solve = jax.jit(lambda c: by_least_squares(c, callback))
    with pytest.raises(Exception, match="these very words"):
        jax.block_until_ready(solve(0.5))


def test_a_compiled_program_keeps_its_callback_and_no_longer():
    _monitor._LISTENERS.clear()
    seen = []
    solve = jax.jit(lambda c: by_least_squares(c, lambda x: seen.append(x)))
    for _ in range(2):
        jax.block_until_ready(solve(0.5))
        assert seen
        seen.clear()
        gc.collect()
    compiled = solve.lower(0.5).compile()
    assert len(_monitor._LISTENERS) == 1
    del solve
    gc.collect()
    jax.block_until_ready(compiled(0.5))
    assert seen
    del compiled
    jax.clear_caches()
    gc.collect()
    assert not _monitor._LISTENERS


@pytest.mark.parametrize("answer", [1, "go on", [True], np.ones(3), jnp.ones(()), np.array(True)])
def test_only_true_itself_ends_a_solve(answer):
    seen = []

    def callback(x):
        seen.append(x)
        return answer

    assert eager(callback).success
    assert len(seen) > 1


def test_what_cannot_be_called_is_noticed_at_once():
    for solve in (by_least_squares, by_minimize):
        with pytest.raises(TypeError, match=r"`callback`.*3"):
            solve(0.5, 3)


@pytest.mark.parametrize("solve", [by_least_squares, by_minimize])
def test_an_intermediate_result_is_no_success_yet(solve):
    seen = []
    solve(0.5, lambda intermediate_result: seen.append(intermediate_result))
    for result in seen:
        assert result.success is False
        assert result.message == "The algorithm is proceeding normally."
        assert result.status is None
        assert np.isfinite(result["optimality"])
        assert "proceeding" in repr(result)


def test_each_lane_calls_once_for_each_step_in_order():
    # Many lanes with a large state go in chunks, of which the last is filled up.
    lanes, m = 13, 6000
    shift = np.linspace(0.0, 1.0, lanes)
    seen = collections.defaultdict(list)

    def callback(intermediate_result):
        x = np.asarray(intermediate_result.x)
        seen[round(float(x[2]), 12)].append(int(intermediate_result.nit))

    def solve(c):
        fun = lambda x: jnp.concatenate([rosenbrock(x), x[2:] - c, jnp.zeros(m)])
        start = jnp.concatenate([jnp.asarray(START), c[None]])
        return ox.least_squares(fun, start, callback=callback)

    res = jax.vmap(solve)(shift)
    assert sorted(seen) == [round(float(c), 12) for c in shift]
    for c, nit in zip(shift, np.asarray(res.nit), strict=True):
        assert seen[round(float(c), 12)] == list(range(1, int(nit) + 1))


def test_the_callback_does_not_change_the_answer(run):
    watched, alone = run(lambda x: None), eager(None)
    # XLA may fuse otherwise, and so round otherwise, beside a callback.
    assert_allclose(watched.x, alone.x, rtol=1e-14)
    counts = tuple(int(watched[name]) for name in ("nfev", "nit", "status"))
    assert counts == (alone.nfev, alone.nit, alone.status)


def shifted(c, seen):
    """Solved by 1 - c and its square; gives the square."""
    fun = lambda x: rosenbrock(x) - jnp.stack([0 * c, c])
    return ox.least_squares(fun, START, callback=lambda x: seen.append(np.array(x))).x[1]


def test_the_callback_under_grad():
    seen = []
    assert_allclose(jax.grad(shifted)(0.5, seen), -2 * (1 - 0.5), rtol=1e-6)
    assert seen


def test_the_callback_under_vmap():
    seen = []
    got = jax.vmap(lambda c: shifted(c, seen))(np.array([0.0, 0.5]))
    jax.effects_barrier()
    assert_allclose(got, [1.0, 0.25], rtol=1e-6)
    # Each lane's last point has been shown.
    for x in ([1.0, 1.0], [0.5, 0.25]):
        assert any(np.allclose(x, shown) for shown in seen)


# ---------------------------------------------------------------------------------------
# verbose

# Cost and optimality at the start are as large as here, so that printed digits do not hang on
# the last bit.
T = np.linspace(0.0, 3.0, 12)
Y = 2.0 * np.exp(-1.3 * T) + 0.5 + 0.15 * np.sin(7.0 * np.arange(12) + 0.4)
P0 = np.array([1.0, 1.0, 0.9])


def decay_in(xp):
    return lambda p: p[0] * xp.exp(-p[1] * T) + p[2] - Y


def decay_jacobian(p):
    e = np.exp(-p[1] * T)
    return np.stack([e, -p[0] * T * e, np.ones_like(T)], axis=1)


@pytest.fixture(params=["eager", "jit"])
def printed(request, capsys):
    """A function that solves and gives the result and the printed lines."""

    def run(**settings):
        solve = lambda p0: ox.least_squares(decay_in(jnp), p0, **settings)
        capsys.readouterr()
        res = jax.block_until_ready((jax.jit(solve) if request.param == "jit" else solve)(P0))
        jax.effects_barrier()
        return res, capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def scipy_printed(capsys):
    """The same for SciPy, which has no lm that prints a table."""

    def run(method, **settings):
        capsys.readouterr()
        method = "trf" if method == "lm" else method
        so.least_squares(decay_in(np), P0, decay_jacobian, method=method, **settings)
        return capsys.readouterr().out.splitlines()

    return run


ENDING = re.compile(
    r"Function evaluations (\d+), initial cost (\S+), final cost (\S+), "
    r"first-order optimality (\S+)\."
)


def assert_ending(res, lines, theirs):
    assert lines[0] == res.message
    nfev, initial, final, optimality = ENDING.fullmatch(lines[1]).groups()
    assert initial == ENDING.fullmatch(theirs[-1])[2]
    assert int(nfev) == int(res.nfev)
    assert final == f"{float(res.cost):.4e}"
    assert optimality == f"{float(res.optimality):.2e}"


@pytest.mark.parametrize("method", METHODS)
def test_verbose(printed, scipy_printed, method):
    # The levels share their program but for the ticket of whoever listens.
    res, lines = printed(method=method, verbose=1)
    theirs = scipy_printed(method, verbose=1)
    assert len(lines) == len(theirs) == 2
    assert_ending(res, lines, theirs)

    res, lines = printed(method=method, verbose=2)
    theirs = scipy_printed(method, verbose=2)
    assert_ending(res, lines[-2:], theirs)
    table = lines[:-2]
    assert table[:2] == theirs[:2]  # the header, and the row of the start
    assert len(table) == 2 + int(res.nit)
    for k, row in enumerate(table[1:]):
        cells = [row[i : i + 15] for i in range(0, 90, 15)]
        assert "".join(cells) == row
        nit, nfev, cost, reduction, step, optimality = (
            float(cell) if cell.strip() else None for cell in cells
        )
        assert nit == k
        assert k < nfev <= int(res.nfev)
        assert cells[2] == f"{cost:^15.4e}"
        assert cells[5] == f"{optimality:^15.2e}"
        if k:
            assert cells[3:5] == [f"{reduction:^15.2e}", f"{step:^15.2e}"]
    assert f"{float(res.cost):.4e}" in table[-1]


def test_verbose_says_in_which_lane(capsys):
    res = jax.vmap(lambda p0: ox.least_squares(decay_in(jnp), p0, verbose=2))(
        np.stack([P0, 1.1 * P0, 0.9 * P0])
    )
    jax.effects_barrier()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["Lane", "Iteration"]
    ends = [line for line in lines if re.match(r"Lane \d: ", line)]
    told = sorted(line for line in ends if "satisfied" in line)
    assert told == [f"Lane {k}: {text}" for k, text in enumerate(res.message)]
    rows = [line.split() for line in lines[1:] if line not in ends]
    for k, nit in enumerate(np.asarray(res.nit)):
        assert [int(row[1]) for row in rows if int(row[0]) == k] == list(range(nit + 1))


def test_nested_lanes_are_numbered_through(capsys):
    solve = lambda a, p0: ox.least_squares(lambda p: a * decay_in(jnp)(p), p0, verbose=1)
    inner = jax.vmap(solve, (None, 0))
    jax.vmap(inner, (0, None))(np.array([1.0, 2.0]), np.stack([P0, 1.1 * P0, 0.9 * P0]))
    jax.effects_barrier()
    lines = capsys.readouterr().out.splitlines()
    lanes = [int(line.split()[1][:-1]) for line in lines if "satisfied" in line]
    assert sorted(lanes) == list(range(6))


def test_verbose_0_is_silent_and_nothing_is_remembered(capsys):
    for level, count in [(0, 0), (1, 2), (0, 0), (1, 2)]:
        capsys.readouterr()
        ox.least_squares(decay_in(jnp), P0, verbose=level)
        jax.effects_barrier()
        assert len(capsys.readouterr().out.splitlines()) == count
