"""The words of a collection by the rules of its own language: where they end, what is folded, what says nothing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain

from fedcar.collection import words as english
from fedcar.collection.languages import ENGLISH, Language, languages, recognised
from fedcar.collection.normal_forms import combining_marks, for_words

MOST_FOREIGN = 0.01  # of the letters of an English collection that are not Latin
FEWEST_LETTERS = 4  # that a word keeps when its ending goes
FIRST, BY_LANGUAGE = 1, 2  # the rules of fedcar before it told languages apart, and those since

_SIGNS = "\u3040-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3005\uac00-\ud7a3"
_SPELLED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
_ABBREVIATING = "\u0e2f\u0e46\u0eaf\u0ec6\u17d7\u17d8"  # signs for "and so on" and "once more"
_RUN = re.compile(f"(?P<signs>[{_SIGNS}])|[{_SPELLED}]")
_ACCENT = "[\u0300-\u036f]"
_ACCENTED, _GREEK = re.compile("[\u00c0-\u024f\u1e00-\u1eff]"), re.compile("[\u0370-\u03ff\u1f00-\u1fff]")
# A syllable of these begins with a consonant, or with a vowel that is written before it, and has its signs behind.
_SYLLABLE = re.compile(
    "[\u0e40-\u0e44\u0ec0-\u0ec4]?[^\u0e40-\u0e44\u0ec0-\u0ec4]"
    "(?:[\u0e30-\u0e3a\u0e45\u0e47-\u0e4e\u0eb0-\u0ebd\u0ec8-\u0ecd]"
    "|\u17d2.|[\u17b6-\u17d1\u17d3]"
    "|\u1039.|[\u102b-\u103e\u1056-\u1059]|[\u1000-\u1021](?:\u103a|\u1037\u103a))*"
)
_VARIANTS = str.maketrans(  # letters that a script writes in several ways
    {"ё": "е", "أ": "ا", "إ": "ا", "آ": "ا", "ٱ": "ا", "ى": "ي", "ی": "ي", "ئ": "ي", "ؤ": "و", "ک": "ك", "ة": "ه"}
    | {"ہ": "ه", "ۂ": "ه", "ە": "ه", "ۀ": "ه"}
    | dict.fromkeys("\u0640\u0670" + "".join(map(chr, (*range(0x64B, 0x660), *range(0x591, 0x5BE), 0x5C1, 0x5C2))), "")
    | {"\u05bf": "", "\u05c4": "", "\u05c5": "", "\u05c7": ""}
)
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})
_DOTTED = str.maketrans({"İ": "i", "I": "ı"})


@dataclass(frozen=True)
class Wording:
    """How texts are taken apart into words, for one collection: questions as its documents are.

    By the `rules` of old, those of English for every text; or by those of the `language`, which is None where the texts
    did not tell. Then all texts are folded (case, NFKC, letters that a script writes in several ways; accents where
    the language does), its commonest words say nothing to search, and its endings go. Runs of a script without spaces
    give overlapping pairs: of characters in Chinese, Japanese and Korean, of syllables in Thai, Lao, Khmer and Burmese;
    and single ones where a run has one.

    Formal guarantees:
        english_is_read_as_before: word by word, whatever is asked of it.
    """

    language: str | None = None
    rules: int = FIRST

    @classmethod
    def of(cls, texts: Sequence[str]) -> Wording:
        """The wording of the documents: the rules of old for English, and for Latin texts that do not tell."""
        found = recognised(texts)
        as_before = found.language in (None, ENGLISH) and found.latin >= 1 - MOST_FOREIGN
        return cls(found.language, FIRST if as_before else BY_LANGUAGE)

    # ---------------------------------------------------------------- what search asks

    @property
    def vocabularies(self) -> dict[str, Callable[[str], list[str]]]:
        """What takes a text apart, by the names of the indices."""
        return {"lexical": self.words, "stems": self.stems, "bigrams": self.bigrams}

    def words(self, text: str) -> list[str]:
        """The words of a text without those that say nothing."""
        if self.rules == FIRST:
            return [word for word in english.whole_words(text) if word not in english.STOP_WORDS]
        return [word for word in self._all(text) if word not in self._stop_words]

    def stems(self, text: str) -> list[str]:
        """The same without endings."""
        return english.stems(text) if self.rules == FIRST else list(map(self._stem, self.words(text)))

    def bigrams(self, text: str) -> list[str]:
        """Every two neighbouring stems as one word."""
        found = self.stems(text)
        return [f"{first} {second}" for first, second in zip(found, found[1:], strict=False)]

    def words_and_signs(self, text: str) -> list[str]:
        """All that is written: see `words.words_and_signs`; what is folded in every language is folded here."""
        return english.words_and_signs(text if self.rules == FIRST else _folded(text))

    # ---------------------------------------------------------------- by language

    @cached_property
    def _about(self) -> Language:
        return languages().get(self.language or "", Language("", ""))

    @cached_property
    def _stop_words(self) -> frozenset[str]:
        if self.language == ENGLISH:
            return english.STOP_WORDS
        return frozenset(chain.from_iterable(map(self._all, self._about.words)))

    @cached_property
    def _endings(self) -> list[str]:
        """The longest first, written as a folded text has them."""
        return sorted(set(map(self._normal, self._about.endings)), key=lambda ending: (-len(ending), ending))

    def _all(self, text: str) -> list[str]:
        parted = map(_parted, _patterns().word.findall(self._normal(text)))
        return list(chain.from_iterable(parted))

    def _normal(self, text: str) -> str:
        if self.language == "tr":
            text = text.translate(_DOTTED)
        text = _folded(text)
        if self.language == "de":
            text = text.translate(_UMLAUTS)
        stay = self._about.folds
        if stay is None or text.isascii():
            return text
        return _ACCENTED.sub(lambda letter: letter[0] if letter[0] in stay else _without_accents(letter[0]), text)

    def _stem(self, word: str) -> str:
        if self.language == ENGLISH:
            return english.stem(word)
        for ending in self._endings:
            if word.endswith(ending) and len(word) - len(ending) >= FEWEST_LETTERS:
                return word[: -len(ending)]
        return word


AS_BEFORE = Wording()


class _Patterns:
    """The words of a folded text; compiled when the first such text is read."""

    def __init__(self) -> None:
        marks = combining_marks()
        # beside a mark a joiner shapes a conjunct, elsewhere it parts words
        self.joiner = re.compile(f"(?<=[{marks}])[\u200c\u200d]+|[\u200c\u200d]+(?=[{marks}])")
        letter = rf"[^\W_{_SIGNS}{_SPELLED}]"
        signs, spelled = f"[{_SIGNS}]+", rf"(?:(?![^\w{marks}]|[{_ABBREVIATING}])[{_SPELLED}])+"
        of_several, of_one = f"{letter}[{marks}]*(?:{letter}[{marks}]*)+", f"{letter}(?!{_ACCENT})[{marks}]+"
        self.word = re.compile(f"{signs}|{spelled}|{of_several}|{of_one}")


@lru_cache(maxsize=1)
def _patterns() -> _Patterns:
    return _Patterns()


def _parted(word: str) -> list[str]:
    """The pairs of a run of a script without spaces; any other word as it is."""
    if word.isascii() or not (run := _RUN.match(word)):
        return [word]
    parts: Sequence[str] = word if run["signs"] else _SYLLABLE.findall(word)
    return ["".join(parts[place : place + 2]) for place in range(max(1, len(parts) - 1))]


def _folded(text: str) -> str:
    """What every language folds: compatibility forms, case, and the ways in which a script writes one letter.

    A Greek letter loses its accents, since capitals have none.
    """
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", for_words(text)).casefold()
    text = _patterns().joiner.sub("", unicodedata.normalize("NFKC", text).translate(_VARIANTS))
    return _GREEK.sub(lambda letter: _without_accents(letter[0]), text)


@lru_cache(maxsize=1 << 12)
def _without_accents(letter: str) -> str:
    return re.sub(_ACCENT, "", unicodedata.normalize("NFD", letter))
