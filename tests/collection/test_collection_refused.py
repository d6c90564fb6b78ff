"""Collection: what is refused, by file and line."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest
from support.beir import ASKED, CORPUS, DOCUMENTS, HEADER, QUERIES, TRAIN, lines, put, standard

from fedcar.collection import lines as lines_module
from fedcar.collection.collection import Collection, read_documents
from fedcar.errors import FedcarError

# What is refused: name -> file changed, its content, the line named, words of the message

FIRST_DOCUMENT, FIRST_QUERY = lines(DOCUMENTS[0]), lines(QUERIES[0])
REFUSED: dict[str, tuple[str, str | bytes, int, str]] = {
    "broken JSON": (CORPUS, FIRST_DOCUMENT + '{"_id": "x", \n', 2, "broken JSON"),
    "broken JSON after blank lines": (CORPUS, "\n\n" + FIRST_DOCUMENT + "{\n", 4, "broken JSON"),
    "JSON nested without end": (CORPUS, "[" * 200_000 + "\n", 1, "broken JSON"),
    "NaN": (CORPUS, '{"_id": "a", "metadata": {"x": NaN}}\n', 1, "NaN is not JSON"),
    "a list": (CORPUS, '["fan", "text"]\n', 1, "not an object"),
    "a JSON array over lines": (CORPUS, "[\n", 1, "broken JSON"),
    "missing _id of a document": (CORPUS, FIRST_DOCUMENT + lines({"text": "x"}), 2, 'no "_id"'),
    "number as _id": (CORPUS, lines({"_id": 17, "text": "x"}), 1, 'write "17"'),
    "null as _id": (CORPUS, lines({"_id": None, "text": "x"}), 1, "not a string"),
    "empty _id": (CORPUS, lines({"_id": " ", "text": "x"}), 1, 'empty "_id"'),
    "duplicate _id of a document": (CORPUS, FIRST_DOCUMENT * 2, 2, "make it unique"),
    "tab in an _id": (CORPUS, lines({"_id": "a\tb", "text": "x"}), 1, "a tab or a line end"),
    "line end in an _id": (CORPUS, lines({"_id": "a\nb", "text": "x"}), 1, "a tab or a line end"),
    "title not a string": (CORPUS, lines({"_id": "a", "title": 5}), 1, '"title" is 5'),
    "text not a string": (CORPUS, lines({"_id": "a", "text": None}), 1, '"text" is None'),
    "metadata not an object": (CORPUS, lines({"_id": "a", "metadata": "x"}), 1, '"metadata" is "x"'),
    "a key twice": (CORPUS, '{"_id": "a", "text": "x", "text": "y"}\n', 1, '"text" stands twice'),
    "a number beyond all bounds": (CORPUS, '{"_id": "a", "metadata": {"x": 1e999}}\n', 1, "too large a number"),
    "an invisible _id": (CORPUS, lines({"_id": "\u200b", "text": "x"}), 1, 'empty "_id"'),
    "an invisible query": (ASKED, lines({"_id": "q1", "text": "\ufeff \u00ad"}), 1, "empty query"),
    "a list of objects": (CORPUS, '[{"_id": "a"}]\n', 1, "jq -c '.[]'"),
    "no document": (CORPUS, "\n", 1, "no document"),
    "empty file": (CORPUS, "", 1, "no document"),
    "invalid UTF-8": (CORPUS, FIRST_DOCUMENT.encode() + b'{"_id": "caf\xe9"}\n', 2, "not valid UTF-8 (byte 13"),
    "UTF-16": (CORPUS, FIRST_DOCUMENT.encode("utf-16-le"), 1, "UTF-16"),
    "NUL byte": (CORPUS, FIRST_DOCUMENT + '{"_id": "a\0"}\n', 2, "NUL byte"),
    "escaped NUL": (CORPUS, '{"_id": "a", "text": "x\\u0000"}\n', 1, 'NUL character in "text"'),
    "half a surrogate pair": (CORPUS, '{"_id": "a", "text": "x\\ud83d"}\n', 1, "surrogate"),
    "missing _id of a query": (ASKED, lines({"text": "x"}), 1, 'no "_id"'),
    "duplicate _id of a query": (ASKED, FIRST_QUERY + lines({"_id": "q1", "text": "y"}), 2, "make it unique"),
    "empty query": (ASKED, lines({"_id": "q1", "text": "  "}), 1, "empty query"),
    "query without text": (ASKED, lines({"_id": "q1"}), 1, "empty query"),
    "client not a string": (ASKED, lines({"_id": "q1", "text": "x", "metadata": {"client": 3}}), 1, '"client" is 3'),
    "answerable not a boolean": (
        ASKED,
        lines({"_id": "q1", "text": "x", "metadata": {"answerable": "no"}}),
        1,
        '"answerable" is "no"',
    ),
    "unknown split": (
        ASKED,
        lines({"_id": "q1", "text": "x", "metadata": {"answerable": False, "split": "val"}}),
        1,
        '"split" is "val"',
    ),
    "judgement for an unknown query": (TRAIN, HEADER + "q99\tfan\t1\n", 2, 'query "q99" is not in queries.jsonl'),
    "judgement for an unknown document": (TRAIN, HEADER + "q1\tfen\t1\n", 2, 'document "fen" is not in corpus.jsonl'),
    "two columns": (TRAIN, HEADER + "q1\tfan\n", 2, "2 columns, not 3"),
    "four columns": (TRAIN, HEADER + "q1\t0\tfan\t1\n", 2, "4 columns, not 3"),
    "blanks for tabs": (TRAIN, HEADER + "q1 fan 1\n", 2, "1 columns, not 3"),
    "half a score": (TRAIN, HEADER + "q1\tfan\t1.5\n", 2, "not an integer"),
    "score of a point": (TRAIN, HEADER + "q1\tfan\t1.\n", 2, "not an integer"),
    "score in powers": (TRAIN, HEADER + "q1\tfan\t1e0\n", 2, "not an integer"),
    "score in words": (TRAIN, HEADER + "\nq1\tfan\tyes\n", 3, "not an integer"),
    "score of two signs": (TRAIN, HEADER + "q1\tfan\t--1\n", 2, "not an integer of 0"),
    "four columns, then three": (TRAIN, "q1 0 fan 1\nq2\tpump\t1\n", 2, "3 columns, not 4"),
    "four columns, a blank in an id": (TRAIN, "q1 0 the fan 1\n", 1, "1 columns, not 3"),
    "TREC with an unknown document": (TRAIN, "q1 0 fen 1\n", 1, 'document "fen" is not in'),
    "score of 5,000 digits": (TRAIN, HEADER + f"q1\tfan\t{'9' * 5000}\n", 2, "not an integer of 0"),
    "two scores for a pair": (TRAIN, HEADER + "q1\tfan\t1\nq1\tfan\t2\n", 3, "keep one"),
    "no header row": (TRAIN, "q1\tfan\t1\n", 1, "no header row"),
    "no header row, odd score": (TRAIN, "q1\tfan\tyes\n", 1, "no header row"),
    "empty judgement file": (TRAIN, "", 1, "no header row"),
    "unanswerable, yet judged": (TRAIN, HEADER + "q3\tfan\t1\n", 2, '"answerable": false'),
}


@pytest.mark.parametrize(("file", "content", "line", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(tmp_path: Path, file: str, content: str | bytes, line: int, words: str) -> None:
    with pytest.raises(FedcarError) as caught:
        Collection.read(put(tmp_path, {file: content}))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / file}:{line}: ")
    assert words in message and "; " in message
    assert "\n" not in message and len(message) < 400


def test_a_line_over_50_mb_is_refused_without_reading_it(tmp_path: Path) -> None:
    put(tmp_path, {})
    with (tmp_path / CORPUS).open("ab") as file:
        file.truncate(400_000_000)  # sparse: a line of zeros
    with pytest.raises(FedcarError, match=r"corpus\.jsonl:3: a line over 50 MB; cut"):
        Collection.read(tmp_path)


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {})
    monkeypatch.setattr(lines_module, "MAXIMUM_LINE_BYTES", len(FIRST_DOCUMENT))
    with pytest.raises(FedcarError, match=r"corpus\.jsonl:2: a line over"):
        read_documents(tmp_path / CORPUS)
    (tmp_path / CORPUS).write_text(FIRST_DOCUMENT)
    assert len(read_documents(tmp_path / CORPUS)) == 1


@pytest.mark.parametrize("name", [CORPUS, ASKED, TRAIN])
def test_a_named_pipe_is_refused_at_once(tmp_path: Path, name: str) -> None:
    put(tmp_path, {name: None})
    os.mkfifo(tmp_path / name)
    with pytest.raises(FedcarError, match=f"{name}: a pipe, not a file; write it into a file first"):
        Collection.read(tmp_path)


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    put(tmp_path, {"qrels/validation.tsv": HEADER})
    with pytest.raises(FedcarError, match=r"qrels/dev\.tsv and qrels/validation\.tsv are both .* of dev; keep one"):
        Collection.read(tmp_path)


@pytest.mark.parametrize("cut", [2, 40])
def test_broken_gzip_is_refused(tmp_path: Path, cut: int) -> None:
    packed = gzip.compress(standard()[CORPUS].encode())
    put(tmp_path, {CORPUS: None, f"{CORPUS}.gz": packed[:cut]})
    with pytest.raises(FedcarError, match=r"corpus\.jsonl\.gz: broken gzip .*; fetch or pack it again"):
        Collection.read(tmp_path)


ENCODINGS = {
    "WINDOWS-1252": ("cp1252", "wie prüfe ich das Gerät"),
    "WINDOWS-1251": ("cp1251", "как починить насос"),
    "KOI8-R": ("koi8_r", "как починить насос"),
    "SHIFT_JIS": ("shift_jis", "ポンプがうごかない"),
    "GB18030": ("gb18030", "水泵今天早上坏了请问应该怎样修理它"),
    "EUC-KR": ("euc_kr", "펌프가 고장났어요"),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_another_encoding_is_named_with_the_command_that_converts_it(tmp_path: Path, name: str) -> None:
    encoding, text = ENCODINGS[name]
    put(tmp_path / "a b", {ASKED: f'{{"_id": "q1", "text": "{text}"}}\n'.encode(encoding)})
    with pytest.raises(
        FedcarError, match=rf"queries\.jsonl:1: not valid UTF-8 .* \(iconv -f {name} -t UTF-8 '"
    ) as caught:
        Collection.read(tmp_path / "a b")
    assert f"'{tmp_path / 'a b' / ASKED}' > NEW" in str(caught.value)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: None, "cannot be read as a collection"),
        (lambda path: path.write_text("text"), "cannot be read as a collection"),
        (lambda path: path.mkdir(), "no corpus.jsonl"),
        (lambda path: (path / "corpus.jsonl").mkdir(parents=True), "cannot be read"),
    ],
    ids=["not there", "a file", "no corpus.jsonl", "corpus.jsonl is a folder"],
)
def test_not_a_collection_is_refused(tmp_path: Path, prepare: Any, words: str) -> None:  # noqa: ANN401
    prepare(tmp_path / "made")
    with pytest.raises(FedcarError) as caught:
        Collection.read(tmp_path / "made")
    assert words in str(caught.value) and str(tmp_path / "made") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", [".", "corpus.jsonl", "qrels"])
def test_no_permission_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / "closed", {})
    path = tmp_path / "closed" / name
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with pytest.raises(FedcarError, match="cannot be read"):
            Collection.read(tmp_path / "closed")
    finally:
        path.chmod(mode)
