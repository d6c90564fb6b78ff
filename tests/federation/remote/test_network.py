"""Devices behind a network: the same training as in process, what leaves a device, and what a bad device can do."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from support.wire import MARKER, Wire, check_fields, marked, over_wire

from fedcar.collection.collection import Collection
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.federation.device.device import Device, documents_fingerprint
from fedcar.federation.job import job
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate.federate import Federation, federate
from fedcar.federation.sums.mixture import federated_mixture
from fedcar.federation.wire.exchange import Exchange
from fedcar.federation.wire.payload import Payload


def train(
    collection: Collection, encoder: Path, cache: Path, run: Path, over: Any = None, clients: int = 3, **options: Any
) -> Federation:
    method = options.pop("method", "head")
    resume = options.pop("resume", False)
    rounds = RoundSettings(**{"rounds": 3, **options})
    return federate(
        collection, run=run, clients=clients, encoder=encoder, method=method, rounds=rounds, compare=False,
        cache=cache, over=over, resume=resume,
    )  # fmt: skip


def state(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint" / "state.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "adapter"},
        {"local_optimizer": "kept", "weight": "row"},
        {"local_optimizer": "reset", "compression": "int8", "local_epochs": 2},
        {"private_documents": True, "weight": "row"},
        {"method": "adapter", "share": "adapter"},
        {"server_optimizer": "adam", "server_rate": 0.01, "compression": "bfloat16"},
    ],
    ids=str,
)
def test_over_a_network_equals_in_process(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    train(collection, encoder, cache, tmp_path / "here", **options)
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        there = train(collection, encoder, cache, tmp_path / "there", over, **options)
    ours, theirs = state(tmp_path / "here"), state(tmp_path / "there")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert all(record.failed == {} and record.refused == {} for record in there.rounds)


@pytest.mark.parametrize("method", ["head", "adapter"])
def test_large_payloads_travel_in_parts_and_change_nothing(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(collection, encoder, cache, tmp_path / "here", method=method)
    monkeypatch.setattr("fedcar.federation.wire.parts.LIMIT", 1000)
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        train(collection, encoder, cache, tmp_path / "there", over, method=method)
    kinds = {request.kind for _, request, _ in over.wire.seen}, {reply.kind for _, _, reply in over.wire.seen}
    assert kinds[0] >= {"part", "more"} and kinds[1] >= {"part", "taken"} and "train" not in kinds[1]
    assert max(payload.bytes for pair in over.wire.seen for payload in pair[1:]) < 3000, "1000 and the setup"
    for name, tensor in state(tmp_path / "here").items():
        assert torch.equal(tensor, state(tmp_path / "there")[name]), name


# -------------------------------------------------------------------- devices that go and come


class Coming(Wire):
    """A wire whose node 2 is away until it was looked for so many times."""

    away_for = 0

    def there(self) -> dict[int, str]:
        self.away_for -= 1
        return {node: "ever" for node in self.devices if node != 2 or self.away_for < 0}


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LOOK", 0.05), ("AGAIN", 0.05), ("POLL", 0.01), ("PATIENCE", 1.0)):
        monkeypatch.setattr(f"fedcar.federation.wire.exchange.{name}", value)


@pytest.fixture(scope="module")
def devices(collection: Collection, encoder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("devices")
    return {number: Device(collection, folder, Encoder.load(encoder), FeatureCache(cache)) for number in (1, 2)}


@pytest.mark.parametrize(("away_for", "needed", "answers"), [(3, 2, 2), (10**6, 2, 1), (3, 1, 1)])
@pytest.mark.usefixtures("hurried")
def test_a_device_that_is_away_is_waited_for_while_it_is_needed(
    collection: Collection, encoder: Path, devices: Any, away_for: int, needed: int, answers: int
) -> None:
    wire = Coming(devices)
    wire.away_for = away_for
    question = Payload("enrol", {"setup": _setup(collection, encoder)})
    replies = Exchange(wire, {"one": 1, "two": 2}, 60.0, needed).run({"one": question, "two": question})
    assert len(replies.payloads) == answers
    assert replies.failed == ({} if answers == 2 else {"two": "not online"})
    assert replies.seconds < 5


@pytest.mark.usefixtures("hurried")
def test_a_message_that_is_lost_with_its_device_is_sent_again(
    collection: Collection, encoder: Path, devices: Any
) -> None:
    """The device was killed with the message in its hands, and is there again since another time."""

    class Losing(Wire):
        def there(self) -> dict[int, str]:
            return {1: "ever", 2: "ever" if self.sent < 2 else "again"}

        def collect(self, ids: Any) -> list[tuple[str, Any]]:
            self.waiting.pop("2", None)
            return super().collect(ids)

    wire = Losing(devices)
    question = Payload("enrol", {"setup": _setup(collection, encoder)})
    replies = Exchange(wire, {"one": 1, "two": 2}, 60.0, 2).run({"one": question, "two": question})
    assert sorted(replies.payloads) == ["one", "two"] and wire.sent == 3


# -------------------------------------------------------------------- what leaves a device


def test_nothing_but_the_reply_leaves(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every payload of a run and of its failures: the fields of the allow-list, and no word of a question."""
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        train(marked(collection), encoder, cache, tmp_path / "run", over, method="adapter")
        device = over.wire.devices[1]
        _, request, _ = next(one for one in over.wire.seen if one[1].kind == "train")

        def leak(*_: object) -> None:
            raise RuntimeError(f"cannot read the question {marked(collection).queries}")

        device.client.train = leak
        over.wire.send(1, request, 1.0)
        broken = Payload("train", {**request.values, "setup": MARKER}, request.tensors)
        over.wire.send(1, broken, 1.0)
    replies = [reply for _, _, reply in over.wire.seen]
    trained = {name for reply in replies if reply.kind == "train" for name in reply.tensors}
    state_of_all = {f"update/{name}" for name in state(tmp_path / "run")} - {"update/head.active"}
    assert {name.split("|")[0] for name in trained} <= state_of_all
    expected = {"enrol": {"row_questions"}, "spread": {"spread"}, "sums": {"gradient", "hessian"}, "train": trained}
    check_fields(replies, collection, {**expected, "refused": set()})
    documents = len(collection.documents)
    assert [reply.values["reason"] for reply in replies if reply.kind == "refused"] == ["failed", "request"]
    assert replies[0].tensors["row_questions"].shape == (documents,)
    assert MARKER in capfd.readouterr().err, "the device's own log says what went wrong"


# -------------------------------------------------------------------- bad devices


def never(request: Payload, reply: Payload) -> None:
    return None if request.kind == "train" else reply  # type: ignore[return-value]


def rubbish(request: Payload, reply: Payload) -> Payload | str:
    return "sent rubbish: a kind of its own" if request.kind == "train" else reply


def nan(request: Payload, reply: Payload) -> Payload:
    if request.kind != "train":
        return reply
    return replace(reply, tensors={name: tensor * float("nan") for name, tensor in reply.tensors.items()})


def another_kind(request: Payload, reply: Payload) -> Payload:
    return Payload("spread", {"speaking": 1}, {"spread": torch.zeros(1)}) if request.kind == "train" else reply


@pytest.mark.parametrize("bad", [never, rubbish, nan, another_kind])
def test_a_bad_device_costs_a_line_in_the_history_not_the_run(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, bad: Any
) -> None:
    with over_wire(tmp_path / "d", encoder, cache, deadline=0.5, spoil={"client-2": bad}) as over:
        result = train(collection, encoder, cache, tmp_path / "run", over)
    assert [record.clients for record in result.rounds] == [["client-1", "client-3"]] * 3
    first = {**result.rounds[0].failed, **result.rounds[0].refused}
    assert list(first) == ["client-2"] and first["client-2"]


def test_a_device_that_lies_in_the_mixture_is_left_out_of_it(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    def lies(request: Payload, reply: Payload) -> Payload:
        if request.kind != "sums":
            return reply
        return replace(reply, tensors={name: tensor * float("inf") for name, tensor in reply.tensors.items()})

    lines: list[str] = []
    with over_wire(tmp_path / "d", encoder, cache, spoil={"client-2": lies}, say=lines.append) as over:
        result = train(collection, encoder, cache, tmp_path / "run", over)
    assert [line.split(": ")[0] for line in lines] == ["client-2", "the mixture goes on without client-2 (sent rubbish"]
    assert over.network.marked == {"client-2": lines[0].removeprefix("client-2: ")}
    assert len(result.rounds) == 3


def test_a_connection_that_breaks_is_opened_again(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    """The round is asked for again, and ends where it would have ended: devices go back by themselves."""
    options = {"local_optimizer": "kept"}
    train(collection, encoder, cache, tmp_path / "whole", **options)
    with over_wire(tmp_path / "d", encoder, cache) as over:

        def mixed(*arguments: Any, **options: Any) -> Any:
            mixture = federated_mixture(*arguments, **options)
            over.wire.breaks_at = {over.wire.sent + 5}  # the second device in the second round
            return mixture

        with patch.object(job, "federated_mixture", mixed):
            result = train(collection, encoder, cache, tmp_path / "run", over, quorum=1.0, **options)
    assert result.rounds[1].attempts == 2 and over.wire.opened == 2
    for name, tensor in state(tmp_path / "whole").items():
        assert torch.equal(tensor, state(tmp_path / "run")[name]), name


def test_over_selection_goes_on_without_the_slowest(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    with over_wire(tmp_path / "d", encoder, cache, over_selection=1.5, spoil={"client-1": never}) as over:
        result = train(collection, encoder, cache, tmp_path / "run", over)
    assert result.rounds[0].clients == ["client-2", "client-3"]
    assert "others were faster" in result.rounds[0].failed["client-1"]
    assert result.rounds[0].clock_seconds < 30, "nobody waited for the deadline of ten minutes"


def test_resumed_equals_uninterrupted_with_devices_that_were_killed(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    """New devices over the same folders take up what the killed ones had written down."""
    options = {"local_optimizer": "kept", "compression": "int8"}
    train(collection, encoder, cache, tmp_path / "whole", **options)
    with over_wire(tmp_path / "devices", encoder, cache) as over:

        def mixed(*arguments: Any, **options: Any) -> Any:
            mixture, over.network.deadline = federated_mixture(*arguments, **options), 1.0
            over.wire.breaks_at = set(range(over.wire.sent + 6, over.wire.sent + 60))  # round 2, one device short
            return mixture

        with (
            patch.object(job, "federated_mixture", mixed),
            pytest.raises(FedcarError, match=r"round 2: too few updates .* --resume"),
        ):
            train(collection, encoder, cache, tmp_path / "run", over, quorum=1.0, **options)
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        train(collection, encoder, cache, tmp_path / "run", over, quorum=1.0, resume=True, **options)
    for name, tensor in state(tmp_path / "whole").items():
        assert torch.equal(tensor, state(tmp_path / "run")[name]), name


# -------------------------------------------------------------------- devices that do not fit


def enrolment(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, device: Device, **setup: str
) -> dict[str, str]:
    """What the server says of a device beside a good one."""
    from fedcar.retriever.retriever import Retriever

    model = Encoder.load(encoder)
    untrained = Retriever.untrained(collection.documents, model, FeatureCache(cache))
    good = Device(collection, tmp_path / "good", model, FeatureCache(cache))
    wire = Wire({1: good, 2: device})
    network = RemoteNetwork(wire.open, {"good": 1, "bad": 2}, untrained, documents_fingerprint(collection), "run")
    return network.enrol(0.5)


def test_another_collection_encoder_or_version_is_named(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, tiny_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fewer = replace(
        collection,
        documents=collection.documents[:-1],
        judgements={"train": collection.judgements["train"]},
    )
    states = FeatureCache(cache)
    others = {
        "has another collection (its documents differ)": Device(fewer, tmp_path, Encoder.load(encoder), states),
        "has another encoder": Device(collection, tmp_path, Encoder.load(tiny_model("bert")), FeatureCache(cache)),
    }
    for line, device in others.items():
        failed = enrolment(collection, encoder, cache, tmp_path, device)
        assert list(failed) == ["bad"] and failed["bad"].startswith(line), failed
    older = Device(collection, tmp_path, Encoder.load(encoder), FeatureCache(cache))
    answer = older.answer
    monkeypatch.setattr("fedcar.federation.device.device.__version__", "0.0.9")
    assert answer(Payload("enrol", {"setup": _setup(collection, encoder)})).values["reason"] == "version"


def _setup(collection: Collection, encoder: Path) -> str:
    from fedcar.federation.wire.setup import Setup
    from fedcar.version import __version__

    return Setup("run", __version__, Encoder.load(encoder).fingerprint, documents_fingerprint(collection), {}, {}).json


def test_too_few_devices_is_one_line(collection: Collection, encoder: Path, cache: Path, tmp_path: Path) -> None:
    def off(request: Payload, reply: Payload) -> str:
        return "sent rubbish: no answer"

    with over_wire(tmp_path / "d", encoder, cache, spoil={"client-1": off, "client-2": off}) as over:
        with pytest.raises(FedcarError, match=r"1 of 3 devices can take part \(client-1: sent rubbish.*fedcar join"):
            train(collection, encoder, cache, tmp_path / "run", over)


def test_a_device_without_training_questions_has_nothing_to_teach(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    """Nothing un-noised is asked of it, and the server is told why."""
    device = Device(replace(collection, judgements={}), tmp_path, Encoder.load(encoder), FeatureCache(cache))
    with over_wire(tmp_path / "d", encoder, cache) as over:
        train(collection, encoder, cache, tmp_path / "run", over)
    asked = {request.kind: request for _, request, _ in over.wire.seen}
    assert {"enrol", "train"} <= set(asked)
    for request in asked.values():
        assert device.answer(request).values == {"reason": "questions", "found": ""}, request.kind


def test_held_out_questions_of_devices_are_counted_in_the_record(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    """Counts of the state before the round: in the first round the untrained one."""
    with over_wire(tmp_path / "d", encoder, cache) as over:

        def with_dev(untrained: Any, shares: Any) -> RemoteNetwork:
            dev = {"dev": collection.judgements["dev"]}
            queries = {query: collection.queries[query] for query in dev["dev"]}
            return over(
                untrained,
                {
                    name: replace(share, queries={**share.queries, **queries}, judgements={**share.judgements, **dev})
                    for name, share in shares.items()
                },
            )

        result = train(collection, encoder, cache, tmp_path / "run", with_dev, method="adapter")
    counts = [record.held_out for record in result.rounds]
    assert all(count["questions"] == 30.0 for count in counts)
    for before, after in zip(result.rounds[:-1], counts[1:], strict=True):
        assert after["right"] == pytest.approx(30 * before.selection)


def test_a_full_disk_or_memory_on_a_device_is_named(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a device keeps is on its disk before its reply leaves; where that fails there is no reply but the reason."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "kept")

    def greedy(*_: object) -> None:
        raise MemoryError

    device = Device(collection, tmp_path, Encoder.load(encoder), FeatureCache(cache))
    request = Payload("enrol", {"setup": _setup(collection, encoder)})
    for broken, reason in ((full, "disk"), (greedy, "memory")):
        monkeypatch.setattr(Device, "_enrol", broken)
        assert device.answer(request).values == {"reason": reason, "found": ""}
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        monkeypatch.undo()

        def filling(untrained: Any, shares: Any) -> RemoteNetwork:
            network = over(untrained, shares)
            monkeypatch.setattr("fedcar.federation.device.device.save_file", full)
            return network

        with pytest.raises(FedcarError, match=r"too few updates .*client-1: has no space left on its disk"):
            train(collection, encoder, cache, tmp_path / "run", filling, local_optimizer="kept")
