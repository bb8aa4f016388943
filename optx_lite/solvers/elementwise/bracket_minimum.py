r"""The search for three points around a minimum: downhill, in steps that grow.

From xl < xm < xr the bracket walks to the side where f is lower (exchanged, if need be, so that
this is the side of xr) until f(xl) >= f(xm) <= f(xr), one of them strict. With q the factor, after
k steps its front is at

    xr + q^k (xr - xm)              without a limit on that side                 (1)
    limit - q^-k (limit - xr)       with one                                     (2)

where xr and xm are the first ones: without a limit the steps grow, with one they shrink, so that a
minimum before it is not stepped over. Where (2) does not move any more, the limit itself is next.
As in SciPy. With a ``resolution``, eps of the dtype, three things differ. A limit of 0 would be
next only where the steps underflow, after a thousand of them; so it is next where they are below
the resolution, as a part of the first distance to it. Values that differ by their rounding only
show no bracket: one side must rise by more than `NOISE` times resolution and |f|. And where such
values have shown the wrong way, so that f rises in front and not behind, or has not fallen as far
as a limit, the walk turns round.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ...jax_support.types import Count
from ...jax_support.xla import computed_once, rounded
from ...results.elementwise import BAD_INPUT, CONVERGED, LIMIT, NONFINITE, RUNNING, BracketResult
from .base import (
    AbstractElementwiseSolver,
    AbstractElementwiseState,
    Function,
    kept,
    swapped,
)

NOISE = 8  # times the resolution and |f|: what a value may be wrong by


class DownhillState(AbstractElementwiseState):
    """The bracket between two evaluations, one array (n,) each."""

    xl: Array
    fl: Array
    xm: Array
    fm: Array
    xr: Array  # the front
    fr: Array
    first: Array  # xr at the start
    step: Array  # what stands behind q^k
    growth: Array  # q, or 1/q where there is a limit
    limit: Array
    behind: Array  # the limit on the other side
    level: Array  # f at the start; -inf where a limit has been reached without a fall below it
    status: Array
    nit: Array


class BracketMinimum(AbstractElementwiseSolver[DownhillState]):
    """The solver of `elementwise.bracket_minimum`.

    Its points are xl, xm and xr, the limits xmin and xmax, and the factor.
    """

    EVALUATED = 3

    maxiter: Count
    resolution: float = eqx.field(static=True, default=0.0)

    def start(self, points: tuple[PyTree, ...]) -> tuple[Array, ...]:
        """Half a unit to each side, or a sixteenth of the way to the limit."""
        xl, xm, xr, xmin, xmax, factor = points
        if xl is None:
            xl = xm - jnp.minimum((xm - xmin) / 16, 0.5)
        if xr is None:
            xr = xm + jnp.minimum((xmax - xm) / 16, 0.5)
        return xl, xm, xr, xmin, xmax, factor

    def init(self, points: tuple[Array, ...], values: tuple[Array, ...]) -> DownhillState:
        """Turn the bracket downhill and judge it."""
        (xl, xm, xr, xmin, xmax, factor), (fl, fm, fr) = points, values
        in_order = (xmin <= xl) & (xl < xm) & (xm < xr) & (xr <= xmax) & (factor > 1)
        left = fl < fr
        xl, xr = swapped(left, xl, xr)
        fl, fr = swapped(left, fl, fr)
        limit = jnp.where(left, xmin, xmax)
        free = jnp.isinf(limit)
        status = self._judge((xl, xm, xr), (fl, fm, fr), limit)
        status = jnp.where(in_order, status, BAD_INPUT).astype(jnp.int32)
        return DownhillState(
            xl=xl, fl=fl, xm=xm, fm=fm, xr=xr, fr=fr,
            first=xr,
            step=jnp.where(free, xr - xm, limit - xr),
            growth=self._growth(free, factor),
            limit=limit,
            behind=jnp.where(left, xmax, xmin),
            level=fm,
            status=status,
            nit=jnp.zeros_like(status),
        )  # fmt: skip

    def step(self, fun: Function, state: DownhillState) -> DownhillState:
        """One step further downhill."""
        active = self.active(state)
        step = rounded(state.step * state.growth, active)
        before = state.limit - step  # (2)
        least = self.resolution * jnp.abs(state.limit - state.first)
        arrived = (before == state.xr) | (jnp.abs(step) <= least)
        before = jnp.where(arrived, state.limit, before)
        x = jnp.where(jnp.isinf(state.limit), state.first + step, before)  # (1)
        x = computed_once(x)
        f = computed_once(fun(x))
        xs = kept(active, (state.xm, state.xr, x), (state.xl, state.xm, state.xr))
        fs = kept(active, (state.fm, state.fr, f), (state.fl, state.fm, state.fr))
        xs, fs = computed_once((xs, fs))
        after = DownhillState(
            xl=xs[0], fl=fs[0], xm=xs[1], fm=fs[1], xr=xs[2], fr=fs[2],
            first=state.first,
            step=jnp.where(active, step, state.step),
            growth=state.growth,
            limit=state.limit,
            behind=state.behind,
            level=state.level,
            status=jnp.where(active, self._judge(xs, fs, state.limit), state.status),
            nit=state.nit + active.astype(jnp.int32),
        )  # fmt: skip
        return self._turned(after) if self.resolution else after

    def _turned(self, state: DownhillState) -> DownhillState:
        """The other way round where f rises in front, and not behind; or has not fallen at all."""
        uphill = (state.fr > state.fm + self._noise(state.fm)) & (state.fl < state.fm)
        uphill = uphill & (state.status == RUNNING)
        level = state.fr >= state.level - self._noise(state.level)
        in_vain = (state.status == LIMIT) & level & jnp.isfinite(state.limit)
        free = jnp.isinf(state.behind)
        explored = jnp.where(in_vain, state.first - state.limit, state.xl - state.xm)
        around = DownhillState(
            xl=state.xr, fl=state.fr, xm=state.xm, fm=state.fm, xr=state.xl, fr=state.fl,
            first=state.xl,
            step=jnp.where(free, explored, state.behind - state.xl),
            growth=self._growth(free, jnp.maximum(state.growth, 1 / state.growth)),
            limit=state.behind,
            behind=state.limit,
            level=jnp.where(in_vain, -jnp.inf, state.level),
            status=jnp.full_like(state.status, RUNNING),
            nit=state.nit,
        )  # fmt: skip
        return kept(uphill | in_vain, around, state)

    def finish(self, state: DownhillState) -> BracketResult:
        """The bracket from left to right."""
        turned = state.xl > state.xr
        xl, xr = swapped(turned, state.xl, state.xr)
        fl, fr = swapped(turned, state.fl, state.fr)
        return BracketResult(
            status=state.status,
            bracket=(xl, state.xm, xr),
            f_bracket=(fl, state.fm, fr),
            nfev=state.nit + self.EVALUATED,
            nit=state.nit,
        )

    def _growth(self, free: Array, factor: Array) -> Array:
        return jnp.where(free, factor, 1 / factor)

    def _noise(self, value: Array) -> Array:
        """Differences up to this say nothing."""
        return NOISE * self.resolution * jnp.abs(value)

    def _judge(self, xs: tuple[Array, ...], fs: tuple[Array, ...], limit: Array) -> Array:
        (fl, fm, fr), xr = fs, xs[2]
        least = fm + self._noise(fm) if self.resolution else fm
        found = (fl >= fm) & (fr >= fm) & (jnp.maximum(fl, fr) > least)
        status = jnp.where(jnp.isfinite(xr) & jnp.isfinite(fr), RUNNING, NONFINITE)
        status = jnp.where(xr == limit, LIMIT, status)
        return jnp.where(found, CONVERGED, status).astype(jnp.int32)
