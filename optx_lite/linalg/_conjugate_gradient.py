"""Solve H x = b for a symmetric, positive semidefinite H of which only products are known.

The method of conjugate gradients (Hestenes & Stiefel, J. Res. Nat. Bur. Standards 49, 1952), as
JAX has it. Begun at 0 it stays in the range of H, so a singular but consistent system gets its
solution of minimum norm. In exact arithmetic n products are enough; an ill-conditioned H takes
more. Where they do not lead to the solution the answer is NaN, not whatever was reached.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array

from ._norms import norm

PATIENCE = 10  # times n: most products


def solve_by_products(times: Callable[[Array], Array], b: Array) -> Array:
    """x with ``times(x) = b``; (n,)."""
    eps = jnp.finfo(b.dtype).eps
    x, _ = cg(times, b, tol=float(eps**0.75), maxiter=PATIENCE * b.shape[0])
    solved = norm(b - times(x)) <= eps**0.5 * norm(b)
    return jnp.where(solved, x, jnp.nan)
