"""Chebyshev proxies and smoothing beside other packages: ``python -m benchmarks.curves [PART ...]``.

Parts: ``thousand`` (2001 roots; beside the PyPI package chebfun, if it is there), ``oracle`` (roots
and extrema of 20 functions; mpmath), ``plane`` (closest points of y = 2 sin x to 160,000 points, by
brute force), ``bands`` (how often bands of 95 % cover the truth), ``pynumdiff`` (its six simulated
systems; the package, and hours, where its methods are tuned against the truth: ``tune``).
"""

from __future__ import annotations

import itertools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import optx_lite as ox

CHEBYSHEV = ox.chebyshev


def thousand() -> None:
    """exp(x) sin(1000 pi x) has the roots k / 1000."""
    exact = np.arange(-1000, 1001) / 1000
    for library, name in ((np, "NumPy"), (jnp, "JAX")):
        f = lambda x, lib=library: lib.exp(x) * lib.sin(1000 * np.pi * x)
        for run in ("first", "second"):
            begun = time.perf_counter()
            found = np.asarray(CHEBYSHEV.proxy(f, -1.0, 1.0).roots().x)
            taken = time.perf_counter() - begun
            error = np.abs(found - exact).max() if found.size == exact.size else np.inf
            print(f"ours, f in {name}, {run}: {found.size} roots, error {error:.1e}, {taken:.3f} s")
    try:
        from chebpy import chebfun
    except ImportError:
        return
    for run in ("first", "second"):
        begun = time.perf_counter()
        found = chebfun(lambda x: np.exp(x) * np.sin(1000 * np.pi * x), [-1, 1]).roots()
        taken = time.perf_counter() - begun
        print(f"chebfun of PyPI, {run}: {found.size} roots, {taken:.3f} s")


# Functions for both jnp and mpmath.
FUNCTIONS = {
    "exp(x) sin(50 pi x)": (lambda x, m: m.exp(x) * m.sin(50 * np.pi * x), -0.985, 0.995),
    "cos(x) - x": (lambda x, m: m.cos(x) - x, -2.0, 2.0),
    "x^3 - 2x - 5": (lambda x, m: x**3 - 2 * x - 5, 0.0, 3.0),
    "sin(x) - x/5": (lambda x, m: m.sin(x) - x / 5, 1.0, 10.0),
    "tanh(50(x - 0.3)) + x/10": (lambda x, m: m.tanh(50 * (x - 0.3)) + x / 10, -1.0, 1.0),
    "three within 1e-3": (lambda x, m: (x - 0.5) * (x - 0.501) * (x + 0.2), -1.0, 1.0),
    "three within 3e-4": (lambda x, m: (x - 0.5) * (x - 0.5001) * (x - 0.50025), 0.0, 1.0),
    "x (1 - x), at the ends": (lambda x, m: x * (1 - x) * m.exp(x), 0.0, 1.0),
    "exp(-x^2) - 1/2": (lambda x, m: m.exp(-x * x) - 0.5, -3.0, 3.5),
    "cos(30 x^2)": (lambda x, m: m.cos(30 * x * x), 0.1, 2.0),
    "log(x) sin(10 x)": (lambda x, m: m.log(x) * m.sin(10 * x), 0.5, 4.0),
    "x exp(x) - 1": (lambda x, m: x * m.exp(x) - 1, -3.0, 2.0),
    "1/(1 + 25 x^2) - 1/5": (lambda x, m: 1 / (1 + 25 * x * x) - 0.2, -1.0, 1.5),
    "sin(x^3)": (lambda x, m: m.sin(x**3) + 0.01, 0.5, 4.0),
    "x^5 - x - 1/10": (lambda x, m: x**5 - x - 0.1, -2.0, 2.0),
    "sqrt(x + 1.1) - x": (lambda x, m: m.sqrt(x + 1.1) - x, -1.0, 3.0),
    "atan(20 x) - 1": (lambda x, m: m.atan(20 * x) - 1, -1.0, 1.0),
    "sin(1/x)": (lambda x, m: m.sin(1 / x), 0.05, 1.0),
    "exp(sin(8 x)) - 3/2": (lambda x, m: m.exp(m.sin(8 * x)) - 1.5, 0.0, 5.0),
    "1e-200 (x^2 - 2)": (lambda x, m: 1e-200 * (x * x - 2), -2.0, 3.0),
}


class _Jax:
    """jnp under mpmath's names."""

    exp, cos, sin, tanh, log, sqrt, atan = (
        jnp.exp, jnp.cos, jnp.sin, jnp.tanh, jnp.log, jnp.sqrt, jnp.arctan,
    )  # fmt: skip


def oracle() -> None:
    """By sign changes on 8,001 points, then bisection with 40 digits."""
    import mpmath

    mpmath.mp.dps = 40
    for name, (f, a, b) in FUNCTIONS.items():
        exact = lambda x, f=f: f(mpmath.mpf(x), mpmath)
        slope = lambda x, exact=exact: mpmath.diff(exact, x)
        ours = lambda x, f=f: f(x, _Jax)
        begun = time.perf_counter()
        roots = CHEBYSHEV.roots(ours, a, b)
        extrema = CHEBYSHEV.extrema(ours, a, b)
        taken = time.perf_counter() - begun
        row = [f"{name:26}", f"{taken:6.2f} s"]
        for found, g in ((roots, exact), (extrema, slope)):
            right = _by_mpmath(mpmath, g, a, b)
            if g is exact:  # the ends
                right = sorted({*right, *(x for x in (a, b) if exact(x) == 0)})
            got = np.asarray(found.x)
            error = "?" if len(right) != got.size else f"{_distance(got, right):.1e}"
            row.append(f"{got.size:4d} of {len(right):3d}, error {error}")
        print("  ".join(row), flush=True)


def _by_mpmath(mpmath, g, a: float, b: float) -> list:
    x = np.linspace(a, b, 8001)[1:-1] + 1e-7
    x = x[(x > a) & (x < b)]
    signs = [mpmath.sign(g(v)) for v in x]
    found = []
    for k in np.flatnonzero([s != t for s, t in itertools.pairwise(signs)]):
        low, high = mpmath.mpf(x[k]), mpmath.mpf(x[k + 1])
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if mpmath.sign(g(middle)) == signs[k] else (low, middle)
        found.append(low)
    return found


def _distance(got: np.ndarray, right: list) -> float:
    return max((abs(float(g - r)) for g, r in zip(got, right, strict=True)), default=0.0)


def plane(side: int = 400) -> None:
    """The distance to y = 2 sin x, and its derivative."""

    def distance(p):
        square = lambda x: (x - p[0]) ** 2 + (2 * jnp.sin(x) - p[1]) ** 2
        res = CHEBYSHEV.minimum(square, p[0] - 6, p[0] + 6, degree=16, pieces=8)
        return jnp.sqrt(res.fun), (res.x, res.status)

    x, y = np.meshgrid(np.linspace(-6, 6, side), np.linspace(-4, 4, side))
    points = np.stack([x, y], -1).reshape(-1, 2)
    solve = jax.jit(jax.vmap(jax.value_and_grad(distance, has_aux=True)))
    solve = solve.lower(points).compile()
    begun = time.perf_counter()
    (found, (at, status)), slope = jax.block_until_ready(solve(points))
    taken = time.perf_counter() - begun
    found, at, status, slope = map(np.asarray, (found, at, status, slope))
    off = np.abs(found - _brute_force(points)).max()
    unit = (points - np.stack([at, 2 * np.sin(at)], -1)) / found[:, None]
    print(
        f"{len(points)} points in {taken:.1f} s, {np.sum(status == 0)} certain; distance off by "
        f"{off:.1e}, derivative by {np.abs(slope - unit).max():.1e}, its norm by "
        f"{np.abs(np.linalg.norm(slope, axis=1) - 1).max():.1e}"
    )


def _brute_force(points: np.ndarray) -> np.ndarray:
    """The nearest of 5,201 points of the curve, moved by Newton's method while that helps."""
    s = np.linspace(-13, 13, 5201)
    x = np.empty(len(points))
    for k in range(0, len(points), 4000):
        p = points[k : k + 4000]
        square = (s - p[:, :1]) ** 2 + (2 * np.sin(s) - p[:, 1:]) ** 2
        x[k : k + 4000] = s[square.argmin(axis=1)]
    px, py = points.T
    square = lambda x: (x - px) ** 2 + (2 * np.sin(x) - py) ** 2
    for _ in range(30):
        slope = 2 * (x - px) + 4 * (2 * np.sin(x) - py) * np.cos(x)
        curvature = 2 + 8 * np.cos(x) ** 2 - 4 * (2 * np.sin(x) - py) * np.sin(x)
        new = x - np.clip(slope / np.where(curvature > 1e-9, curvature, 1), -0.005, 0.005)
        x = np.where(square(new) < square(x), new, x)
    return np.sqrt(square(x))


CURVES = {
    "sin(6 x)": lambda x: jnp.sin(6 * x),
    "exp(-x) sin(8 x)": lambda x: jnp.exp(-x) * jnp.sin(8 * x),
    "logistic": lambda x: 1 / (1 + jnp.exp(-8 * (x - 1))),
    "bump": lambda x: jnp.exp(-8 * (x - 1) ** 2),
    "cos(x^2) + x": lambda x: jnp.cos(2 * x * x) + x,
}


def bands(draws: int = 100, samples: int = 150) -> None:
    """Uneven points on [0, 2], noise 0.1: how often a band covers, in percent, by order."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 2, samples))
    noise = 0.1 * rng.normal(size=(draws, samples))

    def smoothed(order):
        def one(y):
            res = CHEBYSHEV.smooth(x, y, order=order)
            return [res.band(k) for k in range(order)]

        return jax.jit(lambda y: jax.lax.map(one, y))

    smoothers = {order: smoothed(order) for order in (2, 3, 5)}
    series = jax.jit(jax.vmap(lambda y: [CHEBYSHEV.fit(x, y).band(x, order=k) for k in range(3)]))
    for name, f in CURVES.items():
        truth, g = [], f
        for _ in range(5):
            truth.append(np.asarray(jax.vmap(g)(x)))
            g = jax.grad(g)
        row = []
        for label, solve in {**smoothers, "fit": series}.items():
            found = solve(truth[0] + noise)
            cover = [
                f"{100 * np.mean((np.asarray(low) < t) & (t < np.asarray(high))):.1f}"
                for (low, high), t in zip(found, truth, strict=False)
            ]
            row.append(f"{label}: {' '.join(cover)}")
        print(f"{name:18} {'   '.join(row)}", flush=True)


def pynumdiff(draws: int = 10) -> None:
    """RMSE of the first derivative, without the truth, by the order of the spline.

    At the package's own noise; and how often the band covers, over so many draws of such noise.
    """
    from pynumdiff.utils import simulate

    def smoothed(order):
        def one(y):
            res = CHEBYSHEV.smooth(0.01 * jnp.arange(y.size), y, order=order)
            return (res.derivatives[1], *res.band(1))

        return jax.jit(lambda y: jax.lax.map(one, y))

    smoothers = {order: smoothed(order) for order in (1, 2, 3)}
    noise = 0.5 * np.random.default_rng(0).normal(size=(draws - 1, 400))
    for name in SYSTEMS:
        y, exact, truth = getattr(simulate, name)()
        row = []
        for order, solve in smoothers.items():
            slope, low, high = map(np.asarray, solve(np.concatenate([y[None], exact + noise])))
            off = np.sqrt(np.mean((slope - truth) ** 2, axis=1))
            cover = 100 * np.mean((low < truth) & (truth < high))
            row.append(f"{order}: {off[0]:.4f}, mean {off.mean():.3f} ({cover:.0f} %)")
        print(f"{name:18} {'  '.join(row)}", flush=True)


SYSTEMS = ("sine", "triangle", "pop_dyn", "linear_autonomous", "pi_cruise_control", "lorenz_x")


def tune() -> None:
    """The methods of PyNumDiff, each tuned against the truth."""
    from pynumdiff.optimize import method_params_and_bounds, optimize
    from pynumdiff.utils import simulate

    for name in SYSTEMS:
        y, _, truth = getattr(simulate, name)()
        found = {}
        for method in method_params_and_bounds:
            if method.__name__ not in ("lineardiff", "iterative_velocity"):  # these take hours
                found[method.__name__] = optimize(method, y, 0.01, truth, parallel=False)[1]
        best = min(found, key=found.__getitem__)
        print(f"{name:18} {found[best]:.4f} by {best}", flush=True)


PARTS = {part.__name__: part for part in (thousand, oracle, plane, bands, pynumdiff, tune)}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    for part in sys.argv[1:] or ("thousand", "plane", "bands"):
        PARTS[part]()
