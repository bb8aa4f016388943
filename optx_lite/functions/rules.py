"""What stands behind the rule of a function that has its own derivative.

In a jaxpr the rule of a `jax.custom_jvp` or `jax.custom_vjp` is a Python function, made anew by
each trace and wrapped many times over. Three questions are asked of it here.

- Is it written in JAX or in this package? Then it is what its code says, and `fixed_token`
  writes down the code and what it closes over, so that two of them can be compared.
- Is it the same one as that of another equation of the same trace (`identity`)? Most rules call
  the function that they belong to, and one who follows them must see where he has been.
- What does it compute (`trace`)? That may be asked of every rule.

All that is known here of JAX's inside, and not promised by JAX, is in `_PLUMBING`, in the
parameters of the two equations and in what `_is_left_over` reads. If JAX changes it, a rule is
taken for one that nothing is known of: functions with such rules then compile anew each time,
and `tests/test_lift.py` says so.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np
from jax.extend import core
from jax.interpreters import ad

from .source_files import is_fixed_file

# JAX's own wrappers of a rule, and which of their variables lead on to it.
_PLUMBING = {
    "_memoize.<locals>.memoized": ("fn",),
    "DynamicJaxprTrace.process_custom_jvp_call.<locals>.jvp_jaxpr_thunk": ("jvp", "in_avals"),
    "DynamicJaxprTrace.process_custom_vjp_call.<locals>.fwd_jaxpr_from_zeros": ("fwd", "in_avals"),
    "lift_jvp.<locals>.jvp": ("jvp_jaxpr_fun", "num_consts"),
    "lift_fwd.<locals>.fwd": ("fwd_jaxpr_thunk", "num_consts"),
    "_custom_jvp_call_dce.<locals>.dce_jvp_jaxpr_thunk": ("jvp_jaxpr_fun", "used_outs"),
    "_custom_vjp_call_dce.<locals>.dce_fwd_jaxpr_thunk": ("fwd_jaxpr_thunk", "used_outs"),
    "_custom_vjp_call_dce.<locals>.dce_bwd": ("bwd", "used_outs"),
    # The structure of results, which follows from the rest.
    "transformation_with_aux2.<locals>.<lambda>": (),
}
_FIXED_PACKAGES = frozenset({"jax", "jaxlib", __name__.partition(".")[0]})


class UnknownRule(Exception):
    """Nothing says that it is equal to another one."""


class FrozenCall:
    """What JAX calls in the place of a rule that was frozen."""

    def __init__(self, rules: Any, call: Callable):
        self.rules = rules
        self.call = call
        self.__name__ = call.__name__

    def __call__(self, *args: Any) -> Any:
        """As the function itself."""
        return self.call(*args)


# ---------------------------------------------------------------------------------------
# Functions of JAX and of this package, by what they are


def fixed_token(obj: Any, inner: Callable[[Any], Any]) -> Any:
    """A function, and what it closes over, as a hashable value; equal for equal functions.

    ``inner`` says what to write for a jaxpr, and for rules that were frozen (see
    `optx_lite._jaxpr`).

    Raises
    ------
    UnknownRule
        If anything in it was written by others: what that reads may change.
    """
    return _Writer(inner).write(obj)


class _Writer:
    """Writes down one function; an object met again is written as the number of its first visit."""

    def __init__(self, inner: Callable[[Any], Any]):
        self.inner = inner
        self.seen: dict[int, int] = {}

    def write(self, obj: Any) -> Any:
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

    def _compound(self, kind: type, obj: Any) -> Any:
        if isinstance(obj, FrozenCall):
            return "frozen", obj.call.__name__, self.inner(obj.rules)
        if isinstance(obj, (core.Jaxpr, core.ClosedJaxpr)):
            return "jaxpr", self.inner(obj)
        if isinstance(obj, types.FunctionType):
            return self._function(obj)
        if isinstance(obj, types.MethodType):
            return "method", self.write(obj.__func__), self.write(obj.__self__)
        if isinstance(obj, functools.partial):
            return "partial", self.write(obj.func), self.write(obj.args), self._dict(obj.keywords)
        if isinstance(obj, jax.tree_util.PyTreeDef):
            return self._tree(obj)
        parts = _parts(obj)
        if parts is not None:
            return (kind, *map(self.write, parts))
        return self._of_jax(kind, obj)

    def _of_jax(self, kind: type, obj: Any) -> Any:
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

    def _function(self, fun: types.FunctionType) -> Any:
        if not is_fixed_file(fun.__code__.co_filename):
            raise UnknownRule
        inside = _inside_plumbing(fun)
        if inside is None:
            inside = [cell.cell_contents for cell in fun.__closure__ or ()]
            inside += [fun.__defaults__, *sorted((fun.__kwdefaults__ or {}).items())]
        return (fun.__code__, *map(self.write, inside))

    def _dict(self, items: dict[str, Any]) -> Any:
        return tuple((name, self.write(value)) for name, value in sorted(items.items()))

    def _tree(self, tree: Any) -> Any:
        """A structure of pytrees, compared as JAX does: if no class of others is in it."""
        for kind, data in _nodes(tree):
            package = kind.__module__.partition(".")[0]
            if package not in _FIXED_PACKAGES and package != "builtins":
                raise UnknownRule
            if kind is jax.tree_util.Partial:
                self.write(data)
        return tree


def _nodes(tree: Any) -> Iterator[tuple[type, Any]]:
    node = tree.node_data()
    if node is not None:
        yield node
    for child in tree.children():
        yield from _nodes(child)


def _parts(obj: Any) -> list | None:
    """What an object of JAX that stands for a function is made of; None for other objects."""
    if _is_wrapped(obj):
        statics = [value for _, values in obj.transforms for value in values]
        names = [transform.__qualname__ for transform, _ in obj.transforms]
        return [*_essential(statics), *names, obj.f]
    if isinstance(obj, jax.custom_jvp):
        return [obj.fun, obj.jvp, obj.nondiff_argnums, obj.symbolic_zeros]
    if isinstance(obj, jax.custom_vjp):
        return [obj.fun, obj.fwd, obj.bwd, obj.nondiff_argnums, obj.symbolic_zeros]
    if isinstance(obj, jax.custom_batching.custom_vmap):
        return [obj.fun, obj.vmap_rule]
    module = type(obj).__module__.partition(".")[0]
    if module in _FIXED_PACKAGES:
        for name in ("val", "rule", "__wrapped__"):  # static argument, rule of vmap, jax.jit
            if hasattr(obj, name):
                return [getattr(obj, name)]
    return None


def _is_wrapped(obj: Any) -> bool:
    return all(hasattr(obj, name) for name in ("f", "transforms", "call_wrapped"))


def _essential(values: list) -> list:
    """Without what is there for messages only."""
    return [value for value in values if not isinstance(value, core.DebugInfo)]


def _inside_plumbing(fun: types.FunctionType) -> list | None:
    names = _PLUMBING.get(fun.__qualname__)
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

    def write(obj: Any) -> Any:
        if isinstance(obj, (tuple, list)):
            return tuple(map(write, obj))
        inside = _inside_plumbing(obj) if isinstance(obj, types.FunctionType) else _parts(obj)
        if inside is not None and not hasattr(obj, "__wrapped__"):
            return tuple(map(write, inside))
        objects.append(obj)
        plain = isinstance(obj, (bool, int, str, jax.tree_util.PyTreeDef, jax.core.ShapedArray))
        return obj if plain else id(obj)

    return write(rules), objects


# ---------------------------------------------------------------------------------------
# What they compute


class Traced(NamedTuple):
    """The rules of a function as closed jaxprs.

    Attributes
    ----------
    jaxprs : list of ClosedJaxpr
        Of a `custom_jvp`: tangents of the results from arguments and tangents. Of a
        `custom_vjp`: the forward pass, and the backward one.
    zeros : list
        Of a `custom_jvp`: bools, which tangents of results are zero. Of a `custom_vjp`: for each
        argument None, or the zero that its cotangent is.
    residuals : list or None
        Of a `custom_vjp`: for each residual the number of the argument that it is, or None.
    """

    jaxprs: list
    zeros: list
    residuals: list | None


def is_custom(eqn: Any) -> bool:
    """Whether it calls a function with a derivative rule of its own."""
    return "jvp_jaxpr_fun" in eqn.params or "fwd_jaxpr_thunk" in eqn.params


def rules_of(eqn: Any) -> tuple:
    """The Python functions which are its rules."""
    names = ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd")
    return tuple(eqn.params[name] for name in names if name in eqn.params)


def trace(eqn: Any) -> Traced:
    """Trace the rules of an equation.

    Raises
    ------
    UnknownRule
        If they are free to differ from call to call, or cannot be traced.
    """
    if eqn.params["symbolic_zeros"]:
        raise UnknownRule
    try:
        traced = _trace_jvp(eqn) if "jvp_jaxpr_fun" in eqn.params else _trace_vjp(eqn)
        left_over = any(_is_left_over(c) for jaxpr in traced.jaxprs for c in jaxpr.consts)
    except Exception as err:  # a rule of the user's may raise anything; it may never be needed
        raise UnknownRule from err
    if left_over:
        raise UnknownRule
    return traced


def _is_left_over(const: Any) -> bool:
    """Whether a rule captured a value of the function itself, whose trace is over."""
    if not isinstance(const, jax.core.Tracer):
        return False
    trace = core.get_opaque_trace_state()._trace_ref()
    while trace is not None and trace is not const._trace:
        trace = getattr(trace, "parent_trace", None)
    return trace is None


def _trace_jvp(eqn: Any) -> Traced:
    count = len(eqn.invars) - eqn.params["num_consts"]
    jaxpr, consts, zeros = eqn.params["jvp_jaxpr_fun"].call_wrapped(*[False] * count)
    return Traced([core.ClosedJaxpr(jaxpr, consts)], list(map(bool, zeros)), None)


def _trace_vjp(eqn: Any) -> Traced:
    params = eqn.params
    arguments = [var.aval for var in eqn.invars]
    count = len(arguments) - params["num_consts"]
    forward = core.ClosedJaxpr(*params["fwd_jaxpr_thunk"].call_wrapped(*[True] * count))
    _, _, places = params["out_trees"]()
    computed = iter(forward.out_avals)
    avals = [next(computed) if i is None else arguments[i] for i in places]
    cotangents = [aval.to_ct_aval() for aval in params["call_jaxpr"].out_avals]
    zeros: list = []

    def backward(*values: Any) -> list:
        out = params["bwd"].call_wrapped(*values)
        zeros[:] = [x if isinstance(x, ad.Zero) else None for x in out]
        return [x for x in out if not isinstance(x, ad.Zero)]

    shapes = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
        for aval in (*avals, *cotangents)
    ]
    residuals = [None if i is None else i - params["num_consts"] for i in places]
    return Traced([forward, jax.make_jaxpr(backward)(*shapes)], zeros, residuals)
