r"""The matrix B of L-BFGS-B's quadratic, in two forms.

R. H. Byrd, J. Nocedal, R. B. Schnabel, "Representations of quasi-Newton matrices and their use
in limited memory methods", Math. Programming 63 (1994): with the pairs of a `Memory`,

    B = theta I - W M W^T,    W = [Y  theta S],    M^-1 = [ -D   L^T         ]      (3.5)
                                                          [  L   theta S^T S ]

D the diagonal of S^T Y and L the part of it below. That is `Compact`. For no more variables than
W has columns the matrix itself is the smaller, and it comes straight from the recursion

    B' = B - (B s) (B s)^T / s.B s + y y^T / s.y                                     (2.17)

taken through the pairs from theta I on. That is `Dense`, which keeps a digit more, too.
"""

from __future__ import annotations

import abc

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from ...jax_support.control_flow import fori_loop
from ...linalg import safe_divide, solve_positive
from .limited_memory import Memory, blocks


class Seen(eqx.Module):
    """A vector, and what B's form needs to know of it."""

    vector: Float[Array, " n"]
    image: Float[Array, " m2"]  # W^T times it, or (n,) B times it


class AbstractMatrix(eqx.Module):
    """B."""

    theta: Float[Array, ""]  # what it is without a pair

    @abc.abstractmethod
    def see(self, v: Float[Array, " n"]) -> Seen:
        """What `form` takes."""

    @abc.abstractmethod
    def form(self, a: Seen, b: Seen) -> Float[Array, ""]:
        """a^T B b."""

    @abc.abstractmethod
    def times(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """B v."""

    @abc.abstractmethod
    def solve(
        self, r: Float[Array, " n"], free: Bool[Array, " n"]
    ) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
        """B_F^-1 r among the ``free`` variables F, r = 0 outside; and if it is sound."""


def matrix_of(memory: Memory) -> AbstractMatrix:
    """The smaller of the two."""
    columns, n = memory.pairs.shape
    return Dense.of(memory) if n <= columns else Compact.of(memory)


class Dense(AbstractMatrix):
    """B written out."""

    matrix: Float[Array, "n n"]

    @staticmethod
    def of(memory: Memory) -> Dense:
        """By (2.17)."""
        steps, changes = memory.in_order()
        n = steps.shape[1]

        def update(k: Array, matrix: Array) -> Array:
            s, y = (lax.dynamic_index_in_dim(a, k, keepdims=False) for a in (steps, changes))
            image = matrix @ s
            lost = safe_divide(image, image @ s)
            won = safe_divide(y, y @ s)
            return matrix - jnp.outer(image, lost) + jnp.outer(y, won)

        start = memory.theta * jnp.eye(n, dtype=steps.dtype)
        return Dense(memory.theta, fori_loop(0, steps.shape[0], update, start))

    def see(self, v: Float[Array, " n"]) -> Seen:
        """See `AbstractMatrix`."""
        return Seen(v, self.matrix @ v)

    def form(self, a: Seen, b: Seen) -> Float[Array, ""]:
        """See `AbstractMatrix`."""
        return a.vector @ b.image

    def times(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """See `AbstractMatrix`."""
        return self.matrix @ v

    def solve(
        self, r: Float[Array, " n"], free: Bool[Array, " n"]
    ) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
        """See `AbstractMatrix`."""
        eye = jnp.eye(r.shape[0], dtype=r.dtype)
        step, pivot = solve_positive(
            jnp.where(free[:, None] & free[None, :], self.matrix, eye), r[:, None]
        )
        return step[:, 0], pivot > 0


class Compact(AbstractMatrix):
    """B by (3.5)."""

    memory: Memory
    middle: Float[Array, "m2 m2"]  # M
    sound: Bool[Array, ""]

    @staticmethod
    def of(memory: Memory) -> Compact:
        """With M by elimination."""
        d, lower, ss = _parts(memory)
        by_d = lower / d[None, :]  # L D^-1
        eye = jnp.eye(d.shape[0], dtype=d.dtype)
        inverse, pivot = solve_positive(memory.theta * ss + by_d @ lower.T, eye)
        off = inverse @ by_d
        corner = by_d.T @ off - eye / d[None, :]
        middle = jnp.block([[corner, off.T], [off, inverse]])
        return Compact(memory.theta, memory, middle, pivot > 0)

    @property
    def _weights(self) -> Float[Array, " k"]:
        """(1, theta) for the rows in use, 0 for the others, (2m,): W^T = these times the pairs."""
        of_s = jnp.where(self.memory.full, self.theta, 0)
        return jnp.concatenate([jnp.where(self.memory.full, jnp.ones_like(of_s), 0), of_s])

    def see(self, v: Float[Array, " n"]) -> Seen:
        """See `AbstractMatrix`."""
        return Seen(v, self._weights * self.memory.times(v))

    def form(self, a: Seen, b: Seen) -> Float[Array, ""]:
        """See `AbstractMatrix`."""
        return self.theta * (a.vector @ b.vector) - a.image @ (self.middle @ b.image)

    def times(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """See `AbstractMatrix`."""
        image = self.middle @ self.see(v).image
        return self.theta * v - self.memory.back(self._weights * image)

    def solve(
        self, r: Float[Array, " n"], free: Bool[Array, " n"]
    ) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
        """See `AbstractMatrix`.

        By Sherman, Morrison and Woodbury, r / theta + W_F p / theta^2 with

            [ -D - Y_F^T Y_F / theta   (L - S_F^T Y_F)^T ]  p = W_F^T r,    A the others.  (5.11)
            [  L - S_F^T Y_F            theta S_A^T S_A  ]

        The first half of p is eliminated with its sign changed: then all pivots are positive.
        """
        memory, theta, used = self.memory, self.theta, self.memory.full
        d, lower, _ = _parts(memory)
        yy_f, _, sy_f, ss_f = blocks(memory.gram_of(free), used)
        upper = yy_f / theta + jnp.diag(d)
        off = lower - sy_f
        under = theta * (memory.blocks()[3] - ss_f) + jnp.diag(jnp.where(used, 0, jnp.ones_like(d)))
        system = jnp.block([[upper, off.T], [-off, under]])
        p, pivot = solve_positive(system, self.see(r).image[:, None])
        p_y, p_s = jnp.split(p[:, 0], 2)
        back = memory.back(self._weights * jnp.concatenate([-p_y, p_s]))
        step = jnp.where(free, (r + back / theta) / theta, 0)
        return step, self.sound & (pivot > 0)


def _parts(memory: Memory) -> tuple[Float[Array, " k"], Float[Array, "k k"], Float[Array, "k k"]]:
    """D's diagonal, L and S^T S, with rows of the identity for empty slots."""
    _, _, sy, ss = memory.blocks()
    used, age = memory.full, memory.age
    d = jnp.where(used, jnp.diagonal(sy), 1)
    lower = jnp.where(age[:, None] > age[None, :], sy, 0)
    # 1 / theta, for it is theta S^T S that is used.
    return d, lower, ss + jnp.diag(jnp.where(used, 0, 1 / memory.theta))
