r"""Linear least squares in a box, of the size of the variables.

    minimise 0.5 || R p + q ||^2   subject to   low <= p <= high                      (1)

with R upper triangular, by active sets: P. B. Stark, R. L. Parker, "Bounded-variable least
squares: an algorithm and applications", Computational Statistics 10 (1995), which is Lawson &
Hanson's NNLS with two bounds. The free variables are solved for. If all of them stay in the box,
those on a bound whose multiplier

    w = R^T (R p + q),    w_j >= 0 on low_j, <= 0 on high_j                           (2)

has the wrong sign are freed. If not, p goes as far as the projection onto the box if that is
lower, else to the first bound on the way; the variables that meet one are held there.

Different from Stark & Parker: several variables change at once, as the projection lets them. The
cost falls in every turn, so that none repeats itself; from a guess that is right it takes one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..jax_support.control_flow import while_loop
from .norms import norm, safe_divide
from .triangular import solve_transposed, solve_upper, triangularize

NOISE = 8  # times epsilon: by so much a multiplier, or a bound, may be missed


def evaluate_model(
    r_factor: Float[Array, "n n"], qtf: Float[Array, " n"], step: Float[Array, " n"]
) -> Float[Array, ""]:
    """Reduction that the linear model predicts: -(g p + 0.5 |R p|^2) = -(q + R p / 2) . R p."""
    moved = r_factor @ step
    return -jnp.sum((qtf + 0.5 * moved) * moved)


@jax.custom_jvp
def solve_in_box(
    r_factor: Float[Array, "n n"],
    qtf: Float[Array, " n"],
    low: Float[Array, " n"],
    high: Float[Array, " n"],
    start: Float[Array, " n"],
) -> tuple[Float[Array, " n"], Float[Array, "n n"], Bool[Array, ""]]:
    """The minimiser p of (1), (n,), the factor of the free columns, and whether p was found.

    ``start`` is where to begin, in the box; what lies on a bound there is held at first. Where
    low and high are equal the variable is never free. Variables on which f does not depend, or
    which depend on others, stay. The factor, (n, n), has zeros in the columns that are not free.
    """
    p, factor, _, found = _solve(r_factor, qtf, low, high, start)
    return p, factor, found


@solve_in_box.defjvp
def _solve_in_box_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    """From R_F^T (R p + q) = 0 of the free variables F, while none changes sides."""
    (r_factor, qtf, _, high, _), (d_r_factor, d_qtf, d_low, d_high, _) = primals, tangents
    p, _, free, found = _solve(*primals)
    onto = jnp.where(free, 0, jnp.where(p == high, d_high, d_low))
    d_residual = d_r_factor @ p + r_factor @ onto + d_qtf
    slope = d_r_factor.T @ (r_factor @ p + qtf) + r_factor.T @ d_residual

    def factorize(r_factor: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return triangularize(jnp.where(free, r_factor, 0).T, qtf)[0]

    factor, d_factor = jax.jvp(factorize, (r_factor,), (d_r_factor,))
    moved = -solve_upper(factor, solve_transposed(factor, jnp.where(free, slope, 0)))
    no_tangent = jax.custom_derivatives.zero_from_primal(found)
    return (p, factor, found), (jnp.where(free, moved, onto), d_factor, no_tangent)


def _solve(
    r_factor: Float[Array, "n n"],
    qtf: Float[Array, " n"],
    low: Float[Array, " n"],
    high: Float[Array, " n"],
    start: Float[Array, " n"],
) -> tuple[Float[Array, " n"], Float[Array, "n n"], Bool[Array, " n"], Bool[Array, ""]]:
    """As `solve_in_box`, and which variables are free."""
    n = qtf.shape[0]
    eps = jnp.finfo(qtf.dtype).eps
    size = jnp.sqrt(jnp.sum(r_factor * r_factor, axis=0))

    def turn(state: PyTree) -> PyTree:
        p, _, free, turns, _ = state
        residual = r_factor @ p + qtf
        factor, rest = triangularize(jnp.where(free, r_factor, 0).T, residual)
        step = jnp.where(free, -solve_upper(factor, rest), 0)
        beyond = NOISE * eps * jnp.maximum(jnp.abs(p), jnp.abs(step))
        leaves = (p + step < low - beyond) | (p + step > high + beyond)
        inside = ~jnp.any(leaves)

        onto_box = jnp.clip(p + step, low, high)
        descends = evaluate_model(r_factor, residual, onto_box - p) > 0
        ahead = jnp.where(step < 0, low, high)
        parts = jnp.where(leaves, safe_divide(ahead - p, step), jnp.inf)
        part = jnp.min(parts)
        first = leaves & (parts == part)
        shorter = jnp.where(first, ahead, p + part * step)
        whole = inside | descends
        moved_to = jnp.where(whole, onto_box, jnp.clip(shorter, low, high))
        held = jnp.where(whole, leaves, first)

        slope = r_factor.T @ (r_factor @ moved_to + qtf)
        rounding = NOISE * eps * size * (norm(qtf) + size @ jnp.abs(moved_to))
        inward = jnp.where(moved_to <= low, slope < -rounding, slope > rounding)
        freed = inside & ~free & inward & (low < high)
        still_free = (free & ~held) | freed
        done = inside & ~jnp.any(freed)
        return moved_to, factor, jnp.where(done, free, still_free), turns + 1, done

    def unsolved(state: PyTree) -> Bool[Array, ""]:
        turns, done = state[-2:]
        return ~done & (turns < 10 + 10 * n)

    start = jnp.clip(start, low, high)
    free = (start > low) & (start < high)
    none = jnp.zeros((), jnp.int32)
    init = (start, jnp.zeros_like(r_factor), free, none, none > 0)
    p, factor, free, _, found = while_loop(unsolved, turn, init)
    return p, factor, free, found
