"""Between server and clients: what is asked and what leaves, kept as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from fedcar.privacy.ledger import LedgerHead
from fedcar.privacy.release import Release
from fedcar.training.clients import Answers, Request
from fedcar.training.noised.clients import Behind, NoisedClients, NoisedRequest

if TYPE_CHECKING:
    from torch import Tensor

Given = TypeVar("Given")


@dataclass(frozen=True)
class Exchange:
    """A request, and what each client answered; copies, which nobody changes afterwards."""

    request: NoisedRequest
    given: Mapping[str, Mapping[str, Tensor]]


class Watched(Behind):
    """Clients whose exchanges are kept. Whatever else is asked of them they are themselves."""

    def __init__(self, clients: NoisedClients) -> None:
        super().__init__(clients)
        self.exchanges: list[Exchange] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any of the clients'
        return getattr(self.clients, name)

    def ask(self, request: Request[Any, Given], names: Sequence[str] | None = None) -> Answers[Given]:
        answers = self.clients.ask(request, names)
        given = {name: copied(cast("Mapping[str, Tensor]", answer)) for name, answer in answers.given.items()}
        self.exchanges.append(Exchange(copied_request(cast("NoisedRequest", request)), given))
        return answers


@dataclass
class Recorded(Watched):
    """Clients that answer what was recorded; all else that a server might ask of them is that of other clients."""

    clients: NoisedClients
    exchanges: list[Exchange]
    recorded_given: list[Release]
    differing: list[int] = field(default_factory=list)

    @property
    def given(self) -> list[Release]:
        return self.recorded_given

    @property
    def heads(self) -> Mapping[str, LedgerHead]:
        return {}

    def keep(self, names: Sequence[str]) -> None:
        """The recorded answers say who answers."""

    def ask(self, request: Request[Any, Given], names: Sequence[str] | None = None) -> Answers[Given]:
        """What was answered to this exchange; one that was asked otherwise is noted."""
        assert isinstance(request, NoisedRequest)
        exchange = next((one for one in self.exchanges if one.request.number == request.number), None)
        if (
            exchange is None
            or not same(request.state, exchange.request.state)
            or ((request.release, request.adaptive) != (exchange.request.release, exchange.request.adaptive))
        ):
            self.differing.append(request.number)
        given = {} if exchange is None else {name: copied(answer) for name, answer in exchange.given.items()}
        return Answers(cast("Mapping[str, Given]", given))


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def copied_request(request: NoisedRequest) -> NoisedRequest:
    return NoisedRequest(request.number, request.release, copied(request.state), request.adaptive)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
