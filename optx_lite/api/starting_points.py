"""Points that fill a box evenly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike

from ..jax_support.types import Bounds
from ..problem.global_search import in_box, read_box
from ..problem.random_keys import as_key
from .search_arguments import whole

SEQUENCES = ("sobol", "halton")
METHODS = ("latinhypercube", "uniform", *SEQUENCES)


def unit_points(method: str, count: int, n: int, key: Array, dtype: DTypeLike) -> Array:
    """``count`` points of the unit cube, (count, n)."""
    if method == "uniform":
        return jax.random.uniform(key, (count, n), dtype)
    if method == "latinhypercube":
        within, order = jax.random.split(key)
        cells = jax.random.permutation(
            order, jnp.broadcast_to(jnp.arange(count)[:, None], (count, n)), independent=True
        )
        return (cells.astype(dtype) + jax.random.uniform(within, (count, n), dtype)) / count
    points = jnp.asarray(_sequence(method, count, n), dtype)
    return (points + jax.random.uniform(key, (1, n), dtype)) % 1  # Cranley & Patterson's shift


def _sequence(method: str, count: int, n: int) -> np.ndarray:
    try:
        from scipy.stats import qmc
    except ImportError as error:
        raise ImportError(
            f"{method!r} points are computed by scipy.stats.qmc: install scipy, or take "
            "'latinhypercube' or 'uniform'."
        ) from error
    if method == "halton":
        return qmc.Halton(n, scramble=False).random(count)
    powers = max(count - 1, 0).bit_length()
    return qmc.Sobol(n, scramble=False).random_base2(powers)[:count]


def sample_starts(
    bounds: Bounds, count: int, method: str = "sobol", rng: int | Array | None = None
) -> Array:
    """Points that fill a box evenly, to start solves from.

    Parameters
    ----------
    bounds : sequence of n pairs (min, max), or object with ``lb`` and ``ub``
        All finite. Their floating dtype, if they are an array, is that of the points.
    count : int
        How many.
    method : 'sobol', 'halton', 'latinhypercube' or 'uniform'
        The first two are SciPy's sequences (``scipy.stats.qmc``), shifted at random; a power of
        two suits 'sobol' best. The others need JAX only.
    rng : key, int, numpy.random.Generator, optional
        The same gives the same points. A key may be traced.

    Returns
    -------
    array, shape (count, n)

    Raises
    ------
    ImportError
        For 'sobol' and 'halton' without SciPy.
    TypeError, ValueError
        For bad arguments.

    Examples
    --------
    >>> import jax, optx_lite as ox
    >>> starts = ox.sample_starts([(0, 1), (-5, 5)], 8, "latinhypercube", jax.random.key(0))
    >>> print(starts.shape, sorted((8 * starts[:, 0]).astype(int).tolist()))
    (8, 2) [0, 1, 2, 3, 4, 5, 6, 7]
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}, got {method!r}.")
    count = whole("count", count)
    lower, upper = read_box(bounds)
    unit = unit_points(method, count, lower.shape[0], as_key(rng), lower.dtype)
    return in_box(unit, lower, upper)
