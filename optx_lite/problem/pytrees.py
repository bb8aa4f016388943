"""Pytrees in and out: everything below the front door works on flat vectors.

A list or tuple of plain numbers is an array, as for SciPy; every other container is a pytree
whose leaves keep their shapes and dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, DTypeLike, PyTree

from ..jax_support.types import TreeDef


def as_array_or_tree(value: PyTree) -> PyTree:
    """Read numbers, nested lists of numbers and arrays as one array; leave pytrees alone.

    What NumPy reads as one vector is one, as a pandas.Series.
    """
    if is_numbers(value):
        return (
            jnp.stack([jnp.asarray(v) for v in value]) if _has_array(value) else np.asarray(value)
        )
    if _is_like_a_vector(value):
        return np.asarray(value)
    return value


def _is_like_a_vector(value: PyTree) -> bool:
    known = isinstance(value, (np.ndarray, np.generic, jax.Array))
    if known or not hasattr(value, "__array__") or not jax.tree_util.all_leaves([value]):
        return False
    array = np.asarray(value)
    return array.ndim == 1 and array.dtype.kind in "biuf"


def is_numbers(value: PyTree) -> bool:
    """Whether this is a list or tuple (not a named one) with nothing but numbers in it."""
    if type(value) not in (list, tuple) or not value:
        return False
    return all(
        is_numbers(v) if type(v) in (list, tuple) else jnp.ndim(v) == 0 for v in value if _known(v)
    ) and all(_known(v) for v in value)


def _known(value: object) -> bool:
    return isinstance(value, (int, float, complex, np.generic, np.ndarray, jax.Array, list, tuple))


def _has_array(value: Iterable[object]) -> bool:
    return any(isinstance(v, jax.Array) for v in value)


def widest(dtypes: Iterable[DTypeLike]) -> DTypeLike:
    """The floating dtype with the most bits, under any of JAX's rules of promotion."""
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def ravel(tree: PyTree, dtype: DTypeLike) -> PyTree:
    """All leaves, one after the other, in one vector of the given dtype.

    Numbers that are on the host stay there: NumPy takes a microsecond where a call of JAX
    takes fifty, and a compiled function accepts either.
    """
    leaves = jax.tree.leaves(tree)
    xp = jnp if any(isinstance(leaf, jax.Array) for leaf in leaves) else np
    if len(leaves) == 1:
        (leaf,) = leaves
        if isinstance(leaf, jax.Array) and leaf.ndim == 1 and leaf.dtype == dtype:
            return leaf
        return xp.ravel(xp.asarray(leaf)).astype(dtype)
    return xp.concatenate([xp.ravel(xp.asarray(leaf)).astype(dtype) for leaf in leaves])


class Unravel:
    """Vector to pytree; hashable, so that it may stand in a compiled function's key."""

    def __init__(self, treedef: TreeDef, leaves: tuple[tuple[tuple[int, ...], DTypeLike], ...]):
        self.treedef = treedef
        self.leaves = leaves

    @classmethod
    def like(cls, tree: PyTree) -> Unravel:
        """For trees of the given tree's structure, shapes and dtypes."""
        leaves, treedef = jax.tree.flatten(tree)
        return cls(treedef, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))

    def __call__(self, vector: Array) -> PyTree:
        """Cut the vector into leaves, of the tree's own dtypes.

        A vector that is not of real numbers keeps its dtype: a complex step, a mask.
        """
        dtype = None if jnp.issubdtype(vector.dtype, jnp.floating) else vector.dtype
        if len(self.leaves) == 1:
            ((shape, own),) = self.leaves
            if vector.shape != shape:
                vector = vector.reshape(shape)
            if vector.dtype != (dtype or own):
                vector = vector.astype(dtype or own)
            return jax.tree.unflatten(self.treedef, [vector])
        pieces = jnp.split(vector, list(np.cumsum(self.sizes)[:-1]))
        return jax.tree.unflatten(
            self.treedef,
            [
                jnp.reshape(piece, shape).astype(dtype or own)
                for piece, (shape, own) in zip(pieces, self.leaves, strict=True)
            ],
        )

    def shapes(self, dtype_of: Callable[[DTypeLike], DTypeLike] = lambda own: own) -> PyTree:
        """The tree's shapes and dtypes, or other dtypes made of them."""
        leaves = [jax.ShapeDtypeStruct(shape, dtype_of(own)) for shape, own in self.leaves]
        return jax.tree.unflatten(self.treedef, leaves)

    @property
    def is_flat(self) -> bool:
        """Whether the tree is one vector, as for SciPy, and not a container of one."""
        return jax.tree_util.treedef_is_leaf(self.treedef) and len(self.leaves[0][0]) == 1

    @property
    def sizes(self) -> list[int]:
        """The number of entries of each leaf."""
        return [int(np.prod(shape)) for shape, _ in self.leaves]

    def _key(self) -> Hashable:
        return self.treedef, self.leaves

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unravel) and self._key() == other._key()


def is_concrete(tree: PyTree) -> bool:
    """Whether no leaf is a tracer."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def as_dtype(value: PyTree, dtype: DTypeLike) -> PyTree:
    """The value as an array of this dtype, on the host if it came from there."""
    return value.astype(dtype) if isinstance(value, jax.Array) else np.asarray(value, dtype)
