r"""The inverse of J^T J, or of a Hessian, as a factor, with the directions that have none.

    J D = Q R,   D = diag(1 / ||J_j||),   F = D R^-1,   F F^T = (J^T J)^-1                  (1)

The columns are brought to unit length first, so that what counts as singular is a question
without units. F is kept, not F F^T: along a direction that is well determined a variance is the
sum of squares (g^T F)^2, which has the digits that g^T (F F^T) g loses to cancellation. F is
unique but for a rotation, and what is made of it must not depend on that.

Rank. Where the condition number of J D leaves no two digits of an inverse, its singular values
are looked at (Golub & Van Loan, "Matrix Computations", 4th ed., section 5.4.1); those below
``rcond`` of the largest count as zero. Their right singular vectors span the directions N in
which nothing is known; F is the factor of the pseudo-inverse among the others. That runs as a loop
of at most one turn, because `vmap` computes both branches of a `cond` but leaves a loop when no
lane wants more.

The derivative. With d(J^T J) = dJ^T J + J^T dJ, one of the factors which move as F F^T does is

    dF = -F F^T J^T dJ F,   for a Hessian  dF = -F F^T dH F / 2.                            (2)

Where the rank is not full it is NaN: a pseudo-inverse is not continuous there.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..driver.unknown import nan_unless_zero
from ..jax_support.control_flow import while_loop
from ..linalg import diagonal, norm, solve_upper, triangularize

DIGITS = 100  # roundings: a singular value of so many has at most two right digits


def default_rcond(rows: int, dtype: jnp.dtype) -> float:
    """Below this, relative to the largest, a singular value is the rounding of its matrix."""
    return max(DIGITS, rows) * float(jnp.finfo(dtype).eps)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def inverse_of_gram(
    jac: Float[Array, "m n"], held: Bool[Array, " n"], rcond: float
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """F and N for J^T J among the variables that are not held.

    Parameters
    ----------
    jac : array, shape (m, n)
    held : array, shape (n,), bool
        Variables that do not move: their columns are not looked at, their rows are 0.
    rcond : float
        Singular values of J, columns of unit length, that count as zero; relative to the largest.

    Returns
    -------
    factor : array, shape (n, n)
        F of (1); NaN if J is not finite.
    null : array, shape (n, n)
        Columns that span the directions of no effect, in the variables' own units; 0 elsewhere.
    """
    jac = jnp.where(held[None, :], 0, jac)
    length = jax.vmap(norm)(jac.T)
    inverse_length = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 1)
    unit = jac * inverse_length[None, :]
    eye = jnp.eye(jac.shape[1], dtype=jac.dtype)
    r_factor = triangularize(unit.T, jnp.zeros_like(unit[:, 0]))[0] + jnp.where(
        held[None, :], eye, 0
    )
    inverse = jax.vmap(solve_upper, (None, 1), 1)(r_factor, eye)
    # ||R|| ||R^-1|| in Frobenius' norm bounds the condition number from above.
    condition = jnp.sqrt(jnp.sum(r_factor**2) * jnp.sum(inverse**2))
    full = (jnp.min(jnp.abs(diagonal(r_factor))) > 0) & (condition * rcond < 1)
    finite = jnp.all(jnp.isfinite(unit))

    def by_singular_values(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, s, vt = jnp.linalg.svd(jnp.where(finite, r_factor, eye))
        zero = (s <= rcond * s[0])[None, :]
        factor = jnp.where(zero, 0, vt.T / jnp.where(zero, 1, s[None, :]))
        return factor, jnp.where(zero, vt.T, 0), jnp.zeros_like(state[2])

    factor, null, _ = while_loop(
        lambda state: state[2], by_singular_values, (inverse, 0 * inverse, finite & ~full)
    )
    factor = jnp.where(finite, factor, jnp.nan)
    return _in_own_units(factor, null, inverse_length, held, rcond)


@inverse_of_gram.defjvp
def _inverse_of_gram_jvp(rcond, primals, tangents):  # type: ignore[no-untyped-def]
    jac, held = primals
    factor, null = inverse_of_gram(jac, held, rcond)
    seen, d_seen = (jnp.where(held[None, :], 0, j) @ factor for j in (jac, tangents[0]))
    d_factor = -factor @ (seen.T @ d_seen)
    return (factor, null), (_unless_singular(d_factor, null), jnp.zeros_like(null))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def inverse_of_hessian(
    hessian: Float[Array, "n n"], held: Bool[Array, " n"], rcond: float
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """F and N for a symmetric matrix, by its eigenvalues; NaN where one of them is negative.

    ``rcond`` is that of a J with J^T J = H: its square is what an eigenvalue is compared with, or
    the rounding of H where that is more.
    """
    eps = float(jnp.finfo(hessian.dtype).eps)
    eye = jnp.eye(hessian.shape[0], dtype=hessian.dtype)
    hessian = jnp.where(held[:, None] | held[None, :], eye, hessian)
    square = diagonal(hessian)
    inverse_length = jnp.where(square > 0, 1 / jnp.sqrt(jnp.where(square > 0, square, 1)), 1)
    unit = hessian * inverse_length[:, None] * inverse_length[None, :]
    finite = jnp.all(jnp.isfinite(unit))
    values, vectors = jnp.linalg.eigh(jnp.where(finite, 0.5 * (unit + unit.T), eye))
    values = values[None, :]
    zero = jnp.abs(values) <= max(rcond**2, DIGITS * eps) * jnp.max(jnp.abs(values))
    factor = jnp.where(zero, 0, vectors / jnp.sqrt(jnp.where(zero | (values < 0), 1, values)))
    at_minimum = finite & jnp.all(zero | (values > 0))
    factor = jnp.where(at_minimum, factor, jnp.nan)
    return _in_own_units(factor, jnp.where(zero, vectors, 0), inverse_length, held, rcond)


@inverse_of_hessian.defjvp
def _inverse_of_hessian_jvp(rcond, primals, tangents):  # type: ignore[no-untyped-def]
    hessian, held = primals
    factor, null = inverse_of_hessian(hessian, held, rcond)
    d_factor = -0.5 * factor @ (factor.T @ tangents[0] @ factor)
    return (factor, null), (_unless_singular(d_factor, null), jnp.zeros_like(null))


def _in_own_units(
    factor: Float[Array, "n k"],
    null: Float[Array, "n n"],
    inverse_length: Float[Array, " n"],
    held: Bool[Array, " n"],
    rcond: float,
) -> tuple[Array, Array]:
    """D F, and D N with columns whose largest entry is 1; without what is rounding in N."""
    null = jnp.where((jnp.abs(null) > rcond**0.5) & ~held[:, None], null, 0)
    null = null * inverse_length[:, None]
    size = jnp.max(jnp.abs(null), axis=0)
    factor = jnp.where(held[:, None], 0, factor * inverse_length[:, None])
    return factor, null / jnp.where(size > 0, size, 1)[None, :]


def _unless_singular(
    d_factor: Float[Array, "n n"], null: Float[Array, "n n"]
) -> Float[Array, "n n"]:
    singular = jnp.any(null != 0)
    return jnp.where(singular, 0, d_factor) + nan_unless_zero(d_factor, singular)
