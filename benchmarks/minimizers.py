"""How each package is asked to minimise an `Objective`: see `peers` for least squares."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .objectives import Objective
from .peers import Contender, Solve, _jaxopt

MOST_STEPS = 20_000


def optx_lite(work: Objective, tol: float) -> Solve:
    solve = optx_lite_result(work, tol)
    return lambda x0, y: solve(x0, y).x


def optx_lite_result(work: Objective, tol: float) -> Solve:
    """The whole result, which also tells the evaluations."""
    import optx_lite as ox

    def solve(x0, y):
        return ox.minimize(
            work.model.value, x0, args=(y,), bounds=work.bounds,
            options={"ftol": tol * 1e-3, "gtol": tol, "maxfun": MOST_STEPS},
        )  # fmt: skip

    return solve


def scipy(work: Objective, tol: float) -> Solve:
    """NumPy functions, analytic gradient, one lane after the other."""
    from scipy import optimize

    def both(x, y):
        return work.model.value(x, y, np), work.model.gradient(x, y)

    def one(x0, y):
        return optimize.minimize(
            both, x0, (y,), "L-BFGS-B", True, bounds=work.bounds,
            options={"ftol": tol * 1e-3, "gtol": tol, "maxfun": MOST_STEPS, "maxiter": MOST_STEPS},
        ).x  # fmt: skip

    return lambda x0, y: one(x0, y) if x0.ndim == 1 else np.stack(list(map(one, x0, y)))


def jaxopt(algorithm: str) -> Callable[[Objective, float], Solve]:
    def make(work: Objective, tol: float) -> Solve:
        package = _jaxopt()
        scale = work.projected(np.atleast_2d(work.x0)[0], np.atleast_2d(work.y)[0])
        settings: dict[str, Any] = {"maxiter": MOST_STEPS, "tol": tol * scale}
        if algorithm == "ProjectedGradient":
            settings["projection"] = package.projection.projection_box
        solver = getattr(package, algorithm)(work.model.value, **settings)
        box = () if work.lower is None else ((jnp.asarray(work.lower), jnp.asarray(work.upper)),)
        return lambda x0, y: solver.run(x0, *box, y=y).params

    return make


def optimistix(algorithm: str) -> Callable[[Objective, float], Solve]:
    def make(work: Objective, tol: float) -> Solve:
        import optimistix as optx

        solver = getattr(optx, algorithm)(rtol=tol, atol=tol)

        def solve(x0, y):
            return optx.minimise(
                work.model.value, solver, x0, y, max_steps=MOST_STEPS, throw=False
            ).value

        return solve

    return make


def optax_lbfgs(work: Objective, tol: float) -> Solve:
    """The loop that optax's documentation shows."""
    import optax

    transformation = optax.lbfgs()
    scale = work.projected(np.atleast_2d(work.x0)[0], np.atleast_2d(work.y)[0])

    def solve(x0, y):
        fun = lambda x: work.model.value(x, y)
        both = optax.value_and_grad_from_state(fun)

        def step(carry):
            x, state = carry
            value, grad = both(x, state=state)
            updates, state = transformation.update(
                grad, state, x, value=value, grad=grad, value_fn=fun
            )
            return optax.apply_updates(x, updates), state

        def more(carry):
            state = carry[1]
            count = optax.tree_utils.tree_get(state, "count")
            grad = optax.tree_utils.tree_get(state, "grad")
            return (count == 0) | ((count < MOST_STEPS) & (jnp.max(jnp.abs(grad)) > tol * scale))

        return jax.lax.while_loop(more, step, (x0, transformation.init(x0)))[0]

    return solve


OURS = Contender("optx_lite L-BFGS-B", optx_lite, ours=True)
SCIPY = Contender("SciPy L-BFGS-B", scipy, in_jax=False)
BOUNDED = (OURS, Contender("jaxopt LBFGSB", jaxopt("LBFGSB")), SCIPY)
SMALL_BOUNDED = (
    OURS,
    Contender("jaxopt ProjectedGradient", jaxopt("ProjectedGradient")),
    *BOUNDED[1:],
)
FREE = (
    OURS,
    Contender("jaxopt LBFGS", jaxopt("LBFGS")),
    Contender("optax lbfgs", optax_lbfgs),
    Contender("optimistix LBFGS", optimistix("LBFGS")),
    SCIPY,
)
SMALL_FREE = (*FREE[:-1], Contender("optimistix BFGS", optimistix("BFGS")), SCIPY)
