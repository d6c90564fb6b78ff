"""Tables: ids of numbers, names of classes, packed files, pipes, and columns with one name."""

from __future__ import annotations

import gzip
import json
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from fedcar.collection import sources
from fedcar.collection.importing import import_collection
from fedcar.collection.tables import Table
from fedcar.errors import FedcarError, FedcarWarning

LABELLED = "text,label\nmoney back,refund\nwhere is it,delivery\n"


def parquet_file(path: Path, columns: dict[str, list[Any]], features: object = None) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    about = {} if features is None else {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(arrow.table(columns).replace_schema_metadata(about), path)
    return path


CLASSES = {"label": {"names": ["refund", "delivery"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}


@pytest.mark.parametrize("labels", [[0, 1, 0], [0.0, 1.0, 0.0]])
def test_the_names_of_classes_are_read(tmp_path: Path, labels: list[float]) -> None:
    path = parquet_file(tmp_path / "a.parquet", {"text": ["a", "b", "c"], "label": labels}, CLASSES)
    assert [one.id for one in import_collection(path, tmp_path / "out").documents] == ["delivery", "refund"]


@pytest.mark.parametrize(("label", "words"), [(-1, 'no "label"'), (2, "class 2 is none of the 2"), (0.5, "class 0.5")])
def test_a_class_without_a_name_is_refused(tmp_path: Path, label: float, words: str) -> None:
    path = parquet_file(tmp_path / "a.parquet", {"text": ["a", "b"], "label": [0, label]}, CLASSES)
    with pytest.raises(FedcarError, match=rf"a\.parquet:2: {words}"):
        import_collection(path, tmp_path / "out")


@pytest.mark.parametrize("features", [None, [], {"label": None}, {"label": {"_type": "ClassLabel", "names": None}}, 7])
def test_without_names_numbers_stay_numbers_and_that_is_said(tmp_path: Path, features: object) -> None:
    path = parquet_file(tmp_path / "a.parquet", {"text": ["a", "b"], "label": [0, 1]}, features)
    with pytest.warns(FedcarWarning, match="all 2 labels are numbers"):
        assert [one.id for one in import_collection(path, tmp_path / "out").documents] == ["0", "1"]


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.Table.from_arrays([arrow.array(["a"])] * 2, names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(FedcarError, match='two columns are named "text"'):
        Table.read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1.0", "", "2.0"], ["1", "", "2"]),  # a data frame's integers with a gap
        (["1.0", "2.0"], ["1.0", "2.0"]),  # versions, for all that is known
        (["1.0", "", "2.1"], ["1.0", "", "2.1"]),
        (["007", ""], ["007", ""]),
        (["e\u0301", " x "], ["é", "x"]),
    ],
)
def test_whole_numbers_beside_a_gap_are_integers(tmp_path: Path, cells: list[str], expected: list[str]) -> None:
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(f"{cell},t\n" for cell in cells))
    assert Table.read(tmp_path / "a.csv").identifiers("id") == expected


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "A.CSV.GZ"])
def test_packed_tables_are_read(tmp_path: Path, name: str) -> None:
    content = LABELLED if "csv" in name.lower() else '{"text": "money back", "label": "refund"}\n'
    (tmp_path / name).write_bytes(gzip.compress(content.encode()))
    assert Table.read(tmp_path / name).rows[0].values == {"text": "money back", "label": "refund"}


def test_json_lines_may_be_called_json_and_a_list_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "a", "label": "b"}\n{"text": "c", "label": "d"}\n')
    assert len(Table.read(tmp_path / "a.json").rows) == 2
    for content in ('[{"text": "a"}]', '[\n  {"text": "a"}\n]'):
        (tmp_path / "b.json").write_text(content)
        with pytest.raises(FedcarError, match=r"b\.json:1: .*; write one object a line: jq -c '\.\[\]' FILE"):
            Table.read(tmp_path / "b.json")


def test_columns_that_differ_in_case_are_refused_unless_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Text,text,label\na,b,c\n")
    with pytest.raises(FedcarError, match='columns "Text" and "text" have one name; choose with --text-column'):
        import_collection(tmp_path / "a.csv", tmp_path / "out")
    assert import_collection(tmp_path / "a.csv", tmp_path / "out", text_column="text").queries["q1"].text == "b"


# Pipes


def feed(path: Path, content: str) -> threading.Thread:
    thread = threading.Thread(target=path.write_text, args=(content,), daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("name", ["p.csv", "p"])
def test_a_pipe_is_read_once_and_whole(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    writer = feed(tmp_path / name, LABELLED)
    assert len(import_collection(tmp_path / name, tmp_path / "out").queries) == 2
    writer.join(5)
    assert not writer.is_alive()


def test_a_pipe_without_a_writer_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PATIENCE", 0.1)
    os.mkfifo(tmp_path / "p.csv")
    with pytest.raises(FedcarError, match=r"p\.csv: a pipe into which nothing came for 0\.1 s; write it into a file"):
        import_collection(tmp_path / "p.csv", tmp_path / "out")
    (tmp_path / "a.csv").write_text("id,text\n1,a\n")
    with pytest.raises(FedcarError, match=r"p\.csv: a pipe into which nothing came"):
        import_collection(tmp_path / "a.csv", tmp_path / "out", queries=tmp_path / "p.csv")


def test_what_is_wrong_in_a_pipe_is_said_of_the_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.csv")
    feed(tmp_path / "p.csv", "text,label\na,b,c\n")
    with pytest.raises(FedcarError, match="^" + str(tmp_path / "p.csv:2: 3 columns")):
        import_collection(tmp_path / "p.csv", tmp_path / "out")


def test_a_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedcarError, match="/dev/zero: a device or a terminal, not a file"):
        import_collection(Path("/dev/zero"), tmp_path / "out")


def test_no_warning_is_left_over(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(LABELLED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_collection(tmp_path / "a.csv", tmp_path / "out")
