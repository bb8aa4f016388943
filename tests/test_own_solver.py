"""Solvers written outside of the package, by its protocol, in every front door and transform."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import optx_lite as ox
from optx_lite.driver import custom_derivative
from optx_lite.solvers.base import Report

T = np.linspace(0.0, 2.0, 20)
Y = 2.0 * np.exp(-1.3 * T) + 0.05 * np.sin(9.0 * np.arange(20))


class GaussNewtonState(eqx.Module):
    x: jax.Array
    f: jax.Array
    jacobian: jax.Array
    last: jax.Array  # () length of the last step
    nfev: jax.Array
    status: jax.Array


class GaussNewton(ox.AbstractLeastSquaresSolver[GaussNewtonState]):
    """Undamped, until a step is short."""

    TAKES_BOUNDS = False

    xtol: Any = 1e-10

    def init(self, problem, x0):
        f, jacobian = problem.linearize(x0)
        zero = jnp.zeros((), jnp.int32)
        return GaussNewtonState(x0, f, jacobian().T, jnp.full((), jnp.inf), zero + 1, zero)

    def step(self, problem, state):
        step = -jnp.linalg.lstsq(state.jacobian, state.f)[0]
        x = state.x + step
        f, jacobian = problem.linearize(x)
        length = jnp.linalg.norm(step)
        xtol = jnp.maximum(self.xtol, 4 * jnp.finfo(x.dtype).eps)
        status = jnp.where(length <= xtol * jnp.linalg.norm(x), 3, 0).astype(jnp.int32)
        return GaussNewtonState(x, f, jacobian().T, length, state.nfev + 1, status)

    def running(self, problem, state):
        return (state.status == 0) & (state.nfev < self.most_steps(state.x.size))

    def most_steps(self, n):
        return 50

    def finish(self, problem, state):
        grad = state.jacobian.T @ state.f
        return ox.Result(
            x=state.x, cost=0.5 * state.f @ state.f, fun=state.f, jac=state.jacobian, grad=grad,
            optimality=jnp.max(jnp.abs(grad)), active_mask=jnp.zeros(state.x.shape, jnp.int32),
            nfev=state.nfev, njev=state.nfev, nit=state.nfev - 1, status=state.status,
        )  # fmt: skip

    def report(self, problem, before, after):
        cost, was = (0.5 * state.f @ state.f for state in (after, before))
        grad = after.jacobian.T @ after.f
        report = Report(
            x=after.x, fun=after.f, value=cost, reduction=was - cost, step_norm=after.last,
            optimality=jnp.max(jnp.abs(grad)), nit=after.nfev - 1, nfev=after.nfev,
        )  # fmt: skip
        return report, jnp.array(True)


def decay(p, y):
    return p[0] * jnp.exp(-p[1] * T) - y


def fit(y, **options):
    return ox.least_squares(decay, [1.0, 1.0], args=(y,), method=GaussNewton(), **options)


@pytest.fixture(scope="module")
def expected():
    res = ox.least_squares(decay, [1.0, 1.0], args=(Y,), method="lm")
    slope = jax.jacrev(lambda y: ox.least_squares(decay, [1.0, 1.0], args=(y,), method="lm").x)
    return res, slope(jnp.asarray(Y))


def test_a_solver_as_method(expected):
    res = fit(Y)
    assert res.success and res.status == 3
    assert_allclose(res.x, expected[0].x, rtol=1e-8)
    assert_allclose(jax.jit(lambda y: fit(y).x)(Y), res.x, rtol=1e-12)
    again = ox.run(GaussNewton(), *ox.least_squares_problem(decay, [1.0, 1.0], args=(Y,)))
    assert_allclose(again.x, res.x, rtol=1e-12)


def test_lanes_and_derivatives(expected):
    many = np.stack([Y, 1.5 * Y])
    lanes = jax.jit(jax.vmap(lambda y: fit(y).x))(many)
    for lane, y in zip(lanes, many, strict=True):
        assert_allclose(lane, fit(y).x, rtol=1e-9)
    for mode in (jax.jacfwd, jax.jacrev):
        assert_allclose(mode(lambda y: fit(y).x)(jnp.asarray(Y)), expected[1], rtol=1e-6)


SIZE = 1.0


class ReadsAGlobal(GaussNewton):
    def finish(self, problem, state):
        return eqx.tree_at(lambda r: r.x, super().finish(problem, state), SIZE * state.x)


@pytest.mark.parametrize("how", [ox.ImplicitAdjoint(), ox.UnrolledAdjoint(steps=9), "record"])
def test_a_solver_is_seen_as_it_is_now(how, monkeypatch):
    def solution():
        problem, x0 = ox.least_squares_problem(lambda x: x - 2.0, [1.0])
        if how == "record":
            return ox.record(ReadsAGlobal(), problem, x0)[0].x
        return ox.run(ReadsAGlobal(), problem, x0, how).x

    assert_allclose(solution(), 2.0)
    programs = custom_derivative._run._cache_size()
    assert_allclose(solution(), 2.0)
    assert (
        custom_derivative._run._cache_size() == programs
    )  # nothing compiles where nothing has changed
    monkeypatch.setitem(globals(), "SIZE", 0.5)
    assert_allclose(solution(), 1.0)


def test_callback_and_report(capsys):
    seen = []
    res = fit(Y, callback=lambda x: seen.append(np.array(x)), verbose=2)
    assert len(seen) == res.nit
    assert_allclose(seen[-1], res.x)
    assert "Total nfev" in capsys.readouterr().out


def test_bounds_are_refused_by_what_the_solver_says():
    with pytest.raises(ValueError, match="Method 'GaussNewton' doesn't support bounds"):
        fit(Y, bounds=(0.0, 5.0))


@pytest.mark.parametrize("setting", [{"ftol": 1e-3}, {"max_nfev": 5}, {"x_scale": "jac"}])
def test_settings_belong_to_the_solver(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"`{name}` is for methods that are named"):
        fit(Y, **setting)


@pytest.mark.parametrize(
    "solver", [ox.TrustRegionReflective, ox.Dogbox, ox.LevenbergMarquardt], ids=lambda s: s.__name__
)
def test_the_packages_own_solvers_as_method(solver, expected):
    res = ox.least_squares(decay, [1.0, 1.0], args=(Y,), method=solver(xtol=1e-12))
    assert res.success
    assert_allclose(res.x, expected[0].x, rtol=1e-8)


def test_neither_a_name_nor_a_solver():
    with pytest.raises(ValueError, match=r"`method` must be .* or a solver such as ox.Dogbox\(\)"):
        ox.least_squares(decay, [1.0, 1.0], args=(Y,), method=ox.LBFGSB())
