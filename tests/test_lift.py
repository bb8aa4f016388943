"""A Python function as a value: never stale, never compiled or traced more than it must be.

The oracle of every value and derivative is the function itself, called without lifting.
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
import textwrap
import types
import weakref
from typing import NamedTuple
from unittest import mock

import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import optx_lite as ox
from optx_lite.functions import Lifted, lift
from optx_lite.functions.constants import lift_constants

X = jnp.array([0.5, 1.0, 2.0])

_COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **kwargs: (
        _COMPILED.append(duration)
        if event == "/jax/core/compile/backend_compile_duration"
        else None
    )
)


def same(fun, other, x=X):
    """Whether two functions are the same to a compiled function that takes them as arguments."""
    a, b = lift(fun, x), lift(other, x)
    one = jax.tree.structure(a) == jax.tree.structure(b)
    assert one == (a.structure == b.structure)
    assert hash(a.structure) == hash(b.structure) or not one
    return one


def assert_tree_close(got, expected):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14), got, expected
    )


# ---------------------------------------------------------------------------------------
# The function is the same function


def _pytree(p):
    return {"a": [p["u"] * 2.0, None], "b": (jnp.sum(p["u"]) + p["v"],)}


@pytest.mark.parametrize(
    ("fun", "args"),
    [
        (lambda x: x**2 - 3.0, (X,)),
        (lambda x, y: jnp.outer(x, y), (X, X[:2])),
        (_pytree, ({"u": X, "v": jnp.array(2.0)},)),
        (lambda x: 5.0, (X,)),
        (lambda x: np.arange(3.0), (X,)),
        (lambda x: X, (X,)),
        (lambda x: [x[0], 2, X[1]], (X,)),
        (lambda x, n: x * n, (X, 2.0)),
        (lambda x, how: x if how == "same" else -x, (X, "other")),
        (lambda x, options: options["f"](x) * options["k"], (X, {"f": jnp.sin, "k": 3.0})),
        (jax.jit(lambda x: jnp.where(x > 1, x, X)), (X,)),
        (lambda x: x.astype(jnp.float32) * jnp.float32(0.1), (X,)),
        (lambda k: jax.random.normal(k, (2,)), (jax.random.key(0),)),
        (jax.vmap(lambda x: jax.lax.cond(x > 1, jnp.sin, jnp.cos, x)), (X,)),
    ],
)
def test_values(fun, args):
    lifted = lift(fun, *args)
    expected = fun(*args)
    assert jax.tree.structure(lifted(*args)) == jax.tree.structure(expected)
    assert_tree_close(lifted(*args), expected)
    assert_tree_close(jax.jit(lambda lifted: lifted(*args))(lifted), expected)


def test_examples_need_only_shapes():
    lifted = lift(lambda x, y: x @ y, jax.ShapeDtypeStruct((2, 3), X.dtype), X)
    assert lifted.out_shape == jax.ShapeDtypeStruct((2,), X.dtype)
    np.testing.assert_allclose(lifted(jnp.ones((2, 3)), X), [3.5, 3.5])


def test_a_lifted_function_is_a_pytree_of_what_it_captured():
    data = np.array([1.0, 2.0, 3.0])
    lifted = lift(lambda x: x - data, X)
    (leaf,) = jax.tree.leaves(lifted)
    np.testing.assert_array_equal(leaf, data)
    other = jax.tree.map(lambda leaf: 10 * leaf, lifted)
    np.testing.assert_allclose(other(X), X - 10 * data)
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), lifted, other)
    np.testing.assert_allclose(
        jax.vmap(lambda f, x: f(x), (0, None))(batch, X), [X - data, X - 10 * data]
    )


@pytest.mark.parametrize("args", [(X[:2],), (X.astype(jnp.float32),), (X, X), ()])
def test_other_arguments_than_the_examples_are_refused(args):
    with pytest.raises(TypeError, match="expected, not"):
        lift(lambda x: x, X)(*args)


@pytest.mark.usefixtures("x64_off")
def test_float32_stays_float32():
    data = np.arange(3.0)  # float64 to NumPy
    lifted = lift(lambda x: x * data * 0.1, np.ones(3))
    assert lifted(np.ones(3)).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(lifted)} == {jnp.dtype(jnp.float32)}


# ---------------------------------------------------------------------------------------
# Structure: equal for the same mathematics over other data, and for nothing else


class _Rule:
    """Functions with derivative rules of their own, made anew for each `factor`."""

    @staticmethod
    def function(slope, curvature=1.0):
        @jax.custom_jvp
        def square(x):
            return x * x

        @jax.custom_jvp
        def derivative(x):
            return slope * x

        @square.defjvp
        def _(primals, tangents):
            return square(*primals), derivative(*primals) * tangents[0]

        @derivative.defjvp
        def _(primals, tangents):
            return derivative(*primals), curvature * tangents[0]

        return square

    @staticmethod
    def capturing(y):
        @jax.custom_jvp
        def square(x):
            return x * x * y

        @square.defjvp
        def _(primals, tangents):
            return square(*primals), 2 * primals[0] * y * tangents[0]

        return square

    @staticmethod
    def sine(y):
        sine = jax.custom_jvp(lambda x: jnp.sin(x) * y)
        cosine = jax.custom_jvp(lambda x: jnp.cos(x) * y)
        sine.defjvp(lambda p, t: (sine(*p), cosine(*p) * t[0]))
        cosine.defjvp(lambda p, t: (cosine(*p), -sine(*p) * t[0]))
        return sine

    @staticmethod
    def by_argument():
        product = jax.custom_jvp(lambda x, y: x * y)
        product.defjvps(lambda t, _, x, y: t * y, lambda t, _, x, y: t * x)
        return product

    @staticmethod
    def with_symbolic_zeros(slope):
        @jax.custom_jvp
        def square(x):
            return x * x

        def rule(primals, tangents):
            return square(*primals), slope * primals[0] * tangents[0]

        square.defjvp(rule, symbolic_zeros=True)
        return square


class _Vjp:
    """The same for reverse mode; what the rules say is what `y` says, not the derivative."""

    @staticmethod
    def function(y, factor=1.0):
        @jax.custom_vjp
        def sine(x):
            return jnp.sin(x) * y

        # The forward pass calls the function itself, and passes on its argument.
        sine.defvjp(lambda x: (sine(x), x), lambda x, ct: (factor * ct * jnp.cos(x) * y,))
        return sine

    @staticmethod
    def apart(y):
        """Its rules do not call the function, so that they can be differentiated forwards."""
        sine = jax.custom_vjp(lambda x: jnp.sin(x) * y)
        sine.defvjp(lambda x: (jnp.sin(x) * y, x), lambda x, ct: (ct * jnp.cos(x) * y,))
        return sine

    @staticmethod
    def with_static(y):
        @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
        def power(n, x):
            return x**n * y

        power.defvjp(lambda n, x: (power(n, x), x), lambda n, x, ct: (ct * n * x ** (n - 1) * y,))
        return power


SAME = {
    "numpy": lambda y, k: lambda x: x - y,
    "jax array": lambda y, k: lambda x: x - jnp.asarray(y),
    "0-d jax array": lambda y, k: lambda x: x * jnp.asarray(k),
    "python float": lambda y, k: lambda x: k * x + x / k - k,
    "numpy float": lambda y, k: lambda x: jnp.maximum(x, np.float64(k)) * np.array(k),
    "default": lambda y, k: lambda x, y=y: x - y,
    "nested jit": lambda y, k: lambda x: x + jax.jit(lambda x: x * y + jnp.asarray(k))(x),
    "jit": lambda y, k: jax.jit(lambda x: x * y - k),
    "twice nested": lambda y, k: lambda x: -jax.jit(lambda x: jax.jit(lambda x: x * y)(x) + x)(x),
    "vmap": lambda y, k: jax.vmap(lambda x: jnp.sum(x * y)),
    "cond": lambda y, k: lambda x: jax.lax.cond(x[0] > 0, lambda x: x * y, lambda x: x - y, x),
    "scan": lambda y, k: lambda x: jax.lax.scan(lambda c, t: (c * y, c + t), x, y)[1],
    "while": lambda y, k: (
        lambda x: jax.lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: c + jnp.abs(y), x)
    ),
    "remat": lambda y, k: jax.checkpoint(lambda x: jnp.sin(x) * y),
    "relu": lambda y, k: lambda x: jax.nn.relu(x - y),
    "softplus": lambda y, k: lambda x: jax.nn.softplus(x - y),
    "logsumexp": lambda y, k: lambda x: jax.scipy.special.logsumexp(x - y),
    "xlogy": lambda y, k: lambda x: jax.scipy.special.xlogy(y, x),
    "linear solve": lambda y, k: lambda x: jnp.linalg.solve(jnp.diag(y), x),
    "own rule": lambda y, k: lambda x: _Rule.function(2.0, 2.0)(x - y),
    "gradient": lambda y, k: jax.grad(lambda x: jnp.sum(jax.nn.relu(x * y))),
    "real exponent": lambda y, k: lambda x: x ** (k - 0.2) + jnp.abs(x - y) ** 0.5,
    "base": lambda y, k: lambda x: k**x,
    "where": lambda y, k: lambda x: jnp.where(x > k, k, x) + jnp.where(x > y, k, 3 * k),
    "clip": lambda y, k: lambda x: jnp.clip(x * y, 0.1 * k, 3.0 * k),
    "full": lambda y, k: lambda x: x * jnp.full(3, k),
    "linspace": lambda y, k: lambda x: x * jnp.linspace(k, 7.0, 3),
    "number in jit": lambda y, k: lambda x: jax.jit(lambda x: jnp.sin(k * x))(x) + y,
    "number in scan": lambda y, k: lambda x: jax.lax.scan(lambda c, t: (c * k + t, c), x, y)[1],
    "number in fori": lambda y, k: lambda x: jax.lax.fori_loop(0, 3, lambda i, c: c * k, x),
    "number in while": lambda y, k: (
        lambda x: jax.lax.while_loop(lambda c: c[0] < 4 * k, lambda c: c * k + 1.0, x)
    ),
    "number in cond": lambda y, k: (
        lambda x: jax.lax.cond(x[0] > 0, lambda x: x * k, lambda x: x / k, x)
    ),
    "number in remat": lambda y, k: jax.checkpoint(lambda x: jnp.sin(k * x)),
    "number in a nest": lambda y, k: (
        lambda x: jax.lax.scan(
            lambda c, t: (
                jax.jit(lambda c: jax.lax.cond(t > k, jnp.sin, lambda c: k * c, c))(c),
                0,
            ),
            x,
            y,
        )[0]
    ),
    "custom_vjp": lambda y, k: lambda x: _Vjp.function(2.0)(x) - y,
    "captured by custom_vjp": lambda y, k: _Vjp.function(y),
    "custom_vjp in a loop": lambda y, k: (
        lambda x: jax.lax.scan(lambda c, _: (_Vjp.function(y)(c), None), x, None, length=2)[0]
    ),
    "custom_vjp in a branch": lambda y, k: (
        lambda x: jax.lax.cond(x[0] > 0, _Vjp.function(y), jnp.cos, x)
    ),
    "custom_vjp with static arguments": lambda y, k: lambda x: _Vjp.with_static(y)(3, x),
    "custom_gradient": lambda y, k: jax.custom_gradient(
        lambda x: (x**2 * y, lambda g: (g * 2 * x * y,))
    ),
    "captured by custom_jvp": lambda y, k: _Rule.capturing(y),
    "rules that call each other": lambda y, k: _Rule.sine(y),
    "rules for each argument": lambda y, k: lambda x: _Rule.by_argument()(x, y),
    "custom_root": lambda y, k: (
        lambda x: jax.lax.custom_root(
            lambda z: z**3 + z - x * y,
            x,
            lambda f, z: jax.lax.fori_loop(0, 30, lambda _, z: z - f(z) / (3 * z**2 + 1), z),
            lambda g, b: b / g(jnp.ones_like(b)),
        )
    ),
    "gelu": lambda y, k: lambda x: jax.nn.gelu(x * y) + jax.nn.silu(x),
    "least squares": lambda y, k: (
        lambda x: (
            ox.least_squares(
                lambda z, x: z**3 + z - k * x * y, jnp.ones(3), args=(x,), method="lm"
            ).x
        )
    ),
    "mlp": lambda y, k: (lambda net: lambda x: net(x))(
        eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(int(10 * k)))
    ),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME.keys())
def test_fresh_closures_over_new_data_are_the_same_function(make):
    rng = np.random.default_rng(0)
    first = make(rng.normal(size=3) + 3, 1.5)
    second = make(rng.normal(size=3) + 3, 2.5)
    assert same(first, second)
    compiled = jax.jit(lambda lifted, x: lifted(x))
    # Dividing by an input rather than by a constant may round otherwise, no more.
    np.testing.assert_allclose(compiled(lift(first, X), X), first(X), rtol=1e-14)
    before = len(_COMPILED)
    got = compiled(lift(second, X), X)
    assert len(_COMPILED) == before
    np.testing.assert_allclose(got, second(X), rtol=1e-13)


WITH_RULES = [name for name in SAME if "custom" in name or "rule" in name or "least" in name]


@pytest.mark.parametrize("make", [SAME[name] for name in WITH_RULES], ids=WITH_RULES)
def test_derivatives_by_frozen_rules(make):
    """To the second order, of a function whose structure came from another one."""
    rng = np.random.default_rng(1)
    lift(make(rng.normal(size=3) + 3, 1.5), X)
    fun = make(rng.normal(size=3) + 3, 2.5)
    lifted = lift(fun, X)

    def loss(f):
        return lambda x: jnp.sum(f(x) ** 2)

    assert_tree_close(jax.grad(loss(lifted))(X), jax.grad(loss(fun))(X))
    second = jax.jacrev(jax.grad(loss(lifted)))
    try:
        expected = jax.jacrev(jax.grad(loss(fun)))(X)
    except Exception as error:  # what JAX itself cannot do
        with pytest.raises(type(error)):
            second(X)
    else:
        np.testing.assert_allclose(second(X), expected, rtol=1e-9, atol=1e-9)


def _with_dtype(dtype):
    return lambda x: x.astype(dtype)


DIFFERENT = {
    "operation": (lambda x: x + X, lambda x: x * X),
    "order of arguments": (lambda x: x - X, lambda x: X - x),
    "which constant": (lambda x: (x - X) * (X + 1), lambda x: (x - (X + 1)) * X),
    "exponent": (lambda x: x**2, lambda x: x**3),
    "real exponent": (lambda x: x**2.0, lambda x: x**0.5),
    "zero": (lambda x: x + 0.0, lambda x: x + 1.0),
    "sign of zero": (lambda x: jnp.atan2(x, 0.0), lambda x: jnp.atan2(x, -0.0)),
    "integer": (lambda x: x.astype(int) + 1, lambda x: x.astype(int) + 2),
    "index": (lambda x: x[0], lambda x: x[1]),
    "axis": (lambda x: jnp.sum(jnp.outer(x, x), 0), lambda x: jnp.sum(jnp.outer(x, x), 1)),
    "dtype": (_with_dtype(jnp.float32), _with_dtype(jnp.float16)),
    "dtype of a constant": (lambda x: (x, X), lambda x: (x, X.astype(jnp.float32))),
    "shape of a constant": (lambda x: x * X, lambda x: x * X[:1]),
    "structure of the result": (lambda x: (x, x), lambda x: [x, x]),
    "names in the result": (lambda x: {"a": x}, lambda x: {"b": x}),
    "number of results": (lambda x: x, lambda x: (x, x)),
    "order of results": (lambda x: (x, -x), lambda x: (-x, x)),
    "length of a scan": tuple(
        lambda x, n=n: jax.lax.scan(lambda c, _: (c + X, None), x, None, length=n)[0]
        for n in (2, 3)
    ),
    "body of a scan": tuple(
        lambda x, f=f: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=2)[0]
        for f in (jnp.sin, jnp.cos)
    ),
    "branch": tuple(
        lambda x, f=f: jax.lax.cond(x[0] > 0, f, jnp.exp, x) for f in (jnp.sin, jnp.cos)
    ),
    "order of branches": (
        lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
        lambda x: jax.lax.cond(x[0] > 0, jnp.cos, jnp.sin, x),
    ),
    "derivative rule": (_Rule.function(2.0), _Rule.function(3.0)),
    "rule of the rule": (_Rule.function(2.0, 1.0), _Rule.function(2.0, 5.0)),
    "reverse rule": (_Vjp.function(2.0), _Vjp.function(2.0, 3.0)),
    "no reverse rule": (_Vjp.function(X), lambda x: jnp.sin(x) * X),
    "no rule": (lambda x: x * x, _Rule.function(2.0)),
    "callback": tuple(
        lambda x, f=f: jax.pure_callback(f, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        for f in (np.sin, np.cos)
    ),
    "seed": tuple(lambda x, k=k: x + jax.random.normal(jax.random.key(k), x.shape) for k in (0, 1)),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_other_mathematics_is_another_function(pair):
    assert not same(*pair)
    for fun in pair:
        assert lift(fun, X).structure is lift(fun, X).structure
        assert_tree_close(lift(fun, X)(X), fun(X))


UNKNOWN = {
    "rule with symbolic zeros": lambda: _Rule.with_symbolic_zeros(2.0),
    "batching rule": lambda: _batched_by_rule(2.0),
    "rule that captures a value": lambda: _captures_own_value,
}


def _batched_by_rule(k):
    @jax.custom_batching.custom_vmap
    def fun(x):
        return k * x

    fun.def_vmap(lambda size, batched, x: (k * x, True))
    return fun


def _captures_own_value(x):
    total = jnp.sum(x)
    fun = jax.custom_jvp(lambda x: 2 * x)
    fun.defjvp(lambda p, t: (fun(*p), t[0] * total))
    return fun(x)


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_cannot_be_known_is_never_the_same(make):
    fun = make()
    assert not same(fun, fun)
    np.testing.assert_allclose(lift(fun, X)(X), fun(X))


def test_rules_that_change_are_seen():
    """By reverse mode as by forward mode, though the function itself does not change."""
    factor = [1.0]
    forward = jax.custom_jvp(lambda x: x)
    forward.defjvp(lambda p, t: (p[0], factor[0] * t[0]))
    reverse = jax.custom_vjp(lambda x: x)
    reverse.defvjp(lambda x: (x, None), lambda _, ct: (factor[0] * ct,))

    def slope(lifted, x):
        return jax.grad(lambda x: jnp.sum(lifted(x)))(x)

    for fun in (forward, reverse):
        for factor[0] in (2.0, 3.0, 2.0):
            np.testing.assert_array_equal(jax.jit(slope)(lift(fun, X), X), np.full(3, factor[0]))
        lifted, factor[0] = lift(fun, X), 9.0  # what was lifted stays as it was
        np.testing.assert_array_equal(slope(lifted, X), np.full(3, 2.0))


def test_example_dtypes_shapes_and_structures_count():
    def fun(x):
        return jax.tree.map(lambda leaf: leaf * 2, x)

    examples = [X, X[:2], X.astype(jnp.float32), X[0], 1.5, [X], {"a": X}]  # results differ, too
    structures = {jax.tree.structure(lift(fun, x)) for x in examples}
    assert len(structures) == len(examples)


def test_derivatives_do_not_compile_again_for_new_data():
    compiled = jax.jit(lambda lifted, x: jnp.sum(lifted(x) ** 2))

    def loss(theta, data):
        return compiled(lift(lambda x: theta * x - data, X), X)

    jax.grad(loss)(1.0, np.ones(3))
    expected = 2 * jnp.sum((2.0 * X - np.full(3, 7.0)) * X)
    before = len(_COMPILED)
    got = jax.grad(loss)(2.0, np.full(3, 7.0))
    assert len(_COMPILED) == before
    np.testing.assert_allclose(got, expected)


@pytest.fixture
def simplified_constants():
    jax.config.update("jax_use_simplified_jaxpr_constants", True)
    yield
    jax.config.update("jax_use_simplified_jaxpr_constants", False)


@pytest.mark.usefixtures("simplified_constants")
def test_constants_inside_equations():
    """As JAX is to have them one day."""
    funs = [SAME["nested jit"](k * np.ones(3), k) for k in (2.0, 3.0)]
    assert same(*funs)
    for fun in funs:
        np.testing.assert_allclose(lift(fun, X)(X), fun(X))
    funs = [SAME["scan"](k * np.ones(3), k) for k in (2.0, 3.0)]
    for fun in funs:
        np.testing.assert_allclose(lift(fun, X)(X), fun(X))


# ---------------------------------------------------------------------------------------
# Something changed: never stale


class _Settings:
    rate = 2.0

    def __init__(self):
        self.nested = {"list": [1.0, 2.0]}
        self.array = np.ones(3)

    @property
    def doubled(self):
        return 2 * self.rate

    @staticmethod
    def scaled(x):
        return x


class _Slots:
    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate


def _vary_closure():
    k = 2.0

    def change():
        nonlocal k
        k = 3.0

    return (lambda x: k * x), change


def _vary_array_in_place(make=np.ones):
    y = make(3)
    return (lambda x: x * y), lambda: y.__setitem__(1, 5.0)


def _vary_wrapped_array(dtype):
    y = np.ones(3, dtype)
    return (lambda x: x.astype(dtype) * y), lambda: y.__setitem__(1, 5)


def _vary_view():
    base = np.ones((3, 2))
    y = base[:, 1]
    return (lambda x: x * y), lambda: base.__setitem__((0, 1), 7.0)


def _vary_swap():
    y = np.array([1.0, 2.0, 3.0])
    return (lambda x: x * y), lambda: y.__setitem__(slice(None), [2.0, 1.0, 3.0])


def _vary_default():
    y = [1.0, 2.0]

    def fun(x, y=y, *, z=None):
        return x * y[0] + (0.0 if z is None else z)

    def change():
        fun.__kwdefaults__["z"] = 4.0

    return fun, change


def _vary_default_in_place():
    y = [1.0]
    return (lambda x, y=y: x * y[0]), lambda: y.__setitem__(0, 2.0)


def _vary_code():
    def fun(x):
        return x

    return fun, lambda: setattr(fun, "__code__", (lambda x: -x).__code__)


def _vary_function_attribute():
    def fun(x):
        return x * fun.k

    fun.k = 2.0
    return fun, lambda: setattr(fun, "k", 3.0)


def _vary(holder, change, read):
    return (lambda x: read(holder) * x), lambda: change(holder)


def _vary_partial():
    y = np.ones(3)
    return functools.partial(lambda x, y: x * y, y=y), lambda: y.fill(4.0)


def _vary_inner_function():
    k = [2.0]

    def inner(x):
        return x * k[0]

    return (lambda x: inner(x) + 1.0), lambda: k.__setitem__(0, 5.0)


def _vary_nested_code():
    k = [2.0]

    def outer(x):
        def inner(x):
            return x * k[0]

        return inner(x)

    return outer, lambda: k.append(k.insert(0, 6.0))


def _vary_method():
    settings = _Settings()
    cls = type("Sub", (_Settings,), {"residuals": lambda self, x: self.rate * x})
    settings = cls()
    return settings.residuals, lambda: setattr(settings, "rate", 5.0)


def _vary_class_attribute():
    cls = type("Local", (_Settings,), {})
    obj = cls()
    return (lambda x: obj.rate * x), lambda: setattr(cls, "rate", 5.0)


def _vary_class_method():
    cls = type("Local", (_Settings,), {"__call__": lambda self, x: x})
    return cls(), lambda: setattr(cls, "__call__", lambda self, x: -x)


def _vary_method_of_an_attribute():
    cls = type("Local", (_Settings,), {"residuals": lambda self, x: x})
    obj = cls()
    return (lambda x: obj.residuals(x)), lambda: setattr(cls, "residuals", lambda self, x: -x)


def _vary_property():
    cls = type("Local", (_Settings,), {"rate": 1.0})
    obj = cls()
    return (lambda x: obj.doubled * x), lambda: setattr(cls, "rate", 5.0)


def _vary_class_as_namespace():
    cls = type("Local", (_Settings,), {})
    return (lambda x: cls.rate * cls.scaled(x)), lambda: setattr(cls, "scaled", lambda x: 3 * x)


def _vary_wrapped(wrap):
    k = [2.0]
    return wrap(lambda x: x * k[0]), lambda: k.__setitem__(0, 3.0)


def _vary_jax_array():
    k = jnp.array(2.0)

    def change():
        nonlocal k
        k = jnp.array(3.0)

    return (lambda x: x * k), change


def _vary_object_array():
    y = np.array([1.0, 2.0], dtype=object)
    return (lambda x: x * y[0]), lambda: y.__setitem__(0, 9.0)


def _vary_type_only(before, after):
    k = before

    def change():
        nonlocal k
        k = after

    def fun(x):
        # What repr shows, as a number: the values themselves compare as equal.
        return {"value": x, repr(k): x}

    return fun, change


def _vary_unbound_cell():
    def fun(x):
        try:
            return x * k
        except NameError:
            return x

    def change():
        nonlocal k
        k = 2.0

    if sys is None:
        k = 0.0
    return fun, change


def _vary_custom_jvp():
    k = [1.0]

    @jax.custom_jvp
    def f(x):
        return x * k[0]

    f.defjvp(lambda p, t: (f(*p), t[0] * k[0]))
    return (lambda x: f(x)), lambda: k.__setitem__(0, 2.0)


class _Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class _Config:
    k: float = 1.0


_Point = collections.namedtuple("_Point", "a b")

VARIED = {
    "closure": _vary_closure,
    "numpy array in place": _vary_array_in_place,
    "float32 array in place": lambda: _vary_wrapped_array(np.float32),
    "view of a numpy array": _vary_view,
    "numpy array permuted": _vary_swap,
    "object array": _vary_object_array,
    "jax array": _vary_jax_array,
    "keyword default": _vary_default,
    "default in place": _vary_default_in_place,
    "code": _vary_code,
    "function attribute": _vary_function_attribute,
    "list": lambda: _vary([1.0], lambda h: h.__setitem__(0, 2.0), lambda h: h[0]),
    "dict": lambda: _vary({"a": 1.0}, lambda h: h.update(a=2.0), lambda h: h["a"]),
    "order of a dict": lambda: _vary(
        {"a": 1.0, "b": 2.0}, lambda h: h.update(a=h.pop("a")), lambda h: next(iter(h.values()))
    ),
    "set": lambda: _vary({1.0}, lambda h: h.add(2.0), lambda h: sum(h)),
    "deque": lambda: _vary(collections.deque([1.0]), lambda h: h.appendleft(2.0), lambda h: h[0]),
    "default dict": lambda: _vary(
        collections.defaultdict(float), lambda h: h.update(a=2.0), lambda h: sum(h.values())
    ),
    "attribute": lambda: _vary(_Settings(), lambda h: setattr(h, "rate", 7.0), lambda h: h.rate),
    "nested attribute": lambda: _vary(
        _Settings(),
        lambda h: h.nested["list"].__setitem__(1, 9.0),
        lambda h: h.nested["list"][1],
    ),
    "array of an object": lambda: _vary(
        _Settings(), lambda h: h.array.fill(9.0), lambda h: h.array
    ),
    "slot": lambda: _vary(_Slots(1.0), lambda h: setattr(h, "rate", 2.0), lambda h: h.rate),
    "dataclass": lambda: _vary(_Config(), lambda h: setattr(h, "k", 2.0), lambda h: h.k),
    "namespace": lambda: _vary(
        types.SimpleNamespace(k=1.0), lambda h: setattr(h, "k", 2.0), lambda h: h.k
    ),
    "named tuple": lambda: _vary(
        [_Point(1.0, 2.0)], lambda h: h.__setitem__(0, _Point(2.0, 1.0)), lambda h: h[0].a
    ),
    "enum": lambda: _vary(
        [_Color.RED], lambda h: h.__setitem__(0, _Color.BLUE), lambda h: h[0].value
    ),
    "list subclass": lambda: _vary(
        type("MyList", (list,), {})([1.0]), lambda h: h.append(2.0), lambda h: sum(h)
    ),
    "dict subclass": lambda: _vary(
        type("MyDict", (dict,), {})(a=1.0), lambda h: h.update(b=2.0), lambda h: sum(h.values())
    ),
    "array subclass": lambda: _vary(
        np.ones(3).view(type("MyArray", (np.ndarray,), {})),
        lambda h: h.fill(3.0),
        lambda h: np.asarray(h),
    ),
    "generator": lambda: _vary(
        iter([1.0, 2.0, 3.0, 4.0, 5.0]), lambda h: None, lambda h: float(h.__length_hint__() > 0)
    ),
    "random generator": lambda: _vary(
        np.random.default_rng(0),
        lambda h: h.normal(),
        lambda h: copy.deepcopy(h).normal(),
    ),
    "partial": _vary_partial,
    "inner function": _vary_inner_function,
    "nested code": _vary_nested_code,
    "self": _vary_method,
    "class attribute": _vary_class_attribute,
    "method redefined": _vary_class_method,
    "method of an attribute redefined": _vary_method_of_an_attribute,
    "behind a property": _vary_property,
    "class as a namespace": _vary_class_as_namespace,
    "under vmap": lambda: _vary_wrapped(jax.vmap),
    "under grad": lambda: _vary_wrapped(jax.jacfwd),
    "under checkpoint": lambda: _vary_wrapped(lambda f: jax.vmap(jax.jacrev(f))),
    "under functools.wraps": lambda: _vary_wrapped(lambda f: functools.wraps(np.sin)(f)),
    "under a partial": lambda: _vary_wrapped(lambda f: functools.partial(lambda f, x: f(x), f)),
    "under jax Partial": lambda: _vary_wrapped(jax.tree_util.Partial),
    "under filter_grad": lambda: _vary_wrapped(lambda f: eqx.filter_grad(lambda x: jnp.sum(f(x)))),
    "with a derivative rule": _vary_custom_jvp,
    "1 and 1.0": lambda: _vary_type_only(1, 1.0),
    "1 and True": lambda: _vary_type_only(1, True),
    "0.0 and -0.0": lambda: _vary_type_only(0.0, -0.0),
    "float and numpy float": lambda: _vary_type_only(1.0, np.float32(1.0)),
    "unset variable": _vary_unbound_cell,
}


@pytest.mark.parametrize("vary", VARIED.values(), ids=VARIED.keys())
def test_never_stale(vary):
    fun, change = vary()
    for _ in range(2):
        assert_tree_close(lift(fun, X)(X), fun(X))
    before = fun(X)
    change()
    after = fun(X)
    assert_tree_close(lift(fun, X)(X), after)
    if vary is not VARIED["generator"]:
        unchanged = jax.tree.structure(before) == jax.tree.structure(after) and all(
            map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(after))
        )
        assert not unchanged  # or this test would say nothing


def _user_module(name, source, monkeypatch):
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(textwrap.dedent(source), f"<{name}>", "exec"), vars(module))
    return module


MODULE = """
    import jax.numpy as jnp
    import numpy as np

    k = 2.0
    table = np.ones(3)

    class Config:
        k = 1.0

    def scale(x):
        return k * x

    def plain(x):
        return k * x

    def through_a_function(x):
        return scale(x)

    def through_two(x):
        return [y for y in (through_a_function(x),)][0]

    def of_an_array(x):
        return x * table

    def of_a_class(x):
        return x * Config.k

    def missing(x):
        try:
            return x * not_there_yet
        except NameError:
            return x

    def shadowed(x):
        return x * abs(-1.0)

    def nested(x):
        return (lambda: k)() * x

    class Residuals:
        def __call__(self, x):
            return k * x

    instance = Residuals()
"""

CHANGES = {
    "plain": "k = 3.0",
    "through_a_function": "k = 3.0",
    "through_two": "def scale(x):\n    return -x",
    "of_an_array": "table[1] = 5.0",
    "of_a_class": "Config.k = 5.0",
    "missing": "not_there_yet = 4.0",
    "shadowed": "abs = lambda x: 7.0",
    "nested": "k = 3.0",
    "instance": "k = 3.0",
}


@pytest.mark.parametrize(("name", "change"), CHANGES.items(), ids=CHANGES.keys())
def test_never_stale_in_globals(name, change, monkeypatch):
    module = _user_module("users_module", MODULE, monkeypatch)
    fun = getattr(module, name)
    before = lift(fun, X)(X)
    assert lift(fun, X).structure is lift(fun, X).structure
    np.testing.assert_allclose(before, fun(X))
    exec(change, vars(module))
    np.testing.assert_allclose(lift(fun, X)(X), fun(X))
    assert not np.allclose(before, fun(X))


@pytest.mark.parametrize(
    "body",
    [
        "return x * users_module.k",
        "import users_module as m; return x * m.k",
        "from users_module import k; return x * k",
        "return users_module.plain(x)",
        "return (lambda m: m.k * x)(users_module)",
        "return x * getattr(users_module, 'k')",
        "return x * vars(users_module)['k']",
        "return x * users_module.__dict__['k']",
        "return x * eval('users_module.k')",
        "import sys; return x * sys.modules['users_module'].k",
        "import importlib; return x * importlib.import_module('users_module').k",
    ],
)
def test_never_stale_in_a_users_module(body, monkeypatch):
    module = _user_module("users_module", MODULE, monkeypatch)
    scope = {"users_module": module}
    exec(f"def fun(x):\n    {body}", scope)
    fun = scope["fun"]
    np.testing.assert_allclose(lift(fun, X)(X), 2.0 * X)
    module.k = 3.0
    np.testing.assert_allclose(lift(fun, X)(X), 3.0 * X)


# What a cache by closures, globals and bytecode was stale in: each time another hole.


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


def test_a_jitted_function_is_traced_by_jax_alone():
    """And what was worked out of its jaxpr is not worked out again."""
    calls = []

    @jax.jit
    def fun(x, k):
        calls.append(1)
        return jnp.where(x > 0.7, k * x + 1.5, jax.lax.fori_loop(0, 3, lambda _, c: 2.5 * c, x))

    first = lift(fun, X, 2.0)
    (jaxpr,) = (eqn.params["jaxpr"] for eqn in first.structure.jaxpr.eqns)
    again = lift(fun, X, 3.0)
    assert calls == [1]
    assert again.structure is first.structure
    assert again.structure.jaxpr.eqns[0].params["jaxpr"] is jaxpr
    assert lift_constants(jax.make_jaxpr(fun)(X, 2.0)).jaxpr.eqns[0].params["jaxpr"] is jaxpr
    np.testing.assert_allclose(again(X, 3.0), fun(X, 3.0))


def test_identities_are_not_mistaken_after_their_objects_have_gone():
    # A new array may well lie where the last one was, and have its id.
    for i in range(200):
        k = jnp.full(3, float(i))
        np.testing.assert_array_equal(lift(lambda x, k=k: x * k, X)(X), X * k)
        del k


def test_own_memory():
    """What was lifted stays as it was, whatever becomes of the user's array."""
    memory = np.zeros(64 + 3 * 8, np.uint8)
    start = -memory.ctypes.data % 64  # so aligned, JAX may take memory over without a copy
    y = memory[start : start + 3 * 8].view(np.float64)
    y[:] = 1.0
    lifted = lift(lambda x: x * y, X)
    y[:] = 5.0
    np.testing.assert_array_equal(lifted(X), X)


# ---------------------------------------------------------------------------------------
# Memory


def _captures(kind, data):
    return {
        "closure": lambda: lambda x: x * data,
        "custom_jvp": lambda: lambda x: _Rule.capturing(data)(x),
        "custom_vjp": lambda: lambda x: _Vjp.function(data)(x),
        "jit": lambda: jax.jit(lambda x: x * data),
        "jit in a loop": lambda: lambda x: jax.lax.fori_loop(0, 2, lambda _, c: c * data, x),
        "solver": lambda: (
            lambda x: ox.least_squares(lambda z: z**3 + z - x * data, jnp.ones(3), method="lm").x
        ),
    }[kind]()


@pytest.mark.parametrize("make", [jnp.ones, np.ones], ids=["jax", "numpy"])
@pytest.mark.parametrize(
    "kind", ["closure", "custom_jvp", "custom_vjp", "jit", "jit in a loop", "solver"]
)
def test_no_data_are_kept_alive(kind, make):
    """Neither by the structure, which compiled programs keep, nor by what is remembered."""
    compiled = jax.jit(lambda lifted, x: lifted(x))

    def use(data):
        fun = _captures(kind, data)
        lifted = lift(fun, X)
        compiled(lifted, X)
        return lifted.structure, weakref.ref(data), weakref.ref(fun)

    structure, *gone = use(make(3))
    gc.collect()
    jnp.zeros(1)  # JAX lets go of NumPy's arrays when it is called next
    assert [ref() for ref in gone] == [None, None]
    assert structure is not None


@pytest.mark.slow
def test_eager_derivatives_and_batches_compile_once():
    """Each with a new function, new data and a new number."""

    def solve(k, make):
        fun = make()
        return lambda y: (
            ox.minimize(
                lambda x: jnp.sum((k * fun(x) - y) ** 2) + jnp.sum(x**4), 0.2 * jnp.ones(3)
            ).x
        )

    def batch(fun):
        return lambda y: jax.vmap(fun)(jnp.stack([y, 2 * y]))

    def slope(fun):
        return jax.grad(lambda y: jnp.sum(fun(y)))

    for make in (lambda: _Vjp.apart(2.0), lambda: _Rule.capturing(np.ones(3))):
        for transform in (slope, batch):
            results = []
            for k, y in ((1.5, X), (1.7, X + 0.1)):
                before = len(_COMPILED)
                results.append(transform(solve(k, make))(y))
            assert len(_COMPILED) == before
            assert not np.allclose(*results)


def test_no_copies_of_a_refilled_buffer_are_kept():
    buffer = np.zeros(1_000_000)

    def solve(value):
        buffer[:] = value
        res = ox.least_squares(lambda x: x - jnp.mean(buffer), jnp.ones(1), method="lm")
        np.testing.assert_allclose(res.x, value, rtol=1e-6)

    solve(1.0)
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    for value in range(2, 8):
        solve(float(value))
    gc.collect()
    assert sum(array.nbytes for array in jax.live_arrays()) - before < buffer.nbytes


# ---------------------------------------------------------------------------------------
# Numbers in the code


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 1 / 3, -0.5, -1.0, -1.3])
def test_powers_and_their_derivatives(exponent, dtype):
    """The same where an exponent is an input: at 0, below 0 (NaN or not), and at infinity."""
    with np.errstate(all="ignore"):
        x = jnp.array([0.3, 1.0, 7.0, 0.0, -0.0, -2.0, jnp.inf, 1e-30, 1e30], dtype)

        def power(x):
            return x ** np.asarray(exponent, dtype)

        lifted = lift(power, x[0])
        for order in range(3):
            got, expected = lifted, power
            for _ in range(order):
                got, expected = jax.grad(got), jax.grad(expected)
            np.testing.assert_allclose(
                jax.jit(jax.vmap(got))(x),
                jax.jit(jax.vmap(expected))(x),
                rtol=8 * float(jnp.finfo(dtype).eps),
            )


def test_numbers_have_no_derivative():
    """Where JAX has none, it is not asked for: a logarithm of x < 0, an incomplete beta's a."""
    for fun in (lambda x: (-x) ** 4.0, lambda x: jax.scipy.special.betainc(2.5, 1.5, x / 3)):
        lifted = lift(fun, X)

        def loss(lifted, x):
            return jnp.sum(lifted(x))

        of_consts, of_x = jax.grad(loss, (0, 1))(lifted, X)
        expected = jax.grad(functools.partial(loss, fun))(X)
        np.testing.assert_allclose(of_x, expected, rtol=1e-12)
        assert all(not leaf.any() for leaf in jax.tree.leaves(of_consts))


@pytest.mark.parametrize("x64", [True, False])
def test_weak_types_are_kept(x64):
    with jax.enable_x64(x64):
        x = jnp.ones(2, jnp.float32)
        fun = jax.jit(lambda x, k: (x * k, k, jnp.where(x > k, k, 2 * x)))
        lifted = lift(lambda x: fun(x, 2.5), x)
        assert [leaf.aval for leaf in lifted(x)] == [leaf.aval for leaf in fun(x, 2.5)]


# ---------------------------------------------------------------------------------------
# Under transformations


def _squares(theta, lifted):
    data = np.array([1.0, -1.0, 0.5])

    def residuals(x):
        inner = jax.jit(lambda x: jnp.sin(theta * x) + theta[0])(x)
        steps = jax.lax.scan(lambda c, t: (c * theta + t, None), x, jnp.outer(theta, data))[0]
        return jax.nn.softplus(inner) + steps * jnp.exp(theta[1]) - data

    f = lift(residuals, X) if lifted else residuals
    return jnp.sum(f(X) ** 2)


TRANSFORMATIONS = {
    "jit": jax.jit,
    "grad": jax.grad,
    "jacfwd": jax.jacfwd,
    "hessian": jax.hessian,
    "reverse over reverse": lambda f: jax.jacrev(jax.grad(f)),
    "jvp": lambda f: lambda t: jax.jvp(f, (t,), (t**2,)),
    "jit of grad": lambda f: jax.jit(jax.grad(f)),
    "grad of jit": lambda f: jax.grad(jax.jit(f)),
    "vmap": lambda f: lambda t: jax.vmap(f)(jnp.stack([t, 2 * t])),
    "vmap of grad": lambda f: lambda t: jax.vmap(jax.grad(f))(jnp.stack([t, 2 * t])),
    "grad of vmap": lambda f: jax.grad(lambda t: jnp.sum(jax.vmap(f)(jnp.stack([t, 2 * t])))),
    "jit of vmap of hessian": lambda f: (
        lambda t: jax.jit(jax.vmap(jax.hessian(f)))(jnp.stack([t, 2 * t]))
    ),
    "scan": lambda f: lambda t: jax.lax.scan(lambda c, k: (c, f(c * k)), t, jnp.arange(3.0))[1],
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
}


@pytest.mark.parametrize("transform", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS.keys())
def test_captured_tracers_carry_derivatives(transform):
    theta = jnp.array([0.3, 0.4, -0.5])
    got = transform(functools.partial(_squares, lifted=True))(theta)
    assert_tree_close(got, transform(functools.partial(_squares, lifted=False))(theta))


def test_captured_tracers_are_explicit_inputs():
    """So that a derivative rule around the solution sees them."""

    @jax.custom_jvp
    def call(lifted: Lifted, x):
        return lifted(x)

    @call.defjvp
    def _(primals, tangents):
        return call(*primals), 1000.0 * jnp.sum(jax.tree.leaves(tangents[0])[0]) * primals[1]

    got = jax.jacfwd(lambda theta: call(lift(lambda x: theta * x, X), X))(jnp.array(2.0))
    np.testing.assert_allclose(got, 1000.0 * X)


def test_a_captured_tracer_is_never_cached():
    thetas = jnp.array([1.0, 2.0])
    got = [jax.jit(lambda t: lift(lambda x: t * x, X)(X))(t) for t in thetas]
    np.testing.assert_allclose(got, [X, 2 * X])


def test_derivatives_of_derivative_rules():
    fun = _Rule.function(10.0, 100.0)
    lifted = lift(lambda x: fun(x) + 1.0, X)
    # Not the derivatives of x², but those that the rules claim.
    np.testing.assert_allclose(jax.vmap(jax.grad(lifted_scalar(fun)))(X), 10.0 * X)
    np.testing.assert_allclose(jnp.diag(jax.jacfwd(lifted)(X)), 10.0 * X)
    np.testing.assert_allclose(
        jnp.einsum("iii->i", jax.jacfwd(jax.jacrev(lifted))(X)), [100.0, 100.0, 100.0]
    )


def lifted_scalar(fun):
    return lift(fun, X[0])


def test_custom_vjp_is_kept():
    @jax.custom_vjp
    def fun(x):
        return x * x

    fun.defvjp(lambda x: (fun(x), None), lambda _, ct: (7.0 * ct,))
    lifted = lift(lambda x: jnp.sum(fun(x)), X)
    np.testing.assert_allclose(jax.grad(lambda x: lifted(x))(X), [7.0, 7.0, 7.0])


def test_effects_are_kept(capsys):
    lifted = lift(jax.jit(lambda x: (jax.debug.print("first {}", x[0]), x * X)[1]), X)
    jax.jit(lambda f, x: f(x))(lifted, X)
    jax.effects_barrier()
    assert "first 0.5" in capsys.readouterr().out


def test_without_jit():
    with jax.disable_jit():
        np.testing.assert_allclose(lift(lambda x: jnp.where(x > 1, x, X**2), X)(X), [0.25, 1, 2])


# ---------------------------------------------------------------------------------------
# What cannot be traced


def _set_items(x):
    f = np.zeros(3)
    f[0] = x[0] ** 2
    return f


UNTRACEABLE = {
    "numpy": (lambda x: np.sin(x), "NumPy or SciPy function", "jax.numpy"),
    "array of values": (lambda x: np.array([x[0], x[1]]), "traced array", "jnp"),
    "items": (_set_items, "elements of an array", "jnp.stack"),
    "if": (lambda x: x if x[0] > 0 else -x, "decision", "jnp.where"),
    "max": (lambda x: max(x), "decision", "jnp.maximum"),
    "float": (lambda x: float(x[0]), "Python number", "float"),
    "item": (lambda x: x[0].item(), "Python number", "item"),
    "range": (lambda x: sum(range(x[0].astype(int))), "index, a size or a count", "closure"),
    "mask": (lambda x: x[x > 1], "mask", "jnp.where"),
}


@pytest.mark.parametrize(("fun", "cause", "remedy"), UNTRACEABLE.values(), ids=UNTRACEABLE.keys())
def test_what_cannot_be_traced_is_explained(fun, cause, remedy):
    with pytest.raises(TypeError) as caught:
        lift(fun, X, label="jac")
    message = str(caught.value)
    assert message.startswith("jac could not be traced by JAX")
    assert cause in message
    assert remedy in message
    assert "jax.pure_callback" in message
    line = fun.__code__.co_firstlineno
    last = line + (2 if fun is _set_items else 0)
    assert any(f"{__file__}:{n}, in" in message for n in (line, last))
    assert caught.value.__cause__ is not None


def test_the_line_shown_is_the_users():
    def fun(x):
        y = jnp.sin(x)
        return np.cos(y)

    with pytest.raises(TypeError, match=r"in fun\n    return np.cos\(y\)"):
        lift(fun, X)


def _with_flag(x, flag):
    return x if flag else -x


SETTINGS = {
    "flag": (_with_flag, True),
    "flag in a dict": (lambda x, o: _with_flag(x, o["flag"]), {"flag": False}),
    "comparison": (lambda x, n: x if n == 2 else -x, 2),
    "shape": (lambda x, n: x[0] + jnp.zeros(n), 3),
    "arange": (lambda x, n: x + jnp.arange(n, dtype=x.dtype), 3),
    "reshape": (lambda x, n: x.reshape(n, 1), 3),
    "range": (lambda x, n: [x for _ in range(n)], 3),
    "axis": (lambda x, n: jnp.sum(x, n), 0),
    "eye": (lambda x, n: jnp.eye(n) @ x, np.int64(3)),
}


@pytest.mark.parametrize(("fun", "setting"), SETTINGS.values(), ids=SETTINGS.keys())
def test_a_setting_among_the_arguments_is_to_be_bound(fun, setting):
    with pytest.raises(TypeError, match=r"could not be traced by JAX: .* passed in args") as caught:
        lift(fun, X, setting)
    assert "Close over it or bind it by functools.partial" in str(caught.value)
    assert "jnp.where" not in str(caught.value)
    bound = functools.partial(lambda s, x: fun(x, s), setting)
    np.testing.assert_allclose(lift(bound, X)(X), fun(X, setting))


@pytest.mark.parametrize("fun", [lambda x, n: x[:n], lambda x, n: jnp.tile(x, n)])
def test_a_size_among_the_arguments_is_explained(fun):
    with pytest.raises(TypeError, match=r"index, a size or a count[\s\S]*Close over it"):
        lift(fun, X, 2)


def _by_callback(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(lambda x: np.asarray(x) - 1.0, shape, x, vmap_method="sequential")


def test_a_callback_that_meets_differentiation_is_explained():
    def objective(x):
        return jnp.sum(_by_callback(x) ** 2)

    for jac in ("jacfwd", "jacrev"):
        with pytest.raises(TypeError, match="jac='2-point'"):
            ox.least_squares(_by_callback, X, jac=jac, method="lm")
    with pytest.raises(TypeError, match="jac='2-point'"):
        ox.minimize(objective, X)
    fit = ox.least_squares(_by_callback, X, jac="2-point", method="lm")
    np.testing.assert_allclose(fit.x, 1.0)
    np.testing.assert_allclose(ox.minimize(objective, X, jac="2-point").x, 1.0, rtol=1e-6)


class _OwnError(ValueError):
    pass


@pytest.mark.parametrize(
    "error",
    [_OwnError("mine"), ValueError("mine"), TypeError("mine"), KeyError("mine"), StopIteration()],
)
def test_the_users_own_errors_pass_unchanged(error):
    def fun(x):
        raise error

    with pytest.raises(type(error)) as caught:
        lift(fun, X)
    assert caught.value is error


def test_jax_errors_that_say_it_well_pass():
    def fun(x):
        x[0] = 1.0
        return x

    with pytest.raises(TypeError, match=r"x\.at\[idx\]\.set"):
        lift(fun, X)


@pytest.mark.parametrize("result", ["text", object(), {"a": np.array(["b"], dtype=object)}])
def test_results_that_are_not_arrays_are_refused(result):
    with pytest.raises(TypeError, match="fun must return arrays or numbers"):
        lift(lambda x: result, X)
