"""Whatever a federation under epsilon leaves behind, nothing but noised sums tells of a private question."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import tree
from support.neighbours import TINY, ByBatch, Left, crossed, difference, heard, neighbours, of_a_run, past

from fedcar.collection.collection import Collection, Query
from fedcar.collection.partition import partition_by_question
from fedcar.common.progress import Console
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate import noised as simulated
from fedcar.federation.simulate.noised import federate_under_epsilon
from fedcar.federation.simulate.settings import Federation
from fedcar.privacy.ledger import Ledger
from fedcar.training.noised import clients as devices
from fedcar.training.noised.sums import ClippedSums
from fedcar.training.target import Target


def federated(collection: Collection, encoder: Encoder, place: Path, cache: Path, **options: Any) -> Federation:
    """Two rounds of three clients; options of the target and others by name."""
    target = {"epsilon": TINY, "delta": 1e-9, "noise_seed": 0, "against_advice": True}
    target |= {name: options.pop(name) for name in [*options] if name in Target.__dataclass_fields__}
    options = {"clients": 3, "rounds": RoundSettings(rounds=2), **options}
    return federate_under_epsilon(
        collection, Target(**target), run=place / "run", encoder=encoder, cache=cache, report=Console(), **options
    )


def left_behind(collection: Collection, encoder: Path, place: Path, **options: Any) -> Left:
    """Retriever, run folder with ledgers and stored updates, what was said and what is given back."""
    cache = past(collection, encoder, place / "cache")
    left: Left = {}
    with heard(left):
        found = federated(collection, ByBatch.load(encoder), place, cache, **options)
    found.retriever.save(place / "retriever")
    given = found.central, found.federated, found.rounds, found.seconds, found.privacy, found.bytes_per_round
    left |= {f"run/{name}": content for name, content in of_a_run(place / "run").items()}
    assert any(name.endswith(".bin.safetensors") for name in left), "stored updates"
    return {**left, **tree(place / "retriever"), "given back": repr(given).encode()}


CASES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"method": "ridge", "kind": "dirichlet:0.5", "public_dev": True}, ("taken out", "one more")),
    ({"method": "head", "held_out": True}, ("taken out", "reworded")),
    ({"method": "head", "adaptive_clip": True, "kind": "dirichlet:0.1"}, ("another answer", "one more")),
    ({"method": "adapter", "public_dev": True}, ("reworded", "stop words")),
    ({"method": "ridge", "unit": "client"}, ("taken out", "one more")),
    ({"method": "head", "unit": "client", "public_dev": True}, ("reworded", "another answer")),
    ({"method": "adapter", "unit": "client"}, ("taken out", "reworded")),
]


@pytest.mark.parametrize(("options", "which"), CASES, ids=str)
def test_no_private_question_changes_anything_un_noised(
    collection: Collection, encoder: Path, tmp_path: Path, options: dict[str, Any], which: tuple[str, ...]
) -> None:
    """Noise that swallows every sum: neighbours leave the same retriever, run, ledgers and words."""
    collection = crossed(collection)
    first = left_behind(collection, encoder, tmp_path / "first", **options)
    for what in which:
        found = left_behind(neighbours(collection)[what], encoder, tmp_path / what, **options)
        assert not difference(found, first), what


@pytest.mark.parametrize("method", ["ridge", "adapter"])
def test_no_held_out_question_changes_anything_un_noised(
    collection: Collection, encoder: Path, tmp_path: Path, method: str
) -> None:
    """Questions that count at the end: with the adapter they go through the encoder once more."""
    collection = crossed(collection)
    options = {"method": method, "held_out": True}
    first = left_behind(collection, encoder, tmp_path / "first", **options)
    for what in ("taken out", "reworded", "one more"):
        found = left_behind(neighbours(collection, "dev")[what], encoder, tmp_path / what, **options)
        assert not difference(found, first), what


def test_a_training_question_that_nothing_answers_changes_no_measure(
    collection: Collection, encoder: Path, tmp_path: Path
) -> None:
    """Its text is a public dev question's, which evaluation would leave out as one that was trained on."""
    text = collection.queries[next(iter(collection.judgements["dev"]))].text
    asked = Query("nobody knows", text, answerable=False, split="train")
    more = replace(collection, queries={**collection.queries, asked.id: asked})
    found = [
        left_behind(one, encoder, tmp_path / str(place), method="ridge", public_dev=True)
        for place, one in enumerate((collection, more))
    ]
    assert not difference(*found)
    assert b"'queries': 10" in (found[1]["given back"] or b""), "all of dev are measured"


@pytest.mark.parametrize("unit", ["example", "client"])
@pytest.mark.parametrize("method", ["ridge", "head", "adapter"])
def test_a_client_without_questions_gives_out_noise_like_any_other(
    collection: Collection, encoder: Path, tmp_path: Path, method: str, unit: str
) -> None:
    """All questions of one client taken out: only sums that were noised may tell."""
    judged, options = collection.judged("train"), {"method": method, "unit": unit}
    gone = {judged.queries[row].id for row in partition_by_question(judged, "iid", 3, 0)["client-2"]}
    left = {query: scores for query, scores in collection.judgements["train"].items() if query not in gone}
    queries = {name: query for name, query in collection.queries.items() if name not in gone}
    without = replace(collection, queries=queries, judgements={**collection.judgements, "train": left})
    assert 0 < len(left) < len(judged)
    found = [
        left_behind(one, encoder, tmp_path / str(place), **options) for place, one in enumerate((collection, without))
    ]
    assert not difference(*found)
    assert sum(name.endswith("ledger.jsonl") for name in found[1]) == (1 if unit == "client" else 3)


def test_neighbours_differ_at_one_client_by_one_question(
    collection: Collection, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What parallel composition rests on; noise that swallows every sum would hide it from the comparison above."""
    made: list[list[str]] = []
    plain = ClippedSums.__init__

    def noting(self: ClippedSums, retriever: Any, questions: Any, *more: Any) -> None:
        made.append(sorted(questions.texts))
        plain(self, retriever, questions, *more)

    monkeypatch.setattr(ClippedSums, "__init__", noting)

    def apart(number: int, what: str, kind: str) -> int:
        found = []
        for name, one in (("first", collection), ("other", neighbours(collection)[what])):
            place = tmp_path / str(number) / name
            federated(one, Encoder.load(encoder), place, tmp_path / "cache", kind=kind)
            found.append(made[:])
            made.clear()
        assert [len(one) for one in found] == [3, 3]
        return sum(one != other for one, other in zip(*found, strict=True))

    for number, (kind, what) in enumerate(product(("iid", "dirichlet:0.3"), ("taken out", "one more"))):
        assert apart(number, what, kind) == 1

    def all_at_once(judged: Any, kind: str, clients: int, seed: int, everyone: Any) -> Any:
        order = np.random.default_rng(seed).permutation(len(judged))
        return dict(zip("abc", np.array_split(order, clients), strict=True))

    monkeypatch.setattr(simulated, "partition_by_question", all_at_once)
    assert apart(4, "taken out", "iid") > 1, "a partition over all questions at once is seen"


def test_the_comparison_of_neighbours_sees_what_a_client_gives_out_un_noised(
    collection: Collection, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the updates stored beside its ledger: its class sums, and its count."""
    plain = devices.noised
    for leaked, unit in (("class sums", "example"), ("count", "example"), ("class sums", "client")):

        def forgetful(sums: Any, release: Any, source: Any, leaked: str = leaked) -> Any:
            return dict(sums) if release.name == leaked else plain(sums, release, source)

        with monkeypatch.context() as patch:
            patch.setattr(devices, "noised", forgetful)
            place, other = tmp_path / leaked / unit, neighbours(collection)["one more"]
            first = left_behind(collection, encoder, place / "first", method="ridge", unit=unit)
            found = left_behind(other, encoder, place / "other", method="ridge", unit=unit)
            assert ".bin.safetensors" in difference(found, first), leaked


def test_an_older_run_is_refused_since_its_statement_promises_too_much(
    collection: Collection, encoder: Path, tmp_path: Path
) -> None:
    federated(collection, Encoder.load(encoder), tmp_path, tmp_path / "cache")
    file = tmp_path / "run" / "private.json"
    content = json.loads(file.read_text())
    del content["belongs_to"]["parts"]
    file.write_text(json.dumps(content))
    charged = [len(Ledger(ledger).releases()) for ledger in sorted((tmp_path / "run").rglob("ledger.jsonl"))]
    with pytest.raises(FedcarError, match="its statement promises too much, since .*; start a new run") as error:
        federated(collection, Encoder.load(encoder), tmp_path, tmp_path / "cache", resume=True)
    assert "\n" not in str(error.value) and str(tmp_path / "run") in str(error.value)
    assert charged == [len(Ledger(ledger).releases()) for ledger in sorted((tmp_path / "run").rglob("ledger.jsonl"))]


def test_no_file_of_a_run_has_seconds(collection: Collection, encoder: Path, tmp_path: Path) -> None:
    """But the ledgers, which are their owners' own."""
    found = federated(collection, Encoder.load(encoder), tmp_path, tmp_path / "cache")
    found.retriever.save(tmp_path / "run" / "retriever")
    assert found.seconds == {}
    texts = {
        name: content.decode()
        for name, content in tree(tmp_path / "run").items()
        if content is not None and name.endswith((".json", ".jsonl")) and "ledger" not in name and "words" not in name
    }
    assert {"history.jsonl", "privacy.json", "private.json", "retriever/retriever.json"} <= set(texts)
    for name, text in texts.items():
        assert not any(word in text for word in ("seconds", '"time', "memory")), name
