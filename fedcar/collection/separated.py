"""Rows of a CSV or TSV file, by the conventions of those who write them: spreadsheets, data frames, databases.

What two conventions read differently is read by the one that the file gives evidence for, or refused.
"""

from __future__ import annotations

import csv
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedcar.collection.lines import MAXIMUM_LINE_BYTES, text_lines
from fedcar.collection.normal_forms import composed, visible
from fedcar.errors import FedcarError, FedcarWarning, quoted

DELIMITERS = ",;\t|"
SAMPLE = 200  # lines that say which delimiter it is
EXCEL_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
NUMBERED = Iterator[tuple[int, list[str]]]  # the line where a row begins, and its cells


@dataclass(frozen=True)
class _Form:
    """How cells are parted: `skipped` lines before the header, and what quotes and blanks before them mean."""

    delimiter: str
    skipped: int = 0
    has_quotes: bool = True
    blank_before_quote: bool = False


def separated_rows(path: Path, packed_name: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header ("" where a column has no name) and rows (line, cells) of a file; `packed_name` is its name without .gz.

    Excel's line `sep=;` is read as such. In a file parted by tabs a double quote is a sign like any other, unless the
    header is quoted or cells hold what needs quoting (one FedcarWarning counts cells that begin with one all the same).
    """
    limit = csv.field_size_limit(MAXIMUM_LINE_BYTES)  # a setting of the csv module: put back at the end
    try:
        form = _form(path, packed_name)
        rows = _by_tabs(path, form) if form.delimiter == "\t" else _by_signs(path, form)
    finally:
        csv.field_size_limit(limit)
    return (rows[0][1], rows[1:]) if rows else ([], [])


def _by_signs(path: Path, form: _Form) -> list[tuple[int, list[str]]]:
    """CSV proper; a blank between delimiter and quote belongs to neither."""
    sign = re.escape(form.delimiter)
    suspect = re.compile(rf'(?:^|{sign}) +"(?!"(?!\s*(?:{sign}|$)))')
    if any(suspect.search(line) for _, line in text_lines(path)):
        without_blanks = replace(form, blank_before_quote=True)
        try:
            rows, others = list(_rows(path, form)), list(_rows(path, without_blanks))
        except FedcarError:
            return list(_rows(path, without_blanks))
        cells, other = ([cell for _, row in read for cell in row] for read in (rows, others))
        same_number = len(cells) == len(other)
        if same_number and all(two in (one, one.lstrip(" ")) for one, two in zip(cells, other, strict=True)):
            return rows  # nothing but blanks would change: none of them stands before a quote
        return others
    return list(_rows(path, form))


def _by_tabs(path: Path, form: _Form) -> list[tuple[int, list[str]]]:
    readings: list[list[tuple[int, list[str]]] | FedcarError] = []
    for has_quotes in (True, False):
        try:
            readings.append(list(_rows(path, replace(form, has_quotes=has_quotes))))
        except FedcarError as error:
            readings.append(error)
    with_quotes, without = readings
    if isinstance(without, FedcarError):
        if isinstance(with_quotes, FedcarError):
            raise with_quotes
        return with_quotes
    if isinstance(with_quotes, FedcarError):
        return without
    if _needs_quotes(with_quotes, without):
        return with_quotes
    if with_quotes != without:
        marked = sum(cell[:1] == '"' for _, row in without for cell in row)
        warnings.warn(
            f"{path}: {marked} cells begin with a double quote, which TSV keeps as part of the text; save it as CSV if "
            "they are quoted",
            FedcarWarning,
            stacklevel=2,
        )
    return without


def _needs_quotes(with_quotes: Sequence[tuple[int, list[str]]], without: Sequence[tuple[int, list[str]]]) -> bool:
    """Whether what a reading with quotes changes is what a writer of quotes would have quoted.

    It quotes the header too, or a cell that has a quote, or the delimiter, in it. A line end alone is no evidence: two
    sentences that begin and end a quotation look like one cell over two lines.
    """
    if not without or any(len(cell) > 1 and cell[0] == '"' == cell[-1] for cell in without[0][1]):
        return True
    over_lines = [cell for _, row in with_quotes for cell in row if "\n" in cell]
    if over_lines:
        return all('"' in cell for cell in over_lines)
    pairs = zip(with_quotes, without, strict=True) if len(with_quotes) == len(without) else ()
    changed = [one for (_, row), (_, other) in pairs for one, two in zip(row, other, strict=True) if one != two]
    return not changed or any('"' in cell or "\t" in cell for cell in changed)


def _rows(path: Path, form: _Form) -> NUMBERED:
    """The header and every row that is not empty, all of one width."""
    start, header = 1, None
    lines = ("\n" if number <= form.skipped else line for number, line in text_lines(path))
    try:
        for cells in (
            reader := csv.reader(
                lines,
                delimiter=form.delimiter,
                strict=True,
                quoting=csv.QUOTE_MINIMAL if form.has_quotes else csv.QUOTE_NONE,
                skipinitialspace=form.blank_before_quote,
            )
        ):
            begins, start = start, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = cells = _checked_header(cells, f"{path}:{begins}")
            elif len(cells) != len(header):
                raise FedcarError(
                    f"{path}:{begins}: {len(cells)} columns where the header has {len(header)}; put a text with "
                    f"{form.delimiter!r} or a line end in it in double quotes"
                )
            yield begins, cells
    except csv.Error as error:
        if "new-line character" in str(error):
            raise FedcarError(f"{path}:{start}: lines that end in CR alone; save the file with LF or CRLF") from error
        raise FedcarError(f"{path}:{start}: broken CSV ({error}); write a quote inside quotes twice") from error


def _form(path: Path, packed_name: str) -> _Form:
    """The delimiter that cuts the header, and every line of a sample alike, into the most columns."""
    sample = [line for _, line in itertools.islice(text_lines(path), SAMPLE)]
    skipped = next((place for place, line in enumerate(sample) if line.strip()), 0)
    if sample and (excel := EXCEL_LINE.fullmatch(sample[skipped].strip(" \r\n"))):
        return _Form(excel[1], skipped + 1)
    delimiters = DELIMITERS if packed_name.lower().endswith(".csv") else "\t,;|"
    fits = {one: _columns(sample[skipped:], one) for one in delimiters}
    even = [one for one, (cuts, alike, _) in fits.items() if cuts and alike]
    if len(even) > 1 and "\t" not in even:
        signs = " and ".join(map(repr, even))
        raise FedcarError(
            f"{path}:{skipped + 1}: {signs} cut every line alike; say which one it is in a line above the header: "
            f"sep={even[0]}"
        )
    return _Form("\t" if "\t" in even else max(fits, key=fits.__getitem__))


def _columns(sample: Sequence[str], delimiter: str) -> tuple[bool, bool, int]:
    """Whether it cuts the header at all, whether all lines as the header, and how many columns the header has."""
    width = 0
    try:
        width = len(next(csv.reader(sample[:1], delimiter=delimiter, skipinitialspace=True), []))
        rows = [row for row in csv.reader(sample, delimiter=delimiter, skipinitialspace=True) if any(row)]
    except csv.Error:  # reading the rows says what it is
        return width > 1, False, width
    whole = rows[:-1] if len(sample) == SAMPLE else rows  # the last one may go on below the sample
    even = all(len(row) == width for row in whole)
    plain = all(line.count(delimiter) == width - 1 for line in sample if line.strip())
    return width > 1, width > 1 and (even or plain), width


def _checked_header(cells: Sequence[str], where: str) -> list[str]:
    header = [visible(composed(cell)).strip() for cell in cells]
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise FedcarError(f"{where}: two columns are named {quoted(twice[0])}; the first row must name each once")
    return header
