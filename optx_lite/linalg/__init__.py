"""Small dense factorisations, written so that the lanes of a `vmap` go through them together."""

from .box import evaluate_model as evaluate_model
from .box import solve_in_box as solve_in_box
from .conjugate_gradient import equilibrate as equilibrate
from .conjugate_gradient import solve_by_products as solve_by_products
from .norms import dot as dot
from .norms import norm as norm
from .norms import reciprocal as reciprocal
from .norms import safe_divide as safe_divide
from .norms import safe_sqrt as safe_sqrt
from .norms import unit_of as unit_of
from .operators import AbstractOperator as AbstractOperator
from .positive import solve_positive as solve_positive
from .scale import exponent as exponent
from .scale import next_power_of_two as next_power_of_two
from .scale import power_of_two as power_of_two
from .symmetric import SymmetricFactors as SymmetricFactors
from .symmetric import factor_symmetric as factor_symmetric
from .symmetric import solve_definite as solve_definite
from .triangular import diagonal as diagonal
from .triangular import solve_transposed as solve_transposed
from .triangular import solve_upper as solve_upper
from .triangular import triangularize as triangularize
from .trust_region_step import CorrectionStep as CorrectionStep
from .trust_region_step import solve_trust_region as solve_trust_region
