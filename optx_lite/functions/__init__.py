"""A Python function as a value: traced, its constants inputs, comparable by what it computes."""

from .jitted import is_jitted
from .lifted import Lifted, communicates, inputs
from .pointwise import Pointwise, pointwise
from .traced import lift

__all__ = ["Lifted", "Pointwise", "communicates", "inputs", "is_jitted", "lift", "pointwise"]
