"""Is this Jacobian right? Compared with finite differences, entry by entry, without false alarms.

One step does not suit every variable: a step that is right for a variable of size 1 leaps over the
whole range of one of size 1e-8, and one that is right for that drowns in rounding elsewhere. So
each column is differenced with a ladder of steps. Rounding noise shows as a change from rung to
rung that grows as 1/step, truncation as one that falls with the step. The rung with the least of
both is the reference, and its own error estimate says how closely the Jacobian must agree with it
(the idea of C. Ridders, Advances in Engineering Software 4, 1982).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from ..jax_support.types import Number
from .base import AbstractJacobian, FlatFunction, higher_precision, lower_eps
from .finite_difference import three_point_trials, three_point_weights

_RUNGS = 16
_SAFETY = 10.0  # error estimates are estimates
_LISTED = 5


class DerivativeCheck(eqx.Module):
    """What `check_derivative` found: true if the Jacobian agrees; as text it says where not.

    Attributes
    ----------
    ok : bool
        Whether all entries agree: ``max_error <= tolerance``.
    max_error : float
        Largest error over the entries, relative to the entry, beyond what the differences are
        uncertain by.
    tolerance : float
        The relative error allowed: the square root of the eps of the lower precision of `x` and
        ``fun(x)``.
    worst : tuple of int
        Entry ``(i, j)`` with the largest error: residual i, parameter j.
    jac : array, shape (m, n)
        The Jacobian that was checked.
    reference : array, shape (m, n)
        What the finite differences give.
    errors : array, shape (m, n)
        The error of each entry; 0 in columns whose bounds leave no room for a difference, infinite
        for an entry that is not finite.
    """

    ok: Array | bool
    max_error: Number
    tolerance: Number
    worst: PyTree
    jac: Float[Array, "m n"]
    reference: Float[Array, "m n"]
    errors: Float[Array, "m n"]

    def __bool__(self):
        return bool(self.ok)

    def __str__(self):
        if isinstance(self.errors, Tracer) or self.errors.ndim != 2:
            return repr(self)
        wrong = int(np.sum(np.asarray(self.errors) > self.tolerance))
        found = f"disagrees in {wrong} of {self.errors.size} entries" if wrong else "agrees"
        measure = f"largest relative error {self.max_error:.2g}, allowed {self.tolerance:.2g}"
        lines = [f"Jacobian {found} with finite differences: {measure}."]
        return "\n".join(
            lines + [self._line(entry) for entry in self._largest(min(wrong, _LISTED))]
        )

    def _largest(self, count: int) -> list[tuple[int, int]]:
        order = np.argsort(-np.asarray(self.errors).ravel(), stable=True)[:count]
        return [divmod(int(k), self.errors.shape[1]) for k in order]

    def _line(self, entry: tuple[int, int]) -> str:
        given, reference, error = (
            float(array[entry]) for array in (self.jac, self.reference, self.errors)
        )
        i, j = entry
        numbers = f"{given:.9g} given, {reference:.9g} by differences, relative error {error:.2g}"
        return f"  d fun[{i}] / d x[{j}]: {numbers}"


def compare(
    scheme: AbstractJacobian,
    fun: FlatFunction,
    x: Float[Array, " n"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
) -> tuple[Float[Array, "m n"], Float[Array, "m n"], Float[Array, "m n"], float]:
    """The Jacobian of the scheme, the reference, the errors of the entries, the error allowed."""
    f, transposed = scheme.linearize(fun, x, lower, upper)
    reference, uncertainty = _best_differences(fun, x, f, lower, upper)
    jac, reference, uncertainty = transposed().T, reference.T, uncertainty.T
    beyond = jnp.maximum(jnp.abs(jac - reference) - _SAFETY * uncertainty, 0.0)
    size = jnp.maximum(jnp.abs(jac), jnp.abs(reference))
    relative = beyond / jnp.where(size > 0, size, 1.0)
    comparable = jnp.isfinite(jac) & jnp.isfinite(reference) & ~jnp.isinf(uncertainty)
    errors = jnp.where(comparable, jnp.where(jnp.isnan(uncertainty), 0.0, relative), jnp.inf)
    return jac, reference, errors, lower_eps(x, f) ** 0.5


def _best_differences(
    fun: FlatFunction,
    x: Float[Array, " n"],
    f: Float[Array, " m"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
) -> tuple[Float[Array, "n m"], Float[Array, "n m"]]:
    """The transposed Jacobian by the best rung of each entry's ladder, and how uncertain that is.

    One column after the other, so that memory holds one ladder at a time. An uncertainty is NaN
    where the bounds leave no room, infinite where no two neighbouring rungs are finite.
    """
    eps, dtype = lower_eps(x, f), higher_precision(x, f)

    def column(j):
        h = _ladder(x[j], lower[j], upper[j], eps)
        trials = jnp.stack(three_point_trials(x[j], h, lower[j], upper[j]))
        values = jax.vmap(jax.vmap(lambda t: fun(x.at[j].set(t))))(trials).astype(dtype)
        weights = jnp.stack(three_point_weights(*(trials.astype(dtype) - x[j].astype(dtype))))
        slopes = jnp.sum(weights[:, :, None] * (values - f.astype(dtype)[None, None, :]), axis=0)
        gain = jnp.sum(jnp.abs(weights), axis=0)
        return _choose_rung(slopes, gain, eps * jnp.abs(f).astype(dtype))

    slopes, uncertainty, gain = jax.lax.map(column, jnp.arange(x.size))
    # A residual may be small because large terms cancel: they show in what a variable contributes.
    terms = jnp.abs(slopes * x.astype(dtype)[:, None])
    terms = jnp.max(terms, axis=0, initial=0.0, where=jnp.isfinite(slopes))
    return slopes, jnp.where(gain > 0, uncertainty + eps * terms[None, :] * gain, jnp.nan)


def _ladder(
    x: Float[Array, ""], lower: Float[Array, ""], upper: Float[Array, ""], eps: float
) -> Float[Array, " k"]:
    """Steps from the one for a variable of size 1 or more down to what rounding of `x` allows."""
    room = jnp.maximum(x - lower, upper - x)
    coarse = jnp.minimum(eps ** (1 / 3) * jnp.maximum(1.0, jnp.abs(x)), 0.5 * room)
    size = jnp.where(x == 0, eps, jnp.maximum(jnp.abs(x), eps**2))  # of 0 one cannot know
    fine = jnp.minimum(eps**0.75 * size, coarse)
    ratio = jnp.where(coarse > 0, fine / jnp.where(coarse > 0, coarse, 1.0), 1.0)
    return coarse * ratio ** jnp.linspace(0.0, 1.0, _RUNGS, dtype=x.dtype)


def _choose_rung(
    slopes: Float[Array, "k m"], gain: Float[Array, " k"], rounding: Float[Array, " m"]
) -> tuple[Float[Array, " m"], Float[Array, " m"], Float[Array, " m"]]:
    """Slope, uncertainty and gain of the rung that is least uncertain, of each entry.

    `gain` is what the difference formula multiplies an error of the values with, `rounding` the
    least such error.
    """
    gain = gain[:, None]
    change = jnp.abs(slopes[:-1] - slopes[1:])
    # A step too small to change the value has no slope, if a larger one changes it.
    lost = (slopes == 0) & (jnp.cumsum(jnp.isfinite(slopes) & (slopes != 0), axis=0) > 0)
    usable = jnp.isfinite(change) & (gain[:-1] > 0) & ~lost[:-1]
    # The finer rungs scatter by the noise of the values: more than rounding, where terms cancel.
    measurable = jnp.isfinite(change) & (gain[1:] > 0)
    scatter = jnp.where(measurable, change / jnp.where(gain[1:] > 0, gain[1:], 1.0), 0.0)
    noise = jnp.maximum(jax.lax.cummax(scatter, axis=0, reverse=True), rounding[None, :])
    uncertainty = jnp.where(usable, change + gain[:-1] * noise, jnp.inf)
    uncertainty = uncertainty + _beyond_finer_rungs(
        jnp.where(usable, slopes[:-1], 0.0), uncertainty
    )
    best = jnp.argmin(uncertainty, axis=0)

    def at_best(rungs):
        return jnp.take_along_axis(rungs, best[None], axis=0)[0]

    return at_best(slopes), at_best(uncertainty), at_best(jnp.broadcast_to(gain, slopes.shape))


def _beyond_finer_rungs(
    slopes: Float[Array, "k m"], uncertainty: Float[Array, "k m"]
) -> Float[Array, "k m"]:
    """How far each slope is from where the finer rungs allow it to be.

    A step that leaps over all the function does gives a slope that is small, and so changes
    little, and is wrong.
    """
    least = jax.lax.cummax(slopes - _SAFETY * uncertainty, axis=0, reverse=True)
    most = jax.lax.cummin(slopes + _SAFETY * uncertainty, axis=0, reverse=True)
    return jnp.maximum(jnp.maximum(least - slopes, slopes - most), 0.0)


def report_of(
    jac: Float[Array, "m n"], reference: Float[Array, "m n"], errors: Float[Array, "m n"], tolerance
) -> DerivativeCheck:
    """The record of what `compare` found, in plain numbers outside of a trace."""
    max_error = jnp.max(errors)
    worst = jnp.unravel_index(jnp.argmax(errors), errors.shape)
    ok = max_error <= tolerance
    if not isinstance(errors, Tracer):
        ok, worst = bool(ok), tuple(map(int, worst))
        max_error, tolerance = float(max_error), float(tolerance)
    return DerivativeCheck(ok, max_error, tolerance, worst, jac, reference, errors)
