"""Draw the picture of the README: ``python docs/picture.py``.

Left: a fit with its band, plain and robust, to data with an outlier. Right: what each datum does to
the fitted rate, the derivative through either fit.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import optx_lite as ox

FILE = Path(__file__).parent / "_static" / "readme.svg"
DATA, COLOURS = "#3b3f46", {"linear": "#9aa0a6", "cauchy": "#c8452f"}
OUTLIER = 8

T = jnp.linspace(0.0, 3.0, 40)
Y = (2.0 * jnp.exp(-1.3 * T) + 0.5 + 0.05 * jnp.cos(37 * T)).at[OUTLIER].add(0.8)


def model(t, x):
    return x[0] * jnp.exp(-x[1] * t) + x[2]


def fit(y, loss):
    def residuals(x, y):
        return model(T, x) - y

    return ox.least_squares(residuals, [1.0, 1.0, 0.0], args=(y,), loss=loss, f_scale=0.1).x


def draw():
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.9), layout="constrained")
    left.plot(T, Y, "o", ms=3.5, color=DATA)
    for loss, colour in COLOURS.items():
        left.plot(T, model(T, fit(Y, loss)), color=colour, lw=1.6, label=f'loss="{loss}"')
        slope = jax.grad(lambda y, loss=loss: fit(y, loss)[1])(Y)
        right.plot(T, slope, "o-", ms=3, lw=1.2, color=colour)
    right.axvline(T[OUTLIER], color=DATA, lw=0.7, ls=":")
    right.annotate("the outlier", (T[OUTLIER], 0.38), xytext=(4, 0), textcoords="offset points")
    left.set(title="a robust fit ...", xlabel="t", ylabel="y")
    right.set(title="... and its derivative: d rate / d y", xlabel="t")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    plt.rcParams |= {"svg.hashsalt": "optx_lite", "font.size": 9, "axes.titlesize": 10}
    draw().savefig(FILE, facecolor="white", metadata={"Date": None})
