"""What is solved: the user's function with its box and its derivative scheme, made total.

minimise  0.5 sum_i C^2 rho((f_i(x) / C)^2)     or     f(x)     subject to   lower <= x <= upper

Below the front door x is a flat vector (n,) and the residuals a flat vector (m,), of one
floating dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._losses import Loss
from ._minimize_result import MinimizeResult
from ._result import Result
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

    def evaluate(self, x: Array) -> Array:
        """f(x), (m,), in its own dtype."""
        return self.residuals(x)

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

    def describe(self, x: Array) -> dict[str, Array]:
        """The fields of the `Result` that follow from x, as differentiable functions of it."""
        f, jacobian = self.linearize(x)
        rows = self.weighted(f, jacobian())[1]
        return {"cost": self.loss.cost(f), "fun": f, "grad": self.gradient(x), "jac": rows.T}

    def restore(self, result: Result) -> Result:
        """The result in the user's structures."""
        return eqx.tree_at(
            lambda r: (r.x, r.grad, r.active_mask, r.fun),
            result,
            (
                self.restore_x(result.x),
                self.restore_x(result.grad),
                self.restore_x(result.active_mask, dtype=jnp.int32),
                self.restore_f(result.fun),
            ),
        )


class MinimizationProblem(eqx.Module):
    """A scalar function to be minimised, on flat vectors.

    Attributes
    ----------
    objective : callable (n,) -> ()
        Pure; itself a pytree, so that the arrays it closes over are inputs.
    derivative : AbstractJacobian
        How its gradient is had.
    lower, upper : arrays, shape (n,)
        The box; infinite where there is no bound.
    bounded : bool, static
        Whether there is any bound at all: without one, no code for bounds is compiled.
    restore_x : callable, static
        From a flat vector back to the user's structure.
    """

    objective: Callable[[Array], Array]
    derivative: AbstractJacobian
    lower: Array
    upper: Array
    bounded: bool = eqx.field(static=True)
    restore_x: Unravel = eqx.field(static=True)

    def evaluate(self, x: Array) -> Array:
        """f(x), (), in its own dtype."""
        return self.objective(x)

    def value_and_grad(self, x: Array) -> tuple[Array, Array]:
        """f(x) and its gradient (n,): the one evaluation of a step."""
        value, jacobian = self.derivative.linearize(
            lambda x: self.objective(x)[None], x, self.lower, self.upper
        )
        return value[0].astype(x.dtype), jacobian()[:, 0].astype(x.dtype)

    def gradient(self, x: Array) -> Array:
        """The gradient by reverse mode; differentiable again."""
        return jax.grad(lambda x: self.objective(x).astype(x.dtype))(x)

    def describe(self, x: Array) -> dict[str, Array]:
        """The fields of the `MinimizeResult` that follow from x."""
        return {"fun": self.objective(x).astype(x.dtype), "jac": self.gradient(x)}

    def restore(self, result: MinimizeResult) -> MinimizeResult:
        """The result in the user's structure."""
        values = self.restore_x(result.x), self.restore_x(result.jac)
        return eqx.tree_at(lambda r: (r.x, r.jac), result, values)
