r"""When a minimiser has arrived.

SciPy's L-BFGS-B stops where the last reduction of f was small relative to max(|f|, 1), or where
the projected gradient is small. Both are met far from a minimum if f is flat there, or is
measured in small units; and a test relative to f where the solve began, or to what f has fallen
by, is met anywhere if it began high enough. So a solver has to say what there is still to be
gained from here, q, by its quadratic, and no test counts unless that is small beside what f, g
and x are here:

    q <= ftol |f|    or    q <= ftol^3/4 G / 2,    G = |g_F|.|x_F|,                    (1)

F the variables which g does not hold at a bound. The first says that there are no more digits of f
to be gained. The second says that of x: G is by what f changes, to first order, if all x_j change
by |x_j|. As q = -g.d / 2, a step d is small relative to x, weighted by g. (An f that is right to
ftol goes with an x that is right to the root of it. Half of the way from there to ftol costs next
to nothing where steps shrink superlinearly, and is not met on a slow walk along a valley.) It is
what ends a solve whose f goes to 0. Neither depends on the units of f and of each x_j.

    gtol    (1)  and  ||P(x - g) - x||_inf <= gtol                                    (2)
    ftol    (1)  and  f_before - f <= ftol |f|  or  <= ftol^3/4 G_before / 2          (3)

The rounding of f is eps (|f| + G), that of its computation and that of x; so ftol counts as no less
than `NOISE` times epsilon.

How often. Far from a minimum a quadratic made of unsuitable pairs may promise nothing for some
iterations on end, while the gradient hides more than that. If all of it lay along the flattest
direction that was seen, it could be

    g_F.g_F / (2 kappa),    kappa the least s.y / s.s.                                (4)

If that is small in the sense of (1), (2) counts at once, and at the second time where the quadratic
comes of less than two pairs: a leap onto a plateau is one pair. Else (1) must have held as often as
ftol asks for digits, at most `MOST_DIGITS`. (3) counts after `CERTAIN` times if (4) is small and
the quadratic comes of two pairs (at once it ends, in float32, beside a large constant, in the
valley of Rosenbrock's function), after as many iterations as ftol asks for digits if it comes of
one, and if (4) is not small after `PATIENCE` times as many (where ftol asks for all that values can
show, there is nothing to wait for); and after as many as there are variables if q and f_before - f
are rounding. (A worst case that is small to the root of ftol only would save 3 % of the evaluations
on CUTEst, and claims false successes on quadratics of condition 1e6 in small units of f.)

Values may be noisier than that, or the gradient too rough to bring q so low. Where f stands
still, and q is no more than what makes the line search go by slopes instead of values, `DOUBT`
times `NOISE` times the rounding, a solve ends as well, if that lasts `PATIENCE` times as long.

A success whose gradient has not visibly gone to 0 is looked at once more: see `look_back`.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from ...jax_support.types import Number
from ...linalg import dot
from ...results.minimize import FTOL, GTOL, RUNNING
from .line_search import DOUBT, NOISE

OF_X = 0.75  # power of ftol to which x is right where (1) holds by its second part
MOST_DIGITS = 10
PATIENCE = 5
CERTAIN = 4  # iterations on end: (3) where even the worst case is nothing
SECOND = 2  # time at which (1) counts while the quadratic is untested


class Prospect(eqx.Module):
    """What is left to be gained at a point, and what the last iteration gained."""

    value: Float[Array, ""]  # f
    before: Float[Array, ""]  # f one iteration ago, inf at the first
    promised: Float[Array, ""]  # q
    possible: Float[Array, ""]  # (4)
    reach: Array | float  # () G
    reach_before: Array | float  # () G one iteration ago
    optimality: Float[Array, ""]  # ||P(x - g) - x||_inf
    lasted: Int[Array, ""]  # iterations in a row, before this one, in which (1) has held
    tested: Array | bool  # (): the quadratic comes of more than one pair


def negligible(value: Array, reach: Number, tolerance: Number) -> Array:
    """What no digit of f, to ``tolerance``, and none of x can show; the right side of (1)."""
    of_x = 0.5 * tolerance**OF_X * _in_range(reach)
    return jnp.maximum(tolerance * jnp.abs(value), of_x)


def rounding(value: Array, reach: Number) -> Array:
    """What f may be wrong by, its own rounding and that of x, and at the end of its range."""
    info = jnp.finfo(value.dtype)
    return info.eps * (jnp.abs(value) + _in_range(reach)) + info.smallest_normal


def _in_range(reach: Number) -> Array:
    """G, or 0 where it is not finite: f falls without end there, and beside inf all is small."""
    return jnp.where(jnp.isfinite(reach), reach, 0)


def reach_of(x: Float[Array, " n"], descent: Float[Array, " n"]) -> Float[Array, ""]:
    """G of (1), of a projected gradient, (n,)."""
    return dot(jnp.abs(x), jnp.abs(descent))


def at_least_noise(ftol: Number, dtype: DTypeLike) -> Array:
    """``ftol``, but no less than values can show."""
    return jnp.maximum(ftol, NOISE * jnp.finfo(dtype).eps)


def promises_nothing(prospect: Prospect, ftol: Number) -> Array:
    """(1)."""
    return prospect.promised <= negligible(prospect.value, prospect.reach, ftol)


def worst_case_is_nothing(prospect: Prospect, tolerance: Number) -> Array:
    """(4) in the sense of (1)."""
    return prospect.possible <= negligible(prospect.value, prospect.reach, tolerance)


def stands_still(prospect: Prospect, ftol: Number) -> Array:
    """(3) without (1)."""
    gained = jnp.abs(prospect.before - prospect.value)
    return gained <= negligible(prospect.value, prospect.reach_before, ftol)


def hidden_in_noise(prospect: Prospect) -> Array:
    """q is so small that the line search goes by slopes."""
    return prospect.promised <= DOUBT * NOISE * rounding(prospect.value, prospect.reach)


def exhausted(prospect: Prospect) -> Array:
    """q and what was gained are rounding."""
    exact = rounding(prospect.value, prospect.reach)
    gained = jnp.abs(prospect.before - prospect.value)
    return (prospect.promised <= exact) & (gained <= NOISE * exact)


def ftol_asks(prospect: Prospect, ftol: Number, n: int) -> Array:
    """In how many iterations on end (3) has to hold, a float."""
    dtype = prospect.value.dtype
    tolerance, rough = at_least_noise(ftol, dtype), DOUBT * NOISE * jnp.finfo(dtype).eps
    digits = jnp.clip(-jnp.log10(jnp.maximum(ftol, rough)), 1, MOST_DIGITS)
    small = promises_nothing(prospect, tolerance)
    sure = worst_case_is_nothing(prospect, tolerance)
    asked = jnp.where(small & (sure | (ftol < rough)), digits, PATIENCE * digits)
    asked = jnp.where(exhausted(prospect), jnp.minimum(digits, n), asked)
    certain = small & sure & prospect.tested
    return jnp.where(certain, jnp.minimum(asked, CERTAIN), asked)


def gtol_asks(prospect: Prospect, ftol: Number, n: int) -> Array:
    """In how many iterations on end (1) has to hold for (2), a float."""
    dtype = prospect.value.dtype
    tolerance, rough = at_least_noise(ftol, dtype), DOUBT * NOISE * jnp.finfo(dtype).eps
    digits = jnp.clip(-jnp.log10(jnp.maximum(ftol, rough)), 1, MOST_DIGITS)
    once = jnp.where(prospect.tested, 1, min(SECOND, n + 1))
    asked = jnp.where(worst_case_is_nothing(prospect, tolerance), once, digits)
    return jnp.where(prospect.promised == 0, 1, asked)


def judge(
    prospect: Prospect,
    ftol: Number,
    gtol: Number,
    unchanged: Int[Array, ""],
    n: int,
    by_slopes: bool,
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """GTOL, FTOL or RUNNING; and for how many iterations on end (3) has held.

    ``unchanged`` is that number before this iteration; ``by_slopes`` whether values at the level
    of their noise do not stop the solver.
    """
    tolerance = at_least_noise(ftol, prospect.value.dtype)
    small = promises_nothing(prospect, tolerance)
    still = (small | (by_slopes & hidden_in_noise(prospect))) & stands_still(prospect, tolerance)
    unchanged = jnp.where(still, unchanged + 1, 0)
    dtype = prospect.value.dtype
    met_ftol = still & (unchanged.astype(dtype) >= ftol_asks(prospect, ftol, n))
    flat = small & (prospect.optimality <= gtol)
    met_gtol = flat & ((prospect.lasted + 1).astype(dtype) >= gtol_asks(prospect, ftol, n))
    return jnp.where(met_gtol, GTOL, jnp.where(met_ftol, FTOL, RUNNING)), unchanged
