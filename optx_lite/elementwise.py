"""Minima and roots of arrays of scalar functions: ``scipy.optimize.elementwise`` in JAX."""

from .api.elementwise import bracket_minimum as bracket_minimum
from .api.elementwise import bracket_root as bracket_root
from .api.elementwise import find_minimum as find_minimum
from .api.elementwise import find_root as find_root
