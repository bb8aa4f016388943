"""A jaxpr that was traced under a mesh of explicit axes, for use where those are automatic."""

from __future__ import annotations

from typing import Any

import jax
import jax.core
from jaxtyping import PyTree

from . import jax_internals as internals
from .jax_internals import AbstractValue, ClosedJaxpr, Jaxpr, Literal


def without_mesh(jaxpr: Jaxpr) -> Jaxpr:
    """The same jaxpr as one that was traced outside of any mesh.

    What was traced under a mesh of explicit axes has shardings in its types, and cannot be used
    where the axes of that mesh are automatic.
    """
    with internals.without_any_mesh():
        return _MeshRemover(internals.new_context()).jaxpr(jaxpr)


class _MeshRemover:
    def __init__(self, context: Any):
        self.context = context

    def jaxpr(self, jaxpr: Jaxpr) -> Jaxpr:
        names: dict[Any, Any] = {}

        def atom(old: PyTree) -> PyTree:
            if isinstance(old, Literal):
                return Literal(old.val, self.aval(old.aval))
            if old not in names:
                names[old] = type(old)(self.aval(old.aval))
            return names[old]

        invars, constvars = ([atom(v) for v in vs] for vs in (jaxpr.invars, jaxpr.constvars))
        eqns = []
        for eqn in jaxpr.eqns:
            if internals.is_reshard(eqn):
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

    def aval(self, aval: AbstractValue) -> AbstractValue:
        if not isinstance(aval, jax.core.ShapedArray):
            return aval
        return jax.core.ShapedArray(aval.shape, aval.dtype, aval.weak_type)

    def param(self, value: Any) -> PyTree:
        if isinstance(value, jax.sharding.NamedSharding):
            return None
        if isinstance(value, jax.sharding.AbstractMesh):
            return jax.sharding.AbstractMesh((), ())
        if isinstance(value, ClosedJaxpr):
            return ClosedJaxpr(self.jaxpr(value.jaxpr), value.consts)
        if isinstance(value, Jaxpr):
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

    def call_wrapped(self, *zeros: Any) -> PyTree:
        jaxpr, consts, out_zeros = self.rule.call_wrapped(*zeros)
        with internals.without_any_mesh():
            return self.remover.jaxpr(jaxpr), consts, out_zeros
