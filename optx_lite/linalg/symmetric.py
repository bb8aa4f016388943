r"""Solve H x = b for a symmetric H that may be singular: the solution of minimum norm.

H comes equilibrated, M = S H S with S = diag(s), s powers of two that make its diagonal 1 (to a
factor of two); y = S^-1 x is found from M y = S b. Whether an eigenvalue counts as zero is then
a question without units.

A positive definite M, the usual case at a minimum, is solved by Cholesky. Anything else by its
eigenvalues, those below 8 n eps max|lambda| cut: that is M^+. Let the columns of N be the
eigenvectors that were cut, and those of Z a basis of the same space with Z^T S^2 Z = I. Then

    y = (I - Z Z^T S^2) M^+ (I - S^2 Z Z^T) S b                                       (1)

has x = S y = H^+ b: what is least is ||x||, in the user's units, not ||y||.

Where N^T S b is not 0 there is no solution. A derivative rule meets that only in forward mode: in
reverse, b is any cotangent. Hence the `probe`, a right-hand side made of every input that moves,
which decides for both: if N can be seen in it, the answer is NaN.

The second way runs only when some lane of a batch needs it: it stands in a `while_loop` of at
most one turn, because `vmap` turns a `cond` into "both" but keeps a loop's "until no lane needs
more".
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..jax_support.control_flow import while_loop
from .triangular import SMALL, diagonal, solve_transposed, solve_upper


class SymmetricFactors(eqx.Module):
    """Of M, made once for all right-hand sides.

    Attributes
    ----------
    matrix : array, shape (n, n)
        M.
    lower : array, shape (n, n)
        Its Cholesky factor.
    definite : array of bool, ()
        Whether that is one.
    inverse : array, shape (n, n)
        Of (1), what maps S b to y, if it is not; NaN where there is no solution.
    """

    matrix: Float[Array, "n n"]
    lower: Float[Array, "n n"]
    definite: Bool[Array, ""]
    inverse: Float[Array, "n n"]

    def solve(self, b: Float[Array, " n"]) -> Float[Array, " n"]:
        """y with M y = b in the least-squares sense, and ``unit * y`` of minimum norm."""
        y = _refined(self.matrix, self.lower, b)
        return jnp.where(self.definite, y, self.inverse @ b)


def factor_symmetric(
    matrix: Float[Array, "n n"],
    unit: Float[Array, " n"],
    probe: Callable[[], Array] | None = None,
) -> SymmetricFactors:
    """What M y = b is solved with.

    Parameters
    ----------
    matrix : array, shape (n, n)
        M: symmetric, with a diagonal of about 1; or of 0.
    unit : array, shape (n,)
        s, powers of two.
    probe : callable without arguments, optional
        Called where M is singular: gives an array (n,) like S b of the module. If M y = probe
        has no solution, answers are NaN.
    """
    eps = jnp.finfo(matrix.dtype).eps
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    lower, definite = _definite(matrix)

    def by_eigenvalues(state: tuple[Array, Array]) -> tuple[Array, Array]:
        inverse, todo = state
        finite = jnp.where(jnp.all(jnp.isfinite(matrix)), matrix, eye)
        values, vectors = jnp.linalg.eigh(finite)
        keep = _counts(values)
        null = jnp.where(keep, 0, vectors)
        # Z of (1), from the orthonormal columns of N by another turn of them.
        weight = (unit / jnp.max(unit)) ** 2
        lengths, turn = jnp.linalg.eigh(null.T @ (weight[:, None] * null))
        seen = _counts(lengths)
        z = jnp.where(seen, (null @ turn) / jnp.sqrt(jnp.where(seen, lengths, 1))[None, :], 0)
        right = eye - (weight[:, None] * z) @ z.T
        reciprocal = jnp.where(keep, 1 / jnp.where(keep, values, 1), 0)
        found = (vectors * reciprocal[None, :]) @ vectors.T
        found = right.T @ found @ right
        if probe is not None:
            moved = probe()
            lost = jnp.max(jnp.abs(null.T @ moved)) > jnp.sqrt(eps) * jnp.max(jnp.abs(moved))
            found = jnp.where(lost, jnp.nan, found)
        return jnp.where(todo, found, inverse), jnp.zeros_like(todo)

    start = jnp.zeros_like(matrix), ~definite
    inverse, _ = while_loop(lambda state: state[1], by_eigenvalues, start)
    inverse = jnp.where(jnp.isfinite(jnp.sum(matrix)), inverse, jnp.nan)
    return SymmetricFactors(matrix, lower, definite, inverse)


def solve_definite(
    matrix: Float[Array, "n n"], b: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """y with ``matrix @ y = b`` and True; zeros and False where the matrix is not definite."""
    lower, definite = _definite(matrix)
    return jnp.where(definite, _refined(matrix, lower, b), 0), definite


def _definite(matrix: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Bool[Array, ""]]:
    """Cholesky's factor, and whether the matrix is definite."""
    lower = _cholesky(matrix)
    pivots = diagonal(lower)
    least = jnp.min(jnp.where(jnp.isfinite(pivots), pivots, 0))
    return lower, least > _rounding(pivots) ** 0.5


def _refined(
    matrix: Float[Array, "n n"], lower: Float[Array, "n n"], b: Float[Array, " n"]
) -> Float[Array, " n"]:
    """With one correction: it gives back the digits that the factorisation of a stiff H lost."""
    y = _by_cholesky(lower, b)
    return y + _by_cholesky(lower, b - matrix @ y)


def _counts(values: Float[Array, " n"]) -> Bool[Array, " n"]:
    """Which of the eigenvalues are not zero to rounding."""
    size = jnp.abs(values)
    return size > _rounding(values) * jnp.max(size)


def _rounding(values: Array) -> float:
    """Of the eigenvalues of a matrix with entries of about 1."""
    return 8 * values.shape[0] * float(jnp.finfo(values.dtype).eps)


def _by_cholesky(lower: Float[Array, "n n"], b: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    upper = lower.T
    return solve_upper(upper, solve_transposed(upper, b))


def _cholesky(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Lower factor; a column of NaN or zeros where the matrix is not positive definite."""
    n = matrix.shape[0]
    if n > SMALL:
        return jnp.linalg.cholesky(matrix)
    columns = []
    for j in range(n):
        column = matrix[j:, j]
        for i, earlier in enumerate(columns):
            column = column - earlier[j - i :] * earlier[j - i]
        root = jnp.sqrt(jnp.where(column[0] > 0, column[0], 0))
        columns.append(jnp.where(root > 0, column / jnp.where(root > 0, root, 1), 0))
    padded = [jnp.concatenate([jnp.zeros(j, matrix.dtype), c]) for j, c in enumerate(columns)]
    return jnp.stack(padded, axis=1)
