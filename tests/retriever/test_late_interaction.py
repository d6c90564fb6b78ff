"""Late interaction: every feature equals a plain loop, at full width and projected; documents come and go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.toy import TOY_DOCUMENTS, TOY_QUESTIONS

import fedcar.retriever.late_interaction as module
from fedcar.collection.collection import Document
from fedcar.common.vectors import unit
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.reading import TokenStates
from fedcar.retriever.late_interaction import LateInteraction, main_directions, packed, unpacked
from fedcar.retriever.windows import Window, body_sentences, windows_of

SENTENCES = [text for _, text, _ in TOY_DOCUMENTS.values()]
DOCUMENTS = (
    Document("fan", "Fan", " ".join(SENTENCES[:3])),
    Document("pump", "", " ".join(SENTENCES[1:4])),
    Document("empty"),
    Document("title", "Who looks after the pump"),
    Document("long", "Hose", " ".join(SENTENCES * 2)),  # more than the tiny model takes: read in windows
    Document("fan again", "Fan", " ".join(SENTENCES[:3])),
    Document("signs", "", "?! ..."),
)
QUESTIONS = [question.format("pump") for question in TOY_QUESTIONS[:3]] + ["the the", "", "battery", "unknownword ?"]


@pytest.fixture
def encoder(encoder_folder: Path) -> Encoder:
    return Encoder.load(encoder_folder, "mean")


@pytest.fixture(params=[False, True], ids=["full", "projected"])
def late(request: pytest.FixtureRequest, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> LateInteraction:
    if request.param:
        monkeypatch.setattr(module, "BASIS_TOKENS", 60)
        monkeypatch.setattr(module, "WIDTH", 10)
    late = LateInteraction.build(DOCUMENTS, encoder)
    assert late.width == (10 if request.param else 32)
    return late


def idf(document_ids: list[set[int]], token: int) -> float:
    found = sum(token in ids for ids in document_ids)
    return float(np.log(1 + (len(document_ids) - found + 0.5) / (found + 0.5)))


def read_once(windows: list[Window], encoder: Encoder) -> Iterator[tuple[int, int, np.ndarray]]:
    """Each token of a document: its id, where it ends in the full text, its state in the first window that has it."""
    read_to = 0
    for window in windows:
        (tokens,) = encoder.token_states([window.text])
        for token, (_, end), state in zip(tokens.ids.tolist(), tokens.offsets.tolist(), tokens.states, strict=True):
            if end > window.before and read_to < end - window.before + window.start <= window.end:
                yield token, end - window.before + window.start, state.astype(np.float64)
        read_to = window.end


def numbers_in(window: Window, starts: list[int]) -> set[int]:
    """The sentences that begin in a window, and the one that it begins in."""
    first = max([number for number, start in enumerate(starts) if start <= window.start], default=0)
    return {first} | {number for number, start in enumerate(starts) if window.start <= start < window.end}


def plain(late: LateInteraction, encoder: Encoder, documents: tuple[Document, ...], questions: list[str]) -> np.ndarray:
    """The three features of every question and document, one token after the other."""
    basis = late.arrays["basis"] if late.arrays["basis"].size else np.eye(32)
    result = np.zeros((len(questions), len(documents), 3))
    hidden_states = unit(encoder.encode(questions))
    of_documents = [windows_of([document], encoder)[0] for document in documents]
    read = [[*read_once(windows, encoder)] for windows in of_documents]
    document_ids = [{token for token, _, _ in tokens} for tokens in read]
    for column, (document, windows, tokens) in enumerate(zip(documents, of_documents, read, strict=True)):
        sentences: dict[int, list[np.ndarray]] = {}
        vectors: dict[int, np.ndarray] = {}
        for _, end, state in tokens:
            before = [place for place, (start, _) in enumerate(body_sentences(document)) if start < end]
            number = before[-1] if before else 0
            projected = (state @ basis / np.linalg.norm(state @ basis))[None].astype(np.float32)
            kept = unpacked(packed(projected, 2.4 / 10**0.5 if late.width == 10 else np.inf), late.width)
            sentences.setdefault(number, []).append(kept[0])
            if before:
                vectors[number] = vectors.get(number, 0) + state / np.linalg.norm(state)
        if not sentences:
            continue
        for row, asked in enumerate(encoder.token_states(questions)):
            result[row, column, 0] = max(
                float(hidden_states[row] @ vector / np.linalg.norm(vector)) for vector in vectors.values()
            )
            weights = [idf(document_ids, token) for token in asked.ids.tolist()]
            best: dict[int, list[float]] = {number: [] for number in sentences}
            for state in asked.states.astype(np.float64) @ basis:
                for number, kept in sentences.items():
                    best[number].append(max(float(state @ other) / np.linalg.norm(state) for other in kept))
            if weights:
                starts = [start for start, _ in body_sentences(document)]
                within = [[best[number] for number in numbers_in(window, starts) & best.keys()] for window in windows]
                result[row, column, 1] = max(np.average(np.max(of, axis=0), weights=weights) for of in within if of)
                result[row, column, 2] = max(np.average(found, weights=weights) for found in best.values())
    return result


def everything(late: LateInteraction, encoder: Encoder, questions: list[str] = QUESTIONS) -> np.ndarray:
    candidates = np.tile(np.arange(len(late)), (len(questions), 1))
    return late.features(encoder.encode(questions), encoder.token_states(questions), candidates)


def test_features_equal_a_plain_loop(late: LateInteraction, encoder: Encoder) -> None:
    found = everything(late, encoder)
    expected = plain(late, encoder, DOCUMENTS, QUESTIONS)
    np.testing.assert_allclose(found[..., 0], expected[..., 0], atol=0.01)  # sentence vectors in eight bits
    np.testing.assert_allclose(found[..., 1:], expected[..., 1:], atol=0.002)
    assert found.dtype == np.float32 and found[:, [0, 1, 3, 4]].all(axis=2)[[0, 1, 2, 3, 5, 6]].all()
    assert not found[:, 2].any() and not found[4, :, 1:].any()


def test_candidates_in_any_order_and_number(late: LateInteraction, encoder: Encoder) -> None:
    candidates = np.random.default_rng(0).permuted(np.tile(np.arange(7), (7, 1)), axis=1)[:, :4]
    found = late.features(encoder.encode(QUESTIONS), encoder.token_states(QUESTIONS), candidates)
    expected = np.take_along_axis(everything(late, encoder), candidates[..., None], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert late.features(encoder.encode(["fan"]), encoder.token_states(["fan"]), candidates[:1, :0]).shape == (1, 0, 3)


def test_the_bound_on_memory_changes_nothing(
    late: LateInteraction, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = everything(late, encoder)
    monkeypatch.setattr(module, "QUESTION_TOKENS_AT_ONCE", 3)
    np.testing.assert_allclose(everything(late, encoder), expected, atol=1e-6)


def test_reading_in_chunks_changes_nothing(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = LateInteraction.build(DOCUMENTS, encoder)
    monkeypatch.setattr(module, "DOCUMENTS_AT_ONCE", 2)
    np.testing.assert_allclose(
        everything(LateInteraction.build(DOCUMENTS, encoder), encoder), everything(expected, encoder), atol=0.03
    )


def test_added_documents_leave_the_others_and_are_found(late: LateInteraction, encoder: Encoder) -> None:
    new = (Document("new", "Display", " ".join(SENTENCES[3:5])), Document("nothing"))
    grown = late.added(new, encoder)
    assert len(late) == 7 and len(grown) == 9
    for name in ("tokens", "sentences", "ids", "token_starts", "sentence_starts", "id_starts"):
        np.testing.assert_array_equal(grown.arrays[name][: len(late.arrays[name])], late.arrays[name])
    expected = plain(grown, encoder, DOCUMENTS + new, QUESTIONS)
    np.testing.assert_allclose(everything(grown, encoder)[..., 1:], expected[..., 1:], atol=0.002)
    np.testing.assert_allclose(everything(grown.without([7, 8]), encoder), everything(late, encoder), atol=1e-6)
    assert len(late.added((), encoder)) == 7


def test_without_equals_never_having_had_them(late: LateInteraction, encoder: Encoder) -> None:
    left = late.without([0, 4])
    kept = tuple(DOCUMENTS[row] for row in (1, 2, 3, 5, 6))
    expected = plain(left, encoder, kept, QUESTIONS)
    np.testing.assert_allclose(everything(left, encoder)[..., 1:], expected[..., 1:], atol=0.002)
    assert len(left.arrays["tokens"]) == left.arrays["token_starts"][-1] < late.arrays["token_starts"][-1]
    none = late.without(range(7))
    assert len(none) == 0 and not none.arrays["tokens"].size and not none.arrays["ids"].size
    assert len(none.added(DOCUMENTS[:2], encoder)) == 2


def test_a_collection_without_any_text(encoder: Encoder) -> None:
    late = LateInteraction.build((Document("a"), Document("b")), encoder)
    assert not everything(late, encoder).any()
    assert LateInteraction.build((), encoder).added(DOCUMENTS, encoder).arrays.keys() == late.arrays.keys()


def test_the_untrained_encoder_reads_the_documents(encoder: Encoder) -> None:
    expected = LateInteraction.build(DOCUMENTS, encoder)
    adapter = Adapter("full", 32)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    encoder = encoder.with_adapter(adapter)
    found = LateInteraction.build(DOCUMENTS, encoder)
    assert encoder.adapter is adapter
    np.testing.assert_array_equal(found.arrays["tokens"], expected.arrays["tokens"])


@pytest.mark.parametrize("width", [1, 2, 9, 96, 384])
def test_packed_vectors_keep_their_direction(width: int) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(50, width)).astype(np.float32))
    kept = packed(vectors)
    assert kept.dtype == np.uint8 and kept.shape == (50, -(-width // 2))
    assert (vectors * unpacked(kept, width)).sum(axis=1).min() > 0.98
    np.testing.assert_array_equal(packed(unpacked(kept, width)), kept)
    assert not unpacked(packed(np.zeros((2, width), np.float32)), width).any()


def test_main_directions_hold_what_there_is() -> None:
    generator = np.random.default_rng(0)
    states = generator.normal(size=(500, 6)) @ generator.normal(size=(6, 40))
    basis = main_directions(states.astype(np.float32), 6)
    np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(states @ basis @ basis.T, states, atol=1e-3)


def test_tokens_belong_to_the_sentence_they_end_in() -> None:
    document = Document("x", "Fan", "Clean the fan with water. Change the filter every month.")
    assert body_sentences(document) == [(5, 31), (31, 61)]
    assert body_sentences(Document("x", "Fan", " ")) == [(0, 3)]
    assert body_sentences(Document("x", " ", "Fan")) == [(0, 3)]
    assert body_sentences(Document("x")) == [(0, 0)]


# -------------------------------------------------------------------- Encoder.token_states


def test_token_states_are_those_of_the_model_itself(model_folder: Path) -> None:
    from transformers import AutoModel

    encoder = Encoder.load(model_folder, "mean")
    text = "who looks after the pump"
    (found,) = encoder.token_states([text])
    (ids,) = encoder.tokenize([text])
    model = AutoModel.from_pretrained(model_folder).eval()
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    own = [place for place, token in enumerate(ids) if token not in encoder.tokenizer.all_special_ids]
    assert found.ids.tolist() == [ids[place] for place in own]
    np.testing.assert_allclose(found.states, unit(states[own].numpy()), atol=2e-3)
    assert found.states.dtype == np.float16
    assert "".join(text[start:end].strip() for start, end in found.offsets) == text.replace(" ", "")


def test_token_states_alone_and_in_a_ragged_batch(model_folder: Path) -> None:
    encoder = Encoder.load(model_folder)
    together = encoder.token_states(QUESTIONS + ["\ud800 fan", "fan " * 300])
    for text, found in zip(QUESTIONS, together, strict=False):
        (alone,) = encoder.token_states([text])
        np.testing.assert_array_equal(alone.ids, found.ids)
        np.testing.assert_allclose(alone.states, found.states, atol=2e-3)
        assert alone.states.shape == (len(alone.ids), 32) and alone.offsets.shape == (len(alone.ids), 2)
    assert together[4].states.shape == (0, 32)
    assert 30 < len(together[-1].ids) <= encoder.model.max_tokens
    assert encoder.token_states([]) == []


def test_token_states_with_padding_on_the_left(tiny_model: Callable[..., Path]) -> None:
    right, left = (Encoder.load(tiny_model("llama", padding_side=side)) for side in ("right", "left"))
    for first, second in zip(right.token_states(QUESTIONS), left.token_states(QUESTIONS), strict=True):
        assert isinstance(first, TokenStates)
        np.testing.assert_array_equal(first.states, second.states)
        np.testing.assert_array_equal(first.offsets, second.offsets)
