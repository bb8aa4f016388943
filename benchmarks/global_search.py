"""Global search beside SciPy's: success at equal evaluations, and time.

``python -m benchmarks.global_search [seeds]``. The functions are those of SciPy's own
collection (go_benchmark_functions), each written once for NumPy and JAX, with its box and its
lowest value. A search has succeeded where it ends within 1e-6 of that. SciPy's differential
evolution runs as it comes, unpolished, so that both are judged by the search alone; ours with
``maxfun`` the evaluations that SciPy's took for the same function and seed.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize as so

import optx_lite as ox

CLOSE = 1e-6


@dataclass(frozen=True)
class Problem:
    """A function of SciPy's collection."""

    fun: Callable[[Any, ModuleType], Any]
    box: tuple[tuple[float, float], ...]
    lowest: float


def _ackley(x: Any, xp: ModuleType) -> Any:
    root = xp.sqrt(xp.mean(x**2))
    return 20 - 20 * xp.exp(-0.2 * root) + xp.e - xp.exp(xp.mean(xp.cos(2 * xp.pi * x)))


def _rosenbrock(x: Any, xp: ModuleType) -> Any:
    return xp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def _levy(x: Any, xp: ModuleType) -> Any:
    w = 1 + (x - 1) / 4
    inner = xp.sum((w[:-1] - 1) ** 2 * (1 + 10 * xp.sin(xp.pi * w[:-1] + 1) ** 2))
    last = (w[-1] - 1) ** 2 * (1 + xp.sin(2 * xp.pi * w[-1]) ** 2)
    return xp.sin(xp.pi * w[0]) ** 2 + inner + last


def _goldstein_price(x: Any, xp: ModuleType) -> Any:
    a, b = x[0], x[1]
    first = 19 - 14 * a + 3 * a**2 - 14 * b + 6 * a * b + 3 * b**2
    second = 18 - 32 * a + 12 * a**2 + 48 * b - 36 * a * b + 27 * b**2
    return (1 + (a + b + 1) ** 2 * first) * (30 + (2 * a - 3 * b) ** 2 * second)


def _branin(x: Any, xp: ModuleType) -> Any:
    bend = x[1] - 5.1 / (4 * xp.pi**2) * x[0] ** 2 + 5 / xp.pi * x[0] - 6
    return bend**2 + 10 * (1 - 1 / (8 * xp.pi)) * xp.cos(x[0]) + 10


def _camel(x: Any, xp: ModuleType) -> Any:
    a, b = x[0], x[1]
    return (4 - 2.1 * a**2 + a**4 / 3) * a**2 + a * b + (4 * b**2 - 4) * b**2


def _shubert(x: Any, xp: ModuleType) -> Any:
    j = np.arange(1, 6.0)
    one, two = (xp.sum(j * xp.cos((j + 1) * x[i] + j)) for i in (0, 1))
    return one * two


_HARTMANN_3 = (
    np.array([[3.0, 10, 30], [0.1, 10, 35], [3.0, 10, 30], [0.1, 10, 35]]),
    np.array([[0.3689, 0.1170, 0.2673], [0.4699, 0.4387, 0.7470], [0.1091, 0.8732, 0.5547],
              [0.03815, 0.5743, 0.8828]]),
)  # fmt: skip
_SHEKEL = (
    np.array([[4.0, 4, 4, 4], [1, 1, 1, 1], [8, 8, 8, 8], [6, 6, 6, 6], [3, 7, 3, 7], [2, 9, 2, 9],
              [5, 5, 3, 3], [8, 1, 8, 1], [6, 2, 6, 2], [7, 3.6, 7, 3.6]]),
    np.array([0.1, 0.2, 0.2, 0.4, 0.4, 0.6, 0.3, 0.7, 0.5, 0.5]),
)  # fmt: skip


def _hartmann(x: Any, xp: ModuleType) -> Any:
    a, p = _HARTMANN_3
    return -xp.sum(np.array([1, 1.2, 3, 3.2]) * xp.exp(-xp.sum(a * (x[None] - p) ** 2, axis=1)))


def _shekel(x: Any, xp: ModuleType) -> Any:
    a, c = _SHEKEL
    return -xp.sum(1 / (xp.sum((x[None] - a) ** 2, axis=1) + c))


def _griewank(x: Any, xp: ModuleType) -> Any:
    root = np.sqrt(np.arange(1.0, len(x) + 1))
    return xp.sum(x**2) / 4000 - xp.prod(xp.cos(x / root)) + 1


def _zakharov(x: Any, xp: ModuleType) -> Any:
    half = 0.5 * xp.sum(np.arange(1.0, len(x) + 1) * x)
    return xp.sum(x**2) + half**2 + half**4


def _mccormick(x: Any, xp: ModuleType) -> Any:
    return xp.sin(x[0] + x[1]) + (x[0] - x[1]) ** 2 - 1.5 * x[0] + 2.5 * x[1] + 1


def _box(low: float, high: float, n: int) -> tuple[tuple[float, float], ...]:
    return ((low, high),) * n


PROBLEMS = {
    "Ackley 2": Problem(_ackley, _box(-30, 30, 2), 0),
    "Ackley 10": Problem(_ackley, _box(-30, 30, 10), 0),
    "Beale": Problem(
        lambda x, xp: (x[0] * x[1] - x[0] + 1.5) ** 2 + (x[0] * x[1] ** 2 - x[0] + 2.25) ** 2
        + (x[0] * x[1] ** 3 - x[0] + 2.625) ** 2, _box(-4.5, 4.5, 2), 0),
    "Booth": Problem(
        lambda x, xp: (x[0] + 2 * x[1] - 7) ** 2 + (2 * x[0] + x[1] - 5) ** 2, _box(-10, 10, 2), 0),
    "Bohachevsky": Problem(
        lambda x, xp: x[0] ** 2 + 2 * x[1] ** 2 - 0.3 * xp.cos(3 * xp.pi * x[0])
        - 0.4 * xp.cos(4 * xp.pi * x[1]) + 0.7, _box(-15, 15, 2), 0),
    "Branin": Problem(_branin, ((-5, 10), (0, 15)), 0.39788735772973816),
    "SixHumpCamel": Problem(_camel, _box(-5, 5, 2), -1.031628453489877),
    "DropWave": Problem(
        lambda x, xp: -(1 + xp.cos(12 * xp.sqrt(xp.sum(x**2)))) / (2 + 0.5 * xp.sum(x**2)),
        _box(-5.12, 5.12, 2), -1),
    "Easom": Problem(
        lambda x, xp: -xp.cos(x[0]) * xp.cos(x[1])
        * xp.exp(-((x[0] - xp.pi) ** 2) - (x[1] - xp.pi) ** 2), _box(-100, 100, 2), -1),
    "EggCrate": Problem(
        lambda x, xp: xp.sum(x**2) + 25 * xp.sum(xp.sin(x) ** 2), _box(-5, 5, 2), 0),
    "GoldsteinPrice": Problem(_goldstein_price, _box(-2, 2, 2), 3),
    "Griewank 2": Problem(_griewank, _box(-100, 100, 2), 0),
    "Hartmann3": Problem(_hartmann, _box(0, 1, 3), -3.8627821478),
    "Himmelblau": Problem(
        lambda x, xp: (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2, _box(-5, 5, 2), 0),
    "Levy 5": Problem(_levy, _box(-10, 10, 5), 0),
    "McCormick": Problem(_mccormick, ((-1.5, 4), (-3, 3)), -1.913222954981037),
    "Matyas": Problem(
        lambda x, xp: 0.26 * xp.sum(x**2) - 0.48 * x[0] * x[1], _box(-10, 10, 2), 0),
    "Rastrigin 2": Problem(
        lambda x, xp: xp.sum(x**2 - 10 * xp.cos(2 * xp.pi * x) + 10), _box(-5.12, 5.12, 2), 0),
    "Rastrigin 5": Problem(
        lambda x, xp: xp.sum(x**2 - 10 * xp.cos(2 * xp.pi * x) + 10), _box(-5.12, 5.12, 5), 0),
    "Rosenbrock 2": Problem(_rosenbrock, _box(-30, 30, 2), 0),
    "Rosenbrock 5": Problem(_rosenbrock, _box(-30, 30, 5), 0),
    "Schwefel26 3": Problem(
        lambda x, xp: 418.982887272433799 * len(x) - xp.sum(x * xp.sin(xp.sqrt(xp.abs(x)))),
        _box(-500, 500, 3), 0),
    "Shekel10": Problem(_shekel, _box(0, 10, 4), -10.5362837262),
    "Shubert": Problem(_shubert, _box(-10, 10, 2), -186.7309088310239),
    "Sphere 10": Problem(lambda x, xp: xp.sum(x**2), _box(-5.12, 5.12, 10), 0),
    "StyblinskiTang 3": Problem(
        lambda x, xp: xp.sum(x**4 - 16 * x**2 + 5 * x) / 2, _box(-5, 5, 3), 3 * -39.16616570377142),
    "Zakharov 5": Problem(_zakharov, _box(-5, 10, 5), 0),
}  # fmt: skip


def compare(problem: Problem, seeds: int) -> tuple[int, int, float, float]:
    """Successes of SciPy's and ours, and the seconds of a search, warm."""
    found, evaluations, start = 0, [], time.perf_counter()
    for seed in range(seeds):
        res = so.differential_evolution(
            lambda x: problem.fun(x, np), problem.box, rng=seed, polish=False
        )
        found += bool(res.fun - problem.lowest < CLOSE)
        evaluations.append(res.nfev)
    scipys = (time.perf_counter() - start) / seeds

    def search(seed: int, most: int) -> Any:
        return ox.differential_evolution(
            lambda x: problem.fun(x, jnp), problem.box, rng=seed, polish=False, maxfun=most
        )

    jax.block_until_ready(search(0, evaluations[0]).x)
    start = time.perf_counter()
    ours = [float(search(*pair).fun) for pair in enumerate(evaluations)]
    seconds = (time.perf_counter() - start) / seeds
    return found, int(np.sum(np.array(ours) - problem.lowest < CLOSE)), scipys, seconds


def main() -> None:
    """Print a line for each function, and the sums."""
    jax.config.update("jax_enable_x64", True)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    total = np.zeros(2, int)
    ratios = []
    print(f"{'function':<18}{'SciPy':>8}{'ours':>8}{'SciPy ms':>12}{'ours ms':>10}{'times':>8}")
    for name, problem in PROBLEMS.items():
        theirs, ours, slow, fast = compare(problem, seeds)
        total += theirs, ours
        ratios.append(slow / fast)
        print(
            f"{name:<18}{theirs:>8}{ours:>8}{1e3 * slow:>12.1f}{1e3 * fast:>10.2f}"
            f"{slow / fast:>8.1f}",
            flush=True,
        )
    print(f"of {seeds * len(PROBLEMS)}: SciPy {total[0]}, ours {total[1]};"
          f" median of times {np.median(ratios):.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
