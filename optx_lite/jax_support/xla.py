"""What XLA does to a program, and what keeps it from that; nothing here changes a value.

The figures are of two shared cores of a CPU, float64, medians of alternating runs; those of JAX
0.10.2 were measured in this code, the older ones when a function was written.
"""

from __future__ import annotations

import functools as ft
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .control_flow import while_loop

P = ParamSpec("P")
T = TypeVar("T")


def full_precision(fun: Callable[P, T]) -> Callable[P, T]:
    """The function, its matrix products in the precision of its dtype.

    On NVIDIA's GPUs XLA rounds the factors of a float32 product to TensorFloat-32, ten bits, unless
    a precision is given. On an H100 J^T J came out with an error of 2e-4 relative, beside 3e-7.
    """

    @ft.wraps(fun)
    def precisely(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.default_matmul_precision("highest"):
            return fun(*args, **kwargs)

    return precisely


def full_precision_unless_chosen(fun: Callable[P, T]) -> Callable[P, T]:
    """The same, unless `jax_default_matmul_precision` is set: then that holds."""

    @ft.wraps(fun)
    def precisely(*args: P.args, **kwargs: P.kwargs) -> T:
        chosen = jax.config.jax_default_matmul_precision  # pyright: ignore
        return (fun if chosen is not None else full_precision(fun))(*args, **kwargs)

    return precisely


def in_one_loop(begins: Callable[[T], Array], body: Callable[[T], T], state: T) -> T:
    """``body(state)``, once, as the body of a loop.

    ``begins`` says of a state that it is the first one, by its values: where XLA sees that a loop
    turns once, it dissolves it. Reverse mode cannot pass through it.

    On a CPU XLA compiles a loop over small arrays to one function. What stands outside of loops it
    runs operation by operation, handed to threads, and may round otherwise. A fit of 3 parameters
    to 50 points by lm takes 40 us so and 51 without (JAX 0.12; in 0.10.2 the two are equal), and
    its compilation 5 % more. A step with a callback needs it to round as one without.
    """
    return while_loop(begins, body, state)


def computed_once(values: T) -> T:
    """The values, computed once for all that uses them.

    XLA may compute what is cheap anew in each fused loop that uses it, and round it otherwise
    there. (In JAX 0.10.2 no difference was seen in the time of 100,000 roots.)
    """
    return lax.optimization_barrier(values)


def rounded(product: Array, where: Array) -> Array:
    """A product that is rounded by itself before something is added to it; 0 elsewhere.

    XLA lets the processor round product and sum together. Mostly that is all the same; here the
    path would part from SciPy's where values differ by rounding only. The choice between the two
    operations keeps them apart, and costs next to nothing.
    """
    return jnp.where(where, product, 0)
