"""The front door of sample consensus: a robust fit where most of the data may be wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from ..driver.consensus import ConsensusProblem, search_consensus
from ..driver.global_search import without_derivative
from ..functions import lift
from ..jax_support.types import Number
from ..problem.pytrees import Unravel, is_concrete, ravel, widest
from ..problem.random_keys import as_key
from ..results.base import to_host
from ..results.global_search import CONVERGED, MAX_SAMPLES, NO_MODEL, ConsensusResult
from .least_squares import least_squares
from .search_arguments import count, number, whole

ROUNDS = 2  # of the refinement: the inliers of the first are not yet all


def sample_consensus(
    minimal_solver: Callable[[PyTree], PyTree],
    residuals: Callable[[PyTree, PyTree], PyTree],
    data: PyTree,
    *,
    sample_size: int,
    threshold: Number,
    confidence: Number = 0.999,
    max_samples: int = 10_000,
    batch: int = 256,
    refine: bool = True,
    loss: str | Callable = "soft_l1",
    rng: int | Array | None = None,
) -> ConsensusResult:
    """Fit a model to data of which many are outliers.

    Parameters
    ----------
    minimal_solver : callable
        ``minimal_solver(sample)`` gives the model, an array or a pytree of them, that the sample
        determines: ``data`` with ``sample_size`` rows. NaN where it determines none.
    residuals : callable
        ``residuals(model, data)`` gives (m,) or (m, d): one row for each datum.
    data : array (m, ...), or pytree of arrays (m, ...)
    sample_size : int
        How many data determine a model.
    threshold : float
        A datum is an inlier if the norm of its residual is at most this.
    confidence : float
        Stop when one of the samples was free of outliers with this probability.
    max_samples : int
        Most samples.
    batch : int
        Samples that are solved at once.
    refine : bool
        Whether the best model is the start of a robust fit to its inliers by `least_squares`.
    loss : str or callable
        Of that fit, with ``f_scale=threshold``: of each component of a residual (m, d) by itself,
        as in `least_squares`, not of its norm.
    rng : key, int, numpy.random.Generator, optional
        The same gives the same answer.

    Returns
    -------
    ConsensusResult
        A refined model has the derivative of that fit by the data, the inliers held; another
        one's is NaN.

    Raises
    ------
    ValueError, TypeError
        For bad arguments.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optx_lite as ox
    >>> x = jnp.linspace(0, 1, 50)
    >>> y = jnp.where(jnp.arange(50) % 3 == 0, 5 * jnp.sin(99 * x), 2 * x + 1)
    >>> def line(two):
    ...     slope = (two["y"][1] - two["y"][0]) / (two["x"][1] - two["x"][0])
    ...     return jnp.array([slope, two["y"][0] - slope * two["x"][0]])
    >>> res = ox.sample_consensus(
    ...     line,
    ...     lambda p, d: p[0] * d["x"] + p[1] - d["y"],
    ...     {"x": x, "y": y},
    ...     sample_size=2,
    ...     threshold=0.01,
    ...     rng=0,
    ... )
    >>> print(res.x.round(3), res.n_inliers)
    [2. 1.] 33
    """
    data = jax.tree.map(jnp.asarray, data)
    rows = _check_data(data, sample_size)
    number("threshold", threshold, float, 0, np.inf, inside=True)
    number("confidence", confidence, float, 0, 1, inside=True)
    most = count("max_samples", max_samples, least=1)
    batch = whole("batch", batch)
    problem, restore = _problem(minimal_solver, residuals, data, sample_size, threshold, rows)
    dtype = problem.threshold.dtype
    leaves, treedef = jax.tree.flatten(problem)
    confidence = lax.stop_gradient(jnp.asarray(confidence, dtype))
    found = search_consensus(
        treedef, lax.stop_gradient(leaves), as_key(rng), most, confidence, size=sample_size,
        batch=min(batch, int(most)) if is_concrete(most) else batch,
    )  # fmt: skip
    if not is_concrete(leaves):
        found = dataclasses.replace(
            found, model=without_derivative(found.model, [v for v in leaves if v is not None])
        )
    model, fit = found.model, None
    if refine:
        model, fit = _refined(problem, lax.stop_gradient(model), found.model, loss)
    squares = problem.squares(model)
    inliers = (squares <= 1) & jnp.all(jnp.isfinite(model))
    n_inliers = jnp.sum(inliers, dtype=jnp.int32)
    enough = found.is_enough(rows, sample_size, confidence)
    status = jnp.where(enough, CONVERGED, MAX_SAMPLES)
    status = jnp.where(found.inliers > sample_size, status, NO_MODEL)
    return to_host(
        ConsensusResult(
            x=restore(model),
            inliers=inliers,
            score=jnp.sum(jnp.minimum(squares, 1)) * problem.threshold**2,
            n_inliers=n_inliers,
            n_samples=found.samples,
            fit=fit,
            status=status.astype(jnp.int32),
        )
    )


def _check_data(data: PyTree, sample_size: Any) -> int:
    counts = {leaf.shape[:1] for leaf in jax.tree.leaves(data)}
    if len(counts) != 1 or counts == {()}:
        shapes = [leaf.shape for leaf in jax.tree.leaves(data)]
        raise ValueError(f"`data` must be arrays (m, ...) of one m, got shapes {shapes}.")
    rows = next(iter(counts))[0]
    if whole("sample_size", sample_size) >= rows:
        raise ValueError(
            f"`sample_size` must be less than the number of data, {rows}, got {sample_size!r}."
        )
    return rows


def _problem(
    minimal_solver: Callable,
    residuals: Callable,
    data: PyTree,
    size: int,
    threshold: Number,
    rows: int,
) -> tuple[ConsensusProblem, Unravel]:
    """The functions on flat models."""

    def shape(leaf: Array, count: int) -> PyTree:
        return jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)

    sample = jax.tree.map(lambda leaf: shape(leaf, int(size)), data)
    all_ = jax.tree.map(lambda leaf: shape(leaf, rows), data)
    label = "`minimal_solver`"
    tree = lift(
        lambda d: jax.tree.map(jnp.asarray, minimal_solver(d)), sample, label=label
    ).out_shape
    leaves = jax.tree.leaves(tree)
    if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise ValueError(f"`minimal_solver` must return real numbers, got {tree}.")
    dtype = widest(leaf.dtype for leaf in leaves)
    restore = Unravel.like(tree)
    n = sum(restore.sizes)

    def on_rows(model: Array, data: PyTree) -> Array:
        value = jnp.asarray(residuals(restore(model), data))
        if value.shape[:1] != (rows,):
            raise ValueError(
                f"`residuals` must have one row for each of the {rows} data, got {value.shape}."
            )
        return value.reshape(rows, -1)

    example = jax.ShapeDtypeStruct((n,), dtype)
    problem = ConsensusProblem(
        minimal_solver=lift(lambda d: ravel(minimal_solver(d), dtype), sample, label=label),
        residuals=lift(on_rows, example, all_, label="`residuals`"),
        data=data,
        threshold=jnp.asarray(threshold, dtype),
    )
    return problem, restore


def _refined(
    problem: ConsensusProblem, start: Array, model: Array, loss: str | Callable
) -> tuple[Array, PyTree]:
    """The robust fit to the inliers where it has a lower score, else the model; and the fit."""
    usable = jnp.all(jnp.isfinite(start))
    at: PyTree = jnp.where(usable, start, 0)
    fit: PyTree = None
    for _ in range(ROUNDS):
        inliers = problem.squares(lax.stop_gradient(at)) <= 1

        def of_inliers(at: Array, data: PyTree, inliers: Array = inliers) -> Array:
            held = dataclasses.replace(problem, data=data)
            r = held.residuals(at, held.data).astype(at.dtype)
            return jnp.where(inliers[:, None], r, 0).reshape(-1)

        fit = least_squares(
            of_inliers, lax.stop_gradient(at), args=(problem.data,), loss=loss,
            f_scale=lax.stop_gradient(problem.threshold),
        )  # fmt: skip
        at = fit.x
    lower = problem.score(lax.stop_gradient(at))[0] <= problem.score(start)[0]
    return jnp.where(usable & fit.success & lower, at, model), fit
