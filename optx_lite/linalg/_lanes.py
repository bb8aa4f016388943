"""One function, two forms: for one problem, and for the lanes of a `vmap`.

For one small system a LAPACK call is best: nothing to compile, a microsecond to run. Under
`vmap` on a CPU it becomes a loop over the lanes, and the same algorithm written out in
`jax.numpy` is quicker, since all lanes then go through every operation together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import custom_vmap


def for_lanes(written_out: Callable) -> Callable[[Callable], Callable]:
    """Decorate the form for one problem with the form that `vmap` shall take instead.

    Both take and return arrays. The decorated function has no derivative of its own: give it
    one by `jax.custom_jvp` around it.
    """

    def decorate(single: Callable) -> Callable:
        form = custom_vmap(single)

        @form.def_vmap
        def rule(axis_size: int, in_batched: list[Any], *args: Any) -> tuple[Any, Any]:
            axes = [0 if batched else None for batched in in_batched]
            out = jax.vmap(written_out, in_axes=axes, axis_size=axis_size)(*args)
            return out, jax.tree.map(lambda _: True, out)

        return form

    return decorate
