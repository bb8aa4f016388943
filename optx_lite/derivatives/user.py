"""A Jacobian that the user wrote."""

from collections.abc import Callable

import jax.numpy as jnp

from .base import AbstractJacobian, higher_precision


class UserJacobian(AbstractJacobian):
    """The Jacobian that a function of the user gives.

    Parameters
    ----------
    jac : callable
        From shape ``(n,)`` to shape ``(m, n)``; ``(n,)`` is enough for m = 1.
    """

    jac: Callable

    def linearize(self, fun, x, lower, upper):
        """Evaluate the function; the Jacobian waits until it is asked for."""
        f = fun(x)

        def jacobian():
            rows = jnp.atleast_2d(jnp.asarray(self.jac(x)))
            expected = (f.size, x.size)
            if rows.shape != expected:
                raise ValueError(
                    "The return value of `jac` has wrong shape: "
                    f"expected {expected}, actual {rows.shape}."
                )
            if jnp.iscomplexobj(rows):
                raise ValueError(f"`jac` must return real values, got {rows.dtype}.")
            return rows.T.astype(higher_precision(x, f))

        return f, jacobian
