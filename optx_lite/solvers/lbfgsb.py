r"""L-BFGS-B: a limited-memory quasi-Newton method in a box.

R. H. Byrd, P. Lu, J. Nocedal, C. Zhu, "A limited memory algorithm for bound constrained
optimization", SIAM J. Sci. Comput. 16 (1995); J. L. Morales, J. Nocedal, "Remark on Algorithm
778", ACM TOMS 38 (2011). An iteration, from x with gradient g and the matrix B of `_memory`:

1. The generalized Cauchy point x^c tells which variables are held at bounds (`_cauchy`).
2. The quadratic is minimised in the others, F, from there:

       x^ = x^c + Z B_F^-1 r,    r = -Z^T (g + B (x^c - x))                         (5.4)-(5.11)

   and the point is projected onto the box; if that is no descent, shortened instead.
3. A line search along d = x^ - x (`_more_thuente`) gives the next x.
4. The pair s, y joins the memory if s.y > eps * |g.s|.

Without bounds 1 and 2 are one product with B^-1. Every call of `step` is one evaluation of f and
its gradient; the trials of the line search are states.

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
from jax import lax
from jaxtyping import Array

from .._bounds import onto_bounds, step_to_bound
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


class State(BestSeen):
    """The machine between two evaluations."""

    base: Array  # (n,) where the line search began
    base_grad: Array  # (n,)
    direction: Array  # (n,) d
    trial: Array  # (n,) to be evaluated
    search: LineSearch
    memory: Memory
    checking: Array  # () bool: the trial is there to check the gradient
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
        return State(
            x=x0, value=zero + jnp.inf, grad=zeros, base=x0, base_grad=zeros, direction=zeros,
            trial=x0, search=begin(zero, zero, zero, zero),
            memory=Memory.empty(self.maxcor, n, dtype), nfev=none, nit=none, calm=none, status=none,
            value0=zero, checking=jnp.zeros((), bool), checked=jnp.zeros(2, dtype),
        )  # fmt: skip

    def step(self, problem: MinimizationProblem, state: State) -> State:
        """Evaluate the trial and judge it; the next trial of the search, or a new direction."""
        value, grad = problem.value_and_grad(state.trial)
        first = state.nfev == 0
        done, search = advance(state.search, value, grad @ state.direction)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(grad))
        taken = finite & (first | (done & ~state.checking) | (value < state.value))
        tired = (search.trials >= self.maxls) | (search.step == search.best.step)
        ended = first | done | tired
        gained = believable(state.search, jnp.where(taken, value, state.value))
        accepted = ended & ~first & gained & finite & (done | (search.best.step > 0))
        status = jnp.where(first & ~finite, NONFINITE, state.status)
        status = jnp.where(state.checking, FAILED, status)
        slopes = search.start.slope, safe_divide(value - search.start.value, state.search.step)
        slopes = safe_divide(jnp.stack(slopes), norm(state.direction))
        state = State(
            x=jnp.where(taken, state.trial, state.x),
            value=jnp.where(taken, value, state.value),
            grad=jnp.where(taken, grad, state.grad),
            base=state.base,
            base_grad=state.base_grad,
            direction=state.direction,
            trial=state.trial,
            search=search,
            memory=state.memory,
            nfev=state.nfev + 1,
            nit=state.nit + accepted.astype(jnp.int32),
            calm=state.calm,
            status=status,
            value0=jnp.where(first, value, state.value0),
            checking=state.checking,
            checked=jnp.where(state.checking, slopes, state.checked),
        )
        return lax.cond(
            ended,
            lambda: self._iterate(problem, state, first, accepted),
            lambda: self._search_on(problem, state),
        )

    def _search_on(self, problem: MinimizationProblem, state: State) -> State:
        trial = state.base + state.search.step * state.direction
        return eqx.tree_at(lambda s: s.trial, state, _feasible(problem, trial, state.base))

    def _iterate(
        self, problem: MinimizationProblem, state: State, first: Array, accepted: Array
    ) -> State:
        """From ``state.x``, at the end of a line search, into the next."""
        x, grad = state.x, state.grad
        failed = ~first & ~accepted
        hopeless = failed & ~jnp.any(state.memory.full)
        memory = self._remember(problem, state, first, accepted).forget(failed)
        target, memory = _minimize_model(problem, x, grad, memory)
        direction = target - x
        if problem.bounded:
            longest, _ = step_to_bound(x, direction, problem.lower, problem.upper)
            longest = jnp.clip(jnp.where(first, 1, longest), 1, LONGEST)
        else:
            longest = jnp.full_like(state.value, LONGEST)
        slope = grad @ direction
        before = jnp.where(accepted, state.search.start.value, jnp.inf)
        status, calm = self.judge(problem, state, before, -0.5 * slope)
        if problem.bounded:
            status = jnp.where(jnp.all(problem.lower == problem.upper), ALL_FIXED, status)
        status = jnp.where(state.status == RUNNING, status, state.status).astype(jnp.int32)
        short = SHORT * jnp.sqrt(jnp.finfo(x.dtype).eps) * safe_divide(norm(x), norm(direction))
        step = jnp.where(hopeless, jnp.minimum(jnp.where(short > 0, short, 1), 1), 1)
        return State(
            x=x,
            value=state.value,
            grad=grad,
            base=x,
            base_grad=grad,
            direction=direction,
            trial=jnp.where(step < 1, _feasible(problem, x + step * direction, x), target),
            search=begin(state.value, slope, step, longest),
            memory=memory,
            nfev=state.nfev,
            nit=state.nit,
            calm=calm,
            status=status,
            value0=state.value0,
            checking=hopeless,
            checked=state.checked,
        )

    def _remember(
        self, problem: MinimizationProblem, state: State, first: Array, accepted: Array
    ) -> Memory:
        step, change = state.x - state.base, state.grad - state.base_grad
        along = step @ change
        eps = jnp.finfo(along.dtype).eps
        curved = along > eps * jnp.abs(step @ state.base_grad)
        memory = state.memory.remember(step, change, accepted & curved)
        # Before any pair is known: a step of length 1 along -g.
        length = norm(_projected(problem, state.x, state.grad))
        theta = jnp.where(first, jnp.where(length > 0, length, 1), memory.theta)
        return eqx.tree_at(lambda m: m.theta, memory, theta)

    def origin(self, state: State) -> tuple[Array, Array]:
        """Where the line search began."""
        return state.base, state.search.start.value

    def inverse_hessian(self, state: State) -> LbfgsInvHessProduct:
        """As the memory has it."""
        return LbfgsInvHessProduct(*state.memory.in_order())

    def slopes(self, state: State) -> Array:
        """Found by the check of the gradient, if there was one."""
        return state.checked


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
) -> tuple[Array, Memory]:
    """x^ of (5.4), and the memory, emptied if it gave no descent."""
    if problem.bounded:
        target, sound = _subspace_minimum(problem, x, grad, memory)
    else:
        target, sound = x + memory.solve(-grad), True
    sound = sound & (grad @ (target - x) < 0) & jnp.all(jnp.isfinite(target))
    plain = x + _projected(problem, x, grad) / memory.theta
    plain = jnp.clip(plain, problem.lower, problem.upper) if problem.bounded else plain
    return jnp.where(sound, target, plain), memory.forget(~sound & jnp.any(plain != x))


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
    ways = jnp.stack([step, jnp.minimum(length, 1) * step])
    ends = onto_bounds(cauchy + ways, cauchy, lower, upper)

    def promised(move: Array) -> Array:
        seen = b.see(move)
        return grad @ move + 0.5 * b.form(seen, seen)

    projected, shortened = jax.vmap(promised)(ends - x)
    return jnp.where(projected <= shortened, ends[0], ends[1]), sound
