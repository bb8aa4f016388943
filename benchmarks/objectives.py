"""What minimisers are timed on: functions, boxes and starts.

Every function is written once, for NumPy and JAX alike, and its gradient by hand, for SciPy. A
minimum is judged by its own definition: the digits by which the projected gradient has fallen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .workloads import digits


class Rosenbrock:
    """The extended one: sum 100 (x_2i - x_{2i-1}^2)^2 + (y_i - x_{2i-1})^2."""

    @staticmethod
    def value(x: Any, y: Any, xp: ModuleType = jnp) -> Any:
        return xp.sum(100 * (x[1::2] - x[::2] ** 2) ** 2 + (y - x[::2]) ** 2)

    @staticmethod
    def gradient(x: Any, y: Any) -> np.ndarray:
        bend = 200 * (x[1::2] - x[::2] ** 2)
        out = np.empty_like(x)
        out[1::2] = bend
        out[::2] = -2 * bend * x[::2] - 2 * (y - x[::2])
        return out


class Logistic:
    """Mean log-loss of a logistic regression on the rows of a matrix, with a small ridge."""

    def __init__(self, matrix: np.ndarray):
        self.matrix = matrix

    def value(self, x: Any, y: Any, xp: ModuleType = jnp) -> Any:
        margin = y * (xp.asarray(self.matrix) @ x)
        return xp.mean(xp.logaddexp(0 * margin, -margin)) + 0.5e-3 * xp.sum(x * x)

    def gradient(self, x: Any, y: Any) -> np.ndarray:
        margin = y * (self.matrix @ x)
        return self.matrix.T @ (-y / (1 + np.exp(margin))) / len(y) + 1e-3 * x


@dataclass(frozen=True, eq=False)
class Objective:
    """One problem, or many at once if ``x0`` and ``y`` have an axis of lanes."""

    model: Any
    y: np.ndarray
    x0: np.ndarray  # (n,) or (lanes, n)
    lower: np.ndarray | None = None  # (n,)
    upper: np.ndarray | None = None
    asked: float = 6

    @property
    def batched(self) -> bool:
        return self.x0.ndim == 2

    @property
    def bounds(self) -> Any:
        if self.lower is None:
            return None
        return np.stack([self.lower, self.upper], axis=1)

    def projected(self, x: np.ndarray, y: np.ndarray) -> float:
        moved = -self.model.gradient(x, y)
        if self.lower is not None:
            moved = np.clip(moved, self.lower - x, self.upper - x)
        return float(np.max(np.abs(moved)))

    def agreement(self, x: Any) -> float:
        """Digits by which the projected gradient has fallen, in the worst lane."""
        x, x0, y = (np.atleast_2d(np.asarray(a, float)) for a in (x, self.x0, self.y))
        lanes = zip(x, x0[: len(x)], y[: len(x)], strict=True)
        return min(digits(self.projected(x, y) / self.projected(x0, y)) for x, x0, y in lanes)

    def lanes(self, count: int) -> "Objective":
        """The first ``count`` lanes of a batch."""
        return Objective(
            self.model, self.y[:count], self.x0[:count], self.lower, self.upper, self.asked
        )

    def limit(self, result: Callable) -> Callable[[], Any]:
        """Value and gradient alone, as often as our solver asked for them."""
        x0, y = jnp.asarray(self.x0), jnp.asarray(self.y)
        solve = jax.vmap(result) if self.batched else result
        steps = jax.jit(solve)(x0, y).nfev
        both = jax.value_and_grad(self.model.value)

        def run(x0, y, count):
            step = lambda _, x: x - 1e-9 * both(x, y)[1]
            return jax.lax.fori_loop(0, count, step, x0)

        whole = jax.jit(jax.vmap(run) if self.batched else run)
        jax.block_until_ready(whole(x0, y, steps))
        return lambda: jax.block_until_ready(whole(x0, y, steps))


def rosenbrock(n: int, bounded: bool = True) -> Objective:
    """From as many starts as there are pairs; free, or x_2i <= 0.7 for every other pair."""
    x0 = np.tile([-1.2, 1.0], n // 2) * (1 + 0.1 * np.sin(np.arange(n)))
    if not bounded:
        return Objective(Rosenbrock, np.ones(n // 2), x0)
    upper = np.where(np.arange(n) % 4 == 1, 0.7, np.inf)
    return Objective(Rosenbrock, np.ones(n // 2), np.minimum(x0, upper), np.full(n, -1.5), upper)


def many_rosenbrocks(lanes: int, bounded: bool = True) -> Objective:
    """n = 10, each with another valley and another start."""
    random = np.random.default_rng(0)
    one = rosenbrock(10, bounded)
    y = 1 + 0.1 * random.standard_normal((lanes, 5))
    x0 = one.x0 * (1 + 0.1 * random.standard_normal((lanes, 10)))
    if bounded:
        x0 = np.clip(x0, one.lower, one.upper)
    return Objective(Rosenbrock, y, x0, one.lower, one.upper, asked=5)


def logistic() -> Objective:
    """5000 x 200, coefficients within 0.3 of 0: about every sixth is at a bound."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal((5000, 200))
    truth = 0.5 * random.standard_normal(200) * (random.random(200) < 0.4)
    y = np.where(random.random(5000) < 1 / (1 + np.exp(-matrix @ truth)), 1.0, -1.0)
    box = np.full(200, 0.3)
    return Objective(Logistic(matrix), y, np.zeros(200), -box, box)
