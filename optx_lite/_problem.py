"""What is solved: the user's function with its box and its derivative scheme, made total.

minimise  0.5 sum_i C^2 rho((f_i(x) / C)^2)     or     f(x)     subject to   lower <= x <= upper

Below the front door x is a flat vector (n,) and the residuals a flat vector (m,), of one
floating dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._losses import Loss
from ._minimize_result import MinimizeResult
from ._result import Result
from ._tree import Unravel
from .derivatives import AbstractJacobian
from .linalg import exponent, next_power_of_two, power_of_two


def sizes(x: Array) -> Array:
    """The power of two next to each entry's size; for 0, that next to the largest entry."""
    return next_power_of_two(jnp.where(x == 0, jnp.max(jnp.abs(x)), x))


def _pulled_back(fun: Callable, x: Array, cotangent: Callable) -> tuple[Array, Array]:
    """``fun`` at x, and J^T c: J its Jacobian there, c the ``cotangent`` for its value.

    The value comes by the same mode, for `jax.custom_vjp` has no other.
    """
    try:
        value, pullback = jax.vjp(fun, x)
        return value, pullback(cotangent(value))[0]
    except ValueError:  # a `lax.while_loop`, which has forward mode only
        value, pushforward = jax.linearize(fun, x)
        columns = jax.vmap(pushforward)(jnp.eye(x.shape[0], dtype=x.dtype))
        return value, columns.reshape(x.shape[0], -1) @ cotangent(value).reshape(-1)


@jax.custom_jvp
def _cost(loss: Loss, f: Array) -> Array:
    """The cost, with a derivative that is in range even where the square of f is not."""
    return loss.cost(f)


@_cost.defjvp
def _cost_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (loss, f), (d_loss, d_f) = primals, tangents
    unit = next_power_of_two(jnp.max(jnp.abs(f)))
    _, by_loss = jax.jvp(lambda loss: loss.cost(f, unit), (loss,), (d_loss,))
    return _cost(loss, f), jnp.sum(loss.slope(f) * d_f) + by_loss * unit * unit


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

    dense: ClassVar[bool] = True  # matrices of n columns are written out anyway

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

    def gradient(self, x: Array, unit: Array | float = 1.0) -> Array:
        """d (cost / unit) / d x; differentiable again."""
        return _pulled_back(
            lambda x: self.residuals(x).astype(x.dtype), x, lambda f: self.loss.slope(f) / unit
        )[1]

    def units(self, result: Result) -> tuple[Array, Array]:
        """Of the residuals, and of each variable: powers of two which keep a Hessian in range.

        With cost / unit for cost, a change of a variable by its unit changes its derivative by
        about as much as an entry of the Jacobian.
        """
        of_f = next_power_of_two(jnp.max(jnp.abs(result.fun)))
        largest = jnp.max(jnp.abs(result.jac), axis=0)
        of_x = power_of_two(exponent(of_f) - exponent(largest), of_f.dtype)
        return of_f, jnp.where(largest > 0, of_x, sizes(result.x))

    def describe(self, x: Array) -> dict[str, Array]:
        """The fields of the `Result` that follow from x, as differentiable functions of it."""
        f, jacobian = self.linearize(x)
        rows = self.weighted(f, jacobian())[1]
        return {"cost": _cost(self.loss, f), "fun": f, "grad": self.gradient(x), "jac": rows.T}

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

    dense: ClassVar[bool] = False

    def evaluate(self, x: Array) -> Array:
        """f(x), (), in its own dtype."""
        return self.objective(x)

    def value_and_grad(self, x: Array) -> tuple[Array, Array]:
        """f(x) and its gradient (n,): the one evaluation of a step."""
        value, jacobian = self.derivative.linearize(
            lambda x: self.objective(x)[None], x, self.lower, self.upper
        )
        return value[0].astype(x.dtype), jacobian()[:, 0].astype(x.dtype)

    def gradient(self, x: Array, unit: Array | float = 1.0) -> Array:
        """The gradient of f / unit; differentiable again."""
        return self._with_gradient(x, unit)[1]

    def _with_gradient(self, x: Array, unit: Array | float = 1.0) -> tuple[Array, Array]:
        return _pulled_back(
            lambda x: self.objective(x).astype(x.dtype), x, lambda f: jnp.ones_like(f) / unit
        )

    def units(self, result: MinimizeResult) -> tuple[float, Array]:
        """Of f and of each variable, as for least squares; here nothing is squared."""
        return 1.0, sizes(result.x)

    def describe(self, x: Array) -> dict[str, Array]:
        """The fields of the `MinimizeResult` that follow from x."""
        value, grad = self._with_gradient(x)
        return {"fun": value, "jac": grad}

    def restore(self, result: MinimizeResult) -> MinimizeResult:
        """The result in the user's structure."""
        values = self.restore_x(result.x), self.restore_x(result.jac)
        return eqx.tree_at(lambda r: (r.x, r.jac), result, values)
