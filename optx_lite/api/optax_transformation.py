"""L-BFGS-B as an optax transformation: the solver, its evaluations made by the user's loop.

Reverse communication, which is how the original code was meant to be used: each ``update`` gets
the value and gradient of the point it asked for, and answers with the way to the next one, be it
a trial of the line search or a new iterate. So there is one evaluation in each turn of the loop,
and no line search of optax is needed beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..jax_support.types import Bounds
from ..problem.arguments import check_bounds
from ..problem.pytrees import Unravel, as_dtype, ravel, widest
from ..results.minimize import RUNNING
from ..solvers import LBFGSB

if TYPE_CHECKING:
    import optax

NO_LIMIT = int(np.iinfo(np.int32).max)  # of turns: that is the loop's business


class LbfgsbState(NamedTuple):
    """What the transformation carries.

    Attributes
    ----------
    solver_state : State
        With ``x``, ``value``, the best point and what ``fun`` is there, and ``nit``.
    status : array, shape (), int
        0 while it runs; then `update` answers with the step to the best point, and after that
        with zeros. The codes are those of ``task`` in `MinimizeResult`: 1 gtol, 2 ftol and 7 (all
        variables fixed) mean convergence.
    """

    solver_state: PyTree
    status: int | Array


class _KnownValue(eqx.Module):
    """A problem of which one value is known."""

    value: Array
    grad: Array
    lower: Array
    upper: Array
    bounded: bool = eqx.field(static=True)

    def value_and_grad(self, x: Array) -> tuple[Array, Array]:
        return self.value, self.grad


def lbfgsb(
    bounds: Bounds = None,
    *,
    maxcor: int = 10,
    maxls: int = 20,
    ftol: float = 2.2204460492503131e-09,
    gtol: float = 1e-5,
) -> optax.GradientTransformationExtraArgs:
    """L-BFGS-B as a transformation for a training loop of optax.

    The objective must be the same in each turn: this is a method for whole batches. The points
    that the loop evaluates are the trials of its line search, every one of them in the box; a start
    outside of it costs one evaluation more.

    Parameters
    ----------
    bounds : (lower, upper) or object with ``lb`` and ``ub``, optional
        Each a number or a pytree prefix of the parameters.
    maxcor, maxls, ftol, gtol
        As the options of `minimize`.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its ``update`` needs ``params`` and ``value``. ``state.status`` says when it has ended.

    Raises
    ------
    ValueError
        From ``init`` for bad bounds; from ``update`` where ``params`` or ``value`` is missing.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax, optx_lite as ox
    >>> loss = lambda p: (p["a"] - 2.0) ** 2 + 5 * (p["b"] - p["a"] ** 2) ** 2
    >>> params = {"a": jnp.array(0.0), "b": jnp.array(0.0)}
    >>> transformation = ox.lbfgsb(bounds=(-1.0, 1.5))
    >>> state = transformation.init(params)
    >>> while state.status == 0:
    ...     value, grads = jax.value_and_grad(loss)(params)
    ...     updates, state = transformation.update(grads, state, params, value=value)
    ...     params = optax.apply_updates(params, updates)
    >>> print(f"{params['a']:.3f} {params['b']:.3f}")
    1.249 1.500
    """
    import optax  # who writes such a loop has it loaded; for others it would take a while

    solver = LBFGSB(ftol=ftol, gtol=gtol, maxfun=NO_LIMIT, maxiter=NO_LIMIT, maxls=maxls,
                    maxcor=maxcor)  # fmt: skip

    def problem_at(
        params: PyTree, value: PyTree, grads: PyTree
    ) -> tuple[PyTree, _KnownValue, Array]:
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(params)]
        if not dtypes or not all(jnp.issubdtype(d, jnp.floating) for d in dtypes):
            raise ValueError(f"`params` must be real arrays of floating dtype, got {dtypes}.")
        if jnp.shape(value) != ():
            raise ValueError(f"`value` must be a scalar, got shape {jnp.shape(value)}.")
        dtype = widest(dtypes)
        x = jnp.asarray(ravel(params, dtype))
        lower, upper, bounded = check_bounds(bounds, params, x)
        typed = eqx.tree_at(
            lambda s: (s.ftol, s.gtol), solver, (as_dtype(ftol, dtype), as_dtype(gtol, dtype))
        )
        problem = _KnownValue(
            jnp.asarray(value, dtype), jnp.asarray(ravel(grads, dtype)), jnp.asarray(lower),
            jnp.asarray(upper), bounded,
        )  # fmt: skip
        return typed, problem, x

    def init(params: PyTree) -> LbfgsbState:
        params = jax.tree.map(jnp.asarray, params)
        typed, problem, x = problem_at(params, 0, params)
        inner = typed.init(problem, x)
        return LbfgsbState(inner, inner.status)

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, *, value: PyTree = None, **_: Any
    ) -> tuple[PyTree, LbfgsbState]:
        if params is None or value is None:
            missing = "params" if params is None else "value"
            raise ValueError(
                f"`{missing}` is missing: call `update(grads, state, params, value=value)`."
            )
        params = jax.tree.map(jnp.asarray, params)
        typed, problem, x = problem_at(params, value, updates)
        step, inner = _turn(typed, problem, state.solver_state, x)
        return Unravel.like(params)(step), LbfgsbState(inner, inner.status)

    return optax.GradientTransformationExtraArgs(init, update)


@jax.jit
def _turn(solver: LBFGSB, problem: PyTree, before: PyTree, x: Array) -> tuple[Array, PyTree]:
    """The solver's step with what the loop evaluated at x, and the way from there."""
    before = eqx.tree_at(lambda s: s.line.trial, before, x)
    after = solver.step(problem, before)
    # A point that is not in the box, as the first may be, says nothing but the way into it.
    inside = jnp.clip(x, problem.lower, problem.upper)
    outside = jnp.any(inside != x)
    rests = outside | (before.status != RUNNING)
    after = jax.tree.map(lambda old, new: jnp.where(rests, old, new), before, after)
    goal = jnp.where(after.status == RUNNING, after.line.trial, after.x)
    goal = jnp.where(outside, inside, goal)
    return (_to(goal, x, problem) if problem.bounded else goal - x), after


def _to(goal: Array, x: Array, problem: _KnownValue) -> Array:
    """goal - x, made smaller by a rounding where x + (goal - x) would leave the box."""
    step = goal - x
    outside = (x + step > problem.upper) | (x + step < problem.lower)
    fixed = jax.lax.stop_gradient(step)
    return step + jnp.where(outside, jnp.nextafter(fixed, jnp.zeros_like(fixed)) - fixed, 0)
