"""A solve whose derivative is not that of its iterations: the custom rule that all families share.

What differs is in a `Rule`: how to run, and the linear system that gives the tangents of the
answer. Its tangents are linear in those of the inputs and can be transposed, so that jvp, vjp,
jacfwd, jacrev, hessian and vmap of each work.
"""

from __future__ import annotations

import abc
import dataclasses
import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, PyTree

from ..jax_support.control_flow import in_mesh_of, vary_like
from ..jax_support.types import TreeDef
from .callbacks import is_staged


@dataclasses.dataclass(frozen=True)
class Moving:
    """The leaves of a solve's inputs, of which some move.

    Attributes
    ----------
    leaves : list of arrays
        All of them.
    places : tuple of int
        The numbers of those that move.
    dots : list of arrays
        The tangents of those.
    """

    leaves: list[Array]
    places: tuple[int, ...]
    dots: list[Array]

    @property
    def values(self) -> list[Array]:
        """The leaves that move."""
        return [self.leaves[place] for place in self.places]

    def with_values(self, values: list[Array]) -> list[Array]:
        """All leaves, with others for those that move."""
        leaves = list(self.leaves)
        for place, value in zip(self.places, values, strict=True):
            leaves[place] = value
        return leaves

    def fixed(self) -> Moving:
        """The same leaves as constants."""
        return dataclasses.replace(self, leaves=lax.stop_gradient(self.leaves))


@dataclasses.dataclass(frozen=True)
class Rule(abc.ABC):
    """How a solve runs and how its answer moves; a hashable constant of compiled code.

    Attributes
    ----------
    treedef : PyTreeDef
        Of the solve's inputs; their leaves are all that it depends on.
    """

    treedef: TreeDef

    @abc.abstractmethod
    def run(self, leaves: list[Array]) -> PyTree:
        """The answer, a pytree of arrays."""

    @abc.abstractmethod
    def tangents(self, answer: PyTree, moving: Moving) -> PyTree:
        """Tangents of the answer's floating parts, in a pytree of its structure; None for 0."""

    def inputs(self, leaves: list[PyTree]) -> PyTree:
        """The solve's inputs, with these leaves."""
        return jax.tree.unflatten(self.treedef, leaves)


def differentiable(rule: Rule, leaves: list[PyTree]) -> PyTree:
    """The answer of a solve, with the derivative by its inputs' leaves that the rule gives."""
    if not any(isinstance(leaf, Tracer) for leaf in leaves):
        return _run(rule, leaves)  # nothing to differentiate
    return with_derivative(rule, _run(rule, jax.tree.map(lax.stop_gradient, leaves)), leaves)


def inputs_of_a_rule(leaves: list[PyTree]) -> list[PyTree]:
    """Leaves that a custom rule takes: JAX stages the lanes of a NumPy array out in none."""
    if not is_staged():
        return leaves
    return [jnp.copy(leaf) if isinstance(leaf, Tracer) else leaf for leaf in leaves]


def with_derivative(rule: Rule, answer: PyTree, leaves: list[PyTree]) -> PyTree:
    """An answer, a constant so far, with the derivative by the leaves that the rule gives."""
    leaves = inputs_of_a_rule(leaves)
    floats, others = eqx.partition(answer, eqx.is_inexact_array)
    return eqx.combine(_with_derivative(rule, floats, others, leaves), others)


@ft.partial(jax.jit, static_argnums=0)
def _run(rule: Rule, leaves: list[Array]) -> PyTree:
    return rule.run(leaves)


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_derivative(rule: Rule, floats: PyTree, others: PyTree, leaves: list[Array]) -> PyTree:
    return floats


def _with_derivative_jvp(rule: Rule, primals: PyTree, tangents: PyTree) -> PyTree:
    floats, others, leaves = primals
    floats = _with_derivative(rule, floats, others, leaves)
    places = tuple(
        i
        for i, (leaf, dot) in enumerate(zip(leaves, tangents[2], strict=True))
        if not isinstance(dot, SymbolicZero) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    )
    dots = [tangents[2][place] for place in places]
    with in_mesh_of(leaves):
        return floats, _tangents(rule, places, floats, others, leaves, dots)


_with_derivative.defjvp(_with_derivative_jvp, symbolic_zeros=True)


@ft.partial(jax.jit, static_argnums=(0, 1))
def _tangents(
    rule: Rule,
    places: tuple[int, ...],
    floats: PyTree,
    others: PyTree,
    leaves: list[Array],
    dots: list[Array],
) -> PyTree:
    moved = rule.tangents(eqx.combine(floats, others), Moving(leaves, places, dots))
    d_floats = jax.tree.map(
        lambda leaf, dot: jnp.zeros_like(leaf) if dot is None else dot, floats, moved
    )
    return vary_like(d_floats, floats)
