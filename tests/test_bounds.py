"""The box, by its definition."""

import numpy as np
from numpy.testing import assert_array_equal

from optx_lite.problem.bounds import onto_bounds


def test_the_rounding_of_a_step_does_not_miss_the_bound():
    # x + (bound - x) is the bound, and rounding says otherwise in about a third of the cases.
    rng = np.random.default_rng(0)
    x, bound = rng.uniform(0.5, 2.0, (2, 1000)) * 10.0 ** rng.integers(-3, 4, (2, 1000))
    moved = x + (bound - x) * (1 + rng.integers(-1, 2, 1000) * np.finfo(float).eps)
    missed = moved != bound
    assert 0.1 < missed.mean() < 0.9
    far = np.full(1000, np.inf)
    assert_array_equal(onto_bounds(moved, x, bound, far), bound)
    assert_array_equal(onto_bounds(moved, x, -far, bound), bound)


def test_a_step_that_ends_beside_a_bound_stays_there():
    x = np.array([0.6, 3.0, 1e6])
    moved = x * (1 - 1e-12)
    far = np.full(3, np.inf)
    assert_array_equal(onto_bounds(moved, x, x * (1 - 2e-12), far), moved)
    assert_array_equal(onto_bounds(moved, x, -far, far), moved)
