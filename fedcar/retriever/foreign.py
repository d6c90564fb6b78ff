"""Questions in another language than the documents, and encoders that were not made for a language."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from fedcar.collection.languages import ENGLISH, languages, name_of, other_language
from fedcar.errors import FedcarWarning

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_PIECES = 1.6  # times those of the same sentence in English; MiniLM's are 1.75 and more beyond English
MOST_UNKNOWN = 0.1  # of the sentence's words, beyond those of the English one
PART = 16  # characters
BY_CHARACTER = ("zh", "ja")  # tokenizers take these apart so


class Tokenizing(Protocol):
    """What is asked of an encoder."""

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]: ...
    def unknown(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which texts hold nothing that the encoder knows (n,)."""
        ...


def is_made_for(encoder: Tokenizing, language: str) -> bool:
    """Whether the encoder was made for the language, as far as its tokenizer tells.

    One that was not cuts a sentence into many more pieces than the same sentence in English (the premium of Petrov et
    al. 2023, "Language Model Tokenizers Introduce Unfairness Between Languages"), or does not know its words.
    """
    if language == ENGLISH:
        return True
    sample, english = (_short_parts(languages()[one].sample) for one in (language, ENGLISH))
    nothing, *pieces = map(len, encoder.tokenize(["", *sample, *english]))
    of_sample, of_english = (sum(part) - nothing * len(part) for part in (pieces[: len(sample)], pieces[len(sample) :]))
    unknown = encoder.unknown(list("".join(sample).replace(" ", "")) if language in BY_CHARACTER else sample).mean()
    more_unknown = unknown - encoder.unknown(english).mean()
    return bool(of_sample <= MOST_PIECES * of_english and more_unknown <= MOST_UNKNOWN)


def _short_parts(text: str) -> list[str]:
    """A text's words, and parts of its runs without spaces: none of them is longer than an encoder reads."""
    return [f" {run[start : start + PART]}" for run in text.split() for start in range(0, len(run), PART)]


def warn_of_other_languages(encoder: Tokenizing, questions: Sequence[str], language: str | None) -> None:
    """Warn (FedcarWarning) once of questions that are not in the documents' language, if the encoder reads one alone.

    Of a question that is too short to tell nothing is said, and nothing of documents that do not tell.

    Formal guarantees:
        question_in_another_language_is_warned_of: not where the encoder is multilingual, nor in the same language.
    """
    if language is None:
        return
    others = Counter(other for question in questions if (other := other_language(question, language)) is not None)
    if not others:
        return
    other = others.most_common(1)[0][0]
    unread = [name_of(one) for one in (other, language) if not is_made_for(encoder, one)]
    if not unread:
        return
    who = "the question seems" if len(questions) == 1 else f"{others[other]} of {len(questions)} questions seem"
    warnings.warn(
        f"{who} to be in {name_of(other)}, the documents are in {name_of(language)}, and the encoder was not made for "
        f"{' or '.join(unread)}; ask in {name_of(language)}, or train with a multilingual --encoder",
        FedcarWarning,
        stacklevel=3,
    )


def warn_of_unread_documents(encoder: Tokenizing, language: str | None) -> None:
    """Warn (FedcarWarning) where the encoder was not made for the documents' language."""
    if language is not None and not is_made_for(encoder, language):
        warnings.warn(
            f"the documents are in {name_of(language)}, and the encoder was not made for it; words count for more then "
            "than meaning: give a multilingual one with --encoder",
            FedcarWarning,
            stacklevel=3,
        )
