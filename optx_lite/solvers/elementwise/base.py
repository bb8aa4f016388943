"""What the solvers of `elementwise` share: all of them work on many elements at once."""

from __future__ import annotations

import abc
import functools as ft
import operator
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ...jax_support.types import Count, Number
from ...results.elementwise import BAD_INPUT, INVALID, NONFINITE, RUNNING, AbstractElementwiseResult

State = TypeVar("State", bound="AbstractElementwiseState")
Function = Callable[[Array], Array]


class AbstractElementwiseState(eqx.Module):
    """Where the elements are. Each field is an array whose last axis is that of the elements."""

    status: eqx.AbstractVar[Array]
    nit: eqx.AbstractVar[Array]


class AbstractElementwiseSolver(eqx.Module, Generic[State]):
    """A solver of arrays of scalar problems, none of which waits for another.

    Every call of `step` evaluates the function once, on all elements. One that has ended stays
    as it is.
    """

    FINDS_ROOT: ClassVar[bool] = False  # or else a minimum; the derivative rule asks
    EVALUATED: ClassVar[int]  # of the first points, so many are where the function is asked first
    maxiter: eqx.AbstractVar[Count]

    @abc.abstractmethod
    def init(self, points: tuple[Array, ...], values: tuple[Array, ...]) -> State:
        """The state before the first iteration, from points and the values at the first of them."""

    @abc.abstractmethod
    def step(self, fun: Function, state: State) -> State:
        """Evaluate the function at one new point for each element."""

    @abc.abstractmethod
    def finish(self, state: State) -> AbstractElementwiseResult:
        """What the state stands for, as it is seen from outside."""

    def start(self, points: tuple[PyTree, ...]) -> tuple[Array, ...]:
        """The first points, with what was left out filled in."""
        return points

    def running(self, state: State) -> Array:
        """Which elements need another step."""
        return self.active(state)

    def active(self, state: State) -> Array:
        """Like `status`, which entries of it are still at work."""
        return (state.status == RUNNING) & (state.nit < self.maxiter)


def kept(active: Array, new: PyTree, old: PyTree) -> PyTree:
    """A record with the new values where ``active``, and the old ones elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(active, a, b), new, old)


def swapped(condition: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """The two arrays, exchanged where the condition holds."""
    return jnp.where(condition, b, a), jnp.where(condition, a, b)


def not_valid(*tolerances: Number) -> Array:
    """Whether one is negative or NaN: the status says so where nothing can be raised."""
    return ~ft.reduce(operator.and_, [jnp.asarray(tol) >= 0 for tol in tolerances])


def has_no_answer(status: Array) -> Array:
    """Where not even the best point so far would be one."""
    return (status == INVALID) | (status == NONFINITE) | (status == BAD_INPUT)
