"""Large problems beside SciPy: ``python -m benchmarks.large [PART ...]``.

Parts: ``bundle`` (bundle adjustment; beside SciPy's cookbook recipe with ``scipy``, which takes a
quarter of a minute a file), ``slam`` (a pose graph, its pattern found by asdex), ``broyden``
(n = 1e4, 1e5, 1e6 with bounds), ``obstacle`` (n = 40,000), ``devices`` (weak scaling on simulated
devices). Data are read where OPTX_LITE_DATA, or a folder shared/data beside the repository, has
them; else problems of the same shape are simulated.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.sparse.linalg

import optx_lite as ox

from .problems import large

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(os.environ.get("OPTX_LITE_DATA", BESIDE))
GRADIENT_STEP = 1e-4


def timed(run, times=3):
    """What a call gives, the wall and the processor's time of the fastest, in seconds."""
    best = (np.inf, np.inf)
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        out = jax.block_until_ready(run())
        best = min(
            best, (time.perf_counter() - wall, time.process_time() - cpu), key=lambda t: t[1]
        )
    return out, *best


def compiled(fun, *args):
    """A program, and how long it took to make, in processor time."""
    begun = time.process_time()
    program = jax.jit(fun).lower(*args).compile()
    return program, time.process_time() - begun


def bundles():
    """Name and problem, of files or simulated."""
    files = sorted((DATA / "bal").glob("problem-*.txt*"))
    if not files:
        yield "simulated", large.simulated_bundle(cameras=40, points=5000, sees=0.15)
    for file in files:
        yield file.name.split("-pre")[0], large.bundle(file)


def bundle() -> None:
    """In float64 and float32, by squares and Huber's loss, with SciPy's settings."""
    for name, problem in bundles():
        for dtype, loss in (("float64", "linear"), ("float32", "linear"), ("float64", "huber")):
            given = problem.astype(dtype)
            for nfev in (10, 100) if (dtype, loss) == ("float64", "linear") else (100,):
                solve = lambda x0, seen, given=given, loss=loss, nfev=nfev: ox.least_squares(
                    given.residuals, x0, args=(seen,), jac_sparsity=given.pattern, loss=loss,
                    x_scale="jac", ftol=1e-4, max_nfev=nfev,
                )  # fmt: skip
                program, making = compiled(solve, given.x0, given.seen)
                res, wall, cpu = timed(lambda p=program, g=given: p(g.x0, g.seen))
                print(
                    f"{name} {dtype} {loss}: 2 cost {2 * float(res.cost):.2f}, nfev {res.nfev}, "
                    f"status {res.status}, {wall:.2f} s, cpu {cpu:.2f} s, compiled in {making:.1f}",
                    flush=True,
                )
        if "scipy" in sys.argv:
            for loss in ("linear", "huber"):
                scipys_recipe(name, problem, loss)


def scipys_recipe(name: str, problem: large.Bundle, loss: str) -> None:
    """The cookbook's: differences by a sparsity, LSMR; residuals as there, on NumPy's arrays."""
    rows, cols = problem.pattern
    shape = 2 * problem.camera.size, problem.x0.size
    pattern = scipy.sparse.coo_array((np.ones(rows.size, int), (rows, cols)), shape).tolil()
    wall, cpu = time.perf_counter(), time.process_time()
    res = scipy.optimize.least_squares(
        lambda x: _numpy_residuals(problem, x), problem.x0, jac_sparsity=pattern, x_scale="jac",
        ftol=1e-4, method="trf", loss=loss,
    )  # fmt: skip
    print(
        f"{name} SciPy's recipe, {loss}: 2 cost {2 * res.cost:.2f}, nfev {res.nfev}, "
        f"{time.perf_counter() - wall:.2f} s, cpu {time.process_time() - cpu:.2f} s",
        flush=True,
    )


def _numpy_residuals(problem: large.Bundle, x: np.ndarray) -> np.ndarray:
    cameras = x[: large.OF_CAMERA * problem.cameras].reshape(-1, large.OF_CAMERA)[problem.camera]
    points = x[large.OF_CAMERA * problem.cameras :].reshape(-1, large.OF_POINT)[problem.point]
    theta = np.linalg.norm(cameras[:, :3], axis=1)[:, None]
    with np.errstate(invalid="ignore"):
        axis = np.nan_to_num(cameras[:, :3] / theta)
    dot = np.sum(points * axis, axis=1)[:, None]
    turned = np.cos(theta) * points + np.sin(theta) * np.cross(axis, points)
    turned = turned + dot * (1 - np.cos(theta)) * axis + cameras[:, 3:6]
    flat = -turned[:, :2] / turned[:, 2:]
    r2 = np.sum(flat**2, axis=1)
    scale = cameras[:, 6] * (1 + cameras[:, 7] * r2 + cameras[:, 8] * r2**2)
    return (flat * scale[:, None] - problem.seen).ravel()


def slam() -> None:
    """From the file's start; the pattern is found in the residuals' program."""
    file = DATA / "slam2d" / "M3500.g2o"
    graph = large.pose_graph(file) if file.exists() else large.simulated_pose_graph()
    x0 = jnp.asarray(graph.x0)
    for method in ("trf", "lm"):
        run = lambda method=method: ox.least_squares(
            graph.residuals, x0, jac_sparsity="auto", method=method
        )
        res, wall, cpu = timed(run, 2)
        print(
            f"{file.stem if file.exists() else 'simulated'} {method}: sum of squares "
            f"{2 * res.cost:.4f}, nfev {res.nfev}, status {res.status}, {wall:.2f} s, cpu {cpu:.2f}"
        )


def broyden() -> None:
    """Free and in a box; the gradient of |x|^2 by a factor in the system, and by differences."""
    for n in (10_000, 100_000, 1_000_000):
        for name, settings in {
            "free": {}, "box": {"bounds": (-2.0, 0.5)}, "matrix-free": {"jac": "matrix-free"},
        }.items():  # fmt: skip
            pattern = {} if "jac" in settings else {"jac_sparsity": 1}
            solve = lambda x0, s=settings, p=pattern: ox.least_squares(large.broyden, x0, **s, **p)
            program, making = compiled(solve, -jnp.ones(n))
            res, wall, cpu = timed(lambda p=program, n=n: p(-jnp.ones(n)))
            memory = program.memory_analysis()
            used = (
                "" if memory is None else f", {memory.temp_size_in_bytes / n:.0f} bytes a variable"
            )
            print(
                f"n = {n} {name}: cost {res.cost:.1e}, nfev {res.nfev}, {wall * 1e3:.0f} ms, "
                f"cpu {cpu * 1e3:.0f} ms, compiled in {making:.1f} s{used}",
                flush=True,
            )
    n = 100_000
    scaled = lambda x, c: large.broyden(x) + 0.1 * (c - 1)
    size = jax.jit(
        lambda c: jnp.sum(ox.least_squares(scaled, -jnp.ones(n), args=(c,), jac_sparsity=1).x ** 2)
    )
    exact = float(jax.grad(size)(1.0))
    h = GRADIENT_STEP
    print(f"gradient {exact:.8g}, by differences {float(size(1 + h) - size(1 - h)) / (2 * h):.8g}")


def obstacle(side: int = 200) -> None:
    """Beside an active-set method with sparse factorisations."""
    pattern = large.laplace_pattern(side)
    floor = large.obstacle(side)

    def solve(height):
        low = large.obstacle(side, height)
        return ox.least_squares(
            large.differences, jnp.maximum(low, 0), bounds=(low, jnp.inf), method="dogbox",
            jac_sparsity=pattern,
        )  # fmt: skip

    program, _ = compiled(solve, 1.0)
    res, wall, cpu = timed(lambda: program(1.0), 1)
    begun = time.process_time()
    exact = primal_dual(np.asarray(floor), side)
    print(
        f"n = {side**2}: status {res.status}, nfev {res.nfev}, {wall:.2f} s, cpu {cpu:.2f} s; "
        f"reference {time.process_time() - begun:.2f} s; largest difference "
        f"{np.abs(np.asarray(res.x) - exact).max():.1e}, touching {int(jnp.sum(res.active_mask != 0))}"
    )
    moved = jax.jvp(lambda h: jnp.sum(solve(h).x), (1.0,), (1.0,))[1]
    h = GRADIENT_STEP
    ends = [primal_dual(np.asarray(large.obstacle(side, 1 + s)), side).sum() for s in (h, -h)]
    print(
        f"d volume / d height {float(moved):.6g}, by differences {(ends[0] - ends[1]) / (2 * h):.6g}"
    )


def primal_dual(floor: np.ndarray, side: int) -> np.ndarray:
    """The membrane, by active sets (M. Hintermueller, K. Ito and K. Kunisch, 2003)."""
    second = scipy.sparse.diags_array([2.0, -1.0, -1.0], offsets=[0, 1, -1], shape=(side, side))
    eye = scipy.sparse.eye_array(side)
    stiff = (scipy.sparse.kron(second, eye) + scipy.sparse.kron(eye, second)).tocsr()
    active = floor > 0
    while True:
        u, free = floor.copy(), np.flatnonzero(~active)
        rhs = -(stiff[:, np.flatnonzero(active)] @ floor[active])[free]
        u[free] = scipy.sparse.linalg.spsolve(stiff[free][:, free].tocsc(), rhs)
        force = stiff @ u
        force[free] = 0
        new = force > u - floor
        if np.array_equal(new, active):
            return u
        active = new


def devices() -> None:
    """A fit of 10 parameters to 200,000 data a device; each number in a process of its own."""
    for count in (1, 2, 4, 8):
        flags = f"--xla_force_host_platform_device_count={count}"
        call = [sys.executable, "-m", "benchmarks.large", "one-scaling"]
        subprocess.run(call, env={**os.environ, "XLA_FLAGS": flags}, check=True)


def one_scaling() -> None:
    """On the devices that there are."""
    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    t = np.linspace(0, 1, 200_000 * count)
    y = np.cos(5 * t) + 0.01 * np.random.default_rng(0).normal(size=t.size)

    def residuals(p, t, y):
        return sum(p[k] * jnp.cos(k * t + 0.01 * p[k]) for k in range(10)) - y

    solve = lambda t, y: ox.least_squares(residuals, np.zeros(10), args=(t, y)).x
    data = jax.device_put(t, spread), jax.device_put(y, spread)
    program, _ = compiled(solve, *data)
    _, wall, cpu = timed(lambda: program(*data))
    print(f"{count} devices, m = {t.size}: {wall:.2f} s, cpu {cpu:.2f} s", flush=True)


PARTS = {
    "bundle": bundle, "slam": slam, "broyden": broyden, "obstacle": obstacle, "devices": devices,
    "one-scaling": one_scaling,
}  # fmt: skip


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    wanted = [part for part in sys.argv[1:] if part in PARTS]
    for part in wanted or [part for part in PARTS if part != "one-scaling"]:
        PARTS[part]()


if __name__ == "__main__":
    main()
