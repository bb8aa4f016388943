"""The record in which `minimize` hands back its answer, with SciPy's codes and messages."""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ..jax_support.export import exportable
from ..linalg.inverse_hessian import LbfgsInvHessProduct
from .base import CALLBACK_STOP, PROCEEDING, RUNNING, AbstractResult

# Why a solver ended; `status` is coarser.
GTOL, FTOL, MAXFUN, MAXITER, FAILED, NONFINITE, ALL_FIXED, LOST = range(1, 9)
BAD_BOUNDS, STUCK, KINK, NOT_SOLVED = range(9, 13)

MESSAGES = {
    GTOL: "CONVERGENCE: NORM OF PROJECTED GRADIENT <= PGTOL",
    FTOL: "CONVERGENCE: RELATIVE REDUCTION OF F <= FACTR*EPSMCH",
    ALL_FIXED: "All independent variables were fixed by bounds.",
    RUNNING: PROCEEDING,
    MAXFUN: "STOP: TOTAL NO. OF F,G EVALUATIONS EXCEEDS LIMIT",
    MAXITER: "STOP: TOTAL NO. OF ITERATIONS REACHED LIMIT",
    FAILED: "ABNORMAL: the line search found no lower value along a descent direction. Per unit "
    "of length along it the gradient promises {0:.6g}, `fun` itself changes by {1:.6g}. If the two "
    "differ, the gradient is wrong (see `check_derivative`) or `fun` not smooth here; if not, "
    "`fun` has more noise than rounding.",
    NONFINITE: "ABNORMAL: `fun` or its gradient is not finite at `x0`.",
    LOST: "ABNORMAL: `fun` or its gradient was not finite at a later point. The result is the best "
    "point before; a smaller learning rate may help.",
    BAD_BOUNDS: "ABNORMAL: `bounds` are reversed, or NaN.",
    STUCK: "ABNORMAL: the line search of `method` has found no lower value for many iterations. "
    "Those of optax do not know of `bounds`.",
    KINK: "ABNORMAL: `fun` has a kink at `x` (as abs, max, relu have) or next to it: its gradient "
    "does not go to 0 there, or the units of the variables are too far apart: measure each in a "
    "unit of its size. `x` may be a minimum, but no test can say so.",
    NOT_SOLVED: "No local solve has ended at `x`.",
    CALLBACK_STOP: "`callback` raised `StopIteration`.",
}
NOWHERE = (
    "ABNORMAL: the line search found no lower value along a descent direction: even close to `x`, "
    "`fun` or its gradient is not finite there."
)
CONVERGED = (GTOL, FTOL, ALL_FIXED)
ABNORMAL = (FAILED, NONFINITE, LOST, BAD_BOUNDS, STUCK, KINK)
STATUS = {CALLBACK_STOP: 99, **dict.fromkeys(ABNORMAL, 2), **dict.fromkeys(CONVERGED, 0)}
LIMIT = 1  # the status of all the others


@exportable
class MinimizeResult(AbstractResult):
    """The answer of `minimize`, with the field names of ``scipy.optimize.OptimizeResult``.

    A pytree, like `Result`.

    Attributes
    ----------
    x : pytree like ``x0``
        The best point seen.
    fun : array, shape ()
        The objective there.
    jac : pytree like ``x0``
        Its gradient.
    optimality : array, shape ()
        The largest entry of P(x - gradient) - x, P the projection onto the box.
    nfev, njev, nit : int
        Evaluations of the objective, of its gradient, and iterations.
    hess_inv : LbfgsInvHessProduct or None
        The method's approximation of the inverse Hessian.
    task : int
        Why it ended, in more detail than ``status``; ``message`` says it in words. 1 gtol, 2 ftol,
        3 maxfun, 4 maxiter, 5 no lower value found, 6 not finite at ``x0``, 7 all variables
        fixed, 8 not finite at a later point, 9 bounds reversed or NaN, 10 the line search of a
        transformation is stuck, 11 a kink, 12 no solve has ended here, -2 stopped by the callback.
        0 or None, in the ``intermediate_result`` of a callback: it has not ended.
    status : int
        0 converged, 1 limit of evaluations or iterations, 2 abnormal, 99 stopped by the callback.
    slopes : array, shape (2,), or None
        Where the line search failed: the slope of ``fun`` along its direction, as the gradient
        and as the difference of two values have it.
    """

    MESSAGES = MESSAGES
    COUNTERS = ("nfev", "njev", "nit", "task", "status")
    SUMMARY = ("nfev", "status", "task", "fun", "optimality", "slopes")
    VALUE = "Fun"

    x: PyTree[Array]
    fun: Float[Array, ""]
    jac: PyTree[Array]
    optimality: Float[Array, ""]
    nfev: int | Int[Array, ""]
    njev: int | Int[Array, ""]
    nit: int | Int[Array, ""]
    hess_inv: LbfgsInvHessProduct | None
    task: int | Int[Array, ""] | None
    status: int | Int[Array, ""] | None
    slopes: Float[Array, " 2"] | None

    @property
    def success(self) -> Array | bool:
        """Whether a convergence test was met (``status == 0``)."""
        return self.task is not None and self.status == 0

    @property
    def code(self) -> int | Array | None:
        """The task."""
        return RUNNING if self.task is None else self.task

    def _text(self, code: int, lane: tuple[int, ...]) -> str:
        if self.slopes is None:
            return super()._text(code, lane)
        slopes = np.asarray(self.slopes)[lane]
        if code == FAILED and not np.all(np.isfinite(slopes)):
            return NOWHERE
        return self.MESSAGES[code].format(*slopes)
