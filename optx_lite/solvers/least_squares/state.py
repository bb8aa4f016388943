"""Where a trust-region solver stands: records of arrays, and nothing else."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...linalg import CorrectionStep, diagonal, reciprocal, safe_sqrt, solve_transposed


class Model(eqx.Module):
    """The weighted quadratic model at the current point, in units of s and u, see `trust_region`.

    0.5 || J p + f ||^2 + 0.5 (w . p)^2, in which a parameter without effect rests: its column of R
    is 0.
    """

    units: Array  # (n,) u
    rows: Array  # (n, m) transposed weighted Jacobian J^T
    secant: Array  # (n,) w
    lengths: Array  # (n,) norms of the columns of J
    upper: Array  # (n, n) triangular factor R of J with w as one more row
    qtf: Array  # (n,) Q^T f
    grad: Array  # (n,) J^T f

    @property
    def columns(self) -> Array:
        """Squared norms of the columns of R, (n,): the curvature along each variable."""
        return jnp.sum(self.upper * self.upper, axis=0)

    @property
    def singular(self) -> Array:
        """Whether columns of J depend on each other."""
        return jnp.any((diagonal(self.upper) == 0) & (self.columns > 0))


class Trial(eqx.Module):
    """A point to be evaluated and what the model expects there."""

    x: Array  # (n,)
    length: Array  # () of the step, in the metric of the trust region
    predicted: Array  # () reduction of the cost, in units of s^2
    limited: Array  # () bool: the trust region, or in dogbox a bound, cut the step short
    damping: Array  # () Levenberg-Marquardt parameter, a first guess for the next
    radius: Array  # () trust radius in which it was proposed
    corrected: Array  # () bool: it is a `Correction`

    def or_corrected(self, failed: Trial) -> Trial:
        """Where this is a correction: the step that failed, and where it leads now."""
        bent = eqx.tree_at(lambda t: (t.x, t.corrected), failed, (self.x, self.corrected))
        return jax.tree.map(lambda a, b: jnp.where(self.corrected, a, b), bent, self)


class Correction(eqx.Module):
    """The step c that a failed trial asks for, see `trust_region`."""

    wanted: Array  # () bool
    start: Array  # (n,) the failed trial, from which c goes
    grad: Array  # (n,) J^T r, r what the linear model missed there
    damping: Array  # () alpha of the failed step
    longest: Array  # () c may be, in the metric

    def as_step(self, upper: Array) -> CorrectionStep:
        """c as a step for `solve_trust_region`: J^T r = R^T q."""
        qtf = solve_transposed(upper, self.grad)
        return CorrectionStep(wanted=self.wanted, qtf=qtf, alpha=self.damping, longest=self.longest)


class State(eqx.Module):
    """The solver between two evaluations; x and the trial are the user's, the rest in units."""

    x: Array  # (n,) best point
    f: Array  # (m,) its true residuals
    cost: Array  # () in units of s^2; inf before the first evaluation
    unit: Array  # () s
    model: Model
    lengths: Array  # (n,) largest norm that each column of J has had
    scale: Array  # (n,) D^-1: the size of each variable
    radius: Array  # () trust radius
    trial: Trial
    size: Array  # () of the Gauss-Newton step from x, relative to x
    last_size: Array  # () of the one before
    pending: Array  # () status of the test which opened the last phase, 0 before
    probing: Array  # () what the trial is there to look for, see `convergence`; 0: for less
    hope: Array  # () the reduction that failed trials leave possible; inf if none of them tells
    refused: Array  # () trials with a lower cost that were not taken, as they lay on a plateau
    slow: Array  # () evaluations since the trust region was last out of the way
    switches: Array  # () how often the scaling has been changed: odd, the fallback is in force
    nfev: Array  # () evaluations of f
    nit: Array  # () steps that were taken
    status: Array  # () 0 while it runs

    @property
    def fnorm(self) -> Array:
        """Root of twice the cost: the norm of f when the loss is linear."""
        return safe_sqrt(2 * self.cost)

    @property
    def gradient(self) -> Array:
        """Of the cost, (n,), in the user's units."""
        return self.model.grad * self.unit * reciprocal(self.model.units) * self.unit
