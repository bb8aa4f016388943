"""What JAX does not promise, and this package reads, as it is in this version of JAX.

A failure here says what a new JAX has changed, and all that is to be changed for it stands in
`functions/jax_internals.py`. Most of it would show nowhere else but in the time that is taken.
"""

import ast
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import partial_eval
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite
from optx_lite.functions import jax_internals as internals
from optx_lite.functions import lift, pointwise
from optx_lite.functions.source_files import is_fixed_file

PACKAGE = Path(optx_lite.__file__).parent
ONLY_HERE = Path("functions", "jax_internals.py")
FILES = sorted(file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py"))
PRIVATE = re.compile(r"jax\.(_src|extend|interpreters|lib)\b|jaxlib\b")
X = jnp.array([0.3, 0.6])


def changed(what):
    return f"JAX {jax.__version__} has changed: {what}. See optx_lite/{ONLY_HERE}."


def full_name(node):
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def private_names(source):
    """What a file reads of JAX's inside: modules, primitives by name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [full_name(node)]
        yield from (name for name in names if PRIVATE.match(name))
        yield from (name for name in names if name.endswith("primitive.name"))


@pytest.mark.parametrize("file", [file for file in FILES if file != ONLY_HERE], ids=str)
def test_no_other_file_reads_jax_inside(file):
    assert list(private_names((PACKAGE / file).read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import jax._src.core",
        "from jax._src import core",
        "from jax.extend import core",
        "import jax\njax.interpreters.ad.Zero",
        "eqn.primitive.name == 'sin'",
    ],
)
def test_the_looking_itself(source):
    assert len(list(private_names(source))) >= 1


# ---------------------------------------------------------------------------------------
# Primitives by name


def primitives(fun, *args):
    return {eqn.primitive.name: eqn for eqn in jax.make_jaxpr(fun)(*args).eqns}


OPERANDS = [
    (X,), (X, X), (X, X, X), (X > 0.5, X, X), (X.astype(int),), (X.astype(int), X.astype(int)),
    (X.astype(int), X),
]  # fmt: skip
BY_OTHER_NAMES = {
    "convert_element_type": lambda x: x.astype(jnp.float32),
    "copy": lambda x: jnp.array(x, copy=True),
    "integer_pow": lambda x: x**3,
    "reduce_precision": lambda x: lax.reduce_precision(x, 8, 7),
    "regularized_incomplete_beta": lambda x: lax.betainc(x, x, x),
    "not": jnp.invert,
}
OF_SOME_VERSIONS = {"add_jaxvals", "copy_p", "log2"}


def uses(name):
    """Whether the function of `jax.lax` with this name is the primitive of this name."""
    functions = [
        BY_OTHER_NAMES.get(name), getattr(lax, name, None), getattr(lax, f"bitwise_{name}", None)
    ]  # fmt: skip
    for fun in filter(None, functions):
        for operands in OPERANDS:
            try:
                found = primitives(fun, *operands)
            except (TypeError, ValueError):  # other numbers or types of operands
                continue
            if name in found:
                return internals.is_elementwise(found[name])
    return False


@pytest.mark.parametrize("name", sorted(internals.ELEMENTWISE - OF_SOME_VERSIONS))
def test_elementwise_operations(name):
    assert uses(name), changed(f"no elementwise operation has the name {name!r}")


def test_a_function_is_cut_from_its_shape():
    def fun(x):
        custom = jax.custom_jvp(lambda x: jnp.sin(x))
        custom.defjvps(lambda t, _, x: t * jnp.cos(x))
        return jax.jit(custom)(jnp.where(x > 0.5, x, 2.0) + jnp.reshape(x, (2,))) * jnp.full(2, 3.0)

    cut = pointwise(lift(fun, X), (2,), ())
    assert cut is not None, changed("calls, broadcasts and reshapes are not seen through")
    assert all(jnp.ndim(value) == 0 for value in cut.inputs), changed("broadcasts of numbers")
    assert_allclose(cut(X[1:]), fun(X)[1:], rtol=1e-15)


def test_exponents_and_callbacks_are_known():
    (power,) = jax.make_jaxpr(lambda x: x**2.5)(X).eqns
    assert [internals.is_exponent(power, i) for i in (0, 1)] == [False, True], changed("powers")
    call = jax.make_jaxpr(lambda x: jax.pure_callback(np.sin, jax.typeof(X), x))(X).eqns[-1]
    assert internals.is_callback(call), changed("callbacks")


def test_weak_types_and_named_axes():
    assert internals.weakly_typed(X).weak_type
    psum = jax.make_jaxpr(lambda x: lax.psum(x, "i"), axis_env=[("i", 2)])(X)
    assert any(map(internals.names_an_axis, psum.effects)), changed("the effect of lax.psum")


def test_tracers_of_a_trace_that_is_over():
    seen = []

    def fun(x):
        assert not internals.is_left_over(x)
        seen.append(x)
        return x

    jax.make_jaxpr(fun)(X)
    assert internals.is_left_over(seen[0]), changed("how a trace and its parents are known")
    assert not internals.is_left_over(X)


# ---------------------------------------------------------------------------------------
# Equations with bodies


BODIES = {
    "jit": jax.jit(lambda x: x * X),
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(x) * X),
    "scan": lambda x: lax.scan(lambda c, t: (c * X, t * c), x, X)[1],
    "while": lambda x: lax.while_loop(lambda c: jnp.sum(c * X) < 9, lambda c: 2 * c + X, x),
    "cond": lambda x: lax.switch(
        x[0].astype(int), [lambda x: x + X, lambda x: x * X, lambda x: x - 2 * X], x
    ),
}


@pytest.mark.parametrize("kind", BODIES)
def test_bodies_get_further_inputs(kind):
    """What they capture becomes an input of the whole, and the values stay the same."""
    fun = BODIES[kind]
    lifted = lift(fun, X)
    nested = [eqn for eqn in lifted.structure.jaxpr.eqns if internals.bodies_of(eqn)]
    assert len(nested) == 1, changed(f"the equation of {kind}")
    for body in internals.bodies_of(nested[0]).jaxprs:
        assert body.consts == [], changed(f"the parameters of {kind}")
    assert any(leaf is X for leaf in jax.tree.leaves(lifted)), changed(f"constants in {kind}")
    assert_allclose(lifted(X + 0.1), fun(X + 0.1), rtol=1e-14)


# ---------------------------------------------------------------------------------------
# Functions with derivative rules of their own


def with_jvp(scale):
    @jax.custom_jvp
    def fun(x):
        return jnp.sin(x) * scale

    fun.defjvp(lambda p, t: (fun(*p), 7.0 * scale * jnp.cos(p[0]) * t[0]))
    return fun


def with_vjp(scale):
    @jax.custom_vjp
    def fun(x):
        return jnp.sin(x) * scale

    fun.defvjp(lambda x: (fun(x), x), lambda x, ct: (7.0 * scale * ct * jnp.cos(x),))
    return fun


@pytest.mark.parametrize("make", [with_jvp, with_vjp])
def test_rules_are_read_traced_and_replaced(make):
    (eqn,) = jax.make_jaxpr(make(X))(X).eqns
    assert internals.is_custom(eqn), changed("the parameters of functions with rules")
    assert len(internals.rules_of(eqn)) == (1 if make is with_jvp else 2)
    assert internals.beside_rules(eqn).keys() == {"call_jaxpr", "num_consts", "symbolic_zeros"}
    traced = internals.trace_rules(eqn)
    assert len(traced.jaxprs) == (1 if make is with_jvp else 2)
    assert make is with_jvp or traced.residuals == [0]
    first, second = (lift(make(scale * X), X) for scale in (1.0, 2.0))
    assert first.structure is second.structure, changed("rules cannot be frozen")
    grad = jax.grad(lambda x: jnp.sum(second(x)))(X)
    assert_allclose(grad, 14 * X * jnp.cos(X), rtol=1e-14)


def functions_within(obj, seen):
    """The functions of JAX that a rule is wrapped in."""
    if id(obj) in seen:
        return
    seen[id(obj)] = obj
    if isinstance(obj, (tuple, list)):
        inside = obj
    elif isinstance(obj, types.FunctionType):
        if not is_fixed_file(obj.__code__.co_filename):
            return
        yield obj.__qualname__
        names = internals.PLUMBING.get(obj.__qualname__)
        cells = dict(zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True))
        if names is not None:
            missing = set(names) - cells.keys()
            assert not missing, changed(f"{obj.__qualname__} has no variables {missing}")
        inside = [cells[name].cell_contents for name in names or ()]
    else:
        inside = internals.parts_of(obj, frozenset({"jax", "jaxlib"})) or ()
    for part in inside:
        yield from functions_within(part, seen)


def two_results(kind):
    """Of which one is used, so that JAX can cut out the other."""
    if kind is with_jvp:
        fun = jax.custom_jvp(lambda x: (x, 2 * x))
        fun.defjvp(lambda p, t: (fun(*p), (t[0], 2 * t[0])))
    else:
        fun = jax.custom_vjp(lambda x: (x, 2 * x))
        fun.defvjp(lambda x: (fun(x), x), lambda x, ct: (ct[0] + 2 * ct[1],))
    return lambda x: fun(x)[1]


@pytest.mark.parametrize("kind", [with_jvp, with_vjp])
def test_the_wrappers_of_rules_are_known(kind):
    fun = two_results(kind)
    first = jax.make_jaxpr(fun)(X)
    jaxprs = [
        first,
        jax.make_jaxpr(lambda x: jax.core.eval_jaxpr(first.jaxpr, first.consts, x))(X),
        jax.make_jaxpr(lambda x: lax.scan(lambda c, _: (fun(c), None), x, length=2)[0])(X),
    ]
    jaxprs += [partial_eval.dce_jaxpr(j.jaxpr, [True] * len(j.out_avals))[0] for j in jaxprs]
    rules = [
        internals.rules_of(eqn) for j in jaxprs for eqn in equations(j) if internals.is_custom(eqn)
    ]
    met = set(functions_within(rules, {}))
    of_kind = "jvp" if kind is with_jvp else r"vjp|fwd|aux2"
    known = {name for name in internals.PLUMBING if re.search(f"{of_kind}|memoize", name)}
    assert not known - met, changed(f"no rule is wrapped in {sorted(known - met)}, but in {met}")


def equations(jaxpr):
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        if not internals.is_custom(eqn):
            found = internals.bodies_of(eqn)
            for body in found.jaxprs if found else ():
                yield from equations(body)


# ---------------------------------------------------------------------------------------
# Meshes


def test_shardings_are_taken_out_of_a_jaxpr():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        lifted = lift(lambda x: jax.jit(lambda x: 2 * x)(x) + X, jax.device_put(X, jax.P("d")))
    assert lifted.structure.mesh is not None, changed("a type does not tell its mesh")
    plain = lifted.structure.without_mesh
    assert all(var.aval.sharding.mesh.empty for var in (*plain.invars, *plain.outvars))
    assert_array_equal(lifted(X), 3 * X)
