"""What bad input gets: the argument's name, what came, what was expected, and SciPy's exception.

The types' oracle is SciPy itself, wherever it refuses the same input.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
from numpy.testing import assert_allclose, assert_array_equal

import optx_lite as ox

METHODS = ("trf", "dogbox", "lm")
INF = np.inf
X0 = [1.0, 2.0]


def line_in(xp):
    return lambda x: xp.stack([10 * (x[1] - x[0]), 1 - x[0]])


line = line_in(jnp)


def square(x):
    return x[0] * np.ones((2, 2))


# What is passed beside or instead of (fun, x0), and what the message has to say.
BAD = {
    "complex x0": ({"x0": [1.0, 1j]}, ["`x0`", "real"]),
    "complex scalar x0": ({"x0": 1.0 + 0j}, ["`x0`", "real"]),
    "2-d x0": ({"x0": np.ones((2, 2))}, ["`x0`", r"\(2, 2\)", "1 dimension"]),
    "nested list x0": ({"x0": [[1.0, 2.0], [3.0, 4.0]]}, ["`x0`", r"\(2, 2\)"]),
    "2-d fun": ({"fun": square}, ["`fun`", r"\(2, 2\)", "1-d"]),
    "jac too tall": ({"jac": lambda x: np.ones((3, 2))}, ["`jac`", r"\(2, 2\)", r"\(3, 2\)"]),
    "jac too long": ({"jac": lambda x: np.ones((2, 5))}, ["`jac`", r"\(2, 2\)", r"\(2, 5\)"]),
    "jac 3-d": ({"jac": lambda x: np.ones((2, 2, 1))}, ["`jac`", r"\(2, 2\)"]),
    "jac unknown": ({"jac": "oops"}, ["`jac`", "'oops'", "'jacfwd'", "'2-point'", "callable"]),
    "method unknown": ({"method": "newton"}, ["`method`", "'newton'", "'trf'", "'dogbox'", "'lm'"]),
    "loss unknown": ({"loss": "hinge"}, ["`loss`", "'hinge'", "soft_l1", "callable"]),
    "x_scale unknown": ({"x_scale": "auto"}, ["`x_scale`", "'auto'", "'jac'", "positive"]),
    "x_scale negative": ({"x_scale": -1.0}, ["`x_scale`", "-1.0", "positive"]),
    "x_scale with a zero": ({"x_scale": [1.0, 0.0]}, ["`x_scale`", "0.0", "positive"]),
    "x_scale NaN": ({"x_scale": np.nan}, ["`x_scale`", "nan", "positive"]),
    "x_scale infinite": ({"x_scale": [1.0, INF]}, ["`x_scale`", "inf", "positive"]),
    "x_scale too long": ({"x_scale": np.ones(3)}, ["`x_scale`", "`x0`", r"\(3,\)", r"\(2,\)"]),
    "tr_solver unknown": ({"tr_solver": "best"}, ["`tr_solver`", "'best'", "'exact'", "'lsmr'"]),
    "all tolerances None": (
        {"ftol": None, "xtol": None, "gtol": None},
        ["tolerances", "machine epsilon", "ftol=None"],
    ),
    "verbose unknown": ({"verbose": 3}, ["`verbose`", "3", r"\[0, 1, 2\]"]),
    "max_nfev zero": ({"max_nfev": 0}, ["`max_nfev`", "0", "positive"]),
    "max_nfev negative": ({"max_nfev": -1}, ["`max_nfev`", "-1", "positive"]),
    "2-d fun, hint": ({"fun": square}, ["`fun`", "ravel", "pytree"]),
    "x_scale too long, no bound": ({"x_scale": np.ones(3)}, ["^((?!bound).)*$"]),
}
BAD_BOUNDS = {
    "reversed": ({"bounds": (3.0, 0.0)}, ["`bounds`", "3.0", "0.0"]),
    "one reversed": ({"bounds": ([0.0, 5.0], [3.0, 4.0])}, ["`bounds`", "5.0", "4.0", "entry 1"]),
    "too long": ({"bounds": ([0.0] * 3, 5.0)}, ["bound", r"\(3,\)", r"\(2,\)"]),
    "of length one": ({"bounds": ([0.0], 5.0)}, ["bound", r"\(1,\)", r"\(2,\)"]),
    "three": ({"bounds": (0.0, 1.0, 2.0)}, ["`bounds`", "2 elements", r"\(0.0, 1.0, 2.0\)"]),
    "one": ({"bounds": (0.0,)}, ["`bounds`", "2 elements"]),
    "x0 below": ({"bounds": (1.5, 5.0)}, ["`x0`", "1.0", "1.5", "entry 0"]),
    "x0 above": ({"bounds": ([0.0, 0.0], [3.0, 1.5])}, ["`x0`", "2.0", "1.5", "entry 1"]),
}


def refusal(solver, **arguments):
    with pytest.raises(Exception) as caught:  # noqa: PT011  (its type is what we ask for)
        solver(**arguments)
    return caught.value


def says(error, words):
    for word in words:
        assert re.search(word, str(error)), f"{word} is not in {error}"


@pytest.mark.parametrize("kind", BAD)
def test_bad_argument(kind):
    arguments, words = BAD[kind]
    ours = refusal(ox.least_squares, **{"fun": line, "x0": X0, **arguments})
    theirs = refusal(so.least_squares, **{"fun": line_in(np), "x0": X0, **arguments})
    assert type(ours) is type(theirs)
    says(ours, words)


@pytest.mark.parametrize("kind", BAD_BOUNDS)
@pytest.mark.parametrize("method", ["trf", "dogbox"])
def test_bad_bounds(kind, method):
    arguments, words = BAD_BOUNDS[kind]
    ours = refusal(ox.least_squares, fun=line, x0=X0, method=method, **arguments)
    theirs = refusal(so.least_squares, fun=line_in(np), x0=X0, method=method, **arguments)
    assert type(ours) is type(theirs)
    says(ours, words)


# What SciPy takes without a word, or does not have.
OURS = {
    "NaN bounds": ({"bounds": ([0.0, np.nan], 5.0)}, ValueError, ["`bounds`", "NaN"]),
    "x0 NaN in a box": ({"x0": [0.5, np.nan], "bounds": (0.0, 5.0)}, ValueError, ["finite|`x0`"]),
    "bounds of other structure": (
        {
            "fun": lambda p: p["a"],
            "x0": {"a": jnp.ones(2)},
            "bounds": ({"b": 0.0}, 2.0),
        },
        ValueError,
        ["`bounds`", "lower", "prefix"],
    ),
    "x0 of text": ({"x0": "start"}, ValueError, ["`x0`", "'start'"]),
    "empty x0": ({"x0": []}, ValueError, ["`x0`"]),
    "empty pytree": ({"x0": {}}, ValueError, ["`x0`"]),
    "half precision": ({"x0": np.ones(2, np.float16)}, ValueError, ["`x0`", "float16", "float32"]),
    "fun not callable": ({"fun": 3.0}, TypeError, ["`fun`", "callable", "3.0"]),
    "complex fun": ({"fun": lambda x: jax.lax.complex(x, x)}, ValueError, ["`fun`", "real"]),
    "empty fun": ({"fun": lambda x: x[:0]}, ValueError, ["`fun`", "residual"]),
    "complex jac": ({"jac": lambda x: jnp.eye(2, dtype=complex)}, ValueError, ["`jac`", "real"]),
    "loss of wrong shape": (
        {"loss": lambda z: np.ones((2, np.size(z)))}, ValueError,
        ["`loss`", r"\(3, 2\)", r"\(2, 2\)"],
    ),
    "x_scale complex": ({"x_scale": 1j}, ValueError, ["`x_scale`", "1j", "positive"]),
    "f_scale zero": ({"loss": "huber", "f_scale": 0.0}, ValueError, ["`f_scale`", "positive"]),
    "f_scale array": ({"f_scale": np.ones(2)}, ValueError, ["`f_scale`", "number", r"\(2,\)"]),
    "x0 a PRNG key": ({"x0": jax.random.key(0)}, ValueError, ["`x0`", "key<fry>", "`args`"]),
    "x0 with a PRNG key": (
        {"x0": {"a": 1.0, "k": jax.random.key(0)}}, ValueError, ["`x0`", "key<fry>"],
    ),
    "max_nfev text": ({"max_nfev": "3"}, ValueError, ["`max_nfev`", "'3'", "positive integer"]),
    "max_nfev NaN": ({"max_nfev": np.nan}, ValueError, ["`max_nfev`", "nan", "positive integer"]),
    "max_nfev half": ({"max_nfev": 2.5}, ValueError, ["`max_nfev`", "2.5", "positive integer"]),
    "max_nfev array": ({"max_nfev": [3]}, ValueError, ["`max_nfev`", "3", "positive integer"]),
    "ftol NaN": ({"ftol": np.nan}, ValueError, ["`ftol`", "nan", "number"]),
    "callback": ({"callback": 3}, TypeError, ["`callback`", "3", "callable"]),
    "kwargs": ({"kwargs": 3}, TypeError, ["`kwargs`", "3", "dict"]),
    "tr_options": ({"tr_options": 3}, TypeError, ["`tr_options`", "3", "dict"]),
    "method a list": ({"method": ["trf"]}, ValueError, ["`method`", "trf", "'lm'"]),
    "f_scale text": ({"f_scale": "wide"}, ValueError, ["`f_scale`", "wide", "positive"]),
    "f_scale infinite": ({"f_scale": INF}, ValueError, ["`f_scale`", "inf", "positive"]),
    "text in bounds": ({"bounds": ("low", 5.0)}, ValueError, ["`bounds`", "lower", "<U3"]),
    "complex bounds": ({"bounds": (0.0, 5j)}, ValueError, ["`bounds`", "upper", "complex"]),
    "bounds half missing": ({"bounds": ([None], 1.0)}, ValueError, [r"\(1,\)", r"\(2,\)"]),
    "jac of other structure": (
        {"jac": lambda x: {"a": jnp.ones(2), "b": jnp.ones(2)}}, ValueError, ["`jac`", r"\(2, 2\)"],
    ),
    "ftol text": ({"ftol": "small"}, ValueError, ["`ftol`", "'small'", "number"]),
    "xtol array": ({"xtol": np.ones(2)}, ValueError, ["`xtol`", "number"]),
    "option unknown": ({"no_such": 1}, TypeError, ["no_such"]),
    "tr_option unknown": ({"tr_options": {"tol": 1e-10}}, TypeError, ["`tr_options`", "tol"]),
    "adjoint unknown": ({"adjoint": "implicit"}, TypeError, ["`adjoint`", "'implicit'"]),
    "diff_step too long": (
        {"jac": "2-point", "diff_step": np.ones(3)}, ValueError, ["step", r"\(3,\)", r"\(2,\)"],
    ),
    "jac_sparsity": ({"jac_sparsity": np.eye(3)}, ValueError, ["`jac_sparsity`", "shape"]),
    "lsmr's option": ({"tr_options": {"damp": 1}}, ValueError, ["`tr_options`", "damp", "lsmr"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", OURS)
def test_bad_argument_of_ours(kind):
    arguments, error, words = OURS[kind]
    ours = refusal(ox.least_squares, **{"fun": line, "x0": X0, **arguments})
    assert type(ours) is error
    says(ours, words)


def test_adjoint_options():
    with pytest.raises(ValueError, match=r"`unconverged`.*'nan'.*'ignore'.*'raise'"):
        ox.ImplicitAdjoint(unconverged="raise")


def test_lm_and_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"'lm'.*bounds.*'trf' or 'dogbox'"):
        ox.least_squares(line, X0, bounds=(0.0, 5.0), method="lm")
    for off in ("ftol", "xtol", "gtol"):
        assert ox.least_squares(line, X0, method="lm", **{off: None}).success


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, INF], ids=["NaN", "inf"])
def test_residuals_that_are_not_finite_at_the_start(method, bad):
    ours = refusal(ox.least_squares, fun=lambda x, c: c * x, x0=X0, args=(bad,), method=method)
    theirs = refusal(so.least_squares, fun=lambda x: np.nan * x, x0=X0, method=method)
    assert (type(ours), str(ours)) == (type(theirs), str(theirs))


# ---------------------------------------------------------------------------------------
# All front doors agree: what one refuses, each refuses, and names the argument and what came


def _summed(fun):
    return (lambda x: jnp.sum(fun(x))) if callable(fun) else fun


def _scalar(fun, x0=None, **arguments):
    return ox.minimize_scalar(fun, **({} if x0 is None else {"bracket": x0}), **arguments).x


FRONT_DOORS = {
    "least_squares": lambda fun, x0, **given: ox.least_squares(fun, x0, **given).x,
    "minimize": lambda fun, x0, **given: ox.minimize(_summed(fun), x0, **given).x,
    "approx_derivative": ox.approx_derivative,
    "check_derivative": lambda fun, x0, **given: ox.check_derivative(fun, "jacfwd", x0, **given).ok,
    "minimize_scalar": _scalar,
    "find_root": lambda fun, x0, **given: ox.elementwise.find_root(fun, x0, **given).x,
    "find_minimum": lambda fun, x0, **given: ox.elementwise.find_minimum(fun, x0, **given).x,
}
OF_VECTORS = ("least_squares", "minimize", "approx_derivative", "check_derivative")
OF_NUMBERS = ("find_root", "find_minimum")
WITH_KWARGS = ("least_squares", "approx_derivative", "check_derivative", *OF_NUMBERS)
WITH_PAIR = ("least_squares", "approx_derivative", "check_derivative", "minimize_scalar")
POINTS = "`(x0|init)`"

BAD_ANYWHERE = {  # argument, what came, where, what the message has to say
    "half precision": ("x0", np.ones(2, np.float16), OF_VECTORS, ["`x0`", "float16", "float32"]),
    "bfloat16": ("x0", jnp.ones(2, jnp.bfloat16), OF_VECTORS, ["`x0`", "bfloat16", "float32"]),
    "complex x0": ("x0", [1j, 2.0], OF_VECTORS, ["`x0`", "complex128", "real"]),
    "text as x0": ("x0", "start", (*OF_VECTORS, *OF_NUMBERS), [POINTS, "'start'"]),
    "text in x0": ("x0", ["a", "b"], OF_VECTORS, ["`x0`", "a"]),
    "2-d x0": ("x0", np.ones((2, 2)), OF_VECTORS, ["'x0'|`x0`", r"\(2, 2\)", "dimension"]),
    "no x0": ("x0", [], (*OF_VECTORS, *OF_NUMBERS), [POINTS, r"\[\]"]),
    "None as x0": ("x0", None, (*OF_VECTORS, *OF_NUMBERS), [POINTS, "None"]),
    "key as x0": ("x0", jax.random.key(0), (*OF_VECTORS, *OF_NUMBERS), [POINTS, "key<fry>"]),
    "pytree of a derivative": (
        "x0", {"a": 1.0}, ("approx_derivative", "check_derivative"), ["`x0`", "'a'", "array_like"],
    ),
    "fun": ("fun", 3.0, tuple(FRONT_DOORS), ["`func?`", "callable", "3.0"]),
    "kwargs a number": ("kwargs", 3, WITH_KWARGS, ["`kwargs`", "3", "dict"]),
    "kwargs a list": ("kwargs", [1], WITH_KWARGS, ["`kwargs`", r"\[1\]", "dict"]),
    "NaN bound": ("bounds", (np.nan, 3.0), WITH_PAIR, ["`bounds`", "NaN", "nan"]),
    "NaN in bounds": ("bounds", ([0.0, 0.0], [3.0, np.nan]), WITH_PAIR, ["`bounds`", "nan"]),
    "reversed bounds": ("bounds", (3.0, 0.0), WITH_PAIR, ["`bounds`", "lb=3.0 > ub=0.0"]),
    "three bounds": ("bounds", (0.0, 1.0, 2.0), WITH_PAIR, ["`bounds`", "2 elements", "2.0"]),
    "one number as bounds": ("bounds", 3.0, WITH_PAIR, ["`bounds`", "2 elements", "3.0"]),
    "dict as bounds": ("bounds", {"a": 1, "b": 2}, WITH_PAIR, ["`bounds`", "2 elements", "'a'"]),
    "text as bounds": ("bounds", "ab", WITH_PAIR, ["`bounds`", "2 elements", "'ab'"]),
    "text in bounds": ("bounds", ("low", 3.0), WITH_PAIR, ["`bounds`", "lower", "<U3", "real"]),
    "complex bounds": ("bounds", (0.0, 3j), WITH_PAIR, ["`bounds`", "upper", "complex", "real"]),
    "bool bounds": ("bounds", (False, 3.0), WITH_PAIR, ["`bounds`", "lower", "bool", "real"]),
    "long bounds": (
        "bounds", ([0.0] * 3, 9.0), WITH_PAIR[:-1], ["`bounds`", r"\(3,\)", r"\(2,\)"],
    ),
    "x0 outside": ("bounds", (1.5, 9.0), WITH_PAIR[:-1], ["`x0`=1.0", "1.5", "entry 0"]),
    "NaN in pairs": ("bounds", [(0, np.nan), (0, 3)], ("minimize",), ["`bounds`", "NaN", "nan"]),
    "number as pairs": ("bounds", 3.0, ("minimize",), ["`bounds`", "pairs", "3.0"]),
    "dict as pairs": ("bounds", {"a": 1}, ("minimize",), ["`bounds`", "pairs", "'a'"]),
    "text in pairs": ("bounds", [("a", 3), (0, 3)], ("minimize",), ["`bounds`", "lower", "<U1"]),
    "complex pairs": ("bounds", [(0, 3j), (0, 3)], ("minimize",), ["`bounds`", "upper", "complex"]),
    "reversed pairs": ("bounds", [(3, 0), (0, 3)], ("minimize",), ["`bounds`", r"lb=3.* ub=0"]),
}  # fmt: skip
CASES = [(kind, door) for kind, (_, _, doors, _) in BAD_ANYWHERE.items() for door in doors]


def start_of(door):
    return {"minimize_scalar": None, "find_root": (0.0, 2.0), "find_minimum": (-1.0, 0.5, 2.0)}.get(
        door, X0
    )


@pytest.mark.parametrize(("kind", "door"), CASES)
def test_bad_input_at_each_front_door(kind, door):
    name, value, _, words = BAD_ANYWHERE[kind]
    arguments = {"fun": lambda x: (x - 0.5) ** 2, "x0": start_of(door), name: value}
    with pytest.raises((ValueError, TypeError)) as caught:
        FRONT_DOORS[door](arguments.pop("fun"), arguments.pop("x0"), **arguments)
    says(caught.value, words)


class _Bounds:
    def __init__(self, lb, ub):
        self.lb, self.ub = lb, ub


GOOD_BOUNDS = {
    "none": None,
    "object": _Bounds(0.0, 3.0),
    "object of arrays": _Bounds([0.0, 0.0], [3.0, 3.0]),
    "SciPy's": so.Bounds(0.0, 3.0),
    "a missing one": (None, 3.0),
    "of integers": (0, 3),
    "of another precision": (np.float32(0.0), 3.0),
    "JAX's": (jnp.zeros(2), jnp.full(2, 3.0)),
    "missing entries": ([None, 0.0], 3.0),
}


@pytest.mark.parametrize("door", WITH_PAIR)
def test_bounds_of_any_kind_at_each_front_door(door):
    slope = lambda x: 2 * (x - 0.5)
    # One structure of bounds compiles one program: of a few kinds only where that is slow.
    some = ("none", "object", "a missing one", "of another precision")
    for kind in some if door in ("least_squares", "minimize_scalar") else GOOD_BOUNDS:
        bounds = GOOD_BOUNDS[kind]
        got = FRONT_DOORS[door](lambda x: (x - 0.5) ** 2, start_of(door), bounds=bounds)
        if door in ("least_squares", "minimize_scalar"):
            assert_allclose(got, 0.5, atol=1e-2, err_msg=kind)
        elif door == "approx_derivative":
            assert_allclose(jnp.diag(got), slope(np.array(X0)), rtol=1e-6, err_msg=kind)
        else:
            assert got, kind


# ---------------------------------------------------------------------------------------
# The user's functions


UNTRACEABLE = {
    "NumPy function": (lambda x: np.exp(x) - 1, "jax.numpy"),
    "NumPy array": (lambda x: np.array([x[0], x[1]]), "jnp"),
    "math": (lambda x: [math.exp(x[0]), x[1]], "jax.numpy|jnp"),
    "float()": (lambda x: [float(x[0]), x[1]], "float"),
    "if": (lambda x: x if x[0] > 0 else -x, "jnp.where"),
}


@pytest.mark.parametrize("kind", UNTRACEABLE)
def test_a_function_that_cannot_be_traced(kind):
    fun, remedy = UNTRACEABLE[kind]
    ours = refusal(ox.least_squares, fun=fun, x0=X0)
    assert type(ours) is TypeError
    says(ours, ["`fun` could not be traced", remedy, __file__])


def test_a_jac_or_loss_that_cannot_be_traced():
    with pytest.raises(TypeError, match=r"`jac` could not be traced.*(.|\n)*jax.numpy"):
        ox.least_squares(line, X0, lambda x: np.diag(np.exp(x)))
    with pytest.raises(TypeError, match=r"`loss` could not be traced.*(.|\n)*jax.numpy"):
        ox.least_squares(line, X0, loss=lambda z: np.log1p(z))


# ---------------------------------------------------------------------------------------
# What is taken as SciPy takes it


def test_args_as_a_list():
    fun = lambda x, a, b: x - a * b
    for args in ([2.0, 3.0], (2.0, 3.0)):
        assert_allclose(ox.least_squares(fun, [1.0], args=args).x, 6.0)
        assert_allclose(ox.minimize(lambda x, *args: fun(x, *args)[0] ** 2, [1.0], args).x, 6.0)
        assert_allclose(ox.minimize_scalar(lambda x, *args: fun(x, *args) ** 2, args=args).x, 6.0)
        assert_allclose(ox.elementwise.find_root(fun, (0.0, 9.0), args=args).x, 6.0)


@pytest.mark.parametrize("limit", [INF, 2**31, 2**40, 1e300, 7.0, np.int64(7), np.array(7)])
def test_max_nfev_of_any_size(limit):
    rosenbrock = lambda x: jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])
    res = ox.least_squares(rosenbrock, [-1.2, 1.0], max_nfev=limit)
    assert res.success == (limit > 7)
    assert limit > 7 or res.nfev == 7


def test_missing_entries_of_bounds():
    fun = lambda x: x - jnp.array([-3.0, 2.0])
    for lower in ([None, 0], (None, 0.0), [-INF, 0]):
        res = ox.least_squares(fun, [-1.0, 0.5], bounds=(lower, [None, 1]))
        assert_allclose(res.x, [-3.0, 1.0], atol=1e-9)
        res = ox.least_squares(
            lambda p: fun(p["a"]), {"a": np.array([-1.0, 0.5])}, bounds=({"a": lower}, 1)
        )
        assert_allclose(res.x["a"], [-3.0, 1.0], atol=1e-9)


class OwnError(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [OwnError("mine"), ValueError("mine"), TypeError("mine"), StopIteration("mine")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["fun", "jac", "loss"])
def test_the_users_own_exceptions_pass_unchanged(error, where):
    def fail(*_):
        raise error

    with pytest.raises(type(error)) as caught:
        ox.least_squares(**{"fun": line, "x0": X0, where: fail})
    assert caught.value is error


def test_calls_with_wrong_arguments_are_pythons_own_errors():
    with pytest.raises(TypeError, match="positional"):
        ox.least_squares(line, X0, args=(1, 2))
    with pytest.raises(TypeError, match="kaboom"):
        ox.least_squares(line, X0, kwargs={"kaboom": 1})


def test_the_call_after_an_error_is_sound():
    broken = [True]

    def fun(x):
        if broken[0]:
            raise OwnError
        return line(x)

    with pytest.raises(OwnError):
        ox.least_squares(fun, X0)
    broken[0] = False
    assert_allclose(ox.least_squares(fun, X0).x, 1.0, rtol=1e-9)


# ---------------------------------------------------------------------------------------
# Inside a trace: shapes are errors still, values are a status


def test_shapes_are_checked_inside_jit():
    with pytest.raises(ValueError, match="`x0`"):
        jax.jit(lambda x: ox.least_squares(line, x).x)(np.ones((2, 2)))
    with pytest.raises(ValueError, match="`jac`"):
        jax.jit(lambda x: ox.least_squares(line, x, lambda x: jnp.ones((3, 2))).x)(np.ones(2))


@pytest.mark.parametrize("method", METHODS)
def test_values_are_a_status_inside_jit(method):
    @jax.jit
    def solve(x0, lower, upper, c):
        return ox.least_squares(lambda x: c * line(x), x0, bounds=(lower, upper), method=method)

    free, x0 = np.full(2, INF), np.array(X0)
    fine = solve(x0, -free, free, 1.0)
    assert bool(fine.success)
    assert_allclose(fine.x, 1.0, rtol=1e-9)
    refused = {
        "outside": solve(x0, np.full(2, 1.5), free, 1.0),
        "reversed": solve(x0, np.full(2, 3.0), np.zeros(2), 1.0),
    }
    for why, res in refused.items():
        assert int(res.status) == -1, why
        assert not bool(res.success)
        assert "Improper input" in res.message
        assert_array_equal(res.x, x0)
    if method == "lm":  # a bounded variable
        assert int(solve(x0, np.zeros(2), free, 1.0).status) == -1
    for bad in (np.nan, INF, -INF):
        res = solve(x0, -free, free, bad)
        assert int(res.status) < -2
        assert "not finite" in res.message
        assert not bool(res.success)


@pytest.mark.parametrize("method", METHODS)
def test_nan_with_zero_gradient_is_no_solution(method):
    fun = lambda x, c: jnp.full(2, c) + 0.0 * jax.lax.stop_gradient(x)
    res = jax.jit(lambda c: ox.least_squares(fun, X0, method=method, args=(c,)))(np.nan)
    assert int(res.status) < 0
    assert not bool(res.success)


BLIND = {  # finite residuals, a Jacobian that is not
    "root": lambda x: jnp.stack([jnp.sqrt(x[0]) - 0.5, x[1] - 1.0]),
    "norm": lambda x: jnp.stack([jnp.linalg.norm(x) - 1.0, x[1] - 0.5]),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_jacobian_that_is_not_finite(method):
    # Both in one program: `which` chooses.
    fun, x0 = lambda x, which: jax.lax.switch(which, list(BLIND.values()), x), np.zeros(2)
    compiled = jax.jit(lambda which: ox.least_squares(fun, x0, method=method, args=(which,)))
    for which in map(np.int32, range(len(BLIND))):
        given = {"fun": fun, "x0": x0, "method": method, "args": (which,)}
        says(refusal(ox.least_squares, **given), ["Jacobian", "'2-point'"])
        res = compiled(which)
        assert int(res.status) == -6
        assert "Jacobian" in res.message and "'2-point'" in res.message
        assert not np.isfinite(res.cost)
        # As the message says.
        res = ox.least_squares(jac="2-point", bounds=(-INF, INF), **given)
        assert_allclose(fun(res.x, which), 0.0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_failed_lane_never_looks_better_than_a_good_one(method):
    fun = lambda x, c: c * jnp.stack([x[0] - 1.0, x[0] + 1.0, jnp.sqrt(x[1]) - 1.0])
    x0 = np.array([[0.5, 2.0], [0.5, 0.0], [0.5, -1.0], [0.5, 2.0], [0.5, 2.0]])
    c = np.array([1.0, 1.0, 1.0, np.nan, 1.0])
    lower = np.array([-9.0, -9.0, -9.0, -9.0, 3.0])

    @jax.jit
    @jax.vmap
    def solve(x0, c, lower):
        low, high = (lower, 9.0) if method != "lm" else (jnp.where(lower > 0, lower, -INF), INF)
        return ox.least_squares(fun, x0, args=(c,), bounds=(low, high), method=method)

    res = solve(x0, c, lower)
    assert_array_equal(res.status[1:], [-6, -3, -3, -1])
    assert int(jnp.argmin(res.cost)) == 0
    assert_array_equal(res.cost[1:], INF)
    for name in ("fun", "jac", "grad", "optimality"):
        assert np.isfinite(res[name][0]).all()
        assert np.isnan(res[name][1:]).all(), name


def test_message_inside_a_trace_says_where_to_ask():
    with pytest.raises(RuntimeError, match="status"):
        jax.jit(lambda x0: ox.least_squares(line, x0).message)(np.array(X0))


def test_integer_residuals():
    with pytest.raises(TypeError, match="`fun` must return floating-point residuals, got int"):
        ox.least_squares(lambda x: jnp.round(x - 3).astype(int), [0.2, 0.0])


@pytest.mark.parametrize("solve", [ox.least_squares, ox.minimize])
def test_a_tree_without_numbers(solve):
    with pytest.raises(ValueError, match="`x0` must hold at least one number"):
        solve(lambda x: jnp.sum(x["a"] ** 2), {"a": jnp.zeros(0)})
