"""SciPy's optimisers in JAX: inside jit, vmap and grad, over pytrees, differentiable."""

from . import elementwise as elementwise
from .api.basinhopping import basinhopping as basinhopping
from .api.derivatives import approx_derivative as approx_derivative
from .api.derivatives import check_derivative as check_derivative
from .api.differential_evolution import differential_evolution as differential_evolution
from .api.least_squares import least_squares as least_squares
from .api.minimize import fmin_l_bfgs_b as fmin_l_bfgs_b
from .api.minimize import minimize as minimize
from .api.minimize_scalar import minimize_scalar as minimize_scalar
from .api.multistart import multistart as multistart
from .api.optax_transformation import lbfgsb as lbfgsb
from .api.sample_consensus import sample_consensus as sample_consensus
from .api.starting_points import sample_starts as sample_starts
from .driver.adjoint import AbstractAdjoint as AbstractAdjoint
from .driver.adjoint import ImplicitAdjoint as ImplicitAdjoint
from .driver.adjoint import UnrolledAdjoint as UnrolledAdjoint
from .driver.run import run as run
from .linalg.inverse_hessian import LbfgsInvHessProduct as LbfgsInvHessProduct
from .problem.least_squares import LeastSquaresProblem as LeastSquaresProblem
from .problem.least_squares import least_squares_problem as least_squares_problem
from .problem.minimization import MinimizationProblem as MinimizationProblem
from .problem.minimization import minimization_problem as minimization_problem
from .results.global_search import BasinHoppingResult as BasinHoppingResult
from .results.global_search import ConsensusResult as ConsensusResult
from .results.global_search import DifferentialEvolutionResult as DifferentialEvolutionResult
from .results.global_search import MultistartResult as MultistartResult
from .results.least_squares import Result as Result
from .results.minimize import MinimizeResult as MinimizeResult
from .solvers import LBFGSB as LBFGSB
from .solvers import AbstractLeastSquaresSolver as AbstractLeastSquaresSolver
from .solvers import AbstractMinimizer as AbstractMinimizer
from .solvers import AbstractSolver as AbstractSolver
from .solvers import Dogbox as Dogbox
from .solvers import LevenbergMarquardt as LevenbergMarquardt
from .solvers import TrustRegionReflective as TrustRegionReflective

__version__ = "0.1.0"
