"""Pictures of fits, for the extra ``optx-lite[plot]``: each takes and returns matplotlib axes.

Matplotlib is imported when the first picture is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .driver.progress import History
from .statistics.curve import CurveFit, check_one
from .statistics.profile import ONE_SIGMA, profile_curves, profile_intervals
from .statistics.profile import contour as _contour
from .statistics.propagation import band as _band

__all__ = ["contours", "convergence", "correlation", "fit", "profiles"]

DATA, CURVE, SECOND, GREY = "#3b3f46", "#c8452f", "#2f6f9f", "#9aa0a6"


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'optx-lite[plot]'.") from error
    return plt


def _axes(ax: Any, **size: Any) -> Any:
    if ax is not None:
        return ax
    _, ax = _pyplot().subplots(**{"layout": "constrained"} | size)
    return ax


def _plain(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)


def fit(
    fit: CurveFit, x: Any = None, *, level: float = 0.95, prediction: bool = False, ax: Any = None
) -> Any:
    """Draw data, the fitted curve with its band, and the residuals below.

    Parameters
    ----------
    fit : CurveFit
        Of a curve in one variable.
    x : array, optional
        Where to draw the curve; by default 300 points from the first to the last datum.
    level : float
        Probability of the band.
    prediction : bool
        Whether to draw the band of new data, too.
    ax : two axes, optional
        For the curve and for the residuals.

    Returns
    -------
    array of two axes

    Raises
    ------
    ValueError
        For a batch of fits, and where ``xdata`` is not of shape (m,).

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> t = jnp.linspace(0.0, 3.0, 12)
    >>> y = 2.0 * jnp.exp(-t) + 0.1 * jnp.cos(40 * t)
    >>> fit = ox.curve_fit(lambda t, a, b: a * jnp.exp(-b * t), t, y)
    >>> top, bottom = ox.plot.fit(fit)
    >>> top.get_ylabel(), bottom.get_ylabel()
    ('y', 'residual')
    """
    _check_curve(fit)
    if ax is None:
        _, ax = _pyplot().subplots(
            2, 1, sharex=True, height_ratios=(3, 1), figsize=(6.4, 5), layout="constrained"
        )
    top, bottom = ax
    there = np.asarray(fit.data.counted(fit.result.fun.shape[0]))
    t, y = (np.asarray(v)[there] for v in (fit.data.x, np.broadcast_to(fit.data.y, there.shape)))
    x = np.linspace(t.min(), t.max(), 300, dtype=t.dtype) if x is None else np.asarray(x)
    if prediction:
        wide = _band(fit, jnp.asarray(x), level=level, kind="prediction")
        label = f"{level:.0%} prediction"
        top.fill_between(x, wide.lower, wide.upper, color=GREY, alpha=0.2, lw=0, label=label)
    narrow = _band(fit, jnp.asarray(x), level=level)
    top.fill_between(
        x,
        narrow.lower,
        narrow.upper,
        color=CURVE,
        alpha=0.25,
        lw=0,
        label=f"{level:.0%} confidence",
    )
    top.plot(x, narrow.curve, color=CURVE, lw=1.6, label="fit")
    sigma, sigma_x = _errors(fit, there)
    style = {"fmt": "o", "ms": 4, "color": DATA, "elinewidth": 0.9}
    top.errorbar(t, y, sigma, sigma_x, label="data", **style)
    left = y - np.asarray(fit.predict())[there]
    bottom.axhline(0, color=CURVE, lw=1.2)
    bottom.errorbar(t, left, sigma, sigma_x, **style)
    top.set_ylabel("y")
    top.legend(frameon=False)
    bottom.set(xlabel="x", ylabel="residual")
    top.figure.align_ylabels([top, bottom])
    for part in (top, bottom):
        _plain(part)
    return np.array([top, bottom])


def _check_curve(fit: CurveFit) -> None:
    check_one(fit)
    if getattr(fit.data.x, "ndim", None) != 1:
        raise ValueError(
            "`fit` must be that of a curve in one variable, `xdata` of shape (m,), got "
            f"{getattr(fit.data.x, 'shape', type(fit.data.x).__name__)}."
        )


def _errors(fit: CurveFit, there: np.ndarray) -> tuple[Any, Any]:
    """The standard deviations of y and x that the fit was given, of the data that are there."""
    weight, sigma_x = fit.data.weight, fit.data.sigma_x
    sigma_x = None if sigma_x is None else np.asarray(sigma_x)[there]
    if weight is None:
        return None, sigma_x
    weight = np.asarray(weight)
    if weight.ndim == 2:
        return np.sqrt(np.sum(weight**2, axis=1))[there], sigma_x
    return 1 / np.broadcast_to(weight, there.shape)[there], sigma_x


def convergence(history: Any, *, ax: Any = None) -> Any:
    """Draw how cost, optimality and step fell.

    Parameters
    ----------
    history : History
        Of one solve (see `record`).
    ax : axes, optional

    Returns
    -------
    axes

    Raises
    ------
    ValueError, TypeError
        For the histories of a batch, and for what is none.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> problem, x0 = ox.least_squares_problem(lambda x: x**2 - 2.0, jnp.array([1.0]))
    >>> result, history = ox.record(ox.LevenbergMarquardt(), problem, x0)
    >>> ox.plot.convergence(history).get_xlabel()
    'evaluation'
    """
    if not isinstance(history, History):
        raise TypeError(f"`history` must be that of `record`, got {type(history).__name__}.")
    ax = _axes(ax, figsize=(6.4, 3.8))
    if np.ndim(history.count):
        raise ValueError(
            "`history` must be that of one solve, got a batch of shape "
            f"{np.shape(history.count)}: take one lane of it."
        )
    steps = np.arange(1, int(min(history.count, history.value.shape[0])) + 1)
    for values, name, colour in (
        (history.value, "cost", CURVE),
        (history.optimality, "optimality", SECOND),
        (history.step_norm, "step", GREY),
    ):
        line = np.asarray(values)[: len(steps)]
        line = np.where(line > 0, line, np.nan)
        ax.semilogy(steps, line, "o-", ms=3.5, lw=1.4, color=colour, label=name)
    ax.set(xlabel="evaluation")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(frameon=False)
    _plain(ax)
    return ax


def correlation(fit: Any, *, ax: Any = None) -> Any:
    """Draw the matrix of correlations.

    Parameters
    ----------
    fit : CurveFit or Covariance
    ax : axes, optional

    Returns
    -------
    axes

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> t = jnp.linspace(0.0, 3.0, 12)
    >>> y = 2.0 * jnp.exp(-t) + 0.1 * jnp.cos(40 * t)
    >>> fit = ox.curve_fit(lambda t, a, b: a * jnp.exp(-b * t), t, y)
    >>> [label.get_text() for label in ox.plot.correlation(fit).get_yticklabels()]
    ['a', 'b']
    """
    check_one(fit)
    estimate = fit.covariance if isinstance(fit, CurveFit) else fit
    names, matrix = estimate.names, np.asarray(estimate.correlation)
    n = len(names)
    side = 1.6 + 0.7 * n
    ax = _axes(ax, figsize=(side + 1.4, side))
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    for i in range(n):
        for j in range(n):
            dark = abs(matrix[i, j]) > 0.6
            text = f"{matrix[i, j]:.2f}" if np.isfinite(matrix[i, j]) else "–"
            ax.text(j, i, text, ha="center", va="center", color="w" if dark else "k", fontsize=9)
    ax.set_xticks(range(n), names, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(n), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, label="correlation", shrink=0.85)
    return ax


def contours(
    fit: CurveFit,
    first: str,
    second: str,
    *,
    levels: Sequence[float] = (ONE_SIGMA, 0.9544997361036416),
    path: Any = None,
    points: int = 72,
    ax: Any = None,
) -> Any:
    """Draw the contours at which the profile of two parameters reaches levels.

    Parameters
    ----------
    fit : CurveFit
        Without a robust loss.
    first, second : str
        Names of the parameters.
    levels : sequence of float
        Probabilities that both lie inside.
    path : array, shape (k, 2), optional
        Points of the two parameters, such as the iterates of the fit.
    points : int
        Of each contour.
    ax : axes, optional

    Returns
    -------
    axes

    Raises
    ------
    ValueError
        For names that the fit does not have, and as `contour`.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> t = jnp.linspace(0.0, 3.0, 12)
    >>> y = 2.0 * jnp.exp(-t) + 0.1 * jnp.cos(40 * t)
    >>> fit = ox.curve_fit(lambda t, a, b: a * jnp.exp(-b * t), t, y)
    >>> ax = ox.plot.contours(fit, "a", "b", points=16)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('a', 'b')
    """
    check_one(fit)
    ax = _axes(ax, figsize=(5.4, 4.6))
    for k, level in enumerate(sorted(levels)):
        curve, _ = _contour(fit, first, second, level=level, points=points)
        curve = np.asarray(curve)
        closed = np.concatenate([curve, curve[:1]])
        ax.fill(*closed.T, color=SECOND, alpha=0.13, lw=0)
        ax.plot(*closed.T, color=SECOND, lw=1.5, alpha=1 - 0.35 * k, label=f"{level:.0%}")
    at = [fit.covariance.names.index(name) for name in (first, second)]
    best = np.asarray(fit.covariance.x)[at]
    if path is not None:
        # The picture is that of the contours; where the path comes from is cut off.
        limits = ax.get_xlim(), ax.get_ylim()
        ax.plot(*np.asarray(path).T, "o-", ms=3.5, lw=1, color=GREY, label="path", zorder=1)
        ax.set(xlim=limits[0], ylim=limits[1])
    ax.plot(*best, "o", ms=6, color=CURVE, label="fit")
    ax.set(xlabel=first, ylabel=second)
    ax.legend(frameon=False)
    _plain(ax)
    return ax


def profiles(
    fit: CurveFit,
    names: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    points: int = 25,
    ax: Any = None,
) -> Any:
    """Draw the profile of each parameter beside the parabola of its standard error.

    Parameters
    ----------
    fit : CurveFit
        Without a robust loss.
    names : sequence of str, optional
        Which parameters; by default all.
    level : float
        Probability whose interval is marked.
    points : int
        Of each profile.
    ax : as many axes, optional

    Returns
    -------
    array of axes

    Raises
    ------
    ValueError
        As `profile_intervals`.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> t = jnp.linspace(0.0, 3.0, 12)
    >>> y = 2.0 * jnp.exp(-t) + 0.1 * jnp.cos(40 * t)
    >>> fit = ox.curve_fit(lambda t, a, b: a * jnp.exp(-b * t), t, y)
    >>> [ax.get_xlabel() for ax in ox.plot.profiles(fit, ["b"])]
    ['b']
    """
    check_one(fit)
    ends = profile_intervals(fit, names, level=level)
    k = len(ends.names)
    if ax is None:
        _, ax = _pyplot().subplots(
            1, k, figsize=(3.1 * k + 0.4, 3.2), sharey=True, layout="constrained", squeeze=False
        )
    grid, tau2, quantile = profile_curves(fit, ends, points=points)
    errors = dict(zip(fit.covariance.names, np.asarray(fit.covariance.flat_stderr), strict=True))
    for i, (name, part) in enumerate(zip(ends.names, np.ravel(ax), strict=True)):
        v, best = np.asarray(grid[i]), float(ends.value[i])
        parabola = (
            ((v - best) / errors[name]) ** 2 if errors[name] > 0 else np.full(v.shape, np.nan)
        )
        part.plot(v, parabola, "--", color=GREY, lw=1.3, label="quadratic")
        part.plot(v, tau2[i], color=CURVE, lw=1.7, label="profile")
        part.axhline(quantile**2, color=DATA, lw=0.7, ls=":")
        for end in (float(ends.lower[i]), float(ends.upper[i])):
            if np.isfinite(end):
                part.plot([end, end], [0, quantile**2], color=SECOND, lw=1)
        part.set(xlabel=name, ylim=(0, 2.2 * quantile**2))
        _plain(part)
    first = np.ravel(ax)[0]
    first.set_ylabel("rise of chi² / s²")
    first.legend(frameon=False, loc="upper center")
    return np.ravel(ax)
