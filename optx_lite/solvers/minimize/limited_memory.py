r"""The limited memory of a quasi-Newton method.

The last m pairs of steps s_k = x_{k+1} - x_k and changes y_k = g_{k+1} - g_k, as the columns of
S and Y, make the matrix H of the BFGS recursion, begun with I / theta, where theta = y.y / s.y
of the newest pair. R. H. Byrd, J. Nocedal, R. B. Schnabel, "Representations of quasi-Newton
matrices and their use in limited memory methods", Math. Programming 63 (1994), write it as

    H = I / theta + [S  Y / theta] [ R^-T (D + Y^T Y / theta) R^-1   -R^-T ] [ S^T       ]
                                   [ -R^-1                            0    ] [ Y^T / theta ]  (2.6)

with R the upper triangle of S^T Y and D its diagonal. What is made of H^-1 = B in a box is in
`bfgs_matrix`.

The pairs lie in slots that are used in turn, and a slot is never moved: what asks for their
order is R, "s no later than y", and that is read from each slot's age. Products with S and Y are
the expensive part, and what they give is kept: (Y S)^T (Y S) grows by two rows and columns with
each pair. So does R^-1, for R is triangular: the oldest pair's row and column fall off, and the
newest adds the column

    R'^-1 = [ R^-1   -R^-1 (S^T y) / s.y ]                                              (1)
            [  0            1 / s.y      ]

That costs no digits: on quadratics of condition 1e12, H r is as near to the recursion in extended
precision as the usual two loops over the pairs come, and nothing has to be done in turn.

H does not change where a pair is divided by a number, s and y both. So each is kept in a unit of
its own, the power of two that makes s.y about 1: then y.y is the curvature of the pair and s.s its
inverse, and no product leaves the range of the dtype unless curvature^3/2 does.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from ...linalg import reciprocal, safe_divide, safe_sqrt, unit_of


class Memory(eqx.Module):
    """The pairs, in slots, with their products."""

    pairs: Float[Array, "m2 n"]  # : y_0, s_0, y_1, s_1 ..., in units of their own
    unit: Float[Array, " m"]  # what each pair was divided by
    gram: Float[Array, "m2 m2"]  # : products of all of them, y_0 ... y_{m-1}, s_0 ... s_{m-1}
    age: Int[Array, " m"]  # the later the larger, 0 for an empty slot
    theta: Float[Array, ""]
    inverse: Float[Array, "m m"]  # : R^-1, zero for empty slots

    @staticmethod
    def empty(m: int, n: int, dtype: DTypeLike) -> Memory:
        """No pairs."""
        pairs, gram = jnp.zeros((2 * m, n), dtype), jnp.zeros((2 * m, 2 * m), dtype)
        age, theta = jnp.zeros(m, jnp.int32), jnp.ones((), dtype)
        return Memory(pairs, jnp.ones(m, dtype), gram, age, theta, jnp.zeros((m, m), dtype))

    @property
    def full(self) -> Bool[Array, " k"]:
        """Which slots are in use, (m,)."""
        return self.age > 0

    def times(self, v: Float[Array, " n"]) -> Float[Array, " k"]:
        """(Y S)^T v, (2m,)."""
        return _sorted(self.pairs @ v)

    def back(self, p: Float[Array, " k"]) -> Float[Array, " n"]:
        """(Y S) p, (n,)."""
        return jnp.stack(jnp.split(p, 2), axis=1).reshape(-1) @ self.pairs

    def gram_of(self, free: Bool[Array, " n"]) -> Float[Array, "k k"]:
        """(Y S)^T (Y S) among the variables that are ``free``, (2m, 2m)."""
        rows = jnp.where(free[None, :], self.pairs, 0)
        return _sorted(_sorted(rows @ rows.T).T)

    def remember(
        self, step: Float[Array, " n"], change: Float[Array, " n"], wanted: Bool[Array, ""]
    ) -> Memory:
        """With the pair in place of the oldest, where that is ``wanted`` and s.y > 0."""
        m, slot = self.age.shape[0], jnp.argmin(self.age)
        step, change, unit = _balanced(step, change)
        along = step @ change
        theta = safe_divide(change @ change, along)
        wanted = wanted & (along > 0) & (theta > 0) & (theta < jnp.inf)
        # One write for both rows: XLA does it in place.
        old = lax.dynamic_slice_in_dim(self.pairs, 2 * slot, 2)
        pair = jnp.where(wanted, jnp.stack([change, step]), old)
        pairs = lax.dynamic_update_slice_in_dim(self.pairs, pair, 2 * slot, axis=0)
        gram = self.gram
        for row, at in ((change, slot), (step, m + slot)):
            here = jnp.arange(2 * m) == at
            products = _sorted(pairs @ row)
            new = jnp.where(here[None, :], products[:, None], gram)
            new = jnp.where(here[:, None], products[None, :], new)
            gram = jnp.where(wanted, new, gram)
        newest = jnp.arange(m) == slot
        inverse = jnp.where(newest[:, None] | newest[None, :], 0, self.inverse)
        added = -safe_divide(inverse @ gram[m:, slot], along)  # (1)
        added = jnp.where(newest, safe_divide(jnp.ones_like(along), along), added)
        inverse = jnp.where(newest[None, :], added[:, None], inverse)
        return Memory(
            pairs=pairs,
            unit=jnp.where(wanted & newest, unit, self.unit),
            gram=gram,
            age=jnp.where(wanted & newest, jnp.max(self.age) + 1, self.age),
            theta=jnp.where(wanted, theta, self.theta),
            inverse=jnp.where(wanted, inverse, self.inverse),
        )

    def forget(self, wanted: Bool[Array, ""]) -> Memory:
        """Without any pair, where that is ``wanted``; theta stays."""
        cleared = jnp.where(wanted, 0, self.age), jnp.where(wanted, 0, self.inverse)
        return eqx.tree_at(lambda memory: (memory.age, memory.inverse), self, cleared)

    def flatness(self) -> Float[Array, ""]:
        """Largest s.s / s.y, the inverse of the least curvature that was seen; 0 without pairs."""
        _, _, sy, ss = self.blocks()
        return jnp.max(safe_divide(jnp.diagonal(ss), jnp.diagonal(sy)))

    def steepest(self) -> Float[Array, ""]:
        """The largest |y|, 0 without pairs."""
        yy, _, _, _ = self.blocks()
        return jnp.max(safe_sqrt(jnp.diagonal(yy)) * self.unit)

    def widest(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """The largest |y|.|x|, 0 without pairs."""
        reaches = jnp.abs(self.pairs[::2]) @ jnp.abs(x)
        return jnp.max(jnp.where(self.full, reaches * self.unit, 0))

    def in_order(self) -> tuple[Float[Array, "k n"], Float[Array, "k n"]]:
        """S and Y as rows, the oldest first; zeros, before all, for the empty slots."""
        order = jnp.argsort(self.age)
        unit = jnp.where(self.full, self.unit, 0)[order][:, None]
        changes, steps = self.pairs[::2], self.pairs[1::2]
        return steps[order] * unit, changes[order] * unit

    def solve(self, r: Float[Array, " n"]) -> Float[Array, " n"]:
        """H r, by (2.6)."""
        yy, _, sy, _ = self.blocks()
        y_r, s_r = jnp.split(self.times(r), 2)
        p = self.inverse @ s_r
        q = self.inverse.T @ (jnp.diagonal(sy) * p + (yy @ p - y_r) / self.theta)
        return r / self.theta + self.back(jnp.concatenate([-p / self.theta, q]))

    def blocks(self) -> tuple[Array, Array, Array, Array]:
        """Y^T Y, Y^T S, S^T Y and S^T S, among the slots in use."""
        return blocks(self.gram, self.full)


def _balanced(
    step: Float[Array, " n"], change: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, ""]]:
    """The pair divided by a power of two, such that s.y is about 1, and that power."""
    of_step, of_change = unit_of(step), unit_of(change)
    longer = unit_of(jnp.sqrt(of_step * reciprocal(of_change)))
    unit = of_step * reciprocal(longer)
    return step * reciprocal(unit), change * reciprocal(unit), unit


def _sorted(products: Array) -> Array:
    """From the order of ``pairs``, along the first axis, to that of ``gram``."""
    return jnp.concatenate([products[::2], products[1::2]])


def blocks(gram: Array, used: Array) -> tuple[Array, Array, Array, Array]:
    """A matrix of products, zero for empty slots, cut into four."""
    m = used.shape[0]
    both = used[:, None] & used[None, :]
    cut = gram[:m, :m], gram[:m, m:], gram[m:, :m], gram[m:, m:]
    yy, ys, sy, ss = (jnp.where(both, block, 0) for block in cut)
    return yy, ys, sy, ss
