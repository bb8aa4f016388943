"""Derivatives by a step into the complex plane.

W. Squire and G. Trapp, "Using Complex Variables to Estimate Derivatives of Real Functions", SIAM
Review 40 (1998): ``f(x + ih) = f(x) + i h f'(x) - h^2 f''(x)/2 - ...`` for a real function that
continues analytically. Nothing is subtracted, so the step may be as small as one likes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .base import AbstractSampled, broadcast_step, higher_precision, lower_eps, relative_step


class ComplexStep(AbstractSampled):
    """Complex step: exact to rounding, for functions that are analytic and take complex arguments.

    Parameters
    ----------
    rel_step : float or array of shape (n,), optional
        Step relative to ``abs(x)``. By default ``eps**2 * max(1, abs(x))``: SciPy's square root
        of eps is made for differences, and leaves a truncation error where parameters are far
        smaller than 1.
    abs_step : float or array of shape (n,), optional
        The step itself; overrides `rel_step`.
    """

    rel_step: ArrayLike | None = None
    abs_step: ArrayLike | None = None

    def transposed(self, fun, x, f, lower, upper):
        """Imaginary parts, over the imaginary step."""
        weights, parts = self.sampled(fun, x, f, lower, upper, np.eye(x.size, dtype=bool))
        return weights[0][:, None] * parts[0]

    def sampled(self, fun, x, f, lower, upper, groups):
        """The imaginary parts where all parameters of a group have an imaginary step."""
        h = jax.lax.stop_gradient(self._steps(x, f))
        real = jnp.broadcast_to(x[None], groups.shape)
        values = jax.vmap(fun)(jax.lax.complex(real, jnp.where(groups, h[None], 0)))
        if not jnp.iscomplexobj(values):
            raise TypeError(
                "method 'cs' needs a `fun` that takes complex `x` and returns complex values: "
                f"for {real.dtype} `x` with an imaginary step it returned {values.dtype}."
            )
        dtype = higher_precision(x, f)
        return (1 / h.astype(dtype))[None], jnp.imag(values).astype(dtype)[None]

    def _steps(self, x: Float[Array, " n"], f: Float[Array, " m"]) -> Float[Array, " n"]:
        default = lower_eps(x, f) ** 2 * jnp.maximum(1.0, jnp.abs(x))
        if self.abs_step is not None:
            asked = broadcast_step(self.abs_step, x, "abs_step")
        elif self.rel_step is not None:
            asked = relative_step(self.rel_step, x)
        else:
            return default
        return jnp.where(asked == 0, default, asked)
