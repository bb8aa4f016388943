"""What the records of all families share: codes, SciPy's ways to a field, how they are printed."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

Record = TypeVar("Record", bound="AbstractRecord")

UNSOLVED = -100  # in no answer: the record is still to be filled
CALLBACK_STOP = -2
RUNNING = 0

PROCEEDING = "The algorithm is proceeding normally."


class AbstractRecord(eqx.Module):
    """What every record has: text for its codes, SciPy's two ways to a field, a good print."""

    MESSAGES: ClassVar[dict[int, str]]
    COUNTERS: ClassVar[tuple[str, ...]] = ()  # plain numbers outside of a trace and a batch

    status: eqx.AbstractVar[int | Array]

    @property
    @abc.abstractmethod
    def success(self) -> Array | bool:
        """Whether it ended well."""

    @property
    def code(self) -> int | Array | None:
        """Why the solve ended, as a key of MESSAGES; None in what a callback gets."""
        return self.status

    @property
    def message(self) -> str | np.ndarray:
        """Why the solve ended, in words; made on the host, so not available inside a trace."""
        if isinstance(self.status, Tracer):
            raise RuntimeError(
                "`message` is text and cannot be made inside jit, vmap or grad: "
                "look at `status` there, and ask for the message outside."
            )
        if self.code is None:
            return PROCEEDING
        return self._texts(np.asarray(self.code))[()]

    def _texts(self, codes: np.ndarray) -> np.ndarray:
        """The messages of all lanes of a batch; of a single result, of lane ()."""
        texts = np.empty(codes.shape, object)
        for lane in np.ndindex(codes.shape):
            texts[lane] = self._text(int(codes[lane]), lane)
        return texts

    def _text(self, code: int, lane: tuple[int, ...]) -> str:
        """The message of one lane."""
        return self.MESSAGES[code]

    def keys(self) -> list[str]:
        """Names of the fields, as ``OptimizeResult.keys``."""
        return [*_names(self), "success", "message"]

    def values(self) -> list[PyTree]:
        """The fields, in the order of `keys`."""
        return [self[key] for key in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """Names and fields."""
        return [(key, self[key]) for key in self.keys()]

    def get(self, key: str, default: Any = None) -> Any:
        """A field, or the default if there is none of that name."""
        try:
            return self[key]
        except KeyError:
            return default

    def __len__(self) -> int:
        return len(self.keys())

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __repr__(self) -> str:
        if isinstance(self.status, Tracer):
            return eqx.tree_pformat(self)
        names = ["message", "success", "status"]
        names += [name for name in _names(self) if name not in names]
        return "\n".join(_line(name, getattr(self, name)) for name in names)


class AbstractResult(AbstractRecord):
    """The record of a search for one x."""

    SUMMARY: ClassVar[tuple[str, ...]]  # fields for the message and the report at the end
    VALUE: ClassVar[str]  # what it calls that which is minimised

    x: eqx.AbstractVar[PyTree]

    @property
    def value(self) -> Array:
        """That which is minimised."""
        return getattr(self, self.VALUE.lower())


def _names(result: AbstractRecord) -> list[str]:
    return [field.name for field in dataclasses.fields(result)]


def _line(name: str, value: object) -> str:
    """One field of the printed result: its name to the right of a margin of 14 characters."""
    if isinstance(value, (jax.Array, np.ndarray)):
        with np.printoptions(precision=3, threshold=20, edgeitems=3, linewidth=76 - 16):
            value = f"{float(value):.17g}" if value.ndim == 0 else str(np.asarray(value))
    first, *rest = str(value).splitlines() or [""]
    return "\n".join([f"{name:>14}: {first}", *(" " * 16 + line for line in rest)])


def to_host(result: Record) -> Record:
    """Turn the counters of a concrete, unbatched result into plain Python numbers."""
    names = result.COUNTERS
    values = [getattr(result, name) for name in names]
    present = [v for v in values if v is not None]
    if any(isinstance(v, Tracer) or jnp.ndim(v) > 0 for v in present):
        return result
    # One transfer for all of them: each `int(array)` would wait for the device.
    fetched = iter(jax.device_get(present))
    plain = (None if v is None else int(next(fetched)) for v in values)
    return dataclasses.replace(result, **dict(zip(names, plain, strict=True)))


def restored(result: Record, structures: Mapping[str, Callable[[Array], PyTree]]) -> Record:
    """The record, its fields by these names from flat vectors back in the user's structures."""
    fields = {name: restore(getattr(result, name)) for name, restore in structures.items()}
    if all(value is getattr(result, name) for name, value in fields.items()):
        return result
    return dataclasses.replace(result, **fields)
