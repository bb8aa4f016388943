"""How often intervals cover the truth: ``python -m benchmarks.coverage``.

Each case makes 2,000 data sets from known parameters, fits all in one vmap, and counts in how many
the interval of 68 and 95 % about each parameter, by Student's t, holds the true value.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import optx_lite as ox

from .table import Column, Table

LEVELS = (0.68, 0.95)
M = 50
T = np.linspace(0.0, 4.0, M)
TRUE = np.array([3.0, 1.2, 0.5])
SIGMA = 0.1


def decay(t: Any, height: Any, rate: Any, base: Any) -> Any:
    return height * jnp.exp(-rate * t) + base


@dataclass(frozen=True)
class Case:
    """A way to make data and to fit them.

    ``make(rng, sets)`` gives arrays of shape (sets, m), ``fit(*arrays)`` takes one set of them.
    ``judged`` are the parameters whose intervals are looked at.
    """

    name: str
    true: np.ndarray
    make: Callable[[np.random.Generator, int], tuple[np.ndarray, ...]]
    fit: Callable[..., Any]
    judged: tuple[int, ...] = (0, 1, 2)
    degrees: float = M - 3


def _curve(true: np.ndarray = TRUE) -> np.ndarray:
    return np.asarray(decay(T, *true))


def _plain(rng: np.random.Generator, sets: int) -> tuple[np.ndarray, ...]:
    return (_curve() + SIGMA * rng.normal(size=(sets, M)),)


AT_BOUND = np.array([3.0, 1.2, 0.0])


def _at_bound(rng: np.random.Generator, sets: int) -> tuple[np.ndarray, ...]:
    return (_curve(AT_BOUND) + SIGMA * rng.normal(size=(sets, M)),)


HETEROSCEDASTIC = SIGMA * np.linspace(2.0, 0.2, M)


def _heteroscedastic(rng: np.random.Generator, sets: int) -> tuple[np.ndarray, ...]:
    return (_curve() + HETEROSCEDASTIC * rng.normal(size=(sets, M)),)


def _outliers(rng: np.random.Generator, sets: int) -> tuple[np.ndarray, ...]:
    """One in ten has ten times the error."""
    size = np.where(rng.random((sets, M)) < 0.1, 10 * SIGMA, SIGMA)
    return (_curve() + size * rng.normal(size=(sets, M)),)


MATRIX = SIGMA**2 * 0.7 ** np.abs(np.arange(M)[:, None] - np.arange(M)[None, :])


def _correlated(rng: np.random.Generator, sets: int) -> tuple[np.ndarray, ...]:
    return (_curve() + rng.normal(size=(sets, M)) @ np.linalg.cholesky(MATRIX).T,)


SIGMA_X = 0.05


def _errors_in_x(rng: np.random.Generator, sets: int) -> tuple[np.ndarray, ...]:
    x = T + SIGMA_X * rng.normal(size=(sets, M))
    return x, _curve() + SIGMA * rng.normal(size=(sets, M))


P0 = [2.0, 1.0, 0.3]
CASES = {
    case.name: case
    for case in (
        Case("plain", TRUE, _plain, lambda y: ox.curve_fit(decay, T, y, P0)),
        # The parameter on its bound is where it is known to be, or beside it: not of interest.
        Case("bound", AT_BOUND, _at_bound,
             lambda y: ox.curve_fit(decay, T, y, P0, bounds=(0.0, jnp.inf)), judged=(0, 1)),
        Case("sigma", TRUE, _heteroscedastic,
             lambda y: ox.curve_fit(decay, T, y, P0, sigma=HETEROSCEDASTIC)),
        Case("sigma, absolute", TRUE, _heteroscedastic,
             lambda y: ox.curve_fit(decay, T, y, P0, sigma=HETEROSCEDASTIC, absolute_sigma=True),
             degrees=np.inf),
        Case("robust, outliers", TRUE, _outliers,
             lambda y: ox.curve_fit(decay, T, y, P0, method="trf", loss="soft_l1",
                                    f_scale=SIGMA)),
        Case("sigma, a matrix", TRUE, _correlated,
             lambda y: ox.curve_fit(decay, T, y, P0, sigma=MATRIX)),
        Case("errors in x", TRUE, _errors_in_x,
             lambda x, y: ox.curve_fit(decay, x, y, P0, sigma=SIGMA, sigma_x=SIGMA_X)),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Coverage:
    """Parts of the sets whose intervals hold the truth, (levels, judged); failed and bounded."""

    parts: np.ndarray
    failed: int
    on_bound: float


def coverage(case: Case, sets: int, seed: int = 0) -> Coverage:
    """Fit all sets in one vmap and count."""
    arrays = case.make(np.random.default_rng(seed), sets)
    fit = jax.jit(jax.vmap(case.fit))(*arrays)
    success = np.asarray(fit.result.success)
    away = np.abs(np.asarray(fit.popt) - case.true)[success][:, case.judged]
    error = np.asarray(fit.perr)[success][:, case.judged]
    if np.isfinite(case.degrees):  # a parameter on its bound is one that is not fitted
        degrees = np.asarray(fit.covariance.dof)[success][:, None]
    else:
        degrees = np.inf
    parts = [np.mean(away <= stats.t.ppf(0.5 + p / 2, degrees) * error, axis=0) for p in LEVELS]
    on_bound = np.mean(np.any(np.asarray(fit.covariance.held)[success], axis=1))
    return Coverage(np.stack(parts), int(np.sum(~success)), float(on_bound))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    columns = [Column(f"{level:.0%}", 20) for level in LEVELS]
    table = Table(Column("case", 18, "<"), *columns, Column("failed", 6), Column("on bound", 8))
    table.header()
    for case in CASES.values():
        found = coverage(case, chosen.sets, chosen.seed)
        cells = ["  ".join(f"{100 * part:.1f}" for part in row) for row in found.parts]
        table.row(case.name, *cells, found.failed, f"{found.on_bound:.0%}")


if __name__ == "__main__":
    main()
