"""The byte layout of a ``.beton`` file (version 2, little-endian), as FFCV 1.0.2 writes it: the single truth.

    0                                    HEADER                24 bytes
    24                                   FIELD x num_fields    1041 bytes each
    24 + 1041 * num_fields               metadata table        num_samples x an aligned struct of the fields
    next multiple of page_size           pages                 record payloads; none straddles a page; zero padding
    alloc_table_ptr                      ALLOCATION x M        (sample id, pointer, size), to the end of the file

``alloc_table_ptr`` stays 0 until the writer has finished. A JPEG's size stands only in the allocation table.
"""

from __future__ import annotations

import numpy as np

VERSION = 2

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
FIELD = np.dtype([("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

assert (HEADER.itemsize, FIELD.itemsize, ALLOCATION.itemsize) == (24, 1041, 24)

TYPE_FLOAT, TYPE_INT, TYPE_RGB, TYPE_BYTES, TYPE_NDARRAY, TYPE_JSON, TYPE_TENSOR, TYPE_CUSTOM = 0, 1, 2, 3, 4, 5, 6, 255

IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])  # packed: 13 bytes
MODE_JPEG, MODE_RAW = 0, 1
MAX_SIDE = 2**16 - 1

# What a field stores in the metadata table. An ndarray's or tensor's pointer is 8 bytes; bytes and json add a size.
FIELD_METADATA: dict[int, np.dtype] = {
    TYPE_FLOAT: np.dtype("<f8"),
    TYPE_INT: np.dtype("<i8"),
    TYPE_RGB: IMAGE,
    TYPE_BYTES: np.dtype([("ptr", "<u8"), ("size", "<u8")]),
    TYPE_NDARRAY: np.dtype("<u8"),
    TYPE_JSON: np.dtype([("ptr", "<u8"), ("size", "<u8")]),
    TYPE_TENSOR: np.dtype("<u8"),
}

MIN_PAGE_SIZE, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 2**21, 2**23, 2**31  # bytes; powers of two


def metadata_dtype(type_ids: list[int]) -> np.dtype:
    """The aligned row of the metadata table for these field types, named ``f0``, ``f1``, ... as FFCV names them."""
    return np.dtype([(f"f{i}", FIELD_METADATA[t]) for i, t in enumerate(type_ids)], align=True)


def page_size_for(largest_record: int) -> int:
    """The default page size, or the next power of two that holds the largest record (in bytes)."""
    return max(DEFAULT_PAGE_SIZE, 1 << max(0, int(largest_record) - 1).bit_length())


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
