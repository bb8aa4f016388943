"""Exact Jacobians by automatic differentiation."""

import jax
import jax.numpy as jnp

from ..jax_support.control_flow import vary_like
from .base import AbstractJacobian, higher_precision


class Forward(AbstractJacobian):
    """Forward mode: one sweep for each of the n parameters, all at once. Right for m >= n.

    The function is linearised where it is evaluated, so it is traced and run once; the Jacobian
    is the linear map applied to the identity.
    """

    def linearize(self, fun, x, lower, upper):
        """Evaluate the function, and keep its pushforward."""
        f, pushforward = jax.linearize(fun, x)

        def jacobian():
            return jax.vmap(pushforward)(_basis(x)).astype(higher_precision(x, f))

        return f, jacobian


class Reverse(AbstractJacobian):
    """Reverse mode: one sweep for each of the m residuals, all at once. Right for m < n."""

    def linearize(self, fun, x, lower, upper):
        """Evaluate the function, and keep its pullback."""
        f, pullback = jax.vjp(fun, x)

        def jacobian():
            (rows,) = jax.vmap(pullback)(_basis(f))
            return rows.T.astype(higher_precision(x, f))

        return f, jacobian


class Gradient(AbstractJacobian):
    """Reverse mode, or forward mode where the function has no other (a `lax.while_loop`)."""

    def linearize(self, fun, x, lower, upper):
        """Evaluate the function, and keep its pullback or its pushforward."""
        f, by_reverse = Reverse().linearize(fun, x, lower, upper)

        def jacobian():
            try:
                return by_reverse()
            except ValueError:  # of JAX; one of the user's has come before
                return Forward().linearize(fun, x, lower, upper)[1]()

        return f, jacobian


def _basis(v):
    """The unit vectors of v's shape, of its type."""
    return vary_like(jnp.eye(v.size, dtype=v.dtype), v)
