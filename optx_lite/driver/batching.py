"""Many solves at once: the lanes of a `vmap`, in chunks that fit into the cache.

Under `vmap` a while loop turns until its slowest lane is done, and every turn touches the
state of all lanes. Ten thousand lanes at once are slow twice: each turn goes through main
memory, and all wait for the slowest of ten thousand. In chunks of a few lanes the state stays in
the processor's cache, and a chunk waits only for the slowest of its own. The lanes of
nested `vmap`s are lanes of one. On an accelerator, which is fastest with all lanes at once, there
are no chunks.

Lanes that are sharded over devices stay where they are: each device goes through the chunks of
its own lanes, without waiting for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ..jax_support.control_flow import explicit_spec, in_auto_mode, in_shard_map
from ..jax_support.types import Count

CACHE = 128 * 1024  # bytes of state that may be in work at a time: what stays near a core
# XLA compiles a loop over small arrays to one function; one over larger arrays it runs operation
# by operation, through its threads. 10,000 fits of 4 parameters to 50 points took 111 ms of CPU by
# 16 lanes, 125 by 32 and 250 by 33 (JAX 0.12; in 0.10.2 346 by 16, 245 by 32 and 200 by 64).
LANES = 16 if jax.__version_info__ >= (0, 11) else 10**9


def lanes_at_a_time(lane_bytes: int) -> int:
    """The most lanes of a chunk, if each works in ``lane_bytes`` of memory."""
    return max(1, min(LANES, CACHE // lane_bytes))


def in_chunks(fun: Callable, lane_bytes: int, listened: bool = False) -> Callable:
    """``fun(spare, *leaves)`` as a function of the leaves, which under `vmap` goes by chunks.

    ``spare`` says whether a lane is a copy that only fills up a chunk; ``lane_bytes``: memory
    that one lane works in; ``listened``: whether ``fun`` calls the host. No derivative passes
    through; that is the business of the rule around the whole solve.
    """
    most = lanes_at_a_time(lane_bytes)
    form = custom_vmap(lambda *leaves: fun(np.False_, *leaves))

    @form.def_vmap
    def rule(count: int, in_batched: list[bool], *leaves: PyTree) -> tuple[PyTree, PyTree]:
        lanes = _Lanes(fun, most, tuple(in_batched), listened)
        out = lanes.mergeable(count)(*leaves)
        return out, jax.tree.map(lambda _: True, out)

    return form


class _Lanes:
    """A function on many lanes; the first axis of each batched leaf counts them."""

    def __init__(self, fun: Callable, most: int, batched: tuple[bool, ...], listened: bool):
        self.fun = fun
        self.most = most
        self.batched = batched
        self.listened = listened

    def mergeable(self, count: Count) -> Callable:
        """All lanes, as a function which under another `vmap` takes that one's lanes, too."""
        form = custom_vmap(self.in_auto_mode)

        @form.def_vmap
        def rule(outer: int, in_batched: list[bool], *leaves: PyTree) -> tuple[PyTree, PyTree]:
            flags = [*zip(self.batched, in_batched, strict=True)]
            merged = [
                _merge(leaf, *flag, outer, count) for leaf, flag in zip(leaves, flags, strict=True)
            ]
            lanes = _Lanes(self.fun, self.most, tuple(map(any, flags)), self.listened)
            out = lanes.mergeable(outer * count)(*merged)
            out = jax.tree.map(lambda leaf: leaf.reshape(outer, count, *leaf.shape[1:]), out)
            return out, jax.tree.map(lambda _: True, out)

        return form

    def in_auto_mode(self, *leaves: PyTree) -> PyTree:
        """All lanes, sharded as they are given."""
        specs = [explicit_spec(leaf) for leaf, b in zip(leaves, self.batched, strict=True) if b]
        sharded = next((spec for spec in specs if any(spec)), PartitionSpec())
        return in_auto_mode(self.by_chunks, leaves, lambda _: sharded)

    def by_chunks(self, *leaves: PyTree) -> PyTree:
        """All lanes: at once if they are few, else chunk by chunk."""
        count = self.count(leaves)
        few = not isinstance(count, int) or count <= self.most  # a symbolic size is unknown
        if few or jax.default_backend() != "cpu":
            return self.at_once(*leaves)
        if jax.device_count() > 1 and not self.listened and not in_shard_map():
            return _each_device_its_own(self.chunk_after_chunk, self.batched, leaves)
        return self.chunk_after_chunk(*leaves)

    def count(self, leaves: PyTree) -> PyTree:
        """The number of lanes."""
        return next(leaf.shape[0] for leaf, b in zip(leaves, self.batched, strict=True) if b)

    def at_once(self, *leaves: PyTree, spare: PyTree = None) -> PyTree:
        """All lanes in one loop."""
        axes = [0 if b else None for b in self.batched]
        if spare is None:
            return jax.vmap(lambda *leaves: self.fun(np.False_, *leaves), axes)(*leaves)
        return jax.vmap(self.fun, [0, *axes])(spare, *leaves)

    def chunk_after_chunk(self, *leaves: PyTree) -> PyTree:
        """At most ``most`` lanes in one loop, then the next."""
        count = self.count(leaves)
        chunks = -(-count // self.most)
        size = -(-count // chunks)

        def cut(leaf: PyTree) -> PyTree:
            # The last chunk is filled up with copies of the last lane: one program for all chunks.
            if chunks * size > count:
                filling = jnp.repeat(leaf[-1:], chunks * size - count, axis=0)
                leaf = jnp.concatenate([leaf, filling])
            return leaf.reshape(chunks, size, *leaf.shape[1:])

        def chunk(parts: tuple[PyTree, list[PyTree]]) -> PyTree:
            rest = iter(parts[1])
            whole = [
                next(rest) if b else leaf for leaf, b in zip(leaves, self.batched, strict=True)
            ]
            return self.at_once(*whole, spare=parts[0])

        spare = (jnp.arange(chunks * size) >= count).reshape(chunks, size)
        mapped = [cut(leaf) for leaf, b in zip(leaves, self.batched, strict=True) if b]
        out = lax.map(chunk, (spare, mapped))
        return jax.tree.map(lambda leaf: leaf.reshape(chunks * size, *leaf.shape[2:])[:count], out)


def _merge(
    leaf: PyTree, inner: bool, outer: bool, sizes_outer: PyTree, sizes_inner: PyTree
) -> PyTree:
    """A leaf of ``outer`` and ``inner`` lanes as one of all of them."""
    if not (inner or outer):
        return leaf
    if not outer:
        leaf = leaf[None]
    if not inner:
        leaf = leaf[:, None]
    leaf = jnp.broadcast_to(leaf, (sizes_outer, sizes_inner, *leaf.shape[2:]))
    return leaf.reshape(sizes_outer * sizes_inner, *leaf.shape[2:])


def _each_device_its_own(fun: Callable, batched: tuple[bool, ...], leaves: PyTree) -> PyTree:
    """``fun`` of all lanes; where they are sharded, each device calls it on what it has.

    The compiler alone would let the devices wait for each other in every turn of a loop, and
    collect the lanes of a chunk on one device.
    """
    closed, shape = jax.make_jaxpr(fun, return_shape=True)(*leaves)
    count, batched = len(leaves), (*batched, *[False] * len(closed.consts))

    @custom_partitioning  # which takes no function that has constants in it
    def form(*arguments: PyTree) -> PyTree:
        leaves, consts = arguments[:count], arguments[count:]
        return jax.core.eval_jaxpr(closed.jaxpr, consts, *leaves)

    def on_device(*arguments: PyTree) -> PyTree:
        with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):  # a device is alone
            return jax.tree.leaves(fun(*arguments[:count]))

    def lanes_of(arguments: PyTree) -> PartitionSpec:
        for argument, b in zip(arguments, batched, strict=True):
            spec: Any = getattr(argument.sharding, "spec", ())
            if b and len(spec) and spec[0] is not None:
                return PartitionSpec(spec[0])
        return PartitionSpec()

    def results(mesh: Mesh, arguments: PyTree, result: PyTree) -> PyTree:
        return jax.tree.map(lambda _: NamedSharding(mesh, lanes_of(arguments)), result)

    def partition(mesh: Mesh, arguments: PyTree, result: PyTree) -> PyTree:
        lanes, whole = (
            NamedSharding(mesh, spec) for spec in (lanes_of(arguments), PartitionSpec())
        )
        return (
            mesh,
            on_device,
            results(mesh, arguments, result),
            tuple(lanes if b else whole for b in batched),
        )

    def rule(_: object, arguments: PyTree, result: PyTree) -> str:
        """In the notation of einsum: the lanes are a common axis, all others are by themselves."""
        other = (f"a{i}" for i in range(10**6))
        written = [
            " ".join([*(["lane"] if b else []), *(next(other) for _ in leaf.shape[b:])])
            for leaf, b in zip(
                [*arguments, *result], [*batched, *[True] * len(result)], strict=True
            )
        ]
        return f"{', '.join(written[: len(batched)])} -> {', '.join(written[len(batched) :])}"

    form.def_partition(partition, results, sharding_rule=rule)
    return jax.tree.unflatten(jax.tree.structure(shape), form(*leaves, *closed.consts))
