"""The records of the searches for the lowest minimum."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..jax_support.export import exportable
from .base import CALLBACK_STOP, AbstractRecord, AbstractResult
from .least_squares import Result
from .minimize import MinimizeResult

CONVERGED = 1
MAXITER = 0  # a search that still runs when its iterations are spent has run out of them
MAXFUN_EXCEEDED = -1
NONFINITE = -3
INFEASIBLE = -4
MAXFUN_REACHED = -5
BAD_BOUNDS = -6
OUT_OF_RANGE = -7

MESSAGES = {
    CONVERGED: "Optimization terminated successfully.",
    MAXITER: "Maximum number of iterations has been exceeded.",
    MAXFUN_EXCEEDED: "Maximum number of function evaluations has been exceeded.",
    MAXFUN_REACHED: "Maximum number of function evaluations has been reached.",
    CALLBACK_STOP: "callback function requested stop early",
    NONFINITE: "No point with a finite value was found.",
    INFEASIBLE: "The solution does not satisfy the constraints, MAXCV = {0:.6g}",
    BAD_BOUNDS: "`bounds` are not finite.",
}
IN_PROGRESS = "in progress"


@exportable
class DifferentialEvolutionResult(AbstractResult):
    """The answer of `differential_evolution`, with SciPy's field names.

    Attributes
    ----------
    x : array, shape (n,)
        The best point.
    fun : array, shape ()
        The objective there.
    jac : array, shape (n,), or None
        Its gradient where polishing has lowered it, else NaN; None without polishing.
    population : array, shape (S, n)
        The last generation, the best first.
    population_energies : array, shape (S,)
        The objective there; infinite where it is NaN, or a constraint is violated.
    constr : list of arrays, or None
        For each constraint, by how much each of its components is violated at ``x``.
    maxcv : array, shape (), or None
        The largest of them.
    convergence : array, shape ()
        ``tol`` over the relative spread of the energies: above 1 at the end of a search that
        has converged.
    nfev, nit : int
        Evaluations of the objective, and generations.
    status : int
        1 converged, 0 out of generations, -1 and -5 out of evaluations, -2 stopped by the
        callback, -3 nothing finite found, -4 constraints violated, -6 bounds not finite. None in
        what a callback gets.
    """

    MESSAGES = MESSAGES
    COUNTERS = ("nfev", "nit", "status")
    SUMMARY = ("nfev", "status", "fun")
    VALUE = "Fun"

    x: Float[Array, " n"]
    fun: Float[Array, ""]
    nfev: int | Int[Array, ""]
    nit: int | Int[Array, ""]
    population: Float[Array, "S n"]
    population_energies: Float[Array, " S"]
    jac: Float[Array, " n"] | None
    constr: list[Float[Array, "..."]] | None
    maxcv: Float[Array, ""] | None
    convergence: Float[Array, ""]
    status: int | Int[Array, ""] | None

    @property
    def constr_violation(self) -> Array | None:
        """``maxcv``."""
        return self.maxcv

    @property
    def success(self) -> Array | bool:
        """Whether the energies agreed to the tolerances, at a feasible point (``status > 0``)."""
        if self.status is None:
            return self.maxcv is None or not self.maxcv > 0
        return self.status > 0

    @property
    def message(self) -> str | np.ndarray:
        """Why the search ended, in words."""
        return IN_PROGRESS if self.status is None else super().message

    def _text(self, code: int, lane: tuple[int, ...]) -> str:
        worst = np.nan if self.maxcv is None else np.asarray(self.maxcv)[lane]
        return self.MESSAGES[code].format(worst)


@exportable
class MultistartResult(AbstractRecord):
    """The answer of `multistart`.

    Of k starts; outside of a trace only those minima are listed that were found, inside there are
    k of them, the unused ones NaN with basins of 0.

    Attributes
    ----------
    best : result of the solve
        That of the best start, with the derivative of its minimum.
    x : array (w, n), or pytree of arrays (w, ...)
        The distinct minima, the lowest first.
    fun : array, shape (w,)
        What was minimised (``fun`` or ``cost``) there.
    basin : array of int, shape (w,)
        How many starts led to each.
    label : array of int, shape (k,)
        Which minimum each start led to; -1 where its solve failed, or it was not tried.
    n_minima, n_failed, n_starts : int
        Minima found, solves that failed, starts that were tried.
    expected_minima : array, shape ()
        How many there are, by Boender & Rinnooy Kan; infinite if there were too few starts.
    all_found : array, shape ()
        The probability that there are no others, by the same.
    missed_share : array, shape ()
        The share of the starting region which leads to what was not found, by Good and Turing:
        the chance to have missed the lowest minimum, if that is as likely to be there as elsewhere.
    lowest_failed : array, shape ()
        The lowest value at which a solve has failed; where it is below ``fun[0]``, look there.
    nfev : int
        Evaluations of all solves.
    status : int
        That of ``best``.
    """

    MESSAGES: ClassVar = {}
    COUNTERS = ("n_minima", "n_failed", "n_starts", "nfev")

    best: PyTree  # of whatever family the solve is
    x: PyTree[Array]
    fun: Float[Array, " w"]
    basin: Int[Array, " w"]
    label: Int[Array, " k"]
    n_minima: int | Int[Array, ""]
    n_failed: int | Int[Array, ""]
    n_starts: int | Int[Array, ""]
    expected_minima: Float[Array, ""]
    all_found: Float[Array, ""]
    missed_share: Float[Array, ""]
    lowest_failed: Float[Array, ""]
    nfev: int | Int[Array, ""]
    status: int | Int[Array, ""]

    @property
    def success(self) -> Array | bool:
        """Whether any solve has succeeded: then the best one of those is ``best``."""
        return self.best.success

    @property
    def message(self) -> str | np.ndarray:
        """That of ``best``."""
        return self.best.message


HOPS_DONE = 1
UNCHANGED = 2
MAX_SAMPLES = 2


@exportable
class BasinHoppingResult(AbstractRecord):
    """The answer of `basinhopping`, with SciPy's field names.

    Attributes
    ----------
    x, fun : pytree like ``x0``, and array, shape ()
        The lowest minimum.
    lowest_optimization_result : MinimizeResult
        That of the local solve which found it.
    minimization_failures, nfev, njev, nit : int
        Solves that failed, evaluations, and hops.
    stepsize, accept_rate : arrays, shape ()
        The last step size, and the share of hops that were accepted.
    status : int
        1 all hops done, 2 the best unchanged for ``niter_success`` hops, -2 callback.
    """

    MESSAGES: ClassVar = {
        HOPS_DONE: "requested number of basinhopping iterations completed successfully",
        UNCHANGED: "success condition satisfied",
        CALLBACK_STOP: "callback function requested stop early",
    }

    COUNTERS = ("minimization_failures", "nfev", "njev", "nit", "status")

    x: PyTree[Array]
    fun: Float[Array, ""]
    lowest_optimization_result: MinimizeResult
    minimization_failures: int | Int[Array, ""]
    nfev: int | Int[Array, ""]
    njev: int | Int[Array, ""]
    nit: int | Int[Array, ""]
    stepsize: Float[Array, ""]
    accept_rate: Float[Array, ""]
    status: int | Int[Array, ""]

    @property
    def success(self) -> Array | bool:
        """Whether the solve that found x has succeeded."""
        return self.lowest_optimization_result.success


TEMPERATURES_DONE = 1


@exportable
class DualAnnealingResult(AbstractRecord):
    """The answer of `dual_annealing`, with SciPy's field names.

    Attributes
    ----------
    x, fun : pytree like ``x0``, and array, shape ()
        The lowest point found.
    lowest_optimization_result : MinimizeResult
        That of the local solve which ended there; its ``success`` says whether x is a local
        minimum. Where none ended there it is not a success, and its other floating fields are NaN.
    nfev, njev, nit : int
        Values, gradients, and temperatures.
    status : int
        1 ``maxiter`` temperatures are done, -5 out of evaluations, -2 callback, -3 nothing finite
        found, -6 bounds not finite or reversed, -7 a traced number out of its range.
    """

    MESSAGES: ClassVar = {
        TEMPERATURES_DONE: "Maximum number of iteration reached",
        MAXFUN_REACHED: "Maximum number of function call reached",
        CALLBACK_STOP: "Callback function requested to stop early by returning True",
        NONFINITE: MESSAGES[NONFINITE],
        BAD_BOUNDS: "`bounds` are not finite, or reversed.",
        OUT_OF_RANGE: "`initial_temp`, `restart_temp_ratio`, `visit` or `accept` is out of range.",
    }

    COUNTERS = ("nfev", "njev", "nit", "status")

    x: PyTree[Array]
    fun: Float[Array, ""]
    lowest_optimization_result: MinimizeResult
    nfev: int | Int[Array, ""]
    njev: int | Int[Array, ""]
    nit: int | Int[Array, ""]
    status: int | Int[Array, ""]

    @property
    def success(self) -> Array | bool:
        """Whether the search was done to its end (``status == 1``)."""
        return self.status == TEMPERATURES_DONE


NO_MODEL = 0


@exportable
class ConsensusResult(AbstractRecord):
    """The answer of `sample_consensus`.

    Attributes
    ----------
    x : pytree
        The model.
    inliers : array of bool, shape (m,)
        Which data are within the threshold of it.
    score : array, shape ()
        The sum of the squared residuals, each cut off at the threshold's square.
    n_inliers, n_samples : int
    fit : Result or None
        That of `least_squares`, if the model was refined.
    status : int
        1 the confidence asked for was reached, 2 not within ``max_samples``, 0 no sample gave a
        finite model that any more data agree with than determine it.
    """

    MESSAGES: ClassVar = {
        CONVERGED: "A sample without outliers was among those drawn, with the confidence asked "
        "for, if the inliers found are all there are.",
        MAX_SAMPLES: "`max_samples` were drawn, and the confidence asked for was not reached.",
        NO_MODEL: "No model was found that more data agree with than determine it.",
    }

    COUNTERS = ("n_inliers", "n_samples", "status")

    x: PyTree[Array]
    inliers: Bool[Array, " m"]
    score: Float[Array, ""]
    n_inliers: int | Int[Array, ""]
    n_samples: int | Int[Array, ""]
    fit: Result | None
    status: int | Int[Array, ""]

    @property
    def success(self) -> Array | bool:
        """Whether the confidence was reached (``status == 1``)."""
        return self.status == CONVERGED
