"""Careless words on the command line: each is one line that names the word, and nothing is written.

By exit code 1, or 2 where click refuses; what is wrong in files stands in test_refusals.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.command import fedcar, tree

from fedcar.cli.ending import _too_large

PLAN = ("privacy", "plan", "--questions", 900, "--documents", 6)
IMPORT = ("import", "labels.csv", "--out", "new")
TRAIN = ("train", "toy", "-o", "new")
FEDERATE = ("federate", "toy", "-o", "new", "--clients", 2)

# the words (toy, labels.csv, some files and a bundle lie in the folder) -> the exit code, and what the line says
CARELESS: list[tuple[tuple[object, ...], int, str]] = [
    # a budget that cannot be promised or worked out
    ((*PLAN, "--epsilon", "inf"), 1, "--epsilon inf --delta 1e-05: epsilon must be a finite number; without privacy"),
    ((*PLAN, "--epsilon", "nan"), 1, "epsilon is nan, must be above 0"),
    ((*PLAN, "--epsilon", "1e-300"), 1, "--epsilon 1e-300 --delta 1e-05: no noise can be worked out; give an epsilon"),
    ((*PLAN, "--epsilon", "1e300"), 1, "no noise can be worked out; give an epsilon from 0.001 to 100"),
    ((*PLAN, "--epsilon", "1000", "--method", "adapter"), 1, "no noise can be worked out; give an epsilon"),
    ((*TRAIN, "--epsilon", "inf"), 1, "epsilon must be a finite number"),
    ((*FEDERATE, "--epsilon", "inf"), 1, "epsilon must be a finite number"),
    (("run", "--epsilon", "inf", "--data-dir", "toy"), 1, "toy: no server's folder"),
    # numbers that are none, or name another option
    ((*PLAN, "--steps", 0), 1, "--steps 0: must be 1 or more"),
    ((*PLAN, "--clients", 10**18), 1, f"--clients {10**18}: must be from 1 to 900, the number of questions"),
    ((*PLAN, "--clients", 0), 1, "--clients 0: must be from 1 to 900"),
    (("privacy", "attack", "toy", "--questions", 0), 1, "--questions 0: must be 1 or more"),
    (("privacy", "attack", "toy", "--seed", -1), 1, "--seed -1: must be 0 or more"),
    (("privacy", "audit", "toy", "--questions", -1), 1, "--questions -1: must be 1 or more"),
    (("privacy", "audit", "--seed", -1), 1, "--seed -1: must be 0 or more"),
    (("bench", "train", "toy", "--epochs", ","), 2, '"," is not a list of numbers, such as 1,3'),
    # an empty word, such as a variable that is not set, is not the current folder, nor the default
    (("import", "", "--out", "new"), 2, "'FILE': nothing is given"),
    (("train", "toy", "-o", ""), 2, "'-o' / '--out': nothing is given"),
    ((*TRAIN, "--encoder", ""), 2, "'--encoder': nothing is given; name one, or leave the option out"),
    ((*TRAIN, "--cache", ""), 2, "'--cache': nothing is given"),
    (("search", "", "fan"), 2, "nothing is given"),
    (("privacy", "statement", ""), 2, "'PLACE': nothing is given"),
    (("serve", "--host", "", "--collection", "toy"), 2, "'--host': nothing is given"),
    # one thing in another's place
    (("search", "labels.csv", "fan"), 1, "labels.csv: a file, not a folder; give the folder of a fedcar retriever"),
    (("evaluate", "toy", "bundle"), 1, "toy: not a fedcar retriever (manifest.json is missing)"),
    (("evaluate", "bundle", "toy"), 1, "bundle/manifest.sha256: cannot be read"),
    (("search", "bundle", "fan", "--encoder", "toy"), 1, "--encoder toy: a bundle has its own; leave this out"),
    (("add", "bundle", "toy"), 1, "bundle/manifest.sha256: cannot be read"),
    (("update", "bundle", "toy"), 1, "bundle/manifest.sha256: cannot be read"),
    (("add", "bundle", "labels.csv"), 1, "labels.csv:1: no column for the id"),
    (("list", "toy"), 1, "toy: no retriever and no bundle; give the folder of one"),
    (("list", "bundle"), 1, "bundle/manifest.sha256: cannot be read"),
    (("info", "labels.csv"), 1, "labels.csv: cannot be read as a collection"),
    (("search", "bundle"), 2, "give a question, or a file of questions with --file"),
    (("search", "bundle", "fan", "--file", "labels.csv"), 2, "give a question, or a file of questions with --file"),
    (("search", "bundle", "--file", "nowhere.txt"), 1, "bundle/manifest.sha256: cannot be read"),
    (("privacy", "statement", "labels.csv"), 1, "labels.csv: not a privacy statement; give a retriever, a run, or the"),
    (("privacy", "statement", "latin-1.csv"), 1, "latin-1.csv: not a privacy statement"),
    (("privacy", "statement", "list.json"), 1, "list.json: not a privacy statement"),
    (("privacy", "statement", "nowhere"), 1, "nowhere: no such file or folder; give a retriever, a run, or the"),
    (("privacy", "statement", "toy"), 1, "toy/privacy.json: no statement"),
    (("join", "--file", "list.json", "--collection", "toy"), 1, "list.json: not a file of fedcar enroll"),
    (("enroll", "labels.csv", "--data-dir", "toy"), 1, "toy: no server's folder"),
    (("keygen", "--node", "a", "--out", "labels.csv"), 1, "labels.csv: File exists; check the path and its permission"),
    # tables
    (("import", "latin-1.csv", "--out", "new"), 1, "latin-1.csv:2: not valid UTF-8 (byte 4 of the line); save it as"),
    (("import", "cr.csv", "--out", "new"), 1, "cr.csv:1: lines that end in CR alone; save the file with LF or CRLF"),
    (("import", "nowhere.csv", "--out", "new"), 1, "nowhere.csv: cannot be read (No such file or directory)"),
    ((*IMPORT, "--queries", "nowhere"), 1, "nowhere: no such file; check the path"),
    ((*IMPORT, "--text-column", "text", "--label-column", "text"), 1, "--text-column and --label-column are the same"),
]  # fmt: skip


@pytest.fixture
def folder(toy_collection: Path, tmp_path: Path) -> Path:
    (tmp_path / "toy").symlink_to(toy_collection)
    (tmp_path / "labels.csv").write_text("text,label\nhello,a\nworld,b\n")
    (tmp_path / "latin-1.csv").write_bytes("text,label\ncafé,a\n".encode("latin-1"))
    (tmp_path / "cr.csv").write_bytes(b"text,label\rhello,a\rworld,b\r")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text(
        json.dumps({"kind": "bundle", "format_version": 1, "sha256": {}})
    )
    return tmp_path


@pytest.mark.parametrize(("words", "code", "says"), CARELESS, ids=[" ".join(map(str, one[0])) for one in CARELESS])
def test_careless_words_are_one_line(folder: Path, words: tuple[object, ...], code: int, says: str) -> None:
    before = tree(folder)
    result = fedcar(*words, cwd=folder)
    assert (result.code, result.out) == (code, ""), result
    (line,) = result.err.splitlines()
    assert line.startswith("error: ") and says in line, line
    assert "; " in line or "must be" in line or "--help" in line, f"no way out: {line}"
    assert tree(folder) == before


def test_memory_that_ran_out_is_one_line_and_other_errors_are_not_hidden() -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
                  RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")):  # fmt: skip
        assert _too_large(error).startswith("out of memory; ")
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        _too_large(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_pipe_among_text_files_is_left_out(tmp_path: Path) -> None:
    """It would be waited for."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Something to find.")
    os.mkfifo(tmp_path / "texts" / "pipe.txt")
    assert fedcar("import", tmp_path / "texts", "--out", tmp_path / "new", "--json").json["documents"] == 1
