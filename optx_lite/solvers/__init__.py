"""The machines, one algorithm a file: ``init(problem, x0)``, ``step(problem, state)``."""

from ._base import AbstractSolver as AbstractSolver
from .dogbox import Dogbox as Dogbox
from .lbfgsb import LBFGSB as LBFGSB
from .lm import LevenbergMarquardt as LevenbergMarquardt
from .trf import TrustRegionReflective as TrustRegionReflective
