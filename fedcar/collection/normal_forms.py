"""Unicode at the border: texts that look the same compare as the same, and stay as they were written."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

# Characters without a shape of their own (UAX 44, Default_Ignorable_Code_Point), but for the tags that tell flags apart
# and the zero-width space and joiners, of which fedcar.collection.words makes more than nothing.
_SHAPELESS = (
    "\u00ad\u034f\u061c\u180b-\u180f\u200e\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef"
)
_ZERO_WIDTH = "\u200b\u200c\u200d"
_INVISIBLE = re.compile(f"[{_SHAPELESS}{_ZERO_WIDTH}]")
_WITHOUT_SHAPE = re.compile(f"[{_SHAPELESS}]+")
_FULL_WIDTH = re.compile("[\uff01-\uffee]+")  # and half-width, as the terminals of Japan and Korea had them


def composed(text: str) -> str:
    """The text in normal form C: one code point for é, whichever keyboard or file system wrote it."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def visible(text: str) -> str:
    """The text without soft hyphens, zero-width and direction signs and byte order marks."""
    return text if text.isascii() else _INVISIBLE.sub("", text)


def is_blank(text: str) -> bool:
    """Whether nothing of the text can be seen."""
    return not visible(text).strip()


def caseless(text: str) -> str:
    """What equal-looking texts have in common: case folded, composed, of one width, without what cannot be seen.

    Canonical caseless matching (Unicode 3.13, D145). A text that is composed, narrow and all visible is only folded.
    """
    if text.isascii():
        return text.casefold()
    folded = unicodedata.normalize("NFD", of_one_width(visible(text))).casefold()
    return unicodedata.normalize("NFC", folded)


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only in case, blanks, "_", "-" or what cannot be seen."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(" ".join(re.split(r"[\s_-]+", caseless(name).strip())), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def of_one_width(text: str) -> str:
    """Full-width Latin and half-width kana as their ordinary forms; nothing else of compatibility is touched."""
    return _FULL_WIDTH.sub(lambda wide: unicodedata.normalize("NFKC", wide[0]), text)


def for_words(text: str) -> str:
    """The text as words are read from it: composed, of one width, soft hyphens and their like taken out."""
    return text if text.isascii() else of_one_width(_WITHOUT_SHAPE.sub("", composed(text)))


@lru_cache(maxsize=1)
def combining_marks() -> str:
    r"""All combining marks that have a shape, as ranges for a character class; Python's \w has none of them.

    Vowel signs and viramas (Mc, Mn) of Devanagari, Tamil or Thai are as much part of a word as its letters.
    """
    marks = [
        code
        for code in range(0x300, 0x20000)
        if unicodedata.category(chr(code))[0] == "M" and not _INVISIBLE.match(chr(code))
    ]
    starts = [code for code, before in zip(marks, [0, *marks], strict=False) if code != before + 1]
    ends = [code for code, after in zip(marks, [*marks[1:], 0], strict=False) if after != code + 1]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))
