"""Cold start: to import, to trace and compile a first fit, and a new model after that.

Each package starts in a process of its own, with nothing in any cache.
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
import warnings
from statistics import median
from typing import Any

from .table import Column, Table, heading, seconds, waiting

PACKAGES = {  # what is imported, and the contender whose fits are compiled
    "jax": ("jax", None),
    "equinox": ("equinox", None),
    "optx_lite lm": ("optx_lite", ("FREE", "optx_lite lm")),
    "optx_lite trf, bounded": ("optx_lite", ("BOUNDED", "optx_lite trf")),
    "optimistix LM": ("optimistix", ("FREE", "optimistix LM")),
    "jaxopt LM cholesky": ("jaxopt", ("FREE", "jaxopt LM cholesky")),
    "nlls-gram LM": ("nlls_gram", ("FREE", "nlls-gram LM")),
}


def child(name: str) -> None:
    """Runs in the new process, and prints what it measured."""
    warnings.simplefilter("ignore")
    package, contender = PACKAGES[name]
    began = time.perf_counter()
    importlib.import_module(package)
    taken: dict[str, float | None] = {"import": time.perf_counter() - began}
    if contender is not None:
        taken |= dict(zip(("first", "next"), _compile(*contender), strict=True))
    print(json.dumps(taken))


def _compile(group: str, name: str) -> list[float]:
    """Seconds for a first fit, and for one of another model."""
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)
    from . import peers, workloads

    contender = next(c for c in getattr(peers, group) if c.name == name)
    work = workloads.small(bounded=group == "BOUNDED")
    other = workloads.Workload(Shifted, work.t, work.y, work.x0, work.truth, work.floor)
    jax.block_until_ready(jax.jit(lambda x: x + 1)(work.x0))  # wake the compiler itself
    taken = []
    for one in (work, other):
        began = time.perf_counter()
        x = jax.jit(contender.make(one, 1e-8))(one.x0, one.y)
        jax.block_until_ready(x)
        taken.append(time.perf_counter() - began)
    return taken


class Shifted:
    """Another model of the same size."""

    @staticmethod
    def residuals(x: Any, t: Any, y: Any) -> Any:
        return x[0] / (1 + x[1] * t) + x[2] - y


def _run(name: str) -> dict[str, float] | str:
    command = [sys.executable, "-m", "benchmarks.cold", "--child", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout)
    return done.stderr.strip().splitlines()[-1][:60]


def measure(rounds: int) -> Table:
    """Print the table, medians over ``rounds`` processes each."""
    heading("Cold start (n=3, m=100)")
    table = Table(
        Column("package", 24, "<"), Column("import", 8), Column("trace and compile", 17),
        Column("the next model", 14),
    )  # fmt: skip
    table.header()
    for name in PACKAGES:
        waiting(name)
        runs = [_run(name) for _ in range(rounds)]
        failed = next((run for run in runs if isinstance(run, str)), None)
        if failed is not None:
            table.row(name, "", failed, "")
            continue
        found = [run for run in runs if isinstance(run, dict)]
        cells = [median(run[key] for run in found) if key in found[0] else None
                 for key in ("import", "first", "next")]  # fmt: skip
        table.row(name, *map(seconds, cells))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=PACKAGES, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        child(chosen.child)
    else:
        measure(chosen.rounds)


if __name__ == "__main__":
    main()
