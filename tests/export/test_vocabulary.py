"""Stored words are found as in a dict."""

from __future__ import annotations

import string

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from fedcar.export.vocabulary import StoredWords
from fedcar.retriever.lexical import LexicalIndex

WORDS = some.lists(some.text(string.ascii_lowercase + "éß水 🙂\ud800", max_size=5), unique=True, max_size=30)


@given(WORDS, some.text(max_size=4))
def test_stored_words_are_a_dict(words: list[str], other: str) -> None:
    expected = {word: number for number, word in enumerate(words)}
    stored = StoredWords.of(words)
    assert dict(stored) == expected and list(stored) == words and len(stored) == len(words)
    assert stored.get(other) == expected.get(other)


def test_an_index_over_stored_words_scores_the_same_and_takes_documents() -> None:
    index = LexicalIndex.build(["the fan is loud", "a pump and a fan", "water"])
    stored = LexicalIndex(StoredWords.of(list(index.vocabulary)), index.arrays)
    queries = ["fan pump", "water unknown"]
    np.testing.assert_array_equal(stored.scores(queries), index.scores(queries))
    np.testing.assert_array_equal(
        stored.added(["new water"]).scores(queries), index.added(["new water"]).scores(queries)
    )
    np.testing.assert_array_equal(stored.without([1]).scores(queries), index.without([1]).scores(queries))
