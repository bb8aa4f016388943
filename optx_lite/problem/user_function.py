"""A user's function with its arguments, on flat vectors."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Inexact, PyTree

from ..functions import Lifted, inputs, lift
from .arguments import check_callable, with_kwargs
from .pytrees import Unravel


def as_complex(dtype: DTypeLike) -> DTypeLike:
    """The complex dtype of the same precision."""
    return np.result_type(dtype, np.complex64)


class UserFunction(eqx.Module):
    """A function of the user's structure, and perhaps the same of complex numbers.

    Attributes
    ----------
    fun, on_complex : Lifted
        The latter for a complex step, or None.
    args : list
        Further arguments, those that are arrays or numbers.
    restore : Unravel, static
        From a flat x to the user's structure.
    """

    fun: Lifted
    on_complex: Lifted | None
    args: list[PyTree]
    restore: Unravel = eqx.field(static=True)

    @classmethod
    def lifted(
        cls,
        fun: Any,
        restore: Unravel,
        args: tuple,
        kwargs: Any = None,
        *,
        name: str = "`fun`",
        complex_too: bool = False,
    ) -> UserFunction:
        """Trace the function; ``name`` is what messages call it."""
        check_callable(fun, name)
        bound = with_kwargs(fun, kwargs)
        on_complex = None
        if complex_too:
            # Complex x meets the real data of `fun`: that is what the scheme is about, and no slip.
            with jax.numpy_dtype_promotion("standard"):
                on_complex = lift(bound, restore.shapes(as_complex), *args, label=name)
        on_real = lift(bound, restore.shapes(), *args, label=name)
        return cls(on_real, on_complex, inputs(args), restore)

    def __call__(self, x: Inexact[Array, " n"]) -> PyTree:
        """What the user's function gives at x."""
        fun = self.on_complex if self.on_complex is not None and jnp.iscomplexobj(x) else self.fun
        return fun(self.restore(x), *self.args)

    @property
    def out_shape(self) -> PyTree:
        """Its shapes and dtypes, without computing anything."""
        return self.fun.out_shape
