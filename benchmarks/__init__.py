"""How well and how fast: ``make demo``, ``make bench``, and the problems both are run on."""

import os

# OpenBLAS, which JAX's QR and Cholesky call, has threads of its own. None of these fits gains by
# them, and on busy cores they wait for one another in a spin: a hundred times slower, for anyone.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
