"""Solve H x = b for a symmetric, positive semidefinite H of which only products are known.

The method of conjugate gradients (Hestenes & Stiefel, J. Res. Nat. Bur. Standards 49, 1952), as
JAX has it, restarted from the true residual until a correction shows that what came before was
right. Begun at 0 it stays in the range of H, so a singular but consistent system gets its
solution of minimum norm (in equilibrated variables). In exact arithmetic n products are enough;
an ill-conditioned H takes more. Where they do not lead to the solution the answer is NaN, not
whatever was reached.

Variables in different units alone make any H ill-conditioned. `equilibrate` finds s such that the
rows of S H S, S = diag(s), have norm 1: D. Ruiz, "A scaling algorithm to equilibrate both rows
and columns norms in matrices" (2001), each time divides row and column by the root of their norm,
which takes the root of the ratio of any two. A. M. Bradley and W. Murray, "Matrix-free
approximate equilibration" (2012), take the norms of rows from products with random vectors: with
v_i = +-1, the mean of (H v)_j^2 is sum_i H_ji^2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float

from ..jax_support.control_flow import scan, while_loop
from .norms import norm, reciprocal, safe_divide, unit_of
from .scale import exponent, power_of_two

PATIENCE = 10  # times n: most products before a restart
RESTARTS = 5
ROUNDS, PROBES = 8, 4  # of equilibration: ratios of 2^256 become ones of 2


def solve_by_products(times: Callable[[Array], Array], b: Float[Array, " n"]) -> Float[Array, " n"]:
    """x with ``times(x) = b``, shape (n,), to the digits that the condition of H leaves.

    The rows of H have norms of about 1, as `equilibrate` makes them.
    """
    eps = float(jnp.finfo(b.dtype).eps)
    unit = unit_of(b)  # JAX's method squares b
    b = b * reciprocal(unit)
    rounding: Any = 8 * eps * norm(b)

    def restart(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, _, count = state
        tol: Any = jnp.where(count == 0, eps**0.75, 1e-2).astype(b.dtype)
        # Of the rounding of b no correction is made: if H is singular, it would run away.
        more, _ = cg(times, b - times(x), tol=tol, atol=rounding, maxiter=PATIENCE * b.shape[0])
        x = x + more
        return x, safe_divide(norm(more), norm(x)), count + 1

    # The correction is the error of what came before; that of the sum is less.
    start = jnp.zeros_like(b), jnp.full((), jnp.inf, b.dtype), jnp.zeros((), jnp.int32)
    x, error, _ = while_loop(
        lambda state: (state[1] > eps**0.5) & (state[2] < RESTARTS), restart, start
    )
    # What H x is by the rounding of x alone says what b could be found again from x.
    solved = (error <= eps ** (1 / 3)) & (eps * norm(x) <= eps ** (1 / 3) * norm(b))
    return jnp.where(solved, x * unit, jnp.nan)


def equilibrate(times: Callable[[Array], Array], start: Float[Array, " n"]) -> Float[Array, " n"]:
    """s, shape (n,), powers of two, so that the rows of S H S have a norm of about 1."""

    def turn(s: Array, key: Array) -> tuple[Array, None]:
        signs = jax.random.rademacher(key, (PROBES, *s.shape), s.dtype)
        products = jax.vmap(lambda v: s * times(s * v))(signs)
        size = jnp.max(jnp.abs(products), axis=0)  # a norm, within a few signs
        finer = power_of_two(exponent(s) - exponent(size) // 2, s.dtype)
        return jnp.where(size > 0, finer, s), None

    keys = jax.random.split(jax.random.key(0), ROUNDS)
    return scan(turn, start, keys)[0]
