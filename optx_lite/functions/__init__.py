"""A Python function as a value: traced, its constants inputs, comparable by what it computes."""

from .jax_internals import is_jitted
from .kept import kept_with
from .lifted import Lifted, communicates, inputs
from .pointwise import Pointwise, pointwise
from .traced import lift

__all__ = [
    "Lifted",
    "Pointwise",
    "communicates",
    "inputs",
    "is_jitted",
    "kept_with",
    "lift",
    "pointwise",
]
