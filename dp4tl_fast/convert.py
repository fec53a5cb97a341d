"""``dp4tl-fast convert SRC OUT.beton``: images to a .beton laid out so that a class can be read alone."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dp4tl_fast import cli
from dp4tl_fast.beton.images import ImageRule, Record, make_record
from dp4tl_fast.beton.writer import BetonWriter
from dp4tl_fast.errors import SourceError, UsageError
from dp4tl_fast.sources import Source, open_source

LAYOUTS = ("class", "shuffled")
CHUNK_BYTES, CHUNK_RECORDS = 8 << 20, 512  # of source files; a chunk is what a worker does at once


def convert(
    src: str,
    out: str,
    *,
    layout: str = "class",
    write_mode: str = "keep",
    max_side: int = 0,
    short_side: int = 0,
    quality: int = 90,
    smart_threshold: int = 0,
    jpeg_share: float = 0.5,
    seed: int = 0,
    workers: int = 0,
    on_error: str = "fail",
) -> dict[str, Any]:
    """Convert labelled images to a .beton file that FFCV and dp4tl_fast read.

    JPEGs are stored byte for byte where every loader can read them (less EXIF and comments); all else is decoded and
    encoded anew. The same input and flags give the same bytes for any number of workers.

    Args:
        src: Folder of class folders.
        out: The .beton file to write. ``OUT.classes.json`` with the class names goes beside it.
        layout: ``class`` stores each class as one byte range, its records in random order; ``shuffled`` mixes all.
        write_mode: ``keep``, ``jpg`` (encode every image anew), ``raw`` (pixels), ``smart`` or ``proportion``.
        max_side: Shrink images whose longer side has more pixels than this; 0 keeps their size.
        short_side: Shrink images whose shorter side has more pixels than this; 0 keeps their size.
        quality: JPEG quality of images that are encoded anew.
        smart_threshold: Bytes of pixels up to which ``smart`` stores an image raw.
        jpeg_share: Share of images that ``proportion`` stores as JPEG, chosen at random; the rest is raw.
        seed: Of the random order of records.
        workers: Threads; 0 is one a core.
        on_error: ``fail`` at the first bad image, or ``skip`` it.

    Returns:
        ``samples``, ``classes``, ``bytes`` of the file, ``seconds``, ``skipped``, ``kept`` (stored byte for byte).

    Raises:
        SourceError: The source is missing, empty, or holds a bad image.
        UsageError: A flag has a value that cannot work.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"convert: layout = {layout!r}, but it must be one of {', '.join(LAYOUTS)}")
    if on_error not in ("fail", "skip"):
        raise UsageError(f"convert: on_error = {on_error!r}, but it must be fail or skip")
    if workers < 0:
        raise UsageError(f"convert: workers = {workers}, but it must be 0 (one a core) or more")
    if not 0 <= seed < 2**63:
        raise UsageError(f"convert: seed = {seed}, but it must be from 0 to 2^63 - 1")
    rule = ImageRule(
        write_mode=write_mode, max_side=max_side, short_side=short_side, quality=quality,
        smart_threshold=smart_threshold, jpeg_share=jpeg_share, seed=seed,
    )  # fmt: skip
    started = time.perf_counter()
    source = open_source(src)
    order = record_order(source.labels, layout, seed)
    skipped = kept = 0
    bar = cli.progress((), desc="convert", unit="image", total=len(order))
    with BetonWriter(out, len(order)) as writer, bar:
        for chunk in converted(source, order, rule, workers or len(os.sched_getaffinity(0)), on_error):
            labels = source.labels[chunk.index]
            writer.append_many(chunk.payloads, chunk.modes, chunk.widths, chunk.heights, labels, chunk.index)
            skipped += len(chunk.errors)
            kept += sum(not record.note for record in chunk.records)
            bar.update(len(chunk.records) + len(chunk.errors))
        writer.close(class_names=source.class_names)
    return {
        "out": out,
        "samples": writer.count,
        "classes": len(source.class_names),
        "bytes": writer.path.stat().st_size,
        "skipped": skipped,
        "kept": kept,
        "seconds": time.perf_counter() - started,
    }


def record_order(labels: np.ndarray, layout: str, seed: int) -> np.ndarray:
    """Listing positions in the order of their records: a permutation, int64 ``[n]``.

    Philox's raw output is the sort key: it is the same in every version of NumPy.
    """
    keys = np.random.Philox(key=seed).random_raw(len(labels))
    return np.lexsort((keys, labels)) if layout == "class" else np.argsort(keys, kind="stable")


@dataclass(slots=True)
class Chunk:
    """Consecutive records of the order, converted.

    Attributes:
        index: Listing positions of the records that worked, int64 ``[k]``.
        errors: (listing position, message) of those that did not.
    """

    index: np.ndarray
    records: list[Record]
    errors: list[tuple[int, str]] = field(default_factory=list)

    @property
    def payloads(self) -> list[bytes]:
        return [record.payload for record in self.records]

    def _column(self, k: int) -> np.ndarray:
        return np.array([record[k] for record in self.records], np.int64)

    @property
    def modes(self) -> np.ndarray:
        return self._column(1)

    @property
    def widths(self) -> np.ndarray:
        return self._column(2)

    @property
    def heights(self) -> np.ndarray:
        return self._column(3)


def converted(source: Source, order: np.ndarray, rule: ImageRule, workers: int, on_error: str) -> Iterator[Chunk]:
    """Convert all samples in ``order``; chunks come in order, a few of them ahead of the consumer."""
    bounds = chunk_bounds(source.sizes[order])
    pool = ThreadPoolExecutor(workers, thread_name_prefix="convert")
    waiting: deque[Future[Chunk]] = deque()
    try:
        for start, stop in itertools.pairwise(bounds):
            waiting.append(pool.submit(_convert_chunk, source, order[start:stop], rule, on_error))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def chunk_bounds(sizes: np.ndarray) -> list[int]:
    """Where chunks start, and the end: at most ``CHUNK_RECORDS`` records and about ``CHUNK_BYTES`` bytes each."""
    bounds, start = [0], 0
    total = np.cumsum(sizes)
    while start < len(sizes):
        limit = (total[start - 1] if start else 0) + CHUNK_BYTES
        start = min(start + CHUNK_RECORDS, max(start + 1, int(np.searchsorted(total, limit, "right"))))
        start = min(start, len(sizes))
        bounds.append(start)
    return bounds


def _convert_chunk(source: Source, positions: np.ndarray, rule: ImageRule, on_error: str) -> Chunk:
    good, records, errors = [], [], []
    for i in positions.tolist():
        try:
            records.append(make_record(source.read(i), rule, i))
            good.append(i)
        except (SourceError, OSError) as error:
            if on_error == "fail":
                raise SourceError(f"{source.name(i)}: {error}. Repair or remove it, or give --on-error skip") from None
            errors.append((i, str(error)))
    return Chunk(np.array(good, np.int64), records, errors)


def main(argv: list[str] | None = None) -> int:
    return cli.run(convert, argv, positional=True)


if __name__ == "__main__":
    sys.exit(main())
