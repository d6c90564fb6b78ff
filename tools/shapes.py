"""What a file or an answer consists of, without its values: JSON as a shape, tensors by name and type."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# mappings whose keys are data, not fields: by their field, and what a key is
KEYED = {
    "packages": ("PACKAGE", "text"),
    "client_seconds": ("CLIENT", "number"),
    "refused": ("CLIENT", "text"),
    "failed": ("CLIENT", "text"),
    "selection": ("CANDIDATE", "number"),
    "heads": ("CLIENT", "any"),
    "sha256": ("FILE", "text"),
    "failures": ("CLIENT", "any"),
    "left_out": ("PEER", "text"),
    "metadata": ("NAME", "any"),
    "public": ("NAME", "text"),
    "checklist": ("POINT", "text"),
}
Shape = Any  # "text", {"field": Shape} or [Shape]: JSON has no narrower type
WIDTH = 116
PLAIN = {bool: "bool", int: "number", float: "number", str: "text", type(None): "null"}


def shape(value: object, field: str = "") -> Shape:  # noqa: ANN401
    """A value's shape: a word for a plain value, a dict for fields (or for keys that are data), a list of one."""
    if isinstance(value, Mapping):
        if field in KEYED:
            key, usual = KEYED[field]
            return {key: merged(shape(one) for one in value.values()) if value else usual}
        fields = {name: shape(one, name) for name, one in value.items()}
        shapes = {json.dumps(one) for one in fields.values()}
        if len(fields) > 1 and len(shapes) == 1 and isinstance(next(iter(fields.values())), dict):
            return {" | ".join(fields): next(iter(fields.values()))}
        return fields
    if isinstance(value, list | tuple):
        return [merged(shape(one) for one in value)]
    return PLAIN[type(value)]


def merged(shapes: Iterable[Shape]) -> Shape:  # noqa: ANN401
    """One shape for several values: fields that some lack get a question mark."""
    different = list({json.dumps(one): one for one in shapes}.values())
    if not different:
        return "any"
    if len(different) == 1:
        return different[0]
    if all(isinstance(one, dict) for one in different):
        names = dict.fromkeys(name.rstrip("?") for one in different for name in one)
        fields = {}
        for name in names:
            there = [one[known] for one in different for known in (name, f"{name}?") if known in one]
            optional = len(there) < len(different) or any(f"{name}?" in one for one in different)
            fields[f"{name}?" if optional else name] = merged(there)
        return fields
    if all(isinstance(one, list) for one in different):
        return [merged(one[0] for one in different if one[0] != "any")]
    words = {word for one in different for word in drawn(one).split(" or ")}
    return " or ".join(sorted(words, key=lambda word: (word == "null", word)))


def drawn(found: Shape, indent: int = 0) -> str:
    """A shape as text that looks like JSON; on one line where that has room."""
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        inner = drawn(found[0], indent)
        return f"[{inner}, ...]"
    one_line = "{" + ", ".join(f'"{name}": {drawn(one)}' for name, one in found.items()) + "}"
    if "\n" not in one_line and len(one_line) + indent <= WIDTH - 20:
        return one_line
    space = " " * (indent + 2)
    lines, line = [], space
    for place, (name, one) in enumerate(found.items()):
        piece = f'"{name}": {drawn(one, indent + 2)}' + ("," if place < len(found) - 1 else "")
        if "\n" in piece or len(line) + len(piece) + 1 > WIDTH:
            lines.append(line.rstrip())
            line = space
        line += piece + " "
        if "\n" in piece:
            lines.append(line.rstrip())
            line = space
    lines.append(line.rstrip())
    return "{\n" + "\n".join(part for part in lines if part.strip()) + "\n" + " " * indent + "}"


def fields(files: Sequence[Path]) -> str:
    """What stands in files of one kind, in a few words, for a table; a question mark where only some have it."""
    kind = files[0].suffix
    if kind == ".safetensors":
        found = [tensors(file) for file in files]
        every = sorted(set().union(*map(set, found)))
        return ", ".join(
            f"`{name}{'' if all((name, dtype) in one for one in found) else '?'}` {dtype}" for name, dtype in every
        )
    if kind in (".json", ".head"):
        return named(merged(shape(json.loads(file.read_text(encoding="utf-8")), file.name) for file in files))
    if kind == ".jsonl":
        lines = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        return "each line: " + named(merged(shape(line) for line in lines))
    if kind == ".tsv":
        return "columns " + ", ".join(f"`{name}`" for name in files[0].read_text("utf-8").splitlines()[0].split("\t"))
    return ""


def named(found: Shape) -> str:
    """The fields of a shape, those inside a field in brackets after it."""
    if isinstance(found, list):
        return "a list of " + named(found[0])
    if isinstance(found, str):
        return found
    parts = []
    for name, one in found.items():
        inner = one[0] if isinstance(one, list) else one
        inside = f" ({', '.join(inner)})" if isinstance(inner, dict) and inner else ""
        parts.append(f"`{name}`{inside}")
    return ", ".join(parts).replace("|", "/")


def tensors(file: Path) -> list[tuple[str, str]]:
    """Names and types of the tensors of a safetensors file; endings that are clients' names are told as CLIENT."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return sorted(
        {(name.split("@")[0] + ("@CLIENT" if "@" in name else ""), about["dtype"]) for name, about in header.items()}
    )
