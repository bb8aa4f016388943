"""How each package is asked to solve a workload: `optx_lite`, and those it is measured beside.

A contender that works inside JAX is made by ``make(workload, tol)`` and gives x for one
(x0, y); `speed` puts it under jit, vmap or grad. SciPy's is a loop over the lanes.
A package is imported when its contender is made, so that a missing one is only left out.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .workloads import Workload

MOST_STEPS = 2000
CHUNK = 100  # lanes at a time, where lanes are worked in chunks

Solve = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Contender:
    """A package's way to solve: its name in the table, and how to make it."""

    name: str
    make: Callable[[Workload, float], Solve]
    in_jax: bool = True
    chunked: bool = False
    ours: bool = False


# -- optx_lite -----------------------------------------------------------------------------


def optx_lite(method: str) -> Callable[[Workload, float], Solve]:
    def make(work: Workload, tol: float) -> Solve:
        solve = optx_lite_result(method, work, tol)
        return lambda x0, y: solve(x0, y).x

    return make


def optx_lite_result(method: str, work: Workload, tol: float) -> Solve:
    """The whole `Result`, which also tells the evaluations."""
    import optx_lite as ox

    t = jnp.asarray(work.t)

    def solve(x0, y):
        return ox.least_squares(
            work.residuals, x0, args=(t, y), bounds=work.bounds, method=method,
            ftol=tol, xtol=tol, gtol=tol, max_nfev=MOST_STEPS,
        )  # fmt: skip

    return solve


# -- the peers -----------------------------------------------------------------------------


def scipy(method: str) -> Callable[[Workload, float], Solve]:
    """NumPy functions, analytic Jacobian, one lane after the other."""

    def make(work: Workload, tol: float) -> Solve:
        from scipy import optimize

        t, scale = work.t, "jac" if method == "lm" else 1.0

        def jacobian(x, t, y, xp):  # SciPy hands it whatever the residuals get
            return work.model.jacobian(x, t, y)

        def one(x0, y):
            return optimize.least_squares(
                work.residuals, x0, jacobian, work.bounds, method, tol, tol, tol, scale,
                args=(t, y, np), max_nfev=MOST_STEPS,
            ).x  # fmt: skip

        return lambda x0, y: one(x0, y) if x0.ndim == 1 else np.stack(list(map(one, x0, y)))

    return make


def optimistix(algorithm: str) -> Callable[[Workload, float], Solve]:
    def make(work: Workload, tol: float) -> Solve:
        import optimistix as optx

        solver = getattr(optx, algorithm)(rtol=tol, atol=tol)
        t = jnp.asarray(work.t)

        def solve(x0, y):
            return optx.least_squares(
                lambda x, y: work.residuals(x, t, y),
                solver,
                x0,
                y,
                max_steps=MOST_STEPS,
                throw=False,
            ).value

        return solve

    return make


def jaxopt_lm(work: Workload, tol: float) -> Solve:
    jaxopt = _jaxopt()
    t = jnp.asarray(work.t)
    solver = jaxopt.LevenbergMarquardt(
        lambda x, y: work.residuals(x, t, y), maxiter=MOST_STEPS, tol=tol,
        solver="cholesky", materialize_jac=True,
    )  # fmt: skip
    return lambda x0, y: solver.run(x0, y).params


def jaxopt_in_box(algorithm: str) -> Callable[[Workload, float], Solve]:
    def make(work: Workload, tol: float) -> Solve:
        jaxopt = _jaxopt()
        t = jnp.asarray(work.t)

        def cost(x, y):
            f = work.residuals(x, t, y)
            return 0.5 * jnp.sum(f * f)

        def by_projection(x0, y):
            solver = jaxopt.ProjectedGradient(
                cost, jaxopt.projection.projection_box, maxiter=MOST_STEPS, tol=tol
            )  # fmt: skip
            return solver.run(x0, _box(work, x0), y=y).params

        def by_lbfgsb(x0, y):
            solver = jaxopt.LBFGSB(cost, maxiter=MOST_STEPS, tol=tol)
            return solver.run(x0, _box(work, x0), y=y).params

        return {"ProjectedGradient": by_projection, "LBFGSB": by_lbfgsb}[algorithm]

    return make


def _box(work: Workload, x0: jax.Array) -> tuple[jax.Array, jax.Array]:
    lower, upper = (jnp.full(x0.shape, bound, x0.dtype) for bound in work.bounds)
    return lower, upper


def _jaxopt() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import jaxopt
    return jaxopt


def nlls_gram(work: Workload, tol: float) -> Solve:
    from nlls_gram import LevenbergMarquardt

    t = jnp.asarray(work.t)
    solver = LevenbergMarquardt(lambda x, _, y: work.residuals(x, t, y))

    def solve(x0, y):
        # Near the solution no step is accepted any more, and then xtol alone never ends it.
        return solver.solve(x0, None, p=y, max_steps=MOST_STEPS, xtol=tol, gtol=tol).x

    return solve


# -- the limit -----------------------------------------------------------------------------


def limit(work: Workload, steps: np.ndarray) -> Callable[[Any, Any], Any]:
    """What no solver can do without: f, J and a small Cholesky, once for each evaluation.

    ``steps`` are the evaluations that our solver took, a number for each lane. Lanes of equal
    length are worked together, in chunks, so that none waits for another.
    """
    t = jnp.asarray(work.t)

    def step(_, carry):
        x, y = carry
        f, push = jax.linearize(lambda x: work.residuals(x, t, y), x)
        jacobian = jax.vmap(push, out_axes=1)(jnp.eye(x.size, dtype=x.dtype))
        p = solve_normal(jacobian.T @ jacobian, jacobian.T @ f)
        return x - p, y

    def run(x0, y, count):
        return jax.lax.fori_loop(0, count, step, (x0, y))[0]

    if not work.batched:
        return jax.jit(lambda x0, y: run(x0, y, jnp.asarray(steps)))
    order = np.argsort(steps, kind="stable")
    chunks = order.reshape(-1, np.gcd(CHUNK, len(order)))
    most = jnp.asarray(np.asarray(steps)[chunks].max(axis=1))
    together = jax.vmap(run, in_axes=(0, 0, None))
    return jax.jit(lambda x0, y: jax.lax.map(lambda a: together(*a), (x0[chunks], y[chunks], most)))


def solve_normal(gram: jax.Array, rhs: jax.Array) -> jax.Array:
    """By Cholesky; written out where that vectorises over lanes."""
    n = rhs.size
    if n > 8:
        return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram), rhs)
    rows: list[list[Any]] = []  # of the factor L
    half: list[Any] = []  # L half = rhs
    for i in range(n):
        row: list[Any] = []
        for j in range(i):
            row.append(
                (gram[i, j] - sum(a * b for a, b in zip(row, rows[j], strict=False))) / rows[j][j]
            )
        row.append(jnp.sqrt(gram[i, i] - sum(a * a for a in row)))
        half.append((rhs[i] - sum(a * b for a, b in zip(row, half, strict=False))) / row[i])
        rows.append(row)
    x: list[Any] = [None] * n
    for i in reversed(range(n)):
        x[i] = (half[i] - sum(rows[j][i] * x[j] for j in range(i + 1, n))) / rows[i][i]
    return jnp.stack(x)


# -- who takes part ------------------------------------------------------------------------

FREE = (
    Contender("optx_lite lm", optx_lite("lm"), ours=True),
    Contender("optx_lite trf", optx_lite("trf"), ours=True),
    Contender("optimistix GN", optimistix("GaussNewton")),
    Contender("optimistix LM", optimistix("LevenbergMarquardt")),
    Contender("jaxopt LM cholesky", jaxopt_lm),
    Contender("nlls-gram LM", nlls_gram),
    Contender("SciPy lm", scipy("lm"), in_jax=False),
    Contender("SciPy trf", scipy("trf"), in_jax=False),
)
BOUNDED = (
    Contender("optx_lite trf", optx_lite("trf"), ours=True),
    Contender("optx_lite dogbox", optx_lite("dogbox"), ours=True),
    Contender("jaxopt ProjectedGradient", jaxopt_in_box("ProjectedGradient")),
    Contender("jaxopt LBFGSB", jaxopt_in_box("LBFGSB")),
    Contender("SciPy trf", scipy("trf"), in_jax=False),
    Contender("SciPy dogbox", scipy("dogbox"), in_jax=False),
)


def in_chunks(contender: Contender) -> Contender:
    """The same, its lanes worked in chunks which fit the cache and do not wait for the slowest."""
    name = f"{contender.name}, in chunks"
    return Contender(name, contender.make, chunked=True, ours=contender.ours)


def for_batches(
    contenders: tuple[Contender, ...], chunked: tuple[str, ...]
) -> tuple[Contender, ...]:
    pairs = ((c, in_chunks(c)) if c.name in chunked else (c,) for c in contenders)
    return tuple(contender for pair in pairs for contender in pair)


# optx_lite cuts its lanes into chunks by itself.
FREE_BATCH = for_batches(FREE, ("jaxopt LM cholesky", "nlls-gram LM"))
BOUNDED_BATCH = for_batches(BOUNDED, ("jaxopt LBFGSB",))
