"""Windows: long documents are read to their end, found by any part of it, and show the passage that matched."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.toy import TOY_DOCUMENTS

import fedcar.retriever.windows as module
from fedcar.collection.collection import Document
from fedcar.common.progress import Silent
from fedcar.common.vectors import unit
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarWarning
from fedcar.export.bundle import load_bundle
from fedcar.export.bundle_writing import write_bundle
from fedcar.retriever import evidence as evidence_module
from fedcar.retriever import searcher
from fedcar.retriever.evidence import Evidence
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.windows import Window, Windows, body_sentences, windows_of

SENTENCES = [text for _, text, _ in TOY_DOCUMENTS.values()]
LONG = Document("long", "Hose", " ".join(SENTENCES * 4))
SHORT = tuple(Document(name, title, text) for name, (title, text, _) in TOY_DOCUMENTS.items())
DOCUMENTS = (SHORT[0], LONG, *SHORT[1:], Document("empty"), Document("title", "Who looks after the pump"))


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def encoder(encoder_folder: Path) -> Encoder:
    return Encoder.load(encoder_folder, "mean")


@pytest.fixture
def retriever(encoder: Encoder, tmp_path: Path) -> Retriever:
    return Retriever.untrained(DOCUMENTS, encoder, FeatureCache(tmp_path / "cache"))


def texts() -> list[str]:
    """Long texts of many forms."""
    words = " ".join(SENTENCES * 3).replace(".", "")
    return [
        LONG.text,
        words,  # no border of a sentence
        "\n\n".join(SENTENCES * 5),
        "風扇的葉片需要用乾布清潔。" * 40,
        "fan " * 3000,
        " ".join(SENTENCES) + " \ud800 " + " ".join(SENTENCES * 2),
    ]


@pytest.mark.parametrize("text", texts(), ids=["sentences", "words", "paragraphs", "unspaced", "fans", "half"])
@pytest.mark.parametrize("title", ["", "Hose", " ".join(SENTENCES)], ids=["untitled", "titled", "long title"])
def test_every_part_of_a_document_is_read(text: str, title: str, encoder: Encoder) -> None:
    document = Document("x", title, text)
    (windows,) = windows_of([document], encoder)
    full = document.full_text
    assert len(windows) > 2 and windows[0].start == 0 and windows[-1].end == len(full)
    for before, after in zip(windows, windows[1:], strict=False):
        assert before.start < after.start <= before.end < after.end
        assert after.text == full[: after.before] + full[after.start : after.end]
    assert not encoder.model.too_long([window.text for window in windows[1:]]).any(), "nothing of them is cut"


def test_windows_begin_and_end_with_sentences(encoder: Encoder) -> None:
    (windows,) = windows_of([LONG], encoder)
    borders = {place for span in body_sentences(LONG) for place in span}
    assert {place for window in windows[1:] for place in window[1:3]} <= borders
    again = [before.end - after.start for before, after in zip(windows, windows[1:], strict=False)]
    assert max(again) > 0 and min(again) >= 0
    assert {window.text[: window.before] for window in windows[1:]} == {"Hose. "}


def test_what_the_encoder_takes_whole_is_one_window(encoder: Encoder) -> None:
    for document, windows in zip(SHORT, windows_of(SHORT, encoder), strict=True):
        assert windows == [Window(document.full_text, 0, len(document.full_text))]
    assert Evidence.build(SHORT, encoder, encoder.encode([one.full_text for one in SHORT])).windows.number == 0


def test_the_limit_on_windows_is_said(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said()
    all_of_it = windows_of(DOCUMENTS, encoder, said)
    assert [len(windows) > 1 for windows in all_of_it] == [one is LONG for one in DOCUMENTS]
    number = len(all_of_it[1])
    assert said.lines == [
        f"1 of {len(DOCUMENTS)} documents are longer than {encoder.model.max_tokens} tokens: "
        f"all of them is read, in {number} windows"
    ]
    monkeypatch.setattr(module, "MOST_WINDOWS", 3)
    cut = windows_of(DOCUMENTS, encoder, said)
    assert cut[1] == all_of_it[1][:3]
    assert "longer than 3 windows" in said.lines[-1] and "only the words are read" in said.lines[-1]


def test_the_cosine_is_that_of_the_nearest_window(retriever: Retriever, encoder: Encoder) -> None:
    questions = [*SENTENCES, "who looks after the pump"]
    hidden_states = unit(encoder.encode(questions))
    expected = np.zeros((len(questions), len(DOCUMENTS)))
    for column, windows in enumerate(windows_of(DOCUMENTS, encoder)):
        with encoder.model.cutting():
            vectors = unit(encoder.encode([window.text for window in windows]))
        expected[:, column] = (hidden_states @ vectors.T).max(axis=1) if DOCUMENTS[column].full_text else 0
    np.testing.assert_allclose(retriever.evidence.cosines(hidden_states), expected, atol=1e-5)
    reading, everyone = encoder.read(questions), np.tile(np.arange(len(DOCUMENTS)), (len(questions), 1))
    found = retriever.evidence.features(questions, hidden_states, everyone, reading.tokens)
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-5)
    first = hidden_states @ retriever.evidence.embeddings.T
    assert (expected[:, 1] > first[:, 1] + 1e-3).any(), "some question is nearer to a later window"


def test_one_question_and_many_give_the_same_features(retriever: Retriever, encoder: Encoder) -> None:
    reading, everyone = encoder.read(SENTENCES), np.tile(np.arange(len(DOCUMENTS)), (len(SENTENCES), 1))
    states = reading.states["pooled"]
    together = retriever.evidence.features(SENTENCES, states, everyone, reading.tokens)
    for row, question in enumerate(SENTENCES):
        part = slice(row, row + 1)
        alone = retriever.evidence.features([question], states[part], everyone[part], reading.tokens[part])
        np.testing.assert_allclose(alone, together[part], atol=1e-5)


def test_the_index_does_not_hide_the_end_of_a_document(
    retriever: Retriever, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(searcher, "POOL", 3)
    monkeypatch.setattr(evidence_module, "ALL_ARE_CANDIDATES", 2)
    monkeypatch.setattr(evidence_module, "CANDIDATES", 2)
    from fedcar.retriever.row_index import RowIndex

    states, lexical = unit(encoder.encode(SENTENCES)), retriever.evidence.lexical(SENTENCES)
    expected = retriever.evidence.candidates(retriever.evidence.cosines(states), lexical)
    index = RowIndex.build(retriever.evidence.embeddings)
    found = replace(retriever, row_index=index).candidates(SENTENCES, encoder.encode_states(SENTENCES))
    assert (expected == 1).any() and ((found == 1).any(axis=1) == (expected == 1).any(axis=1)).all()


def test_nothing_is_said_of_documents_that_are_cut(encoder: Encoder, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retriever = Retriever.untrained(DOCUMENTS, encoder, FeatureCache(tmp_path))
        retriever.add([replace(LONG, id="another")])
    with pytest.warns(FedcarWarning, match="1 of 1 texts are longer"):  # a question is
        encoder.encode([LONG.text])


# -------------------------------------------------------------------- passages


def test_passage_stands_in_the_text(retriever: Retriever) -> None:
    for sentence in SENTENCES:
        for hit in retriever.search(sentence, len(DOCUMENTS) - 1).hits:
            if not hit.text:
                assert hit.passage is None and hit.id == "title"
                continue
            assert hit.passage is not None
            assert hit.passage.text == hit.text[hit.passage.start : hit.passage.end]
            assert (hit.passage.text == hit.text) == (hit.id != "long")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_passage_has_what_was_asked_for(place: int, encoder: Encoder, tmp_path: Path) -> None:
    parts = [" ".join([SENTENCES[0]] * 8)] * 3
    parts[place] += " " + SENTENCES[4]
    document = Document("x", "Notes", " ".join(parts))
    retriever = Retriever.untrained([*SHORT, document], encoder, FeatureCache(tmp_path))
    (passage,) = [hit.passage for hit in retriever.search(SENTENCES[4], 7).hits if hit.id == "x"]
    assert passage is not None and SENTENCES[4] in passage.text and len(passage.text) < len(document.text) / 2


# -------------------------------------------------------------------- documents come and go, on disk, in bundles


def test_windows_follow_add_and_remove(retriever: Retriever, encoder: Encoder) -> None:
    grown = retriever.add([replace(LONG, id="another", title="Fan"), Document("new", "", "clean the new fan well")])
    with encoder.model.cutting():
        built = Evidence.build(grown.documents, encoder, grown.evidence.embeddings)
    for name, array in built.windows.arrays.items():
        np.testing.assert_allclose(grown.evidence.windows.arrays[name], array, atol=1e-5)
    back = grown.remove(["another", "new"]).evidence
    for name, array in retriever.evidence.tensors().items():
        np.testing.assert_array_equal(back.tensors()[name], array)
    assert retriever.remove(["long"]).evidence.windows.number == 0
    updated = retriever.update([replace(LONG, text=" ".join(SENTENCES[::-1] * 4))])
    assert updated.evidence.windows.long.tolist() == [len(DOCUMENTS) - 1]


def test_saved_and_bundled_they_answer_alike(retriever: Retriever, tmp_path: Path) -> None:
    retriever.save(tmp_path / "saved")
    write_bundle(retriever, tmp_path / "bundle")
    expected = [retriever.search(sentence, 4) for sentence in SENTENCES]
    for again in (Retriever.load(tmp_path / "saved"), load_bundle(tmp_path / "bundle")):
        for sentence, answer in zip(SENTENCES, expected, strict=True):
            hits = again.search(sentence, 4).hits
            assert [hit.passage for hit in hits] == [hit.passage for hit in answer.hits]
            np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in answer], rtol=1e-4)


def test_a_retriever_saved_before_there_were_windows_answers_as_it_did(retriever: Retriever, encoder: Encoder) -> None:
    evidence = retriever.evidence
    tensors = {name: array for name, array in evidence.tensors().items() if "window" not in name}
    old = Evidence.from_tensors(tensors, evidence.vocabularies())
    assert old.windows.number == 0 and len(old) == len(DOCUMENTS)
    states = unit(encoder.encode(SENTENCES))
    np.testing.assert_array_equal(old.cosines(states), states @ evidence.embeddings.T)
    grown = old.added([replace(LONG, id="another")], encoder, evidence.embeddings[[1]])
    assert grown.windows.long.tolist() == [len(DOCUMENTS)], "what is added now is read to its end"
    assert len(grown.without([0]).windows) == len(DOCUMENTS)


def test_no_documents() -> None:
    assert Windows.none(0, 8).best(np.ones((2, 8), dtype=np.float32)).shape == (2, 0)
