"""How the Jacobian of a residual function is had, and how to check one."""

from .approx import approx_derivative as approx_derivative
from .autodiff import Forward as Forward
from .autodiff import Reverse as Reverse
from .base import AbstractJacobian as AbstractJacobian
from .check import DerivativeCheck as DerivativeCheck
from .check import check_derivative as check_derivative
from .complex_step import ComplexStep as ComplexStep
from .finite_difference import FiniteDifference as FiniteDifference
from .schemes import named as named
from .schemes import resolve as resolve
from .user import UserJacobian as UserJacobian
