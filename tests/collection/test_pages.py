"""A folder of pages: titles, front matter, and the names of what is not read."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from unicodedata import normalize

import pytest

from fedcar.collection.collection import Document
from fedcar.collection.pages import Pages, read_pages
from fedcar.errors import FedcarError, FedcarWarning


def folder(place: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return place


def read(place: Path, files: dict[str, str | bytes]) -> Pages:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_pages(folder(place, files))


TITLES: dict[str, tuple[str, str]] = {
    "front matter with a comment": ("---\n# made by a tool\ntitle: Fan guide\n---\n\n# Fan\n\nClean it.", "Fan guide"),
    "a remark behind the title": ("---\ntitle: Fan guide  # short\n---\nClean it.", "Fan guide"),
    "a quoted title": ('---\ntitle: "Fan: a guide"\n---\nClean it.', "Fan: a guide"),
    "a title over lines": ("---\ntitle: >\n  Fan\n  guide\n---\nClean it.", "Fan guide"),
    "a title that looks like a number": ("---\ntitle: 2024\n---\nClean it.", "2024"),
    "a title that looks like a truth": ("---\ntitle: no\n---\nClean it.", "no"),
    "front matter without a title": ("---\n# a remark\ntags: [a]\n---\n# Fan\n\nClean it.", "Fan"),
    "empty front matter": ("---\n---\n# Fan\n\nClean it.", "Fan"),
    "front matter alone": ("---\n# a remark\n---\nClean it.", "page"),
    "a rule, not front matter": ("---\nClean it.\n---\n# Fan", "Fan"),
    "a heading inside a comment": ("<!--\n# made by a tool\n-->\n# Fan\n\nClean it.", "Fan"),
    "a comment without an end": ("<!-- draft\n# made by a tool\n", "page"),
    "a heading that is a link": ("# [Fan guide](fan.md)\n\nClean it.", "Fan guide"),
    "a heading with an image and an anchor": ("# ![](x.png) Fan [guide](y) {#fan}\n", "Fan guide"),
    "CR alone": ("# Fan\rClean it.", "Fan"),
}


@pytest.mark.parametrize(("content", "title"), TITLES.values(), ids=TITLES)
def test_the_title_is_what_the_page_says_it_is(tmp_path: Path, content: str, title: str) -> None:
    assert [page.title for page in read(tmp_path, {"page.md": content}).documents] == [title]


def test_front_matter_becomes_title_and_metadata_and_is_counted(tmp_path: Path) -> None:
    content = "---\ntitle: Fan\ntags: [air, noise]\ndate: 2024-05-01\ndeep: {a: 1}\nempty:\n---\n\nClean it.\n"
    pages = read(tmp_path, {"fan.md": content, "pump.md": "# Pump\n\nPrime it."})
    assert pages.documents == [
        Document("fan.md", "Fan", "Clean it.", {"tags": ["air", "noise"], "date": "2024-05-01"}),
        Document("pump.md", "Pump", "Prime it."),
    ]
    assert pages.front_matter == 1


@pytest.mark.skipif(not sys.version_info >= (3, 11), reason="tomllib is of Python 3.11")
def test_toml_front_matter_is_read_too(tmp_path: Path) -> None:
    pages = read(tmp_path, {"fan.md": '+++\n# made by a tool\ntitle = "Fan"\nweight = 3\n+++\nClean it.'})
    assert pages.documents == [Document("fan.md", "Fan", "Clean it.", {"weight": 3})]


def test_front_matter_that_cannot_be_read_stays_and_is_named(tmp_path: Path) -> None:
    content = "---\n# a remark\ntitle: [Fan\n---\n# Heading\n\nClean it."
    with pytest.warns(FedcarWarning, match=r"front matter of 1 pages cannot be read, .* text: fan\.md"):
        pages = read_pages(folder(tmp_path, {"fan.md": content}))
    assert pages.documents == [Document("fan.md", "Heading", content)]


def test_files_that_are_not_read_are_counted_and_named(tmp_path: Path) -> None:
    place = folder(tmp_path / "site", {"fan.md": "x", "lamp.html": "y", "deep/pump.pdf": b"z", "LICENSE": "w"})
    (tmp_path / "elsewhere").mkdir()
    (place / "more").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(place / "pipe.md")
    folder(place, {".git/config": "", ".hidden.md": "x"})
    with pytest.warns(FedcarWarning) as caught:
        pages = read_pages(place)
    (message,) = [str(one.message) for one in caught]
    assert message == (
        f"{place}: 5 files not read: more/, LICENSE, lamp.html, pipe.md, deep/pump.pdf (HTML, PDF, links to folders "
        "and pipes and devices are not read; convert them to .txt, .md, .markdown)"
    )
    assert pages.not_read == ["more/", "LICENSE", "lamp.html", "pipe.md", "deep/pump.pdf"] and pages.hidden == 2


def test_only_the_first_names_are_listed(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {f"{number:02}.pdf": b"" for number in range(30)}
    with pytest.warns(FedcarWarning, match=r"30 files not read: 00\.pdf, .*, 09\.pdf and 20 more \(PDF are not read"):
        read_pages(folder(tmp_path, {"a.md": "x", **files}))
    (tmp_path / "a.md").unlink()
    with pytest.raises(FedcarError, match=r"no \.txt, .* file in it \(there: 00\.pdf, .* 20 more\); give another"):
        read_pages(tmp_path)


def test_the_id_of_a_page_is_composed(tmp_path: Path) -> None:
    pages = read(tmp_path, {normalize("NFD", "Prüfung.md"): "x", normalize("NFD", "Öl/Üb.txt"): "y"})
    assert [(page.id, page.title) for page in pages.documents] == [("Prüfung.md", "Prüfung"), ("Öl/Üb.txt", "Üb")]


def test_two_names_that_look_the_same_are_refused(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {normalize(form, "Prüfung.md"): "x" for form in ("NFC", "NFD")}
    if len(os.listdir(folder(tmp_path, files))) == 2:  # a Mac has but one
        with pytest.raises(FedcarError, match="looks the same as another file's name there; rename one"):
            read_pages(tmp_path)
