"""The method `ridge` over a network: devices in its round, behind the interface of `Clients`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from fedcar.federation.remote.mixture import RemoteMixture
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.sums.forms import PSEUDO, check_client, damaged, sums_from, tensors_of, words_of
from fedcar.federation.sums.ridge import (
    MeasuredSums,
    OfLeftOut,
    QuestionSums,
    RightByStrength,
    RightCounts,
    RightOnFolds,
)
from fedcar.federation.wire import schema
from fedcar.federation.wire.exchange import Replies
from fedcar.federation.wire.parts import rubbish
from fedcar.federation.wire.payload import REASONS, Payload, Value
from fedcar.federation.wire.schema import Schema
from fedcar.training.clients import Answers, Request
from fedcar.training.ridge import STRENGTHS, RidgeSums, Taught

Given = TypeVar("Given")
TRIES = 3


class RemoteRidge:
    """Devices in the round of `ridge`: one that was restarted meanwhile hears everybody's sums again."""

    def __init__(self, network: RemoteNetwork, documents: int, dimension: int, seed: int) -> None:
        self.network, self.documents, self.dimension = network, documents, dimension
        network.setup = replace(network.setup, settings={"seed": seed})
        self.names = sorted(network.clients)
        self.told: Payload | None = None
        self.mixtures: dict[tuple[float, float], RemoteMixture] = {}  # by strength and share

    def keep(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def ask(self, request: Request[Any, Given], names: Sequence[str] | None = None) -> Answers[Given]:
        names = self.names if names is None else names
        if isinstance(request, OfLeftOut):
            about = {"strength": request.solution.strength, "share": request.share}
            mixture = self.mixtures.setdefault(
                (request.solution.strength, request.share), RemoteMixture(self.network, about, self._tell)
            )
            return mixture.ask(request.request, names)
        payload, read = self._written(request)
        if isinstance(request, RightByStrength):
            self.told = payload
        given: dict[str, Any] = {}
        failed: dict[str, str] = {}
        missing, seconds = list(names), 0.0
        for _ in range(TRIES):
            replies = self._replies(payload, missing)
            failed, seconds = {**failed, **replies.failed}, seconds + replies.seconds
            for name, reply in replies.payloads.items():
                failed.pop(name, None)
                try:
                    given[name] = read(name, reply)
                except ValueError as error:
                    failed[name] = rubbish(error)
                    self.network.mark(name, failed[name])
            missing = [name for name in missing if name not in replies.payloads]
            if not missing:
                break
            self._tell([name for name in missing if failed.get(name) == REASONS["taught"]])
        if isinstance(request, QuestionSums):
            for name, reason in damaged({name: one.sums.statistics for name, one in given.items()}).items():
                failed[name] = rubbish(ValueError(reason))
                self.network.mark(name, failed[name])
                del given[name]
        return Answers(given, failed, seconds)

    def _replies(self, payload: Payload, names: Sequence[str]) -> Replies:
        expected = {name: self._expected(payload.kind, name) for name in names}
        return self.network.ask(dict.fromkeys(names, payload), expected)

    def _expected(self, kind: str, name: str) -> Schema:
        known = self.network.clients[name].enrol()
        if kind == "statistics":
            return schema.statistics(self.documents, self.dimension, known.questions, known.row_questions)
        if kind == "taught":
            return schema.taught(len(STRENGTHS), known.questions)
        return schema.unseen(known.questions, known.held_out)

    def _tell(self, names: Sequence[str]) -> None:
        if names and self.told is not None:
            self._replies(self.told, names)

    def _written(self, request: Request[Any, Any]) -> tuple[Payload, Callable[[str, Payload], Any]]:
        """The request as it travels, and how a device's answer is read."""
        setup: dict[str, Value] = {"setup": self.network.setup.json}
        if isinstance(request, QuestionSums):
            return Payload("statistics", setup), self._sums
        if isinstance(request, RightByStrength):
            taught = request.taught
            return Payload(
                "taught", {**setup, "questions": taught.statistics.questions}, tensors_of_taught(taught)
            ), by_strength
        assert isinstance(request, RightOnFolds), request
        values = {**setup, "strength": request.solution.strength}
        return Payload("unseen", values, {"weights": torch.from_numpy(request.weights)}), right_counts

    def _sums(self, name: str, reply: Payload) -> MeasuredSums:
        enrolled, questions = self.network.clients[name].enrol(), int(reply.values["questions"])
        sums = sums_from(reply.tensors, questions, self.documents, self.dimension)
        check_client(sums, enrolled.questions, enrolled.row_questions)
        return MeasuredSums(sums)


def tensors_of_taught(taught: Taught) -> dict[str, torch.Tensor]:
    sums = tensors_of(RidgeSums(taught.statistics, taught.sums.words))
    counts = torch.from_numpy(taught.pseudo.counts)
    return {**sums, **words_of(taught.pseudo.words, PSEUDO), "pseudo_counts": counts}


def by_strength(name: str, reply: Payload) -> list[float]:
    return [float(count) for count in reply.tensors["right"]]


def right_counts(name: str, reply: Payload) -> RightCounts:
    values = reply.values
    return RightCounts(
        float(values["right"]), int(values["questions"]), int(values["held_out_right"]), int(values["held_out"])
    )
