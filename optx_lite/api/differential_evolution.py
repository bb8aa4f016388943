"""The front door of differential evolution, with SciPy's signature."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, PyTree

from ..driver.callbacks import AbstractListener, check_callback, takes_result
from ..driver.global_search import search
from ..driver.run import IMPLICIT
from ..functions import Lifted, lift
from ..jax_support.types import Args, Bounds, Count, Number
from ..problem.arguments import check_callable, real_array
from ..problem.global_search import SearchProblem, of_one_point, search_problem
from ..problem.minimization import minimization_problem
from ..problem.pytrees import as_dtype, is_concrete
from ..problem.random_keys import as_key
from ..results.global_search import INFEASIBLE, MAXITER, DifferentialEvolutionResult
from ..solvers import LBFGSB
from ..solvers.global_search.differential_evolution import (
    MUTATIONS,
    STRATEGIES,
    DifferentialEvolution,
)
from .search_arguments import MANY, count, number, whole
from .starting_points import unit_points

INITS = {"latinhypercube": "latinhypercube", "sobol": "sobol", "halton": "halton",
         "random": "uniform"}  # fmt: skip
LEAST = 5  # members of a population


class Box(NamedTuple):
    """Bounds, as `minimize` takes them."""

    lb: PyTree
    ub: PyTree


def differential_evolution(
    func: Callable[..., PyTree],
    bounds: Bounds,
    args: Args = (),
    strategy: str | Callable = "best1bin",
    maxiter: int | None = 1000,
    popsize: int = 15,
    tol: Number = 0.01,
    mutation: PyTree = (0.5, 1),
    recombination: Number = 0.7,
    rng: int | Array | None = None,
    callback: Callable | None = None,
    disp: bool = False,
    polish: bool | Callable = True,
    init: PyTree = "latinhypercube",
    atol: Number = 0,
    updating: str = "immediate",
    workers: Any = 1,
    constraints: Any = (),
    x0: PyTree = None,
    *,
    integrality: PyTree = None,
    vectorized: bool = False,
    maxfun: int | None = None,
) -> DifferentialEvolutionResult:
    """Find the lowest minimum of a function in a box, by a population of points.

    The signature is that of ``scipy.optimize.differential_evolution``; the whole search is one
    compiled loop, and may stand inside ``jit`` and ``vmap``.

    Parameters
    ----------
    func : callable
        ``func(x, *args)`` gives a scalar, x of shape (n,). It is traced by JAX. NaN counts as
        infinite.
    bounds : sequence of n pairs (min, max), or object with ``lb`` and ``ub``
        All finite; equal ones fix a parameter. The dtype of the search is the widest floating one
        among them, else that of ``x0`` or ``init``, else JAX's default.
    args : tuple
        Further arguments of ``func``.
    strategy : str or callable
        'best1bin', 'best1exp', 'rand1bin', 'rand1exp', 'rand2bin', 'rand2exp', 'randtobest1bin',
        'randtobest1exp', 'currenttobest1bin', 'currenttobest1exp', 'best2exp', 'best2bin', or
        ``strategy(candidate, population, rng=key)``, which gives a trial (n,) for a traced number,
        the population (S, n), its best first, and a key of JAX.
    maxiter : int, optional
        Most generations; None for 1000.
    popsize : int
        Times the number of free parameters: the size of the population, at least 5.
    tol, atol : float
        The search has converged when the standard deviation of the population's values is at
        most ``atol + tol * abs(mean)``.
    mutation : float, or pair (min, max)
        F, in [0, 2); of a pair one is drawn for each generation.
    recombination : float
        The probability that an entry is taken from the mutant.
    rng : key, int, numpy.random.Generator, optional
        The same gives the same answer. Inside ``jit`` use a key: the others are read when the
        function is traced, and give all calls the same numbers.
    callback : callable, optional
        ``callback(intermediate_result)`` or ``callback(x, convergence)``, after each generation.
        A true value or StopIteration ends the search; polishing follows.
    disp : bool
        Prints the best value of each generation.
    polish : bool or callable
        Whether the best point is the start of a solve by our L-BFGS-B at the end, integral
        parameters fixed. (Not with ``constraints``, where SciPy uses trust-constr; nor where all
        parameters, or the values, are integral.) Or
        ``polish(func, x, bounds=..., constraints=...)``, which gives a result.
    init : 'latinhypercube', 'sobol', 'halton', 'random', or array (S, n)
        The first population. 'sobol' and 'halton' need SciPy; 'sobol' takes the next power of two
        for its size.
    updating : 'immediate' or 'deferred'
        Whether a better trial counts at once or from the next generation. 'deferred' evaluates
        all trials of a generation together.
    workers : int or callable
        For SciPy's sake: anything but 1 sets ``updating='deferred'``, and nothing else.
    constraints : NonlinearConstraint, LinearConstraint, Bounds, or sequence of them
        SciPy's, or any objects with their attributes; functions are traced.
    x0 : array_like, shape (n,), optional
        Takes the first place of the first population.
    integrality : array_like of bool, optional
        Which parameters are integers.
    vectorized : bool
        Whether ``func`` takes x of shape (n, S) and gives (S,), and constraints (M, S).
    maxfun : int, optional
        Most evaluations; not an argument of SciPy's function, but of its solver.

    Returns
    -------
    DifferentialEvolutionResult
        Where polishing has converged, x and fun have the derivative of that local minimum by
        ``args``, closed-over arrays and ``bounds``; else it is NaN.

    Raises
    ------
    ValueError, RuntimeError, TypeError
        For bad arguments; the message names the argument.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> def rastrigin(x):
    ...     return jnp.sum(x**2 - 10 * jnp.cos(2 * jnp.pi * x) + 10)
    >>> res = ox.differential_evolution(rastrigin, [(-5.12, 5.12)] * 2, rng=1)
    >>> print(res.success, bool(res.fun < 1e-4))
    True True
    """
    check_callable(func, "`func`")
    updating, vectorized = _settled(updating, workers, vectorized)
    if not (callable(polish) or polish in (True, False, None)):
        raise TypeError(f"`polish` must be a bool or a callable, got {polish!r}.")
    check_callback(callback)
    like = x0 if x0 is not None else init
    problem = search_problem(
        func, bounds, args=args, constraints=constraints, integrality=integrality,
        vectorized=vectorized, like=like,
    )  # fmt: skip
    key, for_start = jax.random.split(as_key(rng))
    start = _start(problem, init, popsize, for_start, x0)
    solver = _solver(
        problem, start.shape[0], strategy, mutation, recombination, tol, atol, maxiter, maxfun,
        updating,
    )  # fmt: skip
    listener = _Listener(callback, disp) if callback is not None or disp else None
    result = search(solver, problem, start, key, listener)
    if not polish or (problem.integral is not None and bool(np.all(problem.integral))):
        return result
    if callable(polish):
        return _polished_by(polish, func, args, problem, constraints, result)
    if problem.constraints or not problem.has_gradient:
        return result
    return _polished(func, args, problem, result, disp)


def _settled(updating: str, workers: Any, vectorized: bool) -> tuple[str, bool]:
    """What counts of three arguments which contradict each other; SciPy's warnings."""
    if updating not in ("immediate", "deferred"):
        raise ValueError(f"`updating` must be 'immediate' or 'deferred', got {updating!r}.")
    if not (callable(workers) or isinstance(workers, (int, np.integer))):
        raise TypeError(f"`workers` must be an int or a callable, got {workers!r}.")
    if vectorized not in (True, False):
        raise TypeError(f"`vectorized` must be a bool, got {vectorized!r}.")
    parallel = callable(workers) or workers != 1

    def warn(what: str) -> None:
        warnings.warn(f"differential_evolution: the {what}", UserWarning, stacklevel=4)

    if parallel and updating == "immediate":
        warn("'workers' keyword has overridden updating='immediate' to updating='deferred'")
    if parallel and vectorized:
        warn("'workers' keyword overrides the 'vectorized' keyword")
        vectorized = False
    if vectorized and updating == "immediate":
        warn("'vectorized' keyword has overridden updating='immediate' to updating='deferred'")
    return ("deferred" if parallel or vectorized else updating), vectorized


def _start(problem: SearchProblem, init: PyTree, popsize: int, key: Array, x0: PyTree) -> Array:
    """The first population, in the unit cube."""
    n, dtype = problem.lower.shape[0], problem.lower.dtype
    if isinstance(init, str):
        if init not in INITS:
            raise ValueError(
                f"`init` must be one of {list(INITS)}, or an array of shape (S, N) where N is the "
                f"number of parameters and S>=5, got {init!r}."
            )
        size = max(LEAST, whole("popsize", popsize) * max(1, n - _fixed(problem)))
        if init == "sobol":
            size = 2 ** (size - 1).bit_length()
        start = unit_points(INITS[init], size, n, key, dtype)
    else:
        given = as_dtype(real_array(init, np.nan, "`init`"), dtype)
        if given.ndim != 2 or given.shape[0] < LEAST or given.shape[1] != n:
            raise ValueError(
                "The population supplied needs to have shape (S, len(x)), where S > 4: `init` "
                f"has shape {given.shape}, len(x) is {n}."
            )
        if is_concrete(given) and np.any(np.isnan(given)):
            raise ValueError(f"`init` must not hold NaN, got {init!r}.")
        start = jnp.clip(problem.unit(given), 0, 1)
    if x0 is None:
        return start
    first = as_dtype(real_array(x0, np.nan, "`x0`"), dtype)
    if first.shape != (n,):
        raise ValueError(f"`x0` must have shape ({n},), got {first.shape}.")
    unit = problem.unit(first)
    if is_concrete(unit) and bool(jnp.any(~((unit >= 0) & (unit <= 1)))):
        raise ValueError(f"Some entries in x0 lie outside the specified bounds: {x0!r}.")
    return start.at[0].set(jnp.clip(unit, 0, 1))


def _fixed(problem: SearchProblem) -> int:
    """How many parameters have equal bounds; 0 if these are traced."""
    if not is_concrete((problem.lower, problem.upper)):
        return 0
    return int(np.sum(np.asarray(problem.lower) == np.asarray(problem.upper)))


def _solver(
    problem: SearchProblem, size: int, strategy: str | Callable, mutation: PyTree,
    recombination: Number, tol: Number, atol: Number, maxiter: Count | None,
    maxfun: Count | None, updating: str,
) -> DifferentialEvolution:  # fmt: skip
    dtype = problem.lower.dtype
    custom = None
    if callable(strategy):
        custom, strategy = _custom(strategy, problem, size), "custom"
    elif strategy not in STRATEGIES:
        raise ValueError(
            f"Please select a valid mutation strategy: one of {STRATEGIES}, got {strategy!r}."
        )
    elif MUTATIONS[strategy[:-3]][0] >= size:
        raise ValueError(
            f"strategy {strategy!r} needs more than {MUTATIONS[strategy[:-3]][0]} members in the "
            f"population, got {size}."
        )
    return DifferentialEvolution(
        strategy=strategy,
        custom=custom,
        mutation=_mutation(mutation, dtype),
        recombination=number("recombination", recombination, dtype, 0, 1),
        tol=number("tol", tol, dtype),
        atol=number("atol", atol, dtype),
        maxiter=count("maxiter", 1000 if maxiter is None else maxiter),
        maxfun=count("maxfun", MANY if maxfun is None else maxfun),
        immediate=updating == "immediate",
    )


def _mutation(mutation: PyTree, dtype: DTypeLike) -> PyTree:
    """Between which F is drawn."""
    if not is_concrete(mutation):
        pair = jnp.asarray(mutation, dtype).reshape(-1)
        return jnp.stack([jnp.min(pair), jnp.max(pair)])
    pair = np.asarray(real_array(mutation, np.nan, "`mutation`"), dtype).reshape(-1)
    if not (1 <= pair.size <= 2 and np.all(pair >= 0) and np.all(pair < 2)):
        raise ValueError(
            "The mutation constant must be a float in U[0, 2), or specified as a tuple(min, max) "
            f"where min < max and min, max are in U[0, 2): got {mutation!r}."
        )
    return np.array([pair.min(), pair.max()], dtype)


def _custom(strategy: Callable, problem: SearchProblem, size: int) -> Lifted:
    n, dtype = problem.lower.shape[0], problem.lower.dtype
    lifted = lift(
        lambda candidate, population, key: strategy(candidate, population, rng=key),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((size, n), dtype),
        jax.random.key(0),
        label="`strategy`",
    )
    if getattr(lifted.out_shape, "shape", None) != (n,):
        raise RuntimeError(
            "strategy must have signature f(candidate: int, population: Array, rng=None) "
            f"returning an array of shape ({n},), got {lifted.out_shape}."
        )
    return lifted


class _Listener(AbstractListener):
    """Calls the user's callback after each generation, and prints what ``disp`` asks for."""

    def __init__(self, callback: Callable | None, disp: bool):
        super().__init__()
        self.callback = callback
        self.disp = disp
        self.by_result = takes_result(callback)

    def step(self, report: PyTree, moved: bool, lane: int) -> bool:
        """After a generation, which the first population is not; True asks for the end."""
        if int(report.nit) == 0:
            return False
        report = dataclasses.replace(
            report, status=None, nfev=int(report.nfev), nit=int(report.nit)
        )
        if self.disp:
            print(f"differential_evolution step {report.nit}: f(x)= {report.fun}")
        callback = self.callback
        if callback is None:
            return False
        if self.by_result:
            return self.ask(lambda: bool(callback(intermediate_result=report)))
        return self.ask(lambda: bool(callback(report.x, report.convergence)))


# -- polishing ------------------------------------------------------------------------------


def _polish_box(problem: SearchProblem, x: Array) -> Box:
    """The box, with integral parameters fixed."""
    if problem.integral is None:
        return Box(problem.lower, problem.upper)
    fixed = jax.lax.stop_gradient(x)
    return Box(*(jnp.where(problem.integral, fixed, side)
                 for side in (problem.lower, problem.upper)))  # fmt: skip


def _polished(
    func: Callable, args: Args, problem: SearchProblem, result: PyTree, disp: bool
) -> DifferentialEvolutionResult:
    """With the minimum that our L-BFGS-B finds from the best point, if it is one."""
    if disp:
        print("Polishing solution with 'L-BFGS-B'")
    first = jax.lax.stop_gradient(result.x)
    box = _polish_box(problem, first)
    one = of_one_point(func) if problem.vectorized else func
    local, x = minimization_problem(one, first, args=args, bounds=box)
    found: PyTree = IMPLICIT.solve(LBFGSB(), local, x)
    # It is not above its start: if it seems so, two programs have rounded differently.
    better = found.success & jnp.isfinite(found.fun)
    return _replaced(problem, result, better, found.x, found.fun, found.jac, found.nfev)


def _polished_by(
    polish: Callable, func: Callable, args: Args, problem: SearchProblem, constraints: Any,
    result: PyTree,
) -> DifferentialEvolutionResult:  # fmt: skip
    """By a function of the user's."""
    bound = (lambda x: func(x, *args)) if args else func
    found = polish(bound, result.x, bounds=_polish_box(problem, result.x), constraints=constraints)
    if not (hasattr(found, "x") and hasattr(found, "fun") and hasattr(found, "success")):
        raise ValueError(
            "The result from a user defined polishing function should return an OptimizeResult, "
            f"got {found!r}."
        )
    dtype = result.x.dtype
    x, f = jnp.asarray(found.x, dtype), jnp.asarray(found.fun, dtype)
    inside = jnp.all((x >= problem.lower) & (x <= problem.upper))
    lower = jnp.asarray(found.success) & (f < result.fun) & inside
    jac = getattr(found, "jac", None)
    jac = jnp.full_like(x, jnp.nan) if jac is None else jnp.asarray(jac, dtype)
    return _replaced(problem, result, lower, x, f, jac, getattr(found, "nfev", 0))


def _replaced(
    problem: SearchProblem,
    result: PyTree,
    lower: Array,
    x: Array,
    fun: Array,
    jac: Array,
    nfev: Count,
) -> DifferentialEvolutionResult:
    """With another best point where that is lower."""
    x = jnp.where(lower, x, result.x)
    fun = jnp.where(lower, fun, result.fun)
    result = dataclasses.replace(
        result,
        x=x,
        fun=fun,
        nfev=result.nfev + nfev,
        jac=jnp.where(lower, jac, jnp.nan),
        population=result.population.at[0].set(x),
        population_energies=result.population_energies.at[0].set(fun),
    )
    if not problem.constraints:
        return result
    constr = problem.violation_of_each(x)
    maxcv = jnp.max(jnp.concatenate(constr))
    # The search itself has not converged at a feasible point.
    feasible = jnp.where(jnp.asarray(result.status) == INFEASIBLE, MAXITER, result.status)
    status = jnp.where(maxcv > 0, INFEASIBLE, feasible)
    result = eqx.tree_at(lambda r: (r.constr, r.maxcv), result, (constr, maxcv))
    return dataclasses.replace(result, status=status if not is_concrete(status) else int(status))
