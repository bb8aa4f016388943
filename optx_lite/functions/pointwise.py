"""An elementwise function on any part of its elements: a jaxpr cut loose from its shape.

A function f(x, args) whose element i depends on the elements i alone may be computed on blocks
of them that fit the cache, or on the few that are not done yet. But f was traced on whole
arrays, and calling it on parts would ask the user to have written it for any shape: an array it
closes over, or an `arange` of x's length, would broadcast against a part and give wrong numbers
in silence. So it is not called again. Its jaxpr, made on whole arrays, is read through:

- what does not depend on x is computed once, on whole arrays, as it stands;
- what does must be made of elementwise operations on arrays of the whole shape; then each
  array, captured ones and those just computed too, is cut in the same places.

A function with anything else in it (a reduction, a lookup, a loop, a print) is not known to be
elementwise, and `pointwise` says None: it is then evaluated on whole arrays only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ..jax_support.control_flow import vary_with
from .jax_internals import (
    Jaxpr,
    JaxprEqn,
    Literal,
    called_jaxpr,
    evaluate,
    is_elementwise,
    is_spread,
    keeps_elements,
    shape_of,
)
from .lifted import Lifted


class _NotElementwise(Exception):
    """The function has something in it that may mix elements."""


class _Operation(NamedTuple):
    eqn: JaxprEqn
    operands: tuple[int, ...]  # numbers of values
    results: tuple[int, ...]


class _Code:
    """The operations that depend on x; compared by identity, so that it may be static."""

    def __init__(self) -> None:
        self.operations: list[_Operation] = []
        self.count = 1  # of values; number 0 is x
        self.inputs: list[int] = []
        self.result = 0

    def new_value(self) -> int:
        self.count += 1
        return self.count - 1


class Pointwise(eqx.Module):
    """A function of x, and of the elements of other arrays.

    Attributes
    ----------
    inputs : list of arrays
        Each (n,), one number for each element, or (): one for all of them.
    """

    inputs: list[Array]
    code: _Code = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        """Compute it from x, (m,), with inputs that are cut to (m,), too."""
        values: dict[int, Any] = {0: x}
        values.update(zip(self.code.inputs, self.inputs, strict=True))
        for eqn, operands, results in self.code.operations:
            spread = [jnp.broadcast_to(values[k], x.shape) for k in operands]
            out = evaluate(eqn, vary_with(spread, spread))
            values.update(zip(results, out, strict=True))
        return jnp.broadcast_to(values[self.code.result], x.shape)


def pointwise(fun: Lifted, shape: tuple[int, ...], args: Any) -> Pointwise | None:
    """The function of x that ``fun(x, *args)`` is, cut loose from the shape of x.

    Parameters
    ----------
    fun : Lifted
        Traced on x of the given shape, with a result of that shape.
    shape : tuple of int
        Of the whole array.
    args : tuple
        Further arguments.

    Returns
    -------
    Pointwise or None
        None if nothing says that the function is elementwise.
    """
    jaxpr = fun.structure.jaxpr
    if jaxpr.effects:
        return None
    captured, ((x, _), *rest) = fun.bindings(
        jnp.zeros(shape, fun.structure.in_avals[0].dtype), *args
    )
    outside = {var: _Outer(value) for var, value in [*captured, *rest]}
    reader = _Reader(shape)
    try:
        (result,) = reader.read(jaxpr, {**outside, x: _Inner(0)})
        reader.code.result = reader.number_of(result)
    except _NotElementwise:
        return None
    return Pointwise(reader.inputs, reader.code)


class _Inner(NamedTuple):
    """A value that depends on x, an array of the whole shape, by its number."""

    number: int


class _Outer:
    """A value that does not.

    ``whole`` is the value; ``same`` the one number in all its entries, where that is known.
    """

    def __init__(self, whole: Any, same: Any = None):
        self.whole = whole
        self.same = whole if jnp.ndim(whole) == 0 else same
        self.number: int | None = None


def _look_up(atom: Any, env: dict[Any, Any]) -> Any:
    if isinstance(atom, Literal):
        aval: Any = atom.aval
        return _Outer(jnp.asarray(atom.val, aval.dtype))
    return env[atom]


class _Reader:
    """Goes through a jaxpr, computes what does not depend on x, and writes down the rest."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape
        self.code = _Code()
        self.inputs: list[Array] = []

    def read(self, jaxpr: Jaxpr, env: dict[Any, Any]) -> list[Any]:
        """Read all equations; ``env`` says what the variables are. Gives the results."""
        for eqn in jaxpr.eqns:
            operands = [_look_up(atom, env) for atom in eqn.invars]
            body = called_jaxpr(eqn)
            if body is not None:  # as if it stood in the place of the call
                consts = list(map(_Outer, body.consts))
                variables = [*body.jaxpr.constvars, *body.jaxpr.invars]
                results = self.read(
                    body.jaxpr, dict(zip(variables, [*consts, *operands], strict=True))
                )
            elif not any(isinstance(operand, _Inner) for operand in operands):
                results = self._evaluate(eqn, operands)
            else:
                results = self._write_down(eqn, operands)
            env.update(zip(eqn.outvars, results, strict=True))
        return [_look_up(atom, env) for atom in jaxpr.outvars]

    def number_of(self, value: Any) -> int:
        """The number by which the code knows a value; one from outside becomes an input."""
        if isinstance(value, _Inner):
            return value.number
        if value.number is None:
            if value.same is None and jnp.shape(value.whole) != self.shape:
                raise _NotElementwise
            value.number = self.code.new_value()
            self.code.inputs.append(value.number)
            whole = value.whole if value.same is None else value.same
            self.inputs.append(whole if jnp.ndim(whole) == 0 else jnp.reshape(whole, (-1,)))
        return value.number

    def _write_down(self, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        if any(shape_of(var) != self.shape for var in eqn.outvars):
            raise _NotElementwise
        if keeps_elements(eqn):
            return operands[:1]
        if not is_elementwise(eqn):
            raise _NotElementwise
        numbers = tuple(map(self.number_of, operands))
        results = [_Inner(self.code.new_value()) for _ in eqn.outvars]
        written = tuple(result.number for result in results)
        self.code.operations.append(_Operation(eqn, numbers, written))
        return results

    def _evaluate(self, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        """On whole arrays; on one number, too, where all entries are the same."""
        whole = evaluate(eqn, [operand.whole for operand in operands])
        same: list[Any] = [None] * len(whole)
        if is_spread(eqn) and jnp.ndim(operands[0].whole) == 0:
            same = [operands[0].whole]
        elif is_elementwise(eqn) and all(o.same is not None for o in operands):
            same = evaluate(eqn, [operand.same for operand in operands])
        return list(map(_Outer, whole, same))
