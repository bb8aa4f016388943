"""The size of each variable, by which a trust region is shaped, and the change of it.

No scaling wins everywhere: the columns of J on badly scaled parameters, 1 on functions whose
columns change by orders of magnitude. Unless the user chose one, the solver goes over to the other
after some evaluations in which the trust region was in the way and the cost did not fall by a
tenth, with more patience after each second time, and once before it gives up.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...linalg import reciprocal, unit_of

FALL = 0.9  # of the cost: a trust region in which it falls below that is not in the way


class Scaling(eqx.Module):
    """How D^-1 is chosen.

    Attributes
    ----------
    x_scale : array (n,) or None
        The user's; None: the solver's own.
    from_jacobian : bool, static
        From the columns of J and from nothing else.
    jacobian_first : bool, static
        Which of its own the solver begins with: the columns of J, or 1.
    patience : int, static
        Evaluations before the first change.
    """

    x_scale: Array | None
    from_jacobian: bool = eqx.field(static=True)
    jacobian_first: bool = eqx.field(static=True)
    patience: int = eqx.field(static=True)

    @property
    def switches(self) -> bool:
        """Whether the scaling is the solver's to choose."""
        return self.x_scale is None and not self.from_jacobian

    @property
    def constant(self) -> bool:
        """Whether it stays as it is at x0."""
        return self.x_scale is not None and not self.from_jacobian

    def scale(
        self, switches: Int[Array, ""], longest: Float[Array, " n"], units: Float[Array, " n"]
    ) -> Float[Array, " n"]:
        """D^-1 in units, of columns which have had these ``longest`` norms."""
        by_jacobian = _inverse(longest)
        if self.from_jacobian:
            return by_jacobian
        # The user's, or 1; a common factor, which says nothing, keeps it in range.
        given = reciprocal(units) * (1.0 if self.x_scale is None else self.x_scale)
        given = given * reciprocal(unit_of(given))
        if not self.switches:
            return given
        return jnp.where((switches % 2 == 1) != self.jacobian_first, by_jacobian, given)

    def after(
        self,
        slow: Int[Array, ""],
        switches: Int[Array, ""],
        accepted: Bool[Array, ""],
        limited: Bool[Array, ""],
        fell: Bool[Array, ""],
    ) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """Evaluations with the trust region in the way, and changes, after a trial.

        ``limited``: whether the region cut it short; ``fell``: whether the cost did.
        """
        slow = jnp.where(accepted & (~limited | fell), 0, slow + 1)
        if not self.switches:
            return slow, switches
        # With more and more patience, or two unsuitable scalings would take turns for ever.
        change = accepted & (slow >= self.patience * (1 + switches // 2))
        return jnp.where(change, 0, slow), switches + change.astype(jnp.int32)


def _inverse(norms: Float[Array, " n"]) -> Float[Array, " n"]:
    """1 / norms, and 1 for a column that has always been 0."""
    return jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 1)
