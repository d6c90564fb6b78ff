"""One way to ask: clients of this process answer in the order of their names, and nothing about it is measured."""

from __future__ import annotations

from dataclasses import dataclass

from fedcar.training.clients import Answers, Clients, InProcess, Request


@dataclass(frozen=True)
class Times(Request[int, int]):
    """A request that multiplies a client's number."""

    factor: int

    def answered_by(self, member: int) -> int:
        return self.factor * member


def test_all_are_asked_or_those_that_are_named() -> None:
    clients: Clients = InProcess({"b": 2, "a": 1, "c": 3})
    assert list(clients.names) == ["a", "b", "c"]
    assert clients.ask(Times(10)) == Answers({"a": 10, "b": 20, "c": 30})
    assert list(clients.ask(Times(10)).given) == ["a", "b", "c"]
    assert clients.ask(Times(10), ["c"]) == Answers({"c": 30})
    assert clients.ask(Times(10), []) == Answers({})


def test_who_is_not_kept_is_not_asked_again() -> None:
    clients = InProcess({"a": 1, "b": 2})
    clients.keep(["b"])
    assert clients.ask(Times(10)) == Answers({"b": 20})


def test_the_seconds_of_private_answers_are_not_measured() -> None:
    """They would go into the history, and tell how many questions a client has."""
    answers = InProcess(dict.fromkeys(map(str, range(100)), 1)).ask(Times(10))
    assert answers.seconds == 0.0
