"""What questions that are no secret teach: rows fitted to them, from which noised steps go on. It costs no privacy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from fedcar.collection.collection import Judged, Query
from fedcar.collection.pseudo_queries import PseudoQueries
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.head.losses import candidate_losses
from fedcar.retriever.prepare import prepare
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.job import Job
from fedcar.training.noised.settings import PrivateSettings
from fedcar.training.noised.sums import CELLS_AT_ONCE, ClippedSums

PULL = 0.03  # to where the rows begin, for each squared unit; a question's loss counts 1
PASSES = 100  # of the fit, over all public questions
MEMORY = 10  # of it, in states
ENOUGH = 2.0  # public questions a document, from which on noised class sums are not worth their share of the budget
COVERED = 0.8  # the share of documents that enough public questions are about


@dataclass(frozen=True)
class PublicQuestions:
    """Questions that no promise is made of: `training` for the rows, each of a weight (n,), `selection` to choose by.

    Those of `training` are judged questions, and questions that a language model asked of the documents. No question of
    `selection` trains: on what was trained on every choice looks right.
    """

    training: Questions | None = None
    weights: Tensor | None = None
    selection: Questions | None = None

    @classmethod
    def of(cls, job: Job) -> PublicQuestions:
        """Those of a job, each of weight 1."""
        weights = None if job.public is None else torch.ones(len(job.public))
        return cls(job.public, weights, job.selection if len(job.selection) else None)

    @property
    def source(self) -> str:
        """Where they come from, in the words of the statement."""
        return "documents alone" if self.selection is None else "public dev set"

    def with_generated(
        self, pseudo: PseudoQueries, untrained: Retriever, features: FeatureCache, report: Silent
    ) -> PublicQuestions:
        """Beside these, questions that came from the documents."""
        queries = tuple(Query(f"generated:{number}", text) for number, text in enumerate(pseudo.texts))
        judged = Judged(queries, tuple({document: 1} for document in pseudo.document_ids))
        asked = prepare(untrained, judged, features.public, report, "generated questions")
        weights = torch.from_numpy(pseudo.weights)
        if self.training is None or self.weights is None:
            return replace(self, training=asked, weights=weights)
        return replace(self, training=joined(self.training, asked), weights=torch.cat([self.weights, weights]))


def with_public_rows(settings: PrivateSettings, public: Judged, documents: int) -> PrivateSettings:
    """The settings with what the plan has to know of public questions: whether they are enough to begin with."""
    asked_about = {document for judged in public.relevant for document, score in judged.items() if score > 0}
    enough = len(public) >= ENOUGH * documents and len(asked_about) >= COVERED * documents
    enough = enough and settings.method != "ridge"
    return replace(settings, target=replace(settings.target, public_rows=enough))


def joined(first: Questions, second: Questions) -> Questions:
    """Both, one behind the other; they have as many candidates each."""
    return Questions(
        first.texts + second.texts,
        np.concatenate([first.states, second.states]),
        np.concatenate([first.candidates, second.candidates]),
        np.concatenate([first.evidence, second.evidence]),
        np.concatenate([first.relevance, second.relevance]),
        first.relevant + second.relevant,
    )


class PublicTeacher:
    """Rows (documents, d) by public questions: their class sums, and the fit that begins anywhere."""

    def __init__(self, untrained: Retriever, public: PublicQuestions) -> None:
        assert public.training is not None and public.weights is not None
        self.questions = ClippedSums(untrained, public.training)
        self.weights = public.weights

    @property
    def class_sums(self) -> Tensor:
        """As the clients' are, each question by its weight."""
        targets = functional.normalize(self.questions.targets, dim=1) * self.weights[:, None]
        return targets.T @ self.questions.x

    def fitted(self, start: Tensor) -> Tensor:
        """The rows with the least loss on these questions and the least squared way from `start`, times PULL / 2.

        By L-BFGS (Liu and Nocedal 1989). Rows that no question speaks of move away from what others are asked.
        """
        rows = start.clone().requires_grad_(True)
        fit = torch.optim.LBFGS([rows], max_iter=PASSES, history_size=MEMORY, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            fit.zero_grad()
            total = PULL / 2 * (rows - start).square().sum()
            torch.autograd.backward(total)
            size = max(1, CELLS_AT_ONCE // self.questions.documents)
            for first in range(0, len(self.questions), size):
                part = self.of(rows, slice(first, first + size))
                torch.autograd.backward(part)
                total = total.detach() + part.detach()
            return total

        fit.step(loss)  # type: ignore[no-untyped-call]
        return rows.detach()

    def of(self, rows: Tensor, part: slice) -> Tensor:
        asked = self.questions
        scores = asked.offset[part] + asked.row_scores(asked.x[part], rows, part)
        return self.weights[part] @ candidate_losses(scores, asked.relevance[part])
