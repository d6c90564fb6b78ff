"""Words, stems, bigrams and sentences: the rules, other scripts, and what no text may break."""

from __future__ import annotations

import re
from unicodedata import category, normalize

import bm25s
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toy import TOY_DOCUMENTS

from fedcar.collection.words import STOP_WORDS, bigrams, sentences, stems, whole_words, word_count, words_and_signs

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


@pytest.mark.parametrize(
    "text",
    [
        "水泵今天早上又坏了。”|请问应该怎样修理它？|请先把电源插头拔下来！|然后再打开后盖。",
        "水泵今天早上又坏了!|请问应该怎样修理它?|请先把电源插头拔下来.|然后再打开后盖",
        "ポンプが水を吸い上げない。」|電源を切って確認してください．|それから再起動してください",
        "لماذا لا تعمل المضخة اليوم؟|افصل الكهرباء ثم افتح الغطاء۔|ثم شغلها مرة أخرى",
        "पंप आज सुबह से नहीं चलता। |पहले उसकी बिजली बंद करें॥ |फिर ढक्कन को खोल दें",
        "Ինչու պոմպը այսօր չի աշխատում։ |Նախ անջատեք հոսանքը և բացեք կափարիչը",
        "ម៉ាស៊ីនបូមទឹកខូចហើយ។ |សូមបិទភ្លើងជាមុនសិន៕ |បន្ទាប់មកបើកគម្រប",
        "ရေပန့်ပျက်နေသည်။ |အရင်ဆုံးမီးပိတ်ပါ။ |ပြီးရင်အဖုံးဖွင့်ပါ",
    ],
    ids=["Chinese", "with signs of ASCII", "Japanese", "Arabic", "Hindi", "Armenian", "Khmer", "Burmese"],
)
def test_sentences_end_at_the_signs_of_their_script(text: str) -> None:
    assert cut(text.replace("|", "")) == text.split("|")


def test_lower_case_of_other_alphabets_goes_on_with_the_sentence() -> None:
    text = "Vyčistěte filtr, např. štětcem nebo suchým hadříkem."
    assert cut(text) == [text]


def test_long_texts_without_sentence_ends_are_cut_at_a_blank() -> None:
    text = "ปั๊มน้ำไม่ดูดน้ำให้ตรวจท่อดูดว่าอุดตัน " * 9
    assert len(cut(text)) > 1 and all(part.endswith(" ") for part in cut(text))
    assert "".join(cut(text)) == text


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


# Scripts with combining marks

SPELLED = {
    "Hindi": ("पानी का पंप खराब है", "पानी"),
    "Marathi, with a joiner": ("दर\u200d्या जवळ पंप", "दर्या"),
    "Tamil": ("தண்ணீர் பம்பு பழுது", "தண்ணீர்"),
    "Bengali": ("পানির পাম্প নষ্ট", "পানির"),
    "Telugu": ("క్షమించండి నీరు", "నీరు"),
    "Tibetan": ("བོད་ཡིག་ ཆུ", "ཡིག"),
    "Hebrew with points": ("שָׁלוֹם עולם", "שָׁלוֹם"),
    "Yoruba": ("àwọn ọ̀rọ̀ ní", "ọ̀rọ̀"),
    "German, decomposed": (normalize("NFD", "wie prüfe ich"), "prüfe"),
    "soft hyphen": ("Wasser\u00adkopf", "Wasserkopf"),
    "full width": ("ＰＵＭＰ broken", "pump"),
    "Persian, parted by a non-joiner": ("کار نمی\u200cکند", "کند"),
}


@pytest.mark.parametrize(("text", "word"), SPELLED.values(), ids=SPELLED)
def test_a_word_with_combining_marks_is_one_word(text: str, word: str) -> None:
    for form in ("NFC", "NFD"):
        assert stems(normalize(form, word)) == [normalize("NFC", word).lower()] == whole_words(normalize(form, word))
        assert set(stems(word)) <= set(stems(normalize(form, text)))
        assert set(whole_words(word)) <= set(whole_words(normalize(form, text)))


@pytest.mark.parametrize(
    ("text", "word"),
    [("ปั๊มน้ำเสีย", "น้ำ"), ("ຈັກສູບນ້ຳເພ", "ນ້ຳ"), ("ម៉ាស៊ីនបូមទឹកខូច", "ទឹក"), ("ရေပန့်ပျက်နေသည်", "ရေ")],
    ids=["Thai", "Lao", "Khmer", "Burmese"],
)
def test_a_word_inside_a_sentence_without_spaces_is_found(text: str, word: str) -> None:
    assert whole_words(word) and set(whole_words(word)) <= set(whole_words(text))
    assert set(stems(word)) <= set(stems(text))


@pytest.mark.parametrize("text", ["❤\ufe0f !", "\u0301", "x\u0302 a", "\u200b\u00ad", "é"])
def test_marks_alone_are_no_word(text: str) -> None:
    assert whole_words(text) == stems(text) == []


@given(st.text(alphabet=st.characters(exclude_categories=["M", "Cf"]), max_size=60))
def test_without_marks_the_words_are_those_of_the_pattern_of_bm25s(text: str) -> None:
    text = normalize("NFC", text)
    if not any("\u0e00" <= one <= "\u17ff" or "\uff01" <= one <= "\uffee" or category(one) == "Mn" for one in text):
        assert whole_words(text) == re.findall(r"\b\w\w+\b", text.lower())


def test_the_words_of_the_toy_collection_are_those_of_bm25s() -> None:
    texts = [f"{title}. {text}" for title, text, _ in TOY_DOCUMENTS.values()]
    expected = bm25s.tokenize(texts, stopwords=None, show_progress=False, return_ids=False)
    assert [whole_words(text) for text in texts] == expected


def test_a_danda_ends_a_sentence() -> None:
    assert len(cut("पानी का पंप आज खराब है। कृपया इसे अभी ठीक करें।")) == 2


def test_words_and_signs_are_all_that_is_written() -> None:
    assert words_and_signs("Don't a_b, 5 x!") == ["don", "'", "t", "a_b", ",", "5", "x", "!"]
    assert words_and_signs("पंप खराब है?") == ["पंप", "खराब", "है", "?"]
    assert words_and_signs("Größe 水泵坏 😀") == ["größe", "水泵", "泵坏", "😀"]
    assert words_and_signs("") == []
