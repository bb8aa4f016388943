"""Robust losses: rho(z) of the squared residual z = (f / C)^2, with its two derivatives.

The cost is 0.5 * C^2 * sum_i rho((f_i / C)^2). Near the current point it is again a sum of
squares, in residuals and a Jacobian that carry the loss (Triggs et al., "Bundle Adjustment: a
Modern Synthesis", 1999, section 4.3):

    J~_i = J_i * sqrt(rho' + 2 rho'' f_i^2 / C^2)                       (1)
    f~_i = f_i * rho' / sqrt(rho' + 2 rho'' f_i^2 / C^2)                (2)

so that J~^T f~ is the true gradient and J~^T J~ the Gauss-Newton Hessian. Where the bracket is
negative (outliers of cauchy and arctan) it is replaced by eps, as in SciPy, but by rho' where that
is less: eps would make far outliers infinitely stiff.

Different from SciPy: a loss may also be one JAX function of a scalar z, which we differentiate,
and f_scale carries a derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..functions import Lifted, lift
from ..jax_support.control_flow import vary_with
from ..linalg import safe_divide, safe_sqrt
from .arguments import shape_of
from .pytrees import is_concrete

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
        row = safe_sqrt(jnp.maximum(first + 2 * second * z, jnp.minimum(eps, first)))  # (1)
        return row, safe_divide(first, row)  # (2)


class ScipyLoss(eqx.Module):
    """A user's loss in SciPy's form: z -> array (3, m)."""

    loss: Callable[[Array], Any]

    def __call__(self, z: Array) -> Rho:
        """rho, rho' and rho'' at z, (m,)."""
        rows = jnp.asarray(self.loss(z)).astype(z.dtype)
        return rows[0], rows[1], rows[2]


class ScalarLoss(eqx.Module):
    """A user's loss as one JAX function of a scalar, differentiated by us."""

    loss: Callable[[Array], Any]

    def __call__(self, z: Array) -> Rho:
        """rho, rho' and rho'' at z, (m,)."""

        def rho(z: Array) -> Array:
            return jnp.asarray(self.loss(z)).astype(z.dtype)

        slope = jax.grad(rho)
        return jax.vmap(rho)(z), jax.vmap(slope)(z), jax.vmap(jax.grad(slope))(z)


def _check_f_scale(f_scale: Any, dtype: Any) -> Array:
    if not isinstance(f_scale, jax.Array):
        f_scale = np.asarray(f_scale)
    if not jnp.issubdtype(f_scale.dtype, np.number) or jnp.iscomplexobj(f_scale):
        raise ValueError(f"`f_scale` must be a positive number, got {f_scale!r}.")
    f_scale = f_scale.astype(dtype)
    if f_scale.ndim:
        raise ValueError(f"`f_scale` must be a number, got shape {f_scale.shape}.")
    if is_concrete(f_scale) and not 0 < float(f_scale) < np.inf:
        raise ValueError(f"`f_scale` must be positive and finite, got {float(f_scale)}.")
    return f_scale


def check_loss(loss: Any, f_scale: Any, z: Any) -> Loss:
    """The loss of squares like z, (m,)."""
    (m,), dtype = z.shape, z.dtype
    f_scale = _check_f_scale(f_scale, dtype)
    if isinstance(loss, str) and loss in LOSSES:
        rho = LOSSES[loss]
        return Loss(None if rho is None else jax.tree_util.Partial(rho), f_scale)
    if not callable(loss):
        raise ValueError(f"`loss` must be one of {list(LOSSES)} or a callable, got {loss!r}.")
    single = _try_scalar_loss(loss, vary_with(jax.ShapeDtypeStruct((), dtype), z))
    try:
        whole = lift(loss, z, label="`loss`")
    except Exception:
        if single is None:
            raise
        return Loss(ScalarLoss(single), f_scale)
    shape = shape_of(whole.out_shape)
    if shape == (3, m):
        return Loss(ScipyLoss(whole), f_scale)
    if shape == (m,) and single is not None:
        return Loss(ScalarLoss(single), f_scale)
    raise ValueError(
        "The return value of `loss` callable has wrong shape: expected (3, m) = "
        f"{(3, m)}, or a scalar for a scalar, got {shape}."
    )


def _try_scalar_loss(loss: Callable, z: Any) -> Lifted | None:
    """The loss on a scalar z, or None if it is not made for one."""
    try:
        lifted = lift(loss, z, label="`loss`")
    except Exception:  # the user's code, made for vectors, may raise anything here
        return None
    return lifted if shape_of(lifted.out_shape) == () else None
