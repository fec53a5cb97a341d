"""Records of a source in a given order, made by several threads, in chunks that come out in order.

Threads suffice: reading, checksums and PIL's codecs run outside the interpreter lock.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dp4tl_fast.beton.checksum import crc32s
from dp4tl_fast.common.content import UNFINISHED
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.common.ordered import chunk_bounds, ordered_map
from dp4tl_fast.conversion.images import Draft, ImageRule, Record, check_records, draft_record
from dp4tl_fast.sources.base import Source

CHUNK_BYTES, CHUNK_RECORDS = 8 << 20, 512  # of source files; a chunk is one job of a worker


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive samples of the order, converted.

    Attributes:
        positions: Listing positions of the samples, int64 ``[n]``.
        index: Of those that became records, int64 ``[k]``.
        records: The records, ``k`` of them.
        checksums: CRC-32 of the payloads, ``[k]``.
        notes: (listing position, number among ``records`` or -1, why it is not the file's own bytes, or not stored at
            all), in the order of ``positions``.
    """

    positions: np.ndarray
    index: np.ndarray
    records: list[Record]
    checksums: np.ndarray
    notes: list[tuple[int, int, str]]

    def column(self, name: str) -> np.ndarray:
        """``mode``, ``width`` or ``height`` of the records, int64 ``[k]``."""
        return np.fromiter((getattr(record, name) for record in self.records), np.int64, len(self.records))


def converted(source: Source, order: np.ndarray, rule: ImageRule, *, workers: int, skip: bool) -> Iterator[Chunk]:
    """Convert all samples in ``order``; chunks come in order.

    Raises:
        SourceError: An image cannot be stored, and it is not to be skipped.
    """
    from dp4tl_fast.kernels._native import keep_freed_memory

    keep_freed_memory()  # chunk after chunk takes as much
    bounds = chunk_bounds(source.sizes[order], CHUNK_BYTES, CHUNK_RECORDS)
    jobs = (order[start:stop] for start, stop in itertools.pairwise(bounds))
    return ordered_map(lambda positions: convert_chunk(source, positions, rule, skip), jobs, workers)


def convert_chunk(source: Source, positions: np.ndarray, rule: ImageRule, skip: bool) -> Chunk:
    """What a worker does: read and convert these samples. Their JPEGs are checked together, which takes less time."""
    drafts: list[Draft] = []
    made: list[int | Exception] = []  # of each position: its place among the drafts, or what is wrong
    for i in positions.tolist():
        try:
            draft = draft_record(source.read(i), rule, i)
        except (SourceError, OSError) as error:
            made.append(error)
            if skip:
                continue
            break  # unless one before it is wrong, too
        made.append(len(drafts))
        drafts.append(draft)
    checked = check_records(drafts, rule)
    index: list[int] = []
    records: list[Record] = []
    notes: list[tuple[int, int, str]] = []
    for i, place in zip(positions.tolist(), made, strict=False):
        record = checked[place] if isinstance(place, int) else place
        if isinstance(record, Exception):
            name = source.name(i)
            why = (isinstance(record, OSError) and record.strerror) or str(record)
            why = f"it is an unfinished download: {why}" if name.lower().endswith(UNFINISHED) else why
            if not skip:
                raise SourceError(f"{name}: {why}. Repair or remove it, or give `on_error=skip`") from None
            notes.append((i, -1, why))
            continue
        if record.note:
            notes.append((i, len(records), record.note))
        records.append(record)
        index.append(i)
    checksums = crc32s([record.payload for record in records])
    return Chunk(positions, np.array(index, np.int64), records, checksums, notes)
