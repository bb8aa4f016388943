"""Which entries of a Jacobian may differ from 0, from any of the forms that people have it in."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.core import Tracer
from jax.experimental.sparse import BCOO
from jaxtyping import Array, ArrayLike, Int, PyTree


class Sparsity(NamedTuple):
    """Entries in the order of their rows, each once. On the host: NumPy's arrays."""

    rows: Int[np.ndarray, " nnz"]
    cols: Int[np.ndarray, " nnz"]
    shape: tuple[int, int]

    @property
    def nnz(self) -> int:
        """How many entries."""
        return self.rows.size

    @property
    def band(self) -> tuple[int, int]:
        """Diagonals below and above the main one that have entries."""
        if not self.nnz:
            return 0, 0
        offset = self.cols - self.rows
        return max(0, -int(offset.min())), max(0, int(offset.max()))

    @property
    def most_in_a_row(self) -> int:
        """Entries; so many colours its columns take at least."""
        return int(np.bincount(self.rows).max(initial=0))

    def transposed(self) -> Sparsity:
        """Of the transposed matrix."""
        order = np.argsort(self.cols, kind="stable")
        return Sparsity(self.cols[order], self.rows[order], (self.shape[1], self.shape[0]))


def sparsity(pattern: PyTree, shape: tuple[int, int]) -> Sparsity:
    """The entries which a pattern names.

    Parameters
    ----------
    pattern : SciPy's sparse, BCOO, dense (m, n), (rows, cols), or a bandwidth
        A dense or sparse matrix: what is not 0. ``(rows, cols)``: index arrays of one length. An
        integer k: all entries with ``abs(i - j) <= k``; two, ``(lower, upper)``, those with
        ``-lower <= j - i <= upper``.
    shape : (m, n)
        Of the Jacobian.

    Raises
    ------
    ValueError
        If it is none of these, does not fit `shape`, or is traced: how a program is compiled
        hangs on it.
    """
    if any(isinstance(leaf, Tracer) for leaf in _parts(pattern)):
        raise ValueError("`jac_sparsity` must be known before tracing, got a traced array.")
    if _is_integers(pattern):
        lower, upper = np.broadcast_to(np.asarray(pattern), (2,))
        return _band(int(lower), int(upper), shape)
    if isinstance(pattern, tuple) and len(pattern) == 2:
        rows, cols = (_indices(part) for part in pattern)
        _check_entries(rows, cols, shape)
        return _sorted(rows, cols, shape)
    if hasattr(pattern, "tocoo"):
        entries: PyTree = pattern.tocoo()  # type: ignore[union-attr]
        rows, cols = entries.coords
        proper = np.asarray(entries.data) != 0
        found = rows[proper], cols[proper], entries.shape
    elif isinstance(pattern, BCOO):
        indices = np.asarray(pattern.indices)
        inside = (np.asarray(pattern.data) != 0) & np.all(indices < pattern.shape, axis=1)
        found = *indices[inside].T, pattern.shape
    else:
        dense = np.asarray(pattern)
        if dense.ndim != 2 or dense.dtype.kind not in "biuf":
            raise ValueError(
                "`jac_sparsity` must be a matrix, sparse or dense, (rows, cols) or a bandwidth, "
                f"got {pattern!r}."
            )
        found = *np.nonzero(dense), dense.shape
    rows, cols, its_shape = found
    if tuple(its_shape) != tuple(shape):
        raise ValueError(f"`jac_sparsity` must have shape {shape}, got {tuple(its_shape)}.")
    return _sorted(rows, cols, shape)


def detected(fun: Callable, x: Array) -> tuple[np.ndarray, np.ndarray]:
    """(rows, cols) of the entries that the program of a function allows, by asdex.

    Raises
    ------
    ImportError
        Without asdex, which the extra ``optx-lite[sparse]`` brings.
    """
    try:
        from asdex import jacobian_sparsity  # type: ignore[import-not-found]
    except ImportError as missing:
        raise ImportError(
            "jac_sparsity='auto' needs asdex: pip install 'optx-lite[sparse]'."
        ) from missing
    found = jacobian_sparsity(fun, np.zeros(x.shape, x.dtype))
    return np.asarray(found.rows), np.asarray(found.cols)


def _parts(pattern: PyTree) -> tuple:
    if isinstance(pattern, BCOO):
        return pattern.data, pattern.indices
    return pattern if isinstance(pattern, tuple) else (pattern,)


def _is_integers(pattern: PyTree) -> bool:
    parts = pattern if isinstance(pattern, tuple) else (pattern,)
    return len(parts) <= 2 and all(
        np.ndim(part) == 0 and isinstance(part, (int, np.integer)) and not isinstance(part, bool)
        for part in parts
    )


def _indices(part: ArrayLike) -> np.ndarray:
    indices = np.asarray(part)
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise ValueError(
            "`jac_sparsity` as (rows, cols) must be two index arrays, got one of dtype "
            f"{indices.dtype} and shape {indices.shape}."
        )
    return indices


def _check_entries(rows: np.ndarray, cols: np.ndarray, shape: tuple[int, int]) -> None:
    if rows.size != cols.size:
        raise ValueError(
            "`jac_sparsity` as (rows, cols) must be of one length, got "
            f"{rows.size} and {cols.size}."
        )
    for name, indices, size in zip(("rows", "cols"), (rows, cols), shape, strict=True):
        if indices.size and not (indices.min() >= 0 and indices.max() < size):
            raise ValueError(
                f"`jac_sparsity` {name} must be in [0, {size}), got "
                f"{indices.min()} to {indices.max()}."
            )


def _band(lower: int, upper: int, shape: tuple[int, int]) -> Sparsity:
    if lower < 0 or upper < 0:
        raise ValueError(f"`jac_sparsity` as bandwidths must be >= 0, got {(lower, upper)}.")
    m, n = shape
    offsets = np.arange(-lower, upper + 1)
    rows = np.repeat(np.arange(m), offsets.size)
    cols = rows + np.tile(offsets, m)
    inside = (cols >= 0) & (cols < n)
    return Sparsity(rows[inside], cols[inside], shape)


def _sorted(rows: np.ndarray, cols: np.ndarray, shape: tuple[int, ...]) -> Sparsity:
    # Not by `unique`, whose hashes take ten times as long.
    flat = np.sort(rows.astype(np.int64) * shape[1] + cols)
    flat = flat[np.diff(flat, prepend=-1) > 0]
    return Sparsity(flat // max(shape[1], 1), flat % max(shape[1], 1), (shape[0], shape[1]))
