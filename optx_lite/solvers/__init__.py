"""The machines, one algorithm a file: ``init(problem, x0)``, ``step(problem, state)``."""

from ._base import AbstractSolver as AbstractSolver
from ._minimizer import AbstractMinimizer as AbstractMinimizer
from .dogbox import Dogbox as Dogbox
from .first_order import first_order as first_order
from .lbfgsb import LBFGSB as LBFGSB
from .lm import LevenbergMarquardt as LevenbergMarquardt
from .trf import TrustRegionReflective as TrustRegionReflective
