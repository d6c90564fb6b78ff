"""A table of somebody else: CSV, TSV, JSONL or Parquet as rows, and which of its columns is which."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedcar.collection.lines import check_identifier, check_text, json_objects
from fedcar.collection.normal_forms import composed
from fedcar.collection.separated import separated_rows
from fedcar.errors import FedcarError, quoted

FORMATS = {
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    ".parquet": "parquet",
}
PACKED = ".gz"
POINT_ZERO = re.compile(r"-?[0-9]+\.0", re.ASCII)


class Row(NamedTuple):
    """Where a row begins, and its cells by column."""

    where: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of a file and the names of its columns; `unnamed` is how many columns with content have no name."""

    path: Path
    columns: tuple[str, ...]
    rows: Sequence[Row]
    unnamed: int = 0

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read a file of a known kind, by the end of its name, packed with gzip or not; at least one row."""
        name, kind = path.name.lower().removesuffix(PACKED), kind_of_file(path)
        if not path.exists():
            raise FedcarError(f"{path}: no such file; check the path")
        if kind is None:
            raise FedcarError(f"{path}: of no known kind; give a file that ends in {', '.join(FORMATS)}, or a folder")
        unnamed = 0
        if kind == "csv":
            header, cells = separated_rows(path, name)
            rows = [
                Row(f"{path}:{line}", {one: two for one, two in zip(header, row, strict=True) if one})
                for line, row in cells
            ]
            blank = [place for place, column in enumerate(header) if not column]
            unnamed = sum(any(row[place].strip() for _, row in cells) for place in blank)
        else:
            rows = list(_json_rows(path) if kind == "jsonl" else _parquet_rows(path))
        if not rows:
            raise FedcarError(f"{path}:1: no rows; give a file with a row for each text")
        columns = tuple(dict.fromkeys(column for row in rows for column in row.values))
        return cls(path, columns, rows, unnamed)

    def column(
        self, what: str, names: Sequence[str], option: str, given: str | None = None, besides: Sequence[str] = ()
    ) -> str:
        """Return the column given or the one with the best-known name; refuse where there is none."""
        found = self.given(given, option) or self.guess(names, besides, option)
        if found is None:
            raise FedcarError(
                f"{self.path}:1: no column for the {what} ({', '.join(names)}); {self._there()}: name one of them with "
                f"{option}, or rename it"
            )
        return found

    def optional(self, names: Sequence[str], option: str, given: str | None, besides: Sequence[str] = ()) -> str | None:
        """Return the column given, else one of these names, else None."""
        return self.given(given, option) or self.guess(names, besides, option)

    def given(self, column: str | None, option: str) -> str | None:
        """Return the column that an option names; refuse one that is not there."""
        if column is None:
            return None
        by_name = {composed(one): one for one in self.columns}
        if composed(column) not in by_name:
            raise FedcarError(
                f"{self.path}:1: no column {quoted(column)}; {self._there()}: name one of them with {option}, or "
                "rename it"
            )
        return by_name[composed(column)]

    def guess(self, names: Sequence[str], besides: Sequence[str] = (), option: str = "") -> str | None:
        """Return the column with the first of these names that is there, whatever its case, blanks and hyphens.

        Two columns of that name but for case are refused, with the option that chooses.
        """
        for name in names:
            alike = [column for column in self.columns if simple(column) == name and column not in besides]
            if len(alike) > 1 and option:
                raise FedcarError(
                    f"{self.path}:1: columns {quoted(alike[0])} and {quoted(alike[1])} have one name; choose with "
                    f"{option}"
                )
            if alike:
                return alike[0]
        return None

    def identifiers(self, column: str) -> list[str]:
        """The cells of a column as ids, composed and stripped; "" where there is none.

        Where every one is a whole number with ".0" and a cell is empty, a data frame wrote integers: "1.0" is then "1".
        """
        cells = [composed(cell_text(row, column)).strip() for row in self.rows]
        filled = [cell for cell in cells if cell]
        if len(filled) < len(cells) and all(POINT_ZERO.fullmatch(cell) for cell in filled):
            cells = [cell.removesuffix(".0") for cell in cells]
        return [check_identifier(cell, row.where) if cell else "" for cell, row in zip(cells, self.rows, strict=True)]

    def _there(self) -> str:
        return f"the columns are {quoted(', '.join(self.columns), 200)}"


def kind_of_file(path: Path) -> str | None:
    """Return csv, jsonl or parquet by the end of its name, packed or not; None where it is none of them."""
    return FORMATS.get(Path(path.name.lower().removesuffix(PACKED)).suffix)


def simple(column: str) -> str:
    """The name of a column as names are compared."""
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def cell_text(row: Row, column: str | None) -> str:
    """Return the cell as text; numbers and true / false are written out, nothing is ""."""
    value = row.values.get(column) if column is not None else None
    if value is None or isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool):
        value = str(value).lower()
    if not isinstance(value, str | int | float) or isinstance(value, float) and math.isinf(value):
        raise FedcarError(f"{row.where}: {quoted(column)} is {quoted(value)}; it must be text")
    return check_text(str(value), str(column), row.where)


def _json_rows(path: Path) -> Iterator[Row]:
    return (Row(where, record) for where, record in json_objects(path))


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        arrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    except ImportError as error:
        raise FedcarError(f"{path}: Parquet needs pyarrow; pip install 'fedcar[data]'") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = _class_names(file.schema_arrow.metadata or {})
            if twice := [name for name in file.schema_arrow.names if file.schema_arrow.names.count(name) > 1]:
                raise FedcarError(f"{path}: two columns are named {quoted(twice[0])}; each needs a name of its own")
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    where = f"{path}:{number}"
                    named = {
                        column: _named(values[column], names[column], where) for column in names if column in values
                    }
                    yield Row(where, values | named)
    except (OSError, ValueError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise FedcarError(f"{path}: not readable as Parquet ({quoted(reason, 120)}); give a whole file") from error


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The names of the classes of each column that has them, where the datasets library wrote the file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        classes = {
            column: one
            for column, one in features.items()
            if isinstance(one, dict) and one.get("_type") == "ClassLabel"
        }
        return {column: [str(name) for name in one["names"]] for column, one in classes.items() if one.get("names")}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _named(value: object, names: Sequence[str], where: str) -> object:
    """The name of a class; None for -1, which stands for no label."""
    if value is None or value == -1 or isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise FedcarError(f"{where}: class {quoted(value)} is none of the {len(names)} that the file names; correct it")
    return names[value]
