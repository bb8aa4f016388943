r"""The limited memory of a quasi-Newton method, in compact form.

R. H. Byrd, J. Nocedal, R. B. Schnabel, "Representations of quasi-Newton matrices and their use
in limited memory methods", Math. Programming 63 (1994). The last m pairs of steps
s_k = x_{k+1} - x_k and changes y_k = g_{k+1} - g_k, as the columns of S and Y, make

    B = theta I - W M W^T,    W = [Y  theta S],    M^-1 = [ -D   L^T         ]      (3.5)
                                                          [  L   theta S^T S ]

D the diagonal of S^T Y and L the part of it below, theta = y.y / s.y of the newest pair.

The pairs lie in slots that are used in turn. Nothing here asks for their order but L, "s later
than y", and that is read from each slot's age; so a slot is never moved. Products with S and Y
are the expensive part, and what they give is kept: (Y S)^T (Y S) grows by two rows and columns
with each pair.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ..linalg import safe_divide, solve_positive


class Memory(eqx.Module):
    """The pairs, in slots, with their products."""

    pairs: Array  # (2m, n): rows y_0 ... y_{m-1}, s_0 ... s_{m-1}
    gram: Array  # (2m, 2m): products of all rows
    age: Array  # (m,) int: the later the larger, 0 for an empty slot
    theta: Array  # ()

    @staticmethod
    def empty(m: int, n: int, dtype: jnp.dtype) -> Memory:
        """No pairs."""
        pairs, gram = jnp.zeros((2 * m, n), dtype), jnp.zeros((2 * m, 2 * m), dtype)
        return Memory(pairs, gram, jnp.zeros(m, jnp.int32), jnp.ones((), dtype))

    @property
    def full(self) -> Array:
        """Which slots are in use, (m,)."""
        return self.age > 0

    def remember(self, step: Array, change: Array, wanted: Array) -> Memory:
        """With the pair in place of the oldest, where that is ``wanted``."""
        m, slot = self.age.shape[0], jnp.argmin(self.age)
        pairs, gram = self.pairs, self.gram
        for row, at in ((change, slot), (step, m + slot)):
            old = lax.dynamic_index_in_dim(pairs, at, keepdims=False)
            pairs = lax.dynamic_update_index_in_dim(pairs, jnp.where(wanted, row, old), at, 0)
        for row, at in ((change, slot), (step, m + slot)):
            here = jnp.arange(2 * m) == at
            products = pairs @ row
            new = jnp.where(here[:, None], products, jnp.where(here, products[:, None], gram))
            gram = jnp.where(wanted, new, gram)
        age = jnp.where(jnp.arange(m) == slot, jnp.max(self.age) + 1, self.age)
        return Memory(
            pairs=pairs,
            gram=gram,
            age=jnp.where(wanted, age, self.age),
            theta=jnp.where(wanted, safe_divide(change @ change, step @ change), self.theta),
        )

    def forget(self, wanted: Array) -> Memory:
        """Without any pair, where that is ``wanted``; theta stays."""
        return eqx.tree_at(lambda memory: memory.age, self, jnp.where(wanted, 0, self.age))

    def in_order(self) -> tuple[Array, Array]:
        """S and Y as rows, the oldest first; zeros, before all, for the empty slots."""
        order = jnp.argsort(self.age)
        used = self.full[order][:, None]
        changes, steps = jnp.split(self.pairs, 2)
        return jnp.where(used, steps[order], 0), jnp.where(used, changes[order], 0)

    # -- B ---------------------------------------------------------------------------------

    @property
    def _weights(self) -> Array:
        """(1, theta) for the rows in use, 0 for the others, (2m,): W^T = these times ``pairs``."""
        used = self.full
        return jnp.concatenate(
            [jnp.where(used, 1, 0).astype(self.theta.dtype), jnp.where(used, self.theta, 0)]
        )

    def times(self, v: Array) -> Array:
        """W^T v, (2m,)."""
        return self._weights * (self.pairs @ v)

    def back(self, p: Array) -> Array:
        """W p, (n,)."""
        return (self._weights * p) @ self.pairs

    def middle(self) -> tuple[Array, Array]:
        """M, (2m, 2m), and whether it is sound."""
        d, lower, ss = self._parts()
        by_d = lower / d  # L D^-1
        m = d.shape[0]
        eye = jnp.eye(m, dtype=d.dtype)
        inverse, pivot = solve_positive(self.theta * ss + by_d @ lower.T, eye)
        off = inverse @ by_d
        corner = by_d.T @ off - eye / d
        return jnp.block([[corner, off.T], [off, inverse]]), pivot > 0

    def solve_free(self, r: Array, free: Array | None) -> tuple[Array, Array]:
        """B_F^-1 r among the ``free`` variables F (None: all), r = 0 outside; and if it is sound.

        By Sherman, Morrison and Woodbury, 1/theta r + 1/theta^2 W_F K^-1 W_F^T r with

            K = [ -D - Y_F^T Y_F / theta   (L - S_F^T Y_F)^T ]
                [  L - S_F^T Y_F            theta S_A^T S_A  ],   A the others.           (5.11)
        """
        d, lower, _ = self._parts()
        used = self.full
        both = used[:, None] & used
        gram = self.gram
        if free is not None:
            rows = jnp.where(free, self.pairs, 0)
            gram = rows @ rows.T
        yy_f, _, sy_f, ss_f = _blocks(gram)
        ss_a = _blocks(self.gram)[3] - ss_f
        eye = jnp.eye(d.shape[0], dtype=d.dtype)
        a = jnp.where(both, yy_f, 0) / self.theta + eye * d
        c = lower - jnp.where(both, sy_f, 0)
        g = jnp.where(both, self.theta * ss_a, 0) + jnp.where(used, 0, eye)
        w = self.times(r)
        w_y, w_s = jnp.split(w, 2)
        inner, first = solve_positive(a, jnp.concatenate([c.T, w_y[:, None]], axis=1))
        rhs = w_s + c @ inner[:, -1]
        q, second = solve_positive(g + c @ inner[:, :-1], rhs[:, None])
        p = inner[:, :-1] @ q[:, 0] - inner[:, -1]
        step = (r + self.back(jnp.concatenate([p, q[:, 0]])) / self.theta) / self.theta
        step = step if free is None else jnp.where(free, step, 0)
        return step, (first > 0) & (second > 0)

    def _parts(self) -> tuple[Array, Array, Array]:
        """D's diagonal, L and S^T S, with rows of the identity for empty slots."""
        _, _, sy, ss = _blocks(self.gram)
        used = self.full
        both = used[:, None] & used
        eye = jnp.eye(used.shape[0], dtype=bool)
        later = self.age[:, None] > self.age
        d = jnp.where(used, jnp.sum(jnp.where(eye, sy, 0), axis=1), 1)
        lower = jnp.where(both & later, sy, 0)
        # 1 / theta, for it is theta S^T S that is used.
        ss = jnp.where(both, ss, jnp.where(eye, 1 / self.theta, 0))
        return d, lower, ss


def _blocks(gram: Array) -> tuple[Array, Array, Array, Array]:
    """Y^T Y, Y^T S, S^T Y and S^T S."""
    m = gram.shape[0] // 2
    return gram[:m, :m], gram[:m, m:], gram[m:, :m], gram[m:, m:]
