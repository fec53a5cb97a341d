"""Seconds from process start to the first batch in the consumer's hands, without importing torch and NumPy.

A child imports torch, then takes the time: importing the loader, opening a file of 1.28 million records, starting the
threads, the first batch of 256. FFCV's share of compiling is in its own row.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from benchmarks.child import call
from benchmarks.children import first_batch, open_file
from benchmarks.harness import Suite, interleave
from benchmarks.loaders import Images, write_with_ffcv
from benchmarks.many_records import many_records

RECORDS, CLASSES = 1_280_000, 1_000  # as many as ImageNet has


def run(suite: Suite) -> None:
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name) / "small.beton", Path(name) / "large.beton"
        write_with_ffcv(Images(suite.require_data()), small, "jpg")
        many_records(small, large, RECORDS, CLASSES)

        subjects = {s: partial(call, first_batch, subject=s, path=str(small), images=1024) for s in ("ours", "ffcv")}
        samples = suite.add("first-batch", interleave(subjects), "s", ratio_to="ffcv")
        suite.goal("first-batch-seconds", goal=0.15, measured=samples["ours"].value, unit="s", at_most=True)
        opened = [call(open_file, path=str(large)) for _ in range(6)][1:]
        rows = suite.add("open-1280000-records", {"ours": [o["seconds"] for o in opened]}, "s")
        suite.goal("open-seconds", goal=0.2, measured=rows["ours"].value, unit="s", at_most=True)
        rows = suite.add("open-1280000-records-memory", {"ours": [o["MiB"] for o in opened]}, "MiB")
        suite.goal("open-private-memory", goal=100.0, measured=rows["ours"].value, unit="MiB", at_most=True)
