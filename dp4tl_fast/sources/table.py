"""A CSV or TSV file with a header: a column of image paths and a column of labels. And tables of labels for flat images."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.base import Names, Source
from dp4tl_fast.sources.classes import class_labels, is_missing
from dp4tl_fast.sources.files import check_file, read_whole
from dp4tl_fast.sources.options import SourceOptions

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "img", "filepath")
LABEL_COLUMNS = ("label", "class", "class_name", "wnid", "target", "labels", "fine_label", "coarse_label")


class TableSource(Source):
    """Rows of ``x.csv`` (commas, or semicolons) or ``x.tsv`` (tabs), in order; paths are relative to the file's folder.

    Raises:
        SourceError: A column is missing or not the only one of its kind, a path leads to no file, or a file is listed with two
            classes. Rows without path or label, and of files that are not there, are bad samples.
    """

    def __init__(self, path: Path, options: SourceOptions) -> None:
        super().__init__()
        options.refuse(str(path), "split", "classes_from", "labels", "image_key", "label_key")
        self._folder = os.fsencode(path.parent)
        self._path = path
        rows = _rows(path)
        header = next(rows, (0, []))[1]
        image = pick(path, header, options.image_column, PATH_COLUMNS, "image")
        label = pick(path, header, options.label_column, LABEL_COLUMNS, "label")
        at_image, at_label = header.index(image), header.index(label)
        self._names = Names()
        labels: list[str] = []
        self._lines: list[int] = []
        seen: dict[str, tuple[int, str]] = {}
        for line, row in rows:
            if not row:
                continue
            cells = [row[at] if at < len(row) else "" for at in (at_image, at_label)]
            if is_missing(cells[0]) or is_missing(cells[1]):
                self.bad[len(labels)] = f"it has no {image if is_missing(cells[0]) else label}"
            elif (first := seen.setdefault(cells[0], (line, cells[1])))[1] != cells[1]:
                raise SourceError(
                    f"{path}: line {line} gives {cells[0]} the label {cells[1]!r}, but line {first[0]} {first[1]!r}. Correct one"
                )
            self._names.extend([os.fsencode(cells[0])])
            labels.append(cells[1])
            self._lines.append(line)
        if not labels:
            raise SourceError(f"{path}: has no rows")
        self._names.freeze()
        good = [i for i in range(len(labels)) if i not in self.bad]
        self.labels = np.full(len(labels), -1, np.int64)
        self.class_names, self.labels[good], rule = class_labels(
            str(path), [labels[i] for i in good], lambda k: f"{path}: line {self._lines[good[k]]}", options
        )
        self.notes.append(rule)
        self.sizes = np.zeros(len(labels), np.int64)
        digest = hashlib.sha256()
        for i in good:
            try:
                status = check_file(self._file(i))
            except SourceError as error:
                raise SourceError(f"{path}: line {self._lines[i]}: {error}") from None
            except OSError as error:
                self.bad[i], self.labels[i] = str(error.strerror), -1
                continue
            self.sizes[i] = status.st_size
            digest.update(b"%d " % status.st_mtime_ns)
        for table in (
            self._names.block(),
            self.labels.tobytes(),
            self.sizes.tobytes(),
            "\0".join(self.class_names).encode("utf-8", "surrogateescape"),
        ):
            digest.update(table)
        self._identity = digest.hexdigest()

    def name(self, i: int) -> str:
        if i not in self.bad:
            return os.fsdecode(self._file(i))
        return ": ".join(filter(None, (f"{self._path}: line {self._lines[i]}", os.fsdecode(self._names[i]).strip())))

    def read_file(self, i: int) -> bytes:
        return read_whole(self._file(i), int(self.sizes[i]))

    def _file(self, i: int) -> bytes:
        return os.path.join(self._folder, self._names[i])  # noqa: PTH118  # bytes

    def identity(self) -> str:
        return self._identity


def pick(path: str | Path, columns: Sequence[str], asked: str, known: tuple[str, ...], what: str) -> str:
    """The column that is asked for, or the only one of a known name.

    Raises:
        SourceError: There is none, or several.
    """
    have = f"It has {', '.join(map(repr, columns)) or 'no columns'}"
    if asked:
        if columns.count(asked) != 1:
            which = f"{columns.count(asked)} columns" if asked in columns else "no column"
            raise SourceError(f"{path}: has {which} {asked!r}. {have}")
        return asked
    found = [column for column in columns if column.strip().lower() in known]
    if len(found) != 1:
        which = f"both {found[0]!r} and {found[1]!r}" if found else f"no column named {' or '.join(known[:3])}"
        if len(set(found)) < len(found):
            raise SourceError(f"{path}: has several columns {found[0]!r}. Rename one of them. {have}")
        raise SourceError(f"{path}: has {which}. Choose with `{what}_column`. {have}")
    return found[0]


def _rows(path: Path, separator: str = "") -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every line."""
    check_file(path)
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        first = file.readline()
        file.seek(0)
        if not separator:
            tab = path.suffix.lower() == ".tsv" or ("\t" in first and "," not in first)
            separator = "\t" if tab else ";" if ";" in first and "," not in first else ","
        rows = csv.reader(file, delimiter=separator)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise SourceError(f"{path}: line {rows.line_num}: {error}") from None
            yield rows.line_num, row


def read_mapping(path: Path, options: SourceOptions) -> dict[bytes, Any]:
    """Image file name -> label, from a table with a header, or without one: then the first two columns count.

    ``val_annotations.txt`` of Tiny-ImageNet is such a table, separated by tabs.

    Raises:
        SourceError: It cannot be read, or names an image with two labels.
    """
    try:
        rows = [(line, row) for line, row in _rows(path) if row]
        if rows and len(rows[0][1]) < 2:
            rows = [(line, row[0].split()) for line, row in rows]
    except OSError as error:
        raise SourceError(
            f"`classes_from={path}`: cannot be read: {error.strerror}. Give top, leaf, or a table"
        ) from None
    if not rows:
        raise SourceError(f"`classes_from={path}`: has no rows")
    header = rows[0][1]
    at_image, at_label = 0, 1
    named = {cell.strip().lower() for cell in header}
    if options.image_column or options.label_column or (named & set(PATH_COLUMNS) and named & set(LABEL_COLUMNS)):
        at_image = header.index(pick(path, header, options.image_column, PATH_COLUMNS, "image"))
        at_label = header.index(pick(path, header, options.label_column, LABEL_COLUMNS, "label"))
        rows = rows[1:]
    found: dict[bytes, Any] = {}
    for line, row in rows:
        if len(row) <= max(at_image, at_label):
            raise SourceError(
                f"{path}: line {line} has {len(row)} columns, but {max(at_image, at_label) + 1} are needed"
            )
        name, label = os.fsencode(row[at_image].removeprefix("./")), row[at_label]
        if is_missing(label):
            raise SourceError(f"{path}: line {line} gives {os.fsdecode(name)} no class. Fill it in")
        if found.setdefault(name, label) != label:
            raise SourceError(f"{path}: line {line} gives {os.fsdecode(name)} a second label, {label!r}")
    return found
