"""Records of a source in a given order, made by several threads, in chunks that come out in order.

Threads suffice: reading, checksums and PIL's codecs run outside the interpreter lock.
"""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dp4tl_fast.beton.images import ImageRule, Record, make_record
from dp4tl_fast.errors import SourceError
from dp4tl_fast.sources.base import Source

CHUNK_BYTES, CHUNK_RECORDS = 8 << 20, 512  # of source files; a chunk is what a worker does at once


def record_order(labels: np.ndarray, layout: str, seed: int) -> np.ndarray:
    """Listing positions in the order of their records: a permutation, int64 ``[n]``.

    Philox's raw output is the sort key: it is the same in every version of NumPy.
    """
    keys = np.random.Philox(key=seed).random_raw(len(labels))
    return np.lexsort((keys, labels)) if layout == "class" else np.argsort(keys, kind="stable")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive samples of the order, converted.

    Attributes:
        positions: Listing positions of the samples, int64 ``[n]``.
        index: Of those that became records, int64 ``[k]``.
        records: The records, ``k`` of them.
        checksums: CRC-32 of the payloads, ``[k]``.
        errors: (listing position, message) of the others.
    """

    positions: np.ndarray
    index: np.ndarray
    records: list[Record]
    checksums: np.ndarray
    errors: list[tuple[int, str]]

    def column(self, name: str) -> np.ndarray:
        """``mode``, ``width`` or ``height`` of the records, int64 ``[k]``."""
        return np.fromiter((getattr(record, name) for record in self.records), np.int64, len(self.records))


def converted(source: Source, order: np.ndarray, rule: ImageRule, *, workers: int, skip: bool) -> Iterator[Chunk]:
    """Convert all samples in ``order``; chunks come in order, at most ``2 * workers`` of them ahead of the consumer.

    Raises:
        SourceError: An image cannot be stored, and it is not to be skipped.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="convert")
    waiting: deque[Future[Chunk]] = deque()
    try:
        for start, stop in itertools.pairwise(chunk_bounds(source.sizes[order])):
            waiting.append(pool.submit(convert_chunk, source, order[start:stop], rule, skip))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def chunk_bounds(sizes: np.ndarray) -> list[int]:
    """Where chunks start, and the end: at most ``CHUNK_RECORDS`` samples and about ``CHUNK_BYTES`` bytes each."""
    total = np.cumsum(sizes)
    bounds = [0]
    while (start := bounds[-1]) < len(sizes):
        limit = (total[start - 1] if start else 0) + CHUNK_BYTES
        by_bytes = max(start + 1, int(np.searchsorted(total, limit, "right")))
        bounds.append(min(start + CHUNK_RECORDS, by_bytes, len(sizes)))
    return bounds


def convert_chunk(source: Source, positions: np.ndarray, rule: ImageRule, skip: bool) -> Chunk:
    """What a worker does: read and convert these samples."""
    index: list[int] = []
    records: list[Record] = []
    errors: list[tuple[int, str]] = []
    for i in positions.tolist():
        try:
            records.append(make_record(source.read(i), rule, i))
            index.append(i)
        except (SourceError, OSError) as error:
            if not skip:
                remedy = "Repair or remove it, or give --on-error skip"
                raise SourceError(f"{source.name(i)}: {error}. {remedy}") from None
            errors.append((i, str(error)))
    checksums = np.fromiter((zlib.crc32(record.payload) for record in records), np.uint32, len(records))
    return Chunk(positions, np.array(index, np.int64), records, checksums, errors)
