"""From the user's functions, bounds and loss to a `LeastSquaresProblem`.

Every argument is checked here, once, with SciPy's exception types: the message names the
argument, says what came and what was expected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._lift import Lifted, inputs, lift
from ._losses import LOSSES, Loss, ScalarLoss, ScipyLoss
from ._problem import LeastSquaresProblem
from ._tree import Unravel, as_array_or_tree, is_concrete, is_numbers, ravel, widest
from .derivatives import AbstractJacobian, ComplexStep, resolve


class _Residuals(eqx.Module):
    """The user's function with its arguments, on flat vectors."""

    fun: Lifted
    on_complex: Lifted | None
    args: Any
    restore: Unravel = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        fun = self.fun
        if self.on_complex is not None and jnp.iscomplexobj(x):
            fun = self.on_complex
        leaves = jax.tree.leaves(fun(self.restore(x), *self.args))
        return _ravel_native(leaves)


class _Jacobian(eqx.Module):
    """The user's Jacobian with its arguments, on flat vectors."""

    jac: Lifted
    args: Any
    restore: Unravel = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        blocks = [
            jnp.asarray(leaf) for leaf in jax.tree.leaves(self.jac(self.restore(x), *self.args))
        ]
        if self.restore.is_flat:
            return jnp.stack(blocks).reshape(-1, x.shape[0])  # one array, or nested lists
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
    dtype = widest(leaf.dtype for leaf in jax.tree.leaves(tree))
    restore = Unravel.like(tree)
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
        z = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, _complex(leaf.dtype)), x)
        # Complex x meets the real data of `fun`: that is what the scheme is about, and no slip.
        with jax.numpy_dtype_promotion("standard"):
            on_complex = lift(bound, z, *args, label="`fun`")
    lifted = lift(bound, x, *args, label="`fun`")
    return _Residuals(lifted, on_complex, inputs(args), restore)


def _complex(dtype: Any) -> Any:
    return np.result_type(dtype, np.complex64)


def _lift_jacobian(
    jac: Callable, x: Any, args: tuple, kwargs: Any, restore: Unravel, m: int
) -> _Jacobian:
    lifted = lift(_with_kwargs(jac, kwargs), x, *args, label="`jac`")
    n = sum(restore.sizes)
    if restore.is_flat:
        shape = _shape_of(lifted.out_shape)
        shape = (1,) * (2 - len(shape)) + shape  # as np.atleast_2d
        if shape != (m, n):
            raise ValueError(
                f"The return value of `jac` has wrong shape: expected {(m, n)}, actual {shape}."
            )
    return _Jacobian(lifted, inputs(args), restore)


def _shape_of(out: Any) -> tuple[int, ...]:
    """Shape of the array that nested lists of arrays make."""
    if isinstance(out, (list, tuple)) and out:
        return (len(out), *_shape_of(out[0]))
    return tuple(getattr(out, "shape", ()))


def _with_kwargs(fun: Callable, kwargs: dict[str, Any] | None) -> Callable:
    return jax.tree_util.Partial(fun, **kwargs) if kwargs else fun


def _ravel_native(leaves: list[Any]) -> Array:
    """One vector of the leaves' common floating dtype."""
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    dtypes = [
        a.dtype if jnp.issubdtype(a.dtype, jnp.inexact) else jnp.result_type(float) for a in arrays
    ]
    dtype = max(dtypes, key=lambda d: (jnp.issubdtype(d, jnp.complexfloating), jnp.finfo(d).bits))
    return ravel(arrays, dtype)


def _restorer(out: Any, dtype: Any) -> Unravel:
    """Back to what `fun` returned; SciPy's kinds of return value become one flat array."""
    leaves = jax.tree.leaves(out)
    if jax.tree_util.all_leaves([out]) or _is_scalars(out):
        m = sum(int(np.prod(leaf.shape)) for leaf in leaves)
        return Unravel.like(jax.ShapeDtypeStruct((m,), dtype))
    return Unravel.like(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), out))


def _is_scalars(out: Any) -> bool:
    return type(out) in (list, tuple) and all(
        jax.tree_util.all_leaves([leaf]) and leaf.shape == () for leaf in out
    )


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
        raise ValueError("`x0` must be real: optimise real and imaginary parts as two variables.")
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
    lower = spread_bound(bounds[0], -np.inf, tree, x, "lower")
    upper = spread_bound(bounds[1], np.inf, tree, x, "upper")
    if not is_concrete((lower, upper)):
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
    if is_concrete(x):
        _check_inside(np.asarray(x), low, high)
    return lower, upper, bool(np.any(np.isfinite(low)) or np.any(np.isfinite(high)))


def _check_inside(x: Any, low: Any, high: Any) -> None:
    if not np.all(np.isfinite(x)):
        raise ValueError(f"`x0` must be finite, got {x}.")
    outside = ~((x >= low) & (x <= high))
    if outside.any():
        i = int(np.argmax(outside))
        raise ValueError(
            "Initial guess is outside of provided bounds: "
            f"`x0`={x[i]} is not in [{low[i]}, {high[i]}] at entry {i}."
        )


def spread_bound(bound: Any, missing: float, tree: Any, x: Array, name: str) -> Array:
    """One side of the bounds, a scalar, an array or a pytree prefix, as a flat vector."""

    def onto(value: Any, leaf: Any) -> Any:
        value = missing if value is None else value
        xp = jnp if isinstance(value, jax.Array) else np
        value = xp.asarray(as_array_or_tree(value))
        if value.ndim and value.shape != leaf.shape:
            raise ValueError(
                f"Inconsistent shapes between bounds and `x0`: the {name} bound has shape "
                f"{value.shape}, `x0` has {leaf.shape}."
            )
        return xp.broadcast_to(value.astype(x.dtype), leaf.shape)

    def spread(is_leaf: Callable[[Any], bool]) -> Any:
        return jax.tree.map(
            lambda value, part: jax.tree.map(lambda leaf: onto(value, leaf), part),
            as_array_or_tree(bound),
            tree,
            is_leaf=lambda value: value is None or is_leaf(value),
        )

    try:
        try:
            full = spread(lambda value: False)
        except ValueError:  # a list of numbers where `x0` has an array
            full = spread(is_numbers)
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
        raise ValueError(f"`fun` must return at most 1-d array_like. f0.shape: {out.shape}")
    if not leaves or sum(int(np.prod(leaf.shape)) for leaf in leaves) == 0:
        raise ValueError("`fun` must return at least one residual.")


def _check_loss(loss: Any, f_scale: Any, m: int, dtype: Any) -> Loss:
    if not isinstance(f_scale, jax.Array):
        f_scale = np.asarray(f_scale)
    f_scale = f_scale.astype(dtype)
    if f_scale.ndim:
        raise ValueError(f"`f_scale` must be a number, got shape {f_scale.shape}.")
    if is_concrete(f_scale) and not float(f_scale) > 0:
        raise ValueError(f"`f_scale` must be positive, got {float(f_scale)}.")
    if isinstance(loss, str) and loss in LOSSES:
        rho = LOSSES[loss]
        return Loss(None if rho is None else jax.tree_util.Partial(rho), f_scale)
    if not callable(loss):
        raise ValueError(f"`loss` must be one of {LOSSES.keys()} or a callable, got {loss!r}.")
    single = _try_scalar_loss(loss, dtype)
    try:
        whole = lift(loss, jax.ShapeDtypeStruct((m,), dtype), label="`loss`")
    except Exception:
        if single is None:
            raise
        return Loss(ScalarLoss(single), f_scale)
    shape = _shape_of(whole.out_shape)
    if shape == (3, m):
        return Loss(ScipyLoss(whole), f_scale)
    if shape == (m,) and single is not None:
        return Loss(ScalarLoss(single), f_scale)
    raise ValueError(
        "The return value of `loss` callable has wrong shape: expected (3, m) = "
        f"{(3, m)}, or a scalar for a scalar, got {shape}."
    )


def _try_scalar_loss(loss: Callable, dtype: Any) -> Lifted | None:
    """The loss on a scalar z, or None if it is not made for one."""
    try:
        lifted = lift(loss, jax.ShapeDtypeStruct((), dtype), label="`loss`")
    except Exception:  # the user's code, made for vectors, may raise anything here
        return None
    return lifted if _shape_of(lifted.out_shape) == () else None
