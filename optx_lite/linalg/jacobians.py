"""What every form of a Jacobian can do: dense, transposed (n, m), or an operator (m, n)."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, PyTree

from .operators import AbstractOperator

Jacobian = Any  # an array (n, m), or a `JacobianOperator`


def scale_columns(jacobian: Jacobian, factors: Float[Array, " n"]) -> Jacobian:
    """J diag(factors)."""
    if isinstance(jacobian, JacobianOperator):
        return jacobian.scaled(jnp.ones((jacobian.shape[0],), factors.dtype), factors)
    return jacobian * factors[:, None]


def scale_rows(jacobian: Jacobian, factors: Float[Array, " m"]) -> Jacobian:
    """diag(factors) J."""
    if isinstance(jacobian, JacobianOperator):
        return jacobian.scaled(factors, jnp.ones((jacobian.shape[1],), factors.dtype))
    return jacobian * factors[None, :]


def divide(jacobian: Jacobian, unit: Float[Array, ""]) -> Jacobian:
    """J / unit, a power of two."""
    if isinstance(jacobian, JacobianOperator):
        return scale_rows(jacobian, jnp.broadcast_to(1 / unit, jacobian.shape[:1]))
    return jacobian / unit


def without_columns(jacobian: Jacobian, which: Bool[Array, " n"]) -> Jacobian:
    """J with columns of zeros."""
    if isinstance(jacobian, JacobianOperator):
        return scale_columns(jacobian, (~which).astype(jacobian.dtype))
    return jnp.where(which[:, None], 0, jacobian)


def column_sizes(jacobian: Jacobian) -> Float[Array, " n"]:
    """The size of each column: its largest entry, or its norm where that is what is known."""
    if isinstance(jacobian, JacobianOperator):
        return jnp.sqrt(jacobian.squared_columns())
    return jnp.max(jnp.abs(jacobian), axis=1)


def cast_jacobian(jacobian: Jacobian, dtype: DTypeLike) -> Jacobian:
    """With entries of this dtype."""
    return jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, jacobian)


def as_result(jacobian: Jacobian) -> PyTree:
    """As a result shows it: dense (m, n), JAX's sparse array, or an operator."""
    if not isinstance(jacobian, JacobianOperator):
        return jacobian.T
    return jacobian.as_result()


class JacobianOperator(AbstractOperator):
    """What the linear model of a large problem asks of J, beside products."""

    @abc.abstractmethod
    def squared_columns(self) -> Float[Array, " n"]:
        """Sums of the squares of the columns."""

    @abc.abstractmethod
    def scaled(self, left: Float[Array, " m"], right: Float[Array, " n"]) -> JacobianOperator:
        """diag(left) J diag(right)."""

    @abc.abstractmethod
    def absolute(self) -> AbstractOperator:
        """|J|, entry by entry."""

    def as_result(self) -> PyTree:
        """As the user is to see it: itself, or JAX's sparse array."""
        return self

    def normal(self) -> NormalEquations:
        """J^T J, of the forms that allow it."""
        raise NotImplementedError


class Transposed(AbstractOperator):
    """A^T of a matrix that has ``apply_adjoint``."""

    of: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        m, n = self.of.shape
        return n, m

    @property
    def dtype(self) -> np.dtype:
        """Of the entries."""
        return self.of.dtype

    def apply(self, v: Array) -> Array:
        """A^T v."""
        return self.of.apply_adjoint(v)

    def adjoint(self) -> AbstractOperator:
        """A."""
        return self.of


class NormalEquations(eqx.Module):
    """J^T J in a form that can be solved."""

    @abc.abstractmethod
    def scaled(self, factors: Float[Array, " n"]) -> NormalEquations:
        """Of J diag(factors)."""

    @abc.abstractmethod
    def solve(self, diag: Float[Array, " n"], b: Float[Array, " n"]) -> Float[Array, " n"]:
        """x with (J^T J + diag(diag)) x = b."""


class DenseOperator(JacobianOperator):
    """A matrix (m, n) by its columns."""

    columns: Float[Array, "n m"]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.columns.shape[1], self.columns.shape[0]

    @property
    def dtype(self) -> np.dtype:
        """Of the entries."""
        return self.columns.dtype

    def apply(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """A v."""
        return v @ self.columns

    def adjoint(self) -> DenseOperator:
        """A^T."""
        return DenseOperator(self.columns.T)

    def squared_columns(self) -> Float[Array, " n"]:
        """Sums of the squares of the columns."""
        return jnp.sum(self.columns**2, axis=1)

    def scaled(self, left: Float[Array, " m"], right: Float[Array, " n"]) -> DenseOperator:
        """diag(left) A diag(right)."""
        return DenseOperator(self.columns * left[None, :] * right[:, None])

    def as_result(self) -> Array:
        """(m, n)."""
        return self.columns.T

    def absolute(self) -> DenseOperator:
        """|A|, entry by entry."""
        return DenseOperator(jnp.abs(self.columns))
