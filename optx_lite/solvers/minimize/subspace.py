r"""The minimum of the quadratic in the variables that the Cauchy point leaves free.

R. H. Byrd, P. Lu, J. Nocedal, C. Zhu, "A limited memory algorithm for bound constrained
optimization", SIAM J. Sci. Comput. 16 (1995), section 5; J. L. Morales, J. Nocedal, "Remark on
Algorithm 778", ACM TOMS 38 (2011). With x^c the Cauchy point and F its free variables,

    x^ = x^c + Z B_F^-1 r,    r = -Z^T (g + B (x^c - x))                            (5.4)-(5.11)

which is projected onto the box. Different from the original code: where the projected point is
worse for the quadratic than the one at which the way to x^ meets the box, that is taken.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...jax_support.control_flow import cond
from ...problem.bounds import onto_bounds, step_to_bound
from .bfgs_matrix import matrix_of
from .cauchy_point import cauchy_point
from .limited_memory import Memory


def subspace_minimum(
    grad: Float[Array, " n"], lower: Float[Array, " n"], upper: Float[Array, " n"], memory: Memory
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """The step to (5.4), for bounds relative to x; and whether B was sound."""
    b = matrix_of(memory)
    cauchy, free = cauchy_point(jnp.zeros_like(grad), grad, lower, upper, b)
    r = jnp.where(free, -(grad + b.times(cauchy)), 0)
    step, sound = b.solve(r, free)
    step = jnp.where(jnp.any(memory.full), step, 0)
    length, _ = step_to_bound(cauchy, step, lower, upper)
    ends = cauchy[None, :] + jnp.stack([step, jnp.minimum(length, 1) * step])
    ends = jax.vmap(lambda end: onto_bounds(end, cauchy, lower, upper))(ends)

    def promised(end: Array) -> Array:
        seen = b.see(end)
        return grad @ seen.vector + 0.5 * b.form(seen, seen)

    def better() -> Array:
        projected, shortened = jax.vmap(promised)(ends)
        return jnp.where(projected <= shortened, ends[0], ends[1])

    return cond(length >= 1, lambda: ends[0], better), sound
