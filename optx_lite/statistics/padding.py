"""Data sets of many lengths as one batch, and a hint to those who compile for each length."""

from __future__ import annotations

import logging
import types
import weakref
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import ArrayLike, PyTree

LOGGER = logging.getLogger("optx_lite")
MANY = 5  # lengths of data for one function, before the hint


class LengthHint:
    """Says once in a process that each length of data compiles anew."""

    def __init__(self) -> None:
        self.given = False
        self.lengths: weakref.WeakKeyDictionary[types.CodeType, set[int]] = (
            weakref.WeakKeyDictionary()
        )

    def note(self, f: Callable[..., PyTree], m: int) -> None:
        """Of a fit of ``f`` to ``m`` data outside of `jax.jit`."""
        code = getattr(f, "__code__", None)
        if self.given or code is None:
            return
        seen = self.lengths.setdefault(code, set())
        seen.add(m)
        if len(seen) >= MANY:
            self.given = True
            self.lengths.clear()
            LOGGER.warning(
                "`curve_fit` was called with data of %d lengths for one function, and compiles for "
                "each, a second or so. ox.pad_data and `mask` make them one length.", MANY,
            )  # fmt: skip


LENGTH_HINT = LengthHint()


def pad_data(
    xdata: Sequence[ArrayLike], ydata: Sequence[ArrayLike], length: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pad data sets to one length, with a mask of what is there.

    Every length of data is a program of its own, which takes a second or so to compile; padded, all
    share one, and can be fitted in one `vmap`, or one after the other: ``length`` then is the most
    there will be, and ``mask=mask[i]`` says what is there.

    Parameters
    ----------
    xdata : sequence of arrays, shapes (..., m_i)
        The independent variables of each data set.
    ydata : sequence of arrays, shapes (m_i,)
        The data.
    length : int, optional
        The common length; by default that of the longest. For data sets that come one after the
        other, the most there will be.

    Returns
    -------
    x : array, shape (sets, ..., length)
        Padded by the last value.
    y : array, shape (sets, length)
        Padded by 0.
    mask : array of bool, shape (sets, length)

    Raises
    ------
    ValueError
        For data sets that do not match, or are longer than ``length``, or empty.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optx_lite as ox
    >>> x, y, mask = ox.pad_data(
    ...     [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]], [[1.0, 3.0, 5.1], [0.0, 1.0, 2.1, 2.9]]
    ... )
    >>> fit = jax.vmap(lambda x, y, m: ox.curve_fit(lambda x, a, b: a * x + b, x, y, mask=m))
    >>> print(fit(x, y, mask).popt.round(2))
    [[2.05 0.98]
     [0.98 0.03]]
    """
    xs, ys = [np.asarray(x) for x in xdata], [np.asarray(y) for y in ydata]
    if len(xs) != len(ys) or not ys:
        raise ValueError(f"`xdata` and `ydata` must be as many, got {len(xs)} and {len(ys)}.")
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if y.ndim != 1 or not y.size or x.shape[-1:] != y.shape:
            raise ValueError(
                f"`ydata` must be (m,) and `xdata` (..., m), got {y.shape} and {x.shape} in set "
                f"{i}."
            )
    longest = max(y.size for y in ys)
    length = longest if length is None else int(length)
    if length < longest:
        raise ValueError(f"`length` must be at least that of the longest, {longest}, got {length}.")
    padded = [_pad(x, length, mode="edge") for x in xs]
    mask = np.arange(length)[None, :] < np.array([[y.size] for y in ys])
    return np.stack(padded), np.stack([_pad(y, length, mode="constant") for y in ys]), mask


def _pad(array: np.ndarray, length: int, mode: PyTree) -> np.ndarray:
    widths = [(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])]
    return np.pad(array, widths, mode=mode)
