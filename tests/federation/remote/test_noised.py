"""Under epsilon over a network: each device keeps noise and ledger to itself, and ends where one process ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from support.processes import kill_itself, killed
from support.wire import check_fields, marked, over_wire

from fedcar.collection.collection import Collection
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.federation.device.device import Device
from fedcar.federation.ledgers import Ledgers
from fedcar.federation.remote.noised import Exchanges
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate.noised import federate_under_epsilon
from fedcar.federation.simulate.settings import Federation
from fedcar.federation.wire.payload import Payload
from fedcar.federation.wire.setup import Setup
from fedcar.privacy.errors import PrivacyError
from fedcar.privacy.ledger import Budget, Ledger
from fedcar.privacy.noise import NoiseSource
from fedcar.training.noised.plan import HELD_OUT
from fedcar.training.noised.record import ExchangeRecord
from fedcar.training.target import Target


def train(
    collection: Collection, encoder: Path, cache: Path, run: Path, over: Any = None, *, rounds: int = 3,
    quorum: float = 0.5, target: Target | None = None, **options: Any,
) -> Federation:  # fmt: skip
    return federate_under_epsilon(
        collection, target or Target(8.0, against_advice=True), run=run, clients=2, encoder=Encoder.load(encoder),
        cache=cache, over=over, rounds=RoundSettings(rounds=rounds, quorum=quorum), **options,
    )  # fmt: skip


def rows(found: Federation) -> torch.Tensor:
    return found.retriever.head.rows.detach()


@pytest.mark.parametrize(
    ("target", "method"),
    [
        ({}, "head"),
        ({}, "ridge"),
        ({}, "adapter"),
        ({"adaptive_clip": True}, "head"),
        ({"unit": "client"}, "head"),
        ({"held_out": True}, "head"),
        ({"held_out": True}, "ridge"),
    ],
    ids=str,
)
def test_over_a_network_equals_in_process(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, target: dict[str, Any], method: str
) -> None:
    """With noise that a seed repeats; the adapter's steps are drawn by coins, so there the statement alone."""
    chosen = replace(Target(8.0, against_advice=True, noise_seed=3), **target)
    here = train(collection, encoder, cache, tmp_path / "here", target=chosen, method=method)
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        there = train(collection, encoder, cache, tmp_path / "there", over, target=chosen, method=method)
    assert here.privacy == there.privacy and len(here.rounds) == len(there.rounds)
    if method != "adapter":
        assert torch.equal(rows(here), rows(there))
        assert here.retriever.training.selection == there.retriever.training.selection
    releases = [
        [Ledger(file).releases() for file in sorted((tmp_path / run / "clients").glob("*/ledger.jsonl"))]
        for run in ("here", "there")
    ]
    assert releases[0] == releases[1] and len(releases[0]) == (1 if chosen.unit == "client" else 2)


# -------------------------------------------------------------------- what leaves a device


@pytest.mark.parametrize("method", ["head", "adapter"])
def test_nothing_un_noised_leaves(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Greetings without any content, then noised sums and the ledger's head: no count, no loss, no word."""
    sums: list[torch.Tensor] = []
    plain = Device.answer

    def watched(self: Device, request: Payload) -> Payload:
        if request.kind == "noised":
            side, due = self.private, self.private._due(Setup.parse(request.values["setup"]), request)
            last = due.release.name == HELD_OUT
            sums.extend([side._counts(due.state)] if last else due.sums(side.private_questions).values())
        return plain(self, request)

    monkeypatch.setattr(Device, "answer", watched)
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        target = Target(8.0, against_advice=True, held_out=True)
        train(marked(collection), encoder, cache, tmp_path / "run", over, target=target, method=method)
    replies = [reply for _, _, reply in over.wire.seen]
    exchanges = 6  # count, class sums, three steps, what is held out
    assert [reply.kind for reply in replies] == ["greet"] * 2 + ["noised"] * 2 * exchanges
    given = [tensor for reply in replies for tensor in reply.tensors.values()]
    assert len(given) == len(sums) >= 2 * exchanges
    for noised, exact in zip(given, sums, strict=True):
        assert noised.shape == exact.shape and not torch.isclose(noised, exact.float(), rtol=0.0, atol=1e-9).any()
    names = {"given/count", "given/rows", "given/held out"} | ({"given/difference"} if method == "adapter" else set())
    check_fields(replies, collection, {"greet": set(), "noised": names})


def test_a_device_with_a_budget_of_its_own_gives_out_nothing_un_noised(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    budget = Budget(8.0, 1e-5)

    def device(budget: Budget) -> Device:
        ledgers = Ledgers(tmp_path / "ledgers", None, budget)
        return Device(collection, tmp_path, Encoder.load(encoder), FeatureCache(cache), ledgers=ledgers)

    with over_wire(tmp_path / "devices", encoder, cache) as over:
        train(collection, encoder, cache, tmp_path / "run", over)
        own = device(budget)
        asked = {request.kind: request for node, request, _ in over.wire.seen if node == 1}
        for kind in ("enrol", "spread", "clipped"):
            values = {**asked["noised"].values} if kind == "clipped" else {"setup": asked["greet"].values["setup"]}
            assert own.answer(Payload(kind, values)).values == {"reason": "un-noised", "found": ""}
        noised = Payload("noised", {**asked["noised"].values, "head": ""}, asked["noised"].tensors)
        assert own.answer(noised).kind == "noised"
    assert len(Ledger(tmp_path / "ledgers" / "ledger.jsonl").releases()) == 1
    with pytest.raises(PrivacyError, match="its budget is epsilon 8, delta 1e-05 and does not change"):
        device(Budget(9.0, 1e-5))


def test_a_device_answers_alike_whether_or_not_its_questions_name_persons(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    """A server may name any column; a refusal would tell it of one question, and cost nothing. Nor may it name a rate.

    What it then gives out is counted with what it gives out of single questions.
    """
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        train(collection, encoder, cache, tmp_path / "run", over)
        asked = {request.kind: request for node, request, _ in over.wire.seen if node == 1}["noised"]
    setup = json.loads(asked.values["setup"])
    queries = {name: replace(query, metadata={"user": "u1"}) for name, query in collection.queries.items()}
    first = next(iter(collection.judgements["train"]))
    everyone = replace(collection, queries=queries)
    all_but_one = replace(everyone, queries={**queries, first: replace(queries[first], metadata={})})

    def ask(device: Device, **more: object) -> Payload:
        target = {**setup["settings"]["target"], "unit": more.pop("unit")}
        settings = {**setup["settings"], "target": target, **more}
        values = {**asked.values, "setup": json.dumps({**setup, "settings": settings}), "head": ""}
        return device.answer(Payload("noised", values, asked.tensors))

    kinds = []
    for place, one in enumerate((everyone, all_but_one, collection)):
        ledgers = Ledgers(tmp_path / str(place), None, Budget(100.0, 1e-5), seeded=True)
        device = Device(one, tmp_path / f"d{place}", Encoder.load(encoder), FeatureCache(cache), ledgers=ledgers)
        kinds.append([ask(device, unit="person=user").kind, ask(device, unit="example").kind])
        assert ask(device, unit="person=user", sampling_rate=0.5).values["reason"] == "request"
    assert kinds == [["noised", "noised"]] * 3


def test_no_server_can_have_less_noise_added_than_is_charged(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    """Noise and sensitivity are no part of a request: they follow from the plan, which the device makes itself."""
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        train(collection, encoder, cache, tmp_path / "run", over)
        device = over.wire.devices[1]
    requests = [request for node, request, _ in over.wire.seen if node == 1]
    assert all(set(one.values) <= {"setup", "number", "adaptive", "head"} for one in requests)
    last, file = requests[-1], tmp_path / "run" / "clients" / "client-1" / "ledger.jsonl"
    before = Ledger(file).spent()
    wider = {name: torch.zeros(len(tensor) + 1, *tensor.shape[1:]) for name, tensor in last.tensors.items()}
    for wrong in (
        Payload("noised", {**last.values, "number": 5}, last.tensors),
        Payload("noised", {**last.values, "number": -1}, last.tensors),
        Payload("noised", {**last.values, "adaptive": 0.5}, last.tensors),
        Payload("noised", {**last.values, "head": "x"}, last.tensors),
        Payload("noised", last.values, wider),
        Payload("noised", last.values, {}),
    ):
        assert device.answer(wrong).values["reason"] == "request"
    assert device.answer(Payload("clipped", last.values, last.tensors)).values["reason"] == "un-noised"
    assert Ledger(file).spent() == before
    assert device.answer(last).tensors["given/rows"].equal(over.wire.seen[-2][2].tensors["given/rows"]), "sent again"
    assert Ledger(file).spent() == before


# -------------------------------------------------------------------- budgets, crashes, bad devices


def test_ledgers_are_the_devices_own_and_refuse_the_next_run(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        first = train(collection, encoder, cache, tmp_path / "one", over, ledgers=tmp_path / "ledgers")
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        second = train(collection, encoder, cache, tmp_path / "two", over, ledgers=tmp_path / "ledgers")
    assert first.refusal is None and len(first.rounds) == 5
    assert second.refusal is not None and getattr(second.refusal, "exit_code", 0) == 3 and second.rounds == []
    assert "client-1, client-2: exchange 0 would cross the privacy budget" in str(second.refusal)
    files = sorted((tmp_path / "ledgers").glob("*/ledger.jsonl"))
    assert [len(Ledger(file).releases()) for file in files] == [5, 5]
    assert all(7.99 < Ledger(file).spent() <= 8 for file in files)


def test_a_killed_server_gets_the_stored_answers_and_nothing_is_charged_twice(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    """It dies with the answers of an exchange in its hands; devices are new processes over the same ledgers."""
    with over_wire(tmp_path / "devices", encoder, cache) as over:

        def dying(*arguments: Any) -> Any:
            network = over(*arguments)
            ask = network.ask

            def last_of_all(payloads: Any, *more: Any) -> Any:
                found = ask(payloads, *more)
                if any(request.values.get("number") == 3 for request in payloads.values()):
                    raise KeyboardInterrupt
                return found

            network.ask = last_of_all
            return network

        with pytest.raises(KeyboardInterrupt):
            train(collection, encoder, cache, tmp_path / "run", dying)
    files = sorted((tmp_path / "run" / "clients").glob("*/ledger.jsonl"))
    assert [len(Ledger(file).releases()) for file in files] == [4, 4]
    stored = {file: file.read_bytes() for file in (tmp_path / "run" / "clients").rglob("*.bin")}
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        whole = train(collection, encoder, cache, tmp_path / "run", over, resume=True)
    assert whole.refusal is None and [record.round for record in whole.rounds] == list(range(5))
    assert [len(Ledger(file).releases()) for file in files] == [5, 5]
    assert all(Ledger(file).spent() <= 8 for file in files)
    assert len(stored) == 8 and all(file.read_bytes() == content for file, content in stored.items())


def test_a_device_killed_after_its_charge_is_charged_again_and_refuses_the_last_exchange(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, killed = Ledger.store_update, []

    def lost(self: Ledger, receipt: Any, update: bytes) -> None:
        if receipt.round == 2 and not killed:
            killed.append(self.path)
            raise RuntimeError("killed")
        plain(self, receipt, update)

    monkeypatch.setattr(Ledger, "store_update", lost)
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        found = train(collection, encoder, cache, tmp_path / "run", over, quorum=1.0)
    assert getattr(found.refusal, "exit_code", 0) == 3 and "not charged there" in str(found.refusal)
    assert [record.round for record in found.rounds] == [0, 1, 2, 3]
    charged = [entry.values["round"] for entry in Ledger(killed[0]).open() if entry.kind == "charge"]
    assert charged == [0, 1, 2, 2, 3], "both charges of exchange 2 count"
    assert found.privacy is not None and found.privacy["epsilon"] <= 8


COHORT: dict[str, Any] = {"target": Target(8.0, unit="client", against_advice=True), "quorum": 1.0}


def broken_off(
    collection: Collection,
    encoder: Path,
    cache: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    coins: list[list[int]],
) -> tuple[Ledger, list[list[int]]]:
    """A cohort's run that ends because client-1 is away in exchange 2: the server's ledger, and the coins left."""
    left = list(coins)
    monkeypatch.setattr("fedcar.federation.remote.noised.poisson", lambda count, rate: torch.tensor(left.pop(0)))

    def away(request: Payload, reply: Payload) -> Payload | str:
        return "sent rubbish: no answer" if request.values.get("number") == 2 else reply

    with over_wire(place / "devices", encoder, cache, spoil={"client-1": away}) as over:
        with pytest.raises(FedcarError, match="exchange 2: too few devices"):
            train(collection, encoder, cache, place / "run", over, **COHORT)
    asked = [one.values["number"] for _, one, _ in over.wire.seen if one.kind == "clipped"]
    assert asked.count(2) == RoundSettings().attempts > 1, "asked again, by the same coins"
    return Ledger(place / "run" / "clients" / "server" / "ledger.jsonl"), left


def test_below_the_quorum_nothing_is_charged(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing noised was made, so the plan still has room for its last step."""
    ledger, _ = broken_off(collection, encoder, cache, tmp_path, monkeypatch, [[0, 1], [0], [1], [1]])
    assert len(ledger.releases()) == 1, "exchange 2 gave nothing out"
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        found = train(collection, encoder, cache, tmp_path / "run", over, resume=True, **COHORT)
    assert found.refusal is None and len(ledger.releases()) == 4


def test_coins_are_tossed_once(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was drawn for an exchange stays drawn, in every attempt and after a restart; each other one has new coins."""
    _, left = broken_off(collection, encoder, cache, tmp_path, monkeypatch, [[0, 1], [0], [1], [0], [1]])
    assert left == [[1], [0], [1]], "one toss for exchange 2, however often it was asked"
    kept = json.loads((tmp_path / "run" / "coins.json").read_text())
    assert kept == {"exchange": 2, "clients": ["client-1"]}
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        found = train(collection, encoder, cache, tmp_path / "run", over, resume=True, **COHORT)
    asked = [(node, one.values["number"]) for node, one, _ in over.wire.seen if one.kind == "clipped"]
    assert asked == [(1, 2), (2, 3), (1, 4)], "client-1 again, not who a new coin says"
    assert found.refusal is None and not (tmp_path / "run" / "coins.json").exists()


def killed_at_the_noise(exchange: int, collection: Collection, encoder: Path, cache: Path, place: Path) -> None:
    """A cohort's run; its process is killed as it draws the first number of this exchange's noise."""
    drawn, normal = [0], NoiseSource.normal

    def draw(self: NoiseSource, shape: tuple[int, ...]) -> Any:
        drawn[0] += 1
        if drawn[0] == exchange:  # exchange 0 is left out, as the number of clients is public
            kill_itself()
        return normal(self, shape)

    with patch.object(NoiseSource, "normal", draw), over_wire(place / "devices", encoder, cache) as over:
        train(collection, encoder, cache, place / "run", over, **COHORT)


@pytest.mark.parametrize("exchange", [1, 3])
def test_charged_before_it_is_noised(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, exchange: int
) -> None:
    """Killed as the first number of an exchange's noise is drawn: the charge is on the disk, and no sum anywhere."""
    assert killed(killed_at_the_noise, exchange, collection, encoder, cache, tmp_path)
    ledger = Ledger(tmp_path / "run" / "clients" / "server" / "ledger.jsonl")
    assert charged(ledger) == list(range(1, exchange + 1)), "the exchange that was being noised is charged"
    runs = {entry.values["run"] for entry in ledger.open() if entry.kind == "charge"}
    assert ledger.stored_update(*runs, exchange) is None, "and nothing of it was kept"
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        found = train(collection, encoder, cache, tmp_path / "run", over, resume=True, **COHORT)
    assert charged(ledger)[: exchange + 1] == [*range(1, exchange + 1), exchange], "what is lost is charged again"
    assert found.refusal is not None and ledger.spent() <= 8


def charged(ledger: Ledger) -> list[int]:
    return [entry.values["round"] for entry in ledger.open() if entry.kind == "charge"]


def test_a_cohort_whose_budget_has_no_room_is_not_asked(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"target": Target(8.0, unit="client", against_advice=True), "ledgers": tmp_path / "kept"}
    found = []
    for run in ("one", "two"):
        with over_wire(tmp_path / "devices", encoder, cache) as over:
            found.append(train(collection, encoder, cache, tmp_path / run, over, **options))
    assert found[0].refusal is None and found[1].refusal is not None and found[1].rounds == []
    assert {request.kind for _, request, _ in over.wire.seen} == {"greet"}


def test_exchanges_that_are_kept_are_not_asked_for_again(tmp_path: Path) -> None:
    store = Exchanges(tmp_path / "exchanges")
    record = ExchangeRecord(round=2, clients=["a"], refused={}, failed={"b": "away"}, bytes_up=36, bytes_down=36)
    assert store.get(2) is None
    store.put(record, {"rows": torch.eye(3)})
    found = store.get(2)
    assert found is not None and found[0] == record and found[1]["rows"].equal(torch.eye(3))


def test_a_bad_device_costs_a_line_in_the_history_not_the_run(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    def short(request: Payload, reply: Payload) -> Payload:
        if request.kind != "noised" or int(request.values["number"]) < 1:
            return reply
        return replace(reply, tensors={name: tensor[:1] for name, tensor in reply.tensors.items()})

    with over_wire(tmp_path / "devices", encoder, cache, spoil={"client-2": short}) as over:
        found = train(collection, encoder, cache, tmp_path / "run", over)
    assert [record.clients for record in found.rounds] == [["client-1", "client-2"], *[["client-1"]] * 4]
    assert found.rounds[1].failed == {"client-2": "sent rubbish: given/rows is float32 (1, 32), not float32 (6, 32)"}
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert history[1]["failed"] == found.rounds[1].failed


def test_too_few_devices_is_one_line(collection: Collection, encoder: Path, cache: Path, tmp_path: Path) -> None:
    def off(request: Payload, reply: Payload) -> Payload | str:
        return "sent rubbish: no answer" if request.kind == "noised" else reply

    with over_wire(tmp_path / "d", encoder, cache, spoil={"client-1": off, "client-2": off}) as over:
        with pytest.raises(FedcarError, match=r"exchange 0: too few devices after 3 attempts \(client-1: sent rubbish"):
            train(collection, encoder, cache, tmp_path / "run", over)
