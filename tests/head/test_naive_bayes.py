"""Naive Bayes over words: against a plain loop over its formula, and counts that add up."""

from __future__ import annotations

import math
import zlib
from collections import Counter

import numpy as np
import pytest
from scipy import sparse

from fedcar.collection.wording import BY_LANGUAGE, Wording
from fedcar.head.naive_bayes import BUCKETS, SMOOTHING, NaiveBayes, gram_counts

TEXTS = (
    "the pump is broken",
    "Broken pump, broken hose!",
    "why is the fan so loud",
    "the fan, the fan",
    "my display stays dark",
    "pump and fan",
)
DOCUMENTS = 4  # the last one without questions
ANSWERS = [{0}, {0}, {1}, {1}, {2}, {0, 1}]
ASKED = ("is the broken fan a pump", "something else entirely", "dark display", "the pump is broken")


def plain_grams(text: str) -> dict[int, float]:
    """Words, signs and pairs of neighbours, hashed; log2 of one more than their count."""
    words = []
    for word in text.lower().replace(",", " , ").replace("!", " ! ").split():
        words.append(word)
    counted = Counter([*words, *(f"{a} {b}" for a, b in zip(words, words[1:], strict=False))])
    return {zlib.crc32(gram.encode()) % BUCKETS: math.log2(1 + count) for gram, count in counted.items()}


VOCABULARY = len({gram for text in TEXTS for gram in plain_grams(text)})  # smoothing counts the grams ever asked


def plain_counts(asked: list[tuple[str, set[int]]]) -> list[dict[int, float]]:
    counts: list[dict[int, float]] = [{} for _ in range(DOCUMENTS)]
    for text, documents in asked:
        for document in documents:
            for gram, count in plain_grams(text).items():
                counts[document][gram] = counts[document].get(gram, 0.0) + count
    return counts


def raw_scores(asked: list[tuple[str, set[int]]], question: str) -> list[float]:
    """sum_g c_g [log p(g | d) - log p(g | any but d)]."""
    counts = plain_counts(asked)
    scores = []
    for document in range(DOCUMENTS):
        rest = [one for other, one in enumerate(counts) if other != document]
        score = 0.0
        for gram, count in plain_grams(question).items():
            inside = counts[document].get(gram, 0.0) + SMOOTHING
            outside = sum(one.get(gram, 0.0) for one in rest) + SMOOTHING
            size = sum(counts[document].values()) + SMOOTHING * VOCABULARY
            others = sum(sum(one.values()) for one in rest) + SMOOTHING * VOCABULARY
            score += count * (math.log(inside / size) - math.log(outside / others))
        scores.append(score)
    return scores


def plain_scores(asked: list[tuple[str, set[int]]], question: str) -> list[float]:
    """The same, less the mean over documents with questions; 0 for those without."""
    scores = raw_scores(asked, question)
    touched = [bool(one) for one in plain_counts(asked)]
    mean = sum(score for score, one in zip(scores, touched, strict=True) if one) / max(1, sum(touched))
    return [score - mean if one else 0.0 for score, one in zip(scores, touched, strict=True)]


def targets(answers: list[set[int]]) -> np.ndarray:
    return np.array([[float(document in one) for document in range(DOCUMENTS)] for one in answers], dtype=np.float32)


@pytest.fixture(scope="module")
def words() -> NaiveBayes:
    return NaiveBayes.of(gram_counts(TEXTS), targets(ANSWERS))


@pytest.mark.parametrize("text", [*TEXTS, "", "…", "a a a a", "ÄRGER über\u00a0alles", "\ud800 x"], ids=ascii)
def test_grams_are_words_signs_and_pairs(text: str) -> None:
    found = gram_counts([text])
    assert found.shape == (1, BUCKETS) and found.dtype == np.float32
    if text in TEXTS:
        expected = plain_grams(text)
        assert dict(zip(found.indices.tolist(), found.data.tolist(), strict=True)) == pytest.approx(expected)


def test_the_scores_are_the_formula(words: NaiveBayes) -> None:
    asked = list(zip(TEXTS, ANSWERS, strict=True))
    found = words.scores(gram_counts(ASKED))
    np.testing.assert_allclose(found, [plain_scores(asked, question) for question in ASKED], atol=1e-4)
    assert found[3].argmax() == 0 and found[2].argmax() == 2


def test_counts_add(words: NaiveBayes) -> None:
    parts = [NaiveBayes.of(gram_counts(TEXTS[part]), targets(ANSWERS[part])) for part in (slice(0, 2), slice(2, 6))]
    added = parts[0] + parts[1]
    assert abs(added.counts - words.counts).max() < 1e-5
    grams = gram_counts(ASKED)
    np.testing.assert_allclose(added.scores(grams), words.scores(grams), atol=1e-4)


@pytest.mark.parametrize("row", range(len(TEXTS)))
def test_left_out_equals_counted_without(words: NaiveBayes, row: int) -> None:
    """As if the question had never been asked, of any of its documents."""
    grams = gram_counts(TEXTS)
    found = words.scores_without(grams, sparse.csr_array(targets(ANSWERS)))[row]
    asked = list(zip(TEXTS, [set(one) for one in ANSWERS], strict=True))
    asked[row][1].clear()
    touched = slice(0, 3)  # up to a constant of the question
    found, expected = found[touched], np.array(raw_scores(asked, TEXTS[row]))[touched]
    np.testing.assert_allclose(found - found.mean(), expected - expected.mean(), atol=1e-3)


def test_documents_without_questions_score_zero(words: NaiveBayes) -> None:
    grams = gram_counts(ASKED)
    found = words.scores(grams)
    assert not found[:, 3].any() and found[:, :3].any(1).all()
    np.testing.assert_allclose(found[:, :3].mean(axis=1), 0, atol=1e-4)
    nothing = NaiveBayes.of(gram_counts(()), targets([]).reshape(0, DOCUMENTS))
    assert nothing.scores(grams).shape == (4, 4) and not nothing.scores(grams).any()


def test_what_is_written_in_two_ways_is_one_gram_beside_documents_in_another_language() -> None:
    russian, english = Wording("ru", BY_LANGUAGE), Wording("en")
    assert set(gram_counts(["Ещё тёплый"], russian).indices) == set(gram_counts(["еще теплый"], russian).indices)
    assert set(gram_counts(["Ещё тёплый"], english).indices) != set(gram_counts(["еще теплый"], english).indices)
    assert set(gram_counts(["Ещё"], english).indices) == set(gram_counts(["Ещё"]).indices), "counts of before fit on"


def test_words_of_all_scripts_stay_whole() -> None:
    """Hindi fell apart at every vowel sign, and Chinese was one word to the next space."""
    same, other = gram_counts(["पंप खराब"]), gram_counts(["पंप, खराब!"])
    shared = set(same.indices) & set(other.indices)
    assert len(same.indices) == 3 and len(shared) == 2, "two words and their pair; two words"
    assert set(gram_counts(["水泵坏了"]).indices) & set(gram_counts(["我的水泵"]).indices)
    assert set(gram_counts(["caf\u00e9"]).indices) == set(gram_counts(["cafe\u0301"]).indices)
