"""Records that `jax.export` can serialise."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.export


def exportable(cls: Any) -> Any:
    """Class decorator: `jax.export` may serialise functions that take or give such records.

    All fields of the class are dynamic.
    """

    def from_children(aux_data: Any, children: Any) -> Any:
        record = object.__new__(cls)  # what the children are here no __init__ would accept
        for field, child in zip(dataclasses.fields(cls), children, strict=True):
            object.__setattr__(record, field.name, child)
        return record

    jax.export.register_pytree_node_serialization(
        cls,
        serialized_name=f"optx_lite.{cls.__name__}",
        serialize_auxdata=lambda _: b"",
        deserialize_auxdata=lambda _: None,
        from_children=from_children,
    )
    return cls
