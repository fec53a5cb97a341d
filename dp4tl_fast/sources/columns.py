"""Parquet files, and Arrow files as ``datasets.save_to_disk`` writes them: a column of images and a column of labels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.classes import class_labels, is_missing
from dp4tl_fast.sources.files import check_file, read_whole
from dp4tl_fast.sources.options import SourceOptions
from dp4tl_fast.sources.spool import SpoolSource
from dp4tl_fast.sources.table import LABEL_COLUMNS, PATH_COLUMNS, pick

BATCH_ROWS = 256


class ColumnSource(SpoolSource):
    """Rows of the files, in order. Images are bytes, structs with ``bytes`` or ``path``, or paths relative to the file's folder.

    Class names are taken from the schema's ``huggingface`` entry where there is one.

    Args:
        called: Local files, and what each is called in messages.

    Raises:
        SourceError: pyarrow is missing, a file or column cannot be read, or a label is no class. Rows without image or label are
            bad samples.
    """

    def __init__(self, called: dict[Path, str], options: SourceOptions, scratch: Path | None) -> None:
        self._paths, self._called = list(called), called
        first, last = called[self._paths[0]], called[self._paths[-1]]
        super().__init__(first if len(called) == 1 else f"{first} to {last.rpartition('/')[2]}", scratch)
        options.refuse(self._src, "split", "classes_from", "labels", "image_key", "label_key")
        try:
            import pyarrow as pa
        except ImportError:
            raise SourceError(
                "Parquet and Arrow files need pyarrow. Install it with `pip install dp4tl_fast[parquet]`"
            ) from None
        self._pa = pa
        columns: tuple[str, str] | None = None
        names: list[str] | None = None
        values: list[Any] = []
        counts: list[int] = []
        for path in self._paths:
            schema = self._schema(path)
            columns = columns or (self._image_column(path, schema, options), self._label_column(path, schema, options))
            if missing := [column for column in columns if column not in schema.names]:
                raise SourceError(
                    f"{called[path]}: has no column {missing[0]!r}, but {first} does. It has {', '.join(schema.names)}"
                )
            found = _names(schema, columns[1])
            if counts and found != names:
                raise SourceError(
                    f"{called[path]}: its schema names other classes than {first}. Convert them one by one"
                )
            names = found
            start = len(values)
            for batch in self._batches(path, columns[1]):
                values += batch
            counts.append(len(values) - start)
        if not values or columns is None:
            raise SourceError(f"{self._src}: has no rows")
        self._starts_of = np.cumsum([0, *counts])
        self.bad = {i: f"it has no {columns[1]}" for i, value in enumerate(values) if is_missing(value)}
        good = [i for i in range(len(values)) if i not in self.bad]
        self.labels = np.full(len(values), -1, np.int64)
        self.class_names, self.labels[good], rule = class_labels(
            self._src, [values[i] for i in good], lambda k: self.name(good[k]), options, names
        )
        self.notes.append(rule)
        self._spool(self._images(columns[0]))

    # -- files --------------------------------------------------------------------------------------------------------

    def _open(self, path: Path) -> Any:
        """A ``ParquetFile``, or a reader of Arrow batches."""
        check_file(path)
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            return pq.ParquetFile(path)
        source = self._pa.memory_map(str(path))
        try:
            return self._pa.ipc.open_stream(source)
        except self._pa.ArrowInvalid:
            return self._pa.ipc.open_file(source)

    def _schema(self, path: Path) -> Any:
        try:
            file = self._open(path)
            return file.schema_arrow if hasattr(file, "schema_arrow") else file.schema
        except (self._pa.ArrowException, OSError, ValueError) as error:
            raise self._unreadable(path, error) from None

    def _batches(self, path: Path, column: str) -> Iterator[list[Any]]:
        """The column's values as Python objects, some rows at a time."""
        try:
            file = self._open(path)
            if hasattr(file, "iter_batches"):
                batches = file.iter_batches(BATCH_ROWS, columns=[column])
            elif hasattr(file, "num_record_batches"):
                batches = (file.get_batch(k) for k in range(file.num_record_batches))
            else:
                batches = iter(file)
            for batch in batches:
                yield batch.column(batch.schema.get_field_index(column)).to_pylist()
        except (self._pa.ArrowException, OSError, ValueError) as error:
            raise self._unreadable(path, error) from None

    def _unreadable(self, path: Path, error: Exception) -> SourceError:
        kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
        return SourceError(f"{self._called[path]}: cannot be read as {kind}: {(str(error).splitlines() or [''])[0]}")

    def _images(self, column: str) -> Iterator[bytes]:
        i = 0
        for path in self._paths:
            for batch in self._batches(path, column):
                for value in batch:
                    try:
                        data = self._image(path, value)
                    except OSError as error:
                        data, self.bad[i] = b"", f"{os.fsdecode(error.filename or path)}: {error.strerror}"
                    except SourceError as error:
                        data, self.bad[i] = b"", str(error)
                    if not data:
                        self.bad.setdefault(i, f"it has no {column}")
                        self.labels[i] = -1
                    yield data
                    i += 1

    @staticmethod
    def _image(path: Path, value: Any) -> bytes:
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if not isinstance(value, str):
            return value or b""
        file = os.fsencode(path.parent / value)
        return read_whole(file, check_file(file).st_size)

    def name(self, i: int) -> str:
        file = int(np.searchsorted(self._starts_of, i, "right")) - 1
        return f"{self._called[self._paths[file]]}: row {i - int(self._starts_of[file])}"

    # -- columns ------------------------------------------------------------------------------------------------------

    def _image_column(self, path: Path, schema: Any, options: SourceOptions) -> str:
        types = self._pa.types

        def holds_images(kind: Any) -> bool:
            if types.is_struct(kind):
                return any(kind.field(k).name == "bytes" for k in range(kind.num_fields))
            return types.is_binary(kind) or types.is_large_binary(kind)

        found = [field.name for field in schema if holds_images(field.type)]
        if options.image_column or len(found) == 1:
            return pick(self._called[path], schema.names, options.image_column or found[0], (), "image")
        if found:
            raise SourceError(
                f"{self._called[path]}: has images in the columns {', '.join(found)}. Choose one with `image_column`"
            )
        texts = [f.name for f in schema if types.is_string(f.type) or types.is_large_string(f.type)]
        if not set(texts) & set(PATH_COLUMNS):
            raise SourceError(
                f"{self._called[path]}: has no column of image bytes. Give `image_column`. It has {', '.join(schema.names)}"
            )
        return pick(self._called[path], [name for name in texts if name in PATH_COLUMNS], "", PATH_COLUMNS, "image")

    def _label_column(self, path: Path, schema: Any, options: SourceOptions) -> str:
        return pick(self._called[path], schema.names, options.label_column, LABEL_COLUMNS, "label")


def _names(schema: Any, label: str) -> list[str] | None:
    """The names of a ``datasets.ClassLabel``, if the schema describes one."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        return [str(name) for name in feature["names"]]
    except (KeyError, ValueError, TypeError):
        return None
