"""Fundamental matrices of real matches, beside OpenCV's USAC MAGSAC and poselib.

``python -m benchmarks.two_views [thresholds ...]``. Needs the extra ``views`` and the matches of
Barath's MAGSAC (Kusvod2), files ``NAME.txt`` and ``NAME.validation.txt`` in a folder
``../shared/data/epipolar`` beside the checkout. Each package gets the unlabelled matches and a
threshold in pixels; its F is judged by the median, over the points that were marked by hand, of the
mean distance of the two points to each other's epipolar line. Of poselib and of ours the median of
`SEEDS` runs; OpenCV's seed is fixed. The same key must give the same answer, bit by bit.
"""

import sys
import time
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import poselib

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "epipolar"
SEEDS = 5
SAMPLES = 10_000  # most of them, for each package
CONFIDENCE = 0.9999

sys.path.insert(0, str(ROOT / "notebooks"))
import two_views  # noqa: E402  the notebook's module, no part of the package


def opencvs(matches: np.ndarray, threshold: float, seed: int) -> Any:
    return cv2.findFundamentalMat(
        matches[:, :2], matches[:, 2:], cv2.USAC_MAGSAC, threshold, CONFIDENCE, SAMPLES
    )[0]


def poselibs(matches: np.ndarray, threshold: float, seed: int) -> Any:
    options = {
        "max_epipolar_error": threshold,
        "seed": seed,
        "max_iterations": SAMPLES,
        "success_prob": CONFIDENCE,
    }
    return poselib.estimate_fundamental(matches[:, :2], matches[:, 2:], options, {})[0]


def ours(matches: np.ndarray, threshold: float, seed: int) -> Any:
    return two_views.fundamental(matches, jax.random.key(seed), threshold).matrix


PACKAGES = {"OpenCV": opencvs, "poselib": poselibs, "ours": ours}


def judge(estimate: Any, name: str, threshold: float) -> tuple[float, float, float, float]:
    """The median of the medians over the seeds, the least and the greatest, and the seconds."""
    matches = np.loadtxt(DATA / f"{name}.txt")
    marked = jnp.asarray(np.loadtxt(DATA / f"{name}.validation.txt"))
    estimate(matches, threshold, 0)  # compiles
    medians, start = [], time.process_time()
    found = [np.asarray(estimate(matches, threshold, seed)) for seed in range(SEEDS)]
    seconds = (time.process_time() - start) / SEEDS
    medians = [float(jnp.median(two_views.symmetric_distance(f, marked))) for f in found]
    again = np.asarray(estimate(matches, threshold, 0))
    assert np.array_equal(again, found[0]), f"{name}: the same key gave another answer"
    return float(np.median(medians)), min(medians), max(medians), seconds


def main(thresholds: list[float]) -> None:
    if not DATA.is_dir():
        sys.exit("The matches are missing: see `python -m pydoc benchmarks.two_views`.")
    jax.config.update("jax_enable_x64", True)
    names = sorted(path.name.split(".")[0] for path in DATA.glob("*.validation.txt"))
    print("| pair | threshold | " + " | ".join(PACKAGES) + " | seconds of CPU |")
    print("| --- | --- | " + "--- | " * len(PACKAGES) + "--- |")
    wins = 0
    for name in names:
        for threshold in thresholds:
            rows = [judge(estimate, name, threshold) for estimate in PACKAGES.values()]
            wins += rows[-1][0] <= min(row[0] for row in rows)
            cells = [f"{row[0]:.3f} ({row[1]:.3f} to {row[2]:.3f})" for row in rows]
            times = ", ".join(f"{row[3]:.2f}" for row in rows)
            print(f"| {name} | {threshold:g} | " + " | ".join(cells) + f" | {times} |", flush=True)
    print(f"\nours at most theirs in {wins} of {len(names) * len(thresholds)}")


if __name__ == "__main__":
    main([float(word) for word in sys.argv[1:]] or [1.0, 2.0, 3.0])
