"""The front door of nonlinear least squares: SciPy's signature, checks and messages."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from . import _result as codes
from ._implicit import AbstractAdjoint, ImplicitAdjoint
from ._lift import Lifted, inputs, lift
from ._losses import LOSSES, Loss, ScalarLoss, ScipyLoss
from ._monitor import Listener, forget, register
from ._problem import LeastSquaresProblem
from ._result import Result, to_host
from ._tree import Unravel, as_array_or_tree, ravel, unraveler
from .derivatives import AbstractJacobian, ComplexStep, resolve
from .solvers import Dogbox, LevenbergMarquardt, TrustRegionReflective

METHODS = {"trf": TrustRegionReflective, "dogbox": Dogbox, "lm": LevenbergMarquardt}
EPS = float(np.finfo(np.float64).eps)
LSMR_OPTIONS = {"regularize", "damp", "atol", "btol", "conlim", "maxiter", "show"}


def least_squares(
    fun: Callable[..., Any],
    x0: Any,
    jac: Any = "jacfwd",
    bounds: Any = (-np.inf, np.inf),
    method: str = "trf",
    ftol: float | None = 1e-8,
    xtol: float | None = 1e-8,
    gtol: float | None = 1e-8,
    x_scale: Any = None,
    loss: Any = "linear",
    f_scale: Any = 1.0,
    diff_step: Any = None,
    tr_solver: str | None = None,
    tr_options: dict[str, Any] | None = None,
    jac_sparsity: Any = None,
    max_nfev: int | None = None,
    verbose: int = 0,
    args: tuple = (),
    kwargs: dict[str, Any] | None = None,
    callback: Callable | None = None,
    workers: Any = None,
    *,
    adjoint: AbstractAdjoint = ImplicitAdjoint(),  # noqa: B008  (frozen)
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
    jac : {'jacfwd', 'jacrev', '2-point', '3-point', 'cs'} or callable
        How the Jacobian is had. 'jacfwd' (automatic, forward mode) is right for m >= n,
        'jacrev' for m < n. A callable gives ``jac(x, *args, **kwargs)``, shape (m, n).
    bounds : 2-tuple (lb, ub) or object with ``lb`` and ``ub``
        Each a scalar, an array of shape (n,), None, or a pytree prefix of ``x0``.
        ``lb == ub`` fixes a variable. 'lm' takes no other bounds.
    method : {'trf', 'dogbox', 'lm'}
        Trust Region Reflective; dogleg in a box; Levenberg-Marquardt.
    ftol, xtol, gtol : float or None
        Tolerances on the relative change of the cost, on the relative change of ``x``, and
        on the relative offset (the cosine between the residuals and the tangent plane; SciPy
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
    tr_solver, tr_options, jac_sparsity
        'exact' only, so far; the others raise NotImplementedError.
    max_nfev : int, optional
        Most evaluations of ``fun``; 100 n by default.
    verbose : {0, 1, 2}
        Nothing, a report at the end, a line for each iteration; also from compiled code.
    args, kwargs : tuple and dict
        Further arguments of ``fun`` and ``jac``. Arrays and numbers among them, and arrays
        that ``fun`` closes over, carry derivatives.
    callback : callable, optional
        ``callback(x)`` or ``callback(intermediate_result)``, after every accepted step.
        Raise StopIteration or return True to end the solve, with status -2.
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
    NotImplementedError
        For sparse and matrix-free options.

    References
    ----------
    See `optx_lite.solvers` for the methods and `optx_lite._implicit` for the derivative.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optx_lite as ox
    >>> t = jnp.linspace(0.0, 2.0, 20)
    >>> y = 2.0 * jnp.exp(-1.5 * t)
    >>> def residuals(x, t, y):
    ...     return x[0] * jnp.exp(-x[1] * t) - y
    >>> res = ox.least_squares(residuals, [1.0, 1.0], args=(t, y))
    >>> print(res.x.round(3), res.success)
    [2.  1.5] True
    >>> slope = jax.grad(lambda y: ox.least_squares(residuals, [1.0, 1.0], args=(t, y)).x[0])(y)
    >>> slope.shape
    (20,)
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be 'trf', 'dogbox' or 'lm', got {method!r}.")
    _check_linear_algebra(tr_solver, tr_options, jac_sparsity)
    if not isinstance(verbose, (int, np.integer)) or verbose not in (0, 1, 2):
        raise ValueError(f"`verbose` must be in [0, 1, 2], got {verbose!r}.")
    if max_nfev is not None and not isinstance(max_nfev, jax.core.Tracer) and max_nfev <= 0:
        raise ValueError(f"`max_nfev` must be None or positive integer, got {max_nfev!r}.")
    if not isinstance(adjoint, AbstractAdjoint):
        raise TypeError(
            f"`adjoint` must be an ImplicitAdjoint or UnrolledAdjoint, got {adjoint!r}."
        )
    ftol, xtol, gtol = _check_tolerances(ftol, xtol, gtol, method)
    problem, x = least_squares_problem(
        fun, x0, jac=jac, bounds=bounds, loss=loss, f_scale=f_scale, diff_step=diff_step,
        args=args, kwargs=kwargs,
    )  # fmt: skip
    _check_method(method, problem, x)
    solver = METHODS[method](
        *(_as_dtype(tol, x.dtype) for tol in (ftol, xtol, gtol)),
        x_scale=_check_x_scale(x_scale, problem, x),
        from_jacobian=isinstance(x_scale, str),
        max_nfev=max_nfev if _unrolls(adjoint) else _as_count(max_nfev),
    )
    listener = None
    traced = not _is_concrete((problem, x, solver))
    if verbose or callback is not None:
        listener = Listener(callback, verbose, problem.restore_x, keep_errors=not traced)
    result = _solve(solver, problem, x, adjoint, listener, traced)
    if method == "lm" and jac in ("2-point", "3-point", "cs"):
        result = eqx.tree_at(lambda r: r.njev, result, None)
    return result


def run(solver: Any, problem: LeastSquaresProblem, x0: Any, adjoint: Any = ImplicitAdjoint()) -> Result:  # noqa: B008
    """Run a solver's machine on a problem, from x0 to the result.

    Parameters
    ----------
    solver : AbstractSolver
        E.g. ``ox.LevenbergMarquardt(xtol=1e-10)``.
    problem : LeastSquaresProblem
        From `least_squares_problem`.
    x0 : array (n,) or pytree
        First point, in the structure that the problem was made with or flat.
    adjoint : ImplicitAdjoint or UnrolledAdjoint
        How the result is differentiated.

    Returns
    -------
    Result

    Examples
    --------
    By hand, one evaluation a step:

    >>> import jax.numpy as jnp, optx_lite as ox
    >>> problem, x0 = ox.least_squares_problem(lambda x: x**2 - 2.0, jnp.array([1.0]))
    >>> solver = ox.LevenbergMarquardt()
    >>> state = solver.init(problem, x0)
    >>> while state.status == 0:
    ...     state = solver.step(problem, state)
    >>> print(state.x.round(4), ox.run(solver, problem, x0).x.round(4))
    [1.4142] [1.4142]
    """
    x = ravel(x0, problem.lower.dtype)
    return _solve(solver, problem, x, adjoint, None, not _is_concrete((problem, x, solver)))


def _solve(
    solver: Any,
    problem: LeastSquaresProblem,
    x: Array,
    adjoint: AbstractAdjoint,
    listener: Listener | None,
    traced: bool,
) -> Result:
    watch = None if listener is None else register(listener)
    result = adjoint.solve(solver, problem, x, watch)
    if watch is not None and not traced:
        jax.effects_barrier()
        forget(watch)
        if listener.error is not None:
            raise listener.error
    if not traced:
        result = to_host(result)
        _raise_for(result)
    return eqx.tree_at(
        lambda r: (r.x, r.grad, r.active_mask, r.fun),
        result,
        (
            problem.restore_x(result.x),
            problem.restore_x(result.grad),
            problem.restore_x(result.active_mask, dtype=jnp.int32),
            problem.restore_f(result.fun),
        ),
    )


def _raise_for(result: Result) -> None:
    """What only the solve itself could find out, and is an error outside a trace."""
    if isinstance(result.status, int) and result.status == codes.NONFINITE:
        raise ValueError(codes.MESSAGES[codes.NONFINITE])


# -- the problem ---------------------------------------------------------------------------


class _Residuals(eqx.Module):
    """The user's function with its arguments, on flat vectors."""

    fun: Lifted
    on_complex: Lifted | None
    args: Any
    restore: Unravel = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        fun = self.on_complex if jnp.iscomplexobj(x) else self.fun
        leaves = jax.tree.leaves(fun(self.restore(x), *self.args))
        return _ravel_native(leaves)


class _Jacobian(eqx.Module):
    """The user's Jacobian with its arguments, on flat vectors."""

    jac: Lifted
    args: Any
    restore: Unravel = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        blocks = [jnp.asarray(leaf) for leaf in jax.tree.leaves(self.jac(self.restore(x), *self.args))]
        if len(blocks) == 1 and self.restore.is_flat:
            return blocks[0]
        # Like jax.jacfwd: one block (m, *shape) for each leaf of x.
        sizes = self.restore.sizes
        return jnp.concatenate(
            [block.reshape(-1, size) for block, size in zip(blocks, sizes, strict=True)], axis=1
        )


def least_squares_problem(
    fun: Callable[..., Any],
    x0: Any,
    *,
    jac: Any = "jacfwd",
    bounds: Any = (-np.inf, np.inf),
    loss: Any = "linear",
    f_scale: Any = 1.0,
    diff_step: Any = None,
    args: tuple = (),
    kwargs: dict[str, Any] | None = None,
) -> tuple[LeastSquaresProblem, Array]:
    """Make a problem of the user's functions, to be solved by hand.

    Parameters
    ----------
    fun, x0, jac, bounds, loss, f_scale, diff_step, args, kwargs
        As for `least_squares`.

    Returns
    -------
    problem : LeastSquaresProblem
    x0 : array, shape (n,)
        The flat first point, for ``solver.init(problem, x0)``.

    Raises
    ------
    ValueError, TypeError
        As `least_squares`.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> problem, x0 = ox.least_squares_problem(lambda p: p["a"] - 1.0, {"a": jnp.zeros(2)})
    >>> x0.shape, problem.residuals(x0).shape
    ((2,), (2,))
    """
    tree = _check_x0(x0)
    dtype = jnp.result_type(*[leaf.dtype for leaf in jax.tree.leaves(tree)])
    restore = unraveler(tree)
    x = ravel(tree, dtype)
    lower, upper, bounded = _check_bounds(bounds, tree, x)
    if not isinstance(args, tuple):
        args = (args,)
    scheme = resolve(jac, diff_step)
    examples = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    residuals = _lift_residuals(fun, examples, args, kwargs, scheme, restore)
    out = residuals.fun.out_shape
    _check_residual_shape(out, restore)
    leaves = jax.tree.leaves(out)
    m = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    floats = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    precision = max(float(jnp.finfo(d).eps) for d in [dtype, *floats])
    if callable(jac) and not isinstance(jac, AbstractJacobian):
        scheme = resolve(_lift_jacobian(jac, examples, args, kwargs, restore, m), diff_step)
    problem = LeastSquaresProblem(
        residuals=residuals,
        jacobian=scheme,
        loss=_check_loss(loss, f_scale, m, dtype),
        lower=lower,
        upper=upper,
        bounded=bounded,
        precision=precision,
        restore_x=restore,
        restore_f=_restorer(out, dtype),
    )
    return problem, x


def _lift_residuals(
    fun: Callable, x: Any, args: tuple, kwargs: Any, scheme: AbstractJacobian, restore: Unravel
) -> _Residuals:
    if not callable(fun):
        raise TypeError(f"`fun` must be callable, got {fun!r}.")
    bound = _with_kwargs(fun, kwargs)
    on_complex = None
    if isinstance(scheme, ComplexStep):
        z = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.result_type(leaf.dtype, jnp.complex64)), x
        )
        on_complex = lift(bound, z, *args, label="`fun`")
    lifted = lift(bound, x, *args, label="`fun`")
    return _Residuals(lifted, on_complex, inputs(args), restore)


def _lift_jacobian(
    jac: Callable, x: Any, args: tuple, kwargs: Any, restore: Unravel, m: int
) -> _Jacobian:
    lifted = lift(_with_kwargs(jac, kwargs), x, *args, label="`jac`")
    shapes = [leaf.shape for leaf in jax.tree.leaves(lifted.out_shape)]
    n = sum(restore.sizes)
    if restore.is_flat:
        shape = np.broadcast_shapes((1,) * (2 - len(shapes[0])), shapes[0])
        if len(shapes) != 1 or shape != (m, n):
            raise ValueError(
                f"The return value of `jac` has wrong shape: expected {(m, n)}, actual {shape}."
            )
    return _Jacobian(lifted, inputs(args), restore)


def _with_kwargs(fun: Callable, kwargs: dict[str, Any] | None) -> Callable:
    return jax.tree_util.Partial(fun, **kwargs) if kwargs else fun


def _ravel_native(leaves: list[Any]) -> Array:
    """One vector of the leaves' common floating dtype."""
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    dtypes = [
        a.dtype if jnp.issubdtype(a.dtype, jnp.inexact) else jnp.result_type(float)
        for a in arrays
    ]
    dtype = max(dtypes, key=lambda d: (jnp.issubdtype(d, jnp.complexfloating), jnp.finfo(d).bits))
    return ravel(arrays, dtype)


def _restorer(out: Any, dtype: Any) -> Unravel:
    """Back to what `fun` returned; SciPy's kinds of return value become one flat array."""
    leaves = jax.tree.leaves(out)
    if jax.tree_util.all_leaves([out]) or _is_scalars(out):
        m = sum(int(np.prod(leaf.shape)) for leaf in leaves)
        return unraveler(jax.ShapeDtypeStruct((m,), dtype))
    return unraveler(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), out))


def _is_scalars(out: Any) -> bool:
    return type(out) in (list, tuple) and all(
        jax.tree_util.all_leaves([leaf]) and leaf.shape == () for leaf in out
    )


# -- the checks ----------------------------------------------------------------------------


def _is_concrete(tree: Any) -> bool:
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _unrolls(adjoint: AbstractAdjoint) -> bool:
    return not isinstance(adjoint, ImplicitAdjoint)


def _as_count(max_nfev: Any) -> Any:
    return None if max_nfev is None else _as_dtype(max_nfev, np.int32)


def _as_dtype(value: Any, dtype: Any) -> Any:
    return value.astype(dtype) if isinstance(value, jax.Array) else np.asarray(value, dtype)


def _check_linear_algebra(tr_solver: Any, tr_options: Any, jac_sparsity: Any) -> None:
    if tr_solver not in (None, "exact", "lsmr"):
        raise ValueError(f"`tr_solver` must be None, 'exact' or 'lsmr', got {tr_solver!r}.")
    later = "comes with the large-scale solvers; use dense derivatives and tr_solver='exact'."
    if jac_sparsity is not None:
        raise NotImplementedError(f"`jac_sparsity` {later}")
    if tr_solver == "lsmr":
        raise NotImplementedError(f"`tr_solver='lsmr'` {later}")
    unknown = set(tr_options or {}) - LSMR_OPTIONS
    if unknown:
        raise TypeError(f"`tr_options` got unknown options {sorted(unknown)}.")
    if tr_options:
        raise NotImplementedError(
            f"`tr_options` {sorted(tr_options)} belong to tr_solver='lsmr', which {later}"
        )


def _check_tolerances(ftol: Any, xtol: Any, gtol: Any, method: str) -> tuple[Any, Any, Any]:
    """SciPy's rules; None becomes 0, which is "off"."""
    given = {"ftol": ftol, "xtol": xtol, "gtol": gtol}
    if any(isinstance(tol, jax.core.Tracer) for tol in given.values()):
        return tuple(0.0 if tol is None else tol for tol in given.values())  # type: ignore[return-value]
    for name, tol in given.items():
        if tol is None:
            given[name] = 0.0
        elif not np.isscalar(tol) and jnp.ndim(tol) > 0 or isinstance(tol, (str, bytes)):
            raise ValueError(f"`{name}` must be a number or None, got {tol!r}.")
        elif tol < EPS:
            warnings.warn(
                f"Setting `{name}` below the machine epsilon ({EPS:.2e}) effectively "
                "disables the corresponding termination condition.",
                stacklevel=3,
            )
    small = [tol < EPS for tol in given.values()]
    if method == "lm" and any(small):
        raise ValueError(
            f"All tolerances must be higher than machine epsilon ({EPS:.2e}) for method 'lm': "
            f"got ftol={ftol}, xtol={xtol}, gtol={gtol}."
        )
    if all(small):
        raise ValueError(
            "At least one of the tolerances must be higher than machine epsilon "
            f"({EPS:.2e}): got ftol={ftol}, xtol={xtol}, gtol={gtol}."
        )
    return tuple(given.values())  # type: ignore[return-value]


def _check_x0(x0: Any) -> Any:
    """x0 as a pytree of floating arrays; anything that SciPy takes is one array (n,)."""
    tree = as_array_or_tree(x0)
    leaves = jax.tree.leaves(tree)
    if not leaves:
        raise ValueError(f"`x0` must hold at least one number, got {x0!r}.")
    try:
        dtypes = [jnp.result_type(leaf) for leaf in leaves]
    except TypeError as error:
        raise ValueError(f"`x0` must be a real array or a pytree of them, got {x0!r}.") from error
    if any(jnp.issubdtype(d, jnp.complexfloating) for d in dtypes):
        raise ValueError(
            "`x0` must be real: optimise real and imaginary parts as two variables."
        )
    alone = jax.tree_util.all_leaves([tree])
    if alone and jnp.ndim(tree) > 1:
        raise ValueError(
            f"`x0` must have at most 1 dimension, got shape {jnp.shape(tree)}: "
            "put a matrix of parameters into a pytree, e.g. a dict."
        )
    tree = jax.tree.map(_as_float, tree)
    if any(jnp.finfo(leaf.dtype).bits < 32 for leaf in jax.tree.leaves(tree)):
        raise ValueError(f"`x0` must be float32 or float64, got {dtypes}.")
    if any(leaf.size == 0 for leaf in jax.tree.leaves(tree)) and alone:
        raise ValueError("`x0` must hold at least one number, got an empty array.")
    return tree.reshape(-1) if alone and tree.ndim == 0 else tree


def _as_float(leaf: Any) -> Any:
    """The leaf as an array of floating dtype, on the host if it came from there."""
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    return leaf.astype(dtype) if isinstance(leaf, jax.Array) else np.asarray(leaf, dtype)


def _check_bounds(bounds: Any, tree: Any, x: Array) -> tuple[Array, Array, bool]:
    """Flat lower and upper bounds, and whether there are any."""
    if bounds is None:
        bounds = (-np.inf, np.inf)
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        bounds = (bounds.lb, bounds.ub)
    try:
        count = len(bounds)
    except TypeError:
        count = None
    if count != 2 or isinstance(bounds, dict):
        raise ValueError(f"`bounds` must contain 2 elements, (lb, ub), got {bounds!r}.")
    lower = _spread(bounds[0], -np.inf, tree, x, "lower")
    upper = _spread(bounds[1], np.inf, tree, x, "upper")
    if not _is_concrete((lower, upper)):
        return lower, upper, True
    low, high = np.asarray(lower), np.asarray(upper)
    if np.any(np.isnan(low)) or np.any(np.isnan(high)):
        raise ValueError("`bounds` must not be NaN.")
    if np.any(low > high):
        i = int(np.argmax(low > high))
        raise ValueError(
            "Each lower bound must not be above its upper bound: `bounds` has "
            f"lb={low[i]} > ub={high[i]} at entry {i}."
        )
    if _is_concrete(x):
        outside = ~((np.asarray(x) >= low) & (np.asarray(x) <= high))
        if outside.any() and not np.isnan(np.asarray(x)[outside]).any():
            i = int(np.argmax(outside))
            raise ValueError(
                "Initial guess is outside of provided bounds: "
                f"`x0`={np.asarray(x)[i]} is not in [{low[i]}, {high[i]}] at entry {i}."
            )
    return lower, upper, bool(np.any(np.isfinite(low)) or np.any(np.isfinite(high)))


def _spread(bound: Any, missing: float, tree: Any, x: Array, name: str) -> Array:
    """One side of the bounds, a scalar, an array or a pytree prefix, as a flat vector."""

    def onto(value: Any, leaf: Array) -> Array:
        value = missing if value is None else value
        xp = jnp if isinstance(value, jax.Array) else np
        value = xp.asarray(value)
        if value.ndim and value.shape != leaf.shape:
            raise ValueError(
                f"Inconsistent shapes between bounds and `x0`: the {name} bound has shape "
                f"{value.shape}, `x0` has {leaf.shape}."
            )
        return xp.broadcast_to(value.astype(x.dtype), leaf.shape)

    bound = as_array_or_tree(bound)
    try:
        full = jax.tree.map(
            lambda value, part: jax.tree.map(lambda leaf: onto(value, leaf), part),
            bound,
            tree,
            is_leaf=lambda value: value is None,
        )
    except ValueError as error:
        if "Inconsistent shapes" in str(error):
            raise
        raise ValueError(
            f"`bounds`: the {name} bound must be a number, an array, or a pytree prefix of `x0`: "
            f"{error}"
        ) from error
    return ravel(full, x.dtype)


def _check_residual_shape(out: Any, restore: Unravel) -> None:
    leaves = jax.tree.leaves(out)
    if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in leaves):
        raise ValueError(
            "`fun` must return real residuals: return real and imaginary parts as two."
        )
    if jax.tree_util.all_leaves([out]) and len(out.shape) > 1:
        raise ValueError(
            f"`fun` must return at most 1-d array_like. f0.shape: {out.shape}"
        )
    if not leaves or sum(int(np.prod(leaf.shape)) for leaf in leaves) == 0:
        raise ValueError("`fun` must return at least one residual.")


def _check_loss(loss: Any, f_scale: Any, m: int, dtype: Any) -> Loss:
    if not isinstance(f_scale, jax.Array):
        f_scale = np.asarray(f_scale)
    f_scale = f_scale.astype(dtype)
    if f_scale.ndim:
        raise ValueError(f"`f_scale` must be a number, got shape {f_scale.shape}.")
    if _is_concrete(f_scale) and not float(f_scale) > 0:
        raise ValueError(f"`f_scale` must be positive, got {float(f_scale)}.")
    if isinstance(loss, str) and loss in LOSSES:
        rho = LOSSES[loss]
        return Loss(None if rho is None else jax.tree_util.Partial(rho), f_scale)
    if not callable(loss):
        raise ValueError(f"`loss` must be one of {LOSSES.keys()} or a callable, got {loss!r}.")
    whole = lift(loss, jax.ShapeDtypeStruct((m,), dtype), label="`loss`")
    shapes = [leaf.shape for leaf in jax.tree.leaves(whole.out_shape)]
    if shapes == [(3, m)]:
        return Loss(ScipyLoss(whole), f_scale)
    single = lift(loss, jax.ShapeDtypeStruct((), dtype), label="`loss`")
    if shapes == [(m,)] and single.out_shape.shape == ():
        return Loss(ScalarLoss(single), f_scale)
    raise ValueError(
        "The return value of `loss` callable has wrong shape: expected (3, m) = "
        f"{(3, m)}, or a scalar for a scalar, got {shapes[0] if len(shapes) == 1 else shapes}."
    )


def _check_method(method: str, problem: LeastSquaresProblem, x: Array) -> None:
    if method != "lm":
        return
    m = sum(problem.restore_f.sizes)
    if m < x.shape[0]:
        raise ValueError(
            "Method 'lm' doesn't work when the number of residuals is less than the number of "
            f"variables ({m} < {x.shape[0]}): use method='trf'."
        )
    if problem.bounded and _is_concrete((problem.lower, problem.upper)):
        low, high = np.asarray(problem.lower), np.asarray(problem.upper)
        if np.any((np.isfinite(low) | np.isfinite(high)) & (low != high)):
            raise ValueError(
                "Method 'lm' doesn't support bounds: use method='trf' or 'dogbox'. "
                "(lb == ub, which fixes a variable, is supported.)"
            )


def _check_x_scale(x_scale: Any, problem: LeastSquaresProblem, x: Array) -> Any:
    """An array (n,), or None for the method's own and for 'jac'."""
    if x_scale is None:
        return None
    if isinstance(x_scale, str):
        if x_scale == "jac":
            return None
        raise ValueError(
            f"`x_scale` must be 'jac' or array_like with positive numbers, got {x_scale!r}."
        )
    try:
        tree = jax.tree.unflatten(problem.restore_x.treedef, _blank(problem.restore_x))
        flat = _spread(x_scale, 1.0, tree, x, "`x_scale`'s")
    except ValueError as error:
        raise ValueError("Inconsistent shapes between `x_scale` and `x0`.") from error
    complex_given = any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(x_scale))
    bad = complex_given or (
        _is_concrete(flat) and not np.all(np.isfinite(flat) & (np.asarray(flat) > 0))
    )
    if bad:
        raise ValueError(
            f"`x_scale` must be 'jac' or array_like with positive numbers, got {x_scale!r}."
        )
    return flat


def _blank(restore: Unravel) -> list[Array]:
    return [np.zeros(shape, dtype) for shape, dtype in restore.leaves]
