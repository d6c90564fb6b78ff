"""What the files of fedcar say of themselves, read and not run: imports, names, docstrings.

`make given` prints what every folder gives to others, and to how many modules.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef


class Module(NamedTuple):
    """A file of fedcar: `fedcar.encoder.cache` in the folder `fedcar.encoder`, where an `__init__` is the folder."""

    name: str
    folder: str
    file: Path
    tree: ast.Module


class Import(NamedTuple):
    """`importer` imports the module `imported`, and of it the name; inside a function or not. Types count too."""

    importer: Module
    imported: str
    name: str | None
    function: str | None
    line: int


@cache
def modules() -> dict[str, Module]:
    found = {}
    for file in sorted((ROOT / "fedcar").rglob("*.py")):
        folder = ".".join(file.parent.relative_to(ROOT).parts)
        name = folder if file.stem == "__init__" else f"{folder}.{file.stem}"
        found[name] = Module(name, folder, file, ast.parse(file.read_text(encoding="utf-8")))
    return found


@cache
def imports() -> tuple[Import, ...]:
    """Every import of every file, those of other packages too; one of a name is of the module that the name is in."""
    return tuple(found for module in modules().values() for found in _imports(module, module.tree, None))


def _imports(module: Module, node: ast.AST, function: str | None) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for name in child.names:
                yield Import(module, name.name, None, function, child.lineno)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level and child.module, f"{module.name}: an import says its module in full"
            for name in child.names:
                whole = f"{child.module}.{name.name}"
                if whole in modules():
                    yield Import(module, whole, None, function, child.lineno)
                else:
                    yield Import(module, child.module, name.name, function, child.lineno)
        else:
            yield from _imports(module, child, child.name if isinstance(child, FUNCTIONS) else function)


def arrows() -> dict[str, set[str]]:
    """Module -> the modules of fedcar that it imports. Left out: the package's own `__init__`, which points to all."""
    found: dict[str, set[str]] = {name: set() for name in modules() if name != "fedcar"}
    for one in imports():
        if one.imported in found and one.importer.name in found and one.imported != one.importer.name:
            found[one.importer.name].add(one.imported)
    return found


@cache
def taken() -> dict[str, dict[str, set[str]]]:
    """Folder -> `module.name` of it -> the modules of other folders that take it, by name or through its module."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for module in modules().values():
        if module.name == "fedcar":
            continue
        for of, name in _names_taken(module):
            folder = modules()[of].folder
            if folder != module.folder:
                found[folder][f"{of}.{name}".removeprefix(f"{folder}.")].add(module.name)
    return found


def _names_taken(module: Module) -> Iterator[tuple[str, str]]:
    whole: dict[str, str] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module in modules():
            for name in node.names:
                if (of := f"{node.module}.{name.name}") in modules():
                    whole[name.asname or name.name] = of
                else:
                    yield node.module, name.name
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in whole:
            yield whole[node.value.id], node.attr


def listed(folder: str) -> dict[str, str]:
    """`module.name` -> its sentence, as the docstring of the folder's `__init__` lists them."""
    _, _, given = (ast.get_docstring(modules()[folder].tree) or "").partition("What other folders take:\n")
    entries = re.sub(r"\n {8,}", " ", given).splitlines()
    return dict(entry.strip().split(": ", 1) for entry in entries if entry.strip())


if __name__ == "__main__":
    for folder, names in sorted(taken().items()):
        print(folder)
        for name, takers in sorted(names.items()):
            print(f"    {name} ({len(takers)}): {listed(folder).get(name, 'has no line yet')}")
