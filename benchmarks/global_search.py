"""Global search beside SciPy's: success at equal evaluations, with intervals, and time.

``python -m benchmarks.global_search [seeds [functions]] [all] [mutax]``: the whole is ``50 62 all``,
20 seeds and every function are the default; fewer functions are spread over the list. A search has
succeeded where it ends within 1e-6 of the lowest value. SciPy's differential evolution runs
unpolished; every other search of a problem may take as many evaluations as that took on average.
Ours of differential evolution is unpolished, too. `multistart` runs L-BFGS-B from random starts; in
it and in `dual_annealing` a value with its gradient counts as `WITH_GRADIENT` evaluations. "all" adds
SciPy's other searches, "mutax" the time of that package's differential evolution for as many
generations, both unpolished.
``python -m benchmarks.global_search million`` solves Himmelblau's and Rastrigin's function from a
million starts.
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
DEFAULTS = 20, len(PROBLEMS)  # seeds, functions
WITH_GRADIENT = 3  # evaluations: a value with its gradient, by reverse mode


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


def many_starts(problem: Problem, seeds: int, most: int) -> int:
    """As many starts as the evaluations allow: successes."""
    low, high = np.array(problem.box, float).T
    solve = functools.partial(
        ox.minimize, lambda x: problem.fun(x, jnp), bounds=list(zip(low, high, strict=True))
    )

    def search(key: Any, count: int) -> Any:
        starts = ox.sample_starts(problem.box, count, "latinhypercube", key)
        res = ox.multistart(solve, starts)
        return jnp.minimum(res.best.fun, res.lowest_failed), res.nfev

    each = WITH_GRADIENT * int(search(jax.random.key(99), 32)[1]) / 32
    run = jax.jit(functools.partial(search, count=max(1, int(most / each))))
    values = np.array([run(key)[0] for key in jax.random.split(jax.random.key(0), seeds)])
    return int(np.sum(values - problem.lowest < CLOSE))


def annealing(problem: Problem, seeds: int, most: int) -> tuple[int, float]:
    """Ours of dual annealing: as `evolution`.

    ``maxfun`` is chosen, with other keys, so that the evaluations are ``most`` on average; SciPy's
    searches may not exceed it.
    """

    @jax.jit
    def search(key: Any, maxfun: Any) -> tuple[Any, Any]:
        res = ox.dual_annealing(
            lambda x: problem.fun(x, jnp), problem.box, rng=key, maxiter=10**6, maxfun=maxfun
        )
        return res.fun, res.nfev + (WITH_GRADIENT - 1) * res.njev

    allowed, others = float(most), jax.random.split(jax.random.key(99), 32)
    for _ in range(4):
        allowed *= most / np.mean([search(key, allowed)[1] for key in others])
    keys = list(jax.random.split(jax.random.key(0), seeds))
    start = time.process_time()
    values = np.array([search(key, allowed)[0] for key in keys])
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
        "SciPy's annealing": at_random(lambda f, seed: so.dual_annealing(f, box, rng=seed)),
        "SciPy's hopping": at_random(hop),
        "SciPy's direct": seeds
        * succeeds(lambda f: so.direct(f, box, maxfun=10**6, maxiter=10**6)),
        "SciPy's shgo": seeds * succeeds(lambda f: so.shgo(f, box, iters=6)),
    }


def mutax_time(problem: Problem, seeds: int, most: int) -> tuple[float, float]:
    """Seconds of a generation, of mutax' differential evolution and of ours, jitted and warm.

    With tol = 0 neither stops before its last generation. 15 n members, trial by trial.
    """
    import mutax

    box = jnp.asarray(problem.box, float)
    generations = max(1, most // (15 * len(box)))
    fun = lambda x: problem.fun(x, jnp)
    rules = {"maxiter": generations, "tol": 0.0, "polish": False}

    def theirs(key: Any) -> Any:
        return mutax.differential_evolution(fun, box, key=key, strategy="best1bin", **rules).fun

    def ours(key: Any) -> Any:
        return ox.differential_evolution(fun, problem.box, rng=key, **rules).fun

    seconds = []
    for search in map(jax.jit, (theirs, ours)):
        jax.block_until_ready(search(jax.random.key(99)))
        start = time.process_time()
        for seed in range(seeds):
            jax.block_until_ready(search(jax.random.key(seed)))
        seconds.append((time.process_time() - start) / seeds / generations)
    return seconds[0], seconds[1]


def million(count: int = 10**6) -> None:
    """All starts in one call, as sums of squares: CPU seconds, and how many minima."""
    himmelblau = lambda x: jnp.stack([x[0] ** 2 + x[1] - 11, x[0] + x[1] ** 2 - 7])
    rastrigin = lambda x: jnp.concatenate([x, jnp.sqrt(20.0) * jnp.sin(jnp.pi * x)])
    for name, fun, box in (("Himmelblau", himmelblau, 5.0), ("Rastrigin", rastrigin, 5.12)):
        starts = ox.sample_starts([(-box, box)] * 2, count, "sobol", 0)
        solve = functools.partial(ox.least_squares, fun, method="dogbox")
        for run in ("first", "second"):
            start = time.process_time()
            res = jax.block_until_ready(ox.multistart(solve, starts))
            seconds = time.process_time() - start
            print(
                f"{name}, {count} starts, {run}: {seconds:.1f} s CPU, {res.n_minima} minima, "
                f"{res.n_failed} failed, {int(res.nfev) / count:.1f} evaluations each",
                flush=True,
            )


def interval(found: int, tries: int) -> str:
    """Wilson's, at 95 %."""
    z, share = 1.96, found / tries
    middle = (share + z**2 / (2 * tries)) / (1 + z**2 / tries)
    half = z / (1 + z**2 / tries) * np.sqrt(share * (1 - share) / tries + z**2 / (4 * tries**2))
    return f"{100 * share:.1f} % ({100 * (middle - half):.1f} to {100 * (middle + half):.1f})"


def main() -> None:
    """Print a line for each function, and the sums."""
    jax.config.update("jax_enable_x64", True)
    if "million" in sys.argv:
        million()
        return
    given = [int(word) for word in sys.argv[1:] if word.isdigit()]
    seeds, functions = (*given, *DEFAULTS[len(given) :])
    chosen = np.unique(np.linspace(0, len(PROBLEMS) - 1, functions).round().astype(int))
    problems = [list(PROBLEMS.items())[k] for k in chosen]
    total: dict[str, int] = {}
    ratios, beside_mutax = [], []
    for name, problem in problems:
        theirs, most, slow = scipys_evolution(problem, seeds)
        ours, fast = evolution(problem, seeds, most)
        annealed, seconds = annealing(problem, seeds, most)
        counts = {
            "DE": ours,
            "annealing": annealed,
            "multistart": many_starts(problem, seeds, most),
            "SciPy's DE": theirs,
        }
        if "all" in sys.argv:
            counts |= scipys_others(problem, seeds, most)
        ratios.append(slow / fast)
        if "mutax" in sys.argv:
            theirs, ours = mutax_time(problem, seeds, most)
            beside_mutax.append(theirs / ours)
        for key, count in counts.items():
            total[key] = total.get(key, 0) + count
        shown = "  ".join(f"{key} {count}" for key, count in counts.items())
        print(
            f"{name:<18}{most:>7} evaluations: {shown}; ms DE {1e3 * fast:.2f}, annealing "
            f"{1e3 * seconds:.2f}, SciPy's DE {1e3 * slow:.1f}",
            flush=True,
        )
    for key, count in total.items():
        print(f"{key:<18}{interval(count, seeds * len(problems))}")
    for name, times in (("SciPy's", ratios), ("mutax'", beside_mutax)):
        if times:
            print(
                f"{name} time of DE is ours times {np.median(times):.1f} (median; "
                f"{min(times):.1f} to {max(times):.1f})"
            )


if __name__ == "__main__":
    main()
