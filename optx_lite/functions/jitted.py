"""Functions under `jax.jit`: JAX says whether it would trace one again.

`fun.trace(...).jaxpr` is one and the same object as long as JAX keeps its trace of the function
for such arguments and settings: after `clear_cache`, or under another precision, it is another.
So what was made of the function is good for as long as that object is what JAX gives, and is found
by the function. Neither is kept alive: arrays that a trace captured are let go when JAX lets go of
the trace, as `clear_cache` does.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import jax
from jax.core import Tracer

from .jax_internals import ClosedJaxpr, Jaxpr, is_call_of
from .lifted import Lifted, is_dynamic

Trace = ClosedJaxpr | Jaxpr

# For each function the latest of JAX's traces, by their ids, and what was made of each.
_MADE: weakref.WeakKeyDictionary[Callable, dict[int, tuple[weakref.ref[Trace], Lifted]]]
_MADE = weakref.WeakKeyDictionary()
_MOST_TRACES = 64
_LOCK = threading.Lock()
_JITTED = type(jax.jit(lambda: None))


def is_jitted(fun: Callable) -> bool:
    """Whether it is under `jax.jit`, so that JAX calls it when it has to trace, and only then."""
    return type(fun) is _JITTED


def trace_of(fun: Callable, examples: tuple) -> Trace | None:
    """JAX's own trace of a function under `jax.jit`; None if nothing can be kept of it."""
    if not is_jitted(fun):
        return None
    if any(not is_dynamic(x) or isinstance(x, Tracer) for x in jax.tree.leaves(examples)):
        return None
    try:
        return fun.trace(*examples).jaxpr  # type: ignore[attr-defined]
    except Exception:  # which `lift` explains
        return None


def made_before(fun: Callable, trace: Trace | None) -> Lifted | None:
    """What `keep` was given for this very trace."""
    if trace is None or (made := _MADE.get(fun)) is None:
        return None
    of_trace, lifted = made.get(id(trace), (None, None))
    return lifted if of_trace is not None and of_trace() is trace else None


def keep(
    fun: Callable, trace: Trace | None, closed: ClosedJaxpr, captured: list, lifted: Lifted
) -> None:
    """Keep what was made of ``closed``, if that does nothing but call the function's trace.

    Not where it captured a tracer, which lives no longer than this call, or an array of NumPy's,
    which may change.
    """
    if trace is None or not is_call_of(closed, trace):
        return
    if all(isinstance(x, jax.Array) and not isinstance(x, Tracer) for x in captured):
        with _LOCK:
            made = _MADE.setdefault(fun, {})
            made[id(trace)] = weakref.ref(trace, _forget(made, id(trace))), lifted
            if len(made) > _MOST_TRACES:
                oldest, *_ = list(made)  # a trace may end, and go, in between
                made.pop(oldest, None)


def _forget(made: dict, key: int) -> Callable:
    """A callback for the end of a trace; its id may be that of another by then."""

    def forget(of_trace: weakref.ref) -> None:
        if made.get(key, (None,))[0] is of_trace:
            made.pop(key, None)

    return forget
