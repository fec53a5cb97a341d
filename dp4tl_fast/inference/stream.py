"""Photos through a network at the loader's speed: chunks of files become .beton files in memory, and are gone after the pass.

A plain JPEG's bytes go to the native decoder as they are; what that cannot read is decoded by PIL to pixels, without loss.
While the network sees one chunk, threads read the next.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from dp4tl_fast.beton import Beton, BetonWriter, jpeg
from dp4tl_fast.beton.format import MIN_PAGE_SIZE, MODE_JPEG
from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.common.ordered import chunk_bounds, ordered_map
from dp4tl_fast.conversion.decoding import exif_orientation
from dp4tl_fast.conversion.images import ImageRule, Record, make_record
from dp4tl_fast.inference.network import Network
from dp4tl_fast.inference.photos import Photo
from dp4tl_fast.loaders import open_loader

CHUNK_BYTES, CHUNK_PHOTOS = 64 << 20, 512
IN_MEMORY = Path("/dev/shm")
MAX_SIDE = 4096  # of images that are kept as pixels for the pass

Compute = Callable[[torch.Tensor], torch.Tensor]  # normalised images ``[b, 3, size, size]`` -> rows ``[b, ...]``
Row = tuple[torch.Tensor | None, str]  # what the network made of an image, ``[...]`` on the CPU; or why it could not


@dataclass
class Chunk:
    """Photos that were read: records for a .beton, and the errors of those that are no images, by position."""

    names: list[str]
    records: dict[int, Record]
    errors: dict[int, str]


def photo_rows(
    network: Network, photos: list[Photo], of: Compute, *, orientation: str, batch_size: int, workers: int, backend: str
) -> Iterator[tuple[str, Row]]:
    """``(name, (row, error))`` of every photo, in order."""
    bounds = chunk_bounds(np.array([photo.size for photo in photos], np.int64), CHUNK_BYTES, CHUNK_PHOTOS)
    jobs = (photos[a:b] for a, b in pairwise(bounds))
    for chunk in ordered_map(partial(_read, orientation=orientation), jobs, 1):  # reading is no work: one thread stays ahead
        rows = _rows(network, chunk, of, batch_size=batch_size, workers=workers, backend=backend)
        yield from zip(chunk.names, rows, strict=True)


def _read(photos: list[Photo], orientation: str) -> Chunk:
    chunk = Chunk([photo.name for photo in photos], {}, {})
    for i, photo in enumerate(photos):
        try:
            chunk.records[i] = record_of(photo.read(), orientation)
        except OSError as error:
            chunk.errors[i] = error.strerror or str(error)
        except SourceError as error:
            chunk.errors[i] = str(error)
    return chunk


def record_of(data: bytes, orientation: str) -> Record:
    """An image file's bytes as the loaders read them: a plain JPEG's own, else pixels.

    Raises:
        SourceError: The bytes are no image, or a damaged one; damaged data in a plain JPEG are found by the loader.
    """
    if data[:2] == jpeg.SOI:
        with contextlib.suppress(ValueError):
            header = jpeg.parse(data)
            turned = orientation == "apply" and exif_orientation(data) != 1
            if not jpeg.why_not_plain(header) and not turned:
                return Record(data, MODE_JPEG, header.width, header.height, "")
            if jpeg.can_become_plain(header) and not turned:
                return make_record(data, ImageRule(write_mode="keep"), 0)
    return make_record(data, ImageRule(write_mode="raw", max_side=MAX_SIDE, exif_orientation=orientation), 0)


def _rows(
    network: Network, chunk: Chunk, of: Compute, *, batch_size: int, workers: int, backend: str
) -> list[Row]:
    rows: list[Row] = [(None, chunk.errors.get(i, "")) for i in range(len(chunk.names))]
    if not chunk.records:
        return rows
    with tempfile.TemporaryDirectory(prefix=".dp4tl-predict-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        beton = _written(Path(folder) / "photos.beton", chunk.records)
        for position, row in file_rows(network, beton, of, batch_size=batch_size, workers=workers, backend=backend):
            rows[position] = row
    return rows


def _written(path: Path, records: dict[int, Record]) -> Beton:
    """A .beton of these records, whose ``index`` is their position."""
    mode, width, height = np.array([(r.mode, r.width, r.height) for r in records.values()], np.int64).T
    with BetonWriter(path, len(records), MIN_PAGE_SIZE) as writer:
        zeros = np.zeros(len(records), np.int64)
        writer.append_many([r.payload for r in records.values()], mode, width, height, zeros, np.array(list(records), np.int64))
        writer.close()
    return Beton(path)


@torch.inference_mode()
def file_rows(
    network: Network, beton: Beton, of: Compute, *, batch_size: int, workers: int, backend: str
) -> Iterator[tuple[int, Row]]:
    """``(index, (row, error))`` of every record: those that decode in file order, batch by batch, then those that do not."""
    normalise = network.pixels.normalise(network.device)
    spec = network.pixels.spec(
        batch_size=batch_size, workers=workers, with_index=True, on_error="skip", pinned=network.device.type == "cuda"
    )
    with open_loader(beton, None, spec, backend) as loader, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # skipped records are rows
        for images, _, index in loader:
            if len(index):
                yield from zip(index.tolist(), ((row, "") for row in of(normalise(images)).float().cpu()), strict=True)
        for record, message in loader.skipped:  # "FILE: record 3 (class 0, 'x') cannot be decoded: WHY. Convert ..."
            why = message.partition(") ")[2].rpartition(". ")[0]
            yield int(beton.index[record]), (None, why or message)
