r"""First-order methods: any ``optax.GradientTransformation`` as a machine.

    x+ = P(x + u),    u, state+ = update(g, state, x)                                  (1)

P the projection onto the box. The transformation sees the parameters in the user's own
structure, so masks and groups of parameters work, and is given ``value``, ``grad`` and
``value_fn`` besides, as optax's line searches want them; the evaluations of such a line search,
a loop of optax's own inside the step, are counted where its state tells their number.

The end is that of `_minimizer`. The quadratic there is one number here, the curvature along the
last step, kappa = s.y / s.s of the projected steps, and what it promises is

    q = ||P(x - g) - x||^2 / (2 kappa),    infinite if kappa <= 0                      (2)

Different from a loop written by hand: the answer is the best point seen, and a value which is
not finite ends the run.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._bounds import projected_descent
from .._lift import lift
from .._minimize_result import LOST, NONFINITE, RUNNING
from .._problem import MinimizationProblem
from .._tree import ravel
from ..linalg import dot, norm, power_of_two, reciprocal, safe_divide
from ._minimizer import AbstractMinimizer, BestSeen, reach_of, status_of_bounds


class State(BestSeen):
    """The machine between two evaluations."""

    trial: Array  # (n,) to be evaluated
    last: Array  # (n,) evaluated before
    last_value: Array  # ()
    last_grad: Array  # (n,)
    last_reach: Array  # () G of `_minimizer`
    inner: Any  # the transformation's own state


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

    start: Any = None
    update: Any = None

    def init(self, problem: MinimizationProblem, x0: Array) -> State:
        """x0, moved into the box, is the first trial."""
        zero, none, zeros = jnp.zeros((), x0.dtype), jnp.zeros((), jnp.int32), jnp.zeros_like(x0)
        x0 = x0 + projected_descent(problem, x0, zeros)
        return State(
            x=x0, value=zero + jnp.nan, grad=zeros + jnp.nan, nfev=none, nit=none, calm=none,
            status=status_of_bounds(problem), trial=x0, last=x0, last_value=zero + jnp.inf,
            last_grad=zeros, last_reach=zero,
            inner=self.start(problem.restore_x(x0)),
        )  # fmt: skip

    def step(self, problem: MinimizationProblem, state: State) -> State:
        """Evaluate the trial, and let the transformation say where to go from there."""
        value, grad = problem.value_and_grad(state.trial)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(grad))
        first = state.nfev == 0
        here = eqx.tree_at(
            lambda s: (s.x, s.value, s.grad, s.nit),
            state,
            (state.trial, value, grad, state.nit + (finite & ~first).astype(jnp.int32)),
        )
        descent = projected_descent(problem, here.x, grad)
        promise, reach = _promise(here, descent), reach_of(here.x, descent)
        status, calm = self.judge(
            problem, here, state.last_value, promise, promise, reach, state.last_reach
        )
        status = jnp.where(finite, status, jnp.where(first, NONFINITE, LOST)).astype(jnp.int32)
        taken = first | (finite & ((status != RUNNING) | (value < state.value)))

        restore = problem.restore_x
        updates, inner, further = self.update(
            restore(grad), state.inner, restore(state.trial), value, problem.objective
        )
        moved = state.trial + ravel(updates, value.dtype)  # (1)
        if problem.bounded:
            moved = jnp.clip(moved, problem.lower, problem.upper)
        return State(
            x=jnp.where(taken, state.trial, state.x),
            value=jnp.where(taken, value, state.value),
            grad=jnp.where(taken, grad, state.grad),
            nfev=state.nfev + 1 + further,
            nit=here.nit,
            calm=calm,
            status=status,
            trial=moved,
            last=state.trial,
            last_value=value,
            last_grad=grad,
            last_reach=reach,
            inner=inner,
        )

    def origin(self, state: State) -> tuple[Array, Array]:
        """The best point before."""
        return state.x, state.value


def first_order(transformation: Any, problem: MinimizationProblem, x: Array) -> FirstOrder:
    """The machine of a transformation, for problems like this one.

    What the transformation captured, a learning rate for one, is lifted out of it: a machine
    made anew compiles no second time, and the answer of a few unrolled steps is differentiable
    in it.
    """
    import optax  # who has a transformation has it loaded; for others it would take a while

    extended = optax.with_extra_args_support(transformation)
    params = jax.eval_shape(problem.restore_x, x)
    value = jax.ShapeDtypeStruct((), x.dtype)
    with jax.numpy_dtype_promotion("standard"):
        start = lift(extended.init, params, label="`method.init`")

        def update(grad: Any, inner: Any, params: Any, value: Array, objective: Any) -> Any:
            def fun(params: Any) -> Array:
                return objective(ravel(params, value.dtype)).astype(value.dtype)

            updates, after = extended.update(
                grad, inner, params, value=value, grad=grad, value_fn=fun
            )
            after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, inner)
            return updates, after, _evaluations(after)

        lifted = lift(
            update, params, start.out_shape, params, value, problem.objective,
            label="`method.update`",
        )  # fmt: skip
    return FirstOrder(start=start, update=lifted)


def _promise(state: State, descent: Array) -> Array:
    """q of (2), 0 where the projected gradient is."""
    unit = power_of_two(state.grad)
    step, per_unit = state.x - state.last, reciprocal(unit)
    along = dot(step, (state.grad - state.last_grad) * per_unit)
    size = norm(descent * per_unit) * norm(step)
    q = jnp.where(along > 0, 0.5 * size * safe_divide(size, along) * unit, jnp.inf)
    return jnp.where(jnp.any(descent != 0), q, 0)


def _evaluations(inner: Any) -> Array:
    """Those of the transformation's own line search."""
    import optax

    found = optax.tree_utils.tree_get_all_with_path(inner, "num_linesearch_steps")
    counts = [jnp.asarray(count, jnp.int32) for _, count in found]
    return sum(counts, jnp.zeros((), jnp.int32))
