"""TIFF files with integers that Pillow reads as others, or does not write."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.conversion.images import ImageRule, make_record

RAW = ImageRule(write_mode="raw")
RAMP = np.linspace(0, 65535, 96 * 64).reshape(64, 96)


def pixels(data: bytes) -> np.ndarray:
    """What is stored of an image, as RGB."""
    record = make_record(data, RAW, 0)
    return np.frombuffer(record.payload, np.uint8).reshape(record.height, record.width, 3)


def tiff(values: np.ndarray, sample_format: int = 1, photometric: int = 0, bits: int = 0) -> bytes:
    """Uncompressed, little-endian, with tags that Pillow does not write. Samples are grey ``[h, w]`` or RGB ``[h, w, 3]``."""
    channels = 1 if values.ndim == 2 else 3
    data = values.tobytes()
    bits = bits or values.dtype.itemsize * 8
    tags = [(256, values.shape[1]), (257, values.shape[0]), (258, bits), (259, 1), (262, photometric), (273, 8), (277, channels),
            (278, values.shape[0]), (279, len(data)), (339, sample_format)]  # fmt: skip
    at = 8 + len(data) + len(data) % 2
    triple = at + 2 + 12 * len(tags) + 4
    out = b"II*\0" + struct.pack("<I", at) + data + bytes(len(data) % 2) + struct.pack("<H", len(tags))
    for tag, value in sorted(tags):
        several = channels == 3 and tag in (258, 339)
        body = struct.pack("<I", triple + 6 * (tag == 339)) if several else struct.pack("<I", value)
        out += struct.pack("<HHI", tag, 3 if tag != 279 else 4, 3 if several else 1) + body
    return out + bytes(4) + struct.pack("<3H", bits, bits, bits) + struct.pack("<3H", *[sample_format] * 3)


def test_integers_of_tiff_by_one_rule() -> None:
    """As they are in files, with tags of their own."""
    levels = np.round(RAMP.astype("<u2") / 257).astype(np.uint8)[..., None]
    assert (pixels(tiff(RAMP.astype("<u2"), photometric=1)) == levels).all()
    inverted = np.round((65535 - RAMP.astype("<u2")) / 257)[..., None]
    assert (pixels(tiff(RAMP.astype("<u2"), photometric=0)) == inverted).all(), "white is 0"
    grey = (RAMP / 256).astype(np.uint8)
    assert (pixels(tiff(grey, photometric=1)) == grey[..., None]).all()
    assert (pixels(tiff(grey, photometric=0)) == 255 - grey[..., None]).all()
    colours = np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]]).astype("<u2")
    record = make_record(tiff(colours, photometric=2), RAW, 0)
    assert record.note == "TIFF, not JPEG; 16-bit colours by their high byte"
    assert (np.frombuffer(record.payload, np.uint8).reshape(colours.shape) == colours >> 8).all()
    signed = (RAMP / 2 - 9000).astype("<i2")
    refused = {
        "int8": tiff((RAMP / 512 - 60).astype(np.int8), 2, 1), "int16": tiff(signed, 2, 1), "int32": tiff(RAMP.astype("<i4"), 2, 1),
        "uint32": tiff((RAMP * 60000).astype("<u4"), 1, 1), "float": tiff((RAMP / 65535).astype("<f4"), 3, 1),
    }  # fmt: skip
    for name, data in refused.items():
        with pytest.raises(SourceError, match=r"its pixels are .*, whose range is not defined\. Convert them to 8 or 16 bits"):
            make_record(data, ImageRule(), 0)
            pytest.fail(name)
    with pytest.raises(SourceError, match=r"its pixels have 12 bits\. Convert them to 8 or 16 bits"):
        make_record(tiff(np.zeros((64, 144), np.uint8), 1, 1, bits=12), ImageRule(), 0)
