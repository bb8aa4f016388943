"""All that this package knows of JAX's inside, which JAX does not promise.

Modules for extensions of JAX, primitives by their names and parameters, the wrappers which JAX
puts around a derivative rule: nothing outside of this file reads them. What a new JAX changes is
to be changed here; `tests/test_jax_internals.py` says what it was, for most of it would not fail
by itself: a name that is not found is taken for something that nothing is known of, and a
function is then compiled anew each time, or evaluated on whole arrays only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np
from jax.extend import core, linear_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import convert_element_type_p
from jax.interpreters.ad import Zero
from jax.sharding import AbstractMesh
from jaxtyping import Array

__all__ = ["ClosedJaxpr", "Jaxpr", "JaxprEqn", "Literal", "Var", "Zero"]

AbstractValue = jax.core.AbstractValue
Atom = Var | Literal


# ---------------------------------------------------------------------------------------
# Primitives by name

# Operations whose result has the operands' shape, element by element.
_NAMES = """
    abs acos acosh add add_jaxvals and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    cbrt ceil clamp convert_element_type copy copy_p cos cosh digamma div eq
    erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac integer_pow is_finite
    le lgamma log log1p log2 logistic lt max min mul ne neg nextafter not or polygamma pow
    population_count reduce_precision regularized_incomplete_beta rem round rsqrt
    select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square
    stop_gradient sub tan tanh xor zeta
"""
ELEMENTWISE = frozenset(_NAMES.split())
# Calls of a jaxpr, and in which parameter it stands.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
RESHARD = frozenset({"reshard", "mesh_cast", "sharding_constraint"})


def shape_of(atom: Any) -> tuple[int, ...]:
    """The shape of what an atom of a jaxpr stands for."""
    return atom.aval.shape


def dtype_of(atom: Any) -> np.dtype:
    """The dtype of what an atom of a jaxpr stands for."""
    return atom.aval.dtype


def is_elementwise(eqn: JaxprEqn) -> bool:
    """Whether element i of the results depends on the elements i of the operands alone."""
    return eqn.primitive.name in ELEMENTWISE and eqn.params.get("sharding") is None


def is_spread(eqn: JaxprEqn) -> bool:
    """Whether it is a broadcast."""
    return eqn.primitive.name == "broadcast_in_dim"


def keeps_elements(eqn: JaxprEqn) -> bool:
    """Whether it is a broadcast or a reshape which does nothing."""
    if not is_spread(eqn) and eqn.primitive.name != "reshape":
        return False
    shape = shape_of(eqn.invars[0])
    if shape_of(eqn.outvars[0]) != shape:
        return False
    if is_spread(eqn):
        return eqn.params["broadcast_dimensions"] == tuple(range(len(shape)))
    return eqn.params["dimensions"] is None


def called_jaxpr(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr that an equation does nothing but call; None for others."""
    name = CALLS.get(eqn.primitive.name)
    if name is None:
        return None
    body = eqn.params[name]
    return body if isinstance(body, ClosedJaxpr) else ClosedJaxpr(body, [])


def is_call_of(closed: ClosedJaxpr, trace: ClosedJaxpr | Jaxpr) -> bool:
    """Whether all it does is to call what JAX traced of a function under `jax.jit`."""
    if closed.consts or len(closed.eqns) != 1:
        return False
    (eqn,), (inputs, results) = closed.eqns, (closed.jaxpr.invars, closed.jaxpr.outvars)
    return (
        eqn.params.get(CALLS.get(eqn.primitive.name, "")) is trace
        and list(eqn.invars) == list(inputs)
        and list(eqn.outvars) == list(results)
    )


def evaluate(eqn: JaxprEqn, operands: list) -> list:
    """Its results."""
    out = eqn.primitive.bind(*operands, **eqn.params)
    return list(out) if eqn.primitive.multiple_results else [out]


def is_exponent(eqn: JaxprEqn, place: int) -> bool:
    """Whether an operand is the exponent of a power."""
    return eqn.primitive.name == "pow" and place == 1


def is_callback(eqn: JaxprEqn) -> bool:
    """Whether it calls a Python function when the program runs."""
    return "callback" in eqn.primitive.name


def is_reshard(eqn: JaxprEqn) -> bool:
    """Whether it only says how its operand is to be sharded."""
    return eqn.primitive.name in RESHARD


def weakly_typed(value: Array) -> Array:
    """The same of a weak type."""
    return convert_element_type_p.bind(value, new_dtype=value.dtype, weak_type=True, sharding=None)


# ---------------------------------------------------------------------------------------
# Effects and contexts


def has_effects_on_inputs(jaxpr: Jaxpr | ClosedJaxpr) -> bool:
    """Whether it writes to references; such effects name their inputs by number or variable."""
    effects = [*jaxpr.effects, *(effect for eqn in jaxpr.eqns for effect in eqn.effects)]
    return any(hasattr(effect, "input_index") or hasattr(effect, "input") for effect in effects)


def names_an_axis(effect: Any) -> bool:
    """Whether an effect is that of `jax.lax.psum` and its kin, on an axis with a name."""
    return type(effect).__name__ == "NamedAxisEffect"


def context_of(eqn: JaxprEqn) -> Any:
    """The settings under which an equation was written: mesh, kind of memory, metadata."""
    return getattr(eqn, "ctx", None)


def without_any_mesh() -> Any:
    """Context manager: as outside of any mesh."""
    return jax.sharding.use_abstract_mesh(AbstractMesh((), ()))


def new_context() -> Any:
    """That of an equation which is written here and now."""
    return context_of(jax.make_jaxpr(lambda x: x + 1)(0.0).eqns[0])


def is_left_over(const: Any) -> bool:
    """Whether it is a tracer of a trace that is over."""
    if not isinstance(const, jax.core.Tracer):
        return False
    trace = core.get_opaque_trace_state()._trace_ref()
    while trace is not None and trace is not const._trace:
        trace = getattr(trace, "parent_trace", None)
    return trace is None


# ---------------------------------------------------------------------------------------
# Equations with bodies


class Bodies(NamedTuple):
    """The jaxprs that an equation runs, which may get further inputs.

    Attributes
    ----------
    jaxprs : list of ClosedJaxpr
    places : list of int
        Where among its operands the further inputs of each are to stand.
    params : callable
        The equation's parameters, of the new jaxprs and the types of their further inputs.
    """

    jaxprs: list[ClosedJaxpr]
    places: list[int]
    params: Callable[[list[ClosedJaxpr], list[list[AbstractValue]]], dict[str, Any]]


def bodies_of(eqn: JaxprEqn) -> Bodies | None:
    """The jaxprs in an equation; None if it has none, or must stay as it is."""
    find = _BODIES.get(eqn.primitive.name)
    return None if find is None else find(eqn.params)


def with_inputs(jaxpr: Jaxpr, at: int, more: Sequence[Var]) -> ClosedJaxpr:
    """The jaxpr with further inputs, which stand ``at`` some place among its own."""
    invars = [*jaxpr.invars[:at], *more, *jaxpr.invars[at:]]
    return ClosedJaxpr(jaxpr.replace(invars=invars, debug_info=_unnamed(jaxpr.debug_info)), [])


def _unnamed(info: Any) -> Any:
    return info._replace(arg_names=None, result_paths=None)


def _of_call(params: dict) -> Bodies:
    return Bodies([params["call_jaxpr"]], [0], lambda new, _: {**params, "call_jaxpr": new[0]})


def _of_jit(params: dict) -> Bodies | None:
    if not _is_plain_call(params):
        return None

    def changed(new: list, more: list) -> dict:
        count = len(more[0])
        shardings = (*params["in_shardings"], *params["out_shardings"])  # all say nothing
        return {
            **params,
            "jaxpr": new[0],
            "in_shardings": shardings[:1] * count + tuple(params["in_shardings"]),
            "in_layouts": (None,) * count + tuple(params["in_layouts"]),
            "donated_invars": (False,) * count + tuple(params["donated_invars"]),
        }

    return Bodies([params["jaxpr"]], [0], changed)


def _is_plain_call(params: dict) -> bool:
    """Whether a nested `jax.jit` does nothing but call its jaxpr."""
    if has_effects_on_inputs(params["jaxpr"]):
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


def _of_checkpoint(params: dict) -> Bodies | None:
    if not isinstance(params["prevent_cse"], bool):
        return None
    body = ClosedJaxpr(params["jaxpr"], [])
    return Bodies([body], [0], lambda new, _: {**params, "jaxpr": new[0].jaxpr})


def _of_scan(params: dict) -> Bodies:
    def changed(new: list, more: list) -> dict:
        count = len(more[0])
        if "num_consts" in params:
            return {**params, "jaxpr": new[0], "num_consts": params["num_consts"] + count}
        # Since JAX 0.11: constants, carry and xs as a tree of three.
        trees = importlib.import_module(type(params["ft_in"]).__module__)
        consts, carry, xs = params["ft_in"].unpack()
        consts = trees.nones(len(consts) + count)
        return {**params, "jaxpr": new[0], "ft_in": trees.pack((consts, carry, xs))}

    return Bodies([params["jaxpr"]], [0], changed)


def _of_while(params: dict) -> Bodies:
    names = ("cond_jaxpr", "cond_nconsts"), ("body_jaxpr", "body_nconsts")

    def changed(new: list, more: list) -> dict:
        out = dict(params)
        for (name, count), jaxpr, types in zip(names, new, more, strict=True):
            out |= {name: jaxpr, count: params[count] + len(types)}
        return out

    jaxprs = [params[name] for name, _ in names]
    return Bodies(jaxprs, [0, params["cond_nconsts"]], changed)


def _of_cond(params: dict) -> Bodies:
    def changed(new: list, more: list) -> dict:
        unused = [[Var(aval) for aval in types] for types in more]
        branches = []
        for i, (branch, types) in enumerate(zip(new, more, strict=True)):  # each gets those of all
            after = [var for others in unused[i + 1 :] for var in others]
            before = [var for others in unused[:i] for var in others]
            jaxpr = with_inputs(branch.jaxpr, len(types), after).jaxpr
            branches.append(with_inputs(jaxpr, 0, before))
        return {**params, "branches": tuple(branches)}

    branches = list(params["branches"])
    return Bodies(branches, [1] * len(branches), changed)


_BODIES: dict[str, Callable[[dict], Bodies | None]] = {
    "jit": _of_jit,
    "pjit": _of_jit,
    "closed_call": _of_call,
    "checkpoint": _of_checkpoint,
    "remat2": _of_checkpoint,
    "scan": _of_scan,
    "while": _of_while,
    "cond": _of_cond,
}


# ---------------------------------------------------------------------------------------
# Functions with derivative rules of their own


# Since JAX 0.11 a backward pass gives its cotangents and what it logs.
_BACKWARD_LOGS = hasattr(jax.custom_vjp, "defvjp_with_logs")


class TracedRules(NamedTuple):
    """The derivative rules of a function as closed jaxprs.

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

    jaxprs: list[ClosedJaxpr]
    zeros: list
    residuals: list[int | None] | None


def is_custom(eqn: JaxprEqn) -> bool:
    """Whether it calls a function with a derivative rule of its own."""
    return "jvp_jaxpr_fun" in eqn.params or "fwd_jaxpr_thunk" in eqn.params


def rules_of(eqn: JaxprEqn) -> tuple[Callable, ...]:
    """The Python functions which are its rules."""
    names = ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd")
    return tuple(eqn.params[name] for name in names if name in eqn.params)


def beside_rules(eqn: JaxprEqn) -> dict[str, Any]:
    """What an equation of a function with rules says beside them."""
    return {name: eqn.params[name] for name in ("call_jaxpr", "num_consts", "symbolic_zeros")}


def trace_rules(eqn: JaxprEqn) -> TracedRules:
    """Trace the rules of an equation; raises whatever they raise."""
    return _trace_jvp(eqn) if "jvp_jaxpr_fun" in eqn.params else _trace_vjp(eqn)


def _trace_jvp(eqn: JaxprEqn) -> TracedRules:
    count = len(eqn.invars) - eqn.params["num_consts"]
    jaxpr, consts, zeros = eqn.params["jvp_jaxpr_fun"].call_wrapped(*[False] * count)
    return TracedRules([ClosedJaxpr(jaxpr, consts)], list(map(bool, zeros)), None)


def _trace_vjp(eqn: JaxprEqn) -> TracedRules:
    params = eqn.params
    arguments = [var.aval for var in eqn.invars]
    count = len(arguments) - params["num_consts"]
    forward = ClosedJaxpr(*params["fwd_jaxpr_thunk"].call_wrapped(*[True] * count))
    _, _, places = params["out_trees"]()
    computed = iter(forward.out_avals)
    avals = [next(computed) if i is None else arguments[i] for i in places]
    cotangents = [aval.to_ct_aval() for aval in params["call_jaxpr"].out_avals]
    zeros: list = []

    def backward(*values: Any) -> list:
        out = params["bwd"].call_wrapped(*values)
        out = out[0] if _BACKWARD_LOGS else out
        zeros[:] = [x if isinstance(x, Zero) else None for x in out]
        return [x for x in out if not isinstance(x, Zero)]

    shapes = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
        for aval in (*avals, *cotangents)
    ]
    residuals = [None if i is None else i - params["num_consts"] for i in places]
    return TracedRules([forward, jax.make_jaxpr(backward)(*shapes)], zeros, residuals)


def other_rules(
    eqn: JaxprEqn, calls: Sequence[Callable], residuals: Sequence[int | None]
) -> dict[str, Any]:
    """The parameters with which an equation has other rules than its own.

    ``calls`` are the tangents of a `custom_jvp`, or the passes of a `custom_vjp`, forward and
    back; ``residuals`` says which of the backward pass's are arguments, by their number.
    """
    params = eqn.params
    wrapped = [
        linear_util.wrap_init(call, debug_info=_unnamed(rule.debug_info))
        for call, rule in zip(calls, rules_of(eqn), strict=True)
    ]
    if "jvp_jaxpr_fun" in params:
        return {"jvp_jaxpr_fun": wrapped[0]}
    places = [i if i is None else i + params["num_consts"] for i in residuals]
    trees = jax.tree.structure(list(eqn.outvars)), jax.tree.structure([0] * len(places)), places
    forward, backward = wrapped
    return {"fwd_jaxpr_thunk": forward, "bwd": backward, "out_trees": lambda: trees}


def backward_result(cotangents: list) -> Any:
    """What a backward pass gives to JAX."""
    return (cotangents, None) if _BACKWARD_LOGS else cotangents


def zero_cotangent(aval: Any) -> Zero:
    """That of a value of this type."""
    return Zero(aval.to_ct_aval())


def tangent_type(aval: Any) -> AbstractValue:
    """The type of its tangents."""
    return aval.to_tangent_aval()


# -- JAX's own wrappers of a rule, and which of their variables lead on to it
PLUMBING = {
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


def is_wrapped(obj: Any) -> bool:
    """Whether it is a function under JAX's transformations."""
    return all(hasattr(obj, name) for name in ("f", "transforms", "call_wrapped"))


def parts_of(obj: Any, packages: frozenset[str]) -> list | None:
    """What an object that stands for a function is made of; None for other objects.

    It is of JAX, or of a class in one of the ``packages``.
    """
    if is_wrapped(obj):
        statics = [value for _, values in obj.transforms for value in values]
        # Without what is there for messages only.
        statics = [value for value in statics if not isinstance(value, core.DebugInfo)]
        return [*statics, *(transform.__qualname__ for transform, _ in obj.transforms), obj.f]
    if isinstance(obj, jax.custom_jvp):
        return [obj.fun, obj.jvp, obj.nondiff_argnums, obj.symbolic_zeros]
    if isinstance(obj, jax.custom_vjp):
        return [obj.fun, obj.fwd, obj.bwd, obj.nondiff_argnums, obj.symbolic_zeros]
    if isinstance(obj, jax.custom_batching.custom_vmap):
        return [obj.fun, obj.vmap_rule]
    if type(obj).__module__.partition(".")[0] in packages:
        for name in ("val", "rule", "__wrapped__"):  # static argument, rule of vmap, jax.jit
            if hasattr(obj, name):
                return [getattr(obj, name)]
    return None
