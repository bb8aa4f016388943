"""The least-squares test problems of Moré, Garbow and Hillstrom.

J. J. Moré, B. S. Garbow and K. E. Hillstrom, "Testing unconstrained optimization
software", ACM Transactions on Mathematical Software 7 (1981), 17-41.

All 35, in the paper's order and under its numbers. A residual function takes x of
shape (n,) and gives f of shape (m,) in the same dtype. Where the paper leaves n or
m free, n is the length of x and m is what the paper's own runs take, or near it.

Each problem is meant to be started at 1, 10 and 100 times its standard start. Known
for their difficulty:

- Meyer (10): a narrow, bent valley in which the condition of J passes 1e7 and its
  columns differ by 1e5, so that an unscaled trust region crawls. NIST's MGH10 is this
  very fit: its starts are 100 times this one, and this one.
- Jennrich and Sampson (6) from 100 times: the residuals are finite, their squares
  overflow.
- Bard (8), Kowalik and Osborne (15), Beale (5), Gulf (11): the cost falls towards a
  plateau at infinity, where a run may rightly end.
- Powell singular (13, 22): J loses rank at the solution; convergence is linear there.
- Chebyquad (35) from far starts: the columns of J differ by 1e8 although the variables
  are alike, and mislead as a scaling; the plain one does better.

>>> problem = by_name["rosenbrock"]
>>> problem.number, problem.start(10), problem.minima
(1, array([-12.,  10.]), (0.0,))
>>> float(problem.residuals(jnp.asarray(problem.start()))[0])
-4.4...
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclass(frozen=True)
class Problem:
    """One problem: minimise half the sum of squares of ``residuals(x)`` from ``x0``."""

    number: int  # in the paper
    name: str  # with n appended where the paper leaves it free
    residuals: Callable[[Array], Array]
    x0: tuple[float, ...]  # the standard start
    minima: tuple[float, ...]  # known local minima of 0.5 * sum(f**2), the least first

    def start(self, factor: float = 1.0) -> np.ndarray:
        """``factor`` times the standard start; where that is zero, ``factor`` everywhere."""
        x0 = np.asarray(self.x0)
        return factor * x0 if factor == 1 or x0.any() else np.full_like(x0, factor)


_found: list[Problem] = []


def _problem(number: int, *cases: tuple[tuple[float, ...], float | tuple[float, ...]]):
    """Enter the function below under its number in the paper, with (start, minima) of each n.

    The paper prints sum(f**2) at a minimum to six digits. Here it is halved, and carried
    on to about twelve where it is not zero. Minima that the paper leaves out, and plateaus
    at infinity, are added where runs from the far starts end there.
    """

    def enter(residuals):
        for x0, minima in cases:
            name = residuals.__name__ + (f"_{len(x0)}" if number >= 20 else "")
            minima = minima if isinstance(minima, tuple) else (minima,)
            _found.append(Problem(number, name, residuals, x0, minima))
        return residuals

    return enter


def _numbers(text: str) -> np.ndarray:
    return np.array(text.split(), float)


def _like(x: Array, data) -> Array:
    """Data in the dtype of x: the functions hold under strict promotion too."""
    return jnp.asarray(data, dtype=x.dtype)


def _count(x: Array, m: int) -> Array:
    """1, 2, ..., m in the dtype of x."""
    return jnp.arange(1, m + 1, dtype=x.dtype)


def _nodes(n: int) -> tuple[float, ...]:
    """The n inner nodes of an even grid on [0, 1]."""
    return tuple(j / (n + 1) for j in range(1, n + 1))


def _parabola(n: int) -> tuple[float, ...]:
    """The values t (t - 1) at the nodes t."""
    return tuple(t * (t - 1) for t in _nodes(n))


@_problem(1, ((-1.2, 1.0), 0.0))
def rosenbrock(x):
    a, b = x
    return jnp.stack([10 * (b - a**2), 1 - a])


@_problem(2, ((0.5, -2.0), (0.0, 24.4921268396)))
def freudenstein_roth(x):
    a, b = x
    return jnp.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


@_problem(3, ((0.0, 1.0), 0.0))
def powell_badly_scaled(x):
    a, b = x
    return jnp.stack([1e4 * a * b - 1, jnp.exp(-a) + jnp.exp(-b) - 1.0001])


@_problem(4, ((1.0, 1.0), 0.0))
def brown_badly_scaled(x):
    a, b = x
    return jnp.stack([a - 1e6, b - 2e-6, a * b - 2])


@_problem(5, ((1.0, 1.0), (0.0, 0.226004464286)))
def beale(x):
    a, b = x
    return _like(x, [1.5, 2.25, 2.625]) - a * (1 - jnp.stack([b, b**2, b**3]))


@_problem(6, ((0.3, 0.4), (62.1810911778, 129.790095067)))
def jennrich_sampson(x):
    i = _count(x, 10)
    return 2 + 2 * i - jnp.exp(i * x[0]) - jnp.exp(i * x[1])


@_problem(7, ((-1.0, 0.0, 0.0), 0.0))
def helical_valley(x):
    a, b, c = x
    # The paper's angle in turns, 0 along +a. It jumps at the half-axis -b, and not at -a,
    # where the start lies.
    turns = 0.25 + jnp.arctan2(-a, b) / (2 * np.pi)
    return jnp.stack([10 * (c - 10 * turns), 10 * (jnp.sqrt(a**2 + b**2) - 1), c])


_BARD = _numbers(".14 .18 .22 .25 .29 .32 .35 .39 .37 .58 .73 .96 1.34 2.10 4.39")


@_problem(8, ((1.0, 1.0, 1.0), (4.10743865329e-3, 8.71434666667)))
def bard(x):
    u = _count(x, 15)
    v = 16 - u
    return _like(x, _BARD) - x[0] - u / (v * x[1] + jnp.minimum(u, v) * x[2])


_GAUSSIAN = _numbers(".0009 .0044 .0175 .0540 .1295 .2420 .3521 .3989")


@_problem(9, ((0.4, 1.0, 0.0), 5.63966384809e-9))
def gaussian(x):
    t = (8 - _count(x, 15)) / 2
    y = np.concatenate([_GAUSSIAN, _GAUSSIAN[-2::-1]])
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - _like(x, y)


_MEYER = _numbers(
    "34780 28610 23650 19630 16370 13720 11540 9744 8261 7030 6005 5147 4427 3820 3307 2872"
)


@_problem(10, ((0.02, 4000.0, 250.0), 43.9729275855))
def meyer(x):
    t = 45 + 5 * _count(x, 16)
    return x[0] * jnp.exp(x[1] / (t + x[2])) - _like(x, _MEYER)


@_problem(11, ((5.0, 2.5, 0.15), (0.0, 16.4175)))
def gulf(x):
    t = _count(x, 99) / 100
    y = 25 + (-50 * jnp.log(t)) ** (2 / 3)
    # The paper has "y m i x2" for this difference: its minus sign was lost in print.
    return jnp.exp(-(jnp.abs(y - x[1]) ** x[2]) / x[0]) - t


@_problem(12, ((0.0, 10.0, 20.0), (0.0, 0.0377943703775)))
def box_3d(x):
    t = _count(x, 10) / 10
    return jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (jnp.exp(-t) - jnp.exp(-10 * t))


@_problem(13, ((3.0, -1.0, 0.0, 1.0), 0.0))
def powell_singular(x):
    a, b, c, d = x
    return jnp.stack([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2])


@_problem(14, ((-3.0, -1.0, -3.0, -1.0), 0.0))
def wood(x):
    a, b, c, d = x
    valleys = [10 * (b - a**2), 1 - a, 90**0.5 * (d - c**2), 1 - c]
    return jnp.stack([*valleys, 10**0.5 * (b + d - 2), (b - d) / 10**0.5])


_KOWALIK_U = _numbers("4 2 1 .5 .25 .167 .125 .1 .0833 .0714 .0625")
_KOWALIK_Y = _numbers(".1957 .1947 .1735 .1600 .0844 .0627 .0456 .0342 .0323 .0235 .0246")


@_problem(15, ((0.25, 0.39, 0.415, 0.39), (1.53752801925e-4, 5.13671524348e-4)))
def kowalik_osborne(x):
    u = _like(x, _KOWALIK_U)
    return _like(x, _KOWALIK_Y) - x[0] * u * (u + x[1]) / (u * (u + x[2]) + x[3])


@_problem(16, ((25.0, 5.0, -5.0, -1.0), 42911.1008132))
def brown_dennis(x):
    t = _count(x, 20) / 5
    return (x[0] + t * x[1] - jnp.exp(t)) ** 2 + (x[2] + x[3] * jnp.sin(t) - jnp.cos(t)) ** 2


_OSBORNE_1 = _numbers("""
    .844 .908 .932 .936 .925 .908 .881 .850 .818 .784 .751 .718 .685 .658 .628 .603 .580
    .558 .538 .522 .506 .490 .478 .467 .457 .448 .438 .431 .424 .420 .414 .411 .406
""")


@_problem(17, ((0.5, 1.5, -1.0, 0.01, 0.02), 2.73244734874e-5))
def osborne_1(x):
    t = 10 * (_count(x, 33) - 1)
    return _like(x, _OSBORNE_1) - (x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4]))


@_problem(18, ((1.0, 2.0, 1.0, 1.0, 1.0, 1.0), (0.0, 2.82782496275e-3, 0.153183304561)))
def biggs_exp6(x):
    t = _count(x, 13) / 10
    y = jnp.exp(-t) - 5 * jnp.exp(-10 * t) + 3 * jnp.exp(-4 * t)
    return x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4]) - y


_OSBORNE_2 = _numbers("""
    1.366 1.191 1.112 1.013 .991 .885 .831 .847 .786 .725 .746 .679 .608 .655 .616 .606 .602
    .626 .651 .724 .649 .649 .694 .644 .624 .661 .612 .558 .533 .495 .500 .423 .395 .375 .372
    .391 .396 .405 .428 .429 .523 .562 .607 .653 .672 .708 .633 .668 .645 .632 .591 .559 .597
    .625 .739 .710 .729 .720 .636 .581 .428 .292 .162 .098 .054
""")
_OSBORNE_2_START = (1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5)


@_problem(19, (_OSBORNE_2_START, (0.0200688681468, 0.894906793441)))
def osborne_2(x):
    t = (_count(x, 65) - 1) / 10
    peaks = x[1:4] * jnp.exp(-((t[:, None] - x[8:]) ** 2) * x[5:8])
    return _like(x, _OSBORNE_2) - x[0] * jnp.exp(-t * x[4]) - peaks.sum(axis=1)


@_problem(
    20,
    ((0.0,) * 6, 1.14383502678e-3),
    ((0.0,) * 9, 6.9988006904e-7),
    ((0.0,) * 12, 2.361190551e-10),
)
def watson(x):
    powers = jnp.vander(_count(x, 29) / 29, x.size, increasing=True)
    slope = powers[:, :-1] @ (_count(x, x.size - 1) * x[1:])
    ends = jnp.stack([x[0], x[1] - x[0] ** 2 - 1])
    return jnp.concatenate([slope - (powers @ x) ** 2 - 1, ends])


@_problem(21, ((-1.2, 1.0) * 5, 0.0))
def extended_rosenbrock(x):
    a, b = x.reshape(-1, 2).T
    return jnp.stack([10 * (b - a**2), 1 - a], axis=1).ravel()


@_problem(22, ((3.0, -1.0, 0.0, 1.0) * 3, 0.0))
def extended_powell_singular(x):
    a, b, c, d = x.reshape(-1, 4).T
    fours = [a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2]
    return jnp.stack(fours, axis=1).ravel()


@_problem(
    23,
    ((1.0, 2.0, 3.0, 4.0), 1.12498875045e-5),
    ((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0), 3.54382573355e-5),
)
def penalty_1(x):
    return jnp.append(1e-5**0.5 * (x - 1), x @ x - 0.25)


@_problem(24, ((0.5,) * 4, 4.68814650368e-6), ((0.5,) * 10, 1.46830268728e-4))
def penalty_2(x):
    i = _count(x, x.size)
    e, y = jnp.exp(x / 10), jnp.exp(i / 10)
    pairs = e[1:] + e[:-1] - y[1:] - y[:-1]
    singles = e[1:] - float(np.exp(-0.1))
    small = 1e-5**0.5 * jnp.concatenate([pairs, singles])
    return jnp.concatenate([x[:1] - 0.2, small, jnp.sum(i[::-1] * x**2, keepdims=True) - 1])


@_problem(25, (tuple(1 - j / 10 for j in range(1, 11)), 0.0))
def variably_dimensioned(x):
    s = _count(x, x.size) @ (x - 1)
    return jnp.concatenate([x - 1, jnp.stack([s, s**2])])


@_problem(26, ((0.1,) * 10, (0.0, 1.39752806094e-5)))
def trigonometric(x):
    i = _count(x, x.size)
    return x.size - jnp.cos(x).sum() + i * (1 - jnp.cos(x)) - jnp.sin(x)


@_problem(27, ((0.5,) * 10, (0.0, 0.5)))
def brown_almost_linear(x):
    return jnp.append(x[:-1] + x.sum() - (x.size + 1), x.prod() - 1)


@_problem(28, (_parabola(10), 0.0))
def discrete_boundary_value(x):
    t, h = _like(x, _nodes(x.size)), 1 / (x.size + 1)
    around = jnp.pad(x, 1)
    return 2 * x - around[:-2] - around[2:] + h**2 * (x + t + 1) ** 3 / 2


@_problem(29, (_parabola(10), 0.0))
def discrete_integral_equation(x):
    t, h = _like(x, _nodes(x.size)), 1 / (x.size + 1)
    kernel = jnp.minimum(t[:, None] * (1 - t), t * (1 - t[:, None]))
    return x + h / 2 * (kernel @ (x + t + 1) ** 3)


@_problem(30, ((-1.0,) * 10, 0.0))
def broyden_tridiagonal(x):
    around = jnp.pad(x, 1)
    return (3 - 2 * x) * x - around[:-2] - 2 * around[2:] + 1


@_problem(31, ((-1.0,) * 10, 0.0))
def broyden_banded(x):
    i = np.arange(x.size)
    ahead = i - i[:, None]
    band = (ahead >= -5) & (ahead <= 1) & (ahead != 0)
    return x * (2 + 5 * x**2) + 1 - _like(x, band) @ (x * (1 + x))


@_problem(32, ((1.0,) * 10, 5.0))  # (m - n) / 2, m = 20
def linear_full_rank(x):
    return jnp.pad(x, (0, x.size)) - x.sum() / x.size - 1


@_problem(33, ((1.0,) * 10, 95 / 41))  # m (m - 1) / (2m + 1) / 4, m = 20
def linear_rank_1(x):
    return _count(x, 2 * x.size) * (_count(x, x.size) @ x) - 1


@_problem(34, ((1.0,) * 10, 227 / 74))  # (m² + 3m - 6) / (2m - 3) / 4, m = 20
def linear_rank_1_with_zeros(x):
    inner = _count(x, x.size)[1:-1] @ x[1:-1]
    return jnp.pad(_count(x, 2 * x.size - 2) * inner, 1) - 1


@_problem(
    35,
    (_nodes(7), 0.0),
    (_nodes(8), 1.75843686284e-3),
    (_nodes(9), 0.0),
    (_nodes(10), (2.38635684819e-3, 3.25197740044e-3, 4.75031442511e-3)),
)
def chebyquad(x):
    y = 2 * x - 1
    f, before, now = [], jnp.ones_like(y), y
    for i in range(1, x.size + 1):
        integral = 0 if i % 2 else 1 / (1 - i**2)
        f.append(now.mean() - integral)
        before, now = now, 2 * y * now - before
    return jnp.stack(f)


problems = tuple(_found)
by_name = {problem.name: problem for problem in problems}
