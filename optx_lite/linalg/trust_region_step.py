r"""The Levenberg-Marquardt step: the minimiser of a quadratic in a ball.

    minimise  0.5 || R p + q ||^2 + 0.5 p^T C p     subject to  || p || <= Delta,

R upper triangular, C >= 0 diagonal (the Coleman-Li term; 0 for plain Levenberg-Marquardt).
The solution is p(alpha) of

    (R^T R + C + alpha I) p = -R^T q,   alpha >= 0                                   (1)

with alpha = 0 if that p fits into the ball, else the root of phi(alpha) = ||p|| - Delta. The
root is found by Newton's method on 1/||p||, kept inside bounds, which converges from any
side (J. J. More, "The Levenberg-Marquardt Algorithm: Implementation and Theory", 1977):

    alpha+ = alpha - (phi + Delta) / Delta * phi / phi'                              (2)
    phi'   = - || S^{-T} p ||^2 / || p ||,    S^T S = R^T R + C + alpha I            (3)
    0  <=  alpha  <=  || R^T q || / Delta                                             (4)

Different from MINPACK, which accepts ||p|| within 10 % of Delta: the root is found to `RTOL`,
which costs one iteration more and makes p a smooth function of its inputs. So it can have a
derivative of its own, by the implicit function theorem on (1) and ||p|| = Delta, and a loop
over such steps can be differentiated although the search for alpha cannot.

A singular R has no p(0); a floor under alpha (the square of what rounding leaves in R) then
gives the step of nearly minimum norm.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from ..jax_support.control_flow import while_loop
from .norms import norm
from .triangular import solve_transposed, solve_upper, triangularize

RTOL = 1e-4
MAX_ITERATIONS = 12


class CorrectionStep(eqx.Module):
    """A step asked for first, with its own q and alpha: the answer if it is short enough."""

    wanted: Bool[Array, ""]
    qtf: Float[Array, " n"]
    alpha: Float[Array, ""]
    longest: Float[Array, ""]


class Answer(eqx.Module):
    """What came out."""

    step: Float[Array, " n"]  # p
    alpha: Float[Array, ""]  # its Levenberg-Marquardt parameter
    limited: Shaped[Array, ""]  # the ball's boundary stopped it
    corrected: Shaped[Array, ""]  # it is the step of the correction


@jax.custom_jvp
def solve_trust_region(
    r_factor: Float[Array, "n n"],
    qtf: Float[Array, " n"],
    diag: Float[Array, " n"] | None,
    newton: Float[Array, " n"] | None,
    singular: Bool[Array, ""],
    radius: Float[Array, ""],
    alpha: Float[Array, ""],
    correction: CorrectionStep,
) -> Answer:
    """The minimiser in the ball, or the step of the correction.

    Both come out of one loop: the factorisation in it is what takes time to compile.

    Parameters
    ----------
    r_factor, qtf : arrays, shapes (n, n), (n,)
        R and q.
    diag : array, shape (n,), or None
        The diagonal of C; None for none.
    newton : array, shape (n,), or None
        p(0); None if it is not known.
    singular : array of bool, shape ()
        Whether R has dependent columns, so that p(0) does not count.
    radius : array, shape ()
        Delta > 0.
    alpha : array, shape ()
        First guess, e.g. from the step before; 0 for none.
    correction : CorrectionStep
        What is tried first.
    """
    zero = jnp.zeros_like(radius)
    floor = _floor(r_factor, singular)
    highest = jnp.maximum(norm(qtf @ r_factor) / radius, floor)  # (4)
    guess = _between(alpha, zero, highest)
    if newton is None:
        newton, fits, begin = jnp.zeros_like(qtf), jnp.zeros((), bool), floor
    else:
        fits = (norm(newton) <= radius) & ~singular
        begin = jnp.where(singular, floor, guess)

    def turn(state: tuple[Array, ...]) -> tuple[Array, ...]:
        _, alpha, low, high, _, correcting, count = state
        step, slope = _damped_step_and_slope(
            r_factor, jnp.where(correcting, correction.qtf, qtf), diag, alpha
        )
        size = norm(step)

        short = size <= correction.longest
        back = (jnp.where(short, step, newton), begin, low, high, ~short & ~fits, short)

        phi = size - radius
        forward = phi / jnp.where(slope > 0, slope, 1)  # slope is -phi'
        found = ((phi <= 0) & (alpha <= floor)) | (jnp.abs(phi) <= RTOL * radius) | ~(slope > 0)
        more = ~found & (count < MAX_ITERATIONS)
        low = jnp.where(phi > 0, jnp.maximum(low, alpha + forward), low)
        high = jnp.where(phi < 0, alpha, high)
        better = jnp.where(alpha <= floor, guess, alpha + forward * (size / radius))  # (2)
        better = jnp.where(more, _between(better, low, high), alpha)
        on = (step, better, low, high, more, jnp.zeros_like(short))

        chosen = (jnp.where(correcting, *pair) for pair in zip(back, on, strict=True))
        return *chosen, count + 1

    start = (
        newton,
        jnp.where(correction.wanted, correction.alpha, begin),
        zero,
        highest,
        correction.wanted | ~fits,
        correction.wanted,
        jnp.zeros((), jnp.int32),
    )
    step, alpha, _, _, _, corrected, _ = while_loop(lambda state: state[4], turn, start)
    # On the boundary exactly, so that a radius which says "to here" is taken at its word.
    size = norm(step)
    limited = ~fits & ~corrected & (alpha > floor)
    fitted = step * (radius / jnp.where(size > 0, size, 1))
    step = jnp.where(limited, fitted, step)
    return Answer(step, jnp.where(limited | corrected, alpha, 0), limited, corrected)


def _between(
    alpha: Float[Array, ""], low: Float[Array, ""], high: Float[Array, ""]
) -> Float[Array, ""]:
    """alpha if it lies in (low, high], else a point in between."""
    middle = jnp.maximum(1e-3 * high, jnp.sqrt(low) * jnp.sqrt(high))
    return jnp.where((alpha > low) & (alpha <= high), alpha, middle)


@solve_trust_region.defjvp  # pyright: ignore[reportArgumentType]
def _solve_trust_region_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    """Implicit function theorem on (1) and, at the boundary, ||p|| = Delta."""
    r_factor, qtf, diag, _, singular, radius, _, correction = primals
    d_r_factor, d_qtf, d_diag, _, _, d_radius, _, d_correction = tangents
    answer = solve_trust_region(*primals)
    step, limited = answer.step, answer.limited
    qtf = jnp.where(answer.corrected, correction.qtf, qtf)
    d_qtf = jnp.where(answer.corrected, d_correction.qtf, d_qtf)
    damping = answer.alpha + _floor(r_factor, singular)
    moved = d_r_factor.T @ (r_factor @ step + qtf) + r_factor.T @ (d_r_factor @ step + d_qtf)
    if diag is not None:
        damping = damping + diag
        moved = moved + d_diag * step
    matrix = r_factor.T @ r_factor + jnp.diag(jnp.broadcast_to(damping, step.shape))
    along = -jnp.linalg.solve(matrix, step)  # d p / d alpha
    free = -jnp.linalg.solve(matrix, moved)
    grip = step @ along
    d_alpha = (radius * d_radius - step @ free) / jnp.where(grip != 0, grip, 1)
    d_step = free + jnp.where(limited, d_alpha, 0) * along
    no_tangent = np.zeros(limited.shape, dtype=jax.dtypes.float0)
    return answer, Answer(d_step, jnp.zeros_like(answer.alpha), no_tangent, no_tangent)  # type: ignore[arg-type]


def _damped_step_and_slope(
    r_factor: Float[Array, "n n"],
    qtf: Float[Array, " n"],
    diag: Float[Array, " n"] | None,
    alpha: Float[Array, ""],
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """p(alpha) of (1) and -phi'(alpha) of (3)."""
    damping = jnp.zeros_like(qtf) + alpha if diag is None else diag + alpha
    root, right = _damped_root(r_factor, qtf, damping)
    step = -solve_upper(root, right)
    half = solve_transposed(root, step)
    size = norm(step)
    return step, (half @ half) / jnp.where(size > 0, size, 1)


def _damped_root(
    r_factor: Float[Array, "n n"], qtf: Float[Array, " n"], damping: Float[Array, " n"]
) -> tuple[Float[Array, "n n"], Float[Array, " n"]]:
    """S and S^-T R^T q of (3), by QR of [R; damping^1/2]: R is not squared."""
    eye = jnp.eye(qtf.shape[0], dtype=qtf.dtype)
    rows = jnp.concatenate([r_factor.T, jnp.sqrt(damping)[None, :] * eye], axis=1)
    return triangularize(rows, jnp.concatenate([qtf, jnp.zeros_like(qtf)]))


def _floor(r_factor: Float[Array, "n n"], singular: Bool[Array, ""]) -> Float[Array, ""]:
    """Zero for a full-rank system, else the damping that rounding in R asks for."""
    # Above what `triangularize` takes for the rounding of a dependent column.
    rounding = 16 * r_factor.shape[0] * jnp.finfo(r_factor.dtype).eps
    return jnp.where(singular, rounding**2 * jnp.sum(r_factor * r_factor), 0)
