"""A Jacobian by any of the schemes, and the check of one, called as in SciPy, on flat arrays."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from ..derivatives.base import AbstractJacobian, AbstractSampled, FlatFunction
from ..derivatives.comparison import DerivativeCheck, compare, report_of
from ..derivatives.schemes import named, resolve
from ..jax_support.types import Bounds
from ..problem.arguments import as_tuple, check_callable, check_vector, with_kwargs


def approx_derivative(
    fun: Callable,
    x0: ArrayLike,
    method: str = "3-point",
    rel_step: ArrayLike | None = None,
    abs_step: ArrayLike | None = None,
    f0: ArrayLike | None = None,
    bounds: Bounds = (-jnp.inf, jnp.inf),
    args: tuple = (),
    kwargs: dict | None = None,
) -> Float[Array, "m n"] | Float[Array, " n"]:
    """Jacobian of a vector-valued function, by finite differences unless asked otherwise.

    Works inside `jit`, `vmap` and `grad`: the steps are constants to the derivative.

    Parameters
    ----------
    fun : callable
        Called as ``fun(x, *args, **kwargs)`` with `x` of shape ``(n,)``, also where `x0` is a
        scalar. Returns a scalar or shape ``(m,)``.
    x0 : array_like, shape (n,) or scalar
        Where to differentiate. Its dtype, float32 or float64, is the dtype `fun` is called with;
        an integer becomes the default floating dtype.
    method : {'3-point', '2-point', 'cs', 'jacfwd', 'jacrev'}
        ``'3-point'``: second-order differences, central or one-sided where a bound is near.
        ``'2-point'``: first-order differences.
        ``'cs'``: a complex step; exact to rounding, for an analytic `fun` that takes complex `x`.
        ``'jacfwd'``, ``'jacrev'``: automatic differentiation in forward or reverse mode.
    rel_step : float or array_like of shape (n,), optional
        The step is ``rel_step * abs(x0)``, in the direction of `x0`. By default, and where that
        would not change `x0`, it is ``eps**(1/s) * max(1, abs(x0))`` with s = 2 for
        ``'2-point'``, 3 for ``'3-point'`` and 1/2 for ``'cs'``, and the eps of the lower precision
        of `x0` and ``fun(x0)``. Automatic differentiation has no step.
    abs_step : float or array_like of shape (n,), optional
        The step itself. If it is given `rel_step` is not looked at.
    f0 : array_like, shape (m,) or scalar, optional
        ``fun(x0)``, if it is known: saves the differences an evaluation.
    bounds : 2-tuple of array_like, object with ``lb`` and ``ub``, or None
        Lower and upper bounds, each a scalar, of shape ``(n,)``, or None for no bound. `fun` is
        not called outside of them. By differences, a variable whose bounds coincide has a zero
        column.
    args, kwargs : tuple and dict, optional
        Further arguments of `fun`.

    Returns
    -------
    array, shape (m, n)
        The Jacobian; shape ``(n,)`` for m = 1. In the higher precision of `x0` and ``fun(x0)``.

    Raises
    ------
    ValueError
        For an unknown `method`; for `x0` complex, of half precision, of more than one dimension,
        or outside of `bounds`, and for these NaN or reversed (where values are known, that is not
        inside a transformation); for `bounds`, steps or `f0` of wrong shape; for a complex value
        of `fun`.
    RuntimeError
        If `fun` returns more than one dimension.
    TypeError
        If for ``'cs'`` `fun` returns a real value at a complex point.

    See Also
    --------
    check_derivative : Compare a Jacobian with finite differences, entry by entry.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import optx_lite as ox
    >>> def fun(x, c):
    ...     return jnp.array([x[0] * x[1], c * x[0] ** 2])
    >>> J = ox.approx_derivative(fun, [2.0, 3.0], args=(1.0,))
    >>> print(J.round(2))
    [[3. 2.]
     [4. 0.]]

    The derivative to the left and to the right of a kink:

    >>> print(ox.approx_derivative(jnp.abs, 0.0, bounds=(None, 0.0)).round(2))
    [-1.]
    >>> print(ox.approx_derivative(jnp.abs, 0.0, bounds=(0.0, None)).round(2))
    [1.]
    """
    scheme = named(method, rel_step=rel_step, abs_step=abs_step)
    x, lower, upper = check_vector(x0, bounds)
    flat = _flat_function(fun, args, kwargs)
    if f0 is not None and isinstance(scheme, AbstractSampled):
        rows = scheme.transposed(flat, x, _known_value(f0, flat, x), lower, upper).T
    else:
        _, transposed = scheme.linearize(flat, x, lower, upper)
        rows = transposed().T
    return rows[0] if rows.shape[0] == 1 else rows


def _known_value(f0: ArrayLike, flat: FlatFunction, x: Float[Array, " n"]) -> Float[Array, " m"]:
    f = jnp.atleast_1d(jnp.asarray(f0))
    if f.ndim > 1:
        raise ValueError(f"`f0` passed has more than 1 dimension: its shape is {f.shape}.")
    expected = jax.eval_shape(flat, x).shape
    if f.shape != expected:
        raise ValueError(f"`f0` must have the shape of fun(x0), {expected}, got {f.shape}.")
    return f if jnp.issubdtype(f.dtype, jnp.floating) else f.astype(x.dtype)


def check_derivative(
    fun: Callable,
    jac: str | Callable | AbstractJacobian,
    x0: ArrayLike,
    bounds: Bounds = (-jnp.inf, jnp.inf),
    args: tuple = (),
    kwargs: dict | None = None,
) -> DerivativeCheck:
    """Compare a Jacobian with finite differences, and say which entry disagrees.

    Beside mistakes in a Jacobian written by hand it finds a ``stop_gradient`` or a custom
    derivative rule that is wrong, and a point where `fun` has a kink.

    Parameters
    ----------
    fun : callable
        Called as ``fun(x, *args, **kwargs)`` with `x` of shape ``(n,)``. Returns a scalar or shape
        ``(m,)``.
    jac : callable, 'jacfwd', 'jacrev', 'cs' or AbstractJacobian
        The Jacobian to check: a function called as `fun` is, returning shape ``(m, n)`` (or
        ``(n,)`` for m = 1), or the name of a way to have it from `fun`.
    x0 : array_like, shape (n,) or scalar
        Where to compare. Choose a point without special values: at 0 or 1 many wrong terms vanish.
    bounds : 2-tuple of array_like, object with ``lb`` and ``ub``, or None
        Lower and upper bounds, each a scalar, of shape ``(n,)``, or None for no bound. `fun` is
        not called outside of them.
    args, kwargs : tuple and dict, optional
        Further arguments of `fun`, and of `jac` if it is a callable.

    Returns
    -------
    DerivativeCheck
        Its truth value is whether all entries agree; ``print`` it to see which do not. An entry
        agrees if its difference from the reference is within the square root of eps, relative, plus
        ten times the error that the differences are estimated to have. That estimate follows the
        scale and the noise of each residual and the scale of each variable.

    Raises
    ------
    ValueError
        For an unknown `jac`, a result of `jac` of wrong shape, and as `approx_derivative`.
    RuntimeError
        If `fun` returns more than one dimension.

    See Also
    --------
    approx_derivative : The Jacobian itself, by differences or by automatic differentiation.

    Notes
    -----
    The arguments come in the order of SciPy's function of this name. What SciPy returns is here
    ``max_error``, and relative for small entries too.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import optx_lite as ox
    >>> def fun(x):
    ...     return jnp.array([x[0] * x[1], x[0] ** 2])
    >>> bool(ox.check_derivative(fun, "jacfwd", [2.0, 3.0]))
    True
    >>> def jac(x):
    ...     return [[x[1], x[0]], [x[0], 0.0]]  # a factor 2 is missing
    >>> check = ox.check_derivative(fun, jac, [2.0, 3.0])
    >>> check.ok, check.worst
    (False, (1, 0))
    """
    x, lower, upper = check_vector(x0, bounds)
    flat = _flat_function(fun, args, kwargs)
    scheme = resolve(_at_arguments(jac, args, kwargs, "`jac`") if callable(jac) else jac)
    # Compiled as one: of small operations there are many, and each would be compiled by itself.
    return report_of(*jax.jit(functools.partial(compare, scheme, flat))(x, lower, upper))


def _at_arguments(
    fun: Callable, args: tuple, kwargs: dict | None, name: str
) -> Callable[[Array], PyTree]:
    check_callable(fun, name)
    bound, further = with_kwargs(fun, kwargs), as_tuple(args)
    return lambda x: bound(x, *further)


def _flat_function(fun: Callable, args: tuple, kwargs: dict | None) -> FlatFunction:
    """`fun` at its further arguments, always with a floating result of shape (m,)."""
    at_arguments = _at_arguments(fun, args, kwargs, "`fun`")

    def flat(x: Array) -> Array:
        f = jnp.atleast_1d(jnp.asarray(at_arguments(x)))
        if f.ndim > 1:
            raise RuntimeError(
                f"`fun` return value has more than 1 dimension: its shape is {f.shape}."
            )
        if jnp.iscomplexobj(f) and not jnp.iscomplexobj(x):
            raise ValueError(f"`fun` must return real values, got {f.dtype}.")
        return f if jnp.issubdtype(f.dtype, jnp.inexact) else f.astype(x.dtype)

    return flat
