"""Where a trust-region solver stands: records of arrays, and nothing else."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PyTree

from ...linalg import safe_sqrt
from .model import LinearModel, gradient_in


class Trial(eqx.Module):
    """A point to be evaluated and what the model expects there."""

    x: Float[Array, " n"]
    length: Float[Array, ""]  # of the step, in the metric of the trust region
    predicted: Float[Array, ""]  # reduction of the cost, in units of s^2
    limited: Bool[Array, ""]  # the trust region, or in dogbox a bound, cut the step short
    damping: Float[Array, ""]  # Levenberg-Marquardt parameter, a first guess for the next
    radius: Float[Array, ""]  # trust radius in which it was proposed
    corrected: Bool[Array, ""]  # it is a `Correction`

    def or_corrected(self, failed: Trial) -> Trial:
        """Where this is a correction: the step that failed, and where it leads now."""
        bent = eqx.tree_at(lambda t: (t.x, t.corrected), failed, (self.x, self.corrected))
        return jax.tree.map(lambda a, b: jnp.where(self.corrected, a, b), bent, self)


class State(eqx.Module):
    """The solver between two evaluations; x, trial and goal are the user's, the rest in units."""

    x: Float[Array, " n"]  # best point
    f: Float[Array, " m"]  # its true residuals
    cost: Float[Array, ""]  # in units of s^2; inf before the first evaluation
    unit: Float[Array, ""]  # s
    model: LinearModel
    longest: Float[Array, " n"]  # largest norm that each column of J has had
    scale: Float[Array, " n"]  # D^-1: the size of each variable
    radius: Float[Array, ""]  # trust radius
    trial: Trial
    goal: Float[Array, " n"] | None  # where the model's last step led; None: it is not needed
    size: Float[Array, ""]  # of the Gauss-Newton step from x, relative to x
    last_size: Float[Array, ""]  # of the one before
    pending: Int[Array, ""]  # status of the test which opened the last phase, 0 before
    probing: Int[Array, ""]  # what the trial is there to look for, see `plateau`; 0: for less cost
    dead: Bool[Array, " n"]  # parameters whose effects a probe is to bring back
    possible: Float[Array, ""]  # the reduction that failed trials leave possible; inf: none says
    refused: Int[Array, ""]  # trials with a lower cost, not taken as they lay on a plateau
    slow: Int[Array, ""]  # evaluations since the trust region was last out of the way
    switches: Int[Array, ""]  # changes of the scaling: odd, the fallback is in force
    nfev: Int[Array, ""]  # evaluations of f
    nit: Int[Array, ""]  # steps that were taken
    status: Int[Array, ""]  # 0 while it runs

    @property
    def fnorm(self) -> Float[Array, ""]:
        """Root of twice the cost: the norm of f when the loss is linear."""
        return safe_sqrt(2 * self.cost)

    @property
    def gradient(self) -> Float[Array, " n"]:
        """Of the cost, (n,), in the user's units."""
        return gradient_in(self.model, self.unit)


def initial_state(x0: Float[Array, " n"], m: int, model: LinearModel, with_goal: bool) -> State:
    """Nothing evaluated yet; x0 is the first trial, m the number of residuals."""
    n, dtype = x0.shape[0], x0.dtype

    def constant(
        value: int | float, shape: tuple[int, ...] = (), dtype: DTypeLike = dtype
    ) -> PyTree:
        return np.full(shape, value, dtype)  # NumPy's: nothing to do at run time

    zero, zeros, infinite = constant(0), constant(0, (n,)), constant(np.inf)
    no, none = constant(False, dtype=bool), constant(0, dtype=np.int32)
    state = State(
        x=x0,
        f=constant(0, (m,)),
        cost=infinite,
        unit=constant(1),
        model=model,
        longest=zeros,
        scale=zeros + 1,
        radius=infinite,
        trial=Trial(
            x=x0,
            length=zero,
            predicted=zero,
            limited=no,
            damping=zero,
            radius=infinite,
            corrected=no,
        ),
        goal=x0 if with_goal else None,
        size=infinite,
        last_size=infinite,
        pending=none,
        probing=none,
        dead=constant(False, (n,), bool),
        possible=infinite,
        refused=none,
        slow=none,
        switches=none,
        nfev=none,
        nit=none,
        status=none,
    )
    return jax.tree.map(jnp.asarray, state)
