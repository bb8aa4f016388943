"""Status codes of least squares, their messages, and the record of an answer.

The codes and the texts for -2 ... 4 are those of ``scipy.optimize.least_squares``; the codes
below -2 are ours, because inside ``jit`` nothing can be raised and a status has to say why.
"""

from __future__ import annotations

from jaxtyping import Array, Float, Int, PyTree

from ..jax_support.export import exportable
from .base import CALLBACK_STOP, RUNNING, AbstractResult

WRONG_SPARSITY = -7
NONFINITE_JACOBIAN = -6
PLATEAU = -5
STALLED = -4
NONFINITE = -3
BAD_INPUT = -1
MAX_NFEV = RUNNING  # a solver that still runs when its evaluations are spent has run out of them
GTOL = 1
FTOL = 2
XTOL = 3
FTOL_AND_XTOL = 4

MESSAGES = {
    WRONG_SPARSITY: "`jac_sparsity` lacks entries: residuals change with variables on which they "
    "do not depend by that pattern.",
    NONFINITE_JACOBIAN: "The Jacobian is not finite in the initial point, although the residuals "
    "are: start elsewhere, or take jac='2-point', whose differences look beside that point.",
    PLATEAU: "A parameter which had an effect on the residuals has lost it: the solve ended on a "
    "plateau. Bound that parameter, or start elsewhere.",
    STALLED: "No step reduces the cost although the gradient is not zero: the derivative may be "
    "wrong (see `check_derivative`), or `fun` is noisy or not smooth here.",
    NONFINITE: "Residuals are not finite in the initial point.",
    CALLBACK_STOP: "Stopped because `callback` function raised `StopIteration` or returned `True`",
    BAD_INPUT: "Improper input parameters: bounds reversed, `x0` outside of them, or a bounded "
    "variable given to method 'lm'.",
    MAX_NFEV: "The maximum number of function evaluations is exceeded.",
    GTOL: "`gtol` termination condition is satisfied.",
    FTOL: "`ftol` termination condition is satisfied.",
    XTOL: "`xtol` termination condition is satisfied.",
    FTOL_AND_XTOL: "Both `ftol` and `xtol` termination conditions are satisfied.",
}


@exportable
class Result(AbstractResult):
    """The answer of `least_squares`, with the field names of ``scipy.optimize.OptimizeResult``.

    A pytree: it can be returned from ``jit``, ``vmap`` and ``scan``. Fields are read as
    attributes or, as in SciPy, as items. Outside a trace ``status``, ``success`` and the
    counters are plain Python numbers. Where nothing could be solved (status -1, -3, -6, -7),
    ``cost`` is infinite, so that no choice of the best of many starts falls on it; ``fun``,
    ``jac``, ``grad`` and ``optimality`` are NaN.

    Attributes
    ----------
    x : pytree like ``x0``
        The solution.
    cost : array, shape ()
        Half the sum of the losses at ``x``.
    fun : array, shape (m,), or pytree as ``fun`` returned it
        The true residuals at ``x``, without loss scaling.
    jac : array, shape (m, n)
        The Jacobian with the loss scaling in it: ``jac.T @ jac`` is the Gauss-Newton
        approximation of the Hessian of the cost.
    grad : pytree like ``x0``
        The gradient of the cost.
    optimality : array, shape ()
        SciPy's first-order measure: the largest gradient entry, scaled for the bounds.
    active_mask : pytree like ``x0`` of int
        -1 at a lower bound, 1 at an upper bound, 0 elsewhere.
    nfev, njev, nit : int
        Residual evaluations, Jacobians at points that were taken, accepted steps. ``njev`` is
        None for ``method='lm'`` with a finite-difference Jacobian, as in SciPy.
    status : int
        Why it ended: 1 gtol, 2 ftol, 3 xtol, 4 both, 0 out of evaluations, -1 bad input,
        -2 callback, -3 non-finite start, -4 stalled away from a stationary point, -5 plateau,
        -6 residuals finite at the start but not their Jacobian, -7 `jac_sparsity` lacks entries.
        None in what a callback gets, of which only x, fun, cost, optimality, nit and nfev are set.
    """

    MESSAGES = MESSAGES
    COUNTERS = ("nfev", "njev", "nit", "status")
    SUMMARY = ("nfev", "status", "cost", "optimality")
    VALUE = "Cost"

    x: PyTree[Array]
    cost: Float[Array, ""]
    fun: PyTree[Array]
    jac: PyTree
    grad: PyTree[Array]
    optimality: Float[Array, ""]
    active_mask: PyTree[Array]
    nfev: int | Int[Array, ""]
    njev: int | Int[Array, ""] | None
    nit: int | Int[Array, ""]
    status: int | Int[Array, ""] | None

    @property
    def success(self) -> Array | bool:
        """Whether a convergence test was met (``status > 0``)."""
        return self.status is not None and self.status > 0
