"""Seconds from process start to the first batch in the consumer's hands, without importing torch and NumPy.

A child imports torch, then takes the time: importing the loader, opening a file of 1.28 million records, starting the
threads, the first batch of 256. FFCV's share of compiling is in its own row.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.child import call
from benchmarks.children import first_batch, open_file
from benchmarks.harness import Suite, interleave
from benchmarks.loaders import Images, write_with_ffcv
from dp4tl_fast.beton import Beton
from dp4tl_fast.beton import format as fmt

RECORDS = 1_280_000  # as many as ImageNet has

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


def run(suite: Suite) -> None:
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name) / "small.beton", Path(name) / "large.beton"
        write_with_ffcv(Images(suite.require_data()), small, "jpg")
        many_records(small, large)

        subjects = {s: partial(call, first_batch, subject=s, path=str(small), images=1024) for s in ("ours", "ffcv")}
        samples = suite.add("first-batch", interleave(subjects), "s", ratio_to="ffcv")
        suite.goal("first-batch-seconds", goal=0.2, measured=samples["ours"].value, unit="s", at_most=True)
        opened = [call(open_file, path=str(large)) for _ in range(6)][1:]
        rows = suite.add("open-1280000-records", {"ours": [o["seconds"] for o in opened]}, "s")
        suite.goal("open-seconds", goal=0.2, measured=rows["ours"].value, unit="s", at_most=True)
        rows = suite.add("open-1280000-records-memory", {"ours": [o["MiB"] for o in opened]}, "MiB")
        suite.goal("open-private-memory", goal=100.0, measured=rows["ours"].value, unit="MiB", at_most=True)
