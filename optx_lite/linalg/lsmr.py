r"""LSMR: least squares with a matrix of which only products with vectors are known.

    minimise  || A x - b ||^2 + damp^2 || x ||^2                                        (1)

by the Golub-Kahan bidiagonalisation of A, on which MINRES for the normal equations is run
through plane rotations: D. C.-L. Fong and M. Saunders, "LSMR: an iterative algorithm for sparse
least-squares problems", SIAM J. Sci. Comput. 33 (2011). An iteration takes one product with A,
one with A^T, and no more memory than five vectors. A singular system gets its solution of
minimum norm.

Different from SciPy: the stops at "enough for this machine" count in the dtype of the problem, so
that float32 ends; data that are not finite end the iteration at once; A and b may be of any size,
where there the products of norms leave the range. Different from lineax's: damping; the tests are
those of the paper, so that an incompatible system ends when A^T r is small beside ||A|| ||r||, in
float32 too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..jax_support.control_flow import while_loop
from ..jax_support.xla import full_precision
from .norms import norm, reciprocal, safe_divide, unit_of

Product = Callable[[Array], Array]

# SciPy's codes, and one more.
RUNNING = 0  # also: x = x0 is the solution
COMPATIBLE, LEAST_SQUARES, ILL_CONDITIONED = 1, 2, 3  # to the tolerances
COMPATIBLE_TO_ROUNDING, LEAST_SQUARES_TO_ROUNDING, ILL_CONDITIONED_TO_ROUNDING = 4, 5, 6
MOST_ITERATIONS, NOT_FINITE = 7, 8

MESSAGES = {
    RUNNING: "The exact solution is x = 0, or x = x0, if x0 was given.",
    COMPATIBLE: "A x - b is small enough, given atol and btol.",
    LEAST_SQUARES: "The least-squares solution is good enough, given atol.",
    ILL_CONDITIONED: "The estimate of cond(A) has exceeded conlim.",
    COMPATIBLE_TO_ROUNDING: "A x - b is small enough for this dtype.",
    LEAST_SQUARES_TO_ROUNDING: "The least-squares solution is good enough for this dtype.",
    ILL_CONDITIONED_TO_ROUNDING: "cond(A) seems to be too large for this dtype.",
    MOST_ITERATIONS: "The iteration limit has been reached.",
    NOT_FINITE: "A or b is not finite.",
}


class LsmrResult(NamedTuple):
    """What `lsmr` returns: SciPy's tuple, by name too."""

    x: Float[Array, " n"]
    istop: Int[Array, ""]  # the reason, a key of `MESSAGES`
    itn: Int[Array, ""]  # iterations
    normr: Float[Array, ""]  # ||b - A x||, damped: ||[b - A x; damp x]||
    normar: Float[Array, ""]  # ||A^T (b - A x) - damp^2 x||
    norma: Float[Array, ""]  # of A, Frobenius's of the bidiagonal matrix
    conda: Float[Array, ""]
    normx: Float[Array, ""]


class Stops(NamedTuple):
    """When the iteration ends."""

    atol: Any
    btol: Any
    conlim: Any
    maxiter: Any


class _State(eqx.Module):
    """After k iterations."""

    x: Float[Array, " n"]
    h: Float[Array, " n"]
    h_bar: Float[Array, " n"]
    u: Float[Array, " m"]  # of the bidiagonalisation
    v: Float[Array, " n"]
    alpha: Float[Array, ""]
    alpha_bar: Float[Array, ""]  # of the rotations that take B to R
    rho: Float[Array, ""]
    rho_bar: Float[Array, ""]  # and R^T to R-bar
    c_bar: Float[Array, ""]
    s_bar: Float[Array, ""]
    zeta: Float[Array, ""]
    zeta_bar: Float[Array, ""]  # its size is ||A^T r||
    residual: _ResidualNorm
    norm_a: Float[Array, ""]
    largest: Float[Array, ""]  # of rho_bar: their ratio estimates cond(A)
    smallest: Float[Array, ""]
    cond_a: Float[Array, ""]
    itn: Int[Array, ""]
    istop: Int[Array, ""]


class _ResidualNorm(eqx.Module):
    """The recurrence of ||r||, section 5 of the paper."""

    beta_dot: Float[Array, ""]
    beta_ddot: Float[Array, ""]
    rho_dot: Float[Array, ""]
    theta_tilde: Float[Array, ""]
    tau_tilde: Float[Array, ""]
    damped: Float[Array, ""]  # sum of the squares that the damping takes
    norm: Float[Array, ""]


@full_precision
def lsmr_solve(
    matvec: Product,
    rmatvec: Product,
    b: Float[Array, " m"],
    n: int,
    damp: Any,
    stops: Stops,
) -> LsmrResult:
    """x of (1), begun at 0. A is ``matvec``, (n,) to (m,), and A^T ``rmatvec``."""
    # In powers of two near ||b|| and ||A||, so that products of norms stay in range.
    beta = norm(b)
    u = b * safe_divide(jnp.ones_like(beta), beta)
    v = rmatvec(u)
    of_b, of_a = unit_of(beta), unit_of(norm(v))
    per_a = reciprocal(of_a)
    damp = jnp.asarray(damp, beta.dtype) * per_a
    v, alpha = _normalized(v * per_a)
    beta = beta * reciprocal(of_b)

    def turn(state: _State) -> _State:
        return _iteration(
            lambda x: matvec(x) * per_a, lambda x: rmatvec(x) * per_a, damp, beta, stops, state
        )

    state = while_loop(
        lambda state: (state.istop == RUNNING) & (state.zeta_bar != 0),
        turn,
        _first(u, v, alpha, beta),
    )
    of_x = of_b * per_a
    return LsmrResult(
        x=state.x * of_x,
        istop=state.istop,
        itn=state.itn,
        normr=state.residual.norm * of_b,
        normar=jnp.abs(state.zeta_bar) * of_b * of_a,
        norma=jnp.where(state.itn > 0, state.norm_a, alpha) * of_a,
        conda=state.cond_a,
        normx=norm(state.x) * of_x,
    )


def _first(u: Array, v: Array, alpha: Array, beta: Array) -> _State:
    one, zero, none = jnp.ones_like(alpha), jnp.zeros_like(alpha), jnp.zeros((), jnp.int32)
    finite = jnp.isfinite(alpha) & jnp.isfinite(beta)
    residual = _ResidualNorm(
        beta_dot=zero, beta_ddot=beta, rho_dot=one, theta_tilde=zero, tau_tilde=zero,
        damped=zero, norm=beta,
    )  # fmt: skip
    return _State(
        x=jnp.zeros_like(v), h=v, h_bar=jnp.zeros_like(v), u=u, v=v,
        alpha=alpha, alpha_bar=alpha, rho=one, rho_bar=one, c_bar=one, s_bar=zero,
        zeta=zero, zeta_bar=alpha * beta, residual=residual,
        norm_a=zero, largest=zero, smallest=jnp.full_like(one, jnp.inf), cond_a=one,
        itn=none, istop=jnp.where(finite, RUNNING, NOT_FINITE).astype(jnp.int32),
    )  # fmt: skip


def _iteration(
    matvec: Product, rmatvec: Product, damp: Any, norm_b: Array, stops: Stops, old: _State
) -> _State:
    # beta u = A v - alpha u,  alpha v = A^T u - beta v                              (2.1)
    u, beta = _normalized(matvec(old.v) - old.alpha * old.u)
    v, alpha = _normalized(rmatvec(u) - beta * old.v)

    # The damping is rotated into the bidiagonal matrix; then two rotations an iteration.
    c_hat, s_hat, alpha_hat = _rotation(old.alpha_bar, damp)
    c, s, rho = _rotation(alpha_hat, beta)  # B to R
    theta, alpha_bar = s * alpha, c * alpha
    theta_bar = old.s_bar * rho
    c_bar, s_bar, rho_bar = _rotation(old.c_bar * rho, theta)  # R^T to R-bar
    zeta, zeta_bar = c_bar * old.zeta_bar, -s_bar * old.zeta_bar

    h_bar = old.h - safe_divide(theta_bar * rho, old.rho * old.rho_bar) * old.h_bar
    x = old.x + safe_divide(zeta, rho * rho_bar) * h_bar
    h = v - safe_divide(theta, rho) * old.h

    residual = _next_residual(
        old.residual, (c_hat, s_hat), (c, s), theta_bar, rho_bar, old.zeta, zeta
    )
    norm_a = jnp.hypot(jnp.hypot(old.norm_a, old.alpha), beta)
    largest = jnp.maximum(old.largest, jnp.where(old.itn > 0, old.rho_bar, 0))
    smallest = jnp.minimum(old.smallest, jnp.where(old.itn > 0, old.rho_bar, jnp.inf))
    last = old.c_bar * rho
    cond_a = safe_divide(jnp.maximum(largest, last), jnp.minimum(smallest, last))
    after = _State(
        x=x, h=h, h_bar=h_bar, u=u, v=v, alpha=alpha, alpha_bar=alpha_bar, rho=rho,
        rho_bar=rho_bar, c_bar=c_bar, s_bar=s_bar, zeta=zeta, zeta_bar=zeta_bar,
        residual=residual, norm_a=norm_a, largest=largest, smallest=smallest, cond_a=cond_a,
        itn=old.itn + 1, istop=old.istop,
    )  # fmt: skip
    return eqx.tree_at(lambda s: s.istop, after, _reason(after, norm_b, stops))


def _normalized(v: Array) -> tuple[Array, Array]:
    size = norm(v)
    return v * safe_divide(jnp.ones_like(size), size), size


def _rotation(a: Any, b: Any) -> tuple[Array, Array, Array]:
    """c, s, r with c a + s b = r >= 0 and c b - s a = 0."""
    r = jnp.hypot(a, b)
    return safe_divide(a, r), safe_divide(b, r), r


def _next_residual(
    old: _ResidualNorm,
    damping: tuple[Array, Array],
    rotation: tuple[Array, Array],
    theta_bar: Array,
    rho_bar: Array,
    zeta_old: Array,
    zeta: Array,
) -> _ResidualNorm:
    (c_hat, s_hat), (c, s) = damping, rotation
    acute, check = c_hat * old.beta_ddot, -s_hat * old.beta_ddot
    beta_hat, beta_ddot = c * acute, -s * acute
    c_tilde, s_tilde, rho_tilde = _rotation(old.rho_dot, theta_bar)
    theta_tilde, rho_dot = s_tilde * rho_bar, c_tilde * rho_bar
    beta_dot = -s_tilde * old.beta_dot + c_tilde * beta_hat
    tau_tilde = safe_divide(zeta_old - old.theta_tilde * old.tau_tilde, rho_tilde)
    tau_dot = safe_divide(zeta - theta_tilde * tau_tilde, rho_dot)
    damped = old.damped + check**2
    return _ResidualNorm(
        beta_dot=beta_dot,
        beta_ddot=beta_ddot,
        rho_dot=rho_dot,
        theta_tilde=theta_tilde,
        tau_tilde=tau_tilde,
        damped=damped,
        norm=jnp.sqrt(damped + (beta_dot - tau_dot) ** 2 + beta_ddot**2),
    )


def _reason(state: _State, norm_b: Array, stops: Stops) -> Array:
    """Why to stop, 0 if there is no reason: the tests of section 3.2 of the paper."""
    norm_r, half = state.residual.norm, 0.5 * jnp.finfo(norm_b.dtype).eps
    size = safe_divide(state.norm_a * norm(state.x), norm_b)
    relative = safe_divide(norm_r, norm_b)
    cosine = jnp.abs(state.zeta_bar) * safe_divide(
        safe_divide(jnp.ones_like(norm_r), state.norm_a), norm_r
    )
    angle: Bool[Array, ""] = norm_r > 0
    inverse = safe_divide(jnp.ones_like(norm_r), state.cond_a)
    least = safe_divide(jnp.ones_like(norm_r), jnp.asarray(stops.conlim, norm_r.dtype))
    # From the weakest reason to the strongest.
    reasons = (
        (state.itn >= stops.maxiter, MOST_ITERATIONS),
        (inverse <= half, ILL_CONDITIONED_TO_ROUNDING),
        (angle & (cosine <= half), LEAST_SQUARES_TO_ROUNDING),
        (relative <= half * (1 + size), COMPATIBLE_TO_ROUNDING),
        (inverse <= least, ILL_CONDITIONED),
        (angle & (cosine <= stops.atol), LEAST_SQUARES),
        (relative <= stops.btol + stops.atol * size, COMPATIBLE),
        (~jnp.isfinite(norm_r + jnp.sum(state.x)), NOT_FINITE),
    )
    istop = jnp.zeros_like(state.istop)
    for met, code in reasons:
        istop = jnp.where(met, code, istop)
    return istop.astype(jnp.int32)
