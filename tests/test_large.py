"""Large and sparse least squares: every form of a Jacobian ends where the dense one does."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from jax.experimental.sparse import BCOO

import optx_lite as ox
from optx_lite.jax_support import control_flow

N = 40


def broyden(x):
    """SciPy's example: a tridiagonal system."""
    below, above = jnp.pad(x[:-1], (1, 0)), jnp.pad(x[1:], (0, 1))
    return (3 - x) * x - below - 2 * above + 1


def sparse_jacobian(x):
    n = x.shape[0]
    i = jnp.arange(n)
    places = [jnp.stack([i, i], 1), jnp.stack([i[1:], i[:-1]], 1), jnp.stack([i[:-1], i[1:]], 1)]
    values = [3 - 2 * x, jnp.full(n - 1, -1.0), jnp.full(n - 1, -2.0)]
    return BCOO((jnp.concatenate(values), jnp.concatenate(places)), shape=(n, n))


FORMS = {
    "dense": {},
    "band": {"jac_sparsity": 1},
    "entries": {
        "jac_sparsity": scipy.sparse.eye_array(N)
        + scipy.sparse.eye_array(N, k=1)
        + scipy.sparse.eye_array(N, k=-1),
        "tr_solver": "lsmr",
    },
    "dense lsmr": {"tr_solver": "lsmr"},
    "matrix-free": {"jac": "matrix-free"},
    "user's": {"jac": sparse_jacobian},
    "differences": {"jac": "3-point", "jac_sparsity": (1, 1)},
}
UPPER = np.where(np.arange(N) % 3 == 0, -0.575, 0.5)
BOXES = {"free": (-np.inf, np.inf), "box": (np.full(N, -0.6), UPPER)}
START = np.full(N, -0.58)


CASES = [(form, "trf") for form in FORMS] + [("band", "dogbox"), ("dense lsmr", "dogbox")]


@pytest.mark.parametrize(("form", "method"), CASES)
def test_every_form_in_a_box(form, method):
    """One program for both: infinite bounds are bounds, too."""
    fit = jax.jit(
        lambda bounds: ox.least_squares(broyden, START, bounds=bounds, method=method, **FORMS[form])
    )
    for bounds in BOXES.values():
        lower, upper = (jnp.broadcast_to(jnp.asarray(side, float), (N,)) for side in bounds)
        found = fit((lower, upper))
        exact = scipy.optimize.least_squares(
            lambda x: np.asarray(broyden(jnp.asarray(x))),
            START,
            bounds=bounds,
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
        )
        assert found.status > 0
        np.testing.assert_allclose(found.x, exact.x, atol=1e-7)
        np.testing.assert_allclose(found.cost, exact.cost, rtol=1e-10, atol=1e-20)


def test_branches(monkeypatch):
    """What large problems leave out where it is not needed changes nothing."""
    monkeypatch.setattr(control_flow, "LARGE", 0)
    n = 43  # of no other test, whose traces are kept
    box = np.full(n, -0.6), np.where(np.arange(n) % 3 == 0, -0.575, 0.5)
    fit = jax.jit(lambda start: ox.least_squares(broyden, start, bounds=box, jac_sparsity=1))
    for start in (np.full(n, -0.58), box[0], 0.5 * (box[0] + box[1])):
        found = fit(start)
        exact = scipy.optimize.least_squares(
            lambda x: np.asarray(broyden(jnp.asarray(x))), start, bounds=box,
            xtol=1e-15, ftol=1e-15, gtol=1e-15,
        )  # fmt: skip
        assert found.status > 0
        np.testing.assert_allclose(found.x, exact.x, atol=1e-7)


@pytest.mark.parametrize("dtype, top", [(np.float32, 17), (np.float64, 150)])
def test_units_of_a_band(dtype, top):
    """Residuals and variables, alike or each its own, over the range of the dtype."""

    @jax.jit
    def solve(unit, scale):
        box = -2 * unit, 0.5 * unit
        fun = lambda x: scale * broyden(x / unit)
        return ox.least_squares(fun, -unit, bounds=box, jac_sparsity=1)

    rng = np.random.default_rng(0)
    for a, b in itertools.product((-top, 0, top), repeat=2):
        for spread in (np.ones(N), rng.random(N)):
            unit = (10.0 ** (a * spread)).astype(dtype)
            found = solve(unit, dtype(10.0**b))
            assert found.status > 0
            at = np.asarray(found.x, float) / unit.astype(float)
            assert np.max(np.abs(broyden(jnp.asarray(at)))) < 8 * np.finfo(dtype).eps ** 0.5


def test_a_batch():
    """Its Jacobians are one BCOO with a batch dimension."""
    starts = -jnp.ones((2, N)) * jnp.array([[1.0], [0.8]])
    found = jax.vmap(lambda start: ox.least_squares(broyden, start, jac_sparsity=1))(starts)
    assert np.all(found.status > 0)
    exact = jax.vmap(jax.jacfwd(broyden))(found.x)
    np.testing.assert_allclose(found.jac.todense(), exact, atol=1e-12)
    np.testing.assert_allclose(found.fun, 0, atol=1e-9)


@pytest.mark.parametrize("form", ["band", "entries", "user's"])
def test_the_jacobian_is_sparse(form):
    found = ox.least_squares(broyden, START, **FORMS[form])
    assert isinstance(found.jac, BCOO)
    np.testing.assert_allclose(found.jac.todense(), jax.jacfwd(broyden)(found.x), atol=1e-12)
    assert found.success


def test_evaluations_do_not_depend_on_the_form():
    counts = {
        form: ox.least_squares(broyden, -np.ones(N), **FORMS[form]).nfev
        for form in ("dense", "entries", "dense lsmr")
    }
    # At the rounding of f one may see a last step to be taken, and another none.
    assert max(counts.values()) <= min(counts.values()) + 1, counts


def adjustment(x, seen, measured):
    """Points in the plane seen from places along a line: the angle, and the distance."""
    cameras, points = x[:6].reshape(3, 2), x[6:].reshape(-1, 2)
    apart = points[seen[1]] - cameras[seen[0]]
    distance = jnp.sqrt(jnp.sum(apart**2, axis=1))
    return (jnp.stack([apart[:, 1] / distance, distance], 1) - measured).ravel()


def test_two_groups_of_blocks():
    """Bundle adjustment's shape, by the Schur complement; Huber's loss beside the dense solve."""
    rng = np.random.default_rng(0)
    points, cameras = rng.uniform(2, 6, (15, 2)), np.array([[0.0, 0], [1, 0], [2, 0.5]])
    seen = np.array([(c, p) for p in range(15) for c in range(3) if (c + p) % 5])
    truth = jnp.asarray(np.concatenate([cameras.ravel(), points.ravel()]))
    measured = np.asarray(adjustment(truth, seen.T, 0.0)).reshape(-1, 2)
    measured = measured + 0.01 * rng.normal(size=measured.shape)
    rows = np.arange(2 * len(seen)).reshape(-1, 2, 1)
    cols = np.concatenate(
        [2 * seen[:, :1] + np.arange(2), 6 + 2 * seen[:, 1:] + np.arange(2)], axis=1
    )[:, None]
    pattern = tuple(np.broadcast_to(a, (len(seen), 2, 4)).ravel() for a in (rows, cols))
    start = truth + 0.1 * rng.normal(size=truth.shape)
    fit = {"args": (seen.T, measured), "loss": "huber", "f_scale": 0.01}
    dense = ox.least_squares(adjustment, start, **fit)
    sparse = ox.least_squares(adjustment, start, jac_sparsity=pattern, **fit)
    assert dense.success
    assert sparse.success
    np.testing.assert_allclose(sparse.cost, dense.cost, rtol=1e-7)


def test_options():
    tight = ox.least_squares(
        broyden, START, tr_solver="lsmr", tr_options={"atol": 1e-14, "btol": 1e-14, "maxiter": 500}
    )
    assert tight.cost < 1e-25
    for wrong, kind in (
        ({"tr_solver": "cg"}, ValueError),
        ({"tr_options": {"tol": 1}}, TypeError),
        ({"tr_options": 3}, TypeError),
        ({"tr_options": {"atol": 1}}, ValueError),
        ({"tr_solver": "exact", "jac_sparsity": 1}, ValueError),
        ({"jac": "matrix-free", "jac_sparsity": 1}, ValueError),
        ({"jac": sparse_jacobian, "jac_sparsity": 1}, ValueError),
        ({"jac_sparsity": np.eye(3)}, ValueError),
        ({"jac": lambda x: sparse_jacobian(x[1:])}, ValueError),
    ):
        with pytest.raises(kind, match=r"`?(tr_|jac)"):
            ox.least_squares(broyden, START, **wrong)


@pytest.mark.parametrize("jac", ["jacfwd", "jacrev", "2-point", "3-point", "cs"])
def test_a_wrong_pattern_is_noticed(jac):
    with pytest.raises(ValueError, match="residual 0 changes with variable 1"):
        ox.least_squares(lambda x: x + jnp.array([x[1], 0, 0]), np.ones(3), jac, jac_sparsity=0)


def test_a_wrong_pattern_in_jit():
    fit = jax.jit(lambda x0: ox.least_squares(broyden, x0, jac_sparsity=np.tri(4)))
    found = fit(jnp.linspace(-1, 1, 4))
    assert found.status == -7
    assert np.isinf(found.cost)
    assert np.all(np.isnan(found.fun))


def test_detected():
    pytest.importorskip("asdex")
    found = ox.least_squares(broyden, START, jac_sparsity="auto")
    np.testing.assert_allclose(found.jac.todense(), jax.jacfwd(broyden)(found.x), atol=1e-12)


def shifted(x, c):
    return broyden(x) - c


@pytest.mark.parametrize("n", [N, 600], ids=["dense Hessian", "by products"])
def test_derivative(n):
    """Of the solution of f(x) = c, in a direction of c and as a gradient: J^-1."""
    pull = jnp.asarray(np.random.default_rng(0).normal(size=n))
    c = 0.1 * jnp.sin(jnp.arange(n, dtype=float))

    def solve(c):
        return ox.least_squares(shifted, -jnp.ones(n), args=(c,), jac_sparsity=1)

    @jax.jit
    def derivatives(c):
        found, push = jax.linearize(solve, c)
        return found, push(pull), jax.linear_transpose(lambda v: push(v).x, c)(pull)[0]

    found, moved, pulled = derivatives(c)
    inverse = np.linalg.inv(jax.jacfwd(broyden)(found.x))
    np.testing.assert_allclose(pulled, pull @ inverse, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(moved.x, inverse @ pull, rtol=1e-6, atol=1e-8)
    # J has 3 - 2 x on its diagonal, and constants beside it.
    d_jac = BCOO((moved.jac.data, found.jac.indices), shape=(n, n)).todense()
    np.testing.assert_allclose(d_jac, np.diag(-2 * moved.x), atol=1e-12)


class Tridiagonal(ox.AbstractOperator):
    """The Jacobian of `broyden` by its products."""

    x: jax.Array
    ahead: int = eqx.field(static=True)  # the place of -2; that of -1 is on the other side

    @property
    def shape(self):
        return self.x.size, self.x.size

    @property
    def dtype(self):
        return self.x.dtype

    def apply(self, v):
        above, below = jnp.append(v[1:], 0), jnp.append(0, v[:-1])
        above, below = (above, below) if self.ahead == 1 else (below, above)
        return (3 - 2 * self.x) * v - below - 2 * above

    def adjoint(self):
        return Tridiagonal(self.x, -self.ahead)


def test_an_operator_from_jac():
    found = ox.least_squares(broyden, START, jac=lambda x: Tridiagonal(x, 1))
    assert found.cost < 1e-20
    v = jnp.cos(jnp.arange(N, dtype=float))
    np.testing.assert_allclose(found.jac.matvec(v), jax.jvp(broyden, (found.x,), (v,))[1])
    with pytest.raises(ValueError, match="exact"):
        ox.least_squares(broyden, START, jac=lambda x: Tridiagonal(x, 1), tr_solver="exact")


def test_what_does_not_fit_into_memory():
    """It is said at once, with both sizes: two Jacobians of 1e6 by 1e6 are 14,901 GiB."""
    with pytest.raises(MemoryError, match=r"1.49e\+04 GiB, the memory has .* GiB.*jac_sparsity"):
        ox.least_squares(lambda x: x - 1.0, jnp.ones(1_000_000))
