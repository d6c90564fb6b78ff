"""LexicalIndex: the scores are bm25s' own, and what has no word has the score 0."""

from __future__ import annotations

import random
import warnings

import bm25s
import numpy as np
import pytest
from conftest import TOY_DOCUMENTS

from fedcar.errors import FedcarWarning
from fedcar.lexical import LexicalIndex

TEXTS = [f"{title}. {text}" for title, text, _ in TOY_DOCUMENTS.values()]


def corpus(documents: int = 150) -> tuple[list[str], list[str]]:
    """Documents and queries with word frequencies as in a language (Zipf), stop words, capitals, digits, accents."""
    generator = random.Random(0)
    words = [f"w{number}" for number in range(200)] + ["Café", "naïve", "E-12", "don't", "C3PO", "straße", "ポンプ"]
    weights = [1 / (place + 1) for place in range(len(words))]
    filler = ["the", "a", "Is", "of", "and", "?", "...", "I"]

    def text(length: int) -> str:
        chosen = generator.choices(words, weights, k=length) + generator.choices(filler, k=length // 3)
        generator.shuffle(chosen)
        return " ".join(chosen)

    texts = [text(generator.randint(1, 60)) for _ in range(documents)]
    texts[7] = ""
    texts[8] = "the and of"
    return texts, [text(generator.randint(2, 9)) for _ in range(80)] + ["w1 w1 w1 unknownword", "the w3"]


def test_scores_equal_those_of_bm25s() -> None:
    texts, queries = corpus()
    reference = bm25s.BM25()
    reference.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    expected = np.array(
        [
            reference.get_scores(words)
            for words in bm25s.tokenize(queries, stopwords="en", show_progress=False, return_ids=False)
        ]
    )
    found = LexicalIndex.build(texts).scores(queries)
    assert found.dtype == np.float32 and found.shape == (82, 150)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert (found.max(axis=1) > 0).all()
    assert not found[:, [7, 8]].any()


def test_the_ranking_equals_that_of_bm25s_retrieve() -> None:
    texts, queries = corpus()
    reference = bm25s.BM25()
    reference.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(queries, stopwords="en", show_progress=False)
    expected = reference.retrieve(tokens, k=5, show_progress=False).scores
    np.testing.assert_allclose(-np.sort(-LexicalIndex.build(texts).scores(queries), axis=1)[:, :5], expected, rtol=1e-5)


def test_relative_scores_lie_between_0_and_1() -> None:
    texts, queries = corpus()
    relative = LexicalIndex.build(texts).relative_scores(queries)
    scores = LexicalIndex.build(texts).scores(queries)
    np.testing.assert_array_equal(relative.max(axis=1), np.ones(len(queries)))
    assert relative.min() == 0
    np.testing.assert_allclose(relative * scores.max(axis=1, keepdims=True), scores, rtol=1e-6)


def test_queries_of_stop_words_only_are_said_once_and_score_0() -> None:
    index = LexicalIndex.build(TEXTS)
    with pytest.warns(FedcarWarning, match="3 of 5 queries have nothing but stop words") as caught:
        found = index.relative_scores(["the of and", "the fan", "", "?!", "unknownword"])
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert [bool(row.any()) for row in found] == [False, True, False, False, False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not index.scores(["the of and"]).any()
        assert not index.relative_scores(["unknownword"]).any()


def test_no_query() -> None:
    assert LexicalIndex.build(TEXTS).scores([]).shape == (0, 6)
    assert LexicalIndex.build(TEXTS).relative_scores([]).shape == (0, 6)


@pytest.mark.parametrize("texts", [[""], ["", "", ""], ["the of", "?"], []])
def test_documents_without_a_word(texts: list[str]) -> None:
    index = LexicalIndex.build(texts)
    assert index.scores(["fan", "the"]).shape == (2, len(texts))
    assert not index.scores(["fan", "the"]).any()
    assert not index.relative_scores(["fan"]).any()


def test_a_single_document() -> None:
    index = LexicalIndex.build(["Clean the fan."])
    assert index.scores(["fan", "pump"])[:, 0].tolist() == [pytest.approx(index.scores(["fan"])[0, 0]), 0.0]
    assert index.relative_scores(["fan", "pump"]).tolist() == [[1.0], [0.0]]


def test_an_index_is_plain_arrays() -> None:
    index = LexicalIndex.build(TEXTS)
    again = LexicalIndex(index.vocabulary, {name: array.copy() for name, array in index.arrays.items()}, len(TEXTS))
    np.testing.assert_array_equal(again.scores(["clean the fan", "pump"]), index.scores(["clean the fan", "pump"]))
    assert all(isinstance(row, int) for row in index.vocabulary.values())
    assert "" not in index.vocabulary
