"""A Python function as a value: its jaxpr, with everything it captured as inputs.

`lift(fun, *examples)` traces `fun` once and gives a `Lifted`, a pytree. Its leaves are the
arrays that `fun` captured; its structure is the mathematics alone. So it can be handed to a
compiled function like any other argument, and

- a fresh lambda with the same mathematics over other data does not compile again, because
  its structure equals the last one's;
- captured tracers of an outer `jit`, `vmap` or `grad` are plain inputs, and carry their
  derivatives;
- called again, an unchanged function is not even traced: what it can see is compared with
  what it saw (`optx_lite._fingerprint`).
"""

from __future__ import annotations

import collections
import linecache
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
from jax.extend import core

# The settings of JAX on which a trace depends (x64, promotion, precision, mesh, ...) as one
# value. There is no public name for all of them; without it, nothing is cached.
try:
    from jax._src.config import trace_context as _trace_context
except ImportError:
    _trace_context = None

from ._control_flow import explicit_mesh, in_explicit_mode, vary_with
from ._fingerprint import by_identity, fingerprint, is_library_file
from ._jaxpr import StructureKey, lift_constants, structure_key, without_mesh

_CACHE_ENTRIES = 256


@by_identity
class Structure:
    """What stays the same when the data change: the jaxpr and the pytrees around it.

    Structures that compute the same are one and the same object while any is in use (see
    `_structure`), so that comparing them, as each call of a compiled function does, is free.

    Attributes
    ----------
    jaxpr : Jaxpr
        Constants first, then the arguments' leaves.
    in_tree, out_tree : PyTreeDef
        Of the tuple of arguments, its static leaves left out, and of the result.
    in_avals, out_avals : tuple
        Shapes and dtypes of their leaves.
    numbers : tuple of int
        The last constants are vectors with so many numbers each.
    mesh : AbstractMesh or None
        Under which it was traced, if the types tell.

    """

    # fmt: off
    __slots__ = (
        "__weakref__", "_without_mesh", "in_avals", "in_tree", "jaxpr", "key", "mesh", "numbers",
        "out_avals", "out_tree",
    )
    # fmt: on

    def __init__(
        self, key: StructureKey, jaxpr: Any, trees: tuple, avals: tuple, numbers: tuple[int, ...]
    ):
        self.key = key
        self.jaxpr = jaxpr
        self.in_tree, self.out_tree = trees
        self.in_avals, self.out_avals = avals
        self.numbers = numbers
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
        """Compute the function from arguments of the examples' structure, shapes and dtypes.

        Leaves that were constants to `lift` may be there or not (see `inputs`); they are not
        looked at.
        """
        structure = self.structure
        jaxpr = structure.jaxpr
        if structure.mesh is not None and not in_explicit_mode():
            jaxpr = structure.without_mesh
        out = jax.core.eval_jaxpr(jaxpr, self._constants(), *self._leaves(args))
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
        structure = self.structure
        leaves, in_tree, _ = _split(args)
        if in_tree != structure.in_tree:
            raise TypeError(
                f"arguments of the structure {structure.in_tree} expected, not {in_tree}"
            )
        return [_as_traced(x, aval) for x, aval in zip(leaves, structure.in_avals, strict=True)]

    def _constants(self) -> list:
        arrays = len(self.consts) - len(self.structure.numbers)
        numbers = [
            jax.lax.index_in_dim(vector, i, keepdims=False)
            for vector, count in zip(self.consts[arrays:], self.structure.numbers, strict=True)
            for i in range(count)
        ]
        return [*self.consts[:arrays], *numbers]


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
        Of the same values and derivatives. If nothing that `fun` can see has changed since
        the last call, it is the one made then, and `fun` is not called.

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
    leaves, in_tree, static = _split(examples)
    # Under a transformation JAX traces the caller once, and keeps that.
    if _trace_context is None or core.get_opaque_trace_state() != _EAGER:
        lifted = _trace(fun, leaves, in_tree, static, label, numbers=False)
        # Within `shard_map`: where the result differs from device to device, the arguments will.
        cast = vary_with(leaves, lifted.out_shape)
        if all(a is b for a, b in zip(cast, leaves, strict=True)):
            return lifted
        return _trace(fun, cast, in_tree, static, label, numbers=False)

    seen = fingerprint((fun, static) if static else fun)
    request = (in_tree, *map(_aval, leaves), _trace_context())
    if seen is not None and (lifted := _CACHE.get((seen, *request))) is not None:
        return lifted
    lifted = _trace(fun, leaves, in_tree, static, label, numbers=True)
    # A function that counts its calls has changed what it sees. What matters is whether
    # anyone changes it from here on.
    seen = seen and fingerprint((fun, static) if static else fun)
    if seen is not None and not any(isinstance(c, jax.core.Tracer) for c in lifted.consts):
        _CACHE.put((seen.without_objects(), *request), lifted, seen.objects)
    return lifted


# The state of JAX outside of all transformations.
with jax.core.eval_context():
    _EAGER = core.get_opaque_trace_state()


def _split(args: tuple) -> tuple[list, Any, Any]:
    """Leaves that are inputs, their structure, and a tree of the others, None if there are none."""
    leaves, treedef = jax.tree.flatten(args)
    if all(map(_is_dynamic, leaves)):
        return leaves, treedef, None
    dynamic, static = eqx.partition(args, _is_dynamic)
    return *jax.tree.flatten(dynamic), static


def inputs(tree: Any) -> Any:
    """The part of a pytree of arguments that a `Lifted` takes, with None for each other leaf.

    Examples
    --------
    >>> inputs({"rate": 0.1, "kind": "slow"})
    {'kind': None, 'rate': 0.1}

    """
    return eqx.filter(tree, _is_dynamic)


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


def _aval(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.shape, leaf.dtype, leaf.sharding, leaf.weak_type
    return jax.typeof(leaf)


# ---------------------------------------------------------------------------------------
# Tracing


def _trace(
    fun: Callable, leaves: list, in_tree: Any, static: Any, label: str, *, numbers: bool
) -> Lifted:
    # A new function each time: JAX, too, remembers what it traced, by identity alone.
    def on_leaves(*leaves: Any) -> Any:
        args = jax.tree.unflatten(in_tree, leaves)
        out = fun(*args) if static is None else fun(*eqx.combine(args, static))
        _check_result(out, label)
        return out

    try:
        closed, out_shape = jax.make_jaxpr(on_leaves, return_shape=True)(*leaves)
    except Exception as err:
        _explain(err, label)
        raise
    parts = lift_constants(closed, numbers=numbers)
    structure = _structure(parts, closed, (in_tree, jax.tree.structure(out_shape)))
    with jax.ensure_compile_time_eval():  # an outer trace shall not stage the copies out
        arrays = [_own(const) for const in parts.consts]
        vectors = [jnp.array(np.array(values, dtype)) for dtype, values in parts.numbers]
    return Lifted((*arrays, *vectors), structure)


def _own(const: Any) -> Any:
    """A NumPy array as a JAX array of our own: the user may write into theirs."""
    if isinstance(const, (np.ndarray, np.generic)):
        return jnp.array(const, dtype=const.dtype, copy=True)
    return const


def _check_result(out: Any, label: str) -> None:
    for leaf in jax.tree.leaves(out):
        if not _is_dynamic(leaf) or (isinstance(leaf, np.ndarray) and leaf.dtype.hasobject):
            raise TypeError(
                f"{label} must return arrays or numbers, or a pytree of them, "
                f"not {type(leaf).__module__}.{type(leaf).__qualname__}: {leaf!r:.60}"
            )


_STRUCTURES: weakref.WeakValueDictionary[StructureKey, Structure] = weakref.WeakValueDictionary()
_LOCK = threading.RLock()


def _structure(parts: Any, closed: Any, trees: tuple) -> Structure:
    counts = tuple(len(values) for _, values in parts.numbers)
    key = structure_key(parts.jaxpr, *trees, counts)
    with _LOCK:
        known = _STRUCTURES.get(key)
        if known is None:
            avals = tuple(closed.in_avals), tuple(closed.out_avals)
            known = _STRUCTURES[key] = Structure(key, parts.jaxpr, trees, avals, counts)
        return known


# ---------------------------------------------------------------------------------------
# Not tracing again


class _Entry:
    """A `Lifted` that keeps no data alive but its own.

    It refers weakly to all that its function saw, and is void when any of it is gone: then
    the function cannot be called again as it was, and ids may be used anew.
    """

    __slots__ = ("__weakref__", "consts", "references", "treedef")

    def __init__(self, lifted: Lifted, objects: tuple):
        captured = {id(obj) for obj in objects}
        consts, self.treedef = jax.tree.flatten(lifted)
        self.consts: list | None = [
            weakref.ref(const) if id(const) in captured else (lambda const=const: const)
            for const in consts
        ]
        self.references = [_weak_or_strong(obj, _Void(self)) for obj in objects]

    def get(self) -> Lifted | None:
        consts = None if self.consts is None else [const() for const in self.consts]
        if consts is None or any(const is None for const in consts):
            return None
        return jax.tree.unflatten(self.treedef, consts)  # quicker than Lifted's own init


class _Void:
    """Voids an entry, when called as an object that it depends on goes."""

    def __init__(self, entry: _Entry):
        self.entry = weakref.ref(entry)

    def __call__(self, _: Any) -> None:
        entry = self.entry()
        if entry is not None:
            entry.consts = None


def _weak_or_strong(obj: Any, when_gone: Callable) -> Any:
    try:
        return weakref.ref(obj, when_gone)
    except TypeError:
        return obj


class _Cache:
    """The most recently used functions."""

    def __init__(self, size: int):
        self.size = size
        self.entries: collections.OrderedDict[Any, _Entry] = collections.OrderedDict()

    def get(self, key: Any) -> Lifted | None:
        with _LOCK:
            entry = self.entries.get(key)
            if entry is None:
                return None
            self.entries.move_to_end(key)
            return entry.get()

    def put(self, key: Any, lifted: Lifted, objects: tuple) -> None:
        with _LOCK:
            self.entries[key] = _Entry(lifted, objects)
            while len(self.entries) > self.size:
                self.entries.popitem(last=False)

    def clear(self) -> None:
        with _LOCK:
            self.entries.clear()


_CACHE = _Cache(_CACHE_ENTRIES)


# ---------------------------------------------------------------------------------------
# What to say when it cannot be traced

_USE_JNP = "Use jax.numpy (jnp) in the place of NumPy, SciPy and math."
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
    (
        jax.errors.TracerIntegerConversionError,
        "a traced value was used as an index, a size or a count",
        "Capture that number in a closure or by functools.partial, rather than pass it in args.",
    ),
    (
        jax.errors.ConcretizationTypeError,
        "a traced value was to become a Python number",
        f"Leave out float(), int() and .item(). {_USE_JNP}",
    ),
)
_OF_OBJECTS = (
    "NumPy met traced values as the elements of an array",
    f"Make arrays of them by jnp.array or jnp.stack, or set them by x.at[i].set(value). {_USE_JNP}",
)


def _explain(err: Exception, label: str) -> None:
    """Raise in words for a user of SciPy what JAX says in its own; other errors pass."""
    cause = _cause(err)
    if cause is None:
        return
    what, remedy = cause
    raise TypeError(
        f"{label} could not be traced by JAX: {what}{_where(err)}.\n"
        f"{label} is called with traced arrays, which have a shape and a dtype but no values "
        f"yet. {remedy} For code that JAX cannot trace at all, wrap it in jax.pure_callback "
        "and take jac='2-point'."
    ) from err


def _cause(err: BaseException) -> tuple[str, str] | None:
    for kind, what, remedy in _CAUSES:
        if isinstance(err, kind):
            return what, remedy
    message = str(err)
    if isinstance(err, ValueError) and message.startswith("setting an array element"):
        return _OF_OBJECTS if isinstance(err.__cause__, jax.errors.JAXTypeError) else None
    if isinstance(err, TypeError) and "ufunc" in message and "Tracer" in message:
        return _OF_OBJECTS
    return None


def _where(err: Exception) -> str:
    """The last line of the user's own code that led to an error, to stand after the cause."""
    frames = [f for f in traceback.extract_tb(err.__traceback__) if not is_library_file(f.filename)]
    if not frames:
        return ""
    frame = frames[-1]
    source = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
    place = f"\n  {frame.filename}:{frame.lineno}, in {frame.name}"
    return f"{place}\n    {source}" if source else place
