"""The guarantees of a retriever by their names (docs/guarantees.md); those of training are in test_train.py."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pytest
import torch
from support.command import environment, python, tree

from fedcar import evaluate, train
from fedcar.collection.collection import Collection, Judged
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.retriever.retriever import Retriever

GRADIENT = ("head", "adapter")
METHODS = ("ridge", *GRADIENT)


def without_train(collection: Collection) -> Collection:
    return Collection(
        collection.name, collection.documents, collection.queries, {"test": collection.judgements["test"]}
    )


def hybrid_search(collection: Collection, encoder: Encoder, questions: Sequence[str]) -> np.ndarray:
    """Cosine + .2 * BM25 / (its maximum for the query), with bm25s itself."""
    texts = [f"{document.title}. {document.text}" for document in collection.documents]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    h, e = encoder.encode(questions), encoder.encode(texts)
    cosines = (h / np.linalg.norm(h, axis=1, keepdims=True)) @ (e / np.linalg.norm(e, axis=1, keepdims=True)).T
    words = bm25s.tokenize(list(questions), stopwords="en", show_progress=False, return_ids=False)
    lexical = np.stack([index.get_scores(query) if query else np.zeros(len(texts)) for query in words])
    return cosines + 0.2 * lexical / np.maximum(lexical.max(axis=1, keepdims=True), 1e-9)


QUESTIONS = ("the fan is broken", "who cleans a leaking hose with water", "nothing that is known", "blower")


@pytest.mark.filterwarnings("ignore::fedcar.errors.FedcarWarning")
@pytest.mark.parametrize("options", [{}, {"head": "cosine"}, {"pre_classifier": 8}, {"method": "adapter"}])
def test_untrained_retriever_equals_hybrid(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """For short documents (labels), exactly; the scores are in units of 1 / 20 of a cosine."""
    retriever = train(without_train(collection), encoder=encoder, cache=cache, **options)
    assert not retriever.evidence.deep
    expected = 20 * hybrid_search(collection, retriever.encoder, QUESTIONS)
    np.testing.assert_allclose(all_scores(retriever, QUESTIONS), expected, atol=1e-4)
    retriever.save(tmp_path / "retriever")
    for one in (retriever, Retriever.load(tmp_path / "retriever")):
        for row, question in enumerate(QUESTIONS):
            hits = one.search(question, k=6).hits
            assert [hit.id for hit in hits] == [collection.documents[place].id for place in (-expected[row]).argsort()]
            np.testing.assert_allclose([hit.score for hit in hits], -np.sort(-expected[row]), atol=1e-4)


def all_scores(retriever: Retriever, questions: Sequence[str]) -> np.ndarray:
    """Scores (n, documents), documents in their order."""
    reading = retriever.encoder.read(questions)
    candidates, evidence = retriever.evidence_for(questions, reading.states, reading.tokens)
    found = retriever.scores(questions, reading.states, candidates, evidence)
    return np.take_along_axis(found, candidates.argsort(axis=1), axis=1)


def train_one(collection: Collection, encoder: Path, cache: Path, method: str = "head", **options: Any) -> Retriever:
    return train(collection, encoder=encoder, cache=cache, method=method, **{"epochs": 12, **options})


@pytest.mark.parametrize("head", ["cosine", "linear"])
@pytest.mark.parametrize("method", GRADIENT)
def test_untouched_rows_keep_their_embedding(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, method: str, head: str
) -> None:
    retriever = train_one(collection, encoder, cache, method, head=head)
    assert retriever.training.method == method, "nothing was trained, so nothing is shown"
    before = train(without_dev_and_train(collection), encoder=encoder, cache=cache, head=head).head.embeddings
    rows = {document.id: row for row, document in enumerate(collection.documents)}
    retriever.save(tmp_path / "retriever")
    for one in (retriever, Retriever.load(tmp_path / "retriever")):
        assert torch.equal(one.head.embeddings, before)
        after = before + (one.head.rows * one.head.active[:, None]).detach()
        assert torch.equal(after[rows["hose"]], before[rows["hose"]])
        assert all(not torch.equal(after[row], before[row]) for name, row in rows.items() if name != "hose")
        with torch.no_grad():
            untrained = torch.from_numpy(Encoder.load(encoder).encode(QUESTIONS))
            learned = one.head.learned(untrained, untrained)
        assert not learned[:, rows["hose"]].any() and learned.any(0).sum() == 5


def test_untouched_rows_keep_their_embedding_under_ridge(collection: Collection, encoder: Path, cache: Path) -> None:
    retriever = train_one(collection, encoder, cache, "ridge")
    assert retriever.training.method == "ridge", "nothing was trained, so nothing is shown"
    (row,) = (row for row, document in enumerate(collection.documents) if document.id == "hose")
    states = retriever.encoder.encode_states(QUESTIONS)
    learned = retriever.learned(QUESTIONS, states)
    assert not learned[:, row].any() and learned.any((0, 2)).sum() == 5


def without_dev_and_train(collection: Collection) -> Collection:
    return Collection(collection.name, collection.documents, {}, {})


@pytest.mark.parametrize("variant", ["full", "lowrank:3", "diagonal"])
def test_folded_equals_adapter(collection: Collection, encoder: Path, cache: Path, variant: str) -> None:
    retriever = train_one(collection, encoder, cache, "adapter", adapter=variant)
    assert retriever.encoder.adapter is not None
    questions = [query.text for query in collection.queries.values()]
    plain = Encoder.load(encoder).encode(questions)
    untrained = torch.from_numpy(plain)

    def learned() -> np.ndarray:
        with torch.no_grad():
            adapted = torch.from_numpy(retriever.encoder.encode(questions))
            return retriever.head.learned(adapted, untrained).numpy()

    before = learned()
    assert not np.allclose(retriever.encoder.encode(questions), plain, atol=1e-4), "the adapter has learned nothing"
    retriever = replace(retriever, encoder=retriever.encoder.folded())
    assert retriever.encoder.adapter is None
    np.testing.assert_allclose(learned(), before, atol=1e-4)  # in units of 1 / 20 of a cosine


def same(first: Retriever, second: Retriever) -> bool:
    """Equal bit for bit in everything that search uses."""
    states = [
        {**one.head.state_dict(), **(one.encoder.adapter.state_dict() if one.encoder.adapter else {})}
        for one in (first, second)
    ]
    solved = [one.ridge.tensors() if one.ridge else {} for one in (first, second)]
    return (
        states[0].keys() == states[1].keys()
        and all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        and solved[0].keys() == solved[1].keys()
        and all(np.array_equal(solved[0][name], solved[1][name]) for name in solved[0])
        and np.array_equal(first.weights, second.weights)
        and first.calibration == second.calibration
    )


@pytest.mark.parametrize(
    "options",
    [{"method": "ridge"}, {"method": "head"}, {"method": "head", "head": "cosine", "pre_classifier": 5},
     {"method": "adapter"}, {"method": "adapter", "adapter": "lowrank:2", "pre_classifier": 5}],
    ids=str,
)  # fmt: skip
def test_same_seed_same_model(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    first = train_one(collection, encoder, cache, **options)
    second = train_one(collection, encoder, tmp_path / "another cache", **options)
    assert first.training.method == options["method"], "nothing was trained, so nothing is shown"
    assert same(first, second)
    losses = [[record["loss"] for record in one.training.history] for one in (first, second)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("method", METHODS)
def test_another_seed_another_model(collection: Collection, encoder: Path, cache: Path, method: str) -> None:
    options = {"pre_classifier": 5, "method": method}
    first, second = (train_one(collection, encoder, cache, seed=seed, **options) for seed in (0, 1))
    assert not same(first, second)


def test_the_random_state_of_the_caller_changes_nothing(collection: Collection, encoder: Path, cache: Path) -> None:
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the state that others may have left
        random.seed(seed)
        made.append(train_one(collection, encoder, cache, "adapter", adapter="lowrank:2", pre_classifier=5))
    assert same(*made)


# ---------------------------------------------------------------- a changed file


@pytest.fixture(scope="module")
def saved(collection: Collection, encoder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retriever of every file there can be, with an encoder of its own that a test may change."""
    folder = tmp_path_factory.mktemp("saved")
    shutil.copytree(encoder, folder / "encoder")
    retriever = train_one(collection, folder / "encoder", cache, "adapter", pre_classifier=4)
    assert retriever.encoder.adapter is not None
    retriever.save(folder / "retriever")
    return folder


def load_is_refused(folder: Path, words: str | None = None) -> None:
    with pytest.raises(FedcarError, match=words) as caught:
        Retriever.load(folder)
    message = str(caught.value)
    assert "\n" not in message and "; " in message, f"one line, with the way out: {message}"


def test_load_rejects_a_changed_file(saved: Path) -> None:
    folder = saved / "retriever"
    Retriever.load(folder)
    names = sorted(path.name for path in folder.iterdir())
    assert {"head.safetensors", "adapter.safetensors", "retriever.json", "documents.jsonl"} < set(names)
    generator = random.Random(0)
    for name in names:
        file = folder / name
        content = file.read_bytes()
        offsets = {0, 1, len(content) // 2, len(content) - 1, *(generator.randrange(len(content)) for _ in range(5))}
        for offset in sorted(offsets):
            for bit in (0, 5):
                file.write_bytes(content[:offset] + bytes([content[offset] ^ (1 << bit)]) + content[offset + 1 :])
                load_is_refused(folder)
        for changed in (b"", content[:-1], content + b"\n", content[::-1]):
            file.write_bytes(changed)
            load_is_refused(folder)
        file.unlink()
        load_is_refused(folder, name if "manifest" not in name else "manifest")
        file.write_bytes(content)
    Retriever.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_load_rejects_another_encoder(saved: Path, name: str) -> None:
    file = saved / "encoder" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if name == "model.safetensors" else content + b"\n")
    try:
        load_is_refused(saved / "retriever", "fingerprint")
    finally:
        file.write_bytes(content)
    Retriever.load(saved / "retriever")


def test_loading_and_searching_write_nothing(saved: Path) -> None:
    before = tree(saved)
    Retriever.load(saved / "retriever").search("the fan is broken")
    assert tree(saved) == before


# ---------------------------------------------------------------- the network

SEARCH_UNDER_WATCH = """
import os, sys
def watch(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        print(event, arguments, file=sys.stderr, flush=True)
        os._exit(99)
sys.addaudithook(watch)
from fedcar import Retriever
retriever = Retriever.load(sys.argv[1])
print(retriever.search("the fan is broken", 1).hits[0].id)
"""


def test_no_network_at_search(saved: Path) -> None:
    """Not even an attempt: every use of a socket from Python ends the process."""
    online = {name: value for name, value in environment().items() if not name.startswith("HF_")}
    process = python(SEARCH_UNDER_WATCH, saved / "retriever", env=online)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "") and out.strip(), err


def test_the_watch_sees_a_socket() -> None:
    code = SEARCH_UNDER_WATCH.split("from fedcar")[0] + "import socket; socket.getaddrinfo('localhost', 80)"
    process = python(code)
    process.communicate(timeout=60)
    assert process.returncode == 99


# ---------------------------------------------------------------- the baselines


def shuffled(collection: Collection, seed: int) -> Collection:
    """The collection with training judgements that are wrong: what is learned from them does harm."""
    generator = random.Random(seed)
    names = [document.id for document in collection.documents]
    wrong = {query: {generator.choice(names): 1} for query in collection.judgements["train"]}
    return Collection(
        collection.name, collection.documents, collection.queries, {**collection.judgements, "train": wrong}
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_never_below_hybrid_on_selection_data(
    collection: Collection, encoder: Path, cache: Path, method: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both measures, where dev alone decides; what was learned from wrong judgements is not kept."""
    monkeypatch.setattr("fedcar.training.selection.FEW", 0)
    for questions in (collection, shuffled(collection, seed)):
        retriever = train(questions, encoder=encoder, cache=cache, method=method, seed=seed, epochs=2)
        systems = evaluate(retriever, questions, "dev", cache=cache)["systems"]
        for measure in ("success@1", "ndcg@10"):
            assert systems["retriever"]["all"][measure] >= systems["hybrid"]["all"][measure] - 1e-9, systems


def test_what_does_harm_is_not_kept(toy_collection: Path, encoder: Path, cache: Path) -> None:
    """Selection questions that BM25 answers all: training cannot win, and the retriever searches as before."""
    toy = Collection.read(toy_collection)
    judged = dict(toy.judgements)
    named = {name: query for name, query in toy.queries.items() if name.split("-")[0] in query.text.split()}
    judged["dev"] = {name: {name.split("-")[0]: 1} for name in named if name in judged["test"]}
    collection = shuffled(Collection("easy", toy.documents, toy.queries, judged), 0)
    assert len(collection.judged("dev")) == 6
    for method in METHODS:
        retriever = train(collection, encoder=encoder, cache=cache, method=method, epochs=2)
        assert retriever.training.method == "none" and retriever.encoder.adapter is None
        assert not retriever.head.active.any() and not retriever.head.rows.any()


def test_the_record_of_a_retriever_is_plain_json(saved: Path) -> None:
    record = json.loads((saved / "retriever" / "retriever.json").read_text())
    assert record["encoder"].keys() == {"name", "revision", "weights_sha256", "fingerprint", "pooling"}
    assert record["training"]["questions"] == 20 and len(record["training"]["history"]) == 12


def test_judged_queries_are_all_there_is_to_learn_from(collection: Collection) -> None:
    """What the tests above rest on: five seen documents, one unseen."""
    judged: Callable[[str], Judged] = collection.judged
    assert len(judged("train")) == 20 and collection.seen_documents() == {"fan", "pump", "filter", "display", "battery"}
