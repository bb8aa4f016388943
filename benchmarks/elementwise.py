"""A million scalar problems at once: what they are, and how each package is asked for them.

Every function is written once, for NumPy and JAX alike. A minimiser is judged by its own
definition: |f'/f''| in units of the bracket, where f is no higher than in the bracket's middle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .peers import Contender, Solve
from .workloads import digits

EVALUATIONS = 12  # without which no method by values does
MOST_STEPS = 200


def quartic(x: Any, y: Any, xp: ModuleType = jnp) -> Any:
    """Smooth and convex: its minimum solves x^3 + x = y."""
    square = x * x
    return 0.25 * square * square + 0.5 * square - y[0] * x


def closest_point(x: Any, y: Any, xp: ModuleType = jnp) -> Any:
    """Not convex: half the squared distance of the point y from the curve (x, 2 sin x)."""
    return 0.5 * (x - y[0]) ** 2 + 0.5 * (2 * xp.sin(x) - y[1]) ** 2


@dataclass(frozen=True, eq=False)
class Scalars:
    """As many problems as ``y`` has columns."""

    fun: Callable
    y: np.ndarray  # (parameters, n)
    bracket: tuple[np.ndarray, np.ndarray, np.ndarray]  # (n,) each
    bracketing: bool = False
    asked: float = 6
    batched: bool = False  # by the solver, not by vmap

    @property
    def x0(self) -> np.ndarray:
        return self.bracket[1]

    def agreement(self, x: Any) -> float:
        """Digits of the worst of some thousand."""
        some = slice(0, 5000)
        x, y, (low, middle, high) = (
            jnp.asarray(x)[some],
            self.y[:, some],
            (b[some] for b in self.bracket),
        )
        slope = jax.vmap(jax.grad(self.fun), (0, 1))(x, y)
        curvature = jax.vmap(jax.hessian(self.fun), (0, 1))(x, y)
        error = jnp.where(curvature > 0, jnp.abs(slope / curvature) / (high - low), 1.0)
        higher = self.fun(x, y) > self.fun(middle, y) * (1 + 1e-12)
        return digits(float(jnp.max(jnp.where(higher, 1.0, error))))

    def limit(self) -> Callable[[], Any]:
        """The function alone."""
        step = lambda _, x: x + 1e-9 * self.fun(x, y)
        y = jnp.asarray(self.y)
        whole = jax.jit(lambda x: jax.lax.fori_loop(0, EVALUATIONS, step, x))
        x0 = jnp.asarray(self.x0)
        jax.block_until_ready(whole(x0))
        return lambda: jax.block_until_ready(whole(x0))


def smooth(count: int, bracketing: bool = False) -> Scalars:
    y = np.random.default_rng(0).uniform(-5, 5, (1, count))
    bracket = np.full(count, -3.0), np.full(count, 0.1), np.full(count, 3.0)
    return Scalars(quartic, y, bracket, bracketing)


def not_convex(count: int) -> Scalars:
    random = np.random.default_rng(0)
    y = np.stack([random.uniform(-6, 6, count), random.uniform(-1.9, 1.9, count)])
    return Scalars(closest_point, y, (y[0] - 4, y[0], y[0] + 4))


def optx_lite(work: Scalars, tol: float) -> Solve:
    import optx_lite as ox

    return _elementwise(ox.elementwise, work, tol, work.fun)


def scipy(work: Scalars, tol: float) -> Solve:
    from scipy.optimize import elementwise

    return _elementwise(elementwise, work, tol, lambda x, y: work.fun(x, y, np))


def _elementwise(package: Any, work: Scalars, tol: float, fun: Callable) -> Solve:
    on_rows = lambda x, *y: fun(x, y)

    def solve(x0, y):
        bracket = work.bracket
        if work.bracketing:
            bracket = package.bracket_minimum(on_rows, 0.0, args=tuple(y)).bracket
        return package.find_minimum(on_rows, bracket, args=tuple(y), tolerances={"xrtol": tol}).x

    return solve


def golden_section(work: Scalars, tol: float) -> Solve:
    import optimistix as optx

    solver = optx.GoldenSearch(rtol=tol, atol=tol)

    def one(x0, y, low, high):
        return optx.minimise(
            work.fun, solver, x0, y, {"lower": low, "upper": high}, max_steps=MOST_STEPS,
            throw=False,
        ).value  # fmt: skip

    low, _, high = map(jnp.asarray, work.bracket)
    return lambda x0, y: jax.vmap(one, (0, 1, 0, 0))(x0, y, low, high)


def newton(work: Scalars, tol: float) -> Solve:
    """On the derivative: right only where the function is convex."""
    import optimistix as optx

    solver = optx.Newton(rtol=tol, atol=tol)

    def one(x0, y):
        slope = jax.grad(work.fun)
        return optx.root_find(slope, solver, x0, y, max_steps=MOST_STEPS, throw=False).value

    return lambda x0, y: jax.vmap(one, (0, 1))(x0, y)


OURS = Contender("optx_lite", optx_lite, ours=True)
SCIPY = Contender("SciPy", scipy, in_jax=False)
CONVEX = (
    OURS,
    Contender("optimistix golden section", golden_section),
    Contender("optimistix Newton on f'", newton),
    SCIPY,
)
# Golden section in the whole bracket and Newton find the wrong points here, at any tolerance.
NOT_CONVEX = (OURS, SCIPY)
ROWS = {
    "scalars-smooth": ("{hundredfold} smooth", lambda lanes: smooth(100 * lanes), CONVEX),
    "scalars-not-convex": (
        "{hundredfold} not convex", lambda lanes: not_convex(100 * lanes), NOT_CONVEX,
    ),
    "scalars-bracketing": (
        "{hundredfold} bracketed first", lambda lanes: smooth(100 * lanes, True), NOT_CONVEX,
    ),
}  # fmt: skip
