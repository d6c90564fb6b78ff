"""Who is asked: the one way in which every procedure speaks with its clients.

It stands with training, the lowest floor on which somebody asks: noised sums are taken in one place too, and a
federation's rounds, mixture and ridge stand above. Its two implementations are clients of this process, and clients
behind a network (`fedcar.federation.remote`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

MANY = 5  # clients, from which on no one of them is taken at its word
MOST_COUNTED = 3.0  # times the median of what clients count: one of so many counts no more

Member = TypeVar("Member")
Given = TypeVar("Given")


class Request(ABC, Generic[Member, Given]):
    """What every client is asked for, which says by its type what each answers."""

    @abstractmethod
    def answered_by(self, member: Member) -> Given:
        """What a client of this process answers."""


@dataclass(frozen=True)
class Answers(Generic[Given]):
    """What clients gave, why others did not, the seconds it took, and the bytes that went down to all of them."""

    given: Mapping[str, Given]
    failed: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    bytes_down: int = 0


class Clients(Protocol):
    """Those who take part in a procedure, by name."""

    @property
    def names(self) -> Sequence[str]:
        """Who is asked where nobody is named."""
        ...

    def ask(self, request: Request[Any, Given], names: Sequence[str] | None = None) -> Answers[Given]:
        """Ask all of them, or those that are named; whoever does not answer is in `failed`, with the reason."""
        ...

    def keep(self, names: Sequence[str]) -> None:
        """Ask these alone from now on."""
        ...


class InProcess(Generic[Member]):
    """Clients of this process, asked one after the other in the order of their names; all of them answer.

    No seconds are measured: under epsilon an answer's time would tell of private questions.
    """

    def __init__(self, members: Mapping[str, Member]) -> None:
        self.members = dict(sorted(members.items()))

    @property
    def names(self) -> list[str]:
        return list(self.members)

    def ask(self, request: Request[Any, Given], names: Sequence[str] | None = None) -> Answers[Given]:
        chosen = self.names if names is None else names
        return Answers({name: request.answered_by(self.members[name]) for name in chosen})

    def keep(self, names: Sequence[str]) -> None:
        self.members = {name: self.members[name] for name in names}
