"""What a Python function can see, as one hashable value.

A function traced by JAX is a snapshot: what it read from closures, globals, attributes
and NumPy arrays while it was traced stays in the jaxpr. To use a jaxpr again without
running the function again, one must know that nothing it could read has changed. This
file walks all of that and writes it down as a flat tuple of tokens. Equal tokens mean
equal behaviour; where that cannot be known (a generator, a tracer, `eval`), there is no
fingerprint, and the function is simply traced again.

Values are written by type and value (so 1, 1.0 and True differ, and so do 0.0 and -0.0),
NumPy arrays by identity and a checksum of their bytes, JAX arrays, which cannot change,
by identity, Python functions by their code and, recursively, all that the code reads.
Installed libraries are taken as they are: they count as constants.
"""

from __future__ import annotations

import builtins
import collections
import dis
import functools
import importlib.util
import os
import struct
import sys
import sysconfig
import types
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.core
import numpy as np

_Class = TypeVar("_Class", bound=type)

# A longer walk costs more than tracing the function again.
_MAX_TOKENS = 50_000

# Names through which a function can read what its code does not name.
_UNKNOWABLE_BUILTINS = frozenset(
    {"eval", "exec", "globals", "locals", "vars", "__import__", "open", "input"}
)
_UNKNOWABLE_ATTRIBUTES = frozenset(
    {"modules", "import_module", "_getframe", "currentframe", "environ", "getenv"}
)
_READS_ANY_ATTRIBUTE = frozenset({"getattr", "attrgetter", "__dict__", "__getattribute__"})

# Entries of a class that say nothing about what its methods do.
_CLASS_NOISE = frozenset(
    {
        "__abstractmethods__",
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__annotations_cache__",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__match_args__",
        "__module__",
        "__orig_bases__",
        "__parameters__",
        "__qualname__",
        "__signature__",
        "__slots__",
        "__static_attributes__",
        "__weakref__",
        "_abc_impl",
    }
)


class _Unknown(Exception):
    """Raised inside a walk: what the function sees cannot be known."""


class Fingerprint:
    """A hashable snapshot of all that a function can see.

    Two fingerprints are equal if nothing visible has changed between them. Identities
    stand in the tokens as ids, so a fingerprint holds the objects they belong to: an id
    means something only as long as its object lives.

    Attributes
    ----------
    tokens : tuple
        The snapshot, hashable, holding no object that can change.
    objects : tuple
        The objects whose ids stand among the tokens.

    """

    __slots__ = ("_hash", "objects", "tokens")

    def __init__(self, tokens: tuple, objects: tuple):
        self.tokens = tokens
        self.objects = objects
        self._hash = hash(tokens)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Fingerprint)
            and self._hash == other._hash
            and self.tokens == other.tokens
        )

    def without_objects(self) -> Fingerprint:
        """The same tokens, for one who looks after the objects in another way."""
        return Fingerprint(self.tokens, ())

    def __repr__(self) -> str:
        return f"Fingerprint({self._hash & 0xFFFFFFFF:08x}, {len(self.tokens)} tokens)"


def fingerprint(obj: Any) -> Fingerprint | None:
    """Write down everything that `obj`, a function as a rule, can see.

    Parameters
    ----------
    obj : Any
        A function, a method, a callable object, or any value that a function captures.

    Returns
    -------
    Fingerprint or None
        None if what `obj` sees cannot be known, so that a cache must not be used.

    Examples
    --------
    >>> scale = 2.0
    >>> def fun(x):
    ...     return scale * x
    >>> before = fingerprint(fun)
    >>> before == fingerprint(fun)
    True
    >>> scale = 3.0
    >>> before == fingerprint(fun)
    False

    """
    walk = _Walk()
    try:
        walk.visit(obj)
        walk.read_modules()
        return Fingerprint(tuple(walk.tokens), tuple(walk.objects))
    except Exception:
        # A container changed by another thread, an attribute that raises, a structure too
        # deep: whatever goes wrong here, all that is lost is the time of a trace.
        return None


class _Walk:
    """One walk over what a function can see. Each object is visited once."""

    __slots__ = ("attributes", "modules", "objects", "seen", "tokens")

    def __init__(self):
        self.tokens: list = []
        self.objects: list = []  # objects named by id in the tokens
        # id -> (number in the order of visits, the object, so that its id stays its own)
        self.seen: dict[int, tuple[int, Any]] = {}
        self.modules: list[types.ModuleType] = []  # the user's own modules
        self.attributes: set[str] = set()  # every attribute name in the user's code

    def visit(self, obj: Any) -> None:
        kind = type(obj)
        visit = _VISITORS.get(kind)
        if visit is None:
            visit = _visitor_of(kind)
        visit(self, obj)

    def visit_all(self, objs: Any) -> None:
        for obj in objs:
            self.visit(obj)

    def is_new(self, obj: Any, parts: int = 0) -> bool:
        """Remember a compound object; if it has been here before, name it by its number."""
        seen = self.seen
        known = seen.get(id(obj))
        if known is not None:
            self.tokens.append(("again", known[0]))
            return False
        if len(self.tokens) + 2 * parts > _MAX_TOKENS:
            raise _Unknown
        seen[id(obj)] = (len(seen), obj)
        return True

    def name(self, kind: Any, obj: Any) -> None:
        """Write an object down by its identity."""
        self.tokens += (kind, id(obj))
        self.objects.append(obj)

    def absent(self) -> None:
        """Write down that there is nothing; a value would begin with its type."""
        self.tokens.append("absent")

    def read_modules(self) -> None:
        """Read from the user's own modules each attribute that the user's code names.

        `mymodule.constant` may be reached in roundabout ways, but never without its name
        standing in some code that has been visited, which is why this comes last.
        """
        done: set[tuple[int, str]] = set()
        while todo := sorted(self._module_attributes() - done):
            for position, attribute in todo:
                self.tokens += (position, attribute)
                self.visit(vars(self.modules[position])[attribute])
            done.update(todo)
        if self.attributes & _UNKNOWABLE_ATTRIBUTES:
            raise _Unknown
        if self.modules and self.attributes & _READS_ANY_ATTRIBUTE:
            raise _Unknown

    def _module_attributes(self) -> set[tuple[int, str]]:
        return {
            (i, name)
            for i, module in enumerate(self.modules)
            for name in self.attributes & vars(module).keys()
        }


# ---------------------------------------------------------------------------------------
# Code: which names it reads


class _Reads:
    """The names that a code object, and the code nested in it, can read."""

    __slots__ = ("attributes", "from_library", "globals", "imports")

    def __init__(self, code: types.CodeType):
        loads: dict[str, None] = {}  # as an ordered set
        imports: dict[tuple[str, int], None] = {}
        names: set[str] = set()
        for part in _with_nested(code):
            names.update(part.co_names)
            before: list = [None, None]
            for instruction in dis.get_instructions(part):
                if instruction.opname == "EXTENDED_ARG":
                    continue
                if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                    loads[instruction.argval] = None
                elif instruction.opname == "IMPORT_NAME":  # after: level, names wanted
                    imports[instruction.argval, int(before[0] or 0)] = None
                before = [before[1], instruction.argval]
        self.globals = tuple(loads)
        self.imports = tuple(imports)
        self.attributes = frozenset(names)
        self.from_library = is_library_file(code.co_filename)


def _with_nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _with_nested(const)


_READS: dict[tuple[types.CodeType, str], _Reads] = {}


def _reads_of(code: types.CodeType) -> _Reads:
    key = code, code.co_filename  # code objects are equal even if they come from two files
    reads = _READS.get(key)
    if reads is None:
        if len(_READS) > 4096:  # a session that makes new code for ever
            _READS.clear()
        reads = _READS[key] = _Reads(code)
    return reads


# ---------------------------------------------------------------------------------------
# Libraries: what is taken as it is


def _library_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {
        path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")
    }
    # Wherever else they may be installed. This package, too, is a library to its user.
    folders |= {
        os.path.dirname(os.path.abspath(file))
        for file in (jax.__file__, np.__file__, eqx.__file__, __file__)
    }
    return tuple(sorted(os.path.join(os.path.realpath(folder), "") for folder in folders))


_LIBRARY_FOLDERS = _library_folders()


@functools.lru_cache(maxsize=4096)
def is_library_file(filename: str) -> bool:
    """Whether a source file belongs to an installed library, not to the user."""
    if filename.startswith("<"):  # a notebook's cell, the prompt, exec
        return filename.startswith("<frozen ")
    return os.path.realpath(filename).startswith(_LIBRARY_FOLDERS)


def _is_library_module(module: types.ModuleType | None) -> bool:
    if module is None or module.__name__ == "__main__":
        return False
    file = getattr(module, "__file__", None)
    if file is None:  # compiled in, or a namespace package, whose modules are judged one by one
        return module.__name__.partition(".")[0] in sys.builtin_module_names
    return is_library_file(file)


def _stands_in_library(obj: Any) -> bool:
    """Whether `obj` is what a library module holds under its name: `numpy.sin`, `jax.nn.relu`."""
    module = sys.modules.get(getattr(obj, "__module__", None) or "")
    name = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    if not isinstance(name, str) or not _is_library_module(module):
        return False
    return (
        functools.reduce(lambda owner, part: getattr(owner, part, None), name.split("."), module)
        is obj
    )


# ---------------------------------------------------------------------------------------
# Visitors, one a kind of object

_Visitor = Callable[[_Walk, Any], None]
_VISITORS: dict[type, _Visitor] = {}


def _visits(*kinds: type) -> Callable[[_Visitor], _Visitor]:
    def register(visitor: _Visitor) -> _Visitor:
        _VISITORS.update(dict.fromkeys(kinds, visitor))
        return visitor

    return register


@_visits(int, bool, str, bytes, type(None), type(...), type(NotImplemented))
@_visits(types.CodeType, jax.tree_util.PyTreeDef)
def _visit_plain(walk: _Walk, obj: Any) -> None:
    walk.tokens += (type(obj), obj)


@_visits(float)
def _visit_float(walk: _Walk, obj: float) -> None:
    walk.tokens += (float, struct.pack("d", obj))


@_visits(complex)
def _visit_complex(walk: _Walk, obj: complex) -> None:
    walk.tokens += (complex, struct.pack("dd", obj.real, obj.imag))


def _visit_numpy_scalar(walk: _Walk, obj: np.generic) -> None:
    if obj.dtype.hasobject:
        raise _Unknown
    walk.tokens += (type(obj), obj.dtype, obj.tobytes())


@_visits(np.ndarray)
def _visit_numpy_array(walk: _Walk, obj: np.ndarray) -> None:
    if not walk.is_new(obj):
        return
    walk.name(np.ndarray, obj)
    walk.tokens += (obj.dtype, obj.shape)
    if obj.dtype.hasobject:
        walk.visit(obj.tolist())
    else:
        walk.tokens.append(_checksum(obj))
    if type(obj) is not np.ndarray:  # a masked array, or the user's own
        _visit_class(walk, type(obj))
        walk.visit(getattr(obj, "__dict__", None))


def _checksum(array: np.ndarray) -> int:
    # Through a view of bytes: not every dtype shows its memory (bfloat16, dates).
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8)) if array.size else 0  # pyright: ignore[reportArgumentType]


@_visits(np.ufunc, types.MethodDescriptorType, types.ClassMethodDescriptorType)
@_visits(types.WrapperDescriptorType, type(vars(collections.namedtuple("_", "field"))["field"]))
def _visit_identity(walk: _Walk, obj: Any) -> None:
    walk.name("is", obj)


def by_identity(kind: _Class) -> _Class:
    """Take objects of a class, which must never change, as they are. A class decorator."""
    _VISITORS[kind] = _visit_identity
    return kind


@_visits(types.MemberDescriptorType, types.GetSetDescriptorType)
def _visit_slot(walk: _Walk, obj: types.MemberDescriptorType) -> None:
    walk.tokens += (type(obj), obj.__qualname__)


@_visits(list, tuple, set, frozenset, collections.deque)
def _visit_sequence(walk: _Walk, obj: Any) -> None:
    if walk.is_new(obj, len(obj)):
        walk.tokens += (type(obj), len(obj))
        walk.visit_all(obj)


@_visits(dict, collections.OrderedDict, types.MappingProxyType)
def _visit_mapping(walk: _Walk, obj: Any) -> None:
    if walk.is_new(obj, len(obj)):
        walk.tokens += (type(obj), len(obj))
        for key, value in obj.items():
            walk.visit(key)
            walk.visit(value)


@_visits(collections.defaultdict)
def _visit_default_dict(walk: _Walk, obj: collections.defaultdict) -> None:
    walk.visit(obj.default_factory)
    _visit_mapping(walk, obj)


@_visits(slice, range)
def _visit_slice(walk: _Walk, obj: slice | range) -> None:
    walk.tokens.append(type(obj))
    walk.visit_all((obj.start, obj.stop, obj.step))


@_visits(types.FunctionType)
def _visit_function(walk: _Walk, obj: types.FunctionType) -> None:
    if not walk.is_new(obj):
        return
    reads = _reads_of(obj.__code__)
    if reads.from_library and _stands_in_library(obj):
        walk.name("is", obj)
        return
    walk.tokens.append(obj.__code__)
    walk.visit(obj.__defaults__)
    walk.visit(obj.__kwdefaults__)
    for cell in obj.__closure__ or ():
        _visit_cell(walk, cell)
    if obj.__dict__:
        walk.visit(obj.__dict__)
    if not reads.from_library:
        _visit_globals(walk, obj, reads)


def _visit_cell(walk: _Walk, cell: types.CellType) -> None:
    try:
        content = cell.cell_contents
    except ValueError:
        walk.absent()  # a variable that has not been set yet
    else:
        walk.visit(content)


def _visit_globals(walk: _Walk, obj: types.FunctionType, reads: _Reads) -> None:
    scope = obj.__globals__
    walk.attributes |= reads.attributes
    for name in reads.globals:
        if name in scope:
            walk.visit(scope[name])
        elif name in _UNKNOWABLE_BUILTINS:
            raise _Unknown
        elif hasattr(builtins, name):
            walk.visit(getattr(builtins, name))
        else:
            walk.absent()
    for name, level in reads.imports:
        _visit_import(walk, "." * level + name, scope)


def _visit_import(walk: _Walk, name: str, scope: dict) -> None:
    if name.startswith("."):
        name = importlib.util.resolve_name(name, scope.get("__package__") or "")
    # `import a.b` binds a, `import a.b as c` binds b.
    for full in (name.partition(".")[0], name):
        if full in sys.modules:
            walk.visit(sys.modules[full])
        else:
            walk.absent()


@_visits(types.MethodType)
def _visit_method(walk: _Walk, obj: types.MethodType) -> None:
    walk.tokens.append(types.MethodType)
    walk.visit(obj.__func__)
    walk.visit(obj.__self__)


@_visits(types.BuiltinFunctionType)
def _visit_builtin(walk: _Walk, obj: types.BuiltinFunctionType) -> None:
    if obj.__self__ is None or isinstance(obj.__self__, types.ModuleType):
        walk.name("is", obj)
    else:  # a method of some object, such as list.append
        walk.tokens += (types.BuiltinFunctionType, obj.__name__)
        walk.visit(obj.__self__)


@_visits(functools.partial)
def _visit_partial(walk: _Walk, obj: functools.partial) -> None:
    if walk.is_new(obj):
        walk.tokens.append(type(obj))
        walk.visit_all((obj.func, obj.args, obj.keywords, obj.__dict__))


@_visits(type(jax.jit(lambda: None)), type(functools.lru_cache(lambda: None)))
def _visit_wrapper(walk: _Walk, obj: Any) -> None:
    """Visit a compiled object around a Python function: `jax.jit`, `functools.lru_cache`."""
    if walk.is_new(obj):
        walk.name("is", obj)
        if not _stands_in_library(obj):
            walk.visit(obj.__wrapped__)


@_visits(classmethod, staticmethod)
def _visit_descriptor(walk: _Walk, obj: classmethod | staticmethod) -> None:
    walk.tokens.append(type(obj))
    walk.visit(obj.__func__)


@_visits(property)
def _visit_property(walk: _Walk, obj: property) -> None:
    walk.tokens.append(type(obj))
    walk.visit_all((obj.fget, obj.fset, obj.fdel))


@_visits(types.ModuleType)
def _visit_module(walk: _Walk, obj: types.ModuleType) -> None:
    if walk.is_new(obj):
        walk.name("is", obj)
        if not _is_library_module(obj):
            if "__getattr__" in vars(obj):
                raise _Unknown
            walk.modules.append(obj)


def _visit_class(walk: _Walk, obj: type) -> None:
    if not walk.is_new(obj):
        return
    walk.name("is", obj)
    if type(obj) is not type:
        _visit_class(walk, type(obj))
    if _is_user_class(obj):
        for name, value in obj.__dict__.items():
            if name not in _CLASS_NOISE:
                walk.tokens.append(name)
                walk.visit(value)
        walk.visit_all(obj.__bases__)


def _is_user_class(obj: type) -> bool:
    return _is_heap_type(obj) and not _is_library_module(sys.modules.get(obj.__module__))


def _is_heap_type(obj: type) -> bool:
    """Whether a class was made while Python ran, by a `class` statement as a rule."""
    return bool(obj.__flags__ & (1 << 9))


def _visit_instance(walk: _Walk, obj: Any) -> None:
    """Visit an object that is made of its class, its `__dict__` and its slots."""
    if not walk.is_new(obj):
        return
    kind = type(obj)
    if not _is_user_class(kind) and _stands_in_library(obj):
        walk.name("is", obj)
        return
    _visit_class(walk, kind)
    if (solid := _solid_base(kind)) in _HELD:
        walk.visit(_HELD[solid](obj))
    walk.visit(getattr(obj, "__dict__", None))
    for name in _slots(kind):
        if hasattr(obj, name):
            walk.visit(getattr(obj, name))
        else:
            walk.absent()


def _visit_tracer(walk: _Walk, obj: Any) -> None:
    raise _Unknown


def _visit_opaque(walk: _Walk, obj: Any) -> None:
    """Visit an object with parts that cannot be seen: all right if it is a library's own."""
    if not _stands_in_library(obj):
        raise _Unknown
    walk.name("is", obj)


# What an instance of a subclass of a builtin holds besides its attributes.
_HELD: dict[type, Callable[[Any], Any]] = {
    dict: lambda obj: (tuple(dict.keys(obj)), tuple(dict.values(obj))),
    list: lambda obj: tuple(list.__iter__(obj)),
    tuple: lambda obj: tuple(tuple.__iter__(obj)),
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
}


def _solid_base(kind: type) -> type:
    return next((base for base in kind.__mro__ if base in _HELD), object)


def _slots(kind: type) -> list[str]:
    return [
        name
        for base in kind.__mro__
        for name, value in base.__dict__.items()
        if isinstance(value, types.MemberDescriptorType)
    ]


def _shows_its_state(kind: type) -> bool:
    """Whether an object is no more than its `__dict__`, its slots and, of a builtin's, its items.

    As pickle does, compare the size of an object with what its visible parts need: one of
    an extension type, with something more inside, is larger.
    """
    solid = _solid_base(kind)
    if not all(_is_heap_type(base) or base in (solid, object) for base in kind.__mro__):
        return False
    pointers = len(_slots(kind)) + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return kind.__basicsize__ <= solid.__basicsize__ + pointers * struct.calcsize("P")


# The user's classes come and go; what is known about them goes with them.
_VISITORS_OF_CLASSES: weakref.WeakKeyDictionary[type, _Visitor] = weakref.WeakKeyDictionary()


def _visitor_of(kind: type) -> _Visitor:
    visit = _VISITORS_OF_CLASSES.get(kind)
    if visit is None:
        visit = _VISITORS_OF_CLASSES[kind] = _choose_visitor(kind)
    return visit


def _choose_visitor(kind: type) -> _Visitor:
    # A tracer is a jax.Array to isinstance, but it is not one that may be kept.
    families = (
        (jax.core.Tracer, _visit_tracer),
        (jax.Array, _visit_identity),
        (np.ndarray, _visit_numpy_array),
        (np.generic, _visit_numpy_scalar),
        (np.dtype, lambda walk, obj: walk.tokens.extend((np.dtype, obj))),
        (functools.partial, _visit_partial),
        (types.ModuleType, _visit_module),
        (type, _visit_class),
    )
    for family, visit in families:
        if issubclass(kind, family):
            return visit
    return _visit_instance if _shows_its_state(kind) else _visit_opaque
