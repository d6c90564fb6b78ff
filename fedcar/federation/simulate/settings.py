"""What a simulated federation is asked for, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict

from fedcar.collection.collection import Collection
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.rounds.clock import VirtualClock
from fedcar.federation.rounds.record import Record
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.tally import Counting
from fedcar.training.target import Target


class Over(Protocol):
    """Puts clients behind a network: untrained retriever, each client's collection, folder of their ledgers if kept."""

    def __call__(
        self, untrained: Retriever, shares: Mapping[str, Collection], ledgers: Path | None = None
    ) -> RemoteNetwork: ...


@dataclass(frozen=True, kw_only=True)
class FederationSettings:
    """Who takes part and what is trained: the keywords that `federate` and `federate_under_epsilon` have in common.

    `clients` is how many there are (None with `kind` "client": the natural ones), `kind` the partition. `rounds.rounds`
    0 stands for as many as make the epochs of central training. `over` puts the clients behind a network, each with its
    own questions (see `over_flower`); by default they are in this process.
    """

    clients: int | None
    kind: str = "iid"
    encoder: str | Path | Encoder = DEFAULT_ENCODER
    pooling: str | None = None
    method: str = "head"
    adapter: str = "full"
    rounds: RoundSettings = field(default_factory=RoundSettings)
    over: Over | None = None


@dataclass(frozen=True, kw_only=True)
class PlainFederation(FederationSettings):
    """Without epsilon. `recipe` "paper" is noise too, without any formal guarantee; `compare` trains centrally too."""

    recipe: str = "private"
    clock: VirtualClock = field(default_factory=VirtualClock)
    compare: bool = True


@dataclass(frozen=True, kw_only=True)
class NoisedFederation(FederationSettings):
    """Under epsilon. `ledgers` is the folder of the clients' ledgers, RUN/clients by default.

    `counting` says in which ledger the collection counts its runs: a question is with one client, whichever that is.
    """

    target: Target
    ledgers: str | Path | None = None
    counting: Counting = Counting()


class FederationOptions(TypedDict, total=False):
    """The fields of `FederationSettings`, for the type checker; so below."""

    clients: int | None
    kind: str
    encoder: str | Path | Encoder
    pooling: str | None
    method: str
    adapter: str
    rounds: RoundSettings
    over: Over | None


class PlainOptions(FederationOptions, total=False):
    """Those of `PlainFederation`."""

    recipe: str
    clock: VirtualClock
    compare: bool


class NoisedOptions(FederationOptions, total=False):
    """Those of `NoisedFederation`, but for its target, which has no default."""

    ledgers: str | Path | None
    counting: Counting


@dataclass(frozen=True)
class Federation:
    """What a federation came to; the fields are those of `fedcar federate --json`. Under epsilon no `seconds`."""

    retriever: Retriever
    run: Path
    rounds: Sequence[Record]
    central: dict[str, float] | None
    federated: dict[str, float] | None
    bytes_per_round: int
    seconds: dict[str, float]
    privacy: Mapping[str, Any] | None = None
    refusal: Exception | None = None  # of a client whose budget would have been crossed; the retriever so far is kept
