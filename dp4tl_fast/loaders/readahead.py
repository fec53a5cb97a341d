"""Read exactly the records that are wanted, for backends that take the stored bytes of a whole batch.

They are read, not mapped: touching a mapped page of a file that has shrunk kills the process (SIGBUS). The system is asked for the
exact range of each record some batches before, and reads nothing ahead by itself: that would be pruned records.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Generator, Iterable

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.loaders.decode import decode_record

BATCHES_AHEAD = 3


class StoredRecords:
    """What is stored of the records of ``beton``: for one loader, from a descriptor of its own.

    Attributes:
        rows: ``beton.images``, copied: the table is mapped, too.
    """

    def __init__(self, beton: Beton) -> None:
        self._beton = beton
        self.rows: np.ndarray = np.array(beton.images)
        self._fd = os.open(beton.open_path, os.O_RDONLY | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._fd)
        self._close.atexit = False  # a thread may be reading still
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def fetched(self, batches: Iterable[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """The batches of record numbers, each after the system was told to read the records of those that follow."""
        waiting: list[np.ndarray] = []
        for records in batches:
            _, starts, lengths = self.runs(records)
            for start, length in zip(starts, lengths, strict=True):
                os.posix_fadvise(self._fd, start, length, os.POSIX_FADV_WILLNEED)
            waiting.append(records)
            if len(waiting) > BATCHES_AHEAD:
                yield waiting.pop(0)
        yield from waiting

    def read(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bytes of these records in new memory.

        Returns:
            Bytes, uint8 ``[total]``, and where each record's begin, int64 ``[n]``: record i is
            ``bytes[at[i] : at[i] + beton.sizes[records[i]]]``.

        Raises:
            BetonError: The file has shrunk, or cannot be read.
        """
        at, starts, lengths = self.runs(records)
        buffer = np.empty(sum(lengths), np.uint8)
        done = 0
        for start, length in zip(starts, lengths, strict=True):
            self._beton.read_into(start, buffer[done : done + length], self._fd)
            done += length
        return buffer, at

    def pixels(self, record: int) -> np.ndarray:
        """Of one record, by the reference decoder: uint8 ``[height, width, 3]``, RGB.

        Raises:
            RecordError: The stored bytes are not an image of the size that the file states.
            BetonError: The file has shrunk, or cannot be read.
        """
        return decode_record(self._beton, record, self.rows[record], self.read(np.array([record]))[0])

    def runs(self, records: np.ndarray) -> tuple[np.ndarray, list[int], list[int]]:
        """The stretches of the file that hold these records, adjoining ones joined.

        Returns:
            Where each record begins in the stretches put one after another, int64 ``[n]``; and the stretches' starts in the file
            and lengths, in bytes.
        """
        start = self.rows["data_ptr"][records].astype(np.int64)
        order = np.argsort(start, kind="stable")  # FFCV's writers do not store records in the order of their numbers
        start, sizes = start[order], self._beton.sizes[records][order]
        first = np.flatnonzero(np.r_[True, start[1:] != (start + sizes)[:-1]])
        at = np.empty(len(records), np.int64)
        at[order] = np.cumsum(sizes) - sizes
        return at, start[first].tolist(), np.add.reduceat(sizes, first).tolist()

    def close(self) -> None:
        """May be called twice."""
        self._close()
