"""What a derivative rule is: a function of JAX or of this package, or one that may change.

In a jaxpr the rule of a `jax.custom_jvp` or `jax.custom_vjp` is a Python function, made anew by
each trace and wrapped many times over. Two questions are asked of it here.

- Is it written in JAX or in this package? Then it is what its code says, and `fixed_token`
  writes down the code and what it closes over, so that two of them can be compared.
- Is it the same one as that of another equation of the same trace (`identity`)? Most rules call
  the function that they belong to, and one who follows them must see where he has been.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import jax.core
import numpy as np
from jaxtyping import PyTree

from ..jax_support.types import Options
from .jax_internals import PLUMBING, ClosedJaxpr, Jaxpr, parts_of
from .source_files import is_fixed_file

_FIXED_PACKAGES = frozenset({"jax", "jaxlib", __name__.partition(".")[0]})


class UnknownRule(Exception):
    """Nothing says that it is equal to another one."""


class FrozenCall:
    """What JAX calls in the place of a rule that was frozen."""

    def __init__(self, rules: Any, call: Callable):
        self.rules = rules
        self.call = call
        self.__name__ = call.__name__

    def __call__(self, *args: Any) -> PyTree:
        """As the function itself."""
        return self.call(*args)


# ---------------------------------------------------------------------------------------
# Functions of JAX and of this package, by what they are


def fixed_token(obj: Any, inner: Callable[[Any], Hashable]) -> Hashable:
    """A function, and what it closes over, as a hashable value; equal for equal functions.

    ``inner`` says what to write for a jaxpr, and for rules that were frozen (see
    `frozen_rules`).

    Raises
    ------
    UnknownRule
        If anything in it was written by others: what that reads may change.
    """
    return _Writer(inner).write(obj)


class _Writer:
    """Writes down one function; an object met again is written as the number of its first visit."""

    def __init__(self, inner: Callable[[Any], Hashable]):
        self.inner = inner
        self.seen: dict[int, int] = {}

    def write(self, obj: Any) -> Hashable:
        kind = type(obj)
        if obj is None or kind in (bool, int, str, bytes) or isinstance(obj, np.dtype):
            return kind, obj
        if kind in (float, complex):
            return kind, repr(obj)
        if isinstance(obj, (tuple, list)):
            return (kind, *map(self.write, obj))
        if id(obj) in self.seen:
            return "again", self.seen[id(obj)]
        self.seen[id(obj)] = len(self.seen)
        return self._compound(kind, obj)

    def _compound(self, kind: type, obj: Any) -> Hashable:
        if isinstance(obj, FrozenCall):
            return "frozen", obj.call.__name__, self.inner(obj.rules)
        if isinstance(obj, (Jaxpr, ClosedJaxpr)):
            return "jaxpr", self.inner(obj)
        if isinstance(obj, types.FunctionType):
            return self._function(obj)
        if isinstance(obj, types.MethodType):
            return "method", self.write(obj.__func__), self.write(obj.__self__)
        if isinstance(obj, functools.partial):
            return "partial", self.write(obj.func), self.write(obj.args), self._dict(obj.keywords)
        if isinstance(obj, jax.tree_util.PyTreeDef):
            return self._tree(obj)
        parts = parts_of(obj, _FIXED_PACKAGES)
        if parts is not None:
            return (kind, *map(self.write, parts))
        return self._of_jax(kind, obj)

    def _of_jax(self, kind: type, obj: Any) -> Hashable:
        """A value of one of JAX's classes: a type of arrays, a mesh."""
        by_value = (
            not callable(obj)
            or kind.__eq__ is not object.__eq__
            or isinstance(obj, jax.sharding.Mesh)  # one object for all that are equal
        )
        if kind.__module__.partition(".")[0] not in _FIXED_PACKAGES or not by_value:
            raise UnknownRule
        try:
            hash(obj)
        except TypeError:
            raise UnknownRule from None
        return kind, obj

    def _function(self, fun: types.FunctionType) -> Hashable:
        if not is_fixed_file(fun.__code__.co_filename):
            raise UnknownRule
        inside = _inside_plumbing(fun)
        if inside is None:
            inside = [cell.cell_contents for cell in fun.__closure__ or ()]
            inside += [fun.__defaults__, *sorted((fun.__kwdefaults__ or {}).items())]
        return (fun.__code__, *map(self.write, inside))

    def _dict(self, items: Options) -> Hashable:
        return tuple((name, self.write(value)) for name, value in sorted(items.items()))

    def _tree(self, tree: PyTree) -> Hashable:
        """A structure of pytrees, compared as JAX does: if no class of others is in it."""
        for kind, data in _nodes(tree):
            package = kind.__module__.partition(".")[0]
            if package not in _FIXED_PACKAGES and package != "builtins":
                raise UnknownRule
            if kind is jax.tree_util.Partial:
                self.write(data)
        return tree


def _nodes(tree: PyTree) -> Iterator[tuple[type, object]]:
    node = tree.node_data()
    if node is not None:
        yield node
    for child in tree.children():
        yield from _nodes(child)


def _inside_plumbing(fun: types.FunctionType) -> list | None:
    """What leads on to the rule in a wrapper of JAX's; None for other functions."""
    names = PLUMBING.get(fun.__qualname__)
    if names is None or not is_fixed_file(fun.__code__.co_filename):
        return None
    cells = dict(zip(fun.__code__.co_freevars, fun.__closure__ or (), strict=True))
    if not cells.keys() >= set(names):
        raise UnknownRule
    return [cells[name].cell_contents for name in names]


# ---------------------------------------------------------------------------------------
# The same rule within one trace


def identity(*rules: Any) -> tuple[tuple, list]:
    """Which functions these are, as ids and values; and the objects, to be kept with the ids."""
    objects: list = []

    def write(obj: Any) -> PyTree:
        if isinstance(obj, (tuple, list)):
            return tuple(map(write, obj))
        is_function = isinstance(obj, types.FunctionType)
        inside = _inside_plumbing(obj) if is_function else parts_of(obj, _FIXED_PACKAGES)
        if inside is not None and not hasattr(obj, "__wrapped__"):
            return tuple(map(write, inside))
        objects.append(obj)
        plain = isinstance(obj, (bool, int, str, jax.tree_util.PyTreeDef, jax.core.ShapedArray))
        return obj if plain else id(obj)

    return write(rules), objects
