r"""The search for a change of sign: to both sides at once, in steps that grow.

Two searches start at the ends (a, b) of an interval: one moves a to the left, one b to the right.
With x0 the end that stays, x the one that moves, q the factor, after k steps it is at

    x0 + q^k (x - x0)               without a limit on that side                 (1)
    limit - q^-k (limit - x)        with one                                     (2)

where x is the first one. A search has found the root if the signs at its last two points differ,
or one of the values is 0; then the other search is called off. If both find one in the same
iteration, the narrower bracket is taken. As in SciPy.

The state has both searches, in arrays (2, n); the function is evaluated on both at once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ...jax_support.types import Count
from ...jax_support.xla import computed_once, rounded
from ...results.elementwise import BAD_INPUT, CONVERGED, LIMIT, NONFINITE, RUNNING, BracketResult
from .base import AbstractElementwiseSolver, AbstractElementwiseState, Function, kept

CALLED_OFF = 2  # the other side has found a bracket


class SearchState(AbstractElementwiseState):
    """The searches to the left and to the right, one array (2, n) each."""

    x: Array  # the end that moves
    f: Array
    x_last: Array  # where it was before
    f_last: Array
    fixed: Array  # x0 of (1)
    distance: Array  # what stands behind q^k
    limit: Array
    factor: Array
    status: Array
    nit: Array


class BracketRoot(AbstractElementwiseSolver[SearchState]):
    """The solver of `elementwise.bracket_root`.

    Its points are the ends of the interval, the limits xmin and xmax, and the factor.
    """

    EVALUATED = 2

    maxiter: Count

    def start(self, points: tuple[PyTree, ...]) -> tuple[Array, ...]:
        """One unit to the right, or an eighth of the way to the limit."""
        xl, xr, xmin, xmax, factor = points
        if xr is None:
            xr = xl + jnp.minimum((xmax - xl) / 8, 1)
        return xl, xr, xmin, xmax, factor

    def init(self, points: tuple[Array, ...], values: tuple[Array, ...]) -> SearchState:
        """The interval itself, seen from both ends."""
        xl, xr, xmin, xmax, factor = points
        in_order = (xmin <= xl) & (xl < xr) & (xr <= xmax) & (factor > 1)
        x, f = jnp.stack([xl, xr]), jnp.stack(values)
        x_last, f_last = x[::-1], f[::-1]
        limit = jnp.stack([xmin, xmax])
        status = jnp.where(in_order, _judge(x, f, f_last, limit, RUNNING), BAD_INPUT)
        return SearchState(
            x=x, f=f, x_last=x_last, f_last=f_last,
            fixed=x_last,
            distance=jnp.where(jnp.isinf(limit), x - x_last, limit - x),
            limit=limit,
            # Not broadcast later: XLA would multiply by 1/factor, and round twice.
            factor=jnp.stack([factor, factor]),
            status=status.astype(jnp.int32),
            nit=jnp.zeros(status.shape, jnp.int32),
        )  # fmt: skip

    def running(self, state: SearchState) -> Array:
        """Which elements have a search that needs another step."""
        return jnp.any(self.active(state), axis=0)

    def step(self, fun: Function, state: SearchState) -> SearchState:
        """One step to each side."""
        free = jnp.isinf(state.limit)
        active = self.active(state)
        distance = jnp.where(free, state.distance * state.factor, state.distance / state.factor)
        distance = rounded(distance, active)
        x = jnp.where(free, state.fixed + distance, state.limit - distance)  # (1), (2)
        x = computed_once(x)
        f = computed_once(jax.vmap(fun)(x))
        x, f, x_last, f_last, distance = computed_once(
            kept(
                active,
                (x, f, state.x, state.f, distance),
                (state.x, state.f, state.x_last, state.f_last, state.distance),
            )
        )
        status = jnp.where(active, RUNNING, state.status)
        return SearchState(
            x=x, f=f, x_last=x_last, f_last=f_last,
            fixed=state.fixed,
            distance=distance,
            limit=state.limit,
            factor=state.factor,
            status=_judge(x, f, f_last, state.limit, status),
            nit=state.nit + active.astype(jnp.int32),
        )  # fmt: skip

    def finish(self, state: SearchState) -> BracketResult:
        """The narrower of the two brackets; without one, all that has been searched."""
        found = state.status == CONVERGED
        width = jnp.stack([state.x_last[0] - state.x[0], state.x[1] - state.x_last[1]])
        by_left = found[0] & (~found[1] | (width[0] <= width[1]))
        by_right = found[1] & (~found[0] | (width[1] <= width[0]))

        def between(moved: Array, last: Array) -> tuple[Array, Array]:
            left = jnp.where(by_right, last[1], moved[0])
            return left, jnp.where(by_left, last[0], moved[1])

        return BracketResult(
            status=jnp.where(found[0], CONVERGED, state.status[1]).astype(jnp.int32),
            bracket=between(state.x, state.x_last),
            f_bracket=between(state.f, state.f_last),
            nfev=jnp.sum(state.nit, axis=0, dtype=jnp.int32) + self.EVALUATED,
            nit=jnp.max(state.nit, axis=0),
        )


def _judge(x: Array, f: Array, f_last: Array, limit: Array, status: int | Array) -> Array:
    """The status of both searches, of which those still RUNNING are judged."""
    running = status == RUNNING
    sign, sign_last = jnp.sign(f), jnp.sign(f_last)
    found = running & ((sign_last == -sign) | (sign_last == 0) | (sign == 0))
    now = jnp.where(jnp.isfinite(x) & jnp.isfinite(f), RUNNING, NONFINITE)
    now = jnp.where(x == limit, LIMIT, now)
    now = jnp.where(found[::-1], CALLED_OFF, now)
    now = jnp.where(found, CONVERGED, now)
    return jnp.where(running, now, status).astype(jnp.int32)
