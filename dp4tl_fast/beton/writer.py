"""Write ``.beton`` files: payloads in order, pages filled one after the other, tables last, then sync and rename."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType

import numpy as np

from dp4tl_fast.beton import format as fmt
from dp4tl_fast.beton.reader import classes_path
from dp4tl_fast.errors import BetonError
from dp4tl_fast.files import commit, partial_path, write_atomically

FIELDS = (("image", fmt.TYPE_RGB), ("label", fmt.TYPE_INT), ("index", fmt.TYPE_INT))


class BetonWriter:
    """Append records to ``OUT.beton``; the file appears under its name only when it is complete.

    Args:
        path: Final path. Written as ``.<name>.partial`` beside it, synced, and renamed on a clean exit; removed on an error.
        capacity: Upper bound on the number of records: the space reserved for the metadata table.
        page_size: Bytes, a power of two that holds the largest record.

    Use it as a context manager.
    """

    def __init__(self, path: str | Path, capacity: int, page_size: int = fmt.DEFAULT_PAGE_SIZE) -> None:
        self.path = Path(path)
        self.partial = partial_path(self.path)
        if page_size & (page_size - 1) or not fmt.MIN_PAGE_SIZE <= page_size <= fmt.MAX_PAGE_SIZE:
            raise BetonError(f"page size {page_size} is not a power of two from {fmt.MIN_PAGE_SIZE} to {fmt.MAX_PAGE_SIZE}")
        self.page_size = page_size
        self._metadata = np.zeros(capacity, fmt.metadata_dtype([type_id for _, type_id in FIELDS]))
        self._allocations = np.zeros(capacity, fmt.ALLOCATION)
        self._count = 0
        self._table_start = 24 + fmt.FIELD.itemsize * len(FIELDS)
        self._position = fmt.round_up(self._table_start + self._metadata.nbytes, page_size)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.partial, "wb", buffering=1 << 20)
        self._file.seek(self._position)

    def append(self, payload: bytes | memoryview, mode: int, width: int, height: int, label: int, index: int) -> int:
        """Write one record and return its number. ``mode`` is ``format.MODE_JPEG`` or ``MODE_RAW`` (RGB rows)."""
        size = len(payload)
        if size > self.page_size:
            raise BetonError(f"a record of {size} bytes does not fit a page of {self.page_size} bytes. Use larger pages")
        if not (1 <= width <= fmt.MAX_SIDE and 1 <= height <= fmt.MAX_SIDE):
            raise BetonError(f"an image of {width} x {height} pixels cannot be stored: sides go from 1 to {fmt.MAX_SIDE}")
        if mode == fmt.MODE_RAW and size != width * height * 3:
            raise BetonError(f"a raw image of {width} x {height} needs {width * height * 3} bytes, not {size}")
        room = self.page_size - self._position % self.page_size
        if size > room:  # never straddle a page
            self._file.write(bytes(room))
            self._position += room
        self._file.write(payload)
        i = self._count
        self._metadata[i] = ((mode, width, height, self._position), label, index)
        self._allocations[i] = (i, self._position, size)
        self._position += size
        self._count += 1
        return i

    def close(self, class_names: list[str] | None = None) -> None:
        """Write the tables, sync, rename. ``class_names`` goes into the sidecar ``OUT.classes.json``."""
        end = fmt.round_up(self._position, self.page_size)
        self._file.write(bytes(end - self._position))
        self._file.write(self._allocations[: self._count].tobytes())
        header = np.zeros(1, fmt.HEADER)
        header[0] = (fmt.VERSION, len(FIELDS), self.page_size, self._count, end)
        fields = np.zeros(len(FIELDS), fmt.FIELD)
        for row, (name, type_id) in zip(fields, FIELDS, strict=True):
            row["type_id"] = type_id
            row["name"][: len(name)] = list(name.encode())
        self._file.seek(0)
        self._file.write(header.tobytes() + fields.tobytes() + self._metadata[: self._count].tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if class_names is not None:
            write_classes(self.path, class_names)
        commit(self.partial, self.path)

    def __enter__(self) -> BetonWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not self._file.closed:
            self._file.close()
            self.partial.unlink(missing_ok=True)


def write_classes(beton: str | Path, names: list[str]) -> None:
    """Write the class list beside a ``.beton`` file."""
    write_atomically(classes_path(beton), json.dumps([{"id": i, "name": n} for i, n in enumerate(names)], indent=1))
