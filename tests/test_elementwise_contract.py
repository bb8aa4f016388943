"""The derivatives of elementwise answers: forward is reverse, and both are those of the search.

Whatever has no derivative (steps, kinks, poles, plateaus, multiple roots) has NaN in both modes:
what is finite is what central differences of the search say.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optx_lite as ox

where = jnp.where
C = jnp.array([-1.3, -0.7, -0.123, 0.0, 1e-3, 0.25, 0.4, 0.8])
STEP = 1e-5

ROOTS = {
    "line": lambda x, c: x - c,
    "curved": lambda x, c: jnp.expm1(x) - c / 2,
    "steep": lambda x, c: 1e8 * (x - c),
    "tiny": lambda x, c: 1e-200 * (x - c),
    "beside a large number": lambda x, c: (1e6 + x) - (1e6 + c),
    "with one simple root of three": lambda x, c: (x - c) * (x * x + 1),
    "cube": lambda x, c: x**3 - c,
    "moved cube": lambda x, c: (x - c) ** 3,
    "x |x|": lambda x, c: x * abs(x) - c,
    "step": lambda x, c: where(x > c, 1.0, -1.0),
    "step between slopes": lambda x, c: where(x > c, 1 + x * x, -1 - x * x),
    "step that holds the root": lambda x, c: jnp.sign(x) + x - c / 2,
    "kink": lambda x, c: where(x > 0, 2 * x, x) - c,
    "plateau": lambda x, c: where(abs(x) < 0.2, 0.0, x) + 0 * c,
    "pole": lambda x, c: 1 / (x - c - 1e-4),
    "floor": lambda x, c: jnp.floor(3 * x) + 0.5 - c,
}
MINIMA = {
    "square": lambda x, c: (x - c) ** 2,
    "curved": lambda x, c: jnp.cosh(x - c) + 0.1 * x,
    "large": lambda x, c: 1e12 * (x - c) ** 2,
    "small": lambda x, c: 1e-200 * (x - c) ** 2,
    "beside a large number": lambda x, c: 1e6 + (x - c) ** 2,
    "a residual squared": lambda x, c: (jnp.exp(x) - 2.5 - c) ** 2,
    "|x|": lambda x, c: abs(x - c),
    "square and |x|": lambda x, c: x * x + abs(x - c),
    "square and |x|, pulled": lambda x, c: x * x + abs(x) - 1.7 * c * x,
    "x^4": lambda x, c: x**4 - c * x,
    "moved x^4": lambda x, c: (x - c) ** 4,
    "another curvature on each side": lambda x, c: where(x > 0, 2 * x * x, x * x) - c * x,
    "the larger of two": lambda x, c: jnp.maximum((x - 1) ** 2, (x + 1) ** 2 + c),
    "at the foot of a step": lambda x, c: where(x > c, x * x + 1, 1.2 + x * x - x),
    "plateau": lambda x, c: jax.nn.relu(abs(x - c) - 0.2) ** 2,
}


def all_of(functions):
    """One function for all: element (k, j) is that of function k at C[j]."""

    def f(x, c):
        return jnp.stack([fun(x[k], c[k]) for k, fun in enumerate(functions)])

    return f, jnp.broadcast_to(C, (len(functions), C.size))


SEARCHES = {
    "find_root": (ROOTS, lambda f, c: ox.elementwise.find_root(f, (-3.0, 2.6), args=c)),
    "find_minimum": (
        MINIMA,
        lambda f, c: ox.elementwise.find_minimum(f, (-4.0, 0.1, 5.0), args=c, polish=True),
    ),
    "minimize_scalar": (MINIMA, lambda f, c: ox.minimize_scalar(f, args=c)),
    "in bounds": (MINIMA, lambda f, c: ox.minimize_scalar(f, args=c, bounds=(-0.9, 0.55))),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_forward_is_reverse_and_finite_only_where_the_search_moves_so(name):
    functions, search = SEARCHES[name]
    f, c = all_of(functions.values())

    def solve(c):
        res = search(f, c)
        return (res.x, res.value), res.success

    @jax.jit
    def derivatives(c):
        """Of x and of the value, forward and in reverse; each lane has its own c."""
        (answer, push, success), along = jax.linearize(solve, c, has_aux=True), jnp.ones_like(c)
        pulls = [jax.linear_transpose(lambda v, i=i: push(v)[i], c) for i in range(2)]
        return answer, push(along), [pull(along)[0] for pull in pulls], success

    answer, pushed, both_pulled, success = derivatives(c)
    heights = jnp.nanmax(jnp.abs(f(answer[0] + 1, c) - answer[1]), axis=1)
    ahead, behind = derivatives(c + STEP)[0], derivatives(c - STEP)[0]
    for i, what in enumerate(("x", "value")):
        pulled = both_pulled[i]
        for k, case in enumerate(functions):
            message = f"{case}: {what}"
            seen = (ahead[i][k] - behind[i][k]) / (2 * STEP)
            known = jnp.isfinite(pushed[i][k])
            size = heights[k] if i else 1.0
            np.testing.assert_allclose(
                pulled[k], pushed[i][k], rtol=1e-12, atol=1e-14 * size, err_msg=message
            )
            np.testing.assert_allclose(
                pushed[i][k][known], seen[known], rtol=2e-4, atol=1e-5 * size, err_msg=message
            )
            if k < 6:  # simple roots and regular minima, by the way that they are listed
                assert known[success[k]].all(), message


def test_second_derivatives_are_unknown_where_the_first_are():
    f = lambda x, c: where(x > c, 1.0, -1.0)
    root = lambda c: ox.elementwise.find_root(f, (-3.0, 2.6), args=c).x
    assert jnp.isnan(jax.grad(jax.grad(root))(0.3))
    assert jnp.isnan(jax.jacfwd(jax.jacrev(root))(0.3))


# -- ends of a bracket ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_a_number_is_no_root(kind):
    """At one end, at both, or met on the way."""
    spoilt = lambda at: lambda x: where(x == at, kind, x - 0.3)
    for at in (-1.0, 2.0):
        for ends in ((-1.0, 2.0), (2.0, -1.0)):
            res = ox.elementwise.find_root(spoilt(at), ends)
            if jnp.isnan(kind):
                assert res.status == -3
                assert jnp.isnan(res.x)
            elif (kind > 0) == (at > 0):  # an infinite value has a sign
                assert res.success
                assert res.x == pytest.approx(0.3)
            else:
                assert res.status == -1
    res = ox.elementwise.find_root(lambda x: where(x > 0.3, kind, -1.0), (-1.0, 2.0))
    assert res.status in (-3, -1) or abs(res.f_x) == 1
    res = ox.elementwise.find_root(lambda x: where(x > 0.3, kind, x - 0.3), (0.3, 2.0))
    assert res.x == 0.3  # a root at an end is one, whatever is at the other


def test_a_jump_to_infinity_on_both_sides_is_no_root():
    res = ox.elementwise.find_root(lambda x: where(x > 0.3, jnp.inf, -jnp.inf), (-1.0, 2.0))
    assert res.status == -3
    assert jnp.isnan(res.x)
