"""NIST's certified nonlinear regression problems.

The Statistical Reference Datasets (StRD) of the National Institute of Standards
and Technology, https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml: 27 fits,
each with two starts (the first far from the solution, the second near) and with
parameters and standard deviations certified to eleven digits. The models of all
27 are here; the data of some of them lie in ``nist_data``, in NIST's own format,
and `load` reads the others as well from any folder that holds them.

An answer is judged by its LRE, the number of digits that agree with the certified
ones: B. D. McCullough, "Assessing the reliability of statistical software: part
I", The American Statistician 52 (1998), 358-366.

Examples
--------
>>> problem = load("Misra1b")
>>> problem.level, problem.starts.shape, problem.y.shape
('Lower', (2, 2), (14,))
>>> f = problem.residuals(problem.certified, problem.x, problem.y)
>>> abs(float(f @ f) / problem.rss - 1) < 1e-3
True
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

DATA = Path(__file__).with_name("nist_data")
DIGITS = 11  # NIST certifies no more


@dataclass(frozen=True, eq=False)
class Problem:
    """One regression: minimise the sum of squares of ``residuals(b, x, y)`` over b."""

    name: str
    level: str  # of difficulty, as NIST sees it: Lower, Average or Higher
    residuals: Callable[[ArrayLike, ArrayLike, ArrayLike], Array]
    x: np.ndarray  # (m,) the predictor; (2, m) in Nelson
    y: np.ndarray  # (m,) the response that is fitted; in Nelson log(y)
    starts: np.ndarray  # (2, n)
    certified: np.ndarray  # (n,)
    certified_sd: np.ndarray  # (n,)
    rss: float  # residual sum of squares
    residual_sd: float  # sqrt(rss / dof)
    dof: int


# The models, with NIST's numbering of the parameters.


def growth(x, b1, b2):
    return b1 * (1 - jnp.exp(-b2 * x))


def misra1b(x, b1, b2):
    return b1 * (1 - (1 + b2 * x / 2) ** -2)


def misra1c(x, b1, b2):
    return b1 * (1 - (1 + 2 * b2 * x) ** -0.5)


def misra1d(x, b1, b2):
    return b1 * b2 * x / (1 + b2 * x)


def chwirut(x, b1, b2, b3):
    return jnp.exp(-b1 * x) / (b2 + b3 * x)


def lanczos(x, b1, b2, b3, b4, b5, b6):
    return b1 * jnp.exp(-b2 * x) + b3 * jnp.exp(-b4 * x) + b5 * jnp.exp(-b6 * x)


def gauss(x, b1, b2, b3, b4, b5, b6, b7, b8):
    peaks = b3 * jnp.exp(-(((x - b4) / b5) ** 2)) + b6 * jnp.exp(-(((x - b7) / b8) ** 2))
    return b1 * jnp.exp(-b2 * x) + peaks


def danwood(x, b1, b2):
    return b1 * x**b2


def kirby2(x, b1, b2, b3, b4, b5):
    return (b1 + b2 * x + b3 * x**2) / (1 + b4 * x + b5 * x**2)


def cubic_ratio(x, b1, b2, b3, b4, b5, b6, b7):
    return (b1 + b2 * x + b3 * x**2 + b4 * x**3) / (1 + b5 * x + b6 * x**2 + b7 * x**3)


def nelson(x, b1, b2, b3):
    return b1 - b2 * x[0] * jnp.exp(-b3 * x[1])


def mgh17(x, b1, b2, b3, b4, b5):
    return b1 + b2 * jnp.exp(-x * b4) + b3 * jnp.exp(-x * b5)


def roszman1(x, b1, b2, b3, b4):
    return b1 - b2 * x - jnp.arctan(b3 / (x - b4)) / jnp.pi


def enso(x, b1, b2, b3, b4, b5, b6, b7, b8, b9):
    def cycle(period, cosine, sine):
        phase = 2 * jnp.pi * x / period
        return cosine * jnp.cos(phase) + sine * jnp.sin(phase)

    return b1 + cycle(12, b2, b3) + cycle(b4, b5, b6) + cycle(b7, b8, b9)


def mgh09(x, b1, b2, b3, b4):
    return b1 * (x**2 + x * b2) / (x**2 + x * b3 + b4)


def mgh10(x, b1, b2, b3):
    return b1 * jnp.exp(b2 / (x + b3))


def rat42(x, b1, b2, b3):
    return b1 / (1 + jnp.exp(b2 - b3 * x))


def rat43(x, b1, b2, b3, b4):
    return b1 / (1 + jnp.exp(b2 - b3 * x)) ** (1 / b4)


def eckerle4(x, b1, b2, b3):
    return b1 / b2 * jnp.exp(-(((x - b3) / b2) ** 2) / 2)


def bennett5(x, b1, b2, b3):
    return b1 * (b2 + x) ** (-1 / b3)


def residuals_of(model):
    """``model(x, *b) - y`` as a function of (b, x, y), computed in the dtype of b."""

    def residuals(b, x, y):
        b = jnp.asarray(b)
        return model(jnp.asarray(x, b.dtype), *b) - jnp.asarray(y, b.dtype)

    return residuals


MODELS = {  # in NIST's order, from the lower level of difficulty to the higher
    "Misra1a": growth,
    "Chwirut2": chwirut,
    "Chwirut1": chwirut,
    "Lanczos3": lanczos,
    "Gauss1": gauss,
    "Gauss2": gauss,
    "DanWood": danwood,
    "Misra1b": misra1b,
    "Kirby2": kirby2,
    "Hahn1": cubic_ratio,
    "Nelson": nelson,
    "MGH17": mgh17,
    "Lanczos1": lanczos,
    "Lanczos2": lanczos,
    "Gauss3": gauss,
    "Misra1c": misra1c,
    "Misra1d": misra1d,
    "Roszman1": roszman1,
    "ENSO": enso,
    "MGH09": mgh09,
    "Thurber": cubic_ratio,
    "BoxBOD": growth,
    "Rat42": rat42,
    "MGH10": mgh10,
    "Eckerle4": eckerle4,
    "Rat43": rat43,
    "Bennett5": bennett5,
}
# Made once, so that a problem loaded again brings the same function object.
RESIDUALS = {name: residuals_of(model) for name, model in MODELS.items()}


def names(folder: Path | str = DATA) -> list[str]:
    """The problems whose data lie in ``folder``, in NIST's order."""
    return [name for name in MODELS if (Path(folder) / f"{name}.dat").exists()]


def load(name: str, folder: Path | str = DATA) -> Problem:
    """Read ``name.dat``, in NIST's format, from ``folder``; KeyError for an unknown name."""
    residuals = RESIDUALS[name]
    text = (Path(folder) / f"{name}.dat").read_text()

    def stated(pattern):
        if found := re.search(pattern, text):
            return found[1]
        raise ValueError(f"{name}.dat is not in NIST's format: it has no {pattern!r}")

    rows = re.findall(r"^ *b\d+ *=(.*)$", text, re.MULTILINE)
    start1, start2, certified, sd = np.array([row.split() for row in rows], float).T
    table = text.rpartition("\nData:")[2].splitlines()[1:]  # a line of headings first
    y, *x = np.loadtxt(table, unpack=True)
    return Problem(
        name=name,
        level=stated(r"(\w+) Level of Difficulty"),
        residuals=residuals,
        x=x[0] if len(x) == 1 else np.stack(x),
        y=np.log(y) if name == "Nelson" else y,
        starts=np.stack([start1, start2]),
        certified=certified,
        certified_sd=sd,
        rss=float(stated(r"Residual Sum of Squares:\s+(\S+)")),
        residual_sd=float(stated(r"Residual Standard Deviation:\s+(\S+)")),
        dof=len(y) - len(rows),  # not the stated one: the file of Rat43 miscounts it
    )


def lre(estimate: ArrayLike, certified: ArrayLike) -> float:
    """Digits to which ``estimate`` agrees with ``certified``, the least over the entries.

    The log relative error (absolute where the certified value is 0), kept within 0 and 11.

    Examples
    --------
    >>> round(lre([1.0, 2.0002], [1.0, 2.0]), 6)
    4.0
    >>> lre([1.0, float("nan")], [1.0, 2.0])
    0.0
    """
    estimate, certified = np.asarray(estimate, float), np.asarray(certified, float)
    scale = np.where(certified == 0, 1.0, np.abs(certified))
    error = np.max(np.abs(estimate - certified) / scale)
    if not error < 1:  # NaN too
        return 0.0
    return float(-np.log10(max(error, 10.0**-DIGITS)))
