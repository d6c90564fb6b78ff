"""docs/guarantees.md: every "Formal guarantees:" of a docstring, with the test that bears its name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADING = "Formal guarantees:"
NAME = re.compile(r"(?<![\w.`])[a-z][a-z0-9]*(?:_[A-Za-z0-9]+){2,}\b")
HEAD = """# Guarantees

Written by `make docs` from the docstrings under "Formal guarantees"; a test compares. Do not edit it.

A guarantee is a sentence in a docstring. A test of the same name fails where it no longer holds; several tests may
bear the name, with an ending that says of what. Where the docstring gives a name alone, the sentence here is the
test's, or the name itself.
"""


@dataclass(frozen=True)
class Guarantee:
    """One sentence of one docstring; `name` is empty where the docstring gives none."""

    name: str
    sentence: str
    file: Path
    holder: str


@dataclass(frozen=True)
class Test:
    """A test function and the first line of its docstring."""

    name: str
    file: Path
    says: str


def guarantees(package: Path = ROOT / "fedcar") -> list[Guarantee]:
    """All guarantees of the package, by file and place in it."""
    found = []
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                holder = getattr(node, "name", file.stem)
                listed = entries(ast.get_docstring(node) or "")
                found += [Guarantee(name, sentence, file.relative_to(ROOT), holder) for name, sentence in listed]
    return found


def entries(docstring: str) -> Iterator[tuple[str, str]]:
    """(name, sentence) of each guarantee; either may be empty. A list of names in running text has no sentences."""
    if HEADING not in docstring:
        return
    section = docstring.split(HEADING, 1)[1]
    first, _, rest = section.partition("\n")
    if first.strip() or not rest.startswith("    "):  # in running text: up to the paragraph's end
        text = re.split(r"\n\s*\n|Raises ", first + "\n" + rest)[0]
        yield from ((name, "") for name in NAME.findall(text))
        return
    block = re.split(r"\n(?=\S)|\n\s*\n", rest)[0]
    # an entry without a name may go on at the same depth: until its full stop
    for entry in re.split(r"(?<=[.;])\n(?=    \S)", block):
        text = " ".join(entry.split())
        names, colon, sentence = text.partition(": ")
        if colon and (named := NAME.findall(names)) and not re.sub(r"[\w,; ]", "", names):
            yield from ((name, sentence) for name in named)
        elif (named := NAME.findall(text)) and not re.sub(r"[\w,;. ]|and", "", " ".join(text.split())):
            yield from ((name, "") for name in named)
        else:
            yield "", text


def tests(folder: Path = ROOT / "tests") -> list[Test]:
    """All test functions of the suite."""
    found = []
    for file in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                says = (ast.get_docstring(node) or "").split("\n\n")[0]
                found.append(Test(node.name, file.relative_to(ROOT), " ".join(says.split())))
    return found


def of_name(name: str, suite: list[Test], near: Path) -> list[Test]:
    """The tests that bear the name of a guarantee: those nearest to its file first, then the plain name."""
    bearing = [test for test in suite if re.fullmatch(rf"test_{name}(_\w+)?", test.name)]

    def apart(test: Test) -> int:
        pairs = zip(near.with_name(f"test_{near.name}").parts[1:], test.file.parts[1:], strict=False)
        return -sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    return sorted(bearing, key=lambda test: (apart(test), len(test.name), test.file))


def page() -> str:
    """The whole page."""
    suite, lines = tests(), [HEAD]
    listed = guarantees()
    for file in sorted({guarantee.file for guarantee in listed}):
        lines += [f"## {file}", "", "| guarantee | of | what holds | test |", "|---|---|---|---|"]
        for guarantee in (one for one in listed if one.file == file):
            bearing = of_name(guarantee.name, suite, file) if guarantee.name else []
            said = guarantee.sentence or (bearing[0].says if bearing else "") or guarantee.name.replace("_", " ")
            sentence = said[0].upper() + said[1:].rstrip(".")
            where = f"[{bearing[0].file.name}](../{bearing[0].file})" if bearing else "none of this name"
            name = f"`{guarantee.name}`" if guarantee.name else "(no name)"
            lines.append(f"| {name} | `{guarantee.holder}` | {sentence.replace('|', '/')} | {where} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
