"""Functions made of a jitted one, kept as long as that one lives.

JAX remembers what it traced by the identity of a function: of one that is made anew in each call it
remembers nothing. What is kept here holds the user's function by a weak reference, so that it, and
the data in it, are gone when the user lets go of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

_KEPT: weakref.WeakKeyDictionary[Callable, dict[Hashable, Callable]] = weakref.WeakKeyDictionary()


class _Weak:
    """A function by a weak reference."""

    def __init__(self, fun: Callable):
        self.of = weakref.ref(fun)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fun = self.of()
        assert fun is not None  # who calls has it
        return fun(*args, **kwargs)


def kept_with(fun: Callable, key: Hashable, make: Callable[[Callable], Callable]) -> Callable:
    """``make`` of a function that stands for ``fun``; for equal keys the same one each time."""
    kept = _KEPT.setdefault(fun, {})
    if key not in kept:
        kept[key] = make(_Weak(fun))
    return kept[key]
