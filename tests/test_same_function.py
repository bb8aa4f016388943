"""Functions by what they compute: equal for the same mathematics over other data alone.

So a fresh closure over new data compiles nothing; and what is remembered keeps no data alive.
"""

import gc
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optx_lite as ox
from optx_lite.functions import lift
from optx_lite.functions.constants import lift_constants
from tests.lifted_functions import COMPILED, Jvp, Vjp, X, assert_tree_close, same

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
    "own rule": lambda y, k: lambda x: Jvp.function(2.0, 2.0)(x - y),
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
    "custom_vjp": lambda y, k: lambda x: Vjp.function(2.0)(x) - y,
    "captured by custom_vjp": lambda y, k: Vjp.function(y),
    "custom_vjp in a loop": lambda y, k: (
        lambda x: jax.lax.scan(lambda c, _: (Vjp.function(y)(c), None), x, None, length=2)[0]
    ),
    "custom_vjp in a branch": lambda y, k: (
        lambda x: jax.lax.cond(x[0] > 0, Vjp.function(y), jnp.cos, x)
    ),
    "custom_vjp with static arguments": lambda y, k: lambda x: Vjp.with_static(y)(3, x),
    "custom_gradient": lambda y, k: jax.custom_gradient(
        lambda x: (x**2 * y, lambda g: (g * 2 * x * y,))
    ),
    "captured by custom_jvp": lambda y, k: Jvp.capturing(y),
    "rules that call each other": lambda y, k: Jvp.sine(y),
    "rules for each argument": lambda y, k: lambda x: Jvp.by_argument()(x, y),
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
    before = len(COMPILED)
    got = compiled(lift(second, X), X)
    assert len(COMPILED) == before
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
    "derivative rule": (Jvp.function(2.0), Jvp.function(3.0)),
    "rule of the rule": (Jvp.function(2.0, 1.0), Jvp.function(2.0, 5.0)),
    "reverse rule": (Vjp.function(2.0), Vjp.function(2.0, 3.0)),
    "no reverse rule": (Vjp.function(X), lambda x: jnp.sin(x) * X),
    "no rule": (lambda x: x * x, Jvp.function(2.0)),
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
    "rule with symbolic zeros": lambda: Jvp.with_symbolic_zeros(2.0),
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
    before = len(COMPILED)
    got = jax.grad(loss)(2.0, np.full(3, 7.0))
    assert len(COMPILED) == before
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
    with jax.default_matmul_precision("highest"):  # as `lift` traces, unless it is set
        own = jax.make_jaxpr(fun)(X, 2.0)
    assert lift_constants(own).jaxpr.eqns[0].params["jaxpr"] is jaxpr
    np.testing.assert_allclose(again(X, 3.0), fun(X, 3.0))


def test_identities_are_not_mistaken_after_their_objects_have_gone():
    # A new array may well lie where the last one was, and have its id.
    for i in range(200):
        k = jnp.full(3, float(i))
        np.testing.assert_array_equal(lift(lambda x, k=k: x * k, X)(X), X * k)
        del k


# ---------------------------------------------------------------------------------------
# Memory


def _captures(kind, data):
    return {
        "closure": lambda: lambda x: x * data,
        "custom_jvp": lambda: lambda x: Jvp.capturing(data)(x),
        "custom_vjp": lambda: lambda x: Vjp.function(data)(x),
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

    for make in (lambda: Vjp.apart(2.0), lambda: Jvp.capturing(np.ones(3))):
        for transform in (slope, batch):
            results = []
            for k, y in ((1.5, X), (1.7, X + 0.1)):
                before = len(COMPILED)
                results.append(transform(solve(k, make))(y))
            assert len(COMPILED) == before
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
