"""The head: one row per document, an optional pre-classifier layer, a temperature; scores and losses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedcar.errors import FedcarError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = ("cosine", "linear")
START_SCALE = 20.0


class Head(nn.Module):
    """Classifier-as-Retriever (arXiv 2509.16508, section III): score(q, d) = s cos(g(h), e_d + r_d).

    e_d (n, d) are the frozen document embeddings of unit length, r_d the learned rows, s the learned temperature and
    g(h) = h + W2 gelu(W1 h) the optional pre-classifier layer with W2 = 0 at the start. Kind `linear` leaves the row as
    long as training made it: s g(h) . (e_d + r_d).

    Formal guarantees:
        untrained_head_equals_mips: before training the order of documents is that of the cosine with e_d.
        untouched_rows_keep_their_embedding: a row that is not active never moves.
    """

    embeddings: Tensor
    active: Tensor

    def __init__(
        self, embeddings: NDArray[np.float32], *, kind: str = "cosine", pre_classifier: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise FedcarError(f'--head "{kind}": not known; give one of {", ".join(KINDS)}')
        if pre_classifier < 0:
            raise FedcarError(f"--pre-classifier {pre_classifier}: must be 0 (none) or the width of the layer")
        documents, dimension = embeddings.shape
        self.kind = kind
        self.register_buffer("embeddings", functional.normalize(torch.tensor(embeddings), dim=1))
        self.register_buffer("active", torch.zeros(documents, dtype=torch.bool))
        self.rows = nn.Parameter(torch.zeros(documents, dimension))
        self.log_scale = nn.Parameter(torch.tensor(math.log(START_SCALE)))
        self.pre_classifier = pre_classifier
        if pre_classifier:
            generator = torch.Generator().manual_seed(seed)
            self.inner = nn.Parameter(torch.randn(pre_classifier, dimension, generator=generator) / dimension**0.5)
            self.outer = nn.Parameter(torch.zeros(dimension, pre_classifier))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Hidden states (b, d) -> scores (b, n)."""
        scores: Tensor = self.log_scale.exp() * self.cosines(hidden_states)
        return scores

    def cosines(self, hidden_states: Tensor) -> Tensor:
        """Hidden states (b, d) -> cosine with every document's vector (b, n), without the temperature."""
        return self.query_vectors(hidden_states) @ self.document_vectors().T

    def query_vectors(self, hidden_states: Tensor) -> Tensor:
        """g(h) of unit length (b, d)."""
        query = functional.normalize(hidden_states, dim=1)
        if self.pre_classifier:
            query = functional.normalize(query + functional.gelu(query @ self.inner.T) @ self.outer.T, dim=1)
        return query

    def document_vectors(self) -> Tensor:
        """e_d + r_d (n, d), of unit length for the kind `cosine`; a row that is not active is e_d."""
        vectors = self.embeddings + self.rows * self.active.unsqueeze(1)
        return functional.normalize(vectors, dim=1) if self.kind == "cosine" else vectors


def softmax_loss(scores: Tensor, relevance: Tensor, active: Tensor) -> Tensor:
    """Mean over queries of the decoupled softmax cross-entropy over the active documents.

    Scores (b, n), relevance (b, n) (graded judgements, 0 where not relevant), active (n,). Every positive document
    competes with the query's negatives only, never with its other positives; its part of the query's loss is its
    share of the query's relevance.
    """
    negatives = scores.masked_fill((relevance > 0) | ~active, -torch.inf)
    rest = torch.logsumexp(negatives, dim=1, keepdim=True)
    losses = functional.softplus(rest - scores)  # log(exp(score) + sum exp(negatives)) - score
    weights = relevance / relevance.sum(1, keepdim=True)
    return torch.where(relevance > 0, losses * weights, 0.0).sum(1).mean()
