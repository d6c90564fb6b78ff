"""Questions in another language than the documents: warned of where the encoder was not made for both."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from tokenizers import Tokenizer

from fedcar.collection.languages import languages
from fedcar.encoder.model_files import DEFAULT_ENCODER, find
from fedcar.errors import FedcarWarning
from fedcar.retriever.foreign import is_made_for, warn_of_other_languages, warn_of_unread_documents

GERMAN = "Wie entkalke ich die Maschine?"


class OfWords:
    """A tokenizer that knows the words of some languages' samples, and the letters of all others."""

    def __init__(self, *known: str) -> None:
        self.known = {word for one in known for word in re.findall(r"\w+", languages()[one].sample)}

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        words = [re.findall(r"\w+", text) for text in texts]
        return [[0] * (2 + sum(1 if one in self.known else len(one) for one in found)) for found in words]

    def unknown(self, texts: Sequence[str]) -> np.ndarray:
        return np.zeros(len(texts), dtype=bool)


class Packaged:
    """The tokenizer of the default encoder."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_file(str(find(DEFAULT_ENCODER, offline=True)[0] / "tokenizer.json"))
        self.tokenizer.no_padding()

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.tokenizer.encode(text).ids for text in texts]

    def unknown(self, texts: Sequence[str]) -> np.ndarray:
        found = [self.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        return np.array([set(ids) == {self.tokenizer.token_to_id("[UNK]")} for ids in found])


def said(encoder: OfWords, questions: Sequence[str], language: str | None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_other_languages(encoder, questions, language)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("language", languages())
def test_the_default_encoder_was_made_for_english_alone(language: str) -> None:
    assert is_made_for(Packaged(), language) == (language == "en")


def test_question_in_another_language_is_warned_of() -> None:
    (line,) = said(OfWords("en"), [GERMAN], "en")
    assert "the question seems to be in German, the documents are in English" in line and "\n" not in line
    (line,) = said(OfWords("en"), [GERMAN, "what is this", GERMAN, "filter"], "en")
    assert line.startswith("2 of 4 questions seem to be in German")
    (line,) = said(OfWords("en"), ["What is this and how does it work?"], "de")
    assert "not made for German" in line


def test_nothing_is_said_of_a_multilingual_encoder_or_of_what_does_not_tell() -> None:
    assert not said(OfWords("en", "de"), [GERMAN], "en")
    assert not said(OfWords("en"), [GERMAN], "de")
    assert not said(OfWords("en"), [GERMAN], None)
    assert not said(OfWords("en"), ["entkalken", "filter"], "en")


def test_documents_in_a_language_that_the_encoder_was_not_made_for_are_warned_of() -> None:
    with pytest.warns(FedcarWarning, match="the documents are in German, and the encoder was not made for it"):
        warn_of_unread_documents(OfWords("en"), "de")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unread_documents(OfWords("en"), "en")
        warn_of_unread_documents(OfWords("en", "de"), "de")
        warn_of_unread_documents(OfWords("en"), None)
