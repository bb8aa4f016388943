r"""Errors in the independent variable: orthogonal distance regression, by variable projection.

With x_i known to sigma_x,i and y_i to sigma_i, the fit minimises (Boggs, Byrd & Schnabel, "A stable
and efficient algorithm for nonlinear orthogonal distance regression", SIAM J. Sci. Stat. Comput. 8
(1987), 1052-1078)

    sum_i e_i² + ||u_i||²,   e_i = (f(x_i + sigma_x,i u_i; p) - y_i) / sigma_i              (1)

over p and all u_i, (k,). Each u_i stands in one term alone, so it is eliminated: at given p the
foot u_i(p) minimises its own term, in k variables. With v_i = de_i / du_i, e_i v_i + u_i = 0 there,
and

    d_i(p) = (e_i - u_i·v_i) / sqrt(1 + ||v_i||²) = e_i sqrt(1 + ||v_i||²)                  (2)
    d_i² = e_i² + ||u_i||²,       dd_i = de_i|_u / sqrt(1 + ||v_i||²)                       (3)

(3) is the envelope theorem. d_i is the signed distance of the datum from the curve, smooth where it
is 0 (the first form keeps its digits where the curve is steep, and e a difference of large
numbers), so that (1) is a least-squares problem of m residuals in p alone, for any method, loss and
bounds; by (3) its J^T J is the Schur complement of the normal equations of (1), of n variables
rather than n + k m, and so its covariance that of ODRPACK.

The foot is found by Newton steps from u = 0, all data at once, with Gauss and Newton's matrix
I + v v^T where that of second derivatives is not definite, halved until the term falls. It is a
local minimum: a datum from which several feet are as near has none that is smooth. Where there is
none the residual is NaN, and so it is where f gives a datum from the x of others (a mean of x, a
cumulative sum), of which (1) is not the sum of terms.

ODRPACK takes p and all u together in a Levenberg-Marquardt step; here u is at its foot for each
p, so that the answer is differentiable as any fit's.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from ..functions import Lifted, lift
from ..jax_support.control_flow import while_loop
from ..linalg import solve_definite

MOST_TRIALS = 60
ROUNDINGS = 8  # by which a term may rise without being worse


class Points(eqx.Module):
    """The terms of (1) at given parameters, as functions of u, (k, m).

    Attributes
    ----------
    curve : Lifted
        f(x, p).
    p : pytree
    x, y, weight, sigma_x : arrays
        weight is 1 / sigma, (m,); sigma_x of x's shape.
    """

    curve: Lifted
    p: PyTree[ArrayLike]
    x: Float[Array, "... m"]
    y: Float[Array, " m"]
    weight: Float[Array, " m"]
    sigma_x: Float[Array, "... m"]

    @property
    def origin(self) -> Float[Array, "k m"]:
        """u = 0, (k, m)."""
        return jnp.zeros((self.x.size // self.y.size, self.y.size), self.y.dtype)

    def at(self, u: Array) -> Array:
        """x at u, of x's shape."""
        return self.x + self.sigma_x * u.reshape(self.x.shape)

    def errors(self, u: Float[Array, "k m"]) -> Float[Array, " m"]:
        """e, (m,)."""
        curve = jnp.ravel(jnp.asarray(self.curve(self.at(u), self.p))).astype(self.y.dtype)
        # A datum that is left out is no datum, whatever f is there.
        return jnp.where(self.weight == 0, 0, (curve - self.y) * self.weight)

    def slopes(self, u: Float[Array, "k m"]) -> tuple[Float[Array, " m"], Float[Array, "k m"]]:
        """e and v, (m,) and (k, m)."""
        e, push = jax.linearize(self.errors, u)
        return e, jax.vmap(push)(_axes(u))

    def gradients(self, u: Float[Array, "k m"]) -> Float[Array, "k m"]:
        """Half the derivative of the terms, e v + u, (k, m)."""
        e, v = self.slopes(u)
        return e[None] * v + u

    def curvatures(self, u: Float[Array, "k m"]) -> Float[Array, "m k k"]:
        """The derivative of `gradients`, (m, k, k)."""
        columns = jax.vmap(lambda axis: jax.jvp(self.gradients, (u,), (axis,))[1])(_axes(u))
        return jnp.moveaxis(columns, -1, 0)

    def mixes_data(self) -> Bool[Array, ""]:
        """Whether a curve's value depends on the x of other data, ()."""
        u = self.origin
        # Of a derivative that is diagonal each sign stays with its datum.
        signs = np.random.default_rng(0).choice([-1.0, 1.0], u.shape).astype(u.dtype)
        _, push = jax.linearize(self.errors, u)
        v = jax.vmap(push)(_axes(u))
        off = jnp.abs(push(jnp.asarray(signs)) - jnp.sum(v * signs, axis=0))
        return jnp.any(off > jnp.finfo(u.dtype).eps ** 0.5 * jnp.max(jnp.abs(v)))


def _axes(u: Float[Array, "k m"]) -> Float[Array, "k k m"]:
    """A change of each of the k coordinates, of all data at once; (k, k, m)."""
    k = u.shape[0]
    return jnp.broadcast_to(jnp.eye(k, dtype=u.dtype)[:, :, None], (k, *u.shape))


class _Search(eqx.Module):
    """The best u, its term, the step from it that is tried next; and which have ended."""

    u: Float[Array, "k m"]
    term: Float[Array, " m"]
    step: Float[Array, "k m"]
    foot: Float[Array, "k m"]
    found: Bool[Array, " m"]
    count: Int[Array, ""]


@jax.custom_jvp
def foot(points: Points) -> Float[Array, "k m"]:
    """The u at which each term of (1) is least, (k, m); NaN where none was found."""
    u = points.origin
    eps = jnp.finfo(u.dtype).eps

    def turn(s: _Search) -> _Search:
        u = s.u + s.step
        e, v = points.slopes(u)
        gradient = e[None] * v + u
        step, definite = _newton_steps(points.curvatures(u), gradient)
        along = jnp.sum(v * gradient, axis=0) / (1 + jnp.sum(v * v, axis=0))
        step = jnp.where(definite[None], step, v * along[None] - gradient)
        term = e * e + jnp.sum(u * u, axis=0)
        better = term <= s.term * (1 + ROUNDINGS * eps)
        # The error that a Newton step leaves is about the square of its length.
        near = jnp.max(jnp.abs(step), axis=0) <= eps**0.5 * (1 + jnp.max(jnp.abs(u), axis=0))
        ends = better & definite & near & ~s.found
        return _Search(
            u=jnp.where(better[None], u, s.u),
            term=jnp.where(better, term, s.term),
            step=jnp.where(better[None], step, 0.5 * s.step),
            foot=jnp.where(ends[None], u + step, s.foot),
            found=s.found | ends,
            count=s.count + 1,
        )

    def going_on(s: _Search) -> Array:
        return jnp.any(~s.found) & (s.count < MOST_TRIALS)

    start = _Search(
        u=u, term=jnp.full_like(u[0], jnp.inf), step=u, foot=jnp.full_like(u, jnp.nan),
        found=u[0] != 0, count=jnp.zeros((), jnp.int32),
    )  # fmt: skip
    return while_loop(going_on, turn, start).foot


@foot.defjvp
def _foot_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    """H du = -dg at fixed u, g the half gradient of the terms."""
    (points,) = primals
    u = foot(points)
    _, d_gradient = jax.jvp(lambda points: points.gradients(u), primals, tangents)
    return u, _newton_steps(points.curvatures(u), d_gradient)[0]


def _newton_steps(
    matrices: Float[Array, "m k k"], gradients: Float[Array, "k m"]
) -> tuple[Float[Array, "k m"], Bool[Array, " m"]]:
    """-H^-1 g for each datum, (k, m); and where H is definite, (m,)."""
    step, definite = jax.vmap(solve_definite)(matrices, -gradients.T)
    return step.T, definite


@jax.custom_jvp
def distances(points: Points) -> Float[Array, " m"]:
    """The residuals d of (2), (m,)."""
    u = foot(points)
    e, v = points.slopes(u)
    d = (e - jnp.sum(u * v, axis=0)) / jnp.sqrt(1 + jnp.sum(v * v, axis=0))
    return jnp.where(points.mixes_data(), jnp.nan, d)


@distances.defjvp
def _distances_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (points,) = primals
    u = foot(points)
    _, d_errors = jax.jvp(lambda points: points.errors(u), primals, tangents)
    return distances(points), d_errors * shrinkage(points, u)


def shrinkage(points: Points, u: Float[Array, "k m"]) -> Float[Array, " m"]:
    """The factor of (3), (m,)."""
    _, v = points.slopes(u)
    return 1 / jnp.sqrt(1 + jnp.sum(v * v, axis=0))


def points_of(model: Callable[..., PyTree], p: PyTree, data: PyTree) -> Points:
    """The terms of a fit with errors in x."""
    curve = lift(model, data.x, p, label="`f`")
    m = int(np.prod([s.size for s in jax.tree.leaves(curve.out_shape)]))
    dtype = data.x.dtype
    y = jnp.broadcast_to(jnp.asarray(data.y, dtype), (m,))
    weight = jnp.ones((), dtype) if data.weight is None else jnp.asarray(data.weight)
    weight = jnp.broadcast_to(weight, (m,))
    if data.mask is not None:
        weight = jnp.where(data.mask, weight, 0)
    return Points(curve, p, jnp.asarray(data.x), y, weight, jnp.asarray(data.sigma_x))


def at_the_feet(
    model: Callable[..., PyTree], p: PyTree, data: PyTree
) -> tuple[Array, Callable[[Array], Array]]:
    """The x of the feet, and what makes of the curve's derivative there that of the residuals."""
    points = points_of(model, p, data)
    u = foot(points)
    factor = points.weight * shrinkage(points, u)
    return points.at(u), lambda rows: _weighted(rows, factor)


def _weighted(rows: Array, factor: Array) -> Array:
    factor = factor[(slice(None),) + (None,) * (rows.ndim - 1)]
    return jnp.where(factor == 0, 0, rows * factor)


def check_pointwise(model: Callable[..., PyTree], p: PyTree, data: PyTree) -> None:
    """Raise if the curve's values depend on the x of other data."""
    if bool(points_of(model, p, data).mixes_data()):
        raise ValueError(
            "`sigma_x` takes an `f` whose value for each datum depends on the x of that datum "
            "alone."
        )
