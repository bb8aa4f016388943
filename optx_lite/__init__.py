"""SciPy's optimisers in JAX: inside jit, vmap and grad, over pytrees, differentiable."""

from . import elementwise as elementwise
from ._build import least_squares_problem as least_squares_problem
from ._implicit import ImplicitAdjoint as ImplicitAdjoint
from ._implicit import UnrolledAdjoint as UnrolledAdjoint
from ._inverse_hessian import LbfgsInvHessProduct as LbfgsInvHessProduct
from ._least_squares import least_squares as least_squares
from ._minimize import fmin_l_bfgs_b as fmin_l_bfgs_b
from ._minimize import minimize as minimize
from ._minimize_result import MinimizeResult as MinimizeResult
from ._minimize_scalar import minimize_scalar as minimize_scalar
from ._objective import minimization_problem as minimization_problem
from ._problem import LeastSquaresProblem as LeastSquaresProblem
from ._problem import MinimizationProblem as MinimizationProblem
from ._result import Result as Result
from ._run import run as run
from ._transformation import lbfgsb as lbfgsb
from .derivatives import approx_derivative as approx_derivative
from .derivatives import check_derivative as check_derivative
from .solvers import LBFGSB as LBFGSB
from .solvers import Dogbox as Dogbox
from .solvers import LevenbergMarquardt as LevenbergMarquardt
from .solvers import TrustRegionReflective as TrustRegionReflective

__version__ = "0.1.0"
