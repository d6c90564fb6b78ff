"""A folder of text and Markdown pages as documents; what is not read is named."""

from __future__ import annotations

import importlib
import os
import re
import stat
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcar.collection.collection import Document
from fedcar.collection.lines import check_identifier, text_lines
from fedcar.collection.normal_forms import composed
from fedcar.errors import FedcarError, FedcarWarning, quoted

TEXT_FILES = (".txt", ".md", ".markdown")
NAMED_AT_MOST = 10
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
ANCHOR = re.compile(r"\s*\{#[^}]*\}$")
FRONT_MATTER = re.compile(r"(---|\+\+\+)[ \t]*\n(.*?)^(?:\1|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)


@dataclass
class Pages:
    """The documents of a folder; which files were not read, how many names are hidden, what front matter became."""

    documents: list[Document] = field(default_factory=list)
    not_read: list[str] = field(default_factory=list)
    hidden: int = 0
    front_matter: int = 0
    unread_front_matter: list[str] = field(default_factory=list)


def read_pages(folder: Path) -> Pages:
    """Each text or Markdown file below the folder, hidden ones left out; the id is the path from the folder, composed.

    The title is that of the front matter, else the first heading, else the file's name. Links to folders are not
    followed. Warns (FedcarWarning) once each about files not read and front matter that is none.
    """
    pages = Pages()
    chosen: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder, onerror=_refuse_unreadable):
        here = Path(parent).relative_to(folder)
        pages.hidden += sum(name[0] == "." for name in (*folders, *names))
        shown = [name for name in sorted(folders) if name[0] != "."]
        folders[:] = [name for name in shown if not (Path(parent) / name).is_symlink()]
        pages.not_read += [f"{(here / name).as_posix()}/" for name in shown if name not in folders]
        for name in sorted(names):
            if name[0] == ".":
                continue
            if _is_page(Path(parent) / name):
                _choose(chosen, here / name, folder)
            else:
                pages.not_read.append((here / name).as_posix())
    if not chosen:
        there = f" (there: {_listed(pages.not_read)})" if pages.not_read else ""
        raise FedcarError(f"{folder}: no {', '.join(TEXT_FILES)} file in it{there}; give another folder, or a file")
    for identifier, page in sorted(chosen.items(), key=lambda pair: Path(pair[0])):
        pages.documents.append(_document(folder / page, identifier, pages))
    for message in _remarks(pages, folder):
        warnings.warn(message, FedcarWarning, stacklevel=3)
    return pages


def _is_page(path: Path) -> bool:
    """Whether the file is read; a pipe would wait for ever."""
    try:
        special = not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a link to nowhere: reading it says so
        special = False
    return path.suffix.lower() in TEXT_FILES and not special


def _choose(chosen: dict[str, Path], name: Path, folder: Path) -> None:
    identifier = composed(name.as_posix())
    if identifier in chosen:
        raise FedcarError(f"{folder / name}: looks the same as another file's name there; rename one of them")
    chosen[check_identifier(identifier, quoted(str(folder / name)))] = name


def _document(path: Path, identifier: str, pages: Pages) -> Document:
    text = "".join(line for _, line in text_lines(path)).replace("\r\n", "\n").replace("\r", "\n").strip()
    title, metadata = composed(path.stem), {}
    if path.suffix.lower() != ".txt":
        front, rest = _front_matter(text)
        if front is not None:
            pages.front_matter += 1
            text, metadata = rest, front
        elif rest != text:
            pages.unread_front_matter.append(identifier)
        heading, text = _markdown_heading(text, title, len(text) - len(rest) if front is None else 0)
        named = metadata.pop("title", "")
        title = heading if isinstance(named, list) else " ".join(str(named).split()) or heading
    return Document(identifier, title, text, metadata)


def _front_matter(text: str) -> tuple[dict[str, Any] | None, str]:
    """YAML between lines of --- or TOML between lines of +++ at the start: its texts and lists of texts, and the rest.

    Without one it is None and the text; where it cannot be read, None and what stands behind it.
    """
    if not (found := FRONT_MATTER.match(text)):
        return None, text
    rest = text[found.end() :].strip()
    try:
        values = _yaml(found[2]) if found[1] == "---" else _toml(found[2])
    except (ValueError, ImportError, RecursionError):
        return None, rest
    if not isinstance(values, dict):  # a rule, not front matter
        return ({}, rest) if values is None else (None, text)
    return {str(key): value for key, value in values.items() if _is_plain(value)}, rest


def _yaml(content: str) -> object:
    """Every scalar as the text it is written in, so that 2024 stays a title and no stays no."""
    yaml = importlib.import_module("yaml")
    try:
        return yaml.load(content, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _toml(content: str) -> object:
    return importlib.import_module("tomllib").loads(content)


def _is_plain(value: object) -> bool:
    texts = value if isinstance(value, list) else [value]
    return value not in ("", []) and all(isinstance(one, str | int | float) for one in texts)


def _markdown_heading(text: str, otherwise: str, begins: int = 0) -> tuple[str, str]:
    """Return the first heading outside code blocks and comments, and the text; without it, where it begins the text.

    Headings before `begins` are none. A heading that is a link is the words of the link.
    """
    lines, fenced = text.split("\n"), False
    place, hidden = 0, [comment.span() for comment in COMMENT.finditer(text)]
    for position, line in enumerate(lines):
        start, place = place, place + len(line) + 1
        if start < begins or any(first <= start < last for first, last in hidden):
            continue
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        heading = line.lstrip("#").strip().rstrip("#").strip()
        if not fenced and line.startswith("#") and line.lstrip("#")[:1] in (" ", "\t") and heading:
            shown = ANCHOR.sub("", LINK.sub(r"\1", heading)).strip() or heading
            return shown, "\n".join(lines[1:]).strip() if position == 0 else text
    return otherwise, text


def _remarks(pages: Pages, folder: Path) -> Iterable[str]:
    if pages.not_read:
        endings = {Path(name).suffix.lower() for name in pages.not_read}
        which = [ending[1:].upper() for ending in sorted(endings) if ending and ending not in TEXT_FILES]
        which += ["links to folders"] if any(name.endswith("/") for name in pages.not_read) else []
        which += ["pipes and devices"] if endings & set(TEXT_FILES) else []
        kinds = _listed(which, " and ") or "files without an ending"
        yield (
            f"{folder}: {len(pages.not_read)} files not read: {_listed(pages.not_read)} ({kinds} are not read; convert "
            f"them to {', '.join(TEXT_FILES)})"
        )
    if pages.unread_front_matter:
        count = len(pages.unread_front_matter)
        yield (
            f"{folder}: the front matter of {count} pages cannot be read, and stays in their text: "
            f"{_listed(pages.unread_front_matter)}"
        )


def _listed(names: list[str], last: str = ", ") -> str:
    """The first names, and how many more there are."""
    shown = names[:NAMED_AT_MOST]
    if len(names) > len(shown):
        return f"{', '.join(shown)} and {len(names) - len(shown)} more"
    return last.join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def _refuse_unreadable(error: OSError) -> None:
    raise FedcarError(f"{error.filename}: cannot be read ({error.strerror}); change its permissions or move it")
