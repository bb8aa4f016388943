r"""Sample consensus: RANSAC (Fischler & Bolles, Comm. ACM 24 (1981) 381), scored as MSAC.

From samples of s data each, as few as determine a model, models are computed; of each, all data
have residuals r_i, and its score is (Torr & Zisserman, CVIU 78 (2000) 138)

    \sum_i min(|r_i|^2, threshold^2).                                                     (1)

Batches of samples are solved and scored together. The search ends when, of as many samples as
were drawn, at least one was free of outliers with the probability asked for: with w the share of
inliers, |r_i| <= threshold, of the best model,

    1 - (1 - w^s)^N >= confidence.                                                        (2)
"""

from __future__ import annotations

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from ..functions import Lifted
from ..jax_support.control_flow import while_loop
from ..jax_support.types import TreeDef
from ..solvers.global_search.draws import distinct


class ConsensusProblem(eqx.Module):
    """What is fitted.

    Attributes
    ----------
    minimal_solver : callable
        A sample of the data, (s, ...) -> model, flat (n,).
    residuals : callable
        (model, data) -> (m, d).
    data : pytree of arrays (m, ...)
    threshold : array, shape ()
    """

    minimal_solver: Lifted
    residuals: Lifted
    data: PyTree[Array]
    threshold: Float[Array, ""]

    def squares(self, model: Array) -> Array:
        """|r_i|^2 in units of the threshold, (m,); infinite where it is NaN."""
        r = self.residuals(model, self.data).astype(model.dtype) / self.threshold
        squares = jnp.sum(r**2, axis=1)
        return jnp.where(jnp.isnan(squares), jnp.inf, squares)

    def score(self, model: Array) -> tuple[Array, Array]:
        """(1) in units of the threshold, and the number of inliers."""
        squares = self.squares(model)
        bad = ~jnp.all(jnp.isfinite(model))
        score = jnp.where(bad, jnp.inf, jnp.sum(jnp.minimum(squares, 1)))
        return score, jnp.where(bad, 0, jnp.sum(squares <= 1, dtype=jnp.int32))


class Consensus(eqx.Module):
    """The best model so far.

    Attributes
    ----------
    key : array
        Of the next samples.
    model : array, shape (n,)
    score : array, shape ()
        (1) in units of the threshold.
    inliers, samples : arrays of int, shape ()
        How many there are of the model, and how many samples were drawn.
    """

    key: Key[Array, ""]
    model: Float[Array, " n"]
    score: Float[Array, ""]
    inliers: Int[Array, ""]
    samples: Int[Array, ""]

    def is_enough(self, rows: int, size: int, confidence: Array) -> Array:
        """(2), of ``rows`` data in samples of ``size``."""
        share = self.inliers.astype(self.score.dtype) / rows
        missed = jnp.log1p(-(share**size)) * self.samples.astype(self.score.dtype)
        return missed <= jnp.log1p(-confidence)


@ft.partial(jax.jit, static_argnames=("treedef", "size", "batch"))
def search_consensus(
    treedef: TreeDef, leaves: list[Array], key: Array, most: Array, confidence: Array,
    *, size: int, batch: int,
) -> Consensus:  # fmt: skip
    """The best of as many samples as (2) asks for, at most ``most``."""
    problem = jax.tree.unflatten(treedef, leaves)
    rows = jax.tree.leaves(problem.data)[0].shape[0]

    def model_of(picked: Array) -> Array:
        return problem.minimal_solver(jax.tree.map(lambda leaf: leaf[picked], problem.data))

    def more(best: Consensus) -> Array:
        return (best.samples < most) & ~best.is_enough(rows, size, confidence)

    def next_batch(best: Consensus) -> Consensus:
        key, drawn = jax.random.split(best.key)
        uniform = jax.random.uniform(drawn, (batch, size), best.score.dtype)
        models = jax.vmap(model_of)(distinct(uniform, rows, []))
        scores, inliers = jax.vmap(problem.score)(models)
        samples = best.samples + jnp.arange(1, batch + 1, dtype=jnp.int32)
        scores = jnp.where(samples <= most, scores, jnp.inf)
        i = jnp.argmin(scores)
        lower = scores[i] < best.score
        model, score, count = (
            jnp.where(lower, new, old)
            for new, old in (
                (models[i], best.model), (scores[i], best.score), (inliers[i], best.inliers),
            )
        )  # fmt: skip
        return Consensus(key, model, score, count, jnp.minimum(samples[-1], most))

    shape = jax.eval_shape(model_of, jax.ShapeDtypeStruct((size,), jnp.int32))
    none = jnp.zeros((), jnp.int32)
    blank = jnp.full(shape.shape, jnp.nan, shape.dtype)
    return while_loop(
        more, next_batch, Consensus(key, blank, jnp.full((), jnp.inf, shape.dtype), none, none)
    )
