"""Global search beside SciPy's: success at equal evaluations, with intervals, and time.

``python -m benchmarks.global_search [seeds [all]]``. A search has succeeded where it ends within
1e-6 of the lowest value. SciPy's differential evolution runs as it comes, unpolished; every other
search of a problem may take as many evaluations as that took on average. Ours of differential
evolution is unpolished, too; `multistart` runs L-BFGS-B from random starts, where a value with its
gradient counts as `GRADIENT` evaluations. "all" adds SciPy's other searches.
"""

import contextlib
import functools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize as so

import optx_lite as ox
from benchmarks.global_functions import PROBLEMS, Problem

CLOSE = 1e-6
GRADIENT = 3  # values; reverse mode costs as much


def scipys_evolution(problem: Problem, seeds: int) -> tuple[int, int, float]:
    """Successes, evaluations of a search, and its seconds."""
    found, evaluations, start = 0, 0, time.process_time()
    for seed in range(seeds):
        res = so.differential_evolution(
            lambda x: problem.fun(x, np), problem.box, rng=seed, polish=False
        )
        found += bool(res.fun - problem.lowest < CLOSE)
        evaluations += res.nfev
    return found, evaluations // seeds, (time.process_time() - start) / seeds


def evolution(problem: Problem, seeds: int, most: int) -> tuple[int, float]:
    """Ours: successes, and the seconds of a search, one after the other and warm."""

    @jax.jit
    def search(key: Any) -> Any:
        return ox.differential_evolution(
            lambda x: problem.fun(x, jnp), problem.box, rng=key, polish=False, maxfun=most
        ).fun

    keys = list(jax.random.split(jax.random.key(0), seeds))
    jax.block_until_ready(search(keys[0]))
    start = time.process_time()
    values = np.array([search(key) for key in keys])
    seconds = (time.process_time() - start) / seeds
    return int(np.sum(values - problem.lowest < CLOSE)), seconds


def many_starts(problem: Problem, seeds: int, most: int) -> tuple[int, float]:
    """As many starts as the evaluations allow: successes, and the seconds of a search."""
    low, high = np.array(problem.box, float).T
    solve = functools.partial(
        ox.minimize, lambda x: problem.fun(x, jnp), bounds=list(zip(low, high, strict=True))
    )

    def search(key: Any, count: int) -> Any:
        starts = ox.sample_starts(problem.box, count, "latinhypercube", key)
        res = ox.multistart(solve, starts)
        return jnp.minimum(res.best.fun, res.lowest_failed), res.nfev

    each = GRADIENT * int(search(jax.random.key(99), 32)[1]) / 32
    run = jax.jit(functools.partial(search, count=max(1, int(most / each))))
    keys = list(jax.random.split(jax.random.key(0), seeds))
    jax.block_until_ready(run(keys[0]))
    start = time.process_time()
    values = np.array([run(key)[0] for key in keys])
    seconds = (time.process_time() - start) / seeds
    return int(np.sum(values - problem.lowest < CLOSE)), seconds


def scipys_others(problem: Problem, seeds: int, most: int) -> dict[str, int]:
    """Successes of SciPy's other searches, which end with ``most`` evaluations."""
    low, high = np.array(problem.box, float).T
    box = so.Bounds(low, high)

    class Spent(Exception):
        """There are no evaluations left."""

    def succeeds(search: Any) -> bool:
        seen = [np.inf, 0]

        def counted(x: Any) -> float:
            if seen[1] >= most:
                raise Spent
            value = float(problem.fun(x, np))
            seen[0], seen[1] = min(seen[0], value), seen[1] + 1
            return value

        with contextlib.suppress(Spent):
            search(counted)
        return seen[0] - problem.lowest < CLOSE

    def at_random(search: Any) -> int:
        return sum(succeeds(lambda f: search(f, seed)) for seed in range(seeds))  # noqa: B023

    def hop(f: Any, seed: int) -> Any:
        x0 = np.random.default_rng(seed).uniform(low, high)
        local = {"method": "L-BFGS-B", "bounds": list(zip(low, high, strict=True))}
        return so.basinhopping(f, x0, niter=10**6, minimizer_kwargs=local, rng=seed)

    return {
        "annealing": at_random(lambda f, seed: so.dual_annealing(f, box, rng=seed)),
        "hopping": at_random(hop),
        "direct": seeds * succeeds(lambda f: so.direct(f, box, maxfun=10**6, maxiter=10**6)),
        "shgo": seeds * succeeds(lambda f: so.shgo(f, box, iters=6)),
    }


def interval(found: int, tries: int) -> str:
    """Wilson's, at 95 %."""
    z, share = 1.96, found / tries
    middle = (share + z**2 / (2 * tries)) / (1 + z**2 / tries)
    half = z / (1 + z**2 / tries) * np.sqrt(share * (1 - share) / tries + z**2 / (4 * tries**2))
    return f"{100 * share:.1f} % ({100 * (middle - half):.1f} to {100 * (middle + half):.1f})"


def main() -> None:
    """Print a line for each function, and the sums."""
    jax.config.update("jax_enable_x64", True)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    total: dict[str, int] = {}
    ratios = []
    for name, problem in PROBLEMS.items():
        theirs, most, slow = scipys_evolution(problem, seeds)
        ours, fast = evolution(problem, seeds, most)
        starts, seconds = many_starts(problem, seeds, most)
        counts = {"SciPy's DE": theirs, "DE": ours, "multistart": starts}
        if "all" in sys.argv:
            counts |= scipys_others(problem, seeds, most)
        ratios.append(slow / fast)
        for key, count in counts.items():
            total[key] = total.get(key, 0) + count
        shown = "  ".join(f"{key} {count}" for key, count in counts.items())
        print(
            f"{name:<18}{most:>7} evaluations: {shown}; ms {1e3 * slow:.1f}, {1e3 * fast:.2f}, "
            f"{1e3 * seconds:.2f}",
            flush=True,
        )
    for key, count in total.items():
        print(f"{key:<12}{interval(count, seeds * len(PROBLEMS))}")
    print(f"SciPy's time of DE is ours times {np.median(ratios):.1f} (median)")


if __name__ == "__main__":
    main()
