"""Unicode at the border: what looks the same compares as the same, and nothing else does."""

from __future__ import annotations

from unicodedata import combining, normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcar.collection.collection import normalised
from fedcar.collection.normal_forms import combining_marks, composed, for_words, is_blank, visible

ALIKE = {
    "composed and not": ("prüfe", normalize("NFD", "prüfe")),
    "case": ("WO IST DAS ÖL", "wo ist das öl"),
    "case and form": ("ÖL", normalize("NFD", "öl")),
    "sharp s": ("STRASSE", "straße"),
    "zero-width space": ("fan stops", "fan\u200b stops"),
    "byte order mark inside": ("fan stops", "\ufefffan stops"),
    "soft hyphen": ("Wasserpumpe", "Wasser\u00adpumpe"),
    "direction marks": ("fan", "\u200efan\u200f"),
    "full width": ("pump 7?", "ＰＵＭＰ\u3000７？"),
    "half-width kana": ("ガス", "ｶﾞｽ"),
    "Hangul as letters": ("한국", normalize("NFD", "한국")),
}
APART = {
    "accent": ("prüfe", "prufe"),
    "square and two": ("m² of floor", "m2 of floor"),
    "circled number": ("step ①", "step 1"),
    "fraction": ("1½ turns", "11/2 turns"),
    "flags": ("\U0001f3f4\U000e0067\U000e007f", "\U0001f3f4\U000e0073\U000e007f"),
    "vowel signs": ("पंप", "पप"),
}


@pytest.mark.parametrize(("one", "other"), ALIKE.values(), ids=ALIKE)
def test_texts_that_look_the_same_count_as_equal(one: str, other: str) -> None:
    assert one != other and normalised(one) == normalised(other)


@pytest.mark.parametrize(("one", "other"), APART.values(), ids=APART)
def test_texts_that_look_different_do_not(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@given(st.text(max_size=40))
def test_a_normal_form_does_not_matter(text: str) -> None:
    assert normalised(normalize("NFC", text)) == normalised(normalize("NFD", text))
    assert normalised(normalised(text)) == normalised(text)


@given(st.text(alphabet=st.characters(max_codepoint=0x24F, exclude_characters="\u00ad"), max_size=40))
def test_composed_and_visible_latin_text_is_only_folded(text: str) -> None:
    assert normalised(text) == normalize("NFC", " ".join(text.casefold().split()))


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=40))
def test_plain_text_passes_untouched(text: str) -> None:
    assert composed(text) == visible(text) == for_words(text) == text


@pytest.mark.parametrize("text", ["", " \t", "\u200b", "\ufeff \u00ad", "\u2060\u200d"])
def test_what_cannot_be_seen_is_blank(text: str) -> None:
    assert is_blank(text)
    assert not is_blank(f"{text}a")


def test_combining_marks_hold_every_mark_but_the_invisible() -> None:
    import re

    mark = re.compile(f"[{combining_marks()}]")
    for sign in ("\u0301", "\u093f", "\u0bcd", "\u09be", "\u0e31", "\u05b8", "\U00011133"):
        assert mark.fullmatch(sign)
    assert not any(mark.match(sign) for sign in ("a", "水", "\ufe0f", "\u034f", "\u200d", "1"))
    assert all(mark.match(chr(code)) for code in range(0x300, 0x20000) if combining(chr(code)) and code != 0x34F)
