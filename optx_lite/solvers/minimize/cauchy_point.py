r"""The generalized Cauchy point of a quadratic with a limited-memory matrix, in a box.

R. H. Byrd, P. Lu, J. Nocedal, C. Zhu, "A limited memory algorithm for bound constrained
optimization", SIAM J. Sci. Comput. 16 (1995), section 4: a local minimum of

    q(t) = g^T z(t) + z(t)^T B z(t) / 2,    z(t) = P(x - t g) - x,    B = theta I - W M W^T

on the path that goes along -g and bends where a variable meets its bound, at the breakpoint

    t_i = (x_i - u_i) / g_i  (g_i < 0),    (x_i - l_i) / g_i  (g_i > 0),    else infinite. (4.1)

Beyond t, with the variables F = {t_i > t} still moving,

    d = -g on F, else 0,    p = W^T d,    c = W^T z(t)
    q'  = -d.d + theta z.d - p^T M c,        q'' = theta d.d - p^T M p               (4.4), (4.5)

and the minimum is at t - q' / q'', if no breakpoint comes first.

Different from the paper, which sorts the breakpoints and goes from one to the next until q'
changes its sign: here the stretch where it does is closed in on from both sides, by Newton's
step from below and by halving the logarithm of what is left, in turns. Each turn asks for q' at
one breakpoint, two products with W; sorting takes longer than all of them (one core, m = 10: a
hundred times as long as a product for n = 1000, sixty times for n = 100,000). A turn is the same
work for every lane of a `vmap`. Where the path has several local minima, which is rare, the
paper's is the first; this is one at which q is lower than at the breakpoints seen before it.

A loop of unknown length has no derivative in reverse mode. It needs none: where it ends, the
minimum is a formula of the breakpoint before it, or is the breakpoint after it, and that is what
is differentiated.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...jax_support.control_flow import while_loop
from ...linalg import safe_divide
from .bfgs_matrix import AbstractMatrix


class Stretch(eqx.Module):
    """The path seen from a breakpoint, and what is left to look through."""

    begin: Float[Array, ""]  # q' < 0 just beyond
    value: Float[Array, ""]  # q there
    minimum: Float[Array, ""]  # where q would be least, were there no more breakpoints
    end: Float[Array, ""]  # a breakpoint with q' >= 0 beyond it, or where q is higher; or infinite
    first: Float[Array, ""]  # breakpoint between begin and end, infinite if there is none
    last: Float[Array, ""]  # of them
    turns: Int[Array, ""]


def breakpoints(
    x: Float[Array, " n"],
    grad: Float[Array, " n"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
) -> Float[Array, " n"]:
    """t_i >= 0 of (4.1)."""
    bound = jnp.where(grad < 0, upper, lower)
    ahead = (grad != 0) & jnp.isfinite(bound)
    t = jnp.where(ahead, jnp.where(ahead, x - bound, 1) / jnp.where(ahead, grad, 1), jnp.inf)
    return jnp.maximum(t, 0)


def cauchy_point(
    x: Float[Array, " n"],
    grad: Float[Array, " n"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
    b: AbstractMatrix,
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    """The point, feasible, and which variables are free there: have not met a bound."""
    t = breakpoints(x, grad, lower, upper)
    best, _, _ = _path_minimum(t, grad, b)
    reached = t <= best
    bound = jnp.where(grad < 0, upper, lower)
    length = jnp.where(best < jnp.inf, best, 0)  # where it is not, no variable moves by it
    point = jnp.clip(x + jnp.where(reached, 0, -length * grad), lower, upper)
    return jnp.where(reached & (grad != 0), bound, point), ~reached


def _look(
    t: Float[Array, " n"], grad: Float[Array, " n"], b: AbstractMatrix, tau: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """q, q' just beyond tau, and the minimum of that stretch were it endless."""
    d = b.see(jnp.where(t > tau, -grad, 0))
    z = b.see(-grad * jnp.minimum(t, tau))
    value = grad @ z.vector + 0.5 * b.form(z, z)
    slope = grad @ d.vector + b.form(d, z)
    # As in the original code, the curvature is kept positive against rounding.
    eps = jnp.finfo(t.dtype).eps
    most = jnp.sum(jnp.where(t > 0, grad * grad, 0))
    curvature = jnp.maximum(b.form(d, d), eps * b.theta * most)
    return value, slope, tau - safe_divide(slope, curvature)


@jax.custom_jvp
def _path_minimum(
    t: Float[Array, " n"], grad: Float[Array, " n"], b: AbstractMatrix
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Where it is, the breakpoint before it, or 0, and the one after it."""

    def close_in(stretch: Stretch) -> Stretch:
        first, last = stretch.first, stretch.last
        halfway = jnp.sqrt(first) * jnp.sqrt(last)
        target = jnp.where(stretch.turns % 2 == 1, stretch.minimum, halfway)
        target = jnp.clip(target, first, last)
        tau = jnp.min(jnp.where((t >= target) & (t < stretch.end), t, last))
        tau = jnp.where(stretch.turns == 0, 0, tau)
        value, slope, minimum = _look(t, grad, b, tau)
        onward = (slope < 0) & (value < stretch.value)
        begin = jnp.where(onward, tau, stretch.begin)
        end = jnp.where(onward, stretch.end, tau)
        left = (t > begin) & (t < end)
        return Stretch(
            begin=begin,
            value=jnp.where(onward, value, stretch.value),
            minimum=jnp.where(onward, minimum, stretch.minimum),
            end=end,
            first=jnp.min(jnp.where(left, t, jnp.inf)),
            last=jnp.max(jnp.where(left, t, 0)),
            turns=stretch.turns + 1,
        )

    zero = jnp.zeros((), t.dtype)
    infinite = zero + jnp.inf
    start = Stretch(zero, infinite, infinite, infinite, zero, zero, jnp.zeros((), jnp.int32))
    found = while_loop(lambda stretch: stretch.first < stretch.minimum, close_in, start)
    return jnp.minimum(found.minimum, found.end), found.begin, found.end


@_path_minimum.defjvp
def _path_minimum_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    best, begin, end = _path_minimum(*primals)

    def place(t: Array, grad: Array, b: AbstractMatrix) -> Array:
        before = jnp.where(begin > 0, t[jnp.argmax(t == begin)], 0)
        after = jnp.where(end > 0, t[jnp.argmax(t == end)], 0)
        return jnp.where(best < end, _look(t, grad, b, before)[2], after)

    _, d_best = jax.jvp(place, primals, tangents)
    return (best, begin, end), (d_best, jnp.zeros_like(begin), jnp.zeros_like(end))
