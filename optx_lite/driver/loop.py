"""Run a solver to its end. The kind of loop is handed in, so no solver branches on it.

`lax.while_loop` is one kind; the others are differentiable.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from ..jax_support import control_flow as control_flow
from ..jax_support.xla import in_one_loop
from ..problem.base import AbstractProblem
from ..results.base import UNSOLVED
from ..solvers import AbstractSolver
from .callbacks import Watch

Loop = Callable[[Callable[[PyTree], Array], Callable[[PyTree], PyTree], PyTree], PyTree]


class Checkpointed(eqx.Module):
    """A while loop with a reverse-mode derivative, by recursive checkpointing (equinox).

    Memory grows with the number of checkpoints (None: about the root of ``max_steps``), not
    with the number of steps. There is no forward mode.
    """

    max_steps: int = eqx.field(static=True)
    checkpoints: int | None = eqx.field(static=True, default=None)

    def __call__(self, cond: Callable, body: Callable, state: PyTree) -> PyTree:
        """The last state, as `jax.lax.while_loop` has it."""
        return eqxi.while_loop(
            cond,
            body,
            state,
            max_steps=self.max_steps,
            kind="checkpointed",
            checkpoints=self.checkpoints,
        )


class FixedSteps(eqx.Module):
    """At most so many steps, as a scan: differentiable in forward and in reverse mode."""

    steps: int = eqx.field(static=True)

    def __call__(self, cond: Callable, body: Callable, state: PyTree) -> PyTree:
        """The last state, as `jax.lax.while_loop` has it."""

        def turn(state: PyTree, _: None) -> tuple[PyTree, None]:
            return control_flow.cond(cond(state), lambda: body(state), lambda: state), None

        return control_flow.scan(turn, state, None, length=self.steps)[0]


def drive(
    solver: AbstractSolver,
    problem: AbstractProblem,
    x0: Array,
    watch: Watch | None = None,
    loop: Loop = control_flow.while_loop,
) -> PyTree:
    """From a flat x0 to the `Result` on flat vectors.

    With a ``watch`` the callback and the log get every step, and may end the solve.
    """

    def body(state: PyTree) -> PyTree:
        if watch is None:
            return solver.step(problem, state)
        if loop is control_flow.while_loop:
            after = _step_as_one(solver, problem, state)
        else:  # which is to be differentiated
            after = solver.step(problem, state)
        report, moved = solver.report(problem, state, after)
        # The host has no derivative, and needs none.
        report = lax.stop_gradient(report)
        status = watch.step(report, solver.running(problem, state), moved, after.status)
        return eqx.tree_at(lambda s: s.status, after, status)

    def cond(state: PyTree) -> Array:
        return solver.running(problem, state)

    result = solver.finish(problem, loop(cond, body, solver.init(problem, x0)))
    if watch is not None:
        watch.end(result)
    return result


def _step_as_one(solver: AbstractSolver, problem: AbstractProblem, state: PyTree) -> PyTree:
    """A step which XLA rounds as in a loop without a callback."""
    return in_one_loop(
        lambda now: now.nfev == state.nfev, lambda now: solver.step(problem, now), state
    )


_traced_once = jax.jit(drive, inline=True)


def drive_as_one(
    solver: AbstractSolver, problem: AbstractProblem, x0: Array, watch: Watch | None
) -> PyTree:
    """`drive` inside a loop which turns once, so that XLA makes one function of all of it."""
    shapes = jax.eval_shape(_traced_once, solver, problem, x0, watch)
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    status = jnp.full_like(blank.status, UNSOLVED)
    blank = eqx.tree_at(lambda result: (result.x, result.status), blank, (x0, status))
    # x0 and the test go through the record, so that XLA does not dissolve the loop.
    return in_one_loop(
        lambda result: result.status == UNSOLVED,
        lambda result: _traced_once(solver, problem, result.x, watch),
        blank,
    )
