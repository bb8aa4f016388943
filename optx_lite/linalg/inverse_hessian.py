"""The inverse Hessian that a quasi-Newton run leaves behind, as a linear operator.

J. Nocedal, "Updating quasi-Newton matrices with limited storage", Math. Comp. 35 (1980): from
H_0 = I, each pair s, y with rho = 1 / y.s, the oldest first, makes

    H  <-  (I - rho s y^T) H (I - rho y s^T) + rho s s^T                              (1)

so that H y = s for the newest. A product takes two loops over the pairs.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PyTree

from ..jax_support.export import exportable
from . import AbstractOperator, safe_divide


@exportable
class LbfgsInvHessProduct(AbstractOperator):
    """Linear operator of the limited-memory inverse Hessian, with SciPy's names.

    As SciPy's it knows ``matvec``, ``matmat``, ``rmatvec``, ``rmatmat``, ``dot``, ``@``, ``T``,
    ``H``, ``adjoint`` and ``todense``, and can be added, scaled and multiplied.

    The pairs count in the order of their making. (SciPy 1.18's L-BFGS-B hands its own operator
    the pairs in the order of their slots, which is wrong once the memory has been filled.)

    Parameters
    ----------
    sk, yk : arrays, shape (n_corrs, n)
        Steps and changes of the gradient, the oldest first. A pair of zeros has no effect.

    Raises
    ------
    ValueError
        If the two are not matrices of one shape.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> s, y = jnp.array([[1.0, 0.0], [0.5, 1.0]]), jnp.array([[2.0, 0.0], [1.0, 4.0]])
    >>> inverse = ox.LbfgsInvHessProduct(s, y)
    >>> print(inverse.shape, inverse.n_corrs, inverse @ y[1])
    (2, 2) 2 [0.5 1. ]
    """

    sk: Array
    yk: Array

    def __init__(self, sk: ArrayLike, yk: ArrayLike):
        self.sk, self.yk = (_as_float(jnp.asarray(pairs)) for pairs in (sk, yk))
        if self.sk.ndim != 2 or self.sk.shape != self.yk.shape:
            raise ValueError(
                "`sk` and `yk` must have matching shape, (n_corrs, n), got "
                f"{self.sk.shape} and {self.yk.shape}."
            )

    @property
    def rho(self) -> Float[Array, " k"]:
        """1 / (s . y) of each pair, 0 for a pair of zeros."""
        return safe_divide(jnp.ones((), self.dtype), jnp.sum(self.sk * self.yk, axis=1))

    @property
    def n_corrs(self) -> int:
        """Number of pairs."""
        return self.sk.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return (self.sk.shape[1], self.sk.shape[1])

    @property
    def dtype(self) -> np.dtype:
        """Of the pairs."""
        return self.sk.dtype

    def apply(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """H v, for v of shape (n,): by two loops over the pairs."""
        pairs = (self.sk, self.yk, self.rho)

        def back(q: Array, pair: PyTree) -> tuple[Array, Array]:
            s, y, rho = pair
            alpha = rho * (s @ q)
            return q - alpha * y, alpha

        def forth(r: Array, pair: PyTree) -> tuple[Array, None]:
            (s, y, rho), alpha = pair
            return r + s * (alpha - rho * (y @ r)), None

        q, alphas = lax.scan(back, v, pairs, reverse=True)
        return lax.scan(forth, q, (pairs, alphas))[0]

    def adjoint(self) -> LbfgsInvHessProduct:
        """Itself: H is symmetric."""
        return self


def _as_float(a: Array) -> Array:
    return a if jnp.issubdtype(a.dtype, jnp.floating) else a.astype(jnp.result_type(float))
