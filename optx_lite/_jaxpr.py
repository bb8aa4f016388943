"""Jaxprs as values: every constant lifted out, and the rest compared by structure.

`jax.make_jaxpr` leaves what a function captured in several places: constants beside the
jaxpr, constants inside the jaxpr of a nested `jax.jit`, numbers in its equations.
`lift_constants` gathers them all into one list of inputs. What remains is the mathematics
alone, and `structure_key` writes that down as a hashable value: two jaxprs with equal keys
compute the same function, and so do all their derivatives.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np
from jax.extend import core

# JAX arrays up to this size are compared by value, larger ones by identity, which is free.
_SMALL_BYTES = 1 << 16

# Operations in which a number means the same to the compiler whether it is written into the
# program or handed in. (It does not in a power, which becomes a product or a square root.)
_NUMBER_MAY_BE_INPUT = frozenset(
    {
        *("add", "sub", "mul", "div", "max", "min", "atan2", "select_n", "broadcast_in_dim"),
        *("eq", "ne", "lt", "le", "gt", "ge"),
    }
)

# How often a derivative rule may be met inside itself before it counts as the same again.
# Twice compares a function, its first and its second derivatives exactly.
_RULE_DEPTH = 2


class LiftedJaxpr(NamedTuple):
    """A jaxpr, the constants that were in it, and the numbers that were.

    Attributes
    ----------
    jaxpr : Jaxpr
        Its constant variables stand for `consts`, and after them for each of `numbers`.
    consts : list
        Arrays: the values captured, in the order of their first use.
    numbers : list of (dtype, list)
        Scalars by dtype, each for one constant variable.

    """

    jaxpr: Any
    consts: list
    numbers: list[tuple[np.dtype, list]]


def lift_constants(closed: Any, *, numbers: bool) -> LiftedJaxpr:
    """Turn all constants of a closed jaxpr, nested ones included, into inputs.

    Parameters
    ----------
    closed : ClosedJaxpr
        As `jax.make_jaxpr` gives it.
    numbers : bool
        Whether to lift real and complex scalars out of arithmetic, too, so that functions
        that differ in a number only have equal structure.

    """
    top = closed.jaxpr
    if _has_effects_on_inputs(top):
        return LiftedJaxpr(top, list(closed.consts), [])
    lifter = _Lifter(numbers)
    env = {v: lifter.constant(v.aval, c) for v, c in _constants(closed)}
    outvars = lifter.inline(top, env, renamed=False)
    of_numbers = [var for variables, _ in lifter.numbers.values() for var in variables]
    jaxpr = top.replace(
        constvars=[*lifter.constvars, *of_numbers], eqns=lifter.eqns, outvars=outvars
    )
    values = [(dtype, values) for dtype, (_, values) in lifter.numbers.items()]
    return LiftedJaxpr(jaxpr, lifter.consts, values)


def _constants(closed: Any) -> list[tuple[Any, Any]]:
    return list(zip(closed.jaxpr.constvars, closed.consts, strict=True))


class _Lifter:
    """Gathers equations and constants while it goes through a jaxpr."""

    def __init__(self, with_numbers: bool):
        self.with_numbers = with_numbers
        self.eqns: list = []
        self.constvars: list = []
        self.consts: list = []
        self.numbers: dict[np.dtype, tuple[list, list]] = {}
        self._known: dict[int, Any] = {}

    def constant(self, aval: Any, value: Any) -> Any:
        """The variable that stands for an array; one for each array, however often used."""
        var = self._known.get(id(value))
        if var is None or var.aval != aval:
            var = self._known[id(value)] = core.Var(aval)
            self.constvars.append(var)
            self.consts.append(value)
        return var

    def number(self, literal: Any) -> Any:
        variables, values = self.numbers.setdefault(literal.aval.dtype, ([], []))
        variables.append(core.Var(literal.aval))
        values.append(literal.val)
        return variables[-1]

    def inline(self, jaxpr: Any, env: dict, *, renamed: bool) -> list:
        """Take over the equations of a jaxpr, opening the calls in it that hold constants.

        `env` says what its variables are called here. Gives its results.
        """

        def read(atom: Any) -> Any:
            if not isinstance(atom, core.Literal):
                return env.get(atom, atom)
            return self.constant(atom.aval, atom.val) if _is_array(atom.val) else atom

        alone = len(jaxpr.eqns) == 1
        for eqn in jaxpr.eqns:
            invars = [read(atom) for atom in eqn.invars]
            body = _body_of_plain_call(eqn)
            if body is not None and (alone or _holds_constants(body)):
                inner = {v: self.constant(v.aval, c) for v, c in _constants(body)}
                inner.update(zip(body.jaxpr.invars, invars, strict=True))
                results = self.inline(body.jaxpr, inner, renamed=True)
                env.update(zip(eqn.outvars, results, strict=True))
                continue
            if self.with_numbers and eqn.primitive.name in _NUMBER_MAY_BE_INPUT:
                invars = [self.number(a) if _is_plain_number(a) else a for a in invars]
            outvars = eqn.outvars
            if renamed:  # the same body may be called twice
                outvars = [v if isinstance(v, core.DropVar) else core.Var(v.aval) for v in outvars]
                env.update(zip(eqn.outvars, outvars, strict=True))
            self.eqns.append(eqn.replace(invars=invars, outvars=outvars))
        return [read(atom) for atom in jaxpr.outvars]


def _body_of_plain_call(eqn: Any) -> Any:
    """The closed jaxpr of a nested `jax.jit`, if calling it is all that the equation does."""
    if eqn.primitive.name not in ("jit", "pjit"):
        return None
    params = eqn.params
    body = params.get("jaxpr")
    if body is None or _has_effects_on_inputs(body):
        return None
    special = [
        *(params.get("donated_invars", ()) or ()),
        *(params.get("compiler_options_kvs", ()) or ()),
        *(layout for name in ("in_layouts", "out_layouts") for layout in params.get(name) or ()),
    ]
    shardings = [s for name in ("in_shardings", "out_shardings") for s in params.get(name) or ()]
    plain = (
        getattr(params.get("ctx_mesh"), "empty", True)
        and not any(special)
        and all(type(sharding).__name__ == "UnspecifiedValue" for sharding in shardings)
    )
    return body if plain else None


def _has_effects_on_inputs(jaxpr: Any) -> bool:
    """Whether it writes to references; such effects name their inputs by number or variable."""
    effects = [*jaxpr.effects, *(effect for eqn in jaxpr.eqns for effect in eqn.effects)]
    return any(hasattr(effect, "input_index") or hasattr(effect, "input") for effect in effects)


def _holds_constants(closed: Any) -> bool:
    if closed.consts:
        return True
    for eqn in closed.eqns:
        body = _body_of_plain_call(eqn)
        if body is not None and _holds_constants(body):
            return True
        if any(isinstance(a, core.Literal) and _is_array(a.val) for a in eqn.invars):
            return True
    return False


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array) or np.ndim(value) > 0


def _is_plain_number(atom: Any) -> bool:
    """Whether an atom is a finite, nonzero real or complex number.

    Zero, infinity and NaN say something about the structure: they mark what is absent.
    """
    if not isinstance(atom, core.Literal) or np.ndim(atom.val):
        return False
    aval: Any = atom.aval
    if aval.weak_type or not jax.numpy.issubdtype(aval.dtype, np.inexact):
        return False
    value = complex(atom.val)
    return value != 0 and np.isfinite(value)


# ---------------------------------------------------------------------------------------
# Without a mesh

_RESHARD = frozenset({"reshard", "mesh_cast", "sharding_constraint"})


def without_mesh(jaxpr: Any) -> Any:
    """The same jaxpr as if it had been traced outside of any mesh.

    What was traced under a mesh of explicit axes has shardings in its types, and cannot be used
    where the axes of that mesh are automatic.
    """
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        context = jax.make_jaxpr(lambda x: x + 1)(0.0).eqns[0].ctx
        return _MeshRemover(context).jaxpr(jaxpr)


class _MeshRemover:
    def __init__(self, context: Any):
        self.context = context

    def jaxpr(self, jaxpr: Any) -> Any:
        names: dict[Any, Any] = {}

        def atom(old: Any) -> Any:
            if isinstance(old, core.Literal):
                return core.Literal(old.val, self.aval(old.aval))
            if old not in names:
                names[old] = type(old)(self.aval(old.aval))
            return names[old]

        invars, constvars = ([atom(v) for v in vs] for vs in (jaxpr.invars, jaxpr.constvars))
        eqns = []
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in _RESHARD:
                names[eqn.outvars[0]] = atom(eqn.invars[0])
                continue
            eqns.append(
                eqn.replace(
                    invars=[atom(v) for v in eqn.invars],
                    outvars=[atom(v) for v in eqn.outvars],
                    params={name: self.param(value) for name, value in eqn.params.items()},
                    ctx=self.context,
                )
            )
        outvars = [atom(v) for v in jaxpr.outvars]
        return jaxpr.replace(invars=invars, constvars=constvars, eqns=eqns, outvars=outvars)

    def aval(self, aval: Any) -> Any:
        if not isinstance(aval, jax.core.ShapedArray):
            return aval
        return jax.core.ShapedArray(aval.shape, aval.dtype, aval.weak_type)

    def param(self, value: Any) -> Any:
        if isinstance(value, jax.sharding.NamedSharding):
            return None
        if isinstance(value, jax.sharding.AbstractMesh):
            return jax.sharding.AbstractMesh((), ())
        if isinstance(value, core.ClosedJaxpr):
            return core.ClosedJaxpr(self.jaxpr(value.jaxpr), value.consts)
        if isinstance(value, core.Jaxpr):
            return self.jaxpr(value)
        if type(value) in (tuple, list):
            return type(value)(map(self.param, value))
        if hasattr(value, "call_wrapped"):  # the rule of a custom derivative
            return _RuleWithoutMesh(value, self)
        return value


class _RuleWithoutMesh:
    """Gives the jaxpr of a derivative rule, as the function in its place does."""

    def __init__(self, rule: Any, remover: _MeshRemover):
        self.rule = rule
        self.remover = remover
        self.debug_info = rule.debug_info

    def call_wrapped(self, *zeros: Any) -> Any:
        jaxpr, consts, out_zeros = self.rule.call_wrapped(*zeros)
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            return self.remover.jaxpr(jaxpr), consts, out_zeros


# ---------------------------------------------------------------------------------------
# The key


class StructureKey:
    """A jaxpr's structure as a hashable value, with its hash worked out once.

    Attributes
    ----------
    tokens : tuple
        What is compared.
    objects : tuple
        Objects whose ids stand among the tokens, held so that no id is used again.

    """

    __slots__ = ("_hash", "objects", "tokens")

    def __init__(self, tokens: tuple, objects: tuple):
        self.tokens = tokens
        self.objects = objects
        self._hash = hash(tokens)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, StructureKey) or self._hash != other._hash:
            return False
        return self.tokens == other.tokens


def structure_key(jaxpr: Any, *static: Any) -> StructureKey:
    """Write down what a jaxpr computes.

    Parameters
    ----------
    jaxpr : Jaxpr
        With its constants lifted out.
    *static : hashable
        Whatever else should be equal.

    """
    writer = _KeyWriter()
    tokens = (writer.jaxpr(jaxpr, ()), *static)
    return StructureKey(tokens, tuple(writer.objects))


class _KeyWriter:
    def __init__(self):
        self.objects: list = []
        self._jaxprs: dict[tuple, tuple] = {}  # (id, rules) -> (jaxpr, its tokens)
        self._contexts: dict[int, tuple[Any, str]] = {}

    def jaxpr(self, jaxpr: Any, rules: tuple) -> tuple:
        """The tokens of a jaxpr, met while working through the derivative rules `rules`."""
        key = id(jaxpr), rules
        if key not in self._jaxprs:
            self._jaxprs[key] = jaxpr, self._write_jaxpr(jaxpr, rules)
        return self._jaxprs[key][1]

    def closed(self, jaxpr: Any, consts: Any, rules: tuple) -> tuple:
        return self.jaxpr(jaxpr, rules), *(self._constant(const) for const in consts)

    def _write_jaxpr(self, jaxpr: Any, rules: tuple) -> tuple:
        names: dict[Any, int] = {}

        def bind(var: Any) -> Any:
            names[var] = len(names)
            return var.aval

        def read(atom: Any) -> Any:
            return self._literal(atom) if isinstance(atom, core.Literal) else names[atom]

        tokens: list = [len(jaxpr.constvars), len(jaxpr.invars)]
        tokens += [bind(var) for var in (*jaxpr.constvars, *jaxpr.invars)]
        for eqn in jaxpr.eqns:
            tokens += (eqn.primitive, self._context(eqn), len(eqn.invars))
            tokens += [read(atom) for atom in eqn.invars]
            tokens.append(self._params(eqn, rules))
            tokens += [bind(var) for var in eqn.outvars]
        tokens += [read(atom) for atom in jaxpr.outvars]
        return tuple(tokens)

    def _context(self, eqn: Any) -> str:
        """The settings under which an equation was written: mesh, kind of memory, metadata."""
        context = getattr(eqn, "ctx", None)
        if id(context) not in self._contexts:
            self._contexts[id(context)] = context, repr(context)
        return self._contexts[id(context)][1]

    def _literal(self, literal: Any) -> tuple:
        return literal.aval, self._constant(literal.val)

    def _constant(self, value: Any) -> Any:
        """A constant that could not be lifted out.

        JAX may look at the very memory of the user's NumPy array, now and when the jaxpr is
        used again, so its identity counts as well as its contents.
        """
        if isinstance(value, np.ndarray) and value.ndim:
            owner = value if value.base is None else value.base
            return self.identity(owner), self._array(value)
        return self._array(value)

    def _params(self, eqn: Any, rules: tuple) -> tuple:
        params = eqn.params
        if "jvp_jaxpr_fun" in params:
            return self._custom_jvp(params, len(eqn.invars), rules)
        return tuple((name, self.value(params[name], rules)) for name in sorted(params))

    def _custom_jvp(self, params: Any, inputs: int, rules: tuple) -> tuple:
        """A function with a derivative rule: its own jaxpr, and the jaxpr of its rule.

        The rule stands in the equation as a Python function made for this one trace, so its
        identity says nothing. What it computes does, and JAX keeps the trace made here for
        the first derivative. A rule that calls the function that it belongs to, as most do,
        would go on for ever: see `_RULE_DEPTH`.
        """
        rule = params["jvp_jaxpr_fun"]
        others = {name: value for name, value in params.items() if name != "jvp_jaxpr_fun"}
        itself = tuple((name, self.value(others[name], rules)) for name in sorted(others))
        where = getattr(getattr(rule, "debug_info", None), "func_src_info", None)
        if rules.count((where, itself)) >= _RULE_DEPTH and where is not None:
            return where, itself
        try:
            if params["symbolic_zeros"]:  # then the rule is free to differ by argument
                raise NotImplementedError
            tangents = inputs - params["num_consts"]
            jaxpr, consts, zeros = rule.call_wrapped(*[False] * tangents)
        except Exception:
            return self.identity(rule), itself
        body = self.closed(jaxpr, consts, (*rules, (where, itself)))
        return itself, body, tuple(map(bool, zeros))

    def value(self, value: Any, rules: tuple) -> Any:
        """One parameter of an equation."""
        kind = type(value)
        if value is None or kind in (bool, int, str, bytes):
            return kind, value
        if kind in (float, complex):
            return kind, struct.pack("dd", value.real, value.imag)
        if hasattr(value, "eqns"):  # a jaxpr, open or closed
            return self.closed(getattr(value, "jaxpr", value), getattr(value, "consts", ()), rules)
        if isinstance(value, (tuple, list)):
            return kind, *(self.value(v, rules) for v in value)
        if isinstance(value, dict):
            return kind, *((self.value(k, rules), self.value(v, rules)) for k, v in value.items())
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            return self._array(value)
        return (kind, value) if _is_hashable(value) else self.identity(value)

    def _array(self, value: Any) -> Any:
        """An array or a number, by its contents where they are cheap to have."""
        if isinstance(value, jax.Array) and not _is_cheap_to_read(value):
            return self.identity(value)
        array = np.asarray(value)
        if array.dtype.hasobject:
            return self.identity(value)
        contents = array.tobytes()
        if len(contents) > _SMALL_BYTES:
            contents = hashlib.blake2b(contents).digest()
        return str(array.dtype), array.shape, bool(getattr(value, "weak_type", False)), contents

    def identity(self, value: Any) -> tuple:
        self.objects.append(value)
        return "is", id(value)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _is_cheap_to_read(value: jax.Array) -> bool:
    return (
        not isinstance(value, jax.core.Tracer)
        and not jax.numpy.issubdtype(value.dtype, jax.dtypes.extended)
        and value.nbytes <= _SMALL_BYTES
        and value.is_fully_addressable
    )
