"""The machines: one algorithm a file, all with ``init(problem, x0)`` and ``step(problem, state)``."""

from ._base import AbstractSolver as AbstractSolver
from .dogbox import Dogbox as Dogbox
from .lm import LevenbergMarquardt as LevenbergMarquardt
from .trf import TrustRegionReflective as TrustRegionReflective
