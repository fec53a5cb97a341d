"""Read exactly the records that are wanted into the page cache, for backends that decode from a memory map.

By itself the kernel reads ahead around every page fault: with scattered records several times the wanted bytes. So the
map is marked as randomly read, and each record is asked for as a whole, some batches before it is decoded.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Generator, Iterable

import numpy as np

from dp4tl_fast.beton import Beton

BATCHES_AHEAD = 3


def no_readahead(mapping: np.memmap) -> None:
    """Let a fault in the map read its own page only."""
    mapping._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]


def fetched(beton: Beton, batches: Iterable[np.ndarray]) -> Generator[np.ndarray, None, None]:
    """The batches of record numbers, each after the system was told to read the records of those that follow."""
    fd = os.open(beton.real_path, os.O_RDONLY)
    try:
        waiting: list[np.ndarray] = []
        for records in batches:
            for start, length in runs(beton, records):
                os.posix_fadvise(fd, start, length, os.POSIX_FADV_WILLNEED)
            waiting.append(records)
            if len(waiting) > BATCHES_AHEAD:
                yield waiting.pop(0)
        yield from waiting
    finally:
        os.close(fd)


def runs(beton: Beton, records: np.ndarray) -> list[tuple[int, int]]:
    """Start and length in bytes of the stretches of the file that hold these records, adjoining ones joined."""
    start = beton.images["data_ptr"][records].astype(np.int64)
    order = np.argsort(start)  # FFCV's writers do not store records in the order of their numbers
    start, stop = start[order], (start + beton.sizes[records])[order]
    first = np.flatnonzero(np.r_[True, start[1:] != stop[:-1]])
    last = np.r_[first[1:] - 1, len(start) - 1]
    return list(zip(start[first].tolist(), (stop[last] - start[first]).tolist(), strict=True))
