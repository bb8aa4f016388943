"""LSMR beside SciPy's, and by what SciPy's does not do: float32, units, batches, scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from jax.experimental.sparse import BCOO

import optx_lite as ox
from optx_lite.linalg import lsmr as codes

SHAPES = [(30, 10), (10, 10), (10, 30)]


def system(seed, m, n, compatible=False):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(m, n))
    return A, A @ rng.normal(size=n) if compatible else rng.normal(size=m)


@pytest.mark.parametrize("compatible", [False, True])
@pytest.mark.parametrize("damp", [0.0, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_scipy(shape, damp, compatible):
    A, b = system(1, *shape, compatible)
    options = {"damp": damp, "atol": 1e-8, "btol": 1e-8, "maxiter": 100}
    ours = ox.lsmr(A, b, **options)
    theirs = scipy.sparse.linalg.lsmr(A, b, **options)
    assert (int(ours.istop), int(ours.itn)) == theirs[1:3]
    # Square ones are ill conditioned: both stop at a relative residual of 1e-8.
    accuracy = 1e-5 if shape[0] == shape[1] else 1e-9
    np.testing.assert_allclose(ours.x, theirs[0], rtol=accuracy, atol=accuracy)
    np.testing.assert_allclose(ours.norma, theirs[5], rtol=1e-6)
    np.testing.assert_allclose(ours.conda, theirs[6], rtol=1e-6)
    size = 1e-7 * np.linalg.norm(b)
    np.testing.assert_allclose(ours.normr, theirs[3], rtol=1e-6, atol=size)
    # It is what it says: the residual of the damped system, and its gradient.
    r = np.concatenate([b - A @ ours.x, -damp * ours.x])
    np.testing.assert_allclose(ours.normr, np.linalg.norm(r), rtol=1e-6, atol=size)


@pytest.mark.parametrize("shape", SHAPES)
def test_minimum_norm(shape):
    A, b = system(2, *shape)
    A[:, 3] = A[:, 4]  # singular
    ours = ox.lsmr(A, b, atol=1e-12, btol=1e-12, conlim=0, maxiter=500)
    np.testing.assert_allclose(ours.x, np.linalg.lstsq(A, b, rcond=1e-10)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("of_b", [-1, 0, 1])
@pytest.mark.parametrize("of_a", [-1, 0, 1])
def test_units(dtype, of_a, of_b):
    """Powers of two on A and b change nothing but the unit of x, over the range of the dtype."""
    if of_a * of_b < 0:
        pytest.skip("x itself is out of range")
    power = 2.0 ** int(0.7 * jnp.finfo(dtype).maxexp)
    A, b = (jnp.asarray(value, dtype) for value in system(3, 30, 10))
    plain = ox.lsmr(A, b, atol=0, btol=0, conlim=0)
    scaled = ox.lsmr(A * power**of_a, b * power**of_b, atol=0, btol=0, conlim=0)
    assert plain.istop == codes.LEAST_SQUARES_TO_ROUNDING  # it ends, in float32 too
    assert (scaled.istop, scaled.itn) == (plain.istop, plain.itn)
    np.testing.assert_array_equal(scaled.x, plain.x * (power**of_b / power**of_a))


def test_scale():
    """Columns of many sizes: as many iterations as if they were of one."""
    A, b = system(4, 60, 20)
    sizes = 10.0 ** np.random.default_rng(0).uniform(-6, 6, 20)
    exact = np.linalg.lstsq(A, b)[0] / sizes
    ours = ox.lsmr(A * sizes, b, atol=1e-14, btol=0, maxiter=60, scale=1 / sizes)
    plain = ox.lsmr(A * sizes, b, atol=1e-14, btol=0, maxiter=60)
    np.testing.assert_allclose(ours.x, exact, rtol=1e-10)
    assert np.max(np.abs(np.asarray(plain.x) / exact - 1)) > 0.1
    damped = ox.lsmr(A * sizes, b, damp=0.3, atol=1e-14, btol=0, maxiter=60, scale=1 / sizes)
    expected = np.linalg.solve(A.T @ A + 0.09 * np.eye(20), A.T @ b) / sizes
    np.testing.assert_allclose(damped.x, expected, rtol=1e-10)


def test_start():
    A, b = system(5, 30, 10)
    exact = np.linalg.lstsq(A, b)[0]
    again = ox.lsmr(A, b, x0=exact, atol=1e-10)
    np.testing.assert_allclose(again.x, exact, rtol=1e-12)
    far = ox.lsmr(A, b, x0=100 * np.ones(10), atol=1e-12, btol=0)
    np.testing.assert_allclose(far.x, exact, rtol=1e-9)


class Operator:
    def __init__(self, A, both):
        self.shape, self.dtype, self.matvec = A.shape, A.dtype, lambda v: A @ v
        if both:
            self.rmatvec = lambda u: A.T @ u


def test_forms_of_a_matrix():
    A, b = system(6, 30, 10)
    A[np.abs(A) < 0.5] = 0
    sparse = scipy.sparse.csr_array(A)
    wanted = ox.lsmr(A, b).x
    forms = (
        BCOO.fromdense(A),
        sparse,
        Operator(jnp.asarray(A), True),
        Operator(jnp.asarray(A), False),
    )
    for form in forms:
        np.testing.assert_allclose(ox.lsmr(form, b).x, wanted, rtol=1e-9)


def test_compiled_and_batched():
    A, _ = system(7, 30, 10)
    many = np.random.default_rng(0).normal(size=(4, 30))
    batch = jax.jit(jax.vmap(lambda b: ox.lsmr(A, b)))(many)
    for i, b in enumerate(many):
        alone = ox.lsmr(A, b)
        assert (batch.istop[i], batch.itn[i]) == (alone.istop, alone.itn)
        np.testing.assert_allclose(batch.x[i], alone.x, rtol=1e-12)


def test_forward_derivative():
    A, b = system(8, 30, 10)
    found = jax.jacfwd(lambda b: ox.lsmr(A, b, atol=1e-14, btol=1e-14, conlim=0).x)(jnp.asarray(b))
    np.testing.assert_allclose(found, np.linalg.pinv(A), rtol=1e-6, atol=1e-8)


def test_nothing_to_solve():
    A, b = system(9, 30, 10)
    assert ox.lsmr(A, 0 * b)[1:3] == (0, 0)
    orthogonal = b - A @ np.linalg.lstsq(A, b)[0]
    assert np.max(np.abs(ox.lsmr(A, orthogonal).x)) < 1e-12
    for wrong in (np.nan, np.inf):
        assert ox.lsmr(A, b * wrong).istop == codes.NOT_FINITE
        assert ox.lsmr(A * wrong, b).istop == codes.NOT_FINITE
    assert ox.lsmr(A, b, maxiter=3)[1:3] == (codes.MOST_ITERATIONS, 3)
    assert ox.lsmr(A, b, conlim=1.5).istop == codes.ILL_CONDITIONED


def test_errors():
    A, b = system(10, 30, 10)
    for wrong in (
        lambda: ox.lsmr(A[0], b),
        lambda: ox.lsmr(A, b[:-1]),
        lambda: ox.lsmr(A, b, damp=-1),
        lambda: ox.lsmr(A, b, x0=np.zeros(3)),
        lambda: ox.lsmr(A, b, scale=np.zeros((10, 1))),
        lambda: ox.lsmr(1j * A, b),
    ):
        with pytest.raises(ValueError, match=r"`(A|b|damp|x0|scale)`"):
            wrong()
