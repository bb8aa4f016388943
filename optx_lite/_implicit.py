r"""The derivative of a solution: the implicit function theorem at the minimum.

The solution x(theta) of min f(x; theta), lower <= x <= upper, satisfies v_j g_j = 0, g the
gradient and v_j the distance to the bound which -g_j points to (1 where there is none).
Differentiated (Coleman & Li 1996, equation (2.3)):

    (V H + diag|g|) dx = -V dg + |g| db                                             (1)

H the exact Hessian of the cost, loss included (Gauss-Newton's J^T J is 6-18 % wrong where the
residual is not zero); dg the change of the gradient at fixed x; db that of the bound. A free
variable has g = 0 and follows -H^{-1} dg; an active one has v = 0 and follows its bound. With
dx = db + V^1/2 y it is symmetric and needs no tolerance that says what is active:

    (V^1/2 H V^1/2 + diag|g|) y = -V^1/2 (dg + H db)                                (2)

A singular system gets its solution of minimum norm. x0 has no influence: its derivative is 0.
Where the solve did not converge there is no derivative: it is NaN, unless asked otherwise.

(2) is solved by `lax.custom_linear_solve`, so the rule is a forward one which can be
transposed: jvp, vjp, jacfwd, jacrev, hessian and vmap of each work. Its cost is n
Hessian-vector products and one factorisation; above `DENSE` variables no matrix is formed, and
conjugate gradients take as many products as they need.

`UnrolledAdjoint` differentiates the iterations instead: for meta-learning, where the inner
solve is stopped early on purpose and its answer is a function of x0 too.
"""

from __future__ import annotations

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jaxtyping import Array

from ._bounds import coleman_li
from ._control_flow import explicit_spec, in_auto_mode, vary_like
from ._lanes import in_chunks
from ._lift import communicates
from ._loop import Checkpointed, FixedSteps, drive, drive_as_one
from ._monitor import is_staged
from ._result import AbstractResult
from .linalg import safe_sqrt, solve_by_products, solve_symmetric

DENSE = 200  # variables: up to here the Hessian is written out


class AbstractAdjoint(eqx.Module):
    """How a solve is differentiated."""

    def solve(self, solver: Any, problem: Any, x0: Array, watch: Any = None) -> AbstractResult:
        """Run to the end, with this derivative."""
        raise NotImplementedError


class ImplicitAdjoint(AbstractAdjoint):
    """The implicit function theorem at the solution; the default.

    Parameters
    ----------
    unconverged : 'nan' or 'ignore'
        What the derivative is where ``success`` is False: NaN (default), or whatever the formula
        gives at the point that was reached.
    """

    unconverged: str = eqx.field(static=True, default="nan")

    def __check_init__(self) -> None:
        if self.unconverged not in ("nan", "ignore"):
            raise ValueError(f"`unconverged` must be 'nan' or 'ignore', got {self.unconverged!r}.")

    def solve(self, solver: Any, problem: Any, x0: Array, watch: Any = None) -> AbstractResult:
        """Run to the end; the derivative is that of the minimum."""
        leaves, treedef = jax.tree.flatten((solver, problem, x0, watch))
        if not any(isinstance(leaf, Tracer) for leaf in leaves):
            return _run((treedef, self.unconverged), leaves)  # nothing to differentiate
        if is_staged():
            # For lanes of a `vmap` over a NumPy array, which JAX stages out in no custom rule.
            leaves = [jnp.copy(leaf) if isinstance(leaf, Tracer) else leaf for leaf in leaves]
        return _solve((treedef, self.unconverged), leaves)


class UnrolledAdjoint(AbstractAdjoint):
    """Through the iterations themselves.

    Parameters
    ----------
    steps : int, optional
        Run at most this many steps, as a scan: forward and reverse mode, memory in proportion
        to ``steps``. None: until converged, by recursive checkpointing; reverse mode only.
    checkpoints : int, optional
        How many states to keep when ``steps`` is None.
    """

    steps: int | None = eqx.field(static=True, default=None)
    checkpoints: int | None = eqx.field(static=True, default=None)

    def solve(self, solver: Any, problem: Any, x0: Array, watch: Any = None) -> AbstractResult:
        """Run, and let differentiation see every step."""
        if self.steps is not None:
            return drive(solver, problem, x0, watch, FixedSteps(self.steps))
        most = int(solver.most_steps(x0.shape[0]))
        return drive(solver, problem, x0, watch, Checkpointed(most, self.checkpoints))


@ft.partial(jax.jit, static_argnums=0)
def _run(static: Any, leaves: list[Array]) -> AbstractResult:
    treedef, _ = static
    solver, problem, x0, watch = jax.tree.unflatten(treedef, leaves)
    state = jax.eval_shape(solver.init, problem, x0)
    lane_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    def run(spare: Any, *leaves: Array) -> AbstractResult:
        solver, problem, x0, watch = jax.tree.unflatten(treedef, leaves)
        watch = None if watch is None else watch.silenced(spare)
        return drive_as_one(solver, problem, x0, watch)

    def spec_of(leaf: Any) -> PartitionSpec:
        values = jax.eval_shape(problem.evaluate, x0)
        like = values.ndim and leaf.shape[:1] == values.shape
        return explicit_spec(values) if like else PartitionSpec()

    def run_in_auto_mode(spare: Any, *leaves: Array) -> AbstractResult:
        return in_auto_mode(lambda *leaves: run(spare, *leaves), leaves, spec_of)

    if communicates((solver, problem)):  # its lanes have to run side by side
        return run_in_auto_mode(np.False_, *leaves)
    return in_chunks(run_in_auto_mode, lane_bytes, listened=watch is not None)(*leaves)


def _solve(static: Any, leaves: list[Array]) -> AbstractResult:
    result = _run(static, jax.tree.map(lax.stop_gradient, leaves))
    floats, others = eqx.partition(result, eqx.is_inexact_array)
    floats = _with_derivative(static, floats, result.success, leaves)
    return eqx.combine(floats, others)


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_derivative(
    static: Any, floats: AbstractResult, success: Array, leaves: list[Array]
) -> AbstractResult:
    """What of a result may have a derivative, with the one that is due to the problem's leaves."""
    return floats


@_with_derivative.defjvp
def _with_derivative_jvp(static: Any, primals: Any, tangents: Any) -> Any:
    floats, success, leaves = primals
    floats = _with_derivative(static, floats, success, leaves)
    moved = _tangents(static, floats.x, success, leaves, tangents[2])
    d_floats = eqx.tree_at(
        lambda r: [getattr(r, name) for name in moved],
        jax.tree.map(jnp.zeros_like, floats),
        list(moved.values()),
    )
    return floats, vary_like(d_floats, floats)


def no_tangent(value: Array) -> Any:
    """The tangent of what does not move."""
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return jnp.zeros_like(value)
    return np.zeros(value.shape, jax.dtypes.float0)


@ft.partial(jax.jit, static_argnums=0)
def _tangents(
    static: Any, x: Array, success: Array, leaves: list[Array], dots: list[Any]
) -> dict[str, Array]:
    """d x by (2), and with it d of the fields which follow from x."""
    treedef, unconverged = static
    moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def problem_of(values: list[Array]) -> Any:
        full = list(leaves)
        for i, value in zip(moving, values, strict=True):
            full[i] = value
        return jax.tree.unflatten(treedef, full)[1]

    values, d_values = [leaves[i] for i in moving], [dots[i] for i in moving]
    problem, d_problem = jax.jvp(lambda v: _arrays(problem_of(v)), (values,), (d_values,))
    problem = problem_of(values)
    grad, d_grad = jax.jvp(lambda v: problem_of(v).gradient(x), (values,), (d_values,))
    d_bound, root, weight = _bound_terms(problem, d_problem, x, grad)

    def hessian_times(p: Array) -> Array:
        return jax.jvp(problem.gradient, (x,), (p,))[1]

    if x.shape[0] <= DENSE:
        hessian = jax.vmap(hessian_times)(vary_like(jnp.eye(x.shape[0], dtype=x.dtype), x))
        matrix = root[:, None] * hessian * root[None, :] + jnp.diag(weight)
        rhs = -root * (d_grad + hessian @ d_bound)
        y = lax.custom_linear_solve(
            lambda y: matrix @ y, rhs, lambda _, b: solve_symmetric(matrix, b), symmetric=True
        )
    else:
        y = lax.custom_linear_solve(
            lambda y: root * hessian_times(root * y) + weight * y,
            -root * (d_grad + hessian_times(d_bound)),
            solve_by_products,
            symmetric=True,
        )
    d_x = d_bound + root * y
    if unconverged == "nan":
        # A factor, since a NaN that is only chosen would be lost when this is transposed.
        d_x = d_x * jnp.where(success, 1, jnp.nan).astype(x.dtype)

    def describe(x: Array, values: list[Array]) -> dict[str, Array]:
        return problem_of(values).describe(x)

    _, described = jax.jvp(describe, (x, values), (d_x, d_values))
    return {"x": d_x, **described}


def _arrays(problem: Any) -> tuple[Array, Array]:
    return problem.lower, problem.upper


def _bound_terms(
    problem: Any, d_problem: tuple[Array, Array], x: Array, grad: Array
) -> tuple[Array, Array, Array]:
    """d b, V^1/2 and |g v'| of (2)."""
    if not problem.bounded:
        zero = jnp.zeros_like(x)
        return zero, jnp.ones_like(x), zero
    d_lower, d_upper = d_problem
    distance, side = coleman_li(x, grad, problem.lower, problem.upper)
    fixed = problem.lower == problem.upper
    distance = jnp.where(fixed, 0, distance)
    d_bound = jnp.where(side < 0, d_upper, jnp.where((side > 0) | fixed, d_lower, 0))
    weight = jnp.where(fixed, 1, jnp.abs(grad * side))
    return d_bound, safe_sqrt(distance), weight
