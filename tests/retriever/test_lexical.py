"""LexicalIndex and SentenceCoverage: bm25s' own scores, a plain loop's shares; what has no word has the score 0."""

from __future__ import annotations

import random
import warnings

import bm25s
import numpy as np
import pytest
from support.toy import TOY_DOCUMENTS

from fedcar.collection.wording import AS_BEFORE
from fedcar.collection.words import bigrams, stems
from fedcar.errors import FedcarWarning
from fedcar.retriever.lexical import LexicalIndex, SentenceCoverage, Words, relative

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


def test_words_are_those_of_bm25s() -> None:
    texts = [*sum(corpus(), []), "A b cd, e_f g-h İstanbul ΣΑΣ don't x2\u00a0y ﬁne水泵 3.5%", "the"]
    expected = bm25s.tokenize(texts, stopwords="en", show_progress=False, return_ids=False)
    assert [AS_BEFORE.words(text) for text in texts] == expected


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
    again = LexicalIndex(index.vocabulary, {name: array.copy() for name, array in index.arrays.items()})
    np.testing.assert_array_equal(again.scores(["clean the fan", "pump"]), index.scores(["clean the fan", "pump"]))
    assert all(isinstance(row, int) for row in index.vocabulary.values())
    assert "" not in index.vocabulary


# -------------------------------------------------------------------- own words, documents that come and go


@pytest.mark.parametrize("words", [stems, bigrams])
def test_scores_over_own_words_equal_those_of_bm25s(words: Words) -> None:
    texts, queries = corpus()
    reference = bm25s.BM25()
    reference.index([words(text) for text in texts], show_progress=False)
    expected = [reference.get_scores(found) if (found := words(query)) else np.zeros(150) for query in queries]
    found = LexicalIndex.build(texts, words).scores(queries)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert found.any()


@pytest.mark.parametrize("words", [None, stems, bigrams])
@pytest.mark.parametrize("first", [0, 1, 7, 60, 100])
def test_added_equals_build_of_all(words: Words | None, first: int) -> None:
    texts, queries = corpus()
    grown = LexicalIndex.build(texts[:first], words).added(texts[first:100]).added(texts[100:])
    expected = LexicalIndex.build(texts, words)
    assert grown.vocabulary == expected.vocabulary
    np.testing.assert_array_equal(grown.scores(queries), expected.scores(queries))


@pytest.mark.parametrize("words", [None, stems, bigrams])
@pytest.mark.parametrize("rows", [[], [0], [149, 3, 7, 8], list(range(1, 150)), list(range(150))])
def test_without_equals_never_having_had_them(words: Words | None, rows: list[int]) -> None:
    texts, queries = corpus()
    left = LexicalIndex.build(texts, words).without(rows)
    expected = LexicalIndex.build([text for row, text in enumerate(texts) if row not in rows], words)
    assert set(left.vocabulary) == set(expected.vocabulary)
    assert sorted(left.vocabulary.values()) == list(range(len(left.vocabulary)))
    np.testing.assert_allclose(left.scores(queries), expected.scores(queries), rtol=1e-6)


def test_relative_scores_of_rows_without_any_stay_0() -> None:
    np.testing.assert_array_equal(relative(np.array([[0.0, 0], [1, 4]], np.float32)), [[0, 0], [0.25, 1]])


def sentences_of_corpus() -> tuple[list[list[str]], list[str]]:
    texts, queries = corpus()
    generator = random.Random(1)
    documents = []
    for text in texts:
        words, documents_sentences = text.split(), []
        while words:
            size = generator.randint(1, 20)
            documents_sentences.append(" ".join(words[:size]))
            words = words[size:]
        documents.append(documents_sentences)
    return documents, queries


def covered(documents: list[list[str]], queries: list[str]) -> np.ndarray:
    """A plain loop."""
    holding = [set(stems(" ".join(sentences))) for sentences in documents]
    found = {word: sum(word in held for held in holding) for held in holding for word in held}

    def idf(word: str) -> float:
        number = found.get(word) or min(found.values())
        return float(np.log(1 + (len(documents) - number + 0.5) / (number + 0.5)))

    result = np.zeros((len(queries), len(documents)))
    for row, query in enumerate(queries):
        words = set(stems(query))
        for column, sentences in enumerate(documents):
            shares = [sum(idf(word) for word in words & set(stems(sentence))) for sentence in sentences]
            if words and shares:
                result[row, column] = max(shares) / sum(map(idf, words))
    return result


def coverage(documents: list[list[str]]) -> SentenceCoverage:
    return SentenceCoverage.build(documents, LexicalIndex.build([" ".join(found) for found in documents], stems))


def test_coverage_equals_a_plain_loop() -> None:
    documents, queries = sentences_of_corpus()
    found = coverage(documents).scores([*queries, "", "the of", "unknownword", "pump unknownword"])
    np.testing.assert_allclose(found[:82], covered(documents, queries), atol=1e-6)
    assert found.dtype == np.float32 and found.max() <= 1.0 + 1e-6 and not found[82:86].any()


def test_coverage_of_documents_that_come_and_go() -> None:
    documents, queries = sentences_of_corpus()
    index = LexicalIndex.build([" ".join(found) for found in documents[:50]], stems)
    larger = index.added([" ".join(found) for found in documents[50:]])
    grown = SentenceCoverage.build(documents[:50], index).added(documents[50:], larger)
    np.testing.assert_allclose(grown.scores(queries), covered(documents, queries), atol=1e-6)
    rows = [0, 7, 8, 60, 149]
    left = grown.without(rows, larger.without(rows))
    kept = [found for row, found in enumerate(documents) if row not in rows]
    np.testing.assert_allclose(left.scores(queries), covered(kept, queries), atol=1e-6)
    none = left.without(range(145), left.index.without(range(145)))
    assert none.scores(queries).shape == (82, 0)


@pytest.mark.parametrize("documents", [[], [[]], [[""], ["the of"]]])
def test_coverage_of_documents_without_a_word(documents: list[list[str]]) -> None:
    assert not coverage(documents).scores(["fan", ""]).any()
    assert coverage(documents).scores(["fan"]).shape == (1, len(documents))
