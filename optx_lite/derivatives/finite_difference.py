"""Finite differences that stay inside the bounds.

The rules for the step are those of ``scipy.optimize`` (W. H. Press et al., "Numerical Recipes", 3rd
edition, section 5.7). The formulas take the steps as they really were after rounding, so they need
not be equal: B. Fornberg, "Generation of Finite Difference Formulas on Arbitrarily Spaced Grids",
Mathematics of Computation 51 (1988).
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from .base import AbstractSampled, broadcast_step, higher_precision, lower_eps, relative_step

_ORDER = {"2-point": 2, "3-point": 3}


class FiniteDifference(AbstractSampled):
    """Differences of values: ``'2-point'`` (first order) or ``'3-point'`` (second order).

    Parameters
    ----------
    scheme : {'2-point', '3-point'}
        ``'2-point'`` steps once, away from zero unless a bound is in the way. ``'3-point'`` steps
        to both sides, or twice to one side near a bound. Where the box leaves no room at all the
        column is zero.
    rel_step : float or array of shape (n,), optional
        Step relative to ``abs(x)``. By default, and where it would not change `x`,
        ``eps**(1/2) * max(1, abs(x))`` and ``eps**(1/3) * max(1, abs(x))``, with the eps of the
        lower precision of `x` and ``fun(x)``.
    abs_step : float or array of shape (n,), optional
        The step itself; overrides `rel_step`.
    """

    scheme: Literal["2-point", "3-point"] = eqx.field(static=True, default="2-point")
    rel_step: ArrayLike | None = None
    abs_step: ArrayLike | None = None

    def __check_init__(self):
        if self.scheme not in _ORDER:
            raise ValueError(f"`scheme` must be '2-point' or '3-point', got {self.scheme!r}.")

    def transposed(self, fun, x, f, lower, upper):
        """Weighted changes of the value over the steps."""
        weights, changes = self.sampled(fun, x, f, lower, upper, np.eye(x.size, dtype=bool))
        return jnp.sum(weights[:, :, None] * changes, axis=0)

    def sampled(self, fun, x, f, lower, upper, groups):
        """The changes of the value where all parameters of a group step at once."""
        # The derivative of a difference is the difference of derivatives: its steps are constants.
        origin, lower, upper = map(jax.lax.stop_gradient, (x, lower, upper))
        h = self._steps(origin, f)
        if self.scheme == "2-point":
            trials, weigh = one_sided_trial(origin, h, lower, upper)[None], two_point_weights
        else:
            trials = jnp.stack(three_point_trials(origin, h, lower, upper))
            weigh = three_point_weights
        dtype = higher_precision(x, f)
        weights = jnp.stack(weigh(*(trials.astype(dtype) - origin[None, :].astype(dtype))))
        points = trials + (x - origin)[None, :]
        points = jnp.where(groups[None], points[:, None, :], x[None, None, :])
        values = jax.vmap(fun)(points.reshape(-1, x.size)).reshape(*points.shape[:2], -1)
        return weights, values.astype(dtype) - f.astype(dtype)[None, None, :]

    def _steps(self, x: Float[Array, " n"], f: Float[Array, " m"]) -> Float[Array, " n"]:
        default = default_step(x, lower_eps(x, f), _ORDER[self.scheme])
        if self.abs_step is not None:
            asked = broadcast_step(self.abs_step, x, "abs_step")
        elif self.rel_step is not None:
            asked = relative_step(self.rel_step, x)
        else:
            return default
        return jnp.where(x + asked == x, default, asked)


def default_step(x: Float[Array, "*n"], eps: float, order: int) -> Float[Array, "*n"]:
    """Step away from zero that balances truncation against rounding for variables of size >= 1."""
    h = eps ** (1 / order) * jnp.maximum(1.0, jnp.abs(x))
    return jnp.where(x < 0, -h, h)


def one_sided_trial(x, h, lower, upper) -> Float[Array, "*n"]:
    """``x + h``; ``x - h`` where only that is inside; else as far as the wider side reaches."""
    below, above = x - lower, upper - x
    outside = (x + h < lower) | (x + h > upper)
    fits = jnp.abs(h) <= jnp.maximum(below, above)
    widest = jnp.where(above >= below, above, -below)
    h = jnp.where(fits, jnp.where(outside, -h, h), widest)
    return jnp.clip(x + h, lower, upper)


def three_point_trials(x, h, lower, upper) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """``x - h`` and ``x + h`` where both are inside, else one and two steps to the wider side."""
    below, above = x - lower, upper - x
    narrow, wide = jnp.minimum(below, above), jnp.maximum(below, above)
    h = jnp.abs(h)
    short = jnp.minimum(h, 0.5 * wide)
    # A central difference over the narrow side's room is the better one when that is no shorter.
    h = jnp.where(h <= narrow, h, jnp.where(short <= narrow, narrow, short))
    central = h <= narrow
    step = jnp.where(above >= below, h, -h)
    first = jnp.where(central, -h, step)
    second = jnp.where(central, h, 2 * step)
    return jnp.clip(x + first, lower, upper), jnp.clip(x + second, lower, upper)


def two_point_weights(a: Float[Array, "*n"]) -> tuple[Float[Array, "*n"]]:
    """Weight w in ``f'(x) = w (f(x + a) - f(x))``; zero without a step."""
    return (_quotient(1.0, a, a != 0),)


def three_point_weights(
    a: Float[Array, "*n"], b: Float[Array, "*n"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Weights in ``f'(x) = w1 (f(x + a) - f(x)) + w2 (f(x + b) - f(x))``, exact for parabolas.

    Steps of a few units in the last place may coincide or vanish: then it is the two-point formula
    for the one that is left.
    """
    proper = (a != 0) & (b != 0) & (a != b)
    w1 = _quotient(_quotient(b, a, proper), b - a, proper)
    w2 = _quotient(_quotient(a, b, proper), a - b, proper)
    (only_a,), (only_b,) = two_point_weights(a), two_point_weights(b)
    return jnp.where(proper, w1, jnp.where(b == 0, only_a, 0.0)), jnp.where(proper, w2, only_b)


def _quotient(
    numerator, denominator: Float[Array, "*n"], valid: Bool[Array, "*n"]
) -> Float[Array, "*n"]:
    return jnp.where(valid, numerator / jnp.where(valid, denominator, 1.0), 0.0)
