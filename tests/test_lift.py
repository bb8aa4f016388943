"""A Python function as a value: the function itself, under every transformation.

The oracle of every value and derivative is the function itself, called without lifting.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optx_lite.functions import Lifted, lift
from tests.lifted_functions import Jvp, X, assert_tree_close


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
    fun = Jvp.function(10.0, 100.0)
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
