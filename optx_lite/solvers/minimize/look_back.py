"""Whether a gradient goes to 0: one evaluation behind x, before a success is claimed.

q, G and F are those of `convergence`.

Kinks. Steps shrink to nothing at a kink as well, and with them q: but the gradient does not. A
smooth f has at x - k d, d the step of the quadratic to its minimum, the gradient (1 + k) g; at a
kink that is still g, since x - k d lies on the same side, or some multiple of it, where x is on the
kink itself and g a mean of those at its sides. So one evaluation more looks back, k =
`BACK`, before a success is claimed whose gradient has not visibly gone to 0: it is more than
`VANISHED` times its largest change in the memory. (Of 76 of CUTEst's problems six were not so.) The
components which have not grown `GROWS` times there must be a small part, `SHARE`, of g_F and of G.

Units far apart. Beside a steep variable the one in a large unit has next to no gradient, and a
quadratic that has not seen it move no step for it: q is small, G is not. By q, f curves by
G^2 / 2q where all x_j change by |x_j|. If that is far more than the largest |y|.|x| in the memory,
and G more than `VANISHED_IN_REACH` times this, the look back is made as well: such a gradient does
not grow there, and the solve fails as at a kink. Where a probe along the gradient made the claim,
the variables in small units rule that direction: the look goes along the gradient in the unit of
each variable, the largest that it has been.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...jax_support.types import Number
from ...linalg import norm, safe_divide, safe_sqrt
from ...problem.minimization import MinimizationProblem
from .convergence import reach_of

BACK = 32  # steps behind x
GROWS = 1 / 16  # of what a quadratic promises along its Newton step
SHARE = 0.1  # of the gradient
VANISHED = 1e-3  # of the largest change of the gradient
VANISHED_IN_REACH = 1e-4  # of the largest |y|.|x|
UNLIKE = 1 / 4  # power of eps: by so much one curvature is smaller than another
RESOLVED = 8192  # times epsilon, relative to x and to f: so far apart, points differ


def look_back(
    problem: MinimizationProblem,
    x: Float[Array, " n"],
    value: Float[Array, ""],
    descent: Float[Array, " n"],
    step: Float[Array, " n"],
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """Where to look whether the gradient vanishes at x: so many steps behind it, and how many.

    So far that neither x nor f, by the quadratic, is the same but for its rounding.
    """
    rounding = RESOLVED * jnp.finfo(x.dtype).eps
    in_x = safe_divide(rounding, jnp.max(safe_divide(jnp.abs(step), jnp.abs(x))))
    in_f = safe_sqrt(safe_divide(rounding * jnp.abs(value), 0.5 * reach_of(step, descent)))
    many = jnp.maximum(BACK, jnp.maximum(in_x, in_f))
    behind = x - many * step
    if problem.bounded:
        behind = jnp.clip(behind, problem.lower, problem.upper)
    return behind, many


def hides_a_variable(
    reach: Float[Array, ""], changed: Float[Array, ""], promised: Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether a promise is so small beside G that the curvature which it has seen is not all.

    ``changed``: the largest |y|.|x| of the pairs.
    """
    seen = changed / float(jnp.finfo(reach.dtype).eps) ** UNLIKE
    stiff = ~(reach * reach <= 2 * promised * seen) | jnp.isinf(promised)
    return (reach > VANISHED_IN_REACH * changed) & stiff


def is_cut_short(
    problem: MinimizationProblem, x: Float[Array, " n"], behind: Float[Array, " n"]
) -> Bool[Array, ""]:
    """Whether a bound stands between x and where `look_back` would look: that shows nothing."""
    if not problem.bounded:
        return jnp.zeros((), bool)
    below = (behind <= problem.lower) & (x > problem.lower)
    return jnp.any(below | ((behind >= problem.upper) & (x < problem.upper)))


def stays(
    descent: Float[Array, " n"], grad_behind: Float[Array, " n"], many: Number = BACK
) -> Bool[Array, " n"]:
    """Which components of the projected gradient do not grow ``many`` steps behind x."""
    least = GROWS * (1 + many)
    return ~(jnp.abs(grad_behind) >= least * jnp.abs(descent))  # or are not finite


def is_small_part(
    x: Float[Array, " n"], descent: Float[Array, " n"], some: Bool[Array, " n"]
) -> Bool[Array, ""]:
    """Whether ``some`` components are, of the projected gradient at x and of G."""
    part = jnp.where(some, descent, 0)
    in_f = reach_of(x, part) <= SHARE * reach_of(x, descent)
    return in_f & (norm(part) <= SHARE * norm(descent))
