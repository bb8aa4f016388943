"""What `curve_fit` does with its arguments: SciPy's rules for data, sigma, start and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike, PyTree

from ..jax_support.types import Bounds, Options
from ..problem.arguments import spread
from ..problem.pytrees import as_array_or_tree, is_concrete, is_numbers, ravel
from ..statistics.curve import Data, Model
from ..statistics.names import names_of

NAN_POLICIES = (None, "raise", "omit")
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def first_parameters(f: Callable, p0: PyTree, bounds: Bounds) -> PyTree:
    """p0, or SciPy's default: ones, within bounds their middle, or one inside the finite one."""
    if p0 is not None:
        return as_array_or_tree(p0)
    names = _positional(f)
    if not names:
        raise ValueError(
            "Unable to determine number of fit parameters: `f` must name them after `x`, or `p0` "
            "be given."
        )
    lower, upper = (_flat_bound(side, len(names)) for side in _sides(bounds))
    xp = _namespace(lower, upper)
    low, high = xp.isfinite(lower), xp.isfinite(upper)
    inside = xp.where(low, lower + 1, xp.where(high, upper - 1, xp.ones_like(lower)))
    middle = 0.5 * (xp.where(low, lower, 0) + xp.where(high, upper, 0))
    return xp.where(low & high, middle, inside)


def _sides(bounds: Bounds) -> tuple[PyTree, PyTree]:
    if bounds is None:
        return -np.inf, np.inf
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        return bounds.lb, bounds.ub
    return tuple(bounds)


def _flat_bound(side: PyTree, n: int) -> PyTree:
    array = side if isinstance(side, jax.Array) else np.asarray(as_array_or_tree(side), float)
    if array.ndim and array.shape != (n,):
        raise ValueError(
            f"Inconsistent shapes: `bounds` have {array.shape}, and there are {n} parameters."
        )
    return (jnp if isinstance(array, jax.Array) else np).broadcast_to(array, (n,))


def _positional(f: Callable) -> list[str]:
    """The names of f's parameters after the first."""
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in POSITIONAL][1:]


def model_of(f: Callable, p0: PyTree) -> Model:
    """How f takes its parameters: one by one as for SciPy, by name, or as p0 is."""
    if jax.tree_util.all_leaves([p0]):
        return Model(f, "positional")
    if isinstance(p0, dict) and all(isinstance(key, str) for key in p0):
        style, arguments, named = "keyword", (), p0
    elif type(p0) in (list, tuple):
        style, arguments, named = "positional", p0, {}
    else:
        return Model(f, "whole")
    try:
        inspect.signature(f).bind(None, *arguments, **named)
    except (TypeError, ValueError):
        return Model(f, "whole")
    return Model(f, style)


def parameter_names(model: Model, p0: PyTree) -> tuple[str, ...]:
    """Those of the signature for an array of parameters, else their paths in p0."""
    names = names_of(p0)
    named = tuple(_positional(model.fun))
    alone = jax.tree_util.all_leaves([p0])
    return named if alone and len(named) == len(names) else names


def data_of(
    xdata: PyTree, ydata: PyTree, sigma: PyTree, sigma_x: PyTree, mask: PyTree, p0: PyTree,
    check_finite: bool | None, nan_policy: str | None,
) -> tuple[Data, PyTree]:  # fmt: skip
    """The data in one floating dtype, and p0 in it."""
    if check_finite is None:
        check_finite = nan_policy is None
    if nan_policy == "propagate":
        raise ValueError("`nan_policy='propagate'` is not supported by this function.")
    if nan_policy not in NAN_POLICIES:
        raise ValueError(
            f"nan_policy must be one of {{None, 'raise', 'omit'}}: `nan_policy` is {nan_policy!r}."
        )
    x, (y, mask) = _as_arrays(xdata), _real_data(ydata, mask)
    sigma = None if sigma is None else as_array_or_tree(sigma)
    sigma = sigma if isinstance(sigma, jax.Array) or sigma is None else np.asarray(sigma)
    dtype = _dtype(p0, x, y, sigma, sigma_x)
    p0 = jax.tree.map(lambda leaf: _cast(leaf, dtype), p0)
    x = jax.tree.map(lambda leaf: _cast(leaf, dtype, integers=_is_array(x)), x)
    y = _cast(y, dtype).reshape(y.shape if y.ndim == 0 else -1)
    mask = _check_mask(mask, y)
    if nan_policy == "omit":
        mask = _and(mask, _is_there(x, y))
        if is_concrete(mask) and bool(np.all(np.asarray(mask))):
            mask = None
    if mask is not None:
        x, y, mask = _filled(x, y, mask)
    if check_finite or nan_policy == "raise":
        _check_values(x, y, "nan" if not check_finite else "finite")
    weight = None if sigma is None else _weight(sigma, y, mask, dtype)
    errors = None if sigma_x is None else _errors_of_x(sigma_x, x, y, weight, mask)
    return Data(x, y, weight, mask, errors), p0


def _real_data(ydata: PyTree, mask: PyTree) -> tuple[PyTree, PyTree]:
    """ydata as an array of real numbers, and the mask, with that of a masked array in it."""
    y = as_array_or_tree(ydata)
    if isinstance(y, np.ma.MaskedArray):
        mask = _and(_check_mask(mask, y), ~np.ma.getmaskarray(y).ravel())
    y = y if isinstance(y, jax.Array) else np.asarray(y)
    y = y.astype(float) if y.dtype == object else y
    if y.dtype != bool and (y.dtype.kind in "cSUmM" or not jnp.issubdtype(y.dtype, np.number)):
        raise ValueError(f"`ydata` must be real numbers, got dtype {y.dtype}.")
    if y.size == 0:
        raise ValueError("`ydata` must not be empty!")
    return y, mask


def _namespace(*arrays: PyTree) -> Any:
    """NumPy, if all is on the host: its functions do not take JAX's arrays in every case."""
    on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(arrays))
    return jnp if on_device else np


def _is_array(x: object) -> bool:
    return isinstance(x, (np.ndarray, jax.Array))


def _as_arrays(xdata: PyTree) -> PyTree:
    """xdata as SciPy reads it: lists and tuples of numbers, or of arrays of one shape, are one."""
    if _is_array(xdata):
        return xdata
    if type(xdata) in (list, tuple) and not is_numbers(xdata):
        shapes = {np.shape(leaf) for leaf in xdata} if all(map(_has_shape, xdata)) else set()
        if len(shapes) == 1:
            xp = jnp if any(isinstance(leaf, jax.Array) for leaf in xdata) else np
            return xp.stack([xp.asarray(leaf) for leaf in xdata])
        if not shapes and not any(isinstance(leaf, (dict, str)) for leaf in xdata):
            return np.asarray(xdata, float)
    return as_array_or_tree(xdata)


def _has_shape(leaf: object) -> bool:
    return _is_array(leaf) or isinstance(leaf, (int, float))


def is_data(x: object) -> bool:
    """Whether all of it is arrays and numbers, which may be inputs of a program."""
    return all(
        _is_array(leaf) or isinstance(leaf, (int, float, complex, np.generic))
        for leaf in jax.tree.leaves(x)
    )


def _dtype(p0: PyTree, *data: PyTree) -> PyTree:
    """JAX's arrays and an array p0 decide; NumPy's data become the default, as for SciPy."""
    leaves = [leaf for leaf in jax.tree.leaves(data) if isinstance(leaf, jax.Array)]
    leaves += [leaf for leaf in jax.tree.leaves(p0) if isinstance(leaf, jax.Array)]
    floats = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    default = jnp.result_type(float)
    host = [leaf for leaf in jax.tree.leaves(data) if isinstance(leaf, np.ndarray) and leaf.ndim]
    if not floats or any(leaf.dtype.kind == "f" for leaf in host):
        floats.append(default)
    return max(floats, key=lambda dtype: jnp.finfo(dtype).bits)


def _cast(leaf: PyTree, dtype: DTypeLike, integers: bool = True) -> PyTree:
    """In the dtype, if it is real; integers only where they are an array for SciPy."""
    if not is_data(leaf):
        return leaf
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    kind = jnp.issubdtype(array.dtype, jnp.floating) or (integers and array.dtype.kind in "iub")
    return array.astype(dtype) if kind else array


def _check_mask(mask: PyTree, y: PyTree) -> PyTree:
    if mask is None:
        return None
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if mask.size != y.size or y.ndim == 0:
        raise ValueError(f"`mask` must have the shape of `ydata`, {y.shape}, got {mask.shape}.")
    return mask.reshape(-1).astype(bool)


def _and(a: PyTree, b: PyTree) -> PyTree:
    return b if a is None else a & b


def _columns(x: PyTree, m: int) -> list[PyTree]:
    """The leaves of x that have a value for each of m data, in their last axis."""
    return [
        leaf for leaf in jax.tree.leaves(x) if _is_array(leaf) and leaf.shape[-1:] == (m,)
    ]  # fmt: skip


def _is_there(x: PyTree, y: PyTree) -> PyTree:
    """Where neither x nor y is NaN, (m,)."""
    xp = _namespace(x, y)
    there = ~xp.isnan(xp.atleast_1d(y))
    for leaf in _columns(x, y.size):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            there = there & ~xp.isnan(leaf).reshape(-1, y.size).any(axis=0)
    return there


def _filled(x: PyTree, y: PyTree, mask: PyTree) -> tuple[PyTree, PyTree, PyTree]:
    """Where there is no datum, the x of one that is there (as good as any), and y = 0.

    Where there is none at all all are taken for there, and y is NaN: a start that is not finite.
    """
    if is_concrete(mask) and not np.any(np.asarray(mask)):
        raise ValueError("`ydata` must not be empty: all of it is NaN, or left out by `mask`.")
    xp = _namespace(x, y, mask)
    first = xp.argmax(mask)

    def fill(leaf: PyTree) -> PyTree:
        if not _is_array(leaf) or leaf.shape[-1:] != (y.size,):
            return leaf
        there = xp.take(leaf, first, axis=-1)
        return xp.where(mask, leaf, there[..., None])

    some = xp.any(mask)
    y = xp.where(mask, y, xp.where(some, 0, xp.nan).astype(y.dtype))
    return jax.tree.map(fill, x), y, mask | ~some


def _check_values(x: PyTree, y: PyTree, what: str) -> None:
    leaves = [leaf for leaf in jax.tree.leaves((x, y)) if _is_array(leaf) and is_concrete(leaf)]
    for leaf in leaves:
        values = np.asarray(leaf)
        if values.dtype.kind not in "fc":
            continue
        if what == "nan" and np.isnan(values).any():
            raise ValueError("The input contains nan values: `xdata` or `ydata`.")
        if what == "finite" and not np.isfinite(values).all():
            raise ValueError("array must not contain infs or NaNs: `xdata` or `ydata` does.")


def _weight(sigma: PyTree, y: PyTree, mask: PyTree, dtype: DTypeLike) -> PyTree:
    """1 / sigma, or the factor of the covariance sigma."""
    if jnp.iscomplexobj(sigma) or not jnp.issubdtype(sigma.dtype, np.number):
        raise ValueError(f"`sigma` must be real numbers, got dtype {sigma.dtype}.")
    sigma, m = sigma.astype(dtype), y.size
    if sigma.size == 1:
        return 1 / sigma.reshape(())
    if sigma.shape == (m,):
        return _check_factor(1 / sigma) if mask is None else _masked_inverse(sigma, mask)
    if sigma.shape != (m, m):
        raise ValueError(
            f"`sigma` has incorrect shape: expected (), {(m,)} or {(m, m)}, got {sigma.shape}."
        )
    if mask is not None:
        xp = _namespace(sigma, mask)
        sigma = xp.where(mask[:, None] & mask[None, :], sigma, xp.eye(m, dtype=dtype))
    sigma = jnp.asarray(sigma)
    size = jnp.sqrt(jnp.diagonal(sigma))  # entry by entry: data may be in units of their own
    rounding = jnp.finfo(dtype).eps ** 0.5 * size[:, None] * size[None, :]
    symmetric = jnp.all(jnp.abs(sigma - sigma.T) <= rounding)
    factor = jnp.where(symmetric, jnp.linalg.cholesky(sigma), jnp.nan)
    if is_concrete(factor) and not np.all(np.isfinite(np.asarray(factor))):
        raise ValueError("`sigma` must be symmetric and positive definite.")
    return factor


def _errors_of_x(sigma_x: PyTree, x: PyTree, y: PyTree, weight: PyTree, mask: PyTree) -> PyTree:
    """The standard deviations of x, of its shape."""
    if not _is_array(x) or x.shape[-1:] != y.shape or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"`sigma_x` takes real `xdata` of shape (..., m) and `ydata` of shape (m,), got "
            f"{x.shape if _is_array(x) else type(x).__name__} and {y.shape}."
        )
    if weight is not None and weight.ndim == 2:
        raise ValueError("`sigma_x` takes `sigma` of shape () or (m,), not a matrix.")
    sigma_x = sigma_x if isinstance(sigma_x, jax.Array) else np.asarray(sigma_x)
    xp = _namespace(sigma_x, mask)
    try:
        spread = xp.broadcast_to(sigma_x, x.shape)
    except ValueError:
        raise ValueError(
            f"`sigma_x` must go with the shape of `xdata`, {x.shape}, got {sigma_x.shape}."
        ) from None
    if mask is not None:
        spread = xp.where(mask, spread, xp.zeros_like(spread))
    if is_concrete(spread) and not np.all(np.isfinite(spread) & (np.asarray(spread) >= 0)):
        raise ValueError(f"`sigma_x` must be finite and not negative, got {sigma_x}.")
    return xp.where(spread >= 0, spread, xp.nan).astype(x.dtype)


def _check_factor(weight: PyTree) -> PyTree:
    if is_concrete(weight) and not np.all(np.isfinite(np.asarray(weight))):
        raise ValueError("`sigma` must not be 0 or NaN.")
    return weight


def _masked_inverse(sigma: PyTree, mask: PyTree) -> PyTree:
    xp = _namespace(sigma, mask)
    return _check_factor(1 / xp.where(mask, sigma, xp.ones_like(sigma)))


def bounds_of(bounds: Bounds, fixed: PyTree, p0: PyTree) -> PyTree:
    """The bounds, closed on p0 where a parameter is fixed."""
    if fixed is None:
        return bounds
    if not is_concrete(fixed):
        raise TypeError(
            "`fixed` must be known when the fit is traced, got a traced value; for flags that are "
            "data give `bounds` with lb = ub = p0 there."
        )
    x = ravel(p0, jax.tree.leaves(p0)[0].dtype)
    as_numbers = jax.tree.map(lambda flag: np.asarray(flag, float), fixed)
    where = np.asarray(spread(as_numbers, 0.0, p0, x, "`fixed`")) != 0
    sides = [
        spread(side, missing, p0, x, "`bounds`")
        for side, missing in zip(_sides(bounds), (-np.inf, np.inf), strict=True)
    ]
    xp = _namespace(x, sides)
    restore = _restorer(p0)
    return tuple(restore(xp.where(where, x, side)) for side in sides)


def _restorer(p0: PyTree) -> Callable:
    """From a flat vector to the structure of p0; arrays of NumPy stay such."""
    leaves, treedef = jax.tree.flatten(p0)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]

    def restore(vector: PyTree) -> PyTree:
        pieces = (np if isinstance(vector, np.ndarray) else jnp).split(vector, ends)
        shaped = [p.reshape(np.shape(leaf)) for p, leaf in zip(pieces, leaves, strict=True)]
        return jax.tree.unflatten(treedef, shaped)

    return restore


def options_of(method: Any, options: Options) -> Options:
    """SciPy's keyword arguments, those of `leastsq` among them, as those of `least_squares`."""
    unsupported = {"args", "kwargs"} & set(options)
    if unsupported:
        raise ValueError(f"'{unsupported.pop()}' is not a supported keyword argument.")
    options = dict(options)
    maxfev = options.pop("maxfev", None)
    if "max_nfev" not in options:
        options["max_nfev"] = maxfev or None
    diag = options.pop("diag", None)
    if diag is not None:
        options["x_scale"] = 1 / jnp.asarray(diag)
    for no_effect in ("epsfcn", "factor"):  # of differences, and of the first step, in MINPACK
        options.pop(no_effect, None)
    return options
