"""A hopeless encoder: noticed on the packaged texts alone, searched by words first, and seen in a view."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.retrievers import made

from fedcar.collection.collection import Collection, Document
from fedcar.collection.wording import AS_BEFORE
from fedcar.common.vectors import unit
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.encoder.reading import state_type
from fedcar.encoder.reference import reference_pairs, reference_texts
from fedcar.errors import FedcarError
from fedcar.evaluation.baselines import BM25, rankings
from fedcar.export.bundle import load_bundle
from fedcar.export.bundle_writing import write_bundle
from fedcar.head.view import View
from fedcar.retriever import hopeless, quick_writing
from fedcar.retriever.evidence import Evidence
from fedcar.retriever.hopeless import reads_words, reciprocal_rank, view_for
from fedcar.retriever.quick import quick_searcher
from fedcar.retriever.quick_writing import leave_quick_start
from fedcar.retriever.retriever import Retriever

pytestmark = pytest.mark.filterwarnings("ignore:.* tokens and were cut", "ignore:.* have nothing but stop words")
WIDTH, LAYERS = 512, 2
QUESTIONS = ["the fan is broken", "who charges the battery over night?", "what does the blower do", "ünknown"]


class WordCounts:
    """Encodes a text as the words that it has, `drowned` in what all texts share and in how long the text is.

    It stands in for encoder and cache alike; `pieces` is how many tokens it makes of a word.
    """

    def __init__(self, drowned: float = 0.0, pieces: int = 1, unknown: bool = False) -> None:
        self.drowned, self.pieces, self.share_unknown, self.read = drowned, pieces, unknown, 0
        self.untrained = self.public = self.for_documents = self
        self.model = SimpleNamespace(without_remarks=nullcontext, pieces=self.token_ids)
        self.tokenizer = SimpleNamespace(unk_token_id=0)
        self.name = "counts"

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [[0 if self.share_unknown else 7] * self.pieces * len(text.split()) for text in texts]

    def states(self, encoder: object, texts: Sequence[str]) -> np.ndarray:
        self.read += len(texts)
        found = np.zeros(len(texts), dtype=state_type(LAYERS, WIDTH))
        for row, text in enumerate(texts):
            for word in AS_BEFORE.words(text):
                found["pooled"][row, 2 + zlib.crc32(word.encode()) % (WIDTH - 2)] += 1
        found["pooled"] = unit(found["pooled"])
        found["pooled"][:, 0] += self.drowned
        found["pooled"][:, 1] += [self.drowned / (1 + len(text)) for text in texts]
        found["layers"] = found["pooled"][:, None]
        return found

    def hidden_states(self, encoder: object, texts: Sequence[str]) -> np.ndarray:
        hidden_states: np.ndarray = self.states(encoder, texts)["pooled"]
        return hidden_states


def judged(encoder: Any) -> View | None:
    return view_for(encoder, encoder)


# -------------------------------------------------------------------- who is hopeless


def test_who_knows_words_keeps_hidden_states_and_who_drowns_them_does_not() -> None:
    """A bag of words has found documents for fifty years; the same under one direction common to all finds none."""
    assert judged(WordCounts()) is None
    assert isinstance(judged(WordCounts(drowned=1000.0)), View)


def test_in_the_view_the_words_are_found_again() -> None:
    drowned = WordCounts(drowned=1000.0)
    view = judged(drowned)
    assert view is not None
    pairs = reference_pairs()
    relevant = np.array([pair.document for pair in pairs])
    texts, documents = [pair.text for pair in pairs], hopeless.reference_documents()
    seen, hidden = (
        reciprocal_rank(see(drowned.states(None, texts)) @ see(drowned.states(None, documents)).T, relevant)
        for see in (view, lambda states: unit(states["pooled"]))
    )
    assert seen > 2 * hidden


@pytest.mark.parametrize("reader", [WordCounts(1000.0, pieces=5), WordCounts(1000.0, unknown=True)])
def test_who_cannot_read_the_packaged_texts_is_not_judged_by_them(reader: WordCounts) -> None:
    """An encoder for another script spells English letter by letter, or knows none of it; nothing is encoded then."""
    assert judged(reader) is None
    assert not reader.read


def test_tiny_models_spell_and_are_not_judged(tiny_model: Callable[..., Path]) -> None:
    assert not reads_words(Encoder.load(tiny_model("llama")), reference_texts())


def test_equal_scores_are_no_find() -> None:
    assert reciprocal_rank(np.zeros((3, 4), np.float32), np.array([0, 1, 2])) == 0.25
    assert reciprocal_rank(np.eye(3, dtype=np.float32), np.array([0, 1, 1])) == pytest.approx((1 + 1 + 1 / 3) / 3)


@pytest.mark.slow
def test_sentence_encoders_keep_their_hidden_states(tmp_path: Path) -> None:
    """MiniLM, where it is on this machine."""
    try:
        encoder = Encoder.load(DEFAULT_ENCODER, offline=True)
    except FedcarError:
        pytest.skip("the default encoder is not installed")
    assert reads_words(encoder, reference_texts())
    assert view_for(encoder, FeatureCache(tmp_path)) is None


def test_the_pairs_are_of_the_reference_texts() -> None:
    texts, documents, pairs = reference_texts(), hopeless.reference_documents(), reference_pairs()
    assert len(pairs) > 200
    assert all(texts[pair.question] == pair.text and 0 <= pair.document < len(documents) for pair in pairs)


# -------------------------------------------------------------------- a retriever over one


@pytest.fixture(scope="module")
def documents(toy_collection: Path) -> tuple[Document, ...]:
    found = Collection.read(toy_collection).documents
    longer = (replace(one, text=f"{one.text} Then clean the {one.title} and dry it.") for one in found)
    return (*longer, Document("empty", "", " "))


@pytest.fixture(scope="module", params=["untrained", "ridge"])
def retriever(
    request: pytest.FixtureRequest,
    documents: tuple[Document, ...],
    tiny_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Retriever:
    """Of a tiny model, as if its tokenizer knew the packaged words; its weights are random."""
    features = FeatureCache(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hopeless, "MOST_PIECES", np.inf)
        retriever = made(request.param, documents, Encoder.load(tiny_model("llama")), features)
    weights = retriever.weights.copy()
    weights[0] = 0.0 if request.param == "untrained" else 3.0  # so that the cosine counts
    return replace(retriever, weights=weights)


def hits(searcher: Any) -> list[list[tuple[str, float]]]:
    return [[(hit.id, round(hit.score, 4)) for hit in searcher.search(question, 6)] for question in QUESTIONS]


@pytest.mark.parametrize("retriever", ["untrained"], indirect=True)
def test_hopeless_cosines_have_no_say(documents: tuple[Document, ...], retriever: Retriever) -> None:
    """Untrained, whatever the encoder says; and what words say nothing of stays in the order given."""
    weights = Evidence.default_weights(documents, hopeless=True)
    assert not weights[~np.array(Evidence.OF_WORDS)].any() and weights[np.array(Evidence.OF_WORDS)].any()
    other = replace(retriever, evidence=retriever.evidence.without([]))
    other.evidence.embeddings = -retriever.evidence.embeddings
    assert hits(other) == hits(retriever)


def test_untrained_search_is_not_below_bm25(toy_collection: Path, retriever: Retriever) -> None:
    collection = Collection.read(toy_collection)
    asked = collection.judged("test")
    states = retriever.encoder.encode(asked.texts)
    by_words = [row[0] in scores for row, scores in zip(
        rankings(retriever, asked.texts, states, [BM25])[0], asked.relevant, strict=True
    )]  # fmt: skip
    untrained = replace(retriever, ridge=None, weights=made_weights(retriever))
    found = [answer.hits[0].id in scores for answer, scores in zip(
        untrained.search_many(asked.texts, 1), asked.relevant, strict=True
    )]  # fmt: skip
    assert sum(found) >= sum(by_words) > 0


def made_weights(retriever: Retriever) -> np.ndarray:
    weights = np.zeros_like(retriever.weights)
    weights[: len(Evidence.NAMES)] = Evidence.default_weights(retriever.documents, hopeless=True)
    return weights


def test_words_choose_the_candidates_of_a_hopeless_encoder(retriever: Retriever) -> None:
    """A hundred documents near by chance do not crowd out the one with the question's word."""
    cosines, lexical = np.full((1, 300), 0.9, np.float32), np.zeros((1, 300), np.float32)
    cosines[0, 299], lexical[0, 299] = -0.5, 1.0
    assert 299 in retriever.evidence.candidates(cosines, lexical)[0]
    sighted = replace(retriever, evidence=retriever.evidence.without([])).evidence
    sighted.view = None
    assert 299 not in sighted.candidates(cosines, lexical)[0]


def test_saved_and_loaded_it_sees_the_same(retriever: Retriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "retriever")
    loaded = Retriever.load(tmp_path / "retriever")
    assert loaded.evidence.view is not None
    assert hits(loaded) == hits(retriever)
    np.testing.assert_array_equal(loaded.evidence.embeddings, retriever.evidence.embeddings)


def test_documents_come_and_go_in_the_view(retriever: Retriever, documents: tuple[Document, ...]) -> None:
    new = Document("lamp", "Lamp", "The lamp lights the shed when the sun is down.")
    added = retriever.add([new])
    states = retriever.encoder.encode_states([new.full_text])
    np.testing.assert_allclose(added.evidence.embeddings[-1], retriever.evidence.vectors(states)[0], atol=1e-5)
    assert hits(added.remove(["lamp"])) == hits(retriever)
    updated = retriever.update([replace(new, id=documents[0].id)])
    np.testing.assert_allclose(updated.evidence.embeddings[-1], added.evidence.embeddings[-1], atol=1e-5)
    assert not retriever.evidence.embeddings[-1].any(), "an empty document is nowhere"


def test_a_bundle_and_a_quick_start_see_the_same(
    retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    write_bundle(retriever, tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    retriever.save(tmp_path / "retriever")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(quick_writing, "PACKAGES", ("onnxruntime", "onnxscript"))
    leave_quick_start(retriever)
    quick = quick_searcher(tmp_path / "retriever")
    assert quick is not None
    expected = retriever.search_many(QUESTIONS, 6)
    for searcher in (bundle, quick):
        for ours, theirs in zip(searcher.search_many(QUESTIONS, 6), expected, strict=True):
            assert [hit.id for hit in ours] == [hit.id for hit in theirs]
            np.testing.assert_allclose([hit.score for hit in ours], [hit.score for hit in theirs], atol=1e-3)


def test_what_the_cosine_is_of_must_be_given(retriever: Retriever) -> None:
    states, everyone = retriever.encoder.encode_states(QUESTIONS), np.tile(np.arange(7), (4, 1))
    tokens = retriever.encoder.token_states(QUESTIONS)
    with pytest.raises(ValueError, match="vectors"):
        retriever.evidence.features(QUESTIONS, states["pooled"], everyone, tokens)
    vectors = retriever.evidence.vectors(states)
    found = retriever.evidence.features(QUESTIONS, states["pooled"], everyone, tokens, vectors)
    np.testing.assert_allclose(found[..., 0], vectors @ retriever.evidence.embeddings.T, atol=1e-5)
