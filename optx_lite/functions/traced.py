"""A Python function as a value: its jaxpr, with everything it captured as inputs.

`lift(fun, *examples)` traces `fun` and gives a `Lifted`, a pytree. Its leaves are the arrays
that `fun` captured; its structure is the mathematics alone. So it can be handed to a compiled
function like any other argument, and

- a function with the same mathematics over other data does not compile again, because its
  structure equals the last one's;
- captured tracers of an outer `jit`, `vmap` or `grad` are plain inputs, and carry their
  derivatives.

What `fun` computes may depend on all that Python code can read: closures, globals, files, a
redefined helper. So it is traced each time; nothing else is safe. A function under `jax.jit` is
traced by JAX when JAX finds that to be necessary, and what was made of its trace here is kept as
long as JAX keeps that (see `jitted`).

Its matrix products are taken in full precision unless `jax_default_matmul_precision` is set: with
ten bits, XLA's default for float32 on GPUs, no derivative test and no last digit makes sense.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..jax_support.control_flow import vary_with
from ..jax_support.xla import full_precision_unless_chosen
from .cache import structure_of
from .constants import lift_constants
from .errors import explain
from .jax_internals import ClosedJaxpr, is_left_over
from .jitted import keep, made_before, trace_of
from .lifted import Lifted, is_dynamic


def lift(fun: Callable, *examples: Any, label: str = "fun") -> Lifted:
    """Trace a function and lift everything it captured out as inputs.

    Parameters
    ----------
    fun : callable
        Any Python callable that JAX can trace.
    *examples : pytrees
        Its arguments, or anything of their shapes and dtypes (`jax.ShapeDtypeStruct`).
        Numbers are inputs; leaves that are neither arrays nor numbers (strings, functions)
        are taken as constants.
    label : str
        What to call the function in messages.

    Returns
    -------
    Lifted
        Of the same values and derivatives.

    Raises
    ------
    TypeError
        If `fun` does what JAX cannot trace, as NumPy functions and `if` on a traced value
        do, or gives back something that is not an array. Other exceptions of `fun` pass as
        they are.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> def model(rate):
    ...     return lambda t: jnp.exp(-rate * t)
    >>> t = jnp.arange(3.0)
    >>> slow, fast = lift(model(jnp.array(0.1)), t), lift(model(jnp.array(9.0)), t)
    >>> slow.structure == fast.structure
    True
    >>> print(slow(t).round(2))
    [1.   0.9  0.82]

    """
    trace = full_precision_unless_chosen(trace_of)(fun, examples)
    made = made_before(fun, trace)
    if made is not None:
        return made
    dynamic, static = eqx.partition(examples, is_dynamic)
    leaves, in_tree = jax.tree.flatten(dynamic)

    # A new function each time: JAX, too, remembers what it traced, by identity alone.
    def on_leaves(*leaves: PyTree) -> PyTree:
        out = fun(*eqx.combine(jax.tree.unflatten(in_tree, leaves), static))
        _check_result(out, label)
        return out

    closed, captured, lifted = _trace(on_leaves, leaves, label)
    # Within `shard_map`: where the result differs from device to device, the arguments will.
    cast = vary_with(leaves, lifted.out_shape)
    if all(a is b for a, b in zip(cast, leaves, strict=True)):
        keep(fun, trace, closed, captured, lifted)
        return lifted
    return _trace(on_leaves, cast, label)[-1]


def _trace(fun: Callable, leaves: list, label: str) -> tuple[ClosedJaxpr, list, Lifted]:
    """Its jaxpr, what that captured, and both as a value."""
    try:
        make_jaxpr = full_precision_unless_chosen(jax.make_jaxpr(fun, return_shape=True))
        closed, out_shape = make_jaxpr(*leaves)
    except Exception as err:
        explain(err, label, leaves)
        raise
    parts = lift_constants(closed)
    _check_alive([*leaves, *parts.consts], label)
    structure = structure_of(parts, closed, jax.tree.structure(out_shape))
    with jax.ensure_compile_time_eval():  # an outer trace shall not stage the copies out
        arrays = [_own(const) for const in parts.consts]
        vectors = [jnp.array(np.array(values, kind.dtype)) for kind, values in parts.numbers]
    return closed, parts.consts, Lifted((*arrays, *vectors), structure)


def _check_alive(arrays: list, label: str) -> None:
    """None is a tracer of a transformation that is over, which JAX would not always refuse."""
    if any(is_left_over(array) for array in arrays):
        raise jax.errors.UnexpectedTracerError(
            f"{label} was given or has captured a traced array of a `jit`, `vmap` or `grad` that "
            "is over, as through a global variable: hand it on in `args`. A function under `jit` "
            "keeps what it captured when it was traced (see its `clear_cache`)."
        )


def _own(const: Any) -> PyTree:
    """A NumPy array as a JAX array of our own: the user may write into theirs."""
    if isinstance(const, jax.Array):
        return const
    return jnp.array(np.asarray(const), dtype=const.dtype, copy=True)


def _check_result(out: PyTree, label: str) -> None:
    for leaf in jax.tree.leaves(out):
        if not is_dynamic(leaf) or (isinstance(leaf, np.ndarray) and leaf.dtype.hasobject):
            raise TypeError(
                f"{label} must return arrays or numbers, or a pytree of them, "
                f"not {type(leaf).__module__}.{type(leaf).__qualname__}: {leaf!r:.60}"
            )
