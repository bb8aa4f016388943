"""JAX's compilation cache on disk: what one process has compiled, the next one reads."""

import json
import os
import subprocess
import sys

import pytest

FITS = """
import json
import jax, jax.monitoring, jax.numpy as jnp, optx_lite as ox
found = {"hits": 0, "misses": 0}

def count(event, **_):
    for kind in found:
        found[kind] += event == f"/jax/compilation_cache/cache_{kind}"

jax.monitoring.register_event_listener(count)
t = jnp.linspace(0.0, 1.0, 20)
ox.least_squares(lambda p, y: p[0] * jnp.exp(-p[1] * t) - y, [1.0, 1.0], args=(jnp.exp(-t),))
ox.minimize(lambda x: jnp.sum((x - 3.0) ** 2), jnp.zeros(2), bounds=[(0.0, 1.0)] * 2)
ox.elementwise.find_root(lambda x, c: x**3 - c, (0.0, 3.0), args=(jnp.arange(1.0, 9.0),))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_has_compiled(tmp_path):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }

    def run():
        call = [sys.executable, "-c", FITS]
        return json.loads(subprocess.check_output(call, env=environment, text=True))

    first, second = run(), run()
    assert first["misses"] >= 3
    assert second["hits"] == first["misses"] + first["hits"]
    assert second["misses"] == 0
