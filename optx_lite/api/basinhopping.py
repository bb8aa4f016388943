"""The front door of basin hopping, with SciPy's signature."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, PyTree

from ..driver.callbacks import check_callback
from ..driver.chain import Chain, ChainListener
from ..functions import lift
from ..jax_support.types import Number, Options
from ..problem.base import AbstractProblem
from ..problem.pytrees import ravel
from ..problem.random_keys import as_key
from ..results.base import to_host
from ..results.global_search import BasinHoppingResult
from ..results.minimize import MinimizeResult
from ..solvers.global_search.basinhopping import BasinHopping, State
from ..solvers.minimize.base import AbstractMinimizer
from .minimize import minimize
from .search_arguments import MANY, arguments_of_minimize, count, number


def basinhopping(
    func: Callable[..., PyTree],
    x0: PyTree,
    niter: int = 100,
    T: Number = 1.0,
    stepsize: Number = 0.5,
    minimizer_kwargs: Options | None = None,
    take_step: Callable | None = None,
    accept_test: Callable | None = None,
    callback: Callable | None = None,
    interval: int = 50,
    disp: bool = False,
    niter_success: int | None = None,
    rng: int | Array | None = None,
    *,
    target_accept_rate: Number = 0.5,
    stepwise_factor: Number = 0.9,
) -> BasinHoppingResult:
    """Find the lowest of many minima by random moves and local solves.

    The signature is that of ``scipy.optimize.basinhopping``; a chain is one compiled loop, and
    `jax.vmap` over ``x0`` and keys runs many of them side by side.

    Parameters
    ----------
    func : callable
        ``func(x, *args)`` gives a scalar; ``args`` stand in ``minimizer_kwargs``.
    x0 : array_like (n,), or pytree of arrays
        Where the first solve starts.
    niter : int
        Hops; there is one solve more.
    T : float
        The temperature, in units of ``func``: differences between neighbouring minima.
    stepsize : float
        The largest move of each variable.
    minimizer_kwargs : dict, optional
        Arguments of `minimize`: args, method, jac, bounds, tol, options.
    take_step : callable, optional
        ``take_step(x, stepsize, rng=key)`` gives the start of a solve. (SciPy: an object, which is
        given x alone.)
    accept_test : callable, optional
        ``accept_test(f_new=, x_new=, f_old=, x_old=)``, traced: a bool, besides the Metropolis
        test; what it refuses is not the answer either. (SciPy's 'force accept' is not taken.)
    callback : callable, optional
        ``callback(x, f, accept)`` after each solve; a true value or StopIteration ends the chain.
        (SciPy: not after the first.)
    interval : int
        Hops between changes of the step size.
    disp : bool
        Prints a line for each solve.
    niter_success : int, optional
        Stop when the best has not changed for more than so many hops.
    rng : key, int, numpy.random.Generator, optional
        The same gives the same answer.
    target_accept_rate, stepwise_factor : float
        In (0, 1): above that share of accepted hops the step size is divided by the factor,
        else multiplied.

    Returns
    -------
    BasinHoppingResult
        x and fun have the derivative of the minimum.

    Raises
    ------
    ValueError, TypeError
        For bad arguments; and as `minimize`.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> def func(x):
    ...     return jnp.cos(14.5 * x[0] - 0.3) + (x[0] + 0.2) * x[0]
    >>> res = ox.basinhopping(func, [1.0], niter=60, rng=0)
    >>> print(res.x.round(3), f"{res.fun:.3f}")
    [-0.195] -1.001
    """
    check_callback(callback)
    _check_functions(take_step=take_step, accept_test=accept_test)
    kwargs = arguments_of_minimize(minimizer_kwargs)
    counts = {
        "niter": count("niter", niter),
        "interval": count("interval", interval, least=1),
        "niter_success": count("niter_success", MANY if niter_success is None else niter_success),
    }

    def numbers(dtype: DTypeLike) -> Options:
        return {
            "temperature": number("T", T, dtype),
            "stepsize": number("stepsize", stepsize, dtype),
            "target": number("target_accept_rate", target_accept_rate, dtype, 0, 1, inside=True),
            "factor": number("stepwise_factor", stepwise_factor, dtype, 0, 1, inside=True),
        }

    numbers(float)  # what is wrong with them shows before what is wrong with ``func``

    def make(solver: AbstractMinimizer, problem: AbstractProblem, x: Array) -> BasinHopping:
        return BasinHopping(
            solver=solver,
            take_step=_lifted_step(take_step, x, problem.restore_x),
            accept_test=_lifted_test(accept_test, x, problem.restore_x),
            **numbers(x.dtype),
            **counts,
        )

    listener = _Listener(callback, disp) if callback is not None or disp else None
    found: Options = {}
    chain = Chain("nan", make, as_key(rng), listener, found)
    lowest = minimize(func, x0, adjoint=chain, **kwargs)
    return _result(lowest, found["state"])


def _check_functions(**functions: object) -> None:
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"`{name}` must be callable, got {function!r}.")


def _result(lowest: MinimizeResult, state: State) -> BasinHoppingResult:
    """From the local solve that found the lowest minimum, and the last state of the chain."""
    tried = jnp.maximum(state.nit, 1).astype(state.value.dtype)
    return to_host(
        BasinHoppingResult(
            x=lowest.x,
            fun=lowest.fun,
            lowest_optimization_result=lowest,
            minimization_failures=state.failures,
            nfev=state.nfev,
            njev=state.njev,
            nit=state.nit,
            stepsize=state.stepsize,
            accept_rate=state.acceptances.astype(state.value.dtype) / tried,
            status=state.status,
        )
    )


def _lifted_step(take_step: Callable | None, x: Array, restore: Callable) -> PyTree:
    if take_step is None:
        return None

    def on_flat(x: Array, stepsize: Array, key: Array) -> Array:
        return ravel(take_step(restore(x), stepsize, rng=key), x.dtype)

    scalar = jax.ShapeDtypeStruct((), x.dtype)
    example = jax.ShapeDtypeStruct(x.shape, x.dtype)
    lifted = lift(on_flat, example, scalar, jax.random.key(0), label="`take_step`")
    if lifted.out_shape.shape != x.shape:
        raise ValueError(f"`take_step` must return {x.shape} numbers, got {lifted.out_shape}.")
    return lifted


def _lifted_test(accept_test: Callable | None, x: Array, restore: Callable) -> PyTree:
    if accept_test is None:
        return None

    def on_flat(f_new: Array, x_new: Array, f_old: Array, x_old: Array) -> Array:
        answer = accept_test(f_new=f_new, x_new=restore(x_new), f_old=f_old, x_old=restore(x_old))
        answer = np.bool_(answer) if isinstance(answer, bool) else answer
        if getattr(answer, "dtype", None) != np.dtype(bool) or jnp.shape(answer) != ():
            raise ValueError(f"`accept_test` must return a bool, traced, got {answer!r}.")
        return jnp.asarray(answer)

    scalar = jax.ShapeDtypeStruct((), x.dtype)
    example = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return lift(on_flat, scalar, example, scalar, example, label="`accept_test`")


class _Listener(ChainListener):
    """Calls the user's callback after each solve, and prints what ``disp`` asks for."""

    def __init__(self, callback: Callable | None, disp: bool):
        super().__init__(callback)
        self.disp = disp

    def step(self, report: PyTree, moved: bool, lane: int) -> bool:
        """After a step of the local solver; ``moved`` if that ended a solve."""
        if not moved:
            return False
        if self.disp:
            print(
                f"basinhopping step {int(report.nit)}: trial_f {float(report.fun):g} "
                f"accepted {int(report.accepted)} lowest_f {float(report.best):g}"
            )
        return self.call(report, bool(report.accepted))
