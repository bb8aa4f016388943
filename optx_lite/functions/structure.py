"""Jaxprs by structure: what they compute, as hashable values.

Two jaxprs with equal keys compute the same function, and so do all their derivatives. Where it
cannot be known that they do, the keys differ.
"""

from __future__ import annotations

import hashlib
import struct
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.core
import numpy as np
from jaxtyping import PyTree

from . import jax_internals as internals
from .frozen_rules import FrozenRules, RuleGroup
from .jax_internals import Atom, ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from .rules import UnknownRule, fixed_token

# JAX arrays up to this size are compared by value, larger ones by identity, which is free.
_SMALL_BYTES = 1 << 16


class StructureKey:
    """What a jaxpr computes; keys that compute the same are one object while any is in use."""

    __slots__ = ("__weakref__", "_hash", "tokens")

    def __init__(self, tokens: tuple):
        self.tokens = tokens
        self._hash = hash(tokens)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, StructureKey) or self._hash != other._hash:
            return False
        return self.tokens == other.tokens


class _Same:
    """An object that is equal to itself only."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


_KEYS: weakref.WeakValueDictionary[StructureKey, StructureKey] = weakref.WeakValueDictionary()
_KEY_OF_JAXPR: weakref.WeakKeyDictionary[Jaxpr, StructureKey] = weakref.WeakKeyDictionary()


def structure_key(jaxpr: Jaxpr) -> StructureKey:
    """Write down what a jaxpr computes, its constants and rules hoisted out."""
    return _KeyWriter().jaxpr(jaxpr)


def _shared(tokens: tuple) -> StructureKey:
    key = StructureKey(tokens)
    return _KEYS.setdefault(key, key)


class _KeyWriter:
    def __init__(self) -> None:
        self._keys: Any = _KEY_OF_JAXPR
        self._contexts: dict[int, tuple[Any, str]] = {}
        self._within: list[RuleGroup] = []  # groups that are just being written

    def jaxpr(self, jaxpr: Jaxpr) -> StructureKey:
        key = self._keys.get(jaxpr)
        if key is None:
            key = self._keys[jaxpr] = _shared(self._write_jaxpr(jaxpr))
        return key

    def closed(self, jaxpr: Jaxpr | ClosedJaxpr) -> tuple:
        """The tokens of a jaxpr, open or closed."""
        consts = getattr(jaxpr, "consts", ())
        inside = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
        return self.jaxpr(inside), *map(self._constant, consts)

    def _write_jaxpr(self, jaxpr: Jaxpr) -> tuple:
        names: dict[Var, int] = {}

        def bind(var: Var) -> PyTree:
            names[var] = len(names)
            return var.aval

        def read(atom: Atom) -> PyTree:
            return self._literal(atom) if isinstance(atom, Literal) else names[atom]

        tokens: list = [len(jaxpr.constvars), len(jaxpr.invars)]
        tokens += [bind(var) for var in (*jaxpr.constvars, *jaxpr.invars)]
        for eqn in jaxpr.eqns:
            tokens += (eqn.primitive, self._context(eqn), len(eqn.invars))
            tokens += [read(atom) for atom in eqn.invars]
            tokens.append(self._params(eqn))
            tokens += [bind(var) for var in eqn.outvars]
        tokens += [read(atom) for atom in jaxpr.outvars]
        return tuple(tokens)

    def _context(self, eqn: JaxprEqn) -> str:
        context = internals.context_of(eqn)
        if id(context) not in self._contexts:
            self._contexts[id(context)] = context, repr(context)
        return self._contexts[id(context)][1]

    def _literal(self, literal: Literal) -> tuple:
        return literal.aval, self._constant(literal.val)

    def _constant(self, value: Any) -> Hashable:
        """A constant that could not become an input.

        JAX may look at the very memory of the user's NumPy array, now and when the jaxpr is
        used again, so its identity counts as well as its contents.
        """
        if isinstance(value, np.ndarray) and value.ndim:
            owner = value if value.base is None else value.base
            return _Same(owner), self._array(value)
        return self._array(value)

    def _params(self, eqn: JaxprEqn) -> tuple:
        params = eqn.params
        if internals.is_custom(eqn):
            return self._rules(eqn), *map(self.value, internals.beside_rules(eqn).values())
        if internals.is_callback(eqn):
            return tuple((name, _hashable(params[name])) for name in sorted(params))
        return tuple((name, self.value(params[name])) for name in sorted(params))

    def _rules(self, eqn: JaxprEqn) -> Hashable:
        try:
            return fixed_token(internals.rules_of(eqn), inner=self._inner)
        except UnknownRule:
            return object()

    def _inner(self, part: Any) -> Hashable:
        return self._frozen(part) if isinstance(part, FrozenRules) else self.closed(part)

    def _frozen(self, rules: FrozenRules) -> Hashable:
        if rules.group in self._within:
            return "within", self._within.index(rules.group), rules.index
        keys, self._keys = self._keys, {}  # what is written now means something in here only
        self._within.append(rules.group)
        tokens = tuple(
            (
                *map(self.closed, frozen.jaxprs),
                *(getattr(zero, "aval", zero) for zero in frozen.zeros),
                self.value(frozen.residuals),
            )
            for frozen in rules.group.rules
        )
        self._within.pop()
        self._keys = keys
        return _shared(tokens), rules.index

    def value(self, value: Any) -> Hashable:
        """One parameter of an equation."""
        kind = type(value)
        if value is None or kind in (bool, int, str, bytes):
            return kind, value
        if kind in (float, complex):
            return kind, struct.pack("dd", value.real, value.imag)
        if hasattr(value, "eqns"):
            return self.closed(value)
        if isinstance(value, (tuple, list)):
            return (kind, *map(self.value, value))
        if isinstance(value, dict):
            return kind, *((self.value(k), self.value(v)) for k, v in value.items())
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            return self._array(value)
        if callable(value) and not isinstance(value, type):
            return self._function(value)
        return kind, _hashable(value)

    def _function(self, fun: Callable) -> Hashable:
        """A function which JAX may call when it traces: what that would see, nothing says."""
        try:
            return fixed_token(fun, inner=self._inner)
        except UnknownRule:
            return object()

    def _array(self, value: Any) -> Hashable:
        """An array or a number, by its contents where they are cheap to have."""
        if isinstance(value, jax.Array) and not _is_cheap_to_read(value):
            return _Same(value)
        array = np.asarray(value)
        if array.dtype.hasobject:
            return _Same(value)
        contents = array.tobytes()
        if len(contents) > _SMALL_BYTES:
            contents = hashlib.blake2b(contents).digest()
        return str(array.dtype), array.shape, bool(getattr(value, "weak_type", False)), contents


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value


def _is_cheap_to_read(value: jax.Array) -> bool:
    return (
        not isinstance(value, jax.core.Tracer)
        and not jax.numpy.issubdtype(value.dtype, jax.dtypes.extended)
        and value.nbytes <= _SMALL_BYTES
        and value.is_fully_addressable
    )
