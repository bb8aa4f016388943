"""From what a front door is given for `jac` to a scheme."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Array, ArrayLike, Float

from ..functions.traced import Lifted, lift
from .autodiff import Forward, Gradient, Reverse
from .base import AbstractJacobian
from .complex_step import ComplexStep
from .finite_difference import FiniteDifference
from .user import UserJacobian

OWN = Forward, Reverse, Gradient, FiniteDifference, ComplexStep  # nothing but their fields counts
METHODS = ("jacfwd", "jacrev", "2-point", "3-point", "cs")


def resolve(jac, diff_step: ArrayLike | None = None) -> AbstractJacobian:
    """The scheme that `jac` names.

    Parameters
    ----------
    jac : {'jacfwd', 'jacrev', '2-point', '3-point', 'cs'}, callable or AbstractJacobian
        A callable gets the flat `x` of shape ``(n,)`` and gives shape ``(m, n)``.
    diff_step : float or array of shape (n,), optional
        Relative step of the schemes that have one; the others do without it, as in SciPy.

    Returns
    -------
    AbstractJacobian

    Raises
    ------
    ValueError
        If `jac` is none of these.

    Examples
    --------
    >>> from optx_lite.derivatives import resolve
    >>> resolve("3-point", diff_step=1e-4)
    FiniteDifference(scheme='3-point', rel_step=0.0001)
    """
    if isinstance(jac, AbstractJacobian):
        return jac
    if isinstance(jac, str) and jac in METHODS:
        return named(jac, rel_step=diff_step)
    if callable(jac) and not isinstance(jac, type):
        return UserJacobian(jac)
    names = ", ".join(map(repr, METHODS))
    raise ValueError(
        f"`jac` must be {names}, a callable or an instance of AbstractJacobian, got {jac!r}."
    )


def named(method: str, **steps) -> AbstractJacobian:
    """The scheme of this name, with `rel_step` and `abs_step` if it takes steps."""
    match method:
        case "jacfwd":
            return Forward()
        case "jacrev":
            return Reverse()
        case "2-point" | "3-point":
            return FiniteDifference(method, **steps)
        case "cs":
            return ComplexStep(**steps)
    raise ValueError(f"Unknown method {method!r}: expected one of {', '.join(map(repr, METHODS))}.")


class _Traced(AbstractJacobian):
    """A scheme as a value: what it computes, with everything it captured as inputs."""

    values_and_jacobian: Lifted

    def linearize(
        self, fun: Callable, x: Array, lower: Array, upper: Array
    ) -> tuple[Array, Callable[[], Array]]:
        """Both at once: what the two shared cannot be taken apart in a lifted program."""
        f, transposed = self.values_and_jacobian(fun, x, lower, upper)
        return f, lambda: transposed


def traced(
    scheme: AbstractJacobian,
    fun: Callable,
    x: Float[Array, " n"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
) -> AbstractJacobian:
    """A scheme whose code is compiled anew when what it computes has changed.

    A scheme of the user's may read a global, or call a helper that is redefined: like functions,
    it is traced each time. ``fun`` is a pytree; the others are examples of their shapes.
    """
    if type(scheme) in OWN:
        return scheme

    def values_and_jacobian(fun: Callable, *point: Array) -> tuple[Array, Array]:
        f, jacobian = scheme.linearize(fun, *point)
        return f, jacobian()

    return _Traced(lift(values_and_jacobian, fun, x, lower, upper, label="`jac`"))
