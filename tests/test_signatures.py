"""That `signatures` is on: a wrong shape or kind is refused where it comes in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import signatures
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

from optx_lite import linalg
from optx_lite.problem.bounds import within
from optx_lite.problem.minimization import minimization_problem
from optx_lite.solvers.minimize.lbfgsb import LBFGSB
from optx_lite.statistics.quantiles import radius

R = np.eye(3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: linalg.norm(R),
        lambda: linalg.solve_upper(R, jnp.ones(2)),
        lambda: linalg.triangularize(jnp.ones((2, 5)), jnp.ones(2)),
        lambda: linalg.solve_upper(R, [1.0, 2.0, 3.0]),
        lambda: jax.vmap(linalg.solve_upper)(jnp.ones((4, 3, 3)), jnp.ones((4, 2))),
        lambda: jax.jit(linalg.norm)(jnp.ones(3, int)),
        lambda: within(jnp.ones(3), jnp.ones(3), jnp.ones(2)),
        lambda: radius(jnp.ones(2), jnp.ones(())),
        lambda: LBFGSB().init(minimization_problem(jnp.sum, jnp.ones(2))[0], jnp.ones((2, 1))),
    ],
)
def test_a_wrong_shape_is_refused(call):
    with pytest.raises(TypeCheckError):
        call()


def test_numpy_and_lanes_are_taken():
    assert linalg.norm(np.ones(4)) == 2
    answers = jax.vmap(linalg.solve_upper, (None, 0))(R, jnp.ones((4, 3)))
    assert answers.shape == (4, 3)


def test_a_wrong_result_is_refused():
    def first(v: Float[Array, " n"]) -> Float[Array, " n"]:
        return v[:1]

    checked = jaxtyped(first, typechecker=signatures.check)
    assert checked(jnp.ones(1)).shape == (1,)
    with pytest.raises(TypeCheckError):
        checked(jnp.ones(2))
