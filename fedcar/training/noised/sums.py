"""Clipped sums over a device's questions: counts, class sums and gradients, before any noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from fedcar.encoder.adapter import Adapter, SoftEmbedding
from fedcar.encoder.reading import batches_by_length
from fedcar.head.head import START_SCALE
from fedcar.head.losses import candidate_losses
from fedcar.privacy.clip import Part, clip, linear_head, output_gradients
from fedcar.privacy.clip_adapter import diagonal_adapter, full_adapter, low_rank_adapter
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED

CELLS_AT_ONCE = 1 << 23  # of (questions, documents) in memory at a time
TOKENS_AT_ONCE = 4096  # of questions that go through the encoder together
EVIDENCE_SHARE = 0.25  # of the evidence's default weights, beside rows; chosen on dev splits, fixed
ADAPTER_SCALE = 0.1  # what is trained is the adapter's difference to the identity over this: one clip norm fits both
COUNT, SUMS, ROWS, BELOW = "count", "sums", "rows", "below"
BELOW_SHARE = 0.01  # of a question's squared length in a step goes to whether it was clipped, where the norm adapts

Tensors = Mapping[str, Tensor]


class ClippedSums:
    """A device's questions as the sums need them: x (n, d), candidates (n, c), offset (n, c), relevance (n, c).

    x is the centred hidden state of unit length. Which documents have questions is nowhere: every row is trained.
    """

    def __init__(self, retriever: Retriever, questions: Questions, adapter: Adapter | None = None) -> None:
        self.head = retriever.head
        self.encoder = retriever.encoder.with_adapter(adapter)
        self.documents = len(retriever.documents)
        self.untrained = torch.from_numpy(np.ascontiguousarray(questions.hidden_states))
        self.x = usual_vectors(self.untrained, self.head.centre)
        self.candidates = torch.from_numpy(questions.candidates)
        every = torch.arange(self.documents)
        self.all_in_order = self.candidates.shape[1:] == every.shape and bool((self.candidates == every).all())
        rows = {document.id: row for row, document in enumerate(retriever.documents)}
        targets = np.where(retriever.empty, 0.0, questions.targets(rows).toarray())
        self.targets = torch.from_numpy(targets.astype(np.float32))
        empty = retriever.empty[questions.candidates]
        offset = EVIDENCE_SHARE * (questions.evidence @ retriever.weights[:LEARNED])
        self.offset = torch.from_numpy(np.where(empty, -np.inf, offset).astype(np.float32))
        self.relevance = torch.from_numpy(np.where(empty, 0.0, questions.relevance).astype(np.float32))
        self.adapter = adapter
        self.token_ids: list[list[int]] = []
        if adapter is not None:
            with self.encoder.model.without_remarks():  # how many are cut is nobody else's business
                self.token_ids = self.encoder.tokenize(questions.texts)

    def __len__(self) -> int:
        return len(self.x)

    def class_sums(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """For each document the sum of its questions' x, (documents, d); one question moves it by at most 1.

        A question of several documents is shared out among them: its targets have length 1 together.
        """
        chosen = torch.arange(len(self)) if rows is None else rows
        total = torch.zeros(self.documents, self.x.shape[1])
        for part in torch.split(chosen, max(1, CELLS_AT_ONCE // self.documents)):
            total += clip([linear_head(functional.normalize(self.targets[part], dim=1), self.x[part])], 1.0).sums[ROWS]
        return {SUMS: total}

    def gradients(self, state: Tensors, clip_norm: float, rows: Tensor | None = None) -> dict[str, Tensor]:
        """The clipped gradients of the chosen questions' losses, summed, by the names of `state`; zeros for none."""
        return self.clipped(state, clip_norm, rows)[0]

    def gradients_and_below(self, state: Tensors, clip_norm: float, rows: Tensor | None = None) -> dict[str, Tensor]:
        """The same in units of the clip norm, and how many gradients are no longer than it, for the next one.

        One question's gradient and its bit less a half, scaled, have length 1 together at most: they are noised as one
        sum (Andrew et al. 2021, section 3, where the two noises are split alike).
        """
        sums, below = self.clipped(state, clip_norm, rows)
        scaled = {name: (1 - BELOW_SHARE) ** 0.5 / clip_norm * tensor for name, tensor in sums.items()}
        return {**scaled, BELOW: torch.tensor([2 * BELOW_SHARE**0.5 * below])}

    def clipped(self, state: Tensors, clip_norm: float, rows: Tensor | None) -> tuple[dict[str, Tensor], float]:
        """Sums of clipped gradients; the number of those that were not clipped less half of all."""
        total, below = {name: torch.zeros_like(tensor) for name, tensor in state.items()}, 0.0
        for part in self.batches(rows):
            clipping = clip(self.parts(state, part), clip_norm)
            below += clipping.examples / 2 - clipping.clipped - clipping.non_finite
            for name, tensor in clipping.sums.items():
                total[name] += tensor
        return total, below

    def batches(self, rows: Tensor | None) -> Iterator[Tensor | slice]:
        """Parts that fit into memory, slices where all take part; through the encoder texts of like length together."""
        size = max(1, CELLS_AT_ONCE // self.documents)
        if self.adapter is not None:
            chosen = torch.arange(len(self)) if rows is None else rows
            lengths = [len(self.token_ids[row]) for row in chosen.tolist()]
            yield from (chosen[places] for places in batches_by_length(lengths, TOKENS_AT_ONCE))
        elif rows is None:
            yield from (slice(start, start + size) for start in range(0, len(self), size))
        else:
            yield from torch.split(rows, size)

    def parts(self, state: Tensors, rows: Tensor | slice) -> list[Part]:
        """What one batch's gradients are made of: rows alone, or rows and adapter by one backward pass."""
        x = self.x[rows]
        if not len(x):
            return [Part(torch.zeros(0), lambda factors, keep: {n: torch.zeros_like(t) for n, t in state.items()})]
        if isinstance(rows, Tensor) and self.adapter is not None:
            return self.parts_through_the_encoder(state, rows)
        logits = self.offset[rows] + self.row_scores(x, state[ROWS], rows)
        logits.requires_grad_(True)
        (slopes,) = output_gradients(candidate_losses(logits, self.relevance[rows]), [logits])
        return [linear_head(self.scattered(slopes, rows), x)]

    def row_scores(self, x: Tensor, rows: Tensor, chosen: Tensor | slice) -> Tensor:
        """Inner products (b, c) of the chosen questions' x with their candidates' rows."""
        return x @ rows.T if self.all_in_order else row_scores(x, rows, self.candidates[chosen])

    def parts_through_the_encoder(self, state: Tensors, rows: Tensor) -> list[Part]:
        adapter = self.encoder.adapter
        assert adapter is not None
        load_adapter(adapter, state)
        tape = record_embeddings(self.encoder.transformer.get_input_embeddings())
        hidden = self.encoder.hidden_states([self.token_ids[row] for row in rows.tolist()])
        before, after = tape()
        hidden = hidden.cpu()
        x = usual_vectors(hidden, self.head.centre)
        candidates = self.candidates[rows]
        moved = functional.normalize(hidden, dim=1) - functional.normalize(self.untrained[rows], dim=1)
        logits = self.offset[rows] + row_scores(x, state[ROWS], candidates)
        logits = logits + START_SCALE * row_scores(moved, self.head.embeddings, candidates)
        losses = candidate_losses(logits, self.relevance[rows])
        slopes, soft = output_gradients(losses, [logits, after])
        soft, before = (ADAPTER_SCALE * soft).cpu(), before.cpu()
        head = linear_head(self.scattered(slopes, rows), x.detach())
        if adapter.variant == "full":
            return [head, full_adapter(soft, before, name="difference")]
        if adapter.variant == "diagonal":
            return [head, diagonal_adapter(soft, before, name="difference")]
        return [head, low_rank_adapter(soft, before, adapter.left.detach(), adapter.right.detach())]

    def scattered(self, slopes: Tensor, rows: Tensor | slice) -> Tensor:
        """Slopes of the candidates' scores (b, c) -> of all documents' (b, documents)."""
        if self.all_in_order:
            return slopes
        return torch.zeros(len(slopes), self.documents).scatter(1, self.candidates[rows], slopes)


def usual_vectors(hidden_states: Tensor, centre: Tensor) -> Tensor:
    """Hidden states (n, d) of unit length less the encoder's usual direction, of unit length: what rows multiply."""
    return functional.normalize(functional.normalize(hidden_states, dim=1) - centre, dim=1)


def row_scores(x: Tensor, rows: Tensor, candidates: Tensor) -> Tensor:
    """Inner products (b, c) of x (b, d) with the candidates' rows."""
    if candidates.shape[1] == len(rows):
        return (x @ rows.T).gather(1, candidates)
    return torch.einsum("bd,bcd->bc", x, rows[candidates])


@torch.no_grad()
def load_adapter(adapter: Adapter, state: Tensors) -> None:
    """Put the state's tensors (in units of ADAPTER_SCALE) into the adapter."""
    for name, tensor in adapter.named_parameters():
        tensor.copy_(ADAPTER_SCALE * state[name])


def record_embeddings(module: SoftEmbedding) -> Callable[[], tuple[Tensor, Tensor]]:
    """From now on, once: what goes into the adapter and what comes out of it, which joins the graph as a leaf."""
    taken: list[tuple[Tensor, Tensor]] = []

    def forward(token_ids: Tensor) -> Tensor:
        before = module.embedding(token_ids)
        after = module.adapter(before).detach().requires_grad_(True)
        taken.append((before, after))
        return after  # type: ignore[no-any-return]

    module.forward = forward  # type: ignore[method-assign]

    def tape() -> tuple[Tensor, Tensor]:
        del module.forward
        return taken[0]

    return tape
