"""Intervals hold the truth as often as they say: by simulation, see `benchmarks.coverage`."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from benchmarks.coverage import CASES, LEVELS, coverage


# The others, which compile for as long, are in the script.
@pytest.mark.parametrize("name", ["robust, outliers"])
def test_coverage(name):
    found = coverage(CASES[name], 8000)
    assert found.failed == 0
    # Of 8,000 sets a part of 68 % is known to 0.5 %.
    assert_allclose(found.parts, np.array(LEVELS)[:, None] + np.zeros((1, 3)), atol=0.02)
