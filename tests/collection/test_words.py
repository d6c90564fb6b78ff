"""Words, stems, bigrams and sentences: the rules, other scripts, and what no text may break."""

from __future__ import annotations

import bm25s
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcar.collection.words import STOP_WORDS, bigrams, sentences, stems, word_count

TEXT = "Prime the pump with water. Then start it slowly (at half speed)! Does it leak? Tighten the clamp of the hose."


def cut(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


def test_the_stop_words_are_those_of_bm25s() -> None:
    from bm25s.stopwords import STOPWORDS_EN

    assert frozenset(STOPWORDS_EN) == STOP_WORDS


@pytest.mark.parametrize(
    "forms",
    [
        "pump pumps pumped pumping",
        "treat treats treated treatment treatments",
        "battery batteries",
        "connect connected connecting connection connections connective",
        "stop stops",
        "glass glasses",
        "quick quickly quickness",
        "run runs",
        "plan plans",
        "star stars",
    ],
)
def test_the_forms_of_a_word_have_one_stem(forms: str) -> None:
    assert len(set(stems(forms))) == 1, stems(forms)


@pytest.mark.parametrize(
    "word", ["virus", "basis", "gas", "ion", "red", "c3po", "e12", "2s", "sp100s", "fiancée", "straße"]
)
def test_short_words_numbers_and_words_outside_ascii_stay(word: str) -> None:
    assert stems(word) == [word]


def test_stop_words_single_letters_and_signs_are_left_out() -> None:
    assert stems("The pump of a B-52, is it: no? ...") == ["pump", "52"]
    assert stems("") == stems("the of and") == stems("?! - …") == []


def test_scripts_without_spaces_give_pairs_of_characters() -> None:
    assert stems("水泵坏了") == ["水泵", "泵坏", "坏了"]
    assert stems("ポンプpumps水") == ["ポン", "ンプ", "pump", "水"]
    assert stems("насосы ремонт") == ["насосы", "ремонт"]


def test_bigrams_are_neighbouring_stems() -> None:
    assert bigrams("Tighten the clamps of hoses") == ["tighten clamp", "clamp hose"]
    assert bigrams("hose") == bigrams("") == []


def test_sentences_end_where_a_reader_would_end_them() -> None:
    assert cut(TEXT) == [
        "Prime the pump with water. ",
        "Then start it slowly (at half speed)! Does it leak? ",  # under four words: joins the one before
        "Tighten the clamp of the hose.",
    ]
    assert cut("It costs 2.5 euro, e.g. for small ones.") == ["It costs 2.5 euro, e.g. for small ones."]
    assert cut("The first line is here\nand the second line\n\nis the third of all") == [
        "The first line is here\n",
        "and the second line\n\n",
        "is the third of all",
    ]
    assert cut("Не работает насос в подвале. Как его починить сегодня?") == [
        "Не работает насос в подвале. ",
        "Как его починить сегодня?",
    ]
    assert cut("水泵今天早上坏了。请问应该怎样修理它？") == ["水泵今天早上坏了。", "请问应该怎样修理它？"]


def test_long_sentences_are_cut_every_sixty_words() -> None:
    assert [len(part.split()) for part in cut("word " * 150)] == [60, 60, 30]
    assert [len(part.split()) for part in cut("word " * 90)] == [90]
    assert [len(part) for part in cut("水" * 300)] == [120, 120, 60]


def test_an_empty_text_has_one_empty_sentence() -> None:
    assert sentences("") == [(0, 0)]
    assert cut(" \n ") == [" \n "]


@given(st.text(alphabet="ab .!?\n\"'(A1é。水-", max_size=400) | st.text(max_size=60))
def test_sentences_are_in_order_and_hold_every_word(text: str) -> None:
    spans = sentences(text)
    assert spans and all(start <= end for start, end in spans)
    assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:], strict=False))
    assert "".join("".join(cut(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "words"), [("", 0), ("a fan", 2), (" a\nfan  ", 2), ("水泵坏了", 2), ("fan 水泵坏", 3)]
)
def test_words_are_counted_in_every_script(text: str, words: int) -> None:
    assert word_count(text) == words


def test_bm25s_sees_the_same_words_but_for_their_endings() -> None:
    (found,) = bm25s.tokenize([TEXT], stopwords="en", show_progress=False, return_ids=False)
    assert [word[:3] for word in found] == [stem[:3] for stem in stems(TEXT)]
