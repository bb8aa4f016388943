"""What is solved: the user's residuals with their box, loss and derivative scheme, made total.

minimise  0.5 sum_i C^2 rho((f_i(x) / C)^2)   subject to   lower <= x <= upper

Below the front door x is a flat vector (n,) and f a flat vector (m,), of one floating dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._losses import Loss
from ._tree import Unravel
from .derivatives import AbstractJacobian


class LeastSquaresProblem(eqx.Module):
    """A nonlinear least-squares problem on flat vectors.

    Attributes
    ----------
    residuals : callable (n,) -> (m,)
        Pure; itself a pytree, so that the arrays it closes over are inputs.
    jacobian : AbstractJacobian
        How its Jacobian is had.
    loss : Loss
        rho and C.
    lower, upper : arrays, shape (n,)
        The box; infinite where there is no bound.
    bounded : bool, static
        Whether there is any bound at all: without one, no code for bounds is compiled.
    precision : float, static
        Machine epsilon of the coarser of the dtypes of x and f.
    restore_x, restore_f : callables, static
        From flat vectors back to the user's structures.
    """

    residuals: Callable[[Array], Array]
    jacobian: AbstractJacobian
    loss: Loss
    lower: Array
    upper: Array
    bounded: bool = eqx.field(static=True)
    precision: float = eqx.field(static=True)
    restore_x: Unravel = eqx.field(static=True)
    restore_f: Unravel = eqx.field(static=True)

    def linearize(self, x: Array) -> tuple[Array, Callable[[], Array]]:
        """f(x), and a thunk for the transposed Jacobian (n, m): the one evaluation of a step."""
        f, jacobian = self.jacobian.linearize(self.residuals, x, self.lower, self.upper)
        return f.astype(x.dtype), lambda: jacobian().astype(x.dtype)

    def weighted(self, f: Array, rows: Array) -> tuple[Array, Array]:
        """f and the transposed Jacobian with the loss in them; fixed variables have no column."""
        if self.bounded:
            rows = jnp.where((self.lower == self.upper)[:, None], 0, rows)
        if self.loss.is_linear:
            return f, rows
        row_weight, f_weight = self.loss.weights(f)
        return f * f_weight, rows * row_weight[None, :]

    def cost(self, x: Array) -> Array:
        """The objective, as a plain differentiable function of x and of all that is in here."""
        return self.loss.cost(self.residuals(x).astype(x.dtype))

    def gradient(self, x: Array) -> Array:
        """d cost / d x, by reverse mode; differentiable again."""
        f, pullback = jax.vjp(lambda x: self.residuals(x).astype(x.dtype), x)
        return pullback(self.loss.slope(f))[0]
