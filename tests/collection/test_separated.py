"""CSV and TSV as people's tools write them: read as they were meant, or refused; never anything else."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcar.collection.tables import Table
from fedcar.errors import FedcarError, FedcarWarning

ROWS = [{"text": "hello, you", "label": "greet"}, {"text": 'say "no"', "label": "deny"}]


def read(folder: Path, name: str, content: str | bytes) -> list[dict[str, str]]:
    """The rows of a file, without a warning."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [dict(row.values) for row in Table.read(folder / name).rows]


MEANT_AS_ROWS: dict[str, tuple[str, str | bytes]] = {
    "Excel's first line": ("a.csv", 'sep=;\r\ntext;label\r\nhello, you;greet\r\n"say ""no""";deny\r\n'),
    "Excel's first line, quoted": ("a.csv", '\ufeff"sep=|"\ntext|label\nhello, you|greet\n"say ""no"""|deny\n'),
    "Excel's first line, a tab": ("a.csv", 'sep=\t\ntext\tlabel\nhello, you\tgreet\n"say ""no"""\tdeny\n'),
    "a blank before quotes": ("a.csv", '"text", "label"\n"hello, you", "greet"\n"say ""no""", "deny"\n'),
    "a blank before some quotes": ("a.csv", 'label, text\ngreet, "hello, you"\ndeny, "say ""no"""\n'),
    "bars": ("a.csv", 'text|label\nhello, you|greet\n"say ""no"""|deny\n'),
    "more commas than semicolons": ("a.csv", 'text;label\nhello, you;greet\n"say ""no""";deny\n'),
    "UTF-16, as Excel's Unicode text": ("a.tsv", 'text\tlabel\nhello, you\tgreet\nsay "no"\tdeny\n'.encode("utf-16")),
    "TSV without quotes": ("a.tsv", 'text\tlabel\nhello, you\tgreet\nsay "no"\tdeny\n'),
    "TSV with quotes": ("a.tsv", 'text\tlabel\nhello, you\tgreet\n"say ""no"""\tdeny\n'),
    "TSV with quotes everywhere": ("a.tsv", '"text"\t"label"\n"hello, you"\t"greet"\n"say ""no"""\t"deny"\n'),
    "CR before LF": ("a.csv", 'text,label\r\n"hello, you",greet\r\n"say ""no""",deny\r\n'),
    "no last line end": ("a.csv", 'text,label\n"hello, you",greet\n"say ""no""",deny'),
    "invisible signs in the header": ("a.csv", '\ufeff\ufefftext\u200b,label\n"hello, you",greet\n"say ""no""",deny\n'),
}


@pytest.mark.parametrize(("name", "content"), MEANT_AS_ROWS.values(), ids=MEANT_AS_ROWS)
def test_what_tools_write_is_read_as_meant(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert read(tmp_path, name, content) == ROWS


def test_a_quotation_over_two_lines_of_a_tsv_stays_two_rows(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"open the door\tdoor\nclose it"\tdoor\nlamp is off\tlamp\n')
    with pytest.warns(FedcarWarning, match=r"a\.tsv: 1 cells begin with a double quote, which TSV keeps"):
        table = Table.read(tmp_path / "a.tsv")
    assert [row.values["text"] for row in table.rows] == ['"open the door', 'close it"', "lamp is off"]


def test_a_tsv_that_no_quoting_fits_has_none(tmp_path: Path) -> None:
    assert read(tmp_path, "a.tsv", 'text\tlabel\n"open the door\tdoor\n5" pipe\tpipe\n')[0]["text"] == '"open the door'


def test_a_quoted_line_end_of_a_tsv_stays_in_its_cell(tmp_path: Path) -> None:
    assert read(tmp_path, "a.tsv", 'text\tlabel\n"a\nb"\tx\n') == [{"text": "a\nb", "label": "x"}]
    assert read(tmp_path, "a.tsv", 'text\tlabel\n"a\tb"\tx\n') == [{"text": "a\tb", "label": "x"}]


def test_cells_of_a_tsv_that_only_look_quoted_keep_their_quotes_and_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"hello"\tx\n"you"\ty\n')
    with pytest.warns(FedcarWarning, match=r"a\.tsv: 2 cells begin with a double quote, which TSV keeps"):
        table = Table.read(tmp_path / "a.tsv")
    assert [row.values["text"] for row in table.rows] == ['"hello"', '"you"']


@pytest.mark.parametrize(
    ("content", "delimiter", "first"),
    [
        ("text;label, final\na, b, c;x\n", ";", "a, b, c"),
        ("text,note;more\na,b\nc,d\n", ",", "a"),
        ("id\ttext, long\n1\ta, b, c\n", "\t", "1"),
    ],
)
def test_the_delimiter_is_the_one_that_cuts_every_line_alike(
    tmp_path: Path, content: str, delimiter: str, first: str
) -> None:
    assert next(iter(read(tmp_path, "a.csv", content)[0].values())) == first
    assert len(read(tmp_path, "a.csv", content)[0]) == len(content.split("\n")[0].split(delimiter))


REFUSED: dict[str, tuple[str, str | bytes, str]] = {
    "ragged row": ("a.csv", "text,label\na,b\nc,d,e\n", "a.csv:3: 3 columns where the header has 2"),
    "short row": ("a.csv", "text,label,split\na,b,test\nc,d\n", "a.csv:3: 2 columns where the header has 3"),
    "ragged TSV": ("a.tsv", "text\tlabel\na\tb\tc\n", "a.tsv:2: 3 columns where the header has 2"),
    "ragged row below Excel's line": ("a.csv", "sep=;\ntext;label\na;b;c\n", "a.csv:3: 3 columns"),
    "text behind a quoted cell": ("a.csv", 'text,label\n"a" b,c\n', "a.csv:2: broken CSV"),
    "backslash before a quote": ("a.csv", 'text,label\n"a \\"b\\", c",d\n', "a.csv:2: broken CSV"),
    "CR alone": ("a.csv", "text,label\ra,b\r", "lines that end in CR alone"),
    "CR alone in a cell of a TSV": ("a.tsv", "text\tlabel, too\na\rb\tc\n", "lines that end in CR alone"),
    "NUL": ("a.csv", b"text,label\na\0,b\n", "a.csv:2: a NUL byte"),
    "UTF-16 without a mark": ("a.csv", "text,label\na,b\n".encode("utf-16-le"), "a.csv:1: a NUL byte"),
    "UTF-16 cut short": ("a.csv", "text,label\na,b\n".encode("utf-16")[:-1], "begins as UTF-16, but is not valid"),
    "Excel file": ("a.csv", b"PK\x03\x04rest", "a ZIP archive, as an Excel file is"),
    "two delimiters": ("a.csv", "text;label, final\na, b;x\n", "a.csv:1: ',' and ';' cut every line alike; say which"),
    "header twice but for blanks": ("a.csv", "text, text\na,b\n", 'two columns are named "text"'),
    "header twice but for its normal form": ("a.csv", "é,e\u0301\na,b\n", 'two columns are named "é"'),
}


@pytest.mark.parametrize(("name", "content", "words"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_one_meaning_is_refused(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(FedcarError) as caught:
        read(tmp_path, name, content)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_quote_inside_quotes_takes_no_blanks_from_other_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n;," """\n ,", "\n')
    assert [tuple(row.values.values()) for row in Table.read(path).rows] == [(";", ' "'), (" ", ", ")]


CELL = st.text(alphabet=st.sampled_from(list("ab é\"',;\t|\n ")), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5),
    delimiter=st.sampled_from(",;|\t"),
    ending=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    suffix=st.sampled_from(["csv", "tsv"]),
)
def test_a_written_table_reads_back_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    delimiter: str,
    ending: str,
    quoting: int,
    encoding: str,
    suffix: str,
) -> None:
    written = io.StringIO()
    writer = csv.writer(written, delimiter=delimiter, lineterminator=ending, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([("text", "label"), *rows])
    path = tmp_path_factory.mktemp("table") / f"a.{suffix}"
    path.write_bytes(written.getvalue().encode(encoding))
    expected = [row for row in rows if any(cell.strip() for cell in row)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = [tuple(row.values.values()) for row in Table.read(path).rows]
        except FedcarError:
            return
    assert found == expected or said or len(expected) != len(rows)
