"""Functions of one variable as Chebyshev series: values, derivatives, all roots, all extrema.

Examples
--------
>>> import jax.numpy as jnp, optx_lite as ox
>>> p = ox.chebyshev.proxy(lambda x: jnp.exp(-x) * jnp.sin(5 * x), 0.0, 2.0)
>>> print(p.roots().x.round(3))
[0.    0.628 1.257 1.885]
"""

from .least_squares import Fit as Fit
from .least_squares import fit as fit
from .proxy import Proxy as Proxy
from .proxy import proxy as proxy
from .results import MinimumResult as MinimumResult
from .results import PointsResult as PointsResult
from .search import extrema as extrema
from .search import minimum as minimum
from .search import roots as roots
from .smoothing import Smooth as Smooth
from .smoothing import smooth as smooth
