"""The package's signatures are checked at each call: the kinds of arrays, and their shapes.

`install` comes before anything imports the package. Names of dimensions agree within a call:
(n,) beside (m, n) is the same n. Under `vmap` an array's shape is that of a lane.
"""

import ast
import re
from pathlib import Path

import jaxtyping
from beartype import beartype

PACKAGE = Path(__file__).parents[1] / "optx_lite"
CHECKED = ["linalg", "derivatives", "problem", "solvers", "statistics"]
OF_SHAPES = re.compile(r"\b(Bool|Float|Inexact|Int|Integer|Key|Num|Real|Shaped|UInt)\[")
# What users call gets whatever they give, and its own errors are tested.
PUBLIC = {
    name.asname or name.name
    for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
    if isinstance(node, ast.ImportFrom)
    for name in node.names
}


class _WithShapeAndDtype(type):
    def __instancecheck__(cls, value):
        return hasattr(value, "shape") and hasattr(value, "dtype")


class AnyArray(metaclass=_WithShapeAndDtype):
    """JAX's arrays, NumPy's, and what JAX makes of those when it traces a function."""


def check(function):
    """Of the package, with its signature checked when it is called.

    jaxtyping asks twice: for the arguments, the result being `Any`, and for the result, when the
    arguments need no second look.
    """
    if function.__qualname__ in PUBLIC:
        return function
    hints = {k: hint for k, hint in function.__annotations__.items() if OF_SHAPES.search(str(hint))}
    if "return" in hints:
        hints = {"return": hints["return"]}
    function.__annotations__ = hints
    return beartype(function) if hints else function


def install():
    """Check each function of these folders."""
    jaxtyping.Array = AnyArray
    jaxtyping.install_import_hook([f"optx_lite.{name}" for name in CHECKED], "signatures.check")
