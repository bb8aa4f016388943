r"""The linear model of a large problem: J by its products with vectors.

    0.5 || J p + f ||^2

What has to be solved is solved by LSMR, on columns of one length; or, where J has a form that
allows it (a narrow band, two groups of blocks), by its normal equations: these square the
condition, which limits the accuracy of a step but not that of the solution, as the gradient comes
from J.

The step in a trust region, in variables z = p / metric:

- by normal equations, z of (J^T J + C + alpha I) z = -g with ||z|| = Delta to `RTOL`. 1 / ||z||
  is nearly linear in alpha near there, so a few secants find it (J. J. More, 1977, takes
  derivatives, which ask for a second solution);
- by LSMR, the minimiser in the plane of the gradient and the Gauss-Newton step (R. H. Byrd, R. B.
  Schnabel and G. A. Shultz, "Approximate solution of the trust region problem by minimization over
  two-dimensional subspaces", Math. Prog. 40, 1988), as SciPy has it: the factorisation is of two
  columns.

Different from the dense model: no secant row; a correction by normal equations only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...jax_support.control_flow import while_loop
from ...linalg import (
    CorrectionStep,
    norm,
    safe_divide,
    safe_sqrt,
    solve_trust_region,
    triangularize,
)
from ...linalg.jacobians import JacobianOperator, NormalEquations
from ...linalg.lsmr import Stops, lsmr_solve
from .model import Correction, GaussNewtonStep, LinearModel, TrustRegionStep

LEAST = 1e-3  # of the highest alpha: where the search begins
RTOL = 0.1  # of Delta, within which a step ends
MOST_SECANTS = 10
FAR = 2  # times Delta, or a part of it: where z is to be found in decades of alpha
FLOOR = 3 / 4  # power of eps: of the squared norm of a column, where the system is singular
NOISE = 8  # times epsilon: by so much a multiplier, or a bound, may be missed
TURNS = 60  # most changes of the active sets


class LinearSolver(eqx.Module):
    """How linear systems are solved: by LSMR with these options, or directly."""

    direct: bool = eqx.field(static=True, default=False)
    damp: Any = 0.0
    atol: Any = None
    btol: Any = None
    conlim: Any = 1e8
    maxiter: Any = None
    regularize: bool = eqx.field(static=True, default=True)

    def stops(self, shape: tuple[int, int], dtype: Any) -> Stops:
        """Tolerances; half of the digits by default."""
        half = float(jnp.finfo(dtype).eps) ** 0.5
        atol, btol = (half if tol is None else tol for tol in (self.atol, self.btol))
        most = min(shape) if self.maxiter is None else self.maxiter
        return Stops(atol, btol, self.conlim, most)


class OperatorModel(LinearModel):
    """By products with J."""

    BEGINS_AT_LAST: ClassVar[bool] = True  # with its active set, and its solution for LSMR

    units: Array  # (n,)
    jacobian: JacobianOperator  # (m, n); a column that rests is 0
    f: Array  # (m,)
    secant: Array  # (): 0
    column_norms: Array  # (n,)
    effective: Array  # (n,) norms without the columns that rest
    gradient: Array  # (n,)
    newton: GaussNewtonStep | None  # without bounds: it is that of all trials from here
    solver: LinearSolver

    @classmethod
    def empty(
        cls, jacobian: Any, m: int, n: int, dtype: Any, solver: LinearSolver, bounded: bool
    ) -> OperatorModel:
        """Before anything has been evaluated; ``jacobian`` has the structure of those to come."""
        zeros = jnp.zeros(n, dtype)
        unknown = GaussNewtonStep(zeros, zeros[0], zeros[0] > 0, zeros > 0)
        return cls(
            units=zeros + 1,
            jacobian=jacobian,
            f=jnp.zeros(m, dtype),
            secant=zeros[0],
            column_norms=zeros,
            effective=zeros,
            gradient=zeros,
            newton=None if bounded else unknown,
            solver=solver,
        )

    def relinearized(
        self,
        jacobian: JacobianOperator,
        f: Array,
        units: Array,
        rescale: Array,
        step: Array,
        rounding: Array,
        with_secant: Array,
        rests: Callable[[Array, Array], Array],
    ) -> OperatorModel:
        """With the Gauss-Newton step where it is that of all trials."""
        norms = safe_sqrt(jacobian.squared_columns())
        moves = ~rests(norms, self.secant)
        jacobian = jacobian.scaled(jnp.ones_like(f), moves.astype(f.dtype))
        model = OperatorModel(
            units=units,
            jacobian=jacobian,
            f=f,
            secant=self.secant,
            column_norms=norms,
            effective=jnp.where(moves, norms, 0),
            gradient=jacobian.adjoint().apply(f),
            newton=None,
            solver=self.solver,
        )
        return model if self.newton is None else replace(model, newton=model.gauss_newton())

    def is_finite(self) -> Array:
        """By sums, which no finite parts hide."""
        return jnp.isfinite(jnp.sum(self.column_norms) + jnp.sum(self.f) + jnp.sum(self.gradient))

    def product(self, v: Array) -> Array:
        """J v."""
        return self.jacobian.apply(v)

    def rows_product(self, v: Array) -> Array:
        """J v."""
        return self.product(v)

    @property
    def residual(self) -> Array:
        """f."""
        return self.f

    def transposed_product(self, v: Array) -> Array:
        """J^T v."""
        return self.jacobian.adjoint().apply(v)

    def hessian_product(self, v: Array) -> Array:
        """J^T J v."""
        return self.transposed_product(self.product(v))

    def absolute_product(self, v: Array) -> Array:
        """|J| |v|."""
        return self.jacobian.absolute().apply(jnp.abs(v))

    def curvatures(self) -> Array:
        """Squared norms of the columns."""
        return self.effective**2

    def gauss_newton(
        self, box: tuple[Array, Array] | None = None, start: Array | None = None
    ) -> GaussNewtonStep:
        """Without a box one system; with one, by active sets."""
        if box is None:
            if self.newton is not None:
                return self.newton
            everything = jnp.ones(self.gradient.shape, bool)
            step = self._solve(everything, self.f, self.gradient)
            return self._step(step, everything, jnp.all(jnp.isfinite(step)))
        start = jnp.zeros_like(self.gradient) if start is None else start
        step, free, found = self._in_box(*box, start)
        return self._step(step, free, found & jnp.all(jnp.isfinite(step)))

    def _step(self, step: Array, free: Array, found: Array) -> GaussNewtonStep:
        step = jnp.where(found, step, 0)
        gain = jnp.where(found, jnp.maximum(self.predicted_reduction(step), 0), jnp.inf)
        return GaussNewtonStep(step, gain, found, free)

    def solve_free(self, newton: GaussNewtonStep, gradient: Array) -> Array:
        """By the normal equations; none where these are not solved directly."""
        if not self.solver.direct:
            return jnp.full_like(gradient, jnp.inf)  # longer than any that is taken
        return self._solve(newton.factor, None, gradient)

    def _solve(self, free: Array, f: Array | None, gradient: Array) -> Array:
        """argmin of || J p + f ||^2 in the free variables, gradient = J^T f."""
        free = free & (self.effective > 0)
        if self.solver.direct:
            return self._solve_directly(free, gradient)
        size = jnp.where(free, safe_divide(jnp.ones_like(gradient), self.effective), 0)
        scaled = self.jacobian.scaled(jnp.ones_like(self.f), size)
        residual = self.f if f is None else f
        return -size * self._lsmr(scaled, residual, self.solver.damp).x

    def _lsmr(self, jacobian: JacobianOperator, f: Array, damp: Any) -> Any:
        stops = self.solver.stops(jacobian.shape, f.dtype)
        n = jacobian.shape[1]
        return lsmr_solve(jacobian.apply, jacobian.adjoint().apply, f, n, damp, stops)

    def _solve_directly(self, free: Array, gradient: Array) -> Array:
        diag = jnp.where(free, self._floor(), 1)
        masked = self.jacobian.normal().scaled(free.astype(gradient.dtype))
        return -masked.solve(diag, jnp.where(free, gradient, 0))

    def _floor(self) -> Array:
        """What keeps normal equations definite where columns depend on each other."""
        return jnp.finfo(self.f.dtype).eps ** FLOOR * self.effective**2

    def _in_box(self, low: Array, high: Array, start: Array) -> tuple[Array, Array, Array]:
        """As `linalg.box`, the systems in the free variables by products."""
        eps = jnp.finfo(self.f.dtype).eps

        def turn(state: tuple[Array, ...]) -> tuple[Array, ...]:
            p, free, turns, _ = state
            residual = self.f + self.product(p)
            gradient = self.transposed_product(residual)
            step = jnp.where(free, self._solve(free, residual, gradient), 0)
            beyond = NOISE * eps * jnp.maximum(jnp.abs(p), jnp.abs(step))
            leaves = (p + step < low - beyond) | (p + step > high + beyond)
            inside = ~jnp.any(leaves)

            onto_box = jnp.clip(p + step, low, high)
            moved = self.product(onto_box - p)
            descends = -jnp.sum((residual + 0.5 * moved) * moved) > 0
            ahead = jnp.where(step < 0, low, high)
            parts = jnp.where(leaves, safe_divide(ahead - p, step), jnp.inf)
            part = jnp.min(parts)
            first = leaves & (parts == part)
            shorter = jnp.clip(jnp.where(first, ahead, p + part * step), low, high)
            whole = inside | descends
            moved_to = jnp.where(whole, onto_box, shorter)
            held = jnp.where(whole, leaves, first)

            slope = self.transposed_product(self.f + self.product(moved_to))
            size = self.effective
            rounding = self._accuracy() * size * (norm(self.f) + jnp.max(size * jnp.abs(moved_to)))
            inward = jnp.where(moved_to <= low, slope < -rounding, slope > rounding)
            freed = inside & ~free & inward & (low < high) & (size > 0)
            done = inside & ~jnp.any(freed)
            still_free = jnp.where(done, free, (free & ~held) | freed)
            return moved_to, still_free, turns + 1, done

        start = jnp.clip(start, low, high)
        free = (start > low) & (start < high)
        none = jnp.zeros((), jnp.int32)
        p, free, _, found = while_loop(
            lambda state: ~state[3] & (state[2] < TURNS), turn, (start, free, none, none > 0)
        )
        return p, free, found

    def _accuracy(self) -> Any:
        """Of a multiplier, relative: what the solution of the free variables leaves."""
        if self.solver.direct:
            return NOISE * float(jnp.finfo(self.f.dtype).eps)
        return self.solver.stops(self.jacobian.shape, self.f.dtype).atol

    def trust_region_step(
        self,
        metric: Array,
        diagonal: Array | None,
        newton: Array | None,
        radius: Array,
        damping: Array,
        correction: Correction,
    ) -> TrustRegionStep:
        """By a damping, or in a plane."""
        diag = jnp.zeros_like(metric) if diagonal is None else diagonal
        if not self.solver.direct:
            scaled = self.jacobian.scaled(jnp.ones_like(self.f), metric)
            return self._in_plane(scaled, metric, diag, newton, radius)
        curvatures = (metric * self.effective) ** 2 + diag
        normal = self.jacobian.normal().scaled(metric)
        return self._in_ball(normal, curvatures, metric, diag, newton, radius, damping, correction)

    def _in_plane(
        self,
        scaled: JacobianOperator,
        metric: Array,
        diag: Array,
        newton: Array | None,
        radius: Array,
    ) -> TrustRegionStep:
        root, slope = jnp.sqrt(diag), metric * self.gradient
        if newton is None:
            newton = self._newton(scaled, root, slope, radius)
        # Of one size each: in which unit the two span the plane is nothing to it.
        basis = jnp.stack([_unit(slope), _unit(newton)])
        rows = jnp.stack([jnp.concatenate([scaled.apply(s), root * s]) for s in basis])
        r_factor, qtf = triangularize(rows, jnp.pad(self.f, (0, metric.size)))
        # The ball's in the plane: R z with || basis^T z || <= Delta.
        of_basis, _ = triangularize(basis, jnp.zeros_like(slope))
        inverse = _inverse_upper(of_basis)
        none = jnp.zeros_like(radius)
        no_correction = CorrectionStep(radius < 0, jnp.zeros_like(qtf), none, none)
        singular = jnp.any(jnp.abs(jnp.diagonal(r_factor)) == 0)
        answer = solve_trust_region(
            r_factor @ inverse, qtf, None, None, singular, radius, none, no_correction
        )
        return TrustRegionStep(
            (inverse @ answer.step) @ basis, answer.alpha, answer.limited, answer.corrected
        )

    def _newton(self, scaled: JacobianOperator, root: Array, slope: Array, radius: Array) -> Array:
        """argmin of || J D z + f ||^2 + z^T C z, with SciPy's regularisation."""
        damp = self.solver.damp
        if self.solver.regularize:
            along = scaled.apply(slope)
            curvature = along @ along + jnp.sum((root * slope) ** 2)
            size = norm(slope)
            part = jnp.minimum(safe_divide(size * size, curvature), safe_divide(radius, size))
            gain = part * size * size - 0.5 * part * part * curvature
            damp = jnp.sqrt(damp**2 + safe_divide(gain, radius * radius))
        norms = safe_sqrt(scaled.squared_columns() + root**2)
        size = safe_divide(jnp.ones_like(norms), norms)
        columns = scaled.scaled(jnp.ones_like(self.f), size)
        transposed, m = columns.adjoint(), self.f.size
        stops = self.solver.stops(scaled.shape, self.f.dtype)
        damped = safe_sqrt(root**2 + damp**2) * size
        answer = lsmr_solve(
            lambda v: jnp.concatenate([columns.apply(v), damped * v]),
            lambda u: transposed.apply(u[:m]) + damped * u[m:],
            jnp.pad(self.f, (0, root.size)),
            root.size,
            0.0,
            stops,
        )
        return -size * answer.x

    def _in_ball(
        self,
        normal: NormalEquations,
        curvatures: Array,
        metric: Array,
        diag: Array,
        newton: Array | None,
        radius: Array,
        damping: Array,
        correction: Correction,
    ) -> TrustRegionStep:
        floor = jnp.finfo(diag.dtype).eps ** FLOOR * curvatures
        still = curvatures == 0
        slope, bend = metric * self.gradient, metric * correction.gradient
        highest = norm(slope) / radius

        def solve(alpha: Array, gradient: Array) -> Array:
            diagonal = jnp.where(still, 1, diag + floor + alpha)
            return -normal.solve(diagonal, jnp.where(still, 0, gradient))

        def turn(search: _Search) -> _Search:
            z = solve(search.alpha, jnp.where(search.correcting, bend, slope))
            size = norm(z)
            short = size <= correction.longest
            back = search.begun(z, short)
            return jax.tree.map(
                lambda a, b: jnp.where(search.correcting, a, b),
                back,
                search.next(z, size, radius, highest),
            )

        no = radius < 0
        fits = no if newton is None else norm(newton) <= radius
        zero = jnp.zeros_like(radius)
        # Where the Gauss-Newton step is known, alpha = 0 need not be tried.
        least = zero if newton is None else LEAST * highest
        newton = jnp.zeros_like(slope) if newton is None else newton
        guess = jnp.where((damping > 0) & (damping <= highest), damping, least)
        inverse = safe_divide(jnp.ones_like(radius), norm(newton))
        search = _Search(
            z=newton,
            alpha=jnp.where(correction.wanted, correction.damping, guess),
            first=guess,
            low=zero,
            high=highest,
            last_alpha=zero,
            last_inverse=inverse,
            correcting=correction.wanted,
            more=correction.wanted | ~fits,
            fits=fits,
            newton=newton,
            corrected=no,
            count=jnp.zeros((), jnp.int32),
        )
        search = while_loop(lambda search: search.more, turn, search)
        size = norm(search.z)
        limited = ~fits & ~search.corrected & ((search.alpha > 0) | (size > radius))
        fitted = search.z * safe_divide(radius, size)
        step = jnp.where(limited & jnp.isfinite(size), fitted, search.z)
        damped = limited | search.corrected
        return TrustRegionStep(step, jnp.where(damped, search.alpha, 0), limited, search.corrected)


class _Search(NamedTuple):
    """For alpha with || z(alpha) || = Delta."""

    z: Array
    alpha: Array
    first: Array  # alpha to begin with
    low: Array
    high: Array
    last_alpha: Array
    last_inverse: Array  # 1 / || z || there; 0 for unknown
    correcting: Array
    more: Array
    fits: Array  # the Gauss-Newton step is the answer
    newton: Array
    corrected: Array
    count: Array

    def begun(self, z: Array, short: Array) -> _Search:
        """After the correction, which is the answer if it is short."""
        return self._replace(
            z=jnp.where(short, z, self.newton),
            alpha=jnp.where(short, self.alpha, self.first),
            correcting=jnp.zeros_like(short),
            more=~short & ~self.fits,
            corrected=short,
        )

    def next(self, z: Array, size: Array, radius: Array, highest: Array) -> _Search:
        """After a trial of alpha."""
        inverse = safe_divide(jnp.ones_like(size), size)
        found = (jnp.abs(size - radius) <= RTOL * radius) | ((size < radius) & (self.alpha <= 0))
        low = jnp.where(size > radius, self.alpha, self.low)
        high = jnp.where(size < radius, self.alpha, self.high)
        rise = safe_divide(inverse - self.last_inverse, self.alpha - self.last_alpha)
        better = self.alpha + safe_divide(1 / radius - inverse, rise)
        inside = (rise > 0) & (better > low) & (better < high)
        # Over decades of alpha || z || is nearly a power of it.
        far = jnp.maximum(size, radius) > FAR * jnp.minimum(size, radius)
        of_alpha, of_size = (
            jnp.log(self.alpha / self.last_alpha),
            jnp.log(inverse / self.last_inverse),
        )
        power = self.alpha * jnp.exp(safe_divide(of_alpha, of_size) * jnp.log(size / radius))
        better = jnp.where((self.last_alpha > 0) & (far | ~inside), power, better)
        middle = jnp.maximum(LEAST * high, jnp.sqrt(low) * jnp.sqrt(high))
        usable = (self.last_inverse > 0) & (better > low) & (better < high)
        more = ~found & (self.count < MOST_SECANTS) & jnp.isfinite(size)
        return self._replace(
            z=z,
            alpha=jnp.where(more, jnp.where(usable, better, middle), self.alpha),
            low=low,
            high=high,
            last_alpha=self.alpha,
            last_inverse=inverse,
            more=more,
            count=self.count + 1,
        )


def _unit(v: Array) -> Array:
    return v * safe_divide(jnp.ones((), v.dtype), norm(v))


def _inverse_upper(r: Array) -> Array:
    """Of a 2 x 2 triangular matrix; a zero pivot leaves its direction out."""
    a, b, c = r[0, 0], r[0, 1], r[1, 1]
    one = jnp.ones_like(a)
    # Directions that are one to rounding span no plane.
    c = jnp.where(jnp.abs(c) > jnp.finfo(r.dtype).eps ** 0.5, c, 0)
    first, second = safe_divide(one, a), safe_divide(one, c)
    return jnp.array([[first, -b * first * second], [0 * a, second]])
