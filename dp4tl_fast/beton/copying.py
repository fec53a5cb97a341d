"""Copy records between ``.beton`` files without decoding them: subset, relayout, merge."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_fast.beton.checksum import crc32, crc32s
from dp4tl_fast.beton.entry_points import add_entry_points
from dp4tl_fast.beton.format import MODE_JPEG
from dp4tl_fast.beton.layout import record_order
from dp4tl_fast.beton.reader import Beton
from dp4tl_fast.beton.sidecars import AuditRow, Contents, info
from dp4tl_fast.beton.writer import FIELDS, BetonWriter
from dp4tl_fast.common.checks import numbers
from dp4tl_fast.common.errors import BetonError, RecordError
from dp4tl_fast.common.ordered import chunk_bounds, ordered_map

CHUNK_BYTES, CHUNK_RECORDS = 8 << 20, 512
Progress = Callable[[int], None]


def subset(beton: Beton, records: np.ndarray, out: str | Path, progress: Progress | None = None) -> dict[str, Any]:
    """Copy these records, in this order, to a new file. Labels, indices and class names stay as they are.

    Args:
        beton: Source; written by dp4tl_fast or by FFCV.
        records: Record numbers ``[n]``.
        out: The .beton to write. Its name appears when it is complete.
        progress: Called with the number of records after every chunk.

    Returns:
        ``samples``, ``classes``, ``bytes``, ``dropped_fields`` (fields other than image, label and index).

    Raises:
        RecordError: A record's bytes do not match its checksum.
        BetonError: The source is malformed.
        SelectionError: ``records`` are no such numbers.
    """
    parts = [(beton, numbers(records, beton.num_samples, f"{beton.path}: record"))]
    return copy_records(parts, out, len(records), {"copy_of": beton.fingerprint}, progress)


def relayout(
    beton: Beton,
    out: str | Path,
    layout: str = "class",
    seed: int = 0,
    progress: Progress | None = None,
    entry_points: bool = False,
) -> dict[str, Any]:
    """Copy all records into another order: what a conversion with this layout and seed would have written.

    ``entry_points`` inserts an index into JPEGs that have none, as the converter does; damaged ones are copied as they are.
    """
    index = beton.index
    plausible = len(index) and int(index.min()) >= 0 and int(index.max()) < 16 * len(index) + 2**20
    order = record_order(beton.labels, layout, seed, index if plausible else None)
    identity = {"relayout_of": beton.fingerprint, "layout": layout, "seed": seed}
    return copy_records([(beton, order)], out, len(order), identity, progress, index_jpegs=entry_points)


def copy_records(
    parts: Sequence[tuple[Beton, np.ndarray]],
    out: str | Path,
    capacity: int,
    identity: dict[str, Any],
    progress: Progress | None = None,
    summary: dict[str, Any] | None = None,
    audit: Iterable[AuditRow] | None = None,
    index_jpegs: bool = False,
) -> dict[str, Any]:
    """Copy records of several files, one after the other, to a new one; see ``subset``.

    Args:
        index_jpegs: Add entry points to JPEGs that have none.
        capacity: Records to reserve room for in the metadata table.
        identity, summary, audit: What the sidecar says of the copy; see ``sidecars.Contents``.
    """
    target = Path(out)
    for beton, _ in parts:
        if target.exists() and target.samefile(beton.real_path):
            raise BetonError(f"{target}: would overwrite the file it is copied from. Choose another name")
    names = max((beton.class_names for beton, _ in parts), key=len)
    checksums = []
    with BetonWriter(target, capacity) as writer:
        for beton, records in parts:
            images, labels, index = beton.images, beton.labels, beton.index
            for chunk in _payloads(beton, records, index_jpegs):
                some = images[chunk.records]
                mode, width, height = (some[name].astype(np.int64) for name in ("mode", "width", "height"))
                writer.append_many(chunk.payloads, mode, width, height, labels[chunk.records], index[chunk.records])
                checksums.append(chunk.checksums)
                if progress is not None:
                    progress(len(chunk.records))
        counts = {"samples": writer.count, "classes": len(names), "listed": capacity}
        described = info(identity, counts if summary is None else summary)
        writer.close(Contents(class_names=names, checksums=checksums, info=described, audit=audit))
    dropped = sorted({name for beton, _ in parts for name in beton.fields} - {name for name, _ in FIELDS})
    return {**counts, "bytes": target.stat().st_size, "dropped_fields": dropped}


@dataclass(frozen=True, slots=True)
class Payloads:
    records: np.ndarray  # record numbers, int64 [k]
    payloads: list[bytes]
    checksums: np.ndarray  # CRC-32, [k]


def _payloads(beton: Beton, records: np.ndarray, index_jpegs: bool) -> Iterator[Payloads]:
    """Read records in order, several chunks ahead, and compare checksums where the file has them."""
    from dp4tl_fast.kernels._native import keep_freed_memory

    pointers, sizes = beton.images["data_ptr"].astype(np.int64), beton.sizes
    known = beton.checksums()
    fd = os.open(beton.real_path, os.O_RDONLY | os.O_CLOEXEC)
    keep_freed_memory()  # chunk after chunk takes as much

    def read(job: np.ndarray) -> Payloads:
        beton.fetch(job)
        payloads = []
        for i, pointer, size in zip(job.tolist(), pointers[job].tolist(), sizes[job].tolist(), strict=True):
            data = os.pread(fd, size, pointer)
            if len(data) != size:
                raise RecordError(f"{beton.path}: record {i} has {size} bytes, but the file ended after {len(data)}")
            payloads.append(data)
        checksums = crc32s(payloads)
        if known is not None and (bad := checksums != known[job]).any():
            i = int(job[bad.argmax()])
            where = f"{beton.path}: record {i} (class {beton.class_names[beton.labels[i]]})"
            raise RecordError(f"{where} does not match its checksum: the file has changed on disk. Convert it again")
        chunk = Payloads(job, payloads, checksums)
        return _indexed(beton.images[job], chunk) if index_jpegs else chunk

    try:
        bounds = chunk_bounds(sizes[records], CHUNK_BYTES, CHUNK_RECORDS)
        with beton.arriving([], records):
            yield from ordered_map(read, (records[a:b] for a, b in itertools.pairwise(bounds)))
    finally:
        os.close(fd)


def _indexed(images: np.ndarray, chunk: Payloads) -> Payloads:
    """The chunk with entry points in its JPEGs; damaged ones stay as they are."""
    areas = np.where(images["mode"] == MODE_JPEG, images["width"].astype(np.int64) * images["height"], 0).tolist()
    payloads, checksums = add_entry_points(chunk.payloads, areas), chunk.checksums.copy()
    for i, (before, after) in enumerate(zip(chunk.payloads, payloads, strict=True)):
        if after is not before:
            checksums[i] = crc32(after)
    return Payloads(chunk.records, payloads, checksums)
