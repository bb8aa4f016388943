"""A scalar function to be minimised, and how the problem is made of the user's objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, PyTree

from ..derivatives import AbstractJacobian, FiniteDifference, Gradient, named, traced
from ..jax_support.control_flow import vary_with
from ..jax_support.types import Args, Bounds, Number, Options
from ..results.minimize import MinimizeResult
from .arguments import (
    LOWER,
    UPPER,
    as_tuple,
    check_bounds,
    check_x0,
    real_array,
)
from .base import AbstractProblem, pulled_back, sizes
from .pytrees import Unravel, ravel, widest
from .user_function import UserFunction

SCHEMES = ("2-point", "3-point", "cs")


class MinimizationProblem(AbstractProblem):
    """A scalar function to be minimised, on flat vectors.

    Attributes
    ----------
    objective : callable (n,) -> ()
        Pure; itself a pytree, so that the arrays it closes over are inputs.
    derivative : AbstractJacobian
        How its gradient is computed.
    lower, upper : arrays, shape (n,)
        The box; infinite where there is no bound.
    bounded : bool, static
        Whether there is any bound at all: without one, no code for bounds is compiled.
    restore_x : callable, static
        From a flat vector back to the user's structure.
    """

    objective: Callable[[Array], Array]
    derivative: AbstractJacobian
    lower: Array
    upper: Array
    bounded: bool = eqx.field(static=True)
    restore_x: Unravel = eqx.field(static=True)

    @property
    def dense(self) -> bool:
        """Whether matrices of n columns are written out anyway."""
        return False

    def evaluate(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """f(x), (), in its own dtype."""
        return self.objective(x)

    def value_and_grad(self, x: Float[Array, " n"]) -> tuple[Float[Array, ""], Float[Array, " n"]]:
        """f(x) and its gradient (n,): the one evaluation of a step."""
        value, jacobian = self.derivative.linearize(
            _AsVector(self.objective), x, self.lower, self.upper
        )
        return value[0].astype(x.dtype), jacobian()[:, 0].astype(x.dtype)

    def gradient(self, x: Float[Array, " n"], unit: Array | float = 1.0) -> Float[Array, " n"]:
        """The gradient of f / unit; differentiable again."""
        return self._with_gradient(x, unit)[1]

    def _with_gradient(self, x: Array, unit: Array | float = 1.0) -> tuple[Array, Array]:
        return pulled_back(
            lambda x: self.objective(x).astype(x.dtype), x, lambda f: jnp.ones_like(f) / unit
        )

    def units(self, result: MinimizeResult) -> tuple[float, Array]:
        """Of f and of each variable, as for least squares; here nothing is squared."""
        return 1.0, sizes(result.x)

    def describe(self, x: Array) -> dict[str, Array]:
        """The fields of the `MinimizeResult` that follow from x."""
        value, grad = self._with_gradient(x)
        return {"fun": value, "jac": grad}

    @property
    def structures(self) -> dict[str, Unravel]:
        """By name, the fields of the `MinimizeResult` that have x's structure."""
        return dict.fromkeys(("x", "jac"), self.restore_x)


class _AsVector(eqx.Module):
    """A scalar function as one whose value has shape (1,)."""

    objective: Callable[[Array], Array]

    def __call__(self, x: Array) -> Array:
        return self.objective(x)[None]


class _Objective(eqx.Module):
    """What the user's function gives as one number."""

    fun: UserFunction
    pair: bool = eqx.field(static=True)  # whether it returns (value, gradient)

    def __call__(self, x: Array) -> Array:
        out = self.fun(x)
        return jnp.asarray(out[0] if self.pair else out).reshape(())

    def both(self, x: Array) -> tuple[Array, Array]:
        """The value and the user's gradient, (n,)."""
        value, gradient = self.fun(x)
        return jnp.asarray(value).reshape(()), ravel(gradient, x.dtype)


class _Together(AbstractJacobian):
    """A gradient that comes with the value: ``jac=True``."""

    objective: _Objective

    def linearize(self, fun: Callable, x: Array, lower: Array, upper: Array) -> PyTree:
        value, gradient = self.objective.both(x)
        return value[None].astype(x.dtype), lambda: gradient[:, None]


class _Gradient(AbstractJacobian):
    """A gradient that the user wrote."""

    jac: UserFunction

    def linearize(self, fun: Callable, x: Array, lower: Array, upper: Array) -> PyTree:
        gradient = ravel(self.jac(x), x.dtype)
        return fun(x), lambda: gradient[:, None]


def minimization_problem(
    fun: Callable[..., PyTree],
    x0: PyTree,
    *,
    args: Args = (),
    kwargs: Options | None = None,
    jac: Any = None,
    bounds: Bounds = None,
    eps: Number | None = None,
    finite_diff_rel_step: PyTree = None,
) -> tuple[MinimizationProblem, Array]:
    """Make a problem of the user's objective, to be solved by hand.

    Parameters
    ----------
    fun, x0, args, jac, bounds, eps, finite_diff_rel_step
        As for `minimize`.
    kwargs : dict, optional
        Further arguments of ``fun``.

    Returns
    -------
    problem : MinimizationProblem
    x0 : array, shape (n,)
        The flat first point; a solver begins by moving it into the box.

    Raises
    ------
    ValueError, TypeError
        As `minimize`.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> problem, x0 = ox.minimization_problem(lambda x: jnp.sum((x - 1) ** 2), jnp.zeros(2))
    >>> print(*problem.value_and_grad(x0))
    2.0 [-2. -2.]
    """
    if jax.tree_util.all_leaves([x0]) and jnp.ndim(x0) > 1:
        raise ValueError(
            f"'x0' must only have one dimension, got shape {jnp.shape(x0)}: put a matrix of "
            "parameters into a pytree, e.g. a dict."
        )
    tree = check_x0(x0)
    dtype = widest(leaf.dtype for leaf in jax.tree.leaves(tree))
    restore = Unravel.like(tree)
    x = ravel(tree, dtype)
    lower, upper, bounded = check_bounds(_as_two(bounds, restore, x), tree, x)
    args = as_tuple(args)
    objective = _lift_objective(fun, restore, args, kwargs, jac)
    x = vary_with(x, (objective.fun.out_shape, lower, upper))
    derivative = _derivative(jac, objective, restore, args, eps, finite_diff_rel_step)
    if isinstance(jac, AbstractJacobian):
        derivative = traced(derivative, _AsVector(objective), x, lower, upper)
    problem = MinimizationProblem(
        objective=objective,
        derivative=derivative,
        lower=lower,
        upper=upper,
        bounded=bounded,
        restore_x=restore,
    )
    return problem, x


def _lift_objective(fun: Any, restore: Unravel, args: tuple, kwargs: Any, jac: Any) -> _Objective:
    lifted = UserFunction.lifted(fun, restore, args, kwargs, complex_too=jac == "cs")
    pair = jac is True
    out = lifted.out_shape
    if pair and not (isinstance(out, (tuple, list)) and len(out) == 2):
        raise ValueError(f"With `jac=True`, `fun` must return (value, gradient), got {out}.")
    _check_value(out[0] if pair else out)
    if pair:
        _check_gradient(out[1], restore, "the gradient that `fun` returns")
    return _Objective(lifted, pair)


def _check_value(out: PyTree) -> None:
    leaves = jax.tree.leaves(out)
    if len(leaves) != 1 or int(np.prod(leaves[0].shape)) != 1:
        raise ValueError(
            f"The user-provided objective function `fun` must return a scalar value, got {out}."
        )
    if jnp.issubdtype(leaves[0].dtype, jnp.complexfloating):
        raise ValueError("`fun` must return a real value, got a complex one.")
    if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise TypeError(
            f"`fun` must return a floating value, for its gradient is asked for, got {out}."
        )


def _check_gradient(out: PyTree, restore: Unravel, name: str) -> None:
    got = [tuple(leaf.shape) for leaf in jax.tree.leaves(out)]
    expected = [shape for shape, _ in restore.leaves]
    if sum(map(_size, got)) != sum(map(_size, expected)):
        raise ValueError(f"Wrong shape of {name}: expected {expected}, got {got}.")


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def _derivative(
    jac: Any,
    objective: _Objective,
    restore: Unravel,
    args: tuple,
    eps: Number | None,
    rel_step: PyTree,
) -> AbstractJacobian:
    if isinstance(jac, AbstractJacobian):
        return jac
    if isinstance(jac, str) and jac in SCHEMES:
        if jac == "cs":
            return named(jac)
        return FiniteDifference(jac, rel_step=rel_step, abs_step=eps)
    if jac is None or jac is False:
        return Gradient()
    if jac is True:
        return _Together(objective)
    if callable(jac):
        lifted = UserFunction.lifted(jac, restore, args, name="`jac`")
        _check_gradient(lifted.out_shape, restore, "what `jac` returns")
        return _Gradient(lifted)
    raise ValueError(
        f"`jac` must be None, True, '2-point', '3-point', 'cs' or a callable, got {jac!r}."
    )


def _as_two(bounds: Bounds, restore: Unravel, x: Array) -> PyTree:
    """SciPy's pairs (min, max), one for each entry of a flat x, as (lower, upper)."""
    if bounds is None or not restore.is_flat:
        return bounds
    n = x.shape[0]
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        for side in (bounds.lb, bounds.ub):
            if np.size(side) not in (1, n):
                raise _wrong_number(n, np.size(side))
        return bounds
    if not isinstance(bounds, Iterable) or isinstance(bounds, (dict, str)):
        raise ValueError(f"`bounds` must be pairs (min, max), got {bounds!r}.")
    pairs = bounds if isinstance(bounds, (jax.Array, np.ndarray)) else list(bounds)
    if len(pairs) != n:
        raise _wrong_number(n, len(pairs))
    if not all(_is_pair(pair) for pair in pairs):
        raise ValueError(f"`bounds` must be pairs (min, max), got {bounds!r}.")
    return tuple(
        _stack([real_array(pair[k], missing, name) for pair in pairs], x.dtype)
        for k, missing, name in ((0, -np.inf, LOWER), (1, np.inf, UPPER))
    )


def _wrong_number(expected: int, got: int) -> ValueError:
    return ValueError(
        "`bounds`: The number of bounds is not compatible with the length of `x0`: "
        f"expected {expected}, got {got}."
    )


def _is_pair(pair: PyTree) -> bool:
    if isinstance(pair, (tuple, list)):
        return len(pair) == 2
    return jnp.shape(pair)[:1] == (2,)


def _stack(side: list[PyTree], dtype: DTypeLike) -> PyTree:
    traced = any(isinstance(value, jax.Array) for value in side)
    stacked = jnp.stack([jnp.asarray(v, dtype) for v in side]) if traced else np.array(side, dtype)
    if stacked.ndim != 1:
        raise ValueError(f"`bounds` must be pairs of numbers, got sides like {side[0]!r}.")
    return stacked
