"""One of two processes with four simulated devices each: what `test_distributed` runs.

``python on_two_processes.py RANK PORT FILE``. A fit whose data are spread over all eight devices,
and whose Jacobian is too ill conditioned for normal equations. Writes, as JSON, the answer and the
sizes of what is gathered from the devices.
"""

import json
import math
import re
import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optx_lite as ox

M, N = 960, 7
T = np.linspace(0.0, 1.0, M)
Y = np.cos(5 * T) + 0.01 * np.random.default_rng(0).normal(size=M)


def residuals(p, t, y):
    """Monomials depend on each other nearly; and a little curved."""
    fitted = sum(p[k] * (1 + t) ** k for k in range(N))
    return fitted + 0.1 * fitted**2 - y


def main(rank, port, file):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("d"))
    data = [jax.make_array_from_callback(a.shape, spread, lambda at, a=a: a[at]) for a in (T, Y)]
    solve = jax.jit(
        lambda t, y: ox.least_squares(residuals, np.zeros(N), args=(t, y), method="lm").x,
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    program = solve.lower(*data).compile()
    gathers = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", program.as_text())
    sizes = [math.prod(int(k) for k in shape.split(",") if k) for shape in gathers]
    x = program(*data)
    with open(file, "w") as out:
        json.dump({"x": np.asarray(x).tolist(), "gathered": sizes}, out)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(int(sys.argv[1]), *sys.argv[2:])
