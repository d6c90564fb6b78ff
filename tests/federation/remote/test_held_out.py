"""A server without questions of its own: devices count on their held-out ones, and the round is chosen by that."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from support.wire import check_fields, marked, over_wire

from fedcar.collection.collection import Collection
from fedcar.collection.partition import partition
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.federation.deploy.options import RunOptions, ServedRun
from fedcar.federation.deploy.run import train_over
from fedcar.federation.device.device import Device
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate.federate import share_of
from fedcar.federation.wire.payload import SUMS
from fedcar.retriever.retriever import Retriever


@pytest.fixture(scope="module")
def collection(collection: Collection) -> Collection:
    return marked(collection)


def shares(collection: Collection, dev: bool = True) -> dict[str, Collection]:
    """Each device's training questions; of the held-out ones each has every second."""
    parts = partition(collection.judged("train"), "iid", 2, 0)
    found = {}
    for number, (name, rows) in enumerate(parts.items()):
        own = share_of(collection, collection.judged("train"), rows)
        judged = dict(list(collection.judgements["dev"].items())[number::2]) if dev else {}
        queries = {**own.queries, **{query: collection.queries[query] for query in judged}}
        found[name] = replace(own, queries=queries, judgements={**own.judgements, "dev": judged})
    return found


def run(
    collection: Collection, encoder: Path, cache: Path, folder: Path, method: str, *, own_dev: bool, dev: bool = True,
    spoil: Any = None,
) -> Any:  # fmt: skip
    """What `fedcar run` does, with devices in this process; the saved retriever and the result."""
    central = replace(collection, judgements={"dev": collection.judgements["dev"]} if own_dev else {})
    untrained = Retriever.untrained(collection.documents, Encoder.load(encoder), FeatureCache(cache))
    rounds = RoundSettings(rounds=8, local_epochs=5)
    options = RunOptions(method, "full", asdict(rounds), cache=str(cache))
    folder.mkdir(parents=True)
    with over_wire(folder / "devices", encoder, cache, spoil=spoil or {}) as over:
        network = over(untrained, shares(collection, dev))
        result = train_over(network, untrained, ServedRun(folder, options, central))
    return Retriever.load(folder / "retriever"), result


@pytest.mark.parametrize("method", ["ridge", "head", pytest.param("adapter", marks=pytest.mark.slow)])
def test_devices_choose_as_the_server_would_with_the_same_questions(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, method: str
) -> None:
    """The devices' held-out questions together are the server's dev split: the same success, the same round.

    Nothing but the reply leaves: the fields of every payload of the whole run, and no word of a question.
    """
    replies: list[Any] = []
    kept = dict.fromkeys(("client-1", "client-2"), lambda request, reply: replies.append(reply) or reply)
    with_dev, first = run(collection, encoder, cache, tmp_path / "with", method, own_dev=True)
    without, second = run(collection, encoder, cache, tmp_path / "without", method, own_dev=False, spoil=kept)
    assert without.training.method == with_dev.training.method == method
    assert second["selection"] == pytest.approx(first["selection"])
    assert first["selection"] > 0.8 > second["rounds"][0].get("mips", 0)
    if method != "ridge":
        counted = [record["held_out"]["right"] / record["held_out"]["questions"] for record in second["rounds"]]
        assert counted[1:] == pytest.approx([record["selection"] for record in first["rounds"][:-1]])
        assert all(record["selection"] is None for record in second["rounds"])
    updates = {name for reply in replies if reply.kind == "train" for name in reply.tensors}
    assert {name.split("/")[0] for name in updates} <= {"update"}
    ridge = {"statistics": set(SUMS), "taught": {"right"}, "unseen": set()}
    own = ridge if method == "ridge" else {"train": updates}
    own |= {"spread": {"spread"}, "sums": {"gradient", "hessian"}}
    check_fields(replies, collection, {"enrol": {"row_questions"}, "count": {"right"}, **own})


def test_without_any_held_out_question_there_is_nothing_to_choose_by(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(FedcarError, match="no dev split here and none on any device") as error:
        run(collection, encoder, cache, tmp_path / "run", "head", own_dev=False, dev=False)
    assert "\n" not in str(error.value)


def test_a_device_that_lies_about_its_counts_is_not_counted(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    def lies(request: Any, reply: Any) -> Any:
        if request.kind == "count":
            return replace(reply, values={**reply.values, "trained": 10**6})
        return replace(reply, values={**reply.values, "right": 10**6}) if request.kind == "train" else reply

    _, result = run(collection, encoder, cache, tmp_path / "run", "head", own_dev=False, spoil={"client-2": lies})
    assert 0.8 < result["selection"] <= 1
    assert all(record["held_out"]["questions"] == 5 for record in result["rounds"])


def test_a_held_out_question_that_stands_in_train_is_not_counted(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    own = shares(collection)["client-1"]
    trained = next(iter(own.judgements["train"]))
    again = {**own.judgements["dev"], trained: own.judgements["train"][trained]}
    more = replace(own, judgements={**own.judgements, "dev": again})
    device = Device(more, tmp_path, Encoder.load(encoder), FeatureCache(cache))
    assert len(device.held_out) == len(own.judgements["dev"])
