"""Matrix products in float32 are taken in full: XLA's default on GPUs has ten bits.

No GPU is at hand in a test, so the programs are read.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optx_lite as ox

HIDDEN = 41  # a size that only the user's products have
N, M = 13, 37


def products(jaxpr):
    """(whether the user's, precision) of each product in a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            shapes = [size for var in (*eqn.invars, *eqn.outvars) for size in var.aval.shape]
            yield HIDDEN in shapes, eqn.params["precision"]
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def model(x, inside, outside):
    return jnp.tanh(outside @ jnp.tanh(inside @ x)) - 0.1


def least_squares(**options):
    return lambda x, *args: ox.least_squares(model, x, args=args, **options).x


def minimize(x, *args):
    return ox.minimize(lambda x: jnp.sum(model(x, *args) ** 2), x, bounds=[(-1, 1)] * N).x


SOLVES = {
    "trf": least_squares(bounds=(-1, 1)),
    "dogbox": least_squares(bounds=(-1, 1), method="dogbox"),
    "lm": least_squares(method="lm"),
    "lsmr": least_squares(tr_solver="lsmr"),
    "minimize": minimize,
}


def program(solve, derivative):
    rng = np.random.default_rng(0)
    args = rng.normal(size=(HIDDEN, N)), rng.normal(size=(M, HIDDEN))
    args = [jnp.asarray(a, jnp.float32) for a in (np.zeros(N), *args)]
    if derivative:
        solve = jax.grad(lambda *args, solve=solve: jnp.sum(solve(*args)), 1)
    return list(products(jax.make_jaxpr(solve)(*args).jaxpr))


def is_full(precision):
    return precision is not None and all(p == jax.lax.Precision.HIGHEST for p in precision)


@pytest.mark.parametrize("derivative", [False, True], ids=["solve", "gradient"])
@pytest.mark.parametrize("solve", SOLVES.values(), ids=SOLVES)
def test_products_are_full(solve, derivative):
    found = program(solve, derivative)
    assert any(users for users, _ in found)
    assert sum(not users for users, _ in found) > 3 or solve is minimize
    assert all(is_full(precision) for _, precision in found)


def test_the_users_choice_holds():
    with jax.default_matmul_precision("tensorfloat32"):
        found = program(SOLVES["lm"], False)
    assert all(is_full(precision) != users for users, precision in found)
