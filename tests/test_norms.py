"""Norms and quotients that are safe at zero."""

import functools

import jax
import jax.numpy as jnp
from numpy.testing import assert_allclose, assert_array_equal

from optx_lite.linalg import norm, safe_divide, safe_sqrt


def test_norms_and_quotients_at_zero():
    zeros, zero, two, four = jnp.zeros(3), jnp.array(0.0), jnp.array(2.0), jnp.array(4.0)
    assert norm(zeros) == 0
    assert_array_equal(jax.grad(norm)(zeros), 0)
    assert_array_equal(jax.jacrev(jax.grad(norm))(zeros), 0)
    assert jax.grad(safe_sqrt)(zero) == 0
    assert safe_divide(two, zero) == 0
    assert jax.grad(safe_divide, argnums=(0, 1))(two, zero) == (0, 0)
    v = jnp.array([3.0, 4.0])
    assert_allclose(norm(v), 5.0)
    assert_allclose(jax.grad(norm)(v), v / 5.0)
    assert_allclose(jax.grad(safe_divide, argnums=(0, 1))(two, four), (0.25, -0.125))
    second = jax.hessian(functools.partial(safe_divide, two))(four)
    assert_allclose(second, 2 * 2.0 / 4.0**3)
