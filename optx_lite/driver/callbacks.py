"""What is seen of a solve while it runs: `callback` and `verbose`, also from compiled code.

The loop is compiled, and so is the call that leaves it for the host. What is called must not
stand in the compiled program, or each new callback would compile anew; so the program holds
one function, `_deliver`, and a number, the ticket, under which the host finds the `Listener`.

Where nothing is staged out, which includes eager `vmap`, `grad` and `jacfwd`, the solve has run
when the call returns: an exception of the callback ends the solve, and is raised then. A program
of `jit` runs later and many times, so it takes its ticket from a function of the host that holds
the listener, which is in use as long as that program is; and it has to raise exceptions itself.

Each lane of a `vmap` has a number, which the printed lines begin with; the copies of a lane that
fill up a chunk (see `driver.batching`) are silent.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jaxtyping import Array, PyTree

from ..jax_support.types import Options
from ..results.base import CALLBACK_STOP, AbstractResult
from ..solvers.base import Report

ALONE, SPARE = -1, -2  # numbers of lanes that are none

HEADER = ("Iteration", "Total nfev", "{}", "{} reduction", "Step norm", "Optimality")


class AbstractListener:
    """What gets each step on the host, and may end the solve.

    Attributes
    ----------
    keep_errors : bool
        Whether an exception of the callback waits in ``error`` for the end of the solve; a
        compiled program has to raise it itself.
    """

    def __init__(self) -> None:
        self.keep_errors = True
        self.error: BaseException | None = None

    def step(self, report: Report, moved: bool, lane: int) -> bool:
        """After a step; True asks for the end."""
        raise NotImplementedError

    def end(self, summary: Options, lane: int) -> None:
        """After the last step, with the fields that the result has in its SUMMARY."""

    def ask(self, callback: Callable[[], object]) -> bool:
        """Whether the callback asks for the end: by True, StopIteration or an exception."""
        if self.error is not None:  # in another lane
            return True
        try:
            answer = callback()
        except StopIteration:
            return True
        except BaseException as error:
            if not self.keep_errors:
                raise
            self.error = error
            return True
        return isinstance(answer, (bool, np.bool_)) and bool(answer)


class Listener(AbstractListener):
    """The host's end: prints what `verbose` asks for, and calls the user's callback.

    Parameters
    ----------
    callback : callable or None
        ``callback(intermediate_result)``, if its one parameter has that name, else
        ``callback(x)``.
    verbose : int
        0, 1 or 2, as in SciPy.
    restore : callable
        From a flat x to the user's structure.
    kind : type
        The class of the result: its messages, and what it calls the value that is minimised.
    """

    def __init__(self, callback: Any, verbose: int, restore: Callable, kind: type[AbstractResult]):
        super().__init__()
        self.callback = callback
        self.verbose = verbose
        self.restore = restore
        self.kind = kind
        self.by_result = takes_result(callback)
        self.initial_values: dict[int, float] = {}  # by lane

    def step(self, report: Report, moved: bool, lane: int) -> bool:
        """After a step; True asks for the end."""
        first = lane not in self.initial_values  # `end` takes it out again
        if first:
            self.initial_values[lane] = float(report.value)
        if self.verbose == 2 and first and lane <= 0:
            titles = [title.format(self.kind.VALUE) for title in HEADER]
            print(_in_lane("Lane", lane, "".join(f"{title:^15}" for title in titles)))
        if self.verbose == 2 and (moved or first):
            print(_in_lane(lane, lane, _row(report, first)))
        if self.callback is None or not moved:
            return False
        return self.ask(lambda: self._call(report))

    def end(self, summary: Options, lane: int) -> None:
        """After the last step."""
        initial = self.initial_values.pop(lane, None)
        if hasattr(self.callback, "end_lane"):
            self.callback.end_lane(lane)
        if not self.verbose:
            return
        result = self._record(summary)
        name = self.kind.VALUE.lower()
        which = f"Lane {lane}: " if lane >= 0 else ""
        print(f"{which}{result.message}")
        if initial is not None:
            print(
                f"{which}Function evaluations {int(result.nfev)}, initial {name} {initial:.4e}, "
                f"final {name} {float(result.value):.4e}, "
                f"first-order optimality {float(result.optimality):.2e}."
            )

    def _call(self, report: Report) -> PyTree:
        x = self.restore(np.asarray(report.x))
        if not self.by_result:
            return self.callback(x)
        known = {
            "x": x,
            "fun": report.fun,
            self.kind.VALUE.lower(): report.value,
            "optimality": report.optimality,
            "nfev": int(report.nfev),
            "nit": int(report.nit),
        }
        return self.callback(intermediate_result=self._record(known))

    def _record(self, known: Options) -> PyTree:
        """A result of which only this is known."""
        names = [field.name for field in dataclasses.fields(self.kind)]
        fields: Options = {name: known.get(name) for name in names}
        return self.kind(**fields)


def check_callback(callback: Callable | None) -> None:
    """Raise unless it can be called, before anything is compiled."""
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback` must be None or a callable, got {callback!r}.")


def takes_result(callback: Any) -> bool:
    """SciPy's rule: the callback's only parameter is called ``intermediate_result``."""
    if callback is None:
        return False
    try:
        return set(inspect.signature(callback).parameters) == {"intermediate_result"}
    except (TypeError, ValueError):
        return False


def _in_lane(what: object, lane: int, line: str) -> str:
    """A line of the table, after a column of lanes where there are any."""
    return f"{what:^8}{line}" if lane >= 0 else line


def _row(report: Report, first: bool) -> str:
    reduction = " " * 15 if first else f"{float(report.reduction):^15.2e}"
    step_norm = " " * 15 if first else f"{float(report.step_norm):^15.2e}"
    return (
        f"{int(report.nit):^15}{int(report.nfev):^15}{float(report.value):^15.4e}"
        f"{reduction}{step_norm}{float(report.optimality):^15.2e}"
    )


# Weak: a listener is held by the call that runs its solve, or by the program that may run it.
_LISTENERS: weakref.WeakValueDictionary[int, AbstractListener] = weakref.WeakValueDictionary()
_TICKETS = itertools.count(1)


def watched(
    solve: Callable[[Watch], PyTree], listener: AbstractListener, lanes_of: PyTree = ()
) -> PyTree:
    """Solve with a listener.

    Exceptions of the callback are raised here if the solve runs here, else by the program.
    ``lanes_of``: whatever may be batched; its lanes are numbered.
    """
    number = next(_TICKETS)
    _LISTENERS[number] = listener
    if is_staged():
        listener.keep_errors = False
        shape = jax.ShapeDtypeStruct((), jnp.int32)
        return solve(Watch(jax.pure_callback(_Holder(listener, number), shape), lane(lanes_of)))
    try:
        result = solve(Watch(jnp.asarray(number, jnp.int32), lane(lanes_of)))
        jax.effects_barrier()
    finally:
        del _LISTENERS[number]
    if listener.error is not None:
        raise listener.error
    return result


class _Holder:
    """Gives the ticket, and keeps the listener alive, for a program that holds this."""

    def __init__(self, listener: AbstractListener, ticket: int):
        self.listener = listener
        self.ticket = np.asarray(ticket, np.int32)

    def __call__(self) -> np.ndarray:
        return self.ticket


def is_staged() -> bool:
    """Whether an operation on plain arrays would become part of a program that runs later."""
    one = np.ones((), np.int32)
    return isinstance(lax.add(one, one), Tracer)


def lane(tree: PyTree) -> PyTree:
    """The number of the lane in which this runs, counted over all the `vmap`s that batch ``tree``.

    `ALONE` where none does.
    """
    leaves = jax.tree.leaves(tree)
    alone = np.full((), ALONE, np.int32)
    if not any(isinstance(leaf, Tracer) for leaf in leaves):
        return jnp.asarray(alone)
    leaves = [lax.stop_gradient(leaf) for leaf in leaves if isinstance(leaf, Tracer)]
    return _number_lanes(alone, *leaves)


@custom_vmap
def _number_lanes(inner: PyTree, *leaves: PyTree) -> PyTree:
    return jnp.asarray(inner)


@_number_lanes.def_vmap
def _number_outer_lanes(
    size: int, in_batched: list[bool], inner: PyTree, *leaves: PyTree
) -> PyTree:
    numbers = jnp.arange(size, dtype=jnp.int32)
    if inner.ndim:  # the lanes of a vmap further in
        numbers = numbers.reshape(-1, *[1] * inner.ndim) * inner.size + inner[None]
    return _number_lanes(numbers, *leaves), True


def _deliver(ticket: Array, lane: Array, active: Array, moved: Array, report: Report) -> PyTree:
    listener = _LISTENERS.get(int(ticket))
    if listener is None or not active or lane == SPARE:
        return np.asarray(False)
    return np.asarray(listener.step(report, bool(moved), int(lane)))


def _deliver_end(ticket: Array, lane: Array, summary: Options) -> None:
    listener = _LISTENERS.get(int(ticket))
    if listener is not None and lane != SPARE:
        listener.end(summary, int(lane))


class Watch(eqx.Module):
    """The compiled end: sends a report after each step."""

    ticket: Array
    lane: Array

    def silenced(self, spare: Array) -> Watch:
        """Without reports of lanes that only fill up a chunk."""
        return Watch(self.ticket, jnp.where(spare, SPARE, self.lane).astype(jnp.int32))

    def step(self, report: Report, active: Array, moved: Array, status: Array) -> Array:
        """The status, perhaps changed to "stopped by callback"."""
        stop = self.asks_for_the_end(report, active, moved)
        return jnp.where(stop, CALLBACK_STOP, status).astype(status.dtype)

    def asks_for_the_end(self, report: Report, active: Array, moved: Array) -> Array:
        """Send a report to the host; whether it asks for the end."""
        # Not io_callback, which `vmap` refuses in a while loop. The answer is used, so the call
        # is not dropped, and the loop keeps the order.
        return jax.pure_callback(
            _deliver,
            jax.ShapeDtypeStruct((), bool),
            self.ticket,
            self.lane,
            active,
            moved,
            jax.tree.map(lax.stop_gradient, report),
            vmap_method="sequential",
        )

    def end(self, result: PyTree) -> None:
        """After the last step."""
        summary = {name: getattr(result, name) for name in result.SUMMARY}
        summary = jax.tree.map(lax.stop_gradient, summary)
        jax.debug.callback(_deliver_end, self.ticket, self.lane, summary)
