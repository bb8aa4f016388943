"""Derivative schemes written outside of the package, given as `jac`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optx_lite as ox
from optx_lite.derivatives import AbstractJacobian, UserJacobian

SIGN = 1.0


class ReadsAGlobal(AbstractJacobian):
    def linearize(self, fun, x, lower, upper):
        return fun(x), lambda: SIGN * jax.jacfwd(fun)(x).T


@pytest.mark.parametrize("front", ["least_squares", "minimize"])
def test_a_scheme_of_the_users_is_seen_as_it_is_now(front, monkeypatch):
    def jacobian():
        scheme, x0 = ReadsAGlobal(), jnp.array([3.0, 1.0])
        if front == "minimize":
            fun = lambda x: jnp.sum((x - 2) ** 2)
            return ox.minimize(fun, x0, jac=scheme, options={"maxfun": 1}).jac
        return ox.least_squares(lambda x: x**2 - 2, x0, jac=scheme, max_nfev=1).jac

    first = np.asarray(jacobian())
    monkeypatch.setitem(globals(), "SIGN", 3.0)
    np.testing.assert_allclose(jacobian(), 3 * first)


def test_a_users_jacobian_as_a_scheme():
    fun = lambda x: jnp.stack([x[0] - 1, x[0] * x[1] - 2])
    res = ox.least_squares(fun, jnp.array([3.0, 1.0]), jac=UserJacobian(jax.jacfwd(fun)))
    np.testing.assert_allclose(res.x, [1, 2], rtol=1e-7)
