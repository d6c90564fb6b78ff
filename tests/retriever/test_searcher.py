"""Searching: one pass a question, and any number of threads give what one gives."""

from __future__ import annotations

import asyncio
import copy
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.command import python
from support.processes import PROCESSES
from support.retrievers import made, passes_of
from support.toy import TOY_DOCUMENTS, TOY_QUESTIONS

from fedcar import train
from fedcar.collection.collection import Collection, Document, Query
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.runtimes import choice, names
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.export.bundle import load_bundle
from fedcar.export.bundle_writing import write_bundle
from fedcar.retriever import evidence, searcher
from fedcar.retriever.calibration import Calibration
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.row_index import RowIndex, is_installed
from fedcar.retriever.searcher import STRANGE, Answer, Searcher

pytestmark = pytest.mark.filterwarnings("ignore:.* tokens and were cut")  # the tiny encoders' window is short

QUESTIONS = [question.format(word) for question in TOY_QUESTIONS for name in TOY_DOCUMENTS for word in (name,)]
KINDS = ("untrained", "labels", "head", "cosine", "query_map", "ridge", "adapter", "texts")
WITH_ADAPTER = ("adapter", "texts")
MORE = "Ask whoever is there to look. Then write down what you saw, and call us if it happens again."
MakeRetriever = Callable[[str], Retriever]


@pytest.fixture(scope="module")
def retriever_of(
    toy_collection: Path, tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> MakeRetriever:
    """Retrievers of every kind; `adapter` has one far from the identity, and `texts`, which has long documents."""
    cache = FeatureCache(tmp_path_factory.mktemp("cache"))

    def make(kind: str) -> Retriever:
        encoder = Encoder.load(tiny_model("llama"), "mean")
        documents = Collection.read(toy_collection).documents
        if kind == "texts":
            documents = tuple(replace(one, text=f"{one.text} {MORE}") for one in documents)
        retriever = made("head" if kind in WITH_ADAPTER else kind, documents, encoder, cache)
        assert retriever.evidence.deep == (kind == "texts")
        if kind in WITH_ADAPTER:
            adapter = Adapter("full", encoder.embedding_width)
            generator = torch.Generator().manual_seed(2)
            adapter.difference.data = torch.randn(adapter.difference.shape, generator=generator) * 0.2
            retriever = replace(retriever, encoder=encoder.with_adapter(adapter))
        return retriever

    return make


def check_same(found: list[Answer], wanted: list[Answer]) -> None:
    """The same documents in the same order, and scores up to the last digits, which a batch's shape decides."""
    for ours, theirs in zip(found, wanted, strict=True):
        assert [hit.id for hit in ours] == [hit.id for hit in theirs]
        assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_passes_the_encoder_once(retriever_of: MakeRetriever, kind: str) -> None:
    retriever = retriever_of(kind)
    retriever.search("who looks after the pump")  # reads the weights
    plain, with_adapter = retriever.encoder.untrained, retriever.encoder
    passes = passes_of(plain.runtime(QUESTIONS))
    both = passes_of(with_adapter._both) if with_adapter.adapter is not None else []
    retriever.search("who looks after the pump")
    assert len(passes) + len(both) == 1 and (kind in WITH_ADAPTER) == bool(both)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_give_what_one_gives(retriever_of: MakeRetriever, kind: str) -> None:
    """Sixteen at once, on one retriever whose weights nobody has read yet."""
    retriever = retriever_of(kind)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(retriever.search, QUESTIONS * 2))
    check_same(found, [retriever.search(question) for question in QUESTIONS] * 2)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the encoder is kept in other runtimes' forms."""
    return tmp_path_factory.mktemp("converted")


@pytest.mark.parametrize(
    "runtime",
    [
        pytest.param(name, marks=[pytest.mark.slow, pytest.mark.ci] if name.startswith("openvino") else [])
        for name in names.NAMES
    ],
)
def test_threads_by_each_runtime(
    retriever_of: MakeRetriever, runtime: str, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not choice.is_installed(runtime):
        pytest.skip(f"{runtime} is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(converted))
    monkeypatch.setattr(names, "setting", names.Setting(runtime))
    retriever = retriever_of("head")
    questions = QUESTIONS[::2]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(retriever.search, questions))
    check_same(found, [retriever.search(question) for question in questions])


@pytest.mark.parametrize("kind", ["ridge", "adapter", "texts"])
def test_threads_on_a_bundle(retriever_of: MakeRetriever, kind: str, tmp_path: Path) -> None:
    write_bundle(retriever_of(kind), tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(bundle.search, QUESTIONS))
    check_same(found, [bundle.search(question) for question in QUESTIONS])


def test_searched_from_asyncio(retriever_of: MakeRetriever) -> None:
    retriever = retriever_of("adapter")

    async def all_at_once() -> list[Answer]:
        return list(await asyncio.gather(*(asyncio.to_thread(retriever.search, one) for one in QUESTIONS)))

    check_same(asyncio.run(all_at_once()), [retriever.search(question) for question in QUESTIONS])


@pytest.mark.parametrize("kind", ["ridge", "adapter", "texts"])
def test_copied_and_pickled_it_is_the_same(retriever_of: MakeRetriever, kind: str, tmp_path: Path) -> None:
    retriever = retriever_of(kind)
    wanted = [retriever.search(question) for question in QUESTIONS[:3]]
    write_bundle(retriever, tmp_path / "bundle")
    for one in (retriever, load_bundle(tmp_path / "bundle")):
        for again in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            check_same([again.search(question) for question in QUESTIONS[:3]], wanted)


def search_there(searcher: Searcher, question: str, answers: object) -> None:
    answers.put(searcher.search(question))  # type: ignore[attr-defined]


def test_a_new_process_is_handed_a_retriever(retriever_of: MakeRetriever) -> None:
    retriever = retriever_of("adapter")
    answers = PROCESSES.Queue()
    process = PROCESSES.Process(target=search_there, args=(retriever, QUESTIONS[0], answers), daemon=True)
    process.start()
    found = answers.get(timeout=120)
    process.join(60)
    check_same([found], [retriever.search(QUESTIONS[0])])


# -------------------------------------------------------------------- many questions, many documents


@pytest.mark.parametrize("kind", ["untrained", "head", "ridge", "texts"])
def test_many_questions_get_what_each_gets_alone(
    retriever_of: MakeRetriever, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = retriever_of(kind)
    passes = passes_of((retriever.encoder if kind != "texts" else retriever.encoder.untrained).runtime(QUESTIONS))
    monkeypatch.setattr(searcher, "CHUNK", 3)
    monkeypatch.setattr(searcher, "READ_AT_ONCE", 8)
    found = retriever.search_many(QUESTIONS, 4)
    if kind != "texts":  # which has an adapter, so that another runtime reads it
        assert len(passes) == -(-len(QUESTIONS) // 8), "in batches"
    check_same(found, [retriever.search(question, 4) for question in QUESTIONS])
    assert [answer.query for answer in found] == QUESTIONS and retriever.search_many([]) == []


def test_one_empty_question_of_many_is_refused(retriever_of: MakeRetriever) -> None:
    with pytest.raises(FedcarError, match="the question is empty"):
        retriever_of("labels").search_many(["fan", " "])


@pytest.mark.parametrize("kind", ["labels", "ridge"])
def test_more_hits_begin_with_the_same(
    retriever_of: MakeRetriever, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two weighed together: each pair stands behind the one before, and no document comes twice."""
    monkeypatch.setattr(evidence, "ALL_ARE_CANDIDATES", 3)
    monkeypatch.setattr(evidence, "CANDIDATES", 2)
    retriever = replace(retriever_of(kind), calibration=Calibration(1.0))
    searchers: list[Searcher] = [retriever]
    if kind == "labels":
        write_bundle(retriever, tmp_path / "bundle")
        searchers.append(load_bundle(tmp_path / "bundle"))
    for one in searchers:
        for question in QUESTIONS[:4]:
            every = one.search(question, 6)
            assert sorted(hit.id for hit in every) == sorted(TOY_DOCUMENTS)
            for k in range(1, 6):
                assert [hit.id for hit in one.search(question, k)] == [hit.id for hit in every.hits[:k]]
                check_same(one.search_many([question] * 2, k), [one.search(question, k)] * 2)
            first, others = every.hits[:2], every.hits[2:]
            assert sum(hit.confidence for hit in first) == pytest.approx(1)
            assert {hit.confidence for hit in others} == {0.0}
            for pair in (every.hits[0:2], every.hits[2:4], every.hits[4:6]):
                assert pair[0].score >= pair[1].score


def test_an_empty_document_takes_nobodys_place(retriever_of: MakeRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "ALL_ARE_CANDIDATES", 3)
    monkeypatch.setattr(evidence, "CANDIDATES", 2)
    retriever = retriever_of("labels")
    with pytest.warns(FedcarWarning, match="are empty"):
        retriever = retriever.add([Document("void", "", " ")])
    retriever.evidence.embeddings *= -1  # so that nothing is nearer than an empty document's 0
    for question in QUESTIONS[:6]:
        assert [len(retriever.search(question, k).hits) for k in range(1, 7)] == list(range(1, 7))


def test_an_index_gives_as_many_as_are_asked_for(retriever_of: MakeRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_installed():
        pytest.skip("faiss is not installed")
    monkeypatch.setattr(evidence, "ALL_ARE_CANDIDATES", 1)
    monkeypatch.setattr(evidence, "CANDIDATES", 2)
    monkeypatch.setattr(searcher, "POOL", 2)
    plain = retriever_of("head")
    indexed = replace(plain, row_index=RowIndex.build(plain.evidence.embeddings))
    for question in QUESTIONS[:4]:
        every = indexed.search(question, 6)
        assert sorted(hit.id for hit in every) == sorted(TOY_DOCUMENTS)
        assert [hit.id for hit in indexed.search(question, 2)] == [hit.id for hit in every.hits[:2]]


def test_a_hit_carries_the_metadata(retriever_of: MakeRetriever, tmp_path: Path) -> None:
    retriever = retriever_of("head")
    documents = tuple(replace(one, metadata={"shelf": [one.id, None]}) for one in retriever.documents)
    retriever = replace(retriever, documents=documents)
    retriever.save(tmp_path / "retriever")
    write_bundle(retriever, tmp_path / "bundle")
    for one in (retriever, Retriever.load(tmp_path / "retriever"), load_bundle(tmp_path / "bundle")):
        hits = one.search("fan", 6).hits
        assert all(hit.metadata == {"shelf": [hit.id, None]} for hit in hits) and len(set(hits)) == 6


FORKED = """
import os, signal, sys, warnings
import torch
from fedcar import Retriever
warnings.simplefilter("ignore")
torch.set_num_threads(2)
retriever, question = Retriever.load(sys.argv[1]), "who looks after the pump"
wanted, large = retriever.search(question), torch.ones(10**6)
assert large.exp().sum() > 0  # by the threads of OpenMP
child = os.fork()
if not child:
    signal.alarm(60)
    same = [hit.id for hit in retriever.search(question)] == [hit.id for hit in wanted]
    os._exit(0 if same and large.exp().sum() > 0 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_searches_on(retriever_of: MakeRetriever, tmp_path: Path) -> None:
    """As servers do that load once and fork their workers; the threads of the first one are not in the others."""
    retriever_of("ridge").save(tmp_path / "retriever")
    process = python(FORKED, tmp_path / "retriever")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


@pytest.mark.filterwarnings("ignore:.* nothing but stop words")
@pytest.mark.parametrize("kind", ["labels", "head", "ridge"])
def test_a_question_of_which_nothing_is_known_is_not_answered(
    toy_collection: Path, tiny_model: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    """Emoji, another script: every such text has one state. One known word, or one that a document has, is enough."""
    encoder, cache = Encoder.load(tiny_model("bert"), "mean"), FeatureCache(tmp_path / "cache")
    made_one = made(kind, Collection.read(toy_collection).documents, encoder, cache)
    retriever = replace(made_one, calibration=Calibration(1.0))
    write_bundle(retriever, tmp_path / "bundle")
    for either in (retriever, load_bundle(tmp_path / "bundle")):
        answers = either.search_many(["🦄🦄", "pump 🦄", "Ωμέγα"])
        assert [answer.reason == STRANGE for answer in answers] == [True, False, True]
        assert answers[0].answered is False and {hit.confidence for hit in answers[0]} == {0.0}
        assert answers[1].hits[0].confidence > 0
    named = retriever.add([Document("omega", "", "Ωμέγα pump")])
    assert named.search("Ωμέγα").reason != STRANGE


@pytest.mark.filterwarnings("ignore:.* nothing but stop words")
def test_what_training_or_any_document_knows_is_not_strange(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """An emoji that training questions had; a word of a document beyond the hundred that are looked at."""
    documents = tuple(Document(f"d{number}", "", f"part number {number}") for number in range(300))
    words = {"🦄": "d7", "🚗": "d8"}
    queries = {f"q{n}": Query(f"q{n}", text) for n, text in enumerate([*words, *(f"part {n}" for n in range(40))])}
    answers = [*words.values(), *(f"d{n}" for n in range(40))]
    judged = {name: {answer: 1} for name, answer in zip(queries, answers, strict=True)}
    collection = Collection("emoji", (*documents, Document("omega", "", "Ωμέγα")), queries, {"train": judged})
    retriever = train(collection, encoder=tiny_model("bert"), cache=tmp_path / "cache", method="ridge")
    assert retriever.ridge is not None
    assert retriever.search("🦄").reason != STRANGE
    assert [retriever.search("Ωμέγα", k).reason == STRANGE for k in (5, 300)] == [False, False]
    assert retriever.search("🦊").reason == STRANGE


def test_a_question_that_is_cut_is_said_once(retriever_of: MakeRetriever, tmp_path: Path) -> None:
    write_bundle(retriever_of("head"), tmp_path / "bundle")
    for either in (retriever_of("head"), load_bundle(tmp_path / "bundle")):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            either.search("who looks after the pump " * 100)
        assert ["were cut" in str(warning.message) for warning in said] == [True]
