"""The front doors of minimisation, `minimize` and `fmin_l_bfgs_b`, with SciPy's signatures."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, DTypeLike, PyTree

from ..driver.adjoint import AbstractAdjoint, ImplicitAdjoint
from ..driver.callbacks import Listener, check_callback
from ..driver.run import IMPLICIT, solve
from ..jax_support.types import Args, Bounds, Number, Options
from ..linalg.inverse_hessian import LbfgsInvHessProduct
from ..problem.arguments import as_tuple, check_x0
from ..problem.minimization import minimization_problem
from ..problem.pytrees import as_dtype
from ..results.minimize import MinimizeResult
from ..solvers import LBFGSB, AbstractMinimizer
from ..solvers.minimize.first_order import first_order

LINE_SEARCH, TRANSFORMATION, SOLVER = "L-BFGS-B", "optax", "solver"
DIFFERENCES = ("eps", "finite_diff_rel_step", "disp")
LIMITS = ("ftol", "gtol", "maxfun", "maxiter", *DIFFERENCES)
OPTIONS = {
    LINE_SEARCH: ("maxcor", "maxls", *LIMITS),
    TRANSFORMATION: LIMITS,
    SOLVER: DIFFERENCES,
}


def minimize(
    fun: Callable[..., PyTree],
    x0: PyTree,
    args: Args = (),
    method: Any = None,
    jac: str | bool | Callable | None = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Bounds = None,
    constraints: Any = (),
    tol: float | None = None,
    callback: Callable | None = None,
    options: Options | None = None,
    *,
    adjoint: AbstractAdjoint = IMPLICIT,
) -> MinimizeResult:
    """Minimise a scalar function of several variables, in a box.

    The signature is that of ``scipy.optimize.minimize``; the call may stand inside ``jit``,
    ``vmap``, ``grad`` and the like, and the result is differentiable.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` gives a scalar. It is traced by JAX, so it must use ``jax.numpy``.
    x0 : array_like of shape (n,), scalar, or pytree of real arrays
        Initial guess, moved into the box if it lies outside. Its floating dtype is the dtype
        of the solve.
    args : tuple or list
        Further arguments of ``fun`` and ``jac``. Arrays and numbers among them, and arrays
        that ``fun`` closes over, carry derivatives.
    method : 'L-BFGS-B', optax.GradientTransformation or solver, optional
        The default is 'L-BFGS-B'. A transformation of optax (``optax.adam(1e-2)``, any chain)
        is run with a projection onto the bounds after each step, and ended by the same tests. A
        solver, like ``ox.LBFGSB(maxcor=5)``, brings its own options.
    jac : None, True, '2-point', '3-point', 'cs' or callable
        How the gradient is computed. None: by automatic differentiation (SciPy: by finite
        differences). True: ``fun`` returns (value, gradient).
    hess, hessp
        Not used by this method; a warning says so.
    bounds : sequence of n pairs (min, max), or object with ``lb`` and ``ub``
        None, or an infinite number, for no bound; ``min == max`` fixes a variable. For a
        pytree ``x0``: (lower, upper), each a pytree prefix of it.
    constraints
        Not supported.
    tol : float, optional
        Sets ``ftol`` and ``gtol``.
    callback : callable, optional
        ``callback(x)`` or ``callback(intermediate_result)``, after every iteration. Raise
        StopIteration, or return True, to end the solve, with status 99. Other exceptions pass,
        as in `least_squares`.
    options : dict, optional
        maxcor : int, 10
            Pairs in the limited memory; for L-BFGS-B only.
        ftol : float, 2.2e-9
            Relative to f: the end when both the last reduction of f and what the quadratic
            model promises for the next are below it. (SciPy: the reduction alone, and
            relative to at least 1.)
        gtol : float, 1e-5
            Largest entry of the projected gradient; counts with the same promise.
        maxfun, maxiter : int, 15000
            Most evaluations and iterations.
        maxls : int, 20
            Most evaluations in one line search; for L-BFGS-B only.
        eps, finite_diff_rel_step : float or array (n,)
            Absolute and relative step of the finite differences.
        disp : bool or int
            True prints a report at the end, 2 a line for each iteration.
    adjoint : ImplicitAdjoint or UnrolledAdjoint
        How the result is differentiated.

    Returns
    -------
    MinimizeResult

    Raises
    ------
    ValueError
        For bad arguments; the message names the argument.
    TypeError
        If ``fun`` cannot be traced.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optx_lite as ox
    >>> rosenbrock = lambda x, a: (a - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    >>> res = ox.minimize(rosenbrock, [-1.2, 1.0], args=(1.0,), bounds=[(-2, 0.5), (None, None)])
    >>> print(res.success, res.x.round(4))
    True [0.5  0.25]
    >>> slope = jax.grad(lambda a: ox.minimize(rosenbrock, [-1.2, 1.0], args=(a,)).x[1])(1.0)
    >>> print(f"{slope:.2f}")
    2.00
    """
    kind = _check_method(method)
    if constraints is not None and len(constraints) > 0:
        raise ValueError("`constraints` are not supported by any method here: use `bounds`.")
    for name, value in (("hess", hess), ("hessp", hessp)):
        if value is not None:
            warnings.warn(f"Method {kind} does not use `{name}`.", RuntimeWarning, stacklevel=2)
    if not isinstance(adjoint, AbstractAdjoint):
        raise TypeError(
            f"`adjoint` must be an ImplicitAdjoint or UnrolledAdjoint, got {adjoint!r}."
        )
    check_callback(callback)
    chosen = _check_options(kind, options, tol, jac)
    problem, x = minimization_problem(
        fun, x0, args=args, jac=jac, bounds=bounds, eps=chosen.pop("eps", None),
        finite_diff_rel_step=chosen.pop("finite_diff_rel_step", None),
    )  # fmt: skip
    verbose = int(chosen.pop("disp", None) or 0)
    solver = method
    if not isinstance(method, AbstractMinimizer):
        solver = LBFGSB() if kind == LINE_SEARCH else first_order(method, problem, x)
        solver = _configured(solver, chosen, x.dtype, isinstance(adjoint, ImplicitAdjoint))
    listener = None
    if verbose or callback is not None:
        listener = Listener(callback, verbose, problem.restore_x, MinimizeResult)
    return _trim(solve(solver, problem, x, adjoint, listener))


def fmin_l_bfgs_b(
    func: Callable[..., PyTree],
    x0: PyTree,
    fprime: Any = None,
    args: Args = (),
    approx_grad: Any = 0,
    bounds: Bounds = None,
    m: int = 10,
    factr: float = 1e7,
    pgtol: float = 1e-5,
    epsilon: Number = 1e-8,
    maxfun: int = 15000,
    maxiter: int = 15000,
    callback: Callable | None = None,
    maxls: int = 20,
) -> tuple[PyTree, Array, Options]:
    """Minimise a function by L-BFGS-B: the older of SciPy's two doors to it.

    Parameters
    ----------
    func, x0, args, bounds, callback
        As ``fun``, ... of `minimize`.
    fprime : callable, optional
        The gradient. None: by automatic differentiation. (SciPy: ``func`` returns it, too; here
        that is seen from what ``func`` returns.)
    approx_grad : bool
        By finite differences, of step ``epsilon``.
    m, maxfun, maxiter, maxls
        As ``maxcor``, ... of `minimize`.
    factr, pgtol : float
        ``factr`` times the machine's epsilon is ``ftol``; ``pgtol`` is ``gtol``.

    Returns
    -------
    x : pytree like ``x0``
        The best point seen.
    f : array, shape ()
        ``func`` there.
    d : dict
        grad : the gradient, one entry for each parameter: near 0 where it is free; at a bound,
        of the sign that keeps it there, positive at a lower and negative at an upper one.
        task : the message. funcalls, nit : counts. warnflag : 0 converged, 1 limit, 2 else.

    Notes
    -----
    How sure is each parameter? If ``func`` is a negative log-likelihood, the inverse of its
    Hessian, without the rows and columns of the parameters at bounds, is their covariance:
    ``jnp.linalg.inv(jax.hessian(func)(x))``. What L-BFGS-B knows of it, ``hess_inv`` in the result
    of `minimize`, is a cheap and rough stand-in.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> x, f, d = ox.fmin_l_bfgs_b(lambda x: jnp.sum((x - 1) ** 2), [0.0, 3.0], bounds=[(2, 4)] * 2)
    >>> print(x, f, d["grad"], d["warnflag"])
    [2. 2.] 2.0 [2. 2.] 0
    """
    jac: str | bool | Callable | None = fprime
    if approx_grad:
        jac = "2-point"
    elif fprime is None and _returns_pair(func, x0, args):
        jac = True
    options = {
        "maxcor": m, "ftol": factr * float(np.finfo(float).eps), "gtol": pgtol, "maxfun": maxfun,
        "maxiter": maxiter, "maxls": maxls, **({"eps": epsilon} if approx_grad else {}),
    }  # fmt: skip
    res = minimize(func, x0, args, jac=jac, bounds=bounds, callback=callback, options=options)
    status = res.status
    details = {
        "grad": res.jac,
        "task": None if isinstance(status, Tracer) else res.message,
        "funcalls": res.nfev,
        "nit": res.nit,
        "warnflag": status,
    }
    return res.x, res.fun, details


def _check_method(method: Any) -> str:
    """Which options go with it."""
    if method is None or (isinstance(method, str) and method.upper() == LINE_SEARCH):
        return LINE_SEARCH
    if isinstance(method, AbstractMinimizer):
        return SOLVER
    if callable(getattr(method, "init", None)) and callable(getattr(method, "update", None)):
        return TRANSFORMATION
    raise ValueError(
        "`method` must be 'L-BFGS-B', an optax.GradientTransformation such as optax.adam(1e-2), "
        f"or a solver such as ox.LBFGSB(), got {method!r}."
    )


def _check_options(
    kind: str, options: Options | None, tol: Number | None, jac: str | bool | Callable | None
) -> Options:
    if not isinstance(options, (dict, type(None))):
        raise TypeError(f"`options` must be a dict, got {options!r}.")
    chosen = {name: value for name, value in (options or {}).items() if value is not None}
    known = OPTIONS[kind]
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise ValueError(
            f"`options` has entries {unknown} that are not known to method {kind}; known are "
            f"{list(known)}."
        )
    if tol is not None:
        if kind == SOLVER:
            raise ValueError("`tol` is for methods that are named: a solver has its own.")
        chosen = {"ftol": tol, "gtol": tol, **chosen}
    steps = [name for name in ("eps", "finite_diff_rel_step") if chosen.get(name) is not None]
    if steps and not isinstance(jac, str):
        raise ValueError(
            f"`options` has {steps}, steps of finite differences, but the gradient is computed "
            f"otherwise: `jac` is {jac!r}. Ask for jac='2-point' or '3-point'."
        )
    return chosen


def _configured(
    solver: AbstractMinimizer, chosen: Options, dtype: DTypeLike, counts_as_arrays: bool
) -> PyTree:
    """The solver with the options in its fields.

    As arrays where that is possible: other tolerances then compile nothing anew. The number of
    steps to be unrolled has to be a number.
    """
    values = {"ftol": solver.ftol, "gtol": solver.gtol, **chosen}
    for name, value in values.items():
        if name in ("ftol", "gtol"):
            values[name] = _number(name, value, dtype)
        elif name != "maxcor" and (counts_as_arrays or isinstance(value, Tracer)):
            values[name] = as_dtype(_count(name, value), np.int32)
        else:
            values[name] = _count(name, value)
    return dataclasses.replace(solver, **values)


def _number(name: str, value: PyTree, dtype: DTypeLike) -> PyTree:
    if isinstance(value, (str, bytes)) or jnp.ndim(value) > 0:
        raise ValueError(f"`options`: `{name}` must be a number, got {value!r}.")
    if not isinstance(value, Tracer) and not float(value) >= 0:
        raise ValueError(f"`options`: `{name}` must not be negative, got {value!r}.")
    return as_dtype(value, dtype)


def _count(name: str, value: PyTree) -> PyTree:
    if isinstance(value, Tracer):
        if name == "maxcor":
            raise TypeError("`options`: `maxcor` is a shape, so it must be a number, not traced.")
        return value
    least = 1 if name in ("maxcor", "maxls") else 0
    if isinstance(value, (str, bytes)) or jnp.ndim(value) > 0 or not value >= least:
        raise ValueError(f"`options`: `{name}` must be at least {least}, got {value!r}.")
    return int(min(value, np.iinfo(np.int32).max))


def _returns_pair(func: Callable, x0: PyTree, args: Args) -> bool:
    try:
        out = jax.eval_shape(func, check_x0(x0), *as_tuple(args))
    except Exception:  # what is wrong with it, `minimize` will say
        return False
    return isinstance(out, (tuple, list)) and len(out) == 2


def _trim(result: MinimizeResult) -> MinimizeResult:
    """Without the empty slots of the memory, where that is known."""
    inverse = result.hess_inv
    if inverse is None or isinstance(inverse.sk, Tracer) or inverse.sk.ndim > 2:
        return result
    empty = int(np.sum(~np.any(np.asarray(inverse.sk), axis=1)))
    if not empty:
        return result

    # By NumPy: JAX would compile a slice for each number of pairs.
    filled = [np.asarray(pairs)[empty:] for pairs in (inverse.sk, inverse.yk)]
    pairs = LbfgsInvHessProduct(*jax.device_put(filled, inverse.sk.sharding))
    return dataclasses.replace(result, hess_inv=pairs)
