"""A function as a pytree: what it captured are the leaves, its mathematics is the structure."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jaxtyping import Array, PyTree

from ..jax_support.control_flow import in_explicit_mode, vary_with
from .cache import Structure
from .constants import Number
from .errors import explain_no_derivative
from .jax_internals import names_an_axis, weakly_typed


class Lifted(eqx.Module):
    """A function of pytrees, as a pytree.

    Attributes
    ----------
    consts : tuple of arrays
        What the function captured, of any dtype: arrays, and the tracers of outer
        transformations. After them come the numbers in its code, as vectors.
    structure : Structure
        Static. Equal for functions that compute the same from `consts` and arguments.

    """

    consts: tuple[PyTree, ...]
    structure: Structure = eqx.field(static=True)

    def __call__(self, *args: Any) -> PyTree:
        """Compute the function from arguments of the examples' shapes and dtypes.

        Only their leaves count, in their order; and not those that were constants to `lift`,
        which may be there or not (see `inputs`).
        """
        structure = self.structure
        jaxpr = structure.jaxpr
        if structure.mesh is not None and not in_explicit_mode():
            jaxpr = structure.without_mesh
        try:
            out = jax.core.eval_jaxpr(jaxpr, self._constants(), *self._leaves(args))
        except ValueError as err:
            explain_no_derivative(err)
            raise
        return jax.tree.unflatten(self.structure.out_tree, out)

    def bindings(self, *args: Any) -> tuple[list[PyTree], list[PyTree]]:
        """What the jaxpr's variables stand for: those of constants, then of these arguments."""
        jaxpr, constants = self.structure.jaxpr, self._constants()
        # Which of them JAX itself counts as constants differs between its versions.
        variables = [*jaxpr.constvars, *jaxpr.invars]
        of_constants, of_leaves = variables[: len(constants)], variables[len(constants) :]
        captured = list(zip(of_constants, constants, strict=True))
        return captured, list(zip(of_leaves, self._leaves(args), strict=True))

    @property
    def out_shape(self) -> PyTree:
        """The result's pytree of `jax.ShapeDtypeStruct`, without computing anything."""
        shapes = [
            vary_with(jax.ShapeDtypeStruct(a.shape, a.dtype), a) for a in self.structure.out_avals
        ]
        return jax.tree.unflatten(self.structure.out_tree, shapes)

    def _leaves(self, args: tuple) -> list:
        leaves, avals = inputs(args), self.structure.in_avals
        if len(leaves) != len(avals):
            raise TypeError(f"{len(avals)} arrays expected, not {len(leaves)}")
        return [_as_traced(x, aval) for x, aval in zip(leaves, avals, strict=True)]

    def _constants(self) -> list:
        of_numbers = self.structure.numbers
        arrays = len(self.consts) - len(of_numbers)
        constants = list(self.consts[:arrays])
        for vector, (number, count) in zip(self.consts[arrays:], of_numbers, strict=True):
            constants += _one_by_one(vector, number, count)
        return constants


def _one_by_one(vector: Array, number: Number, count: int) -> list[Array]:
    """The numbers in a vector; they are constants to every derivative."""
    vector = lax.stop_gradient(vector)
    if number.weak_type:
        vector = weakly_typed(vector)
    return [lax.squeeze(part, (0,)) for part in lax.split(vector, (1,) * count)]


def communicates(tree: PyTree) -> bool:
    """Whether a function in a pytree uses other lanes of a `vmap`, as `jax.lax.psum` does."""
    functions = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Lifted))
    return any(
        names_an_axis(effect)
        for function in functions
        if isinstance(function, Lifted)
        for effect in function.structure.jaxpr.effects
    )


def _as_traced(leaf: Any, aval: ShapedArray) -> Array:
    if not isinstance(leaf, jax.Array):
        leaf = jnp.asarray(leaf, None if hasattr(leaf, "dtype") else aval.dtype)
    if leaf.shape != aval.shape or leaf.dtype != aval.dtype:
        raise TypeError(
            f"an argument of shape {aval.shape} and dtype {aval.dtype} expected, "
            f"not of shape {leaf.shape} and dtype {leaf.dtype}"
        )
    return vary_with(leaf, aval)


def inputs(tree: PyTree) -> list:
    """The leaves of a pytree of arguments that a `Lifted` takes.

    Examples
    --------
    >>> inputs({"rate": 0.1, "kind": "slow"})
    [0.1]

    """
    return [leaf for leaf in jax.tree.leaves(tree) if is_dynamic(leaf)]


def is_dynamic(leaf: Any) -> bool:
    """Whether a leaf is an array or a number, and no setting."""
    return isinstance(leaf, _NUMBERS_AND_ARRAYS)


_NUMBERS_AND_ARRAYS = (
    np.ndarray,
    np.generic,
    bool,
    int,
    float,
    complex,
    jax.Array,
    jax.ShapeDtypeStruct,
)
