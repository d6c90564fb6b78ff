"""The words of a collection by the rules of its language; English ones as they always were."""

from __future__ import annotations

import json
import re
from pathlib import Path

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.six_languages import COLLECTIONS, whole
from support.toy import texts_of_the_toy

import fedcar.collection.demo
from fedcar.collection import words
from fedcar.collection.languages import languages
from fedcar.collection.wording import AS_BEFORE, BY_LANGUAGE, FIRST, Wording
from fedcar.retriever.lexical import LexicalIndex


def of(language: str | None) -> Wording:
    return Wording(language, BY_LANGUAGE)


# -------------------------------------------------------------------- English


@settings(deadline=None)
@given(st.text(max_size=80))
def test_english_is_read_as_before(text: str) -> None:
    assert AS_BEFORE.stems(text) == words.stems(text) and AS_BEFORE.bigrams(text) == words.bigrams(text)
    assert AS_BEFORE.words(text) == [word for word in words.whole_words(text) if word not in words.STOP_WORDS]
    assert AS_BEFORE.words_and_signs(text) == words.words_and_signs(text)


def test_english_collections_and_labels_are_read_by_the_rules_of_old() -> None:
    lines = (Path(fedcar.collection.demo.FOLDER) / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    assert Wording.of([json.loads(line)["text"] for line in lines]) == Wording("en", FIRST)
    assert Wording.of(texts_of_the_toy()).rules == FIRST
    assert Wording.of(["spam", "ham"]) == Wording(None, FIRST)


def test_english_among_other_scripts_has_its_own_stems_and_their_pairs() -> None:
    texts = ["The pumps are cleaned with a dry cloth. 水泵坏了", "This is what you do: clean the fans."]
    wording = Wording.of(texts)
    assert wording == Wording("en", BY_LANGUAGE)
    assert wording.stems(texts[0]) == ["pump", "clean", "dry", "cloth", "水泵", "泵坏", "坏了"]


# -------------------------------------------------------------------- what is folded, and where


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("de", "Straße Gerät über", "STRASSE Geraet ueber"),
        ("fr", "L'ÉCOLE réparée", "l’ecole reparee"),
        ("es", "la presión", "la presion"),
        ("tr", "IŞIK İSTANBUL", "ışık istanbul"),
        ("el", "ΑΝΤΛΙΑ ΝΕΡΟΥ", "αντλία νερού"),
        ("ru", "Ещё трёх", "еще трех"),
        ("ar", "شغِّل المضخّة", "شغل المضخه"),
        ("fa", "کتاب علی", "كتاب علي"),
        ("he", "שָׁלוֹם", "שלום"),
        ("ja", "ﾎﾟﾝﾌﾟ ＡＢＣ", "ポンプ abc"),
        ("ko", "펌프", "\u1111\u1165\u11b7\u1111\u1173"),
        (None, "ﬁlter ②", "filter 2"),
    ],
)
def test_what_is_written_in_two_ways_is_one_word(language: str | None, one: str, other: str) -> None:
    assert of(language).words(one) == of(language).words(other)
    assert of(language).words(one) or language is None


def test_accents_stay_where_they_make_another_letter() -> None:
    assert of("es").words("año ano") == ["año", "ano"]
    assert of("sv").words("får far") == ["får", "far"]
    assert of("ja").words("ガラス カラス")[0] != of("ja").words("カラス")[0]


@pytest.mark.parametrize(
    ("language", "forms"),
    [
        ("de", "Pumpe Pumpen"),
        ("fr", "réparation réparations réparer réparée"),
        ("es", "limpiar limpiando limpiado"),
        ("pt", "instalação instalações instalar"),
        ("it", "lavorare lavorati lavorata"),
        ("sv", "pumpen pumparna pumpar"),
        ("ru", "насосы насосами насоса"),
    ],
)
def test_the_forms_of_a_word_have_one_stem_in_its_language(language: str, forms: str) -> None:
    assert len(set(of(language).stems(forms))) == 1, of(language).stems(forms)


def test_english_endings_and_stop_words_are_those_of_english_alone() -> None:
    assert of("de").stems("Was will die Station") == ["will", "station"]
    assert of("pl").stems("serwisation") == ["serwisation"] != words.stems("serwisation")
    assert of(None).words("the of") == ["the", "of"]


# -------------------------------------------------------------------- scripts without spaces


def test_a_run_gives_pairs_and_a_single_one_where_it_has_one() -> None:
    assert of("zh").words("水泵坏了，水") == ["水泵", "泵坏", "坏了", "水"]
    assert of("ko").words("펌프가") == ["펌프", "프가"]
    assert of("ja").words("ポンプ・水") == ["ポン", "ンプ", "水"]


@pytest.mark.parametrize(
    ("language", "text", "word"),
    [
        ("th", "ปั๊มน้ำเสีย", "น้ำ"),
        ("lo", "ຈັກສູບນ້ຳເພ", "ຈັກ"),
        ("km", "ម៉ាស៊ីនបូមទឹកខូច", "ទឹក"),
        ("my", "ရေပန့်ပျက်နေသည်", "ပျက်နေ"),
    ],
)
def test_syllables_keep_their_signs(language: str, text: str, word: str) -> None:
    assert any(of(language).words(word)[0] in pair for pair in of(language).words(text))
    assert not any(re.match("[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]", pair) for pair in of(language).words(text))


@settings(deadline=None)
@given(st.sampled_from([None, *languages()]), st.text(max_size=60))
def test_every_text_gives_words_and_the_same_ones_twice(language: str | None, text: str) -> None:
    found = of(language).words(text)
    assert all(found) and found == of(language).words(text)
    assert len(of(language).stems(text)) == len(found)


# -------------------------------------------------------------------- against bm25s


def expected_success(scores: np.ndarray, answers: list[int]) -> float:
    """How often the answer is first, ties broken by chance; an answer of score 0 was not found."""
    best = scores == scores.max(axis=1, keepdims=True)
    found = [row[answer] > 0 and first[answer] for row, first, answer in zip(scores, best, answers, strict=True)]
    return float(np.mean(np.array(found) / best.sum(axis=1)))


@pytest.mark.parametrize("language", COLLECTIONS)
def test_bm25_is_at_least_as_good_as_that_of_bm25s_with_a_segmenter(language: str) -> None:
    documents = [text for text, _ in COLLECTIONS[language]]
    questions = [(question, row) for row, (_, asked) in enumerate(COLLECTIONS[language]) for question in asked]
    answers = [row for _, row in questions]

    def segmented(text: str) -> list[str]:
        return re.findall(r"\w[^\s|]*", text) if "|" in text else re.findall(r"\b\w\w+\b", text.lower())

    theirs = bm25s.BM25()
    theirs.index(list(map(segmented, documents)), show_progress=False)
    reference = np.array([theirs.get_scores(segmented(question)) for question, _ in questions])
    wording = Wording.of(list(map(whole, documents)))
    asked = [whole(question) for question, _ in questions]
    for name in ("lexical", "stems"):
        ours = LexicalIndex.build(list(map(whole, documents)), wording.vocabularies[name]).scores(asked)
        assert expected_success(ours, answers) >= expected_success(reference, answers), name
    before = LexicalIndex.build(list(map(whole, documents))).scores(asked)
    assert expected_success(ours, answers) >= expected_success(before, answers)
