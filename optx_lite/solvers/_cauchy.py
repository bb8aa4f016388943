r"""The generalized Cauchy point of a quadratic with a limited-memory matrix, in a box.

R. H. Byrd, P. Lu, J. Nocedal, C. Zhu, "A limited memory algorithm for bound constrained
optimization", SIAM J. Sci. Comput. 16 (1995), section 4: the first local minimum of

    q(t) = g^T z(t) + z(t)^T B z(t) / 2,    z(t) = P(x - t g) - x,    B = theta I - W M W^T

on the path that goes along -g and bends where a variable meets its bound, at the breakpoint

    t_i = (x_i - u_i) / g_i  (g_i < 0),    (x_i - l_i) / g_i  (g_i > 0),    else infinite. (4.1)

On the stretch that begins at tau, with the variables F = {t_i > tau} still moving,

    d = -g on F, else 0,    p = W^T d,    c = W^T z(tau)
    q'  = -d.d + theta tau d.d - p^T M c,        q'' = theta d.d - p^T M p           (4.4), (4.5)

and its minimum is at tau - q' / q'', if no breakpoint comes first.

Different from the paper, which goes from breakpoint to breakpoint: p, c and d.d of all stretches
are sums over the variables ordered by breakpoint, so q' and q'' are had at once, and the first
stretch with a minimum is looked up. The lanes of a `vmap` and the cores of a GPU share the work.
Few breakpoints are summed by comparing each with each; of many, first the nearest `FEW` are
looked at, then all of them, sorted.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ._memory import Memory

FEW = 24


def breakpoints(x: Array, grad: Array, lower: Array, upper: Array) -> Array:
    """t_i >= 0 of (4.1)."""
    bound = jnp.where(grad < 0, upper, lower)
    ahead = (grad != 0) & jnp.isfinite(bound)
    t = jnp.where(ahead, jnp.where(ahead, x - bound, 1) / jnp.where(ahead, grad, 1), jnp.inf)
    return jnp.maximum(t, 0)


def cauchy_point(
    x: Array, grad: Array, lower: Array, upper: Array, memory: Memory, middle: Array
) -> tuple[Array, Array]:
    """The point, feasible, and which variables are free there: have not met a bound."""
    t = breakpoints(x, grad, lower, upper)
    moving = t > 0
    d = jnp.where(moving, -grad, 0)
    whole = memory.times(d), d @ d
    n = x.shape[0]
    if n <= FEW:
        terms = memory.times(jnp.diag(d))
        best, _ = _among_few(t, d, terms, whole, memory.theta, middle, jnp.inf)
    else:
        near, where = lax.top_k(-t, FEW)
        near, terms = -near, _rows(memory, d, where)
        best, found = _among_few(near, d[where], terms, whole, memory.theta, middle, near[-1])
        best = lax.cond(found, lambda: best, lambda: _among_all(t, d, whole, memory, middle))
    reached = t <= best
    bound = jnp.where(grad < 0, upper, lower)
    point = jnp.clip(x + jnp.where(reached, 0, best * d), lower, upper)
    return jnp.where(reached & (grad != 0), bound, point), ~reached


def _rows(memory: Memory, d: Array, where: Array) -> Array:
    """d_i times row i of W, for the i in ``where``; shape (k, 2m)."""
    used = memory.full
    y = jnp.where(used, memory.changes[:, where].T, 0)
    s = jnp.where(used, memory.theta * memory.steps[:, where].T, 0)
    return d[where][:, None] * jnp.concatenate([y, s], axis=1)


def _among_few(
    t: Array, d: Array, terms: Array, whole: tuple[Array, Array], theta: Array, middle: Array,
    known: Array | float,
) -> tuple[Array, Array]:  # fmt: skip
    """The first minimum up to the breakpoint ``known``, and whether there is one.

    ``t`` (k,) in any order; ``terms`` (k, 2m): d_i W_i; ``whole``: W^T d and d.d before any.
    """
    begins = jnp.concatenate([jnp.zeros(1, t.dtype), t])
    passed = t <= begins[:, None]  # (k + 1, k): on stretch j, i has met its bound
    met = jnp.where(passed & jnp.isfinite(t), t, 0)
    p = whole[0] - jnp.where(passed, 1.0, 0.0).astype(t.dtype) @ terms
    dd = whole[1] - jnp.sum(jnp.where(passed, d * d, 0), axis=1)
    tau = jnp.where(jnp.isfinite(begins), begins, 0)
    c = met @ terms + tau[:, None] * p
    ends = jnp.min(jnp.where(passed, jnp.inf, t), axis=1)
    ends = jnp.where(begins >= known, -jnp.inf, ends)  # there it is not known what comes next
    return _lookup(begins, ends, p, c, dd, whole[1], theta, middle)


def _among_all(
    t: Array, d: Array, whole: tuple[Array, Array], memory: Memory, middle: Array
) -> Array:
    """The same for all breakpoints, by sums in sorted order."""
    order = jnp.argsort(t)
    t = t[order]
    finite = jnp.isfinite(t)
    terms = jnp.where(finite[:, None], _rows(memory, d, order), 0)
    d = jnp.where(finite, d[order], 0)
    tau = jnp.where(finite, t, 0)
    p = whole[0] - jnp.cumsum(terms, axis=0)
    dd = whole[1] - jnp.cumsum(d * d)
    c = jnp.cumsum(tau[:, None] * terms, axis=0) + tau[:, None] * p
    ends = jnp.concatenate([t[1:], jnp.full(1, jnp.inf, t.dtype)])
    first = (jnp.zeros(1, t.dtype), t[:1], whole[0][None], jnp.zeros_like(p[:1]), whole[1][None])
    rest = (t, ends, p, c, dd)
    begins, ends, p, c, dd = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, rest)
    return _lookup(begins, ends, p, c, dd, whole[1], memory.theta, middle)[0]


def _lookup(
    begins: Array, ends: Array, p: Array, c: Array, dd: Array, most: Array, theta: Array,
    middle: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """The minimum on the first stretch that has one, by (4.4) and (4.5)."""
    tau = jnp.where(jnp.isfinite(begins), begins, 0)
    p_m = p @ middle
    slope = -dd + theta * tau * dd - jnp.sum(p_m * c, axis=1)
    # As in the original code, the curvature is kept positive against rounding.
    curvature = theta * dd - jnp.sum(p_m * p, axis=1)
    eps = jnp.finfo(dd.dtype).eps
    curvature = jnp.maximum(curvature, eps * theta * most)
    # Where nothing moves any more, up to the rounding of the sums, the path has ended.
    still = dd <= 8 * eps * most
    further = jnp.where(still, 0, jnp.maximum(-slope / jnp.where(curvature > 0, curvature, 1), 0))
    minimum = tau + further
    has = (begins < ends) & (still | (minimum <= ends))  # with equal breakpoints: the last
    found = jnp.any(has)
    first = jnp.min(jnp.where(has, begins, jnp.inf))
    best = jnp.min(jnp.where(has & (begins == first), minimum, jnp.inf))
    return jnp.where(found, best, 0), found
