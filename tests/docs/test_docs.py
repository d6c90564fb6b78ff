"""Pages that people write: links lead somewhere, lines are short, what is named exists, what README shows works."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from support.command import REPOSITORY

from fedcar.cli.commands import commands
from fedcar.collection.collection import Collection

WRITTEN = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
NAMED = [str(page.relative_to(REPOSITORY)) for page in WRITTEN]


def outside_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as a web page of it has them."""
    headings = re.findall(r"^#+ (.*)$", outside_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", WRITTEN, ids=NAMED)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", outside_code(page.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(place), f"{page.name}: {target}"


@pytest.mark.parametrize("page", WRITTEN, ids=NAMED)
def test_lines_are_under_120_characters(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    long = [line for line in lines if len(line) >= 120 and not line.startswith("|") and "://" not in line]
    assert not long


def test_every_page_is_in_the_index() -> None:
    index = (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {str(page.relative_to(REPOSITORY / "docs")) for page in (REPOSITORY / "docs").rglob("*.md")} - {"index.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def names_in(file: Path) -> set[str]:
    """Functions, classes and methods that a module defines."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            inside = node.body if isinstance(node, ast.ClassDef) else []
            found |= {f"{node.name}.{one.name}" for one in inside if isinstance(one, ast.FunctionDef)}
    return found


def test_the_walks_name_functions_that_exist() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    steps = re.findall(r"`([\w.]+)`\s+\(`([\w/]+\.py)`\)", text)
    assert len(steps) > 40
    assert [step for step in steps if step[0] not in names_in(REPOSITORY / "fedcar" / step[1])] == []


@pytest.mark.parametrize("name", ["words.md", "architecture.md"])
def test_files_that_are_named_exist(name: str) -> None:
    text = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:\w+/)+\w+\.py)`", text))
    assert len(files) > 15 and not [file for file in files if not (REPOSITORY / "fedcar" / file).exists()]


def test_every_folder_has_a_heading() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {file.parent.name for file in (REPOSITORY / "fedcar").glob("*/__init__.py")}
    assert folders == set(re.findall(r"^### (\w+): .*\?$", text, flags=re.MULTILINE))


# ---------------------------------------------------------------- what the pages show


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def shown_commands(page: Path) -> Iterator[list[str]]:
    """The words of every fedcar command in a page's blocks, without prompt, comment and `&`."""
    for line in (line for block in blocks(page, "") for line in block.splitlines()):
        for command in line.split(" && "):
            if found := re.match(r"(?:[\w-]+\$ +)?(fedcar .*)", command.strip()):
                words = shlex.split(found[1], comments=True)
                yield [word for word in words[1:] if word not in ("&", "...")]


def test_commands_that_are_shown_are_options_of_the_program() -> None:
    """Each is parsed by click as the program would; nothing runs."""
    seen = 0
    for page in WRITTEN:
        if page.name == "cli.md":  # where options are a word
            continue
        for words in shown_commands(page):
            command: click.Command = commands
            while isinstance(command, click.Group):
                name, *words = words
                assert name in command.commands, f"{page.name}: {name}"
                command = command.commands[name]
            seen += 1
            command.make_context(command.name, words)
    assert seen > 15


def test_the_python_of_the_readme_runs(
    collection: Collection, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands; the default encoder is a tiny one, and the collection is the toy's."""
    monkeypatch.setattr("fedcar.encoder.model_files._packaged_default", lambda: encoder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    collection.write(tmp_path / "my-collection")
    (block,) = blocks(REPOSITORY / "README.md", "python")
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert (tmp_path / "my-retriever" / "manifest.json").is_file()


def test_every_entry_of_the_log_has_a_heading_that_says_what_was_decided() -> None:
    lines = (REPOSITORY / "docs" / "log.md").read_text(encoding="utf-8").splitlines()
    entries = [number for number, line in enumerate(lines) if line.startswith("**")]
    headings = [lines[number - 2] for number in entries]
    assert len(entries) > 80 and all(heading.startswith("### ") for heading in headings)
    assert len(set(headings)) == len(headings) and not [line for line in lines if line.startswith("- **")]
