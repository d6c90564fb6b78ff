"""Words, stems and sentences of a text, by rules that need no model and no list of words but the English stop words."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain

from fedcar.collection.normal_forms import combining_marks, for_words

STOP_WORDS = frozenset(  # those of bm25s, so that the lexical features agree on what says nothing
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with".split()
)
SUFFIXES = (  # a longer one before those it ends in
    "ational ization fulness ousness iveness ations ation ments ment ness ings ing edly ed ally ly er or al ion ive "
    "ity e"
).split()
FEWEST_LETTERS = 4
FEWEST_WORDS = 4
MOST_WORDS = 60

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_LOWER = "a-zß-öø-ÿа-яёα-ω" + "".join(
    chr(code) for code in (*range(0x100, 0x250), *range(0x450, 0x530)) if chr(code).islower()
)
_SOUTH_EAST_ASIAN = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # of these, the ones whose vowels are marks
_DIACRITICS = "\u0300-\u036f"  # on a single letter they make no word of it, as a vowel sign does
_PLAIN_WORD = re.compile(r"\b\w\w+\b")
_WORD = re.compile(rf"[{_UNSPACED}]+|[^\W{_UNSPACED}]{{2,}}")
_WORD_OR_SIGN = re.compile(rf"[{_UNSPACED}]+|[^\W{_UNSPACED}]+|[^\w\s]")
_SOUTH_EAST_ASIAN_RUN = re.compile(f"[{_SOUTH_EAST_ASIAN}]")
_WITHOUT_SPACES = re.compile(f"[{_UNSPACED}]")
_COUNTED = re.compile(rf"[{_UNSPACED}]{{1,2}}|[^\s{_UNSPACED}]+")
_SIGN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SENTENCE_END = re.compile(
    r"""(?<=[.!?…])["')\]»”]*\s+(?=["'(\[«„“¿¡]?(?:[^\W"""
    + _LOWER
    + r"""_]|-))|(?<=[。！？｡।॥۔؟።፧။។៕།༎։])["'」』）”’》〉】]*\s*|"""
    + rf"""(?<=[{_SIGN}][.!?…．])(?=[{_SIGN}])|\n+"""
)
_PAUSE = re.compile(r"[\s、，；,;،؛၊]")


class _Patterns:
    """The words of a text that has combining marks; compiled when the first such text is read."""

    def __init__(self) -> None:
        marks = combining_marks()
        self.mark = re.compile(f"[{marks}]")
        # beside a mark a joiner shapes a conjunct, elsewhere it parts words
        self.joiner = re.compile(f"(?<=[{marks}])[\u200c\u200d]+|[\u200c\u200d]+(?=[{marks}])")
        self.word = re.compile(rf"(?:(?![^\w{marks}])[{_SOUTH_EAST_ASIAN}])+|" + _spelled(_SOUTH_EAST_ASIAN, marks))
        self.stem = re.compile(rf"[{_UNSPACED}]+|" + _spelled(_UNSPACED, marks))
        letter = rf"[^\W{_UNSPACED}]"
        self.word_or_sign = re.compile(rf"[{_UNSPACED}]+|{letter}(?:{letter}|[{marks}])*|[^\w\s]")


def _spelled(outside: str, marks: str) -> str:
    """A word of letters and marks: two letters, or a letter with a vowel sign, and more.

    The dot of a lower-cased I with a dot (U+0307) parts words, as it does for bm25s.
    """
    letter = rf"[^\W{outside}]"
    sign, mark = f"(?![{_DIACRITICS}])[{marks}]", f"(?!(?<=i)\u0307)[{marks}]"
    return f"{letter}(?!(?<=i)\u0307)[{_DIACRITICS}]*(?:{letter}|{sign})(?:{letter}|{mark})*"


@lru_cache(maxsize=1)
def _patterns() -> _Patterns:
    return _Patterns()


def _found(text: str, plain: re.Pattern[str], with_marks: str) -> list[str]:
    """The words by the plain pattern, or by the one of that name where the text has marks; lower case."""
    if text.isascii():
        return plain.findall(text.lower())
    text, patterns = for_words(text).lower(), _patterns()
    if not patterns.mark.search(text) and not _SOUTH_EAST_ASIAN_RUN.search(text):
        return plain.findall(text)
    pattern: re.Pattern[str] = getattr(patterns, with_marks)
    return pattern.findall(patterns.joiner.sub("", text))


def _pairs(word: str) -> list[str]:
    return [word[place : place + 2] for place in range(max(1, len(word) - 1))]


def whole_words(text: str) -> list[str]:
    """The words of a text as bm25s sees them: lower case, two letters and more, stop words and all.

    Beyond bm25s, combining marks belong to their word, and scripts that have marks and no spaces (Thai, Lao, Khmer,
    Burmese) give overlapping pairs of characters: by bm25s' pattern such words fall apart at every vowel sign.
    """
    found = _found(text, _PLAIN_WORD, "word")
    if text.isascii():
        return found
    parted = (_pairs(word) if _SOUTH_EAST_ASIAN_RUN.match(word) else [word] for word in found)
    return list(chain.from_iterable(parted))


def words_and_signs(text: str) -> list[str]:
    """All that is written: words of one letter and more, and every sign by itself; lower case.

    Combining marks belong to their word; scripts without spaces give overlapping pairs of characters.
    """
    found = _found(text, _WORD_OR_SIGN, "word_or_sign")
    if text.isascii():
        return found
    parted = (_pairs(word) if _WITHOUT_SPACES.match(word) else [word] for word in found)
    return list(chain.from_iterable(parted))


def stems(text: str) -> list[str]:
    """The words of a text as search knows them: lower case, two letters and more, no stop words, English endings off.

    Only words in plain ASCII lose their ending: the rules are English, and whether a word is cut depends on the word
    alone, so that question and document agree. Scripts without spaces (Chinese, Japanese, Thai, Khmer, Lao, Burmese)
    give overlapping pairs of characters.
    """
    found: list[str] = []
    for word in _found(text, _WORD, "stem"):
        if not word.isascii() and _WITHOUT_SPACES.match(word):
            found.extend(_pairs(word))
        elif word not in STOP_WORDS:
            found.append(stem(word))
    return found


def bigrams(text: str) -> list[str]:
    """Every two neighbouring stems as one word."""
    found = stems(text)
    return [f"{first} {second}" for first, second in zip(found, found[1:], strict=False)]


def word_count(text: str) -> int:
    """How many words a text has; in scripts without spaces two characters count as one."""
    return sum(1 for _ in _COUNTED.finditer(text))


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences begin and end: at least one, in order, without overlap.

    A fragment of under 4 words joins its neighbour; what has over 90 words is cut every 60, or before, at
    a blank or comma, where words have no blanks between them.
    """
    ends = [*(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    joined: list[tuple[int, int, int]] = []  # start, end, words
    start = 0
    for end in ends:
        if end <= start:
            continue
        words = word_count(text[start:end])
        if joined and (words < FEWEST_WORDS or joined[-1][2] < FEWEST_WORDS):
            before, _, count = joined.pop()
            joined.append((before, end, count + words))
        else:
            joined.append((start, end, words))
        start = end
    return [span for start, end, words in joined for span in _cut(text, start, end, words)] or [(0, len(text))]


def _cut(text: str, start: int, end: int, words: int) -> list[tuple[int, int]]:
    if words <= 1.5 * MOST_WORDS:
        return [(start, end)]
    places = [match.start() for match in _COUNTED.finditer(text, start, end)]
    first, chosen = 0, [places[0]]
    while len(places) - first > MOST_WORDS:
        nearest = range(first + MOST_WORDS, first + MOST_WORDS // 2, -1)
        first = next((place for place in nearest if _PAUSE.match(text, places[place] - 1)), first + MOST_WORDS)
        chosen.append(places[first])
    return list(zip(chosen, [*chosen[1:], end], strict=True))


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """A light English stemmer: plural, one suffix, doubled consonant, final y. At least four letters remain."""
    if len(word) < FEWEST_LETTERS or not (word.isascii() and word.isalpha()):
        return word
    if word.endswith("ies") and len(word) > FEWEST_LETTERS:
        word = word[:-3] + "y"
    elif word.endswith("sses"):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for suffix in SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= FEWEST_LETTERS:
            word = word[: -len(suffix)]
            break
    if len(word) > FEWEST_LETTERS and word[-1] == word[-2] and word[-1] not in "ls":
        word = word[:-1]
    if len(word) > FEWEST_LETTERS and word[-1] == "y":
        word = word[:-1] + "i"
    return word
