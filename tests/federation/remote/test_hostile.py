"""One device that answers what no honest one would: it is named with one line, and the run goes on without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.wire import Spoil, over_wire

from fedcar.collection.collection import Collection
from fedcar.encoder.encoder import Encoder
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate.federate import Federation, federate
from fedcar.federation.simulate.noised import federate_under_epsilon
from fedcar.federation.wire.payload import Payload, refusal
from fedcar.training.target import Target


def train(
    collection: Collection, encoder: Path, cache: Path, run: Path, over: Any, method: str, **options: Any
) -> Federation:
    return federate(
        collection, run=run, clients=3, encoder=encoder, method=method, rounds=RoundSettings(rounds=1),
        compare=False, cache=cache, over=over, **options,
    )  # fmt: skip


def spoiled(kind: str, how: Callable[[Payload], Payload]) -> Spoil:
    return lambda request, reply: how(reply) if reply.kind == kind and request.kind == kind else reply


def first_part(head: str, count: int = 1) -> Callable[[Payload], Payload]:
    return lambda reply: Payload("part", {"number": 0, "count": count, "head": head}, {})


def announced(kind: str, tensors: dict[str, Any], **values: Any) -> str:
    return json.dumps({"kind": kind, "values": values, "tensors": tensors})


def values(**others: Any) -> Callable[[Payload], Payload]:
    return lambda reply: replace(reply, values={**reply.values, **others})


def tensors(**others: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Payload], Payload]:
    return lambda reply: replace(
        reply, tensors={**reply.tensors, **{name: how(reply.tensors[name]) for name, how in others.items()}}
    )


def beside_the_diagonal(gram: torch.Tensor) -> torch.Tensor:
    loud = gram.clone()
    loud[1] = 1e30  # of the upper triangle, row by row: the entry beside the first one
    return loud


def loudest(gram: torch.Tensor) -> torch.Tensor:
    return torch.full_like(gram, 1.7e308)


def infinite(reply: Payload) -> Payload:
    moved = {name: one + float("inf") for name, one in reply.tensors.items() if one.is_floating_point()}
    return replace(reply, tensors={**reply.tensors, **moved})


NAMES = {f"row_questions{number}": ["int64", [1]] for number in range(100_000)}
HUGE = {"row_questions": ["int64", [2**32, 2**32]]}
LARGE = {"row_questions": ["int64", [25 << 20]]}
ENROLLED = {"questions": 4, "held_out": 0}
LIES: dict[str, tuple[str, Spoil]] = {
    "lists in lists": ("head", spoiled("spread", first_part("[" * 200_000))),
    "lists in lists to enrol": ("head", spoiled("enrol", first_part("[" * 200_000))),
    "a head of words": ("head", spoiled("enrol", first_part('"kind"'))),
    "a shape of 2^64": ("head", spoiled("enrol", first_part(announced("enrol", HUGE, **ENROLLED)))),
    "200 MB announced": ("head", spoiled("enrol", first_part(announced("enrol", LARGE, **ENROLLED), 13))),
    "100,000 names": ("head", spoiled("enrol", first_part(announced("enrol", NAMES, **ENROLLED)))),
    "a billion parts": ("head", spoiled("enrol", first_part(announced("enrol", {}, **ENROLLED), 10**9))),
    "no question": ("head", spoiled("enrol", values(questions=0))),
    "a million questions": ("head", spoiled("train", values(questions=10**6))),
    "counted: NaN": ("head", spoiled("spread", values(counted=float("nan")))),
    "counted: minus the others' sum": ("head", spoiled("spread", values(counted=-14.0))),
    "speaking: 10^400": ("head", spoiled("spread", values(speaking=10**400))),
    "sums of 1.7e308": ("head", spoiled("sums", tensors(gradient=loudest, hessian=loudest))),
    "a loss of NaN": ("head", spoiled("sums", values(loss=float("nan")))),
    "a Hessian turned round": ("head", spoiled("sums", tensors(hessian=lambda hessian: -hessian))),
    "another type": ("head", spoiled("sums", tensors(gradient=lambda gradient: gradient.float()))),
    "seconds without end": ("head", spoiled("train", values(seconds=float("inf")))),
    "more right than asked": ("head", spoiled("train", values(right=10**9))),
    "an update of infinities": ("head", spoiled("train", infinite)),
    "a gram of 1e30 beside the diagonal": ("ridge", spoiled("statistics", tensors(gram=beside_the_diagonal))),
    "words counted 3e38 times": ("ridge", spoiled("statistics", tensors(data=lambda data: data * 0 + 3e38))),
    "no questions but statistics": ("ridge", spoiled("statistics", tensors(counts=lambda counts: counts * 0))),
    "right beyond measure": ("ridge", spoiled("taught", tensors(right=lambda right: right + 1e300))),
    "right less than never": ("ridge", spoiled("unseen", values(right=-1e300))),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_names_its_device_and_ends_nothing(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol = RemoteNetwork.enrol
    monkeypatch.setattr(RemoteNetwork, "enrol", lambda network, share: enrol(network, 0.5))  # as `fedcar run` does
    method, spoil = LIES[lie]
    lines: list[str] = []
    with over_wire(tmp_path / "d", encoder, cache, spoil={"client-2": spoil}, say=lines.append) as over:
        result = train(collection, encoder, cache, tmp_path / "run", over, method)
    assert {"client-1", "client-3"} <= set(result.rounds[0].clients)
    assert list(over.network.marked) == ["client-2"]
    reason = over.network.marked["client-2"]
    assert reason.startswith("sent rubbish: ") and reason.isprintable() and len(reason) <= 200
    assert f"client-2: {reason}" in lines
    assert 0.0 <= result.federated["success@1"] <= 1.0


def test_one_empty_budget_ends_nothing_for_the_others(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    """Too few that have room left end the run, as ever: what came so far is kept."""

    def empty(request: Payload, reply: Payload) -> Payload:
        return refusal("budget") if request.kind == "noised" and request.values["number"] > 0 else reply

    def private(run: Path, over: Any) -> Any:
        return federate_under_epsilon(
            collection, Target(8.0, against_advice=True), run=run, clients=3, encoder=Encoder.load(encoder),
            cache=cache, over=over, rounds=RoundSettings(rounds=3),
        )  # fmt: skip

    with over_wire(tmp_path / "one", encoder, cache, spoil={"client-2": empty}) as over:
        found = private(tmp_path / "run", over)
    assert found.refusal is None and len(found.rounds) > 2
    assert [record.clients for record in found.rounds[1:]] == [["client-1", "client-3"]] * (len(found.rounds) - 1)
    assert "budget" in found.rounds[1].failed["client-2"]
    with over_wire(tmp_path / "two", encoder, cache, spoil={"client-1": empty, "client-2": empty}) as over:
        found = private(tmp_path / "other", over)
    assert "client-1, client-2: exchange 1 would cross" in str(found.refusal)
