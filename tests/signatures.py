"""The package's signatures are checked at each call: the kinds of arguments, and their shapes.

`install` comes before anything imports the package. Names of dimensions agree within a call:
(n,) beside (m, n) is the same n. Under `vmap` an array's shape is that of a lane.
"""

import jaxtyping

# Below the front doors, which read whatever a user hands them.
CHECKED = ["linalg", "derivatives", "problem", "solvers", "statistics"]


class _WithShapeAndDtype(type):
    def __instancecheck__(cls, value):
        return hasattr(value, "shape") and hasattr(value, "dtype")


class AnyArray(metaclass=_WithShapeAndDtype):
    """JAX's arrays, NumPy's, and what JAX makes of those when it traces a function."""


def install():
    """Check each function of these folders when it is called."""
    jaxtyping.Array = AnyArray
    folders = [f"optx_lite.{folder}" for folder in CHECKED]
    jaxtyping.install_import_hook(folders, "beartype.beartype")
