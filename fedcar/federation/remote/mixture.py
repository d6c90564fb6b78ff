"""The mixture over a network: devices that give its sums, behind the interface of `Clients`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fedcar.federation.sums.mixture import PooledSums, Spread, SpreadSums, SumsAt
from fedcar.federation.wire import schema
from fedcar.federation.wire.payload import REASONS, Payload, Value
from fedcar.federation.wire.schema import Schema
from fedcar.training.clients import Answers, Request

if TYPE_CHECKING:
    from fedcar.federation.remote.network import RemoteNetwork

Given = TypeVar("Given")
PLAIN = {"strength": 0.0, "share": 0.0}  # of search, without ridge
TRIES = 2


class RemoteMixture:
    """Devices that know their part of the mixture; each is asked twice before it counts as failed.

    `about` says of which evidence: that of search, or that of the method ridge, of which a device that was restarted
    hears `again` first. What a device said of its features' spread bounds what its sums may be.
    """

    def __init__(
        self,
        network: RemoteNetwork,
        about: Mapping[str, float] = PLAIN,
        again: Callable[[Sequence[str]], None] = lambda names: None,
    ) -> None:
        self.network, self.about, self.again = network, dict(about), again
        self.names = sorted(network.clients)
        self.spreads: dict[str, SpreadSums] = {}

    def ask(self, request: Request[Any, Given], names: Sequence[str] | None = None) -> Answers[Given]:
        names = self.names if names is None else names
        payload, read = self._written(request)
        expected = {name: self._expected(request, name) for name in names}
        given: dict[str, Any] = {}
        failed: Mapping[str, str] = {}
        seconds = 0.0
        for _ in range(TRIES):
            replies = self.network.ask({name: payload for name in names if name not in given}, expected)
            given |= {name: read(reply) for name, reply in replies.payloads.items()}
            failed, seconds = replies.failed, seconds + replies.seconds
            if len(given) == len(names):
                break
            self.again([name for name, why in failed.items() if why == REASONS["taught"]])
        if isinstance(request, Spread):
            self.spreads |= given
        return Answers({name: given[name] for name in names if name in given}, failed, seconds)

    def keep(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def _written(self, request: Request[Any, Any]) -> tuple[Payload, Callable[[Payload], Any]]:
        """The request as it travels, and how an answer is read."""
        values: dict[str, Value] = {"setup": self.network.setup.json, **self.about}
        if isinstance(request, SumsAt):
            return Payload("sums", values, {"weights": request.weights}), pooled
        assert isinstance(request, Spread), request
        return Payload("spread", values), spread

    def _expected(self, request: Request[Any, Any], name: str) -> Schema:
        network = self.network
        if isinstance(request, SumsAt):
            known = self.spreads[name]
            return schema.sums(known.spread, known.speaking, request.weights)
        return schema.spread(len(network.retriever.weights), network.documents, network.clients[name].enrol().questions)


def pooled(reply: Payload) -> PooledSums:
    return PooledSums(float(reply.values["loss"]), reply.tensors["gradient"], reply.tensors["hessian"])


def spread(reply: Payload) -> SpreadSums:
    return SpreadSums(reply.tensors["spread"], int(reply.values["speaking"]), float(reply.values["counted"]))
