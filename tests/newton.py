"""A minimiser that compiles in a moment, for tests of what runs many solves."""

from typing import Any

import jax
import jax.numpy as jnp

import optx_lite as ox
from optx_lite.results.minimize import GTOL
from optx_lite.solvers.minimize.base import BestSeen


class State(BestSeen):
    trial: jax.Array  # (n,)
    step: jax.Array  # (n,) from x; Newton's, or a part of it


class Newton(ox.AbstractMinimizer[State]):
    """Newton's method with the absolute values of the eigenvalues; steps that raise f are halved.

    For small n without bounds; a trial that is not finite is a step that raises f.
    """

    gtol: Any = 1e-9

    def init(self, problem, x0):
        zero, none = jnp.zeros_like(x0), jnp.zeros((), jnp.int32)
        infinite = jnp.full((), jnp.inf, x0.dtype)
        return State(x0, infinite, zero, none, none, none, none, x0, zero)

    def step(self, problem, state):
        value, grad = problem.value_and_grad(state.trial)
        noise = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)
        lower = (value <= state.value + noise) | (state.nfev == 0)
        x, step = jnp.where(lower, state.trial, state.x), state.step
        grad, value = jnp.where(lower, grad, state.grad), jnp.where(lower, value, state.value)
        curvature, axes = jnp.linalg.eigh(jax.jacfwd(problem.gradient)(x))
        step = jnp.where(lower, -axes @ (grad @ axes / jnp.abs(curvature)), step / 2)
        size = jnp.maximum(self.gtol, 100 * jnp.finfo(x.dtype).eps)
        met = jnp.max(jnp.abs(grad)) <= size * jnp.maximum(1, jnp.abs(value))
        status = jnp.where(met, GTOL, 0).astype(jnp.int32)
        nit = state.nit + lower.astype(jnp.int32)
        return State(
            x, value, grad, state.nfev + 1, nit, state.unchanged, status, x + step, step
        )  # fmt: skip

    def origin(self, state):
        return state.x, state.value
