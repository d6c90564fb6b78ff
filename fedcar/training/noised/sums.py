"""Clipped sums over a device's questions: counts, class sums and gradients, before any noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from fedcar.encoder.adapter import Adapter, SoftEmbedding
from fedcar.encoder.reading import batches_by_length
from fedcar.head.head import START_SCALE
from fedcar.head.losses import candidate_losses
from fedcar.privacy.clip import Clipped, Groups, Part, clip, clip_update, linear_head, output_gradients
from fedcar.privacy.clip_adapter import diagonal_adapter, full_adapter, low_rank_adapter
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED
from fedcar.training.noised.plan import MOST_WEIGHT
from fedcar.training.noised.whitening import usual_vectors, whitening

CELLS_AT_ONCE = 1 << 22  # of (questions, documents) in memory at a time, in float64
TOKENS_AT_ONCE = 4096  # of questions that go through the encoder together
EVIDENCE_SHARE = 0.25  # of the evidence's default weights, beside rows; chosen on dev splits, fixed
ADAPTER_SCALE = 0.1  # what is trained is the adapter's difference to the identity over this: one clip norm fits both
COUNT, SUMS, ROWS, BELOW = "count", "sums", "rows", "below"
BELOW_SHARE = 0.01  # of a question's squared length in a step goes to whether it was clipped, where the norm adapts

Tensors = Mapping[str, Tensor]
Rows = Tensor | slice


class ClippedSums:
    """A device's questions as the sums need them: x (n, d), candidates (n, c), offset (n, c), relevance (n, c).

    With `persons` the questions of one person count as one in every sum, whose unit a person then is.
    x is the centred hidden state of unit length, whitened (see `whitening`) and so about 1 long. Which documents have
    questions is nowhere: every row is trained.
    Every sum is float64 until it is noised. So are the scores it is made of, but for those out of the encoder itself:
    in float32 a question's gradient depends a little on the others of its batch.

    Formal guarantees:
        one_question_moves_a_sum_by_at_most_its_sensitivity.
    """

    def __init__(
        self,
        retriever: Retriever,
        questions: Questions,
        adapter: Adapter | None = None,
        persons: Sequence[str] | None = None,
    ) -> None:
        """`persons` (n,): who asked each question, where persons are the unit."""
        self.head = retriever.head
        self.encoder = retriever.encoder.with_adapter(adapter)
        self.documents = len(retriever.documents)
        self.untrained = torch.from_numpy(np.ascontiguousarray(questions.hidden_states))
        self.whitening = whitening(retriever)
        self.x = usual_vectors(self.untrained, self.head.centre) @ self.whitening
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
        self.person: Tensor | None = None
        if persons is not None:
            numbers = {person: number for number, person in enumerate(dict.fromkeys(persons))}
            self.person = torch.tensor([numbers[person] for person in persons], dtype=torch.long)
        self.all_batches: dict[bool, list[list[Rows]]] = {}
        self.token_ids: list[list[int]] = []
        if adapter is not None:
            with self.encoder.model.without_remarks():  # how many are cut is nobody else's business
                self.token_ids = self.encoder.tokenize(questions.texts)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def units(self) -> int:
        """How many questions, or persons where these are the unit, there are."""
        return len(self) if self.person is None else int(self.person.max()) + 1 if len(self) else 0

    def counts(self) -> Tensor:
        """What the count gives out: how many questions; of persons how many, and what they weigh together (2,).

        A person who asked k questions counts as the root of k (at most 7), over 7, since that is how far the sum of k
        clipped gradients usually reaches above one of them. One person moves both by a length of at most the root of 2.
        """
        if self.person is None:
            return torch.tensor([len(self)], dtype=torch.float64)
        asked = torch.bincount(self.person, minlength=self.units).double()
        return torch.stack([(asked > 0).double().sum(), person_weights(asked).sum() / MOST_WEIGHT])

    def rows_of(self, units: Tensor) -> Tensor:
        """The rows of the questions of these units, which are places of questions or of persons."""
        return units if self.person is None else torch.isin(self.person, units).nonzero().flatten()

    def class_sums(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """For each document the sum of its questions' x, (documents, d); one question moves it by at most 1.

        A question of several documents is shared out among them: its targets have length 1 together. So has a person's
        part of the sum.
        """

        def parts(rows: Rows) -> list[Part]:
            targets = functional.normalize(self.targets[rows].double(), dim=1)
            return [linear_head(targets, self.x[rows])]

        total = {ROWS: torch.zeros(self.documents, self.x.shape[1])}
        return {SUMS: self.added(parts, self.batches(rows), 1.0, total)[0][ROWS]}

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
        return {**scaled, BELOW: torch.tensor([2 * BELOW_SHARE**0.5 * below], dtype=torch.float64)}

    def clipped(self, state: Tensors, clip_norm: float, rows: Tensor | None) -> tuple[dict[str, Tensor], float]:
        """Sums of clipped gradients; the number of those that were not clipped less half of all."""
        batches = self.batches(rows, through_the_encoder=self.adapter is not None)
        return self.added(lambda batch: self.parts(state, batch), batches, clip_norm, state)

    def added(
        self, parts: Callable[[Rows], list[Part]], batches: Iterable[list[Rows]], clip_norm: float, like: Tensors
    ) -> tuple[dict[str, Tensor], float]:
        """The clipped sums over these batches, and how many units were not clipped less half of all."""
        total, below = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in like.items()}, 0.0
        for batch in batches:
            clipping = self.clipping(parts, batch, clip_norm)
            below += clipping.examples / 2 - clipping.clipped - (clipping.non_finite if self.person is None else 0)
            for name, tensor in clipping.sums.items():
                total[name] += tensor
        return total, below

    def clipping(self, parts: Callable[[Rows], list[Part]], batch: list[Rows], clip_norm: float) -> Clipped:
        """One batch clipped; by person where these are the unit. Several parts are those of one who fits into none."""
        if self.person is None or not len(self.person[batch[0]]):
            return clip(parts(batch[0]), clip_norm)
        if len(batch) == 1:
            of = torch.unique(self.person[batch[0]], return_inverse=True)[1]
            return clip(parts(batch[0]), clip_norm, Groups(of))
        found = [clip(parts(rows), clip_norm) for rows in batch]
        whole = {name: torch.stack([one.sums[name] for one in found]).sum(0) for name in found[0].sums}
        person = clip_update(whole, clip_norm)
        return replace(person, clipped=int(person.clipped or any(one.clipped for one in found)))

    @property
    def at_once(self) -> int:
        """How many questions: their scores for all documents, and their x, fit into memory."""
        return max(1, CELLS_AT_ONCE // max(self.documents, self.x.shape[1]))

    def batches(self, rows: Tensor | None, *, through_the_encoder: bool = False) -> Iterable[list[Rows]]:
        """Parts that fit into memory, slices where all take part; through the encoder texts of like length together.

        A person's questions are in one batch, or in a batch of several parts that holds nobody else's.
        """
        if rows is None and self.person is not None:
            if through_the_encoder not in self.all_batches:
                everyone = self.whole_persons(torch.arange(len(self)), through_the_encoder)
                self.all_batches[through_the_encoder] = list(everyone)
            return self.all_batches[through_the_encoder]
        if self.person is not None and rows is not None:
            return self.whole_persons(rows, through_the_encoder)
        if through_the_encoder:
            chosen = torch.arange(len(self)) if rows is None else rows
            lengths = [len(self.token_ids[row]) for row in chosen.tolist()]
            return ([chosen[places]] for places in batches_by_length(lengths, TOKENS_AT_ONCE))
        if rows is None:
            return ([slice(start, start + self.at_once)] for start in range(0, len(self), self.at_once))
        return ([part] for part in torch.split(rows, self.at_once))

    def whole_persons(self, rows: Tensor, through_the_encoder: bool) -> Iterator[list[Rows]]:
        """Batches of whole persons, those with long questions first; one who does not fit in parts, alone."""
        assert self.person is not None
        most = TOKENS_AT_ONCE if through_the_encoder else self.at_once
        asked: dict[int, list[int]] = {}
        for row, person in zip(rows.tolist(), self.person[rows].tolist(), strict=True):
            asked.setdefault(person, []).append(row)
        lengths = [len(ids) for ids in self.token_ids] if through_the_encoder else [1] * len(self)
        longest = {person: max(1, *(lengths[row] for row in own)) for person, own in asked.items()}
        batch: list[int] = []
        width = 1
        for person in sorted(asked, key=lambda person: -longest[person]):
            own = asked[person]
            if batch and width * (len(batch) + len(own)) > most:
                yield [torch.tensor(batch)]
                batch = []
            if longest[person] * len(own) > most:
                yield list(torch.split(torch.tensor(own), max(1, most // longest[person])))
                continue
            width = width if batch else longest[person]
            batch += own
        if batch:
            yield [torch.tensor(batch)]

    def parts(self, state: Tensors, rows: Rows) -> list[Part]:
        """What one batch's gradients are made of: rows alone, or rows and adapter by one backward pass."""
        x = self.x[rows].double()
        if not len(x):
            return [Part(torch.zeros(0), lambda factors, keep: {n: torch.zeros_like(t) for n, t in state.items()})]
        if isinstance(rows, Tensor) and self.adapter is not None:
            return self.parts_through_the_encoder(state, rows)
        logits = self.offset[rows] + self.row_scores(x, state[ROWS].double(), rows)
        logits.requires_grad_(True)
        (slopes,) = output_gradients(candidate_losses(logits, self.relevance[rows]), [logits])
        return [linear_head(self.scattered(slopes, rows), x)]

    def row_scores(self, x: Tensor, rows: Tensor, chosen: Rows) -> Tensor:
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
        x = usual_vectors(hidden, self.head.centre) @ self.whitening
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

    def scattered(self, slopes: Tensor, rows: Rows) -> Tensor:
        """Slopes of the candidates' scores (b, c) -> of all documents' (b, documents)."""
        if self.all_in_order:
            return slopes
        zeros = torch.zeros(len(slopes), self.documents, dtype=slopes.dtype)
        return zeros.scatter(1, self.candidates[rows], slopes)


def person_weights(questions: Tensor) -> Tensor:
    """How many persons of one question each a person of so many questions is worth."""
    return questions.sqrt().clamp(max=MOST_WEIGHT)


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
