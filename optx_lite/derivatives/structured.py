"""The interface of a Jacobian that is no dense array: `linearize` gives an operator.

An operator (m, n) with products, `scaled`, `squared_columns` and `absolute`; with `normal`
where its form allows it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Float

from ..linalg.jacobians import DenseOperator, JacobianOperator, Transposed
from ..linalg.operators import AbstractOperator
from ..linalg.sparse import ScatteredMatrix
from .base import AbstractJacobian, FlatFunction, higher_precision


class AbstractStructured(eqx.Module):
    """How a Jacobian is computed as an operator."""

    direct: ClassVar[bool] = False  # whether its operators solve their normal equations

    @abc.abstractmethod
    def linearize(
        self,
        fun: FlatFunction,
        x: Float[Array, " n"],
        lower: Float[Array, " n"],
        upper: Float[Array, " n"],
    ) -> tuple[Float[Array, " m"], Callable[[], JacobianOperator]]:
        """The function at x, and a thunk for its Jacobian there: see `AbstractJacobian`."""

    @abc.abstractmethod
    def blank(self, fun: FlatFunction, x: Float[Array, " n"], m: int) -> JacobianOperator:
        """An operator of zeros, with all that does not depend on x in place."""


class Dense(AbstractStructured):
    """A dense Jacobian as an operator, for solvers that take products."""

    base: AbstractJacobian

    def linearize(self, fun, x, lower, upper):
        """By the scheme ``base``."""
        f, jacobian = self.base.linearize(fun, x, lower, upper)
        return f, lambda: DenseOperator(jacobian())

    def blank(self, fun, x, m):
        """Zeros."""
        return DenseOperator(jnp.zeros((x.size, m), x.dtype))


class MatrixFree(AbstractStructured):
    """Products with J and J^T by automatic differentiation: nothing of size m n."""

    def linearize(self, fun, x, lower, upper):
        """The operator keeps the point; each product is one sweep."""
        f = fun(x)
        ones = {"left": jnp.ones_like(f), "right": jnp.ones_like(x)}
        return f, lambda: JacobianProducts(fun=fun, x=x, **ones)

    def blank(self, fun, x, m):
        """At x, with no part in anything."""
        zeros = {"left": jnp.zeros((m,), x.dtype), "right": jnp.zeros_like(x)}
        return JacobianProducts(fun=fun, x=x, **zeros)


class UserSparse(AbstractStructured):
    """A callable of the user that returns JAX's sparse array."""

    jac: Callable[[Float[Array, " n"]], BCOO]

    def linearize(self, fun, x, lower, upper):
        """Its places, as its values, are those of each point."""
        f = fun(x)

        def jacobian():
            found = self.jac(x)
            values = found.data.astype(higher_precision(x, f))
            return ScatteredMatrix(values, found.indices, found.shape)

        return f, jacobian

    def blank(self, fun, x, m):
        """Zeros in the first places."""
        found = self.jac(x)
        values = jnp.zeros_like(found.data, dtype=x.dtype)
        return ScatteredMatrix(values, found.indices, found.shape)


class UserOperator(AbstractStructured):
    """A callable of the user that returns an operator: its products, and those of its adjoint."""

    jac: Callable[[Float[Array, " n"]], AbstractOperator]

    def linearize(self, fun, x, lower, upper):
        """The operator of each point."""
        f = fun(x)
        ones = {"left": jnp.ones_like(f), "right": jnp.ones_like(x)}
        return f, lambda: OperatorProducts(operator=self.jac(x), **ones)

    def blank(self, fun, x, m):
        """At x, with no part in anything."""
        zeros = {"left": jnp.zeros((m,), x.dtype), "right": jnp.zeros_like(x)}
        return OperatorProducts(operator=self.jac(x), **zeros)


class _Products(JacobianOperator):
    """diag(left) A diag(right), A known by its products alone."""

    left: eqx.AbstractVar[Float[Array, " m"]]
    right: eqx.AbstractVar[Float[Array, " n"]]

    PROBES: ClassVar[int] = 8  # random signs by which the norms of columns are estimated

    @abc.abstractmethod
    def times(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """A v."""

    @abc.abstractmethod
    def transposed_times(self, u: Float[Array, " m"]) -> Float[Array, " n"]:
        """A^T u."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.left.size, self.right.size

    @property
    def dtype(self):
        """Of products."""
        return self.right.dtype

    def apply(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """By one product."""
        return self.left * self.times(self.right * v).astype(v.dtype)

    def apply_adjoint(self, u: Float[Array, " m"]) -> Float[Array, " n"]:
        """By one product."""
        return self.right * self.transposed_times(self.left * u).astype(u.dtype)

    def adjoint(self) -> AbstractOperator:
        """The transposed."""
        return Transposed(self)

    def squared_columns(self) -> Float[Array, " n"]:
        """Estimated: the mean of (J^T u)_j^2 over random signs u is the square of the norm."""
        return _mean_square(self.apply_adjoint, self.shape[0], self.dtype)

    def scaled(self, left: Float[Array, " m"], right: Float[Array, " n"]) -> JacobianOperator:
        """diag(left) J diag(right)."""
        sides = self.left * left, self.right * right
        return eqx.tree_at(lambda a: (a.left, a.right), self, sides)

    def absolute(self) -> AbstractOperator:
        """|J| in its product with one vector, estimated: the norm of its terms, by random signs."""
        return _Absolute(self)


class JacobianProducts(_Products):
    """diag(left) J(x) diag(right) of a function, by forward and reverse mode."""

    fun: FlatFunction
    x: Float[Array, " n"]
    left: Float[Array, " m"]
    right: Float[Array, " n"]

    def times(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """By forward mode."""
        return jax.jvp(self.fun, (self.x,), (v,))[1]

    def transposed_times(self, u: Float[Array, " m"]) -> Float[Array, " n"]:
        """By reverse mode."""
        f, pullback = jax.vjp(self.fun, self.x)
        return pullback(u.astype(f.dtype))[0]


class OperatorProducts(_Products):
    """diag(left) A diag(right) of a user's operator."""

    operator: AbstractOperator
    left: Float[Array, " m"]
    right: Float[Array, " n"]

    def times(self, v: Float[Array, " n"]) -> Float[Array, " m"]:
        """A v."""
        return self.operator.matvec(v)

    def transposed_times(self, u: Float[Array, " m"]) -> Float[Array, " n"]:
        """A^T u."""
        return self.operator.rmatvec(u)


class _Absolute(AbstractOperator):
    of: _Products

    @property
    def shape(self) -> tuple[int, int]:
        return self.of.shape

    @property
    def dtype(self):
        return self.of.dtype

    def apply(self, v: Array) -> Array:
        return jnp.sqrt(_mean_square(lambda signs: self.of.apply(signs * v), v.size, v.dtype))

    def adjoint(self) -> AbstractOperator:
        raise NotImplementedError


def _mean_square(times: Callable[[Array], Array], size: int, dtype) -> Array:
    signs = jax.random.rademacher(jax.random.key(0), (_Products.PROBES, size), dtype)
    return jnp.mean(jax.vmap(times)(signs) ** 2, axis=0)
