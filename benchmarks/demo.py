"""The main job, to look at: certified fits, a robust one in a box, and a derivative through it.

``make demo``, or ``make demo ARGS="--methods trf lm dogbox"`` for the other methods as well.
Needs no more than optx_lite itself does.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optx_lite as ox

from .problems import nist
from .table import Column, Table, heading, style, waiting

ENDED_BY = {
    0: "max_nfev",
    1: "gtol",
    2: "ftol",
    3: "xtol",
    4: "both",
    -3: "nonfinite",
    -4: "stalled",
}
FALSE = 4  # a claim of success with fewer digits than this is a false one

# -- 1. certified fits ---------------------------------------------------------------------


@dataclass
class Score:
    """What the table adds up to."""

    digits: list[float]
    false_successes: int = 0
    compiling: float = 0.0


def certified_fits(methods: list[str]) -> Score:
    heading("1  Fits with certified answers")
    print(
        "NIST's reference problems, each from a far and from a near start. `digits` are those to\n"
        "which all parameters agree with the certified ones; shown is the parameter that agrees\n"
        "least. One compiled program serves both starts, and every model of the same form.\n"
    )
    table = Table(
        Column("problem", 9, "<"), Column("start", 5, "<"), Column("method", 6, "<"),
        Column("", 3), Column("certified", 17), Column("fitted", 17), Column("digits", 6),
        Column("steps/evals", 11), Column("ms", 6), Column("ended by", 8, "<"),
    )  # fmt: skip
    table.header()
    score = Score([])
    for name in nist.names():
        problem = nist.load(name)
        for start, label in enumerate(("far", "near")):
            for method in methods:
                waiting(f"{name}: {method} from the {label} start")
                first = method == methods[0]
                shown = (name if start == 0 and first else "", label if first else "")
                table.row(*shown, method, *_fit(problem, start, method, score))
    return score


def _fit(problem: nist.Problem, start: int, method: str, score: Score) -> list[Any]:
    """Fit twice, the second time without compiling; the cells of the table."""

    def fit() -> ox.Result:
        args = (problem.x, problem.y)
        return ox.least_squares(problem.residuals, problem.starts[start], args=args, method=method)

    (_, cold), (result, warm) = timed(fit), timed(fit)
    digits = nist.lre(result.x, problem.certified)
    false = result.success and digits < FALSE
    score.digits.append(digits)
    score.false_successes += false
    score.compiling += cold - warm

    worst = int(np.argmax(np.abs(np.asarray(result.x) / problem.certified - 1)))
    certified, fitted = (f"{float(b[worst]):.10e}" for b in (problem.certified, result.x))
    ended = ENDED_BY.get(result.status, str(result.status))
    return [
        f"b{worst + 1}",
        certified,
        agreeing(fitted, certified),
        style(f"{digits:.1f}", "green" if digits >= 6 else "red"),
        f"{result.nit}/{result.nfev}",
        f"{1e3 * warm:.1f}",
        ended if result.success else style(ended, "red"),
    ]


def agreeing(text: str, certified: str) -> str:
    """``text`` with the digits in green that stand in the certified value as well."""
    same = next(
        (i for i, (a, b) in enumerate(zip(text, certified, strict=False)) if a != b), len(text)
    )
    return style(text[:same], "green") + style(text[same:], "dim")


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    value = jax.block_until_ready(call())
    return value, time.perf_counter() - began


# -- 2. a robust fit in a box --------------------------------------------------------------

TRUTH = np.array([3.0, 1.2, 0.0])  # amplitude, rate, baseline
LOWER = jnp.zeros(3)
OUTLIERS = {4: 1.6, 11: 2.1, 17: -1.0, 23: 1.9, 30: 1.3, 36: 1.7}


def decay(x, t):
    amplitude, rate, baseline = x
    return amplitude * jnp.exp(-rate * t) + baseline


def residuals(x, t, y):
    return decay(x, t) - y


def measurements() -> tuple[jax.Array, jax.Array]:
    """A decay to zero with noise of 0.08 and six gross errors."""
    t = np.linspace(0, 4, 40)
    y = np.asarray(decay(TRUTH, t)) + 0.08 * np.random.default_rng(4).standard_normal(t.size)
    for i, error in OUTLIERS.items():
        y[i] += error
    return jnp.asarray(t), jnp.asarray(y)


def robust_fit(y, t, lower=LOWER, loss="cauchy", tol=1e-8) -> ox.Result:
    return ox.least_squares(
        residuals, [1.0, 1.0, 0.5], args=(t, y), bounds=(lower, jnp.inf), loss=loss, f_scale=0.1,
        ftol=tol, xtol=tol, gtol=tol,
    )  # fmt: skip


def robust_fits() -> None:
    heading("2  A robust fit in a box")
    print(
        f"y = a exp(-k t) + c with all three at least 0; {len(OUTLIERS)} of 40 measurements are wrong.\n"
    )
    t, y = measurements()
    table = Table(
        Column("loss", 8, "<"), *(Column(name, 8) for name in ("a", "k", "c")),
        Column("at its bound", 12), Column("steps/evals", 11), Column("ended by", 8, "<"),
    )  # fmt: skip
    table.header()
    fits = {}
    for loss in ("linear", "cauchy"):
        waiting(f"compiling {loss}")
        result = fits[loss] = robust_fit(y, t, loss=loss)
        held = [name for name, side in zip("akc", result.active_mask, strict=True) if side]
        steps = f"{result.nit}/{result.nfev}"
        ended = ENDED_BY.get(result.status, str(result.status))
        table.row(loss, *(f"{b:.4f}" for b in result.x), ", ".join(held), steps, ended)
    table.row("truth", *(f"{b:.4f}" for b in TRUTH), "c", "", "")
    print()
    chart(t, y, fits)


def chart(t, y, fits: dict[str, ox.Result], width: int = 76, height: int = 15) -> None:
    """The measurements and two of the curves, in characters."""
    t, y = np.asarray(t), np.asarray(y)
    low, high = min(y.min(), 0.0), y.max()
    canvas = np.full((height, width), " ", dtype=object)

    def draw(at, values, mark):
        columns = np.round((at - t[0]) / (t[-1] - t[0]) * (width - 1)).astype(int)
        rows = np.round((high - values) / (high - low) * (height - 1)).astype(int)
        canvas[np.clip(rows, 0, height - 1), columns] = mark

    fine = np.linspace(t[0], t[-1], width)
    draw(fine, np.asarray(decay(fits["linear"].x, fine)), style("·", "red"))
    draw(fine, np.asarray(decay(fits["cauchy"].x, fine)), style("━", "green"))
    draw(t, y, "o")
    wrong = list(OUTLIERS)
    draw(t[wrong], y[wrong], style("×", "red"))
    print("\n".join(f"  │{''.join(row)}".rstrip() for row in canvas))
    print(f"  └{'─' * width}")
    print("   o measured   × measured wrong   ━ cauchy   · least squares")


# -- 3. the derivative of an answer --------------------------------------------------------


def derivative_of_the_fit() -> float:
    """Digits to which the derivative through the fit and central differences agree."""
    heading("3  The derivative of that answer")
    print(
        "d(rate)/d(measurement) of the cauchy fit: by the implicit function theorem in one reverse\n"
        "pass, and by central differences of the whole fit, solved anew for each measurement.\n"
    )
    t, y = measurements()
    step = 1e-5

    def fit(y, lower):
        return robust_fit(y, t, lower, tol=1e-14).x

    @jax.jit
    def exact(y):
        return jax.jacrev(fit, argnums=(0, 1))(y, LOWER)

    @jax.jit
    def differences(y):
        moves = step * jnp.eye(y.size)
        up, down = jax.vmap(jax.vmap(lambda y: fit(y, LOWER)))(jnp.stack([y + moves, y - moves]))
        return ((up - down) / (2 * step)).T

    waiting("compiling the derivative")
    exact(y)
    (derivative, in_bound), time_exact = timed(lambda: exact(y))
    waiting("compiling the fits beside it")
    differences(y)
    central, time_central = timed(lambda: differences(y))

    table = Table(
        Column("t", 5), Column("measured", 8), Column("", 5, "<"), Column("derivative", 17),
        Column("central differences", 19), Column("difference", 10),
    )  # fmt: skip
    table.header()
    for i in (0, 4, 8, 11, 14, 23):
        note = style("wrong", "red") if i in OUTLIERS else ""
        one, other = float(derivative[1, i]), float(central[1, i])
        table.row(
            f"{t[i]:.2f}", f"{y[i]:.3f}", note, f"{one:.10f}", f"{other:.10f}", f"{one - other:.1e}"
        )
    error = float(jnp.max(jnp.abs(derivative - central)) / jnp.max(jnp.abs(central)))
    digits = -np.log10(max(error, 1e-16))
    print(
        f"\nAll {derivative.size} derivatives: {1e3 * time_exact:.1f} ms, and "
        f"{1e3 * time_central:.1f} ms for the {2 * y.size} fits of the central differences; "
        f"they agree to {digits:.1f} digits.\n"
        f"c rests on its bound: d(c)/d(measurement) is {float(jnp.max(jnp.abs(derivative[2]))):.0f}, "
        f"d(c)/d(bound) is {float(in_bound[2, 2]):.0f}."
    )
    return digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["trf"], choices=["trf", "dogbox", "lm"])
    methods = parser.parse_args().methods
    jax.config.update("jax_enable_x64", True)  # certified to 11 digits, and float32 has 7
    began = time.perf_counter()
    device = jax.devices()[0].platform
    print(
        style(f"optx_lite {ox.__version__}", "bold")
        + f" on JAX {jax.__version__} ({device}, float64)"
    )

    score = certified_fits(methods)
    robust_fits()
    digits = derivative_of_the_fit()

    count = {least: sum(d >= least for d in score.digits) for least in (6, 8)}
    heading("In short")
    print(
        f"{len(score.digits)} certified fits: {count[6]} agree to 6 digits or more, {count[8]} to 8 "
        f"or more; {score.false_successes or 'no'} false success.\n"
        f"The derivative through the robust fit agrees with central differences to {digits:.1f} digits.\n"
        f"{time.perf_counter() - began:.0f} s, {score.compiling:.0f} of them compiling the certified fits."
    )
    if score.false_successes or not digits > 5:
        raise SystemExit(
            "Something is wrong here: a false success, or a derivative that disagrees."
        )


if __name__ == "__main__":
    main()
