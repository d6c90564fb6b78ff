"""Rounds over a network: devices that train from the server's state, behind the interface of `Clients`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from fedcar.federation.remote.network import RemoteClient, RemoteNetwork
from fedcar.federation.rounds.aggregate import FIXED
from fedcar.federation.rounds.client import Train
from fedcar.federation.rounds.compress import ROWS, SCALE, VALUES, dtype_of, wire_bytes
from fedcar.federation.rounds.round import quorum
from fedcar.federation.rounds.update import ServerState, Update
from fedcar.federation.wire import schema
from fedcar.federation.wire.payload import STATE, UPDATE, Payload, named, with_prefix
from fedcar.federation.wire.schema import MOST_TRAINED, Numbers
from fedcar.training.clients import Answers, Request

Given = TypeVar("Given")


class RemoteRounds:
    """Devices who `Train`, each with the settings that `network.begin` has said; `attempt` is nothing to them."""

    def __init__(self, network: RemoteNetwork) -> None:
        self.network = network

    @property
    def clients(self) -> dict[str, RemoteClient]:
        """What the server has of each device."""
        return self.network.clients

    @property
    def names(self) -> list[str]:
        return sorted(self.network.clients)

    def held_out(self, state: ServerState) -> dict[str, float]:
        return self.network.held_out(state)

    def keep(self, names: Sequence[str]) -> None:
        self.network.clients = {name: self.network.clients[name] for name in names}

    def ask(self, request: Request[Any, Given], names: Sequence[str] | None = None) -> Answers[Given]:
        """Goes on without the slowest where more were asked than a round needs (`over_selection`)."""
        assert isinstance(request, Train), request
        network, cohort = self.network, self.names if names is None else names
        updates: dict[str, Any] = {}
        state, requests, expected, down = request.state, {}, {}, 0
        forms = forms_of(state, network.settings.compression)
        for name in cohort:
            enrolled = network.clients[name].enrol()
            expected[name] = schema.train(forms, enrolled.questions, enrolled.held_out)
            wire = network.sent_to(enrolled, state.tensors)
            down += wire_bytes(wire)
            tensors = {"weights": network.weights, **with_prefix(wire, STATE)}
            requests[name] = Payload("train", {"setup": network.setup.json, "round": request.number}, tensors)
        enough = max(1, round(len(cohort) / network.over_selection))
        replies = network.ask(requests, expected, min(quorum(len(cohort), network.settings), enough), enough)
        for name, payload in sorted(replies.payloads.items()):
            values: dict[str, Any] = dict(payload.values)
            tensors = named(payload.tensors, UPDATE)
            metrics = {name: float(values[name]) for name in ("loss", "held_out", "right")}
            seconds, size = values["seconds"], wire_bytes(tensors)
            updates[name] = Update(name, tensors, values["questions"], metrics, seconds, size)
        return Answers(updates, replies.failed, replies.seconds, down)


def forms_of(state: ServerState, compression: str) -> dict[str, Numbers]:
    """The tensors that an update of this state may have, by name: see `compress.encode`; `decode` says what is due."""
    forms: dict[str, Numbers] = {}
    for name, tensor in state.tensors.items():
        if name in FIXED:
            continue
        dtype, shape = dtype_of(name, tensor, compression), tuple(tensor.shape)
        forms[name] = Numbers(dtype, shape, -MOST_TRAINED, MOST_TRAINED, optional=True)
        rows = (0, len(tensor)) if len(shape) > 1 else 1
        if len(shape) > 1:
            forms[name + ROWS] = Numbers(torch.int32, (rows,), 0, len(tensor) - 1, optional=True)
            forms[name + VALUES] = Numbers(dtype, (rows, *shape[1:]), -MOST_TRAINED, MOST_TRAINED, optional=True)
        if dtype == torch.int8:
            forms[name + SCALE] = Numbers(torch.float32, (rows,), 0.0, MOST_TRAINED, optional=True)
    return forms
