"""Confidence: a score made into a probability, how far it can be trusted, and when to say "I don't know"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEMPERATURES = np.geomspace(0.05, 20.0, 60)
TARGET = 0.95
LEAST_QUESTIONS = 50


@dataclass(frozen=True)
class Calibration:
    """Turns scores (n, c) into confidences, and says when a question is answered.

    The confidence of a hit is softmax(temperature * score). `known` holds the weights of a logistic model of "the first
    hit is right" over `signals`; a question is answered where its probability is at least `threshold`. Without a
    threshold it is not known whether it is, and `no_threshold` says why.
    """

    temperature: float = 1.0
    known: tuple[float, ...] | None = None
    threshold: float | None = None

    @classmethod
    def fit(
        cls, scores: NDArray[np.float32], relevant: NDArray[np.bool_], unanswerable: NDArray[np.float32] | None = None
    ) -> Calibration:
        """Learn from the scores of selection questions (n, c) and which candidates are relevant.

        `unanswerable` (m, c) are the scores of selection questions that no document answers. The temperature has the
        highest likelihood (Guo et al. 2017). The logistic model also sees every question with its relevant candidates
        taken away, as one that no document answers. The threshold is the lowest from which on at least 95 % of the
        answered questions are right; None where the questions are too few to support one.
        """
        if not len(scores):
            return cls()

        def loss(temperature: float) -> float:
            right = (softmax(scores, temperature) * relevant).sum(axis=1)
            return -float(np.log(np.maximum(right, 1e-12)).mean())

        temperature = float(min(TEMPERATURES, key=loss))
        right = np.take_along_axis(relevant, scores.argmax(axis=1)[:, None], axis=1)[:, 0]
        if len(scores) < LEAST_QUESTIONS or scores.shape[1] < 2:
            return cls(temperature)
        others = np.where(relevant, -np.inf, scores)
        others = others[np.isfinite(others).any(axis=1)]
        wrong = others if unanswerable is None else np.concatenate([others, unanswerable])
        known = logistic(
            np.concatenate([signals(scores, temperature), signals(wrong, temperature)]),
            np.concatenate([right, np.zeros(len(wrong), dtype=bool)]),
        )
        asked = scores if unanswerable is None else np.concatenate([scores, unanswerable])
        held = right if unanswerable is None else np.concatenate([right, np.zeros(len(unanswerable), dtype=bool)])
        return cls(temperature, known, answer_threshold(probability(signals(asked, temperature), known), held))

    def confidences(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores (n, c), -inf allowed -> (n, c)."""
        return softmax(scores, self.temperature)

    def trust(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """How sure it is that the first hit is right (n,): low for a question that no document answers."""
        if self.known is None:
            confidence: NDArray[np.float64] = self.confidences(scores).max(axis=1, initial=0.0)
            return confidence
        return probability(signals(scores, self.temperature), self.known)

    @property
    def no_threshold(self) -> str | None:
        """Why there is no threshold; None where there is one."""
        if self.threshold is not None:
            return None
        if self.known is None:
            return f"no threshold: fewer than {LEAST_QUESTIONS} dev questions"
        return f"no threshold: among the surest dev questions fewer than {TARGET:.0%} have a right first hit"

    def answers(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which of the questions are answered (n,); all of them where there is no threshold."""
        answered: NDArray[np.bool_] = self.trust(scores) >= (self.threshold or 0.0)
        return answered


def signals(scores: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """What tells a right first hit from a wrong one (n, 4): 1, its score, its lead, its log-confidence."""
    first_two = -np.sort(-scores, axis=1)[:, :2].astype(np.float64)
    first_two = np.where(np.isfinite(first_two), first_two, -1e3)
    confidence = softmax(scores, temperature).max(axis=1)
    lead = np.minimum(first_two[:, 0] - first_two[:, 1], 1e3)
    return np.stack([np.ones(len(scores)), first_two[:, 0], lead, np.log(np.maximum(confidence, 1e-12))], axis=1)


def logistic(inputs: NDArray[np.float64], right: NDArray[np.bool_], strength: float = 1.0) -> tuple[float, ...]:
    """Weights (f,) of a logistic regression whose first input is the constant; Newton steps, ridge on the rest."""
    spread = np.maximum(inputs.std(axis=0), 1e-9)
    spread[0] = 1.0
    scaled, weights = inputs / spread, np.zeros(inputs.shape[1])
    penalty = strength * np.diag([1e-6, *np.ones(inputs.shape[1] - 1)])
    for _ in range(25):
        chance = 1 / (1 + np.exp(-np.clip(scaled @ weights, -30, 30)))
        gradient = scaled.T @ (chance - right) + penalty @ weights
        curvature = (scaled * (chance * (1 - chance))[:, None]).T @ scaled + penalty
        weights = weights - np.linalg.solve(curvature + 1e-9 * np.eye(len(weights)), gradient)
    return tuple(float(weight) for weight in weights / spread)


def probability(inputs: NDArray[np.float64], weights: tuple[float, ...]) -> NDArray[np.float64]:
    """The logistic model's probability (n,)."""
    chance: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(inputs @ np.array(weights), -30, 30)))
    return chance


def softmax(scores: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Softmax of temperature * score over the last axis; 0 where the score is -inf."""
    best = scores.max(axis=1, keepdims=True, initial=-np.inf)
    differences = np.subtract(scores, best, where=np.isfinite(best), out=np.full(scores.shape, -np.inf))
    powers = np.exp(temperature * differences.astype(np.float64))
    shares: NDArray[np.float64] = powers / np.maximum(powers.sum(axis=1, keepdims=True), 1e-300)
    return shares


def answer_threshold(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float | None:
    """The lowest confidence from which on the share of right answers is at least TARGET on these questions."""
    if len(confidence) < LEAST_QUESTIONS:
        return None
    order = np.argsort(-confidence, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(share >= TARGET)
    if not len(enough) or enough[-1] + 1 < LEAST_QUESTIONS // 5:
        return None
    return 0.0 if enough[-1] + 1 == len(order) else float(confidence[order[enough[-1]]])
