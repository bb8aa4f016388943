"""The front door of LSMR: SciPy's signature."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from jaxtyping import Array, DTypeLike, PyTree

from ..jax_support.types import Number
from ..linalg import AbstractOperator
from ..linalg.lsmr import LsmrResult, Product, Stops, lsmr_solve
from ..problem.pytrees import is_concrete


def lsmr(
    A: Any,
    b: PyTree,
    damp: Number = 0.0,
    atol: Number = 1e-6,
    btol: Number = 1e-6,
    conlim: Number = 1e8,
    maxiter: int | None = None,
    x0: PyTree = None,
    *,
    scale: Number | None = None,
) -> LsmrResult:
    """Least-squares solution of a linear system, by products with its matrix alone.

    Minimises ``norm(A @ x - b)**2 + damp**2 * norm((x - x0) / scale)**2``. The signature is that
    of ``scipy.sparse.linalg.lsmr``; the call may stand inside ``jit`` and ``vmap``. It has
    forward-mode derivatives, those of its iterations; reverse mode does not pass its loop.

    Parameters
    ----------
    A : array (m, n), BCOO, SciPy's sparse, or an operator
        An operator has ``shape``, ``matvec`` and ``rmatvec``; without ``rmatvec`` its ``matvec``
        is transposed by JAX.
    b : array_like of shape (m,) or (m, 1)
        Right-hand side. Its dtype and that of ``A`` give the dtype of the solution.
    damp : float
        Damping.
    atol, btol : float
        Relative errors of ``A`` and of ``b``: ends when ``norm(b - A x) <= atol norm(A) norm(x) +
        btol norm(b)``, or when ``norm(A^T r) <= atol norm(A) norm(r)``.
    conlim : float
        Ends when the estimated condition number is above; 0 for no limit.
    maxiter : int, optional
        Most iterations; ``min(m, n)`` by default, as in SciPy. Ill-conditioned systems take more.
    x0 : array_like of shape (n,), optional
        First guess; 0 by default.
    scale : array_like of shape (n,), optional
        The size of each variable: the iteration is that of the columns times these.

    Returns
    -------
    LsmrResult
        ``(x, istop, itn, normr, normar, norma, conda, normx)``, by name too. ``istop`` as in SciPy,
        and 8 where ``A`` or ``b`` is not finite; ``optx_lite.linalg.lsmr.MESSAGES`` has the texts.
        With ``scale`` the norms of ``A`` and ``x`` are those of the scaled system.

    Raises
    ------
    ValueError
        If shapes do not fit, or for a negative tolerance.

    References
    ----------
    D. C.-L. Fong and M. Saunders, SIAM J. Sci. Comput. 33 (2011).

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> A = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> result = ox.lsmr(A, jnp.array([1.0, 0.0, -1.0]))
    >>> print(result.x.round(4), int(result.istop))
    [ 1. -1.] 1
    """
    matvec, rmatvec, (m, n), dtype = _products(A)
    b = jnp.asarray(b)
    if b.shape not in ((m,), (m, 1)):
        raise ValueError(f"`b` must have shape ({m},), as `A` has shape {(m, n)}: got {b.shape}.")
    dtype = np.promote_types(np.promote_types(dtype, b.dtype), jnp.float16)
    if np.issubdtype(dtype, np.complexfloating):
        raise ValueError(f"`A` and `b` must be real, got {dtype}.")
    b = b.reshape(-1).astype(dtype)
    for name, value in {"damp": damp, "atol": atol, "btol": btol, "conlim": conlim}.items():
        _check_number(name, value)
    size = jnp.ones((n,), dtype) if scale is None else _vector("scale", scale, n, dtype)
    start = jnp.zeros((n,), dtype) if x0 is None else _vector("x0", x0, n, dtype)
    if x0 is not None:
        b = b - matvec(start).astype(dtype)
    most = min(m, n) if maxiter is None else maxiter
    result = lsmr_solve(
        lambda v: matvec(size * v).astype(dtype),
        lambda u: size * rmatvec(u).astype(dtype),
        b,
        n,
        damp,
        Stops(atol, btol, conlim, most),
    )
    return result._replace(x=start + size * result.x)


def _products(A: Any) -> tuple[Product, Product, tuple[int, int], Any]:
    """A v, A^T u, the shape and the dtype."""
    if hasattr(A, "tocoo") and not isinstance(A, jax.Array):  # SciPy's
        A = BCOO.from_scipy_sparse(A)
    if isinstance(A, AbstractOperator):
        transposed = A.adjoint()
        return A.apply, transposed.apply, A.shape, A.dtype
    if isinstance(A, BCOO):
        transposed = A.T
        return (lambda v: A @ v), (lambda u: transposed @ u), _two(A.shape), A.dtype  # type: ignore
    if not isinstance(A, jax.Array) and hasattr(A, "matvec"):
        shape, dtype = _two(A.shape), getattr(A, "dtype", None) or jnp.zeros(()).dtype
        if hasattr(A, "rmatvec"):
            return A.matvec, A.rmatvec, shape, dtype
        transpose = jax.linear_transpose(A.matvec, jnp.zeros(shape[1], dtype))
        return A.matvec, lambda u: transpose(u)[0], shape, dtype
    dense = jnp.asarray(A)
    return (lambda v: dense @ v), (lambda u: u @ dense), _two(dense.shape), dense.dtype


def _two(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError(f"`A` must be a matrix, got shape {shape}.")
    return shape


def _check_number(name: str, value: PyTree) -> None:
    if jnp.ndim(value) or (is_concrete(value) and not np.asarray(value) >= 0):
        raise ValueError(f"`{name}` must be a number >= 0, got {value!r}.")


def _vector(name: str, value: PyTree, n: int, dtype: DTypeLike) -> Array:
    value = jnp.asarray(value)
    if value.shape != (n,):
        raise ValueError(f"`{name}` must have shape ({n},), got {value.shape}.")
    return value.astype(dtype)
