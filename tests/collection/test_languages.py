"""Which language texts are in: every one is told from the others, and what does not tell is not guessed at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.six_languages import COLLECTIONS, whole
from support.toy import TOY_DOCUMENTS

import fedcar.collection.demo
from fedcar.collection.languages import language_of, languages, name_of, other_language, recognised


@pytest.mark.parametrize("language", languages())
def test_english_is_told_from_every_other_language(language: str) -> None:
    assert recognised([languages()[language].sample]).language == language
    assert language_of(languages()[language].sample) in (language, None)


@pytest.mark.parametrize("language", COLLECTIONS)
def test_small_collections_are_recognised(language: str) -> None:
    texts = [whole(text) for text, _ in COLLECTIONS[language]]
    found = recognised(texts)
    assert found.language == language
    assert 0 < found.texts == found.told <= len(texts)


def test_labels_do_not_tell_and_are_not_guessed_at() -> None:
    assert recognised(["card arrival", "top", "exchange rate"]).language is None
    assert recognised(["tarjeta", "de", "Zahlung", "lost"]).language is None
    assert recognised([]).language is recognised(["", "3.5 %", "😀"]).language is None


def test_a_text_of_few_words_is_not_guessed_at() -> None:
    for text in ("", "plus", "I'm", "Ωμέγα", "filter pump", "Is Von Willebrand disease inherited ?", "水"):
        assert language_of(text) is None, text
    assert language_of("Wie entkalke ich die Maschine?") == "de"
    assert language_of("水泵坏了怎么办") == "zh"


def test_the_language_of_most_texts_is_that_of_the_collection() -> None:
    german = [text for text, _ in COLLECTIONS["de"]]
    found = recognised([*german, *(text for _, text, _ in TOY_DOCUMENTS.values())])
    assert found.language == "de" and found.texts < found.told


def test_titles_without_kana_belong_to_a_japanese_collection() -> None:
    assert recognised(["洗濯機", "冷蔵庫", "掃除機の吸引力が落ちたら、ホースを調べてください。"]).language == "ja"
    assert other_language("洗濯機冷蔵庫", "ja") is None
    assert other_language("冷蔵庫に霜が付く", "zh") == "ja"


def test_a_text_is_in_another_language_only_where_that_is_plain() -> None:
    assert other_language("Wie entkalke ich die Maschine?", "en") == "de"
    assert other_language("Wie entkalke ich die Maschine?", "de") is None
    assert other_language("filter pump", "de") is None
    assert other_language("Насосы не качают", "en") == "ru"  # by the script, where the words do not tell
    assert other_language("Насосы не качают", "uk") is None


def test_no_question_of_the_demo_is_taken_for_another_language() -> None:
    lines = (Path(fedcar.collection.demo.FOLDER) / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    assert {language_of(json.loads(line)["text"]) for line in lines} <= {"en", None}


def test_languages_have_names() -> None:
    assert name_of("de") == "German" and name_of(None) == "not recognised"
