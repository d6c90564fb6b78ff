"""Which language texts are written in: told by their script, and where several share one, by its commonest words.

`languages.json` has of each language its name, its commonest words (in a script that several share), the endings and
accents that search leaves out, and one sentence: article 1 of the Universal Declaration of Human Rights.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

ENGLISH = "en"
MOST_TEXTS, MOST_CHARACTERS = 1000, 1000  # that are looked at: every so many of more texts, the beginning of longer
LETTERS_A_SIGN = 3  # a Chinese, Japanese or Korean sign says about as much
LEAST_SURE, TIMES_THE_NEXT = 1.5, 1.5  # of one text: more than a word that only this language has, and than the next
LEAST_A_TEXT, TIMES_THE_NEXT_OF_MANY = 0.2, 1.15  # of a collection: for each text, and to the next language
FEWEST_LETTERS = 8  # of a script that one language has; fewer may be a name
KANA_SHARE = 0.05  # of the signs; a text in Japanese has more
_SCRIPTS = {  # their first and last code points
    "Latin": "0041-024f 1e00-1eff",
    "Cyrillic": "0400-052f",
    "Arabic": "0600-06ff 0750-077f 08a0-08ff fb50-fdff fe70-fefe",
    "Devanagari": "0900-097f",
    "el": "0370-03ff 1f00-1fff",
    "hy": "0530-058f",
    "he": "0590-05ff",
    "bn": "0980-09ff",
    "ta": "0b80-0bff",
    "te": "0c00-0c7f",
    "th": "0e00-0e7f",
    "lo": "0e80-0eff",
    "my": "1000-109f",
    "ka": "10a0-10ff",
    "ko": "1100-11ff 3130-318f ac00-d7a3",
    "am": "1200-139f",
    "km": "1780-17ff",
    "ja": "3040-30fa 30fc-30ff",
    "zh": "3400-4dbf 4e00-9fff f900-faff 20000-3ffff",
}
_SHARED = {  # scripts of several languages
    "Latin": "en de nl fr es pt it ca ro sv da no fi hu pl cs tr vi id".split(),
    "Cyrillic": ["ru", "uk", "bg"],
    "Arabic": ["ar", "fa", "ur"],
    "Devanagari": ["hi", "mr"],
}
_SIGNS = ("zh", "ja", "ko")
_WORD = re.compile(r"(?:[^\W\d_]|[\u0300-\u036f\u0900-\u0903\u093a-\u094d\u0951-\u0957])+")


@dataclass(frozen=True)
class Language:
    """What is known of a language. `folds` are the accented letters that stay, None where all of them do."""

    name: str
    sample: str
    words: frozenset[str] = frozenset()
    letters: str = ""
    endings: tuple[str, ...] = ()
    folds: str | None = None


class Recognised(NamedTuple):
    """The language of a collection: None where its texts do not tell.

    `texts` of those that `told` any language are in it. `latin` is the share of all letters that are Latin.
    """

    language: str | None
    texts: int
    told: int
    latin: float


@lru_cache(maxsize=1)
def languages() -> Mapping[str, Language]:
    """All languages by their code (ISO 639-1)."""
    listed = json.loads((Path(__file__).parent / "languages.json").read_text(encoding="utf-8"))
    return {
        code: Language(
            about["name"],
            about["sample"],
            frozenset(about.get("words", ())),
            about.get("letters", ""),
            tuple(about.get("endings", ())),
            about.get("folds"),
        )
        for code, about in listed.items()
    }


def name_of(code: str | None) -> str:
    """The language's English name."""
    return languages()[code].name if code is not None else "not recognised"


def language_of(text: str) -> str | None:
    """The language of one text, where it is plain; None for few words, or words that several languages have."""
    script, shares = _read(text)
    if script not in _SHARED and _letters(text).total() < FEWEST_LETTERS:
        return None
    return _plain(script, shares)


def _plain(script: str | None, shares: Counter[str]) -> str | None:
    if script not in _SHARED:
        return script
    (best, score), (_, next_one) = _two_best(shares)
    return best if score >= LEAST_SURE and score >= TIMES_THE_NEXT * next_one else None


def recognised(texts: Sequence[str]) -> Recognised:
    """The language of most of the texts, which depends on these texts and their order alone.

    Formal guarantees:
        english_is_told_from_every_other_language: and a collection of labels without common words is None.
    """
    step = max(1, -(-len(texts) // MOST_TEXTS))
    chosen = [text[:MOST_CHARACTERS] for text in texts[::step] if text]
    total: Counter[str] = Counter()
    told: Counter[str] = Counter()
    letters: Counter[str] = Counter()
    for text in chosen:
        letters += _letters(text)
        script, shares = _read(text)
        total += shares if script in _SHARED else Counter({script: LEAST_SURE} if script else {})
        if (language := _plain(script, shares)) is not None:
            told[language] += 1
    if total["ja"] >= KANA_SHARE * total["zh"]:  # titles without kana are those of a collection that has some
        for counted in (total, told):
            if counted["ja"]:
                counted["ja"] += counted.pop("zh", 0)
    latin = letters["Latin"] / max(1, letters.total())
    (best, score), (_, next_one) = _two_best(total)
    if score <= 0 or score < LEAST_A_TEXT * len(chosen) or score < TIMES_THE_NEXT_OF_MANY * next_one:
        return Recognised(None, 0, told.total(), latin)
    return Recognised(best, told[best], told.total(), latin)


def other_language(text: str, language: str) -> str | None:
    """The language of one text, where it is plainly not this one; a Japanese text may have no kana.

    Of a text whose script alone tells that it is another, the language that most who write in it have.
    """
    other, script = language_of(text), _read(text)[0]
    if other is None and script in _SHARED and script != "Latin" and language not in _SHARED[script]:
        other = _SHARED[script][0] if _letters(text).total() >= FEWEST_LETTERS else None
    return None if other == language or (other, language) == ("zh", "ja") else other


def _read(text: str) -> tuple[str | None, Counter[str]]:
    """The script that most of a text is in, or its one language; and what the words say of those that share one."""
    letters = _letters(text)
    signs = letters["zh"] + letters["ja"]
    if letters["ja"]:
        several = letters["ja"] >= KANA_SHARE * signs
        letters["ja" if several else "zh"] = signs
        del letters["zh" if several else "ja"]
    script = letters.most_common(1)[0][0] if letters else None
    if script not in _SHARED:
        return script, Counter()
    known, shares = _known(script), Counter[str]()
    text = text.lower()
    for sign in {*_WORD.findall(text), *(f"letter {one}" for one in set(text) if not one.isascii())}:
        for language, weight in known.get(sign, ()):
            shares[language] += weight  # type: ignore[assignment]
    return script, shares


def _two_best(shares: Counter[str]) -> list[tuple[str, float]]:
    return [*shares.most_common(2), ("", 0.0), ("", 0.0)][:2]


def _letters(text: str) -> Counter[str]:
    """How many letters of each script there are; a sign counts as several."""
    found: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha() and (script := _script(ord(character))):
            found[script] += count * (LETTERS_A_SIGN if script in _SIGNS else 1)
    return found


@cache
def _script(code: int) -> str | None:
    for script, ranges in _SCRIPTS.items():
        for part in ranges.split():
            first, last = (int(end, 16) for end in part.split("-"))
            if first <= code <= last:
                return script
    return None


@cache
def _known(script: str) -> Mapping[str, Sequence[tuple[str, float]]]:
    """Each common word or letter with the languages of this script that have it, and what it says for each."""
    owners: dict[str, list[str]] = {}
    for code in _SHARED[script]:
        language = languages()[code]
        words = (word for word in language.words if len(word) > 1 or not word.isascii())  # a letter may be any sign
        for sign in (*words, *(f"letter {one}" for one in language.letters)):
            owners.setdefault(sign, []).append(code)
    return {word: [(code, 1 / len(codes)) for code in codes] for word, codes in owners.items()}
