"""The types that signatures name, besides those of jaxtyping.

`PyTree` stands for what JAX takes for one: arrays alone, containers of arrays, modules. A static
checker allows anything for it, so its brackets are for readers and for the check in the tests.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Array, PyTree

# A real number: Python's, NumPy's or one that is traced.
Number: TypeAlias = int | float | np.number | Array

# A whole number, likewise.
Count: TypeAlias = int | np.integer | Array

# Lower and upper, each None, a number, an array or a pytree prefix of x; or an object with both.
Bounds: TypeAlias = PyTree

# What the user's function takes besides x: one object, or a tuple of them.
Args: TypeAlias = Any

# A pytree's structure; JAX's own class is no type to a static checker.
TreeDef: TypeAlias = Hashable

# Settings by name.
Options: TypeAlias = dict[str, Any]
