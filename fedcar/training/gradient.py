"""Gradient training of head and adapter: the step ladder fit -> epoch -> step -> loss."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedcar.common.measure import multiplies_bfloat16
from fedcar.common.progress import Silent
from fedcar.encoder.adapter import Adapter
from fedcar.head.head import Head
from fedcar.head.losses import candidate_losses
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import APART, LEARNED, WEIGHT_NAMES, mixed_features
from fedcar.training.adam import Adam, Group
from fedcar.training.checkpoint import Best, Course, Stored
from fedcar.training.folds import MOST_SHARE, Fold
from fedcar.training.gains import Measured, Proof, measures, parts_of
from fedcar.training.mixture import fit_mixture
from fedcar.training.paper_recipe import PaperRecipe
from fedcar.training.row_step import RowStep
from fedcar.training.selection import Fitted, Score, Standard, Weighting, success_and_mrr
from fedcar.training.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray


BATCHES_OF_LIKE_LENGTH = 16
DRAWN_AT_ONCE = 1 << 15  # numbers of a dropout: memory of that size is kept, larger one comes from the system anew


def fit(
    retriever: Retriever,
    training: Questions,
    selection: Questions,
    settings: Settings,
    course: Course,
    report: Silent,
    folds: Sequence[Fold] = (),
    standard: Standard | None = None,
) -> Fitted:
    """Run all epochs on top of the retriever's evidence, score each on the selection questions, return the best.

    With document folds training is done once for each without its documents' questions. A query map, which moves the
    score of every document, is then also scored by what it makes of them; with rows they teach how documents without a
    row are mixed.
    """
    retriever = replace(retriever, weights=with_learned(retriever.weights), head=prepared(retriever.head, settings))
    on_folds = OnFolds.of(retriever, training, settings, folds, report) if folds else None
    of_epochs = standard if standard is not None and settings.query_map else Standard()
    trainer = Trainer(retriever, training, settings)

    def judged(epoch: int, scores: NDArray[np.float32]) -> Score:
        return of_epochs.score(selection, scores, on_folds.success(epoch) if on_folds and settings.query_map else 0.0)

    best = Best(0, judged(0, trainer.offsets(selection)), trainer.trained_tensors())
    if (stored := course.stored()) is not None:
        best = trainer.restored(stored)
    report.say(f"{settings.method}: {len(training)} training questions, {len(retriever.documents)} documents")
    for epoch in range(len(course.history) + 1, settings.epochs + 1):
        start = time.monotonic()
        with report.track(f"epoch {epoch} of {settings.epochs}", len(training)) as advance:
            loss = sum(trainer.epoch(epoch, advance)) / len(training)
        reached = judged(epoch, trainer.scores(selection))
        seconds = round(time.monotonic() - start, 3)
        course.history.add(epoch=epoch, loss=loss, selection=reached.success, seconds=seconds)
        numbers = f"loss {loss:.4f}, selection {reached.success:.3f}, {seconds:.1f} s"
        report.say(f"epoch {epoch} of {settings.epochs}: {numbers}")
        if reached > best.score:
            best = Best(epoch, reached, trainer.trained_tensors())
        course.write(trainer.trained_tensors(), trainer.optimizer.tensors(), best)
    trainer.load_tensors(best.tensors)
    if not best.epoch:
        report.say(f"{settings.method}: no epoch was better on the selection questions than before")
        trainer.reset()
    retriever = replace(retriever, encoder=trainer.encoder)
    if on_folds is None:
        return Fitted(retriever, (Weighting(retriever.weights),))
    return Fitted(retriever, on_folds.weightings(best.epoch, retriever, selection, standard or Standard()))


def with_proof(
    fitted: Fitted,
    mixed: Callable[[Questions], Retriever],
    training: Questions,
    selection: Questions,
    settings: Settings,
    report: Silent,
) -> Fitted:
    """With what training questions say of the same training without them: five more, each without a fifth.

    `mixed` makes the evidence to stand on from the other four fifths.
    """
    features = np.zeros((*training.candidates.shape, len(WEIGHT_NAMES)), dtype=np.float32)
    with report.track("training questions left out", len(training)) as advance:
        for others, left_out in parts_of(training.texts, settings.seed):
            learned_from, asked = training.take(others), training.take(left_out)
            without = fit(mixed(learned_from), learned_from, selection, settings, Course(), Silent())
            features[left_out] = without.retriever.features(asked)
            advance(len(asked))
    empty = fitted.retriever.empty[training.candidates]

    def proved(weighting: Weighting) -> Weighting:
        scores = np.where(empty, -np.inf, features @ weighting.weights)
        seen = Measured(training, measures(training, scores))
        return weighting._replace(proof=Proof(seen, weighting.proof.unseen))

    return replace(fitted, weightings=tuple(map(proved, fitted.weightings)))


@dataclass(frozen=True)
class OnFolds:
    """What training without a fold's questions says of them: `learned` (n, c) after each epoch, from 0 on.

    `questions` are those of all folds, `apart` (n, c) the candidates that had no row when they were asked.
    """

    questions: Questions
    offsets: NDArray[np.float32]
    apart: NDArray[np.bool_]
    learned: tuple[NDArray[np.float32], ...]

    @classmethod
    def of(
        cls, retriever: Retriever, training: Questions, settings: Settings, folds: Sequence[Fold], report: Silent
    ) -> OnFolds:
        rows, offsets, apart, learned = [], [], [], []
        for number, fold in enumerate(folds, 1):
            of_fold = replace(retriever, head=copy.deepcopy(retriever.head))
            trainer, held = Trainer(of_fold, training.take(fold.outside), settings), training.take(fold.inside)
            rows.append(fold.inside)
            offsets.append(trainer.offsets(held))
            apart.append(of_fold.apart[held.candidates])
            of_epochs = [np.zeros_like(offsets[-1])]
            steps = settings.epochs * len(fold.outside)
            with report.track(f"document fold {number} of {len(folds)}", steps) as advance:
                for epoch in range(1, settings.epochs + 1):
                    for _ in trainer.epoch(epoch, advance):
                        pass
                    of_epochs.append(trainer.learned_of(held))
            learned.append(of_epochs)
        together = tuple(map(np.concatenate, zip(*learned, strict=True)))
        return cls(training.take(np.concatenate(rows)), np.concatenate(offsets), np.concatenate(apart), together)

    def success(self, epoch: int) -> float:
        """Success@1 on the folds' questions after an epoch."""
        return success_and_mrr(self.questions.relevance, self.offsets + self.learned[epoch])[0]

    def weightings(
        self, epoch: int, retriever: Retriever, selection: Questions, standard: Standard
    ) -> tuple[Weighting, ...]:
        """The weights as they are, and with what is learned of documents that stand apart.

        Learned on selection questions and the folds' together, folds counting by their share or half.
        """
        learned = np.stack([self.learned[epoch], np.zeros_like(self.learned[epoch])], axis=2)
        features, empty = mixed_features(self.questions.evidence, learned, self.apart), np.isneginf(self.offsets)

        def weighting(weights: NDArray[np.float32]) -> Weighting:
            values = measures(self.questions, np.where(empty, -np.inf, features @ weights))
            proof = Proof(unseen=Measured(self.questions, values))
            return Weighting(weights, float(values[:, 0].mean()), proof)

        weightings = [weighting(retriever.weights)]
        if self.apart.any():
            seen, free = retriever.features(selection), np.arange(len(WEIGHT_NAMES)) >= APART
            relevance = np.concatenate([selection.relevance, self.questions.relevance])
            for share in dict.fromkeys([standard.share, MOST_SHARE]):
                each = [(1 - share) / len(seen)] * len(seen) + [share / len(features)] * len(features)
                importance = np.array(each, dtype=np.float32)
                together = np.concatenate([seen, features])
                weights = fit_mixture(together, relevance, retriever.weights, importance=importance, free=free)
                weightings.append(weighting(weights))
        return tuple(weightings)


def prepared(head: Head, settings: Settings) -> Head:
    """A head of its own for this training, with the layers that the settings ask for."""
    if not settings.query_map:
        return copy.deepcopy(head)
    return Head(
        head.embeddings.numpy(),
        centre=(head.centres if head.beside else head.centre).numpy(),
        kind=head.kind,
        pre_classifier=head.pre_classifier,
        query_map=True,
        seed=settings.seed,
        beside=head.beside,
    )


def with_learned(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the head learns is in the unit of the score: it counts once."""
    weights = weights.copy()
    weights[[LEARNED, APART + LEARNED]] = 1.0
    return weights


class Trainer:
    """The state of a gradient training: head, adapter and their optimiser; one method a rung of the ladder.

    The loss is the softmax over a question's candidates of offset + learned: the offset is the mixture of the evidence,
    which stays; the head learns what the evidence does not say.
    """

    def __init__(self, retriever: Retriever, training: Questions, settings: Settings) -> None:
        self.head = retriever.head
        self.encoder = retriever.encoder.untrained
        self.weights = retriever.weights
        self.empty = retriever.empty
        self.training = training
        self.settings = settings
        if not settings.query_map:
            ids = {document.id: row for row, document in enumerate(retriever.documents)}
            self.head.active.copy_(torch.from_numpy(training.counts(ids) > 0))
        self.token_ids: list[list[int]] = []
        if settings.method == "adapter":
            self.encoder = self.encoder.with_adapter(
                Adapter(settings.adapter, self.encoder.embedding_width, settings.seed),
                halved=multiplies_bfloat16(),
                recomputed=settings.gradient_checkpointing or self.encoder.model.is_large,
            )
            self.token_ids = self.encoder.tokenize(training.texts)
        self.hidden_states = torch.from_numpy(np.ascontiguousarray(self.head.inputs(training.states)))
        self.candidates = torch.from_numpy(training.candidates)
        self.every_document = training.candidates.shape[1] == len(retriever.documents)
        if self.every_document:  # sorted, so that all of them are 0, 1, 2, ...
            self.every_document = bool((training.candidates == np.arange(len(retriever.documents))).all())
        self.offset = torch.from_numpy(self.offsets(training))
        # an empty document is never returned, so a judgement that names one teaches nothing
        self.relevance = torch.from_numpy(np.where(self.empty[training.candidates], 0.0, training.relevance))
        size = min(settings.batch_size, len(training))
        self.inputs = torch.empty(size, self.hidden_states.shape[1])
        only_rows_learn = self.every_document and settings.method == "head" and self.head.has_rows_alone
        self.row_step = RowStep(self.head, self.offset, self.relevance, size) if only_rows_learn else None
        groups = [Group(list(self.head.parameters()), settings.head_rate)]
        if self.encoder.adapter is not None:
            groups.append(Group(list(self.encoder.adapter.parameters()), settings.adapter_rate, settings.adapter_decay))
        self.optimizer = Adam(groups)
        self.treat = PaperRecipe() if settings.recipe == "paper" else None
        self.rates = [group.rate for group in groups]
        self.steps_an_epoch = math.ceil(len(training) / settings.batch_size)

    def epoch(self, epoch: int, advance: Callable[[int], None]) -> Iterator[float]:
        """One pass over the training questions, seeded by seed and epoch; yields each batch's summed loss."""
        self.epoch_running = epoch
        generator = np.random.default_rng([self.settings.seed, epoch])
        self.dropped = np.random.SFC64([self.settings.seed, epoch, 1])
        for number, rows in enumerate(self.batches(generator)):
            self.set_rates(((epoch - 1) * self.steps_an_epoch + number) / (self.settings.epochs * self.steps_an_epoch))
            yield self.step(rows) * len(rows)
            advance(len(rows))

    def batches(self, generator: np.random.Generator) -> list[NDArray[np.int64]]:
        """Row numbers in batches; through the encoder, texts of like length share a batch."""
        order, size = generator.permutation(len(self.training)), self.settings.batch_size
        if self.token_ids:
            lengths = np.array([len(ids) for ids in self.token_ids])
            window = size * BATCHES_OF_LIKE_LENGTH
            parts = [order[start : start + window] for start in range(0, len(order), window)]
            order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        return [batches[place] for place in generator.permutation(len(batches))] if self.token_ids else batches

    def set_rates(self, progress: float) -> None:
        for group, rate in zip(self.optimizer.groups, self.rates, strict=True):
            group.rate = rate * 0.5 * (1 + math.cos(math.pi * progress))

    def step(self, rows: NDArray[np.int64]) -> float:
        """One update of everything that is trained; returns the batch's mean loss."""
        self.optimizer.zero_grad()
        loss = self.backward(rows)
        if self.treat is not None:
            self.treat(self.optimizer.parameters, self.epoch_running)
        self.optimizer.step()
        return loss

    def backward(self, rows: NDArray[np.int64]) -> float:
        """The gradients of a batch put in place; returns its mean loss."""
        further = self.further_penalty()
        if self.row_step is not None:
            hidden = self.with_dropout(self.hidden(torch.from_numpy(rows)))
            loss = self.row_step.gradients(rows, hidden, self.strength)
        else:
            mean = self.loss(torch.from_numpy(rows))
            further = mean + self.penalty() + (0.0 if further is None else further)
            loss = float(mean.detach())
        if further is not None:
            further.backward()  # type: ignore[no-untyped-call]
        return loss

    def loss(self, rows: Tensor) -> Tensor:
        """Mean loss of the questions of a batch (b,)."""
        learned = self.learned(self.with_dropout(self.hidden(rows)), self.hidden_states[rows], self.candidates[rows])
        return candidate_losses(self.offset[rows] + learned, self.relevance[rows]).mean()

    def with_dropout(self, hidden_states: Tensor) -> Tensor:
        """Each number of h set to 0 with the chance `dropout`, in 256ths: no row may lean on a few of them."""
        if not self.settings.dropout:
            return hidden_states
        if hidden_states.requires_grad:
            return hidden_states * self.with_dropout(torch.ones(hidden_states.shape))
        written, limit = hidden_states.numpy(), round(256 * self.settings.dropout)
        at_once = max(1, DRAWN_AT_ONCE // written.shape[1])
        for part in (written[start : start + at_once] for start in range(0, len(written), at_once)):
            drawn = np.asarray(self.dropped.random_raw(-(-part.size // 8))).view(np.uint8)  # a byte a number
            np.multiply(part, (drawn[: part.size] >= limit).reshape(part.shape), out=part)
        return hidden_states

    def hidden(self, rows: Tensor) -> Tensor:
        """Hidden states (b, d): a batch of the cached ones, until the next, or through the adapter."""
        if not self.token_ids:
            return torch.index_select(self.hidden_states, 0, rows, out=self.inputs[: len(rows)])
        token_ids = [self.token_ids[row] for row in rows.tolist()]
        groups = of_like_length(token_ids)
        passes = [self.encoder.hidden_states([token_ids[place] for place in group]) for group in groups]
        return torch.cat(passes).cpu()[torch.tensor([place for group in groups for place in group]).argsort()]

    def learned(self, hidden_states: Tensor, untrained: Tensor, candidates: Tensor) -> Tensor:
        """What the head adds for the candidates (b, c), which may be all documents in their order."""
        return self.head.learned(hidden_states, untrained, None if self.every_document else candidates)

    def penalty(self) -> Tensor:
        """The pull of rows and query map to 0."""
        if self.settings.query_map:
            pull: Tensor = self.strength * self.head.map.square().sum()
            return pull
        penalty: Tensor = self.strength * (2 * self.head.log_scale).exp() * self.head.rows.square().sum()
        return penalty

    @property
    def strength(self) -> float:
        """How much the penalty on |M|^2 or s^2 |r|^2 counts."""
        strength = self.settings.map_penalty if self.settings.query_map else 0.5 / self.settings.inverse_penalty
        return strength / len(self.training)

    def further_penalty(self) -> Tensor | None:
        """What else pulls on everything that is trained; nothing here."""
        return None

    # ---------------------------------------------------------------- scores, and what is trained as named tensors

    def offsets(self, questions: Questions) -> NDArray[np.float32]:
        """The evidence's part of the score (n, c), which training leaves alone; -inf for an empty document."""
        offsets = questions.evidence @ self.weights[:LEARNED]
        return np.where(self.empty[questions.candidates], -np.inf, offsets).astype(np.float32)

    def scores(self, questions: Questions) -> NDArray[np.float32]:
        """Scores of the candidates (n, c) with what is trained so far."""
        return self.offsets(questions) + self.learned_of(questions)

    @torch.inference_mode()
    def learned_of(self, questions: Questions) -> NDArray[np.float32]:
        """What the head adds so far for the questions' candidates (n, c)."""
        untrained = torch.from_numpy(np.ascontiguousarray(self.head.inputs(questions.states)))
        hidden = torch.from_numpy(self.encoder.encode(questions.texts)) if self.token_ids else untrained
        learned: NDArray[np.float32] = self.learned(hidden, untrained, torch.from_numpy(questions.candidates)).numpy()
        return learned

    def parameters(self) -> dict[str, Tensor]:
        """Everything trained, by name: the names of an update."""
        parameters: dict[str, Tensor] = {f"head.{name}": tensor for name, tensor in self.head.named_parameters()}
        if self.encoder.adapter is not None:
            parameters |= {f"adapter.{name}": tensor for name, tensor in self.encoder.adapter.named_parameters()}
        return parameters

    def trained_tensors(self) -> dict[str, Tensor]:
        """A copy of everything trained."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.parameters().items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.parameters().items():
            tensor.copy_(tensors[name])

    def restored(self, stored: Stored) -> Best:
        """Put this training where an epoch left it; returns the best epoch so far."""
        self.load_tensors(stored.trained)
        self.optimizer.load_tensors(stored.optimizer)
        return stored.best

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the untrained head and encoder."""
        self.head.active.fill_(False)
        self.head.rows.zero_()
        if self.head.query_map:
            self.head.map.zero_()
        if self.head.pre_classifier:
            self.head.outer.zero_()
        self.encoder = self.encoder.untrained


def of_like_length(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The places of a batch's texts in groups, each one pass through the encoder, so that few tokens are padding.

    In each the longest text is at most half as long again as the shortest, and 4 more.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(texts)), key=lambda place: len(texts[place])):
        if not groups or len(texts[place]) > 1.5 * len(texts[groups[-1][0]]) + 4:
            groups.append([])
        groups[-1].append(place)
    return groups
