"""A function's jaxpr as a value: all constants and numbers lifted out as inputs.

`lift_constants` gathers them all into one list of inputs, also those of nested `jax.jit`, loops,
branches and derivative rules. What remains is the mathematics alone.

Numbers that remain in the jaxpr, so that a function with others is another function:

- integers, shapes, indices, and exponents that are integers in Python (``x**2``): they say what
  is to be computed;
- 0, inf and NaN: they mark what is absent;
- the real exponents that the compiler writes as products and roots (see `hoisting`);
- those in functions with a derivative rule or a batching rule of their own, in the rules, in
  linear solves (`lax.custom_linear_solve`), in `shard_map` and in kernels.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import DTypeLike

from .frozen_rules import Freezer
from .hoisting import Hoister, Scope
from .jax_internals import ClosedJaxpr, Jaxpr, Var, has_effects_on_inputs


class Number(NamedTuple):
    """Of what type a lifted number is."""

    dtype: DTypeLike
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

    jaxpr: Jaxpr
    consts: list
    numbers: list[tuple[Number, list]]


def lift_constants(closed: ClosedJaxpr) -> LiftedJaxpr:
    """Turn all constants of a closed jaxpr, nested ones included, into inputs."""
    if has_effects_on_inputs(closed):
        return LiftedJaxpr(closed.jaxpr, list(closed.consts), [])
    scope = Scope()
    jaxpr = Hoister(Freezer()).body(closed, scope)
    arrays = [(var, item.value) for var, item in scope.inputs if not item.is_number]
    numbers: dict[Number, tuple[list[Var], list]] = {}
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
