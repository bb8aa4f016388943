"""Compressed Jacobians beside those of jax.jacfwd."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optx_lite.derivatives import resolve
from optx_lite.derivatives.compressed import Compressed
from optx_lite.derivatives.sparsity import sparsity


def broyden(x):
    below, above = jnp.pad(x[:-1], (1, 0)), jnp.pad(x[1:], (0, 1))
    return (3 - x) * x - below - 2 * above + 1


def arrow(x):
    return jnp.concatenate([jnp.sum(x**2)[None], x[1:] ** 2 + x[0]])


def plane(x):
    u = jnp.pad(x.reshape(6, 5), 1)
    return (u[1:-1, 1:-1] ** 3 - u[:-2, 1:-1] - u[2:, 1:-1] - u[1:-1, :-2] - u[1:-1, 2:]).ravel()


def wide(x):
    return jnp.stack([x[0] * x[1], jnp.sum(x[2:7] ** 2), x[7] * x[8] + x[9]])


FUNCTIONS = {
    "broyden": (broyden, 12),
    "arrow": (arrow, 12),
    "plane": (plane, 30),
    "wide": (wide, 10),
}


CAMERAS, POINTS = 3, 8
SEEN = [(c, p) for p in range(POINTS) for c in range(CAMERAS) if (c + p) % 4]


def adjustment(x):
    """Residuals of two rows: each of one camera, of two variables, and of one point, of three."""
    a, b = x[: 2 * CAMERAS].reshape(CAMERAS, 2), x[2 * CAMERAS :].reshape(POINTS, 3)
    c, p = np.transpose(SEEN)
    a, b = a[c], b[p]
    first = jnp.sin(a[:, 0]) * b[:, 0] + a[:, 1] * b[:, 1] ** 2 + b[:, 2]
    return jnp.stack([first, a[:, 0] * b[:, 2] + a[:, 1] ** 2 * b[:, 1] + b[:, 0]], 1).ravel()


FUNCTIONS["two groups"] = adjustment, 2 * CAMERAS + 3 * POINTS
FUNCTIONS["diagonal"] = lambda x: x**2, 5


CASES = [(name, "jacfwd") for name in FUNCTIONS] + [
    (name, jac) for name in ("arrow", "wide") for jac in ("jacrev", "2-point", "3-point", "cs")
]


@pytest.mark.parametrize(("name", "jac"), CASES)
def test_as_dense(name, jac):
    fun, n = FUNCTIONS[name]
    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2, n))
    exact = jax.jacfwd(fun)(x)
    scheme = Compressed.of(resolve(jac), sparsity(np.asarray(exact) != 0, exact.shape))
    box = jnp.full(n, -jnp.inf), jnp.full(n, jnp.inf)
    f, jacobian = jax.jit(
        lambda scheme, x: (lambda r: (r[0], r[1]().todense()))(scheme.linearize(fun, x, *box))
    )(scheme, x)
    accuracy = {"2-point": 1e-6, "3-point": 1e-8}.get(jac, 1e-12)
    np.testing.assert_allclose(f, fun(x))
    np.testing.assert_allclose(jacobian, exact, rtol=accuracy, atol=accuracy)


def test_the_program_does_not_grow():
    """Colours and places are inputs: not constants in the text."""

    def text(n):
        entries = sparsity(1, (n, n))
        scheme = Compressed.of(resolve("jacfwd"), entries)
        box = jnp.full(n, -jnp.inf), jnp.full(n, jnp.inf)
        return (
            jax.jit(lambda scheme, x: scheme.linearize(broyden, x, *box)[1]().apply(x))
            .lower(scheme, jnp.ones(n))
            .as_text()
        )

    assert len(text(2000)) < 1.1 * len(text(200))


def test_products():
    """As many as it takes: three for a tridiagonal Jacobian and for an arrow."""
    dense = np.asarray(jax.jacfwd(arrow)(jnp.ones(40)))
    scheme = Compressed.of(resolve("jacfwd"), sparsity(dense, dense.shape))
    assert scheme.forward_colors + scheme.reverse_colors == 3
    scheme = Compressed.of(resolve("2-point"), sparsity(1, (40, 40)))
    assert (scheme.forward_colors, scheme.reverse_colors) == (3, 0)
