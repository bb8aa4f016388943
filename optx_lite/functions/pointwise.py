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

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..jax_support.control_flow import vary_with
from . import jax_internals as internals
from .jax_internals import Atom, Jaxpr, JaxprEqn, Literal, Var
from .lifted import Lifted


class _Code:
    """The equations that depend on x; compared by identity, so that it may be static.

    ``inputs`` are the variables that come from elsewhere.
    """

    def __init__(self, x: Var, eqns: list[JaxprEqn], result: Atom):
        self.x, self.eqns, self.result = x, eqns, result
        own = {x, *(var for eqn in eqns for var in eqn.outvars)}
        used = [*(atom for eqn in eqns for atom in eqn.invars), result]
        others = (atom for atom in used if isinstance(atom, Var) and atom not in own)
        self.inputs: list[Var] = list(dict.fromkeys(others))


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
        values = {self.code.x: x, **dict(zip(self.code.inputs, self.inputs, strict=True))}

        def read(atom: Atom) -> Array:
            return jnp.broadcast_to(_value(atom, values), x.shape)

        for eqn in self.code.eqns:
            operands = list(map(read, eqn.invars))
            results = internals.evaluate(eqn, vary_with(operands, operands))
            values.update(zip(eqn.outvars, results, strict=True))
        return read(self.code.result)


def pointwise(fun: Lifted, shape: tuple[int, ...], args: tuple[PyTree, ...]) -> Pointwise | None:
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
    values = _Values(dict([*captured, *rest]))
    eqns: list[JaxprEqn] = []
    (result,) = _inline(jaxpr, {}, eqns, values.whole)
    depend: set[Atom] = {x}
    inner = []
    for eqn in eqns:
        if depend.isdisjoint(atom for atom in eqn.invars if isinstance(atom, Var)):
            values.compute(eqn)
        elif not internals.is_elementwise(eqn) or any(
            internals.shape_of(var) != shape for var in eqn.outvars
        ):
            return None
        else:
            inner.append(eqn)
            depend.update(eqn.outvars)
    code = _Code(x, inner, result)
    inputs = [values.one_each(var) for var in code.inputs]
    if any(jnp.ndim(value) and value.shape != shape for value in inputs):
        return None
    return Pointwise([jnp.reshape(v, (-1,)) if jnp.ndim(v) else v for v in inputs], code)


def _value(atom: Atom, values: dict[Var, PyTree]) -> PyTree:
    if isinstance(atom, Literal):
        return jnp.asarray(atom.val, internals.dtype_of(atom))
    return values[atom]


def _inline(
    jaxpr: Jaxpr, names: dict[Var, Atom], eqns: list[JaxprEqn], consts: dict[Var, PyTree]
) -> list[Atom]:
    """Write down all equations, with the bodies of calls in their place; gives the results.

    ``names`` says which atoms stand for the variables. What changes no element is left out.
    """

    def name(atom: Atom) -> PyTree:
        if not isinstance(atom, Literal):
            return names.get(atom, atom)
        if not jnp.ndim(atom.val):
            return atom
        var = Var(atom.aval)  # one whole array, to be cut as others are
        consts[var] = atom.val
        return var

    for eqn in jaxpr.eqns:
        operands = list(map(name, eqn.invars))
        body = internals.called_jaxpr(eqn)
        if body is not None:
            consts.update(zip(body.jaxpr.constvars, body.consts, strict=True))
            inside = dict(zip(body.jaxpr.invars, operands, strict=True))
            results = _inline(body.jaxpr, inside, eqns, consts)
        elif internals.keeps_elements(eqn):
            results = operands[:1]
        else:
            results = [Var(var.aval) for var in eqn.outvars]
            eqns.append(eqn.replace(invars=operands, outvars=results))
        names.update(zip(eqn.outvars, results, strict=True))
    return list(map(name, jaxpr.outvars))


class _Values:
    """The values that do not depend on x, on whole arrays."""

    def __init__(self, values: dict[Var, PyTree]):
        self.whole = values
        # The one number in all entries, where that is known.
        self.same: dict[Any, Any] = {
            var: value for var, value in values.items() if jnp.ndim(value) == 0
        }

    def compute(self, eqn: JaxprEqn) -> None:
        """All results of an equation; on one number, too, where all entries are the same."""
        operands = [_value(atom, self.whole) for atom in eqn.invars]
        self.whole.update(zip(eqn.outvars, internals.evaluate(eqn, operands), strict=True))
        numbers = [
            operand if jnp.ndim(operand) == 0 else self.same.get(atom)
            for atom, operand in zip(eqn.invars, operands, strict=True)
        ]
        if any(number is None for number in numbers):
            return
        if internals.is_spread(eqn):
            self.same[eqn.outvars[0]] = numbers[0]
        elif internals.is_elementwise(eqn):
            results = internals.evaluate(eqn, numbers)
            self.same.update(zip(eqn.outvars, results, strict=True))

    def one_each(self, var: Var) -> PyTree:
        """One number for each element, or one for all."""
        return self.same.get(var, self.whole[var])
