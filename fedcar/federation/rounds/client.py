"""The client's side: local training on questions that stay, and the one place through which anything leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcar.federation.rounds.aggregate import ROW_TENSORS, STEPS
from fedcar.federation.rounds.compress import MOMENTS, encode, wire_bytes
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.rounds.update import Enrolled, ServerState, Tensors, Update
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.clients import Request
from fedcar.training.gradient import Trainer
from fedcar.training.selection import Standard
from fedcar.training.settings import Settings

MOMENT_NAMES = ("mean", "square")

Release = Callable[[Tensors, Tensors], Tensors]


class LocalTrainer(Trainer):
    """Trainer on the federation's objective, the mean of the clients' losses by n_i / n with one penalty on the rows.

    Adds FedProx's mu / 2 |w - w_server|^2 (Li et al. 2020) where mu is not 0.
    """

    share_of_questions = 1.0
    proximal = 0.0
    anchor: Tensors = {}

    @property
    def strength(self) -> float:
        return super().strength * self.share_of_questions

    def further_penalty(self) -> Tensor | None:
        if not self.proximal:
            return None
        distance = [
            (tensor - self.anchor[name].to(tensor.device)).square().sum().cpu()
            for name, tensor in self.parameters().items()
            if name in self.anchor
        ]
        return self.proximal / 2 * torch.stack(distance).sum()


class Client:
    """One client: its questions, its trainer, and the state it keeps from round to round.

    `release(trained, received)` is called with the tensors by name before anything leaves and returns what does:
    privacy clips and noises there; by default they leave as they are. Clients in one process share the retriever's
    frozen encoder and its head: each loads the state before it trains.

    Formal guarantees:
        one_client_equals_central: one client with all questions, whose optimiser state is kept (or one round), ends
            where central training ends.
        The same round asked for twice gives the same update: the kept state goes back to what it was before the round.
    """

    def __init__(
        self,
        name: str,
        retriever: Retriever,
        training: Questions,
        settings: Settings,
        *,
        release: Release | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = name
        rows = {document.id: row for row, document in enumerate(retriever.documents)}
        self.trainer = LocalTrainer(retriever, training, settings)
        self.row_questions = torch.from_numpy(training.counts(rows))
        self.own_rows = self.row_questions > 0
        self.initial = self.trainer.trained_tensors()
        self.release = release or (lambda trained, received: trained)
        self.timer = timer
        self.residual: dict[str, Tensor] = {}
        self.local_head: dict[str, Tensor] = {}
        self.round_done = 0
        self.keeps_moments = False
        self.before_round: dict[str, Tensor] = {}

    @property
    def questions(self) -> int:
        return len(self.trainer.training)

    def enrol(self) -> Enrolled:
        return Enrolled(self.name, self.questions, self.row_questions)

    def train(self, state: Tensors, settings: RoundSettings, number: int) -> Update:
        """Local training from the server's state in round `number` (from 1): E epochs, then what leaves."""
        start = self.timer()
        self._ready_for(number)
        self._load(state, settings)
        losses = [
            sum(self.trainer.epoch(epoch, lambda done: None)) / self.questions
            for epoch in range((number - 1) * settings.local_epochs + 1, number * settings.local_epochs + 1)
        ]
        trained = {**self.trainer.trained_tensors(), **named_moments(self.trainer)}
        self.local_head = {name: trained[name] for name in self.initial if name not in state}
        shared = self._own_rows_only({name: trained[name] for name in trained if name in state}, state, settings)
        received = {name: state[name] for name in shared}
        wire, self.residual = encode(self.release(shared, received), received, settings.compression, self.residual)
        if settings.local_optimizer != "kept":
            self.trainer.optimizer.reset()
        self.keeps_moments = settings.local_optimizer == "kept"
        seconds = self.timer() - start
        return Update(self.name, wire, self.questions, {"loss": losses[-1]}, seconds, wire_bytes(wire))

    def evaluate(self, state: Tensors, settings: RoundSettings, questions: Questions) -> int:
        """How many of this client's held-out questions the server's state answers right at first place."""
        if not len(questions):
            return 0
        self._load(state, settings)
        return round(Standard().score(questions, self.trainer.scores(questions)).success * len(questions))

    def _ready_for(self, number: int) -> None:
        """Keep a copy of the state before a new round; go back to it where a round is asked for again."""
        if number == self.round_done:
            self.load_kept(self.before_round)
        else:
            self.before_round, self.round_done = self.kept(), number

    def _load(self, state: Tensors, settings: RoundSettings) -> None:
        trainer = self.trainer
        trainer.load_tensors({**self.initial, **self.local_head, **{n: state[n] for n in self.initial if n in state}})
        if settings.local_optimizer == "shared":
            load_moments(trainer, state)
        active = state["head.active"] if "head.active" in state else self.own_rows
        trainer.head.active.copy_(active & self.own_rows if settings.private_documents else active)
        trainer.share_of_questions = self.questions / max(settings.questions, self.questions)
        trainer.proximal, trainer.anchor = settings.proximal, state

    def _own_rows_only(self, trained: dict[str, Tensor], state: Tensors, settings: RoundSettings) -> dict[str, Tensor]:
        """Rows without a question of this client go back as they came where nobody would count them."""
        if settings.weight != "row" or settings.average == "trimmed":
            return trained
        for name in ROW_TENSORS:
            if name in trained:
                trained[name] = torch.where(self.own_rows[:, None], trained[name], state[name])
        return trained

    # ---------------------------------------------------------------- what is kept from round to round

    def kept(self) -> dict[str, Tensor]:
        """The local optimiser's state, what compression lost, rows that are not shared; all as named tensors."""
        parts = {
            "optimizer": self.trainer.optimizer.tensors() if self.keeps_moments else {},
            "residual": self.residual,
            "local": self.local_head,
        }
        return {f"{part}/{name}": tensor.clone() for part, tensors in parts.items() for name, tensor in tensors.items()}

    def load_kept(self, tensors: Mapping[str, Tensor], round_done: int | None = None) -> None:
        parts: dict[str, dict[str, Tensor]] = {"optimizer": {}, "residual": {}, "local": {}}
        for key, tensor in tensors.items():
            part, name = key.split("/", 1)
            parts[part][name] = tensor.clone()
        self.keeps_moments = bool(parts["optimizer"])
        if self.keeps_moments:
            self.trainer.optimizer.load_tensors(parts["optimizer"])
        else:
            self.trainer.optimizer.reset()
        self.residual, self.local_head = parts["residual"], parts["local"]
        self.round_done = self.round_done if round_done is None else round_done


@dataclass(frozen=True)
class Train(Request[Client, Update]):
    """Local training from the server's state; `attempt` counts how often this round was begun."""

    state: ServerState
    settings: RoundSettings
    attempt: int

    @property
    def number(self) -> int:
        """Of the round, from 1."""
        return self.state.round + 1

    def answered_by(self, member: Client) -> Update:
        return member.train(self.state.tensors, self.settings, self.number)


def named_moments(trainer: Trainer) -> dict[str, Tensor]:
    """The local optimiser's state by the names of what it trains: optimizer.NAME.mean and .square, optimizer.steps."""
    state = trainer.optimizer.tensors()
    named = {STEPS: state["steps"]}
    for number, name in enumerate(trainer.parameters()):
        for what in MOMENT_NAMES:
            named[f"{MOMENTS}{name}.{what}"] = state[f"{what}.{number}"]
    return named


def first_moments(tensors: Tensors) -> dict[str, Tensor]:
    """The state of an Adam that has made no step yet, by name."""
    moments = {STEPS: torch.tensor(0)}
    for name, tensor in tensors.items():
        moments |= {f"{MOMENTS}{name}.{what}": torch.zeros_like(tensor) for what in MOMENT_NAMES}
    return moments


def load_moments(trainer: Trainer, state: Tensors) -> None:
    """Put shared moments into the local optimiser; what is not shared keeps its own."""
    tensors = trainer.optimizer.tensors()
    tensors["steps"] = state[STEPS]
    for number, name in enumerate(trainer.parameters()):
        shared = {f"{what}.{number}": f"{MOMENTS}{name}.{what}" for what in MOMENT_NAMES}
        tensors |= {of_optimizer: state[key] for of_optimizer, key in shared.items() if key in state}
    trainer.optimizer.load_tensors(tensors)
