"""Rounds over a network: devices that train from the server's state, behind the interface of `Clients`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from fedcar.federation.remote.network import RemoteClient, RemoteNetwork
from fedcar.federation.rounds.client import Train
from fedcar.federation.rounds.compress import wire_bytes
from fedcar.federation.rounds.round import quorum
from fedcar.federation.rounds.update import ServerState, Update
from fedcar.federation.wire.exchange import MOST
from fedcar.federation.wire.payload import STATE, UPDATE, Payload, named, with_prefix
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
        state, requests, down = request.state, {}, 0
        for name in cohort:
            wire = network.sent_to(network.clients[name].enrol(), state.tensors)
            down += wire_bytes(wire)
            tensors = {"weights": network.weights, **with_prefix(wire, STATE)}
            requests[name] = Payload("train", {"setup": network.setup.json, "round": request.number}, tensors)
        enough = max(1, round(len(cohort) / network.over_selection))
        most = 2 * sum(tensor.nbytes for tensor in state.tensors.values()) + MOST
        replies = network.ask(requests, min(quorum(len(cohort), network.settings), enough), enough, most)
        for name, payload in sorted(replies.payloads.items()):
            values: dict[str, Any] = dict(payload.values)
            tensors = named(payload.tensors, UPDATE)
            counted, right = held_out(payload)
            metrics = {"loss": float(values["loss"]), "held_out": float(counted), "right": float(right)}
            seconds, size = values["seconds"], wire_bytes(tensors)
            updates[name] = Update(name, tensors, values["questions"], metrics, seconds, size)
        return Answers(updates, replies.failed, replies.seconds, down)


def held_out(payload: Payload) -> tuple[int, int]:
    counted, right = int(payload.values["held_out"]), int(payload.values["right"])
    return (counted, right) if 0 <= right <= counted else (0, 0)
