"""The interface that every Jacobian scheme meets.

All of it is traced code on flat arrays. A Jacobian is kept transposed, shape ``(n, m)``: one row
per parameter, contiguous, which is the order that orthogonalising the parameters' directions needs.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

FlatFunction = Callable[[Float[Array, " n"]], Float[Array, " m"]]
Thunk = Callable[[], Float[Array, "n m"]]


class AbstractJacobian(eqx.Module):
    """How the Jacobian of a residual function is computed."""

    @abc.abstractmethod
    def linearize(
        self,
        fun: FlatFunction,
        x: Float[Array, " n"],
        lower: Float[Array, " n"],
        upper: Float[Array, " n"],
    ) -> tuple[Float[Array, " m"], Thunk]:
        """Evaluate the function, and make its Jacobian ready.

        Parameters
        ----------
        fun : callable
            Pure function from shape ``(n,)`` to shape ``(m,)``, both of real floating dtype.
        x : array, shape (n,)
            Where to evaluate, within the bounds.
        lower, upper : array, shape (n,)
            Bounds, infinite where there is none. No scheme calls `fun` outside of them.

        Returns
        -------
        f : array, shape (m,)
            ``fun(x)``.
        jacobian : callable
            Without arguments; gives the transposed Jacobian at `x`, shape ``(n, m)``, in the
            higher precision of `x` and `f`. It may be called inside a branch of `jax.lax.cond`,
            or never.
        """


class AbstractSampled(AbstractJacobian):
    """A scheme that reads the Jacobian off further values of the function."""

    def linearize(self, fun, x, lower, upper):
        """Evaluate the function; the further values wait until they are asked for."""
        f = fun(x)
        return f, lambda: self.transposed(fun, x, f, lower, upper)

    @abc.abstractmethod
    def transposed(
        self,
        fun: FlatFunction,
        x: Float[Array, " n"],
        f: Float[Array, " m"],
        lower: Float[Array, " n"],
        upper: Float[Array, " n"],
    ) -> Float[Array, "n m"]:
        """The transposed Jacobian at `x`, where the function's value is `f`."""

    @abc.abstractmethod
    def sampled(
        self,
        fun: FlatFunction,
        x: Float[Array, " n"],
        f: Float[Array, " m"],
        lower: Float[Array, " n"],
        upper: Float[Array, " n"],
        groups: Bool[Array, "k n"] | np.ndarray,
    ) -> tuple[Float[Array, "p n"], Float[Array, "p k m"]]:
        """Of groups of parameters that step together: weights, and changes of the values.

        Where parameter j is the only one of its group c on which f_i depends, J_ij is the sum of
        ``weights[:, j] * changes[:, c, i]``.
        """


def higher_precision(x: Array, f: Array) -> np.dtype:
    """The dtype of a Jacobian, by NumPy's rule: JAX's may be set to refuse mixed operands."""
    return np.promote_types(x.dtype, f.dtype)


def lower_eps(x: Array, f: Array) -> float:
    """Machine epsilon of the lower precision: what differences of `f` over `x` can resolve."""
    return max(float(jnp.finfo(x.dtype).eps), float(jnp.finfo(f.dtype).eps))


def relative_step(rel_step, x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Step asked for as a fraction of each parameter, with its sign; 0 where that is 0."""
    return broadcast_step(rel_step, x, "rel_step") * x


def broadcast_step(step, x: Float[Array, " n"], name: str) -> Float[Array, " n"]:
    """A step for each parameter; `name` is what the user calls it."""
    step = jnp.asarray(step, dtype=x.dtype)
    if step.shape not in ((), (1,), x.shape):
        raise ValueError(
            f"`{name}` must be a number or have shape {x.shape}, got shape {step.shape}."
        )
    return jnp.broadcast_to(step, x.shape)
