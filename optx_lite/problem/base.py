"""What is solved: the user's function with its box and its derivative scheme, made total.

minimise  0.5 sum_i C^2 rho((f_i(x) / C)^2)     or     f(x)     subject to   lower <= x <= upper

Below the front door x is a flat vector (n,) and the residuals a flat vector (m,), of one
floating dtype.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..linalg import next_power_of_two
from .pytrees import Unravel


class AbstractProblem(eqx.Module):
    """A function of n variables in a box; what the driver and the derivative rule ask of one.

    Attributes
    ----------
    lower, upper : arrays, shape (n,)
        The box; infinite where there is no bound.
    bounded : bool, static
        Whether there is any bound at all: without one, no code for bounds is compiled.
    restore_x : callable, static
        From a flat vector back to the user's structure.
    """

    lower: eqx.AbstractVar[Array]
    upper: eqx.AbstractVar[Array]
    bounded: eqx.AbstractVar[bool]
    restore_x: eqx.AbstractVar[Unravel]

    @property
    @abc.abstractmethod
    def dense(self) -> bool:
        """Whether matrices of n columns are written out anyway."""

    @abc.abstractmethod
    def evaluate(self, x: Float[Array, " n"]) -> Float[Array, " ..."]:
        """The user's function at x, in its own dtype."""

    @abc.abstractmethod
    def gradient(self, x: Float[Array, " n"], unit: Array | float = 1.0) -> Float[Array, " n"]:
        """d (objective / unit) / d x; differentiable again."""

    @abc.abstractmethod
    def units(self, result: PyTree) -> tuple[PyTree, Array]:
        """Of the objective, and of each variable: powers of two which keep a Hessian in range."""

    @abc.abstractmethod
    def describe(self, x: Array) -> dict[str, Array]:
        """The fields of the result that follow from x, as differentiable functions of it."""

    @property
    @abc.abstractmethod
    def structures(self) -> dict[str, Unravel]:
        """By name, the fields of the result that have a structure of the user's, and which."""


def sizes(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """The power of two next to each entry's size; for 0, that next to the largest entry."""
    return next_power_of_two(jnp.where(x == 0, jnp.max(jnp.abs(x)), x))


def pulled_back(fun: Callable, x: Float[Array, " n"], cotangent: Callable) -> tuple[Array, Array]:
    """``fun`` at x, and J^T c: J its Jacobian there, c the ``cotangent`` for its value.

    The value comes by the same mode, for `jax.custom_vjp` has no other.
    """
    try:
        value, pullback = jax.vjp(fun, x)
        return value, pullback(cotangent(value))[0]
    except ValueError:  # a `lax.while_loop`, which has forward mode only
        value, pushforward = jax.linearize(fun, x)
        columns = jax.vmap(pushforward)(jnp.eye(x.shape[0], dtype=x.dtype))
        return value, columns.reshape(x.shape[0], -1) @ cotangent(value).reshape(-1)
