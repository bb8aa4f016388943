"""A nonlinear least-squares problem, and how it is made of the user's functions.

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
from jax.experimental.sparse import BCOO
from jaxtyping import Array, DTypeLike, Float, PyTree

from ..derivatives import AbstractJacobian, ComplexStep, resolve, traced
from ..derivatives.compressed import Compressed
from ..derivatives.sparsity import detected, sparsity
from ..derivatives.structured import AbstractStructured, MatrixFree, UserOperator, UserSparse
from ..jax_support.control_flow import vary_with
from ..jax_support.types import Bounds, Number, Options
from ..linalg import exponent, next_power_of_two, power_of_two
from ..linalg.jacobians import (
    Jacobian,
    JacobianOperator,
    as_result,
    cast_jacobian,
    column_sizes,
    scale_rows,
    without_columns,
)
from ..linalg.operators import AbstractOperator
from ..results.least_squares import Result
from .arguments import (
    as_tuple,
    check_bounds,
    check_finite,
    check_inside,
    check_x0,
    shape_of,
)
from .base import AbstractProblem, pulled_back, sizes
from .losses import Loss, check_loss
from .pytrees import Unravel, ravel, widest
from .user_function import UserFunction

MATRIX_FREE = "matrix-free"


@jax.custom_jvp
def _cost(loss: Loss, f: Float[Array, " m"]) -> Float[Array, ""]:
    """The cost, with a derivative that is in range even where the square of f is not."""
    return loss.cost(f)


@_cost.defjvp
def _cost_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (loss, f), (d_loss, d_f) = primals, tangents
    unit = next_power_of_two(jnp.max(jnp.abs(f)))
    _, by_loss = jax.jvp(lambda loss: loss.cost(f, unit), (loss,), (d_loss,))
    return _cost(loss, f), jnp.sum(loss.slope(f) * d_f) + by_loss * unit * unit


class LeastSquaresProblem(AbstractProblem):
    """A nonlinear least-squares problem on flat vectors.

    Attributes
    ----------
    residuals : callable (n,) -> (m,)
        Pure; itself a pytree, so that the arrays it closes over are inputs.
    jacobian : AbstractJacobian
        How its Jacobian is computed.
    loss : Loss
        rho and C.
    lower, upper : arrays, shape (n,)
        The box; infinite where there is no bound.
    bounded : bool, static
        Whether there is any bound at all: without one, no code for bounds is compiled.
    precision : float, static
        Machine epsilon of the coarser of the dtypes of x and f.
    restore_x, restore_f : callables, static
        From flat vectors back to the user's structures.
    """

    residuals: Callable[[Array], Array]
    jacobian: AbstractJacobian | AbstractStructured
    loss: Loss
    lower: Array
    upper: Array
    bounded: bool = eqx.field(static=True)
    precision: float = eqx.field(static=True)
    restore_x: Unravel = eqx.field(static=True)
    restore_f: Unravel = eqx.field(static=True)

    @property
    def dense(self) -> bool:
        """Whether matrices of n columns are written out anyway."""
        return not isinstance(self.jacobian, AbstractStructured)

    def evaluate(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """f(x), (m,), in its own dtype."""
        return self.residuals(x)

    def linearize(self, x: Array) -> tuple[Array, Callable[[], Array]]:
        """f(x), and a thunk for the transposed Jacobian (n, m): the one evaluation of a step."""
        f, jacobian = self.jacobian.linearize(self.residuals, x, self.lower, self.upper)
        return f.astype(x.dtype), lambda: cast_jacobian(jacobian(), x.dtype)

    def blank_jacobian(self, x: Array) -> JacobianOperator | None:
        """An operator of the form that `linearize` gives, of zeros; None where J is dense."""
        if not isinstance(self.jacobian, AbstractStructured):
            return None
        f = jax.eval_shape(self.residuals, x)
        return self.jacobian.blank(self.residuals, x, f.shape[0])

    @property
    def has_pattern(self) -> bool:
        """Whether the user said which entries of J may differ from 0."""
        return isinstance(self.jacobian, Compressed)

    def sparsity_mismatch(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """Above 1 in rows of which the pattern lacks an entry, (m,)."""
        assert isinstance(self.jacobian, Compressed)
        return self.jacobian.mismatch(self.residuals, x, self.lower, self.upper)

    def missing_entry(self, x: Array) -> tuple[int, int]:
        """Row and column of an entry that the pattern lacks; on the host."""
        assert isinstance(self.jacobian, Compressed)
        return self.jacobian.missing_entry(self.residuals, x, self.sparsity_mismatch(x))

    def weighted(
        self, f: Float[Array, " m"], jacobian: Jacobian, least_bend: float = 0.0
    ) -> tuple[Array, Jacobian]:
        """f and its Jacobian with the loss in them; fixed variables have no column."""
        if self.bounded:
            jacobian = without_columns(jacobian, self.lower == self.upper)
        if self.loss.is_linear:
            return f, jacobian
        row_weight, f_weight = self.loss.weights(f, least_bend)
        return f * f_weight, scale_rows(jacobian, row_weight)

    def cost(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """The objective, as a plain differentiable function of x and of all that is in here."""
        return self.loss.cost(self.residuals(x).astype(x.dtype))

    def gradient(self, x: Float[Array, " n"], unit: Array | float = 1.0) -> Float[Array, " n"]:
        """d (cost / unit) / d x; differentiable again."""
        return pulled_back(
            lambda x: self.residuals(x).astype(x.dtype), x, lambda f: self.loss.slope(f) / unit
        )[1]

    def units(self, result: Result) -> tuple[Float[Array, ""], Float[Array, " n"]]:
        """Of the residuals, and of each variable: powers of two which keep a Hessian in range.

        With cost / unit for cost, a change of a variable by its unit changes its derivative by
        about as much as an entry of the Jacobian.
        """
        # At the end f may be its rounding; the unit is that of what it is the difference of.
        if self.dense:
            largest = jnp.max(jnp.abs(result.jac), axis=0)
            terms = jnp.max(jnp.abs(result.jac) @ jnp.abs(result.x))
        else:
            largest = column_sizes(self.weighted(*self._linearized(result.x))[1])
            terms = jnp.max(largest * jnp.abs(result.x))
        of_f = next_power_of_two(jnp.maximum(jnp.max(jnp.abs(result.fun)), terms))
        of_x = power_of_two(exponent(of_f) - exponent(largest), of_f.dtype)
        return of_f, jnp.where(largest > 0, of_x, sizes(result.x))

    def describe(self, x: Array) -> dict[str, Array]:
        """The fields of the `Result` that follow from x, as differentiable functions of it."""
        f, jacobian = self._linearized(x)
        fields = {"cost": _cost(self.loss, f), "fun": f, "grad": self.gradient(x)}
        return fields | {"jac": as_result(self.weighted(f, jacobian)[1])}

    def _linearized(self, x: Array) -> tuple[Array, Jacobian]:
        f, jacobian = self.linearize(x)
        return f, jacobian()

    @property
    def structures(self) -> dict[str, Unravel]:
        """By name, the fields of the `Result` that have a structure of the user's, and which."""
        of_x = dict.fromkeys(("x", "grad", "active_mask"), self.restore_x)
        return {**of_x, "fun": self.restore_f}


class _Residuals(eqx.Module):
    """What the user's function gives as one flat vector."""

    fun: UserFunction

    def __call__(self, x: Array) -> Array:
        return _ravel_native(jax.tree.leaves(self.fun(x)))


class _Jacobian(eqx.Module):
    """What the user's Jacobian gives as one matrix."""

    jac: UserFunction
    blocks: tuple[tuple[tuple[int, int], ...], ...] = eqx.field(static=True)  # rows of shapes

    def __call__(self, x: Array) -> Array:
        leaves = iter(jax.tree.leaves(self.jac(x)))
        return jnp.concatenate(
            [
                jnp.concatenate(
                    [jnp.asarray(next(leaves)).reshape(shape).astype(x.dtype) for shape in row],
                    axis=1,
                )
                for row in self.blocks
            ]
        )


def least_squares_problem(
    fun: Callable[..., PyTree],
    x0: PyTree,
    *,
    jac: str | Callable | AbstractJacobian = "jacfwd",
    bounds: Bounds = (-np.inf, np.inf),
    loss: str | Callable = "linear",
    f_scale: Number = 1.0,
    diff_step: PyTree = None,
    jac_sparsity: PyTree = None,
    args: tuple = (),
    kwargs: Options | None = None,
) -> tuple[LeastSquaresProblem, Array]:
    """Make a problem of the user's functions, to be solved by hand.

    Parameters
    ----------
    fun, x0, jac, bounds, loss, f_scale, diff_step, jac_sparsity, args, kwargs
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
    tree = check_x0(x0)
    dtype = widest(leaf.dtype for leaf in jax.tree.leaves(tree))
    restore = Unravel.like(tree)
    x = ravel(tree, dtype)
    lower, upper, bounded = check_bounds(bounds, tree, x)
    check_finite(x)
    check_inside(x, lower, upper)
    args = as_tuple(args)
    scheme = _scheme(jac, diff_step)
    complex_too = isinstance(scheme, ComplexStep)
    residuals = _Residuals(UserFunction.lifted(fun, restore, args, kwargs, complex_too=complex_too))
    out = residuals.fun.out_shape
    _check_residuals(out)
    leaves = jax.tree.leaves(out)
    m = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    floats = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    precision = max(float(jnp.finfo(d).eps) for d in [dtype, *floats])
    if jac_sparsity is not None:
        scheme = _compressed(jac, scheme, jac_sparsity, residuals, x, m)
    elif isinstance(jac, AbstractJacobian):
        scheme = traced(jac, residuals, x, lower, upper)
    elif callable(jac):
        scheme = _users_scheme(jac, restore, args, kwargs, out, (m, x.size))
    problem = LeastSquaresProblem(
        residuals=residuals,
        jacobian=scheme,
        loss=check_loss(loss, f_scale, vary_with(jax.ShapeDtypeStruct((m,), dtype), out)),
        lower=lower,
        upper=upper,
        bounded=bounded,
        precision=precision,
        restore_x=restore,
        restore_f=_restorer(out, dtype),
    )
    return problem, x


def _scheme(jac: Any, diff_step: PyTree) -> AbstractJacobian | AbstractStructured:
    return MatrixFree() if isinstance(jac, str) and jac == MATRIX_FREE else resolve(jac, diff_step)


def _compressed(
    jac: Any,
    scheme: AbstractJacobian | AbstractStructured,
    pattern: PyTree,
    fun: Callable,
    x: Array,
    m: int,
) -> Compressed:
    """The scheme, by the colours of a pattern."""
    if not isinstance(jac, str) or isinstance(scheme, AbstractStructured):
        raise ValueError(
            "`jac_sparsity` is for jac='jacfwd', 'jacrev', '2-point', '3-point' and 'cs', got "
            f"{jac!r}."
        )
    if isinstance(pattern, str) and pattern == "auto":
        pattern = detected(fun, x)
    return Compressed.of(scheme, sparsity(pattern, (m, x.size)))


def _users_scheme(
    jac: Callable,
    restore: Unravel,
    args: tuple,
    kwargs: Options | None,
    f: PyTree,
    shape: tuple[int, int],
) -> AbstractJacobian | AbstractStructured:
    """A callable's: sparse, or by products, if that is what it returns."""
    lifted = UserFunction.lifted(jac, restore, args, kwargs, name="`jac`")
    if not isinstance(lifted.out_shape, (BCOO, AbstractOperator)):
        return resolve(_lift_jacobian(lifted, f, restore))
    if tuple(lifted.out_shape.shape) != shape:
        raise ValueError(
            f"The return value of `jac` has wrong shape: expected {shape}, "
            f"actual {tuple(lifted.out_shape.shape)}."
        )
    return (UserSparse if isinstance(lifted.out_shape, BCOO) else UserOperator)(lifted)


def _lift_jacobian(lifted: UserFunction, f: PyTree, restore: Unravel) -> _Jacobian:
    out = lifted.out_shape
    if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jax.tree.leaves(out)):
        raise ValueError("`jac` must return real values, got complex ones.")
    return _Jacobian(lifted, _blocks(out, f, restore.shapes()))


def _blocks(out: PyTree, f: PyTree, x: PyTree) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The shapes of the blocks that make up the Jacobian (m, n), in the order of out's leaves.

    ``out`` is one matrix; or what `jax.jacfwd` gives, a tree like x in each place of a tree like
    f; or a tree like x of all rows; or, as for SciPy, a list of rows.
    """
    of_f, of_x = jax.tree.leaves(f), jax.tree.leaves(x)
    rows, columns = [_size(leaf) for leaf in of_f], [_size(leaf) for leaf in of_x]
    m, n = sum(rows), sum(columns)
    got = [tuple(leaf.shape) for leaf in jax.tree.leaves(out)]
    if len(got) == 1 and _atleast_2d(got[0]) == (m, n):
        return (((m, n),),)
    if jax.tree.structure(out) == jax.tree.structure(f).compose(jax.tree.structure(x)):
        pairs = [(a, b) for a in of_f for b in of_x]
        whole = [(*a.shape, *b.shape) for a, b in pairs]
        flat = [(_size(a), _size(b)) for a, b in pairs]
        if all(shape in fits for shape, *fits in zip(got, whole, flat, strict=True)):
            return tuple(tuple((r, c) for c in columns) for r in rows)
    if jax.tree.structure(out) == jax.tree.structure(x):
        whole = [(m, *leaf.shape) for leaf in of_x]
        flat = [(m, c) for c in columns]
        if all(shape in fits for shape, *fits in zip(got, whole, flat, strict=True)):
            return (tuple(flat),)
    shape = _atleast_2d(shape_of(out))
    if shape == (m, n) and set(got) == {()}:
        return (((1, 1),) * n,) * m
    if shape == (m, n) and set(got) == {(n,)}:
        return (((1, n),),) * m
    raise ValueError(
        f"The return value of `jac` has wrong shape: expected {(m, n)}, or a pytree as "
        f"jax.jacfwd gives it, actual {shape if shape_of(out) else got}."
    )


def _atleast_2d(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (2 - len(shape)) + shape


def _size(leaf: PyTree) -> int:
    return int(np.prod(leaf.shape))


def _ravel_native(leaves: list[PyTree]) -> Array:
    """One vector of the leaves' common floating dtype."""
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    dtypes = [
        a.dtype if jnp.issubdtype(a.dtype, jnp.inexact) else jnp.result_type(float) for a in arrays
    ]
    dtype = max(dtypes, key=lambda d: (jnp.issubdtype(d, jnp.complexfloating), jnp.finfo(d).bits))
    return ravel(arrays, dtype)


def _restorer(out: PyTree, dtype: DTypeLike) -> Unravel:
    """Back to what `fun` returned; SciPy's kinds of return value become one flat array."""
    leaves = jax.tree.leaves(out)
    if jax.tree_util.all_leaves([out]) or _is_scalars(out):
        m = sum(int(np.prod(leaf.shape)) for leaf in leaves)
        return Unravel.like(jax.ShapeDtypeStruct((m,), dtype))
    return Unravel.like(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), out))


def _is_scalars(out: PyTree) -> bool:
    return type(out) in (list, tuple) and all(
        jax.tree_util.all_leaves([leaf]) and leaf.shape == () for leaf in out
    )


def _check_residuals(out: PyTree) -> None:
    leaves = jax.tree.leaves(out)
    if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in leaves):
        raise ValueError(
            "`fun` must return real residuals: return real and imaginary parts as two."
        )
    if jax.tree_util.all_leaves([out]) and len(out.shape) > 1:
        raise ValueError(
            f"`fun` must return at most 1-d array_like. f0.shape: {out.shape}. Return "
            "residuals.ravel(), or a pytree, e.g. a dict, whose leaves may have any shape."
        )
    if not leaves or sum(int(np.prod(leaf.shape)) for leaf in leaves) == 0:
        raise ValueError("`fun` must return at least one residual.")
    if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        kinds = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
        raise TypeError(
            f"`fun` must return floating-point residuals, got {kinds}: those have no derivative."
        )
