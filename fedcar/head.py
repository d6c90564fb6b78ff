"""The head: one row per document, an optional pre-classifier layer, a temperature; scores and losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("linear", "cosine")
START_SCALE = 20.0
LEAST_SCORE = -1e30  # in place of -inf, whose sum has no gradient
MANY_TIMES = 40  # so many more rows than are asked for still cost less as one matrix product


class Head(nn.Module):
    """Classifier-as-Retriever (arXiv 2509.16508, section III).

    e_d (n, d) are the frozen document embeddings of unit length, r_d the learned rows, s the learned temperature and
    g(h) = h + W2 gelu(W1 h) the optional pre-classifier layer with W2 = 0 at the start; h has unit length. The optional
    query map M (d, d), 0 at the start, adds (M g(h)) . e_d: it serves documents nobody has asked about as well.
    `cosine`: score(q, d) = s cos(g(h), e_d + r_d). `linear`: score(q, d) = s (g(h) . e_d + x . r_d), where x is g(h)
    less the encoder's usual direction `centre` (d,), of unit length: weak decoders point nearly one way.

    Formal guarantees:
        untrained_head_equals_mips: before training the order of documents is that of the cosine with e_d.
        untouched_rows_keep_their_embedding: a row that is not active never moves.
    """

    embeddings: Tensor
    centre: Tensor
    active: Tensor

    def __init__(
        self,
        embeddings: NDArray[np.float32],
        *,
        centre: NDArray[np.float32] | None = None,
        kind: str = "linear",
        pre_classifier: int = 0,
        query_map: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise FedcarError(f'--head "{kind}": not known; give one of {", ".join(KINDS)}')
        if pre_classifier < 0:
            raise FedcarError(f"--pre-classifier {pre_classifier}: must be 0 (none) or the width of the layer")
        documents, dimension = embeddings.shape
        self.kind = kind
        self.register_buffer("embeddings", functional.normalize(torch.tensor(embeddings), dim=1))
        self.register_buffer("centre", torch.zeros(dimension) if centre is None else torch.tensor(centre))
        self.register_buffer("active", torch.zeros(documents, dtype=torch.bool))
        self.rows = nn.Parameter(torch.zeros(documents, dimension))
        self.log_scale = nn.Parameter(torch.tensor(math.log(START_SCALE)))
        self.pre_classifier = pre_classifier
        self.query_map = query_map
        if query_map:
            self.map = nn.Parameter(torch.zeros(dimension, dimension))
        if pre_classifier:
            generator = torch.Generator().manual_seed(seed)
            self.inner = nn.Parameter(torch.randn(pre_classifier, dimension, generator=generator) / dimension**0.5)
            self.outer = nn.Parameter(torch.zeros(dimension, pre_classifier))

    def forward(self, hidden_states: Tensor, documents: Tensor | None = None) -> Tensor:
        """Hidden states (b, d) -> scores (b, n); of the chosen rows alone with `documents` (b, c): (b, c)."""
        query, scale = self.query_vectors(hidden_states), self.log_scale.exp()
        if self.kind == "cosine":
            trained = functional.normalize(self.embeddings + self.rows * self.active.unsqueeze(1), dim=1)
            vectors = torch.where(self.active.unsqueeze(1), trained, self.embeddings)
            scores = scale * _products(query, vectors, documents)
        else:
            scores = scale * _products(query, self.embeddings, documents) + self._of_rows(query, documents)
        return scores + _products(query @ self.map.T, self.embeddings, documents) if self.query_map else scores

    def learned(self, hidden_states: Tensor, untrained: Tensor, documents: Tensor | None = None) -> Tensor:
        """What training has added to the score: `forward` less s cos(h, e_d) of the untrained hidden states.

        Exactly 0 before training, and for an untouched row unless an adapter or pre-classifier moved the question.
        """
        original, scale = functional.normalize(untrained, dim=1), self.log_scale.exp()
        if self.kind == "cosine":
            return self.forward(hidden_states, documents) - scale * _products(original, self.embeddings, documents)
        query = self.query_vectors(hidden_states)
        moved = scale * (query - original)
        if self.query_map:
            moved = moved + query @ self.map.T
        return _products(moved, self.embeddings, documents) + self._of_rows(query, documents)

    def _of_rows(self, query: Tensor, documents: Tensor | None) -> Tensor | float:
        """What the rows of a linear head add to the score: s x . r_d."""
        if not bool(self.active.any()):
            return 0.0
        usual = functional.normalize(query - self.centre, dim=1)
        return self.log_scale.exp() * _products(usual, self.rows * self.active.unsqueeze(1), documents)

    @torch.inference_mode()
    def learned_scores(
        self,
        hidden_states: NDArray[np.float32],
        untrained: NDArray[np.float32],
        candidates: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """`learned` for plain arrays."""
        adapted, original = (torch.tensor(np.ascontiguousarray(one)) for one in (hidden_states, untrained))
        chosen = None if candidates is None else torch.from_numpy(candidates)
        scores: NDArray[np.float32] = self.learned(adapted, original, chosen).numpy()
        return scores

    @property
    def has_row(self) -> NDArray[np.bool_]:
        """Which documents have a trained row (n,)."""
        active: NDArray[np.bool_] = self.active.numpy()
        return active

    @property
    def has_rows_alone(self) -> bool:
        """Whether nothing but the rows of a linear head can add to the score."""
        return self.kind == "linear" and not self.pre_classifier and not self.query_map

    def query_vectors(self, hidden_states: Tensor) -> Tensor:
        """g(h) of unit length (b, d)."""
        query = functional.normalize(hidden_states, dim=1)
        if self.pre_classifier:
            query = functional.normalize(query + functional.gelu(query @ self.inner.T) @ self.outer.T, dim=1)
        return query


def _products(queries: Tensor, vectors: Tensor, documents: Tensor | None) -> Tensor:
    """Inner products (b, n), or with the vectors of the chosen documents (b, c) alone."""
    if documents is None:
        return queries @ vectors.T
    if len(vectors) <= MANY_TIMES * documents.shape[1]:
        return (queries @ vectors.T).gather(1, documents)
    return torch.einsum("bd,bcd->bc", queries, vectors[documents])


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
        found = judged[questions, candidates]
        shares = (found / np.bincount(questions, found, len(judged))[questions]).astype(np.float32)
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
