"""The records in which `elementwise` hands back its answers, with SciPy's codes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float, Int

from ..jax_support.export import exportable
from .base import PROCEEDING, AbstractRecord

RUNNING = 1
CONVERGED = 0
INVALID = LIMIT = -1
MAXITER = -2
NONFINITE = -3
CALLBACK_STOP = -4
BAD_INPUT = -5

_MESSAGES = {
    RUNNING: PROCEEDING,
    MAXITER: "The maximum number of iterations was reached.",
    NONFINITE: "A non-finite value was encountered.",
    CALLBACK_STOP: "Iteration was terminated by `callback`.",
}


class AbstractElementwiseResult(AbstractRecord):
    """What all of them have. Every field is an array of the shape to which all inputs broadcast."""

    @property
    def success(self) -> Array | bool:
        """Where the algorithm ended well (``status == 0``)."""
        return self.status == CONVERGED

    def _texts(self, codes: np.ndarray) -> np.ndarray:
        texts = np.empty(codes.shape, object)
        for code in np.unique(codes):
            texts[codes == code] = self.MESSAGES[int(code)]
        return texts


@exportable
class ElementwiseResult(AbstractElementwiseResult):
    """The answer of `elementwise.find_minimum` and `elementwise.find_root`; a pytree.

    Attributes
    ----------
    status : array of int32
        0 converged, -1 the bracket is none, -2 out of iterations, -3 a value was not finite,
        -4 ended by the callback, -5 bad input (inside ``jit``, where nothing can be raised); 1
        still at work (in what a callback gets).
    x : array
        The minimiser or the root; NaN where status is -1, -3 or -5.
    f_x : array
        The function there.
    nfev, nit : array of int32
        Evaluations and iterations, for each element.
    bracket, f_bracket : tuple of arrays
        The last bracket, from left to right, and the function there.
    """

    MESSAGES: ClassVar[dict[int, str]] = {
        **_MESSAGES,
        CONVERGED: "The algorithm converged to the specified tolerances.",
        INVALID: "The initial bracket was invalid.",
        BAD_INPUT: "A tolerance is negative or NaN.",
    }

    status: Int[Array, "..."]
    x: Float[Array, "..."]
    f_x: Float[Array, "..."]
    nfev: Int[Array, "..."]
    nit: Int[Array, "..."]
    bracket: tuple[Float[Array, "..."], ...]
    f_bracket: tuple[Float[Array, "..."], ...]

    @property
    def value(self) -> Array:
        """The function at x."""
        return self.f_x


@exportable
class ScalarResult(AbstractElementwiseResult):
    """The answer of `minimize_scalar`; a pytree of arrays of one shape.

    Attributes
    ----------
    status : array of int32
        0 converged, to a minimum or to a bound that the function falls towards, -1 the bracket is
        none, -2 out of iterations, -3 a value was not finite, or the function falls for ever, -5
        bad input (inside ``jit``).
    x : array
        The minimiser, by Chandrupatla's method whatever the name of the ``method``; NaN where
        status is below -2 or is -1.
    fun : array
        The function there.
    nfev, nit : array of int32
        Evaluations and iterations, those of the search for a bracket included; those on the
        bounds and for the polish are not.
    active_mask : array of int32
        -1 at the lower bound, 1 at the upper bound, 0 elsewhere.
    """

    MESSAGES: ClassVar[dict[int, str]] = {
        **_MESSAGES,
        CONVERGED: "The algorithm converged to the specified tolerances.",
        INVALID: "The initial bracket was invalid.",
        BAD_INPUT: "The bounds are reversed, the points of the bracket are not in order, or a "
        "tolerance is negative or NaN.",
    }

    status: Int[Array, "..."]
    x: Float[Array, "..."]
    fun: Float[Array, "..."]
    nfev: Int[Array, "..."]
    nit: Int[Array, "..."]
    active_mask: Int[Array, "..."]

    @property
    def value(self) -> Array:
        """The function at x."""
        return self.fun


@exportable
class BracketResult(AbstractElementwiseResult):
    """The answer of `elementwise.bracket_minimum` and `elementwise.bracket_root`; a pytree.

    Attributes
    ----------
    status : array of int32
        0 the bracket is valid, -1 it grew to ``xmin`` or ``xmax``, -2 out of iterations, -3 a
        value was not finite, -5 the first points are not in order, or ``factor`` is not above 1.
    bracket, f_bracket : tuple of arrays
        Its points from left to right, and the function there.
    nfev, nit : array of int32
        Evaluations and iterations, for each element.
    """

    MESSAGES: ClassVar[dict[int, str]] = {
        **_MESSAGES,
        CONVERGED: "The algorithm produced a valid bracket.",
        LIMIT: "The bracket expanded to the allowable limits.",
        BAD_INPUT: "The initial bracket is not in order, or `factor` is not greater than 1.",
    }

    status: Int[Array, "..."]
    bracket: tuple[Float[Array, "..."], ...]
    f_bracket: tuple[Float[Array, "..."], ...]
    nfev: Int[Array, "..."]
    nit: Int[Array, "..."]
