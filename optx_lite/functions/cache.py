"""One structure for all functions that compute the same, as long as any of them is in use."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from jax.sharding import AbstractMesh
from jaxtyping import PyTree

from ..jax_support.control_flow import explicit_mesh
from ..jax_support.types import TreeDef
from .constants import LiftedJaxpr, Number
from .jax_internals import ClosedJaxpr, Jaxpr
from .mesh import without_mesh
from .structure import structure_key


class Structure:
    """What stays the same when the data change: the jaxpr and the structure of its result.

    Structures that compute the same are one and the same object while any is in use (see
    `structure`), so that comparing them, as each call of a compiled function does, is free.

    Attributes
    ----------
    jaxpr : Jaxpr
        Constants first, then the arguments' leaves.
    out_tree : PyTreeDef
        Of the result.
    in_avals, out_avals : tuple
        Shapes and dtypes of the leaves of arguments and result.
    numbers : tuple of (Number, int)
        The last constants are vectors with so many numbers each.
    mesh : AbstractMesh or None
        Under which it was traced, if the types say.

    """

    # fmt: off
    __slots__ = (
        "__weakref__", "_without_mesh", "in_avals", "jaxpr", "key", "mesh", "numbers", "out_avals",
        "out_tree",
    )
    # fmt: on

    def __init__(
        self,
        key: tuple,
        jaxpr: Jaxpr,
        out_tree: TreeDef,
        avals: tuple[tuple[PyTree, ...], tuple[PyTree, ...]],
    ):
        self.key = key
        self.jaxpr = jaxpr
        self.out_tree = out_tree
        self.in_avals, self.out_avals = avals
        self.numbers: tuple[tuple[Number, int], ...] = key[-1]
        self.mesh = _mesh_of(jaxpr)
        self._without_mesh: Jaxpr | None = None

    @property
    def without_mesh(self) -> Jaxpr:
        """The jaxpr for use where the axes of the mesh are automatic."""
        if self._without_mesh is None:
            self._without_mesh = without_mesh(self.jaxpr)
        return self._without_mesh

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Structure) and self.key == other.key)

    def __repr__(self) -> str:
        return f"Structure({len(self.jaxpr.eqns)} equations)"

    def __copy__(self) -> Structure:
        return self

    def __deepcopy__(self, _: Any) -> Structure:
        return self  # nothing in it changes

    def __reduce__(self) -> PyTree:
        raise TypeError(
            "A problem cannot be pickled, since it holds a traced function: pickle the function "
            "and its arguments, and make the problem of them anew. Results can be pickled."
        )


def _mesh_of(jaxpr: Jaxpr) -> AbstractMesh | None:
    variables = [*jaxpr.constvars, *jaxpr.invars, *jaxpr.outvars]
    meshes = (explicit_mesh(v.aval) for v in variables)
    return next((mesh for mesh in meshes if mesh is not None), None)


_STRUCTURES: weakref.WeakValueDictionary[tuple, Structure] = weakref.WeakValueDictionary()
_LOCK = threading.RLock()


def structure_of(parts: LiftedJaxpr, closed: ClosedJaxpr, out_tree: TreeDef) -> Structure:
    """That of a traced function: the one in use, if there is one which computes the same."""
    numbers = tuple((kind, len(values)) for kind, values in parts.numbers)
    with _LOCK:
        key: tuple = structure_key(parts.jaxpr), out_tree, numbers
        cached = _STRUCTURES.get(key)
        if cached is None:
            avals = tuple(closed.in_avals), tuple(closed.out_avals)
            cached = _STRUCTURES[key] = Structure(key, parts.jaxpr, out_tree, avals)
        return cached
