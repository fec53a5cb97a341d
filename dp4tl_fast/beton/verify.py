"""Check a whole ``.beton`` file: tables, pages, checksums, headers, and on request every pixel."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import numpy as np

from dp4tl_fast.beton import format as fmt
from dp4tl_fast.beton import jpeg
from dp4tl_fast.beton.checksum import crc32
from dp4tl_fast.beton.entry_points import check as check_jpeg
from dp4tl_fast.beton.reader import Beton
from dp4tl_fast.common.errors import RecordError
from dp4tl_fast.common.ordered import chunk_bounds, ordered_map
from dp4tl_fast.common.pictures import open_picture


def verify(
    beton: Beton, *, decode: bool = False, workers: int = 0, progress: Callable[[int], None] | None = None
) -> dict[str, int | bool]:
    """Check every pointer and size, every record's checksum (where the file has them) and header; decode on request.

    Returns:
        ``records`` checked, ``checksums``: whether there were any, ``decoded``.

    Raises:
        BetonError: The first fault found, with record and class.
    """
    _check_tables(beton)
    checksums = beton.checksums()
    pointers, sizes = beton.images["data_ptr"].astype(np.int64), beton.sizes
    shapes = beton.images[["mode", "width", "height"]]
    fd = os.open(beton.real_path, os.O_RDONLY | os.O_CLOEXEC)

    def check(records: np.ndarray) -> int:
        beton.fetch(records)
        expected = checksums[records].tolist() if checksums is not None else itertools.repeat(None)
        columns = (records.tolist(), pointers[records].tolist(), sizes[records].tolist(), shapes[records].tolist())
        for i, pointer, size, shape, checksum in zip(*columns, expected, strict=False):
            data = os.pread(fd, size, pointer)
            fault = "" if len(data) == size else f"has {size} bytes, but the file ends after {len(data)} of them"
            if not fault and checksum is not None and crc32(data) != checksum:
                fault = "does not match its checksum"
            if fault := fault or _fault(data, shape, decode):
                where = f"{beton.path}: record {i} (class {beton.class_names[beton.labels[i]]})"
                raise RecordError(f"{where} {fault}. Convert the file again")
        return len(records)

    in_file_order = np.argsort(pointers, kind="stable")
    bounds = chunk_bounds(sizes[in_file_order], 8 << 20, 512)
    jobs = (in_file_order[a:b] for a, b in itertools.pairwise(bounds))
    try:
        with beton.arriving([], in_file_order):
            for done in ordered_map(check, jobs, workers):
                if progress is not None:
                    progress(done)
    finally:
        os.close(fd)
    return {"records": beton.num_samples, "checksums": checksums is not None, "decoded": decode}


def _check_tables(beton: Beton) -> None:
    """Every record inside the pages (``Beton.sizes`` checks it), on one page, and overlapping no other."""
    sizes, labels = beton.sizes, beton.labels
    start = beton.images["data_ptr"].astype(np.int64)
    if len(labels) == 0:
        return

    def fail(bad: np.ndarray, what: str) -> None:
        if bad.any():
            i = int(bad.argmax())
            raise RecordError(f"{beton.path}: record {i} (class {int(labels[i])}) {what}. Convert the file again")

    mode, width, height = (beton.images[name].astype(np.int64) for name in ("mode", "width", "height"))
    fail(start // beton.page_size != (start + np.maximum(sizes, 1) - 1) // beton.page_size, "lies on two pages")
    fail((mode != fmt.MODE_JPEG) & (mode != fmt.MODE_RAW), "is stored in an unknown mode")
    fail((width == 0) | (height == 0), "has no pixels")
    fail((mode == fmt.MODE_RAW) & (sizes != width * height * 3), "is raw, but its bytes are not width x height x 3")
    order = np.argsort(start, kind="stable")
    overlaps = np.zeros(len(start), bool)
    overlaps[order[1:]] = start[order[1:]] < (start + sizes)[order[:-1]]
    fail(overlaps, "overlaps another")


def _fault(data: bytes, shape: tuple[int, int, int], decode: bool) -> str:
    """What is wrong with a record's bytes, given its mode, width and height; empty when nothing is."""
    mode, width, height = shape
    if mode == fmt.MODE_RAW:
        return ""
    try:
        header = jpeg.parse(data)
    except ValueError as error:
        return f"is no JPEG ({error})"
    if (header.width, header.height) != (width, height):
        return f"is {header.width} x {header.height}, but the table says {width} x {height}"
    if not header.stop:
        return "is a JPEG without an end marker"
    try:
        check_jpeg(data)
    except RuntimeError as error:
        return f"cannot be decoded ({error})"
    if decode:
        try:
            with open_picture(data) as image:
                image.load()
        except Exception as error:  # a decoder of someone else's may raise anything over damaged data
            return f"cannot be decoded ({error})"
    return ""
