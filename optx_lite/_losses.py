"""Robust losses: rho(z) of the squared residual z = (f / C)^2, with its two derivatives.

The cost is 0.5 * C^2 * sum_i rho((f_i / C)^2). Near the current point it is again a sum of
squares, in residuals and a Jacobian that carry the loss (Triggs et al., "Bundle Adjustment: a
Modern Synthesis", 1999, section 4.3):

    J~_i = J_i * sqrt(rho' + 2 rho'' f_i^2 / C^2)                       (1)
    f~_i = f_i * rho' / sqrt(rho' + 2 rho'' f_i^2 / C^2)                (2)

so that J~^T f~ is the true gradient and J~^T J~ the Gauss-Newton Hessian. Where the bracket is
negative (outliers of cauchy and arctan) it is replaced by eps, as in SciPy.

Different from SciPy: a loss may also be one JAX function of a scalar z, which we differentiate,
and f_scale carries a derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

Rho = tuple[Array, Array, Array]


def soft_l1(z: Array) -> Rho:
    """2 ((1 + z)^1/2 - 1): a smooth absolute value."""
    root = jnp.sqrt(1 + z)
    # z / (root + 1) is root - 1 without the cancellation at small z.
    return 2 * z / (root + 1), 1 / root, -0.5 / (root * (1 + z))


def huber(z: Array) -> Rho:
    """The square inside, the absolute value outside."""
    inside = z <= 1
    safe = jnp.where(inside, 1, z)  # keeps the derivative of the unused branch finite
    root = jnp.sqrt(safe)
    return (
        jnp.where(inside, z, 2 * root - 1),
        jnp.where(inside, 1, 1 / root),
        jnp.where(inside, 0, -0.5 / (root * safe)),
    )


def cauchy(z: Array) -> Rho:
    """log(1 + z): severely weakens outliers."""
    return jnp.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2


def arctan(z: Array) -> Rho:
    """arctan(z): limits the loss of a single residual."""
    t = 1 + z**2
    return jnp.arctan(z), 1 / t, -2 * z / t**2


LOSSES: dict[str, Callable[[Array], Rho] | None] = {
    "linear": None,
    "huber": huber,
    "soft_l1": soft_l1,
    "cauchy": cauchy,
    "arctan": arctan,
}


class Loss(eqx.Module):
    """A loss and its margin C.

    ``rho`` takes z, shape (m,), and returns rho, rho', rho'', each (m,). None is the linear
    loss, for which nothing is computed at all.
    """

    rho: Any
    f_scale: Array

    @property
    def is_linear(self) -> bool:
        """Whether the cost is the plain sum of squares."""
        return self.rho is None

    def cost(self, f: Array, unit: Array | float = 1.0) -> Array:
        """0.5 sum rho, in units of ``unit**2`` (which keeps the squares in range)."""
        if self.is_linear:
            f = f / unit
            return 0.5 * jnp.sum(f * f)
        margin = self.f_scale / unit
        rho, _, _ = self.rho((f / self.f_scale) ** 2)
        return 0.5 * margin**2 * jnp.sum(rho)

    def slope(self, f: Array) -> Array:
        """d cost / d f, shape (m,): f itself when linear, f rho' otherwise."""
        if self.is_linear:
            return f
        return f * self.rho((f / self.f_scale) ** 2)[1]

    def weights(self, f: Array) -> tuple[Array, Array]:
        """Factors of the rows of J and of f, equations (1) and (2); shapes (m,)."""
        z = (f / self.f_scale) ** 2
        _, first, second = self.rho(z)
        eps = jnp.finfo(f.dtype).eps
        row = jnp.sqrt(jnp.maximum(first + 2 * second * z, eps))  # (1)
        return row, first / row  # (2)


class ScipyLoss(eqx.Module):
    """A user's loss in SciPy's form: z -> array (3, m)."""

    loss: Callable[[Array], Any]

    def __call__(self, z: Array) -> Rho:
        rows = jnp.asarray(self.loss(z)).astype(z.dtype)
        return rows[0], rows[1], rows[2]


class ScalarLoss(eqx.Module):
    """A user's loss as one JAX function of a scalar, differentiated by us."""

    loss: Callable[[Array], Any]

    def __call__(self, z: Array) -> Rho:
        def rho(z: Array) -> Array:
            return jnp.asarray(self.loss(z)).astype(z.dtype)

        slope = jax.grad(rho)
        return jax.vmap(rho)(z), jax.vmap(slope)(z), jax.vmap(jax.grad(slope))(z)
