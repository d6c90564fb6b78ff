"""The server's view of quality: each round's state on selection questions, its own or the devices', and the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedcar.federation.rounds.aggregate import FIXED
from fedcar.federation.rounds.robust import JUDGING, judging
from fedcar.federation.rounds.update import Tensors
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.checkpoint import Best
from fedcar.training.gradient import Trainer
from fedcar.training.selection import Score, Standard
from fedcar.training.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNKNOWN = Score(True, -1.0, 0.0, -1.0)
JUDGING_THROUGH_THE_ENCODER = 200  # questions, at most, where each one costs a forward pass


class ServerSelection:
    """Scores the state after a round on the selection questions and keeps the best; what is not shared is untrained.

    Where the server has no selection questions devices' counts on their held-out ones decide (`heard`).
    """

    def __init__(self, retriever: Retriever, selection: Questions, settings: Settings) -> None:
        self.retriever = retriever
        self.selection = selection
        self.trainer = Trainer(retriever, selection, settings)
        self.initial = self.trainer.trained_tensors()
        self.active = torch.zeros_like(retriever.head.active)
        reached = Standard().score(selection, self.trainer.offsets(selection)) if len(selection) else UNKNOWN
        self.best = Best(0, reached, self.initial)

    def __call__(self, number: int, tensors: Tensors) -> float | None:
        """The success of the state after round `number` on the selection questions; None where devices count."""
        if not len(self.selection):
            return None
        self.load(tensors)
        reached = Standard().score(self.selection, self.trainer.scores(self.selection))
        if reached > self.best.score:
            self.best = Best(number, reached, self.trainer.trained_tensors())
        return reached.success

    def chances(self, tensors: Tensors) -> NDArray[np.float64]:
        """What chance a state gives the right answer of each question that judges (m,)."""
        those = judging(self.selection, JUDGING_THROUGH_THE_ENCODER if self.trainer.token_ids else JUDGING)
        self.load(tensors)
        scores = torch.from_numpy(self.trainer.scores(those)).double()
        relevant = torch.from_numpy(those.relevance > 0)
        chances: NDArray[np.float64] = (torch.softmax(scores, dim=1) * relevant).sum(1).numpy()
        return chances

    def heard(self, number: int, tensors: Tensors, counts: Mapping[str, float] | None) -> None:
        """Of how many held-out questions the state after round `number` got how many right."""
        if len(self.selection) or not counts:
            return
        share = counts["right"] / counts["questions"]
        if share > self.best.score.success:
            self.load(tensors)
            self.best = Best(number, Score(True, share, 0.0, share), self.trainer.trained_tensors())

    def load(self, tensors: Tensors) -> None:
        self.trainer.load_tensors({**self.initial, **{name: tensors[name] for name in self.initial if name in tensors}})
        self.active = tensors.get(FIXED[0], torch.zeros_like(self.active))
        self.retriever.head.active.copy_(self.active)

    def finish(self) -> Retriever:
        """The retriever with the best round's tensors; as before training where no round was better."""
        if self.best.epoch:
            self.load({**self.best.tensors, FIXED[0]: self.active})
        else:
            self.trainer.reset()
        return replace(self.retriever, encoder=self.trainer.encoder)
