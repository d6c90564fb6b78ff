"""Strict reading of text files: what is refused is refused with one line, "file:line: what; the way out".

Files are read line by line, never whole.
"""

from __future__ import annotations

import codecs
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedcar.collection.normal_forms import is_blank
from fedcar.collection.sources import is_there, opened, way_to_utf8
from fedcar.errors import FedcarError, quoted

MAXIMUM_LINE_BYTES = 50_000_000
ONE_A_LINE = "write one object a line: jq -c '.[]' FILE > NEW.jsonl"


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line with its line end); a BOM is dropped, what is not clean UTF-8 is refused.

    Gzip is unpacked, and UTF-16 that says so by its BOM is read.
    """
    with opened(path) as file:
        for number in itertools.count(1):
            raw = file.readline(MAXIMUM_LINE_BYTES + 1)
            if not raw:
                return
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            yield number, _decoded(raw, path, number)


def windows_remarks(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield a line about a BOM and one about CRLF, where the files (checked before) have them."""
    marks = {name: _windows_marks(folder / name) for name in names if is_there(folder / name)}
    if marked := [name for name, (has_bom, _) in marks.items() if has_bom]:
        yield f"{folder}: a BOM begins {', '.join(marked)}; ignored"
    if counts := {name: count for name, (_, count) in marks.items() if count}:
        yield f"{folder}: CRLF ends {sum(counts.values())} lines of {', '.join(counts)}; read as LF"


def json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", object) for every line that is not blank."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_each_key_once)
    for number, line in text_lines(path):
        line = line.strip()
        if not line:
            continue
        where = f"{path}:{number}"
        try:
            value = decoder.decode(line)
        except (ValueError, RecursionError) as error:
            if line.startswith("["):
                raise FedcarError(f"{where}: broken JSON, for it begins a list; {ONE_A_LINE}") from error
            reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else f"{error}"
            raise FedcarError(f"{where}: broken JSON ({reason}); each line must be one whole object") from error
        if not isinstance(value, dict):
            way_out = ONE_A_LINE if isinstance(value, list) else 'write one a line, {"_id": "...", ...}'
            raise FedcarError(f"{where}: {quoted(value)} is not an object; {way_out}")
        yield where, value


def record_identifier(record: Mapping[str, Any], where: str) -> str:
    """Return the "_id" of a line: there, a string, and fit for a tab-separated line."""
    if "_id" not in record:
        raise FedcarError(f'{where}: no "_id"; every line needs one (a string, unique)')
    value = record["_id"]
    if not isinstance(value, str):
        hint = f', write "{value}"' if isinstance(value, int | float) and not isinstance(value, bool) else ""
        raise FedcarError(f'{where}: "_id" {quoted(value)} is not a string; put it in double quotes{hint}')
    return check_identifier(value, where)


def record_text(record: Mapping[str, Any], key: str, where: str) -> str:
    """Return the text under the key, "" where there is none; a title of null is none, as JSON writers put it."""
    value = record.get(key, "")
    if value is None and key == "title":
        return ""
    if not isinstance(value, str):
        raise FedcarError(f'{where}: "{key}" is {quoted(value)}, not a string; put it in double quotes or leave it out')
    return check_text(value, key, where)


def record_metadata(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the "metadata" of a line, {} where there is none."""
    value = record.get("metadata")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FedcarError(f'{where}: "metadata" is {quoted(value)}; make it an object, {{...}}, or leave it out')
    return value


def check_text(value: str, key: str, where: str) -> str:
    """Return the text; refuse a NUL and half of a surrogate pair, which no file and no tokenizer takes."""
    if "\0" in value:
        raise FedcarError(f'{where}: a NUL character in "{key}"; remove it')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FedcarError(f'{where}: half a surrogate pair in "{key}" (position {error.start}); remove it') from error
    return value


def check_identifier(value: str, where: str) -> str:
    """Return the id; refuse an empty one and one that cannot stand in a tab-separated line."""
    if is_blank(value):
        raise FedcarError(f'{where}: empty "_id"; every line needs one (a string, unique)')
    if any(character in value for character in "\t\n\r"):
        raise FedcarError(
            f'{where}: "_id" {quoted(value)} has a tab or a line end; take it out, ids stand in .tsv files'
        )
    return check_text(value, "_id", where)


def _windows_marks(path: Path) -> tuple[bool, int]:
    """Return whether the file begins with a BOM, and how many of its lines end with CRLF."""
    with opened(path) as file:
        first = file.readline()
        return first.startswith(codecs.BOM_UTF8), sum(line.endswith(b"\r\n") for line in itertools.chain([first], file))


def _decoded(raw: bytes, path: Path, number: int) -> str:
    where = f"{path}:{number}"
    if len(raw) > MAXIMUM_LINE_BYTES:
        megabytes = MAXIMUM_LINE_BYTES / 1_000_000
        raise FedcarError(f"{where}: a line over {megabytes:g} MB; cut the text into several documents")
    if b"\0" in raw:
        raise FedcarError(f"{where}: a NUL byte; remove it, or save the file as UTF-8 if it is UTF-16")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        byte, way_out = error.start + 1, way_to_utf8(raw, path)
        raise FedcarError(f"{where}: not valid UTF-8 (byte {byte} of the line); save it as UTF-8{way_out}") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{quoted(next(key for key in keys if keys.count(key) > 1))} stands twice in an object")
    return values


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"{digits} is too large a number")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
