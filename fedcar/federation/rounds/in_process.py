"""Clients in this process behind the interface of a network, with a virtual clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from fedcar.federation.rounds.aggregate import FIXED, ROW_TENSORS
from fedcar.federation.rounds.client import Client, Train, first_moments
from fedcar.federation.rounds.clock import VirtualClock
from fedcar.federation.rounds.compress import encode, wire_bytes
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.rounds.update import ServerState, Tensors
from fedcar.training.clients import Answers, Request

Given = TypeVar("Given")


class LocalNetwork:
    """Clients in this process, who `Train` beside a virtual clock: some drop out, some come after the deadline."""

    def __init__(self, clients: Mapping[str, Client], settings: RoundSettings, clock: VirtualClock) -> None:
        self.clients = dict(clients)
        self.settings = settings
        self.clock = clock
        self.places = {name: place for place, name in enumerate(sorted(clients))}

    @property
    def names(self) -> list[str]:
        return sorted(self.clients)

    def keep(self, names: Sequence[str]) -> None:
        self.clients = {name: self.clients[name] for name in names}

    def ask(self, request: Request[Any, Given], names: Sequence[str] | None = None) -> Answers[Given]:
        assert isinstance(request, Train), request
        deadline = self.settings.deadline
        updates: dict[str, Any] = {}
        failed: dict[str, str] = {}
        seconds, down_all = [], 0
        for name in self.names if names is None else names:
            client = self.clients[name]
            received, down = self.sent_to(client, request.state.tensors)
            down_all += down
            if self.clock.drops_out(name, request.number, request.attempt, self.settings.seed):
                failed[name] = "dropped out"
                continue
            try:
                update = replace(request, state=replace(request.state, tensors=received)).answered_by(client)
            except Exception as error:  # whatever goes wrong at a client, the round goes on without it
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
                continue
            measured = self.clock.training_seconds(update.seconds, client.questions, self.settings.local_epochs)
            needed = self.clock.client_seconds(self.places[name], measured, down, update.bytes)
            if deadline is not None and needed > deadline:
                failed[name] = f"{needed:.3g} s, past the deadline of {deadline:g} s"
                continue
            updates[name] = update
            seconds.append(needed)
        traffic = down_all + sum(update.bytes for update in updates.values())
        waited = deadline if deadline is not None and failed else self.clock.round_seconds(seconds, traffic, deadline)
        return Answers(updates, failed, waited, down_all)

    def held_out(self, state: ServerState) -> dict[str, float]:
        """Nothing: all questions are divided into those to learn from and those that the server chooses by."""
        return {}

    def sent_to(self, client: Client, tensors: Tensors) -> tuple[Tensors, int]:
        """What a client receives, and its bytes: with private documents only the rows of its own."""
        known = {**first_moments(client.initial), **client.initial}
        if self.settings.private_documents:
            its_rows = client.own_rows[:, None]
            rows = {name: torch.where(its_rows, tensors[name], known[name]) for name in ROW_TENSORS if name in tensors}
            tensors = {**tensors, **rows}
        trained = {name: tensor for name, tensor in tensors.items() if name not in FIXED}
        fixed = {name: tensors[name] for name in FIXED if name in tensors}
        wire, _ = encode(trained, known)
        return tensors, wire_bytes({**wire, **fixed})
