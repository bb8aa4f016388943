"""The front door of nonlinear least squares: SciPy's signature, checks and messages."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from ..derivatives.base import AbstractJacobian
from ..derivatives.structured import AbstractStructured, Dense
from ..driver.adjoint import AbstractAdjoint, ImplicitAdjoint
from ..driver.callbacks import Listener, check_callback
from ..driver.run import IMPLICIT, solve
from ..jax_support.memory import check_fits
from ..jax_support.types import Bounds, Count, Number, Options
from ..problem.arguments import spread
from ..problem.least_squares import LeastSquaresProblem, least_squares_problem
from ..problem.pytrees import as_dtype, is_concrete
from ..results.least_squares import MESSAGES, WRONG_SPARSITY, Result
from ..solvers import AbstractLeastSquaresSolver, Dogbox, LevenbergMarquardt, TrustRegionReflective
from ..solvers.least_squares.operator_model import LinearSolver

METHODS = {"trf": TrustRegionReflective, "dogbox": Dogbox, "lm": LevenbergMarquardt}
EPS = float(np.finfo(np.float64).eps)
LSMR_OPTIONS = {"regularize", "damp", "atol", "btol", "conlim", "maxiter"}


def least_squares(
    fun: Callable[..., PyTree],
    x0: PyTree,
    jac: str | Callable | AbstractJacobian = "jacfwd",
    bounds: Bounds = (-np.inf, np.inf),
    method: str | AbstractLeastSquaresSolver = "trf",
    ftol: float | None = 1e-8,
    xtol: float | None = 1e-8,
    gtol: float | None = 1e-8,
    x_scale: PyTree = None,
    loss: str | Callable = "linear",
    f_scale: Number = 1.0,
    diff_step: PyTree = None,
    tr_solver: str | None = None,
    tr_options: Options | None = None,
    jac_sparsity: PyTree = None,
    max_nfev: int | None = None,
    verbose: int = 0,
    args: tuple = (),
    kwargs: Options | None = None,
    callback: Callable | None = None,
    workers: Any = None,
    *,
    adjoint: AbstractAdjoint = IMPLICIT,
) -> Result:
    """Solve a nonlinear least-squares problem with bounds on the variables.

    Finds a local minimum of ``0.5 * sum(rho(f_i(x)**2))`` subject to ``lb <= x <= ub``. The
    signature is that of ``scipy.optimize.least_squares``; the call may stand inside ``jit``,
    ``vmap``, ``grad`` and the like, and the result is differentiable.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args, **kwargs)`` gives the residuals: an array of shape (m,), a scalar, a
        list of scalars, or a pytree. It is traced by JAX, so it must use ``jax.numpy``. For
        an array ``x0`` its ``x`` has shape (n,), also when n = 1; for a pytree ``x0`` it has
        that structure.
    x0 : array_like of shape (n,), scalar, or pytree of real arrays
        Initial guess. Its floating dtype is the dtype of the solve; integers become the
        default float.
    jac : {'jacfwd', 'jacrev', '2-point', '3-point', 'cs', 'matrix-free'} or callable
        How the Jacobian is computed. 'jacfwd' (automatic, forward mode) is right for m >= n,
        'jacrev' for m < n. A callable gives ``jac(x, *args, **kwargs)``, shape (m, n), or for
        pytrees whatever ``jax.jacfwd(fun)`` would give; or a BCOO; or an `AbstractOperator`, whose
        products with vectors are all that is known. 'matrix-free': products with the Jacobian and
        its transpose alone, nothing of size m n.
    bounds : 2-tuple (lb, ub) or object with ``lb`` and ``ub``
        Each a scalar, an array of shape (n,), or a pytree prefix of ``x0``; None for no bound.
        ``lb == ub`` fixes a variable. 'lm' takes no other bounds.
    method : {'trf', 'dogbox', 'lm'} or AbstractLeastSquaresSolver
        Trust Region Reflective; dogleg in a box; Levenberg-Marquardt. Or a solver, such as
        ``ox.Dogbox(xtol=1e-10)``, which has its own tolerances, ``x_scale`` and ``max_nfev``.
    ftol, xtol, gtol : float or None
        Tolerances, None for "off", on the relative change of the cost, on that of ``x``, and on
        the relative offset (the cosine between the residuals and the tangent plane; SciPy
        tests the absolute gradient, which depends on units). A test that is met opens a last
        phase of undamped steps, which end when the error in ``x`` is below the largest of
        the tolerances, or when they no longer shrink.
    x_scale : None, float, array or pytree like ``x0``, or 'jac'
        The size of each variable. 'jac': from the columns of the Jacobian. None: 'jac' for
        'lm', 1 for the others.
    loss : {'linear', 'soft_l1', 'huber', 'cauchy', 'arctan'} or callable
        The loss rho. A callable takes z = (f / f_scale)**2, shape (m,), and gives an array
        (3, m) of rho, rho', rho''; or it takes one scalar z and gives rho, which is then
        differentiated.
    f_scale : float
        Margin between inliers and outliers.
    diff_step : float or array of shape (n,), optional
        Relative step of the finite-difference schemes.
    tr_solver : {None, 'exact', 'lsmr'}
        How the linear systems of a step are solved. 'exact': by the triangular factor of a dense
        Jacobian. 'lsmr': by products with it. None: 'exact' where the Jacobian is dense; where it
        is sparse, by its normal equations if it is a narrow band or has two groups of blocks, as
        in bundle adjustment, and else 'lsmr'.
    tr_options : dict, optional
        Of 'lsmr': ``damp``, ``atol``, ``btol`` (half of the digits by default), ``conlim``,
        ``maxiter``, ``regularize``, as in SciPy.
    jac_sparsity : sparse or dense (m, n), (rows, cols), bandwidth or 'auto', optional
        Which entries of the Jacobian may differ from 0: SciPy's sparse array, a BCOO, a dense
        array, two index arrays, an integer k for ``abs(i - j) <= k``, or a pair ``(lower,
        upper)``; 'auto' finds them in the function's program (extra ``optx-lite[sparse]``). The
        Jacobian is then computed from as few products, or differences, as its columns and rows
        have colours, and kept sparse.
    max_nfev : int, optional
        Most evaluations of ``fun``; 100 n by default, ``inf`` for no limit.
    verbose : {0, 1, 2}
        Nothing, a report at the end, a line for each iteration; also from compiled code.
        Under `vmap` each line begins with the number of its lane.
    args, kwargs : tuple or list, and dict
        Further arguments of ``fun`` and ``jac``. Arrays and numbers among them, and arrays
        that ``fun`` closes over, carry derivatives.
    callback : callable, optional
        ``callback(x)`` or ``callback(intermediate_result)``, after every accepted step.
        Raise StopIteration or return True to end the solve, with status -2. Other exceptions
        pass, also through eager `vmap`, `grad` and `jacfwd`; a program of `jit` raises an error
        of JAX with their text.
    workers
        Accepted for SciPy's sake: finite differences are one vectorised call already.
    adjoint : ImplicitAdjoint or UnrolledAdjoint
        How the result is differentiated.

    Returns
    -------
    Result
        With SciPy's fields. Outside a trace, counters and status are plain numbers.

    Raises
    ------
    ValueError
        For bad arguments, as SciPy; the message names the argument.
    TypeError
        If ``fun`` cannot be traced, or for an unknown option.
    MemoryError
        If a dense Jacobian is larger than the memory of all devices.

    References
    ----------
    See `optx_lite.solvers` for the methods and `optx_lite.driver.minimum_derivative` for the
    derivative.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optx_lite as ox
    >>> t = jnp.linspace(0.0, 2.0, 20)
    >>> y = 2.0 * jnp.exp(-1.5 * t)
    >>> def residuals(x, t, y):
    ...     return x[0] * jnp.exp(-x[1] * t) - y
    >>> res = ox.least_squares(residuals, [1.0, 1.0], args=(t, y))
    >>> print([f"{value:.2f}" for value in res.x], res.success)
    ['2.00', '1.50'] True
    >>> slope = jax.grad(lambda y: ox.least_squares(residuals, [1.0, 1.0], args=(t, y)).x[0])(y)
    >>> slope.shape
    (20,)
    """
    return solved(
        fun, x0, jac=jac, bounds=bounds, method=method, ftol=ftol, xtol=xtol, gtol=gtol,
        x_scale=x_scale, loss=loss, f_scale=f_scale, diff_step=diff_step, tr_solver=tr_solver,
        tr_options=tr_options, jac_sparsity=jac_sparsity, max_nfev=max_nfev, verbose=verbose,
        args=args, kwargs=kwargs, callback=callback, adjoint=adjoint,
    )[0]  # fmt: skip


def with_solver(
    fun: Callable[..., PyTree], x0: PyTree, **options: Any
) -> tuple[Result, AbstractLeastSquaresSolver]:
    """`least_squares`, with the solver that it took."""
    given = inspect.signature(least_squares).bind(fun, x0, **options)
    given.apply_defaults()
    arguments = dict(given.arguments)
    del arguments["workers"]  # which JAX has no use for
    return solved(**arguments)


def solved(
    fun: Callable[..., PyTree],
    x0: PyTree,
    *,
    jac: Any,
    bounds: Bounds,
    method: Any,
    ftol: float | None,
    xtol: float | None,
    gtol: float | None,
    x_scale: PyTree,
    loss: Any,
    f_scale: Number,
    diff_step: PyTree,
    tr_solver: str | None,
    tr_options: Options | None,
    jac_sparsity: PyTree,
    max_nfev: int | None,
    verbose: int,
    args: tuple,
    kwargs: Options | None,
    callback: Callable | None,
    adjoint: AbstractAdjoint,
) -> tuple[Result, AbstractLeastSquaresSolver]:
    """The work of `least_squares`."""
    own = isinstance(method, AbstractLeastSquaresSolver)
    if not own and not (isinstance(method, str) and method in METHODS):
        raise ValueError(
            "`method` must be 'trf', 'dogbox', 'lm', or a solver such as ox.Dogbox(), "
            f"got {method!r}."
        )
    if not isinstance(verbose, (int, np.integer)) or verbose not in (0, 1, 2):
        raise ValueError(f"`verbose` must be in [0, 1, 2], got {verbose!r}.")
    max_nfev = _check_max_nfev(max_nfev)
    check_callback(callback)
    if not isinstance(adjoint, AbstractAdjoint):
        raise TypeError(
            f"`adjoint` must be an ImplicitAdjoint or UnrolledAdjoint, got {adjoint!r}."
        )
    ftol, xtol, gtol = _check_tolerances(ftol, xtol, gtol)
    problem, x = least_squares_problem(
        fun, x0, jac=jac, bounds=bounds, loss=loss, f_scale=f_scale, diff_step=diff_step,
        jac_sparsity=jac_sparsity, args=args, kwargs=kwargs,
    )  # fmt: skip
    problem, linear_solver = _linear_solver(tr_solver, tr_options, problem)
    _check_fits(problem, x)
    if own:
        _check_no_settings(ftol=ftol, xtol=xtol, gtol=gtol, x_scale=x_scale, max_nfev=max_nfev)
        solver = method
    else:
        solver = METHODS[method](
            *(as_dtype(tol, x.dtype) for tol in (ftol, xtol, gtol)),
            x_scale=_check_x_scale(x_scale, problem, x),
            from_jacobian=isinstance(x_scale, str),
            max_nfev=max_nfev if _unrolls(adjoint) else _as_count(max_nfev),
            linear_solver=linear_solver,
        )
    _check_takes_bounds(solver, problem)
    listener = None
    if verbose or callback is not None:
        listener = Listener(callback, verbose, problem.restore_x, Result)
    try:
        result = solve(solver, problem, x, adjoint, listener)
    except ValueError as error:
        if str(error) == MESSAGES[WRONG_SPARSITY]:
            raise ValueError(_lacking(problem, x)) from None
        raise
    if not solver.COUNTS_DIFFERENCES and jac in ("2-point", "3-point", "cs"):
        result = eqx.tree_at(lambda r: r.njev, result, None)
    return result, solver


def _lacking(problem: LeastSquaresProblem, x: Array) -> str:
    i, j = problem.missing_entry(x)
    return f"`jac_sparsity` lacks an entry: residual {i} changes with variable {j} at `x0`."


def _check_fits(problem: LeastSquaresProblem, x: Array) -> None:
    """The dense Jacobians of two points, which are held at once, are in memory."""
    if not (problem.dense or isinstance(problem.jacobian, Dense)):
        return
    m, n = sum(problem.restore_f.sizes), x.size
    check_fits(
        f"The Jacobians of two points, of shape {(m, n)}, take",
        2 * m * n * x.dtype.itemsize,
        "give their pattern as `jac_sparsity`, or take jac='matrix-free'",
    )


def _unrolls(adjoint: AbstractAdjoint) -> bool:
    return not isinstance(adjoint, ImplicitAdjoint)


def _check_max_nfev(max_nfev: Count | None) -> PyTree:
    """A count that an int32 holds; an infinite one is the largest."""
    wrong = f"`max_nfev` must be None or positive integer, got {max_nfev!r}."
    if max_nfev is None:
        return None
    if not _is_number(max_nfev):
        raise ValueError(wrong)
    if isinstance(max_nfev, Tracer):
        return max_nfev
    number = np.asarray(max_nfev)
    if not number > 0 or (np.isfinite(number) and number % 1):
        raise ValueError(wrong)
    return int(min(number, np.iinfo(np.int32).max))


def _as_count(max_nfev: Count | None) -> PyTree:
    return None if max_nfev is None else as_dtype(max_nfev, np.int32)


def _linear_solver(
    tr_solver: str | None, tr_options: Options | None, problem: LeastSquaresProblem
) -> tuple[LeastSquaresProblem, LinearSolver]:
    """How the linear systems of a step are solved; a problem whose Jacobian has that form."""
    if tr_solver not in (None, "exact", "lsmr"):
        raise ValueError(f"`tr_solver` must be None, 'exact' or 'lsmr', got {tr_solver!r}.")
    options = {} if tr_options is None else tr_options
    if not isinstance(options, dict):
        raise TypeError(f"`tr_options` must be a dict, got {tr_options!r}.")
    unknown = set(options) - LSMR_OPTIONS
    if unknown:
        raise TypeError(f"`tr_options` got unknown options {sorted(unknown)}.")
    scheme = problem.jacobian
    structured = isinstance(scheme, AbstractStructured)
    if structured and tr_solver == "exact":
        raise ValueError(
            "tr_solver='exact' takes a dense Jacobian: leave out `jac_sparsity`, or take "
            "tr_solver=None."
        )
    if options and not structured and tr_solver != "lsmr":
        raise ValueError(f"`tr_options` {sorted(options)} belong to tr_solver='lsmr'.")
    if tr_solver == "lsmr" and not isinstance(scheme, AbstractStructured):
        problem = eqx.tree_at(lambda p: p.jacobian, problem, Dense(scheme))
    direct = isinstance(scheme, AbstractStructured) and scheme.direct
    direct = direct and tr_solver is None and not options
    return problem, LinearSolver(direct=direct, **options)


def _check_tolerances(
    ftol: Number | None, xtol: Number | None, gtol: Number | None
) -> tuple[PyTree, PyTree, PyTree]:
    """SciPy's rules; None becomes 0, which is "off"."""
    given: Options = {"ftol": ftol, "xtol": xtol, "gtol": gtol}
    for name, tol in given.items():
        if tol is None:
            given[name] = 0.0
        elif not _is_number(tol):
            raise ValueError(f"`{name}` must be a number or None, got {tol!r}.")
        elif not isinstance(tol, Tracer) and tol < EPS:
            warnings.warn(
                f"Setting `{name}` below the machine epsilon ({EPS:.2e}) effectively "
                "disables the corresponding termination condition.",
                stacklevel=4,
            )
    if all(not isinstance(tol, Tracer) and tol < EPS for tol in given.values()):
        raise ValueError(
            "At least one of the tolerances must be higher than machine epsilon "
            f"({EPS:.2e}): got ftol={ftol}, xtol={xtol}, gtol={gtol}."
        )
    return tuple(given.values())  # type: ignore[return-value]


def _is_number(value: object) -> bool:
    """Whether it is one real number, traced or not NaN."""
    if isinstance(value, Tracer):
        return value.ndim == 0
    array = np.asarray(value)
    return array.dtype.kind in "iuf" and array.ndim == 0 and not np.isnan(array)


def _check_no_settings(**settings: object) -> None:
    defaults = inspect.signature(least_squares).parameters
    for name, value in settings.items():
        if value is not defaults[name].default:
            raise ValueError(f"`{name}` is for methods that are named: a solver has its own.")


def _check_takes_bounds(solver: AbstractLeastSquaresSolver, problem: LeastSquaresProblem) -> None:
    if solver.TAKES_BOUNDS or not problem.bounded:
        return
    if is_concrete((problem.lower, problem.upper)):
        low, high = np.asarray(problem.lower), np.asarray(problem.upper)
        if np.any((np.isfinite(low) | np.isfinite(high)) & (low != high)):
            raise ValueError(
                f"Method '{_name(solver)}' doesn't support bounds: use method='trf' or 'dogbox'. "
                "(lb == ub, which fixes a variable, is supported.)"
            )


def _name(solver: AbstractLeastSquaresSolver) -> str:
    names = {kind: name for name, kind in METHODS.items()}
    return names.get(type(solver), type(solver).__name__)


def _check_x_scale(x_scale: Any, problem: LeastSquaresProblem, x: Array) -> PyTree:
    """An array (n,), or None for the method's own and for 'jac'."""
    if x_scale is None:
        return None
    if isinstance(x_scale, str) and x_scale == "jac":
        return None
    wrong = f"`x_scale` must be 'jac' or array_like with positive numbers, got {x_scale!r}."
    leaves = jax.tree.leaves(x_scale)
    if any(isinstance(leaf, str) or jnp.iscomplexobj(leaf) for leaf in leaves):
        raise ValueError(wrong)
    flat = spread(x_scale, 1.0, problem.restore_x.shapes(), x, "`x_scale`")
    if is_concrete(flat) and not np.all(np.isfinite(flat) & (np.asarray(flat) > 0)):
        raise ValueError(wrong)
    return flat
