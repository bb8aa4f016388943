"""How far a solve is: bars while it runs, and its history in buffers of fixed size.

A bar is a callback (see `driver.callbacks`), so that it goes on in compiled code too, in single
solves and in batches. A history stays on the device: the driver's loop with buffers in its carry.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ..jax_support.control_flow import while_loop
from ..problem.base import AbstractProblem
from ..problem.pytrees import ravel
from ..results.base import restored, to_host
from ..solvers import AbstractSolver
from ..solvers.traced import traced


class ProgressBar:
    """A callback that shows a bar of tqdm; extra ``optx-lite[progress]``.

    Of a single solve it counts accepted steps, with the value and the optimality beside them; of
    a batch, the lanes that are done. There every step of every lane calls the host, in some 20 us.

    Parameters
    ----------
    lanes : int, optional
        How many solves there are in a batch.
    **options
        Further arguments of ``tqdm.auto.tqdm``.

    Examples
    --------
    >>> import io, optx_lite as ox
    >>> with ox.ProgressBar(file=io.StringIO()) as bar:
    ...     res = ox.least_squares(lambda x: x**2 - 2.0, [1.0], callback=bar)
    >>> bar.count == res.nit
    True
    """

    def __init__(self, lanes: int | None = None, **options: Any):
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("A bar needs tqdm: pip install 'optx-lite[progress]'.") from error
        self.lanes = lanes
        self.count = 0
        unit = " steps" if lanes is None else " lanes"
        self.bar = tqdm(**{"total": lanes, "unit": unit} | options)

    def __call__(self, intermediate_result: PyTree) -> None:
        """After an accepted step."""
        if self.lanes is None:
            value, optimality = intermediate_result.value, intermediate_result.optimality
            name = intermediate_result.VALUE.lower()
            shown = {name: f"{float(value):.4g}", "optimality": f"{float(optimality):.1e}"}
            self.bar.set_postfix(shown, refresh=False)
            self._advance()

    def end_lane(self, lane: int) -> None:
        """After the last step of a solve."""
        if self.lanes is not None:
            self._advance()

    def _advance(self) -> None:
        self.count += 1
        self.bar.update()

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class History(eqx.Module):
    """What a solve reported, step by step; NaN beyond the last.

    Attributes
    ----------
    value, step_norm, optimality : arrays, shape (length,)
        What is minimised, the length of the last step and the first-order optimality, after each
        evaluation.
    count : array, shape (), int
        How many evaluations there were; more than ``length`` if the buffers were too short: then
        they hold the first ones.
    """

    value: Float[Array, " length"]
    step_norm: Float[Array, " length"]
    optimality: Float[Array, " length"]
    count: Int[Array, ""]


def record(
    solver: AbstractSolver, problem: AbstractProblem, x0: PyTree, length: int = 200
) -> tuple[PyTree, History]:
    """Run a solver, as `run` does, and keep its history.

    Inside ``jit`` and ``vmap`` too; the answer has no derivative, for which `run` is there.

    Parameters
    ----------
    solver : AbstractSolver
    problem : LeastSquaresProblem or MinimizationProblem
    x0 : array (n,) or pytree
        As for `run`.
    length : int
        Of the buffers.

    Returns
    -------
    result : Result or MinimizeResult
    history : History

    Raises
    ------
    ValueError
        For a ``length`` below 1, and for a start where the functions are not finite.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> problem, x0 = ox.least_squares_problem(lambda x: x**2 - 2.0, jnp.array([1.0]))
    >>> result, history = ox.record(ox.LevenbergMarquardt(), problem, x0)
    >>> int(history.count) == result.nfev, f"{history.value[0]:.2f}"
    (True, '0.50')
    """
    if not isinstance(length, (int, np.integer)) or length < 1:
        raise ValueError(f"`length` must be an integer of at least 1, got {length!r}.")
    x = ravel(x0, problem.lower.dtype)
    result, history = _record(traced(solver, problem, x), problem, x, int(length))
    result = to_host(eqxi.nondifferentiable(result, name="optx_lite.record"))
    if isinstance(result.status, int) and result.status in solver.BAD_STARTS:
        raise ValueError(result.message)
    return restored(result, problem.structures), history


@eqx.filter_jit
def _record(
    solver: AbstractSolver, problem: AbstractProblem, x: Array, length: int
) -> tuple[PyTree, History]:
    blank = jnp.full((length,), jnp.nan, x.dtype)
    history = History(blank, blank, blank, jnp.zeros((), jnp.int32))

    def turn(carry: tuple[PyTree, History]) -> tuple[PyTree, History]:
        state, past = carry
        after = solver.step(problem, state)
        report, _ = solver.report(problem, state, after)

        def put(buffer: Array, number: Array) -> Array:  # beyond the end nothing is kept
            return buffer.at[past.count].set(number.astype(buffer.dtype), mode="drop")

        return after, History(
            put(past.value, report.value),
            put(past.step_norm, report.step_norm),
            put(past.optimality, report.optimality),
            past.count + 1,
        )

    start = solver.init(problem, x), history
    state, history = while_loop(lambda carry: solver.running(problem, carry[0]), turn, start)
    return solver.finish(problem, state), history
