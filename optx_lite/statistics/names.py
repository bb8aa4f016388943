"""Names of parameters, from their structure."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import PyTree


def names_of(tree: PyTree) -> tuple[str, ...]:
    """A name for each entry, in the order of the leaves: a, b[0], c.rate; x0 for an array."""
    names: list[str] = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        stem = jax.tree_util.keystr(path, simple=True, separator=".")
        shape = np.shape(leaf)
        if not shape:
            names.append(stem or "x0")
        else:
            names += [_indexed(stem, index) for index in np.ndindex(shape)]
    return tuple(names)


def _indexed(stem: str, index: tuple[int, ...]) -> str:
    inside = ",".join(map(str, index))
    return f"{stem}[{inside}]" if stem else f"x{inside}"
