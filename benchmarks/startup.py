"""Seconds from process start to the first batch in the consumer's hands, without importing torch and NumPy.

A child imports torch, then takes the time: importing the loader, opening a file of 1.28 million records, starting the
threads, the first batch of 256. FFCV's share of compiling is in its own row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Suite, interleave
from benchmarks.loaders import Images, write_with_ffcv
from dp4tl_fast.beton import Beton
from dp4tl_fast.beton import format as fmt

RECORDS = 1_280_000  # as many as ImageNet has

CHILD = """
import json, sys, time, resource
import torch, numpy
subject, path, images = sys.argv[1:]
start = time.perf_counter()
from benchmarks.loader_subjects import SUBJECTS
loader = SUBJECTS[subject]({"file": path, "threads": 2, "images": int(images), "size": 224})()
for batch in loader:
    break
print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
import os
os._exit(0)
"""

OPEN = """
import json, time
import numpy
def private():
    return sum(int(l.split()[1]) for l in open("/proc/self/smaps_rollup") if l.startswith("Private")) / 1024
from dp4tl_fast.kernels import _native
from dp4tl_fast.beton import Beton
import sys
before, start = private(), time.perf_counter()
beton, core = Beton(sys.argv[1]), _native.Beton(sys.argv[1])
beton.sizes, beton.labels
print(json.dumps({"seconds": time.perf_counter() - start, "MiB": private() - before}))
"""


def many_records(source: Path, target: Path) -> None:
    """RECORDS rows that share the payloads of ``source``."""
    beton = Beton(source)
    rows = np.resize(beton.metadata, RECORDS)
    table_start = 24 + fmt.FIELD.itemsize * len(beton.fields)
    data_start = fmt.round_up(table_start + rows.nbytes, beton.page_size)
    first = int(beton.images["data_ptr"].min())
    payload = np.fromfile(source, np.uint8)[first : int((beton.images["data_ptr"] + beton.sizes.astype(np.uint64)).max())]
    rows["f0"]["data_ptr"] += np.uint64(data_start) - np.uint64(first)
    end = fmt.round_up(data_start + len(payload), beton.page_size)
    allocations = np.zeros(RECORDS, fmt.ALLOCATION)
    allocations["sample_id"], allocations["ptr"] = np.arange(RECORDS), rows["f0"]["data_ptr"]
    allocations["size"] = np.resize(beton.sizes, RECORDS)
    header = np.zeros(1, fmt.HEADER)
    header["version"], header["num_fields"], header["page_size"] = fmt.VERSION, len(beton.fields), beton.page_size
    header["num_samples"], header["alloc_table_ptr"] = RECORDS, end
    with open(source, "rb") as old, open(target, "wb") as new:
        old.seek(24)
        new.write(header.tobytes() + old.read(table_start - 24) + rows.tobytes())
        new.seek(data_start)
        new.write(payload.tobytes())
        new.seek(end)
        new.write(allocations.tobytes())


def child(program: str, *arguments: str) -> Any:
    """What a Python program in a process of its own printed last, as JSON."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def run(suite: Suite) -> None:
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name) / "small.beton", Path(name) / "large.beton"
        write_with_ffcv(Images(suite.require_data()), small, "jpg")
        many_records(small, large)

        def first_batch(subject: str, path: Path, images: int) -> float:
            return child(CHILD, subject, str(path), str(images))["seconds"]

        subjects = {s: lambda s=s: first_batch(s, small, 1024) for s in ("ours", "ffcv")}
        samples = suite.add("first-batch", interleave(subjects), "s", ratio_to="ffcv")
        suite.goal("first-batch-seconds", goal=0.2, measured=samples["ours"].value, unit="s", at_most=True)
        opened = [child(OPEN, str(large)) for _ in range(6)][1:]
        rows = suite.add("open-1280000-records", {"ours": [o["seconds"] for o in opened]}, "s")
        suite.goal("open-seconds", goal=0.2, measured=rows["ours"].value, unit="s", at_most=True)
        rows = suite.add("open-1280000-records-memory", {"ours": [o["MiB"] for o in opened]}, "MiB")
        suite.goal("open-private-memory", goal=100.0, measured=rows["ours"].value, unit="MiB", at_most=True)
