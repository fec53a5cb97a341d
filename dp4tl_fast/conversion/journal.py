"""What an interrupted conversion has finished: one frame per chunk, appended as soon as the chunk's payloads are written.

    file   = identity frame, chunk frame, chunk frame, ...
    frame  = length u4, crc32 of the body u4, body
    chunk  = counts (consumed, records) u4 x 2, metadata rows, checksums u4 [records], audit lines (JSON)

A frame whose checksum is wrong was torn by a crash: it and all after it are dropped. Payloads are read back against
their checksums before they are trusted, from the last synced position on: a power failure may have lost them.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.beton.checksum import crc32
from dp4tl_fast.beton.sidecars import CHECKSUM
from dp4tl_fast.beton.writer import ROW
from dp4tl_fast.common.files import naming

_HEAD = np.dtype([("length", "<u4"), ("crc", "<u4")])
_COUNTS = np.dtype([("consumed", "<u4"), ("records", "<u4"), ("synced", "<u8")])

AuditRow = tuple[int, int, str]  # listing position, record number or -1, what happened


@dataclass(frozen=True, slots=True)
class Frame:
    """One finished chunk.

    Attributes:
        consumed: Samples of the order it used up: its records and the images that were skipped.
        synced: File position up to which payloads were known to be on the disk when it was written.
        rows, sizes, checksums: Metadata (``[k]``), stored bytes and CRC-32 of its records.
        audit: What was not stored byte for byte.
    """

    consumed: int
    synced: int
    rows: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray
    audit: list[AuditRow]

    def pack(self) -> bytes:
        counts = np.array([(self.consumed, len(self.rows), self.synced)], _COUNTS)
        tables = (counts, self.rows, self.sizes.astype("<i8"), self.checksums.astype(CHECKSUM))
        return b"".join(t.tobytes() for t in tables) + json.dumps(self.audit).encode()

    @classmethod
    def unpack(cls, body: bytes) -> Frame:
        counts = np.frombuffer(body, _COUNTS, 1)[0]
        k, start = int(counts["records"]), _COUNTS.itemsize
        sizes_at = start + ROW.itemsize * k
        checksums_at = sizes_at + 8 * k
        return cls(
            consumed=int(counts["consumed"]),
            synced=int(counts["synced"]),
            rows=np.frombuffer(body, ROW, k, start),
            sizes=np.frombuffer(body, "<i8", k, sizes_at),
            checksums=np.frombuffer(body, CHECKSUM, k, checksums_at),
            audit=[(i, record, what) for i, record, what in json.loads(body[checksums_at + 4 * k :])],
        )


class Journal:
    """The journal of one output file. ``identity`` says what is being converted, and how."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None

    def frames(self, identity: dict[str, Any]) -> Iterator[Frame] | None:
        """The intact chunk frames, or ``None`` when there is no journal of this very conversion."""
        bodies = self._bodies()
        first = next(bodies, None)
        if first is None or first[1] != _identity_bytes(identity):
            return None
        return (Frame.unpack(body) for _, body in bodies)

    def is_of_another(self, identity: dict[str, Any]) -> bool:
        """Whether it belongs to a conversion of other input or with other flags."""
        first = next(self._bodies(), None)
        return first is not None and first[1] != _identity_bytes(identity)

    def _bodies(self) -> Iterator[tuple[int, bytes]]:
        """(end position, body) of the intact frames."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115  # closed by the `with` below
        except FileNotFoundError:
            return
        with file:
            while len(head := file.read(_HEAD.itemsize)) == _HEAD.itemsize:
                length, crc = (int(v) for v in np.frombuffer(head, _HEAD)[0])
                body = file.read(length)
                if len(body) != length or zlib.crc32(body) != crc:
                    return
                yield file.tell(), body

    def start(self, identity: dict[str, Any]) -> None:
        """Begin an empty journal."""
        self._file = open(self.path, "wb", buffering=0)  # noqa: SIM115  # closed by close()
        self._append(_identity_bytes(identity))

    def go_on(self, chunks: int) -> None:
        """Append after the first ``chunks`` chunk frames; what follows them is dropped."""
        ends = [end for end, _ in self._bodies()]
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115  # closed by close()
        self._file.truncate(ends[chunks])
        self._file.seek(ends[chunks])

    def append(self, frame: Frame) -> None:
        self._append(frame.pack())

    def _append(self, body: bytes) -> None:
        head = np.array([(len(body), zlib.crc32(body))], _HEAD).tobytes()
        data = memoryview(head + body)
        with naming(self.path):
            while data:
                data = data[self._file.write(data) :]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


def _identity_bytes(identity: dict[str, Any]) -> bytes:
    return json.dumps(identity, sort_keys=True).encode()


def journal_path(beton: Path) -> Path:
    return beton.with_name(f".{beton.name}.journal")


def payloads_are_intact(fd: int, frame: Frame) -> bool:
    """Read a chunk's payloads back and compare their checksums."""
    pointers = frame.rows["f0"]["data_ptr"].tolist()
    for pointer, size, checksum in zip(pointers, frame.sizes.tolist(), frame.checksums.tolist(), strict=True):
        if crc32(os.pread(fd, size, pointer)) != checksum:
            return False
    return True
