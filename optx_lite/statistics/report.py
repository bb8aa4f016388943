r"""A fit in words and numbers: parameters with errors, correlations, measures of the fit.

With k determined parameters, N data, and chi² the sum of squares of the residuals:

    AIC = L + 2 k,  BIC = L + k log N,   L = chi²  if sigma is absolute, N log(chi² / N)  if not

up to constants which do not depend on the model, so that two models of the same data compare.
R² = 1 - chi² / chi²_0, chi²_0 that of the best constant, with the same weights.
"""

from __future__ import annotations

import dataclasses
import html

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..jax_support.types import Options
from ..problem.pytrees import is_concrete
from ..results.least_squares import Result
from ..results.minimize import MinimizeResult
from .covariance import Covariance, covariance


@dataclasses.dataclass(frozen=True)
class FitReport:
    """What `fit_report` gives: prints as text, and as tables in a notebook.

    Attributes
    ----------
    parameters : list of (name, value, standard error, remark)
    statistics : dict of str to number or str
        Of those that are known: message, status, nfev, data, parameters, dof, chi2, reduced chi2,
        AIC, BIC, R2, cost.
    correlations : list of (name, name, number)
        From the largest, those of at least the threshold.
    notes : list of str
        On parameters without an error, and why.
    """

    parameters: list[tuple[str, float, float, str]]
    statistics: Options
    correlations: list[tuple[str, str, float]]
    notes: list[str]

    def __str__(self) -> str:
        width = max(len(name) for name, *_ in self.parameters)
        statistics = max(map(len, self.statistics))
        lines = ["Fit"]
        lines += [f"    {k:<{statistics}}  {_number(v)}" for k, v in self.statistics.items()]
        lines.append("Parameters")
        for name, value, error, remark in self.parameters:
            lines.append(f"    {name:<{width}}  {_with_error(value, error)}  {remark}".rstrip())
        if self.correlations:
            lines.append("Correlations")
            lines += [f"    {a}, {b}  {c:+.3f}" for a, b, c in self.correlations]
        if self.notes:
            lines.append("Notes")
            lines += [f"    {note}" for note in self.notes]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parameters = [
            (name, _number(value), _number(error), _relative(value, error), remark)
            for name, value, error, remark in self.parameters
        ]
        parts = [
            _table("Fit", (), [(k, _number(v)) for k, v in self.statistics.items()]),
            _table("Parameters", ("name", "value", "error", "relative", ""), parameters),
        ]
        if self.correlations:
            rows = [(a, b, f"{c:+.3f}") for a, b, c in self.correlations]
            parts.append(_table("Correlations", (), rows))
        parts += [f"<p>{html.escape(note)}</p>" for note in self.notes]
        return "\n".join(parts)


def fit_report(
    fit: PyTree,
    covariance: Covariance | None = None,
    *,
    min_correlation: float = 0.1,
    absolute_sigma: bool = False,
) -> FitReport:
    """Report on a fit: parameters, errors, correlations, and how good it is.

    Parameters
    ----------
    fit : CurveFit, Result or MinimizeResult
        Of `curve_fit`, `least_squares` or `minimize`; one fit, not a batch.
    covariance : Covariance, optional
        Of the result. By default that of a fit, or `covariance` of a result without a robust loss;
        a result of `minimize` needs one.
    min_correlation : float
        Smaller correlations are left out.
    absolute_sigma : bool
        For a `Result`, whether its residuals are in standard deviations.

    Returns
    -------
    FitReport

    Raises
    ------
    ValueError
        Inside a transformation, and for a batch of fits.
    TypeError
        For what is no fit.

    Examples
    --------
    >>> import jax.numpy as jnp, optx_lite as ox
    >>> def line(x, slope, offset):
    ...     return slope * x + offset
    >>> fit = ox.curve_fit(line, [1.0, 2.0, 3.0, 4.0], [2.1, 3.9, 6.2, 7.8])
    >>> report = ox.fit_report(fit)
    >>> for name, value, error, remark in report.parameters:
    ...     print(name, f"{value:.2f} {error:.2f}")
    slope 1.94 0.09
    offset 0.15 0.25
    >>> print(f"{report.statistics['R2']:.3f}")
    0.996
    """
    result = fit if isinstance(fit, (Result, MinimizeResult)) else getattr(fit, "result", None)
    if result is None:
        raise TypeError(
            "`fit` must come from `curve_fit`, `least_squares` or `minimize`, got "
            f"{type(fit).__name__}."
        )
    estimate = _covariance_of(fit, result, covariance, absolute_sigma)
    if not is_concrete((result, estimate)) or jnp.ndim(estimate.x) != 1:
        raise ValueError(
            "`fit` must be one fit, outside of jit: of a batch take one, "
            "jax.tree.map(lambda leaf: leaf[0], fit)."
        )
    value, error = np.asarray(estimate.x), np.asarray(estimate.flat_stderr)
    remarks = _remarks(estimate)
    explain = estimate.explain if fit is result else fit.explain
    return FitReport(
        [
            (name, float(v), float(e), remark)
            for name, v, e, remark in zip(estimate.names, value, error, remarks, strict=True)
        ],
        _statistics(fit, result, estimate, absolute_sigma),
        _correlations(estimate, min_correlation),
        explain(),
    )


def _covariance_of(fit: PyTree, result: PyTree, given: PyTree, absolute_sigma: bool) -> Covariance:
    if given is not None:
        return given
    if fit is not result:
        return fit.covariance
    if isinstance(result, MinimizeResult):
        raise ValueError("`covariance` is missing: ox.covariance(result, fun) of the likelihood.")
    return covariance(result, absolute_sigma=absolute_sigma)


def _remarks(estimate: Covariance) -> list[str]:
    remarks = []
    for side, lost in zip(
        np.asarray(estimate.active_mask), np.asarray(estimate.undetermined), strict=True
    ):
        at = {-1: "fixed or at lower bound", 1: "at upper bound"}.get(int(side), "")
        remarks.append("not determined" if lost else at)
    return remarks


def _statistics(fit: PyTree, result: PyTree, estimate: Covariance, absolute: bool) -> Options:
    said = {"message": result.message, "status": result.status, "nfev": result.nfev}
    if isinstance(result, MinimizeResult):
        k = int(estimate.rank)
        return {
            **said,
            "parameters": k,
            "fun": float(result.fun),
            "AIC": 2 * (float(result.fun) + k),
        }
    f = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(result.fun)])
    k, dof = int(estimate.rank), int(estimate.dof)
    n = k + dof
    said |= {"data": n, "parameters": k, "dof": dof}
    chi2, cost = float(f @ f), float(result.cost)
    if abs(2 * cost - chi2) > np.finfo(f.dtype).eps ** 0.5 * chi2:
        return {**said, "cost (robust loss)": cost}
    absolute = absolute if fit is result else fit.absolute_sigma
    said |= {"chi2": chi2, "reduced chi2": chi2 / dof if dof > 0 else np.nan}
    with np.errstate(divide="ignore"):
        likelihood = chi2 if absolute else n * np.log(chi2 / n)
    said |= {"AIC": likelihood + 2 * k, "BIC": likelihood + k * np.log(n)}
    if fit is not result and fit.data.sigma_x is None:
        said["R2"] = float(fit.r_squared)
    return said


def _correlations(estimate: Covariance, threshold: float) -> list[tuple[str, str, float]]:
    matrix, names = np.asarray(estimate.correlation), estimate.names
    pairs = [
        (names[i], names[j], float(matrix[i, j]))
        for i in range(len(names))
        for j in range(i)
        if abs(matrix[i, j]) >= threshold
    ]
    return sorted(pairs, key=lambda pair: -abs(pair[2]))


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)


def _relative(value: float, error: float) -> str:
    if not np.isfinite(error) or value == 0:
        return ""
    return f"{abs(error / value):.2%}"


def _with_error(value: float, error: float) -> str:
    """The value with as many digits as its error leaves."""
    if not (np.isfinite(error) and error > 0):
        return f"{value:.6g} ± {error:g}"
    digits = max(2, int(np.floor(np.log10(abs(value) / error))) + 3) if value != 0 else 2
    relative = _relative(value, error)
    return f"{value:.{min(digits, 16)}g} ± {error:.2g}" + (f" ({relative})" if relative else "")


def _table(title: str, head: tuple[str, ...], rows: list[tuple]) -> str:
    def row(cells: tuple, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<table><caption>{title}</caption>{row(head, 'th') if head else ''}{body}</table>"
