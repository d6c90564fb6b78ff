"""The server's view of quality: each round's state on the selection questions, and the best so far."""

from __future__ import annotations

import torch

from fedcar.checkpoint import Best
from fedcar.federation.round import Tensors
from fedcar.federation.server import FIXED
from fedcar.fit import Settings, Trainer
from fedcar.questions import Questions
from fedcar.retriever import Retriever
from fedcar.selection import Standard


class Judge:
    """Scores the state after a round on the selection questions and keeps the best; what is not shared is untrained."""

    def __init__(self, retriever: Retriever, selection: Questions, settings: Settings) -> None:
        self.retriever = retriever
        self.selection = selection
        self.trainer = Trainer(retriever, selection, settings)
        self.adapter = retriever.encoder.adapter
        self.initial = self.trainer.trained_tensors()
        self.active = torch.zeros_like(retriever.head.active)
        self.best = Best(0, Standard().score(selection, self.trainer.offsets(selection)), self.initial)

    def __call__(self, number: int, tensors: Tensors) -> dict[str, float]:
        """The selection score of the state after round `number`."""
        self.load(tensors)
        reached = Standard().score(self.selection, self.trainer.scores(self.selection))
        if reached > self.best.score:
            self.best = Best(number, reached, self.trainer.trained_tensors())
        return {"selection": reached.success}

    def load(self, tensors: Tensors) -> None:
        self.install()
        self.trainer.load_tensors({**self.initial, **{name: tensors[name] for name in self.initial if name in tensors}})
        self.active = tensors.get(FIXED[0], torch.zeros_like(self.active))
        self.retriever.head.active.copy_(self.active)

    def install(self) -> None:
        """Put the judge's own adapter into the encoder that all share."""
        if self.adapter is not None and self.retriever.encoder.adapter is not self.adapter:
            self.retriever.encoder.insert(self.adapter)

    def finish(self) -> Retriever:
        """The retriever with the best round's tensors; as before training where no round was better."""
        if self.best.epoch:
            self.load({**self.best.tensors, FIXED[0]: self.active})
        else:
            self.trainer.reset()
        return self.retriever
