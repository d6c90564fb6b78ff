"""The loss of a question with several relevant documents, and its slope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_SCORE = -1e30  # in place of -inf, whose sum has no gradient


def candidate_losses(scores: Tensor, relevance: Tensor) -> Tensor:
    """Decoupled softmax cross-entropy of each question over its candidates: (b, c) and (b, c) -> (b,).

    Every relevant candidate competes with the question's irrelevant ones only, never with its other relevant ones; its
    part of the question's loss is its share of the question's relevance (graded judgements).
    """
    negatives = scores.masked_fill(relevance > 0, LEAST_SCORE).clamp(min=LEAST_SCORE)
    rest = torch.logsumexp(negatives, dim=1, keepdim=True)
    losses = functional.softplus(rest - scores)  # log(exp(score) + sum exp(negatives)) - score
    weights = relevance / relevance.sum(1, keepdim=True).clamp(min=1e-9)
    return torch.where(relevance > 0, losses * weights, 0.0).sum(1)


@dataclass(frozen=True)
class Relevant:
    """The relevant candidates of questions: the question, the candidate and its share of the question's relevance (r,).

    Sorted by question; `starts` (n + 1,) is where each one's begin.
    """

    starts: NDArray[np.int64]
    questions: NDArray[np.int64]
    candidates: NDArray[np.int64]
    shares: NDArray[np.float32]

    @classmethod
    def of(cls, relevance: Tensor) -> Relevant:
        """Those of relevance (n, c) above 0."""
        judged = relevance.numpy()
        questions, candidates = np.nonzero(judged > 0)
        grades = judged[questions, candidates]
        shares = (grades / np.bincount(questions, grades, len(judged))[questions]).astype(np.float32)
        return cls(np.searchsorted(questions, np.arange(len(judged) + 1)), questions, candidates, shares)

    def take(self, rows: NDArray[np.int64]) -> Relevant:
        """Those of the questions `rows` (b,)."""
        first, counts = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        starts = np.concatenate([[0], counts.cumsum()])
        questions = np.arange(len(rows)).repeat(counts)
        chosen = np.arange(len(questions)) + (first - starts[:-1])[questions]
        return Relevant(starts, questions, self.candidates[chosen], self.shares[chosen])


def candidate_slopes(scores: Tensor, relevant: Relevant, importance: NDArray[np.float32] | float) -> float:
    """The sum of `candidate_losses` times importance (b,); its gradients take the place of the scores (b, c).

    By few passes and no autograd. numpy does what torch is slower at: exponentials, and what is no larger than b.
    """
    values, rows = scores.numpy(), relevant.questions
    flat, places = values.reshape(-1), rows * values.shape[1] + relevant.candidates
    chosen, flat[places] = flat[places], LEAST_SCORE
    highest = scores.clamp_(min=LEAST_SCORE).amax(1, keepdim=True)
    np.exp(values, out=scores.sub_(highest).numpy())
    sums = scores.sum(1).numpy()
    against = (highest.numpy()[:, 0] + np.log(sums))[rows] - chosen
    losses = np.logaddexp(np.float32(0), against)
    counted = relevant.shares * (importance if isinstance(importance, float) else importance[rows])
    slopes = counted * np.exp(against - losses)
    pushed = np.bincount(rows, slopes, len(values)).astype(np.float32) / sums
    scores.mul_(torch.from_numpy(pushed)[:, None])
    flat[places] = -slopes
    return float(counted @ losses)
