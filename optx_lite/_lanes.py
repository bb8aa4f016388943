"""Many solves at once: the lanes of a `vmap`, in chunks that fit into the cache.

Under `vmap` a while loop turns until its slowest lane is done, and every turn touches the
state of all lanes. Ten thousand lanes at once are slow twice: each turn goes through main
memory, and all wait for the slowest of ten thousand. In chunks of some hundred lanes the state
stays in the processor's cache, and a chunk waits only for the slowest of its own. On an
accelerator, which wants the lanes all at once, there are no chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

CACHE = 128 * 1024  # bytes of state that may be in work at a time: what stays near a core


def in_chunks(fun: Callable, lane_bytes: int) -> Callable:
    """``fun`` of arrays, which under `vmap` goes through its lanes chunk by chunk.

    ``lane_bytes``: memory that one lane works in. No derivative passes through; that is the
    business of the rule around the whole solve.
    """
    form = custom_vmap(fun)

    @form.def_vmap
    def rule(axis_size: int, in_batched: list[Any], *args: Any) -> tuple[Any, Any]:
        leaves, treedef = jax.tree.flatten(args)
        batched = jax.tree.leaves(in_batched)

        def lanes(*mapped: Any) -> Any:
            rest = iter(mapped)
            full = [next(rest) if b else leaf for leaf, b in zip(leaves, batched, strict=True)]
            axes = [0 if b else None for b in batched]
            whole = jax.vmap(lambda *leaves: fun(*jax.tree.unflatten(treedef, leaves)), axes)
            return whole(*full)

        mapped = [leaf for leaf, b in zip(leaves, batched, strict=True) if b]
        out = _by_chunks(lanes, mapped, axis_size, max(1, CACHE // lane_bytes))
        return out, jax.tree.map(lambda _: True, out)

    return form


def _by_chunks(lanes: Callable, mapped: list[Any], count: int, most: int) -> Any:
    """Apply ``lanes`` to at most ``most`` of the ``count`` lanes at a time."""
    if count <= most or jax.default_backend() != "cpu":
        return lanes(*mapped)
    chunks = -(-count // most)
    size = -(-count // chunks)
    spare = chunks * size - count

    def cut(leaf: Any) -> Any:
        # The last chunk is filled up with copies of the last lane: one program for all chunks.
        if spare:
            leaf = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], spare, axis=0)])
        return leaf.reshape(chunks, size, *leaf.shape[1:])

    def join(leaf: Any) -> Any:
        return leaf.reshape(chunks * size, *leaf.shape[2:])[:count]

    out = lax.map(lambda parts: lanes(*parts), [cut(leaf) for leaf in mapped])
    return jax.tree.map(join, out)
