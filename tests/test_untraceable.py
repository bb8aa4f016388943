"""What is said of a function that JAX cannot trace, in words for a user of SciPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optx_lite as ox
from optx_lite.functions import lift
from tests.lifted_functions import X


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
