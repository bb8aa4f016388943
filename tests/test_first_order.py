"""optax's transformations in `minimize`, and `lbfgsb` as one of them in a loop of optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize as so
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox


def loss(p, a=2.0):
    return (p["a"] - a) ** 2 + 5 * jnp.sum((p["b"] - p["a"] ** 2) ** 2)


def params():
    return {"a": jnp.array(0.0), "b": jnp.zeros(2)}


BOX = ({"a": -1.0, "b": -np.inf}, {"a": np.inf, "b": 1.5})


def expected(bounds):
    flat = lambda x: float(loss({"a": x[0], "b": x[1:]}))
    box = [(-1, None), (None, 1.5), (None, 1.5)] if bounds else None
    return so.minimize(flat, np.zeros(3), bounds=box, method="L-BFGS-B", tol=1e-12).x


METHODS = {
    "adam": optax.adam(0.03),
    "momentum": optax.chain(optax.clip(10.0), optax.sgd(5e-3, momentum=0.9)),
    "lbfgs": optax.lbfgs(),
}


# The line search of optax's lbfgs does not know of a box.
RUNS = [(name, None) for name in METHODS] + [("adam", BOX), ("momentum", BOX)]


@pytest.mark.parametrize(("method", "bounds"), RUNS)
def test_transformations_find_scipys_minimum(method, bounds):
    res = ox.minimize(loss, params(), method=METHODS[method], bounds=bounds)
    assert res.success, res.message
    a, *b = expected(bounds is not None)
    assert_allclose(res.x["a"], a, atol=1e-4)
    assert_allclose(res.x["b"], b, atol=1e-4)
    assert res.hess_inv is None
    assert_allclose(loss(res.x), res.fun)


def test_it_is_the_loop_that_optax_documents():
    transformation, p = optax.adam(0.1), params()
    state, values = transformation.init(p), []
    for _ in range(8):
        value, grads = jax.value_and_grad(loss)(p)
        values.append(value)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = transformation.update(grads, state, p)
        p = optax.apply_updates(p, updates)
    seen = []
    ox.minimize(
        loss, params(), method=transformation, options={"maxiter": 7},
        callback=lambda intermediate_result: seen.append(intermediate_result.fun),
    )  # fmt: skip
    assert_allclose(seen, np.minimum.accumulate(values)[1:], rtol=1e-12)


def test_a_line_search_of_optax_is_counted():
    calls = []

    def fun(x):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum((x - 1) ** 4)

    res = ox.minimize(fun, np.array([9.0, -3.0]), method=optax.lbfgs(), options={"maxiter": 6})
    jax.effects_barrier()
    assert res.nfev > res.nit + 1
    assert abs(len(calls) - res.nfev) <= res.nit + 2  # optax evaluates once more at the end


def test_a_short_step_is_no_claim():
    # Every step is tiny, and so is every reduction.
    res = ox.minimize(loss, params(), method=optax.sgd(1e-9), options={"maxiter": 200, "gtol": 0.0})
    assert not res.success


def test_a_value_that_is_not_finite_ends_it():
    res = ox.minimize(lambda x: jnp.sum(x**4), np.array([3.0]), method=optax.sgd(1.0))
    assert res.status == 2
    assert "not finite" in res.message
    assert_array_equal(res.x, [3.0])


def test_derivatives():
    solve = lambda a: ox.minimize(loss, params(), args=(a,), method=METHODS["lbfgs"]).x["b"][0]
    rates = jnp.array([0.5, 1.0, 1.3])
    assert_allclose(jax.jit(jax.vmap(jax.grad(solve)))(rates), 2 * rates, rtol=1e-4)  # b = a^2

    def stopped(rate):
        adjoint = ox.UnrolledAdjoint(steps=6)
        return ox.minimize(loss, params(), method=optax.sgd(rate), adjoint=adjoint).fun

    @jax.jit
    def derivatives(rate):
        value, push = jax.linearize(stopped, rate)
        return value, push(1.0), jax.linear_transpose(push, rate)(1.0)[0]

    slope = (derivatives(0.0101)[0] - derivatives(0.0099)[0]) / 2e-4
    _, *both = derivatives(0.01)
    assert_allclose(both, [slope, slope], rtol=1e-3)


def test_a_new_learning_rate_compiles_nothing(caplog):
    run = lambda rate: ox.minimize(loss, params(), method=optax.sgd(rate), options={"maxiter": 5})
    run(1e-3)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        run(2e-3)
    assert "Compiling" not in caplog.text


def test_solvers_as_methods():
    res = ox.minimize(loss, params(), method=ox.LBFGSB(maxcor=3), bounds=BOX)
    assert_allclose(res.x["a"], expected(True)[0], atol=1e-5)
    assert res.hess_inv.n_corrs <= 3


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"maxcor.*not known to method optax"):
        ox.minimize(loss, params(), method=optax.adam(0.1), options={"maxcor": 3})
    with pytest.raises(ValueError, match=r"ftol.*not known to method solver"):
        ox.minimize(loss, params(), method=ox.LBFGSB(), options={"ftol": 3})
    with pytest.raises(ValueError, match="`tol`"):
        ox.minimize(loss, params(), method=ox.LBFGSB(), tol=1e-3)
    with pytest.raises(ValueError, match=r"optax.adam\(1e-2\)"):
        ox.minimize(loss, params(), method="adam")


# ---------------------------------------------------------------------------------------
# L-BFGS-B as a transformation


def train(fun, p, transformation, turns):
    """A plain loop of optax; the points at which it evaluated."""
    state, seen = transformation.init(p), []
    for _ in range(turns):
        value, grads = jax.value_and_grad(fun)(p)
        seen.append(p)
        updates, state = transformation.update(grads, state, p, value=value)
        p = optax.apply_updates(p, updates)
        if state.status != 0:
            break
    return p, state, seen


@pytest.mark.parametrize("bounds", [None, BOX], ids=["free", "boxed"])
def test_lbfgsb_in_a_loop_is_minimize(bounds):
    p, state, seen = train(loss, params(), ox.lbfgsb(bounds), 100)
    res = ox.minimize(loss, params(), bounds=bounds)
    assert len(seen) == res.nfev
    assert_allclose(p["a"], res.x["a"], rtol=1e-12)
    assert_allclose(p["b"], res.x["b"], rtol=1e-12)
    assert_allclose(state.solver_state.value, res.fun, atol=1e-15)
    if bounds:
        assert all(np.all(q["b"] <= 1.5) and q["a"] >= -1 for q in seen)


def test_lbfgsb_stays_in_the_box_to_the_last_bit():
    rng = np.random.default_rng(0)
    for _ in range(3):
        lower, upper = -rng.uniform(0, 1, 4), rng.uniform(0, 1, 4)
        target = 3 * rng.standard_normal(4)
        fun = lambda x, target=target: jnp.sum((x - target) ** 2) + jnp.prod(x)
        x, _, seen = train(fun, jnp.zeros(4), ox.lbfgsb((lower, upper)), 60)
        assert all(np.all((q >= lower) & (q <= upper)) for q in [*seen, x])


def test_lbfgsb_goes_into_the_box_first():
    outside = {"a": jnp.array(-5.0), "b": jnp.array([0.0, 4.0])}
    p, state, seen = train(loss, outside, ox.lbfgsb(BOX), 100)
    assert_allclose(seen[1]["a"], -1)
    assert_allclose(seen[1]["b"], [0, 1.5])
    assert state.solver_state.nfev == len(seen) - 1
    assert_allclose(p["a"], expected(True)[0], atol=1e-4)


def test_lbfgsb_rests_when_it_has_ended():
    transformation = ox.lbfgsb()
    p, state, _ = train(loss, params(), transformation, 100)
    assert state.status == 1
    value, grads = jax.value_and_grad(loss)(p)
    updates, after = transformation.update(grads, state, p, value=value)
    assert all(np.all(u == 0) for u in jax.tree.leaves(updates))
    assert after.status == 1


def test_lbfgsb_in_float32_and_in_a_chain():
    small = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params())
    transformation = optax.chain(ox.lbfgsb(BOX), optax.identity())
    state = transformation.init(small)
    p = small
    for _ in range(30):
        value, grads = jax.value_and_grad(loss)(p)
        updates, state = transformation.update(grads, state, p, value=value)
        p = optax.apply_updates(p, updates)
    assert p["a"].dtype == jnp.float32
    assert_allclose(p["a"], expected(True)[0], atol=1e-3)


def test_lbfgsb_says_what_is_missing():
    transformation = ox.lbfgsb()
    state = transformation.init(params())
    with pytest.raises(ValueError, match="`params` is missing"):
        transformation.update(params(), state)
    with pytest.raises(ValueError, match="`value` is missing"):
        transformation.update(params(), state, params())


def test_lbfgsb_refuses_what_it_cannot_take():
    transformation = ox.lbfgsb()
    with pytest.raises(ValueError, match="real arrays of floating dtype"):
        transformation.init(jnp.array([1j]))
    p = jnp.ones(2)
    state = transformation.init(p)
    with pytest.raises(ValueError, match=r"`value` must be a scalar, got shape \(1,\)"):
        transformation.update(p, state, p, value=jnp.ones(1))


@pytest.mark.slow
def test_a_scan_over_lbfgsb_in_a_box_has_both_derivatives():
    transformation = ox.lbfgsb((-1.0, 0.7))

    def loss(x, a):
        return (a - x[0]) ** 2 + 10 * jnp.sum((x[1:] - x[:-1] ** 2) ** 2)

    def trained(v):
        def turn(carry, _):
            p, state = carry
            value, grads = jax.value_and_grad(loss)(p, v[3])
            updates, state = transformation.update(grads, state, p, value=value)
            return (p + updates, state), None

        start = (v[:3], transformation.init(v[:3]))
        return jax.lax.scan(turn, start, None, length=6)[0][0]

    # One direction each way: less to compile.
    along, back = np.array([0.3, -0.2, 0.5, 1.0]), np.array([1.0, -0.5, 0.3])

    @jax.jit
    def derivatives(v):
        x, push = jax.linearize(trained, v)
        return x, push(along), jax.linear_transpose(push, v)(back)[0]

    v, h = np.array([-0.7, 0.4, 0.3, 1.1]), 1e-6
    solve = lambda v: derivatives(v)[0]
    expected = np.stack([(solve(v + e) - solve(v - e)) / (2 * h) for e in h * np.eye(4)], axis=1)
    _, forward, backward = derivatives(v)
    assert_allclose(backward, back @ expected, atol=1e-6)
    assert_allclose(forward, expected @ along, atol=1e-6)
