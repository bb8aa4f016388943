"""Small dense factorisations, written so that the lanes of a `vmap` go through them together."""

from ._box import evaluate_model as evaluate_model
from ._box import solve_in_box as solve_in_box
from ._conjugate_gradient import equilibrate as equilibrate
from ._conjugate_gradient import solve_by_products as solve_by_products
from ._norms import dot as dot
from ._norms import norm as norm
from ._norms import reciprocal as reciprocal
from ._norms import safe_divide as safe_divide
from ._norms import safe_sqrt as safe_sqrt
from ._norms import unit_of as unit_of
from ._operators import AbstractOperator as AbstractOperator
from ._positive import solve_positive as solve_positive
from ._scale import exponent as exponent
from ._scale import next_power_of_two as next_power_of_two
from ._scale import power_of_two as power_of_two
from ._symmetric import solve_definite as solve_definite
from ._symmetric import solve_symmetric as solve_symmetric
from ._triangular import diagonal as diagonal
from ._triangular import solve_transposed as solve_transposed
from ._triangular import solve_upper as solve_upper
from ._triangular import triangularize as triangularize
from ._trust_region import Detour as Detour
from ._trust_region import solve_trust_region as solve_trust_region
