r"""L-BFGS-B: a limited-memory quasi-Newton method in a box.

R. H. Byrd, P. Lu, J. Nocedal, C. Zhu, "A limited memory algorithm for bound constrained
optimization", SIAM J. Sci. Comput. 16 (1995); J. L. Morales, J. Nocedal, "Remark on Algorithm
778", ACM TOMS 38 (2011). An iteration, from x with gradient g and the matrix B of `_matrix`:

1. The generalized Cauchy point x^c tells which variables are held at bounds (`_cauchy`).
2. The quadratic is minimised in the others, F, from there:

       x^ = x^c + Z B_F^-1 r,    r = -Z^T (g + B (x^c - x))                         (5.4)-(5.11)

   and the point is projected onto the box; if that is no descent, shortened instead.
3. A line search along d = x^ - x (`_more_thuente`) gives the next x.
4. The pair s, y joins the memory if s.y > eps * |g.s|.

Without bounds 1 and 2 are one product with H = B^-1, see `_memory`. Every call of `step` is one
evaluation of f and its gradient; the trials of the line search are states.

Different from the original code:

- Where the projected point of 2 is worse for the quadratic than the shortened one, that is taken.
- The first step has length 1 at most, in a box too, so a factor on f does not change the path.
- The end is told by what the quadratic still promises, q = -g.d / 2: see `_minimizer`.
- A search that gains no more than the rounding of f, where its slope promises a hundred times
  that, has failed. It is repeated without memory, as there; if that fails, too, one evaluation a
  short way along d compares the function with its gradient, and the result tells both.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._bounds import onto_bounds, step_to_bound
from .._control_flow import cond
from .._inverse_hessian import LbfgsInvHessProduct
from .._minimize_result import ALL_FIXED, FAILED, NONFINITE, RUNNING
from .._problem import MinimizationProblem
from ..linalg import norm, safe_divide
from ._cauchy import breakpoints, cauchy_point
from ._matrix import matrix_of
from ._memory import Memory
from ._minimizer import AbstractMinimizer, BestSeen
from ._more_thuente import LineSearch, advance, begin, believable

LONGEST = 1e10  # times d, where no bound limits a step
SHORT = 10.0  # times the root of epsilon and |x|: the step on which a gradient is checked


class Line(eqx.Module):
    """What is searched, and where."""

    base: Array  # (n,) where the line search began
    grad: Array  # (n,) there
    direction: Array  # (n,) d
    trial: Array  # (n,) to be evaluated
    search: LineSearch
    checking: Array  # () bool: the trial is there to check the gradient


class State(BestSeen):
    """The machine between two evaluations."""

    line: Line
    memory: Memory
    checked: Array  # (2,) along d, by the gradient and by the function: found by that check


class LBFGSB(AbstractMinimizer[State]):
    """``method='L-BFGS-B'``; see the module for the mathematics.

    Attributes
    ----------
    ftol, gtol, maxfun, maxiter
        See `AbstractMinimizer`.
    maxls : int
        Most evaluations in one line search.
    maxcor : int, static
        Pairs in the memory.
    """

    maxls: Any = 20
    maxcor: int = eqx.field(static=True, default=10)

    def init(self, problem: MinimizationProblem, x0: Array) -> State:
        """x0, moved into the box, is the first trial."""
        n, dtype = x0.shape[0], x0.dtype
        zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        x0 = jnp.clip(x0, problem.lower, problem.upper) if problem.bounded else x0
        zeros = jnp.zeros(n, dtype)
        line = Line(x0, zeros, zeros, x0, begin(zero, zero, zero, zero), jnp.zeros((), bool))
        return State(
            x=x0, value=zero + jnp.inf, grad=zeros, nfev=none, nit=none, calm=none, status=none,
            value0=zero, line=line, memory=Memory.empty(self.maxcor, n, dtype),
            checked=jnp.zeros(2, dtype),
        )  # fmt: skip

    def step(self, problem: MinimizationProblem, state: State) -> State:
        """Evaluate the trial and judge it; the next trial of the search, or a new direction."""
        line = state.line
        value, grad = problem.value_and_grad(line.trial)
        first = state.nfev == 0
        done, search = advance(line.search, value, grad @ line.direction)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(grad))
        taken = finite & (first | (done & ~line.checking) | (value < state.value))
        tired = (search.trials >= self.maxls) | (search.step == search.best.step)
        ended = first | done | tired
        gained = believable(line.search, jnp.where(taken, value, state.value))
        accepted = ended & ~first & gained & finite & (done | (search.best.step > 0))
        status = jnp.where(first & ~finite, NONFINITE, state.status)
        status = jnp.where(line.checking, FAILED, status)
        slopes = search.start.slope, safe_divide(value - search.start.value, line.search.step)
        slopes = safe_divide(jnp.stack(slopes), norm(line.direction))
        x, grad = (jnp.where(taken, a, b) for a, b in ((line.trial, state.x), (grad, state.grad)))
        state = State(
            x=x,
            value=jnp.where(taken, value, state.value),
            grad=grad,
            nfev=state.nfev + 1,
            nit=state.nit + accepted.astype(jnp.int32),
            calm=state.calm,
            status=status,
            value0=jnp.where(first, value, state.value0),
            line=eqx.tree_at(lambda line: line.search, line, search),
            # Here and not where a new line is sought: XLA would copy it out of a branch.
            memory=_remember(problem, state.memory, line, x, grad, first, accepted),
            checked=jnp.where(line.checking, slopes, state.checked),
        )
        line, status, calm, forgotten = cond(
            ended,
            lambda: self._new_line(problem, state, first, accepted),
            lambda: (_search_on(problem, state.line), state.status, state.calm, jnp.array(False)),
        )
        return eqx.tree_at(
            lambda state: (state.line, state.status, state.calm, state.memory),
            state,
            (line, status, calm, state.memory.forget(forgotten)),
        )

    def _new_line(
        self, problem: MinimizationProblem, state: State, first: Array, accepted: Array
    ) -> tuple[Line, Array, Array, Array]:
        """From ``state.x``, with status and `calm`, and whether the memory is of no use."""
        x, grad = state.x, state.grad
        failed = ~first & ~accepted
        hopeless = failed & ~jnp.any(state.memory.full)
        target, useless = _minimize_model(problem, x, grad, state.memory.forget(failed))
        direction = target - x
        if problem.bounded:
            longest, _ = step_to_bound(x, direction, problem.lower, problem.upper)
            longest = jnp.clip(jnp.where(first, 1, longest), 1, LONGEST)
        else:
            longest = jnp.full_like(state.value, LONGEST)
        slope = grad @ direction
        before = jnp.where(accepted, state.line.search.start.value, jnp.inf)
        free = _projected(problem, x, grad)
        possible = 0.5 * (free @ free) * state.memory.flatness()
        status, calm = self.judge(problem, state, before, -0.5 * slope, possible)
        if problem.bounded:
            status = jnp.where(jnp.all(problem.lower == problem.upper), ALL_FIXED, status)
        status = jnp.where(state.status == RUNNING, status, state.status).astype(jnp.int32)
        short = SHORT * jnp.sqrt(jnp.finfo(x.dtype).eps) * safe_divide(norm(x), norm(direction))
        step = jnp.where(hopeless, jnp.minimum(jnp.where(short > 0, short, 1), 1), 1)
        line = Line(
            base=x,
            grad=grad,
            direction=direction,
            trial=jnp.where(step < 1, _feasible(problem, x + step * direction, x), target),
            search=begin(state.value, slope, step, longest),
            checking=hopeless,
        )
        return line, status, calm, failed | useless

    def origin(self, state: State) -> tuple[Array, Array]:
        """Where the line search began."""
        return state.line.base, state.line.search.start.value

    def inverse_hessian(self, state: State) -> LbfgsInvHessProduct:
        """As the memory has it."""
        return LbfgsInvHessProduct(*state.memory.in_order())

    def slopes(self, state: State) -> Array:
        """Found by the check of the gradient, if there was one."""
        return state.checked


def _search_on(problem: MinimizationProblem, line: Line) -> Line:
    trial = line.base + line.search.step * line.direction
    return eqx.tree_at(lambda line: line.trial, line, _feasible(problem, trial, line.base))


def _remember(
    problem: MinimizationProblem, memory: Memory, line: Line, x: Array, grad: Array,
    first: Array, accepted: Array,
) -> Memory:  # fmt: skip
    step, change = x - line.base, grad - line.grad
    along = step @ change
    curved = along > jnp.finfo(along.dtype).eps * jnp.abs(step @ line.grad)
    memory = memory.remember(step, change, accepted & curved)
    # Before any pair is known: a step of length 1 along -g.
    length = norm(_projected(problem, x, grad))
    theta = jnp.where(first, jnp.where(length > 0, length, 1), memory.theta)
    return eqx.tree_at(lambda m: m.theta, memory, theta)


def _projected(problem: MinimizationProblem, x: Array, grad: Array) -> Array:
    """-g without the components that lead out of the box."""
    if not problem.bounded:
        return -grad
    return jnp.where(breakpoints(x, grad, problem.lower, problem.upper) > 0, -grad, 0)


def _feasible(problem: MinimizationProblem, trial: Array, x: Array) -> Array:
    """The trial, on a bound where it is so but for rounding."""
    return onto_bounds(trial, x, problem.lower, problem.upper) if problem.bounded else trial


def _minimize_model(
    problem: MinimizationProblem, x: Array, grad: Array, memory: Memory
) -> tuple[Array, Array]:
    """x^ of (5.4), or a step along the gradient where the memory gave no descent, and if so."""
    if problem.bounded:
        target, sound = _subspace_minimum(problem, x, grad, memory)
    else:
        target, sound = x + memory.solve(-grad), True
    sound = sound & (grad @ (target - x) < 0) & jnp.all(jnp.isfinite(target))
    plain = x + _projected(problem, x, grad) / memory.theta
    plain = jnp.clip(plain, problem.lower, problem.upper) if problem.bounded else plain
    return jnp.where(sound, target, plain), ~sound & jnp.any(plain != x)


def _subspace_minimum(
    problem: MinimizationProblem, x: Array, grad: Array, memory: Memory
) -> tuple[Array, Array]:
    lower, upper = problem.lower, problem.upper
    b = matrix_of(memory)
    cauchy, free = cauchy_point(x, grad, lower, upper, b)
    r = jnp.where(free, -(grad + b.times(cauchy - x)), 0)
    step, sound = b.solve(r, free)
    step = jnp.where(jnp.any(memory.full), step, 0)
    length, _ = step_to_bound(cauchy, step, lower, upper)
    ends = cauchy[None, :] + jnp.stack([step, jnp.minimum(length, 1) * step])
    ends = jax.vmap(lambda end: onto_bounds(end, cauchy, lower, upper))(ends)

    def promised(end: Array) -> Array:
        seen = b.see(end - x)
        return grad @ seen.vector + 0.5 * b.form(seen, seen)

    def better() -> Array:
        projected, shortened = jax.vmap(promised)(ends)
        return jnp.where(projected <= shortened, ends[0], ends[1])

    return cond(length >= 1, lambda: ends[0], better), sound
