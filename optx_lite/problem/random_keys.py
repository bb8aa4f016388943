"""Keys of random numbers, of what users give for one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key


def as_key(rng: Any, name: str = "rng") -> Key[Array, ""]:
    """A key of JAX, of anything that SciPy takes for ``rng``, or of a key.

    A generator of NumPy gives another key each time; None takes entropy of the operating system.
    """
    if isinstance(rng, jax.Array):
        if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
            return _one_key(rng, name)
        if rng.dtype == jnp.uint32 and rng.ndim:
            return _one_key(jax.random.wrap_key_data(rng), name)
        if jnp.issubdtype(rng.dtype, jnp.integer):
            return jax.random.key(rng)
    if isinstance(rng, (int, np.integer)) and 0 <= rng < 2**32:
        return jax.random.key(int(rng))
    if isinstance(rng, np.random.RandomState):
        return jax.random.key(int(rng.randint(2**31)))
    try:
        return jax.random.key(int(np.random.default_rng(rng).integers(2**32)))
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"`{name}` must be None, an int that is not negative, a numpy.random.Generator or a "
            f"key of jax.random, got {rng!r}."
        ) from error


def _one_key(key: Array, name: str) -> Array:
    if key.shape != ():
        raise ValueError(f"`{name}` must be one key, got an array of keys of shape {key.shape}.")
    return key
