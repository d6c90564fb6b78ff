"""The method `ridge` over a network: devices in its round, behind the interface of `Clients`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from fedcar.federation.remote.mixture import RemoteMixture
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.sums.forms import PSEUDO, check_client, sums_from, tensors_of, words_of
from fedcar.federation.sums.ridge import (
    MeasuredSums,
    OfLeftOut,
    QuestionSums,
    RightByStrength,
    RightCounts,
    RightOnFolds,
)
from fedcar.federation.wire.exchange import MOST, Replies
from fedcar.federation.wire.payload import REASONS, Payload, Value
from fedcar.training.clients import Answers, Request
from fedcar.training.ridge import STRENGTHS, RidgeSums, Taught

Given = TypeVar("Given")
WORDS = 1 << 28  # bytes of words and cross terms that a device may send; the gram is known
TRIES = 3


class RemoteRidge:
    """Devices in the round of `ridge`: one that was restarted meanwhile hears everybody's sums again."""

    def __init__(self, network: RemoteNetwork, documents: int, dimension: int, seed: int) -> None:
        self.network, self.documents, self.dimension = network, documents, dimension
        network.setup = replace(network.setup, settings={"seed": seed})
        self.names = sorted(network.clients)
        self.told: Payload | None = None

    def keep(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def ask(self, request: Request[Any, Given], names: Sequence[str] | None = None) -> Answers[Given]:
        names = self.names if names is None else names
        if isinstance(request, OfLeftOut):
            about = {"strength": request.solution.strength, "share": request.share}
            return RemoteMixture(self.network, about, self._tell).ask(request.request, names)
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
                    failed[name] = f"sent rubbish: {error}"
            missing = [name for name in missing if name not in replies.payloads]
            if not missing:
                break
            self._tell([name for name in missing if failed.get(name) == REASONS["taught"]])
        return Answers(given, failed, seconds)

    def _replies(self, payload: Payload, names: Sequence[str]) -> Replies:
        return self.network.ask(dict.fromkeys(names, payload), None, None, MOST + WORDS + 4 * self.dimension**2)

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
        check_client(sums.statistics, enrolled.questions, enrolled.row_questions)
        return MeasuredSums(sums)


def tensors_of_taught(taught: Taught) -> dict[str, torch.Tensor]:
    sums = tensors_of(RidgeSums(taught.statistics, taught.sums.words))
    counts = torch.from_numpy(taught.pseudo.counts)
    return {**sums, **words_of(taught.pseudo.words, PSEUDO), "pseudo_counts": counts}


def by_strength(name: str, reply: Payload) -> list[float]:
    right = reply.tensors["right"]
    if right.shape != (len(STRENGTHS),) or not bool(torch.isfinite(right).all()):
        raise ValueError("counts that are not one number a strength")
    return [float(count) for count in right]


def right_counts(name: str, reply: Payload) -> RightCounts:
    values = reply.values
    return RightCounts(
        float(values["right"]), int(values["questions"]), int(values["held_out_right"]), int(values["held_out"])
    )
