"""Sparse and banded matrices, and the colouring of their columns, by dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from jax.experimental.sparse import BCOO

from optx_lite.derivatives.blocks import two_groups
from optx_lite.derivatives.coloring import color, color_columns
from optx_lite.derivatives.sparsity import sparsity
from optx_lite.linalg import band
from optx_lite.linalg.band import BandMatrix
from optx_lite.linalg.sparse import Grouped, SparseMatrix
from optx_lite.linalg.two_groups import Pairs, TwoGroupMatrix


def random_pattern(seed, m, n, density=0.2, dense_rows=0, dense_cols=0):
    rng = np.random.default_rng(seed)
    pattern = rng.random((m, n)) < density
    pattern[:dense_rows] = True
    pattern[:, :dense_cols] = True
    return pattern


PATTERNS = {
    "square": random_pattern(0, 20, 20),
    "tall": random_pattern(1, 40, 15),
    "wide": random_pattern(2, 10, 30),
    "arrow": np.eye(30, dtype=bool) | random_pattern(3, 30, 30, 0, 1, 1),
    "dense row": np.eye(30, dtype=bool) | random_pattern(3, 30, 30, 0, 1),
    "empty": np.zeros((5, 4), bool),
    "full": np.ones((5, 4), bool),
}


def matrix(dense):
    entries = sparsity(dense != 0, dense.shape)
    rows = Grouped.by(entries.rows, entries.cols, dense.shape[0])
    columns = Grouped.by(entries.cols, entries.rows, dense.shape[1])
    return SparseMatrix.of(jnp.asarray(dense[entries.rows, entries.cols]), rows, columns)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_products(pattern):
    rng = np.random.default_rng(1)
    m, n = pattern.shape
    dense = np.where(pattern, rng.normal(size=(m, n)), 0)
    A, v, u = matrix(dense), rng.normal(size=n), rng.normal(size=m)
    np.testing.assert_allclose(A.matvec(v), dense @ v, atol=1e-13)
    np.testing.assert_allclose(A.rmatvec(u), dense.T @ u, atol=1e-13)
    np.testing.assert_allclose(A.squared_columns(), np.sum(dense**2, 0), atol=1e-13)
    scaled = A.scaled(u, v)
    np.testing.assert_allclose(scaled.todense(), u[:, None] * dense * v, atol=1e-13)
    np.testing.assert_allclose(scaled.T.todense(), (u[:, None] * dense * v).T, atol=1e-13)
    np.testing.assert_array_equal(A.as_result().todense(), dense)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_colors_tell_entries_apart(pattern):
    entries = sparsity(pattern, pattern.shape)
    colors, count = color_columns(entries)
    for k in range(count):
        assert np.all(np.sum(pattern[:, colors == k], axis=1) <= 1)
    assert np.all((colors >= 0) == pattern.any(axis=0))
    # An entry is in a product with J^T, or alone in its row among the columns of its colour.
    both = color(entries)
    for i, j in zip(entries.rows, entries.cols, strict=True):
        if both.reverse[i] >= 0:
            same = (both.reverse == both.reverse[i]) & pattern[:, j]
        else:
            same = (both.forward == both.forward[j]) & pattern[i]
        assert np.sum(same) == 1


def test_few_colors():
    """As many as a row has entries at most, for bands; an arrow needs three products."""
    for lower, upper in ((1, 1), (0, 3), (2, 1)):
        entries = sparsity((lower, upper), (100, 100))
        assert color_columns(entries)[1] == lower + upper + 1
    arrow = sparsity(PATTERNS["arrow"], (30, 30))
    assert color(arrow).products == 3
    assert color(arrow, ("forward",)).products == 30
    row = sparsity(PATTERNS["dense row"], (30, 30))
    assert color(row).products == 2


def test_forms_of_a_pattern():
    pattern = PATTERNS["tall"]
    wanted = sparsity(pattern, pattern.shape)
    forms = (
        scipy.sparse.csr_array(pattern),
        scipy.sparse.lil_matrix(pattern.astype(float)),
        BCOO.fromdense(jnp.asarray(pattern, float), nse=wanted.nnz + 5),
        pattern.astype(int).tolist(),
        tuple(index[::-1] for index in np.nonzero(pattern)),
        tuple(np.concatenate([index, index]) for index in np.nonzero(pattern)),
    )
    for form in forms:
        found = sparsity(form, pattern.shape)
        np.testing.assert_array_equal(found.rows, wanted.rows)
        np.testing.assert_array_equal(found.cols, wanted.cols)
    np.testing.assert_array_equal(
        sparsity(1, (4, 5)).rows, np.nonzero(np.tri(4, 5, 1) * (1 - np.tri(4, 5, -2)))[0]
    )
    assert sparsity((2, 0), (9, 9)).band == (2, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        PATTERNS["square"],
        scipy.sparse.eye_array(3),
        np.ones(4),
        "auto?",
        (np.array([0]), np.array([0, 1])),
        (np.array([0.0]), np.array([1.0])),
        (np.array([50]), np.array([0])),
        -1,
    ],
)
def test_wrong_patterns(wrong):
    with pytest.raises(ValueError, match="`jac_sparsity`"):
        sparsity(wrong, (40, 15))


def test_traced_pattern():
    with pytest.raises(ValueError, match="before tracing"):
        jax.jit(lambda p: jnp.asarray(sparsity(p, (4, 4)).nnz))(jnp.ones((4, 4)))


BANDS = [
    (0, 0, 9, 9),
    (1, 1, 40, 40),
    (1, 1, 60, 50),
    (2, 1, 90, 88),
    (0, 2, 40, 60),
    (3, 1, 22, 22),
]


def banded(lower, upper, m, n, dtype=float, seed=0):
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(m, n)) * np.tri(m, n, upper) * (1 - np.tri(m, n, -lower - 1))
    dense += 3 * np.eye(m, n)
    diagonals = np.zeros((lower + upper + 1, m))
    for d in range(lower + upper + 1):
        for i in range(max(0, lower - d), min(m, n + lower - d)):
            diagonals[d, i] = dense[i, i + d - lower]
    return dense, BandMatrix.of(list(jnp.asarray(diagonals, dtype)), lower, n)


@pytest.mark.parametrize("shape", BANDS, ids=str)
def test_bands(shape):
    """Of any shape, with factors on rows and columns."""
    dense, A = banded(*shape)
    (m, n), rng = dense.shape, np.random.default_rng(1)
    v, u, left, right = (rng.normal(size=k) for k in (n, m, m, n))
    dense, A = left[:, None] * dense * right, A.scaled(jnp.asarray(left), jnp.asarray(right))
    np.testing.assert_allclose(A.matvec(v), dense @ v, atol=1e-12)
    np.testing.assert_allclose(A.rmatvec(u), dense.T @ u, atol=1e-12)
    np.testing.assert_allclose(A.T.T.matvec(v), dense @ v, atol=1e-12)
    np.testing.assert_allclose(A.absolute().matvec(v), np.abs(dense) @ v, atol=1e-12)
    np.testing.assert_allclose(A.squared_columns(), np.sum(dense**2, axis=0), atol=1e-12)
    np.testing.assert_allclose(A.as_result().todense(), dense, atol=1e-14)
    for e, diagonal in enumerate(A.gram()):
        np.testing.assert_allclose(diagonal[: n - e], np.diag(dense.T @ dense, e), atol=1e-12)
        assert not np.any(diagonal[n - e :])


@pytest.mark.parametrize("p", [0, 1, 2, 3, 4])
def test_solve_band(p):
    """Whether the blocks fill the chunks or not; beside LAPACK."""
    rng = np.random.default_rng(p)
    for n in (5, 62, 63, 2051):
        diagonals = [np.pad(rng.normal(size=n)[e:], (0, min(e, n))) for e in range(p + 1)]
        diagonals[0] = np.abs(diagonals[0]) + 4 * p + 1
        b = rng.normal(size=n)
        exact = scipy.linalg.solveh_banded(np.stack(diagonals), b, lower=True)
        x = jax.jit(band.solve_band)(list(map(jnp.asarray, diagonals)), b)
        np.testing.assert_allclose(x, exact, rtol=1e-12, atol=1e-13)


def test_solve_band_in_float32():
    dense, A = banded(1, 1, 500, 500, jnp.float32)
    v = np.random.default_rng(1).normal(size=500).astype(np.float32)
    x = band.solve_band(A.gram(), A.rmatvec(v))
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, np.linalg.solve(dense, v), rtol=1e-3, atol=1e-4)


def adjustment_matrix(seed, cameras=5, points=40, twice=False):
    """J of observations of two rows, cameras of four variables, points of three; shuffled."""
    rng = np.random.default_rng(seed)
    seen = [(c, p) for p in range(points) for c in range(cameras) if rng.random() < 0.7]
    columns = rng.permutation(4 * cameras + 3 * points)
    dense = np.zeros((2 * len(seen), columns.size))
    for o, (c, p) in enumerate(seen):
        rows = slice(2 * o, 2 * o + 2)
        dense[rows, columns[4 * c : 4 * c + 4]] = rng.normal(size=(2, 4))
        begin = 4 * cameras + 3 * p
        dense[rows, columns[begin : begin + 3]] = rng.normal(size=(2, 3))
    return dense[rng.permutation(len(dense))]


def test_two_groups():
    rng = np.random.default_rng(1)
    dense = adjustment_matrix(0)
    m, n = dense.shape
    groups = two_groups(sparsity(dense, dense.shape))
    assert (groups.few.shape, groups.many.shape) == ((5, 4), (40, 3))

    def part(columns):
        return jnp.asarray(dense[groups.rows[:, :, None], columns[:, None, :]])

    A = TwoGroupMatrix(
        part(groups.few[groups.of_few]), part(groups.many[groups.of_many]), Pairs.of(*groups)
    )
    v, u, diag = rng.normal(size=n), rng.normal(size=m), rng.uniform(0, 1, n)
    np.testing.assert_allclose(A.matvec(v), dense @ v, atol=1e-12)
    np.testing.assert_allclose(A.rmatvec(u), dense.T @ u, atol=1e-12)
    np.testing.assert_allclose(A.T.T.matvec(v), dense @ v, atol=1e-12)
    np.testing.assert_allclose(A.squared_columns(), np.sum(dense**2, 0), atol=1e-12)
    scaled = A.scaled(jnp.asarray(u), jnp.asarray(v))
    np.testing.assert_allclose(scaled.matvec(v), u * (dense @ (v * v)), atol=1e-12)
    exact = np.linalg.solve(dense.T @ dense + np.diag(diag), v)
    np.testing.assert_allclose(
        A.normal().solve(jnp.asarray(diag), jnp.asarray(v)), exact, rtol=1e-9
    )


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_no_two_groups(pattern):
    assert two_groups(sparsity(pattern, pattern.shape)) is None
