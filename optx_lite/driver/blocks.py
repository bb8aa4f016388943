"""Run a solver on many elements: by blocks that fit the cache, the unfinished packed together.

A while loop turns until its slowest element is done, and every turn touches the state of all. A
million elements at once are slow twice: each turn goes through main memory, and all wait for the
slowest of a million. So they are worked in blocks of about a thousand, whose state stays near the
core, and a block stops when an eighth of it is left. Those left of all blocks are then gathered,
worked in blocks again, and put back; and so on, until none is left. What has ended costs little,
and shapes stay fixed.

Measured on one core, a million elements in float64: with a smooth function blocks take a fifth of
the time of one loop over all, and packing saves a sixth of that; with one that takes some elements
four times as long as others, a sixth, and packing saves a fifth of that. Stopping at a half is
slower; at a quarter, or with blocks of half and twice the size, there is no clear difference.

Elements do not mix, so those of all lanes of a `vmap` are only more elements. On an accelerator,
which takes all of them at once, there are no blocks; and none in a program that is exported for
any number of elements.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.export import is_symbolic_dim
from jaxtyping import Array, DTypeLike, PyTree

from ..jax_support.control_flow import fori_loop, while_loop
from ..jax_support.types import Count
from ..results.elementwise import CONVERGED
from ..solvers.elementwise.base import AbstractElementwiseSolver
from .batching import CACHE

LEFT = 8  # a block stops when this part of it is left


class Task(eqx.Module):
    """A solver and all that it works on; every array is (n,), or () if the same for all."""

    solver: AbstractElementwiseSolver
    fun: Any  # Pointwise
    first: Any  # the same for the first points, which may have another dtype
    points: tuple[PyTree, ...]
    values: tuple[PyTree, ...] | None  # at the points, where they are known
    dtype: DTypeLike = eqx.field(static=True)
    wall: float | None = eqx.field(static=True)

    def begin(self, size: int) -> PyTree:
        """The state of ``size`` elements."""
        points = tuple(
            None if point is None else jnp.broadcast_to(point, (size,)) for point in self.points
        )
        points = self.solver.start(points)
        if self.values is None:
            evaluated = points[: self.solver.EVALUATED]
            values = tuple(self._settle(self.first(point)) for point in evaluated)
        else:
            values = tuple(jnp.broadcast_to(self._settle(v), (size,)) for v in self.values)
        return self.solver.init(tuple(point.astype(self.dtype) for point in points), values)

    def run(self, state: PyTree, left: Count = 0) -> PyTree:
        """Step until no more than ``left`` elements are unfinished."""
        return while_loop(
            lambda state: self.count(state) > left,
            lambda state: self.step(state),
            state,
        )

    def step(self, state: PyTree) -> PyTree:
        """One evaluation for each element."""
        return self.solver.step(lambda x: self._settle(self.fun(x)), state)

    def count(self, state: PyTree) -> Array:
        """How many elements are unfinished."""
        return jnp.sum(self.solver.running(state), dtype=jnp.int32)

    def _settle(self, values: Array) -> Array:
        """Values of the common dtype, behind the wall if there is one."""
        values = values.astype(self.dtype)
        return values if self.wall is None else jnp.where(values < jnp.inf, values, self.wall)


def work_off(task: Task, size: int) -> PyTree:
    """The state in which all ``size`` elements of a task are done."""
    leaves, treedef = jax.tree.flatten(task)
    form = custom_vmap(lambda *leaves: _by_blocks(jax.tree.unflatten(treedef, leaves), size))

    @form.def_vmap
    def rule(lanes: int, in_batched: list[PyTree], *leaves: PyTree) -> tuple[PyTree, PyTree]:
        one_row = [
            _spread(leaf, batched, lanes, size)
            for leaf, batched in zip(leaves, in_batched, strict=True)
        ]
        state = work_off(jax.tree.unflatten(treedef, one_row), lanes * size)

        def by_lanes(leaf: Array) -> Array:
            return jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], lanes, size), -2, 0)

        return jax.tree.map(by_lanes, state), jax.tree.map(lambda _: True, state)

    return form(*leaves)


def _spread(leaf: Array, batched: bool, lanes: int, size: int) -> Array:
    """A leaf of many lanes as one of so many more elements."""
    if not batched and leaf.ndim == 0:
        return leaf
    rows = leaf if batched else leaf[None]
    if rows.ndim == 1:
        rows = rows[:, None]
    return jnp.broadcast_to(rows, (lanes, size)).reshape(-1)


def _by_blocks(task: Task, size: int) -> PyTree:
    if is_symbolic_dim(size) or jax.default_backend() != "cpu":
        return task.run(task.begin(size))  # pyright: ignore[reportArgumentType]
    shapes = jax.eval_shape(lambda: task.begin(size))
    row = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)) // max(size, 1)
    block = max(8, 1 << (CACHE // max(row, 1)).bit_length() - 1)
    if size <= block:
        return task.run(task.begin(size))
    return _Blocks(task, size, block).run(shapes)


class _Blocks:
    """The same for more elements than are worked at a time."""

    def __init__(self, task: Task, size: int, block: int):
        self.task = task
        self.size = size
        self.block = block
        blocks = -(-size // block)
        self.room = -(-blocks // LEFT) * block  # for what a first pass leaves

    def run(self, shapes: PyTree) -> PyTree:
        """All blocks once, then what they left, as often as something is left."""
        state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        state = fori_loop(0, -(-self.size // self.block), self._pass, state)
        running = self.task.solver.running(state)
        (places,) = jnp.nonzero(running, size=self.room, fill_value=self.size)
        state, _ = while_loop(
            lambda carry: carry[1][0] < self.size,
            lambda carry: self._again(*carry),
            (state, places.astype(jnp.int32)),
        )
        return state

    def _pass(self, number: Count, state: PyTree) -> PyTree:
        """Begin and run a block. The last one begins early enough to be as large as the others."""
        at = jnp.minimum(number * self.block, self.size - self.block)
        task = _cut(self.task, lambda leaf: lax.dynamic_slice(leaf, (at,), (self.block,)))
        part = task.run(task.begin(self.block), self.block // LEFT)

        def put(whole: Array, part: Array) -> Array:
            return lax.dynamic_update_slice_in_dim(whole, part, at, axis=-1)

        return jax.tree.map(put, state, part)

    def _again(self, state: PyTree, places: Array) -> tuple[PyTree, Array]:
        """Run the elements at these places in blocks of their own."""
        count = jnp.sum(places < self.size)
        # The last block of all has nothing to leave them to.
        left = jnp.where(count <= self.block, 0, self.block // LEFT)

        def run(number: Count, state: PyTree) -> PyTree:
            at = lax.dynamic_slice(places, (number * self.block,), (self.block,))
            task = _cut(self.task, lambda leaf: leaf.at[at].get(mode="clip"))
            part = jax.tree.map(lambda leaf: leaf.at[..., at].get(mode="clip"), state)
            status = jnp.where(at < self.size, part.status, CONVERGED)  # at work: places only
            part = eqx.tree_at(lambda state: state.status, part, status)
            part = task.run(part, left)

            return jax.tree.map(
                lambda whole, part: whole.at[..., at].set(part, mode="drop"), state, part
            )

        state = fori_loop(0, -(-count // self.block), run, state)
        wanted = self.task.solver.running(state).at[places].get(mode="fill", fill_value=False)
        (chosen,) = jnp.nonzero(wanted, size=self.room, fill_value=self.room)
        return state, places.at[chosen].get(mode="fill", fill_value=self.size)


def _cut(task: Task, how: PyTree) -> Task:
    """The task of some of its elements."""
    return jax.tree.map(lambda leaf: how(leaf) if jnp.ndim(leaf) else leaf, task)
