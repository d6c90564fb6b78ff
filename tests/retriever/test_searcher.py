"""Searching: one pass a question, and any number of threads give what one gives."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.processes import PROCESSES
from support.retrievers import made, passes_of
from support.toy import TOY_DOCUMENTS, TOY_QUESTIONS

from fedcar.collection.collection import Collection
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.runtimes import choice, names
from fedcar.export.bundle import load_bundle
from fedcar.export.bundle_writing import write_bundle
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.searcher import Answer, Searcher

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


@pytest.mark.parametrize("runtime", names.NAMES)
def test_threads_by_each_runtime(
    retriever_of: MakeRetriever, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not choice.is_installed(runtime):
        pytest.skip(f"{runtime} is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(names, "setting", names.Setting(runtime))
    retriever = retriever_of("head")
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(retriever.search, QUESTIONS))
    check_same(found, [retriever.search(question) for question in QUESTIONS])


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
