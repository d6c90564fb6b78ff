"""`fedcar import` as it is typed: what it says, and names that a shell or the options would take for something else."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command import REPOSITORY, environment, fedcar

from fedcar.cli.documents import import_file
from fedcar.collection.columns import Columns

FEDCAR = (sys.executable, "-c", "from fedcar.cli.main import main; main()")
LABELLED = "text,label,extra\nfan stops,fan,1\nFan stops,pump,2\npump dry,pump,3\n"


def test_what_was_merged_and_not_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(LABELLED)
    result = fedcar("import", "a.csv", "--out", "c", cwd=tmp_path)
    assert result.code == 0 and not result.err
    assert result.out.splitlines() == [
        "c: 2 documents, 2 queries (judged: 2 train, 0 dev, 0 test)",
        "rows: 3 questions read, 1 merged with an earlier one of equal text",
        'several answers: 1 questions, such as "fan stops" (fan, pump)',
        "columns not read: extra",
        "next: fedcar train c -o RETRIEVER",
    ]


def test_without_questions_the_next_step_is_not_to_train_on_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("title;text\nFan;Clean it\n")
    last = fedcar("import", "a.csv", "--out", "c", cwd=tmp_path).out.splitlines()[-1]
    assert last == "next: without questions fedcar train c -o RETRIEVER makes a search; to learn, add --queries"


@pytest.mark.parametrize("name", ["my folder", "it's", "-c", "$HOME", "a&b"])
def test_the_next_line_can_be_typed(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_text(LABELLED)
    result = fedcar("import", "a.csv", f"--out={name}", cwd=tmp_path)
    words = shlex.split(result.out.splitlines()[-1].removeprefix("next: "))
    assert words[:2] == ["fedcar", "train"] and words[3:] == ["-o", "RETRIEVER"]
    assert not words[2].startswith("-") and (tmp_path / words[2]).samefile(tmp_path / name)


def test_a_file_that_begins_with_a_dash_is_imported(tmp_path: Path) -> None:
    (tmp_path / "-a.csv").write_text(LABELLED)
    assert fedcar("import", "--out", "c", "--", "-a.csv", cwd=tmp_path).code == 0


def test_an_id_that_begins_with_a_dash_is_no_option(tmp_path: Path) -> None:
    result = fedcar("remove", tmp_path / "nowhere", "-40", "--x")
    assert result.code == 1 and "No such option" not in result.err and "nowhere" in result.err


def test_every_column_has_an_option_that_is_documented(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "import.md").read_text()
    options = {option.name: option for option in import_file.params}
    for name in Columns.__dataclass_fields__:
        assert f"`--{name.replace('_', '-')}`" in page
        assert getattr(options[name], "help", None)


def test_standard_input_is_read(tmp_path: Path) -> None:
    command = [*FEDCAR, "import", "-", "--out", str(tmp_path / "c")]
    done = subprocess.run(command, input=LABELLED, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "2 queries" in done.stdout


def test_an_interrupted_import_leaves_one_line_and_nothing_else(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.csv")
    command = [*FEDCAR, "import", "p.csv", "--out", "c"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), text=True, **pipes)  # type: ignore[call-overload]
    writer = os.open(tmp_path / "p.csv", os.O_WRONLY)  # returns when import has begun to read
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    os.close(writer)
    assert (process.returncode, out, err.strip()) == (130, "", "interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]
