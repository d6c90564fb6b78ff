"""The method ridge over a network: one round of sums, the same retriever as in process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.wire import over_wire

from fedcar.collection.collection import Collection
from fedcar.encoder.cache import FeatureCache
from fedcar.errors import FedcarError
from fedcar.federation.device.device import Device
from fedcar.federation.device.ridge import RidgeSide
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate.federate import Federation, federate
from fedcar.federation.sums.forms import check_client, damaged, sums_from, tensors_of
from fedcar.federation.sums.ridge import bytes_of_sums
from fedcar.federation.wire.payload import Payload
from fedcar.training.ridge import RidgeSums


def train(collection: Collection, encoder: Path, cache: Path, run: Path, over: Any = None) -> Federation:
    return federate(
        collection, run=run, clients=3, encoder=encoder, method="ridge", rounds=RoundSettings(), compare=False,
        cache=cache, over=over,
    )  # fmt: skip


@pytest.fixture(scope="module")
def here(collection: Collection, encoder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return train(collection, encoder, cache, tmp_path_factory.mktemp("here") / "run")


def check_same(ours: Federation, theirs: Federation) -> None:
    assert ours.federated == theirs.federated
    assert np.array_equal(ours.retriever.weights, theirs.retriever.weights)
    assert (ours.retriever.ridge is None) == (theirs.retriever.ridge is None)
    if ours.retriever.ridge is not None and theirs.retriever.ridge is not None:
        for name, array in ours.retriever.ridge.tensors().items():
            assert np.array_equal(array, theirs.retriever.ridge.tensors()[name]), name


def test_over_a_network_equals_in_process(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, here: Federation, monkeypatch: Any
) -> None:
    """Also where sums travel in parts, and where a device is restarted after it heard them: it hears them again."""
    monkeypatch.setattr("fedcar.federation.wire.parts.LIMIT", 100_000)
    evidence, forgot = RidgeSide.evidence, []

    def forgetful(self: RidgeSide, *arguments: Any) -> Any:
        if not forgot:
            forgot.append(1)
            assert self.member is not None
            self.member.taught = None
        return evidence(self, *arguments)

    monkeypatch.setattr(RidgeSide, "evidence", forgetful)
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        there = train(collection, encoder, cache, tmp_path / "run", over)
    assert here.retriever.ridge is not None, "ridge is what was kept, so there is something to compare"
    check_same(here, there)
    (ours,), (theirs,) = here.rounds, there.rounds
    unmeasured = {"client_seconds": {}, "clock_seconds": 0.0}
    assert replace(ours, **unmeasured) == replace(theirs, **unmeasured)
    kinds = [request.kind for _, request, _ in over.wire.seen]
    assert "part" in kinds and "train" not in kinds
    assert [reply.values["reason"] for _, _, reply in over.wire.seen if reply.kind == "refused"] == ["taught"]


def test_a_device_that_sends_rubbish_is_left_out(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    def loud(request: Payload, reply: Payload) -> Payload:
        if reply.kind != "statistics":
            return reply
        return replace(reply, tensors={**reply.tensors, "gram": 1e3 * reply.tensors["gram"]})

    with over_wire(tmp_path / "d", encoder, cache, spoil={"client-2": loud}) as over:
        found = train(collection, encoder, cache, tmp_path / "run", over)
    assert found.rounds[0].clients == ["client-1", "client-3"]
    assert found.rounds[0].failed["client-2"].startswith("sent rubbish: gram has values from")
    with over_wire(
        tmp_path / "e", encoder, cache, spoil=dict.fromkeys(("client-1", "client-2", "client-3"), loud)
    ) as o:
        with pytest.raises(FedcarError, match="no device gave any sums"):
            train(collection, encoder, cache, tmp_path / "other", o)


def test_a_device_that_sends_rubbish_later_is_left_out_of_that_alone(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    def lies(request: Payload, reply: Payload) -> Payload:
        if request.kind == "taught":
            return replace(reply, tensors={"right": torch.ones(1, dtype=torch.float64)})
        if request.kind == "sums" and request.values["strength"]:
            return replace(reply, tensors={name: tensor * float("inf") for name, tensor in reply.tensors.items()})
        return reply

    lines: list[str] = []
    with over_wire(tmp_path / "d", encoder, cache, spoil={"client-2": lies}, say=lines.append) as over:
        result = train(collection, encoder, cache, tmp_path / "run", over)
        unseen = [node for node, request, _ in over.wire.seen if request.kind == "unseen"]
    assert result.rounds[0].clients == ["client-1", "client-2", "client-3"]
    assert {line.split(" (")[0] for line in lines if "goes on" in line} == {"the mixture goes on without client-2"}
    assert {line.split(":")[0] for line in lines if "goes on" not in line} == {"client-2"} and len(set(unseen)) == 3
    with over_wire(tmp_path / "e", encoder, cache, spoil=dict.fromkeys(result.rounds[0].clients, lies)) as over:
        with pytest.raises(FedcarError, match="no device answers any more"):
            train(collection, encoder, cache, tmp_path / "other", over)


@pytest.fixture(scope="module")
def sums(collection: Collection, encoder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> RidgeSums:
    from fedcar.encoder.encoder import Encoder
    from fedcar.federation.wire.setup import Setup

    device = Device(collection, tmp_path_factory.mktemp("device"), Encoder.load(encoder), FeatureCache(cache))
    return device.ridge.of(Setup("run", "", "", "", {"seed": 0}, {})).questions.sums()


def test_more_documents_than_columns_are_refused_before_any_client_sums(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("fedcar.federation.sums.ridge.MOST_ROWS", len(collection.documents) - 1)
    with over_wire(tmp_path / "devices", encoder, cache) as over:
        with pytest.raises(FedcarError, match="every document gets a column.*take --method head"):
            train(collection, encoder, cache, tmp_path / "run", over)
        assert "statistics" not in {request.kind for _, request, _ in over.wire.seen}


def test_sums_come_back_as_they_were_and_what_is_none_is_refused(sums: RidgeSums) -> None:
    tensors, documents = tensors_of(sums), len(sums.statistics.counts)
    dimension, questions = len(sums.statistics.gram), sums.statistics.questions
    found = sums_from(tensors, questions, documents, dimension)
    assert np.array_equal(np.triu(found.statistics.gram), np.triu(sums.statistics.gram))
    assert np.array_equal(found.statistics.cross, sums.statistics.cross)
    assert (found.words.counts != sums.words.counts).nnz == 0
    assert sum(tensor.nbytes for tensor in tensors.values()) == bytes_of_sums(sums)
    check_client(found, questions, torch.from_numpy(sums.statistics.counts))
    for name, wrong, says in (
        ("gram", tensors["gram"][:-1], "shapes"), ("gram", tensors["gram"].double(), "types"),
        ("gram", tensors["gram"] * float("nan"), "finite"), ("columns", tensors["columns"] + documents, "no documents"),
        ("columns", tensors["columns"].flip(0), "no documents"), ("grams", tensors["grams"] - 1 - 2**20, "table"),
        ("starts", tensors["starts"].flip(0), "order"), ("data", -tensors["data"], "less than never"),
        ("data", tensors["data"][:-1], "shapes"), ("starts", tensors["starts"].int(), "types"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            sums_from({**tensors, name: wrong}, questions, documents, dimension)
    beside = sums.statistics.gram.copy()
    beside[0, 1] = beside[1, 0] = 1.2 * (beside[0, 0] * beside[1, 1]) ** 0.5
    negative = sums.statistics.gram - 2 * np.diag(sums.statistics.gram.diagonal())
    loud = replace(sums.words, counts=sums.words.counts * np.float32(1e30))
    empty = sums.statistics.cross.copy()
    empty[:, sums.statistics.counts == 0] = 1e-2
    for found, says in (
        (replace(sums, statistics=replace(sums.statistics, questions=questions + 1)), "other questions"),
        (replace(sums, statistics=replace(sums.statistics, gram=sums.statistics.gram * 3)), "gram"),
        (replace(sums, statistics=replace(sums.statistics, gram=beside)), "beside its diagonal"),
        (replace(sums, statistics=replace(sums.statistics, gram=negative)), "whose diagonal"),
        (replace(sums, statistics=replace(sums.statistics, cross=sums.statistics.cross * 3)), "cross terms"),
        (replace(sums, statistics=replace(sums.statistics, cross=empty)), "cross terms"),
        (replace(sums, words=loud), "words that were counted more often"),
    ):
        with pytest.raises(ValueError, match=says):
            check_client(found, questions, torch.from_numpy(sums.statistics.counts))


def test_a_gram_that_is_no_sum_of_squares_is_named_and_not_the_others(sums: RidgeSums) -> None:
    """Every entry is within its bounds, and yet nothing could be solved with it: all rows point where none does."""
    bad = sums.statistics.gram.copy()
    roots = np.sqrt(bad.diagonal())
    bad[:3, :3] = -np.outer(roots[:3], roots[:3]) * (1 - 2 * np.eye(3, dtype=np.float32))
    parts = {"a": sums.statistics, "b": replace(sums.statistics, gram=bad), "c": sums.statistics}
    check_client(
        replace(sums, statistics=parts["b"]), sums.statistics.questions, torch.from_numpy(sums.statistics.counts)
    )
    assert damaged({"a": parts["a"], "c": parts["c"]}) == {}
    assert list(damaged({name: replace(part, gram=100 * part.gram) for name, part in parts.items()})) == ["b"]
