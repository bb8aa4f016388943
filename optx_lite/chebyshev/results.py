"""The records of roots, extrema and the minimum of a function of one variable."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from ..results.base import AbstractRecord

COMPLETE = 0
UNRESOLVED = -2
NONFINITE = -3
BAD_INPUT = -5


class PointsResult(AbstractRecord):
    """Roots or extrema; a pytree.

    Attributes
    ----------
    status : int32
        0 these are all, -2 they may not be: the function is not resolved, or there are more than
        ``size``, or multiple ones closer than the accuracy tells; -3 a value was not finite, -5
        the interval is none. Negative ones inside ``jit``, and with a ``degree``; else an error.
    x : (size,) array
        The points, rising; NaN after the last, and where status is below -2.
    fun : (size,) array
        The function there.
    mask : (size,) array of bool
        Which entries are points.
    crossing : (size,) array of bool
        Of a root: the function changes its sign there for certain. Else it is 0 to its accuracy,
        which may be a multiple root, a stretch of zeros, an end of the interval, or, below the
        accuracy, none. Of an extremum: the same of the derivative, as is True of all of them.
    """

    MESSAGES: ClassVar[dict[int, str]] = {
        COMPLETE: "All points in the interval, to the accuracy of the proxy.",
        UNRESOLVED: "There may be more: the function is not resolved, or `size` is too small, or "
        "a point is a multiple one.",
        NONFINITE: "A non-finite value was encountered.",
        BAD_INPUT: "The interval is none: a < b, both finite, is expected.",
    }

    status: int | Array
    x: ArrayLike
    fun: Array
    mask: Array
    crossing: Array

    @property
    def success(self) -> Array | bool:
        """Whether these are all (``status == 0``)."""
        return self.status == COMPLETE


class MinimumResult(AbstractRecord):
    """The global minimum of a function on an interval; a pytree.

    Attributes
    ----------
    status : int32
        0 no other point of the interval is lower, to the accuracy of the proxy; -2 that is not
        certain; -3 a value was not finite, -5 the interval is none. Negative ones inside ``jit``,
        and with a ``degree``; else an error.
    x, fun : array, ()
        The minimiser, and the function there; NaN where status is below -2.
    active_mask : int32
        -1 at the lower end of the interval, 1 at the upper one, 0 within.
    """

    MESSAGES: ClassVar[dict[int, str]] = {
        COMPLETE: "The global minimum on the interval, to the accuracy of the proxy.",
        UNRESOLVED: "There may be a lower point: the function is not resolved.",
        NONFINITE: "A non-finite value was encountered.",
        BAD_INPUT: "The interval is none: a < b, both finite, is expected.",
    }

    status: int | Array
    x: ArrayLike
    fun: Array
    active_mask: Array

    @property
    def success(self) -> Array | bool:
        """Whether this is the global minimum (``status == 0``)."""
        return self.status == COMPLETE


def status_of(valid: Array, finite: Array, complete: Array) -> Array:
    """The code, from what is right."""
    code = jnp.where(complete, COMPLETE, UNRESOLVED)
    code = jnp.where(finite, code, NONFINITE)
    return jnp.where(valid, code, BAD_INPUT).astype(np.int32)
