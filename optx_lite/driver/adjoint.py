"""How a solve is differentiated: by the implicit function theorem, or through its iterations.

`ImplicitAdjoint` is explained in `minimum_derivative`. `UnrolledAdjoint` is for meta-learning,
where the inner solve is stopped early on purpose and its answer is a function of x0 too.
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from ..functions import communicates
from ..jax_support.control_flow import explicit_spec, in_auto_mode, in_shard_map
from ..problem.base import AbstractProblem
from ..results.base import AbstractResult
from ..solvers.base import AbstractSolver
from .batching import in_chunks
from .callbacks import Watch
from .custom_derivative import Moving, Rule, differentiable, with_derivative
from .loop import Checkpointed, FixedSteps, drive, drive_as_one
from .minimum_derivative import minimum_tangents


class AbstractAdjoint(eqx.Module):
    """How a solve is differentiated."""

    def solve(
        self,
        solver: AbstractSolver,
        problem: AbstractProblem,
        x0: Array,
        watch: Watch | None = None,
    ) -> AbstractResult:
        """Run to the end, with this derivative."""
        raise NotImplementedError


class ImplicitAdjoint(AbstractAdjoint):
    """The implicit function theorem at the solution; the default.

    Parameters
    ----------
    unconverged : 'nan' or 'ignore'
        What the derivative is where ``success`` is False: NaN (default), or whatever the formula
        gives at the point that was reached.
    """

    unconverged: str = eqx.field(static=True, default="nan")

    def __check_init__(self) -> None:
        if self.unconverged not in ("nan", "ignore"):
            raise ValueError(f"`unconverged` must be 'nan' or 'ignore', got {self.unconverged!r}.")

    def solve(
        self,
        solver: AbstractSolver,
        problem: AbstractProblem,
        x0: Array,
        watch: Watch | None = None,
    ) -> AbstractResult:
        """Run to the end; the derivative is that of the minimum."""
        leaves, treedef = jax.tree.flatten((solver, problem, x0, watch))
        return differentiable(_Minimum(treedef, self.unconverged), leaves)


class UnrolledAdjoint(AbstractAdjoint):
    """Through the iterations themselves.

    Parameters
    ----------
    steps : int, optional
        Run at most this many steps, as a scan: forward and reverse mode, memory in proportion
        to ``steps``. None: until converged, by recursive checkpointing; reverse mode only.
    checkpoints : int, optional
        How many states to keep when ``steps`` is None.
    """

    steps: int | None = eqx.field(static=True, default=None)
    checkpoints: int | None = eqx.field(static=True, default=None)

    def solve(
        self,
        solver: AbstractSolver,
        problem: AbstractProblem,
        x0: Array,
        watch: Watch | None = None,
    ) -> AbstractResult:
        """Run, and let differentiation see every step."""
        if self.steps is not None:
            return drive(solver, problem, x0, watch, FixedSteps(self.steps))
        most = int(solver.most_steps(x0.shape[0]))
        return drive(solver, problem, x0, watch, Checkpointed(most, self.checkpoints))


@dataclasses.dataclass(frozen=True)
class _Minimum(Rule):
    """Of a solver on a problem: the minimum moves as `minimum_derivative` says."""

    unconverged: str

    def run(self, leaves: list[Array]) -> AbstractResult:
        """From x0 to the result, on flat vectors."""
        solver, problem, x0, watch = self.inputs(leaves)
        state = jax.eval_shape(solver.init, problem, x0)
        lane_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

        def run(spare: PyTree, *leaves: Array) -> AbstractResult:
            solver, problem, x0, watch = self.inputs(list(leaves))
            watch = None if watch is None else watch.silenced(spare)
            return drive_as_one(solver, problem, x0, watch)

        values = jax.eval_shape(problem.evaluate, x0)
        shape, spec = values.shape, explicit_spec(values)

        def spec_of(leaf: PyTree) -> PartitionSpec:
            return spec if shape and leaf.shape[:1] == shape else PartitionSpec()

        def run_in_auto_mode(spare: PyTree, *leaves: Array) -> AbstractResult:
            return in_auto_mode(lambda *leaves: run(spare, *leaves), leaves, spec_of)

        if communicates((solver, problem)):  # its lanes have to run side by side
            return run_in_auto_mode(np.False_, *leaves)
        structure = None

        def as_leaves(spare: PyTree, *leaves: Array) -> list[Array]:
            """Under `vmap` the shape of a BCOO changes, which is a part of the structure."""
            nonlocal structure
            out, structure = jax.tree.flatten(run_in_auto_mode(spare, *leaves))
            return out

        found = in_chunks(as_leaves, lane_bytes, listened=watch is not None)(*leaves)
        return jax.tree.unflatten(structure, found)

    def tangents(self, answer: AbstractResult, moving: Moving) -> AbstractResult:
        """Of x and of what follows from it."""
        if communicates(self.inputs(moving.leaves)) and in_shard_map():
            raise NotImplementedError(
                "Inside jax.shard_map there is no derivative of a solve whose function "
                "communicates over devices (jax.lax.psum). Under jax.jit with sharded data, "
                "without shard_map and psum, the same sum is differentiated."
            )

        def problem_of(leaves: list[Array]) -> AbstractProblem:
            return self.inputs(leaves)[1]

        success = jnp.asarray(answer.success)
        has_derivative = success if self.unconverged == "nan" else jnp.ones_like(success)
        moved = minimum_tangents(problem_of, answer, has_derivative, moving)
        return dataclasses.replace(jax.tree.map(lambda _: None, answer), **moved)


def with_minimum_derivative(
    solver: AbstractSolver,
    problem: AbstractProblem,
    result: AbstractResult,
    unconverged: str = "nan",
) -> AbstractResult:
    """A result that was found in another way than `ImplicitAdjoint`'s, with that derivative.

    Parameters
    ----------
    solver, problem
        As for `AbstractAdjoint.solve`; ``result`` is what the solver's ``finish`` gives.
    unconverged : 'nan' or 'ignore'
        As for `ImplicitAdjoint`.
    """
    leaves, treedef = jax.tree.flatten((solver, problem, None, None))
    return with_derivative(_Minimum(treedef, unconverged), lax.stop_gradient(result), leaves)
