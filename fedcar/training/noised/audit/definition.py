"""What the questions add to each sum, one after the other, from the definitions: float64, autograd, nothing clever.

Nothing of the product's sums, clipping or closed-form gradients is used here: a loss is written out, its gradient is
autograd's, its norm is that of one flat vector.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedcar.encoder.adapter import Adapter
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.reading import padded
from fedcar.head.head import START_SCALE
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED
from fedcar.training.noised.clients import NoisedRequest
from fedcar.training.noised.plan import HELD_OUT
from fedcar.training.noised.server import retriever_of
from fedcar.training.noised.sums import ADAPTER_SCALE, BELOW, BELOW_SHARE, COUNT, EVIDENCE_SHARE, ROWS
from fedcar.training.noised.whitening import whitening

Floats = NDArray[np.float64]
QUESTIONS_AT_ONCE = 12
ON_THE_EDGE = 1e-4  # a norm so near to the clip norm may count as below it or not


class OwnAdapters(nn.Module):
    """The embedding with an adapter of its own behind it for each text of a batch, as leaves of autograd."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.leaves: Mapping[str, Tensor] = {}

    def forward(self, token_ids: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(token_ids)
        scaled = {name: ADAPTER_SCALE * leaf for name, leaf in self.leaves.items()}
        if "left" in scaled:
            return embedded + (embedded @ scaled["right"]) @ scaled["left"].mT
        difference = scaled["difference"]
        if difference.dim() == 2:
            return embedded + embedded * difference[:, None]
        return embedded + embedded @ difference.mT


class Blocks:
    """A copy of the frozen model in float64."""

    def __init__(self, encoder: Encoder) -> None:
        self.model, self.encoder = encoder.model, encoder
        self.pooler = copy.deepcopy(encoder.model.pooler).cpu().double()
        self.transformer = copy.deepcopy(encoder.model.behind(OwnAdapters(encoder.model.embedding))).cpu().double()

    def hidden_states(self, texts: list[str], leaves: Mapping[str, Tensor]) -> Tensor:
        """(n, d), each with its own adapter."""
        arrays = padded(self.encoder.tokenize(texts), self.model.padding_id, self.encoder.left_out)
        token_ids, mask = (torch.from_numpy(array) for array in arrays)
        self.transformer.get_input_embeddings().leaves = leaves
        last = self.transformer(input_ids=token_ids, attention_mask=self.pooler.read(mask)).last_hidden_state
        pooled: Tensor = self.pooler(last, mask)
        return pooled


class Definition:
    """The terms of one client's questions in every sum, flat and in the order of `names_of`."""

    def __init__(
        self, untrained: Retriever, questions: Questions, blocks: Blocks | None, held_out: Questions | None = None
    ) -> None:
        self.untrained, self.questions, self.blocks, self.held_out = untrained, questions, blocks, held_out
        self.embeddings = untrained.head.embeddings.double()
        self.centre = untrained.head.centre.double()
        self.whitening = whitening(untrained).double()
        self.untrained_states = torch.from_numpy(np.ascontiguousarray(questions.hidden_states)).double()
        self.x = self.inputs(self.untrained_states)
        evidence = questions.evidence.astype(np.float64) @ untrained.weights[:LEARNED].astype(np.float64)
        self.offset = torch.from_numpy(EVIDENCE_SHARE * evidence)
        self.candidates = torch.from_numpy(questions.candidates)
        self.answerable = torch.from_numpy(~untrained.empty[questions.candidates])
        self.relevance = torch.from_numpy(questions.relevance).double()

    def __len__(self) -> int:
        return len(self.questions)

    def inputs(self, hidden_states: Tensor) -> Tensor:
        """What rows multiply: unit length, less the usual direction, unit length, whitened by public texts."""
        lengths: Tensor = hidden_states.norm(dim=1, keepdim=True)
        centred: Tensor = hidden_states / lengths - self.centre
        unit: Tensor = centred / centred.norm(dim=1, keepdim=True)
        return unit @ self.whitening

    def terms(self, request: NoisedRequest) -> Iterator[tuple[Floats, bool]]:
        """What each question adds, and whether its gradient's norm is on the edge of the clip norm."""
        name = request.release.name
        if name == COUNT:
            yield from ((np.ones(1), False) for _ in range(len(self)))
        elif name == HELD_OUT:
            yield from ((term, False) for term in self.held_out_terms(request))
        elif not request.state:
            yield from ((self.class_term(row), False) for row in range(len(self)))
        else:
            for gradient in self.gradients(request.state):
                yield clipped(gradient, float(request.release.sensitivity or 0.0), request.adaptive)

    def class_term(self, row: int) -> Floats:
        """The question's x, no longer than 1, at each document that answers it, by its share, of length 1 together."""
        rows = {document.id: place for place, document in enumerate(self.untrained.documents)}
        term = np.zeros((len(rows), self.x.shape[1]))
        judged = {rows[name]: score for name, score in self.questions.relevant[row].items() if score > 0}
        judged = {place: score for place, score in judged.items() if not self.untrained.empty[place]}
        length = sum(score**2 for score in judged.values()) ** 0.5
        x = self.x[row].numpy()
        for place, score in judged.items():
            term[place] = score / length * x / max(1.0, float(np.linalg.norm(x)))
        return term.reshape(-1)

    def held_out_terms(self, request: NoisedRequest) -> Iterator[Floats]:
        """For each held-out question 1, whether search gets it right, whether the state does."""
        if self.held_out is None or not len(self.held_out):
            return
        adapter = self.adapter_of(request.state)
        retrievers = (self.untrained, retriever_of(self.untrained, request.state, adapter))
        scores = [retriever.scores_of(self.held_out) for retriever in retrievers]
        for row, relevance in enumerate(self.held_out.relevance):
            right = [float(relevance[int(np.argmax(of[row]))] > 0) for of in scores]
            yield np.array([1.0, *right])

    def adapter_of(self, state: Mapping[str, Tensor]) -> Adapter | None:
        """One of the form that the state has."""
        if "left" in state:
            return Adapter(f"lowrank:{state['left'].shape[1]}", state["left"].shape[0])
        if "difference" not in state:
            return None
        return Adapter("full" if state["difference"].dim() == 2 else "diagonal", state["difference"].shape[0])

    def gradients(self, state: Mapping[str, Tensor]) -> Iterator[Floats]:
        """Of each question's loss at the state, in the order of its names."""
        size = QUESTIONS_AT_ONCE if len(state) > 1 else 1
        for start in range(0, len(self), size):
            rows = range(start, min(start + size, len(self)))
            leaves = {
                name: tensor.double().expand(len(rows), *tensor.shape).clone().requires_grad_(True)
                for name, tensor in state.items()
            }
            losses = self.losses(leaves, rows)
            found = torch.autograd.grad(losses, [leaves[name] for name in state], allow_unused=True)
            whole = [
                torch.zeros_like(leaves[name]) if one is None else one for name, one in zip(state, found, strict=True)
            ]
            for row in range(len(rows)):
                yield torch.cat([tensor[row].reshape(-1) for tensor in whole]).numpy()

    def losses(self, leaves: Mapping[str, Tensor], rows: range) -> Tensor:
        """The sum of the losses, each of which depends on its own leaves alone."""
        x = [self.x[row] for row in rows]
        moved: list[Tensor] | None = None
        if len(leaves) > 1:
            assert self.blocks is not None
            adapters = {name: leaf for name, leaf in leaves.items() if name != ROWS}
            hidden = self.blocks.hidden_states([self.questions.texts[row] for row in rows], adapters)
            before = self.untrained_states[rows.start : rows.stop]
            x = list(self.inputs(hidden))
            moved = list(hidden / hidden.norm(dim=1, keepdim=True) - before / before.norm(dim=1, keepdim=True))
        total = torch.zeros((), dtype=torch.float64, requires_grad=True) * 1.0
        for place, row in enumerate(rows):
            kept = self.answerable[row]
            documents = self.candidates[row][kept]
            scores = self.offset[row][kept] + leaves[ROWS][place][documents] @ x[place]
            if moved is not None:
                scores = scores + START_SCALE * self.embeddings[documents] @ moved[place]
            total = total + loss(scores, self.relevance[row][kept])
        return total


def loss(scores: Tensor, relevance: Tensor) -> Tensor:
    """Each relevant candidate against all that are not relevant, by its share of the relevance."""
    relevant = relevance > 0
    total = scores.sum() * 0.0
    for score, weight in zip(scores[relevant], relevance[relevant] / relevance.sum(), strict=True):
        total = total + weight * (torch.logsumexp(torch.cat([score[None], scores[~relevant]]), 0) - score)
    return total


def clipped(gradient: Floats, clip_norm: float, adaptive: float | None) -> tuple[Floats, bool]:
    """A gradient no longer than the clip norm; where that adapts in units of it, with the bit."""
    bound = clip_norm if adaptive is None else adaptive
    norm = float(np.linalg.norm(gradient))
    kept = gradient * min(1.0, bound / max(norm, 1e-300))
    if adaptive is None:
        return kept, False
    bit = 0.5 if norm <= bound else -0.5
    scaled = (1 - BELOW_SHARE) ** 0.5 / bound * kept
    return np.append(scaled, 2 * BELOW_SHARE**0.5 * bit), abs(norm / bound - 1) < ON_THE_EDGE


def names_of(request: NoisedRequest) -> list[str]:
    """The tensors of an answer, in the order in which they are laid flat."""
    if request.release.name in (COUNT, HELD_OUT):
        return [request.release.name]
    if not request.state:
        return [ROWS]
    return [*request.state, *([BELOW] if request.adaptive is not None else [])]


def shapes_of(request: NoisedRequest, rows: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Their shapes; `rows` is that of the rows."""
    if request.release.name == COUNT:
        return [(1,)]
    if request.release.name == HELD_OUT:
        return [(3,)]
    if not request.state:
        return [rows]
    of_state = [tuple(tensor.shape) for tensor in request.state.values()]
    return [*of_state, *([(1,)] if request.adaptive is not None else [])]


def starts_of(shapes: list[tuple[int, ...]]) -> list[int]:
    """Where a part begins in what is laid flat: every row of a matrix, every other tensor."""
    starts, place = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        step = shape[1] if len(shape) == 2 else size
        starts += list(range(place, place + size, step))
        place += size
    return starts
