"""What is timed: models, data and starts, and the right answers to judge the solvers by.

Every residual is written once, for NumPy and JAX alike, and its Jacobian by hand, for SciPy.
The right answer comes from no solver that is timed: undamped Gauss-Newton by QR, from the
parameters that made the data, until it has long settled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

# -- models --------------------------------------------------------------------------------


class Decay:
    """x0 exp(-x1 t) + x2."""

    @staticmethod
    def residuals(x: Any, t: Any, y: Any, xp: ModuleType = jnp) -> Any:
        return x[0] * xp.exp(-x[1] * t) + x[2] - y

    @staticmethod
    def jacobian(x: Any, t: Any, y: Any) -> np.ndarray:
        fall = np.exp(-x[1] * t)
        return np.stack([fall, -x[0] * t * fall, np.ones_like(t)], axis=1)


class DecayWithDrift:
    """x0 exp(-x1 t) + x2 + x3 t."""

    @staticmethod
    def residuals(x: Any, t: Any, y: Any, xp: ModuleType = jnp) -> Any:
        return x[0] * xp.exp(-x[1] * t) + x[2] + x[3] * t - y

    @staticmethod
    def jacobian(x: Any, t: Any, y: Any) -> np.ndarray:
        fall = np.exp(-x[1] * t)
        return np.stack([fall, -x[0] * t * fall, np.ones_like(t), t], axis=1)


class Saturation:
    """tanh(A x): n inputs to each of m sensors that saturate. Here t is the matrix A."""

    @staticmethod
    def residuals(x: Any, t: Any, y: Any, xp: ModuleType = jnp) -> Any:
        return xp.tanh(t @ x) - y

    @staticmethod
    def jacobian(x: Any, t: Any, y: Any) -> np.ndarray:
        return (1 - np.tanh(t @ x) ** 2)[:, None] * t


# -- workloads -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Workload:
    """One fit, or many at once if ``x0`` and ``y`` have an axis of lanes."""

    model: Any
    t: np.ndarray  # shared by all lanes
    y: np.ndarray  # (m,) or (lanes, m)
    x0: np.ndarray  # (n,) or (lanes, n)
    truth: np.ndarray  # (n,), or (lanes, n): what made the data
    floor: float | None = None  # lower bound of every variable; at most the last one is active
    asked: float = 6  # digits, of every solver, in the lane where it does worst

    @property
    def batched(self) -> bool:
        return self.x0.ndim == 2

    @property
    def residuals(self) -> Callable:
        return self.model.residuals

    @cached_property
    def bounds(self) -> tuple[float, float]:
        return (-np.inf if self.floor is None else self.floor, np.inf)

    @cached_property
    def solution(self) -> np.ndarray:
        """In float64, lanes first."""
        y, truth = (np.asarray(np.atleast_2d(a), float) for a in (self.y, self.truth))
        truth = np.broadcast_to(truth, (len(y), truth.shape[1]))
        free = gauss_newton(self.model, self.t.astype(float), y, truth, truth.shape[1])
        if self.floor is None:
            return free
        on_face = np.concatenate([truth[:, :-1], np.full((len(y), 1), self.floor)], axis=1)
        held = gauss_newton(self.model, self.t.astype(float), y, on_face, truth.shape[1] - 1)
        return np.where(free[:, -1:] < self.floor, held, free)

    def agreement(self, x: Any) -> float:
        """Digits to which ``x`` is right in its worst lane, relative to each lane's largest entry."""
        x = np.atleast_2d(np.asarray(x, float))
        right = self.solution[: len(x)]
        error = np.max(np.abs(x - right) / np.max(np.abs(right), axis=1, keepdims=True))
        return digits(error)

    def lanes(self, count: int) -> "Workload":
        """The first ``count`` lanes of a batch."""
        return Workload(
            self.model, self.t, self.y[:count], self.x0[:count], self.truth[:count],
            self.floor, self.asked,
        )  # fmt: skip


def digits(error: float) -> float:
    """Of agreement, for a relative error; 0 for NaN."""
    return float(-np.log10(np.clip(error, 1e-16, 1))) if error < 1 else 0.0


def gauss_newton(
    model: Any, t: np.ndarray, y: np.ndarray, x: np.ndarray, moving: int
) -> np.ndarray:
    """The minimisers next to ``x`` in the first ``moving`` variables, the others held."""
    x = x.copy()
    for lane in range(len(y)):
        for _ in range(30):
            f = model.residuals(x[lane], t, y[lane], np)
            q, r = np.linalg.qr(model.jacobian(x[lane], t, y[lane])[:, :moving])
            step = np.linalg.solve(r, q.T @ f)
            x[lane, :moving] -= step
            if np.max(np.abs(step)) <= 1e-12 * np.max(np.abs(x[lane])):
                break
    return x


def small(bounded: bool = False) -> Workload:
    """n = 3, m = 100; with a bound which is active at the solution."""
    t = np.linspace(0, 3, 100)
    truth = np.array([2.5, 1.3, -0.1 if bounded else 0.5])
    noise = 0.05 * np.random.default_rng(0).standard_normal(100)
    y = Decay.residuals(truth, t, noise, np)
    return Workload(Decay, t, y, np.array([1.0, 1.0, 1.0]), truth, 0.0 if bounded else None, 8)


def middle() -> Workload:
    """n = 50, m = 2000."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal((2000, 50)) / np.sqrt(50)
    truth = random.standard_normal(50)
    y = Saturation.residuals(truth, matrix, 0.05 * random.standard_normal(2000), np)
    return Workload(Saturation, matrix, y, np.zeros(50), truth, asked=8)


def many(lanes: int, kind: str = "easy", dtype: Any = np.float64) -> Workload:
    """n = 4, m = 50; 'easy', 'bounded', or 1 % of the lanes 'hard', in a row or 'scattered'."""
    random = np.random.default_rng(0)
    t = np.linspace(0, 3, 50)
    spread = 1 + 0.1 * random.standard_normal((lanes, 4))
    truth = np.array([2.0, 1.5, 0.5, 0.0 if kind == "bounded" else 0.2]) * spread
    noise = 0.02 * random.standard_normal((lanes, 50))
    y = DecayWithDrift.residuals(truth.T[:, :, None], t, noise, np)
    x0 = np.array([1.5, 1.0, 0.3, 0.1]) * np.ones((lanes, 1))
    if kind in ("hard", "scattered"):
        # Far away along a bent valley: every method takes ten times the steps and more.
        where = random.permutation(lanes) if kind == "scattered" else np.arange(lanes)
        x0[where[: lanes // 100]] = [1e3, 1e-4, 0.0, 0.0]
    asked = 3 if dtype == np.float32 else 6
    arrays = (a.astype(dtype) for a in (t, y, x0, truth))
    return Workload(DecayWithDrift, *arrays, 0.0 if kind == "bounded" else None, asked)
