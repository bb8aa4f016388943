r"""First-order methods: any ``optax.GradientTransformation`` as a solver.

    x+ = P(x + u),    u, state+ = update(g, state, x)                                  (1)

P the projection onto the box. The transformation sees the parameters in the user's own
structure, so masks and groups of parameters work, and is given ``value``, ``grad`` and
``value_fn`` besides, as optax's line searches need them; the evaluations of such a line search,
a loop of optax's own inside the step, are counted where its state has their number.

The end is that of `convergence`. The quadratic there is one number here, the flattest curvature
seen along the steps s of late, and what it promises is

    q = ||P(x - g) - x||^2 f / 2,    f = max(s.s / s.y, FADE f_before)                 (2)

infinite while s.y <= 0. A step across a narrow valley says nothing of what lies along it.

A success is claimed after one evaluation more, a look whether the gradient goes to 0 there.

A line search of the transformation's own does not know of the box, and may find nothing lower for
ever: the end, if that lasts `PATIENCE` times `MOST_DIGITS` iterations.

Different from a loop written by hand: the answer is the best point seen, and a value which is
not finite ends the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ...functions import lift
from ...functions.traced import Lifted
from ...jax_support.control_flow import vary_with
from ...jax_support.xla import full_precision
from ...linalg import dot, norm, reciprocal, safe_divide, unit_of
from ...problem.bounds import projected_descent
from ...problem.minimization import MinimizationProblem
from ...problem.pytrees import ravel
from ...results.minimize import FTOL, GTOL, KINK, LOST, NONFINITE, RUNNING, STUCK
from .base import AbstractMinimizer, BestSeen, status_of_bounds
from .convergence import MOST_DIGITS, PATIENCE, reach_of
from .look_back import is_cut_short, is_small_part, look_back, stays

FADE = 0.9  # of the flattest curvature seen, an iteration


class State(BestSeen):
    """The solver between two evaluations."""

    trial: Float[Array, " n"]  # to be evaluated
    last: Float[Array, " n"]  # evaluated before
    last_value: Float[Array, ""]
    last_grad: Float[Array, " n"]
    last_reach: Float[Array, ""]  # G of `convergence`
    flatness: Float[Array, ""]  # f of (2), without the present step
    idle: Int[Array, ""]  # iterations since the best point was found
    pending: Int[Array, ""]  # the status that waits for a look whether the gradient vanishes
    inner: PyTree  # the transformation's own state


class FirstOrder(AbstractMinimizer[State]):
    """See the module; made by `first_order`.

    Attributes
    ----------
    ftol, gtol, maxfun, maxiter
        See `AbstractMinimizer`.
    start : Lifted
        Parameters to the transformation's state.
    update : Lifted
        (gradient, state, parameters, value, objective) to (updates, state, evaluations).
    """

    start: Lifted = eqx.field(kw_only=True)
    update: Lifted = eqx.field(kw_only=True)

    def init(self, problem: MinimizationProblem, x0: Float[Array, " n"]) -> State:
        """x0, moved into the box, is the first trial."""
        zero, none, zeros = jnp.zeros((), x0.dtype), jnp.zeros((), jnp.int32), jnp.zeros_like(x0)
        x0 = x0 + projected_descent(problem, x0, zeros)
        return State(
            x=x0, value=zero + jnp.nan, grad=zeros + jnp.nan, nfev=none, nit=none,
            unchanged=none, status=status_of_bounds(problem), trial=x0, last=x0,
            last_value=zero + jnp.inf, last_grad=zeros, last_reach=zero, flatness=zero, idle=none,
            pending=none,
            inner=self.start(problem.restore_x(x0)),
        )  # fmt: skip

    @full_precision
    def step(self, problem: MinimizationProblem, state: State) -> State:
        """Evaluate the trial, and let the transformation say where to go from there."""
        value, grad = problem.value_and_grad(state.trial)
        moved = self._moved(problem, state, value, grad)
        looked = _looked_back(problem, state, grad)
        looking = state.pending != RUNNING
        return jax.tree.map(lambda a, b: jnp.where(looking, a, b), looked, moved)

    def _moved(
        self,
        problem: MinimizationProblem,
        state: State,
        value: Float[Array, ""],
        grad: Float[Array, " n"],
    ) -> State:
        """After an evaluation on the way."""
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(grad))
        first = state.nfev == 0
        here = eqx.tree_at(
            lambda s: (s.x, s.value, s.grad, s.nit),
            state,
            (state.trial, value, grad, state.nit + (finite & ~first).astype(jnp.int32)),
        )
        descent = projected_descent(problem, here.x, grad)
        promise, flatness = _promise(here, descent)
        reach = reach_of(here.x, descent)
        status, unchanged = self.judge(
            problem, here, state.last_value, promise, promise, reach, state.last_reach
        )
        status = jnp.where(finite, status, jnp.where(first, NONFINITE, LOST)).astype(jnp.int32)
        taken = first | (finite & ((status != RUNNING) | (value < state.value)))

        idle = jnp.where(taken, 0, state.idle + 1)

        restore = problem.restore_x
        updates, inner, further = self.update(
            restore(grad), state.inner, restore(state.trial), value, problem.objective
        )
        if further is not None:
            stuck = (status == RUNNING) & (idle >= PATIENCE * MOST_DIGITS)
            status = jnp.where(stuck, STUCK, status).astype(jnp.int32)
        moved = state.trial + ravel(updates, value.dtype)  # (1)
        if problem.bounded:
            moved = jnp.clip(moved, problem.lower, problem.upper)
        claimed = ((status == GTOL) | (status == FTOL)) & jnp.any(descent != 0)
        behind, _ = look_back(problem, here.x, value, descent, descent * flatness)
        return State(
            x=jnp.where(taken, state.trial, state.x),
            value=jnp.where(taken, value, state.value),
            grad=jnp.where(taken, grad, state.grad),
            nfev=state.nfev + 1 + (0 if further is None else further),
            nit=here.nit,
            unchanged=unchanged,
            status=jnp.where(claimed, RUNNING, status),
            trial=jnp.where(claimed, behind, moved),
            last=state.trial,
            last_value=value,
            last_grad=grad,
            last_reach=reach,
            flatness=flatness,
            idle=idle,
            pending=jnp.where(claimed, status, RUNNING),
            inner=inner,
        )

    def origin(self, state: State) -> tuple[Float[Array, " n"], Float[Array, ""]]:
        """The best point before."""
        return state.x, state.value


def first_order(transformation: Any, problem: MinimizationProblem, x: Array) -> FirstOrder:
    """The solver of a transformation, for problems like this one.

    What the transformation captured, a learning rate for one, is lifted out of it: a solver
    made anew compiles no second time, and the answer of a few unrolled steps is differentiable
    in it.
    """
    import optax  # who has a transformation has it loaded; for others it would take a while

    extended = optax.with_extra_args_support(transformation)
    params = jax.eval_shape(problem.restore_x, x)
    value = vary_with(jax.ShapeDtypeStruct((), x.dtype), x)
    with jax.numpy_dtype_promotion("standard"):
        start = lift(extended.init, params, label="`method.init`")

        def update(
            grad: PyTree, inner: PyTree, params: PyTree, value: Array, objective: Callable
        ) -> PyTree:
            def fun(params: PyTree) -> Array:
                return objective(ravel(params, value.dtype)).astype(value.dtype)

            updates, after = extended.update(
                grad, inner, params, value=value, grad=grad, value_fn=fun
            )
            after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, inner)
            return updates, after, _evaluations(after)

        lifted = lift(
            update, params, vary_with(start.out_shape, x), params, value, problem.objective,
            label="`method.update`",
        )  # fmt: skip
    return FirstOrder(start=start, update=lifted)


def _looked_back(problem: MinimizationProblem, state: State, grad: Float[Array, " n"]) -> State:
    """After a look behind x, whether the gradient vanishes there."""
    descent = projected_descent(problem, state.x, state.grad)
    cut = is_cut_short(problem, state.x, state.trial)
    confirmed = is_small_part(state.x, descent, stays(descent, grad)) | cut
    status = jnp.where(confirmed, state.pending, KINK).astype(jnp.int32)
    return eqx.tree_at(
        lambda s: (s.nfev, s.status, s.pending),
        state,
        (state.nfev + 1, status, jnp.full_like(status, RUNNING)),
    )


def _promise(
    state: State, descent: Float[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """q of (2), 0 where the projected gradient is, and the flatness to go on with."""
    unit = unit_of(state.grad)
    step, per_unit = state.x - state.last, reciprocal(unit)
    along, length = dot(step, (state.grad - state.last_grad) * per_unit), norm(step)
    seen = length * safe_divide(length, along) * per_unit
    curved = (along > 0) & (seen > 0)
    flatness = jnp.maximum(jnp.where(curved, seen, 0), FADE * state.flatness)
    size = norm(descent)
    q = jnp.where(curved, 0.5 * size * (size * flatness), jnp.inf)
    return jnp.where(size > 0, q, 0), flatness


def _evaluations(inner: PyTree) -> Array | None:
    """Those of the transformation's own line search, if it has one."""
    import optax

    found = optax.tree_utils.tree_get_all_with_path(inner, "num_linesearch_steps")
    counts = [jnp.asarray(count, jnp.int32) for _, count in found]
    return sum(counts, jnp.zeros((), jnp.int32)) if counts else None
