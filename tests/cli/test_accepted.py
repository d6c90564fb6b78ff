"""How it must hold up, line by line: what is accepted with one warning.

Worked off through the command line, as a user would meet it; what is refused stands in test_refusals.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from support.command import fedcar, tree
from support.places import HEADER, Place, Words

pytest_plugins = ("support.places",)


def no_train_split(place: Place) -> Words:
    place.drop_split("train", 0, 1, 2, 3)
    return place.train()


def no_dev_split(place: Place) -> Words:
    place.drop_split("dev", 4)
    return place.train()


def an_empty_document(place: Place) -> Words:
    place.append("corpus.jsonl", '{"_id": "void", "title": "", "text": "  "}')
    return place.train()


def a_question_that_is_too_long(place: Place) -> Words:
    for name in ("long", "longer"):
        place.append("queries.jsonl", json.dumps({"_id": name, "text": f"{name} " + "pump " * 1000}))
        place.append("qrels/train.tsv", f"{name}\tfan\t1")
    return place.train()


def crlf(place: Place) -> Words:
    place.rewrite("queries.jsonl", lambda content: content.replace(b"\n", b"\r\n"))
    return place.train()


def a_bom(place: Place) -> Words:
    place.rewrite("corpus.jsonl", lambda content: b"\xef\xbb\xbf" + content)
    return place.train()


def a_question_of_stop_words(place: Place) -> Words:
    return place.search("is it for the")


def a_query_of_stop_words(place: Place) -> Words:
    place.append("queries.jsonl", '{"_id": "stop", "text": "is it for the"}')
    place.append("qrels/train.tsv", "stop\tfan\t1")
    return place.train()


def a_single_document(place: Place) -> Words:
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/dev.tsv", "qrels/test.tsv"):
        place.keep(name, lambda line: "fan" in line or line == HEADER)
    return place.train()


def all_queries_on_one_document(place: Place) -> Words:
    for name in ("train", "dev", "test"):
        place.rewrite(
            f"qrels/{name}.tsv",
            lambda content: "".join(
                "\t".join([line.split("\t")[0], "fan", "1\n"]) if line != HEADER else line
                for line in content.decode().splitlines(True)
            ).encode(),
        )
    return place.train()


def k_larger_than_the_collection(place: Place) -> Words:
    return place.search("the fan is broken", "-k", 50)


def a_query_that_no_judgement_names(place: Place) -> Words:
    place.append("queries.jsonl", '{"_id": "lost", "text": "is the fan lost"}')
    return place.train()


ACCEPTED: list[tuple[Callable[[Place], Words], str]] = [
    (no_train_split, "no train split (0 judged queries in qrels/train.tsv); nothing is trained"),
    (no_dev_split, "no dev split"),
    (an_empty_document, "1 of 7 documents empty; kept, never returned"),
    (a_question_that_is_too_long, "2 texts are longer than 40 tokens"),
    (crlf, "CRLF ends"),
    (a_bom, "a BOM begins corpus.jsonl"),
    (a_question_of_stop_words, "stop words"),
    (a_query_of_stop_words, "1 of 21 queries have nothing but stop words"),
    (a_single_document, "a single document"),
    (all_queries_on_one_document, "have the same document"),
    (k_larger_than_the_collection, "k is 50, but there are 6 documents"),
    (a_query_that_no_judgement_names, "1 queries without a judgement"),
]


@pytest.mark.parametrize(("arrange", "words"), ACCEPTED, ids=lambda value: getattr(value, "__name__", ""))
def test_accepted_with_one_warning(home: Place, arrange: Callable[[Place], Words], words: str) -> None:
    arguments = arrange(home)
    before = tree(home.collection)
    result = fedcar(*arguments)
    assert result.code == 0, result.err
    (warning,) = result.warnings
    assert words in warning
    assert tree(home.collection) == before
    if arguments[0] == "train":
        found = fedcar("search", home.folder / "new", "the fan is broken", "-k", 1, "--json")
        assert (found.code, found.warnings, len(found.json["hits"])) == (0, [], 1)
