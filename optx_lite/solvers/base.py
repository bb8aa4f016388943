"""The protocol of the solvers: a frozen configuration with `init`, `step` and `finish`.

No caller looks at a solver's class or at its method's name: what differs between solvers is asked
of the attributes here.
"""

from __future__ import annotations

import abc
from typing import ClassVar, Generic, TypeVar

import equinox as eqx
from jaxtyping import Array, PyTree

from ..jax_support.types import Count


class Report(eqx.Module):
    """What a callback and the log get of a step."""

    x: Array
    fun: Array
    value: Array
    reduction: Array
    step_norm: Array
    optimality: Array
    nit: Array
    nfev: Array


Problem = TypeVar("Problem")
State = TypeVar("State")


class AbstractSolver(eqx.Module, Generic[Problem, State]):
    """A state solver. ``state.status`` is 0 while it runs.

    Every call of `step` evaluates the user's function once: a rejected trust-region step or a
    line-search trial is a state, never an inner loop over the user's function. The state holds
    arrays only, so it may be vmapped, scanned, checkpointed and looked at. ``state.x`` is the best
    point, (n,).

    Attributes
    ----------
    TAKES_BOUNDS : bool
        Whether variables may be bounded; fixed ones (lower == upper) always may be.
    BAD_STARTS : tuple of int
        The codes of a start where the user's functions are not finite: outside of `jax.jit` such a
        solve raises the code's message instead.
    """

    TAKES_BOUNDS: ClassVar[bool] = True
    BAD_STARTS: ClassVar[tuple[int, ...]] = ()

    @abc.abstractmethod
    def init(self, problem: Problem, x0: Array) -> State:
        """The state in which nothing has been evaluated yet and x0 is the first trial."""

    @abc.abstractmethod
    def step(self, problem: Problem, state: State) -> State:
        """Evaluate the state's trial point, judge it, and propose the next one."""

    @abc.abstractmethod
    def running(self, problem: Problem, state: State) -> Array:
        """Whether there is to be another step, ()."""

    @abc.abstractmethod
    def most_steps(self, n: int) -> Count:
        """No run on n variables takes more."""

    @abc.abstractmethod
    def finish(self, problem: Problem, state: State) -> PyTree:
        """The `Result` that this state stands for."""

    @abc.abstractmethod
    def report(self, problem: Problem, before: State, after: State) -> tuple[Report, Array]:
        """What a callback gets after a step, and whether the step moved x."""
