"""The house holds: floors, arrows, names and promises, read from the files alone (docs/architecture.md)."""

import ast
import re
import sys
from collections import Counter, defaultdict
from graphlib import CycleError, TopologicalSorter

import pytest
from support.house import FUNCTIONS, ROOT, arrows, imports, listed, modules, taken

from tools.guarantees import guarantees, of_name
from tools.guarantees import tests as all_tests  # pytest takes a function whose name begins so for a test

FLOORS = (
    {"errors", "version"},
    {"common", "privacy"},
    {"collection"},
    {"encoder", "head"},
    {"retriever"},
    {"evaluation", "export"},
    {"training"},
    {"federation", "bench"},
    {"cli"},
)
FEDERATION = ({"rounds", "wire", "ledgers"}, {"sums"}, {"remote", "device"}, {"job"}, {"deploy"}, {"simulate"})

# fedcar imported inside a function: what a contestant of the bench takes into memory is measured, so that none imports
# what another one needs
INSIDE_FUNCTIONS = {("fedcar.bench.contestants", name) for name in ("of_fedcar", "frozen", "sentence_transformer")}

MOST_LINES = 500


def below(floors, of, name):
    """Whether `of` may import `name`: its own, or something on a lower floor."""
    heights = {part: height for height, parts in enumerate(floors) for part in parts}
    return of == name or heights[name] < heights[of]


def test_every_arrow_points_down():
    parts = {name.split(".")[1] for name in arrows()}
    assert parts == set().union(*FLOORS), "a folder has a floor, a floor no folder that is gone"
    up = []
    for importer, imported in [(importer, one) for importer, all_of in arrows().items() for one in all_of]:
        of, name = importer.split("."), imported.split(".")
        if not below(FLOORS, of[1], name[1]):
            up.append(f"{importer} -> {imported}")
        elif of[1] == name[1] == "federation" and len(of) > 2 and not below(FEDERATION, of[2], name[2]):
            up.append(f"{importer} -> {imported}")
    assert up == []


def test_no_module_imports_itself_by_whatever_way_round():
    try:
        order = list(TopologicalSorter(arrows()).static_order())
    except CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))
    assert len(order) == len(modules()) - 1


def test_neighbours_in_a_folder_form_no_circle():
    """Of two neighbours, modules or folders, at most one needs the other: a folder can be read from the bottom up."""
    for folder in {module.folder for module in modules().values()}:
        inside = defaultdict(set)
        for importer, all_of in arrows().items():
            for imported in all_of:
                of, name = neighbour(importer, folder), neighbour(imported, folder)
                if of and name and of != name:
                    inside[of].add(name)
        try:
            TopologicalSorter(inside).prepare()
        except CycleError as circle:
            pytest.fail(f"{folder}: {' -> '.join(circle.args[1])}")


def neighbour(module, folder):
    """What of the folder a module is or lies in; nothing where it lies outside."""
    return module.removeprefix(f"{folder}.").split(".")[0] if module.startswith(f"{folder}.") else ""


def test_flower_has_one_importer():
    assert {one.importer.name for one in imports() if one.imported.split(".")[0] == "flwr"} == {
        "fedcar.federation.wire.flower"
    }


def test_privacy_imports_nothing_else_of_fedcar():
    of_privacy = {one.imported for one in imports() if one.importer.folder == "fedcar.privacy"}
    assert {name for name in of_privacy if name.startswith("fedcar") and not name.startswith("fedcar.privacy")} == set()


def test_fedcar_is_imported_inside_functions_only_by_the_command_line():
    inside = {
        (one.importer.name, one.function)
        for one in imports()
        if one.function and one.imported.split(".")[0] == "fedcar" and one.importer.folder != "fedcar.cli"
    }
    assert inside == INSIDE_FUNCTIONS


def test_the_command_line_waits_with_heavy_imports():
    """`fedcar --help` is quick because cli/ imports at its top nothing but itself and what needs no library."""
    light = {"fedcar.cli", "fedcar.errors", "fedcar.version", "fedcar.privacy"}
    assert all(modules()[name].file for name in light)
    typing = {
        node.lineno
        for module in modules().values()
        if module.folder == "fedcar.cli"
        for block in ast.walk(module.tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
    }
    heavy = []
    for one in imports():
        if one.importer.folder == "fedcar.cli" and not one.function and one.line not in typing:
            package = one.imported.split(".")[0]
            if package == "fedcar":
                if not any(one.imported == name or one.imported.startswith(f"{name}.") for name in light):
                    heavy.append(f"{one.importer.name} -> {one.imported}")
            elif package not in {*sys.stdlib_module_names, "click", "rich"}:
                heavy.append(f"{one.importer.name} -> {one.imported}")
    assert heavy == []


def test_every_guarantee_has_a_test_of_the_same_name():
    suite, named = all_tests(), [one for one in guarantees() if one.name]
    assert len({one.name for one in named}) > 60
    assert [f"{one.file}: {one.name}" for one in named if not of_name(one.name, suite, one.file)] == []


def test_every_folder_lists_what_others_take():
    folders = {module.folder for module in modules().values()}
    for folder in sorted(folders):
        given = listed(folder)
        assert set(taken()[folder]) - set(given) == set(), f"{folder}/__init__.py: others take it, so it has a line"
        assert set(given) - set(taken()[folder]) == set(), f"{folder}/__init__.py: nobody takes it; the line can go"
        assert all(sentence.endswith(".") and len(sentence.split()) > 2 for sentence in given.values()), folder


def test_collections_can_be_made_in_python():
    from fedcar.collection import Collection, Document, Judged, Query, __all__

    assert __all__ == sorted(one.__name__ for one in (Collection, Document, Judged, Query))


def test_no_private_name_crosses_folders():
    crossing = [
        f"{one.importer.name}: {one.imported}.{one.name}"
        for one in imports()
        if one.name and is_private(one.name) and modules()[one.imported].folder != one.importer.folder
        if one.imported in modules()
    ]
    assert crossing == []
    made = defaultdict(set)  # private name -> folders that have one
    for module in modules().values():
        for node in ast.walk(module.tree):
            name = {ast.Attribute: "attr", ast.Name: "id", ast.ClassDef: "name", ast.FunctionDef: "name"}.get(
                type(node)
            )
            if name and is_private(getattr(node, name)) and not isinstance(getattr(node, "ctx", None), ast.Load):
                made[getattr(node, name)].add(module.folder)
    reached = [
        f"{module.name}:{node.lineno}: {ast.unparse(node)}"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and is_private(node.attr)
        if made[node.attr] and module.folder not in made[node.attr]
    ]
    assert reached == []


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_files_are_short():
    files = [file for folder in ("fedcar", "tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    lines = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert len(lines) > 200 and {file: count for file, count in lines.items() if count > MOST_LINES} == {}


# public, and used by nothing of fedcar itself: for programs that build on it
FOR_OTHER_PROGRAMS = {
    "fedcar.collection.importing": {"import_collection"},  # `imported` without the counts, columns by name
    "fedcar.federation.sums.additive": {"check_statistics", "write_statistics", "read_statistics"},
    "fedcar.privacy.clip": {"cosine_head", "cosine_query_gradients"},
    "fedcar.privacy.correlated_noise": {"CorrelatedNoise"},  # for what its `fixed_order_release` describes
}


def test_every_public_name_is_used_or_meant_for_other_programs():
    used, made = Counter(), defaultdict(set)
    for module in modules().values():
        for node in module.tree.body:
            if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
                made[module.name].add(node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                made[module.name] |= {
                    one.id for all_of in targets for one in ast.walk(all_of) if isinstance(one, ast.Name)
                }
        said = {id(node.value) for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used[node.id] += 1
            elif isinstance(node, ast.Attribute):
                used[node.attr] += 1
            elif isinstance(node, ast.alias):
                used[node.name] += 1
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
                used.update(re.findall(r"\w+", node.value))
    unused = {
        module: left
        for module, names in made.items()
        if (left := {name for name in names if not used[name] and not name.startswith("_")})
    }
    assert unused == FOR_OTHER_PROGRAMS
