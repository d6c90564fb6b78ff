"""Evidence: every feature equals a plain loop, the candidates, save and load, documents that come and go."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.six_languages import COLLECTIONS, whole
from support.toy import TOY_DOCUMENTS, TOY_QUESTIONS

import fedcar.retriever.evidence as module
from fedcar.collection.collection import Document
from fedcar.collection.wording import AS_BEFORE
from fedcar.collection.words import bigrams, stems
from fedcar.common.vectors import unit
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.retriever.evidence import Evidence, median_words
from fedcar.retriever.late_interaction import LateInteraction
from fedcar.retriever.lexical import LexicalIndex, SentenceCoverage

SENTENCES = [text for _, text, _ in TOY_DOCUMENTS.values()]
TEXTS = (
    Document("fan", "Fan", " ".join(SENTENCES[:3])),
    Document("pump", "", " ".join(SENTENCES[1:4])),
    Document("empty"),
    Document("display", "Dark displays", " ".join(SENTENCES[3:])),
    Document("title", "Who looks after the pumps"),
    Document("hose", "Hose", " ".join(SENTENCES[4:])),
)
LABELS = tuple(Document(name, title) for name, (title, _, _) in TOY_DOCUMENTS.items())
QUESTIONS = [question.format(name) for question in TOY_QUESTIONS[:3] for name in ("pump", "hoses")]
QUESTIONS += ["the of and", "unknownword", "clean the blades of the fan with a dry cloth"]


@pytest.fixture
def encoder(encoder_folder: Path) -> Encoder:
    return Encoder.load(encoder_folder, "mean")


def embeddings(documents: Sequence[Document], encoder: Encoder) -> np.ndarray:
    states = encoder.encode([document.full_text for document in documents])
    states[[not document.full_text for document in documents]] = 0.0
    return unit(states)


def build(documents: Sequence[Document], encoder: Encoder) -> Evidence:
    return Evidence.build(documents, encoder, embeddings(documents, encoder))


def all_features(evidence: Evidence, encoder: Encoder, questions: Sequence[str] = QUESTIONS) -> np.ndarray:
    reading, everyone = encoder.read(questions), np.tile(np.arange(len(evidence)), (len(questions), 1))
    return evidence.features(questions, reading.states["pooled"], everyone, reading.tokens)


def named(features: np.ndarray, name: str) -> np.ndarray:
    return features[..., Evidence.NAMES.index(name)]


def over_maximum(scores: np.ndarray) -> np.ndarray:
    return np.stack([row / row.max() if row.any() else row for row in scores])


# -------------------------------------------------------------------- features


def test_features_equal_a_plain_loop(encoder: Encoder) -> None:
    evidence = build(TEXTS, encoder)
    found = all_features(evidence, encoder)
    assert evidence.deep and found.shape == (9, 6, 8) and found.dtype == np.float32
    texts = [document.full_text for document in TEXTS]
    cosines = [[state @ row for row in embeddings(TEXTS, encoder)] for state in unit(encoder.encode(QUESTIONS))]
    np.testing.assert_allclose(named(found, "cosine"), cosines, atol=1e-5)
    for name, words in (("lexical", None), ("stems", stems), ("bigrams", bigrams)):
        expected = over_maximum(LexicalIndex.build(texts, words).scores(QUESTIONS))
        np.testing.assert_allclose(named(found, name), expected, atol=1e-6)
    titled = [
        [f"Fan {sentence}" for sentence in SENTENCES[:3]],
        SENTENCES[1:4],
        [],
        [f"Dark displays {sentence}" for sentence in SENTENCES[3:]],
        ["Who looks after the pumps"],
        [f"Hose {sentence}" for sentence in SENTENCES[4:]],
    ]
    coverage = SentenceCoverage.build(titled, LexicalIndex.build(texts, stems))
    np.testing.assert_allclose(named(found, "coverage"), coverage.scores(QUESTIONS), atol=1e-6)
    late = LateInteraction.build(TEXTS, encoder).features(
        encoder.encode(QUESTIONS), encoder.token_states(QUESTIONS), np.tile(np.arange(6), (9, 1))
    )
    for place, name in enumerate(("sentence", "tokens", "sentence_tokens")):
        np.testing.assert_allclose(named(found, name), late[..., place], atol=1e-6)


def test_an_empty_document_and_a_question_of_stop_words(encoder: Encoder) -> None:
    found = all_features(build(TEXTS, encoder), encoder)
    assert not found[:, 2].any()
    silent = found[QUESTIONS.index("the of and")]
    assert not silent[:, [Evidence.NAMES.index(name) for name in ("lexical", "stems", "bigrams", "coverage")]].any()
    assert silent[0].any() and np.isfinite(found).all()


def test_words_in_another_form_are_found_by_their_stem(encoder: Encoder) -> None:
    found = all_features(build(TEXTS, encoder), encoder, ["hoses"])[0]
    assert not named(found, "lexical").any()
    assert np.flatnonzero(named(found, "stems")).tolist() == [3, 5]
    assert named(found, "coverage")[5] == 1


def test_candidates_in_any_order_and_number(encoder: Encoder) -> None:
    evidence = build(TEXTS, encoder)
    chosen = np.random.default_rng(0).permuted(np.tile(np.arange(6), (9, 1)), axis=1)[:, :4]
    found = evidence.features(QUESTIONS, encoder.encode(QUESTIONS), chosen, encoder.token_states(QUESTIONS))
    np.testing.assert_allclose(
        found, np.take_along_axis(all_features(evidence, encoder), chosen[..., None], 1), atol=1e-6
    )


def test_the_bound_on_memory_changes_nothing(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = build(TEXTS, encoder)
    expected = all_features(evidence, encoder)
    monkeypatch.setattr(module, "QUESTIONS_AT_ONCE", 2)
    np.testing.assert_allclose(all_features(evidence, encoder), expected, atol=2e-3)


def test_one_question_equals_the_same_among_many(encoder: Encoder) -> None:
    evidence = build(TEXTS, encoder)
    alone = np.concatenate([all_features(evidence, encoder, [question]) for question in QUESTIONS])
    np.testing.assert_allclose(alone, all_features(evidence, encoder), atol=2e-3)


def test_no_question_and_a_single_document(encoder: Encoder) -> None:
    evidence = build(TEXTS, encoder)
    assert evidence.features([], np.zeros((0, 32), np.float32), np.zeros((0, 6), np.int64)).shape == (0, 6, 8)
    single = build(TEXTS[:1], encoder)
    found = all_features(single, encoder)
    assert found.shape == (9, 1, 8) and named(found, "lexical").max() == 1
    assert single.candidates(named(found, "cosine"), named(found, "lexical")).tolist() == [[0]] * 9


def test_features_come_from_the_untrained_encoder(encoder: Encoder) -> None:
    expected = all_features(build(TEXTS, encoder), encoder)
    base = embeddings(TEXTS, encoder)
    adapter = Adapter("full", 32)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    encoder = encoder.with_adapter(adapter)
    evidence = Evidence.build(TEXTS, encoder, base)
    np.testing.assert_allclose(all_features(evidence, encoder), expected, atol=1e-6)
    assert encoder.adapter is adapter


# -------------------------------------------------------------------- labels, weights, candidates


def test_labels_are_not_read_token_by_token(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "token_states", None)
    evidence = build(LABELS, encoder)
    found = all_features(evidence, encoder)
    assert not evidence.deep
    assert not found[..., [Evidence.NAMES.index(name) for name in ("sentence", "tokens", "sentence_tokens")]].any()
    assert named(found, "stems").any()


def test_untrained_evidence_equals_hybrid_for_labels(encoder: Encoder) -> None:
    found = all_features(build(LABELS, encoder), encoder)
    hybrid = named(found, "cosine") + np.float32(0.2) * named(found, "lexical")
    np.testing.assert_allclose(found @ Evidence.default_weights(LABELS), 20 * hybrid, rtol=1e-5)


@pytest.mark.parametrize(("words", "share"), [(1, 0), (10, 0), (20, 0.5), (25, 0.75), (30, 1), (300, 1)])
def test_default_weights_go_by_the_median_length(words: int, share: float) -> None:
    documents = [Document(str(row), "", "word " * words) for row in range(3)] + [Document("short", "word")] * 2
    found = Evidence.default_weights([*documents, Document("empty"), Document("empty too")])
    expected = share * np.array(Evidence.DEFAULT_WEIGHTS) + (1 - share) * np.array(Evidence.LABEL_WEIGHTS)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32 and len(found) == len(Evidence.NAMES)


def test_documents_without_words() -> None:
    assert median_words([]) == median_words([Document("empty")]) == 0
    assert Evidence.default_weights([Document("empty")]).tolist() == list(Evidence.LABEL_WEIGHTS)


@pytest.mark.parametrize("documents", [1, 3, 200, 201, 500])
def test_candidates_are_the_best_of_hybrid_search(encoder: Encoder, documents: int) -> None:
    generator = np.random.default_rng(0)
    cosines = generator.normal(size=(4, documents)).astype(np.float32).round(1)  # with ties
    lexical = generator.random((4, documents)).astype(np.float32).round(1)
    found = build(LABELS, encoder).candidates(cosines, lexical)
    assert found.shape == (4, documents if documents <= 200 else 100) and found.dtype == np.int64
    for row in range(4):
        scores = cosines[row] + np.float32(0.2) * lexical[row]
        np.testing.assert_array_equal(found[row], np.argsort(-scores, kind="stable")[: found.shape[1]])


def test_lexical_warns_of_stop_words_and_features_do_not(encoder: Encoder) -> None:
    evidence = build(TEXTS, encoder)
    with pytest.warns(FedcarWarning, match="1 of 2 queries have nothing but stop words"):
        found = evidence.lexical(["the of", "pump"])
    assert found.shape == (2, 6) and found.max() == 1 and not found[0].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_features(evidence, encoder)


# -------------------------------------------------------------------- on disk, documents that come and go


@pytest.mark.parametrize("documents", [TEXTS, LABELS], ids=["texts", "labels"])
def test_saved_and_read_gives_the_same(documents: tuple[Document, ...], encoder: Encoder, tmp_path: Path) -> None:
    evidence = build(documents, encoder)
    evidence.write(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["evidence.safetensors", "words.json"]
    again = Evidence.read(tmp_path)
    np.testing.assert_array_equal(all_features(again, encoder), all_features(evidence, encoder))
    assert again.deep == evidence.deep and len(again) == len(documents)
    assert again.tensors().keys() == evidence.tensors().keys()


def test_a_damaged_file_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    build(LABELS, encoder).write(tmp_path)
    (tmp_path / "evidence.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(FedcarError, match="evidence.safetensors: not a safetensors file"):
        Evidence.read(tmp_path)


def test_arrays_may_be_read_only(encoder: Encoder) -> None:
    evidence = build(TEXTS, encoder)
    tensors = evidence.tensors()
    for array in tensors.values():
        array.flags.writeable = False
    again = Evidence.from_tensors(tensors, evidence.vocabularies())
    np.testing.assert_array_equal(all_features(again, encoder), all_features(evidence, encoder))
    again = again.added(LABELS, encoder, embeddings(LABELS, encoder)).without([0])
    assert len(again) == 11


@pytest.mark.parametrize("first", [1, 3, 6])
def test_added_equals_build_of_all(encoder: Encoder, first: int) -> None:
    evidence = build(TEXTS[:first], encoder)
    before = len(evidence)
    added = evidence.added(TEXTS[first:], encoder, embeddings(TEXTS[first:], encoder))
    assert len(evidence) == before == first, "the one before stays"
    evidence = added
    np.testing.assert_allclose(all_features(evidence, encoder), all_features(build(TEXTS, encoder), encoder), atol=2e-3)


def test_added_document_leaves_the_others_vectors(encoder: Encoder) -> None:
    evidence = build(TEXTS, encoder)
    before = evidence.tensors()
    evidence = evidence.added(TEXTS[:2], encoder, embeddings(TEXTS[:2], encoder)).without([6, 7])
    for name in ("embeddings", "late.tokens", "late.sentences"):
        np.testing.assert_array_equal(evidence.tensors()[name], before[name])


def test_added_to_labels_they_stay_labels(encoder: Encoder) -> None:
    evidence = build(LABELS, encoder).added(TEXTS, encoder, embeddings(TEXTS, encoder))
    assert not evidence.deep and len(evidence) == 12 and all_features(evidence, encoder).shape == (9, 12, 8)


@pytest.mark.parametrize("rows", [[], [2], [0, 4], [5, 1, 0, 3], [0, 1, 2, 3, 4]])
def test_removed_equals_never_having_had_them(encoder: Encoder, rows: list[int]) -> None:
    evidence = build(TEXTS, encoder).without(rows)
    kept = [document for row, document in enumerate(TEXTS) if row not in rows]
    expected = Evidence.build(TEXTS, encoder, embeddings(TEXTS, encoder)) if not rows else None
    assert len(evidence) == len(kept)
    if expected is None:
        base, late = embeddings(kept, encoder), LateInteraction.build(kept, encoder)
        expected = Evidence.build(kept, encoder, base)
        expected.late = late  # also where those left are short
    np.testing.assert_allclose(all_features(evidence, encoder), all_features(expected, encoder), atol=2e-3)
    assert {name: set(words) for name, words in evidence.vocabularies().items()} == {
        name: set(words) for name, words in expected.vocabularies().items()
    }


def test_a_failed_addition_changes_nothing(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = build(TEXTS, encoder)
    expected = all_features(evidence, encoder)

    def fail(*arguments: object) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "token_states", fail)
        with pytest.raises(OSError):
            evidence.added(TEXTS, encoder, embeddings(TEXTS, encoder))
    np.testing.assert_array_equal(all_features(evidence, encoder), expected)


def test_every_family_of_encoders(model_folder: Path) -> None:
    encoder = Encoder.load(model_folder)
    found = all_features(build(TEXTS, encoder), encoder)
    assert np.isfinite(found).all() and found[0, 0].any() and np.abs(found).max() < 1.1


def test_a_tokenizer_that_knows_no_places_is_not_read_token_by_token(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = embeddings(TEXTS, encoder)
    monkeypatch.setattr(type(encoder.tokenizer), "is_fast", property(lambda self: False))
    assert not Evidence.build(TEXTS, encoder, base).deep


# -------------------------------------------------------------------- other languages

GERMAN = tuple(Document(str(row), "", text) for row, (text, _) in enumerate(COLLECTIONS["de"]))
CHINESE = tuple(Document(str(row), "", whole(text)) for row, (text, _) in enumerate(COLLECTIONS["zh"]))


@pytest.mark.filterwarnings("ignore:.*were cut")
@pytest.mark.parametrize("documents", [GERMAN, CHINESE], ids=["German", "Chinese"])
def test_questions_are_read_as_the_documents_were(
    documents: tuple[Document, ...], encoder: Encoder, tmp_path: Path
) -> None:
    evidence = build(documents, encoder)
    evidence.write(tmp_path)
    changed = evidence.added(TEXTS, encoder, embeddings(TEXTS, encoder)).without(range(12, 12 + len(TEXTS)))
    for one in (evidence, Evidence.read(tmp_path), changed):
        assert one.wording == evidence.wording != AS_BEFORE
        assert one.lexical(["Wackelt die WASCHMASCHINE?", "洗衣机"])[:, 4].any()
        assert one.knows("Kuehlschraenke Waschmaschinen" if documents is GERMAN else "滤网")


def test_evidence_that_was_saved_before_languages_were_told_is_read_as_it_was(encoder: Encoder, tmp_path: Path) -> None:
    build(TEXTS, encoder).write(tmp_path)
    words = json.loads((tmp_path / "words.json").read_text(encoding="utf-8"))
    assert words.pop("wording") == {"language": "en", "rules": 1}
    (tmp_path / "words.json").write_text(json.dumps(words), encoding="utf-8")
    again = Evidence.read(tmp_path)
    assert again.wording == AS_BEFORE
    np.testing.assert_array_equal(all_features(again, encoder), all_features(build(TEXTS, encoder), encoder))
