"""Variables in two groups of blocks, such that each residual touches one block of either.

The shape of bundle adjustment: a residual is an observation of one point by one camera. Columns
with entries in the same rows form a block; blocks that share a row belong to different groups,
which is a colouring of a graph by two colours.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from .sparsity import Sparsity

LEAST_BLOCKS = 4  # of the group that is eliminated


class TwoGroups(NamedTuple):
    """The columns of each block, and the rows of each pair of blocks that meet.

    ``few`` are the blocks which are kept, ``many`` those which are eliminated.
    """

    few: Int[np.ndarray, "C dc"]
    many: Int[np.ndarray, "P dp"]
    of_few: Int[np.ndarray, " O"]  # the block of each pair, sorted by the second
    of_many: Int[np.ndarray, " O"]
    rows: Int[np.ndarray, "O dr"]


def two_groups(entries: Sparsity) -> TwoGroups | None:
    """The two groups of a pattern; None if it has no such shape, or blocks of several sizes."""
    m = entries.shape[0]
    block_of = _blocks(entries)
    if block_of is None:
        return None
    count = int(block_of.max()) + 1
    # The two blocks of each row.
    first = np.full(m, count)
    last = np.full(m, -1)
    blocks = block_of[entries.cols]
    np.minimum.at(first, entries.rows, blocks)
    np.maximum.at(last, entries.rows, blocks)
    between = (blocks != first[entries.rows]) & (blocks != last[entries.rows])
    if np.any(between) or np.any(first >= last):
        return None
    side = _two_colors(first, last, count)
    if side is None:
        return None
    if np.sum(side) < np.sum(~side):
        side = ~side  # True: the larger group, to be eliminated
    if np.sum(side) < LEAST_BLOCKS:
        return None
    few, many = (_columns(block_of, np.flatnonzero(group)) for group in (~side, side))
    if few is None or many is None:
        return None
    number = np.empty(count, np.int64)
    number[~side], number[side] = np.arange(np.sum(~side)), np.arange(np.sum(side))
    swap = side[first]
    a, b = np.where(swap, last, first), np.where(swap, first, last)
    a, b = number[a], number[b]
    order = np.lexsort((a, b))
    pair = b[order] * len(few) + a[order]
    begins = np.flatnonzero(np.diff(pair, prepend=-1))
    sizes = np.diff(begins, append=m)
    if not m or np.any(sizes != sizes[0]):
        return None
    return TwoGroups(few, many, a[order][begins], b[order][begins], order.reshape(-1, sizes[0]))


def _blocks(entries: Sparsity) -> Int[np.ndarray, " n"] | None:
    """The number of the block of each column; None if a column is empty."""
    n = entries.shape[1]
    keys = np.random.default_rng(0).integers(1 << 63, size=(2, entries.shape[0]), dtype=np.uint64)
    signatures = np.zeros((n, 2), np.uint64)
    for k in range(2):
        np.add.at(signatures[:, k], entries.cols, keys[k][entries.rows])
    if np.any(np.bincount(entries.cols, minlength=n) == 0):
        return None
    _, block_of = np.unique(signatures, axis=0, return_inverse=True)
    return block_of.reshape(-1)


def _two_colors(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray | None:
    """Whether each block is of the second group; None if two of one group share a row."""
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for i, j in np.unique(np.stack([a, b]), axis=1).T.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    side = np.full(count, -1)
    # From the block with the most neighbours: the parts of the graph are coloured alike.
    for start in sorted(range(count), key=lambda i: -len(neighbours[i])):
        if side[start] >= 0:
            continue
        side[start] = 0
        queue = deque([start])
        while queue:
            i = queue.popleft()
            for j in neighbours[i]:
                if side[j] < 0:
                    side[j] = 1 - side[i]
                    queue.append(j)
                elif side[j] == side[i]:
                    return None
    return side == 1


def _columns(block_of: np.ndarray, blocks: np.ndarray) -> np.ndarray | None:
    order = np.argsort(block_of, kind="stable")
    begins = np.searchsorted(block_of[order], blocks)
    sizes = np.searchsorted(block_of[order], blocks, side="right") - begins
    if np.any(sizes != sizes[0]):
        return None
    return order[begins[:, None] + np.arange(sizes[0])]
