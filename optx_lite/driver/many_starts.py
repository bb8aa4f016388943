r"""Many starts of one solve, and what they say together; `refill` says what they cost.

Minima. Solutions are gone through from the best on; each that is not within reach of one before
it is a new minimum, and its basin counts those within reach.

What is not yet seen. Of N starts that converged, w minima, of which w_1 were found once:

    w (N - 1) / (N - w - 2)                          how many there are, expected           (1)
    \prod_{i=1}^{w} (N - 1 - i) / (N - 1 + i)        the probability that it is w           (2)
    w_1 / N                                          the share of the box whose starts
                                                     lead to what was not seen              (3)

(1) and (2): Boender & Rinnooy Kan, Math. Programming 37 (1987) 59, under a uniform prior for the
number of minima and the sizes of their basins. (3): Good, Biometrika 40 (1953) 237; Turing. All
three are about random starts, each of them independent of the others. Those of a sequence that
fills the box evenly are not; they see more, so (1) to (3) err on the careful side.
"""

from __future__ import annotations

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float, Int, PyTree

from ..jax_support.control_flow import while_loop
from ..jax_support.types import Number
from ..problem.base import AbstractProblem
from ..problem.pytrees import widest
from ..solvers.base import AbstractSolver
from .adjoint import ImplicitAdjoint, with_minimum_derivative
from .callbacks import Watch
from .global_search import without_derivative
from .refill import Found, nothing_found, solve_batch


class Census(eqx.Module):
    """What many starts have found; k starts, x flat.

    Attributes
    ----------
    label : array of int, shape (k,)
        The number of the minimum that a start led to, the best 0; -1 where it failed.
    first : array of int, shape (k,)
        The start whose solution is the best of each minimum; unused ones at the end are -1.
    basin : array of int, shape (k,)
        How many starts led to it.
    """

    label: Int[Array, " k"]
    first: Int[Array, " k"]
    basin: Int[Array, " k"]


class ManyStarts(ImplicitAdjoint):
    """Solve from many starts, and hand back the best; its derivative is the implicit one.

    Where others have one x0, this has many; so it takes an adjoint's place in a solver's front
    door. What the starts have found is left in ``record``, for the caller.
    """

    starts: PyTree = None  # a pytree of arrays (k, ...)
    rtol: Number | None = None
    batch: int = eqx.field(static=True, default=1)
    record: dict = eqx.field(static=True, default_factory=dict)

    def solve(
        self,
        solver: AbstractSolver,
        problem: AbstractProblem,
        x0: Array,
        watch: Watch | None = None,
    ) -> PyTree:
        """The best of all."""
        if watch is not None:
            raise ValueError("`multistart` takes a `solve` without callback and without report.")
        starts = flat(self.starts).astype(x0.dtype)
        rtol = jnp.asarray(self.rtol, x0.dtype)
        leaves, treedef = jax.tree.flatten((solver, problem))
        inputs = lax.stop_gradient((leaves, starts, rtol))
        tried, found, census = _search((treedef, self.batch), *inputs)
        lists = without_derivative((found.x, found.value), leaves)
        self.record.update(
            lists=lists, nfev=found.nfev, tried=tried, census=census, restore=problem.restore_x
        )
        return with_minimum_derivative(solver, problem, found.best, self.unconverged)


def flat(lanes: PyTree) -> Array:
    """A pytree of arrays (k, ...) as one array (k, n)."""
    leaves = jax.tree.leaves(lanes)
    dtype = widest(leaf.dtype for leaf in leaves)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1).astype(dtype) for leaf in leaves], 1)


@ft.partial(jax.jit, static_argnums=0)
def _search(
    static: PyTree, leaves: list[Array], starts: Array, rtol: Array
) -> tuple[Array, Found, Census]:
    """Batch after batch, until (1) says that no minimum is missing."""
    treedef, batch = static
    solver, problem = jax.tree.unflatten(treedef, leaves)

    def more(carry: tuple[Array, Found, Census]) -> Array:
        tried, _, census = carry
        return (tried < starts.shape[0]) & ~enough(census.basin, starts.dtype)

    def next_batch(carry: tuple[Array, Found, Census]) -> tuple[Array, Found, Census]:
        tried, found, _ = carry
        found = solve_batch(solver, problem, starts, tried, batch, found)
        return tried + batch, found, take_census(found.x, found.value, found.success, starts, rtol)

    none = jnp.full(starts.shape[0], -1, jnp.int32)
    nothing = nothing_found(solver, problem, starts)
    carry = (jnp.zeros((), jnp.int32), nothing, Census(none, none, jnp.zeros_like(none)))
    return while_loop(more, next_batch, carry)


def enough(basin: Array, dtype: DTypeLike) -> Array:
    """Whether (1) expects less than half a minimum more: Boender & Rinnooy Kan's rule."""
    return what_is_unseen(basin, dtype).expected_minima < jnp.sum(basin > 0).astype(dtype) + 0.5


def take_census(x: Array, value: Array, success: Array, starts: Array, rtol: Array) -> Census:
    """Solutions, (k, n), with their values, (k,), as distinct minima; failed ones never win.

    Two are the same if no variable differs by more than ``rtol`` times the range that it has over
    all starts and solutions.
    """
    count = x.shape[0]
    fine = success & jnp.isfinite(value) & jnp.all(jnp.isfinite(x), axis=1)
    seen = jnp.concatenate([starts, jnp.where(fine[:, None], x, starts)])
    reach = rtol * (jnp.max(seen, axis=0) - jnp.min(seen, axis=0))
    rank = jnp.where(fine, value, jnp.inf)
    number = jnp.arange(count, dtype=jnp.int32)

    def more(carry: tuple[Array, Array, Census]) -> Array:
        return jnp.any(carry[1])

    def next_minimum(carry: tuple[Array, Array, Census]) -> tuple[Array, Array, Census]:
        found, left, census = carry
        best = jnp.argmin(jnp.where(left, rank, jnp.inf)).astype(jnp.int32)
        same = left & jnp.all(jnp.abs(x - x[best][None]) <= reach[None], axis=1)
        same = same | (number == best)
        census = Census(
            jnp.where(same, found, census.label),
            census.first.at[found].set(best),
            census.basin.at[found].set(jnp.sum(same, dtype=jnp.int32)),
        )
        return found + 1, left & ~same, census

    none = jnp.full(count, -1, jnp.int32)
    start = (jnp.zeros((), jnp.int32), fine, Census(none, none, jnp.zeros_like(none)))
    _, _, census = while_loop(more, next_minimum, start)
    # Where all have failed, the lowest of the failed ones, which does not count as a minimum.
    lowest = jnp.argmin(jnp.where(jnp.isnan(value), jnp.inf, value)).astype(jnp.int32)
    first = census.first.at[0].set(jnp.where(jnp.any(fine), census.first[0], lowest))
    return Census(census.label, first, census.basin)


class Unseen(eqx.Module):
    """(1) to (3) of the module."""

    expected_minima: Float[Array, ""]
    all_found: Float[Array, ""]
    missed_share: Float[Array, ""]


def what_is_unseen(basin: Array, dtype: DTypeLike) -> Unseen:
    """From the sizes of the basins, (k,), 0 where there is none."""
    tries = jnp.sum(basin).astype(dtype)
    found = jnp.sum(basin > 0).astype(dtype)
    once = jnp.sum(basin == 1).astype(dtype)
    room = tries - found - 2
    expected = jnp.where(room > 0, found * (tries - 1) / jnp.where(room > 0, room, 1), jnp.inf)
    i = jnp.arange(1, basin.shape[0] + 1, dtype=dtype)
    inside = (i <= found) & (tries - 1 - i > 0)
    ratio = jnp.where(inside, (tries - 1 - i) / jnp.where(inside, tries - 1 + i, 1), 1)
    all_found = jnp.where(room > 0, jnp.exp(jnp.sum(jnp.log(ratio))), 0)
    missed = jnp.where(tries > 0, once / jnp.maximum(tries, 1), 1)
    return Unseen(expected, all_found, missed)
