"""Quantiles of Student's t and of F with two degrees, which JAX does not have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import betainc, gammaln, ndtri
from jaxtyping import Array, DTypeLike, Float

from ..jax_support.types import Count, Number
from ..problem.pytrees import is_concrete

HALVINGS = 40


def probability(level: Number, dtype: DTypeLike) -> Float[Array, ""]:
    """``level`` as an array; NaN if it is traced and not between 0 and 1."""
    if jnp.ndim(level) or (is_concrete(level) and not 0 < float(level) < 1):
        raise ValueError(f"`level` must be a probability between 0 and 1, got {level!r}.")
    level = jnp.asarray(level, dtype)
    return jnp.where((level > 0) & (level < 1), level, jnp.nan)


@jax.jit
def half_width(level: Float[Array, ""], dof: Float[Array, ""]) -> Float[Array, ""]:
    """q with P(|t| <= q) = ``level``, t of Student's distribution; normal for ``dof`` inf."""
    finite = jnp.where(jnp.isfinite(dof), dof, 1)
    tail = 1 - level

    def outside(t: Array) -> Array:
        """P(|t'| > t)."""
        return betainc(finite / 2, jnp.full_like(t, 0.5), finite / (finite + t * t))

    def halve(_: Count, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        beyond = outside(middle / (1 - middle)) < tail
        return jnp.where(beyond, low, middle), jnp.where(beyond, middle, high)

    zero = jnp.zeros_like(level * finite)
    low, _ = lax.fori_loop(0, HALVINGS, halve, (zero, zero + 1 - jnp.finfo(zero.dtype).epsneg))
    t = low / (1 - low)
    # One Newton step for the digits that are left.
    log_density = (
        gammaln((finite + 1) / 2)
        - gammaln(finite / 2)
        - 0.5 * jnp.log(finite * jnp.pi)
        - (finite + 1) / 2 * jnp.log1p(t * t / finite)
    )
    t = t + (outside(t) - tail) / (2 * jnp.exp(log_density))
    return jnp.where(jnp.isfinite(dof), t, -ndtri(0.5 * tail))


def radius(level: Float[Array, ""], dof: Float[Array, ""]) -> Float[Array, ""]:
    """q with P(r <= q) = ``level`` for two parameters at once: q² = 2 F(2, dof), or chi²(2)."""
    finite = jnp.where(jnp.isfinite(dof), dof, 1)
    tail = 1 - level
    by_f = finite * jnp.expm1(-2 / finite * jnp.log(tail))
    return jnp.sqrt(jnp.where(jnp.isfinite(dof), by_f, -2 * jnp.log(tail)))
