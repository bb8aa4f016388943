"""The call inside jit, vmap, scan and the rest; dtypes, pytrees, fixed variables, hard numbers.

Solutions are SciPy's, or closed forms.
"""

import functools

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox

METHODS = ("trf", "dogbox", "lm")
BOXED = ("trf", "dogbox")
INF = np.inf
M = 12
T = np.linspace(0.0, 3.0, M)
NOISE = 0.15 * np.sin(7.0 * np.arange(M) + 0.4)
Y = 2.0 * np.exp(-1.3 * T) + 0.5 + NOISE
YS = np.stack([Y, Y + 0.2, 0.5 * Y + NOISE, 3 * Y])
P0 = np.array([1.0, 1.0, 0.9])
P0S = np.stack([P0, P0 + 0.3, P0 * 1.7, P0 - [0.5, 0.3, 0.2]])


def decay(p, y):
    t = jnp.asarray(T, p.dtype)
    return p[0] * jnp.exp(-p[1] * t) + p[2] - y


def expected(y=Y, bounds=(-INF, INF), **settings):
    """SciPy's solution, good for 1e-7."""
    return so.least_squares(
        lambda p: p[0] * np.exp(-p[1] * T) + p[2] - y, np.clip(P0, *bounds), "3-point", bounds,
        "dogbox", ftol=1e-15, xtol=1e-15, gtol=1e-13, max_nfev=500, **settings,
    ).x  # fmt: skip


def fit(y, p0=P0, **settings):
    return ox.least_squares(decay, p0, args=(y,), **settings)


close = functools.partial(assert_allclose, atol=1e-6)


# ---------------------------------------------------------------------------------------
# Transformations


@pytest.mark.parametrize("method", METHODS)
def test_vmap_over_starts_and_data(method):
    got = jax.vmap(lambda p0, y: fit(y, p0, method=method))(P0S, YS)
    close(got.x, [expected(y) for y in YS])
    # The whole Result has a batch axis.
    shapes = {name: np.shape(got[name]) for name in got}
    counters = dict.fromkeys(
        ("cost", "optimality", "nfev", "njev", "nit", "status", "success"), (4,)
    )
    vectors = {"x": (4, 3), "grad": (4, 3), "active_mask": (4, 3), "fun": (4, M)}
    assert shapes == {**counters, **vectors, "jac": (4, M, 3), "message": (4,)}
    assert np.asarray(got.success).all()
    assert all("satisfied" in text for text in got.message)


@pytest.mark.parametrize("method", BOXED)
def test_vmap_over_bounds(method):
    lows = np.array([-INF, 0.4, 0.7, 0.9])

    def one(low):
        return fit(Y, bounds=(jnp.array([-INF, -INF, 0.0]).at[2].set(low), INF), method=method)

    got = jax.vmap(one)(lows)
    close(got.x, [expected(bounds=([-INF, -INF, low], [INF] * 3)) for low in lows])
    assert_array_equal(got.active_mask[:, 2], [0, 0, -1, -1])


def test_vmap_over_scales_and_closures():
    scales = np.array([0.1, 0.5, 3.0, 10.0])

    def one(y, f_scale):
        return ox.least_squares(lambda p: decay(p, y), P0, loss="soft_l1", f_scale=f_scale).x

    got = jax.vmap(one)(YS, scales)
    pairs = zip(YS, scales, strict=True)
    close(got, [expected(y, loss="soft_l1", f_scale=s) for y, s in pairs])


def test_nested_vmap():
    got = jax.vmap(lambda p0: jax.vmap(lambda y: fit(y, p0).x)(YS))(P0S[:2])
    close(got, np.broadcast_to([expected(y) for y in YS], (2, 4, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_lanes_that_talk_to_each_other(method):
    # Each lane fits the mean of all data, moved by its number.
    def one(y):
        def fun(p):
            return decay(p, jax.lax.pmean(y, "lanes")) + jax.lax.axis_index("lanes").astype(p.dtype)

        return ox.least_squares(fun, P0, method=method)

    got = jax.vmap(one, axis_name="lanes")(YS)
    assert np.asarray(got.success).all()
    close(got.x, expected(YS.mean(axis=0)) - np.outer(np.arange(4), [0, 0, 1]))


def test_the_derivative_of_lanes_that_talk_to_each_other():
    def first(ys):
        fun = lambda p, y: decay(p, jax.lax.pmean(y, "lanes"))
        one = lambda y: ox.least_squares(fun, P0, args=(y,), xtol=1e-12).x
        return jax.vmap(one, axis_name="lanes")(ys)[0, 0]

    alone = jax.jit(jax.grad(lambda y: fit(y, xtol=1e-12).x[0]))(YS.mean(axis=0))
    assert_allclose(jax.jit(jax.grad(first))(YS), np.broadcast_to(alone / 4, YS.shape), atol=1e-8)


def test_more_lanes_than_a_chunk_holds():
    # Also of nested vmaps, of which either level or both may batch an argument.
    many = Y + 0.05 * np.random.default_rng(3).normal(size=(1100, M))
    start, scale = np.stack([P0, P0S[1]]), np.linspace(0.5, 2.0, 550)
    flat = jax.jit(jax.vmap(lambda y, p0: fit(y, p0).x))
    got = jax.jit(jax.vmap(jax.vmap(lambda y, p0: fit(y, p0).x, (0, None))))(
        many.reshape(2, 550, M), start
    )
    assert_allclose(got.reshape(-1, 3), flat(many, np.repeat(start, 550, axis=0)), rtol=1e-12)
    outer = jax.vmap(lambda p0: jax.vmap(lambda s: fit(s * Y, p0).x)(scale))
    close(jax.jit(outer)(start), np.broadcast_to(expected() * np.outer(scale, [1, 0, 1])
          + np.array([0, expected()[1], 0]), (2, 550, 3)))  # fmt: skip


def test_lanes_of_a_numpy_array_inside_jit():
    close(jax.jit(lambda p0: jax.vmap(lambda y: fit(y, p0).x)(YS))(P0), [expected(y) for y in YS])


SOLVERS = {
    "least_squares": lambda y: fit(y),
    "minimize": lambda y: ox.minimize(lambda p: jnp.sum(decay(p, y) ** 2), P0),
}


@pytest.mark.parametrize("kind", SOLVERS)
def test_export_with_a_symbolic_batch(kind):
    pytest.importorskip("flatbuffers")  # what `serialize` needs
    solve = jax.jit(jax.vmap(SOLVERS[kind]))
    (lanes,) = jax.export.symbolic_shape("lanes")
    exported = jax.export.export(solve)(jax.ShapeDtypeStruct((lanes, M), jnp.float64))
    again = jax.export.deserialize(exported.serialize())
    for ys in (YS, YS[:3]):
        got = again.call(ys)
        assert type(got) is type(solve(ys))
        assert_allclose(got.x, solve(ys).x, rtol=1e-12)
        assert got.message.shape == (len(ys),)


def test_scan_with_a_warm_start():
    def body(p, y):
        res = fit(y, p)
        return res.x, res

    last, results = jax.lax.scan(body, jnp.asarray(P0), jnp.asarray(YS))
    close(results.x, [expected(y) for y in YS])
    close(last, expected(YS[-1]))
    assert np.asarray(results.success).all()


def test_inside_other_control_flow():
    @jax.jit
    def nested(y):
        mapped = jax.lax.map(lambda y: fit(y).x, y)
        branch = jax.lax.cond(y[0, 0] > 0, lambda y: fit(y).x, lambda y: jnp.zeros(3), y[0])
        return mapped, branch

    mapped, branch = nested(jnp.asarray(YS[:2]))
    close(mapped, [expected(y) for y in YS[:2]])
    close(branch, expected())


def test_gradients_through_nestings():
    # By the implicit function theorem d x = H^-1 J^T d y, H the Hessian of half the squares.
    total = lambda y: fit(y, ftol=1e-12, xtol=1e-12, gtol=1e-12).x.sum()
    p = expected()
    hessian = jax.hessian(lambda p: 0.5 * jnp.sum(decay(p, Y) ** 2))(p)
    slope = np.linalg.solve(hessian, np.asarray(jax.jacfwd(decay)(p, Y)).T).sum(axis=0)
    ys = jnp.stack([Y, Y])
    batched = jax.jit(jax.grad(lambda ys: jax.vmap(total)(ys).sum()))(ys)
    scanned = jax.jit(
        jax.grad(lambda ys: jax.lax.scan(lambda c, y: (c + total(y), None), 0.0, ys)[0])
    )(ys)
    saved = jax.jit(jax.grad(jax.checkpoint(total)))(Y)
    for got in (*batched, *scanned, saved):
        assert_allclose(got, slope, atol=1e-5)


def test_a_solve_inside_the_residuals_of_a_solve():
    # Variable projection: the inner solve finds the two linear parameters of a rate.
    def projected(rate):
        basis = lambda c: c[0] * jnp.exp(-rate[0] * T) + c[1] - Y
        return ox.least_squares(basis, np.ones(2), method="lm").fun

    outer = ox.least_squares(projected, [1.0])
    assert outer.success
    close(outer.x[0], expected()[1])


def test_a_result_passes_through_jit():
    res = fit(Y)
    again = jax.jit(lambda r: r)(res)
    assert jax.tree.structure(jax.tree.map(lambda leaf: leaf, res)) == jax.tree.structure(res)
    assert_array_equal(again.x, res.x)
    assert (int(again.status), again.message) == (res.status, res.message)


def test_it_prints_inside_and_outside_of_a_trace():
    texts = []

    def one(y):
        res = fit(y)
        texts.append(repr(res))
        return res

    batch = jax.vmap(one)(YS)
    assert "active_mask" in texts[0]
    assert "active_mask" in repr(batch)


# ---------------------------------------------------------------------------------------
# dtypes

FLOATS = ("x", "cost", "fun", "jac", "grad", "optimality")


def dtypes(res):
    return {np.asarray(res[name]).dtype.name for name in FLOATS}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", ["linear", "soft_l1"])
def test_float32_in_float32_out(method, loss):
    f = lambda v: np.asarray(v, np.float32)
    res = fit(f(Y), f(P0), method=method, loss=loss, f_scale=0.5)
    assert dtypes(res) == {"float32"}
    assert np.asarray(res.active_mask).dtype == np.int32
    assert res.success, "default tolerances end by a true test"
    assert res.nfev < 60
    assert_allclose(res.x, expected(loss=loss, f_scale=0.5), atol=2e-3)
    double = jax.eval_shape(lambda: fit(Y, P0, method=method, loss=loss, f_scale=0.5))
    assert {double[name].dtype.name for name in FLOATS} == {"float64"}


@pytest.mark.parametrize("method", METHODS)
def test_float32_has_no_false_gtol(method):
    # Scaled down, an absolute test on the gradient is met anywhere.
    fun = lambda p, y, c: c * decay(p, y)
    for c in (1e-6, 1.0, 1e6):
        args = (Y.astype(np.float32), np.float32(c))
        res = ox.least_squares(fun, P0.astype(np.float32), method=method, args=args)
        assert res.success
        assert_allclose(res.x, expected(), atol=2e-3)


@pytest.mark.parametrize("jac", ["2-point", "3-point", "cs"])
def test_float32_schemes(jac):
    def fun(p):
        t, y = jnp.asarray(T, p.dtype), jnp.asarray(Y, p.dtype)
        return p[0] * jnp.exp(-p[1] * t) + p[2] - y

    res = ox.least_squares(fun, P0.astype(np.float32), jac)
    assert dtypes(res) == {"float32"}
    assert res.success
    assert_allclose(res.x, expected(), atol=2e-2)


def test_x64_off(x64_off):
    # Any warning about float64 is an error here.
    for p0 in (P0, [1, 1, 1], P0.astype(np.float32)):
        res = fit(Y, p0)
        assert dtypes(res) == {"float32"}
        assert res.success
        assert_allclose(res.x, expected(), atol=2e-3)
    got = jax.jit(jax.jacrev(lambda y: fit(y).x))(jnp.asarray(Y))
    assert got.dtype == np.float32
    assert np.isfinite(got).all()


def test_x64_switched_between_calls():
    fun = lambda x: jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])
    for on, kind in ((False, "float32"), (True, "float64"), (False, "float32")):
        with jax.enable_x64(on):
            res = ox.least_squares(fun, [-1.2, 1.0])
            assert dtypes(res) == {kind}
            assert res.success


@pytest.mark.parametrize("coarse", ["x", "residuals"])
def test_mixed_precision(coarse):
    x_dtype, f_dtype = ("f4", "f8") if coarse == "x" else ("f8", "f4")
    fun = lambda p: decay(p, jnp.asarray(Y, p.dtype)).astype(f_dtype)
    res = ox.least_squares(fun, P0.astype(x_dtype))
    assert res.success
    assert res.x.dtype == x_dtype
    assert_allclose(res.x, expected(), atol=2e-3)


# ---------------------------------------------------------------------------------------
# Pytrees


def tree_fun(p, data):
    model = p["a"] * jnp.exp(-p["rest"][0] * data["t"]) + p["rest"][1]
    return {"first": model[:5] - data["y"][:5], "then": (model[5:] - data["y"][5:])[:, None]}


TREE = {"a": 1.0, "rest": np.array([1.0, 0.9])}
DATA = {"t": T, "y": Y}


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("method", METHODS)
def test_trees_in_trees_out(method):
    res = ox.least_squares(tree_fun, TREE, method=method, args=(DATA,))
    for tree in (res.x, res.grad, res.active_mask):
        assert jax.tree.structure(tree) == jax.tree.structure(TREE)
        assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, TREE)
    assert jax.tree.map(np.shape, res.fun) == {"first": (5,), "then": (7, 1)}
    assert res.jac.shape == (M, 3)
    close(flat(res.x), expected())


LOW, HIGH = np.array([-INF, -INF, 0.7]), np.array([1.6, INF, INF])
BOUNDS = {  # lb, ub, and the upper bound of `a` that they mean
    "full": ({"a": -INF, "rest": LOW[1:]}, {"a": np.array(1.6), "rest": HIGH[1:]}, 1.6),
    "None leaf": ({"a": None, "rest": LOW[1:]}, {"a": 1.6, "rest": None}, 1.6),
    "prefix": ({"a": -INF, "rest": LOW[1:]}, {"a": 1.6, "rest": INF}, 1.6),
    "lists": ({"a": -INF, "rest": [-INF, 0.7]}, {"a": 1.6, "rest": [INF, INF]}, 1.6),
    "one number": ({"a": -INF, "rest": LOW[1:]}, INF, INF),
    "None": ({"a": None, "rest": LOW[1:]}, None, INF),
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_bounds_of_trees(kind):
    lower, upper, high = BOUNDS[kind]
    res = ox.least_squares(tree_fun, TREE, bounds=(lower, upper), args=(DATA,))
    close(flat(res.x), expected(bounds=(LOW, np.array([high, INF, INF]))))
    assert_array_equal(flat(res.active_mask), [1 if high == 1.6 else 0, 0, -1])


def test_jac_and_x_scale_of_trees():
    def jac(p, data):
        e = jnp.exp(-p["rest"][0] * data["t"])
        rest = jnp.stack([-p["a"] * data["t"] * e, jnp.ones_like(e)], axis=1)
        return {"a": e, "rest": rest}

    res = ox.least_squares(tree_fun, TREE, jac, x_scale={"a": 2.0, "rest": 0.5}, args=(DATA,))
    close(flat(res.x), expected())


def test_jac_as_jax_gives_it_for_trees():
    flat_fun = lambda p, data: tree_fun({"a": p[0], "rest": p[1:]}, data)
    rows = lambda p, data: jax.jacfwd(lambda p: decay(p, data["y"]))(p)
    for fun, x0, jac in (
        (tree_fun, TREE, jax.jacfwd(tree_fun)),
        (flat_fun, P0, jax.jacfwd(flat_fun)),
        (flat_fun, P0, rows),  # one array (m, n)
        (lambda p, data: list(decay(p, data["y"])), P0, lambda p, data: list(rows(p, data))),
        (lambda p, data: tree_fun(p["all"], data), {"all": TREE}, None),
        (lambda p, data: decay(p["p"], data["y"]), {"p": P0}, None),
    ):
        jac = jac or jax.jacrev(fun)
        x0 = jax.tree.map(jnp.asarray, x0)
        close(flat(ox.least_squares(fun, x0, jac, args=(DATA,)).x), expected())


class Model(eqx.Module):
    amplitude: jax.Array
    rates: dict
    label: str = eqx.field(static=True)


def test_a_module_and_mixed_dtypes_as_x0():
    x0 = Model(jnp.array(1.0, jnp.float32), {"k": np.array([[1.0]]), "c": 1}, "decay")

    def fun(p):
        k, c = p.rates["k"][0, 0], p.rates["c"]
        return p.amplitude.astype(k.dtype) * jnp.exp(-k * T) + c - Y

    res = ox.least_squares(fun, x0)
    assert isinstance(res.x, Model)
    assert res.x.label == "decay"
    kinds = [leaf.dtype.name for leaf in jax.tree.leaves(res.x)]
    assert kinds == ["float32", "float64", "float64"]
    amplitude, k, c = expected()
    assert_allclose([res.x.rates["k"][0, 0], res.x.rates["c"]], [k, c], atol=1e-6)
    assert_allclose(res.x.amplitude, amplitude, rtol=1e-6)


def test_args_of_every_kind():
    def fun(p, kind, data, index, mask, key, nothing, function, *, factor, label):
        assert (kind, nothing, label) == ("exp", None, "k")
        model = function(p[0] * jnp.exp(-p[1] * data["t"][index]) + p[2])
        zero = 0.0 * jax.random.uniform(key, (), p.dtype)
        return factor * jnp.where(mask, model - data["y"][index], 0.0) + zero

    index, mask = np.arange(M), np.arange(M) != 4
    args = ("exp", DATA, index, mask, jax.random.key(0), None, lambda v: 1.0 * v)
    res = ox.least_squares(fun, P0, args=args, kwargs={"factor": 2.0, "label": "k"})
    theirs = so.least_squares(
        lambda p: (p[0] * np.exp(-p[1] * T) + p[2] - Y)[mask], P0, xtol=1e-14, ftol=1e-14
    )
    close(res.x, theirs.x)


# ---------------------------------------------------------------------------------------
# lb == ub


A = np.random.default_rng(5).standard_normal((6, 3))
B = np.random.default_rng(6).standard_normal(6)


@pytest.mark.parametrize("method", METHODS)
def test_equal_bounds_fix_a_variable(method):
    def solve(lower, upper, x0):
        return ox.least_squares(
            lambda x: jnp.asarray(A) @ x - B, x0, bounds=(lower, upper), method=method
        )

    for i in range(3):
        for value in (0.0, 0.37, -1e3):
            lower, upper, x0 = np.full(3, -INF), np.full(3, INF), np.zeros(3)
            lower[i] = upper[i] = x0[i] = value
            res = solve(lower, upper, x0)
            rest = np.arange(3) != i
            best = np.linalg.lstsq(A[:, rest], B - A[:, i] * value)[0]
            assert res.success
            assert res.x[i] == value
            assert_allclose(res.x[rest], best, rtol=1e-9)
            for leaf in jax.tree.leaves(res):
                assert np.isfinite(leaf).all()

    x = np.array([1.0, 2.0, 3.0])
    res = solve(x, x, x)
    assert res.success
    assert_array_equal(res.x, x)
    assert_allclose(res.cost, 0.5 * np.sum((A @ x - B) ** 2))


@pytest.mark.parametrize("method", BOXED)
def test_a_fixed_variable_beside_an_active_one(method):
    bounds = (np.array([-INF, 1.0, 0.7]), np.array([INF, 1.0, INF]))
    res = fit(Y, bounds=bounds, method=method)
    e = np.exp(-T)  # what is left is linear
    assert_allclose(res.x, [e @ (Y - 0.7) / (e @ e), 1.0, 0.7], rtol=1e-9)


@pytest.mark.parametrize(
    "method, jac",
    [("trf", "2-point"), ("trf", "3-point"), ("dogbox", "3-point"), ("lm", "2-point")],
)
def test_a_fixed_variable_with_differences(method, jac):
    bounds = (np.array([-INF, 1.0, -INF]), np.array([INF, 1.0, INF]))
    res = ox.least_squares(decay, P0, jac, bounds, method, args=(Y,))
    basis = np.stack([np.exp(-T), np.ones(M)], axis=1)
    assert_allclose(np.asarray(res.x)[[0, 2]], np.linalg.lstsq(basis, Y)[0], rtol=1e-6)
    assert np.isfinite(res.jac).all()


# ---------------------------------------------------------------------------------------
# Numbers that are hard to work with


TRIALS = {  # function, start, solution: a Gauss-Newton step leaves the domain
    "log": (jnp.log, 5.0, 1.0),
    "root": (lambda x: jnp.sqrt(x) - 0.1, 4.0, 0.01),
    "wall of NaN": (lambda x: jnp.where(x > 2.5, jnp.nan, jnp.arctan(x - 2.0)), 0.5, 2.0),
    "wall of inf": (lambda x: jnp.where(x > 2.5, jnp.inf, jnp.arctan(x - 2.0)), 0.5, 2.0),
    "overflow": (lambda x: jnp.exp(x) - 1.0, -8.0, 0.0),
    "pole": (lambda x: 1.0 / x - 2.0, 3.0, 0.5),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_that_is_not_finite_is_a_rejected_step(method):
    # All in one program: `which` chooses the function.
    functions = [fun for fun, _, _ in TRIALS.values()]
    starts, solutions = (np.array([case[i] for case in TRIALS.values()]) for i in (1, 2))
    costs = []

    def see(intermediate_result):
        costs.append(float(intermediate_result.cost))

    for which, name in enumerate(TRIALS):
        costs.clear()
        res = ox.least_squares(
            lambda x, which: jax.lax.switch(which, functions, x), starts[which],
            method=method, args=(np.int32(which),), callback=see,
        )  # fmt: skip
        assert res.success, name
        assert_allclose(res.x, [solutions[which]], rtol=1e-6, atol=1e-9, err_msg=name)
        assert np.isfinite(costs).all(), name
        assert (np.diff(costs) <= 0).all(), name


@pytest.mark.parametrize("method", METHODS)
def test_everything_but_the_start_is_nan(method):
    fun = lambda x: jnp.where(x == 1.0, x, jnp.nan) * np.array([1.0, 2.0])
    res = ox.least_squares(fun, 1.0, lambda x: np.array([[1.0], [2.0]]), method=method)
    assert_array_equal(res.x, [1.0])
    assert_allclose(res.cost, 2.5)
    assert not res.success, "the gradient is 5"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e170, 1e-170])
def test_a_residual_whose_square_is_no_number(method, size):
    fun = lambda x, size: size * jnp.stack([x[0] - 1.0, 2.0 * (x[1] - 3.0)])
    res = ox.least_squares(fun, [5.0, -4.0], method=method, args=(size,))
    assert res.success
    assert_allclose(res.x, [1.0, 3.0], rtol=1e-9)


def test_a_square_that_overflows_in_float32():
    fun = lambda x: jnp.stack([1e25 * (x[0] - 1), 1e25 * (x[1] - x[0] ** 2)])
    res = ox.least_squares(fun, np.array([3.0, 4.0], np.float32), method="lm")
    assert res.success
    assert_allclose(res.x, [1.0, 1.0], rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_solution_that_is_the_start(method):
    # No division by a residual, a radius or a step of zero.
    res = ox.least_squares(lambda x: x, np.zeros(3), method=method)
    assert res.success
    assert res.nfev == 1
    for leaf in jax.tree.leaves(res):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("method", METHODS)
def test_variables_without_influence(method):
    fun = lambda x: jnp.stack([x[0] - 2.0, x[0] + 2.0, 0.0 * x[1]])
    res = ox.least_squares(fun, [1.0, 5.0], method=method)
    assert res.success
    assert_allclose(res.x, [0.0, 5.0], atol=1e-9)
