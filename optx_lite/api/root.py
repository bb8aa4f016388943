r"""Roots of n equations in n unknowns: SciPy's `root` and `fixed_point`, by least squares.

The solvers minimise 0.5 ||f||²; a minimum is a root only if f is 0 there. Whether it is, is
asked in no unit: f is a rounding of the terms it is made of, |f_i| <= 16 n eps (|J| |x|)_i; or a
Newton step removes it, and changes no unknown by more than ``tol`` of its size,

    min ||f + J p|| <= ||f|| / 2,      |p_j| <= tol max(|x_j|, |x_j - x0_j|),              (1)

p among the unknowns that no bound holds. At a minimum which is not a root J^T f = 0, so that the
best p is 0 and removes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..driver.unknown import nan_unless, nan_where_moved
from ..jax_support.types import Args, Bounds, Count, Options
from ..problem.arguments import as_tuple
from ..problem.pytrees import as_array_or_tree, is_concrete, ravel
from ..results.base import AbstractRecord
from ..results.least_squares import MESSAGES
from ..statistics.factors import default_rcond, inverse_of_gram
from .least_squares import least_squares

RUNS = {"hybr": "lm", "lm": "lm", "trf": "trf", "dogbox": "dogbox"}
NO_ROOT = -8
NO_ROOT_MESSAGE = (
    "The residuals have a minimum here, which is not a root: start elsewhere, or there is none."
)


class RootResult(AbstractRecord):
    """The answer of `root`, with the field names of ``scipy.optimize.OptimizeResult``.

    Attributes
    ----------
    x : pytree like ``x0``
        The root, or where the search ended.
    fun : array, shape (n,)
        The equations at x.
    jac : array, shape (n, n)
        Their Jacobian.
    success : bool
        Whether x is a root.
    nfev, njev, nit : int
        Evaluations of the equations, of their Jacobian, and steps.
    status : int
        As for `least_squares`; -8 at a minimum of the residuals that is not a root.
    method : str, static
        As it was asked for; ``solver`` is what ran.
    """

    MESSAGES: ClassVar[dict[int, str]] = {**MESSAGES, NO_ROOT: NO_ROOT_MESSAGE}

    x: PyTree
    fun: PyTree
    jac: str | bool | Callable | None
    nfev: Count
    njev: Count
    nit: Count
    status: int | Array
    method: str = eqx.field(static=True)
    solver: str = eqx.field(static=True)

    @property
    def success(self) -> Array | bool:
        """Whether x is a root (``status > 0``)."""
        return self.status > 0


def root(
    fun: Callable[..., PyTree],
    x0: PyTree,
    args: Args = (),
    method: str = "hybr",
    jac: str | bool | Callable | None = None,
    tol: float | None = None,
    callback: Callable | None = None,
    options: Options | None = None,
    *,
    bounds: Bounds = None,
) -> RootResult:
    """Find a root of n equations in n unknowns.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` gives the equations, shape (n,) or a pytree; with 'lm', 'trf' and
        'dogbox' there may be more than unknowns.
    x0 : array_like of shape (n,), scalar, or pytree of real arrays
        Initial guess.
    args : tuple, optional
        Further arguments; arrays among them carry derivatives.
    method : {'hybr', 'lm', 'trf', 'dogbox'}
        The methods of `least_squares`. 'hybr', SciPy's default, is Levenberg-Marquardt here (Trust
        Region Reflective with ``bounds``); the result's ``solver`` says so.
    jac : callable, bool or name of a scheme, optional
        ``jac(x, *args)``, shape (n, n); True if ``fun`` gives (equations, Jacobian); or as for
        `least_squares`.
    tol : float, optional
        Relative error of the root, 1.49e-8 by default.
    callback : callable, optional
        As for `least_squares`.
    options : dict, optional
        ``xtol``, ``ftol``, ``gtol``, ``maxfev`` (or ``maxiter``), and of `least_squares`.
        ``col_deriv``: whether ``jac`` has the derivatives of an equation down a column. SciPy's
        ``band``, ``eps``, ``factor`` have no effect.
    bounds : optional
        As for `least_squares`; by 'trf' or 'dogbox'.

    Returns
    -------
    RootResult
        ``success`` only if the equations are 0, to rounding or to what ``tol`` allows the unknowns:
        a least-squares minimum elsewhere has status -8. Differentiable at a root; elsewhere
        derivatives are NaN.

    Raises
    ------
    ValueError, TypeError
        As `least_squares`; for a method of another name, and for fewer equations than unknowns.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optx_lite as ox
    >>> def f(x, c):
    ...     return jnp.array([x[0] * jnp.cos(x[1]) - c, x[1] * x[0] - x[1] - 5.0])
    >>> res = ox.root(f, [1.0, 1.0], args=(4.0,))
    >>> print([f"{value:.3f}" for value in res.x], res.success)
    ['6.504', '0.908'] True
    >>> ox.root(lambda x: x**2 + 1.0, [1.0]).success
    False
    >>> slope = jax.grad(lambda c: ox.root(f, [1.0, 1.0], args=(c,)).x[0])(4.0)
    >>> print(f"{slope:.3f}")
    0.684
    """
    if method not in RUNS:
        raise ValueError(f"`method` must be one of {list(RUNS)}, got {method!r}.")
    solver = "trf" if method == "hybr" and bounds is not None else RUNS[method]
    x0 = as_array_or_tree(x0)
    if jax.tree_util.all_leaves([x0]):
        x0 = (x0 if isinstance(x0, jax.Array) else np.asarray(x0)).reshape(-1)
    settings = _settings(options, tol)
    transposed = settings.pop("col_deriv", False)
    equations, scheme = _as_two_functions(fun, jac, bool(transposed))
    result = least_squares(
        equations, x0, jac=scheme, bounds=bounds, method=solver, args=as_tuple(args),
        callback=callback, **settings,
    )  # fmt: skip
    x = ravel(result.x, result.jac.dtype)
    f = ravel(result.fun, x.dtype)
    if f.shape[0] < x.shape[0] or (method == "hybr" and f.shape != x.shape):
        raise TypeError(
            f"`fun` must give as many equations as there are unknowns, {x.shape[0]}, got "
            f"{f.shape[0]}."
        )
    held = ravel(result.active_mask, jnp.int32) != 0
    tolerance = 1.49012e-8 if tol is None else tol
    found = _is_root(x, ravel(x0, x.dtype), f, result.jac, held, jnp.asarray(tolerance, x.dtype))
    status = _status_of(result.status, found)
    x, fun, jacobian = _moving_unless(status == NO_ROOT, (result.x, result.fun, result.jac))
    return RootResult(
        x=x, fun=fun, jac=jacobian, nfev=result.nfev, njev=result.njev, nit=result.nit,
        status=status, method=method, solver=solver,
    )  # fmt: skip


def _settings(options: Options | None, tol: float | None) -> Options:
    """SciPy's options as those of `least_squares`."""
    settings = dict(options or {})
    for name in ("maxfev", "maxiter"):
        settings["max_nfev"] = settings.pop(name, None) or settings.get("max_nfev")
    for no_effect in ("band", "eps", "factor"):
        settings.pop(no_effect, None)
    diag = settings.pop("diag", None)
    if diag is not None:
        settings["x_scale"] = 1 / jnp.asarray(diag)
    if tol is not None:
        settings = {"xtol": tol, "ftol": tol, "gtol": tol, **settings}
    return settings


def _as_two_functions(
    fun: Callable, jac: str | bool | Callable | None, transposed: bool
) -> tuple[Callable, PyTree]:
    if jac is None or jac is False:
        return fun, "jacfwd"
    if not callable(jac) and jac is not True:
        return fun, jac
    given = jac if callable(jac) else lambda x, *args: fun(x, *args)[1]
    equations = fun if callable(jac) else lambda x, *args: fun(x, *args)[0]
    if not transposed:
        return equations, given
    return equations, lambda x, *args: jnp.asarray(given(x, *args)).T


@jax.jit
def _is_root(x: Array, x0: Array, f: Array, jac: Array, held: Array, tol: Array) -> Array:
    n, eps = x.shape[0], jnp.finfo(x.dtype).eps
    rounding = jnp.all(jnp.abs(f) <= 16 * n * eps * (jnp.abs(jac) @ jnp.abs(x)))
    factor, _ = inverse_of_gram(jac, held, default_rcond(max(jac.shape), x.dtype))
    step = -factor @ ((jac @ factor).T @ f)
    left = f + jac @ step
    small = jnp.abs(step) <= tol * jnp.maximum(jnp.abs(x), jnp.abs(x - x0))
    removed = jnp.max(jnp.abs(left)) <= 0.5 * jnp.max(jnp.abs(f))  # (1)
    return rounding | (removed & jnp.all(small))


@jax.custom_jvp
def _moving_unless(rootless: Array | bool, fields: PyTree) -> PyTree:
    """The fields, whose derivatives are NaN where a minimum is no root, as those of all failures.

    (At the minimum they are those of a minimum of the squares, finite, and not what was asked.)
    """
    return fields


@_moving_unless.defjvp
def _moving_unless_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (rootless, fields), (_, moved) = primals, tangents
    rootless, causes = jnp.asarray(rootless), (jax.tree.leaves(fields), jax.tree.leaves(moved))

    def unless(dot: Array) -> Array:
        return jnp.where(rootless, 0, dot) + nan_where_moved(*causes, rootless, dot)

    return fields, jax.tree.map(unless, moved)


def _status_of(status: int | Array, found: Array) -> PyTree:
    if isinstance(status, int) and is_concrete(found):
        return status if bool(found) or status <= 0 else NO_ROOT
    return jnp.where(found | (status <= 0), status, NO_ROOT)


def fixed_point(
    func: Callable[..., PyTree],
    x0: PyTree,
    args: Args = (),
    xtol: float = 1e-8,
    maxiter: int = 500,
    method: str = "del2",
) -> PyTree:
    """Find x with ``func(x, *args) == x``.

    Parameters
    ----------
    func : callable
        Gives what it is given: an array of the shape of x, or a pytree of its structure.
    x0 : array_like or pytree
        Initial guess.
    args : tuple, optional
        Further arguments; arrays among them carry derivatives.
    xtol : float
        Relative tolerance.
    maxiter : int
        Most evaluations of ``func``.
    method : {'del2', 'iteration'}
        SciPy's names; what runs is Levenberg-Marquardt on ``func(x) - x``, by either.

    Returns
    -------
    pytree like ``x0``
        The fixed point; NaN inside of a transformation where none was found.

    Raises
    ------
    RuntimeError
        If none was found.
    ValueError
        If ``func`` gives another shape than it is given.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> print(f"{ox.fixed_point(jnp.cos, 1.0):.4f}")
    0.7391
    """
    if method not in ("del2", "iteration"):
        raise ValueError(f"`method` must be 'del2' or 'iteration', got {method!r}.")
    tree = as_array_or_tree(x0)
    alone = jax.tree_util.all_leaves([tree])
    shape = jnp.shape(tree) if alone else ()

    def difference(x: PyTree, *args: Any) -> PyTree:
        x = x.reshape(shape) if alone else x
        out = jax.tree.map(_difference, func(x, *args), x)
        return out.reshape(-1) if alone else out

    res = root(difference, tree, args, "lm", tol=xtol, options={"maxfev": maxiter})
    x = res.x.reshape(shape) if alone else res.x
    if isinstance(res.status, int):
        if not res.success:
            raise RuntimeError(f"Failed to converge, value is {x}: {res.message}")
        return x
    return jax.tree.map(functools.partial(nan_unless, res.success), x)


def _difference(new: PyTree, old: Array) -> Array:
    difference = jnp.asarray(new) - old
    if difference.shape != old.shape:
        raise ValueError(
            f"`func` must give an array of the shape of x, {old.shape}, got {jnp.shape(new)}."
        )
    return difference
