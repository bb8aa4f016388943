"""How the Jacobian of a residual function is computed, and how to check one."""

from .autodiff import Forward as Forward
from .autodiff import Gradient as Gradient
from .autodiff import Reverse as Reverse
from .base import AbstractJacobian as AbstractJacobian
from .comparison import DerivativeCheck as DerivativeCheck
from .complex_step import ComplexStep as ComplexStep
from .finite_difference import FiniteDifference as FiniteDifference
from .schemes import named as named
from .schemes import resolve as resolve
from .schemes import traced as traced
from .user import UserJacobian as UserJacobian
