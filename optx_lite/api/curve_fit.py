"""Fits of a curve to data with SciPy's signature, and MINPACK's older front door."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike, PyTree

from ..driver.unknown import nan_unless
from ..jax_support.types import Args, Bounds, Options
from ..problem.arguments import as_tuple
from ..problem.pytrees import is_concrete
from ..results.least_squares import MESSAGES, NONFINITE
from ..solvers import AbstractLeastSquaresSolver
from ..statistics.covariance import covariance
from ..statistics.curve import (
    CurveFit,
    Data,
    Derivative,
    Model,
    minpack_code,
    pivoted_factors,
    residuals,
)
from ..statistics.orthogonal import check_pointwise
from ..statistics.padding import LENGTH_HINT
from .curve_fit_arguments import (
    bounds_of,
    data_of,
    first_parameters,
    model_of,
    options_of,
    parameter_names,
)
from .least_squares import least_squares, with_solver


class OptimizeWarning(UserWarning):
    """A fit whose covariance could not be estimated; SciPy's name."""


def curve_fit(
    f: Callable[..., PyTree],
    xdata: PyTree,
    ydata: PyTree,
    p0: PyTree = None,
    sigma: PyTree = None,
    absolute_sigma: bool = False,
    check_finite: bool | None = None,
    bounds: Bounds = (-np.inf, np.inf),
    method: str | AbstractLeastSquaresSolver | None = None,
    jac: str | bool | Callable | None = None,
    *,
    full_output: bool = False,
    nan_policy: str | None = None,
    sigma_x: PyTree = None,
    mask: PyTree = None,
    fixed: PyTree = None,
    **kwargs: Any,
) -> CurveFit:
    """Fit a function to data by nonlinear least squares.

    Called and unpacked as ``scipy.optimize.curve_fit``; the call may stand inside ``jit``,
    ``vmap``, ``grad`` and the like, and the answer is differentiable with respect to ``ydata``,
    ``xdata``, ``sigma`` and ``bounds``.

    Parameters
    ----------
    f : callable
        ``f(x, a, b, ...)`` gives the curve, of the shape of ``ydata``; it must use ``jax.numpy``.
    xdata : array_like of any shape, pytree of arrays, None, or any object
        The independent variable, handed to ``f`` as it is; lists and arrays as floats.
    ydata : array_like, shape (m,) or scalar
        The data; a scalar stands for all m.
    p0 : array_like of shape (n,), scalar, or pytree of real arrays, optional
        Initial guess. By default as many ones as ``f`` has parameters; within bounds their middle,
        or 1 from the only finite one. For a dict whose keys are parameters of ``f``, ``f`` is
        called with them by name; for a list or a tuple one by one, if ``f`` takes so many; for any
        other pytree ``f(x, p)``.
    sigma : scalar, array (m,) or (m, m), optional
        Standard deviations of the data, or their covariance. ``inf`` leaves a datum out.
    absolute_sigma : bool
        Whether ``sigma`` is in the units of ``ydata``. If not, only its ratios count, and the
        covariance is scaled so that the reduced chi² is 1.
    check_finite : bool, optional
        Whether NaN and inf in the data raise an error; by default if there is no ``nan_policy``.
    bounds : 2-tuple (lb, ub) or object with ``lb`` and ``ub``
        As for `least_squares`. ``lb == ub`` fixes a parameter.
    method : {'lm', 'trf', 'dogbox'} or AbstractLeastSquaresSolver, optional
        'lm' without bounds and 'trf' with them.
    jac : callable, or name of a scheme, optional
        ``jac(x, a, b, ...)``, shape (m, n); or as for `least_squares`. By default 'jacfwd'.
    full_output : bool
        Whether to give ``infodict``, ``mesg`` and ``ier`` too.
    nan_policy : {'raise', 'omit'}, optional
        What to do with NaN in the data. 'omit' sets ``mask``, so that shapes stay; inside ``jit``,
        too.
    sigma_x : array_like that broadcasts to ``xdata``, optional
        Standard deviations of ``xdata``, of shape (..., m): orthogonal distance regression.
        ``sigma`` is then a scalar, (m,), or 1 if not given; where ``sigma_x`` is 0, x is exact.
        Each value of ``f`` must depend on its own x alone. Residuals are signed distances from
        the curve, and ``delta`` of the answer is the estimated errors of x.
    mask : array of bool, shape (m,), optional
        Where there are data. The others count for nothing, whatever their values, so that data
        sets of many lengths, padded to one, share a compiled program (see `pad_data`). ``f`` is
        called with the x of a datum in place of theirs.
    fixed : pytree of bool, optional
        A prefix of ``p0``: which parameters stay at ``p0``.
    **kwargs
        Further arguments of `least_squares`, or of SciPy's ``leastsq`` (of which ``epsfcn`` and
        ``factor`` have no effect).

    Returns
    -------
    popt : pytree like ``p0``
        The parameters.
    pcov : array, shape (n, n)
        Their covariance (see `covariance`): inf, with a warning, where it is singular; 0 for what
        is fixed or on a bound.
    infodict : dict
        With ``full_output``: ``nfev``, ``fvec`` (m,), and by 'lm' ``fjac``, ``ipvt``, ``qtf``.
    mesg : str
        With ``full_output``: why it ended; None inside ``jit``.
    ier : int
        With ``full_output``: the same as a number, 1 to 4.

    The object that is returned is a `CurveFit`, which has them as attributes, and more.

    Raises
    ------
    ValueError
        For bad arguments, and for data that are not finite.
    TypeError
        For fewer data than parameters with 'lm'.
    RuntimeError
        If the fit does not succeed. Inside a transformation, ``popt`` and ``pcov`` are NaN.

    Warns
    -----
    OptimizeWarning
        Where the covariance is singular; with the names of the parameters.

    Where data of many lengths compile for each (see `pad_data`) the logger ``optx_lite`` says so,
    once.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optx_lite as ox
    >>> def decay(t, height, rate):
    ...     return height * jnp.exp(-rate * t)
    >>> t = jnp.linspace(0.0, 3.0, 12)
    >>> y = decay(t, 2.0, 1.0) + 0.1 * jnp.cos(40 * t)
    >>> popt, pcov = ox.curve_fit(decay, t, y)
    >>> print(popt.round(2), jnp.sqrt(jnp.diag(pcov)).round(2))
    [2.05 1.03] [0.06 0.05]
    >>> fit = ox.curve_fit(
    ...     decay, t, y, {"height": 1.0, "rate": 1.0}, fixed={"height": False, "rate": True}
    ... )
    >>> print(f"{fit.popt['height']:.2f} {fit.perr['rate']:.1f}")
    2.03 0.0
    >>> def rate(y):
    ...     return ox.curve_fit(decay, t, y)[0][1]
    >>> jax.grad(rate)(y).shape
    (12,)
    """
    start = first_parameters(f, p0, bounds)
    data, start = data_of(xdata, ydata, sigma, sigma_x, mask, start, check_finite, nan_policy)
    start = jnp.atleast_1d(start) if jax.tree_util.all_leaves([start]) else start
    model = model_of(f, start)
    if is_concrete(data.y):
        LENGTH_HINT.note(f, data.y.size)
    options = options_of(method, kwargs)
    bounded = _is_bounded(bounds)
    method = ("trf" if bounded else "lm") if method is None else method
    n = sum(np.size(leaf) for leaf in jax.tree.leaves(start))
    if method == "lm" and data.y.size != 1 and n > data.y.size:
        raise TypeError(
            f"The number of func parameters={n} must not exceed the number of data points="
            f"{data.y.size}"
        )
    derivative = Derivative.of(jac, bool(options.pop("col_deriv", False)), options)
    options |= derivative.options(model)
    fun = functools.partial(residuals, model)
    box = bounds_of(bounds, fixed, start)
    try:
        result, solver = with_solver(fun, start, bounds=box, method=method, args=(data,), **options)
    except ValueError as error:
        if str(error) == MESSAGES[NONFINITE] and data.sigma_x is not None:
            check_pointwise(model, start, data)
        if "`x0`" not in str(error):
            raise
        raise ValueError(str(error).replace("`x0`", "`p0`")) from error
    if not (bounded or fixed is not None):
        box = None
    settings = {"absolute_sigma": bool(absolute_sigma), "full_output": bool(full_output)}
    return _fit_of(result, solver, derivative, model, data, start, box, method, options, settings)


def _is_bounded(bounds: Bounds) -> bool:
    if bounds is None:
        return False
    sides = (bounds.lb, bounds.ub) if hasattr(bounds, "lb") else tuple(bounds)
    leaves = jax.tree.leaves(sides)
    return not is_concrete(leaves) or any(np.any(np.isfinite(leaf)) for leaf in leaves)


def _fit_of(
    result: PyTree,
    solver: AbstractLeastSquaresSolver,
    derivative: Derivative,
    model: Model,
    data: Data,
    start: PyTree,
    box: PyTree,
    method: Any,
    options: Options,
    settings: dict[str, bool],
) -> CurveFit:
    concrete = isinstance(result.status, int)
    if concrete and not result.success:
        raise RuntimeError(f"Optimal parameters not found: {result.message}")
    nobs = data.count(result.fun.shape[0])
    estimate = covariance(
        result,
        bounds=box,
        loss=options.get("loss", "linear"),
        f_scale=options.get("f_scale", 1.0),
        absolute_sigma=settings["absolute_sigma"],
        nobs=nobs,
        rcond=_error_of(derivative.jac, result.fun.dtype),
        names=parameter_names(model, start),
    )
    popt = result.x
    if not concrete:
        popt = jax.tree.map(functools.partial(nan_unless, result.success), popt)
    pcov, singular = _matrix(estimate)
    by_lm = method == "lm"
    factors = pivoted_factors(result.jac, result.fun) if by_lm and settings["full_output"] else None
    fit = CurveFit(
        popt=popt, pcov=pcov, result=result, covariance=estimate, data=data, nobs=nobs,
        factors=factors, box=box, f_scale=options.get("f_scale", 1.0),
        loss=options.get("loss", "linear"), model=model, minpack_codes=by_lm,
        solver=solver, derivative=derivative, **settings,
    )  # fmt: skip
    if concrete and is_concrete(singular) and bool(singular):
        # In a derivative of the fit the directions are traced, even where the answer is not.
        why = fit.explain() if is_concrete(fit) else []
        warnings.warn(
            " ".join(["Covariance of the parameters could not be estimated.", *why]),
            OptimizeWarning,
            stacklevel=3,
        )
    return fit


def _error_of(jac: str | bool | Callable | None, dtype: DTypeLike) -> float | None:
    """The relative error of a Jacobian by differences."""
    orders = {"2-point": 1 / 2, "3-point": 2 / 3}
    if not isinstance(jac, str) or jac not in orders:
        return None
    return float(jnp.finfo(dtype).eps) ** orders[jac]


@jax.jit
def _matrix(estimate: PyTree) -> tuple[PyTree, PyTree]:
    """SciPy's: inf throughout if any parameter has no error; and whether that is so."""
    singular = jnp.any(estimate.undetermined)
    return jnp.where(singular & estimate.known, jnp.inf, estimate.matrix), singular


def leastsq(
    func: Callable[..., PyTree],
    x0: PyTree,
    args: Args = (),
    Dfun: Callable | None = None,
    full_output: bool = False,
    col_deriv: bool = False,
    ftol: float = 1.49012e-8,
    xtol: float = 1.49012e-8,
    gtol: float = 0.0,
    maxfev: int = 0,
    epsfcn: float | None = None,
    factor: float = 100,
    diag: PyTree = None,
) -> tuple:
    """Minimise a sum of squares, with the outputs of SciPy's ``leastsq``.

    Legacy: `least_squares` by ``method='lm'`` is the same solver, with a result that says more.

    Parameters
    ----------
    func : callable
        ``func(x, *args)`` gives the residuals, shape (m,), m >= n.
    x0 : array_like, shape (n,) or scalar
        Initial guess.
    args : tuple, optional
        Further arguments of ``func`` and ``Dfun``.
    Dfun : callable, optional
        The Jacobian, shape (m, n), or (n, m) with ``col_deriv``. By default by automatic
        differentiation.
    full_output : bool
        Whether to give all outputs, rather than x and ``ier``.
    ftol, xtol, gtol : float
        Tolerances as for `least_squares`.
    maxfev : int
        Most evaluations; 0 for 100 n.
    epsfcn, factor
        Without effect: of finite differences, and of MINPACK's first step.
    diag : array_like, shape (n,), optional
        One over the sizes of the unknowns.

    Returns
    -------
    x : array, shape (n,)
        The solution.
    cov_x : array, shape (n, n), or None
        (J^T J)^-1; None if it is singular (inf inside of ``jit``). With ``full_output``, as what
        follows.
    infodict : dict
        ``nfev``, ``fvec`` (m,), ``fjac`` (n, m), ``ipvt`` (n,), ``qtf`` (n,).
    mesg : str
        Why it ended; None inside of ``jit``.
    ier : int
        1 ftol, 2 xtol, 3 both, 4 gtol; above that, no solution was found.

    Raises
    ------
    TypeError
        For fewer residuals than unknowns, or a Jacobian of wrong shape.

    Warns
    -----
    RuntimeWarning
        If no solution was found, without ``full_output``.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> x, ier = ox.leastsq(lambda x: jnp.array([x[0] - 3.0, 2.0 * (x[1] + 1.0)]), [0.0, 0.0])
    >>> print([f"{value:.2f}" for value in x], ier in (1, 2, 3, 4))
    ['3.00', '-1.00'] True
    """
    x0 = x0.reshape(-1) if isinstance(x0, jax.Array) else np.asarray(x0).reshape(-1)
    jac = Dfun
    if Dfun is not None and col_deriv:
        jac = lambda x, *args: jnp.asarray(Dfun(x, *args)).T  # noqa: E731
    try:
        result = least_squares(
            func, x0, jac="jacfwd" if jac is None else jac, method="lm", ftol=ftol or None,
            xtol=xtol or None, gtol=gtol or None, max_nfev=maxfev or None, args=as_tuple(args),
            x_scale=None if diag is None else 1 / jnp.asarray(diag),
        )  # fmt: skip
    except ValueError as error:
        message = str(error)
        for name, minpacks in (("jac", "Dfun"), ("x_scale", "diag"), ("max_nfev", "maxfev")):
            message = message.replace(f"`{name}`", f"`{minpacks}`")
        kind = TypeError if "`Dfun` has wrong shape" in message else ValueError
        raise kind(message) from error
    (m, n) = result.jac.shape
    if m < n:
        raise TypeError(
            f"Improper input: func input vector length N={n} must not exceed func output vector "
            f"length M={m}"
        )
    concrete = isinstance(result.status, int)
    ier = minpack_code(result.status)
    if not full_output:
        if concrete and not result.success:
            warnings.warn(result.message, RuntimeWarning, stacklevel=2)
        return result.x, ier
    cov, singular = _matrix(covariance(result, absolute_sigma=True))
    if concrete and (bool(singular) or not result.success):
        cov = None
    names = ("fjac", "ipvt", "qtf")
    factors = dict(zip(names, pivoted_factors(result.jac, result.fun), strict=True))
    infodict = {"nfev": result.nfev, "fvec": result.fun, **factors}
    return result.x, cov, infodict, result.message if concrete else None, ier
