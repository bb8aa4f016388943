"""The solvers, one algorithm a file: ``init(problem, x0)``, ``step(problem, state)``."""

from .base import AbstractSolver as AbstractSolver
from .least_squares.base import AbstractLeastSquaresSolver as AbstractLeastSquaresSolver
from .least_squares.dogbox import Dogbox as Dogbox
from .least_squares.lm import LevenbergMarquardt as LevenbergMarquardt
from .least_squares.trf import TrustRegionReflective as TrustRegionReflective
from .minimize.base import AbstractMinimizer as AbstractMinimizer
from .minimize.first_order import first_order as first_order
from .minimize.lbfgsb import LBFGSB as LBFGSB
