"""Functions on which searches for the lowest minimum are judged.

Most are in SciPy's collection (go_benchmark_functions), too; each is written here once for NumPy
and JAX, from its published formula, with its box and its lowest value.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np


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


def _alpine2(x: Any, xp: ModuleType) -> Any:
    return -xp.prod(xp.sqrt(x) * xp.sin(x))


def _bird(x: Any, xp: ModuleType) -> Any:
    sin, cos = xp.sin(x[0]), xp.cos(x[1])
    return (x[0] - x[1]) ** 2 + xp.exp((1 - sin) ** 2) * cos + xp.exp((1 - cos) ** 2) * sin


def _brown(x: Any, xp: ModuleType) -> Any:
    a, b = x[:-1] ** 2, x[1:] ** 2
    return xp.sum(a ** (b + 1) + b ** (a + 1))


def _around_pi(x: Any, xp: ModuleType, reach: float) -> Any:
    return xp.exp(xp.abs(reach - xp.sqrt(xp.sum(x**2)) / xp.pi))


def _cross_in_tray(x: Any, xp: ModuleType) -> Any:
    waves = xp.sin(x[0]) * xp.sin(x[1])
    return -0.0001 * (xp.abs(waves * _around_pi(x, xp, 100.0)) + 1) ** 0.1


def _holder_table(x: Any, xp: ModuleType) -> Any:
    return -xp.abs(xp.sin(x[0]) * xp.cos(x[1]) * _around_pi(x, xp, 1.0))


def _dixon_price(x: Any, xp: ModuleType) -> Any:
    i = np.arange(2.0, len(x) + 1)
    return (x[0] - 1) ** 2 + xp.sum(i * (2 * x[1:] ** 2 - x[:-1]) ** 2)


def _freudenstein_roth(x: Any, xp: ModuleType) -> Any:
    first = x[0] - 13 + ((5 - x[1]) * x[1] - 2) * x[1]
    return first**2 + (x[0] - 29 + ((x[1] + 1) * x[1] - 14) * x[1]) ** 2


def _giunta(x: Any, xp: ModuleType) -> Any:
    y = 16 * x / 15 - 1
    return 0.6 + xp.sum(xp.sin(y) + xp.sin(y) ** 2 + xp.sin(4 * y) / 50)


def _hosaki(x: Any, xp: ModuleType) -> Any:
    a, b = x[0], x[1]
    return (1 - 8 * a + 7 * a**2 - 7 / 3 * a**3 + a**4 / 4) * b**2 * xp.exp(-b)


_HARTMANN_6 = (
    np.array([[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8],
              [17, 8, 0.05, 10, 0.1, 14]]),
    np.array([[0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886],
              [0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991],
              [0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650],
              [0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381]]),
)  # fmt: skip


def _hartmann(x: Any, xp: ModuleType) -> Any:
    a, p = _HARTMANN_3 if len(x) == 3 else _HARTMANN_6
    return -xp.sum(np.array([1, 1.2, 3, 3.2]) * xp.exp(-xp.sum(a * (x[None] - p) ** 2, axis=1)))


def _levy13(x: Any, xp: ModuleType) -> Any:
    a, b = x[0] - 1, x[1] - 1
    waves = a**2 * (1 + xp.sin(3 * xp.pi * x[1]) ** 2) + b**2 * (1 + xp.sin(2 * xp.pi * x[1]) ** 2)
    return xp.sin(3 * xp.pi * x[0]) ** 2 + waves


def _michalewicz(x: Any, xp: ModuleType) -> Any:
    i = np.arange(1.0, len(x) + 1)
    return -xp.sum(xp.sin(x) * xp.sin(i * x**2 / xp.pi) ** 20)


def _paviani(x: Any, xp: ModuleType) -> Any:
    return xp.sum(xp.log(10 - x) ** 2 + xp.log(x - 2) ** 2) - xp.prod(x) ** 0.2


def _powell(x: Any, xp: ModuleType) -> Any:
    a, b, c, d = x[0], x[1], x[2], x[3]
    return (a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4


def _quadratic(x: Any, xp: ModuleType) -> Any:
    a, b = x[0], x[1]
    linear = -3803.84 - 138.08 * a - 232.92 * b
    return linear + 128.08 * a**2 + 203.64 * b**2 + 182.25 * a * b


def _salomon(x: Any, xp: ModuleType) -> Any:
    r = xp.sqrt(xp.sum(x**2))
    return 1 - xp.cos(2 * xp.pi * r) + 0.1 * r


def _schaffer(x: Any, xp: ModuleType) -> Any:
    r = xp.sum(x**2)
    return 0.5 + (xp.sin(r) ** 2 - 0.5) / (1 + 0.001 * r) ** 2


def _trid(x: Any, xp: ModuleType) -> Any:
    return xp.sum((x - 1) ** 2) - xp.sum(x[1:] * x[:-1])


def _wood(x: Any, xp: ModuleType) -> Any:
    a, b, c, d = x[0], x[1], x[2], x[3]
    cross = 10.1 * ((b - 1) ** 2 + (d - 1) ** 2) + 19.8 * (b - 1) * (d - 1)
    first = 100 * (b - a**2) ** 2 + (1 - a) ** 2
    return first + 90 * (d - c**2) ** 2 + (1 - c) ** 2 + cross


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
    "Adjiman": Problem(
        lambda x, xp: xp.cos(x[0]) * xp.sin(x[1]) - x[0] / (x[1] ** 2 + 1), ((-1, 2), (-1, 1)),
        -2.02180678),
    "Alpine1 3": Problem(
        lambda x, xp: xp.sum(xp.abs(x * xp.sin(x) + 0.1 * x)), _box(-10, 10, 3), 0),
    "Alpine2": Problem(_alpine2, _box(0, 10, 2), -7.885600724),
    "BartelsConn": Problem(
        lambda x, xp: xp.abs(x[0] ** 2 + x[1] ** 2 + x[0] * x[1]) + xp.abs(xp.sin(x[0]))
        + xp.abs(xp.cos(x[1])), _box(-500, 500, 2), 1),
    "Bird": Problem(_bird, _box(-2 * np.pi, 2 * np.pi, 2), -106.764536749),
    "Brent": Problem(
        lambda x, xp: xp.sum((x + 10) ** 2) + xp.exp(-xp.sum(x**2)), _box(-10, 10, 2), 0),
    "Brown 3": Problem(_brown, _box(-1, 4, 3), 0),
    "CrossInTray": Problem(_cross_in_tray, _box(-10, 10, 2), -2.062611870822739),
    "Cube": Problem(
        lambda x, xp: 100 * (x[1] - x[0] ** 3) ** 2 + (1 - x[0]) ** 2, _box(-10, 10, 2), 0),
    "DixonPrice 4": Problem(_dixon_price, _box(-10, 10, 4), 0),
    "Exponential 4": Problem(
        lambda x, xp: -xp.exp(-0.5 * xp.sum(x**2)), _box(-1, 1, 4), -1),
    "FreudensteinRoth": Problem(_freudenstein_roth, _box(-10, 10, 2), 0),
    "Giunta": Problem(_giunta, _box(-1, 1, 2), 0.06447042053690566),
    "Hartmann6": Problem(_hartmann, _box(0, 1, 6), -3.3223680114),
    "HolderTable": Problem(_holder_table, _box(-10, 10, 2), -19.2085025678845),
    "Hosaki": Problem(_hosaki, ((0, 5), (0, 6)), -2.345811576101292),
    "Leon": Problem(
        lambda x, xp: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2, _box(-1.2, 1.2, 2), 0),
    "Levy13": Problem(_levy13, _box(-10, 10, 2), 0),
    "Michalewicz": Problem(_michalewicz, _box(0, np.pi, 2), -1.801303410098554),
    "Parsopoulos": Problem(
        lambda x, xp: xp.cos(x[0]) ** 2 + xp.sin(x[1]) ** 2, _box(-5, 5, 2), 0),
    "Paviani 10": Problem(_paviani, _box(2.001, 9.999, 10), -45.77846970744629),
    "Powell 4": Problem(_powell, _box(-4, 5, 4), 0),
    "Price1": Problem(lambda x, xp: xp.sum((xp.abs(x) - 5) ** 2), _box(-500, 500, 2), 0),
    "Quadratic": Problem(_quadratic, _box(-10, 10, 2), -3873.7241821862713),
    "Salomon": Problem(_salomon, _box(-100, 100, 2), 0),
    "Schaffer1": Problem(_schaffer, _box(-100, 100, 2), 0),
    "Schwefel2 4": Problem(
        lambda x, xp: xp.sum(xp.cumsum(x) ** 2), _box(-100, 100, 4), 0),
    "Schwefel22 3": Problem(
        lambda x, xp: xp.sum(xp.abs(x)) + xp.prod(xp.abs(x)), _box(-100, 100, 3), 0),
    "ThreeHumpCamel": Problem(
        lambda x, xp: 2 * x[0] ** 2 - 1.05 * x[0] ** 4 + x[0] ** 6 / 6 + x[0] * x[1] + x[1] ** 2,
        _box(-5, 5, 2), 0),
    "Trid 6": Problem(_trid, _box(-20, 20, 6), -50),
    "Univariate 2": Problem(
        lambda x, xp: xp.sin(x[0]) + xp.sin(10 / 3 * x[0]), ((2.7, 7.5),), -1.899599349152114),
    "Wavy 3": Problem(
        lambda x, xp: 1 - xp.mean(xp.cos(10 * x) * xp.exp(-(x**2) / 2)), _box(-np.pi, np.pi, 3), 0),
    "Wood": Problem(_wood, _box(-10, 10, 4), 0),
    "XinSheYang2 2": Problem(
        lambda x, xp: xp.sum(xp.abs(x)) * xp.exp(-xp.sum(xp.sin(x**2))),
        _box(-2 * np.pi, 2 * np.pi, 2), 0),
    "Zettl": Problem(
        lambda x, xp: (x[0] ** 2 + x[1] ** 2 - 2 * x[0]) ** 2 + 0.25 * x[0], _box(-1, 5, 2),
        -0.0037912372),
}  # fmt: skip
