"""Training with two encoders beside each other: what is kept, and that what was kept searches alike everywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.command import fedcar, tree

from fedcar import train
from fedcar.collection.collection import Collection, Document, Judged, Query
from fedcar.common.progress import Silent
from fedcar.encoder.both import Both
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.export.bundle import load_bundle
from fedcar.export.bundle_writing import write_bundle
from fedcar.export.stock import export
from fedcar.retriever import quick_writing
from fedcar.retriever.prepare import prepare
from fedcar.retriever.questions import Questions
from fedcar.retriever.quick import quick_searcher
from fedcar.retriever.quick_writing import leave_quick_start
from fedcar.retriever.retriever import Retriever
from fedcar.training.gains import FEW, Gain, Measured, Proof
from fedcar.training.refine import refined
from fedcar.training.selection import NOTHING, Candidate, cheaper_unless_better

pytestmark = pytest.mark.filterwarnings("ignore:.* tokens and were cut", "ignore:.* have nothing but stop words")

QUESTIONS = ["the fan is broken", "blower sucker", "who charges the battery over night?", "ünknown Wörds, 3.5 %"]
SURE, NO_PROOF = Gain(True, 0.1), Proof()


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def asked(count: int, name: str = "question") -> Questions:
    """Questions about the first of two documents."""
    relevance = np.tile(np.array([1, 0], dtype=np.float32), (count, 1))
    texts, answers = tuple(f"{name} {number}" for number in range(count)), ({"a": 1},) * count
    return Questions(texts, np.zeros(count), relevance.astype(int), relevance[..., None], relevance, answers)


def right(count: int, of: int) -> np.ndarray:
    """Scores (of, 2) that put the right document first for so many of the questions."""
    return np.where(np.arange(of)[:, None] < count, [1.0, 0.0], [0.0, 1.0]).astype(np.float32)


def scored(name: str, scores: np.ndarray, gain: Gain = SURE, proof: Proof = NO_PROOF) -> Candidate:
    retriever: Any = SimpleNamespace(scores_of=lambda questions: scores)
    return Candidate(name, retriever, NOTHING, gain, proof)


def test_second_encoder_stays_only_where_it_surely_pays() -> None:
    selection, report = asked(FEW), Said()
    alone = scored("ridge", right(150, FEW))
    for more, sure in ((20, True), (2, False), (0, False), (-20, False)):
        both = scored("ridge+both", right(150 + more, FEW))
        kept = cheaper_unless_better(alone, both, selection, 0.0, report)
        assert kept is (both if sure else alone), more
    assert report.lines[1].endswith("; not surely better, so the cheaper one stays")
    below_search = scored("ridge+both", right(170, FEW), Gain(False, -0.1))
    assert cheaper_unless_better(alone, below_search, selection, 0.0, report) is alone


def test_where_questions_are_few_those_that_were_left_out_have_a_say_too() -> None:
    selection, taught = asked(20), asked(200, "taught")

    def proof(count: int, questions: Questions = taught) -> Proof:
        return Proof(Measured(questions, np.repeat(right(count, len(questions))[:, :1], 2, axis=1).astype(float)))

    few = scored("ridge", right(15, 20)), scored("ridge+both", right(17, 20))
    assert cheaper_unless_better(*few, selection, 0.0, Silent()).name == "ridge"
    with_more = replace(few[0], proof=proof(150)), replace(few[1], proof=proof(170))
    assert cheaper_unless_better(*with_more, selection, 0.0, Silent()).name == "ridge+both"
    of_others = replace(few[0], proof=proof(150, asked(200, "other"))), with_more[1]
    assert cheaper_unless_better(*of_others, selection, 0.0, Silent()).name == "ridge"


def test_where_documents_have_no_questions_folds_have_a_say_too() -> None:
    selection, folds = asked(FEW), asked(100, "fold")

    def proof(count: int) -> Proof:
        return Proof(None, Measured(folds, np.repeat(right(count, 100)[:, :1], 2, axis=1).astype(float)))

    alone = scored("ridge", right(150, FEW), proof=proof(60))
    for on_folds, kept in ((75, "ridge+both"), (45, "ridge")):
        both = scored("ridge+both", right(170, FEW), proof=proof(on_folds))
        assert cheaper_unless_better(alone, both, selection, 0.5, Silent()).name == kept


# From outside


@pytest.fixture(scope="module")
def names(tiny_model: Callable[..., Path]) -> Sequence[Path]:
    return tiny_model("llama"), tiny_model("bert")


@pytest.fixture(scope="module")
def alone(collection: Collection, names: Sequence[Path], cache: Path) -> Retriever:
    return train(collection, encoder=names[0], cache=cache, method="ridge")


@pytest.fixture(scope="module")
def kept(collection: Collection, names: Sequence[Path], cache: Path) -> Retriever:
    """A retriever over both: the toy's few questions cannot prove it, so it is kept without proof."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedcar.training.train.cheaper_unless_better", lambda chosen, dearer, *others: dearer)
        return train(collection, encoder=f"{names[0]}+{names[1]}", cache=cache, method="ridge")


@pytest.fixture(scope="module")
def kept_head(collection: Collection, names: Sequence[Path], cache: Path) -> Retriever:
    """The same of a head."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedcar.training.train.cheaper_unless_better", lambda chosen, dearer, *others: dearer)
        return train(collection, encoder=f"{names[0]}+{names[1]}", cache=cache, method="head", epochs=3)


@pytest.fixture(params=["ridge", "head"])
def over_both(request: pytest.FixtureRequest) -> Retriever:
    """Each of them."""
    return request.getfixturevalue({"ridge": "kept", "head": "kept_head"}[request.param])


def hits(searcher: Any) -> list[list[tuple[str, float]]]:
    return [[(hit.id, pytest.approx(hit.score, abs=2e-4)) for hit in searcher.search(text, 4)] for text in QUESTIONS]


def test_who_keeps_one_encoder_alone_forgets_the_other(
    collection: Collection, names: Sequence[Path], cache: Path, alone: Retriever, tmp_path: Path
) -> None:
    report = Said()
    chosen = train(collection, encoder=f"{names[0]}+{names[1]}", cache=cache, method="ridge", report=report)
    assert chosen.encoder.beside is None
    assert any("ms a question more" in line and "MB of weights" in line for line in report.lines)
    assert any("+both against" in line for line in report.lines)
    for retriever, name in ((alone, "alone"), (chosen, "chosen")):
        retriever.save(tmp_path / name)
    files = [
        {name: data for name, data in tree(tmp_path / folder).items() if name.endswith((".safetensors", ".jsonl"))}
        for folder in ("alone", "chosen")
    ]
    assert files[0] == files[1]
    told = [json.loads((tmp_path / folder / "retriever.json").read_text()) for folder in ("alone", "chosen")]
    for part in ("encoder", "weights", "calibration", "feature_seed"):
        assert told[0][part] == told[1][part]


def test_what_was_kept_reads_the_second_encoder_when_it_searches(kept: Retriever, names: Sequence[Path]) -> None:
    assert kept.training.method.endswith("+both")
    assert kept.ridge is not None
    assert kept.encoder.beside is not None
    states = kept.encoder.encode_states(QUESTIONS)
    other = states.copy()
    other["beside"] = states["beside"][::-1]
    assert kept.ridge.feature_map(states).shape == (len(QUESTIONS), kept.ridge.feature_map.dimension)
    assert not np.allclose(kept.ridge.scores(QUESTIONS, states), kept.ridge.scores(QUESTIONS, other))


def test_a_head_over_both_reads_the_second_encoder_too(kept_head: Retriever) -> None:
    assert kept_head.training.method == "head+both"
    assert kept_head.head.beside and kept_head.ridge is None
    states = kept_head.encoder.encode_states(QUESTIONS)
    other = states.copy()
    other["beside"] = states["beside"][::-1]
    assert not np.allclose(kept_head.learned(QUESTIONS, states), kept_head.learned(QUESTIONS, other))


def test_saved_and_loaded_it_is_the_same(over_both: Retriever, names: Sequence[Path], tmp_path: Path) -> None:
    over_both.save(tmp_path / "kept")
    assert hits(Retriever.load(tmp_path / "kept")) == hits(over_both)
    assert hits(Retriever.load(tmp_path / "kept", f"{names[0]}+{names[1]}")) == hits(over_both)
    with pytest.raises(FedcarError, match="give the original encoder's folder"):
        Retriever.load(tmp_path / "kept", f"{names[0]}+{names[0]}")
    told = json.loads(fedcar("info", tmp_path / "kept", "--json").out)
    assert over_both.encoder.beside is not None
    assert told["encoder"]["fingerprint"] == over_both.encoder.fingerprint
    assert told["beside"]["fingerprint"] == over_both.encoder.beside.fingerprint


def test_one_that_keeps_one_encoder_is_not_given_two(alone: Retriever, names: Sequence[Path], tmp_path: Path) -> None:
    alone.save(tmp_path / "alone")
    with pytest.raises(FedcarError, match=r"keeps one encoder alone; give its folder, without '\+'"):
        Retriever.load(tmp_path / "alone", f"{names[0]}+{names[1]}")


def test_documents_come_and_go_under_a_head(kept_head: Retriever) -> None:
    added = refined(kept_head.add([Document("sprinkler", "Sprinkler", "The sprinkler waters the lawn at night.")]), 1)
    assert added.head.beside and bool(added.head.active[-1])
    states = added.encoder.encode_states(["Sprinkler"])
    assert added.learned(["Sprinkler"], states)[0, :, 0].argmax() == len(added.documents) - 1
    assert hits(added.remove(["sprinkler"])) == hits(kept_head)


def test_documents_come_and_go(kept: Retriever) -> None:
    added = refined(kept.add([Document("sprinkler", "Sprinkler", "The sprinkler waters the lawn at night.")]), 1)
    assert added.ridge is not None
    scores = added.ridge.scores(["Sprinkler"], added.encoder.encode_states(["Sprinkler"]))[0, :, 0]
    assert scores.argmax() == len(added.documents) - 1
    assert hits(added.remove(["sprinkler"])) == hits(kept)


def test_bundle_and_quick_start_search_alike(
    over_both: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(quick_writing, "PACKAGES", ("onnxruntime", "onnxscript"))
    write_bundle(over_both, tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert hits(bundle) == hits(over_both)
    told = json.loads(fedcar("info", tmp_path / "bundle", "--json").out)
    assert over_both.encoder.beside is not None
    assert told["beside"]["fingerprint"] == over_both.encoder.beside.fingerprint
    over_both.save(tmp_path / "kept")
    assert quick_searcher(tmp_path / "kept") is None
    leave_quick_start(over_both)
    quick = quick_searcher(tmp_path / "kept")
    assert quick is not None
    assert hits(quick) == hits(over_both)


class Stop(BaseException):
    """What ends a training at a moment of its own choosing."""


class StopsAt(Said):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def say(self, line: str) -> None:
        super().say(line)
        self.left -= line.startswith("epoch ")
        if not self.left:
            raise Stop


@pytest.mark.parametrize("epoch", [2, 5], ids=["first alone", "both"])
def test_a_head_over_both_resumed_equals_uninterrupted(
    epoch: int,
    collection: Collection,
    names: Sequence[Path],
    cache: Path,
    kept_head: Retriever,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedcar.training.train.cheaper_unless_better", lambda chosen, dearer, *others: dearer)
    options = {"encoder": f"{names[0]}+{names[1]}", "cache": cache, "method": "head", "epochs": 3}
    options["checkpoint"] = tmp_path / "checkpoint"
    with pytest.raises(Stop):
        train(collection, report=StopsAt(epoch), **options)
    resumed, report = tmp_path / "resumed", Said()
    train(collection, report=report, resume=True, **options).save(resumed)
    assert sum(line.startswith("epoch ") for line in report.lines) == (3 - 1 + 3 if epoch == 2 else 0 + 3)
    kept_head.save(tmp_path / "whole")
    for file in ("head.safetensors", "documents.jsonl"):
        assert (resumed / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("export_format", ["transformers", "onnx"])
def test_a_stock_folder_holds_one_encoder(export_format: str, over_both: Retriever, tmp_path: Path) -> None:
    line = rf"--format {export_format}: its rows are over two encoders, .* give --format bundle"
    with pytest.raises(FedcarError, match=line):
        export(over_both, tmp_path / "out", export_format)
    assert not (tmp_path / "out").exists()


def test_questions_that_were_read_once_are_not_read_again_by_the_second(
    names: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, features = Both(*map(Encoder.load, names)), FeatureCache(tmp_path)
    document = Document("pump", "Pump", "The pump stands in the cellar. " * 20)
    untrained = Retriever.untrained([document], both, features)
    assert untrained.evidence.deep, "token states are compared, so that questions are read by token"
    judged = Judged((Query("one", QUESTIONS[0]),), ({"pump": 1},))
    first = prepare(untrained, judged, features, Silent(), "questions")

    def refuse(*arguments: object) -> None:
        raise AssertionError("the second encoder was asked")

    assert both.beside is not None
    monkeypatch.setattr(both.beside, "_encoded", refuse)
    again = prepare(untrained, judged, features, Silent(), "questions")
    np.testing.assert_array_equal(again.states["beside"]["pooled"], first.states["beside"]["pooled"])


@pytest.mark.parametrize("second", ["{0}+{1}", "no/such/folder", "{0}/missing.gguf", "+"])
def test_a_second_encoder_that_cannot_be_read_is_one_line(
    second: str, collection_folder: Path, names: Sequence[Path], tmp_path: Path
) -> None:
    pair = f"{names[0]}+{second.format(*names)}"
    result = fedcar("train", collection_folder, "-o", tmp_path / "out", "--encoder", pair)
    assert result.code == 1 and not (tmp_path / "out").exists()
    assert "--encoder" in result.err and result.err.count("\n") == 1


def test_a_copy_of_the_first_encoder_is_no_second(
    collection_folder: Path, names: Sequence[Path], tmp_path: Path
) -> None:
    shutil.copytree(names[0], tmp_path / "copy")
    pair = f"{names[0]}+{tmp_path / 'copy'}"
    result = fedcar("train", collection_folder, "-o", tmp_path / "out", "--encoder", pair)
    assert result.code == 1
    assert "names one encoder twice" in result.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--epsilon", 3), "--epsilon: two encoders beside each other are for `fedcar train` without --epsilon"),
        (("--method", "adapter"), "--method adapter: trains through one encoder; name one, or give another method"),
    ],
)
def test_what_two_encoders_are_not_for_is_one_line(
    words: Sequence[object], line: str, collection_folder: Path, names: Sequence[Path], tmp_path: Path
) -> None:
    pair = f"{names[0]}+{names[1]}"
    result = fedcar("train", collection_folder, "-o", tmp_path / "out", "--encoder", pair, *words)
    assert result.code == 1
    assert line in result.err


def test_one_encoder_twice_and_federation_are_one_line(
    collection_folder: Path, names: Sequence[Path], tmp_path: Path
) -> None:
    twice = fedcar("train", collection_folder, "-o", tmp_path / "out", "--encoder", f"{names[0]}+{names[0]}")
    assert twice.code == 1
    assert "names one encoder twice" in twice.err
    federated = fedcar("federate", collection_folder, "-o", tmp_path / "out", "--encoder", f"{names[0]}+{names[1]}")
    assert federated.code == 1
    assert "two encoders beside each other are for `fedcar train`" in federated.err
