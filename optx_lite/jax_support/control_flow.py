"""JAX's control flow, for use inside `jax.shard_map` too.

There the type of an array says over which axes of the mesh its values vary. Both branches of a
`cond`, and what a loop's body takes and gives, must agree in that, so a constant that meets data
of a device has to be declared as varying. The functions here do so: they look at the types that
come out, and cast what comes in. Outside of `shard_map` they are JAX's own.

In JAX's explicit mode the type of an array says how it is sharded, and many operations are
refused as ambiguous. A solve has no opinion on these: `in_auto_mode` leaves them to the compiler.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from .types import Count

Axes = frozenset[str]
LARGE = 10_000  # numbers of an array: a pass over it takes longer than a branch
Tree = TypeVar("Tree")
Out = TypeVar("Out")


def varying_axes(value: PyTree) -> Axes:
    """The axes of the mesh over which an array varies; none outside of `jax.shard_map`."""
    kind = value if hasattr(value, "manual_axis_type") else jax.typeof(value)
    return getattr(getattr(kind, "manual_axis_type", None), "varying", frozenset())


def vary_with(tree: Tree, others: PyTree) -> Tree:
    """A pytree of arrays or shapes, varying over all axes over which any leaf of others does."""
    axes = frozenset[str]().union(*map(varying_axes, jax.tree.leaves(others)))
    return jax.tree.map(lambda leaf: _cast(leaf, axes), tree) if axes else tree


def vary_like(tree: Tree, like: PyTree) -> Tree:
    """A pytree whose leaves vary at least as those of another of its structure."""
    return jax.tree.map(lambda leaf, other: _cast(leaf, varying_axes(other)), tree, like)


def zeros_like(tree: Tree) -> Tree:
    """A pytree of zeros, which vary as the arrays do."""
    return vary_like(jax.tree.map(jnp.zeros_like, tree), tree)


def where(which: Array, new: Tree, old: Tree) -> Tree:
    """`jnp.where` of two pytrees; ``which`` has the first axes of their arrays."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(which.reshape(*which.shape, *[1] * (a.ndim - which.ndim)), a, b)

    return jax.tree.map(pick, new, old)


def cond(pred: Array, true_fun: Callable[[], Tree], false_fun: Callable[[], Tree]) -> Tree:
    """`jax.lax.cond`, without operands.

    Within `shard_map` both branches are computed, as under `vmap`: what a branch captures cannot
    be cast, and JAX batches no cond which casts it.
    """
    if not in_shard_map():
        return lax.cond(pred, true_fun, false_fun)
    return jax.tree.map(lambda a, b: jnp.where(pred, a, b), true_fun(), false_fun())


def where_or_cond(pred: Array, new: Callable[[], Tree], old: Tree, size: int) -> Tree:
    """``new()`` where ``pred`` holds, else ``old``; a branch if what it saves is of this size.

    XLA compiles a loop over small arrays to one function, where a `cond` costs more than it saves.
    """
    if size < LARGE:
        return jax.tree.map(lambda a, b: jnp.where(pred, a, b), new(), old)
    return cond(pred, new, lambda: old)


def while_loop(
    condition: Callable[[Tree], Array], body: Callable[[Tree], Tree], init: Tree
) -> Tree:
    """`jax.lax.while_loop`."""
    if not in_shard_map():
        return lax.while_loop(condition, body, init)
    axes = _fixed_point(body, init, lambda carry: varying_axes(jax.eval_shape(condition, carry)))
    return lax.while_loop(
        condition, lambda carry: _cast_all(body(carry), axes), _cast_all(init, axes)
    )


def fori_loop(lower: Count, upper: Count, body: Callable[[PyTree, Tree], Tree], init: Tree) -> Tree:
    """`jax.lax.fori_loop`."""
    if not in_shard_map():
        return lax.fori_loop(lower, upper, body, init)
    axes = _fixed_point(lambda carry: body(lower, carry), init)
    return lax.fori_loop(
        lower, upper, lambda i, carry: _cast_all(body(i, carry), axes), _cast_all(init, axes)
    )


def scan(
    body: Callable[[Tree, PyTree], tuple[Tree, Out]],
    init: Tree,
    xs: PyTree,
    length: int | None = None,
    reverse: bool = False,
) -> tuple[Tree, Out]:
    """`jax.lax.scan`."""
    if not in_shard_map():
        return lax.scan(body, init, xs, length=length, reverse=reverse)
    first = jax.tree.map(lambda leaf: leaf[0], xs)
    axes = _fixed_point(lambda carry: body(carry, first)[0], init)

    def cast_body(carry: PyTree, x: Any) -> tuple[PyTree, PyTree]:
        carry, y = body(carry, x)
        return _cast_all(carry, axes), y

    return lax.scan(cast_body, _cast_all(init, axes), xs, length=length, reverse=reverse)


def in_shard_map() -> bool:
    """Whether arrays here are the parts that devices have."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _cast(leaf: PyTree, axes: Axes) -> PyTree:
    missing = tuple(sorted(axes - varying_axes(leaf)))
    if not missing:
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda leaf: _cast(leaf, axes), leaf)
    return lax.pcast(leaf, missing, to="varying")


def _cast_all(tree: Tree, axes: list[Axes]) -> Tree:
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, map(_cast, leaves, axes))


def _union(a: PyTree, b: PyTree, all_: Axes = frozenset()) -> list[Axes]:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return [varying_axes(x) | varying_axes(y) | all_ for x, y in pairs]


def _fixed_point(
    body: Callable, carry: PyTree, all_: Callable[[PyTree], Axes] = lambda _: frozenset()
) -> list[Axes]:
    """The axes over which a carry varies before and after the body."""
    while True:
        axes = _union(carry, jax.eval_shape(body, carry), all_(carry))
        if axes == [varying_axes(leaf) for leaf in jax.tree.leaves(carry)]:
            return axes
        carry = _cast_all(carry, axes)


def explicit_mesh(value: PyTree) -> AbstractMesh | None:
    """The mesh, with explicit axes, that stands in the type of an array; None if there is none."""
    kind = value if isinstance(value, jax.core.AbstractValue) else jax.typeof(value)
    mesh = getattr(getattr(kind, "sharding", None), "mesh", None)
    return mesh if mesh is not None and AxisType.Explicit in mesh.axis_types else None


def in_explicit_mode() -> bool:
    """Whether operations here look at the shardings in types."""
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def in_mesh_of(leaves: PyTree) -> contextlib.AbstractContextManager:
    """A context in which arrays whose types name a mesh meet that one, outside of `set_mesh` too.

    JAX makes arrays of constants in the mesh of the context, and mixes no two meshes.
    """
    mesh = next((mesh for mesh in map(explicit_mesh, leaves) if mesh is not None), None)
    if mesh is None or not jax.sharding.get_abstract_mesh().empty:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh)


def shard_like(value: Array, like: Array) -> Array:
    """An array, in explicit mode sharded as another of its shape."""
    if explicit_mesh(like) is None:
        return value
    return jax.sharding.reshard(value, jax.typeof(like).sharding)


def in_auto_mode(
    fun: Callable[..., PyTree],
    leaves: PyTree,
    spec_of: Callable[[jax.ShapeDtypeStruct], PartitionSpec],
) -> PyTree:
    """``fun(*leaves)`` with all axes of the mesh automatic.

    ``spec_of`` an output's shape says how it is to be sharded.
    """
    mesh = next((mesh for mesh in map(explicit_mesh, leaves) if mesh is not None), None)
    if mesh is None:
        return fun(*leaves)
    replicated = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(jax.sharding.auto_axes(fun, out_sharding=replicated), *leaves)
    shardings = jax.tree.map(lambda shape: NamedSharding(mesh, spec_of(shape)), shapes)
    return jax.sharding.auto_axes(fun, out_sharding=shardings)(*leaves)


def explicit_spec(value: PyTree) -> PartitionSpec:
    """How an array is sharded, as far as its type says; the leading axis alone."""
    if explicit_mesh(value) is None:
        return PartitionSpec()
    return PartitionSpec(*jax.typeof(value).sharding.spec[:1])
