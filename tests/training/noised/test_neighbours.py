"""Whatever training under epsilon leaves behind, nothing but noised sums tells of a private question."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import fedcar, tree
from support.neighbours import TINY, ByBatch, Left, crossed, difference, heard, neighbours, past

from fedcar import train
from fedcar.collection.collection import Collection
from fedcar.common.progress import Console
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.model import FrozenModel
from fedcar.privacy.noise import NoiseSource
from fedcar.training import job
from fedcar.training.noised import whitening
from fedcar.training.noised.clients import NoisedClient
from fedcar.training.noised.record import ExchangeRecord

OPTIONS: dict[str, Any] = {"epsilon": TINY, "delta": 1e-9, "against_advice": True, "epochs": 2, "noise_seed": 0}


def left_behind(collection: Collection, encoder: Path, place: Path, **options: Any) -> Left:
    """Every byte of the retriever, and what was said on the way; the cache has this collection's own past."""
    cache = past(collection, encoder, place / "cache")
    left: Left = {}
    with heard(left):
        found = train(
            collection, encoder=ByBatch.load(encoder), cache=cache, report=Console(), **{**OPTIONS, **options}
        )
    found.save(place / "retriever")
    return {**left, **tree(place / "retriever")}


CASES: list[dict[str, Any]] = [
    {"method": "ridge"},
    {"method": "head"},
    {"method": "adapter"},
    {"method": "ridge", "public_dev": True},
    {"method": "head", "public_dev": True, "adaptive_clip": True},
    {"method": "adapter", "public_dev": True, "adaptive_clip": True},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_no_private_question_changes_anything_un_noised(
    collection: Collection, encoder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """With noise that swallows every sum, neighbours leave the same bytes; only a leak could tell them apart."""
    collection = crossed(collection)
    first = left_behind(collection, encoder, tmp_path / "first", **options)
    said = first["stderr"]
    assert said and (b"ridge" in said or b"class sums" in said)
    for number, (what, other) in enumerate(neighbours(collection).items()):
        found = left_behind(other, encoder, tmp_path / str(number), **options)
        assert not difference(found, first), what


# -------------------------------------------------------------------- the comparison can fail


def told_apart(collection: Collection, encoder: Path, place: Path, what: str, **options: Any) -> str:
    """What tells this neighbour from the collection."""
    collection = crossed(collection)
    first = left_behind(collection, encoder, place / "first", **options)
    return difference(left_behind(neighbours(collection)[what], encoder, place / "other", **options), first)


@pytest.mark.parametrize("what", ["taken out", "reworded", "another answer", "stop words", "one more"])
def test_the_comparison_of_neighbours_sees_a_question(
    collection: Collection, encoder: Path, tmp_path: Path, what: str
) -> None:
    """With little noise each neighbour leaves other rows."""
    assert told_apart(collection, encoder, tmp_path, what, method="head", epsilon=1e3).startswith("head.safetensors")


def test_the_comparison_of_neighbours_sees_a_cache_that_all_share(
    collection: Collection, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of documents and reference texts that were encoded beside private questions."""
    monkeypatch.setattr(FeatureCache, "public", property(lambda self: self))
    assert "safetensors" in told_apart(collection, encoder, tmp_path, "one more", method="ridge")


def test_the_comparison_of_neighbours_sees_a_cache_of_questions_that_all_share(
    collection: Collection, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of public dev questions alone: one of them is a private question's text."""
    ready = job.made_ready

    def found_among_all(untrained: Any, judged: Any, cache: FeatureCache, report: Any, what: str) -> Any:
        shared = FeatureCache(cache.folder.parent) if what == "public dev questions" else cache
        return ready(untrained, judged, shared, report, what)

    monkeypatch.setattr(job, "made_ready", found_among_all)
    found = told_apart(collection, encoder, tmp_path, "taken out", method="ridge", public_dev=True)
    assert found.startswith("chosen by")


def test_the_comparison_of_neighbours_sees_a_warning(
    collection: Collection, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a private question was cut is said, or swallows what would be said of a public one."""
    monkeypatch.setattr(FrozenModel, "without_remarks", lambda self: nullcontext())
    monkeypatch.setattr(whitening, "reference_texts", lambda: ["of these none is cut", "nor this"])
    assert told_apart(collection, encoder, tmp_path, "reworded", method="adapter").startswith("stderr")


def test_the_comparison_of_neighbours_sees_a_measure(
    collection: Collection, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anything of a private question in a record, as seconds were."""
    plain = NoisedClient.answer

    def measured(self: NoisedClient, request: Any) -> Any:
        assert self.private_questions is not None
        told = {"round": 0, "questions": len(self.private_questions)}
        monkeypatch.setattr(ExchangeRecord, "to_json", lambda _: told)
        return plain(self, request)

    monkeypatch.setattr(NoisedClient, "answer", measured)
    assert told_apart(collection, encoder, tmp_path, "one more", method="head").startswith("retriever.json")


# -------------------------------------------------------------------- the command line


@pytest.mark.parametrize("command", ["train", "federate"])
def test_standard_error_and_output_are_those_of_any_neighbour(
    collection: Collection, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """From reading the collection to the last line; the noise is always the same, and swallows every sum."""
    monkeypatch.setattr(NoiseSource, "normal", lambda self, shape: np.ones(shape))
    monkeypatch.setattr("fedcar.training.target.LEAST_EPSILON", 0.0)
    collection, said = crossed(collection), []
    for what, one in {"itself": collection, **neighbours(collection)}.items():
        place = tmp_path / what.replace(" ", "-")
        one.write(place / "collection")
        out, more = place / "out", ("--clients", 2, "--rounds", 2) if command == "federate" else ("--epochs", 2)
        options = ("--epsilon", TINY, "--delta", 1e-9, "--against-advice", "--json", "--method", "head", *more)
        result = fedcar(
            command,
            place / "collection",
            "-o",
            out,
            "--encoder",
            encoder,
            "--cache",
            place / "cache",
            *options,
            "--ledger",
            place / "ledger",
        )
        assert result.code == 0, result.err
        said.append([text.replace(str(place), "PLACE") for text in (result.out, result.err)])
    for one in said:
        assert one == said[0]
