"""Seconds and memory at ImageNet's size: convert a tree of 200,000 files; open, select from, load from and verify 1,281,167
records, and the same without converting and verifying of ImageNet-21k's 14,197,122.

Every task runs in a process of its own, which reports its seconds and its peak resident memory (mapped tables count).
The files and records are tiny: what is measured is the cost of their number, not of their bytes. Converting and verifying are done
with a tenth of the files, records and classes, too: the line through both points gives ImageNet-21k on paper, as if its 21,841
classes were as large as ImageNet-1k's (they have half as many images). Last, images per second from every fifth class of a file
of photographs against those of a file that holds nothing else. A few minutes and 1.5 GB of disk on 2 cores.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.child import call
from benchmarks.children import cost
from benchmarks.gpu_day.photos import photos
from benchmarks.harness import Suite, interleave
from benchmarks.many_records import many_records
from dp4tl_fast.beton import Beton
from dp4tl_fast.beton import format as fmt
from dp4tl_fast.beton.copying import copy_records
from dp4tl_fast.loaders import BaseLoader, LoaderSpec, open_loader

FILES, CLASSES = 200_000, 1000
RECORDS = 1_281_167  # ImageNet-1k's training images
IMAGES_21K, CLASSES_21K = 14_197_122, 21_841  # ImageNet-21k of fall 2011
SHARE = 10  # the small subjects have a tenth
PHOTOS = 6_000

WHAT = {
    "convert": "convert {:,} files",
    "open": "open {:,} records for loading",
    "select": "select a fifth of the classes of {:,} records",
    "batch": "first shuffled batch of {:,} records",
    "verify": "verify {:,} records",
}
TABLES = ("open", "select", "batch")  # tasks that read no record, or few: done with ImageNet-21k's number, too


def run(suite: Suite) -> None:
    with tempfile.TemporaryDirectory(prefix="dp4tl-scale-", dir=suite.data) as scratch:
        subjects, tables = _prepare(Path(scratch))
        peaks: dict[tuple[str, int], list[float]] = {key: [] for key in subjects}

        def measure(key: tuple[str, int]) -> float:
            seconds, peak = call(cost, task=key[0], **subjects[key])
            peaks[key].append(peak)
            return seconds

        labels = {f"{task} {n}": (task, n) for task, n in subjects}
        measured = interleave({label: partial(measure, key) for label, key in labels.items()}, warmup=1)
        _scattered(suite, Path(scratch))
    seconds = {labels[label]: values for label, values in measured.items()}
    peaks = {key: values[1:] for key, values in peaks.items()}  # without the warm-up's
    for name, what in WHAT.items():
        counts = sorted(n for task, n in subjects if task == name)
        for n in counts:
            suite.add(what.format(n), {"dp4tl_fast": seconds[name, n]}, "s")
            suite.add(f"{what.format(n)}, peak memory", {"dp4tl_fast": peaks[name, n]}, "MiB")
        if IMAGES_21K in counts:
            continue
        case = f"on paper, ImageNet-21k: {what.format(IMAGES_21K)}"
        for suffix, values, unit in (("", seconds, "s"), (", peak memory", peaks, "MiB")):
            suite.add(f"{case}{suffix}", {"dp4tl_fast": _at_21k(counts, [values[name, n] for n in counts])}, unit)
    size = tables * IMAGES_21K / 2**20
    suite.add("on paper, ImageNet-21k: tables in the file", {"dp4tl_fast": [size]}, "MiB")
    suite.goal("first-batch-21k-seconds", goal=1.0, measured=median(seconds["batch", IMAGES_21K]), unit="s", at_most=True)


def _at_21k(counts: list[int], values: list[list[float]]) -> list[float]:
    """Round by round, the line through (small, its value) and (large, its value) at ImageNet-21k's images."""
    small, large = counts
    factor = (IMAGES_21K - large) / (large - small)
    return [high + factor * (high - low) for low, high in zip(*values, strict=True)]


def _prepare(folder: Path) -> tuple[dict[tuple[str, int], dict[str, str]], float]:
    """Arguments of each (task, number of files or records), and the bytes of the tables per record."""
    subjects = {}
    for share in (SHARE, 1):
        place, files, records, classes = folder / f"{share}", FILES // share, RECORDS // share, CLASSES // share
        place.mkdir()
        tree, file = place / "tree", place / "large.beton"
        _tree(tree, files, classes)
        _records(file, records, classes)
        subjects["convert", files] = {"tree": str(tree), "out": str(place / "out.beton")}
        subjects |= {(task, records): {"file": str(file)} for task in WHAT if task != "convert"}
    huge = folder / "huge.beton"
    many_records(folder / f"{SHARE}" / "large.beton", huge, IMAGES_21K, CLASSES_21K)
    subjects |= {(task, IMAGES_21K): {"file": str(huge)} for task in TABLES}
    beton = Beton(file)
    return subjects, beton.metadata.dtype.itemsize + fmt.ALLOCATION.itemsize


def _scattered(suite: Suite, folder: Path) -> None:
    """Images per second from every fifth class of many, as a selection and as a file of its own."""
    found = photos(folder, PHOTOS, min(100, PHOTOS // 10), 200, 150)
    kept = np.flatnonzero(found.labels % 5 == 0)
    alone = folder / "alone.beton"
    copy_records([(found, kept)], alone, len(kept), {})
    spec = LoaderSpec(batch_size=64, size=96, transform="random_resized_crop", shuffle=True)

    def epoch_of(loader: BaseLoader) -> Callable[[], float]:
        def images_per_second() -> float:
            start = time.perf_counter()
            images = sum(len(batch.labels) for batch in loader)
            return images / (time.perf_counter() - start)

        return images_per_second

    with open_loader(found, kept, spec) as scattered, open_loader(alone, None, spec) as contiguous:
        speeds = interleave({"selection": epoch_of(scattered), "own file": epoch_of(contiguous)}, rounds=11)
    rows = suite.add("images of every fifth class", speeds, "images/s", ratio_to="own file")
    suite.goal("scattered-selection", goal=0.95, measured=rows["selection"].ratio or 0.0, unit="x a file of its own")


def _tree(root: Path, files: int, classes: int) -> None:
    """JPEGs of 8 x 8 pixels in class folders, as many in each."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 90)).save(out, "JPEG")
    for c in range(classes):
        folder = root / f"n{c:08}"
        folder.mkdir(parents=True)
        for i in range(files // classes):
            (folder / f"{folder.name}_{i}.JPEG").write_bytes(out.getvalue())


def _records(path: Path, records: int, classes: int) -> None:
    """Raw images of one pixel with checksums."""
    import zlib

    from dp4tl_fast.beton import BetonWriter
    from dp4tl_fast.beton.sidecars import Contents

    labels = np.arange(records) * classes // records
    pixel = b"abc"
    with BetonWriter(path, records) as writer:
        for start in range(0, records, 4096):
            part = np.arange(start, min(start + 4096, records))
            ones = np.ones(len(part), np.int64)
            writer.append_many([pixel] * len(part), ones, ones, ones, labels[part], part)
        names, checksums = [f"n{c:08}" for c in range(classes)], np.full(records, zlib.crc32(pixel), np.uint32)
        writer.close(Contents(class_names=names, checksums=[checksums]))
