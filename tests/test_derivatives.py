"""Jacobian schemes, approx_derivative and check_derivative, against SciPy and closed forms."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import _numdiff as scipy_numdiff

from optx_lite import approx_derivative, check_derivative
from optx_lite.derivatives import (
    ComplexStep,
    FiniteDifference,
    Forward,
    Reverse,
    UserJacobian,
    resolve,
)
from optx_lite.derivatives.finite_difference import one_sided_trial, three_point_trials

pytestmark = pytest.mark.filterwarnings("error")

METHODS = ["jacfwd", "jacrev", "2-point", "3-point", "cs"]
DIFFERENCES = ["2-point", "3-point"]
# Accuracy as a power of eps: half of the digits by one-sided differences, 2/3 by central ones.
POWER = {"2-point": 1 / 2, "3-point": 2 / 3, "cs": 1.0, "jacfwd": 1.0, "jacrev": 1.0, "user": 1.0}


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def x64(request):
    with jax.enable_x64(request.param):
        yield request.param


@pytest.fixture
def only_x64():
    with jax.enable_x64(True):
        yield


def vector(x, xp=jnp):
    """Three residuals of two parameters."""
    return xp.stack([x[0] * xp.sin(x[1]), x[1] * xp.cos(x[0]), x[0] ** 3 / x[1] ** 0.5])


def vector_jacobian(x, xp=np):
    a, b = x
    return xp.array(
        [
            [xp.sin(b), a * xp.cos(b)],
            [-b * xp.sin(a), xp.cos(a)],
            [3 * a**2 / b**0.5, -0.5 * a**3 / b**1.5],
        ]
    )


def scalar(x, xp=jnp):
    return xp.sin(x[0] * x[1]) * xp.log(x[0])


def scalar_gradient(x):
    a, b = x
    return np.array(
        [b * np.cos(a * b) * np.log(a) + np.sin(a * b) / a, a * np.cos(a * b) * np.log(a)]
    )


def infinite(x):
    return jnp.full_like(x, -jnp.inf), jnp.full_like(x, jnp.inf)


def transposed(scheme, fun, x, bounds=None):
    f, jacobian = scheme.linearize(fun, x, *(infinite(x) if bounds is None else bounds))
    return f, jacobian()


def close(actual, desired, power, dtype, factor=100.0):
    """Agreement to a power of eps, relative to the largest entry."""
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        actual, desired, rtol=0, atol=factor * eps**power * np.max(np.abs(desired))
    )


class TestSchemes:
    @pytest.mark.parametrize("method", [*METHODS, "user"])
    def test_value_and_transposed_jacobian(self, method, x64):
        x = jnp.array([1.5, 0.7])
        by_hand = functools.partial(vector_jacobian, xp=jnp)
        f, rows = transposed(resolve(by_hand if method == "user" else method), vector, x)
        assert rows.shape == (2, 3)
        assert f.dtype == rows.dtype == x.dtype == (jnp.float64 if x64 else jnp.float32)
        close(f, vector(np.asarray(x), np), 1.0, x.dtype)
        close(rows.T, vector_jacobian(np.asarray(x)), POWER[method], x.dtype)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(
        "x_dtype, f_dtype", [("float32", "float32"), ("float32", "float64"), ("float64", "float32")]
    )
    def test_higher_precision_of_x_and_f_under_x64(self, method, x_dtype, f_dtype, only_x64):
        def fun(x):
            f = jnp.stack([x[0] * x[1] ** 2, jnp.exp(x[0]), x[1]])
            return f.astype(complex_of[f_dtype] if jnp.iscomplexobj(f) else f_dtype)

        complex_of = {"float32": "complex64", "float64": "complex128"}

        x = jnp.array([0.5, 2.0], dtype=x_dtype)
        f, rows = transposed(resolve(method), fun, x)
        assert f.dtype == f_dtype
        assert rows.dtype == np.promote_types(x_dtype, f_dtype)
        close(rows.T, [[4.0, 2.0], [np.exp(0.5), 0.0], [0.0, 1.0]], POWER[method], jnp.float32)

    @pytest.mark.parametrize("method", METHODS)
    def test_strict_promotion(self, method, x64):
        with jax.numpy_dtype_promotion("strict"):
            x = jnp.array([1.5, 0.7])
            _, rows = transposed(
                resolve(method), lambda x: jnp.stack([x[0] * x[1], jnp.sin(x[0]), x[1] ** 2]), x
            )
        close(rows.T, [[0.7, 1.5], [np.cos(1.5), 0.0], [0.0, 1.4]], POWER[method], x.dtype)

    @pytest.mark.parametrize("method", ["jacfwd", "jacrev"])
    def test_function_stands_once_in_the_lowered_text(self, method):
        def step(x, accepted):
            f, jacobian = resolve(method).linearize(lambda x: jnp.tan(x) * x[0], x, *infinite(x))
            return f, jax.lax.cond(accepted, jacobian, lambda: jnp.zeros((x.size, f.size)))

        text = jax.jit(step).lower(jnp.ones(3), True).as_text()
        assert text.count("stablehlo.tan ") + text.count("chlo.tan ") == 1

    @pytest.mark.parametrize("method", METHODS)
    def test_thunk_is_not_paid_for_unless_called(self, method):
        def value(x):
            f, _ = resolve(method).linearize(jnp.tan, x, *infinite(x))
            return f

        text = jax.jit(value).lower(jnp.ones(3)).as_text()
        assert text.count("stablehlo.tan ") + text.count("chlo.tan ") == 1

    @pytest.mark.parametrize("method", METHODS)
    def test_all_columns_in_one_call(self, method):
        calls = []

        def fun(x):
            calls.append(None)
            return vector(x)

        transposed(resolve(method), fun, jnp.array([1.5, 0.7]))
        assert len(calls) == (1 if method in ("jacfwd", "jacrev") else 2)

    @pytest.mark.parametrize("method", METHODS)
    def test_thunk_inside_cond_under_jit_and_vmap(self, method, only_x64):
        @jax.jit
        @jax.vmap
        def jacobian(x, wanted):
            _, rows = resolve(method).linearize(vector, x, *infinite(x))
            return jax.lax.cond(wanted, rows, lambda: jnp.zeros((2, 3)))

        xs = jnp.array([[1.5, 0.7], [0.3, 2.0], [-1.0, 1.0]])
        rows = jacobian(xs, jnp.array([True, False, True]))
        assert np.all(rows[1] == 0)
        for i in (0, 2):
            close(rows[i].T, vector_jacobian(np.asarray(xs[i])), POWER[method], float)

    @pytest.mark.parametrize("method", METHODS)
    def test_constant_function(self, method):
        def fun(x):
            return jnp.ones(3, x.dtype)  # in the dtype of x, complex for 'cs'

        _, rows = transposed(resolve(method), fun, jnp.ones(2))
        np.testing.assert_array_equal(rows, np.zeros((2, 3)))


# Each with its derivative, at arguments below 1.
ANALYTIC = [
    (jnp.exp, np.exp),
    (jnp.sqrt, lambda x: 0.5 / np.sqrt(x)),
    (jnp.log, lambda x: 1 / x),
    (jnp.log1p, lambda x: 1 / (1 + x)),
    (jnp.expm1, np.exp),
    (jnp.sin, np.cos),
    (jnp.tan, lambda x: 1 / np.cos(x) ** 2),
    (jnp.tanh, lambda x: 1 / np.cosh(x) ** 2),
    (jnp.arcsin, lambda x: 1 / np.sqrt(1 - x**2)),
    (jnp.arctan, lambda x: 1 / (1 + x**2)),
    (jnp.reciprocal, lambda x: -1 / x**2),
    (lambda x: x**2.5, lambda x: 2.5 * x**1.5),
    (lambda x: x**3, lambda x: 3 * x**2),
]


class TestComplexStep:
    @pytest.mark.parametrize("fun, derivative", ANALYTIC)
    def test_exact_to_rounding_at_every_scale(self, fun, derivative, x64):
        x = jnp.array([0.9, 0.3, 1e-3, 1e-8])
        actual = jnp.diag(transposed(ComplexStep(), fun, x)[1])
        eps = float(jnp.finfo(x.dtype).eps)
        np.testing.assert_allclose(actual, derivative(np.asarray(x)), rtol=100 * eps)

    @pytest.mark.parametrize(
        "steps", [{"rel_step": 1e-3}, {"abs_step": 1e-3}, {"rel_step": jnp.array([1e-3, 1e-3])}]
    )
    def test_given_step_is_used(self, steps, only_x64):
        # f = x^3: Im (x + ih)^3 / h = 3 x^2 - h^2
        actual = transposed(ComplexStep(**steps), lambda x: x**3, jnp.ones(2))[1]
        np.testing.assert_allclose(actual, (3 - 1e-6) * np.eye(2), rtol=1e-12)

    def test_zero_step_is_replaced(self):
        actual = transposed(ComplexStep(rel_step=1e-3), jnp.sin, jnp.zeros(2))[1]
        np.testing.assert_array_equal(actual, np.eye(2))

    def test_function_that_drops_the_imaginary_part(self):
        with pytest.raises(TypeError, match=r"'cs' needs .* complex values: .* returned float32"):
            transposed(ComplexStep(), lambda x: jnp.abs(x), jnp.ones(2, jnp.float32))


class TestUserJacobian:
    def test_one_residual_may_come_flat(self):
        _, rows = transposed(
            UserJacobian(lambda x: [2 * x[0], 0.0]), lambda x: x[:1] ** 2, jnp.array([3.0, 1.0])
        )
        np.testing.assert_array_equal(rows, [[6.0], [0.0]])

    @pytest.mark.parametrize("shape", [(2, 3), (3,), (3, 2, 1), (4, 2)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"`jac` has wrong shape: expected \(3, 2\), actual"):
            transposed(UserJacobian(lambda x: jnp.zeros(shape)), vector, jnp.ones(2))

    def test_complex(self):
        with pytest.raises(ValueError, match="`jac` must return real values, got complex64"):
            transposed(
                UserJacobian(lambda x: jnp.zeros((3, 2), jnp.complex64)), vector, jnp.ones(2)
            )


class TestResolve:
    @pytest.mark.parametrize(
        "jac, expected",
        [
            ("jacfwd", Forward()),
            ("jacrev", Reverse()),
            ("2-point", FiniteDifference("2-point", rel_step=0.1)),
            ("3-point", FiniteDifference("3-point", rel_step=0.1)),
            ("cs", ComplexStep(rel_step=0.1)),
            (vector_jacobian, UserJacobian(vector_jacobian)),
            (FiniteDifference("3-point"), FiniteDifference("3-point")),
        ],
    )
    def test_what_a_front_door_gets(self, jac, expected):
        assert resolve(jac, 0.1) == expected

    @pytest.mark.parametrize("jac", ["oops", None, 3, ["2-point"], Forward])
    def test_unknown(self, jac):
        with pytest.raises(
            ValueError,
            match="`jac` must be 'jacfwd', 'jacrev', '2-point', '3-point', 'cs', a callable",
        ):
            resolve(jac)

    def test_unknown_scheme(self):
        with pytest.raises(
            ValueError, match="`scheme` must be '2-point' or '3-point', got '4-point'"
        ):
            FiniteDifference("4-point")  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize("method", [*DIFFERENCES, "cs"])
    def test_step_of_wrong_shape(self, method):
        with pytest.raises(
            ValueError, match=r"`rel_step` must be a number or have shape \(2,\), got shape \(3,\)"
        ):
            transposed(resolve(method, jnp.ones(3)), vector, jnp.ones(2))


def boxes():
    """x, h, lower, upper: bounds that are far, near, touched, at the same place, or absent."""
    step = st.floats(1e-12, 10.0)
    gap = st.one_of(st.just(0.0), st.just(np.inf), st.floats(1e-12, 10.0))
    x = st.floats(-10, 10, allow_subnormal=False)  # XLA takes those for zero
    return st.tuples(x, step, st.booleans(), gap, gap).map(
        lambda t: (t[0], -t[1] if t[2] else t[1], t[0] - t[3], t[0] + t[4])
    )


class TestBounds:
    @hypothesis.given(st.lists(boxes(), min_size=8, max_size=8))
    def test_trials_are_scipys(self, rows):
        x, h, lower, upper = np.array(rows).T
        with jax.enable_x64(True):
            one = one_sided_trial(*map(jnp.asarray, (x, h, lower, upper)))
            first, second = three_point_trials(*map(jnp.asarray, (x, h, lower, upper)))
        # SciPy may step over a bound by a rounding error.
        with np.errstate(invalid="ignore"):
            step, _ = scipy_numdiff._adjust_scheme_to_bounds(x, h, 1, "1-sided", lower, upper)
            np.testing.assert_array_equal(one, np.clip(x + step, lower, upper))
            step, one_sided = scipy_numdiff._adjust_scheme_to_bounds(
                x, h, 1, "2-sided", lower, upper
            )
        np.testing.assert_array_equal(
            first, np.clip(np.where(one_sided, x + step, x - step), lower, upper)
        )
        np.testing.assert_array_equal(
            second, np.clip(np.where(one_sided, x + 2 * step, x + step), lower, upper)
        )

    @pytest.mark.parametrize("method", DIFFERENCES)
    @hypothesis.given(st.lists(boxes(), min_size=4, max_size=4))
    def test_never_outside(self, method, rows):
        x, h, lower, upper = (jnp.asarray(column, jnp.float32) for column in np.array(rows).T)

        def fun(y):
            return jnp.where((y < lower) | (y > upper), jnp.nan, y)

        _, jac = transposed(FiniteDifference(method, abs_step=h), fun, x, (lower, upper))
        assert np.all(np.isfinite(jac))
        # Steps as they really were: a linear function is differenced exactly in the least room.
        expected = np.where((x == lower) & (x == upper), 0.0, 1.0)
        np.testing.assert_allclose(np.diag(jac), expected, rtol=1e-5)

    @pytest.mark.parametrize("method", DIFFERENCES)
    def test_no_room_is_a_zero_column(self, method, x64):
        x = jnp.array([1.5, 0.7])
        _, rows = transposed(resolve(method), vector, x, (x.at[0].set(-9.0), x))
        assert np.all(rows[1] == 0)
        close(rows[0], vector_jacobian(np.asarray(x))[:, 0], POWER[method], x.dtype)

    @pytest.mark.parametrize("method", DIFFERENCES)
    @pytest.mark.parametrize("rel_step", [None, 1e-6])
    def test_a_few_units_in_the_last_place(self, method, rel_step, only_x64):
        x = np.array([10.0, 10.0])
        for bounds in [(x, x + 4e-15), (np.nextafter(x, 0), x), (x - 3e-9, x + 2e-9)]:
            # These values have no rounding error, so only a step that is not what it is taken for
            # can do harm.
            jac = approx_derivative(lambda x: 4 * x, x, method, rel_step=rel_step, bounds=bounds)
            np.testing.assert_allclose(jac, 4 * np.eye(2), rtol=1e-14)

    def test_traced_bounds(self, only_x64):
        def side(lower, upper):
            return approx_derivative(jnp.abs, jnp.zeros(1), "3-point", bounds=(lower, upper))[0]

        bounds = jnp.array([[-1.0, 0.0], [0.0, 1.0]])
        np.testing.assert_allclose(jax.jit(jax.vmap(side))(*bounds.T), [-1.0, 1.0], rtol=1e-9)


def scipy_cases():
    x = np.array([1.5, 0.7])
    free = (-np.inf, np.inf)
    yield "plain", x, {}
    yield "negative", np.array([-100.0, 0.2]), {}
    yield "zero", np.array([0.0, 1.0]), {}
    yield "rel_step", x, {"rel_step": 1e-4}
    yield "rel_step array", x, {"rel_step": np.array([1e-5, -1e-4])}
    yield "rel_step at zero", np.array([0.0, 1.0]), {"rel_step": 1e-4}
    yield "rel_step too small", x, {"rel_step": 1e-30}
    yield "abs_step", x, {"abs_step": 1e-5}
    yield "abs_step first", x, {"abs_step": 1e-5, "rel_step": np.inf}
    yield "abs_step too small", x, {"abs_step": 1e-30}
    yield "f0", x, {"f0": vector(x, np)}
    yield "at lower", x, {"bounds": (x, np.inf)}
    yield "at upper", x, {"bounds": (-np.inf, x)}
    yield "near both", x, {"bounds": (x - 1e-6, x + 1e-6)}
    yield "near lower", x, {"bounds": (x - 1e-6, np.array([np.inf, 5.0]))}
    yield "scalar bounds", x, {"bounds": (0.7, 1.5)}
    yield "free", x, {"bounds": free}


class TestApproxDerivative:
    @pytest.mark.parametrize("method", DIFFERENCES)
    @pytest.mark.parametrize(
        "name, x, options", [*scipy_cases()], ids=[name for name, *_ in scipy_cases()]
    )
    def test_as_scipy(self, method, name, x, options, only_x64):
        expected = scipy_numdiff.approx_derivative(lambda x: vector(x, np), x, method, **options)
        actual = approx_derivative(vector, x, method, **options)
        # The same points: what is left is the rounding of the values, over the step.
        step = np.min(np.abs(scipy_step(x, method, options)))
        scale = np.finfo(float).eps * np.max(np.abs(vector(x, np))) / step
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=20 * scale)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("method", METHODS)
    def test_closed_form_and_dtype(self, method, dtype, only_x64):
        x = np.array([1.5, 0.7], dtype=dtype)
        actual = approx_derivative(vector, x, method)
        assert actual.dtype == dtype
        close(actual, vector_jacobian(x), POWER[method], dtype)

    @pytest.mark.parametrize("method", METHODS)
    def test_shapes(self, method, only_x64):
        gradient = approx_derivative(scalar, [1.5, 0.7], method)
        assert gradient.shape == (2,)
        close(gradient, scalar_gradient([1.5, 0.7]), POWER[method], float)
        assert approx_derivative(jnp.sinh, 1, method).shape == (1,)
        assert approx_derivative(
            lambda x: [x[0] ** 2, jnp.tan(x[0]), 1.0 * x[0]], 0.5, method
        ).shape == (3, 1)
        assert approx_derivative(lambda x: x[:1] * x[1], [1, 2], method).shape == (2,)

    @pytest.mark.parametrize("method", METHODS)
    def test_args_and_kwargs(self, method, only_x64):
        def fun(x, c0, c1=1.0):
            return jnp.stack([jnp.exp(c0 * x[0]), jnp.exp(c1 * x[1])])

        actual = approx_derivative(fun, [1.0, 1.0], method, args=(-1.0,), kwargs={"c1": 0.5})
        close(actual, np.diag([-np.exp(-1), 0.5 * np.exp(0.5)]), POWER[method], float)

    @pytest.mark.parametrize("method", METHODS)
    def test_transformations(self, method, only_x64):
        x = jnp.array([1.5, 0.7])
        jac = functools.partial(approx_derivative, vector, method=method)
        close(jax.jit(jac)(x), vector_jacobian(x), POWER[method], float)
        xs = jnp.stack([x, 2 * x, x[::-1]])
        for actual, x in zip(jax.jit(jax.vmap(jac))(xs), np.asarray(xs), strict=True):
            close(actual, vector_jacobian(x), POWER[method], float)

    @pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
    @pytest.mark.parametrize("method", METHODS)
    def test_derivative_of_the_derivative(self, method, mode, only_x64):
        def fun(x):
            return jnp.stack([x[0] ** 3 * x[1], jnp.sin(x[0])])

        # The second derivative: the difference of first derivatives.
        second = jax.jit(mode(functools.partial(approx_derivative, fun, method=method)))
        expected = [[[6 * 1.5 * 0.7, 3 * 1.5**2], [3 * 1.5**2, 0]], [[-np.sin(1.5), 0], [0, 0]]]
        close(second(jnp.array([1.5, 0.7])), expected, POWER[method], float)

    @pytest.mark.parametrize("method", METHODS)
    def test_derivative_in_a_closed_over_array(self, method, only_x64):
        def slope(c):
            return approx_derivative(lambda x: jnp.exp(c * x), 0.5, method)[0]

        # d/dc (c exp(c x)) = (1 + c x) exp(c x)
        close(jax.grad(slope)(2.0), 2 * np.exp(1.0), POWER[method], float)

    def test_as_many_evaluations_as_it_says(self):
        calls = []

        def fun(x):
            jax.debug.callback(lambda _: calls.append(None), x)
            return vector(x)

        x = jnp.array([1.5, 0.7])
        for method, expected in [("2-point", 3), ("3-point", 5)]:
            calls.clear()
            jax.block_until_ready(approx_derivative(fun, x, method))
            jax.effects_barrier()
            assert len(calls) == expected
            calls.clear()
            jax.block_until_ready(approx_derivative(fun, x, method, f0=vector(x)))
            jax.effects_barrier()
            assert len(calls) == expected - 1

    @pytest.mark.parametrize(
        "error, match, call",
        [
            (
                ValueError,
                "Unknown method 'newton'",
                lambda: approx_derivative(vector, [1.0, 2.0], "newton"),
            ),
            (ValueError, "`x0` must be real", lambda: approx_derivative(vector, [1j, 2.0])),
            (
                ValueError,
                "`x0` must have at most 1 dim",
                lambda: approx_derivative(vector, [[1.0, 2.0]]),
            ),
            (
                ValueError,
                r"`x0` violates .* x0\[1\] = 2.0",
                lambda: approx_derivative(vector, [1, 2.0], bounds=(0, 1)),
            ),
            (
                ValueError,
                "Inconsistent shapes",
                lambda: approx_derivative(vector, [1.0, 2.0], bounds=([0.0] * 3, 9)),
            ),
            (
                ValueError,
                "`bounds` must contain 2",
                lambda: approx_derivative(vector, [1.0, 2.0], bounds=(0, 1, 2)),
            ),
            (
                ValueError,
                "`f0` passed has more",
                lambda: approx_derivative(vector, [1.0, 2.0], f0=[[1.0]]),
            ),
            (
                ValueError,
                "`f0` must have the shape",
                lambda: approx_derivative(vector, [1.0, 2.0], f0=1.0),
            ),
            (
                ValueError,
                "`fun` must return real",
                lambda: approx_derivative(lambda x: jax.lax.complex(x, x), [1.0]),
            ),
            (
                RuntimeError,
                "`fun` return value has more",
                lambda: approx_derivative(lambda x: x[None], [1.0]),
            ),
            (
                ValueError,
                "`abs_step` must be a number",
                lambda: approx_derivative(vector, [1.0, 2.0], abs_step=[1.0] * 3),
            ),
        ],
    )
    def test_bad_input(self, error, match, call):
        with pytest.raises(error, match=match):
            call()


def scipy_step(x, method, options):
    """The step SciPy settles on, to know what rounding amounts to."""
    h = scipy_numdiff._compute_absolute_step(options.get("rel_step"), x, vector(x, np), method)
    if "abs_step" in options:
        default = scipy_numdiff._compute_absolute_step(None, x, vector(x, np), method)
        h = np.where(x + options["abs_step"] == x, default, options["abs_step"])
    bounds = (np.broadcast_to(bound, x.shape) for bound in options.get("bounds", (-np.inf, np.inf)))
    sides = "1-sided" if method == "2-point" else "2-sided"
    return scipy_numdiff._adjust_scheme_to_bounds(x, h, 1, sides, *bounds)[0]


def exponential(x, t):
    return x[0] * jnp.exp(-x[1] * t) + x[2]


class TestCheckDerivative:
    @pytest.mark.parametrize(
        "jac", ["jacfwd", "jacrev", "cs", functools.partial(vector_jacobian, xp=jnp)]
    )
    def test_right(self, jac, x64):
        check = check_derivative(vector, jac, [-10.0, 10.0])
        assert check and check.ok is True and check.max_error <= check.tolerance
        assert str(check).startswith("Jacobian agrees with finite differences")
        assert check.jac.shape == check.reference.shape == check.errors.shape == (3, 2)

    @pytest.mark.parametrize("entry, factor", [((0, 0), -1.0), ((1, 0), 0.0), ((2, 1), 1.01)])
    def test_names_the_wrong_entry(self, entry, factor, x64):
        def jac(x):
            return vector_jacobian(x, jnp).at[entry].multiply(factor)

        check = check_derivative(vector, jac, [-10.0, 10.0])
        assert not check and check.ok is False and check.worst == entry
        right, given = vector_jacobian([-10.0, 10.0])[entry], float(check.jac[entry])
        # Less than the whole error: what the differences are uncertain by is not held against it.
        error = abs(1 - factor) / max(1, abs(factor))
        assert (0.99 if x64 else 0.3) * error < check.max_error < 1.01 * error
        text = str(check)
        assert "disagrees in 1 of 6 entries" in text
        i, j = entry
        numbers = f"{given:.9g} given, {float(check.reference[entry]):.9g} by differences"
        assert f"d fun[{i}] / d x[{j}]: {numbers}" in text
        close(check.reference[entry], right, 1 / 2, check.jac.dtype)

    def test_rows_by_size(self, only_x64):
        check = check_derivative(
            vector, lambda x: jnp.zeros((3, 2)).at[0, 0].set(jnp.sin(x[1])), [2.0, 3.0]
        )
        assert "disagrees in 5 of 6" in str(check)
        assert len(str(check).splitlines()) == 6

    def test_wrong_custom_rule_is_found(self, only_x64):
        @jax.custom_jvp
        def cube(x):
            return x**3

        cube.defjvp(lambda x, dx: (cube(*x), x[0] ** 2 * dx[0]))
        check = check_derivative(cube, "jacfwd", [2.0])
        np.testing.assert_allclose((check.jac[0, 0], check.reference[0, 0]), (4.0, 12.0), rtol=1e-3)
        assert not check
        assert not check_derivative(lambda x: x * jax.lax.stop_gradient(x), "jacrev", [2.0])

    def test_no_false_alarm_whatever_the_scale(self, x64):
        exponents = jnp.linspace(-12.0, 12.0, 7)
        x_scale, f_scale = (10.0 ** grid.ravel() for grid in jnp.meshgrid(exponents, exponents))

        def fun(x, x_scale, f_scale):
            u, v = x / x_scale
            return f_scale * jnp.stack([jnp.sin(u) * v, jnp.exp(-u * v), v**2 + 1000, u * 0])

        def wrong(x, *scales):
            return jax.jacfwd(fun)(x, *scales).at[1, 0].multiply(1.1)

        def check(jac, *scales):
            return check_derivative(fun, jac, scales[0] * jnp.array([0.7, 1.3]), args=scales)

        right = jax.jit(jax.vmap(functools.partial(check, "jacfwd")))(x_scale, f_scale)
        np.testing.assert_array_equal(right.ok, True)
        caught = jax.jit(jax.vmap(functools.partial(check, wrong)))(x_scale, f_scale)
        np.testing.assert_array_equal(caught.ok, False)
        np.testing.assert_array_equal(jnp.stack(caught.worst), [[1] * 49, [0] * 49])

    def test_parameters_of_very_different_size(self, x64):
        t = jnp.linspace(0.0, 1e4, 20)
        x = jnp.array([[1e6, 1e-3, 1e-2], [1e-6, 5e-4, 1e3], [0.0, 1e-3, 0.0], [1e3, 0.0, 1.0]])
        check = jax.vmap(lambda x: check_derivative(exponential, "jacfwd", x, args=(t,)))(x)
        np.testing.assert_array_equal(check.ok, True)

    def test_residuals_small_because_large_terms_cancel(self, x64):
        # As at the solution of a fit to exact data, and with parameters that start at zero.
        t = jnp.linspace(0.0, 20.0, 20)
        x = jnp.array([20.0, 4.0, 1e-3])
        y = exponential(x, t)
        assert (check := check_derivative(lambda x: exponential(x, t) - y, "jacfwd", x)), check
        assert (check := check_derivative(lambda x: (1 + x) - 1, "jacfwd", [0.0])), check
        x = jnp.array([1.5 * np.pi, -1.0])
        assert (check := check_derivative(lambda x: x[1] - jnp.sin(x[0]), "jacfwd", x)), check

    def test_noise_from_cancellation(self, x64):
        offset = 1e10 if x64 else 1e4
        assert (
            check := check_derivative(
                lambda x: (jnp.sin(x) + offset) - offset, "jacfwd", [0.3, 2.0]
            )
        ), check

    def test_bounds(self, only_x64):
        def fun(x):
            return jnp.stack([jnp.sqrt(x[0]), jnp.log(1 - x[1]), x[2] ** 2, x[3]])

        x = jnp.array([1e-9, 1 - 1e-9, 3.0, 1.0])
        bounds = ([0.0, -jnp.inf, 3.0, 1.0], [jnp.inf, 1.0, 3.0 + 1e-3, 1.0])
        assert (check := check_derivative(fun, "jacfwd", x, bounds=bounds)), check
        # Bounds that coincide leave nothing to compare with.
        assert np.all(check.reference[:, 3] == 0) and np.all(check.errors[:, 3] == 0)

    def test_not_finite(self):
        check = check_derivative(jnp.sqrt, "jacfwd", [0.0])
        assert not check and check.max_error == np.inf
        check = check_derivative(lambda x: x * jnp.nan, "jacfwd", [1.0, 2.0])
        assert not check and "disagrees in 4 of 4" in str(check)

    def test_args_kwargs_and_order_of_scipy(self, only_x64):
        def fun(x, c, power=1):
            return c * x**power

        def jac(x, c, power=1):
            return jnp.diag(c * power * x ** (power - 1))

        options = {"args": (2.0,), "kwargs": {"power": 3}}
        assert check_derivative(fun, jac, np.array([1.0, 2.0]), (-10, 10), **options)
        assert (
            scipy_numdiff.check_derivative(fun, jac, np.array([1.0, 2.0]), (-10, 10), **options)
            < 1e-6
        )

    def test_transformations(self, only_x64):
        def check(x):
            return check_derivative(vector, "jacfwd", x)

        xs = jnp.array([[1.5, 0.7], [-10.0, 10.0]])
        one = jax.jit(check)(xs[0])
        assert bool(one) and str(one).startswith("Jacobian agrees")
        many = jax.vmap(check)(xs)
        assert many.ok.shape == (2,) and np.all(many.ok)
        assert "DerivativeCheck" in str(many)

    def test_strict_promotion(self, x64):
        with jax.numpy_dtype_promotion("strict"):
            assert check_derivative(lambda x: x**2, "jacfwd", [1.0, 2.0])

    def test_precisions_mixed_under_x64(self, only_x64):
        x = np.array([1.5, 0.7], np.float32)
        check = check_derivative(lambda x: vector(x).astype(jnp.float64), "jacfwd", x)
        assert check, check
        assert check.tolerance > 1e-4

    def test_bad_input(self):
        with pytest.raises(ValueError, match="`jac` must be 'jacfwd'"):
            check_derivative(vector, "newton", [1.0, 2.0])
        with pytest.raises(
            ValueError, match=r"`jac` has wrong shape: expected \(3, 2\), actual \(2, 3\)"
        ):
            check_derivative(vector, lambda x: jnp.zeros((2, 3)), [1.0, 2.0])
        with pytest.raises(ValueError, match="`x0` violates bound constraints"):
            check_derivative(vector, "jacfwd", [1.0, 2.0], bounds=(3, 4))
