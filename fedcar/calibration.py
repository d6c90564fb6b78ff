"""Confidence: a score made into a probability, and how far that probability can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT_TEMPERATURE = 20.0
TEMPERATURES = np.geomspace(1.0, 400.0, 60)
BINS = 10


def confidences(scores: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Scores (n, documents), -inf allowed -> softmax(temperature * score) (n, documents)."""
    best = scores.max(axis=1, keepdims=True, initial=-np.inf)
    differences = np.subtract(scores, best, where=np.isfinite(best), out=np.full(scores.shape, -np.inf))
    powers = np.exp(temperature * differences.astype(np.float64))
    return powers / np.maximum(powers.sum(axis=1, keepdims=True), 1e-300)


def fit_temperature(scores: NDArray[np.float32], relevant: NDArray[np.bool_]) -> float:
    """The temperature with the highest likelihood of the relevant documents (Guo et al. 2017, temperature scaling).

    Scores and relevant are (n, documents); without a query the default.
    """
    if not len(scores):
        return DEFAULT_TEMPERATURE

    def loss(temperature: float) -> float:
        probability = (confidences(scores, temperature) * relevant).sum(axis=1)
        return -float(np.log(np.maximum(probability, 1e-12)).mean())

    return float(min(TEMPERATURES, key=loss))


def expected_calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.float64]) -> float:
    """Mean distance of confidence and accuracy over ten bins of equal width, weighted by their size (Guo et al. 2017)."""
    if not len(confidence):
        return 0.0
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(confidence[bins == one].mean() - correct[bins == one].mean()) * (bins == one).mean() for one in np.unique(bins)]
    return float(sum(gaps))


def area_under_roc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float | None:
    """The probability that a positive value is above a negative one, ties counted half; None where one side is empty."""
    if not len(positive) or not len(negative):
        return None
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / (2 * len(negative)))
