"""`elementwise` beside SciPy's own, element by element, and beside what it must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import elementwise as scipy_elementwise

import optx_lite as ox
from optx_lite.driver import custom_derivative

SIZE = 3000  # more than one block, so that the unfinished are packed, too
ours = ox.elementwise


def square(x, a):
    return (x - a) * (x - a)


def double_well(x, a):
    return (x - a) * (x - a) * ((x - 2.5) * (x - 2.5))


def kink(x, a):
    return abs(x - a)


def line(x, a):
    return x - a


def pole(x, a):
    return 1 / (x - a)


def three_roots(x, a):
    return (x - a) * (x + 1) * (x - 3)


FUNCTIONS = [square, double_well, kink, line, pole, three_roots]


def assert_same(found, right, fields=("bracket", "f_bracket")):
    """Counts and statuses are the same; so are all numbers, to the last bit."""
    for name in ("status", "nit", "nfev"):
        value = getattr(found, name)
        assert value.dtype == jnp.int32
        np.testing.assert_array_equal(value, getattr(right, name), err_msg=name)
    np.testing.assert_array_equal(found.success, right.success)
    for name in fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(right, name), err_msg=name)
        assert np.asarray(getattr(found, name)).dtype == np.asarray(getattr(right, name)).dtype


@pytest.fixture(params=["float64", "float32"])
def draw(request):
    """Random numbers of one dtype."""
    random = np.random.default_rng(4)
    return lambda low, high: random.uniform(low, high, SIZE).astype(request.param)


TOLERANCES = [
    None,
    {"xatol": 0, "xrtol": 0, "fatol": 0, "frtol": 0},
    {"xatol": 1e-3, "frtol": 1e-2},
]


def of_kind(x, a, kind):
    return jnp.select([kind == k for k in range(len(FUNCTIONS))], [f(x, a) for f in FUNCTIONS])


def assert_same_for_each_function(search, points, fields=("bracket", "f_bracket"), **settings):
    """All functions in one program of ours, and one after the other by SciPy's."""
    tile = lambda leaf: np.tile(leaf, len(FUNCTIONS)) if isinstance(leaf, np.ndarray) else leaf
    many, given = jax.tree.map(tile, (points, settings))
    kinds = np.repeat(np.arange(len(FUNCTIONS)), SIZE).astype(given["args"][0].dtype)
    found = getattr(ours, search)(of_kind, *many, **given | {"args": (*given["args"], kinds)})
    for k, fun in enumerate(FUNCTIONS):
        right = getattr(scipy_elementwise, search)(fun, *points, **settings)
        own = jax.tree.map(lambda leaf, k=k: leaf[k * SIZE : (k + 1) * SIZE], found)
        assert_same(own, right, fields)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # SciPy's, at infinities and NaNs
class TestBesideScipy:
    """Values are products of differences, which NumPy and XLA round alike."""

    def test_find_minimum(self, draw):
        init = draw(-9, 3), draw(-3, 3), draw(-3, 9)
        a = draw(-5, 5)
        for tolerances in TOLERANCES:
            settings = {"args": (a,), "tolerances": tolerances, "maxiter": 60}
            fields = ("x", "f_x", "bracket", "f_bracket")
            assert_same_for_each_function("find_minimum", (init,), fields, **settings)

    def test_find_root(self, draw):
        init = draw(-9, 3), draw(-3, 9)
        a = draw(-5, 5)
        for tolerances in TOLERANCES[::2]:
            settings = {"args": (a,), "tolerances": tolerances, "maxiter": 60}
            fields = ("x", "f_x", "bracket", "f_bracket")
            assert_same_for_each_function("find_root", (init,), fields, **settings)

    def test_brackets(self, draw):
        x, a = draw(-8, 8), draw(-5, 5)
        reach = np.where(draw(0, 1) < 0.5, x.dtype.type(np.inf), draw(0, 10))
        settings = {"xmin": x - reach, "xmax": x + reach[::-1], "factor": draw(1.1, 4)}
        settings |= {"args": (a,), "maxiter": 40}
        assert_same_for_each_function("bracket_root", (x, x + draw(-0.5, 3)), **settings)
        assert_same_for_each_function("bracket_minimum", (x,), **settings)
        settings |= {"xl0": x - draw(-0.1, 1), "xr0": x + draw(-0.1, 1)}
        assert_same_for_each_function("bracket_minimum", (x,), **settings)


def test_defaults_are_those_of_the_examples_in_scipy():
    def f(x, c=5.0):
        return x**3 - 2 * x - c

    found, right = ours.bracket_root(f, 0), scipy_elementwise.bracket_root(f, 0)
    assert_same(found, right)
    assert_same(
        ours.find_root(f, found.bracket), scipy_elementwise.find_root(f, right.bracket), ("x",)
    )


def test_the_codes():
    def f(x, kind):
        choices = [(x - 2.5) ** 2, x - 10, (x - 2.5) ** 4, jnp.nan * x]
        return jnp.select([kind == k for k in range(4)], choices)

    res = ours.find_minimum(f, (0.0, 2.0, jnp.pi), args=jnp.arange(4), maxiter=10)
    np.testing.assert_array_equal(res.status, [0, -1, -2, -3])
    np.testing.assert_array_equal(jnp.isnan(res.x), [False, True, False, True])
    assert [text.split()[0] for text in res.message] == ["The", "The", "The", "A"]
    assert res.success.tolist() == [True, False, False, False]


def test_nothing_is_done_in_no_iterations():
    res = ours.find_minimum(lambda x: (x - 1) ** 2, (-3.0, 1.5, 5.0), maxiter=0)
    assert (res.status, res.nit, res.nfev, res.x) == (-2, 0, 3, 1.5)
    assert tuple(map(float, res.bracket)) == (-3.0, 1.5, 5.0)


def test_infinite_values_and_roots_at_an_end():
    f = lambda x: 1 / x + 1 - 1 / (1 - x)
    res = ours.find_root(f, (jnp.array([0.1, 0.0]), jnp.array([0.9, 1.0])))
    np.testing.assert_allclose(res.x, (5**0.5 - 1) / 2, rtol=1e-14)  # x^2 + x = 1
    res = ours.find_root(lambda x: x - 2.0, (2.0, 5.0))
    assert (res.x, res.nfev) == (2.0, 2)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtype_stays(dtype):
    def f(x, c):
        assert x.dtype == c.dtype == dtype
        return (x - c) ** 2

    init = tuple(jnp.array(v, dtype) for v in (-3, 1, 5))
    res = ours.find_minimum(f, init, args=jnp.array([0.65, 0.7], dtype))
    assert {leaf.dtype for leaf in (res.x, res.f_x, *res.bracket)} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(
        res.x.astype(float), [0.65, 0.7], rtol=4 * float(jnp.finfo(dtype).eps) ** 0.5
    )


def test_everything_broadcasts_and_sets_the_dtype():
    def f(x, a, *, b):
        assert x.shape == a.shape == b.shape == (2, 3)
        return (x - a * b) ** 2

    b = np.array([1, 2])[:, None]
    with jax.numpy_dtype_promotion("standard"):
        res = ours.find_minimum(f, (-90, 0, 90), args=[np.float32([1, 2, 3])], kwargs={"b": b})
    assert res.x.shape == (2, 3)
    assert res.x.dtype == jnp.float64  # as SciPy: three integers are three default floats
    np.testing.assert_allclose(res.x, [[1, 2, 3], [2, 4, 6]], rtol=1e-7)


def test_a_callback_hears_of_every_iteration_and_may_end_them():
    c, heard = jnp.array([0.3, 0.4]), []

    def callback(res):
        heard.append(res)
        if len(heard) == 4:
            raise StopIteration

    def f(x, c):
        return -jnp.exp(-((x - c) ** 2))

    res = ours.find_minimum(f, (-5.0, 0.0, 5.0), args=c, callback=callback)
    assert [int(r.nit[0]) for r in heard] == [0, 1, 2, 3]
    assert all((r.status == 1).all() for r in heard)
    np.testing.assert_array_equal(res.status, -4)
    limited = ours.find_minimum(f, (-5.0, 0.0, 5.0), args=c, maxiter=3)
    np.testing.assert_array_equal(limited.bracket, res.bracket)
    np.testing.assert_array_equal(limited.bracket, heard[-1].bracket)


def test_what_a_callback_raises_is_raised():
    def callback(res):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        ours.find_root(lambda x: x, (-1.0, 2.0), callback=callback)


# -- what it must not depend on ------------------------------------------------------------


SHAPE_BOUND = {
    "captured": lambda c: lambda x: (x - c) ** 2,
    "made from the shape": lambda c: (
        lambda x: (x - jnp.linspace(c[0], c[-1], x.size).reshape(x.shape)) ** 2
    ),
    "looked up": lambda c: lambda x: (x - c[jnp.arange(x.size)]) ** 2,
    "a search, not known to be elementwise": lambda c: (
        lambda x: (x - c - jnp.interp(x, c, 0 * c)) ** 2
    ),
}


@pytest.mark.parametrize("make", SHAPE_BOUND.values(), ids=SHAPE_BOUND)
def test_arrays_in_the_function_stay_with_their_elements(make):
    c = jnp.linspace(-2.0, 2.0, SIZE)  # also blocks, and what is packed from them, are right
    res = ours.find_minimum(make(c), (-5.0, c - 1e-3 * c**2, 5.0))
    np.testing.assert_allclose(res.x, c, atol=1e-7)


def quartic(x, a):
    return (x - a) ** 4 + (x - a) ** 2


@given(st.integers(0, 2**32 - 1))
def test_elements_do_not_know_of_each_other(seed):
    random = np.random.default_rng(seed)
    a = jnp.asarray(random.uniform(-3, 3, SIZE))
    order = random.permutation(SIZE)
    straight = ours.find_minimum(quartic, (-9.0, 0.1, 9.0), args=a)
    shuffled = ours.find_minimum(quartic, (-9.0, 0.1, 9.0), args=a[order])
    for name in ("x", "nit", "status"):
        np.testing.assert_array_equal(getattr(straight, name)[order], getattr(shuffled, name))


def test_jit_and_vmap_do_the_same():
    a = jnp.linspace(-2.0, 2.0, SIZE).reshape(2, -1)
    find = lambda a: ours.find_minimum(quartic, (-9.0, 0.1, 9.0), args=a)
    root = lambda a: ours.bracket_root(lambda x, a: x - a, 0.0, args=a)
    for solve in (find, root):
        eager = solve(a)
        for other in (jax.jit(solve), jax.vmap(solve), jax.jit(jax.vmap(jax.vmap(solve)))):
            for one, two in zip(jax.tree.leaves(eager), jax.tree.leaves(other(a)), strict=True):
                np.testing.assert_array_equal(one, two)


def test_bad_input_inside_jit_is_told_by_the_status():
    find = jax.jit(
        lambda tol: ours.find_root(lambda x: x - 1, (0.0, 3.0), tolerances={"xatol": tol})
    )
    assert find(-1.0).status == -5
    assert find(1e-9).status == 0
    bracket = jax.jit(lambda factor: ours.bracket_minimum(lambda x: x**2, 3.0, factor=factor))
    assert bracket(0.5).status == -5


def test_the_second_call_traces_nothing():
    calls = []

    def f(x, c):
        calls.append(1)
        return (x - c) ** 2

    # What counts calls changes what it sees, so the count is asked of a function beside it.
    programs = custom_derivative._run._cache_size
    g = lambda x, c: (x - c) ** 2
    ours.find_minimum(g, (-1.0, 0.0, 2.0), args=(0.5,))
    before = programs()
    for c in (0.1, 0.2):
        ours.find_minimum(lambda x, c: (x - c) ** 2, (-1.0, 0.0, 2.0), args=(c,), maxiter=50)
    assert programs() == before
    ours.find_minimum(f, (-1.0, 0.0, 2.0), args=(0.5,))
    assert len(calls) <= 2


@pytest.mark.usefixtures("x64_off")
def test_float32_is_the_default_without_x64():
    res = ours.find_root(lambda x: x**3 - 0.5, (0, 1))
    assert res.x.dtype == jnp.float32
    assert res.x == pytest.approx(0.5 ** (1 / 3), rel=1e-6)


# -- messages ------------------------------------------------------------------------------

f = lambda x: x
MESSAGES = [
    (lambda: ours.find_root(None, (0, 1)), "`func` must be callable."),
    (lambda: ours.find_root(f, (1j, 1)), "Abscissae and function output must be real numbers."),
    (lambda: ours.find_root(lambda x: x.astype(complex), (0, 1)), "must be real numbers."),
    (lambda: ours.find_root(f, ([0, 1], [1, 2, 3])), "could not be broadcast"),
    (lambda: ours.find_root(lambda x: jnp.stack([x, x]), (0, 1)), "The shape of the array ret"),
    (lambda: ours.find_root(f, (0, 1), tolerances={"xatol": -1}), "Tolerances must be non-neg"),
    (lambda: ours.find_root(f, (0, 1), tolerances={"fatol": "a"}), "Tolerances must be non-neg"),
    (lambda: ours.find_root(f, (0, 1), maxiter=1.5), "`maxiter` must be a non-negative integer."),
    (lambda: ours.find_root(f, (0, 1), callback=3), "`callback` must be callable."),
    (lambda: ours.bracket_root(f, 1j), "`xl0` must be numeric and real."),
    (lambda: ours.bracket_minimum(f, 0, xmax=[1j]), "`xmax` must be numeric and real."),
    (lambda: ours.bracket_minimum(f, 0, factor=1), "All elements of `factor` must be greater"),
    (lambda: ours.bracket_minimum(f, 0, maxiter="x"), "`maxiter` must be a non-negative"),
]


@pytest.mark.parametrize("call, message", MESSAGES)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_unknown_tolerance_is_named():
    with pytest.raises(TypeError, match="xtol"):
        ours.find_root(f, (0, 1), tolerances={"xtol": 1})
