"""Seconds and memory at ImageNet's size: convert a tree of 200,000 files; open, select from and verify 1,281,167 records.

Every subject runs in a process of its own, which reports its seconds and its peak resident memory (mapped tables count).
The files and records are tiny: what is measured is the cost of their number, not of their bytes. Everything is done with a
tenth of the files, records and classes, too: the line through both points gives ImageNet-21k on paper, as if its 21,841
classes were as large as ImageNet-1k's (they have half as many images each). A few minutes on 2 cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.harness import Suite, interleave
from benchmarks.startup import child
from dp4tl_fast.beton import Beton
from dp4tl_fast.beton import format as fmt

FILES, CLASSES = 200_000, 1000
RECORDS = 1_281_167  # ImageNet-1k's training images
IMAGES_21K = 14_197_122  # ImageNet-21k of fall 2011
SHARE = 10  # the small ones have one in ten

SUBJECTS = {
    "convert": """
from dp4tl_fast.conversion.run import convert
convert("TREE", "OUT", workers=2)
""",
    "open": """
from dp4tl_fast.beton import Beton
from dp4tl_fast.kernels import _native
beton, core = Beton("FILE"), _native.Beton("FILE")
assert len(core) == len(beton.labels) == len(beton.sizes) == beton.num_samples
""",
    "select": """
import numpy as np
from dp4tl_fast.beton import Beton
from dp4tl_fast.selection import Selection
beton = Beton("FILE")
kept = np.arange(beton.num_classes // 5) * 5
selection = Selection.of_classes(beton, kept, method="benchmark", scores=np.zeros(beton.num_classes))
records = selection.indices(beton)
assert len(records) and beton.sizes[records].min() > 0
""",
    "verify": """
from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.verify import verify
beton = Beton("FILE")
assert verify(beton, workers=2)["records"] == beton.num_samples
""",
}
WHAT = {
    "convert": "convert {:,} files",
    "open": "open {:,} records for loading",
    "select": "select a fifth of the classes of {:,} records",
    "verify": "verify {:,} records",
}
CHILD = r"""
import json, re, sys, time
start = time.perf_counter()
exec(sys.argv[1])
seconds = time.perf_counter() - start
with open("/proc/self/status") as status:  # ru_maxrss would be the parent's: it survives exec
    print(json.dumps([seconds, int(re.search(r"VmHWM:\s+(\d+)", status.read())[1]) / 1024]))
"""


def run(suite: Suite) -> None:
    with tempfile.TemporaryDirectory(prefix="dp4tl-scale-", dir=suite.data) as scratch:
        programs, tables = _prepare(Path(scratch))
        peaks: dict[tuple[str, int], list[float]] = {key: [] for key in programs}

        def measure(key: tuple[str, int]) -> float:
            seconds, peak = child(CHILD, programs[key])
            peaks[key].append(peak)
            return seconds

        labels = {f"{name} {n}": (name, n) for name, n in programs}
        measured = interleave({label: (lambda key=key: measure(key)) for label, key in labels.items()}, warmup=1)
    seconds = {labels[label]: values for label, values in measured.items()}
    peaks = {key: values[1:] for key, values in peaks.items()}  # without the warm-up's
    for name, what in WHAT.items():
        counts = sorted(n for subject, n in programs if subject == name)
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


def _prepare(folder: Path) -> tuple[dict[tuple[str, int], str], float]:
    """The programs by (subject, files or records), and the bytes of the tables for a record."""
    programs = {}
    for share in (SHARE, 1):
        place, files, records, classes = folder / f"{share}", FILES // share, RECORDS // share, CLASSES // share
        place.mkdir()
        names = {"TREE": place / "tree", "FILE": place / "large.beton", "OUT": place / "out.beton"}
        _tree(names["TREE"], files, classes)
        _records(names["FILE"], records, classes)
        for name, code in SUBJECTS.items():
            for key, path in names.items():
                code = code.replace(f'"{key}"', repr(str(path)))
            programs[name, files if name == "convert" else records] = code
    beton = Beton(names["FILE"])
    return programs, beton.metadata.dtype.itemsize + fmt.ALLOCATION.itemsize


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
