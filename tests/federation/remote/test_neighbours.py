"""Under epsilon over a network: what a server sees, and what it keeps, is the same for neighbouring collections."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from safetensors.torch import save
from support.neighbours import TINY, ByBatch, Left, crossed, difference, heard, neighbours, of_a_run, past
from support.wire import over_wire

from fedcar.collection.collection import Collection
from fedcar.collection.partition import partition_by_question
from fedcar.common.progress import Console
from fedcar.encoder.cache import FeatureCache
from fedcar.federation.deploy.options import RunOptions, ServedRun
from fedcar.federation.deploy.run_noised import train_privately_over
from fedcar.federation.device.device import Device
from fedcar.federation.ledgers import opened_ledger
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate.federate import share_of
from fedcar.federation.simulate.noised import with_held_out
from fedcar.federation.wire.payload import Payload
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised import clients as devices
from fedcar.training.noised.record import ExchangeRecord
from fedcar.training.noised.tally import LEDGER
from fedcar.training.target import Target


def left_behind(collection: Collection, encoder: Path, place: Path, **options: Any) -> Left:
    """A served run: every request and reply, the run's folder, what the server says and gives back.

    What a device says on its own screen is left out.
    """
    cache, ready = past(collection, encoder, place / "cache"), Device.__init__
    target = {"epsilon": TINY, "delta": 1e-9, "noise_seed": 0, "against_advice": True}
    target |= {name: options.pop(name) for name in [*options] if name in Target.__dataclass_fields__}

    def unheard(self: Device, *arguments: Any, **named: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ready(self, *arguments, **named)

    judged, dev, left = collection.judged("train"), collection.judged("dev"), Left()
    held_out = share_of(collection, dev, np.arange(len(dev)))
    shares = {}
    for name, rows in partition_by_question(judged, "iid", 3, 0).items():
        own = share_of(collection, judged, rows)
        shares[name] = with_held_out(own, held_out)
    public = {"dev": collection.judgements["dev"]} if target.get("public_dev") else {}
    on_the_server = replace(collection, queries=held_out.queries if public else {}, judgements=public)
    run_options = RunOptions(
        options["method"], "full", asdict(RoundSettings(rounds=2)), target=asdict(Target(**target)), cache=str(cache)
    )
    (place / "run").mkdir(parents=True)
    with patch.object(Device, "__init__", unheard), over_wire(place / "devices", encoder, cache) as over, heard(left):
        untrained = Retriever.untrained(collection.documents, ByBatch.load(encoder), FeatureCache(cache))
        ledgers = None
        if target.get("unit") != "client":
            ledgers = place / "ledgers"
            for name in shares:  # a budget is the device's own word
                opened_ledger(ledgers / name / LEDGER, None, Target(**target))
        network = over(untrained, shares, ledgers)
        served = ServedRun(place / "run", run_options, on_the_server, report=Console())
        given = train_privately_over(network, untrained, served)
    for number, (node, request, reply) in enumerate(over.wire.seen):
        for payload, what in ((request, "request"), (reply, "reply")):
            if reply.kind == "clipped" and what == "reply":
                continue  # un-noised to a server that is trusted
            values = {key: value for key, value in payload.values.items() if key not in ("head", "setup")}
            left[f"{number} {what}"] = repr((node, payload.kind, values)).encode()
            left[f"{number} {what}.safetensors"] = save(
                {name: one.contiguous() for name, one in payload.tensors.items()}
            )
    left["given back"] = repr(given).replace(str(place), "PLACE").encode()
    return left | of_a_run(place / "run") | (of_a_run(ledgers) if ledgers is not None else {})


CASES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"method": "ridge", "public_dev": True}, ("taken out", "one more")),
    ({"method": "head", "adaptive_clip": True}, ("reworded", "another answer")),
    ({"method": "adapter", "held_out": True}, ("reworded", "one more")),
    ({"method": "head", "unit": "client", "public_dev": True}, ("taken out", "stop words")),
]


@pytest.mark.parametrize(("options", "which"), CASES, ids=str)
def test_no_private_question_changes_anything_un_noised(
    collection: Collection, encoder: Path, tmp_path: Path, options: dict[str, Any], which: tuple[str, ...]
) -> None:
    """Every request, every reply, every file of the server, and what it says."""
    collection = crossed(collection)
    first = left_behind(collection, encoder, tmp_path / "first", **options)
    assert {"history.jsonl", "privacy.json", "retriever/retriever.json", "stderr"} <= set(first)
    for what in which:
        found = left_behind(neighbours(collection)[what], encoder, tmp_path / what, **options)
        assert not difference(found, first), what


def test_the_comparison_of_neighbours_sees_what_leaves_a_device_un_noised(
    collection: Collection, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = devices.noised
    monkeypatch.setattr(
        devices,
        "noised",
        lambda sums, release, source: (
            plain(sums, release, source)
            if release.name != "head"
            else {name: one.float() for name, one in sums.items()}
        ),
    )
    first = left_behind(collection, encoder, tmp_path / "first", method="head")
    found = left_behind(neighbours(collection)["taken out"], encoder, tmp_path / "other", method="head")
    assert difference(found, first)


def test_the_comparison_of_neighbours_sees_seconds_of_devices(
    collection: Collection, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anything measured on a device's questions, in a record: here as if a second went by a question."""
    plain, passed = Device.answer, [0]

    def slow(self: Device, request: Payload) -> Payload:
        passed[0] += len(self.training)
        return plain(self, request)

    monkeypatch.setattr(Device, "answer", slow)
    told = ExchangeRecord.to_json
    monkeypatch.setattr(ExchangeRecord, "to_json", lambda self: {**told(self), "clock_seconds": passed[0]})
    found = []
    for name, one in (("first", collection), ("other", neighbours(collection)["one more"])):
        passed[0] = 0
        found.append(left_behind(one, encoder, tmp_path / name, method="ridge"))
    assert difference(*found)


@pytest.mark.parametrize("unit", ["example", "client"])
@pytest.mark.parametrize("method", ["ridge", "head", "adapter"])
def test_a_device_without_training_questions_takes_part_under_epsilon(
    collection: Collection, encoder: Path, tmp_path: Path, method: str, unit: str
) -> None:
    """It answers every request, and what the server is left with is what it would be with questions there."""
    judged = collection.judged("train")
    gone = {judged.queries[row].id for row in partition_by_question(judged, "iid", 3, 0)["client-2"]}
    left = {query: scores for query, scores in collection.judgements["train"].items() if query not in gone}
    without = replace(collection, judgements={**collection.judgements, "train": left})
    assert 0 < len(left) < len(judged)
    found = [
        left_behind(one, encoder, tmp_path / str(place), method=method, unit=unit)
        for place, one in enumerate((collection, without))
    ]
    assert not difference(*found)
