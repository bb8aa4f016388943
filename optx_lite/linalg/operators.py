"""Real linear operators: matrices of which only products with vectors are known.

What ``scipy.sparse.linalg.LinearOperator`` offers, as pytrees: sums, products and multiples of
operators are operators again.
"""

from __future__ import annotations

import abc
import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, PyTree


class AbstractOperator(eqx.Module):
    """A real (m, n) matrix A; its algorithm is `apply`."""

    __array_ufunc__ = None  # an array of NumPy on the left leaves the product to the operator

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n)."""

    @property
    @abc.abstractmethod
    def dtype(self) -> np.dtype:
        """Of the operator; vectors are cast to it, complex ones to the complex of its kind."""

    @abc.abstractmethod
    def apply(self, v: Array) -> Array:
        """A v, for v of shape (n,) and of `dtype`."""

    @abc.abstractmethod
    def adjoint(self) -> AbstractOperator:
        """A^T."""

    @property
    def T(self) -> AbstractOperator:
        """A^T."""
        return self.adjoint()

    @property
    def H(self) -> AbstractOperator:
        """A^T: it is real."""
        return self.adjoint()

    def transpose(self) -> AbstractOperator:
        """A^T."""
        return self.adjoint()

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    def matvec(self, x: ArrayLike) -> Array:
        """A x, for x of shape (n,) or (n, 1)."""
        x, n = jnp.asarray(x), self.shape[1]
        if x.shape not in ((n,), (n, 1)):
            raise ValueError(f"`x` must have shape ({n},), got {x.shape}.")
        flat = x.reshape(-1)
        if jnp.iscomplexobj(x):
            parts = (self.apply(part.astype(self.dtype)) for part in (flat.real, flat.imag))
            return lax.complex(*parts).reshape(-1, *x.shape[1:])
        return self.apply(flat.astype(self.dtype)).reshape(-1, *x.shape[1:])

    def rmatvec(self, x: ArrayLike) -> Array:
        """A^T x, for x of shape (m,) or (m, 1)."""
        return self.adjoint().matvec(x)

    def matmat(self, x: ArrayLike) -> Array:
        """A X, for X of shape (n, k)."""
        if jnp.ndim(x) != 2:
            raise ValueError(f"`x` must be a matrix, got shape {jnp.shape(x)}.")
        return jax.vmap(self.matvec, 1, 1)(jnp.asarray(x))

    def rmatmat(self, x: ArrayLike) -> Array:
        """A^T X, for X of shape (m, k)."""
        return self.adjoint().matmat(x)

    def dot(self, x: PyTree) -> PyTree:
        """A times a number, a vector, a matrix or an operator."""
        if isinstance(x, AbstractOperator):
            return Product(self, x)
        if jnp.ndim(x) == 0:
            return Multiple(self, self._factor(x))
        return self.matvec(x) if jnp.ndim(x) == 1 else self.matmat(x)

    def todense(self) -> Array:
        """A as an array (m, n)."""
        return self.matmat(jnp.eye(self.shape[1], dtype=self.dtype))

    def __call__(self, x: PyTree) -> PyTree:
        """The product with x, as `dot`."""
        return self.dot(x)

    def __mul__(self, x: PyTree) -> PyTree:
        return self.dot(x)

    def __rmul__(self, x: PyTree) -> PyTree:
        return self.dot(x) if jnp.ndim(x) == 0 else self.__rmatmul__(x)

    def __matmul__(self, x: PyTree) -> PyTree:
        if not isinstance(x, AbstractOperator) and jnp.ndim(x) == 0:
            raise ValueError("A number is no operand of `@`: use `*`.")
        return self.dot(x)

    def __rmatmul__(self, x: PyTree) -> Array:
        return self.adjoint().dot(jnp.asarray(x).T).T

    def __truediv__(self, x: PyTree) -> AbstractOperator:
        return Multiple(self, 1 / self._factor(x))

    def _factor(self, x: ArrayLike) -> Array:
        if jnp.ndim(x) > 0 or jnp.iscomplexobj(x):
            raise ValueError(f"An operator is scaled by a real number, got {x!r}.")
        return jnp.asarray(x, self.dtype)

    def __neg__(self) -> AbstractOperator:
        return Multiple(self, -jnp.ones((), self.dtype))

    def __add__(self, other: PyTree) -> AbstractOperator:
        if not isinstance(other, AbstractOperator):
            return NotImplemented
        return Sum(self, other)

    def __sub__(self, other: PyTree) -> AbstractOperator:
        if not isinstance(other, AbstractOperator):
            return NotImplemented
        return Sum(self, -other)

    def __pow__(self, power: int) -> AbstractOperator:
        if not isinstance(power, int) or power < 1:
            raise ValueError(f"The power of an operator must be a positive int, got {power!r}.")
        return ft.reduce(Product, [self] * power)


class Sum(AbstractOperator):
    """A + B."""

    a: AbstractOperator
    b: AbstractOperator

    def __check_init__(self) -> None:
        _check(self.a.shape == self.b.shape, "+", self)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.a.shape

    @property
    def dtype(self) -> np.dtype:
        """See `AbstractOperator`."""
        return np.promote_types(self.a.dtype, self.b.dtype)

    def apply(self, v: Array) -> Array:
        """See `AbstractOperator`."""
        return self.a.matvec(v).astype(v.dtype) + self.b.matvec(v).astype(v.dtype)

    def adjoint(self) -> AbstractOperator:
        """See `AbstractOperator`."""
        return Sum(self.a.adjoint(), self.b.adjoint())


class Product(AbstractOperator):
    """A B."""

    a: AbstractOperator
    b: AbstractOperator

    def __check_init__(self) -> None:
        _check(self.a.shape[1] == self.b.shape[0], "@", self)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return (self.a.shape[0], self.b.shape[1])

    @property
    def dtype(self) -> np.dtype:
        """See `AbstractOperator`."""
        return np.promote_types(self.a.dtype, self.b.dtype)

    def apply(self, v: Array) -> Array:
        """See `AbstractOperator`."""
        return self.a.matvec(self.b.matvec(v)).astype(v.dtype)

    def adjoint(self) -> AbstractOperator:
        """See `AbstractOperator`."""
        return Product(self.b.adjoint(), self.a.adjoint())


class Multiple(AbstractOperator):
    """c A, c a real number."""

    a: AbstractOperator
    factor: Array

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.a.shape

    @property
    def dtype(self) -> np.dtype:
        """See `AbstractOperator`."""
        return self.a.dtype

    def apply(self, v: Array) -> Array:
        """See `AbstractOperator`."""
        return self.a.apply(v) * self.factor

    def adjoint(self) -> AbstractOperator:
        """See `AbstractOperator`."""
        return Multiple(self.a.adjoint(), self.factor)


def _check(fits: bool, sign: str, pair: PyTree) -> None:
    if not fits:
        raise ValueError(f"shapes of A {sign} B do not fit: {pair.a.shape} and {pair.b.shape}.")
