"""What to say when a function cannot be traced, in words for a user of SciPy."""

from __future__ import annotations

import linecache
import re
import traceback

import jax
import numpy as np

from .source_files import is_library_file

_USE_JNP = "Use jax.numpy (jnp) in the place of NumPy, SciPy and math."
_BIND = "Close over it or bind it by functools.partial, rather than pass it in args."
_OF_SIZES = "a traced value was used as an index, a size or a count", f"If it is a setting: {_BIND}"
_CAUSES: tuple[tuple[type, str, str], ...] = (
    (
        jax.errors.TracerArrayConversionError,
        "a NumPy or SciPy function was given a traced array",
        _USE_JNP,
    ),
    (
        jax.errors.NonConcreteBooleanIndexError,
        "an array was indexed by a traced mask, so that the shape would depend on values",
        "Keep the shape and choose by jnp.where(mask, x, 0).",
    ),
    (
        jax.errors.TracerBoolConversionError,
        "a decision (if, while, and, or, max, sorted) was made on a traced value",
        "Use jnp.where, jnp.maximum, jax.lax.cond or jax.lax.while_loop.",
    ),
    (jax.errors.TracerIntegerConversionError, *_OF_SIZES),
    (
        jax.errors.ConcretizationTypeError,
        "a traced value was to become a Python number",
        f"Leave out float(), int() and .item(). {_USE_JNP}",
    ),
)
# JAX has no class of errors for these.
_SIZE_MESSAGES = (
    "Shapes must be 1D sequences of concrete values",
    "Slice entries must be static integers",
    "Array slice indices must have static",
    "As of JAX v0.7, parameters to jaxpr equations must have __hash__",
)
_NO_DERIVATIVE = (
    "a function in jax.pure_callback was to be differentiated, and JAX cannot look into it. Take "
    "jac='2-point' (or '3-point'), which needs values only. The derivative of the solution comes "
    "where the callback stands in a jax.custom_jvp."
)
_OF_OBJECTS = (
    "NumPy met traced values as the elements of an array",
    f"Make arrays of them by jnp.array or jnp.stack, or set them by x.at[i].set(value). {_USE_JNP}",
)


def explain_no_derivative(err: ValueError) -> None:
    """Raise in words for a user if JAX met a callback that was to be differentiated."""
    if "callbacks do not support JVP" in str(err):
        raise TypeError(_NO_DERIVATIVE) from err


def explain(err: Exception, label: str, leaves: list) -> None:
    """Raise in words for a user of SciPy what JAX says in its own; other errors pass."""
    cause = _cause(err)
    if cause is None:
        return
    what, remedy = _of_setting(err, leaves) or cause
    raise TypeError(
        f"{label} could not be traced by JAX: {what}{_where(err)}.\n"
        f"{label} is called with traced arrays, which have a shape and a dtype but no values "
        f"yet. {remedy} Code that JAX cannot trace at all goes into "
        "jax.pure_callback(..., vmap_method='sequential'), with jac='2-point'."
    ) from err


def _cause(err: BaseException) -> tuple[str, str] | None:
    for kind, what, remedy in _CAUSES:
        if isinstance(err, kind):
            return what, remedy
    message = str(err)
    if isinstance(err, (TypeError, IndexError)) and message.startswith(_SIZE_MESSAGES):
        return _OF_SIZES
    if isinstance(err, ValueError) and message.startswith("setting an array element"):
        return _OF_OBJECTS if isinstance(err.__cause__, jax.errors.JAXTypeError) else None
    if isinstance(err, TypeError) and "ufunc" in message and "Tracer" in message:
        return _OF_OBJECTS
    return None


def _of_setting(err: Exception, leaves: list) -> tuple[str, str] | None:
    """The cause if all depends on a bool or an int among the arguments, which JAX names."""
    numbers = {int(number) for number in re.findall(r"\bleaves\[(\d+)\]", str(err))}
    values = [leaves[number] for number in sorted(numbers)]
    if not values or not all(isinstance(v, (bool, int, np.bool_, np.integer)) for v in values):
        return None
    named = " and ".join(repr(value) for value in values)
    return f"{named}, passed in args, was used for a decision or as a size", _BIND


def _where(err: Exception) -> str:
    """The last line of the user's own code that led to an error, to stand after the cause."""
    frames = [f for f in traceback.extract_tb(err.__traceback__) if not is_library_file(f.filename)]
    if not frames:
        return ""
    frame = frames[-1]
    source = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
    place = f"\n  {frame.filename}:{frame.lineno}, in {frame.name}"
    return f"{place}\n    {source}" if source else place
