"""A CSV or TSV file with a header: a column of image paths and a column of labels."""

from __future__ import annotations

import csv
import hashlib
import os
from pathlib import Path

import numpy as np

from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.base import MAX_CLASS_ID, Names, Source

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image")
LABEL_COLUMNS = ("label", "class", "class_name", "wnid", "target")


class TableSource(Source):
    """Rows of ``x.csv`` (commas) or ``x.tsv`` (tabs), in order; paths are relative to the file's folder.

    Labels that are all non-negative integers are class ids as they are; others are names, and sorted names give the ids.

    Raises:
        SourceError: A column is missing, a row is incomplete, or a file is not there.
    """

    def __init__(self, path: Path) -> None:
        self._folder = os.fsencode(path.parent)
        labels: list[str] = []
        self._names = Names()
        sizes: list[int] = []
        digest = hashlib.sha256()
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            file_column = _column(path, rows.fieldnames or (), PATH_COLUMNS)
            label_column = _column(path, rows.fieldnames or (), LABEL_COLUMNS)
            for row in rows:
                name, label = row[file_column], row[label_column]
                if not name or not label:
                    raise SourceError(f"{path}: line {rows.line_num} has no {label_column if name else file_column}")
                try:
                    status = os.stat(os.path.join(self._folder, os.fsencode(name)))  # noqa: PTH116, PTH118  # bytes
                except OSError as error:
                    raise SourceError(f"{path}: line {rows.line_num}: {name}: {error.strerror}") from None
                self._names.extend([os.fsencode(name)])
                labels.append(label)
                sizes.append(status.st_size)
                digest.update(b"%d " % status.st_mtime_ns)
        if not labels:
            raise SourceError(f"{path}: has no rows")
        self._names.freeze()
        self.class_names, self.labels = class_ids(labels)
        self.sizes = np.array(sizes, np.int64)
        for table in (self._names.block(), self.labels.tobytes(), self.sizes.tobytes()):
            digest.update(table)
        self._identity = digest.hexdigest()

    def name(self, i: int) -> str:
        return os.fsdecode(self._path(i))

    def read(self, i: int) -> bytes:
        with open(self._path(i), "rb") as file:
            return file.read()

    def _path(self, i: int) -> bytes:
        return os.path.join(self._folder, self._names[i])  # noqa: PTH118  # bytes

    def identity(self) -> str:
        return self._identity


def _column(path: Path, columns: object, known: tuple[str, ...]) -> str:
    names = [str(c) for c in columns]  # type: ignore[attr-defined]
    found = next((c for c in names if c.strip().lower() in known), None)
    if found is None:
        raise SourceError(f"{path}: needs a column named {' or '.join(known)} (it has {', '.join(names) or 'none'})")
    return found


def class_ids(labels: list[str]) -> tuple[list[str], np.ndarray]:
    """Class names and the class id of every label, int64 ``[n]``."""
    distinct = set(labels)
    if all(label.isdecimal() and int(label) <= MAX_CLASS_ID for label in distinct):
        ids = np.array([int(label) for label in labels], np.int64)
        return [str(i) for i in range(int(ids.max()) + 1)], ids
    names = sorted(distinct)
    position = {name: i for i, name in enumerate(names)}
    return names, np.array([position[label] for label in labels], np.int64)
