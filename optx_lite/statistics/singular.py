r"""Say in words which parameters a fit cannot tell apart.

The directions N of no effect come from a singular value decomposition, in any rotation. Reduced to
echelon form, in the parameters' own sizes, they become directions with few parameters each; and
where these move together by their relative changes, as in a * c, the words say so. Of a product
one direction shows what happens close to x; whether it goes on so is asked of the residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

SMALL = 1e-3  # of the largest entry of a direction: less is not worth a word
FAR = 0.5  # how far along a direction the residuals are asked


def describe_null(
    null: np.ndarray,
    x: np.ndarray,
    names: Sequence[str],
    unchanged: Callable[[np.ndarray], bool] | None = None,
) -> list[str]:
    """A sentence for each direction of no effect.

    Parameters
    ----------
    null : array, shape (n, n)
        Directions as columns; those of zeros are none.
    x : array, shape (n,)
        The parameters.
    names : sequence of n str
    unchanged : callable, optional
        Whether the residuals at another (n,) are those at x.
    """
    directions = null[:, np.any(null != 0, axis=0)]
    if not directions.shape[1]:
        return []
    size = np.where(x == 0, 1, np.abs(x))
    return [
        _sentence(v, x, names, unchanged) for v in _echelon(directions / size[:, None]).T * size
    ]


def _echelon(directions: np.ndarray) -> np.ndarray:
    """The same space, by columns with as few entries as elimination gives."""
    rows = directions.T / np.max(np.abs(directions), axis=0)[:, None]
    for i in range(rows.shape[0]):
        rest = np.abs(rows[i:])
        j = int(np.argmax(np.max(rest, axis=0)))
        pivot = i + int(np.argmax(rest[:, j]))
        rows[[i, pivot]] = rows[[pivot, i]]
        rows[i] /= rows[i, j]
        for k in range(rows.shape[0]):
            if k != i:
                rows[k] -= rows[k, j] * rows[i]
    rows[np.abs(rows) < SMALL * np.max(np.abs(rows), axis=1)[:, None]] = 0
    return rows.T


def _sentence(
    v: np.ndarray,
    x: np.ndarray,
    names: Sequence[str],
    unchanged: Callable[[np.ndarray], bool] | None,
) -> str:
    moving = np.flatnonzero(v)
    who = [names[int(j)] for j in moving]
    if len(moving) == 1:
        return f"{who[0]} is not determined: the residuals do not depend on it here."
    together = f"{', '.join(who[:-1])} and {who[-1]}"
    step = v[moving] / v[moving][0]
    powers = _powers(v[moving], x[moving])
    if unchanged is not None and len(moving) == 2:
        far = x.copy()
        if powers is not None:
            far[moving] = x[moving] * np.exp(FAR * powers)
            if unchanged(far):
                return f"{together} enter only as {_monomial(powers, who)}."
        far[moving] = x[moving] + FAR * (np.max(np.abs(x[moving] / step)) or 1.0) * step
        if unchanged(far):
            return f"{together} enter only as {_combination(step, who)}."
    if powers is not None:
        terms = [f"{name}*(1 {_times(p)})" for name, p in zip(who, powers, strict=True)]
    else:
        terms = [f"{name} {_times(p)}" for name, p in zip(who, step, strict=True)]
    along = ", ".join(terms)
    return f"{together} are not determined: along {along} the residuals do not change."


def _powers(v: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """Small integers p with v_j = p_j x_j, up to a factor; None if there are none."""
    if np.any(x == 0):
        return None
    relative = v / x
    powers = relative / np.min(np.abs(relative)) * np.sign(relative[0])
    whole = np.round(powers)
    near = np.max(np.abs(powers - whole)) < SMALL and np.max(np.abs(powers)) < 10
    return whole if near else None


def _times(power: float) -> str:
    factor = f"{abs(power):.3g}"
    return f"{'+' if power > 0 else '-'} {'' if factor == '1' else factor + ' '}s"


def _monomial(powers: np.ndarray, names: Sequence[str]) -> str:
    """What a exp(p s), c exp(q s) leaves as it is: a^q c^-p."""
    p, q = powers
    first, second = (
        name if exponent == 1 else f"{name}^{exponent:.0f}"
        for name, exponent in zip(names, (abs(q), abs(p)), strict=True)
    )
    return f"{first}{'/' if p * q > 0 else '*'}{second}"


def _combination(step: np.ndarray, names: Sequence[str]) -> str:
    """What a + s, c + r s leaves as it is: r a - c."""
    ratio = step[1]
    factor = "" if np.isclose(abs(ratio), 1) else f"{abs(ratio):.3g} "
    return f"{factor}{names[0]} {'-' if ratio > 0 else '+'} {names[1]}"
