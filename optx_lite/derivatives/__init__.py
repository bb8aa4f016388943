"""How the Jacobian of a residual function is had, and how to check one."""

from .approx import approx_derivative as approx_derivative
from .autodiff import Forward as Forward, Reverse as Reverse
from .base import AbstractJacobian as AbstractJacobian
from .check import check_derivative as check_derivative, DerivativeCheck as DerivativeCheck
from .complex_step import ComplexStep as ComplexStep
from .finite_difference import FiniteDifference as FiniteDifference
from .resolve import resolve as resolve
from .user import UserJacobian as UserJacobian
