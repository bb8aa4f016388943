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
traced by JAX when JAX finds that to be necessary, and what was worked out of its jaxpr here is
remembered as long as JAX keeps that.
"""

from __future__ import annotations

import linecache
import re
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core.primitives import convert_element_type_p

from ..jax_support.control_flow import explicit_mesh, in_explicit_mode, vary_with
from .constants import LiftedJaxpr, Number, lift_constants
from .mesh import without_mesh
from .source_files import is_library_file
from .structure import structure_key


class Structure:
    """What stays the same when the data change: the jaxpr and the structure of its result.

    Structures that compute the same are one and the same object while any is in use (see
    `structure`), so that comparing them, as each call of a compiled function does, is free.

    Attributes
    ----------
    jaxpr : Jaxpr
        Constants first, then the arguments' leaves.
    out_tree : PyTreeDef
        Of the result.
    in_avals, out_avals : tuple
        Shapes and dtypes of the leaves of arguments and result.
    numbers : tuple of (Number, int)
        The last constants are vectors with so many numbers each.
    mesh : AbstractMesh or None
        Under which it was traced, if the types tell.

    """

    # fmt: off
    __slots__ = (
        "__weakref__", "_without_mesh", "in_avals", "jaxpr", "key", "mesh", "numbers", "out_avals",
        "out_tree",
    )
    # fmt: on

    def __init__(self, key: tuple, jaxpr: Any, out_tree: Any, avals: tuple):
        self.key = key
        self.jaxpr = jaxpr
        self.out_tree = out_tree
        self.in_avals, self.out_avals = avals
        self.numbers: tuple[tuple[Number, int], ...] = key[-1]
        self.mesh = _mesh_of(jaxpr)
        self._without_mesh: Any = None

    @property
    def without_mesh(self) -> Any:
        """The jaxpr for use where the axes of the mesh are automatic."""
        if self._without_mesh is None:
            self._without_mesh = without_mesh(self.jaxpr)
        return self._without_mesh

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Structure) and self.key == other.key)

    def __repr__(self) -> str:
        return f"Structure({len(self.jaxpr.eqns)} equations)"

    def __copy__(self) -> Structure:
        return self

    def __deepcopy__(self, _: Any) -> Structure:
        return self  # nothing in it changes

    def __reduce__(self) -> Any:
        raise TypeError(
            "A problem cannot be pickled, since it holds a traced function: pickle the function "
            "and its arguments, and make the problem of them anew. Results can be pickled."
        )


def _mesh_of(jaxpr: Any) -> Any:
    variables = [*jaxpr.constvars, *jaxpr.invars, *jaxpr.outvars]
    meshes = (explicit_mesh(v.aval) for v in variables)
    return next((mesh for mesh in meshes if mesh is not None), None)


class Lifted(eqx.Module):
    """A function of pytrees, as a pytree.

    Attributes
    ----------
    consts : tuple of arrays
        What the function captured, of any dtype: arrays, and the tracers of outer
        transformations. After them come the numbers in its code, as vectors.
    structure : Structure
        Static. Equal for functions that compute the same from `consts` and arguments.

    """

    consts: tuple[Any, ...]
    structure: Structure = eqx.field(static=True)

    def __call__(self, *args: Any) -> Any:
        """Compute the function from arguments of the examples' shapes and dtypes.

        Only their leaves count, in their order; and not those that were constants to `lift`,
        which may be there or not (see `inputs`).
        """
        structure = self.structure
        jaxpr = structure.jaxpr
        if structure.mesh is not None and not in_explicit_mode():
            jaxpr = structure.without_mesh
        try:
            out = jax.core.eval_jaxpr(jaxpr, self._constants(), *self._leaves(args))
        except ValueError as err:
            if "callbacks do not support JVP" in str(err):
                raise TypeError(_NO_DERIVATIVE) from err
            raise
        return jax.tree.unflatten(self.structure.out_tree, out)

    def bindings(self, *args: Any) -> tuple[list[Any], list[Any]]:
        """What the jaxpr's variables stand for: those of constants, then of these arguments."""
        jaxpr, constants = self.structure.jaxpr, self._constants()
        # Which of them JAX itself counts as constants differs between its versions.
        variables = [*jaxpr.constvars, *jaxpr.invars]
        of_constants, of_leaves = variables[: len(constants)], variables[len(constants) :]
        captured = list(zip(of_constants, constants, strict=True))
        return captured, list(zip(of_leaves, self._leaves(args), strict=True))

    @property
    def out_shape(self) -> Any:
        """The result's pytree of `jax.ShapeDtypeStruct`, without computing anything."""
        shapes = [
            vary_with(jax.ShapeDtypeStruct(a.shape, a.dtype), a) for a in self.structure.out_avals
        ]
        return jax.tree.unflatten(self.structure.out_tree, shapes)

    def _leaves(self, args: tuple) -> list:
        leaves, avals = inputs(args), self.structure.in_avals
        if len(leaves) != len(avals):
            raise TypeError(f"{len(avals)} arrays expected, not {len(leaves)}")
        return [_as_traced(x, aval) for x, aval in zip(leaves, avals, strict=True)]

    def _constants(self) -> list:
        of_numbers = self.structure.numbers
        arrays = len(self.consts) - len(of_numbers)
        constants = list(self.consts[:arrays])
        for vector, (number, count) in zip(self.consts[arrays:], of_numbers, strict=True):
            constants += _one_by_one(vector, number, count)
        return constants


def _one_by_one(vector: Any, number: Number, count: int) -> list:
    """The numbers in a vector; they are constants to every derivative."""
    vector = lax.stop_gradient(vector)
    if number.weak_type:
        vector = convert_element_type_p.bind(
            vector, new_dtype=vector.dtype, weak_type=True, sharding=None
        )
    return [lax.squeeze(part, (0,)) for part in lax.split(vector, (1,) * count)]


def communicates(tree: Any) -> bool:
    """Whether a function in a pytree asks for other lanes of a `vmap`, as `jax.lax.psum` does."""
    functions = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Lifted))
    return any(
        type(effect).__name__ == "NamedAxisEffect"
        for function in functions
        if isinstance(function, Lifted)
        for effect in function.structure.jaxpr.effects
    )


def _as_traced(leaf: Any, aval: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        leaf = jnp.asarray(leaf, None if hasattr(leaf, "dtype") else aval.dtype)
    if leaf.shape != aval.shape or leaf.dtype != aval.dtype:
        raise TypeError(
            f"an argument of shape {aval.shape} and dtype {aval.dtype} expected, "
            f"not of shape {leaf.shape} and dtype {leaf.dtype}"
        )
    return vary_with(leaf, aval)


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
    dynamic, static = eqx.partition(examples, _is_dynamic)
    leaves, in_tree = jax.tree.flatten(dynamic)

    # A new function each time: JAX, too, remembers what it traced, by identity alone.
    def on_leaves(*leaves: Any) -> Any:
        out = fun(*eqx.combine(jax.tree.unflatten(in_tree, leaves), static))
        _check_result(out, label)
        return out

    lifted = _trace(on_leaves, leaves, label)
    # Within `shard_map`: where the result differs from device to device, the arguments will.
    cast = vary_with(leaves, lifted.out_shape)
    if all(a is b for a, b in zip(cast, leaves, strict=True)):
        return lifted
    return _trace(on_leaves, cast, label)


def _trace(fun: Callable, leaves: list, label: str) -> Lifted:
    try:
        closed, out_shape = jax.make_jaxpr(fun, return_shape=True)(*leaves)
    except Exception as err:
        _explain(err, label, leaves)
        raise
    parts = lift_constants(closed)
    structure = _structure(parts, closed, jax.tree.structure(out_shape))
    with jax.ensure_compile_time_eval():  # an outer trace shall not stage the copies out
        arrays = [_own(const) for const in parts.consts]
        vectors = [jnp.array(np.array(values, kind.dtype)) for kind, values in parts.numbers]
    return Lifted((*arrays, *vectors), structure)


def inputs(tree: Any) -> list:
    """The leaves of a pytree of arguments that a `Lifted` takes.

    Examples
    --------
    >>> inputs({"rate": 0.1, "kind": "slow"})
    [0.1]

    """
    return [leaf for leaf in jax.tree.leaves(tree) if _is_dynamic(leaf)]


def _is_dynamic(leaf: Any) -> bool:
    return isinstance(leaf, _NUMBERS_AND_ARRAYS)


_NUMBERS_AND_ARRAYS = (
    np.ndarray,
    np.generic,
    bool,
    int,
    float,
    complex,
    jax.Array,
    jax.ShapeDtypeStruct,
)


def _own(const: Any) -> Any:
    """A NumPy array as a JAX array of our own: the user may write into theirs."""
    if isinstance(const, jax.Array):
        return const
    return jnp.array(np.asarray(const), dtype=const.dtype, copy=True)


def _check_result(out: Any, label: str) -> None:
    for leaf in jax.tree.leaves(out):
        if not _is_dynamic(leaf) or (isinstance(leaf, np.ndarray) and leaf.dtype.hasobject):
            raise TypeError(
                f"{label} must return arrays or numbers, or a pytree of them, "
                f"not {type(leaf).__module__}.{type(leaf).__qualname__}: {leaf!r:.60}"
            )


_STRUCTURES: weakref.WeakValueDictionary[tuple, Structure] = weakref.WeakValueDictionary()
_LOCK = threading.RLock()


def _structure(parts: LiftedJaxpr, closed: Any, out_tree: Any) -> Structure:
    numbers = tuple((kind, len(values)) for kind, values in parts.numbers)
    with _LOCK:
        key: tuple = structure_key(parts.jaxpr), out_tree, numbers
        known = _STRUCTURES.get(key)
        if known is None:
            avals = tuple(closed.in_avals), tuple(closed.out_avals)
            known = _STRUCTURES[key] = Structure(key, parts.jaxpr, out_tree, avals)
        return known


# ---------------------------------------------------------------------------------------
# What to say when it cannot be traced

_USE_JNP = "Use jax.numpy (jnp) in the place of NumPy, SciPy and math."
_BIND = "Close over it or bind it by functools.partial, rather than pass it in args."
_OF_SIZES = "a traced value was used as an index, a size or a count", f"If it is a setting: {_BIND}"
_CAUSES: tuple[tuple[type, str, str], ...] = (
    (
        jax.errors.TracerArrayConversionError,
        "a NumPy or SciPy function was given a traced array",
        _USE_JNP,
    ),
    (
        jax.errors.NonConcreteBooleanIndexError,
        "an array was indexed by a traced mask, so that the shape would depend on values",
        "Keep the shape and choose by jnp.where(mask, x, 0).",
    ),
    (
        jax.errors.TracerBoolConversionError,
        "a decision (if, while, and, or, max, sorted) was made on a traced value",
        "Use jnp.where, jnp.maximum, jax.lax.cond or jax.lax.while_loop.",
    ),
    (jax.errors.TracerIntegerConversionError, *_OF_SIZES),
    (
        jax.errors.ConcretizationTypeError,
        "a traced value was to become a Python number",
        f"Leave out float(), int() and .item(). {_USE_JNP}",
    ),
)
# JAX has no class of errors for these.
_SIZE_MESSAGES = (
    "Shapes must be 1D sequences of concrete values",
    "Slice entries must be static integers",
    "Array slice indices must have static",
    "As of JAX v0.7, parameters to jaxpr equations must have __hash__",
)
_NO_DERIVATIVE = (
    "a function in jax.pure_callback was to be differentiated, and JAX cannot look into it. Take "
    "jac='2-point' (or '3-point'), which needs values only. The derivative of the solution comes "
    "where the callback stands in a jax.custom_jvp."
)
_OF_OBJECTS = (
    "NumPy met traced values as the elements of an array",
    f"Make arrays of them by jnp.array or jnp.stack, or set them by x.at[i].set(value). {_USE_JNP}",
)


def _explain(err: Exception, label: str, leaves: list) -> None:
    """Raise in words for a user of SciPy what JAX says in its own; other errors pass."""
    cause = _cause(err)
    if cause is None:
        return
    what, remedy = _of_setting(err, leaves) or cause
    raise TypeError(
        f"{label} could not be traced by JAX: {what}{_where(err)}.\n"
        f"{label} is called with traced arrays, which have a shape and a dtype but no values "
        f"yet. {remedy} Code that JAX cannot trace at all goes into "
        "jax.pure_callback(..., vmap_method='sequential'), with jac='2-point'."
    ) from err


def _cause(err: BaseException) -> tuple[str, str] | None:
    for kind, what, remedy in _CAUSES:
        if isinstance(err, kind):
            return what, remedy
    message = str(err)
    if isinstance(err, (TypeError, IndexError)) and message.startswith(_SIZE_MESSAGES):
        return _OF_SIZES
    if isinstance(err, ValueError) and message.startswith("setting an array element"):
        return _OF_OBJECTS if isinstance(err.__cause__, jax.errors.JAXTypeError) else None
    if isinstance(err, TypeError) and "ufunc" in message and "Tracer" in message:
        return _OF_OBJECTS
    return None


def _of_setting(err: Exception, leaves: list) -> tuple[str, str] | None:
    """The cause if all depends on a bool or an int among the arguments, which JAX names."""
    numbers = {int(number) for number in re.findall(r"\bleaves\[(\d+)\]", str(err))}
    values = [leaves[number] for number in sorted(numbers)]
    if not values or not all(isinstance(v, (bool, int, np.bool_, np.integer)) for v in values):
        return None
    named = " and ".join(repr(value) for value in values)
    return f"{named}, passed in args, was used for a decision or as a size", _BIND


def _where(err: Exception) -> str:
    """The last line of the user's own code that led to an error, to stand after the cause."""
    frames = [f for f in traceback.extract_tb(err.__traceback__) if not is_library_file(f.filename)]
    if not frames:
        return ""
    frame = frames[-1]
    source = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
    place = f"\n  {frame.filename}:{frame.lineno}, in {frame.name}"
    return f"{place}\n    {source}" if source else place
