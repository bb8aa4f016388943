"""What is seen of a solve while it runs: `callback` and `verbose`, also from compiled code.

The loop is compiled, and so is the call that leaves it for the host. What is called must not
stand in the compiled program, or each new callback would compile anew; so the program holds
one function, `_deliver`, and a number, the ticket, under which the host finds the `Listener`.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._result import CALLBACK_STOP, AbstractResult

HEADER = ("Iteration", "Total nfev", "{}", "{} reduction", "Step norm", "Optimality")


class Report(eqx.Module):
    """What the host is told after a step."""

    x: Array
    fun: Array
    value: Array
    reduction: Array
    step_norm: Array
    optimality: Array
    nit: Array
    nfev: Array


class AbstractListener:
    """Somebody on the host who is told of each step, and may end the solve.

    Attributes
    ----------
    keep_errors : bool
        Whether an error of the callback waits in ``error`` for the end of an eager solve; a
        compiled program has to raise it itself.
    """

    def __init__(self) -> None:
        self.keep_errors = True
        self.error: BaseException | None = None

    def step(self, report: Any, moved: bool) -> bool:
        """After a step; True asks for the end."""
        raise NotImplementedError

    def end(self, code: Any, nfev: Any, value: Any, optimality: Any) -> None:
        """After the last step."""

    def ask(self, callback: Callable[[], Any]) -> bool:
        """Whether the callback wants no more: by its answer, StopIteration or an error."""
        try:
            return bool(callback())
        except StopIteration:
            return True
        except BaseException as error:
            if not self.keep_errors:
                raise
            self.error = error
            return True


class Listener(AbstractListener):
    """The host's end: prints what `verbose` asks for and calls the user's callback.

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
        self.by_result = callback is not None and _wants_result(callback)
        self.initial_value: float | None = None

    def step(self, report: Report, moved: bool) -> bool:
        """After a step; True asks for the end."""
        first = self.initial_value is None
        if first:
            self.initial_value = float(report.value)
            if self.verbose == 2:
                print("".join(f"{title.format(self.kind.VALUE):^15}" for title in HEADER))
        if self.verbose == 2 and (moved or first):
            print(_row(report, first))
        if self.callback is None or not moved:
            return False
        return self.ask(lambda: self._call(report))

    def end(self, code: Any, nfev: Any, value: Any, optimality: Any) -> None:
        """After the last step."""
        if self.verbose and self.initial_value is not None:
            name = self.kind.VALUE.lower()
            print(self.kind.MESSAGES[int(code)])
            print(
                f"Function evaluations {int(nfev)}, initial {name} {self.initial_value:.4e}, "
                f"final {name} {float(value):.4e}, first-order optimality {float(optimality):.2e}."
            )
        self.initial_value = None

    def _call(self, report: Report) -> Any:
        x = self.restore(np.asarray(report.x))
        if not self.by_result:
            return self.callback(x)
        told = {
            "x": x,
            "fun": report.fun,
            self.kind.VALUE.lower(): report.value,
            "optimality": report.optimality,
            "nfev": int(report.nfev),
            "nit": int(report.nit),
            "status": 0,
        }
        fields = {field.name: told.get(field.name) for field in dataclasses.fields(self.kind)}
        intermediate_result = self.kind(**fields)
        return self.callback(intermediate_result=intermediate_result)


def _wants_result(callback: Callable) -> bool:
    """SciPy's rule: the callback's only parameter is called ``intermediate_result``."""
    try:
        return set(inspect.signature(callback).parameters) == {"intermediate_result"}
    except (TypeError, ValueError):
        return False


def _row(report: Report, first: bool) -> str:
    reduction = " " * 15 if first else f"{float(report.reduction):^15.2e}"
    step_norm = " " * 15 if first else f"{float(report.step_norm):^15.2e}"
    return (
        f"{int(report.nit):^15}{int(report.nfev):^15}{float(report.value):^15.4e}"
        f"{reduction}{step_norm}{float(report.optimality):^15.2e}"
    )


_LISTENERS: dict[int, AbstractListener] = {}
_TICKETS = itertools.count(1)


def register(listener: AbstractListener) -> Watch:
    """Make a listener reachable from compiled code."""
    ticket = next(_TICKETS)
    _LISTENERS[ticket] = listener
    return Watch(jnp.asarray(ticket, jnp.int32))


def forget(watch: Watch) -> None:
    """Let go of a listener whose solve has ended."""
    _LISTENERS.pop(int(watch.ticket), None)


def _deliver(ticket: Any, active: Any, moved: Any, report: Report) -> Any:
    stop = bool(active) and _LISTENERS[int(ticket)].step(report, bool(moved))
    return np.asarray(stop)


def _deliver_end(ticket: Any, *what: Any) -> None:
    _LISTENERS[int(ticket)].end(*what)


class Watch(eqx.Module):
    """The compiled end: sends a report after each step."""

    ticket: Array

    def step(self, report: Report, active: Array, moved: Array, status: Array) -> Array:
        """The status, perhaps changed to "stopped by callback"."""
        stop = self.asks_for_the_end(report, active, moved)
        return jnp.where(stop, CALLBACK_STOP, status).astype(status.dtype)

    def asks_for_the_end(self, report: Any, active: Array, moved: Array) -> Array:
        """Tell the host; whether it wants no more."""
        # Not io_callback, which `vmap` refuses in a while loop. The answer is used, so the call
        # is not dropped, and the loop keeps the order.
        return jax.pure_callback(
            _deliver,
            jax.ShapeDtypeStruct((), bool),
            self.ticket,
            active,
            moved,
            report,
            vmap_method="sequential",
        )

    def end(self, result: Any) -> None:
        """After the last step."""
        jax.debug.callback(
            _deliver_end, self.ticket, result.code, result.nfev, result.value, result.optimality
        )
