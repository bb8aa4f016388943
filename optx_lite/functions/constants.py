"""Jaxprs as values: all constants and numbers lifted out as inputs.

`jax.make_jaxpr` leaves what a function captured in several places: constants beside the
jaxpr, constants and numbers in its equations, and in the bodies of nested `jax.jit`, loops and
branches. `lift_constants` gathers them all into one list of inputs. What remains is the
mathematics alone.

Numbers that remain in the jaxpr, so that a function with others is another function:

- integers, shapes, indices, and exponents that are integers in Python (``x**2``): they say what
  is to be computed;
- 0, inf and NaN: they mark what is absent;
- the real exponents that the compiler writes as products and roots (`_EXPONENTS_KNOWN_TO_XLA`);
- those in functions with a derivative rule or a batching rule of their own, in the rules, in
  linear solves (`lax.custom_linear_solve`), in `shard_map` and in kernels.

A derivative rule is a Python function which JAX calls when it needs a derivative, later than
everything else. So that it is one with the rest it is traced at once, and frozen: the function
in the jaxpr gets its rule's jaxpr in place of the rule, with the arrays which that captured as
inputs. A rule that calls its own function, as most do, is tied in a knot.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np
from jax.extend import core, linear_util
from jax.interpreters import ad

from .rules import (
    FrozenCall,
    Traced,
    UnknownRule,
    fixed_token,
    identity,
    is_custom,
    rules_of,
    trace,
)

# x**k is compiled to a product or a root for these k, more exact and ten times as fast.
_EXPONENTS_KNOWN_TO_XLA = (-1.0, 0.5, 1.0, 2.0, 3.0)

# Rules that make new functions with rules of their own are followed so deep.
_DEEPEST_RULE = 4


class Number(NamedTuple):
    """Of what type a lifted number is."""

    dtype: Any
    weak_type: bool


class LiftedJaxpr(NamedTuple):
    """A jaxpr, the constants that were in it, and the numbers that were.

    Attributes
    ----------
    jaxpr : Jaxpr
        Its constant variables stand for `consts`, and after them for each of `numbers`.
    consts : list
        Arrays: the values captured, in the order of their first use.
    numbers : list of (Number, list)
        Scalars by type, each for one constant variable.

    """

    jaxpr: Any
    consts: list
    numbers: list[tuple[Number, list]]


def lift_constants(closed: Any) -> LiftedJaxpr:
    """Turn all constants of a closed jaxpr, nested ones included, into inputs."""
    if _has_effects_on_inputs(closed):
        return LiftedJaxpr(closed.jaxpr, list(closed.consts), [])
    scope = _Scope()
    jaxpr = _Opener(_freeze).body(closed, scope)
    arrays = [(var, item.value) for var, item in scope.inputs if not item.is_number]
    numbers: dict[Number, tuple[list, list]] = {}
    for var, item in scope.inputs:
        if item.is_number:
            kind = Number(item.aval.dtype, item.aval.weak_type)
            variables, values = numbers.setdefault(kind, ([], []))
            variables.append(var)
            values.append(item.value)
    variables = [var for var, _ in arrays] + [v for group, _ in numbers.values() for v in group]
    return LiftedJaxpr(
        jaxpr.replace(constvars=variables),
        [value for _, value in arrays],
        [(kind, values) for kind, (_, values) in numbers.items()],
    )


# ---------------------------------------------------------------------------------------
# Opening a jaxpr


class _Input(NamedTuple):
    """Something that stood in a jaxpr and is to come in from outside."""

    aval: Any
    value: Any
    is_number: bool


class _Scope:
    """The inputs that a jaxpr gets; ``given`` ones are there whether they are used or not."""

    def __init__(self, given: Sequence[_Input] = ()):
        self.inputs: list[tuple[Any, _Input]] = []
        self._arrays: dict[int, Any] = {}
        for item in given:
            self.variable(item)

    def variable(self, item: _Input) -> Any:
        """The variable that stands for it; one for each array, however often used."""
        if item.is_number:
            return self._new(item)
        var = self._arrays.get(id(item.value))
        if var is None or var.aval != item.aval:
            var = self._arrays[id(item.value)] = self._new(item)
        return var

    def _new(self, item: _Input) -> Any:
        var = core.Var(item.aval)
        self.inputs.append((var, item))
        return var


# What is done with an equation that calls a function with derivative rules.
_Custom = Callable[["_Opener", Any, list, _Scope], Any]


class _Opener:
    """Goes through jaxprs and hands what is lifted out to their inputs."""

    def __init__(self, custom: _Custom, *, with_numbers: bool = True):
        self.custom = custom
        self.with_numbers = with_numbers
        self.frozen: dict[Any, Any] = {}  # see `_freeze`

    def body(self, closed: Any, scope: _Scope) -> Any:
        """The jaxpr, without constants; what it needs in their place is in the scope."""
        jaxpr = closed.jaxpr
        env = {
            var: scope.variable(_Input(var.aval, const, is_number=False))
            for var, const in zip(jaxpr.constvars, closed.consts, strict=True)
        }

        def read(atom: Any) -> Any:
            if not isinstance(atom, core.Literal):
                return env.get(atom, atom)
            if _is_array(atom.val):
                return scope.variable(_Input(atom.aval, atom.val, is_number=False))
            return atom

        eqns = [self._equation(eqn, list(map(read, eqn.invars)), scope) for eqn in jaxpr.eqns]
        outvars = list(map(read, jaxpr.outvars))
        return jaxpr.replace(constvars=[], eqns=eqns, outvars=outvars)

    def open(self, closed: Any, given: Sequence[_Input] = (), at: int = 0) -> tuple[Any, list]:
        """A closed jaxpr with further inputs, which stand ``at`` some place among its own."""
        scope = _Scope(given)
        jaxpr = self.body(closed, scope)
        items = [item for _, item in scope.inputs]
        if not items and jaxpr.eqns == closed.jaxpr.eqns and not closed.consts:
            return closed, []  # as it was; other things are remembered of it
        more = [var for var, _ in scope.inputs]
        return _with_invars(jaxpr, at, more), items

    def open_once(self, closed: Any) -> tuple[Any, list]:
        """The same, remembered as long as the jaxpr lives: JAX keeps those of `jax.jit`."""
        if not self.with_numbers:
            return self.open(closed)
        known = _OPENED.get(closed)
        if known is None:
            known = self.open(closed)
            if known[0] is closed:  # which must not be held by what is kept for it
                known = None, []
            if not any(isinstance(item.value, jax.core.Tracer) for item in known[1]):
                _OPENED[closed] = known
        return (closed, []) if known[0] is None else known

    def _equation(self, eqn: Any, invars: list, scope: _Scope) -> Any:
        if self.with_numbers:
            invars = [
                scope.variable(_Input(atom.aval, atom.val, is_number=True))
                if _may_be_input(eqn, i, atom)
                else atom
                for i, atom in enumerate(invars)
            ]
        if is_custom(eqn):
            return self.custom(self, eqn, invars, scope)
        opened = _OPENINGS.get(eqn.primitive.name, _leave)(eqn.params, self)
        if opened is None:
            return _with_operands(eqn, invars)
        params, insertions = opened
        for at, items in reversed(insertions):
            invars[at:at] = map(scope.variable, items)
        return eqn.replace(invars=invars, params=params)


def _with_operands(eqn: Any, invars: list) -> Any:
    same = all(a is b for a, b in zip(invars, eqn.invars, strict=True))
    return eqn if same else eqn.replace(invars=invars)


_OPENED: weakref.WeakKeyDictionary[Any, tuple] = weakref.WeakKeyDictionary()


def _with_invars(jaxpr: Any, at: int, more: list) -> Any:
    invars = [*jaxpr.invars[:at], *more, *jaxpr.invars[at:]]
    info = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
    return core.ClosedJaxpr(jaxpr.replace(invars=invars, debug_info=info), [])


# -- equations with bodies: what they become when their bodies get further inputs


def _leave(params: dict, opener: _Opener) -> None:
    """An equation that stays as it is."""


def _open_call(name: str) -> Callable:
    def opening(params: dict, opener: _Opener) -> Any:
        body, items = opener.open_once(params[name])
        return None if body is params[name] else ({**params, name: body}, [(0, items)])

    return opening


def _open_jit(params: dict, opener: _Opener) -> Any:
    closed = params["jaxpr"]
    if not _is_plain_call(params):
        return None
    body, items = opener.open_once(closed)
    if body is closed:
        return None
    more = len(items)
    shardings = (*params["in_shardings"], *params["out_shardings"])  # all say nothing
    changed = {
        "jaxpr": body,
        "in_shardings": shardings[:1] * more + tuple(params["in_shardings"]),
        "in_layouts": (None,) * more + tuple(params["in_layouts"]),
        "donated_invars": (False,) * more + tuple(params["donated_invars"]),
    }
    return {**params, **changed}, [(0, items)]


def _is_plain_call(params: dict) -> bool:
    """Whether a nested `jax.jit` does nothing but call its jaxpr."""
    if _has_effects_on_inputs(params["jaxpr"]):
        return False
    special = [
        *params["donated_invars"],
        *params["compiler_options_kvs"],
        *params["in_layouts"],
        *params["out_layouts"],
    ]
    shardings = [*params["in_shardings"], *params["out_shardings"]]
    return (
        params["ctx_mesh"].empty
        and not any(special)
        and bool(shardings)
        and all(type(sharding).__name__ == "UnspecifiedValue" for sharding in shardings)
    )


def _open_checkpoint(params: dict, opener: _Opener) -> Any:
    if not isinstance(params["prevent_cse"], bool):
        return None
    closed = core.ClosedJaxpr(params["jaxpr"], [])
    body, items = opener.open(closed)
    return None if body is closed else ({**params, "jaxpr": body.jaxpr}, [(0, items)])


def _open_scan(params: dict, opener: _Opener) -> Any:
    body, items = opener.open_once(params["jaxpr"])
    if body is params["jaxpr"]:
        return None
    changed = {"jaxpr": body, "num_consts": params["num_consts"] + len(items)}
    return {**params, **changed}, [(0, items)]


def _open_while(params: dict, opener: _Opener) -> Any:
    cond, for_cond = opener.open_once(params["cond_jaxpr"])
    body, for_body = opener.open_once(params["body_jaxpr"])
    if cond is params["cond_jaxpr"] and body is params["body_jaxpr"]:
        return None
    changed = {
        "cond_jaxpr": cond,
        "cond_nconsts": params["cond_nconsts"] + len(for_cond),
        "body_jaxpr": body,
        "body_nconsts": params["body_nconsts"] + len(for_body),
    }
    return {**params, **changed}, [(0, for_cond), (params["cond_nconsts"], for_body)]


def _open_cond(params: dict, opener: _Opener) -> Any:
    opened = [opener.open_once(branch) for branch in params["branches"]]
    if all(new is old for (new, _), old in zip(opened, params["branches"], strict=True)):
        return None
    items = [item for _, of_branch in opened for item in of_branch]
    branches, before = [], 0
    for branch, own in opened:  # each gets those of all
        unused = [core.Var(item.aval) for item in items]
        jaxpr = _with_invars(branch.jaxpr, len(own), unused[before + len(own) :]).jaxpr
        branches.append(_with_invars(jaxpr, 0, unused[:before]))
        before += len(own)
    return {**params, "branches": tuple(branches)}, [(1, items)]


_OPENINGS: dict[str, Callable] = {
    "jit": _open_jit,
    "pjit": _open_jit,
    "closed_call": _open_call("call_jaxpr"),
    "checkpoint": _open_checkpoint,
    "remat2": _open_checkpoint,
    "scan": _open_scan,
    "while": _open_while,
    "cond": _open_cond,
}


def _has_effects_on_inputs(jaxpr: Any) -> bool:
    """Whether it writes to references; such effects name their inputs by number or variable."""
    effects = [*jaxpr.effects, *(effect for eqn in jaxpr.eqns for effect in eqn.effects)]
    return any(hasattr(effect, "input_index") or hasattr(effect, "input") for effect in effects)


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array) or np.ndim(value) > 0


def _may_be_input(eqn: Any, place: int, atom: Any) -> bool:
    """Whether an operand is a number that means the same if it comes from outside."""
    if not isinstance(atom, core.Literal) or np.ndim(atom.val):
        return False
    aval: Any = atom.aval
    if not jax.numpy.issubdtype(aval.dtype, np.inexact):
        return False
    value = complex(atom.val)
    if value == 0 or not np.isfinite(value):
        return False
    is_exponent = eqn.primitive.name == "pow" and place == 1
    return not (is_exponent and value in _EXPONENTS_KNOWN_TO_XLA)


# ---------------------------------------------------------------------------------------
# Freezing derivative rules


class FrozenRules:
    """The rules of a function, as jaxprs which have the arrays of their knot as first inputs.

    Attributes
    ----------
    knot : Knot
        All functions that call each other in their rules.
    index : int
        The number of this one among them.
    jaxprs : list of ClosedJaxpr
        Calling each other's frozen rules.
    zeros, residuals : list
        See `Traced`.

    """

    def __init__(self, knot: Knot, index: int, traced: Traced):
        self.knot = knot
        self.index = index
        self.jaxprs: list = []
        self.zeros = traced.zeros
        self.residuals = traced.residuals

    def params(self, eqn: Any) -> dict:
        """The parameters which stand for the rules in an equation."""
        params = eqn.params
        if "jvp_jaxpr_fun" in params:
            return {"jvp_jaxpr_fun": _wrapped(self, self._jvp, params["jvp_jaxpr_fun"])}
        # The backward pass gets the arrays as residuals that are arguments.
        more = len(self.knot.avals)
        residuals = [*range(more), *(i if i is None else i + more for i in self.residuals or ())]
        residuals = [i if i is None else i + params["num_consts"] for i in residuals]
        of_results = jax.tree.structure(list(eqn.outvars))
        trees = of_results, jax.tree.structure([0] * len(residuals)), residuals
        return {
            "fwd_jaxpr_thunk": _wrapped(self, self._forward, params["fwd_jaxpr_thunk"]),
            "bwd": _wrapped(self, self._backward, params["bwd"]),
            "out_trees": lambda: trees,
        }

    def _jvp(self, *_: bool) -> tuple:
        return self.jaxprs[0].jaxpr, [], self.zeros

    def _forward(self, *_: bool) -> tuple:
        return self.jaxprs[0].jaxpr, []

    def _backward(self, *values: Any) -> list:
        computed = iter(jax.core.eval_jaxpr(self.jaxprs[1].jaxpr, [], *values))
        zeros = [ad.Zero(aval.to_ct_aval()) for aval in self.knot.avals]
        return [*zeros, *(next(computed) if z is None else z for z in self.zeros)]


class Knot:
    """Functions that call each other in their derivative rules, themselves included.

    Attributes
    ----------
    avals : list
        Types of the arrays that they captured.
    rules : list of FrozenRules
        In the order in which they are met.

    """

    def __init__(self, avals: list, traced: list[Traced]):
        self.avals = avals
        self.rules = [FrozenRules(self, i, rules) for i, rules in enumerate(traced)]


def _wrapped(rules: FrozenRules, call: Callable, rule: Any) -> Any:
    info = rule.debug_info._replace(arg_names=None, result_paths=None)
    return linear_util.wrap_init(FrozenCall(rules, call), debug_info=info)


def _freeze(opener: _Opener, eqn: Any, invars: list, scope: _Scope) -> Any:
    """The equation with its rules frozen; as it is, if JAX's own or if they cannot be known."""
    try:
        return _freeze_all(opener.frozen, eqn).equation(eqn, invars, scope)
    except UnknownRule:
        return _with_operands(eqn, invars)


def _freeze_all(known: dict[Any, Any], eqn: Any) -> _Freezing:
    if _is_fixed(eqn):
        raise UnknownRule
    key, _ = identity(*rules_of(eqn))
    freezing = known.get(key)
    if freezing is None or not freezing.covers(eqn):
        freezing = known[key] = _Freezing(eqn)
    return freezing


def _is_fixed(eqn: Any) -> bool:
    """Whether its rules are what their code says, or frozen already."""
    try:
        fixed_token(rules_of(eqn), inner=id)
    except UnknownRule:
        return False
    return True


class _Freezing:
    """Finds all rules that can be reached from a function, then freezes them together."""

    def __init__(self, eqn: Any):
        self.numbers: dict[tuple, int] = {}  # of the rules, by identity
        self.traced: list[Traced] = []
        self.objects: list = []  # whose ids stand in the identities
        self.scope = _Scope()
        self._find(eqn, 0)
        self.arrays = [item for _, item in self.scope.inputs]
        self.knot = Knot([item.aval for item in self.arrays], self.traced)
        opener = _Opener(
            lambda _, eqn, invars, scope: self.equation(eqn, invars, scope), with_numbers=False
        )
        for rules, traced in zip(self.knot.rules, self.traced, strict=True):
            rules.jaxprs = self._frozen(opener, traced)

    def covers(self, eqn: Any) -> bool:
        """Whether all arrays that the function itself captured are there."""
        scope = _Scope(self.arrays)
        _Opener(lambda _, eqn, *__: eqn, with_numbers=False).body(eqn.params["call_jaxpr"], scope)
        return len(scope.inputs) == len(self.arrays)

    def _find(self, eqn: Any, depth: int) -> None:
        def further(opener: _Opener, eqn: Any, invars: list, scope: _Scope) -> Any:
            if not _is_fixed(eqn):
                self._find(eqn, depth + 1)
            return eqn

        opener = _Opener(further, with_numbers=False)
        opener.body(eqn.params["call_jaxpr"], self.scope)
        key, objects = identity(*rules_of(eqn))
        if key in self.numbers:
            return
        if depth == _DEEPEST_RULE:
            raise UnknownRule
        traced = trace(eqn)
        self.numbers[key] = len(self.traced)
        self.traced.append(traced)
        self.objects += objects
        for jaxpr in traced.jaxprs:
            opener.body(jaxpr, self.scope)

    def _frozen(self, opener: _Opener, traced: Traced) -> list:
        arrays = self.arrays
        jaxprs = [opener.open(jaxpr, arrays)[0] for jaxpr in traced.jaxprs]
        if traced.residuals is None:  # tangents of the arrays, after the arguments
            (jaxpr,) = jaxprs
            arguments = len(arrays) + len(traced.jaxprs[0].in_avals) // 2
            unused = [core.Var(item.aval.to_tangent_aval()) for item in arrays]
            jaxprs = [_with_invars(jaxpr.jaxpr, arguments, unused)]
        return jaxprs

    def equation(self, eqn: Any, invars: list, scope: _Scope) -> Any:
        """The call with frozen rules."""
        if _is_fixed(eqn):
            return _with_operands(eqn, invars)
        rules = self.knot.rules[self.numbers[identity(*rules_of(eqn))[0]]]
        at, arrays = eqn.params["num_consts"], self.arrays
        opener = _Opener(
            lambda _, eqn, invars, scope: self.equation(eqn, invars, scope), with_numbers=False
        )
        body, _ = opener.open(eqn.params["call_jaxpr"], arrays, at)
        invars[at:at] = map(scope.variable, arrays)
        params = {**eqn.params, "call_jaxpr": body, **rules.params(eqn)}
        return eqn.replace(invars=invars, params=params)
