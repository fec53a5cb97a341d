"""Seconds and memory at ImageNet's size: convert a tree of 200,000 files; open, select from and verify 1,281,167 records.

Every subject runs in a process of its own, which reports its seconds and its peak resident memory; ``import`` is one that
only imports the package, so that the difference is what the work takes. The files and records are tiny: what is measured
is the cost of their number, not of their bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.harness import Suite, interleave

FILES, CLASSES = 200_000, 1000
RECORDS = 1_281_167  # ImageNet-1k's training images
KEPT = 200  # classes

SUBJECTS = {
    "import": "import dp4tl_fast.convert, dp4tl_fast.beton.verify, dp4tl_fast.selection, dp4tl_fast.inspect",
    "convert": """
from dp4tl_fast.convert import convert
convert("TREE", "OUT", workers=2)
""",
    "open": """
from dp4tl_fast.beton import Beton
beton = Beton("FILE")
assert len(beton.metadata) == beton.num_samples
""",
    "select": """
import numpy as np
from dp4tl_fast.beton import Beton
beton = Beton("FILE")
records = np.flatnonzero(np.isin(beton.labels, np.arange(KEPT) * 5))
assert len(records) and beton.sizes[records].min() > 0
""",
    "verify": """
from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.verify import verify
assert verify(Beton("FILE"), workers=2)["records"] == RECORDS
""",
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
        folder = Path(scratch)
        names = {"TREE": _tree(folder / "tree"), "FILE": _records(folder / "large.beton"), "OUT": folder / "out.beton"}
        programs = {}
        for name, code in SUBJECTS.items():
            for key, path in names.items():
                code = code.replace(f'"{key}"', repr(str(path)))
            programs[name] = code.replace("KEPT", str(KEPT)).replace("RECORDS", str(RECORDS))
        peaks: dict[str, list[float]] = {name: [] for name in programs}

        def measure(name: str) -> float:
            seconds, peak = _child(programs[name])
            peaks[name].append(peak)
            return seconds

        seconds = interleave({name: (lambda name=name: measure(name)) for name in programs}, warmup=1)
    cases = {
        "import": "import",
        "convert": f"convert {FILES:,} files",
        "open": f"open {RECORDS:,} records",
        "select": f"select {KEPT} of {CLASSES} classes of {RECORDS:,} records",
        "verify": f"verify {RECORDS:,} records",
    }
    for name, case in cases.items():
        suite.add(case, {"dp4tl_fast": seconds[name]}, "s")
        suite.add(f"{case}, peak memory", {"dp4tl_fast": peaks[name][1:]}, "MiB")


def _child(program: str) -> tuple[float, float]:
    done = subprocess.run([sys.executable, "-c", CHILD, program], capture_output=True, text=True, check=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def _tree(root: Path) -> Path:
    """``FILES`` JPEGs of 8 x 8 pixels in ``CLASSES`` folders."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 90)).save(out, "JPEG")
    for c in range(CLASSES):
        folder = root / f"n{c:08}"
        folder.mkdir(parents=True)
        for i in range(FILES // CLASSES):
            (folder / f"{folder.name}_{i}.JPEG").write_bytes(out.getvalue())
    return root


def _records(path: Path) -> Path:
    """``RECORDS`` raw images of one pixel, ``CLASSES`` classes, with checksums."""
    import zlib

    from dp4tl_fast.beton import BetonWriter
    from dp4tl_fast.beton.sidecars import write_checksums

    labels = np.arange(RECORDS) * CLASSES // RECORDS
    pixel = b"abc"
    with BetonWriter(path, RECORDS) as writer:
        for start in range(0, RECORDS, 4096):
            part = np.arange(start, min(start + 4096, RECORDS))
            ones = np.ones(len(part), np.int64)
            writer.append_many([pixel] * len(part), ones, ones, ones, labels[part], part)
        write_checksums(path, [np.full(RECORDS, zlib.crc32(pixel), np.uint32)])
        writer.close(class_names=[f"n{c:08}" for c in range(CLASSES)])
    return path
