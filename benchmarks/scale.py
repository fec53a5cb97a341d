"""Seconds and memory at ImageNet's size: convert a tree of 200,000 files; open, select from and verify 1,281,167 records.

Every task runs in a process of its own, which reports its seconds and its peak resident memory (mapped tables count).
The files and records are tiny: what is measured is the cost of their number, not of their bytes. Everything is done with a
tenth of the files, records and classes, too: the line through both points gives ImageNet-21k on paper, as if its 21,841
classes were as large as ImageNet-1k's (they have half as many images). A few minutes on 2 cores.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.child import call
from benchmarks.children import cost
from benchmarks.harness import Suite, interleave
from dp4tl_fast.beton import Beton
from dp4tl_fast.beton import format as fmt

FILES, CLASSES = 200_000, 1000
RECORDS = 1_281_167  # ImageNet-1k's training images
IMAGES_21K = 14_197_122  # ImageNet-21k of fall 2011
SHARE = 10  # the small subjects have a tenth

WHAT = {
    "convert": "convert {:,} files",
    "open": "open {:,} records for loading",
    "select": "select a fifth of the classes of {:,} records",
    "verify": "verify {:,} records",
}


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
    seconds = {labels[label]: values for label, values in measured.items()}
    peaks = {key: values[1:] for key, values in peaks.items()}  # without the warm-up's
    for name, what in WHAT.items():
        counts = sorted(n for task, n in subjects if task == name)
        for n in counts:
            suite.add(what.format(n), {"dp4tl_fast": seconds[name, n]}, "s")
            suite.add(f"{what.format(n)}, peak memory", {"dp4tl_fast": peaks[name, n]}, "MiB")
        case = f"on paper, ImageNet-21k: {what.format(IMAGES_21K)}"
        for suffix, values, unit in (("", seconds, "s"), (", peak memory", peaks, "MiB")):
            suite.add(f"{case}{suffix}", {"dp4tl_fast": _at_21k(counts, [values[name, n] for n in counts])}, unit)
    size = tables * IMAGES_21K / 2**20
    suite.add("on paper, ImageNet-21k: tables in the file", {"dp4tl_fast": [size]}, "MiB")


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
    beton = Beton(file)
    return subjects, beton.metadata.dtype.itemsize + fmt.ALLOCATION.itemsize


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
