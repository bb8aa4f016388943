r"""Which data a fit hangs on: leverages, studentised residuals, Cook's distances.

With J F = Q, orthonormal, k directions, s² = sum f² / (m - k) (Cook & Weisberg, "Residuals and
Influence in Regression", 1982; Seber & Wild, "Nonlinear Regression", 1989, section 4.6):

    h_i = ||q_i||²,   r_i = f_i / (s sqrt(1 - h_i)),
    t_i = r_i sqrt((m - k - 1) / (m - k - r_i²)),   D_i = r_i² h_i / (k (1 - h_i)).
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..linalg import safe_divide, safe_sqrt
from .curve import CurveFit, check_one


class Influence(eqx.Module):
    """What each datum does to a fit; all of shape (m,).

    Attributes
    ----------
    leverage : array
        h, between 0 and 1: how far the curve follows the datum.
    internal, external : arrays
        r, and t, in whose variance the datum itself has no part: of Student's t distribution.
    cooks_distance : array
        D, how far the parameters go without the datum.
    """

    leverage: Float[Array, " m"]
    internal: Float[Array, " m"]
    external: Float[Array, " m"]
    cooks_distance: Float[Array, " m"]


def influence(fit: CurveFit) -> Influence:
    """Compute leverages, studentised residuals and Cook's distances of a fit.

    Exact for linear models; for others, of the tangent plane at the fit. Data that are left out
    have leverage 0.

    Parameters
    ----------
    fit : CurveFit
        Without a robust loss.

    Returns
    -------
    Influence

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> x = jnp.array([0.0, 1.0, 2.0, 3.0, 10.0])
    >>> fit = ox.curve_fit(lambda x, a, b: a * x + b, x, jnp.array([0.1, 0.9, 2.1, 2.9, 10.2]))
    >>> print([f"{h:.2f}" for h in ox.influence(fit).leverage])
    ['0.36', '0.28', '0.22', '0.20', '0.94']
    """
    check_one(fit)
    if fit.loss != "linear":
        raise ValueError(f"`fit` must be one without a robust loss, got loss={fit.loss!r}.")
    estimate, f = fit.covariance, fit.result.fun
    leverage = leverages(fit)
    k = estimate.rank.astype(f.dtype)
    dof = estimate.dof.astype(f.dtype)
    s = safe_sqrt(2 * fit.result.cost / dof)
    rest = 1 - leverage
    internal = f / (s * safe_sqrt(rest))
    external = internal * safe_sqrt((dof - 1) / (dof - internal**2))
    return Influence(
        leverage, internal, external, safe_divide(internal**2 * leverage, k * rest)
    )  # fmt: skip


def leverages(fit: CurveFit) -> Float[Array, " m"]:
    """h, (m,)."""
    q = free_jacobian(fit) @ fit.covariance.factor
    return jnp.sum(q * q, axis=1)


def free_jacobian(fit: CurveFit) -> Float[Array, "m n"]:
    """J without the columns of parameters that are held, (m, n)."""
    return jnp.where(fit.covariance.held[None, :], 0, fit.result.jac)
