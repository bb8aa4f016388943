"""Status codes, their messages, and the record in which a solve hands back its answer.

The codes and the texts for -2 ... 4 are those of ``scipy.optimize.least_squares``; the codes
below -2 are ours, because inside ``jit`` nothing can be raised and a status has to tell.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

UNSOLVED = -7  # in no answer: the record is still to be filled
NONFINITE_JACOBIAN = -6
PLATEAU = -5
STALLED = -4
NONFINITE = -3
CALLBACK_STOP = -2
BAD_INPUT = -1
RUNNING = MAX_NFEV = 0  # a machine still at 0 when its evaluations are spent has run out of them
GTOL = 1
FTOL = 2
XTOL = 3
FTOL_AND_XTOL = 4

PROCEEDING = "The algorithm is proceeding normally."
MESSAGES = {
    NONFINITE_JACOBIAN: "The Jacobian is not finite in the initial point, although the residuals "
    "are: start elsewhere, or take jac='2-point', whose differences look beside that point.",
    PLATEAU: "A parameter which had an effect on the residuals has lost it: the solve ended on a "
    "plateau. Bound that parameter, or start elsewhere.",
    STALLED: "No step reduces the cost although the gradient is not zero: the derivative may be "
    "wrong (see `check_derivative`), or `fun` is noisy or not smooth here.",
    NONFINITE: "Residuals are not finite in the initial point.",
    CALLBACK_STOP: "Stopped because `callback` function raised `StopIteration` or returned `True`",
    BAD_INPUT: "Improper input parameters: bounds reversed, `x0` outside of them, or a bounded "
    "variable given to method 'lm'.",
    MAX_NFEV: "The maximum number of function evaluations is exceeded.",
    GTOL: "`gtol` termination condition is satisfied.",
    FTOL: "`ftol` termination condition is satisfied.",
    XTOL: "`xtol` termination condition is satisfied.",
    FTOL_AND_XTOL: "Both `ftol` and `xtol` termination conditions are satisfied.",
}


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


class AbstractRecord(eqx.Module):
    """What every record has: text for its codes, SciPy's two ways to a field, a good print."""

    MESSAGES: ClassVar[dict[int, str]]

    status: eqx.AbstractVar[Any]

    @property
    @abc.abstractmethod
    def success(self) -> Any:
        """Whether it ended well."""

    @property
    def code(self) -> Any:
        """Why the solve ended, as a key of MESSAGES; None in what a callback gets."""
        return self.status

    @property
    def message(self) -> Any:
        """Why the solve ended, in words; made on the host, so not available inside a trace."""
        if isinstance(self.status, Tracer):
            raise RuntimeError(
                "`message` is text and cannot be made inside jit, vmap or grad: "
                "look at `status` there, and ask for the message outside."
            )
        if self.code is None:
            return PROCEEDING
        return self._texts(np.asarray(self.code))[()]

    def _texts(self, codes: np.ndarray) -> Any:
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

    def values(self) -> list[Any]:
        """The fields, in the order of `keys`."""
        return [self[key] for key in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """Names and fields."""
        return [(key, self[key]) for key in self.keys()]

    def get(self, key: str, default: Any = None) -> Any:
        """A field, or the default if there is none of that name."""
        return dict(self.items()).get(key, default)

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

    COUNTERS: ClassVar[tuple[str, ...]]  # plain numbers outside of a trace
    SUMMARY: ClassVar[tuple[str, ...]]  # fields for the message and the report at the end
    VALUE: ClassVar[str]  # what it calls that which is minimised

    x: eqx.AbstractVar[Any]

    @property
    def value(self) -> Any:
        """That which is minimised."""
        return getattr(self, self.VALUE.lower())


@exportable
class Result(AbstractResult):
    """The answer of `least_squares`, with the field names of ``scipy.optimize.OptimizeResult``.

    A pytree: it can be returned from ``jit``, ``vmap`` and ``scan``. Fields are read as
    attributes or, as in SciPy, as items. Outside a trace ``status``, ``success`` and the
    counters are plain Python numbers. Where nothing could be solved (status -1, -3, -6), ``cost``
    is infinite, so that no choice of the best of many starts falls on it; ``fun``, ``jac``,
    ``grad`` and ``optimality`` are NaN.

    Attributes
    ----------
    x : pytree like ``x0``
        The solution.
    cost : array, shape ()
        Half the sum of the losses at ``x``.
    fun : array, shape (m,), or pytree as ``fun`` returned it
        The true residuals at ``x``, without loss scaling.
    jac : array, shape (m, n)
        The Jacobian with the loss scaling in it: ``jac.T @ jac`` is the Gauss-Newton
        approximation of the Hessian of the cost.
    grad : pytree like ``x0``
        The gradient of the cost.
    optimality : array, shape ()
        SciPy's first-order measure: the largest gradient entry, scaled for the bounds.
    active_mask : pytree like ``x0`` of int
        -1 at a lower bound, 1 at an upper bound, 0 elsewhere.
    nfev, njev, nit : int
        Residual evaluations, Jacobian evaluations, accepted steps. ``njev`` is None for
        ``method='lm'`` with a finite-difference Jacobian, as in SciPy.
    status : int
        Why it ended: 1 gtol, 2 ftol, 3 xtol, 4 both, 0 out of evaluations, -1 bad input,
        -2 callback, -3 non-finite start, -4 stalled away from a stationary point, -5 plateau,
        -6 residuals finite at the start but not their Jacobian.
        None in what a callback gets, of which only x, fun, cost, optimality, nit and nfev are set.
    """

    MESSAGES = MESSAGES
    COUNTERS = ("nfev", "njev", "nit", "status")
    SUMMARY = ("nfev", "status", "cost", "optimality")
    VALUE = "Cost"

    x: Any
    cost: Any
    fun: Any
    jac: Any
    grad: Any
    optimality: Any
    active_mask: Any
    nfev: Any
    njev: Any
    nit: Any
    status: Any

    @property
    def success(self) -> Any:
        """Whether a convergence test was met (``status > 0``)."""
        return self.status is not None and self.status > 0


def _names(result: AbstractRecord) -> list[str]:
    return [field.name for field in dataclasses.fields(result)]


def _line(name: str, value: Any) -> str:
    """One field of the printed result: its name to the right of a margin of 14 characters."""
    if isinstance(value, (jax.Array, np.ndarray)):
        with np.printoptions(precision=3, threshold=20, edgeitems=3, linewidth=76 - 16):
            value = f"{float(value):.17g}" if value.ndim == 0 else str(np.asarray(value))
    first, *rest = str(value).splitlines() or [""]
    return "\n".join([f"{name:>14}: {first}", *(" " * 16 + line for line in rest)])


def to_host(result: AbstractResult) -> Any:
    """Turn the counters of a concrete, unbatched result into plain Python numbers."""
    names = result.COUNTERS
    values = [getattr(result, name) for name in names]
    present = [v for v in values if v is not None]
    if any(isinstance(v, Tracer) or jnp.ndim(v) > 0 for v in present):
        return result
    # One transfer for all of them: each `int(array)` would wait for the device.
    fetched = iter(jax.device_get(present))
    plain = tuple(None if v is None else int(next(fetched)) for v in values)
    return eqx.tree_at(
        lambda r: tuple(getattr(r, name) for name in names),
        result,
        plain,
        is_leaf=lambda leaf: leaf is None,
    )
