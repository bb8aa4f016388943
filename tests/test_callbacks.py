"""What is seen of a solve while it runs: `callback` and `verbose`, eager and compiled.

The oracle of the printed text is SciPy's own output.
"""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox

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
    assert len(seen) == int(res.nit) >= 3
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


def test_the_callback_does_not_change_the_answer(run):
    watched, alone = run(lambda x: None), eager(None)
    assert_array_equal(watched.x, alone.x)
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


def test_verbose_0_is_silent_and_nothing_is_remembered(capsys):
    for level, count in [(0, 0), (1, 2), (0, 0), (1, 2)]:
        capsys.readouterr()
        ox.least_squares(decay_in(jnp), P0, verbose=level)
        jax.effects_barrier()
        assert len(capsys.readouterr().out.splitlines()) == count
