"""The mixture over a network: devices that give its sums, behind the interface of `Clients`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from fedcar.federation.sums.mixture import PooledSums, Spread, SpreadSums, SumsAt
from fedcar.federation.wire.payload import REASONS, Payload, Value
from fedcar.training.clients import Answers, Request

if TYPE_CHECKING:
    from fedcar.federation.remote.network import RemoteNetwork

Given = TypeVar("Given")
PLAIN = {"strength": 0.0, "share": 0.0}  # of search, without ridge
TRIES = 2


class RemoteMixture:
    """Devices that know their part of the mixture; each is asked twice before it counts as failed.

    `about` says of which evidence: that of search, or that of the method ridge, of which a device that was restarted
    hears `again` first.
    """

    def __init__(
        self,
        network: RemoteNetwork,
        about: Mapping[str, float] = PLAIN,
        again: Callable[[Sequence[str]], None] = lambda names: None,
    ) -> None:
        self.network, self.about, self.again = network, dict(about), again
        self.names = sorted(network.clients)

    def ask(self, request: Request[Any, Given], names: Sequence[str] | None = None) -> Answers[Given]:
        names = self.names if names is None else names
        payload, shapes, read = self._written(request)
        given: dict[str, Any] = {}
        failed: Mapping[str, str] = {}
        seconds = 0.0
        for _ in range(TRIES):
            replies = self.network.ask({name: payload for name in names if name not in given})
            given |= {name: read(reply) for name, reply in replies.payloads.items() if sound(reply, shapes)}
            failed, seconds = replies.failed, seconds + replies.seconds
            if len(given) == len(names):
                break
            self.again([name for name, why in failed.items() if why == REASONS["taught"]])
        return Answers({name: given[name] for name in names if name in given}, failed, seconds)

    def keep(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def _written(
        self, request: Request[Any, Any]
    ) -> tuple[Payload, Mapping[str, tuple[int, ...]], Callable[[Payload], Any]]:
        """The request as it travels, the shapes that an answer has, and how it is read."""
        width = len(self.network.retriever.weights)
        values: dict[str, Value] = {"setup": self.network.setup.json, **self.about}
        if isinstance(request, SumsAt):
            shapes = {"gradient": (width,), "hessian": (width, width)}
            return Payload("sums", values, {"weights": request.weights}), shapes, pooled
        assert isinstance(request, Spread), request
        return Payload("spread", values), {"spread": (width + 1,)}, spread


def pooled(reply: Payload) -> PooledSums:
    return PooledSums(float(reply.values["loss"]), reply.tensors["gradient"], reply.tensors["hessian"])


def spread(reply: Payload) -> SpreadSums:
    return SpreadSums(reply.tensors["spread"], int(reply.values["speaking"]), float(reply.values["counted"]))


def sound(reply: Payload, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the tensors are finite and of these shapes."""
    tensors = reply.tensors
    return all(
        tensors[name].shape == shape
        and tensors[name].dtype == torch.float64
        and bool(torch.isfinite(tensors[name]).all())
        for name, shape in shapes.items()
    )
