"""The pages that come from the program are what the program says today; `make docs` writes them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from tools import commands, files, guarantees, house, pages
from tools.shapes import drawn, merged, shape


@pytest.mark.parametrize("name", ["house.svg", "guarantees.md"])
def test_a_page_read_from_the_code_is_up_to_date(name: str) -> None:
    assert (pages.DOCS / name).read_text(encoding="utf-8") == pages.PAGES[name](), f"docs/{name}: run make docs"


@pytest.mark.ci
@pytest.mark.slow
def test_the_pages_of_a_small_run_are_up_to_date() -> None:
    """Commands with their JSON, files with their fields: one run for both."""
    for name in ("cli.md", "files.md"):
        assert (pages.DOCS / name).read_text(encoding="utf-8") == pages.PAGES[name](), f"docs/{name}: run make docs"


def test_every_page_is_compared() -> None:
    assert set(pages.PAGES) == {"house.svg", "guarantees.md", "cli.md", "files.md"}


# ---------------------------------------------------------------- the picture


def test_every_folder_is_in_the_picture() -> None:
    house.checked_floors()
    drawn_texts = {element.text for element in ElementTree.fromstring(house.picture()).iter() if element.text}
    folders = {file.parent.name for file in (house.ROOT / "fedcar").glob("*/__init__.py")}
    assert len(folders) >= 12 and folders <= drawn_texts


def test_an_arrow_that_a_longer_way_implies_is_left_out() -> None:
    floors = {"top": 0, "middle": 1, "bottom": 2}
    found = {("top", "middle"), ("middle", "bottom"), ("top", "bottom"), ("bottom", "top"), ("top", "elsewhere")}
    assert house.reduced(found, floors) == ({("top", "middle"), ("middle", "bottom")}, {("bottom", "top")})


@pytest.mark.parametrize("inside", ["", "federation"])
def test_all_arrows_point_down(inside: str) -> None:
    floors = house.FEDERATION if inside else house.HOUSE
    numbers = {name: number for number, names in enumerate(floors) for name in names}
    prefix = f"fedcar.{inside}" if inside else "fedcar"
    down, wrong = house.reduced(house.arrows(house.ROOT / "fedcar" / inside, prefix), numbers)
    assert len(down) > 8 and wrong == set()


# ---------------------------------------------------------------- commands, files, guarantees


@pytest.mark.ci
@pytest.mark.slow
def test_every_command_says_what_json_it_prints_or_why_not() -> None:
    speaking = {words for words, command in commands.commands() if any("--json" in one.opts for one in command.params)}
    printed = set(files.small_run().printed)
    assert speaking == printed | set(commands.NOT_RUN) and not printed & set(commands.NOT_RUN)


def test_names_of_guarantees_are_read_from_both_forms() -> None:
    block = f"Says.\n\n{guarantees.HEADING}\n    one_equals_two: up to rounding,\n        both."
    block += "\n    It has no name,\n    at all."
    text = f"Says. {guarantees.HEADING} one_equals_two (up to rounding), three_is_more_than_two.\n\nfour_is_not_here."
    assert list(guarantees.entries(block)) == [
        ("one_equals_two", "up to rounding, both."),
        ("", "It has no name, at all."),
    ]
    assert [name for name, _ in guarantees.entries(text)] == ["one_equals_two", "three_is_more_than_two"]


def test_a_guarantee_without_a_test_is_told() -> None:
    suite = guarantees.tests()
    assert guarantees.of_name("same_seed_same_model", suite, house.ROOT / "fedcar" / "training" / "train.py")
    assert not guarantees.of_name("this_was_never_promised", suite, house.ROOT / "fedcar" / "training" / "train.py")


def test_a_file_that_nobody_describes_is_refused() -> None:
    folder = files.Folder("A thing", "Says.", ("collection",), {"corpus.jsonl": "documents"})
    with pytest.raises(ValueError, match=r"(dev|test|train)\.tsv is written and not described"):
        files.rows(folder, files.small_run().folder)
    folder = files.Folder("A thing", "Says.", ("collection",), {"nothing.json": "documents"})
    with pytest.raises(ValueError, match=r"nothing.json was not written"):
        files.rows(folder, files.small_run().folder)


def test_shapes_of_values_that_differ_are_merged() -> None:
    found = merged([shape({"a": 1, "b": None}), shape({"a": "x"})])
    assert drawn(found) == '{"a": number or text, "b?": null}'
    assert drawn(shape({"first": {"n": 1}, "second": {"n": 2.5}})) == '{"first | second": {"n": number}}'
    assert (
        drawn(shape({"refused": {"client-1": "why"}, "hits": []}))
        == '{"refused": {"CLIENT": text}, "hits": [any, ...]}'
    )
    assert re.fullmatch(r"\{\n(  .*\n)+\}", drawn(shape({f"field {n}": n for n in range(20)})))
