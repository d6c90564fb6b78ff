"""The head: one row per document, an optional pre-classifier layer, a temperature; scores and losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedcar.errors import FedcarError
from fedcar.head.inputs import inputs_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("linear", "cosine")
START_SCALE = 20.0
MANY_TIMES = 40  # so many more rows than are asked for still cost less as one matrix product


class Head(nn.Module):
    """Classifier-as-Retriever (arXiv 2509.16508, section III).

    e_d (n, d) are the frozen document embeddings of unit length, r_d the learned rows, s the learned temperature and
    g(h) = h + W2 gelu(W1 h) the optional pre-classifier layer with W2 = 0 at the start; h has unit length. The optional
    query map M (d, d), 0 at the start, adds (M g(h)) . e_d: it serves documents nobody has asked about as well.
    `cosine`: score(q, d) = s cos(g(h), e_d + r_d). `linear`: score(q, d) = s (g(h) . e_d + x . r_d), where x is g(h)
    less the encoder's usual direction `centre` (d,), of unit length: weak decoders point nearly one way.

    Over two encoders h is what `inputs` makes of both, d and `beside` wide, with nothing more to take off; rows and
    layers are as wide, the embeddings those of the first, so that what is learned of the second begins with nothing.

    Formal guarantees:
        untrained_head_equals_mips: before training the order of documents is that of the cosine with e_d.
        untouched_rows_keep_their_embedding: a row that is not active never moves.
    """

    embeddings: Tensor
    centre: Tensor
    active: Tensor
    centres: Tensor

    def __init__(
        self,
        embeddings: NDArray[np.float32],
        *,
        centre: NDArray[np.float32] | None = None,
        kind: str = "linear",
        pre_classifier: int = 0,
        query_map: bool = False,
        seed: int = 0,
        beside: int = 0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise FedcarError(f'--head "{kind}": not known; give one of {", ".join(KINDS)}')
        if pre_classifier < 0:
            raise FedcarError(f"--pre-classifier {pre_classifier}: must be 0 (none) or the width of the layer")
        documents, dimension = len(embeddings), embeddings.shape[1] + beside
        self.kind = kind
        self.beside = beside
        self.register_buffer("embeddings", functional.normalize(torch.tensor(embeddings), dim=1))
        usual = torch.zeros(dimension) if centre is None else torch.tensor(centre)
        self.register_buffer("centre", torch.zeros(dimension) if beside else usual)
        if beside:
            self.register_buffer("centres", usual)
        self.register_buffer("active", torch.zeros(documents, dtype=torch.bool))
        self.rows = nn.Parameter(torch.zeros(documents, dimension))
        self.log_scale = nn.Parameter(torch.tensor(math.log(START_SCALE)))
        self.pre_classifier = pre_classifier
        self.query_map = query_map
        if query_map:
            self.map = nn.Parameter(torch.zeros(embeddings.shape[1], dimension))
        if pre_classifier:
            generator = torch.Generator().manual_seed(seed)
            self.inner = nn.Parameter(torch.randn(pre_classifier, dimension, generator=generator) / dimension**0.5)
            self.outer = nn.Parameter(torch.zeros(dimension, pre_classifier))

    def inputs(self, states: NDArray[np.void]) -> NDArray[np.float32]:
        """States of questions, records (n,) of `FrozenModel.state_type` -> what everything here calls hidden states."""
        return inputs_of(states, self.centres.numpy() if self.beside else None)

    def forward(self, hidden_states: Tensor, documents: Tensor | None = None) -> Tensor:
        """Hidden states (b, d) -> scores (b, n); of the chosen rows alone with `documents` (b, c): (b, c)."""
        query, scale = self.query_vectors(hidden_states), self.log_scale.exp()
        if self.kind == "cosine":
            embeddings = functional.pad(self.embeddings, (0, self.beside))
            trained = functional.normalize(embeddings + self.rows * self.active.unsqueeze(1), dim=1)
            vectors = torch.where(self.active.unsqueeze(1), trained, embeddings)
            scores = scale * _products(query, vectors, documents)
        else:
            scores = scale * self._of_embeddings(query, documents) + self._of_rows(query, documents)
        return scores + _products(query @ self.map.T, self.embeddings, documents) if self.query_map else scores

    def learned(self, hidden_states: Tensor, untrained: Tensor, documents: Tensor | None = None) -> Tensor:
        """What training has added to the score: `forward` less s cos(h, e_d) of the untrained hidden states.

        Exactly 0 before training, and for an untouched row unless an adapter or pre-classifier moved the question.
        """
        original, scale = functional.normalize(untrained, dim=1), self.log_scale.exp()
        if self.kind == "cosine":
            return self.forward(hidden_states, documents) - scale * self._of_embeddings(original, documents)
        query = self.query_vectors(hidden_states)
        moved = scale * (query - original)[:, : self.embeddings.shape[1]]
        if self.query_map:
            moved = moved + query @ self.map.T
        return _products(moved, self.embeddings, documents) + self._of_rows(query, documents)

    def _of_embeddings(self, query: Tensor, documents: Tensor | None) -> Tensor:
        """The first encoder's part of g(h) . e_d."""
        return _products(query[:, : self.embeddings.shape[1]], self.embeddings, documents)

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
        adapted, original = (torch.tensor(np.ascontiguousarray(states)) for states in (hidden_states, untrained))
        chosen = None if candidates is None else torch.from_numpy(candidates)
        scores: NDArray[np.float32] = self.learned(adapted, original, chosen).numpy()
        return scores

    def added(self, hidden_states: NDArray[np.float32]) -> Head:
        """With documents of these hidden states (m, d) behind the others; each array is copied once."""
        new = functional.normalize(torch.from_numpy(hidden_states), dim=1)
        return self._changed(slice(None), new)

    def without(self, places: Sequence[int]) -> Head:
        """Without the documents at these places; the others move up."""
        left = torch.ones(len(self.rows), dtype=torch.bool)
        left[list(places)] = False
        return self._changed(left, self.embeddings[:0])

    def updated(self, places: Sequence[int], hidden_states: NDArray[np.float32]) -> Head:
        """With the documents at these places behind the others, by new hidden states (m, d); rows go with them."""
        order = torch.tensor([*sorted({*range(len(self.rows))} - {*places}), *places])
        new = functional.normalize(torch.from_numpy(hidden_states), dim=1)
        state = self.state_dict()
        state |= {name: state[name][order] for name in ("rows", "active")}
        state["embeddings"] = torch.cat([self.embeddings[order[: -len(places)]], new])
        return Head.of_state(state, **self.layers)

    def _changed(self, left: slice | Tensor, new: Tensor) -> Head:
        state = self.state_dict()
        rows, active = torch.zeros(len(new), self.rows.shape[1]), torch.zeros(len(new), dtype=torch.bool)
        by_row = {"embeddings": new, "rows": rows, "active": active}
        for name, behind in by_row.items():
            chosen = state[name][left]
            state[name] = torch.cat([chosen, behind]) if len(behind) else chosen
        return Head.of_state(state, **self.layers)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], **layers: Any) -> Head:  # noqa: ANN401 - those of `layers`
        """The head that has these tensors; they are taken as they are."""
        head = cls(np.zeros((0, state["embeddings"].shape[1]), dtype=np.float32), **layers)
        head._take(state)
        return head

    def _take(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in state.items():
            setattr(self, name, nn.Parameter(tensor) if name in self._parameters else tensor)

    @property
    def layers(self) -> dict[str, Any]:
        """What it was made with, beside the embeddings."""
        beside = {"beside": self.beside} if self.beside else {}
        return {"kind": self.kind, "pre_classifier": self.pre_classifier, "query_map": self.query_map, **beside}

    def __getstate__(self) -> dict[str, Any]:
        """Plain arrays: another process would get tensors as shared memory, which arrays over them do not survive."""
        return {"layers": self.layers, "arrays": {name: at.numpy() for name, at in self.state_dict().items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__getstate__`."""
        tensors = {name: torch.from_numpy(array) for name, array in state["arrays"].items()}
        Head.__init__(self, np.zeros((0, tensors["embeddings"].shape[1]), dtype=np.float32), **state["layers"])
        self._take(tensors)

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
