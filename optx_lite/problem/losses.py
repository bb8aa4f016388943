"""Robust losses: rho(z) of the squared residual z = (f / C)^2, with its two derivatives.

The cost is 0.5 * C^2 * sum_i rho((f_i / C)^2). Near the current point it is again a sum of
squares, in residuals and a Jacobian that carry the loss (Triggs et al., "Bundle Adjustment: a
Modern Synthesis", 1999, section 4.3):

    J~_i = J_i * sqrt(rho' + 2 rho'' f_i^2 / C^2)                       (1)
    f~_i = f_i * rho' / sqrt(rho' + 2 rho'' f_i^2 / C^2)                (2)

so that J~^T f~ is the true gradient and J~^T J~ the Gauss-Newton Hessian. Where the bracket is
negative (outliers of cauchy and arctan) it is replaced by eps, as in SciPy, but by rho' where that
is less: eps would make far outliers infinitely stiff. The solvers' steps take a tenth of rho' at
least. rho' itself is the curvature of the parabola that touches the loss and lies above it
(iteratively reweighted least squares), with which a step never fails; with SciPy's eps the model
of many outliers is a plane.

Different from SciPy: the curvature for steps; no square of f / C is formed of a named loss, so that
the cost is right wherever it is in range; a loss may also be one JAX function of a scalar z, which
we differentiate; and f_scale carries a derivative.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, DTypeLike, Float, PyTree

from ..functions import Lifted, lift
from ..jax_support.control_flow import vary_with
from ..linalg import safe_divide, safe_sqrt, unit_of
from .arguments import shape_of
from .pytrees import is_concrete

Rho = tuple[Array, Array, Array]

# Measured on fits of exponentials with 15 % outliers and on sums of absolute values: more slows the
# former, less the latter.
LEAST_BEND = 0.1


class NamedLoss(NamedTuple):
    """A loss as functions of r = f / C, whose square may be out of range; (m,) to (m,)."""

    near: Callable[[Array], Array]  # (rho / z)^1/2, for |r| <= 1
    far: Callable[[Array], Array]  # rho^1/2, for |r| >= 1
    root_weight: Callable[[Array], Array]  # rho'^1/2
    bend: Callable[[Array], Array]  # (rho' + 2 rho'' z) / rho'


def _hypotenuse(r: Float[Array, " m"]) -> Float[Array, " m"]:
    return jnp.hypot(jnp.ones_like(r), r)


def _at_least_1(r: Float[Array, " m"]) -> Float[Array, " m"]:
    return jnp.maximum(jnp.abs(r), 1)


def _root_of_quotient(function: Callable[[Array], Array], r: Array) -> Array:
    """(function(z) / z)^1/2 of a function that is z to first order."""
    z = r * r
    tiny = z < jnp.finfo(r.dtype).tiny
    return jnp.where(tiny, 1, jnp.sqrt(function(z) / jnp.where(tiny, 1, z)))


LOSSES = {
    "linear": None,
    # rho = z inside, 2 z^1/2 - 1 outside: the absolute value there.
    "huber": NamedLoss(
        near=jnp.ones_like,
        far=lambda r: jnp.sqrt(2 * _at_least_1(r) - 1),
        root_weight=lambda r: 1 / jnp.sqrt(_at_least_1(r)),
        bend=lambda r: (jnp.abs(r) <= 1).astype(r.dtype),
    ),
    # rho = 2 ((1 + z)^1/2 - 1): a smooth absolute value.
    "soft_l1": NamedLoss(
        near=lambda r: jnp.sqrt(2 / (_hypotenuse(r) + 1)),
        far=lambda r: jnp.sqrt(2 * (_hypotenuse(r) - 1)),
        root_weight=lambda r: 1 / jnp.sqrt(_hypotenuse(r)),
        bend=lambda r: 1 / _hypotenuse(r) / _hypotenuse(r),
    ),
    # rho = log(1 + z): severely weakens outliers.
    "cauchy": NamedLoss(
        near=lambda r: _root_of_quotient(jnp.log1p, r),
        far=lambda r: jnp.sqrt(2 * jnp.log(_hypotenuse(r))),
        root_weight=lambda r: 1 / _hypotenuse(r),
        bend=lambda r: 2 / _hypotenuse(r) / _hypotenuse(r) - 1,
    ),
    # rho = arctan(z): limits the loss of a single residual.
    "arctan": NamedLoss(
        near=lambda r: _root_of_quotient(jnp.arctan, r),
        far=lambda r: jnp.sqrt(jnp.arctan(r * r)),
        root_weight=lambda r: 1 / _hypotenuse(r * r),
        bend=lambda r: 4 / _hypotenuse(r * r) / _hypotenuse(r * r) - 3,
    ),
}


def _effective(
    named: NamedLoss, f: Float[Array, " m"], f_scale: Float[Array, ""], unit: Array
) -> Float[Array, " m"]:
    """C rho^1/2 / unit, (m,): the residuals whose plain sum of squares is the sum of the losses."""
    r = f / f_scale
    near = (jnp.abs(f) / unit) * named.near(jnp.clip(r, -1, 1))
    return jnp.where(jnp.abs(r) <= 1, near, (f_scale / unit) * named.far(r))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _named_cost(
    named: NamedLoss, f: Float[Array, " m"], f_scale: Float[Array, ""], unit: Array
) -> Float[Array, ""]:
    """0.5 C^2 sum rho / unit^2."""
    effective = _effective(named, f, f_scale, unit)
    return 0.5 * jnp.sum(effective * effective)


@_named_cost.defjvp
def _named_cost_jvp(named, primals, tangents):  # type: ignore[no-untyped-def]
    """By f: f rho'; by C: C sum (rho - z rho')."""
    (f, f_scale, unit), (d_f, d_scale, _) = primals, tangents
    cost = _named_cost(named, f, f_scale, unit)
    slope = _named_slope(named, f, f_scale) / unit
    by_scale = 2 * cost - jnp.sum(slope * (f / unit))
    return cost, jnp.sum(slope * (d_f / unit)) + by_scale * (d_scale / f_scale)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _named_slope(
    named: NamedLoss, f: Float[Array, " m"], f_scale: Float[Array, ""]
) -> Float[Array, " m"]:
    """f rho', (m,)."""
    root = named.root_weight(f / f_scale)
    return (f * root) * root


@_named_slope.defjvp
def _named_slope_jvp(named, primals, tangents):  # type: ignore[no-untyped-def]
    """By f: rho' + 2 rho'' z; by C, of which f rho' / C is no function but by f / C: the rest."""
    (f, f_scale), (d_f, d_scale) = primals, tangents
    r = f / f_scale
    root, bend = named.root_weight(r), named.bend(r)
    by_scale = (r * root) * (1 - bend) * root
    return _named_slope(named, f, f_scale), root * bend * (root * d_f) + by_scale * d_scale


class Loss(eqx.Module):
    """A loss and its margin C.

    Attributes
    ----------
    named : NamedLoss or None, static
        One of SciPy's.
    rho : callable or None
        A user's: of z, shape (m,), it returns rho, rho', rho'', each (m,). If both are None the
        loss is linear, for which nothing is computed at all.
    f_scale : array, shape ()
        C.
    """

    named: NamedLoss | None = eqx.field(static=True)
    rho: PyTree
    f_scale: Array

    @property
    def is_linear(self) -> bool:
        """Whether the cost is the plain sum of squares."""
        return self.rho is None and self.named is None

    def cost(self, f: Float[Array, " m"], unit: Array | float = 1.0) -> Float[Array, ""]:
        """0.5 C^2 sum rho, in units of ``unit**2`` (which keeps the squares in range)."""
        if self.is_linear:
            f = f / unit
            return 0.5 * jnp.sum(f * f)
        if self.named is not None:
            return _named_cost(self.named, f, self.f_scale, jnp.asarray(unit, f.dtype))
        margin = self.f_scale / unit
        return 0.5 * margin**2 * jnp.sum(self.rho((f / self.f_scale) ** 2)[0])

    def slope(self, f: Float[Array, " m"]) -> Float[Array, " m"]:
        """d cost / d f, shape (m,): f itself when linear, f rho' otherwise."""
        if self.is_linear:
            return f
        if self.named is not None:
            return _named_slope(self.named, f, self.f_scale)
        return f * self.rho((f / self.f_scale) ** 2)[1]

    def weights(
        self, f: Float[Array, " m"], least_bend: float = 0.0
    ) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
        """Factors of the rows of J and of f, equations (1) and (2); shapes (m,).

        ``least_bend``: of the bracket, relative to rho'; eps in any case, or rho' if that is less.
        """
        if self.named is not None:
            root, bend = self.named.root_weight(f / self.f_scale), self.named.bend(f / self.f_scale)
        else:
            z = (f / self.f_scale) ** 2
            _, first, second = self.rho(z)
            root = safe_sqrt(jnp.maximum(first, 0))
            bend = 1 + 2 * safe_divide(second, first) * z
        eps, safe_root = jnp.finfo(f.dtype).eps, jnp.where(root > 0, root, 1)
        least = jnp.minimum(eps / safe_root / safe_root, 1)
        least = jnp.where(root > 0, jnp.maximum(least, least_bend), 1)
        by_curvature = jnp.sqrt(jnp.maximum(bend, least))
        return root * by_curvature, root / by_curvature  # (1), (2)

    def unit(self, f: Float[Array, " m"]) -> Float[Array, ""]:
        """A unit, (), in which the cost is neither far above nor far below 1."""
        if self.named is None:
            return unit_of(f)
        f, f_scale = lax.stop_gradient((f, self.f_scale))
        return unit_of(_effective(self.named, f, f_scale, jnp.ones_like(f_scale)))


class ScipyLoss(eqx.Module):
    """A user's loss in SciPy's form: z -> array (3, m)."""

    loss: Callable[[Array], PyTree]

    def __call__(self, z: Array) -> Rho:
        """rho, rho' and rho'' at z, (m,)."""
        rows = jnp.asarray(self.loss(z)).astype(z.dtype)
        return rows[0], rows[1], rows[2]


class ScalarLoss(eqx.Module):
    """A user's loss as one JAX function of a scalar, differentiated by us."""

    loss: Callable[[Array], PyTree]

    def __call__(self, z: Array) -> Rho:
        """rho, rho' and rho'' at z, (m,)."""

        def rho(z: Array) -> Array:
            return jnp.asarray(self.loss(z)).astype(z.dtype)

        slope = jax.grad(rho)
        return jax.vmap(rho)(z), jax.vmap(slope)(z), jax.vmap(jax.grad(slope))(z)


def _check_f_scale(f_scale: PyTree, dtype: DTypeLike) -> Array:
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


def check_loss(loss: Any, f_scale: Any, z: PyTree) -> Loss:
    """The loss of squares like z, (m,)."""
    (m,), dtype = z.shape, z.dtype
    f_scale = _check_f_scale(f_scale, dtype)
    if isinstance(loss, str) and loss in LOSSES:
        return Loss(LOSSES[loss], None, f_scale)
    if not callable(loss):
        raise ValueError(f"`loss` must be one of {list(LOSSES)} or a callable, got {loss!r}.")
    single = _try_scalar_loss(loss, vary_with(jax.ShapeDtypeStruct((), dtype), z))
    try:
        whole = lift(loss, z, label="`loss`")
    except Exception:
        if single is None:
            raise
        return Loss(None, ScalarLoss(single), f_scale)
    shape = shape_of(whole.out_shape)
    if shape == (3, m):
        return Loss(None, ScipyLoss(whole), f_scale)
    if shape == (m,) and single is not None:
        return Loss(None, ScalarLoss(single), f_scale)
    raise ValueError(
        "The return value of `loss` callable has wrong shape: expected (3, m) = "
        f"{(3, m)}, or a scalar for a scalar, got {shape}."
    )


def _try_scalar_loss(loss: Callable, z: PyTree) -> Lifted | None:
    """The loss on a scalar z, or None if it is not made for one."""
    try:
        lifted = lift(loss, z, label="`loss`")
    except Exception:  # the user's code, made for vectors, may raise anything here
        return None
    return lifted if shape_of(lifted.out_shape) == () else None
