"""What the tests of `optx_lite.functions` share: rules of users, and how functions are compared."""

import functools

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from optx_lite.functions import lift

X = jnp.array([0.5, 1.0, 2.0])

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **kwargs: (
        COMPILED.append(duration) if event == "/jax/core/compile/backend_compile_duration" else None
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


class Jvp:
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


class Vjp:
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
