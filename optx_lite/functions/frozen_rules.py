"""Derivative rules as part of the function: traced at once, and frozen.

A derivative rule is a Python function which JAX calls when it needs a derivative, later than
everything else. So that it is one with the rest it is traced with it: the function in the jaxpr
gets its rule's jaxpr in place of the rule, with the arrays which that captured as inputs. A rule
mostly calls its own function, or two functions each other; all that can be reached from one are
found first, and frozen together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.core
from jaxtyping import PyTree

from ..jax_support.types import Options
from . import jax_internals as internals
from .hoisting import Atom, Hoister, Input, Scope, with_operands
from .jax_internals import AbstractValue, ClosedJaxpr, JaxprEqn, TracedRules, Var
from .rules import FrozenCall, UnknownRule, fixed_token, identity

# Rules that make new functions with rules of their own are followed so deep.
_DEEPEST_RULE = 4


class FrozenRules:
    """The rules of a function, as jaxprs which have the arrays of their group as first inputs.

    Attributes
    ----------
    group : RuleGroup
        All functions that call each other in their rules.
    index : int
        The number of this one among them.
    jaxprs : list of ClosedJaxpr
        Calling each other's frozen rules.
    zeros, residuals : list
        See `TracedRules`.

    """

    def __init__(self, group: RuleGroup, index: int, traced: TracedRules):
        self.group = group
        self.index = index
        self.jaxprs: list[ClosedJaxpr] = []
        self.zeros = traced.zeros
        self.residuals = traced.residuals

    def params(self, eqn: JaxprEqn) -> Options:
        """The parameters which stand for the rules in an equation."""
        if self.residuals is None:
            return internals.other_rules(eqn, [FrozenCall(self, self._jvp)], ())
        # The backward pass gets the arrays as residuals that are arguments.
        more = len(self.group.avals)
        residuals = [*range(more), *(i if i is None else i + more for i in self.residuals)]
        passes = [FrozenCall(self, self._forward), FrozenCall(self, self._backward)]
        return internals.other_rules(eqn, passes, residuals)

    def _jvp(self, *_: bool) -> tuple:
        return self.jaxprs[0].jaxpr, [], self.zeros

    def _forward(self, *_: bool) -> tuple:
        return self.jaxprs[0].jaxpr, []

    def _backward(self, *values: Any) -> PyTree:
        computed = iter(jax.core.eval_jaxpr(self.jaxprs[1].jaxpr, [], *values))
        zeros = map(internals.zero_cotangent, self.group.avals)
        cotangents = [next(computed) if z is None else z for z in self.zeros]
        return internals.backward_result([*zeros, *cotangents])


class RuleGroup:
    """Functions that call each other in their derivative rules, themselves included.

    Attributes
    ----------
    avals : list
        Types of the arrays that they captured.
    rules : list of FrozenRules
        In the order in which they are met.

    """

    def __init__(self, avals: list[AbstractValue], traced: list[TracedRules]):
        self.avals = avals
        self.rules = [FrozenRules(self, i, rules) for i, rules in enumerate(traced)]


class Freezer:
    """Freezes the rules in a jaxpr; each group of them once."""

    def __init__(self) -> None:
        self._groups: dict[tuple, _Freezing] = {}

    def __call__(
        self, hoister: Hoister, eqn: JaxprEqn, invars: list[Atom], scope: Scope
    ) -> JaxprEqn:
        """The equation with its rules frozen; as it is, if JAX's own or if they are unknown."""
        if is_fixed(eqn):
            return with_operands(eqn, invars)
        key, _ = identity(*internals.rules_of(eqn))
        try:
            freezing = self._groups.get(key)
            if freezing is None or not freezing.covers(eqn):
                freezing = self._groups[key] = _Freezing(eqn)
            return freezing.equation(hoister, eqn, invars, scope)
        except UnknownRule:
            return with_operands(eqn, invars)


def is_fixed(eqn: JaxprEqn) -> bool:
    """Whether its rules are what their code says, or frozen already."""
    try:
        fixed_token(internals.rules_of(eqn), inner=id)
    except UnknownRule:
        return False
    return True


class _Freezing:
    """Finds all rules that can be reached from a function, then freezes them together."""

    def __init__(self, eqn: JaxprEqn):
        self.numbers: dict[tuple, int] = {}  # of the rules, by identity
        self.traced: list[TracedRules] = []
        self.objects: list = []  # whose ids stand in the identities
        self.scope = Scope()
        self._find(eqn, 0)
        self.arrays: list[Input] = [item for _, item in self.scope.inputs]
        self.group = RuleGroup([item.aval for item in self.arrays], self.traced)
        self.hoister = Hoister(self.equation, with_numbers=False)
        for rules, traced in zip(self.group.rules, self.traced, strict=True):
            rules.jaxprs = self._frozen(traced)

    def covers(self, eqn: JaxprEqn) -> bool:
        """Whether all arrays that the function itself captured are there."""
        scope = Scope(self.arrays)
        _hoister(lambda _: None).body(internals.beside_rules(eqn)["call_jaxpr"], scope)
        return len(scope.inputs) == len(self.arrays)

    def _find(self, eqn: JaxprEqn, depth: int) -> None:
        def further(eqn: JaxprEqn) -> None:
            if not is_fixed(eqn):
                self._find(eqn, depth + 1)

        hoister = _hoister(further)
        hoister.body(internals.beside_rules(eqn)["call_jaxpr"], self.scope)
        key, objects = identity(*internals.rules_of(eqn))
        if key in self.numbers:
            return
        if depth == _DEEPEST_RULE:
            raise UnknownRule
        traced = _trace(eqn)
        self.numbers[key] = len(self.traced)
        self.traced.append(traced)
        self.objects += objects
        for jaxpr in traced.jaxprs:
            hoister.body(jaxpr, self.scope)

    def _frozen(self, traced: TracedRules) -> list[ClosedJaxpr]:
        arrays = self.arrays
        jaxprs = [self.hoister.closed(jaxpr, arrays)[0] for jaxpr in traced.jaxprs]
        if traced.residuals is None:  # tangents of the arrays, after the arguments
            (jaxpr,) = jaxprs
            arguments = len(arrays) + len(traced.jaxprs[0].in_avals) // 2
            unused = [Var(internals.tangent_type(item.aval)) for item in arrays]
            jaxprs = [internals.with_inputs(jaxpr.jaxpr, arguments, unused)]
        return jaxprs

    def equation(self, _: Hoister, eqn: JaxprEqn, invars: list[Atom], scope: Scope) -> JaxprEqn:
        """The call with frozen rules."""
        if is_fixed(eqn):
            return with_operands(eqn, invars)
        rules = self.group.rules[self.numbers[identity(*internals.rules_of(eqn))[0]]]
        beside = internals.beside_rules(eqn)
        at = beside["num_consts"]
        body = self.hoister.closed(beside["call_jaxpr"], self.arrays, at)[0]
        invars[at:at] = map(scope.variable, self.arrays)
        return eqn.replace(
            invars=invars, params={**eqn.params, "call_jaxpr": body, **rules.params(eqn)}
        )


def _hoister(look: Callable[[JaxprEqn], None]) -> Hoister:
    """One for arrays alone, that only looks at functions with rules."""

    def custom(_: Hoister, eqn: JaxprEqn, invars: list[Atom], scope: Scope) -> JaxprEqn:
        look(eqn)
        return eqn

    return Hoister(custom, with_numbers=False)


def _trace(eqn: JaxprEqn) -> TracedRules:
    """Trace the rules of an equation.

    Raises
    ------
    UnknownRule
        If they are free to differ from call to call, or cannot be traced.
    """
    if internals.beside_rules(eqn)["symbolic_zeros"]:
        raise UnknownRule
    try:
        traced = internals.trace_rules(eqn)
        left_over = any(internals.is_left_over(c) for jaxpr in traced.jaxprs for c in jaxpr.consts)
    except Exception as err:  # a rule of the user's may raise anything; it may never be needed
        raise UnknownRule from err
    if left_over:  # it captured a value of the function itself, whose trace is over
        raise UnknownRule
    return traced
