"""Our speed beside that of other packages, at matched accuracy: ``make bench``.

Every solver runs at the loosest of a few tolerances with which it reaches the digits that the
row asks for, so that none is paid for stopping early; one that never reaches them is marked
and is nobody's best peer. Times are medians of rounds in which all contenders take turns, so
that a busy moment of the machine strikes them alike. `limit` is the work that no solver can do
without: residuals, Jacobian and a small Cholesky, once for each evaluation that ours took.

``--only`` chooses rows, ``--lanes 500 --rounds 1`` makes a quick look of it, and
``--write docs/benchmarks.md`` puts the summary between that file's marks.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import cold, elementwise, minimizers, objectives, peers, workloads
from .peers import Contender, Solve
from .table import Column, Table, heading, put, seconds, style, waiting
from .workloads import Workload

TOLERANCES = {
    "float64": (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12),
    "float32": (1e-2, 3e-3, 1e-3, 1e-4),
}
LEAST_SAMPLE = 5e-3  # seconds: shorter calls are repeated within a sample
MOST_TIME = 10.0  # seconds a contender may take for all of its samples
FEW_LANES = 200  # on which SciPy's loop finds its tolerance

# -- one measurement -----------------------------------------------------------------------


@dataclass
class Entry:
    """One contender in one row."""

    contender: Contender
    call: Callable[[], Any] | None = None
    tol: float = 0.0
    digits: float = 0.0
    enough: bool = False
    note: str = ""
    samples: list[float] = field(default_factory=list)

    @property
    def time(self) -> float | None:
        return median(self.samples) if self.samples else None


def timed(call: Callable[[], Any], times: int = 1) -> float:
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times


def take_turns(calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Samples of the time of each call; a slow one gets fewer."""
    samples: list[list[float]] = [[] for _ in calls]
    once = [timed(call) for call in calls]
    for _ in range(rounds):
        for call, taken, first in zip(calls, samples, once, strict=True):
            if taken and sum(taken) + first > MOST_TIME:
                continue
            taken.append(timed(call, max(1, round(LEAST_SAMPLE / first))))
    return samples


# -- what is asked of a contender ----------------------------------------------------------

Task = Callable[[Contender, Workload, float], Callable[[], Any]]


def over_lanes(contender: Contender, solve: Solve) -> Solve:
    """Many fits at once, all together or in chunks."""
    if not contender.chunked:
        return jax.vmap(solve)
    return lambda x0, y: jax.lax.map(lambda lane: solve(*lane), (x0, y), batch_size=peers.CHUNK)


def fit(contender: Contender, work: Workload, tol: float) -> Callable[[], Any]:
    """The task of most rows: x, warm, inside jit."""
    solve = contender.make(work, tol)
    if not contender.in_jax:
        return lambda: solve(work.x0, work.y)
    whole = jax.jit(over_lanes(contender, solve) if work.batched else solve)
    x0, y = jnp.asarray(work.x0), jnp.asarray(work.y)
    return lambda: jax.block_until_ready(whole(x0, y))


def gradient(contender: Contender, work: Workload, tol: float) -> Callable[[], Any]:
    """Value and gradient, in the data, of a function of all the solutions."""
    solve = over_lanes(contender, contender.make(work, tol))
    x0, y = jnp.asarray(work.x0), jnp.asarray(work.y)
    whole = jax.jit(jax.value_and_grad(lambda y: jnp.sum(solve(x0, y) ** 2)))
    return lambda: jax.block_until_ready(whole(y)[1])


def agreement_of_gradient(work: Workload) -> Callable[[Any], float]:
    """Digits of the first lane's gradient, by central differences of the right answer."""
    y, truth, step = work.y[0], work.truth[:1], 1e-4
    moves = step * np.eye(y.size)

    def loss(ys):
        start = np.repeat(truth, len(ys), axis=0)
        return np.sum(
            workloads.gauss_newton(work.model, work.t, ys, start, truth.size) ** 2, axis=1
        )

    right = (loss(y + moves) - loss(y - moves)) / (2 * step)

    def agreement(found: Any) -> float:
        error = np.max(np.abs(np.asarray(found)[0] - right)) / np.max(np.abs(right))
        return workloads.digits(error)

    return agreement


# -- rows ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One row of the summary: a workload and who takes part."""

    title: str
    work: Callable[[int], Any]  # of the number of lanes
    contenders: tuple[Contender, ...]
    task: Task = fit
    x64: bool = True
    table: str = "speed"


IN_JAX = tuple(c for c in peers.FREE_BATCH if c.in_jax)
ROWS = {
    "small": Row("n=3, m=100, one fit", lambda _: workloads.small(), peers.FREE),
    "small-bounded": Row(
        "the same, a bound active", lambda _: workloads.small(bounded=True), peers.BOUNDED
    ),
    "middle": Row("n=50, m=2000, one fit", lambda _: workloads.middle(), peers.FREE),
    "easy": Row("{lanes} fits, n=4, m=50", workloads.many, peers.FREE_BATCH),
    "float32": Row(
        "the same in float32",
        lambda lanes: workloads.many(lanes, dtype=np.float32),
        IN_JAX,
        x64=False,
    ),
    "hard": Row("1 % of them hard", lambda lanes: workloads.many(lanes, "hard"), peers.FREE_BATCH),
    "bounded": Row(
        "all of them bounded", lambda lanes: workloads.many(lanes, "bounded"), peers.BOUNDED_BATCH
    ),
    "gradient": Row(
        "gradient through {tenth} fits",
        lambda lanes: workloads.many(lanes // 10),
        IN_JAX,
        task=gradient,
    ),
}


MINIMISE = {
    "box-10": (
        "Rosenbrock in a box, n=10", lambda _: objectives.rosenbrock(10),
        minimizers.SMALL_BOUNDED,
    ),
    "box-1000": ("n=1000", lambda _: objectives.rosenbrock(1000), minimizers.BOUNDED),
    "box-100000": ("n=100,000", lambda _: objectives.rosenbrock(100_000), minimizers.BOUNDED),
    "logistic": (
        "logistic regression in a box", lambda _: objectives.logistic(), minimizers.SMALL_BOUNDED,
    ),
    "free-1000": (
        "without bounds, n=1000", lambda _: objectives.rosenbrock(1000, False), minimizers.FREE,
    ),
    "free-100000": (
        "n=100,000", lambda _: objectives.rosenbrock(100_000, False), minimizers.FREE,
    ),
    "box-many": (
        "{tenth} in boxes, n=10", lambda lanes: objectives.many_rosenbrocks(lanes // 10),
        minimizers.BOUNDED,
    ),
    "free-many": (
        "{tenth} without bounds", lambda lanes: objectives.many_rosenbrocks(lanes // 10, False),
        minimizers.SMALL_FREE,
    ),
}  # fmt: skip
ROWS |= {name: Row(*row, table="minimize") for name, row in MINIMISE.items()}
ROWS |= {name: Row(*row, table="elementwise") for name, row in elementwise.ROWS.items()}


def prepare(contender: Contender, work: Any, task: Task, agreement: Callable) -> Entry:
    """Compile at the loosest tolerance that gives the digits asked for."""
    entry = Entry(contender)
    loop = not contender.in_jax and work.batched
    trial = work.lanes(FEW_LANES) if loop else work
    for tol in TOLERANCES[work.x0.dtype.name]:
        waiting(f"{contender.name}, tolerance {tol:.0e}")
        try:
            call = task(contender, trial, tol)
            digits = agreement(call())
        except ImportError as error:
            entry.note = f"not installed ({error.name})"
            return entry
        except Exception as error:  # a peer that fails here loses its entry, not our table
            entry.note = f"{type(error).__name__}: {str(error).splitlines()[0][:50]}"
            return entry
        if entry.call is None or digits > entry.digits:
            entry.call, entry.tol, entry.digits = call, tol, digits
        if digits >= work.asked:
            entry.enough = True
            break
    if loop:
        entry.call = task(contender, work, entry.tol)
    return entry


def measure(row: Row, lanes: int, rounds: int) -> list[Any]:
    """Print one row's contenders; its line of the summary."""
    jax.config.update("jax_enable_x64", row.x64)
    work = row.work(lanes)
    title = row.title.format(
        lanes=f"{lanes:,}", tenth=f"{lanes // 10:,}", hundredfold=f"{100 * lanes:,}"
    )
    heading(title)
    waiting("the right answer")
    agreement = agreement_of_gradient(work) if row.task is gradient else work.agreement
    entries = [prepare(c, work, row.task, agreement) for c in row.contenders]
    able = [entry for entry in entries if entry.call is not None]
    calls = [entry.call for entry in able if entry.call is not None]
    least = _limit(work, able)
    waiting("measuring")
    *samples, of_limit = take_turns([*calls, least], rounds)
    for entry, taken in zip(able, samples, strict=True):
        entry.samples = taken
    if row.task is gradient:
        _beside_own_solve(able, work, rounds)
    bound = median(of_limit)
    _print(entries, bound)
    return _summary(title, entries, bound)


def _limit(work: Any, entries: list[Entry]) -> Callable[[], Any]:
    """The limit for the evaluations of our first contender."""
    if isinstance(work, elementwise.Scalars):
        return work.limit()
    ours = next(entry for entry in entries if entry.contender.ours)
    if isinstance(work, objectives.Objective):
        return work.limit(minimizers.optx_lite_result(work, ours.tol))
    method = ours.contender.name.split()[1].rstrip(",")
    solve = peers.optx_lite_result(method, work, ours.tol)
    x0, y = jnp.asarray(work.x0), jnp.asarray(work.y)
    steps = np.asarray(jax.jit(jax.vmap(solve) if work.batched else solve)(x0, y).nfev)
    whole = peers.limit(work, steps)
    jax.block_until_ready(whole(x0, y))
    return lambda: jax.block_until_ready(whole(x0, y))


def _beside_own_solve(entries: list[Entry], work: Workload, rounds: int) -> None:
    """Note how many times its own solve each gradient takes."""
    calls = [fit(entry.contender, work, entry.tol) for entry in entries]
    for call in calls:
        call()
    for entry, taken in zip(entries, take_turns(calls, rounds), strict=True):
        if entry.time is not None:
            entry.note = f"{entry.time / median(taken):.2f} × its solve, {seconds(median(taken))}"


def best(entries: list[Entry], ours: bool) -> Entry | None:
    able = [e for e in entries if e.time is not None and e.enough and e.contender.ours == ours]
    return min(able, key=lambda entry: entry.time or 0.0, default=None)


def _print(entries: list[Entry], bound: float) -> None:
    table = Table(
        Column("solver", 29, "<"), Column("time", 8), Column("/ best peer", 11), Column("digits", 6),
        Column("tol", 5), Column("", 30, "<"),
    )  # fmt: skip
    table.header()
    peer = best(entries, ours=False)
    for entry in entries:
        name = style(entry.contender.name, "bold") if entry.contender.ours else entry.contender.name
        if entry.time is None:
            table.row(name, "", "", "", "", entry.note)
            continue
        ratio = f"{entry.time / peer.time:.2f}" if peer and peer.time else ""
        note = entry.note if entry.enough else f"too few digits. {entry.note}"
        table.row(name, seconds(entry.time), ratio, f"{entry.digits:.1f}", f"{entry.tol:.0e}", note)
    table.row(
        "limit",
        seconds(bound),
        f"{bound / peer.time:.2f}" if peer and peer.time else "",
        "",
        "",
        "",
    )


def _summary(title: str, entries: list[Entry], bound: float) -> list[Any]:
    ours, peer = best(entries, ours=True), best(entries, ours=False)
    by_scipy = [e for e in entries if not e.contender.in_jax]
    slow = best(by_scipy, ours=False)
    ratio = f"{ours.time / peer.time:.2f}" if ours and peer and ours.time and peer.time else ""
    return [
        title,
        _cell(ours, "optx_lite "),
        _cell(peer),
        ratio,
        _cell(slow, "SciPy "),
        seconds(bound),
    ]


def _cell(entry: Entry | None, less: str = "") -> str:
    return f"{seconds(entry.time)} {entry.contender.name.removeprefix(less)}" if entry else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*ROWS, "cold"], help="some of the rows")
    parser.add_argument("--lanes", type=int, default=10_000, help="fits in a batch")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each time")
    parser.add_argument("--write", metavar="FILE", help="put the summary into this Markdown file")
    chosen = parser.parse_args()
    names = chosen.only or [*ROWS, "cold"]
    device = jax.devices()[0].device_kind
    print(
        f"JAX {jax.__version__} on {device}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )

    lines: dict[str, list[Any]] = {}
    for name in names:
        if name in ROWS:
            line = measure(ROWS[name], chosen.lanes, chosen.rounds)
            lines.setdefault(ROWS[name].table, []).append(line)
    for kind, found in lines.items():
        heading(f"In short: {kind}")
        table = Table(
            Column("work", 29, "<"), Column("optx_lite", 26, "<"), Column("best peer", 36, "<"),
            Column("ratio", 5), Column("SciPy", 14, "<"), Column("limit", 8),
        )  # fmt: skip
        table.header()
        for line in found:
            table.row(*line)
        if chosen.write:
            put(table.markdown(), kind, chosen.write)
    if "cold" in names:
        table = cold.measure(min(chosen.rounds, 5))
        if chosen.write:
            put(table.markdown(), "cold", chosen.write)


if __name__ == "__main__":
    main()
