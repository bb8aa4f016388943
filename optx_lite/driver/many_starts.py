r"""Many starts of one solve, each at the cost of its own steps, and what they say together.

Cost. Lanes that step in one loop all wait for the slowest. So lanes are stepped in blocks; a block
stops when an eighth of its width is left, and those left of all blocks are packed together, and
so on. The last few go on in narrow blocks: a step of one costs as much as a step of all, so a
wide one would be mostly idle. Measured (float64, one core, n = 2): a step of 64 lanes of L-BFGS-B
takes 63 us, of 8 lanes 19 us, of one 8 us.

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
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ..jax_support.control_flow import while_loop
from ..problem.pytrees import widest
from ..solvers import AbstractSolver
from .adjoint import AbstractAdjoint, with_minimum_derivative
from .batching import CACHE

LEFT = 8  # a block stops when this part of its width is left
NARROW = 16  # lanes of the last blocks


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

    label: Array
    first: Array
    basin: Array


class ManyStarts(AbstractAdjoint):
    """Solve from many starts, and hand back the best; its derivative is the implicit one.

    Where others have one x0, this has many; so it takes an adjoint's place in a solver's front
    door. What the starts have found is left in ``found``, for the caller.
    """

    starts: Any  # a pytree of arrays (k, ...)
    rtol: Any
    batch: int = eqx.field(static=True)
    found: dict = eqx.field(static=True)

    def solve(self, solver: Any, problem: Any, x0: Array, watch: Any = None) -> Any:
        """The best of all."""
        if watch is not None:
            raise ValueError("`multistart` takes a `solve` without callback and without report.")
        starts = flat(self.starts).astype(x0.dtype)
        rtol = jnp.asarray(self.rtol, x0.dtype)
        leaves, treedef = jax.tree.flatten((solver, problem, None, None))
        inputs = lax.stop_gradient((leaves, starts, rtol))
        results, census = _search((treedef, self.batch), *inputs)
        best = jax.tree.map(lambda leaf: leaf[census.first[0]], results)
        self.found.update(results=results, census=census, restore=problem.restore_x)
        return with_minimum_derivative(solver, problem, best)


def flat(lanes: Any) -> Array:
    """A pytree of arrays (k, ...) as one array (k, n)."""
    leaves = jax.tree.leaves(lanes)
    dtype = widest(leaf.dtype for leaf in leaves)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1).astype(dtype) for leaf in leaves], 1)


@ft.partial(jax.jit, static_argnums=0)
def _search(static: Any, leaves: list[Array], starts: Array, rtol: Array) -> tuple[Any, Census]:
    """Batch after batch, until (1) says that no minimum is missing; results of all starts."""
    treedef, batch = static
    solver, problem, _, _ = jax.tree.unflatten(treedef, leaves)

    def census_of(results: Any, tried: Any) -> Census:
        number = jnp.arange(starts.shape[0], dtype=jnp.int32)
        known = results.success & (number < tried)
        return take_census(results.x, results.value, known, starts, rtol)

    if batch >= starts.shape[0]:
        results = run_many(solver, problem, starts)
        return results, census_of(results, starts.shape[0])

    def more(carry: tuple[Array, Any, Census]) -> Array:
        tried, _, census = carry
        return (tried < starts.shape[0]) & ~enough(census.basin, starts.dtype)

    def next_batch(carry: tuple[Array, Any, Census]) -> tuple[Array, Any, Census]:
        tried, results, _ = carry
        part = run_many(solver, problem, lax.dynamic_slice_in_dim(starts, tried, batch))
        results = jax.tree.map(
            lambda leaf, new: lax.dynamic_update_slice_in_dim(leaf, new, tried, 0), results, part
        )
        return tried + batch, results, census_of(results, tried + batch)

    shapes = jax.eval_shape(lambda starts: run_many(solver, problem, starts), starts)
    results = jax.tree.map(_blank, shapes)
    carry = (jnp.zeros((), jnp.int32), results, census_of(results, 0))
    _, results, census = while_loop(more, next_batch, carry)
    return results, census


def _blank(shape: Any) -> Array:
    floating = jnp.issubdtype(shape.dtype, jnp.floating)
    return jnp.full(shape.shape, jnp.nan if floating else 0, shape.dtype)


def enough(basin: Array, dtype: Any) -> Array:
    """Whether (1) expects less than half a minimum more: Boender & Rinnooy Kan's rule."""
    return what_is_unseen(basin, dtype).expected_minima < jnp.sum(basin > 0).astype(dtype) + 0.5


def run_many(solver: AbstractSolver, problem: Any, starts: Array) -> Any:
    """The results of all starts, (k, n), in their order."""
    states = jax.vmap(lambda x: solver.init(problem, x))(starts)
    count = starts.shape[0]
    bytes_ = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(states)) // count
    wide = count
    if jax.default_backend() == "cpu":
        wide = min(count, max(NARROW, 2 * CACHE // max(bytes_, 1)))

    def running(states: Any) -> Array:
        return jax.vmap(lambda state: solver.running(problem, state))(states)

    def left(states: Any) -> Array:
        return jnp.sum(running(states), dtype=jnp.int32)

    def step(states: Any) -> Any:
        after = jax.vmap(lambda state: solver.step(problem, state))(states)
        return _choose(running(states), after, states)

    def work(states: Any, width: int, enough: Any) -> Any:
        """Block after block of the unfinished, until no more than ``enough`` are left of each."""
        active = running(states)
        order = jnp.argsort(~active, stable=True).astype(jnp.int32)
        order = jnp.pad(order, (0, -count % width), mode="edge")
        unfinished = jnp.sum(active, dtype=jnp.int32)

        def block(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            at, states = carry
            lanes = lax.dynamic_slice(order, (at,), (width,))
            mine = jax.tree.map(lambda leaf: leaf[lanes], states)
            mine = while_loop(lambda mine: left(mine) > enough, step, mine)
            states = jax.tree.map(lambda leaf, new: leaf.at[lanes].set(new), states, mine)
            return at + width, states

        start = jnp.zeros((), jnp.int32)
        return while_loop(lambda carry: carry[0] < unfinished, block, (start, states))[1]

    narrow = min(count, max(NARROW, wide // LEFT))
    if wide > 2 * narrow:
        states = while_loop(
            lambda states: left(states) > wide // 2,
            lambda states: work(states, wide, wide // LEFT),
            states,
        )
    states = while_loop(
        lambda states: left(states) > 0,
        lambda states: work(states, narrow, jnp.where(left(states) > narrow, narrow // LEFT, 0)),
        states,
    )
    return jax.vmap(lambda state: solver.finish(problem, state))(states)


def _choose(which: Array, new: Any, old: Any) -> Any:
    def pick(a: Array, b: Array) -> Array:
        return jnp.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, new, old)


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
    """(1) to (3) of the module, each ()."""

    expected_minima: Array
    all_found: Array
    missed_share: Array


def what_is_unseen(basin: Array, dtype: Any) -> Unseen:
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
