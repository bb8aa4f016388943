"""What every solver of nonlinear least squares is."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from ...problem.least_squares import LeastSquaresProblem
from ...results import least_squares as codes
from ..base import AbstractSolver

State = TypeVar("State")


class AbstractLeastSquaresSolver(AbstractSolver[LeastSquaresProblem, State]):
    """A solver for `least_squares`; its `finish` gives a `Result`.

    Attributes
    ----------
    COUNTS_DIFFERENCES : bool
        Whether ``njev`` counts Jacobians by finite differences; else it is None for those.
    """

    BAD_STARTS = (codes.NONFINITE, codes.NONFINITE_JACOBIAN, codes.WRONG_SPARSITY)
    COUNTS_DIFFERENCES: ClassVar[bool] = True
