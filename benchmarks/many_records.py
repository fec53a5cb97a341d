"""Files of millions of records, made in seconds: rows of the tables that share the payloads of a small file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton import format as fmt
from dp4tl_fast.beton.sidecars import Contents, put_in_place, write_partial


def many_records(source: Path, target: Path, records: int, classes: int) -> None:
    """``records`` rows of ``classes`` classes, one after the other, which repeat the images of ``source``; with a sidecar."""
    beton = Beton(source)
    column = {name: field.column for name, field in beton.fields.items()}
    rows = np.resize(beton.metadata, records)
    table_start = 24 + fmt.FIELD.itemsize * len(beton.fields)
    data_start = fmt.round_up(table_start + rows.nbytes, beton.page_size)
    pointers = beton.images["data_ptr"]
    first = int(pointers.min())
    payload = np.fromfile(source, np.uint8)[first : int((pointers + beton.sizes.astype(np.uint64)).max())]
    rows[column["image"]]["data_ptr"] += np.uint64(data_start) - np.uint64(first)
    rows[column["label"]] = np.arange(records) * classes // records
    if "index" in column:
        rows[column["index"]] = np.arange(records)
    end = fmt.round_up(data_start + len(payload), beton.page_size)
    allocations = np.zeros(records, fmt.ALLOCATION)
    allocations["sample_id"], allocations["ptr"] = np.arange(records), rows[column["image"]]["data_ptr"]
    allocations["size"] = np.resize(beton.sizes, records)
    header = np.zeros(1, fmt.HEADER)
    header["version"], header["num_fields"], header["page_size"] = fmt.VERSION, len(beton.fields), beton.page_size
    header["num_samples"], header["alloc_table_ptr"] = records, end
    with open(source, "rb") as old, open(target, "wb") as new:
        old.seek(24)
        new.write(header.tobytes() + old.read(table_start - 24))
        rows.tofile(new)
        new.seek(data_start)
        payload.tofile(new)
        new.seek(end)
        allocations.tofile(new)
    names = [f"n{c:08}" for c in range(classes)]
    write_partial(target, Beton(target)._stamp(), Contents(class_names=names, checksums=[np.zeros(records, np.uint32)]))
    put_in_place(target)
