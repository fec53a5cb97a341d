"""Tables that are written row by row: CSV, JSON lines, Parquet. Either complete or not there."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import atomically

ROW_GROUP = 1024
# How a file of each kind is opened. Names of photos need not be UTF-8: as they are, as JSON's escapes, or (Parquet) as U+FFFD
OPENED: dict[str, tuple[str, dict[str, str]]] = {
    ".csv": ("w", {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}),
    ".jsonl": ("w", {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}),
    ".parquet": ("wb", {}),
}

Columns = Mapping[str, Any]  # name -> str, float, or the names of several numbers, which CSV gives a column each


class Table(Protocol):
    def write(self, row: Mapping[str, Any]) -> None:
        """A row by column; what it lacks is empty."""


@contextmanager
def open_table(path: Path, columns: Columns) -> Iterator[Table]:
    """A table to write to. On an error nothing is left.

    Raises:
        UsageError: Parquet without pyarrow.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix.lower()
    mode, options = OPENED[kind]
    with atomically(path, mode, **options) as file:
        table: Any = {".csv": Csv, ".jsonl": JsonLines, ".parquet": Parquet}[kind](file, columns)
        yield table
        table.close()


class Csv:
    """A column for each number of several; the header first."""

    def __init__(self, file: Any, columns: Columns) -> None:
        self._columns, self._writer = columns, csv.writer(file, lineterminator="\n")
        self._writer.writerow([n for name, kind in columns.items() for n in (kind if isinstance(kind, list) else [name])])

    def write(self, row: Mapping[str, Any]) -> None:
        cells: list[Any] = []
        for name, kind in self._columns.items():
            several = isinstance(kind, list)
            cells += (row.get(name) or [""] * len(kind)) if several else [row.get(name, "")]
        self._writer.writerow(cells)

    def close(self) -> None:
        """Nothing is held back."""


class JsonLines:
    """An object per line; several numbers are a list."""

    def __init__(self, file: Any, columns: Columns) -> None:
        self._file = file

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Nothing is held back."""


class Parquet:
    """Row groups of ``ROW_GROUP``; several numbers are a list, whose names are in the schema's metadata."""

    def __init__(self, file: Any, columns: Columns) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise UsageError("`out`: a .parquet file needs pyarrow: pip install 'dp4tl_fast[parquet]'") from None

        kinds = {str: pa.string(), float: pa.float32()}
        fields = [(n, pa.list_(pa.float32()) if isinstance(kind, list) else kinds[kind]) for n, kind in columns.items()]
        names = {name: json.dumps(kind) for name, kind in columns.items() if isinstance(kind, list)}
        self._schema = pa.schema(fields, metadata=names)
        self._writer = pq.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []
        self._table = pa.Table

    def write(self, row: Mapping[str, Any]) -> None:
        self._rows.append({name: _utf8(row.get(name)) for name in self._schema.names})
        if len(self._rows) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def close(self) -> None:
        self._flush()
        self._writer.close()


def _utf8(cell: Any) -> Any:
    return cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if isinstance(cell, str) else cell
