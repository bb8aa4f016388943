"""What stands in a jaxpr and is to come in from outside: constants and numbers become inputs.

`jax.make_jaxpr` leaves what a function captured in several places: constants beside the
jaxpr, constants and numbers in its equations, and in the bodies of nested `jax.jit`, loops and
branches. `Hoister` goes through all of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np

from . import jax_internals as internals
from .jax_internals import AbstractValue, Atom, ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

# x**k is compiled to a product or a root for these k, more exact and ten times as fast.
_EXPONENTS_KNOWN_TO_XLA = (-1.0, 0.5, 1.0, 2.0, 3.0)


class Input(NamedTuple):
    """Something that stood in a jaxpr and is to come in from outside."""

    aval: Any  # an `AbstractValue`, of arrays
    value: Any
    is_number: bool


class Scope:
    """The inputs that a jaxpr gets; ``given`` ones are there whether they are used or not."""

    def __init__(self, given: Sequence[Input] = ()):
        self.inputs: list[tuple[Var, Input]] = []
        self._arrays: dict[int, Var] = {}
        for item in given:
            self.variable(item)

    def variable(self, item: Input) -> Var:
        """The variable that stands for it; one for each array, however often used."""
        if item.is_number:
            return self._new(item)
        var = self._arrays.get(id(item.value))
        if var is None or var.aval != item.aval:
            var = self._arrays[id(item.value)] = self._new(item)
        return var

    def _new(self, item: Input) -> Var:
        var = Var(item.aval)
        self.inputs.append((var, item))
        return var


# What is done with an equation that calls a function with derivative rules.
Custom = Callable[["Hoister", JaxprEqn, list[Atom], Scope], JaxprEqn]


class Hoister:
    """Goes through jaxprs and turns what stands in them into inputs."""

    def __init__(self, custom: Custom, *, with_numbers: bool = True):
        self.custom = custom
        self.with_numbers = with_numbers

    def body(self, closed: ClosedJaxpr, scope: Scope) -> Jaxpr:
        """The jaxpr, without constants; what it needs in their place is in the scope."""
        jaxpr = closed.jaxpr
        env: dict[Any, Any] = {
            var: scope.variable(Input(var.aval, const, is_number=False))
            for var, const in zip(jaxpr.constvars, closed.consts, strict=True)
        }

        def read(atom: Atom) -> Atom:
            if not isinstance(atom, Literal):
                return env.get(atom, atom)
            if _is_array(atom.val):
                return scope.variable(Input(atom.aval, atom.val, is_number=False))
            return atom

        eqns = [self._equation(eqn, list(map(read, eqn.invars)), scope) for eqn in jaxpr.eqns]
        outvars = list(map(read, jaxpr.outvars))
        return jaxpr.replace(constvars=[], eqns=eqns, outvars=outvars)

    def closed(
        self, closed: ClosedJaxpr, given: Sequence[Input] = (), at: int = 0
    ) -> tuple[ClosedJaxpr, list[Input]]:
        """A closed jaxpr with further inputs, which stand ``at`` some place among its own."""
        scope = Scope(given)
        jaxpr = self.body(closed, scope)
        items = [item for _, item in scope.inputs]
        if not items and jaxpr.eqns == closed.jaxpr.eqns and not closed.consts:
            return closed, []  # as it was; other things are remembered of it
        return internals.with_inputs(jaxpr, at, [var for var, _ in scope.inputs]), items

    def _cached(self, closed: ClosedJaxpr) -> tuple[ClosedJaxpr, list[Input]]:
        """The same, remembered as long as the jaxpr lives: JAX keeps those of `jax.jit`."""
        if not self.with_numbers:
            return self.closed(closed)
        cached = _HOISTED.get(closed)
        if cached is None:
            cached = self.closed(closed)
            if cached[0] is closed:  # which must not be held by what is kept for it
                cached = None, []
            if not any(isinstance(item.value, jax.core.Tracer) for item in cached[1]):
                _HOISTED[closed] = cached
        return (closed, []) if cached[0] is None else cached

    def _equation(self, eqn: JaxprEqn, invars: list[Atom], scope: Scope) -> JaxprEqn:
        if self.with_numbers:
            invars = [
                scope.variable(Input(atom.aval, atom.val, is_number=True))
                if isinstance(atom, Literal) and _may_be_input(eqn, i, atom)
                else atom
                for i, atom in enumerate(invars)
            ]
        if internals.is_custom(eqn):
            return self.custom(self, eqn, invars, scope)
        found = internals.bodies_of(eqn)
        if found is None:
            return with_operands(eqn, invars)
        hoisted = [self._cached(jaxpr) for jaxpr in found.jaxprs]
        if all(new is old for (new, _), old in zip(hoisted, found.jaxprs, strict=True)):
            return with_operands(eqn, invars)
        types: list[list[AbstractValue]] = [[item.aval for item in items] for _, items in hoisted]
        for at, (_, items) in reversed(list(zip(found.places, hoisted, strict=True))):
            invars[at:at] = map(scope.variable, items)
        return eqn.replace(invars=invars, params=found.params([new for new, _ in hoisted], types))


_HOISTED: weakref.WeakKeyDictionary[ClosedJaxpr, tuple] = weakref.WeakKeyDictionary()


def with_operands(eqn: JaxprEqn, invars: list[Atom]) -> JaxprEqn:
    """The equation with these operands; the very same if they are."""
    same = all(a is b for a, b in zip(invars, eqn.invars, strict=True))
    return eqn if same else eqn.replace(invars=invars)


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array) or np.ndim(value) > 0


def _may_be_input(eqn: JaxprEqn, place: int, literal: Literal) -> bool:
    """Whether an operand is a number that means the same if it comes from outside."""
    aval: Any = literal.aval
    if np.ndim(literal.val) or not jax.numpy.issubdtype(aval.dtype, np.inexact):
        return False
    value = complex(literal.val)
    if value == 0 or not np.isfinite(value):
        return False
    return not (internals.is_exponent(eqn, place) and value in _EXPONENTS_KNOWN_TO_XLA)
