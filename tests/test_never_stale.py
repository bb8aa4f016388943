"""A function is what it computes now, whatever it reads and however that has changed.

Each call traces it anew. The tables are what caches by closures, globals and bytecode were stale
in, each another hole. The oracle is the function itself, called without lifting.
"""

import collections
import copy
import dataclasses
import enum
import functools
import gc
import pathlib
import sys
import tempfile
import types
import weakref
from typing import NamedTuple
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optx_lite as ox
from optx_lite.functions import lift
from tests.lifted_functions import X, assert_tree_close


def assert_follows(fun, change, *args):
    """The lifted function is the function, before a change and after it; and that was a change."""
    for _ in range(2):
        before = fun(X, *args)
        assert_tree_close(lift(fun, X, *args)(X, *args), before)
    change()
    after = fun(X, *args)
    assert_tree_close(lift(fun, X, *args)(X, *args), after)
    assert not np.allclose(before, after)


# ---------------------------------------------------------------------------------------
# Every kind of callable


class _Callable:
    def __init__(self, fun):
        self.fun = fun

    def __call__(self, x):
        return self.fun(x)

    def method(self, x):
        return self.fun(x)


WRAPPERS = {
    "function": lambda f: f,
    "object": _Callable,
    "method": lambda f: _Callable(f).method,
    "partial": lambda f: functools.partial(lambda f, x: f(x), f),
    "partial by name": lambda f: functools.partial(lambda x, f: f(x), f=f),
    "jax's partial": jax.tree_util.Partial,
    "wraps": lambda f: functools.wraps(np.sin)(f),
    "default": lambda f: lambda x, f=f: f(x),
    "inner function": lambda f: lambda x: (lambda x: f(x))(x) + 1.0,
    "vmap": jax.vmap,
    "jacfwd": jax.jacfwd,
    "vmap of jacrev": lambda f: jax.vmap(jax.jacrev(f)),
    "filter_grad": lambda f: eqx.filter_grad(lambda x: jnp.sum(f(x))),
    "custom_jvp": lambda f: _with_rule(f),
}


def _with_rule(f):
    fun = jax.custom_jvp(lambda x: f(x))
    fun.defjvp(lambda p, t: (fun(*p), f(t[0])))
    return fun


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_every_kind_of_callable(wrap):
    k = [2.0]
    assert_follows(wrap(lambda x: x * k[0]), lambda: k.__setitem__(0, 3.0))


# ---------------------------------------------------------------------------------------
# Everything that it may read


class _Settings:
    rate = 2.0

    def __init__(self):
        self.nested = {"list": [1.0, 2.0]}
        self.array = np.ones(3)

    @property
    def doubled(self):
        return 2 * self.rate

    def residuals(self, x):
        return self.rate * x


class _Slots:
    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate


class _Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class _Config:
    k: float = 1.0


_Point = collections.namedtuple("_Point", "a b")


def put(key, value):
    return lambda holder: holder.__setitem__(key, value)


def attribute(name, value):
    return lambda holder: setattr(holder, name, value)


def subclass(kind, **fields):
    return type("Local", (kind,), fields)


def function(**fields):
    def fun(x, *, z=2.0):
        return x * z

    vars(fun).update(fields)
    return fun


_double = lambda holder: jnp.asarray(holder).astype(jnp.float64)
first = lambda holder: holder[0]
itself = lambda holder: holder
READ = {  # what is read, how it changes, and the number that is read of it
    "array in place": (lambda: np.ones(3), put(1, 5.0), itself),
    "float32 array in place": (lambda: np.ones(3, np.float32), put(1, 5.0), _double),
    "view": (lambda: np.ones((3, 2)), put((0, 1), 7.0), lambda h: h[:, 1]),
    "array permuted": (lambda: np.arange(3.0), put(slice(None), [2.0, 1.0, 0.0]), itself),
    "object array": (lambda: np.array([1.0, 2.0], object), put(0, 9.0), first),
    "array subclass": (
        lambda: np.ones(3).view(subclass(np.ndarray)), lambda h: h.fill(3.0), np.asarray
    ),
    "jax array": (lambda: [jnp.array(2.0)], put(0, jnp.array(3.0)), first),
    "list": (lambda: [1.0], put(0, 2.0), first),
    "dict": (lambda: {"a": 1.0}, put("a", 2.0), lambda h: h["a"]),
    "order of a dict": (
        lambda: {"a": 1.0, "b": 2.0}, lambda h: h.update(a=h.pop("a")),
        lambda h: next(iter(h.values())),
    ),
    "set": (lambda: {1.0}, lambda h: h.add(2.0), sum),
    "deque": (lambda: collections.deque([1.0]), lambda h: h.appendleft(2.0), first),
    "default dict": (
        lambda: collections.defaultdict(float), put("a", 2.0), lambda h: sum(h.values())
    ),
    "list subclass": (lambda: subclass(list)([1.0]), lambda h: h.append(2.0), sum),
    "dict subclass": (lambda: subclass(dict)(a=1.0), put("b", 2.0), lambda h: sum(h.values())),
    "attribute": (_Settings, attribute("rate", 7.0), lambda h: h.rate),
    "nested attribute": (
        _Settings, lambda h: put(1, 9.0)(h.nested["list"]), lambda h: h.nested["list"][1]
    ),
    "array of an object": (_Settings, lambda h: h.array.fill(9.0), lambda h: h.array),
    "slot": (lambda: _Slots(1.0), attribute("rate", 2.0), lambda h: h.rate),
    "dataclass": (_Config, attribute("k", 2.0), lambda h: h.k),
    "namespace": (lambda: types.SimpleNamespace(k=1.0), attribute("k", 2.0), lambda h: h.k),
    "named tuple": (lambda: [_Point(1.0, 2.0)], put(0, _Point(2.0, 1.0)), lambda h: h[0].a),
    "enum": (lambda: [_Color.RED], put(0, _Color.BLUE), lambda h: h[0].value),
    "random generator": (
        lambda: np.random.default_rng(0), lambda h: h.normal(), lambda h: copy.deepcopy(h).normal()
    ),
    "class attribute": (lambda: subclass(_Settings), attribute("rate", 5.0), lambda h: h().rate),
    "property": (lambda: subclass(_Settings), attribute("rate", 5.0), lambda h: h().doubled),
    "method": (
        lambda: subclass(_Settings), attribute("residuals", lambda self, x: -x),
        lambda h: h().residuals(1.0),
    ),
    "static method": (
        lambda: subclass(_Settings, scaled=staticmethod(lambda x: x)),
        attribute("scaled", lambda x: 3 * x), lambda h: h.scaled(1.0),
    ),
    "function attribute": (lambda: function(k=2.0), attribute("k", 3.0), lambda h: h.k),
    "keyword default": (function, lambda h: h.__kwdefaults__.update(z=4.0), lambda h: h(1.0)),
    "code": (function, attribute("__code__", (lambda x, *, z: -x).__code__), lambda h: h(1.0)),
    "1 and True": (lambda: [1], put(0, True), lambda h: len(repr(h[0]))),
    "0.0 and -0.0": (lambda: [0.0], put(0, -0.0), lambda h: np.copysign(1.0, h[0])),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_everything_that_it_reads(kind):
    make, change, read = READ[kind]
    holder = make()
    assert_follows(lambda x: x * read(holder), lambda: change(holder))


def test_a_cell():
    k = 2.0

    def change():
        nonlocal k
        k = 3.0

    assert_follows(lambda x: k * x, change)


# ---------------------------------------------------------------------------------------
# Names, in a module of the user's

MODULE = """
import numpy as np
k = 2.0
table = np.ones(3)
class Config:
    k = 1.0
def scale(x):
    return k * x
"""
NAMES = {  # the function's body, and what is then run in the module
    "global": ("return k * x", "k = 3.0"),
    "global of a helper": ("return scale(x)", "k = 3.0"),
    "helper": ("return [y for y in (scale(x),)][0]", "def scale(x): return -x"),
    "array": ("return x * table", "table[1] = 5.0"),
    "class": ("return x * Config.k", "Config.k = 5.0"),
    "missing": ("return x * globals().get('later', 1.0)", "later = 4.0"),
    "built in": ("return x * abs(-1.0)", "abs = lambda x: 7.0"),
    "inner function": ("return (lambda: k)() * x", "k = 3.0"),
    "module": ("import users_module as m; return x * m.k", "k = 3.0"),
    "from module": ("from users_module import k; return x * k", "k = 3.0"),
    "getattr": ("import users_module as m; return x * getattr(m, 'k')", "k = 3.0"),
    "vars": ("import users_module as m; return x * vars(m)['k']", "k = 3.0"),
    "eval": ("return x * eval('k')", "k = 3.0"),
    "sys.modules": ("import sys; return x * sys.modules['users_module'].k", "k = 3.0"),
    "importlib": (
        "import importlib; return x * importlib.import_module('users_module').k", "k = 3.0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_names(kind, monkeypatch):
    body, change = NAMES[kind]
    module = types.ModuleType("users_module")
    monkeypatch.setitem(sys.modules, "users_module", module)
    run = lambda source: exec(compile(source, "<users_module>", "exec"), vars(module))
    run(f"{MODULE}\ndef fun(x):\n    {body}")
    assert_follows(module.fun, lambda: run(change))


# ---------------------------------------------------------------------------------------
# Among the arguments, in files, behind caches


class _Model(eqx.Module):
    weight: jax.Array
    settings: list = eqx.field(static=True, default=())

    def residuals(self, x, scope):
        return self.weight * scope["helper"](x)

    def by_setting(self, x):
        return self.weight * x * self.settings[0]


class _Pair(NamedTuple):
    weight: jax.Array

    def residuals(self, x, scope):
        return self.weight * scope["helper"](x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Registered:
    weight: jax.Array

    def residuals(self, x, scope):
        return self.weight * scope["helper"](x)


def _see_method(kind):
    scope = {"helper": jnp.sin}
    fun = functools.partial(lambda x, model, scope: model.residuals(x, scope), scope=scope)
    return fun, (kind(X),), lambda: scope.update(helper=jnp.cos)


def _see_static_field():
    settings = [2.0]
    return lambda x, m: m.by_setting(x), (_Model(X, settings),), lambda: settings.insert(0, 3.0)


def _see_lru_cache():
    k = [2.0]
    cached = functools.lru_cache(lambda: k[0])

    def change():
        k[0] = 3.0
        cached.cache_clear()

    return lambda x: cached() * x, (), change


def _see_file(write, read):
    folder = pathlib.Path(tempfile.mkdtemp())
    write(folder / "data", 2.0)
    return lambda x: x * read(folder / "data"), (), lambda: write(folder / "data", 3.0)


def _save(path, value):
    with path.open("wb") as file:
        np.save(file, np.full(3, value))


def _see_mock():
    patch = mock.patch("jax.numpy.tanh", jnp.sinh)
    return lambda x: jnp.tanh(x), (), patch.start


def _see_installed_module():
    module = types.ModuleType("installed")
    module.__file__ = np.__file__  # beside the libraries
    module.k = 2.0
    return lambda x: module.k * x, (), lambda: setattr(module, "k", 3.0)


def _see_equal_checksums():
    first, second = np.array([0.51, 5.6]), np.array([2.23, 2.03])
    buffer = first.copy()
    return lambda x: x[:2] * buffer, (), lambda: buffer.__setitem__(slice(None), second)


SEEN = {
    "method of an equinox module": lambda: _see_method(_Model),
    "method of a named tuple": lambda: _see_method(_Pair),
    "method of a registered dataclass": lambda: _see_method(_Registered),
    "static field": _see_static_field,
    "lru_cache": _see_lru_cache,
    "np.load": lambda: _see_file(_save, np.load),
    "np.loadtxt": lambda: _see_file(lambda p, v: p.write_text(str(v)), np.loadtxt),
    "read_text": lambda: _see_file(
        lambda p, v: p.write_text(str(v)), lambda p: float(p.read_text())
    ),
    "np.random": lambda: (lambda x: x * np.random.default_rng().normal(), (), lambda: None),
    "mock.patch": _see_mock,
    "attribute of an installed module": _see_installed_module,
    "checksum": _see_equal_checksums,
}


@pytest.mark.parametrize("see", SEEN.values(), ids=SEEN.keys())
def test_a_function_is_traced_at_each_call(see):
    fun, args, change = see()
    try:
        before = lift(fun, X, *args)(X, *args)
        change()
        after = lift(fun, X, *args)(X, *args)
        assert not np.allclose(before, after)
        if see is not SEEN["np.random"]:
            np.testing.assert_allclose(after, fun(X, *args))
    finally:
        mock.patch.stopall()


def test_each_solve_sees_what_has_changed():
    """Through the front doors, by values and by derivatives of the solution."""
    table = {"target": 2.0}
    buffer = np.array([1.0, 1.0])

    def target():
        return table["target"] * buffer

    def fit(a):
        return ox.least_squares(lambda x: x**3 - a * target(), jnp.ones(2), method="lm").x

    def least(a):
        return ox.minimize(lambda x: jnp.sum((x - a * target()) ** 2), jnp.zeros(2)).x

    def root(a):
        found = ox.elementwise.find_root(lambda x: x - a * target(), (-jnp.ones(2) * 9, 9.0))
        return found.x

    for solve, power in ((fit, 1 / 3), (least, 1.0), (root, 1.0)):
        for table["target"], buffer[1] in ((1.5, 1.0), (2.5, 1.0), (2.5, 0.5)):
            expected = target() ** power
            np.testing.assert_allclose(solve(1.0), expected, rtol=1e-6)
            np.testing.assert_allclose(jax.jacfwd(solve)(1.0), power * expected, rtol=1e-5)


def test_a_jitted_function_whose_cache_was_cleared():
    settings = types.SimpleNamespace(height=1.0)
    fun = jax.jit(lambda x: x - settings.height)

    def change():
        settings.height = 3.0
        fun.clear_cache()

    assert_follows(fun, change)


# ---------------------------------------------------------------------------------------
# What is kept of a jitted function


def _kept(fun, *args):
    return lift(fun, *args) is lift(fun, *args)


def test_what_is_made_of_a_jitted_function_is_kept():
    captured = jnp.arange(X.size, dtype=X.dtype)
    assert _kept(jax.jit(lambda x: x + captured), X)
    assert _kept(jax.jit(lambda x, data: x * data["a"] + data["b"]), X, {"a": X, "b": 2.0})
    assert not _kept(lambda x: x + captured, X)


def test_a_jitted_function_is_another_under_other_settings_and_of_other_arguments():
    fun = jax.jit(lambda x, y: x @ y)
    square = jnp.ones((2, 2), jnp.float32)
    default = lift(fun, square, square)
    with jax.default_matmul_precision("bfloat16"):
        coarse = lift(fun, square, square)
    assert "DEFAULT" not in str(default.structure.jaxpr)
    assert coarse.structure != default.structure
    assert lift(fun, square, square).structure == default.structure
    assert lift(fun, square, square[:, 0]).structure != default.structure
    assert lift(fun, square.astype(jnp.float16), square.astype(jnp.float16)) is not default
    by_weak = lift(jax.jit(lambda x, c: x * c), jnp.float32(1.0), 2.0)
    assert by_weak(jnp.float32(3.0), 2.0).dtype == jnp.float32


def test_jitted_functions_of_one_function_are_not_confused():
    """JAX keeps one trace for both; what else is asked of them differs."""

    def double(x):
        return 2.0 * x

    plain, inlined = jax.jit(double), jax.jit(double, inline=True)
    for _ in range(2):
        for fun in (plain, inlined):
            np.testing.assert_allclose(lift(fun, X)(X), 2.0 * X)
    assert len(lift(inlined, X).structure.jaxpr.eqns) == len(
        jax.make_jaxpr(lambda x: inlined(x))(X).eqns
    )


def test_a_jitted_function_of_a_numpy_array_that_is_written_into():
    data = np.ones(X.size)
    fun = jax.jit(lambda x: x * data)
    assert not _kept(fun, X)


def test_a_jitted_function_that_captured_a_tracer():
    def of(a):
        fun = jax.jit(lambda x: x - a)
        return lift(fun, X)(X), lift(fun, X)(X)

    for first, second in (jax.jit(of)(2.0), jax.jit(of)(3.0), jax.jvp(of, (2.0,), (1.0,))[0]):
        assert_tree_close(first, second)
    assert_tree_close(jax.jacfwd(of)(2.0), (-jnp.ones_like(X),) * 2)
    rows = jax.vmap(lambda a: of(a)[1])(jnp.array([1.0, 2.0]))
    assert_tree_close(rows, jnp.stack([X - 1.0, X - 2.0]))


def test_a_jitted_function_and_what_it_captured_are_let_go():
    def used():
        captured = jnp.arange(X.size, dtype=X.dtype)
        fun = jax.jit(lambda x: x + captured)
        assert _kept(fun, X)
        return weakref.ref(fun), weakref.ref(captured)

    fun, captured = used()
    gc.collect()
    assert fun() is None and captured() is None


def test_arrays_of_a_trace_are_let_go_when_its_cache_is_cleared():
    settings, captured = types.SimpleNamespace(), []
    fun = jax.jit(lambda x: x - settings.height)
    for clear in (fun.clear_cache, jax.clear_caches):
        for height in (1.0, 2.0, 3.0):
            settings.height = jnp.full(X.shape, height, X.dtype)
            clear()
            np.testing.assert_allclose(lift(fun, X)(X), X - height)
            captured.append(weakref.ref(settings.height))
        settings.height = None
        clear()
        gc.collect()
        assert not any(array() is not None for array in captured)


@pytest.mark.parametrize("first", ["jit", "jvp", "grad", "vmap"])
def test_a_tracer_of_a_transformation_that_is_over_is_refused(first):
    """A jitted function keeps one that it found in a global variable; JAX refuses it, too."""
    settings = types.SimpleNamespace()
    fun = jax.jit(lambda x: x - settings.height)

    def fit(height):
        settings.height = height
        return ox.least_squares(fun, X, method="lm").x

    under = {
        "jit": lambda: jax.jit(fit)(2.0),
        "jvp": lambda: jax.jvp(fit, (2.0,), (1.0,))[0],
        "grad": lambda: jax.value_and_grad(lambda a: fit(a)[0])(2.0)[0],
        "vmap": lambda: jax.vmap(fit)(jnp.full(2, 2.0)),
    }
    np.testing.assert_allclose(under[first](), 2.0)
    left_over = settings.height
    with pytest.raises(jax.errors.UnexpectedTracerError):
        fit(5.0)
    for args in ((left_over,), ()):
        with pytest.raises(jax.errors.UnexpectedTracerError):
            ox.least_squares(lambda x, h=left_over: x - h, X, args=args, method="lm")
    fun.clear_cache()
    np.testing.assert_allclose(fit(5.0), 5.0)


def test_an_elementwise_function_is_traced_once():
    """As the user wrote it, or as JAX keeps it; also one whose values come in a list."""
    traces = []

    def traced(fun):
        def counted(x, c):
            traces.append(None)
            return fun(x, c)

        return counted

    c = jnp.array([2.0, 8.0])
    functions = [lambda x, c: x**3 - c, lambda x, c: [x[0] ** 3 - c[0], x[1] ** 3 - c[1]]]
    for fun in functions:
        for wrap in (lambda f: f, jax.jit):
            counted = wrap(traced(fun))
            traces.clear()
            found = ox.elementwise.find_root(counted, (jnp.zeros(2), jnp.full(2, 3.0)), args=(c,))
            assert len(traces) == 1
            np.testing.assert_allclose(found.x, np.cbrt(c), rtol=1e-6)
