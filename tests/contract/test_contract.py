"""What every solver of every family keeps, at every front door.

The oracles: one lane of a batch is the call alone; an answer moves with the data as central
differences of the answer say; a program's text says how often it evaluates the user's function.
Few programs are compiled, and each serves many instances: c and the wall are data.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.contract.program_text import operations
from tests.contract.solvers import SOLVERS

INF = np.inf
CS = np.array([[0.3, 0.4], [0.5, -0.2], [0.1, 0.9], [np.nan, 0.4]])
BAD = 3  # the lane whose data are not finite
GOOD = [0, 1, 2]
DIRECTION = np.array([1.0, 0.5])
NAMES = list(SOLVERS)
WITH_STATE = [name for name, row in SOLVERS.items() if row.by_hand]
DIFFERENTIABLE = [name for name, row in SOLVERS.items() if row.has_derivative]
WITH_CALLBACK = [name for name, row in SOLVERS.items() if row.takes_callback]


def alone(name, c, wall=INF, dtype=np.float64, **options):
    """The eager call."""
    row = SOLVERS[name]
    arrays = (np.asarray(value, dtype) for value in (row.start, c, wall))
    return row.solve(*arrays, **options)


@functools.cache
def batch(name):
    """All lanes at once, compiled: results, answers moved by a change of c, Jacobians in c."""
    row = SOLVERS[name]

    def one(c, wall):
        def solve(c):
            result = row.solve(jnp.asarray(row.start), c, wall)
            return row.answer(result), result

        if not row.has_derivative:
            return solve(c)[1], None, None
        answer, push, result = jax.linearize(solve, c, has_aux=True)
        pull = jax.vmap(jax.linear_transpose(push, c))
        return result, push(jnp.asarray(DIRECTION)), pull(jnp.eye(answer.size))[0]

    return jax.jit(jax.vmap(one))


@functools.cache
def lanes(name):
    """Those of CS without a wall, and the first of them with each."""
    walls = SOLVERS[name].walls
    cs = np.concatenate([CS, np.repeat(CS[:1], len(walls), axis=0)])
    return batch(name)(cs, np.array([INF] * len(CS) + list(walls)))


def lane(tree, i):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[i], tree)


def succeeded(result):
    return bool(np.all(result.success))


# ---------------------------------------------------------------------------------------
# The program


def test_the_counting_itself():
    def loop(x):
        def body(_, x):
            once = jax.jit(jnp.sin)(x)
            return jax.lax.fori_loop(0, x.size, lambda _, z: jnp.sin(z), once)

        return jnp.sin(jax.lax.fori_loop(0, x.size, body, x))

    assert operations(jax.jit(loop), np.ones(3)) == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("name", NAMES)
def test_the_function_stands_once_in_the_loop(name):
    row = SOLVERS[name]
    one = lambda c, wall: row.answer(row.solve(jnp.asarray(row.start), c, wall))
    wall = np.array(INF)
    for program, c in ((jax.jit(one), CS[0]), (jax.jit(jax.vmap(one, (0, None))), CS)):
        found = operations(program, c, wall)
        found.pop(0, None)  # before the loop
        assert found == row.evaluations


@pytest.mark.parametrize("name", WITH_STATE)
def test_the_state_is_arrays_which_a_step_keeps(name):
    row = SOLVERS[name]
    state, step = row.by_hand(row.start, CS[0], INF)
    assert all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in jax.tree.leaves(state))
    after = jax.eval_shape(step, state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    types = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(s)] for s in (state, after)]
    assert types[0] == types[1]
    # Nothing hides in the structure either: it compares equal for other data.
    other, _ = row.by_hand(row.start + 1, CS[1], 5.0)
    assert jax.tree.structure(other) == jax.tree.structure(state)


# ---------------------------------------------------------------------------------------
# Answers


@pytest.mark.parametrize("name", NAMES)
def test_a_lane_of_a_compiled_batch_is_the_eager_call(name):
    row = SOLVERS[name]
    results, *_ = lanes(name)
    for i in GOOD:
        eager, compiled = alone(name, CS[i]), lane(results, i)
        assert succeeded(eager)
        assert succeeded(compiled)
        assert_allclose(row.answer(compiled), row.answer(eager), rtol=1e-7, atol=1e-9)
        assert jax.tree.structure(eager) == jax.tree.structure(results)


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_lane_says_so_and_touches_no_other(name):
    results, *_ = lanes(name)
    bad = np.asarray(results.success)[BAD]
    assert not np.all(bad)
    assert np.asarray(results.success)[GOOD].all()


@pytest.mark.parametrize("name", NAMES)
def test_a_trial_that_is_not_finite(name):
    row = SOLVERS[name]
    results, *_ = lanes(name)
    free = lane(results, 0)
    walled = [lane(results, len(CS) + i) for i in range(len(row.walls))]
    assert any(np.any(res.nfev != free.nfev) or not succeeded(res) for res in walled), "none is met"
    for res in walled:
        assert succeeded(res) == row.recovers
        if row.recovers:
            assert_allclose(row.answer(res), row.answer(free), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_at_home(name):
    row = SOLVERS[name]
    single, double = alone(name, CS[0], dtype=np.float32), alone(name, CS[0])
    assert row.answer(single).dtype == np.float32
    assert row.answer(double).dtype == np.float64
    if row.has_derivative:  # or else the answer is any valid bracket
        assert_allclose(row.answer(single), row.answer(double), rtol=2e-3)
    assert succeeded(single)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_answer_moves_as_differences_say(name):
    row = SOLVERS[name]
    _, moved, _ = lanes(name)
    step = 1e-3  # a minimiser by values has half of the digits: 1e-8 / step is the noise
    for i in GOOD[:2]:
        ahead, behind = (
            row.answer(alone(name, CS[i] + sign * step * DIRECTION)) for sign in (1, -1)
        )
        assert_allclose(moved[i], (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)
    assert np.isnan(moved[BAD]).any(), "no derivative where there is no answer"


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_reverse_mode_is_forward_mode(name):
    _, moved, jacobians = lanes(name)
    for i in GOOD:
        assert_allclose(jacobians[i] @ DIRECTION, moved[i], rtol=1e-9)


@pytest.mark.parametrize("name", WITH_CALLBACK)
def test_a_callback_sees_each_iteration(name):
    seen = []

    def callback(intermediate_result):
        seen.append(np.array(intermediate_result.x))

    plain = alone(name, CS[0])
    result = alone(name, CS[0], callback=callback)
    assert_array_equal(result.nit, plain.nit)
    assert_allclose(result.x, plain.x, rtol=1e-12)
    assert len(seen) - np.max(result.nit) in (0, 1)  # an elementwise search shows its start, too
    assert_array_equal(seen[-1], result.x)
